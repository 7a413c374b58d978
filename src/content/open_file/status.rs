//! The state of a file for observers: status, metrics, extended attributes.

use super::content::{Content, OpenFileState};
use crate::error::Error;
use crate::status::{Figures, TransferState, TransferView};

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
        let bytes = view.bytes_written.max(view.figures.size());
        let name = view.name.to_string();
        Self { stage, name, bytes, transfer: Some(view), error: None }
    }
}

impl FileStatus {
    /// The figures of the file. Bytes of its base that must be sent again wait too.
    pub fn figures(&self) -> Figures {
        match self.transfer.as_ref().map(|view| view.figures) {
            Some(figures) => {
                let size = self.bytes.max(figures.size());
                Figures::new(size, figures.sent, figures.is_size_known, figures.rate_bytes_s)
            }
            None => Figures::new(self.bytes, 0, false, 0),
        }
    }
}

impl OpenFileState {
    /// The status now. A deleted file has nothing to save.
    pub(super) fn status(&self, is_unlinked: bool) -> FileStatus {
        let (stage, transfer, error) = match &self.content {
            Content::Failed { error, .. } => (Stage::Failed, None, Some(error.clone())),
            Content::Clean { .. } => (Stage::Saved, None, None),
            Content::Local(_) => (Stage::Local, None, None),
            Content::New => (Stage::Writing, None, None),
            Content::Staged { .. } => (Stage::Staged, None, None),
            Content::Streaming { stream, .. } => {
                (Stage::Writing, Some(stream.transfer()), stream.in_flight().check().err())
            }
            Content::Committing { transfer, .. } => (Stage::Committing, Some(transfer), None),
        };
        let stage = match &error {
            _ if is_unlinked => Stage::Saved,
            Some(_) => Stage::Failed,
            None => stage,
        };
        let transfer = transfer.map(|transfer| transfer.snapshot());
        FileStatus { stage, name: self.name.to_string(), bytes: self.content.bytes(), transfer, error }
    }
}
