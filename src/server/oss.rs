//! The object store: parts in, content out, by signed URLs only.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::{Body as _, Incoming};
use md5::{Digest as _, Md5};

use super::App;
use super::auth::unbase64;
use super::blobs::{Blob, Checks, PartSink, Reader, Received};
use super::clock::{hex, rfc3339};
use super::errors::{ApiError, OssError};
use super::faults::{FaultAction, Line, Verdict};
use super::http::{Call, Outcome, retry_headers};
use super::reply::{CHUNK_BYTES, HungUp, ReplyBody, corrupt, response};
use super::sign::{Declared, Object, PartOf, Refused};
use super::wire::Link;

/// Largest part, in bytes.
const PART_BYTES_MAX: u64 = 5 << 30;

/// Most bytes of a body that are thrown away so that the client hears why it was refused.
const DRAIN_BYTES_MAX: u64 = 1 << 30;

/// Why a request to the store ends without success.
enum Ended {
    Refused(OssError),
    /// Ordered by the fault plan.
    Ordered(FaultAction),
    HungUp(HungUp),
}

impl From<OssError> for Ended {
    fn from(error: OssError) -> Self {
        Self::Refused(error)
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Refused(error.into())
    }
}

/// Answers a request for an object.
pub(super) async fn handle(call: Call, mut body: Incoming) -> Outcome {
    let (endpoint, ended) = match call.head.method {
        Method::PUT => ("put_part", put(&call, &mut body).await),
        Method::GET | Method::HEAD => ("get_object", get(&call).await),
        _ => ("", Err(OssError::new(405, "MethodNotAllowed", "The method is not allowed.").into())),
    };
    let outcome = match ended {
        Ok(response) => Ok(response),
        Err(Ended::HungUp(hung_up)) => Err(hung_up),
        Err(Ended::Refused(error)) => {
            drain(&mut body).await;
            refused(&call, &error)
        }
        Err(Ended::Ordered(action)) => {
            drain(&mut body).await;
            ordered(&call, &action)
        }
    };
    let status = outcome.as_ref().map_or(0, |response| response.status().as_u16());
    call.app.counters.count(endpoint, status);
    outcome
}

/// Throws a body away: a client that is still sending might not hear the answer otherwise.
async fn drain(body: &mut Incoming) {
    let mut bytes = 0;
    while bytes < DRAIN_BYTES_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, |piece| piece.len() as u64);
    }
}

fn refused(call: &Call, error: &OssError) -> Outcome {
    let host = call.base.rsplit('/').next().unwrap_or_default();
    let headers =
        [("content-type", "application/xml".to_owned()), ("x-oss-request-id", call.request_id.clone())];
    response(error.status, &headers, ReplyBody::whole(error.body(&call.request_id, host)))
}

fn ordered(call: &Call, action: &FaultAction) -> Outcome {
    let FaultAction::Status { status, code, message, empty_body, .. } = action else { return Err(HungUp) };
    let mut headers = vec![("x-oss-request-id", call.request_id.clone())];
    headers.extend(retry_headers(action));
    if *empty_body {
        return response(*status, &headers, ReplyBody::whole(""));
    }
    headers.push(("content-type", "application/xml".to_owned()));
    let error = OssError::new(*status, code.clone(), message.clone());
    response(*status, &headers, ReplyBody::whole(error.body(&call.request_id, "pdsfs")))
}

fn refuse_url(call: &Call, refused: Refused) -> OssError {
    match refused {
        Refused::Malformed => OssError::new(400, "InvalidArgument", "The URL is not one of ours."),
        Refused::Signature => OssError::signature(),
        Refused::Expired(at_s) => OssError::expired(&rfc3339(at_s * 1000), &rfc3339(call.app.clock.now_ms())),
    }
}

/// Carries out what a verdict says before the work; what is left is for during and after it.
async fn obey(call: &Call, verdict: &Verdict) -> Result<(), Ended> {
    call.app.faults.wait(verdict).await;
    match &verdict.action {
        Some(FaultAction::Reset) => Err(Ended::HungUp(call.reset())),
        Some(FaultAction::Expire) => {
            let now_ms = call.app.clock.now_ms();
            Err(OssError::expired(&rfc3339(now_ms - 1000), &rfc3339(now_ms)).into())
        }
        Some(status @ FaultAction::Status { .. }) => Err(Ended::Ordered(status.clone())),
        _ => Ok(()),
    }
}

async fn put(call: &Call, body: &mut Incoming) -> Result<hyper::Response<ReplyBody>, Ended> {
    let app = &call.app;
    let text = |name| call.head.headers.get(name).and_then(|v: &hyper::header::HeaderValue| v.to_str().ok());
    let content_md5 = text("content-md5").unwrap_or("");
    let given_type = text("content-type").unwrap_or("");
    let expected_type = app.config.quirks.part_content_type.as_deref().unwrap_or("");
    let content_type = if app.config.quirks.any_content_type { expected_type } else { given_type };
    let (path, query) = (call.head.uri.path(), call.head.uri.query().unwrap_or(""));
    let (object, part) = app
        .signer
        .check_put(path, query, Declared { content_md5, content_type }, app.clock.now_ms() / 1000)
        .map_err(|why| refuse_url(call, why))?;
    if !(1..=crate::ids::PartNumber::MAX).contains(&part.part) {
        return Err(OssError::new(
            400,
            "InvalidArgument",
            "Part number must be an integer between 1 and 10000.",
        )
        .into());
    }
    let verdict = app.faults.judge("put_part", Some(part.part));
    obey(call, &verdict).await?;
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
    let received = receive(call, body, &object, &part, len, content_md5, &verdict).await?;
    match verdict.action {
        Some(FaultAction::CloseAfter) => Err(Ended::HungUp(HungUp)),
        _ => accepted(call, &received),
    }
}

/// What the sender of a part hears.
struct Stored {
    etag: String,
    crc64: u64,
    content_md5: Option<Vec<u8>>,
}

async fn receive(
    call: &Call,
    body: &mut Incoming,
    object: &Object,
    part: &PartOf,
    len: u64,
    content_md5: &str,
    verdict: &Verdict,
) -> Result<Stored, Ended> {
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
    let checks = Checks { hasher: begun.hasher, md5 };
    let limits = Limits::of(verdict);
    let received = receive_body(app, body, part, checks, &limits).await?;
    app.counters.received(received.len);
    if received.len != len {
        app.store.discard(&part.upload, &received);
        return Err(OssError::new(400, "IncompleteBody", "The body is shorter than Content-Length.").into());
    }
    if let Some(md5) = &received.md5
        && unbase64(content_md5).as_ref() != Some(md5)
    {
        app.store.discard(&part.upload, &received);
        return Err(OssError::new(
            400,
            "InvalidDigest",
            "The Content-MD5 you specified did not match what we received.",
        )
        .into());
    }
    let etag = etag(&received);
    let stored = Stored { etag: etag.clone(), crc64: received.crc64, content_md5: received.md5.clone() };
    app.catalog
        .change_soon(|state| {
            state.end_part(&part.upload, part.part, received, &etag, begun.start, &app.store)
        })
        .map_err(|error| from_catalog(&error))?;
    Ok(stored)
}

/// MD5 where the sender asked for one to be checked. Otherwise digits made of CRC-64 and length:
/// clients compare etags and never look into them, and MD5 would cost more than all the rest of an
/// upload.
fn etag(received: &Received) -> String {
    match &received.md5 {
        Some(md5) => hex(md5).to_uppercase(),
        None => format!("{:016X}{:016X}", received.crc64, received.len),
    }
}

fn from_catalog(error: &ApiError) -> OssError {
    if error.status == 404 { OssError::no_upload() } else { OssError::internal(error.message.clone()) }
}

fn accepted(call: &Call, stored: &Stored) -> Result<hyper::Response<ReplyBody>, Ended> {
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
    response(200, &headers, ReplyBody::whole("")).map_err(Ended::HungUp)
}

/// Faults of a body.
struct Limits {
    cut_bytes: Option<u64>,
    bytes_per_s: Option<u64>,
    line: Option<Line>,
    begun: Instant,
}

impl Limits {
    fn of(verdict: &Verdict) -> Self {
        let cut_bytes = match verdict.action {
            Some(FaultAction::Cut { bytes }) => Some(bytes),
            _ => None,
        };
        Self {
            cut_bytes,
            bytes_per_s: verdict.throttle_bytes_per_s,
            line: verdict.line.clone(),
            begun: Instant::now(),
        }
    }

    /// How long to wait after so many bytes, `piece` of which have come just now.
    fn pause(&self, bytes: u64, piece: usize) -> Duration {
        let line = self.line.as_ref().map_or(Duration::ZERO, |line| line.pause(piece as u64));
        line.max(self.pause_alone(bytes))
    }

    fn pause_alone(&self, bytes: u64) -> Duration {
        let Some(bytes_per_s) = self.bytes_per_s else { return Duration::ZERO };
        let due_ms = bytes.saturating_mul(1000) / bytes_per_s;
        Duration::from_millis(due_ms).saturating_sub(self.begun.elapsed())
    }

    /// The next piece of a body that comes no faster than it may; none at the end.
    async fn next(&self, app: &App, body: &mut Incoming, bytes: &mut u64) -> Result<Option<Bytes>, Ended> {
        loop {
            if self.cut_bytes.is_some_and(|cut| *bytes >= cut) {
                app.counters.received(*bytes);
                return Err(Ended::HungUp(HungUp));
            }
            match body.frame().await {
                None => return Ok(None),
                Some(Err(_)) => {
                    // The client is gone; nobody hears an answer.
                    app.counters.received(*bytes);
                    return Err(Ended::HungUp(HungUp));
                }
                Some(Ok(frame)) => {
                    let Ok(piece) = frame.into_data() else { continue };
                    *bytes += piece.len() as u64;
                    let pause = self.pause(*bytes, piece.len());
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    return Ok(Some(piece));
                }
            }
        }
    }
}

fn begin(app: &App, part: &PartOf, checks: Checks) -> Result<PartSink, OssError> {
    app.store.begin_part(&part.upload, part.part, checks).map_err(|error| match error.kind() {
        // A complete has taken the folder away.
        io::ErrorKind::NotFound => OssError::no_upload(),
        _ => error.into(),
    })
}

/// Receives and writes piece by piece on one task: what was just received is still in the
/// processor's cache, and a piece for the page cache takes a tenth of a millisecond. A disk that
/// makes writers wait holds up one of the runtime's threads; clients see a slow server, as they
/// should.
async fn receive_body(
    app: &App,
    body: &mut Incoming,
    part: &PartOf,
    checks: Checks,
    limits: &Limits,
) -> Result<Received, Ended> {
    let mut received = 0;
    let mut piece = limits.next(app, body, &mut received).await?;
    // Not before something has come: connections that wait hold no file open.
    let mut sink = begin(app, part, checks)?;
    while let Some(bytes) = piece {
        sink.write(&bytes)?;
        piece = limits.next(app, body, &mut received).await?;
    }
    Ok(sink.finish()?)
}

async fn get(call: &Call) -> Result<hyper::Response<ReplyBody>, Ended> {
    let app = &call.app;
    let (path, query) = (call.head.uri.path(), call.head.uri.query().unwrap_or(""));
    let object =
        app.signer.check_get(path, query, app.clock.now_ms() / 1000).map_err(|why| refuse_url(call, why))?;
    let verdict = app.faults.judge("get_object", None);
    obey(call, &verdict).await?;
    let blob = app
        .catalog
        .read(|state| state.content(&object.drive, &object.file, &object.revision))
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
        ("content-type", "application/octet-stream".to_owned()),
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
        return response(status, &headers, ReplyBody::whole("")).map_err(Ended::HungUp);
    }
    let body = content(&blob, from, to, &verdict, &call.link)?;
    app.counters.sent(to - from);
    response(status, &headers, body).map_err(Ended::HungUp)
}

/// Bytes `from..to` of a blob, as the verdict lets them pass.
fn content(
    blob: &Arc<Blob>,
    from: u64,
    to: u64,
    verdict: &Verdict,
    link: &Arc<Link>,
) -> Result<ReplyBody, Ended> {
    let len = to - from;
    let read = |bytes: u64| -> io::Result<Bytes> {
        let mut reader = Reader::of_blob(blob, from, from + bytes);
        let mut all = Vec::new();
        while let Some(chunk) = reader.next(CHUNK_BYTES)? {
            if chunk.len() as u64 == bytes {
                return Ok(chunk);
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all.into())
    };
    match verdict.action {
        Some(FaultAction::CloseAfter) => return Err(Ended::HungUp(HungUp)),
        Some(FaultAction::Cut { bytes }) => {
            let first = read(bytes.min(len).min(DRAIN_BYTES_MAX))?;
            return Ok(ReplyBody::cut(first, len, link));
        }
        Some(FaultAction::Short { bytes }) if bytes < len => {
            return content(blob, from, from + bytes, &Verdict::default(), link);
        }
        _ => {}
    }
    let corrupts = verdict.action == Some(FaultAction::Corrupt);
    let is_slow = verdict.throttle_bytes_per_s.is_some() || verdict.line.is_some();
    if len <= CHUNK_BYTES as u64 && !is_slow {
        let bytes = read(len)?;
        return Ok(ReplyBody::whole(if corrupts { corrupt(&bytes) } else { bytes }));
    }
    let limits = Limits::of(verdict);
    let mut sent = 0;
    Ok(ReplyBody::stream(Reader::of_blob(blob, from, to), len, move |bytes| {
        let is_first = sent == 0;
        sent += bytes.len() as u64;
        // On a thread of its own, so it may sleep.
        std::thread::sleep(limits.pause(sent, bytes.len()));
        Ok(if corrupts && is_first { corrupt(&bytes) } else { bytes })
    }))
}

/// `bytes=a-b` as a half-open range. None where it is none that we read; an error where it names
/// no byte of the object.
fn parse_range(text: &str, size: u64) -> Option<Result<(u64, u64), ()>> {
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
    fn ranges_are_read_as_http_says() {
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
