//! The client of the control API, for the commands.
//!
//! A daemon may hang or have another version, so every request has a time limit and every answer a size
//! limit. A client that finds the socket of a dead daemon removes it.
//!
//! Any user can listen on a socket and claim to be the daemon of any mount. The kernel tells the user who listens
//! ([`DaemonClient::uid`]), and the callers compare that user with the owner of the mount.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::fs::{FileType, Mode, OFlags, fstat, open, openat};
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use super::socket_dirs::{SocketDirs, SocketUsers, service_user};
use super::types::{ApiError, Drained, LogEntry, Restored, Status, Trash, Versions};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{exact_duration, exact_size};

/// Time limit of an answer that the daemon has at once.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Time limit of an answer for which the daemon calls the service, and of a silence within its content.
const DRIVE_CALL_MAX: Duration = Duration::from_secs(120);
/// Longest silence of an event stream; several heartbeats of the daemon.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Largest answer. 1,000 transfers with long paths take less.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Size of all answers of other users in one round of requests.
const OTHERS_ANSWERS_BYTES_MAX: usize = 64 << 20;
/// Longest line of an event stream.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A client of one daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DaemonClient {
    socket: PathBuf,
    /// The user who listened at the first connection. Later connections must reach the same user.
    uid: OnceLock<u32>,
}

/// The bytes that other users may send in one round of requests.
#[derive(Clone, Debug)]
pub struct AnswerBudget(Arc<Semaphore>);

impl AnswerBudget {
    pub fn for_one_round() -> Self {
        Self(Arc::new(Semaphore::new(OTHERS_ANSWERS_BYTES_MAX)))
    }

    fn take(&self, bytes: usize) -> Result<()> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let taken = self.0.try_acquire_many(bytes);
        taken.map(tokio::sync::SemaphorePermit::forget).map_err(|_| {
            let most = exact_size(OTHERS_ANSWERS_BYTES_MAX as u64);
            Error::new(ErrorKind::Protocol, format!("the answers of other users exceed {most}"))
        })
    }
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
    let users = owner.map_or(SocketUsers::All, SocketUsers::AllAnd);
    let FoundMounts { mounts, mut errors } = mounts(users).await;
    let here = mounts.into_iter().filter(|(_, status)| status.mountpoint == shown);
    let here = here.filter(|(daemon, _)| owner.is_none_or(|owner| daemon.speaks_for(owner)));
    // An older daemon at the same path may still be saving after its unmount. Answers of other users count
    // last.
    let ours = SocketDirs::of_this_process().uid;
    let newest = here.max_by_key(|(daemon, status)| (daemon.uid() == Some(ours), status.mounted_at_ms));
    newest.ok_or_else(|| {
        errors.pop().unwrap_or_else(|| {
            let message = format!(
                "no running pdsfs of this user is mounted at {shown} (pdsfs status lists the mounts)"
            );
            Error::new(ErrorKind::NotFound, message)
        })
    })
}

/// Requests the status of every daemon of these users.
pub async fn mounts(users: SocketUsers) -> FoundMounts {
    let sockets = tokio::task::spawn_blocking(move || SocketDirs::of_this_process().sockets(users)).await;
    let mut queries = tokio::task::JoinSet::new();
    let budget = AnswerBudget::for_one_round();
    for socket in sockets.unwrap_or_default() {
        let (daemon, budget) = (DaemonClient::at(socket), budget.clone());
        queries.spawn(async move {
            let status = daemon.status(&budget).await;
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

/// Opens a socket as a path only. Neither it nor its directory may be a link, so that the path cannot be exchanged
/// between this and the connection.
fn open_socket(socket: &Path) -> io::Result<OwnedFd> {
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = open(dir, flags | OFlags::DIRECTORY, Mode::empty())?;
    let socket = openat(&dir, name, flags, Mode::empty())?;
    match FileType::from_raw_mode(fstat(&socket)?.st_mode) {
        FileType::Socket => Ok(socket),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket")),
    }
}

impl DaemonClient {
    pub fn at(socket: PathBuf) -> Self {
        Self { socket, uid: OnceLock::new() }
    }

    /// The user of the daemon, as the kernel tells it; `None` before the first connection.
    pub fn uid(&self) -> Option<u32> {
        self.uid.get().copied()
    }

    /// Whether the daemon belongs to the user who has mounted, or to root, who may mount for others. The system's
    /// service speaks for mounts of root.
    pub fn speaks_for(&self, owner: u32) -> bool {
        self.uid().is_some_and(|uid| uid == owner || uid == 0 || owner == 0 && service_user() == Some(uid))
    }

    pub async fn status(&self, budget: &AnswerBudget) -> Result<Status> {
        with_timeout(ANSWER_MAX, async {
            let answer = check_status(self.send(Method::GET, "/v1/status").await?).await?;
            let is_own = self.uid() == Some(SocketDirs::of_this_process().uid);
            read_json(answer, (!is_own).then_some(budget)).await
        })
        .await
    }

    /// Subscribes to the end of the mount. When this returns, the daemon has the request.
    pub async fn subscribe_end(&self) -> Result<PendingEnd> {
        let answer = with_timeout(ANSWER_MAX, self.send(Method::GET, "/v1/end")).await?;
        check_status(answer).await.map(PendingEnd)
    }

    /// Makes the daemon read its credential again, after a new login.
    pub async fn reload_credentials(&self) -> Result<()> {
        self.command("/v1/credentials/reload").await
    }

    /// Makes the daemon forget the files that could not be saved.
    pub async fn dismiss_failures(&self) -> Result<()> {
        self.command("/v1/failures/dismiss").await
    }

    async fn command(&self, path: &str) -> Result<()> {
        with_timeout(ANSWER_MAX, async { check_status(self.send(Method::POST, path).await?).await.map(drop) })
            .await
    }

    /// The events after the number `since`. With `follow`, the stream continues until the mount ends.
    pub async fn events(&self, since: u64, follow: bool) -> Result<EventStream> {
        let path = format!("/v1/events?since={since}&follow={follow}");
        let answer = with_timeout(ANSWER_MAX, self.send(Method::GET, &path)).await?;
        let answer = check_status(answer).await?;
        Ok(EventStream { body: answer.into_body(), buffer: Vec::new() })
    }

    /// The versions of the file with this inode number, the newest first.
    pub async fn versions(&self, ino: u64) -> Result<Versions> {
        self.ask_drive(Method::GET, &format!("/v1/versions?ino={ino}")).await
    }

    /// Makes the content of a version the content of the file.
    pub async fn restore_version(&self, ino: u64, id: &str) -> Result<()> {
        let path = format!("/v1/versions/restore?ino={ino}&id={}", encoded(id));
        self.ask_drive::<IgnoredAny>(Method::POST, &path).await.map(drop)
    }

    /// The content of a version. It is too short if the daemon could not read all of it.
    pub async fn version_content(&self, ino: u64, id: &str) -> Result<ContentStream> {
        let path = format!("/v1/versions/content?ino={ino}&id={}", encoded(id));
        let answer = with_timeout(DRIVE_CALL_MAX, self.send(Method::GET, &path)).await?;
        check_status(answer).await.map(|answer| ContentStream(answer.into_body()))
    }

    /// What the recycle bin has of the mount.
    pub async fn trash(&self) -> Result<Trash> {
        self.ask_drive(Method::GET, "/v1/trash").await
    }

    /// Takes an object out of the recycle bin.
    pub async fn restore_trashed(&self, id: &str) -> Result<Restored> {
        self.ask_drive(Method::POST, &format!("/v1/trash/restore?id={}", encoded(id))).await
    }

    /// Deletes an object of the recycle bin for good.
    pub async fn delete_trashed(&self, id: &str) -> Result<()> {
        let path = format!("/v1/trash/delete?id={}", encoded(id));
        self.ask_drive::<IgnoredAny>(Method::POST, &path).await.map(drop)
    }

    /// A request for which the daemon calls the service.
    async fn ask_drive<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T> {
        with_timeout(DRIVE_CALL_MAX, async {
            read_json(check_status(self.send(method, path).await?).await?, None).await
        })
        .await
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>> {
        let stream = self.connect().await?;
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

    async fn connect(&self) -> Result<UnixStream> {
        let socket = open_socket(&self.socket)?;
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let stream = UnixStream::connect(path).await.map_err(|e| self.connect_error(e))?;
        let uid = stream.peer_cred()?.uid();
        if *self.uid.get_or_init(|| uid) == uid {
            return Ok(stream);
        }
        Err(Error::new(ErrorKind::Denied, "another user listens on the socket of the daemon"))
    }

    /// A refused connection means that the daemon was killed. Its socket is removed.
    fn connect_error(&self, e: io::Error) -> Error {
        if e.kind() != io::ErrorKind::ConnectionRefused {
            return Error::from(e);
        }
        // Another user could redirect the path at any time, so only own sockets are removed.
        let owner = self.socket.parent().and_then(|dir| dir.symlink_metadata().ok()).map(|dir| dir.uid());
        if owner == Some(SocketDirs::of_this_process().uid) {
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
        read_json(self.0, None).await
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

/// Bytes as the daemon sends them.
#[derive(Debug)]
pub struct ContentStream(Incoming);

impl ContentStream {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = with_timeout(DRIVE_CALL_MAX, async { Ok(self.0.frame().await) }).await?;
            let Some(frame) = frame.transpose().map_err(broken_connection)? else { return Ok(None) };
            // Other frames are trailers.
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
    }
}

/// A value of a query.
fn encoded(value: &str) -> impl std::fmt::Display {
    utf8_percent_encode(value, NON_ALPHANUMERIC)
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
    let error: ApiError = read_json(answer, None).await?;
    let kind = match status.as_u16() {
        400 => ErrorKind::Invalid,
        403 => ErrorKind::Denied,
        404 | 405 => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Err(Error::new(kind, error.error))
}

/// Reads an answer; `budget` is charged with its size.
async fn read_json<T: DeserializeOwned>(
    answer: Response<Incoming>,
    budget: Option<&AnswerBudget>,
) -> Result<T> {
    let mut body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            Error::with_source(ErrorKind::Protocol, "the daemon did not finish its answer", e)
        })?;
        let Some(data) = frame.data_ref() else { continue };
        budget.map_or(Ok(()), |budget| budget.take(data.len()))?;
        text.extend_from_slice(data);
    }
    serde_json::from_slice(&text).map_err(invalid_answer)
}

fn broken_connection(e: hyper::Error) -> Error {
    Error::with_source(ErrorKind::Io, "lost the connection to the daemon", e)
}

fn invalid_answer(e: serde_json::Error) -> Error {
    let message = "the daemon returned an invalid answer (after an update of pdsfs, mount again)";
    Error::with_source(ErrorKind::Protocol, message, e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn link_to_a_socket_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        let _listener = tokio::net::UnixListener::bind(real.join("1.sock")).unwrap();
        std::os::unix::fs::symlink(real.join("1.sock"), real.join("2.sock")).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let daemon = DaemonClient::at(real.join("1.sock"));
        daemon.connect().await.unwrap();
        assert_eq!(daemon.uid(), Some(rustix::process::geteuid().as_raw()));
        for path in [real.join("2.sock"), link.join("1.sock")] {
            let connected = DaemonClient::at(path.clone()).connect().await;
            assert!(connected.is_err(), "connected to {}", path.display());
        }
    }

    #[test]
    fn only_owner_and_root_speak_for_a_mount() {
        let of = |uid: u32| DaemonClient { socket: PathBuf::new(), uid: OnceLock::from(uid) };
        assert!(of(7).speaks_for(7) && of(0).speaks_for(7));
        assert!(!of(8).speaks_for(7) && !of(8).speaks_for(0));
        assert!(!DaemonClient::at(PathBuf::new()).speaks_for(0));
    }
}
