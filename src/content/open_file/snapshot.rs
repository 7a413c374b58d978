//! The state of a file for observers: status, metrics, extended attributes.
//!
//! The lock of a file may be held while the local disk works. So each change stores a snapshot, which
//! observers read without that lock.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use super::content::{Content, OpenFileState};
use crate::content::commit_target::TargetResolver;
use crate::content::in_flight_parts::InFlightParts;
use crate::error::Error;
use crate::ids::Ino;
use crate::status::{Transfer, TransferState, TransferView};

/// The stage of a file on its way to the drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// New, or a stream: parts are sent while a program writes.
    Writing,
    /// Staged: sent at the commit.
    Staged,
    /// A commit is running.
    Committing,
    /// The last commit or upload failed.
    Failed,
    /// Equal to the drive, or deleted.
    Saved,
    /// Local-only because of its name: never uploaded.
    Local,
}

impl Stage {
    /// The word in `user.pdsfs.state`, the control API and the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Writing => "writing",
            Self::Staged => "staged",
            Self::Committing => "committing",
            Self::Failed => "failed",
            Self::Saved => "saved",
            Self::Local => "local",
        }
    }

    /// Whether the drive should have the content and does not. Includes failed files.
    pub fn is_unsaved(self) -> bool {
        !matches!(self, Self::Saved | Self::Local)
    }
}

/// One file for an observer.
#[derive(Clone, Debug)]
pub struct FileStatus {
    pub stage: Stage,
    /// The last path below the mount.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    pub transfer: Option<TransferView>,
    pub error: Option<Error>,
}

impl FileStatus {
    /// The status of a closed file, of which only the transfer is left.
    pub fn of_transfer(view: TransferView) -> Self {
        let stage = match view.state {
            TransferState::Writing => Stage::Writing,
            TransferState::Committing => Stage::Committing,
        };
        // The transfer of a staged file counts no written bytes.
        let bytes = view.bytes_written.max(view.bytes_acked + view.bytes_left);
        let name = view.name.to_string();
        Self { stage, name, bytes, transfer: Some(view), error: None }
    }
}

/// The stored state of a file.
#[derive(Clone, Debug)]
pub(super) struct FileSnapshot {
    stage: Stage,
    name: Arc<str>,
    bytes: u64,
    in_flight: Option<Arc<InFlightParts>>,
    transfer: Option<Arc<Transfer>>,
    error: Option<Error>,
}

impl FileSnapshot {
    pub(super) fn of(state: &OpenFileState) -> Self {
        let (stage, in_flight, transfer, error) = match &state.content {
            Content::Failed { error, .. } => (Stage::Failed, None, None, Some(error)),
            Content::Clean { .. } => (Stage::Saved, None, None, None),
            Content::Local(_) => (Stage::Local, None, None, None),
            Content::New => (Stage::Writing, None, None, None),
            Content::Staged { .. } => (Stage::Staged, None, None, None),
            Content::Streaming { stream, .. } => {
                (Stage::Writing, Some(stream.in_flight()), Some(stream.transfer()), None)
            }
            Content::Committing { transfer, .. } => (Stage::Committing, None, Some(transfer), None),
        };
        let (in_flight, transfer, error) = (in_flight.cloned(), transfer.cloned(), error.cloned());
        let (name, bytes) = (state.name.clone(), state.content.bytes());
        Self { stage, name, bytes, in_flight, transfer, error }
    }

    /// Whether a commit is needed in this state, and was not in `before`.
    fn is_newly_dirty(&self, before: &Self) -> bool {
        matches!(before.stage, Stage::Saved | Stage::Failed)
            && matches!(self.stage, Stage::Writing | Stage::Staged)
    }

    /// The status now. A deleted file has nothing to save.
    pub(super) fn status(self, is_unlinked: bool) -> FileStatus {
        let error = self.error.or_else(|| self.in_flight.and_then(|in_flight| in_flight.check().err()));
        let stage = match (&error, self.stage) {
            _ if is_unlinked => Stage::Saved,
            (Some(_), _) => Stage::Failed,
            (None, stage) => stage,
        };
        let transfer = self.transfer.map(|transfer| transfer.snapshot());
        FileStatus { stage, name: self.name.to_string(), bytes: self.bytes, transfer, error }
    }
}

/// The locked state. When a changed state is unlocked, its snapshot is stored, and a file that became dirty
/// is marked as unsaved in the tree. Still under the lock: a commit cannot begin and end in between.
pub(super) struct Locked<'a> {
    state: MutexGuard<'a, OpenFileState>,
    snapshot: &'a Mutex<FileSnapshot>,
    ino: Ino,
    resolver: &'a Weak<dyn TargetResolver>,
    is_changed: bool,
}

impl<'a> Locked<'a> {
    pub(super) fn new(
        state: &'a Mutex<OpenFileState>,
        snapshot: &'a Mutex<FileSnapshot>,
        (ino, resolver): (Ino, &'a Weak<dyn TargetResolver>),
    ) -> Self {
        Self { state: state.lock(), snapshot, ino, resolver, is_changed: false }
    }
}

impl Deref for Locked<'_> {
    type Target = OpenFileState;

    fn deref(&self) -> &OpenFileState {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut OpenFileState {
        self.is_changed = true;
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.is_changed {
            let new = FileSnapshot::of(&self.state);
            let is_newly_dirty = new.is_newly_dirty(&self.snapshot.lock());
            let old = std::mem::replace(&mut *self.snapshot.lock(), new);
            // Dropped without that lock: a transfer may end with it.
            drop(old);
            if is_newly_dirty && let Some(resolver) = self.resolver.upgrade() {
                resolver.mark_unsaved(self.ino);
            }
        }
    }
}
