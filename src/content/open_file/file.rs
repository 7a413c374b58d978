//! One open file: its state, its flags, and the changes that the tree has reported.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::content::{CommitWatch, CommittingContent, Content, Locked, OpenFileState, Writer};
use super::status::FileStatus;
use crate::clock;
use crate::content::in_flight_parts::InFlightParts;
use crate::content::reader::ReadTarget;
use crate::content::streaming::{Streaming, Wait};
use crate::content::upload_context::UploadContext;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::status::{Progress, Transfer};

/// Not a user id.
const NO_USER: u32 = u32::MAX;

/// A file with open handles or unsaved content.
#[derive(Debug)]
pub struct OpenFile {
    ino: Ino,
    pub(super) context: Arc<UploadContext>,
    pub(super) progress: Arc<Progress>,
    /// Locked before the tree, before tees and staged files, and before the leaf locks of the buffer pool, the
    /// limiter and the parts in flight. Never held across an await or over I/O: observers take it.
    state: Mutex<OpenFileState>,
    /// The file that this was last cloned from. The clone may not depend on it any more. A leaf lock.
    cloned_from: Mutex<Option<FileId>>,
    /// Parent and name under which a running commit may create the file. A leaf lock.
    commit_location: Mutex<Option<(FileId, String)>>,
    is_unlinked: AtomicBool,
    /// Whether a handle can write.
    has_writers: AtomicBool,
    /// The last user who opened it for writing. [`NO_USER`] before.
    user: AtomicU32,
    pub(super) state_changed: Notify,
}

impl OpenFile {
    /// A file with the content of `base`; a new empty one without a base.
    pub fn new(
        ino: Ino,
        context: Arc<UploadContext>,
        progress: Arc<Progress>,
        name: &str,
        base: Option<FileMeta>,
    ) -> Arc<Self> {
        let mtime = base.as_ref().map_or_else(clock::now, |base| base.mtime);
        let content = base.map_or(Content::New, |base| Content::Clean { base, retained: None });
        let state =
            OpenFileState { content, name: name.into(), mtime, is_disk_busy: false, changed_by: Vec::new() };
        Arc::new(Self {
            ino,
            context,
            progress,
            state: Mutex::new(state),
            cloned_from: Mutex::default(),
            commit_location: Mutex::default(),
            is_unlinked: AtomicBool::new(false),
            has_writers: AtomicBool::new(true),
            user: AtomicU32::new(NO_USER),
            state_changed: Notify::new(),
        })
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        Locked::new(&self.state, self.ino, &self.context.resolver)
    }

    pub(super) fn new_stream(&self, name: &str) -> Streaming {
        Streaming::new(self.context.clone(), self.progress.begin(self.ino, name))
    }

    /// Records who opens it for writing: its local files count as theirs.
    pub fn set_user(&self, user: u32) {
        self.user.store(user, Ordering::Relaxed);
    }

    pub(super) fn user(&self) -> Option<u32> {
        Some(self.user.load(Ordering::Relaxed)).filter(|user| *user != NO_USER)
    }

    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Size in bytes, including unsaved content.
    pub fn size(&self) -> u64 {
        self.lock().content.bytes()
    }

    /// Modification time, including unsaved content.
    pub fn mtime(&self) -> SystemTime {
        self.lock().mtime
    }

    /// Sets the modification time. Returns whether a later commit will store it.
    pub fn set_mtime(&self, mtime: SystemTime) -> bool {
        let mut state = self.lock();
        state.mtime = mtime;
        match &state.content {
            Content::New | Content::Staged { .. } | Content::Local(_) => true,
            Content::Streaming { stream, .. } => !stream.has_sent_parts(),
            Content::Clean { .. } | Content::Committing { .. } | Content::Failed { .. } => false,
        }
    }

    /// Whether the content here supersedes that of the drive.
    pub fn has_local_content(&self) -> bool {
        !matches!(self.lock().content, Content::Clean { .. } | Content::Failed { .. })
    }

    /// The sticky failure that every writer gets, if any.
    pub fn check(&self) -> Result<()> {
        match &self.lock().content {
            Content::Failed { error, .. } => Err(error.clone()),
            Content::Streaming { stream, .. } => stream.in_flight().check(),
            Content::New
            | Content::Clean { .. }
            | Content::Staged { .. }
            | Content::Committing { .. }
            | Content::Local(_) => Ok(()),
        }
    }

    /// The base revision, if the file has one.
    pub fn base(&self) -> Option<FileMeta> {
        match &self.lock().content {
            Content::New | Content::Local(_) => None,
            Content::Clean { base, .. } => Some(base.clone()),
            Content::Streaming { basis, .. } | Content::Staged { basis, .. } => basis.base().cloned(),
            Content::Committing { base, .. } | Content::Failed { base, .. } => base.clone(),
        }
    }

    /// The revision of a clean file, if `meta` is another revision.
    pub fn stale_base(&self, meta: &FileMeta) -> Option<FileMeta> {
        match &self.lock().content {
            Content::Clean { base, .. } if base.revision.is_some() && meta.revision.is_some() => {
                (base.revision != meta.revision).then(|| base.clone())
            }
            _ => None,
        }
    }

    /// The content of `other` that this clone of it still has to read, if any.
    pub fn pending_clone_of(&self, other: &FileId) -> Option<ReadTarget> {
        if self.cloned_from.lock().as_ref() != Some(other) {
            return None;
        }
        let staged = match &self.lock().content {
            Content::Staged { staged, .. }
            | Content::Committing { content: CommittingContent::Staged(staged), .. } => staged.clone(),
            _ => return None,
        };
        staged.next_backfill(1).map(|(source, ..)| source).filter(|source| source.file_id == *other)
    }

    pub(super) fn set_cloned_from(&self, other: FileId) {
        *self.cloned_from.lock() = Some(other);
    }

    /// Sets parent and name of the running commit; `None` at its end.
    pub fn set_commit_location(&self, location: Option<(FileId, String)>) {
        *self.commit_location.lock() = location;
    }

    /// Whether a running commit may create the file under this parent and name.
    pub fn may_commit_to(&self, parent: &FileId, name: &str) -> bool {
        let location = self.commit_location.lock();
        location.as_ref().is_some_and(|(dir, committed)| dir == parent && committed == name)
    }

    /// Marks the file as deleted: nothing of it is committed from now on.
    pub fn mark_unlinked(&self) {
        self.is_unlinked.store(true, Ordering::Relaxed);
    }

    pub fn is_unlinked(&self) -> bool {
        self.is_unlinked.load(Ordering::Relaxed)
    }

    /// Sets whether a handle can write. The last writer ends before it looks for content to commit.
    pub fn set_has_writers(&self, has_writers: bool) {
        self.has_writers.store(has_writers, Ordering::Relaxed);
    }

    /// Refuses a change of saved content without writers, under the lock of the content: none would commit it.
    pub(super) fn check_has_committer(&self, content: &Content) -> Result<()> {
        let is_saved = matches!(content, Content::Clean { .. } | Content::Failed { .. });
        if is_saved && !self.has_writers.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::BadHandle, "the file was closed before the change"));
        }
        Ok(())
    }

    /// Sets the path below the mount, for progress lines.
    pub fn set_path(&self, path: &str) {
        let mut state = self.lock();
        state.name = path.into();
        match &state.content {
            Content::Streaming { stream, .. } => stream.transfer().renamed(path),
            Content::Committing { transfer, .. } => transfer.renamed(path),
            Content::New
            | Content::Clean { .. }
            | Content::Staged { .. }
            | Content::Failed { .. }
            | Content::Local(_) => {}
        }
    }

    /// Sets another base: the file took over the object of another file.
    pub fn set_base(&self, meta: &FileMeta) {
        let mut state = self.lock();
        match &mut state.content {
            Content::New | Content::Local(_) => {}
            Content::Clean { base, retained } => {
                if meta.sha1.is_none() || meta.sha1 != base.sha1 || meta.size != base.size {
                    // The content of the drive differs from the retained one.
                    *retained = None;
                } else {
                    self.context.cached_files.rekey(&ReadTarget::of(base), ReadTarget::of(meta));
                }
                *base = meta.clone();
            }
            Content::Streaming { basis, .. } | Content::Staged { basis, .. } => basis.set_base(meta),
            Content::Committing { base, .. } | Content::Failed { base, .. } => *base = Some(meta.clone()),
        }
    }

    /// The commit that is running.
    pub fn running_commit(&self) -> Option<CommitWatch> {
        match &self.lock().content {
            Content::Committing { outcome, .. } => Some(outcome.clone()),
            Content::New
            | Content::Clean { .. }
            | Content::Streaming { .. }
            | Content::Staged { .. }
            | Content::Failed { .. }
            | Content::Local(_) => None,
        }
    }

    /// Records a new file, which must be committed although nothing was written.
    pub fn created_by(&self, writer: Writer) {
        self.lock().note_change(writer);
    }

    /// Whether `writer` changed the content since the last commit.
    pub fn is_changed_by(&self, writer: Writer) -> bool {
        self.lock().changed_by.contains(&writer)
    }

    /// Resolves when the state changes after this call.
    pub fn state_changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.state_changed.notified()
    }

    /// The reason why a writer should wait before it writes more.
    pub fn wait_for_room(&self) -> Option<Wait> {
        match &self.lock().content {
            Content::Streaming { stream, .. } => stream.wait_for_room(),
            _ => None,
        }
    }

    /// The upload of a stream, whose progress a writer waits for: its parts in flight, and its transfer.
    pub fn upload(&self) -> Option<(Arc<InFlightParts>, Arc<Transfer>)> {
        match &self.lock().content {
            Content::Streaming { stream, .. } => {
                Some((stream.in_flight().clone(), stream.transfer().clone()))
            }
            Content::Committing { content: CommittingContent::Stream(in_flight, _), transfer, .. } => {
                Some((in_flight.clone(), transfer.clone()))
            }
            Content::New
            | Content::Clean { .. }
            | Content::Staged { .. }
            | Content::Committing { content: CommittingContent::Staged(_), .. }
            | Content::Failed { .. }
            | Content::Local(_) => None,
        }
    }

    /// The range that must be back-filled before offset `to` can be written: base, offset, length.
    pub fn next_backfill(&self, to: u64) -> Option<(ReadTarget, u64, u64)> {
        match &self.lock().content {
            Content::Streaming { stream, .. } => stream.next_backfill(to),
            _ => None,
        }
    }

    /// Drops content that is retained only for writers. Called when the last writer has closed.
    pub fn writers_closed(&self) {
        if let Content::Clean { retained, .. } = &mut self.lock().content {
            *retained = None;
        }
    }

    /// The status for an observer.
    pub fn status(&self) -> FileStatus {
        self.lock().status(self.is_unlinked())
    }
}
