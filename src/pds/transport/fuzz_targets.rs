//! Fuzz targets for answers of the service and of the object store.

#![allow(clippy::missing_panics_doc, reason = "a target panics if an invariant does not hold")]

use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use reqwest::Response;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue};
use tokio::runtime::{Builder, Runtime};
use url::{Host, Url};

use super::download::check_content_range;
use super::refusal::{StoreError, api_refusal};
use crate::config::HostPatterns;
use crate::pds::content_hosts::ContentHosts;
use crate::pds::retry::RequestFailure;

/// Longest error text, in bytes: code, message and request id of 500 characters each, and a few words.
const ERROR_TEXT_BYTES_MAX: usize = 3 * 4 * 500 + 300;
const TIME_MAX: Duration = Duration::from_secs(20);
/// A secret of the request, which the answer may quote.
const SECRET: &str = "5ecret-t0ken";
const STATUS: [u16; 10] = [400, 401, 403, 404, 409, 429, 500, 503, 507, 418];

static RUNTIME: LazyLock<Option<Runtime>> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().ok());

/// Runs a future that does not wait for the network.
fn block_on<T>(future: impl Future<Output = T>) -> Option<T> {
    RUNTIME.as_ref().map(|runtime| runtime.block_on(future))
}

/// A digit that chooses the status, lines of headers, an empty line, the body.
fn response(data: &[u8]) -> Option<Response> {
    let (digit, rest) = data.split_first()?;
    let status = STATUS.get(usize::from(digit.wrapping_sub(b'0')))?;
    let split = rest.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = split.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + 2..]));
    let mut response = hyper::Response::new(body.to_vec());
    *response.status_mut() = (*status).try_into().ok()?;
    for line in head.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            response.headers_mut().append(name, value);
        }
    }
    Some(response.into())
}

fn check_failure(failure: &RequestFailure) {
    let text = failure.error.to_string();
    assert!(!text.contains(char::is_control), "control characters in {text:?}");
    assert!(text.len() <= ERROR_TEXT_BYTES_MAX, "an error text of {} bytes", text.len());
    assert!(failure.retry_after.is_none_or(|pause| pause.as_secs() <= 60), "{:?}", failure.retry_after);
}

/// Refusals of the API: JSON, or headers of a gateway.
pub fn api_refusals(data: &[u8]) {
    if let Some(response) = response(data)
        && let Some(failure) = block_on(api_refusal("/v2/file/list", response, &[SECRET]))
    {
        check_failure(&failure);
        assert!(!failure.error.to_string().contains(SECRET), "{}", failure.error);
    }
}

/// Refusals of the object store: XML.
pub fn store_refusals(data: &[u8]) {
    let answer =
        response(data).and_then(|response| block_on(StoreError::read("download", response, TIME_MAX)));
    if let Some(Ok(error)) = answer {
        check_failure(&error.into_failure());
    }
}

/// The start and the length of the requested range on the first line, then `Content-Range`.
pub fn content_ranges(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Some((range, header)) = text.split_once('\n') else { return };
    let Some((start, length)) = range.split_once(' ') else { return };
    let (Ok(start), Ok(length)) = (start.parse::<u64>(), length.parse::<u64>()) else { return };
    let Some(end) = start.checked_add(length).filter(|end| *end > start) else { return };
    let Ok(value) = HeaderValue::from_str(header) else { return };
    match check_content_range(&HeaderMap::from_iter([(CONTENT_RANGE, value)]), &(start..end)) {
        Ok(_) => assert!(header.starts_with(&format!("bytes {start}-{}/", end - 1)), "{header}"),
        Err(failure) => check_failure(&failure),
    }
}

/// URLs of content that the service returns.
pub fn content_urls(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for endpoint in ["https://203.0.113.1", "https://10.0.0.1", "http://127.0.0.1:9"] {
        let Ok(own) = Url::parse(endpoint) else { continue };
        let hosts = ContentHosts::new(&own, HostPatterns::default());
        match block_on(hosts.parse(&text)) {
            Some(Ok(url)) => check_content_url(endpoint, &url),
            Some(Err(failure)) => {
                let shown = failure.to_string();
                assert!(!shown.contains(char::is_control), "control characters in {shown:?}");
            }
            None => {}
        }
    }
}

fn check_content_url(endpoint: &str, url: &Url) {
    let is_local = endpoint.starts_with("http:");
    assert!(url.scheme() == "https" || (is_local && url.scheme() == "http"), "{endpoint} {url}");
    assert!(url.username().is_empty() && url.password().is_none(), "{endpoint} {url}");
    let ip = match url.host() {
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip),
        Some(Host::Ipv6(ip)) => ip.to_canonical(),
        Some(Host::Domain(_)) | None => return,
    };
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.octets() == [100, 100, 100, 200],
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    assert!(!is_link_local && !ip.is_unspecified() && !ip.is_multicast(), "{endpoint} {url}");
    assert!(is_local || !ip.is_loopback(), "{endpoint} {url}");
}
