//! The states of a file's content. The picture is in the documentation of `content`.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::watch;

use crate::content::in_flight_parts::InFlightParts;
use crate::content::local_content::LocalContent;
use crate::content::staged_file::StagedFile;
use crate::content::streaming::{Streaming, read_sent};
use crate::content::tee::Tee;
use crate::error::{Error, Result};
use crate::pds::drive::FileMeta;
use crate::status::Transfer;

/// The outcome of a running commit; `None` while it runs.
pub type CommitWatch = watch::Receiver<Option<Result<()>>>;

#[derive(Debug)]
pub(super) enum Content {
    New,
    /// Equal to the drive.
    Clean {
        base: FileMeta,
        /// The whole content in memory, so that a handle may resume the stream. `CachedFiles` may have the
        /// content too.
        retained: Option<Bytes>,
    },
    Streaming {
        stream: Streaming,
        basis: Basis,
    },
    Staged {
        staged: Arc<StagedFile>,
        basis: Basis,
    },
    Committing {
        content: CommittingContent,
        bytes: u64,
        base: Option<FileMeta>,
        outcome: CommitWatch,
        transfer: Arc<Transfer>,
    },
    Failed {
        error: Error,
        base: Option<FileMeta>,
    },
    /// Never uploaded.
    Local(LocalContent),
}

/// The revision on the drive that unsaved content replaces.
#[derive(Clone, Debug)]
pub(super) enum Basis {
    /// The file is new.
    None,
    /// The content was appended or edited, or the revision is empty.
    Edited(FileMeta),
    /// The file was truncated to nothing since. The revision is complete; the content is not before its commit.
    Overwritten(FileMeta),
}

/// The content that readers use during a commit.
#[derive(Debug)]
pub(super) enum CommittingContent {
    Stream(Arc<InFlightParts>, Option<Tee>),
    Staged(Arc<StagedFile>),
}

/// The source of a change of content, as far as commits are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writer {
    /// The process that opened the handle.
    Process(u32),
    /// The number of a handle whose process is unknown.
    Handle(u64),
}

/// All that the lock of an open file protects.
#[derive(Debug)]
pub(super) struct OpenFileState {
    pub(super) content: Content,
    /// Path below the mount, for progress lines.
    pub(super) name: Arc<str>,
    pub(super) mtime: SystemTime,
    /// The writers of changes that no commit has saved.
    pub(super) changed_by: Vec<Writer>,
}

impl OpenFileState {
    pub(super) fn note_change(&mut self, writer: Writer) {
        if !self.changed_by.contains(&writer) {
            self.changed_by.push(writer);
        }
    }
}

impl Content {
    /// Size in bytes.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::New => 0,
            Self::Clean { base, .. } => base.size,
            Self::Streaming { stream, .. } => stream.size(),
            Self::Staged { staged, .. } => staged.size(),
            Self::Committing { bytes, .. } => *bytes,
            Self::Failed { base, .. } => base.as_ref().map_or(0, |base| base.size),
            Self::Local(local) => local.size(),
        }
    }

    /// Takes the basis out of content that the caller replaces next. The transfer of a stream is withdrawn.
    pub(super) fn take_basis(&mut self) -> Basis {
        match std::mem::replace(self, Self::New) {
            Self::New | Self::Local(_) => Basis::None,
            Self::Clean { base, .. } => Basis::Edited(base),
            Self::Streaming { stream, basis } => {
                stream.transfer().withdrawn();
                basis
            }
            Self::Staged { basis, .. } => basis,
            Self::Committing { base, .. } | Self::Failed { base, .. } => base.into(),
        }
    }
}

impl Basis {
    pub(super) fn base(&self) -> Option<&FileMeta> {
        match self {
            Self::None => None,
            Self::Edited(base) | Self::Overwritten(base) => Some(base),
        }
    }

    pub(super) fn into_base(self) -> Option<FileMeta> {
        match self {
            Self::None => None,
            Self::Edited(base) | Self::Overwritten(base) => Some(base),
        }
    }

    /// The basis after a truncation to nothing.
    pub(super) fn truncated(self) -> Self {
        match self {
            Self::Edited(base) if base.size > 0 => Self::Overwritten(base),
            Self::None | Self::Edited(_) | Self::Overwritten(_) => self,
        }
    }

    /// Sets another base: the file took over the object of another file.
    pub(super) fn set_base(&mut self, new: &FileMeta) {
        match self {
            Self::None => *self = Self::Edited(new.clone()),
            Self::Edited(base) | Self::Overwritten(base) => *base = new.clone(),
        }
    }
}

impl From<Option<FileMeta>> for Basis {
    fn from(base: Option<FileMeta>) -> Self {
        base.map_or(Self::None, Self::Edited)
    }
}

impl CommittingContent {
    /// The whole committed content, if it is in memory and at most `bytes_max` long.
    pub(super) fn retained(&self, bytes: u64, bytes_max: u64) -> Option<Bytes> {
        let Self::Stream(in_flight, tee) = self else { return None };
        if bytes > bytes_max {
            return None;
        }
        let retained = read_in_flight(in_flight, tee.as_ref(), 0, bytes as usize).ok();
        retained.filter(|retained| retained.len() as u64 == bytes)
    }

    /// A complete staged file of the committed content.
    pub(super) fn staged_file(&self, bytes: u64) -> Option<Arc<StagedFile>> {
        match self {
            Self::Staged(staged) => Some(staged.clone()).filter(|staged| staged.is_complete()),
            Self::Stream(_, tee) => tee.as_ref()?.finished_file(bytes),
        }
    }
}

/// Reads sent bytes. Fewer than `len` if some of them are no longer on this machine.
pub(super) fn read_in_flight(
    in_flight: &InFlightParts,
    tee: Option<&Tee>,
    offset: u64,
    len: usize,
) -> Result<Bytes> {
    let mut out = vec![0; len];
    let mut done = 0;
    while done < len {
        match read_sent(in_flight, tee, offset + done as u64, &mut out[done..])? {
            0 => break,
            count => done += count,
        }
    }
    out.truncate(done);
    Ok(out.into())
}
