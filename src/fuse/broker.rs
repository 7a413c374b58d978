//! The broker: a small process with the rights of root that mounts for a daemon without rights.
//!
//! The daemon of the system service parses what the network sends, so it is an ordinary user in a sandbox. It asks
//! the broker to mount a drive of the system's configuration, to look at the mount, to end it, and for two facts
//! about processes that only root may read. The broker decides by itself where and how a drive is mounted. It
//! unmounts when the connection ends.
//!
//! One connection serves one mount. A message is one JSON value in one packet of a `SOCK_SEQPACKET` socket. Answers
//! may come in any order; they have the id of their question.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::mountinfo::Mount;
use crate::error::{Error, ErrorKind};

mod client;

pub use client::BrokerClient;

/// Largest message, in bytes. A mount in the mount table has two paths of at most 4 KiB.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// What the daemon expects of the mount. The broker refuses if the configuration that it reads says otherwise.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct ExpectedMount {
    /// As configured, not resolved.
    #[serde(with = "path_bytes")]
    pub mountpoint: PathBuf,
    pub allow_non_empty: bool,
    pub allow_other: bool,
    pub allow_user_mountpoint: bool,
    pub read_only: bool,
    pub noexec: bool,
    pub nosymfollow: bool,
}

/// A question of the daemon. The first three must come once each, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub enum Question {
    /// Checks and opens the mountpoint of a drive.
    Prepare { drive: String, expected: ExpectedMount },
    /// Makes a mount that no path leads to yet, and passes its device.
    Open,
    /// Makes the mount visible.
    Attach,
    /// The present entry of the mount table.
    Current,
    /// Requests the attributes of the root from the daemon, through the kernel.
    Probe,
    /// Unmounts lazily; with `only_dead`, only if the kernel has ended the connection of the mount.
    Detach { only_dead: bool },
    /// See [`crate::vfs::ProcessInspector`].
    DiesOfSignal { tid: u32 },
    /// See [`crate::vfs::ProcessInspector`].
    HoldsOpen { tgid: u32, ino: u64 },
}

/// The answer to the question of the same name.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The path without links.
    Prepared {
        #[serde(with = "path_bytes")]
        path: PathBuf,
    },
    /// The device comes with the message.
    Opened,
    Attached(Mount),
    Current(Option<Mount>),
    /// The errno of a failure.
    Probed(Option<i32>),
    /// Whether it was unmounted.
    Detached(bool),
    /// `None` is unknown.
    Fact(Option<bool>),
    Refused(Refusal),
}

/// A path in JSON, which need not be UTF-8.
pub(super) mod path_bytes {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Vec::deserialize(deserializer).map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
    }
}

/// An error of the broker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    kind: ErrorKind,
    detail: String,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { kind: error.kind(), detail: error.to_string() }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.kind, refusal.detail)
    }
}

/// A message with the id of its question.
#[derive(Debug, Serialize, Deserialize)]
pub struct Message<T> {
    pub id: u64,
    pub body: T,
}

/// Sends one message, with a descriptor if there is one.
pub fn send(
    socket: BorrowedFd<'_>,
    message: &Message<impl Serialize>,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptors) = &descriptors {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(socket, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for one message; `None` at the end of the connection.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(Message<T>, Option<OwnedFd>)>> {
    let mut text = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    let bytes = match received {
        Ok(received) => received.bytes,
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(e) => return Err(e.into()),
    };
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if bytes == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&text[..bytes])?, descriptor)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn message_carries_a_descriptor() {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let file = tempfile::tempfile().unwrap();
        send(one.as_fd(), &Message { id: 7, body: Answer::Opened }, Some(file.as_fd())).unwrap();
        send(one.as_fd(), &Message { id: 8, body: Answer::Fact(None) }, None).unwrap();
        drop(one);
        let (message, descriptor) = receive::<Answer>(other.as_fd()).unwrap().unwrap();
        assert!(message.id == 7 && matches!(message.body, Answer::Opened));
        let same = rustix::fs::fstat(&file).unwrap().st_ino;
        assert_eq!(rustix::fs::fstat(descriptor.unwrap()).unwrap().st_ino, same);
        let (message, descriptor) = receive::<Answer>(other.as_fd()).unwrap().unwrap();
        assert!(message.id == 8 && matches!(message.body, Answer::Fact(None)) && descriptor.is_none());
        assert!(receive::<Answer>(other.as_fd()).unwrap().is_none());
    }

    #[test]
    fn path_need_not_be_utf8() {
        use std::os::unix::ffi::OsStringExt as _;
        let path = PathBuf::from(std::ffi::OsString::from_vec(b"/m/\xff".to_vec()));
        let text = serde_json::to_string(&Answer::Prepared { path: path.clone() }).unwrap();
        let Ok(Answer::Prepared { path: same }) = serde_json::from_str(&text) else { panic!("{text}") };
        assert_eq!(same, path);
    }

    #[test]
    fn refusal_keeps_kind_and_text() {
        let refusal = Refusal::from(Error::new(ErrorKind::NotEmpty, "not empty"));
        let text = serde_json::to_string(&Answer::Refused(refusal)).unwrap();
        let Ok(Answer::Refused(refusal)) = serde_json::from_str(&text) else { panic!("{text}") };
        let error = Error::from(refusal);
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotEmpty, "not empty"));
    }
}
