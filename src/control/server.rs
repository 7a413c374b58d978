//! The daemon's end of the control socket.
//!
//! Whoever connects gets one answer and no second one on the same connection. All is bounded: connections,
//! what is read of a request, how long it may take to come, and how long an answer may wait to be read; a
//! client that never reads is cut off, and until then costs a socket buffer.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_io_timeout::TimeoutStream;

use super::answers::Answers;
use super::folder::Surroundings;
use super::types::Drained;
use crate::error::{Error, ErrorKind, Result};

/// Connections at a time, followers of the log among them.
const CONNECTIONS_MAX: u32 = 64;
/// How long the head of a request may take to come.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long an answer may wait for its reader.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(20);
/// Read buffer of a connection, and with it the longest head.
const READ_BUFFER_BYTES: usize = 16 << 10;
/// How long the end of a mount waits for the last answers to be read.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(1);
/// Pause after `accept` failed, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A control socket that is served. Dropped, it is taken away.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    stop: watch::Sender<bool>,
    answers: Arc<Answers>,
    /// A place for each connection.
    room: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl ControlSocket {
    /// Makes the socket in the folder for this process and serves it. Must be called on a runtime.
    pub fn start(surroundings: &Surroundings, answers: Arc<Answers>) -> Result<Self> {
        let path = surroundings.prepare()?.join(format!("{}.sock", std::process::id()));
        Self::start_at(&path, surroundings.uid, answers)
    }

    /// The same at a path in a folder that is known to be private.
    pub fn start_at(path: &Path, uid: u32, answers: Arc<Answers>) -> Result<Self> {
        let listener = bind(path).map_err(|e| e.context(path.display()))?;
        let (stop, stopped) = watch::channel(false);
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
        let task = tokio::spawn(accept(listener, uid, answers.clone(), room.clone(), stopped));
        Ok(Self { path: path.to_owned(), stop, answers, room, task })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the socket away and tells whoever waits for it how the mount has ended. Returns when everybody has
    /// their answer, and in any case soon.
    pub async fn finish(&self, last: Drained) {
        self.close();
        self.answers.ended(last);
        let all = self.room.acquire_many(CONNECTIONS_MAX);
        tokio::time::timeout(LAST_ANSWERS_MAX, all).await.ok();
    }

    /// Takes the socket away. Answers that are under way may still come to their end.
    pub fn close(&self) {
        if !self.stop.send_replace(true) {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.close();
        self.task.abort();
    }
}

/// Makes the socket. What an earlier process of the same number has left is replaced.
///
/// It gets its name when it listens: one that does not listen yet looks like one that a dead daemon has left.
fn bind(path: &Path) -> Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::new(ErrorKind::Exists, "another process answers at this socket"));
    }
    let unnamed = path.with_extension("new");
    match std::fs::remove_file(&unnamed) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(&unnamed)?;
    // Nobody else can be in the folder, so there is no moment in which others could connect.
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unnamed, path)?;
    Ok(listener)
}

async fn accept(
    listener: UnixListener,
    uid: u32,
    answers: Arc<Answers>,
    room: Arc<Semaphore>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection to the control socket cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !is_admitted(&stream, uid) {
            continue;
        }
        // Who comes while all places are taken is cut off, and may come again.
        let Ok(place) = room.clone().try_acquire_owned() else { continue };
        let answers = answers.clone();
        tokio::spawn(async move {
            serve(stream, answers).await;
            drop(place);
        });
    }
}

/// The folder keeps others out already; this holds also where it does not.
fn is_admitted(stream: &UnixStream, uid: u32) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == uid || peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "another user was refused at the control socket");
            false
        }
        Err(error) => {
            tracing::debug!(%error, "whoever connected to the control socket is not known");
            false
        }
    }
}

async fn serve(stream: UnixStream, answers: Arc<Answers>) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_WAIT_MAX));
    let service = service_fn(move |request: Request<Incoming>| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(answers.answer(&request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT_MAX)
        .max_buf_size(READ_BUFFER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the control socket ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_answers_is_left_alone_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.sock");
        let first = bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bind(&path).unwrap_err().kind(), ErrorKind::Exists);
        drop(first);
        assert!(path.exists());
        bind(&path).unwrap();
    }

    #[tokio::test]
    async fn who_connects_is_the_same_user_or_root() {
        // SAFETY: the call only reads the process's own id and cannot fail.
        let uid = unsafe { libc::geteuid() };
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(is_admitted(&one, uid));
        assert_eq!(is_admitted(&one, uid + 1), uid == 0);
    }
}
