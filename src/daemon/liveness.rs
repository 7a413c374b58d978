//! Checks whether the daemon behind a mount answers.
//!
//! A mount whose daemon hangs blocks every program that looks into it, so a check that must return runs on a
//! thread of its own with a time limit.

use std::io;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::fuse::mount_root::probe;
use crate::fuse::mountinfo::Mount;

/// A mount that takes longer than this to answer counts as alive but hanging.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// [`probe`] on a thread of its own; `None` if there is no answer within [`ANSWER_MAX`].
pub(super) fn probe_with_limit(mount: &Mount) -> Option<io::Result<()>> {
    let (answer_tx, answer) = channel();
    let mount = mount.clone();
    std::thread::spawn(move || answer_tx.send(probe(&mount)).ok());
    answer.recv_timeout(ANSWER_MAX).ok()
}

/// Whether a [`probe`] failed because the daemon is gone.
pub(super) fn is_dead(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted)
}

/// The state of the daemon behind a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Liveness {
    Answers,
    Dead,
    /// No answer within [`ANSWER_MAX`].
    Hangs,
}

impl Liveness {
    pub fn of(mount: &Mount) -> Self {
        match probe_with_limit(mount) {
            None => Self::Hangs,
            Some(Err(e)) if is_dead(&e) => Self::Dead,
            // A refusal is an answer.
            Some(_) => Self::Answers,
        }
    }
}

/// Whether the daemon behind a mount is gone.
pub fn has_died(mount: &Mount) -> bool {
    Liveness::of(mount) == Liveness::Dead
}
