//! Ranged reads of the object store. Only `transport.rs` and its submodules import reqwest.
//!
//! Some stores and CDNs ignore `Range` and send the whole object. The caller keeps the body of such an answer
//! ([`OpenBody`]): a read of a later range continues in it, instead of receiving all bytes before that range
//! again.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, RANGE};
use reqwest::{Response, StatusCode, Url};

use super::Transport;
use super::content_resolver::host_failure;
use super::failure::{connection_lost, idle_timeout, protocol_error};
use super::refusal::{StoreError, header_number};
use crate::error::Result;
use crate::ids::Secret;
use crate::pds::connectivity::Connectivity;
use crate::pds::retry::{Delivery, Idempotency, RequestFailure, RetryPolicy};

const WHAT: &str = "download";
/// Bytes before a range are received in pieces of this size, and the last one ends at the range.
const SKIPPED_PIECE_BYTES: u64 = 1 << 20;

/// A read of one range of an object.
pub struct RangeRequest<'a> {
    pub url: &'a Secret<String>,
    /// Not empty.
    pub range: Range<u64>,
    /// Checks the object of an answer, before any of its bytes are used.
    pub check: &'a (dyn Fn(&ObjectInfo) -> Result<()> + Sync),
    /// The body to continue in, if it is not beyond the range. Afterwards the body that continues behind the
    /// range, if the store ignores `Range`. A leaf lock.
    pub body: &'a Mutex<Option<Box<OpenBody>>>,
    /// Is passed the bytes before the range that the store sent, with their offset.
    pub skipped: &'a (dyn Fn(u64, Bytes) + Sync),
}

/// The headers of an answer that describe the whole object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ObjectInfo {
    /// In bytes.
    pub size: Option<u64>,
    /// CRC-64/XZ of the content (`x-oss-hash-crc64ecma`).
    pub crc64: Option<u64>,
    /// A strong `ETag`: it differs between contents.
    pub etag: Option<String>,
}

/// The bytes of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeBytes {
    /// Exactly the requested bytes.
    pub bytes: Bytes,
    /// The store sent the whole object.
    pub ignored_range: bool,
}

/// The object store's answer to a read of a range. Failures are errors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GetAnswer {
    Bytes(RangeBytes),
    /// The presigned URL has expired and must be signed again.
    Expired,
}

/// The body of an answer, of which some bytes are not read yet.
pub struct OpenBody {
    response: Response,
    info: ObjectInfo,
    /// Offset of the next byte.
    position: u64,
    /// Received bytes at `position`.
    received: VecDeque<Bytes>,
    connectivity: Arc<Connectivity>,
}

/// An answer whose body was not read yet.
enum Opened {
    Range(OpenBody),
    Whole(OpenBody),
    Expired,
}

impl Transport {
    /// Reads exactly the bytes of a range. An attempt that fails gives up the open body.
    pub async fn get_range(
        &self,
        request: &RangeRequest<'_>,
        policy: RetryPolicy,
    ) -> std::result::Result<GetAnswer, RequestFailure> {
        let target = self.hosts.parse(request.url.expose()).await.map_err(|e| host_failure(&e))?;
        let (keeps_waiting, progress) = (policy.outage_max.is_none(), AtomicU64::new(0));
        let attempt = async || {
            let attempt = self.get_once(&target, request, &progress);
            self.with_liveness_checks((WHAT, self.content(&target)), keeps_waiting, &progress, attempt).await
        };
        policy.run(Idempotency::Safe, &self.connectivity, &progress, attempt).await
    }

    async fn get_once(
        &self,
        url: &Url,
        request: &RangeRequest<'_>,
        progress: &AtomicU64,
    ) -> std::result::Result<GetAnswer, RequestFailure> {
        let Range { start, end } = request.range;
        let open = request.body.lock().take().filter(|body| body.position <= start);
        let opened = match open {
            Some(body) => Opened::Whole(*body),
            None => self.open(url, &request.range).await?,
        };
        let (mut body, ignored_range) = match opened {
            Opened::Range(body) => (body, false),
            Opened::Whole(body) => (body, true),
            Opened::Expired => return Ok(GetAnswer::Expired),
        };
        (request.check)(&body.info)
            .map_err(|error| RequestFailure { error, ..protocol_error(String::new()) })?;
        while body.position < start {
            let (at, piece) = (body.position, SKIPPED_PIECE_BYTES.min(start - body.position));
            (request.skipped)(at, body.read(piece, progress).await?);
        }
        let bytes = body.read(end - start, progress).await?;
        if ignored_range && body.info.size.is_none_or(|size| end < size) {
            *request.body.lock() = Some(Box::new(body));
        }
        Ok(GetAnswer::Bytes(RangeBytes { bytes, ignored_range }))
    }

    async fn open(&self, url: &Url, range: &Range<u64>) -> std::result::Result<Opened, RequestFailure> {
        let bytes = format!("bytes={}-{}", range.start, range.end - 1);
        let request = self.pools().gets.get(url.clone()).header(RANGE, bytes);
        let response = tokio::time::timeout(self.limits.idle, self.send((WHAT, self.content(url)), request))
            .await
            .map_err(|_| idle_timeout(WHAT))??;
        let headers = response.headers();
        let mut info = ObjectInfo {
            size: None,
            crc64: header_number(headers, "x-oss-hash-crc64ecma"),
            etag: headers.get(ETAG).and_then(|v| v.to_str().ok()).filter(is_strong).map(str::to_owned),
        };
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                info.size = check_content_range(headers, range)?;
                Ok(Opened::Range(self.body(response, info, range.start)))
            }
            StatusCode::OK => {
                info.size = header_number(headers, CONTENT_LENGTH.as_str());
                Ok(Opened::Whole(self.body(response, info, 0)))
            }
            _ => {
                let error = StoreError::read(WHAT, response, self.limits.idle).await?;
                if error.is_expired() { Ok(Opened::Expired) } else { Err(error.into_failure()) }
            }
        }
    }

    fn body(&self, response: Response, info: ObjectInfo, position: u64) -> OpenBody {
        let (received, connectivity) = (VecDeque::new(), self.connectivity.clone());
        OpenBody { response, info, position, received, connectivity }
    }
}

impl OpenBody {
    /// Offset of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Reads exactly the next `length` bytes.
    async fn read(
        &mut self,
        length: u64,
        progress: &AtomicU64,
    ) -> std::result::Result<Bytes, RequestFailure> {
        let mut bytes = BytesMut::with_capacity(length as usize);
        loop {
            while let Some(mut chunk) = self.received.pop_front() {
                let room = length as usize - bytes.len();
                if chunk.len() > room {
                    self.received.push_front(chunk.split_off(room));
                }
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 == length {
                    self.position += length;
                    return Ok(bytes.freeze());
                }
            }
            let Some(chunk) = self.response.chunk().await.map_err(|e| connection_lost(WHAT, e))? else {
                let detail = format!("{WHAT}: received {} of {length} bytes", bytes.len());
                return Err(RequestFailure { delivery: Delivery::Unknown, ..protocol_error(detail) });
            };
            self.connectivity.note_downloaded(chunk.len() as u64);
            progress.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            self.received.push_back(chunk);
        }
    }
}

impl fmt::Debug for OpenBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenBody").field("position", &self.position).finish_non_exhaustive()
    }
}

fn is_strong(etag: &&str) -> bool {
    etag.len() > 2 && etag.starts_with('"')
}

/// Checks that `Content-Range: bytes a-b/total` is the requested range and returns the total.
pub(super) fn check_content_range(
    headers: &HeaderMap,
    range: &Range<u64>,
) -> std::result::Result<Option<u64>, RequestFailure> {
    let requested = format!("{}-{}", range.start, range.end - 1);
    let text = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let wrong = || protocol_error(format!("{WHAT}: requested bytes {requested}, got {text:?}"));
    let (returned, total) = text.strip_prefix("bytes ").and_then(|r| r.split_once('/')).ok_or_else(wrong)?;
    if returned != requested {
        return Err(wrong());
    }
    Ok(total.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::error::ErrorKind;
    use crate::pds::transport::{TransportLimits, TrustedPeers};

    #[test]
    fn content_range_must_match_the_request() {
        let headers = |text: &str| HeaderMap::from_iter([(CONTENT_RANGE, text.parse().unwrap())]);
        assert_eq!(check_content_range(&headers("bytes 0-9/100"), &(0..10)).unwrap(), Some(100));
        assert_eq!(check_content_range(&headers("bytes 0-9/*"), &(0..10)).unwrap(), None);
        for wrong in ["bytes 0-8/100", "bytes 1-9/100", "items 0-9/100", ""] {
            assert!(check_content_range(&headers(wrong), &(0..10)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn weak_etags_are_not_compared() {
        assert!(is_strong(&"\"5B3C\""));
        assert!(!is_strong(&"W/\"5B3C\"") && !is_strong(&"\"\"") && !is_strong(&""));
    }

    /// A store that answers each request with this head, and then with one byte every 20 ms.
    async fn dripping_store(head: &'static str) -> Url {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/object", listener.local_addr().unwrap())).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0, "the request has no end");
            }
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            while stream.write_all(b"x").await.is_ok() {
                ticks.tick().await;
            }
        });
        url
    }

    #[tokio::test]
    async fn regression_slow_error_body_has_a_time_limit() {
        let url = dripping_store("HTTP/1.1 500 x\r\ncontent-length: 65536\r\n\r\n").await;
        let (long, idle) = (Duration::from_secs(60), Duration::from_secs(1));
        let limits = TransportLimits { connect: long, call: long, idle, calls_max: 1 };
        let transport = Transport::new(limits, &url, TrustedPeers::default()).unwrap();
        let opened = tokio::time::timeout(Duration::from_secs(20), transport.open(&url, &(0..1))).await;
        let failure = opened.expect("the body is read without end").err().unwrap();
        assert_eq!(failure.error.kind(), ErrorKind::Timeout, "{}", failure.error);
    }
}
