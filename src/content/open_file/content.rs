//! The states of a file's content. The picture is in the documentation of `content`.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::clock;
use crate::content::commit_target::TargetResolver;
use crate::content::in_flight_parts::InFlightParts;
use crate::content::local_content::LocalContent;
use crate::content::staged_file::StagedFile;
use crate::content::streaming::{Streaming, read_sent};
use crate::content::tee::Tee;
use crate::error::{Error, Result};
use crate::ids::Ino;
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
    /// A truncation by path. No process that dies takes it back. It completes no content of other writers.
    NoHandle,
}

/// All that the lock of an open file protects.
#[derive(Debug)]
pub(super) struct OpenFileState {
    pub(super) content: Content,
    /// Path below the mount, for progress lines.
    pub(super) name: Arc<str>,
    pub(super) mtime: SystemTime,
    /// A change on the local disk is running: see [`DiskTurn`].
    ///
    /// [`DiskTurn`]: super::disk::DiskTurn
    pub(super) is_disk_busy: bool,
    /// The writers of the unsaved content, since it was last empty.
    pub(super) changed_by: Vec<Writer>,
}

impl OpenFileState {
    /// Records a change of the content, under the lock under which it is made.
    pub(super) fn note_change(&mut self, writer: Writer) {
        self.mtime = clock::now();
        self.note_writer(writer);
    }

    /// Records a change that sets no time.
    pub(super) fn note_writer(&mut self, writer: Writer) {
        if self.content.bytes() == 0 {
            // Nothing of the other writers is left.
            self.changed_by.clear();
        }
        // A truncation by path leaves the content of other writers to them.
        let is_noted = match writer {
            Writer::NoHandle => !self.changed_by.is_empty(),
            Writer::Process(_) | Writer::Handle(_) => self.changed_by.contains(&writer),
        };
        if !is_noted {
            self.changed_by.push(writer);
        }
    }
}

/// Unsaved content that a commit is about to save, under the lock of its file.
#[derive(Debug)]
pub struct Unsaved<'a>(pub(super) &'a OpenFileState);

impl Unsaved<'_> {
    /// Whether `writer` changed the content since the last commit.
    pub fn is_changed_by(&self, writer: Writer) -> bool {
        self.0.changed_by.contains(&writer)
    }

    /// Whether a program that asks for a commit wrote it. `None`: a program whose process is not known. The handles
    /// of such programs are not told apart.
    pub fn is_of(&self, program: Option<Writer>) -> bool {
        let changed_by = &self.0.changed_by;
        match program {
            Some(Writer::NoHandle) => self.is_changed_only_by(Writer::NoHandle),
            Some(writer @ Writer::Process(_)) => self.is_changed_by(writer),
            Some(Writer::Handle(_)) | None => {
                program.is_some_and(|writer| self.is_changed_by(writer))
                    || changed_by.iter().all(|writer| matches!(writer, Writer::Handle(_)))
            }
        }
    }

    /// Whether no other writer changed it.
    pub fn is_changed_only_by(&self, writer: Writer) -> bool {
        self.0.changed_by == [writer]
    }

    /// Whether it overwrites a complete revision. `replaces`: a commit of a new file replaces another file.
    pub fn is_overwriting(&self, replaces: bool) -> bool {
        self.0.content.overwrites(replaces)
    }
}

/// The locked state. A file that became dirty is marked as unsaved in the tree when it is unlocked. Still under
/// the lock: a commit cannot begin and end in between.
pub(super) struct Locked<'a> {
    state: MutexGuard<'a, OpenFileState>,
    ino: Ino,
    resolver: &'a Weak<dyn TargetResolver>,
    was_saved: bool,
}

impl<'a> Locked<'a> {
    pub(super) fn new(
        state: &'a Mutex<OpenFileState>,
        ino: Ino,
        resolver: &'a Weak<dyn TargetResolver>,
    ) -> Self {
        let state = state.lock();
        let was_saved = matches!(state.content, Content::Clean { .. } | Content::Failed { .. });
        Self { state, ino, resolver, was_saved }
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
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let is_dirty =
            matches!(self.content, Content::New | Content::Streaming { .. } | Content::Staged { .. });
        if self.was_saved
            && is_dirty
            && let Some(resolver) = self.resolver.upgrade()
        {
            resolver.mark_unsaved(self.ino);
        }
    }
}

impl Content {
    /// Whether this is the content of this staged file.
    pub(super) fn is_staged_as(&self, staged: &Arc<StagedFile>) -> bool {
        match self {
            Self::Staged { staged: now, .. } | Self::Local(LocalContent::Staged(now)) => {
                Arc::ptr_eq(now, staged)
            }
            _ => false,
        }
    }

    /// Whether a range of the base must be back-filled before `offset` can be written.
    pub(super) fn needs_backfill(&self, offset: u64) -> bool {
        matches!(self, Self::Streaming { stream, .. } if stream.next_backfill(offset).is_some())
    }

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
        let mut retained = Vec::with_capacity(bytes as usize);
        for frame in read_sent(in_flight, tee.as_ref(), 0, bytes)? {
            if frame.is_stored() {
                return None;
            }
            let append = |piece: &[u8]| {
                retained.extend_from_slice(piece);
                Ok(())
            };
            frame.visit(append).ok()?;
        }
        Some(retained.into())
    }

    /// A complete staged file of the committed content.
    pub(super) fn staged_file(&self, bytes: u64) -> Option<Arc<StagedFile>> {
        match self {
            Self::Staged(staged) => Some(staged.clone()).filter(|staged| staged.is_complete()),
            Self::Stream(_, tee) => tee.as_ref()?.finished_file(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::commit_target::NoTree;
    use crate::error::ErrorKind;

    /// A commit that began and ended before the mark would leave a saved file marked for ever.
    #[test]
    fn regression_dirty_file_is_marked_under_its_lock() {
        let error = Error::new(ErrorKind::Io, "x");
        let state = OpenFileState {
            content: Content::Failed { error: error.clone(), base: None },
            name: "f".into(),
            mtime: SystemTime::UNIX_EPOCH,
            is_disk_busy: false,
            changed_by: Vec::new(),
        };
        // For each time that the file was marked, whether it was locked.
        let (state, was_locked) = (Arc::new(Mutex::new(state)), Arc::<Mutex<Vec<bool>>>::default());
        let (marked, marks) = (state.clone(), was_locked.clone());
        let tree: Arc<dyn TargetResolver> = Arc::new(NoTree(move || marks.lock().push(marked.is_locked())));
        let resolver = Arc::downgrade(&tree);
        let set = |content| Locked::new(&state, Ino(7), &resolver).content = content;
        set(Content::New);
        assert_eq!(*was_locked.lock(), [true]);
        set(Content::New);
        set(Content::Failed { error, base: None });
        assert_eq!(*was_locked.lock(), [true], "a file that was or is not dirty is marked");
    }
}
