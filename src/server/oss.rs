//! The object store: PUT of parts and GET of contents, with presigned URLs only.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::{Body as _, Incoming};
use md5::{Digest as _, Md5};

use super::app::App;
use super::archive;
use super::blobs::{Blob, PartFile, PartHashers, PartReader, PartWriter};
use super::body::{BODY_IDLE_MAX, drain};
use super::call::{ApiCall, HttpResult, retry_headers};
use super::catalog::CatalogState;
use super::clock::{hex, rfc3339};
use super::connection::ConnectionControl;
use super::errors::{OssError, ServiceError};
use super::faults::{FaultAction, FaultDecision, SharedThrottle};
use super::reply::{CHUNK_BYTES, Disconnect, ReplyBody, corrupt, response};
use super::sign::{ObjectKey, SignedHeaders, SignedPart, UrlError};

/// The limit of the service: 5 GiB.
const PART_BYTES_MAX: u64 = 5 << 30;

/// How much of a refused body is read and dropped, so that the client receives the error response.
const DRAIN_BYTES_MAX: u64 = 1 << 30;

/// How long the rest of a body stays unread after [`FaultAction::AnswerEarly`], so that the client gets the
/// answer while it still sends.
const EARLY_ANSWER_LEAD: Duration = Duration::from_secs(5);

/// Why a request failed.
enum Failure {
    Refused(OssError),
    /// An error status of the fault plan.
    Injected(FaultAction),
    Disconnect(Disconnect),
}

impl From<OssError> for Failure {
    fn from(error: OssError) -> Self {
        Self::Refused(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Refused(error.into())
    }
}

/// Answers a request below [`super::sign::OBJECT_PREFIX`].
pub(super) async fn handle(call: ApiCall, mut body: Incoming) -> HttpResult {
    let (endpoint, ended) = match call.head.method {
        Method::PUT => ("put_part", put(&call, &mut body).await),
        Method::GET | Method::HEAD => ("get_object", get(&call).await),
        _ => ("", Err(OssError::new(405, "MethodNotAllowed", "The method is not allowed.").into())),
    };
    let outcome = match ended {
        Ok(response) => Ok(response),
        Err(Failure::Disconnect(disconnect)) => Err(disconnect),
        Err(Failure::Refused(error)) => {
            drain(&mut body, DRAIN_BYTES_MAX).await;
            error_response(&call, &error)
        }
        Err(Failure::Injected(action)) => {
            drain(&mut body, DRAIN_BYTES_MAX).await;
            injected_response(&call, &action)
        }
    };
    let status = outcome.as_ref().map_or(0, |response| response.status().as_u16());
    call.app.counters.count(endpoint, status);
    if !body.is_end_stream() && outcome.is_ok() {
        // An early answer. A dropped body would close the connection before the client has read the answer.
        tokio::spawn(async move {
            tokio::time::sleep(EARLY_ANSWER_LEAD).await;
            drain(&mut body, DRAIN_BYTES_MAX).await;
        });
    }
    outcome
}

fn error_response(call: &ApiCall, error: &OssError) -> HttpResult {
    let host = call.base.rsplit('/').next().unwrap_or_default();
    let headers =
        [("content-type", "application/xml".to_owned()), ("x-oss-request-id", call.request_id.clone())];
    response(error.status, &headers, ReplyBody::whole(error.body(&call.request_id, host)))
}

fn injected_response(call: &ApiCall, action: &FaultAction) -> HttpResult {
    let FaultAction::Status { status, code, message, empty_body, .. } = action else {
        return Err(Disconnect);
    };
    let mut headers = vec![("x-oss-request-id", call.request_id.clone())];
    headers.extend(retry_headers(action));
    if *empty_body {
        return response(*status, &headers, ReplyBody::whole(""));
    }
    headers.push(("content-type", "application/xml".to_owned()));
    let error = OssError::new(*status, code.clone(), message.clone());
    response(*status, &headers, ReplyBody::whole(error.body(&call.request_id, "pdsfs")))
}

fn url_error(call: &ApiCall, refused: UrlError) -> OssError {
    match refused {
        UrlError::Malformed => {
            OssError::new(400, "InvalidArgument", "The URL was not issued by this server.")
        }
        UrlError::Signature => OssError::bad_signature(),
        UrlError::Expired(at_s) => {
            OssError::url_expired(&rfc3339(at_s * 1000), &rfc3339(call.app.clock.now_ms()))
        }
    }
}

/// Applies the faults that act before the work. The others act on the body or the response.
async fn apply_early_faults(call: &ApiCall, decision: &FaultDecision) -> Result<(), Failure> {
    call.app.faults.wait(decision).await;
    match &decision.action {
        Some(FaultAction::Reset) => Err(Failure::Disconnect(call.reset())),
        Some(FaultAction::Expire) => {
            let now_ms = call.app.clock.now_ms();
            Err(OssError::url_expired(&rfc3339(now_ms - 1000), &rfc3339(now_ms)).into())
        }
        Some(status @ FaultAction::Status { .. }) => Err(Failure::Injected(status.clone())),
        _ => Ok(()),
    }
}

async fn put(call: &ApiCall, body: &mut Incoming) -> Result<hyper::Response<ReplyBody>, Failure> {
    let app = &call.app;
    let text = |name| call.head.headers.get(name).and_then(|v: &hyper::header::HeaderValue| v.to_str().ok());
    let content_md5 = text("content-md5").unwrap_or("");
    let given_type = text("content-type").unwrap_or("");
    let expected_type = app.config.quirks.part_content_type.as_deref().unwrap_or("");
    let content_type = if app.config.quirks.any_content_type { expected_type } else { given_type };
    let (path, query) = (call.head.uri.path(), call.head.uri.query().unwrap_or(""));
    let (object, part) = app
        .signer
        .check_put(path, query, SignedHeaders { content_md5, content_type }, app.clock.now_ms() / 1000)
        .map_err(|why| url_error(call, why))?;
    let expected = app.config.quirks.part_authorization.as_ref().map(|signature| format!("OSS {signature}"));
    if expected.is_some() && text("authorization") != expected.as_deref() {
        return Err(OssError::bad_signature().into());
    }
    if !(1..=crate::ids::PartNumber::MAX).contains(&part.part) {
        return Err(OssError::new(
            400,
            "InvalidArgument",
            "Part number must be an integer between 1 and 10000.",
        )
        .into());
    }
    let decision = app.faults.decide("put_part", Some(part.part));
    apply_early_faults(call, &decision).await?;
    let Some(len) = body.size_hint().exact() else {
        return Err(OssError::new(
            411,
            "MissingContentLength",
            "You must provide the Content-Length HTTP header.",
        )
        .into());
    };
    if len > PART_BYTES_MAX {
        return Err(OssError::new(400, "EntityTooLarge", "The part is larger than 5 GiB.").into());
    }
    if let Some(FaultAction::AnswerEarly { bytes }) = decision.action {
        let (mut received, faults) = (0, BodyFaults::of(&decision));
        while received < bytes && faults.next(app, body, &mut received).await?.is_some() {}
        app.counters.received(received);
        return response(200, &[], ReplyBody::whole("")).map_err(Failure::Disconnect);
    }
    let received = receive(call, body, &object, &part, len, content_md5, &decision).await?;
    match decision.action {
        Some(FaultAction::CloseAfter) => Err(Failure::Disconnect(Disconnect)),
        _ => put_response(call, &received),
    }
}

/// The values in the response to a PUT.
struct PutResult {
    etag: String,
    crc64: u64,
    content_md5: Option<Vec<u8>>,
}

async fn receive(
    call: &ApiCall,
    body: &mut Incoming,
    object: &ObjectKey,
    part: &SignedPart,
    len: u64,
    content_md5: &str,
    decision: &FaultDecision,
) -> Result<PutResult, Failure> {
    let app = &call.app;
    let (begun, _receiving) = app.catalog.start_part(
        &part.upload,
        &object.file,
        part.part,
        part.midstate.clone(),
        len,
        app.config.verify,
    )?;
    let md5 = (!content_md5.is_empty()).then(Md5::new);
    let checks = PartHashers { hasher: begun.hasher, md5 };
    let faults = BodyFaults::of(decision);
    let received = receive_body(app, body, part, checks, &faults).await?;
    app.counters.received(received.len);
    if received.len != len {
        app.store.remove_part(&part.upload, &received);
        return Err(OssError::new(400, "IncompleteBody", "The body is shorter than Content-Length.").into());
    }
    if let Some(md5) = &received.md5
        && STANDARD.decode(content_md5.trim()).ok().as_ref() != Some(md5)
    {
        app.store.remove_part(&part.upload, &received);
        return Err(OssError::new(
            400,
            "InvalidDigest",
            "The Content-MD5 you specified did not match what we received.",
        )
        .into());
    }
    let etag = etag(&received);
    let stored = PutResult { etag: etag.clone(), crc64: received.crc64, content_md5: received.md5.clone() };
    app.catalog
        .change_no_wait(|state| {
            state.record_part(&part.upload, part.part, received, &etag, begun.start, &app.store)
        })
        .map_err(|error| from_catalog(&error))?;
    Ok(stored)
}

/// The MD5 if the client sent one to check. Otherwise CRC-64 and length: clients only compare etags, and MD5
/// would cost more than the rest of an upload.
fn etag(received: &PartFile) -> String {
    match &received.md5 {
        Some(md5) => hex(md5).to_uppercase(),
        None => format!("{:016X}{:016X}", received.crc64, received.len),
    }
}

fn from_catalog(error: &ServiceError) -> OssError {
    if error.status == 404 { OssError::no_such_upload() } else { OssError::internal(error.message.clone()) }
}

fn put_response(call: &ApiCall, stored: &PutResult) -> Result<hyper::Response<ReplyBody>, Failure> {
    let mut headers = vec![
        ("etag", format!("\"{}\"", stored.etag)),
        ("x-oss-hash-crc64ecma", stored.crc64.to_string()),
        ("x-oss-request-id", call.request_id.clone()),
    ];
    if stored.content_md5.is_some()
        && let Some(value) = call.head.headers.get("content-md5").and_then(|v| v.to_str().ok())
    {
        headers.push(("content-md5", value.to_owned()));
    }
    response(200, &headers, ReplyBody::whole("")).map_err(Failure::Disconnect)
}

/// The faults that act on a body.
struct BodyFaults {
    cut_bytes: Option<u64>,
    bytes_per_s: Option<u64>,
    shared: Option<SharedThrottle>,
    began: Instant,
}

impl BodyFaults {
    fn of(decision: &FaultDecision) -> Self {
        let cut_bytes = match decision.action {
            Some(FaultAction::Cut { bytes }) => Some(bytes),
            _ => None,
        };
        Self {
            cut_bytes,
            bytes_per_s: decision.throttle_bytes_per_s,
            shared: decision.shared_throttle.clone(),
            began: Instant::now(),
        }
    }

    /// The delay after `bytes` bytes, of which the last `piece` were transferred just now.
    fn delay(&self, bytes: u64, piece: usize) -> Duration {
        let shared = self.shared.as_ref().map_or(Duration::ZERO, |throttle| throttle.delay(piece as u64));
        shared.max(self.own_delay(bytes))
    }

    fn own_delay(&self, bytes: u64) -> Duration {
        let Some(bytes_per_s) = self.bytes_per_s else { return Duration::ZERO };
        let due_ms = bytes.saturating_mul(1000) / bytes_per_s;
        Duration::from_millis(due_ms).saturating_sub(self.began.elapsed())
    }

    /// The next piece of a body, delayed by the throttles; `None` at the end.
    async fn next(&self, app: &App, body: &mut Incoming, bytes: &mut u64) -> Result<Option<Bytes>, Failure> {
        loop {
            if self.cut_bytes.is_some_and(|cut| *bytes >= cut) {
                app.counters.received(*bytes);
                return Err(Failure::Disconnect(Disconnect));
            }
            let Ok(frame) = tokio::time::timeout(BODY_IDLE_MAX, body.frame()).await else {
                app.counters.received(*bytes);
                return Err(Failure::Disconnect(Disconnect));
            };
            match frame {
                None => return Ok(None),
                Some(Err(_)) => {
                    // The client has disconnected.
                    app.counters.received(*bytes);
                    return Err(Failure::Disconnect(Disconnect));
                }
                Some(Ok(frame)) => {
                    let Ok(piece) = frame.into_data() else { continue };
                    *bytes += piece.len() as u64;
                    let delay = self.delay(*bytes, piece.len());
                    if !delay.is_zero() {
                        tokio::time::sleep(delay).await;
                    }
                    return Ok(Some(piece));
                }
            }
        }
    }
}

fn begin(app: &App, part: &SignedPart, checks: PartHashers) -> Result<PartWriter, OssError> {
    app.store.create_part(&part.upload, part.part, checks).map_err(|error| match error.kind() {
        // A `complete` has moved or removed the folder.
        io::ErrorKind::NotFound => OssError::no_such_upload(),
        _ => error.into(),
    })
}

/// Receives and writes on one task: a received piece is still in the CPU cache, and writing it to the page
/// cache takes about 0.1 ms. A slow disk blocks a thread of the runtime; clients see a slow server.
async fn receive_body(
    app: &App,
    body: &mut Incoming,
    part: &SignedPart,
    checks: PartHashers,
    faults: &BodyFaults,
) -> Result<PartFile, Failure> {
    let mut received = 0;
    let mut piece = faults.next(app, body, &mut received).await?;
    // After the first piece, so that idle connections hold no open file.
    let mut sink = begin(app, part, checks)?;
    while let Some(bytes) = piece {
        sink.write(&bytes)?;
        piece = faults.next(app, body, &mut received).await?;
    }
    Ok(sink.finish()?)
}

async fn get(call: &ApiCall) -> Result<hyper::Response<ReplyBody>, Failure> {
    let app = &call.app;
    let (path, query) = (call.head.uri.path(), call.head.uri.query().unwrap_or(""));
    let object =
        app.signer.check_get(path, query, app.clock.now_ms() / 1000).map_err(|why| url_error(call, why))?;
    let decision = app.faults.decide("get_object", None);
    apply_early_faults(call, &decision).await?;
    if let Some(task) = archive::task_of(&object) {
        return Ok(archive::download(call, task).await?);
    }
    let is_newest = app.config.quirks.unversioned_urls;
    let revision = (!is_newest).then_some(&object.revision);
    let blob = app
        .catalog
        .read(|state| state.blob_of(&object.drive, &object.file, revision))
        .ok_or_else(|| OssError::new(404, "NoSuchKey", "The specified key does not exist."))?;
    let size = blob.record.size;
    let range = call.head.headers.get("range").and_then(|value| value.to_str().ok());
    let range =
        match range.filter(|_| !app.config.quirks.ignore_range).and_then(|text| parse_range(text, size)) {
            Some(Err(())) => {
                let error = OssError::new(416, "InvalidRange", "The requested range cannot be satisfied.");
                return Err(error.with("ActualObjectSize", size.to_string()).into());
            }
            Some(Ok(range)) => Some(range),
            None => None,
        };
    let mut headers = vec![
        ("content-type", content_type(call, &object).to_owned()),
        ("accept-ranges", "bytes".to_owned()),
        ("etag", format!("\"{}\"", blob.record.hash)),
        ("x-oss-hash-crc64ecma", blob.record.crc64.to_string()),
        ("x-oss-request-id", call.request_id.clone()),
    ];
    let (from, to) = range.unwrap_or((0, size));
    if range.is_some() {
        headers.push(("content-range", format!("bytes {from}-{}/{size}", to - 1)));
    }
    let status = if range.is_some() { 206 } else { 200 };
    if call.head.method == Method::HEAD {
        headers.push(("content-length", (to - from).to_string()));
        return response(status, &headers, ReplyBody::whole("")).map_err(Failure::Disconnect);
    }
    let body = object_body(app, &blob, (from, to), &decision, &call.control)?;
    response(status, &headers, body).map_err(Failure::Disconnect)
}

/// The type of a download. A thumbnail is the image itself.
fn content_type(call: &ApiCall, object: &ObjectKey) -> &'static str {
    let is_thumbnail = call.head.uri.query().is_some_and(|query| query.contains("&x-oss-process=image"));
    let name_type = |state: &CatalogState| {
        state.node(&object.drive, &object.file).ok().and_then(|node| image_type(&node.name))
    };
    let known = if is_thumbnail { call.app.catalog.read(name_type) } else { None };
    known.unwrap_or("application/octet-stream")
}

fn image_type(name: &str) -> Option<&'static str> {
    let (_, extension) = name.rsplit_once('.')?;
    Some(match extension.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "bmp" => "image/bmp",
        "heic" => "image/heic",
        "tif" | "tiff" => "image/tiff",
        "svg" => "image/svg+xml",
        _ => return None,
    })
}

/// The body with bytes `from..to` of a blob, with the faults applied.
fn object_body(
    app: &Arc<App>,
    blob: &Arc<Blob>,
    (from, to): (u64, u64),
    decision: &FaultDecision,
    control: &Arc<ConnectionControl>,
) -> Result<ReplyBody, Failure> {
    let len = to - from;
    let read = |bytes: u64| -> io::Result<Bytes> {
        let mut reader = PartReader::of_blob(blob, from, from + bytes);
        let mut all = Vec::new();
        while let Some(chunk) = reader.next(CHUNK_BYTES)? {
            if chunk.len() as u64 == bytes {
                return Ok(chunk);
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all.into())
    };
    match decision.action {
        Some(FaultAction::CloseAfter) => return Err(Failure::Disconnect(Disconnect)),
        Some(FaultAction::Cut { bytes }) => {
            let first = read(bytes.min(len).min(DRAIN_BYTES_MAX))?;
            app.counters.sent(first.len() as u64);
            return Ok(ReplyBody::cut(first, len, control));
        }
        Some(FaultAction::Short { bytes }) if bytes < len => {
            return object_body(app, blob, (from, from + bytes), &FaultDecision::default(), control);
        }
        _ => {}
    }
    let corrupts = decision.action == Some(FaultAction::Corrupt);
    let is_throttled = decision.throttle_bytes_per_s.is_some() || decision.shared_throttle.is_some();
    if len <= CHUNK_BYTES as u64 && !is_throttled {
        let bytes = read(len)?;
        app.counters.sent(len);
        return Ok(ReplyBody::whole(if corrupts { corrupt(&bytes) } else { bytes }));
    }
    let faults = BodyFaults::of(decision);
    let (mut sent, app) = (0, Arc::clone(app));
    Ok(ReplyBody::stream(PartReader::of_blob(blob, from, to), len, move |bytes| {
        let is_first = sent == 0;
        sent += bytes.len() as u64;
        app.counters.sent(bytes.len() as u64);
        // This is a blocking thread.
        std::thread::sleep(faults.delay(sent, bytes.len()));
        Ok(if corrupts && is_first { corrupt(&bytes) } else { bytes })
    }))
}

/// Parses `bytes=a-b` into a half-open range. `None`: not supported, so the whole object is sent. An error:
/// no byte of the object is in the range.
pub(super) fn parse_range(text: &str, size: u64) -> Option<Result<(u64, u64), ()>> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = match (from.parse::<u64>().ok(), to.parse::<u64>().ok()) {
        (Some(from), Some(last)) if from <= last => (from, last.saturating_add(1).min(size)),
        (Some(from), None) if to.is_empty() => (from, size),
        (None, Some(last_bytes)) if from.is_empty() => (size.saturating_sub(last_bytes), size),
        _ => return None,
    };
    Some(if from < to { Ok((from, to)) } else { Err(()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed_as_in_rfc_9110() {
        assert_eq!(parse_range("bytes=0-4", 10), Some(Ok((0, 5))));
        assert_eq!(parse_range("bytes=5-", 10), Some(Ok((5, 10))));
        assert_eq!(parse_range("bytes=-3", 10), Some(Ok((7, 10))));
        assert_eq!(parse_range("bytes=8-99", 10), Some(Ok((8, 10))));
        assert_eq!(parse_range("bytes=10-12", 10), Some(Err(())));
        assert_eq!(parse_range("bytes=0-", 0), Some(Err(())));
        for text in ["bytes=4-2", "items=0-1", "bytes=a-b", "bytes=0-1,3-4"] {
            assert_eq!(parse_range(text, 10), None, "{text}");
        }
    }
}
