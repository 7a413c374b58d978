//! The client of the control API, for the commands.
//!
//! A daemon may hang or have another version, so every request has a time limit and every answer a size
//! limit. A client that finds the socket of a dead daemon removes it.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::socket_dirs::SocketDirs;
use super::types::{ApiError, Drained, LogEntry, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{exact_duration, exact_size};

/// Time limit of an answer that the daemon has at once.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longest silence of an event stream; several heartbeats of the daemon.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Largest answer. 1,000 transfers with long paths take less.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Longest line of an event stream.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A client of one daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DaemonClient {
    socket: PathBuf,
}

/// The results of status requests to all daemons.
#[derive(Debug, Default)]
pub struct FoundMounts {
    /// Daemons that answered, with their status, in the order of their mountpoints.
    pub mounts: Vec<(DaemonClient, Status)>,
    /// One error for each daemon without an answer. Their mounts are unknown.
    pub errors: Vec<Error>,
}

/// The daemon of the mount at exactly this absolute path, with its status. Root finds the daemon of another
/// user, `owner`, too.
pub async fn find_at(mountpoint: &Path, owner: Option<u32>) -> Result<(DaemonClient, Status)> {
    let shown = mountpoint.to_string_lossy();
    let FoundMounts { mounts, mut errors } = query_all(owner).await;
    let here = mounts.into_iter().filter(|(_, status)| status.mountpoint == shown);
    // Any user can claim to have mounted there.
    let here = here.filter(|(daemon, _)| owner.is_none_or(|owner| is_authoritative(&daemon.socket, owner)));
    // An older daemon at the same path may still be saving after its unmount. Answers of other users count
    // last.
    let newest = here.max_by_key(|(daemon, status)| (is_own(&daemon.socket), status.mounted_at_ms));
    newest.ok_or_else(|| {
        errors.pop().unwrap_or_else(|| {
            let message = format!(
                "no running pdsfs of this user is mounted at {shown} (pdsfs status lists the mounts)"
            );
            Error::new(ErrorKind::NotFound, message)
        })
    })
}

/// Requests the status of every daemon of this user. For root: of all users.
pub async fn mounts() -> FoundMounts {
    query_all(None).await
}

async fn query_all(owner: Option<u32>) -> FoundMounts {
    let sockets = tokio::task::spawn_blocking(move || SocketDirs::of_this_process().sockets(owner)).await;
    let mut queries = tokio::task::JoinSet::new();
    for socket in sockets.unwrap_or_default() {
        let daemon = DaemonClient { socket };
        queries.spawn(async move {
            let status = daemon.status().await;
            (daemon, status)
        });
    }
    let mut found = FoundMounts::default();
    for (daemon, status) in queries.join_all().await {
        match status {
            Ok(status) => found.mounts.push((daemon, status)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => found.errors.push(error.context(daemon.socket.display())),
        }
    }
    found.mounts.sort_by(|a, b| (&a.1.mountpoint, a.1.pid).cmp(&(&b.1.mountpoint, b.1.pid)));
    found
}

/// Whether a socket is in a directory of this user.
fn is_own(socket: &Path) -> bool {
    dir_owner(socket) == Some(SocketDirs::of_this_process().uid)
}

/// Whether a socket belongs to the user who has mounted, or to root, who may mount for others.
fn is_authoritative(socket: &Path, owner: u32) -> bool {
    dir_owner(socket).is_some_and(|uid| uid == owner || uid == 0)
}

fn dir_owner(socket: &Path) -> Option<u32> {
    socket.parent()?.symlink_metadata().ok().map(|dir| dir.uid())
}

impl DaemonClient {
    #[cfg(test)]
    pub fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub async fn status(&self) -> Result<Status> {
        self.call(Method::GET, "/v1/status", ANSWER_MAX).await
    }

    /// Subscribes to the end of the mount. When this returns, the daemon has the request.
    pub async fn subscribe_end(&self) -> Result<PendingEnd> {
        let answer = with_timeout(ANSWER_MAX, self.send(Method::GET, "/v1/end")).await?;
        check_status(answer).await.map(PendingEnd)
    }

    /// Makes the daemon read its credential again, after a new login.
    pub async fn reload_credentials(&self) -> Result<()> {
        let _: serde_json::Value = self.call(Method::POST, "/v1/credentials/reload", ANSWER_MAX).await?;
        Ok(())
    }

    /// The events after the number `since`. With `follow`, the stream continues until the mount ends.
    pub async fn events(&self, since: u64, follow: bool) -> Result<EventStream> {
        let path = format!("/v1/events?since={since}&follow={follow}");
        let answer = with_timeout(ANSWER_MAX, self.send(Method::GET, &path)).await?;
        let answer = check_status(answer).await?;
        Ok(EventStream { body: answer.into_body(), buffer: Vec::new() })
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, limit: Duration) -> Result<T> {
        with_timeout(limit, async {
            let answer = check_status(self.send(method, path).await?).await?;
            read_json(answer).await
        })
        .await
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.connect_error(e))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut requests, connection) = handshake.map_err(broken_connection)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a daemon failed");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "pdsfs")
            .body(Empty::<Bytes>::new())
            .map_err(|e| Error::from_source(ErrorKind::Invalid, e))?;
        requests.send_request(request).await.map_err(broken_connection)
    }

    /// A refused connection means that the daemon was killed. Its socket is removed.
    fn connect_error(&self, e: io::Error) -> Error {
        if e.kind() != io::ErrorKind::ConnectionRefused {
            return Error::from(e);
        }
        // Another user could redirect the path at any time, so only own sockets are removed.
        if is_own(&self.socket) {
            match std::fs::remove_file(&self.socket) {
                Ok(()) => tracing::debug!("removed {}, the socket of a dead daemon", self.socket.display()),
                Err(e) => tracing::debug!("cannot remove {}: {e}", self.socket.display()),
            }
        }
        Error::new(ErrorKind::NotFound, "the daemon has died")
    }
}

/// The coming end of a mount.
#[derive(Debug)]
pub struct PendingEnd(Response<Incoming>);

impl PendingEnd {
    /// Waits for the end. An error means that the daemon ended without a report.
    pub async fn wait(self) -> Result<Drained> {
        read_json(self.0).await
    }
}

/// Events as the daemon sends them.
#[derive(Debug)]
pub struct EventStream {
    body: Incoming,
    /// Received bytes without a complete line.
    buffer: Vec<u8>,
}

impl EventStream {
    /// The next event; `None` at the end of the stream or of the daemon.
    pub async fn next(&mut self) -> Result<Option<LogEntry>> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                // An empty line is a heartbeat.
                if line.len() > 1 {
                    return serde_json::from_slice(&line).map(Some).map_err(invalid_answer);
                }
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                let message = format!("an event of the daemon exceeds {}", exact_size(LINE_BYTES_MAX as u64));
                return Err(Error::new(ErrorKind::Protocol, message));
            }
            let Ok(frame) = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await else {
                let message =
                    format!("the daemon has sent nothing for {}; it may hang", exact_duration(SILENCE_MAX));
                return Err(Error::new(ErrorKind::Timeout, message));
            };
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                Some(Err(e)) => return Err(broken_connection(e)),
            }
        }
    }
}

async fn with_timeout<T>(limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        let message = format!("the daemon did not answer within {}; it may hang", exact_duration(limit));
        Err(Error::new(ErrorKind::Timeout, message))
    })
}

/// Turns an answer with an error status into the error.
async fn check_status(answer: Response<Incoming>) -> Result<Response<Incoming>> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let error: ApiError = read_json(answer).await?;
    let kind = match status.as_u16() {
        400 => ErrorKind::Invalid,
        403 => ErrorKind::Denied,
        404 | 405 => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Err(Error::new(kind, error.error))
}

async fn read_json<T: DeserializeOwned>(answer: Response<Incoming>) -> Result<T> {
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body =
        body.map_err(|e| Error::with_source(ErrorKind::Protocol, "the daemon did not finish its answer", e))?;
    serde_json::from_slice(&body.to_bytes()).map_err(invalid_answer)
}

fn broken_connection(e: hyper::Error) -> Error {
    Error::with_source(ErrorKind::Io, "lost the connection to the daemon", e)
}

fn invalid_answer(e: serde_json::Error) -> Error {
    let message = "the daemon returned an invalid answer (after an update of pdsfs, mount again)";
    Error::with_source(ErrorKind::Protocol, message, e)
}
