//! Asking a running mount, for the commands.
//!
//! A daemon may hang or be of another version: every question has a time limit and every answer a bound.
//! The socket of a daemon that is gone is taken away by whoever meets it.

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

use super::folder::Surroundings;
use super::types::{Drained, LogEntry, Refusal, Status};
use crate::error::{Error, ErrorKind, Result};

/// How long a daemon has for an answer that it need not wait for.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a stream of events may be silent: several of the signs of life that it has.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// What is added to a time that the daemon keeps by itself, so that its own word comes first.
const MARGIN: Duration = Duration::from_secs(5);
/// Longest answer: 1,000 transfers with long paths take less than this.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Longest line of a stream of events.
const LINE_BYTES_MAX: usize = 1 << 20;

/// One daemon, by its socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Daemon {
    socket: PathBuf,
}

/// Who was found when everybody was asked.
#[derive(Debug, Default)]
pub struct Found {
    /// Those that answered, with their status, in the order of their mountpoints.
    pub mounts: Vec<(Daemon, Status)>,
    /// What the others did in place of answering. What is on their mounts is not known.
    pub silent: Vec<Error>,
}

/// Brings everything that was written at `mountpoint` to the drive, within about `timeout`.
///
/// An error of kind `NotFound` says that no running mount of this user is there.
pub async fn drain(mountpoint: &Path, timeout: Duration) -> Result<Drained> {
    let found = find_at(mountpoint, None).await?;
    found.0.drain(timeout).await
}

/// The daemon that has mounted at exactly this absolute path, and its status. Root finds that of another user,
/// `owner`.
pub async fn find_at(mountpoint: &Path, owner: Option<u32>) -> Result<(Daemon, Status)> {
    let shown = mountpoint.to_string_lossy();
    let Found { mounts, mut silent } = asked(owner).await;
    let here = mounts.into_iter().filter(|(_, status)| status.mountpoint == shown);
    // Anybody may say that he has mounted there.
    let here = here.filter(|(daemon, _)| owner.is_none_or(|owner| may_answer(&daemon.socket, owner)));
    // One that was unmounted may still be busy with its last files. What another user says counts last.
    let newest = here.max_by_key(|(daemon, status)| (is_own(&daemon.socket), status.mounted_at_ms));
    newest.ok_or_else(|| match silent.pop() {
        Some(error) => error,
        None => Error::new(ErrorKind::NotFound, format!("no running pdsfs of yours has mounted at {shown}")),
    })
}

/// Asks every daemon of this user for its status; those of all users, for root.
pub async fn mounts() -> Found {
    asked(None).await
}

async fn asked(owner: Option<u32>) -> Found {
    let sockets = tokio::task::spawn_blocking(move || Surroundings::of_this_process().sockets(owner)).await;
    let mut asked = tokio::task::JoinSet::new();
    for socket in sockets.unwrap_or_default() {
        let daemon = Daemon { socket };
        asked.spawn(async move {
            let status = daemon.status().await;
            (daemon, status)
        });
    }
    let mut found = Found::default();
    for (daemon, status) in asked.join_all().await {
        match status {
            Ok(status) => found.mounts.push((daemon, status)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => found.silent.push(error.context(daemon.socket.display())),
        }
    }
    found.mounts.sort_by(|a, b| (&a.1.mountpoint, a.1.pid).cmp(&(&b.1.mountpoint, b.1.pid)));
    found
}

/// Whether a socket is in a folder of the user who asks.
fn is_own(socket: &Path) -> bool {
    folder_owner(socket) == Some(Surroundings::of_this_process().uid)
}

/// Whether a socket is the word of who has mounted, or of root, who may mount for others.
fn may_answer(socket: &Path, owner: u32) -> bool {
    folder_owner(socket).is_some_and(|uid| uid == owner || uid == 0)
}

fn folder_owner(socket: &Path) -> Option<u32> {
    socket.parent()?.symlink_metadata().ok().map(|folder| folder.uid())
}

impl Daemon {
    /// The one behind a socket.
    pub fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// What it is doing.
    pub async fn status(&self) -> Result<Status> {
        self.ask(Method::GET, "/v1/status", ANSWER_MAX).await
    }

    /// Has it bring everything written to the drive.
    pub async fn drain(&self, timeout: Duration) -> Result<Drained> {
        let path = format!("/v1/drain?timeout_ms={}", timeout.as_millis());
        self.ask(Method::POST, &path, timeout.saturating_add(MARGIN)).await
    }

    /// Has it promise to tell how the mount ends. When this returns it has heard the question.
    pub async fn ending(&self) -> Result<Ending> {
        let answer = within(ANSWER_MAX, self.send(Method::GET, "/v1/end")).await?;
        refused_or(answer).await.map(Ending)
    }

    /// Has it read its credential again, as after a new login.
    pub async fn reload_credentials(&self) -> Result<()> {
        let _: serde_json::Value = self.ask(Method::POST, "/v1/credentials/reload", ANSWER_MAX).await?;
        Ok(())
    }

    /// Its events that are younger than `since`, and with `follow` those to come.
    pub async fn events(&self, since: u64, follow: bool) -> Result<Events> {
        let path = format!("/v1/events?since={since}&follow={follow}");
        let answer = within(ANSWER_MAX, self.send(Method::GET, &path)).await?;
        let answer = refused_or(answer).await?;
        Ok(Events { body: answer.into_body(), ahead: Vec::new() })
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, limit: Duration) -> Result<T> {
        within(limit, async {
            let answer = refused_or(self.send(method, path).await?).await?;
            read(answer).await
        })
        .await
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.gone(e))?;
        let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut requests, connection) = shaken.map_err(|e| broken(&e))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a mount ended");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "pdsfs")
            .body(Empty::<Bytes>::new())
            .map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))?;
        requests.send_request(request).await.map_err(|e| broken(&e))
    }

    /// Why there is no connection. What nobody listens to is of a daemon that was killed.
    fn gone(&self, e: io::Error) -> Error {
        if e.kind() == io::ErrorKind::ConnectionRefused {
            // Another user may make the path lead elsewhere at any time.
            if !is_own(&self.socket) {
                return Error::new(ErrorKind::NotFound, "its daemon has died");
            }
            match std::fs::remove_file(&self.socket) {
                Ok(()) => {
                    tracing::debug!("took away {}, which a dead daemon has left", self.socket.display());
                }
                Err(e) => tracing::debug!("cannot take away {}: {e}", self.socket.display()),
            }
            return Error::new(ErrorKind::NotFound, "its daemon has died");
        }
        Error::from(e)
    }
}

/// How a mount will have ended.
#[derive(Debug)]
pub struct Ending(Response<Incoming>);

impl Ending {
    /// The last word of the daemon, once everything was tried. An error says that it ended without one.
    pub async fn word(self) -> Result<Drained> {
        read(self.0).await
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    ahead: Vec<u8>,
}

impl Events {
    /// The next one; `None` when there are no more, or the daemon has ended.
    pub async fn next(&mut self) -> Result<Option<LogEntry>> {
        loop {
            while let Some(end) = self.ahead.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.ahead.drain(..=end).collect();
                // An empty line only says that the daemon is alive.
                if line.len() > 1 {
                    return serde_json::from_slice(&line).map(Some).map_err(|e| nonsense(&e));
                }
            }
            if self.ahead.len() > LINE_BYTES_MAX {
                return Err(Error::new(ErrorKind::Protocol, "an event of the mount is too long"));
            }
            let Ok(frame) = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await else {
                let detail = format!("the mount has said nothing for {} s", SILENCE_MAX.as_secs());
                return Err(Error::new(ErrorKind::Timeout, detail));
            };
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => self.ahead.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                Some(Err(e)) => return Err(broken(&e)),
            }
        }
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let detail = format!("the mount does not answer within {} s", limit.as_secs());
        Err(Error::new(ErrorKind::Timeout, detail))
    })
}

async fn refused_or(answer: Response<Incoming>) -> Result<Response<Incoming>> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let refusal: Refusal = read(answer).await?;
    let kind = match status.as_u16() {
        400 => ErrorKind::Invalid,
        403 => ErrorKind::Denied,
        404 | 405 => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Err(Error::new(kind, refusal.error))
}

async fn read<T: DeserializeOwned>(answer: Response<Incoming>) -> Result<T> {
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body =
        body.map_err(|e| Error::new(ErrorKind::Protocol, format!("the mount's answer broke off: {e}")))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|e| nonsense(&e))
}

fn broken(e: &hyper::Error) -> Error {
    Error::new(ErrorKind::Io, format!("the connection to the mount broke: {e}"))
}

fn nonsense(e: &serde_json::Error) -> Error {
    Error::new(ErrorKind::Protocol, format!("the mount's answer makes no sense: {e}"))
}
