//! How a file looks to somebody who asks what is not on the drive yet.

use serde::{Deserialize, Serialize};

use super::{Content, OpenFile};
use crate::error::Error;
use crate::status::{TransferState, TransferView};

/// Where a file is on its way to the drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
        let (name, bytes) = (view.name.to_string(), view.bytes_written);
        Self { stage, name, bytes, transfer: Some(view), error: None }
    }
}

impl OpenFile {
    /// How it looks now. A deleted file has nothing to save.
    pub fn sight(&self) -> Sight {
        let is_orphan = self.is_orphan();
        let inner = self.lock();
        let bytes = inner.content.bytes();
        let (stage, transfer, error) = match &inner.content {
            Content::Failed { error, .. } => (Stage::Failed, None, Some(error.clone())),
            Content::Clean { .. } => (Stage::Saved, None, None),
            Content::Local(_) => (Stage::Local, None, None),
            Content::New => (Stage::Writing, None, None),
            Content::Staged { .. } => (Stage::Staged, None, None),
            Content::Streaming { live, .. } => {
                let error = live.flow().check().err();
                let stage = if error.is_some() { Stage::Failed } else { Stage::Writing };
                (stage, Some(live.transfer().look()), error)
            }
            Content::Committing { transfer, .. } => (Stage::Committing, Some(transfer.look()), None),
        };
        let stage = if is_orphan { Stage::Saved } else { stage };
        Sight { stage, name: inner.name.clone(), bytes, transfer, error }
    }
}
