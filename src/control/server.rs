//! The daemon's end of the control socket.
//!
//! The directory of the socket keeps other users out, and the server checks the peer as well. Connections,
//! the size of a request and the time for each step are bounded; a client that never reads costs one socket
//! buffer until it is disconnected.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::api::ControlApi;
use super::http::{self, Limits};
use super::socket_dirs::SocketDirs;
use super::types::Drained;
use crate::error::{Error, ErrorKind, Result};

/// Connections at a time, including followers of the log.
const CONNECTIONS_MAX: u32 = 64;
const LIMITS: Limits = Limits { head_max: Duration::from_secs(10), write_max: Duration::from_secs(20) };
/// How long [`ControlSocket::finish`] waits for clients to read the last answers.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(1);

/// A control socket with its server. Dropping it removes the socket.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    stop: watch::Sender<bool>,
    api: Arc<ControlApi>,
    /// One permit for each connection.
    permits: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl ControlSocket {
    /// Creates the socket of this process and serves it. Must be called on a runtime.
    pub fn start(dirs: &SocketDirs, api: Arc<ControlApi>) -> Result<Self> {
        let path = dirs.prepare()?.join(format!("{}.sock", std::process::id()));
        Self::start_at(&path, dirs.uid, api)
    }

    /// As [`Self::start`], at a path in a private directory.
    fn start_at(path: &Path, uid: u32, api: Arc<ControlApi>) -> Result<Self> {
        let listener = bind(path).map_err(|e| e.context(path.display()))?;
        let (stop, stopped) = watch::channel(false);
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
        let task = tokio::spawn(accept(listener, uid, api.clone(), permits.clone(), stopped));
        Ok(Self { path: path.to_owned(), stop, api, permits, task })
    }

    /// Removes the socket, and sends the end of the mount to the clients that wait for it. Returns when all
    /// clients have their answer, after a second at the latest.
    pub async fn finish(&self, last: Drained) {
        self.close();
        self.api.end_mount(last);
        let all = self.permits.acquire_many(CONNECTIONS_MAX);
        tokio::time::timeout(LAST_ANSWERS_MAX, all).await.ok();
    }

    /// Removes the socket. Answers that are under way continue.
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

/// Creates the socket. It replaces the socket of a dead process with the same id.
///
/// The socket is renamed to its path after it listens, because a socket that does not listen looks like that
/// of a dead daemon.
fn bind(path: &Path) -> Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::new(ErrorKind::Exists, "another process listens on this socket"));
    }
    let unnamed = path.with_extension("new");
    match std::fs::remove_file(&unnamed) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(&unnamed)?;
    // The directory is private, so no other user can connect before this.
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unnamed, path)?;
    Ok(listener)
}

async fn accept(
    listener: UnixListener,
    uid: u32,
    api: Arc<ControlApi>,
    permits: Arc<Semaphore>,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = Arc::new(listener);
    let accepting = http::accept(
        "control socket",
        move |cx| listener.poll_accept(cx).map_ok(|(stream, _)| stream),
        permits,
        move |stream| is_admitted(stream, uid),
        move |stream| serve(stream, api.clone()),
    );
    tokio::select! {
        () = accepting => {}
        _ = stopped.changed() => {}
    }
}

async fn serve(stream: UnixStream, api: Arc<ControlApi>) {
    let respond = |request| {
        let api = api.clone();
        async move { api.respond(&request).await }
    };
    http::serve(stream, LIMITS, respond).await;
}

/// Admits this user and root. The directory refuses others already.
fn is_admitted(stream: &UnixStream, uid: u32) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == uid || peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "refused a connection of another user to the control socket");
            false
        }
        Err(error) => {
            tracing::debug!(%error, "refused a connection to the control socket: its user is unknown");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bind_replaces_only_a_dead_socket() {
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
    async fn only_this_user_and_root_are_admitted() {
        let uid = rustix::process::geteuid().as_raw();
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(is_admitted(&one, uid));
        assert_eq!(is_admitted(&one, uid + 1), uid == 0);
    }
}
