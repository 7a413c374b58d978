//! The daemon's end of the connection to the broker.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::sync::watch;

use super::{Answer, ExpectedMount, Message, Question, receive, send};
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::mountinfo::Mount;
use crate::ids::Ino;
use crate::vfs::ProcessInspector;

type Reply = (Answer, Option<OwnedFd>);

/// A connection to the broker. Calls block.
#[derive(Debug)]
pub struct BrokerClient {
    socket: Arc<OwnedFd>,
    waiting: Arc<Mutex<Waiting>>,
    ended: watch::Receiver<bool>,
}

/// The questions without an answer. A leaf lock.
#[derive(Debug, Default)]
struct Waiting {
    last_id: u64,
    has_ended: bool,
    replies: HashMap<u64, Sender<Reply>>,
}

impl BrokerClient {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Arc<Self>> {
        let connected = SocketAddrUnix::new(path).and_then(|address| {
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            connect(&socket, &address)?;
            Ok(socket)
        });
        let socket = connected.map_err(|e| {
            let path = path.display();
            Error::from(io::Error::from(e)).context(format!(
                "cannot reach the broker at {path} (systemctl start pdsfs-broker.socket; only the user of the service \
                 may connect)"
            ))
        })?;
        Ok(Self::new(socket)?)
    }

    fn new(socket: OwnedFd) -> io::Result<Arc<Self>> {
        let (ended_tx, ended) = watch::channel(false);
        let (socket, waiting) = (Arc::new(socket), Arc::<Mutex<Waiting>>::default());
        let client = Self { socket: socket.clone(), waiting: waiting.clone(), ended };
        std::thread::Builder::new().name("broker".to_owned()).spawn(move || {
            if let Err(error) = pass_answers(&socket, &waiting) {
                tracing::error!("the connection to the broker has failed: {error}");
            }
            let mut waiting = waiting.lock();
            waiting.has_ended = true;
            // The drop of the senders ends the calls.
            waiting.replies.clear();
            drop(waiting);
            ended_tx.send_replace(true);
        })?;
        Ok(Arc::new(client))
    }

    /// Resolves when the broker has ended.
    pub async fn ended(&self) {
        self.ended.clone().wait_for(|ended| *ended).await.ok();
    }

    /// Has the mountpoint of a drive checked and opened. Returns its path without links.
    pub fn prepare(&self, drive: String, expected: ExpectedMount) -> Result<PathBuf> {
        match self.ask(Question::Prepare { drive, expected })? {
            (Answer::Prepared { path }, _) => Ok(path),
            _ => Err(unexpected()),
        }
    }

    /// The device of a mount that no path leads to yet.
    pub(in crate::fuse) fn open(&self) -> Result<OwnedFd> {
        match self.ask(Question::Open)? {
            (Answer::Opened, Some(device)) => Ok(device),
            _ => Err(unexpected()),
        }
    }

    pub(in crate::fuse) fn attach(&self) -> Result<Mount> {
        match self.ask(Question::Attach)? {
            (Answer::Attached(mount), _) => Ok(mount),
            _ => Err(unexpected()),
        }
    }

    pub(in crate::fuse) fn current(&self) -> Result<Option<Mount>> {
        match self.ask(Question::Current)? {
            (Answer::Current(mount), _) => Ok(mount),
            _ => Err(unexpected()),
        }
    }

    pub(in crate::fuse) fn probe(&self) -> io::Result<()> {
        match self.ask(Question::Probe).map_err(io::Error::other)? {
            (Answer::Probed(None), _) => Ok(()),
            (Answer::Probed(Some(errno)), _) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::Error::other(unexpected())),
        }
    }

    pub(in crate::fuse) fn detach(&self, only_dead: bool) -> Result<bool> {
        match self.ask(Question::Detach { only_dead })? {
            (Answer::Detached(detached), _) => Ok(detached),
            _ => Err(unexpected()),
        }
    }

    fn fact(&self, question: Question) -> Option<bool> {
        match self.ask(question) {
            Ok((Answer::Fact(fact), _)) => fact,
            _ => None,
        }
    }

    fn ask(&self, question: Question) -> Result<Reply> {
        let (id, reply) = self.enter()?;
        let message = Message { id, body: question };
        if let Err(e) = send(self.socket.as_fd(), &message, None) {
            self.waiting.lock().replies.remove(&id);
            return Err(Error::with_source(ErrorKind::Unreachable, "cannot ask the broker", e));
        }
        match reply.recv() {
            Ok((Answer::Refused(refusal), _)) => Err(refusal.into()),
            Ok(reply) => Ok(reply),
            Err(_) => Err(gone()),
        }
    }

    fn enter(&self) -> Result<(u64, Receiver<Reply>)> {
        let (reply_tx, reply) = channel();
        let mut waiting = self.waiting.lock();
        if waiting.has_ended {
            return Err(gone());
        }
        waiting.last_id += 1;
        let id = waiting.last_id;
        waiting.replies.insert(id, reply_tx);
        Ok((id, reply))
    }
}

impl ProcessInspector for BrokerClient {
    fn dies_of_signal(&self, tid: u32) -> Option<bool> {
        self.fact(Question::DiesOfSignal { tid })
    }

    fn holds_open(&self, tgid: u32, ino: Ino) -> Option<bool> {
        self.fact(Question::HoldsOpen { tgid, ino: ino.0 })
    }
}

/// Returns at the end of the connection.
fn pass_answers(socket: &OwnedFd, waiting: &Mutex<Waiting>) -> io::Result<()> {
    while let Some((message, descriptor)) = receive::<Answer>(socket.as_fd())? {
        let asker = waiting.lock().replies.remove(&message.id);
        if let Some(asker) = asker {
            // It may have gone.
            let _ = asker.send((message.body, descriptor));
        }
    }
    Ok(())
}

fn gone() -> Error {
    Error::new(ErrorKind::Unreachable, "the broker has ended (journalctl -u 'pdsfs-broker@*' says why)")
}

fn unexpected() -> Error {
    Error::new(ErrorKind::Protocol, "the broker gave the answer to another question: it has another version")
}
