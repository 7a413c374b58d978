//! What a refusal means: the answers of the API and of the object store that are no success, as failures with a
//! kind, and with what is known of whether the request was carried out.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{DATE, HeaderMap};
use reqwest::{Response, StatusCode};

use super::failure::lost;
use super::header_number;
use crate::error::{Error, ErrorKind};
use crate::pds::retry::{Failure, Sent};
use crate::pds::types::ServiceError;

/// Largest error body that is read, in bytes.
pub(super) const ERROR_BYTES_MAX: usize = 64 << 10;
/// Longest text of the service that is shown, in characters.
const SHOWN_CHARS_MAX: usize = 500;
/// Clocks that differ by less are not spoken of, in seconds.
const CLOCK_SKEW_S_MAX: i64 = 60;

/// `Retry-After` is in seconds, `x-retry-after` in milliseconds. An absurd wish is cut to a minute.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let asked = header_number(headers, "x-retry-after")
        .map(Duration::from_millis)
        .or_else(|| header_number(headers, "retry-after").map(Duration::from_secs))?;
    Some(asked.min(Duration::from_secs(60)))
}

/// A non-2xx answer of the API: JSON body, or gateway headers where the body is empty.
pub(super) async fn refused(path: &str, response: Response) -> Failure {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let header = |name: &str| {
        response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let gateway = ServiceError { code: header("x-ca-error-code"), message: header("x-ca-error-message") };
    let request_id = header("x-ca-request-id");
    let clock = clock_hint(status, response.headers());
    let body = match read_error(path, response).await {
        Ok(body) => body,
        Err(failure) => return failure,
    };
    let service = serde_json::from_slice::<ServiceError>(&body).unwrap_or(gateway);
    let kind = kind_of_refusal(status, &service.code);
    let (code, message) = (shown(&service.code), shown(&service.message));
    let detail = format!("{path}: {} {code} {message} (request {request_id}){clock}", status.as_u16());
    Failure { error: Error::new(kind, detail), sent: sent_of(status), code: service.code, retry_after }
}

/// The beginning of the body of an error: what says more has said enough.
async fn read_error(what: &str, mut response: Response) -> std::result::Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    while body.len() < ERROR_BYTES_MAX
        && let Some(chunk) = response.chunk().await.map_err(|e| lost(what, &e))?
    {
        body.extend_from_slice(&chunk[..chunk.len().min(ERROR_BYTES_MAX - body.len())]);
    }
    Ok(body.freeze())
}

/// What comes from the network is short and moves no cursor where it is shown.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(SHOWN_CHARS_MAX).map(plain).collect()
}

/// Signatures and assertions are good for minutes: where one is refused and the clocks differ, that is why.
fn clock_hint(status: StatusCode, headers: &HeaderMap) -> String {
    if !matches!(status.as_u16(), 400 | 401 | 403) {
        return String::new();
    }
    let theirs = headers.get(DATE).and_then(|date| date.to_str().ok());
    let Some(theirs) = theirs.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()) else {
        return String::new();
    };
    let ahead_s = jiff::Timestamp::now().as_second() - theirs.timestamp().as_second();
    if ahead_s.abs() <= CLOCK_SKEW_S_MAX {
        return String::new();
    }
    let way = if ahead_s > 0 { "ahead of" } else { "behind" };
    format!("; the clock of this machine is {} s {way} that of the service: set it", ahead_s.abs())
}

fn sent_of(status: StatusCode) -> Sent {
    match status.as_u16() {
        429 => Sent::No,
        500..=599 | 408 => Sent::Maybe,
        _ => Sent::Answered,
    }
}

/// The wire table: HTTP status and PDS code to error kind (`pds-api` error table).
fn kind_of_refusal(status: StatusCode, code: &str) -> ErrorKind {
    let class = code.split('.').next().unwrap_or_default();
    match (class, code) {
        (_, "InvalidParameter.Name") => ErrorKind::InvalidName,
        (_, "InvalidParameter.ContentHash" | "InvalidParameter.Crc64Hash") => ErrorKind::Integrity,
        ("InvalidParameterNotSupported", _) => ErrorKind::Unsupported,
        (_, "NotFound.Drive" | "NotFound.Domain") => ErrorKind::NoDrive,
        ("NotFound" | "ForbiddenFileInTheRecycleBin", _) => ErrorKind::NotFound,
        ("AlreadyExist", _) => ErrorKind::Exists,
        ("QuotaExhausted", _) => ErrorKind::QuotaExceeded,
        ("AccessTokenInvalid" | "AccessTokenExpired" | "TokenExpired", _) => ErrorKind::Unauthenticated,
        ("Forbidden" | "ForbiddenNoPermission" | "ForbiddenDriveLocked" | "ForbiddenDriveNotValid", _) => {
            ErrorKind::Denied
        }
        ("TooManyRequests", _) => ErrorKind::Throttled,
        // Something else is being done with the object.
        ("StateConflict", _) => ErrorKind::Io,
        _ => kind_of_status(status),
    }
}

fn kind_of_status(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::Denied,
        // What has no word of the service about a file comes from what stands before it.
        404 => ErrorKind::NoDrive,
        413 => ErrorKind::TooLarge,
        429 => ErrorKind::Throttled,
        504 => ErrorKind::Timeout,
        500..=599 => ErrorKind::Io,
        _ => ErrorKind::Protocol,
    }
}

/// An error of the object store: XML with `Code` and `Message`.
pub(super) struct StoreError {
    what: &'static str,
    status: StatusCode,
    pub(super) code: String,
    message: String,
    retry_after: Option<Duration>,
}

impl StoreError {
    pub(super) async fn read(what: &'static str, response: Response) -> std::result::Result<Self, Failure> {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let body = read_error(what, response).await?;
        let text = String::from_utf8_lossy(&body);
        Ok(Self {
            what,
            status,
            code: element(&text, "Code"),
            message: element(&text, "Message"),
            retry_after,
        })
    }

    pub(super) fn is_expired(&self) -> bool {
        self.status == StatusCode::FORBIDDEN
            && self.code == "AccessDenied"
            && self.message.to_ascii_lowercase().contains("expired")
    }

    pub(super) fn into_failure(self) -> Failure {
        let kind = match (self.code.as_str(), self.status.as_u16()) {
            ("AccessDenied" | "SignatureDoesNotMatch", _) => ErrorKind::Denied,
            ("InvalidDigest", _) => ErrorKind::Integrity,
            ("NoSuchKey", _) => ErrorKind::Stale,
            // `UploadTrafficRateLimitExceeded`, `TotalQpsLimitExceeded` and others.
            (code, 503) if code.ends_with("LimitExceeded") => ErrorKind::Throttled,
            (_, 507) => ErrorKind::QuotaExceeded,
            _ => kind_of_status(self.status),
        };
        let sent = match self.code.as_str() {
            "RequestTimeout" | "InvalidDigest" | "PartNotSequential" => Sent::Maybe,
            _ => sent_of(self.status),
        };
        let (code, message) = (shown(&self.code), shown(&self.message));
        let detail = format!("{}: {} {code} {message}", self.what, self.status.as_u16());
        Failure { error: Error::new(kind, detail), code: self.code, sent, retry_after: self.retry_after }
    }
}

/// The text of the first `<name>` element, or empty.
fn element(xml: &str, name: &str) -> String {
    let start = xml.split_once(&format!("<{name}>")).map(|(_, rest)| rest);
    let inner = start.and_then(|rest| rest.split_once(&format!("</{name}>"))).map(|(inner, _)| inner);
    inner.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_become_kinds() {
        let table = [
            (404, "NotFound.File", ErrorKind::NotFound),
            (404, "NotFound.Drive", ErrorKind::NoDrive),
            (404, "I404NF", ErrorKind::NoDrive),
            (404, "", ErrorKind::NoDrive),
            (409, "StateConflict", ErrorKind::Io),
            (400, "NotFound.File", ErrorKind::NotFound),
            (400, "InvalidParameter.Name", ErrorKind::InvalidName),
            (400, "InvalidParameter.ContentHash", ErrorKind::Integrity),
            (400, "InvalidParameterNotSupported.ParallelUpload", ErrorKind::Unsupported),
            (409, "AlreadyExist.File", ErrorKind::Exists),
            (403, "QuotaExhausted.Drive", ErrorKind::QuotaExceeded),
            (403, "ForbiddenNoPermission.File", ErrorKind::Denied),
            (401, "AccessTokenExpired", ErrorKind::Unauthenticated),
            (429, "", ErrorKind::Throttled),
            (504, "D504TO", ErrorKind::Timeout),
            (418, "", ErrorKind::Protocol),
        ];
        for (status, code, kind) in table {
            assert_eq!(kind_of_refusal(StatusCode::from_u16(status).unwrap(), code), kind, "{status} {code}");
        }
    }

    #[test]
    fn what_the_store_says_becomes_a_kind() {
        let table = [
            (404, "NoSuchKey", ErrorKind::Stale, Sent::Answered),
            (403, "AccessDenied", ErrorKind::Denied, Sent::Answered),
            (503, "UploadTrafficRateLimitExceeded", ErrorKind::Throttled, Sent::Maybe),
            (503, "TotalQpsLimitExceeded", ErrorKind::Throttled, Sent::Maybe),
            (503, "ServiceUnavailable", ErrorKind::Io, Sent::Maybe),
            (400, "RequestTimeout", ErrorKind::Protocol, Sent::Maybe),
        ];
        for (status, code, kind, sent) in table {
            let (status, code) = (StatusCode::from_u16(status).unwrap(), code.to_owned());
            let error = StoreError { what: "PUT", status, code, message: String::new(), retry_after: None };
            let failure = error.into_failure();
            assert_eq!((failure.error.kind(), failure.sent), (kind, sent), "{}", failure.code);
        }
    }

    #[test]
    fn waits_that_servers_ask_for_are_bounded() {
        let headers = |name: &'static str, text: &str| {
            HeaderMap::from_iter([(name.parse().unwrap(), text.parse().unwrap())])
        };
        assert_eq!(retry_after(&headers("retry-after", "2")), Some(Duration::from_secs(2)));
        assert_eq!(retry_after(&headers("x-retry-after", "1500")), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after(&headers("retry-after", "999999")), Some(Duration::from_secs(60)));
        assert_eq!(retry_after(&headers("retry-after", "soon")), None);
    }

    #[test]
    fn xml_errors_are_read() {
        let xml = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Request has expired.</Message></Error>";
        assert_eq!(element(xml, "Code"), "AccessDenied");
        assert_eq!(element(xml, "Missing"), "");
    }
}
