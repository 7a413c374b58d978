//! The requests of the control API and their answers.

mod trash;
mod versions;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{Either, Full};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};

use super::event_log::EventLog;
use super::mount_handle::MountHandle;
use super::types::{ApiError, Drained, UnsavedEntry};
use crate::error::{Error, ErrorKind};
use crate::ids::Ino;

/// Followers of the log, and clients that wait for the end, at a time. Each costs a task.
const FOLLOWERS_MAX: usize = 32;
/// Entries in one chunk of an answer: about 64 KiB with the longest paths.
const BATCH_ENTRIES: usize = 16;
/// Chunks that may wait for the client.
const BATCHES_AHEAD: usize = 1;
/// Interval of empty lines on a silent stream. They show the client that the daemon lives, and fail if the
/// client is gone.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Longest drain, and the default.
const DRAIN_MAX: Duration = Duration::from_secs(86_400);

/// All paths, for requests with another method.
const PATHS: [&str; 12] = [
    "/v1/status",
    "/v1/events",
    "/v1/end",
    "/v1/drain",
    "/v1/failures/dismiss",
    "/v1/credentials/reload",
    "/v1/versions",
    "/v1/versions/content",
    "/v1/versions/restore",
    "/v1/trash",
    "/v1/trash/restore",
    "/v1/trash/delete",
];

/// The body of an answer: complete, or a stream.
type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// Answers requests about one mount.
#[derive(Debug)]
pub struct ControlApi {
    mount: Arc<MountHandle>,
    followers: Arc<Semaphore>,
    /// Set when the mount has ended.
    end: watch::Sender<Option<Drained>>,
}

impl ControlApi {
    pub fn new(mount: Arc<MountHandle>) -> Arc<Self> {
        let (followers, end) = (Arc::new(Semaphore::new(FOLLOWERS_MAX)), watch::Sender::new(None));
        Arc::new(Self { mount, followers, end })
    }

    /// Ends all streams: `GET /v1/end` answers with `last`, followers of the log get the remaining events.
    pub(super) fn end_mount(&self, last: Drained) {
        self.end.send_replace(Some(last));
    }

    pub(super) async fn respond<B>(&self, request: &Request<B>) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default();
        let method = request.method();
        match request.uri().path() {
            "/v1/status" if method == Method::GET => json(StatusCode::OK, &self.mount.status()),
            "/v1/events" if method == Method::GET => self.events(query),
            "/v1/end" if method == Method::GET => self.end(),
            "/v1/drain" if method == Method::POST => self.drain(query).await,
            "/v1/failures/dismiss" if method == Method::POST => {
                self.mount.progress.dismiss_failures();
                json(StatusCode::OK, &serde_json::json!({}))
            }
            "/v1/credentials/reload" if method == Method::POST => self.reload_credentials().await,
            "/v1/versions" if method == Method::GET => self.versions(query).await,
            "/v1/versions/content" if method == Method::GET => self.version_content(query).await,
            "/v1/versions/restore" if method == Method::POST => self.restore_version(query).await,
            "/v1/trash" if method == Method::GET => self.trash().await,
            "/v1/trash/restore" if method == Method::POST => self.restore_trashed(query).await,
            "/v1/trash/delete" if method == Method::POST => self.delete_trashed(query).await,
            path if PATHS.contains(&path) => {
                refuse(StatusCode::METHOD_NOT_ALLOWED, format!("method {method} is not supported here"))
            }
            other => refuse(StatusCode::NOT_FOUND, format!("this version of pdsfs does not serve {other}")),
        }
    }

    async fn drain(&self, query: &str) -> Response<Body> {
        let limit = match number(query, "timeout_ms") {
            Ok(ms) => ms.map_or(DRAIN_MAX, Duration::from_millis).min(DRAIN_MAX),
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        };
        let drained = match tokio::time::timeout(limit, self.mount.vfs.drain()).await {
            Ok(report) => {
                let unsaved = report.unsaved.into_iter();
                let unsaved = unsaved.map(|file| UnsavedEntry::new(file.path, &file.error));
                Drained { unsaved: unsaved.collect(), timed_out: false }
            }
            Err(_) => Drained { unsaved: Vec::new(), timed_out: true },
        };
        json(StatusCode::OK, &drained)
    }

    fn end(&self) -> Response<Body> {
        let Ok(permit) = self.followers.clone().try_acquire_owned() else { return too_many() };
        let (mut sender, body) = Channel::new(BATCHES_AHEAD);
        let mut end = self.end.subscribe();
        tokio::spawn(async move {
            while tokio::time::timeout(HEARTBEAT, mount_ended(&mut end)).await.is_err() {
                // JSON allows space before the value.
                if sender.send_data(Bytes::from_static(b"\n")).await.is_err() {
                    return;
                }
            }
            let last = end.borrow().as_ref().and_then(|last| serde_json::to_vec(last).ok());
            if let Some(last) = last {
                sender.send_data(last.into()).await.ok();
            }
            drop(permit);
        });
        stream(body, "application/json")
    }

    async fn reload_credentials(&self) -> Response<Body> {
        match self.mount.vfs.drive().reload_credentials().await {
            Ok(()) => json(StatusCode::OK, &serde_json::json!({})),
            Err(error) => refuse(StatusCode::CONFLICT, error.to_string()),
        }
    }

    fn events(&self, query: &str) -> Response<Body> {
        let since = match number(query, "since") {
            Ok(since) => since.unwrap_or(0),
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        };
        let follow = match parameter(query, "follow") {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                return refuse(
                    StatusCode::BAD_REQUEST,
                    format!("follow must be true or false, not {other:?}"),
                );
            }
        };
        let permit = if follow { self.followers.clone().try_acquire_owned().ok() } else { None };
        if follow && permit.is_none() {
            return too_many();
        }
        let (sender, body) = Channel::new(BATCHES_AHEAD);
        let (event_log, end) = (self.mount.event_log.clone(), self.end.subscribe());
        tokio::spawn(async move {
            send_events(&event_log, since, follow.then_some(end), sender).await;
            drop(permit);
        });
        stream(body, "application/jsonl")
    }
}

/// Returns when the mount has ended, or the API is gone.
async fn mount_ended(end: &mut watch::Receiver<Option<Drained>>) {
    end.wait_for(Option::is_some).await.ok();
}

/// Sends the events after `since`. With `until`, it continues with new ones until the mount ends. Returns
/// early if the client is gone.
async fn send_events(
    event_log: &EventLog,
    mut since: u64,
    mut until: Option<watch::Receiver<Option<Drained>>>,
    mut to: Sender<Bytes>,
) {
    let mut newest = event_log.subscribe();
    loop {
        newest.mark_unchanged();
        let batch = event_log.after(since, BATCH_ENTRIES);
        let Some(last) = batch.last() else {
            let Some(end) = &mut until else { return };
            let is_quiet = tokio::select! {
                changed = tokio::time::timeout(HEARTBEAT, newest.changed()) => changed.is_err(),
                () = mount_ended(end) => false,
            };
            if end.borrow().is_some() || end.has_changed().is_err() {
                until = None;
            }
            if is_quiet && to.send_data(Bytes::from_static(b"\n")).await.is_err() {
                return;
            }
            continue;
        };
        since = last.seq;
        let mut lines = Vec::new();
        for entry in &batch {
            if serde_json::to_writer(&mut lines, entry).is_err() {
                return;
            }
            lines.push(b'\n');
        }
        if to.send_data(lines.into()).await.is_err() {
            return;
        }
    }
}

fn stream(body: Channel<Bytes>, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(Either::Right(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn too_many() -> Response<Body> {
    let message = format!("{FOLLOWERS_MAX} clients already follow this mount; end one and try again");
    refuse(StatusCode::SERVICE_UNAVAILABLE, message)
}

/// A query parameter as it was sent. Words and numbers need no unescaping; see [`text`] for others.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn number(query: &str, name: &str) -> Result<Option<u64>, String> {
    let Some(text) = parameter(query, name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{name} must be a number, not {text:?}"))
}

/// A required query parameter, unescaped.
fn text(query: &str, name: &str) -> Result<String, String> {
    let value = parameter(query, name).ok_or_else(|| format!("{name} is missing"))?;
    let decoded = percent_decode_str(value).decode_utf8().map_err(|_| format!("{name} is not UTF-8"))?;
    Ok(decoded.into_owned())
}

/// The inode number in a query.
fn ino(query: &str) -> Result<Ino, String> {
    number(query, "ino")?.map(Ino).ok_or_else(|| "ino is missing".to_owned())
}

/// The answer to a request that the drive or the mount has refused.
fn failure(error: &Error) -> Response<Body> {
    let status = match error.kind() {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        _ => StatusCode::CONFLICT,
    };
    refuse(status, error.to_string())
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => with_body(status, bytes),
        // This fails only for maps with keys that are not strings. No type of the API has one.
        Err(_) => with_body(StatusCode::INTERNAL_SERVER_ERROR, r#"{"error":"cannot encode the answer"}"#),
    }
}

fn with_body(status: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(bytes.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refuse(status: StatusCode, error: String) -> Response<Body> {
    json(status, &ApiError { error })
}

/// Fuzz target: the query of a request.
#[cfg(any(test, fuzzing))]
pub fn check_query(data: &[u8]) {
    let Ok(uri) = hyper::Uri::try_from(data) else { return };
    let query = uri.query().unwrap_or_default();
    for name in ["since", "follow", "timeout_ms"] {
        if let Some(value) = parameter(query, name) {
            assert!(query.contains(&format!("{name}={value}")), "{query}");
        }
        if let Err(reason) = number(query, name) {
            assert!(!reason.contains(char::is_control), "{reason:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::control::event_log::Event;

    #[test]
    fn query_parameters_are_parsed() {
        assert_eq!(parameter("since=5&follow=true", "follow"), Some("true"));
        assert_eq!(parameter("", "follow"), None);
        assert_eq!(number("since=5", "since"), Ok(Some(5)));
        assert_eq!(number("since=5", "other"), Ok(None));
        assert!(number("since=-1", "since").unwrap_err().contains("since must be a number"));
    }

    fn log_of_three() -> Arc<EventLog> {
        let event_log = Arc::new(EventLog::default());
        (0..3).for_each(|n| event_log.add(Event::warning(format!("w{n}"))));
        event_log
    }

    #[tokio::test]
    async fn follower_gets_old_and_new_events() {
        let event_log = log_of_three();
        let (sender, mut body) = Channel::<Bytes>::new(BATCHES_AHEAD);
        let (_end, ended) = watch::channel(None);
        let sending = tokio::spawn({
            let event_log = event_log.clone();
            async move { send_events(&event_log, 1, Some(ended), sender).await }
        });
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.split(|byte| *byte == b'\n').count(), 3, "two lines and an empty rest");
        event_log.add(Event::warning("later"));
        let next = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(next.windows(5).any(|word| word == b"later"));
        drop(body);
        event_log.add(Event::warning("unread"));
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn end_of_mount_ends_the_stream_after_the_last_event() {
        let event_log = log_of_three();
        let (end, ended) = watch::channel(None);
        end.send_replace(Some(Drained { unsaved: Vec::new(), timed_out: false }));
        let (sender, mut body) = Channel::<Bytes>::new(BATCHES_AHEAD);
        send_events(&event_log, 2, Some(ended), sender).await;
        assert!(body.frame().await.is_some(), "the last event");
        assert!(body.frame().await.is_none(), "the end");
    }
}
