//! How a file looks to somebody who asks what is not on the drive yet.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Content, Inner, OpenFile};
use crate::content::flow::Flow;
use crate::error::Error;
use crate::status::{Transfer, TransferState, TransferView};

/// Where a file is on its way to the drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// A program may write more; what it writes is sent meanwhile.
    Writing,
    /// A program writes here and there; it is sent when it is closed.
    Staged,
    /// Everything is written; the rest and the commit are on their way.
    Committing,
    /// What was written is lost.
    Failed,
    /// The drive has it as it is here, or it was deleted.
    Saved,
    /// It stays on this machine, because of its name.
    Local,
    /// A word of another version: only who asks a mount meets it.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Stage {
    /// In one word, the same in all places.
    pub fn name(self) -> &'static str {
        match self {
            Self::Writing => "writing",
            Self::Staged => "staged",
            Self::Committing => "committing",
            Self::Failed => "failed",
            Self::Saved => "saved",
            Self::Local => "local",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it is on its way, or was and got lost: what somebody has to be told.
    pub fn is_unsaved(self) -> bool {
        !matches!(self, Self::Saved | Self::Local)
    }
}

/// A file at one moment.
#[derive(Clone, Debug)]
pub struct Sight {
    /// Where it is.
    pub stage: Stage,
    /// The path that it was given last.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its transfer, if it has one by now.
    pub transfer: Option<TransferView>,
    /// Why it failed.
    pub error: Option<Error>,
}

impl Sight {
    /// One that is seen by its transfer alone.
    pub fn of_transfer(view: TransferView) -> Self {
        let stage = match view.state {
            TransferState::Writing => Stage::Writing,
            TransferState::Committing => Stage::Committing,
        };
        // A local copy was never written to its transfer.
        let bytes = view.bytes_written.max(view.bytes_acked + view.bytes_left);
        let name = view.name.to_string();
        Self { stage, name, bytes, transfer: Some(view), error: None }
    }
}

/// What is seen of a content. Looking does not wait for its lock, which may be held for the local disk.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    stage: Stage,
    name: Arc<str>,
    bytes: u64,
    flow: Option<Arc<Flow>>,
    transfer: Option<Arc<Transfer>>,
    error: Option<Error>,
}

impl Inner {
    pub(super) fn seen(&self) -> Seen {
        let (stage, flow, transfer, error) = match &self.content {
            Content::Failed { error, .. } => (Stage::Failed, None, None, Some(error)),
            Content::Clean { .. } => (Stage::Saved, None, None, None),
            Content::Local(_) => (Stage::Local, None, None, None),
            Content::New => (Stage::Writing, None, None, None),
            Content::Staged { .. } => (Stage::Staged, None, None, None),
            Content::Streaming { live, .. } => {
                (Stage::Writing, Some(live.flow()), Some(live.transfer()), None)
            }
            Content::Committing { transfer, .. } => (Stage::Committing, None, Some(transfer), None),
        };
        let (flow, transfer, error) = (flow.cloned(), transfer.cloned(), error.cloned());
        Seen { stage, name: self.name.clone(), bytes: self.content.bytes(), flow, transfer, error }
    }
}

/// A content that is locked. Let go of, it is seen as it is then.
pub(super) struct Locked<'a> {
    pub(super) inner: MutexGuard<'a, Inner>,
    pub(super) seen: &'a Mutex<Seen>,
    pub(super) is_changed: bool,
}

impl Deref for Locked<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        self.is_changed = true;
        &mut self.inner
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.is_changed {
            let new = self.inner.seen();
            let old = std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), new);
            // Without that lock: a transfer may end with it.
            drop(old);
        }
    }
}

impl OpenFile {
    /// How it looks now. A deleted file has nothing to save.
    pub fn sight(&self) -> Sight {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let error = seen.error.or_else(|| seen.flow.and_then(|flow| flow.check().err()));
        let stage = match (&error, seen.stage) {
            _ if self.is_orphan() => Stage::Saved,
            (Some(_), _) => Stage::Failed,
            (None, stage) => stage,
        };
        let transfer = seen.transfer.map(|transfer| transfer.look());
        Sight { stage, name: seen.name.to_string(), bytes: seen.bytes, transfer, error }
    }
}
