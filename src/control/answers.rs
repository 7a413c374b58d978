//! From a request at the control socket to its answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{Either, Full};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::{Semaphore, watch};

use super::recent::Recent;
pub use super::report::Served;
use super::types::{Drained, Refusal, Unsaved};

/// Who may follow the log at a time; each costs a task.
const FOLLOWERS_MAX: usize = 32;
/// Entries that are made ready for a reader at a time: with the longest paths, about 64 KiB.
const BATCH_ENTRIES: usize = 16;
/// Batches that may wait for a reader.
const BATCHES_AHEAD: usize = 1;
/// After so long without an event a follower hears that the daemon is alive. It also finds out so whether
/// the follower is.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Longest drain that can be asked for; it is also what is meant where none is said.
const DRAIN_MAX: Duration = Duration::from_secs(86_400);

/// The body of an answer: known, or coming.
pub type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// Answers requests about one mount.
#[derive(Debug)]
pub struct Answers {
    served: Arc<Served>,
    followers: Arc<Semaphore>,
    /// Set when the mount has ended.
    end: watch::Sender<Option<Drained>>,
}

impl Answers {
    /// For a mount.
    pub fn new(served: Arc<Served>) -> Arc<Self> {
        let (followers, end) = (Arc::new(Semaphore::new(FOLLOWERS_MAX)), watch::Sender::new(None));
        Arc::new(Self { served, followers, end })
    }

    /// The mount has ended like that: whoever waits for it hears so, and whoever follows the log has all of it.
    pub fn ended(&self, last: Drained) {
        self.end.send_replace(Some(last));
    }

    /// The answer to a request.
    pub async fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default();
        let method = request.method();
        match request.uri().path() {
            "/v1/status" if method == Method::GET => json(StatusCode::OK, &self.served.status()),
            "/v1/events" if method == Method::GET => self.events(query),
            "/v1/end" if method == Method::GET => self.end(),
            "/v1/drain" if method == Method::POST => self.drain(query).await,
            "/v1/credentials/reload" if method == Method::POST => self.reload_credentials().await,
            "/v1/status" | "/v1/events" | "/v1/end" | "/v1/drain" | "/v1/credentials/reload" => {
                refuse(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not offered here"))
            }
            other => refuse(StatusCode::NOT_FOUND, format!("this version does not offer {other}")),
        }
    }

    async fn drain(&self, query: &str) -> Response<Body> {
        let limit = match number(query, "timeout_ms") {
            Ok(ms) => ms.map_or(DRAIN_MAX, Duration::from_millis).min(DRAIN_MAX),
            Err(wrong) => return refuse(StatusCode::BAD_REQUEST, wrong),
        };
        let drained = match tokio::time::timeout(limit, self.served.vfs.drain()).await {
            Ok(unsaved) => {
                let unsaved = unsaved
                    .into_iter()
                    .map(|left| Unsaved { path: left.name, error: left.error.to_string() });
                Drained { unsaved: unsaved.collect(), timed_out: false }
            }
            Err(_) => Drained { unsaved: Vec::new(), timed_out: true },
        };
        json(StatusCode::OK, &drained)
    }

    fn end(&self) -> Response<Body> {
        let Ok(place) = self.followers.clone().try_acquire_owned() else { return crowded() };
        let (mut sender, body) = Channel::new(BATCHES_AHEAD);
        let mut end = self.end.subscribe();
        tokio::spawn(async move {
            while tokio::time::timeout(HEARTBEAT, has_come(&mut end)).await.is_err() {
                // Space before the answer means nothing, and finds out whether somebody still waits.
                if sender.send_data(Bytes::from_static(b"\n")).await.is_err() {
                    return;
                }
            }
            let last = end.borrow().as_ref().and_then(|last| serde_json::to_vec(last).ok());
            if let Some(last) = last {
                sender.send_data(last.into()).await.ok();
            }
            drop(place);
        });
        coming(body, "application/json")
    }

    async fn reload_credentials(&self) -> Response<Body> {
        match self.served.vfs.drive().reload_credentials().await {
            Ok(()) => json(StatusCode::OK, &serde_json::json!({})),
            Err(error) => refuse(StatusCode::CONFLICT, error.to_string()),
        }
    }

    fn events(&self, query: &str) -> Response<Body> {
        let since = match number(query, "since") {
            Ok(since) => since.unwrap_or(0),
            Err(wrong) => return refuse(StatusCode::BAD_REQUEST, wrong),
        };
        let follows = match value(query, "follow") {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                return refuse(StatusCode::BAD_REQUEST, format!("follow is true or false, not {other:?}"));
            }
        };
        let place = if follows { self.followers.clone().try_acquire_owned().ok() } else { None };
        if follows && place.is_none() {
            return crowded();
        }
        let (sender, body) = Channel::new(BATCHES_AHEAD);
        let (recent, end) = (self.served.recent.clone(), self.end.subscribe());
        tokio::spawn(async move {
            send_events(&recent, since, follows.then_some(end), sender).await;
            drop(place);
        });
        coming(body, "application/jsonl")
    }
}

/// Returns when the mount has ended, or nobody is left to say so.
async fn has_come(end: &mut watch::Receiver<Option<Drained>>) {
    end.wait_for(Option::is_some).await.ok();
}

/// Ends when the reader is gone, or has everything: with `until`, what comes before the end of the mount.
async fn send_events(
    recent: &Recent,
    mut since: u64,
    mut until: Option<watch::Receiver<Option<Drained>>>,
    mut to: Sender<Bytes>,
) {
    let mut newest = recent.subscribe();
    loop {
        newest.mark_unchanged();
        let batch = recent.after(since, BATCH_ENTRIES);
        let Some(last) = batch.last() else {
            let Some(end) = &mut until else { return };
            let is_quiet = tokio::select! {
                news = tokio::time::timeout(HEARTBEAT, newest.changed()) => news.is_err(),
                () = has_come(end) => false,
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

/// An answer whose body comes bit by bit.
fn coming(body: Channel<Bytes>, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(Either::Right(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn crowded() -> Response<Body> {
    refuse(StatusCode::SERVICE_UNAVAILABLE, format!("{FOLLOWERS_MAX} programs follow this mount already"))
}

/// The value of a parameter. Everything that is asked for is a plain word or number, so nothing is escaped.
fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn number(query: &str, name: &str) -> Result<Option<u64>, String> {
    let Some(text) = value(query, name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{name} is a number, not {text:?}"))
}

fn json(status: StatusCode, shape: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(shape) {
        Ok(bytes) => with_body(status, bytes),
        // Maps with keys that are no strings cannot be written; no shape has one.
        Err(_) => with_body(StatusCode::INTERNAL_SERVER_ERROR, r#"{"error":"the answer cannot be written"}"#),
    }
}

fn with_body(status: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(bytes.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refuse(status: StatusCode, error: String) -> Response<Body> {
    json(status, &Refusal { error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_and_wrong_ones_are_named() {
        assert_eq!(value("since=5&follow=true", "follow"), Some("true"));
        assert_eq!(value("", "follow"), None);
        assert_eq!(number("since=5", "since"), Ok(Some(5)));
        assert_eq!(number("since=5", "other"), Ok(None));
        assert!(number("since=-1", "since").unwrap_err().contains("since is a number"));
    }

    #[tokio::test]
    async fn a_follower_gets_what_was_and_what_comes_and_its_end_is_noticed() {
        use crate::control::recent::Happened;
        use http_body_util::BodyExt as _;

        let recent = Arc::new(Recent::default());
        (0..3).for_each(|n| recent.add(Happened::warning(format!("w{n}"))));
        let (sender, mut body) = Channel::<Bytes>::new(BATCHES_AHEAD);
        let (end, ended) = watch::channel(None);
        let sending = tokio::spawn({
            let recent = recent.clone();
            async move { send_events(&recent, 1, Some(ended), sender).await }
        });
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.split(|byte| *byte == b'\n').count(), 3, "two lines and nothing after");
        recent.add(Happened::warning("later"));
        let next = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(next.windows(5).any(|word| word == b"later"));
        drop(body);
        recent.add(Happened::warning("unheard"));
        sending.await.unwrap();
        let (sender, mut body) = Channel::<Bytes>::new(BATCHES_AHEAD);
        end.send_replace(Some(Drained { unsaved: Vec::new(), timed_out: false }));
        send_events(&recent, 4, Some(end.subscribe()), sender).await;
        assert!(body.frame().await.is_some(), "the last events are told");
        assert!(body.frame().await.is_none(), "the end of the mount is the end of the log");
    }
}
