//! Error answers of the API and of the object store, as failures with an [`ErrorKind`]. Each states whether
//! the request may have been carried out. Only `transport.rs` and its submodules import reqwest.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{DATE, HeaderMap};
use reqwest::{Response, StatusCode};

use super::failure::{connection_lost, idle_timeout};
use crate::error::{Error, ErrorKind};
use crate::messages::Cause;
use crate::pds::retry::{Delivery, RequestFailure};
use crate::pds::types::ServiceError;

/// Largest error body that is read, in bytes.
pub(super) const ERROR_BYTES_MAX: usize = 64 << 10;
/// Longest error text of the service in an error message, in characters.
const SHOWN_CHARS_MAX: usize = 500;
/// Shorter secrets are not masked in error texts, because they occur in any text.
const SECRET_BYTES_MIN: usize = 4;
/// Largest difference between the clocks that is not mentioned in an error, in seconds.
const CLOCK_SKEW_S_MAX: i64 = 60;
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

pub(super) fn header_number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// `Retry-After` is in seconds, `x-retry-after` in milliseconds. Limited to [`RETRY_AFTER_MAX`].
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let asked = header_number(headers, "x-retry-after")
        .map(Duration::from_millis)
        .or_else(|| header_number(headers, "retry-after").map(Duration::from_secs))?;
    Some(asked.min(RETRY_AFTER_MAX))
}

/// A non-2xx answer of the API: a JSON body, or gateway headers if the body is empty.
pub(super) async fn api_refusal(path: &str, response: Response, secrets: &[&str]) -> RequestFailure {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let header = |name: &str| {
        response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let gateway = ServiceError { code: header("x-ca-error-code"), message: header("x-ca-error-message") };
    let request_id = display_text(&header("x-ca-request-id"), secrets);
    let clock = wrong_clock(status, response.headers());
    let body = match read_error(path, response).await {
        Ok(body) => body,
        Err(failure) => return failure,
    };
    let service = serde_json::from_slice::<ServiceError>(&body).unwrap_or(gateway);
    let kind = kind_of_refusal(status, &service.code);
    let reason = reason(status, &service.code, &service.message, secrets);
    let request = if request_id.is_empty() { String::new() } else { format!(" (request {request_id})") };
    let cause = clock.unwrap_or_else(|| cause_of(kind, status, &service.code));
    let detail = format!("{path}: {reason}{request}");
    tracing::debug!("{detail}");
    RequestFailure {
        status: Some(status.as_u16()),
        error: Error::from_cause(kind, cause, detail),
        delivery: delivery_of(status),
        code: service.code,
        retry_after,
    }
}

/// Reads at most [`ERROR_BYTES_MAX`] of an error body.
async fn read_error(what: &str, mut response: Response) -> std::result::Result<Bytes, RequestFailure> {
    let mut body = BytesMut::new();
    while body.len() < ERROR_BYTES_MAX
        && let Some(chunk) = response.chunk().await.map_err(|e| connection_lost(what, e))?
    {
        body.extend_from_slice(&chunk[..chunk.len().min(ERROR_BYTES_MAX - body.len())]);
    }
    Ok(body.freeze())
}

/// Status, code and message of a refusal, without empty ones.
fn reason(status: StatusCode, code: &str, message: &str, secrets: &[&str]) -> String {
    let words = [status.as_u16().to_string(), display_text(code, secrets), display_text(message, secrets)];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The cause in terms of the user.
fn cause_of(kind: ErrorKind, status: StatusCode, code: &str) -> Cause {
    let status = status.as_u16();
    match kind {
        ErrorKind::QuotaExceeded => Cause::DriveFull { room: None },
        ErrorKind::Unauthenticated => Cause::TokenRefused { remedy: None },
        ErrorKind::Denied if code.starts_with("ForbiddenDrive") => Cause::DriveLocked,
        ErrorKind::Denied => Cause::NotPermitted,
        ErrorKind::NoDrive if code.starts_with("NotFound") => Cause::NoDrive,
        ErrorKind::NoDrive => Cause::NotPds { status },
        ErrorKind::NotFound | ErrorKind::Stale => Cause::FileGone,
        ErrorKind::Exists => Cause::NameTaken,
        ErrorKind::InvalidName => Cause::NameRefused,
        ErrorKind::TooLarge => Cause::FileTooLarge,
        ErrorKind::Busy => Cause::FileBusy,
        ErrorKind::Integrity => Cause::Damaged,
        ErrorKind::Throttled => Cause::Throttled,
        _ if status >= 500 => Cause::ServerFailed { status },
        _ => Cause::Refused { status },
    }
}

/// Masks secrets in text from the network, which may quote the request; then shortens the text, and replaces
/// control characters, which could move the cursor of a terminal.
fn display_text(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| secret.len() >= SECRET_BYTES_MIN) {
        let encoded: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        text = text.replace(secret, "***").replace(&encoded, "***");
    }
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(SHOWN_CHARS_MAX).map(plain).collect()
}

/// Signatures and assertions are valid for minutes. If one is refused and the clocks differ, the clock is the
/// cause.
fn wrong_clock(status: StatusCode, headers: &HeaderMap) -> Option<Cause> {
    if !matches!(status.as_u16(), 400 | 401 | 403) {
        return None;
    }
    let theirs = headers.get(DATE).and_then(|date| date.to_str().ok());
    let theirs = theirs.and_then(|date| jiff::fmt::rfc2822::parse(date).ok())?;
    let ahead_s = jiff::Timestamp::now().as_second() - theirs.timestamp().as_second();
    let wrong = Cause::ClockWrong { seconds: ahead_s.unsigned_abs(), is_ahead: ahead_s > 0 };
    (ahead_s.abs() > CLOCK_SKEW_S_MAX).then_some(wrong)
}

fn delivery_of(status: StatusCode) -> Delivery {
    match status.as_u16() {
        429 => Delivery::NotSent,
        500..=599 | 408 => Delivery::Unknown,
        _ => Delivery::Answered,
    }
}

/// Maps HTTP status and PDS code to the error kind (error table of the PDS API).
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
        // Another operation on the object is in progress.
        ("StateConflict", _) => ErrorKind::Busy,
        _ => kind_of_status(status),
    }
}

fn kind_of_status(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::Denied,
        // A 404 without a PDS code does not concern a file: a gateway in front of the service sent it.
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
    /// The signature and the token of the presigned URL.
    secrets: Vec<String>,
    retry_after: Option<Duration>,
}

impl StoreError {
    /// Reads the body within `limit`: a store that sends byte after byte never stalls.
    pub(super) async fn read(
        what: &'static str,
        response: Response,
        limit: Duration,
    ) -> std::result::Result<Self, RequestFailure> {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let is_secret = |name: &str| {
            let name = name.to_ascii_lowercase();
            name.contains("signature") || name.contains("token")
        };
        let query = response.url().query_pairs().filter(|(name, _)| is_secret(name));
        let secrets = query.map(|(_, value)| value.into_owned()).collect();
        let body = tokio::time::timeout(limit, read_error(what, response)).await;
        let body = body.map_err(|_| idle_timeout(what))??;
        let text = String::from_utf8_lossy(&body);
        Ok(Self {
            what,
            status,
            code: element(&text, "Code"),
            message: element(&text, "Message"),
            secrets,
            retry_after,
        })
    }

    pub(super) fn is_expired(&self) -> bool {
        self.status == StatusCode::FORBIDDEN
            && self.code == "AccessDenied"
            && self.message.to_ascii_lowercase().contains("expired")
    }

    pub(super) fn into_failure(self) -> RequestFailure {
        let kind = match (self.code.as_str(), self.status.as_u16()) {
            ("AccessDenied" | "SignatureDoesNotMatch", _) => ErrorKind::Denied,
            ("InvalidDigest", _) => ErrorKind::Integrity,
            ("NoSuchKey", _) => ErrorKind::Stale,
            // `UploadTrafficRateLimitExceeded`, `TotalQpsLimitExceeded` and others.
            (code, 503) if code.ends_with("LimitExceeded") => ErrorKind::Throttled,
            (code, _) if code.starts_with("QuotaExhausted") => ErrorKind::QuotaExceeded,
            (_, 507) => ErrorKind::QuotaExceeded,
            _ => kind_of_status(self.status),
        };
        let delivery = match self.code.as_str() {
            "RequestTimeout" | "InvalidDigest" | "PartNotSequential" => Delivery::Unknown,
            _ => delivery_of(self.status),
        };
        let secrets: Vec<&str> = self.secrets.iter().map(String::as_str).collect();
        let reason = reason(self.status, &self.code, &self.message, &secrets);
        let cause = cause_of(kind, self.status, &self.code);
        let detail = format!("{}: {reason}", self.what);
        tracing::debug!("{detail}");
        RequestFailure {
            status: Some(self.status.as_u16()),
            error: Error::from_cause(kind, cause, detail),
            code: self.code,
            delivery,
            retry_after: self.retry_after,
        }
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
    use crate::pds::transport::TrustedPeers;

    #[test]
    fn api_errors_become_kinds() {
        let table = [
            (404, "NotFound.File", ErrorKind::NotFound),
            (404, "NotFound.Drive", ErrorKind::NoDrive),
            (404, "I404NF", ErrorKind::NoDrive),
            (404, "", ErrorKind::NoDrive),
            (409, "StateConflict", ErrorKind::Busy),
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
    fn secrets_are_masked_before_the_cut() {
        let secret = "SECRET+/SECRET";
        let text = "x".repeat(SHOWN_CHARS_MAX - 4) + secret;
        assert_eq!(display_text(&text, &[secret]), "x".repeat(SHOWN_CHARS_MAX - 4) + "***");
        assert_eq!(display_text("a=SECRET%2B%2FSECRET&b=ab", &[secret, "ab", ""]), "a=***&b=ab");
    }

    #[tokio::test]
    async fn ordinary_calls_mask_their_credentials() {
        use crate::auth::sign::{AccessKey, Authorization};
        use crate::ids::Secret;
        use crate::pds::retry::{Idempotency, RetryPolicy};
        use crate::pds::transport::{Call, CallPriority, Transport, TransportLimits};
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = url::Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let body = r#"{"code":"SignatureDoesNotMatch","message":"signed: x-acs-security-token:STS-SECRET KEY-SECRET"}"#;
        let answer = format!(
            "HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let wait = Duration::from_secs(20);
        let limits = TransportLimits { connect: wait, call: wait, idle: wait, calls_max: 1 };
        let secret = |text: &str| Secret::new(text.to_owned());
        let key = AccessKey {
            id: "id".to_owned(),
            secret: secret("KEY-SECRET"),
            security_token: Some(secret("STS-SECRET")),
        };
        let call = Call {
            url: &url,
            authorization: Some(&Authorization::Key(key)),
            secrets: &[],
            idempotency: Idempotency::NonReplayable,
            policy: RetryPolicy::INTERACTIVE,
            priority: CallPriority::Commit,
        };
        let transport = Transport::new(limits, &url, TrustedPeers::default()).unwrap();
        let failure = transport.json::<serde_json::Value>(call, &()).await.unwrap_err();
        server.await.unwrap();
        let text = failure.error.detail().unwrap();
        assert!(text.contains("x-acs-security-token:*** ***") && !text.contains("SECRET"), "{text}");
    }

    #[test]
    fn store_errors_become_kinds() {
        let table = [
            (404, "NoSuchKey", ErrorKind::Stale, Delivery::Answered),
            (403, "AccessDenied", ErrorKind::Denied, Delivery::Answered),
            (403, "QuotaExhausted.Drive", ErrorKind::QuotaExceeded, Delivery::Answered),
            (503, "UploadTrafficRateLimitExceeded", ErrorKind::Throttled, Delivery::Unknown),
            (503, "TotalQpsLimitExceeded", ErrorKind::Throttled, Delivery::Unknown),
            (503, "ServiceUnavailable", ErrorKind::Io, Delivery::Unknown),
            (400, "RequestTimeout", ErrorKind::Protocol, Delivery::Unknown),
        ];
        for (status, code, kind, delivery) in table {
            let (status, code) = (StatusCode::from_u16(status).unwrap(), code.to_owned());
            let error = StoreError {
                what: "PUT",
                status,
                code,
                message: String::new(),
                secrets: Vec::new(),
                retry_after: None,
            };
            let failure = error.into_failure();
            assert_eq!((failure.error.kind(), failure.delivery), (kind, delivery), "{}", failure.code);
        }
    }

    #[test]
    fn retry_after_is_bounded() {
        let headers = |name: &'static str, text: &str| {
            HeaderMap::from_iter([(name.parse().unwrap(), text.parse().unwrap())])
        };
        assert_eq!(retry_after(&headers("retry-after", "2")), Some(Duration::from_secs(2)));
        assert_eq!(retry_after(&headers("x-retry-after", "1500")), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after(&headers("retry-after", "999999")), Some(Duration::from_secs(60)));
        assert_eq!(retry_after(&headers("retry-after", "soon")), None);
    }

    #[test]
    fn xml_error_is_parsed() {
        let xml = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Request has expired.</Message></Error>";
        assert_eq!(element(xml, "Code"), "AccessDenied");
        assert_eq!(element(xml, "Missing"), "");
    }
}
