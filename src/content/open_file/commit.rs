//! The commit of an open file: its beginning, and its end.

use std::sync::Arc;

use tokio::sync::watch;

use super::content::{CommitWatch, CommittingContent, Content, OpenFileState, Unsaved};
use super::file::OpenFile;
use crate::content::commit::{Commit, CommitOutcome, CommitSource};
use crate::content::commit_target::CommitTarget;
use crate::content::part::too_sparse;
use crate::content::reader::ReadTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::status::Transfer;

/// Largest content that stays in memory after its commit, so that a handle may resume the stream, in bytes.
/// Also less than a part: the resumed stream must have it in its filling part.
const RESUME_BYTES_MAX: u64 = 256 << 10;

/// The next step of a commit.
#[derive(Debug)]
pub enum CommitStep {
    /// The drive has everything.
    Clean,
    /// The content may not be committed now.
    Withheld,
    /// The stream must be back-filled first: [`OpenFile::next_backfill`].
    Backfill,
    /// A commit is running: wait for it.
    Join(CommitWatch),
    /// A change on the local disk is running: wait for [`OpenFile::state_changed`].
    AwaitDisk,
    /// Run this commit, then report to the guard.
    Run(Box<Commit>, CommitGuard),
}

impl OpenFile {
    /// Begins a commit, if `may_commit` allows it. Returns the next step.
    pub fn begin_commit(
        self: &Arc<Self>,
        may_commit: impl FnOnce(&Unsaved) -> bool,
        resolve_target: impl FnOnce() -> Option<CommitTarget>,
    ) -> Result<CommitStep> {
        let mut state = self.lock();
        match &state.content {
            Content::Clean { .. } | Content::Local(_) => return Ok(CommitStep::Clean),
            Content::Failed { error, .. } => return Err(error.clone()),
            Content::Committing { outcome, .. } => return Ok(CommitStep::Join(outcome.clone())),
            Content::New | Content::Streaming { .. } | Content::Staged { .. } => {}
        }
        if self.is_unlinked() {
            return Ok(CommitStep::Clean);
        }
        if !may_commit(&Unsaved(&state)) {
            return Ok(CommitStep::Withheld);
        }
        if state.is_disk_busy {
            return Ok(CommitStep::AwaitDisk);
        }
        if let Content::Streaming { stream, .. } = &state.content
            && stream.next_backfill(u64::MAX).is_some()
        {
            let checked = stream.in_flight().check();
            if let Err(error) = checked {
                // Under the same lock: a stream that starts later has not failed.
                state.fail(&error);
                drop(state);
                self.state_changed.notify_waiters();
                return Err(error);
            }
            return Ok(CommitStep::Backfill);
        }
        self.check_zero_fill(&state.content)?;
        let deleted = || Error::new(ErrorKind::NotFound, "the file was deleted while it was being written");
        let target = resolve_target().ok_or_else(deleted)?;
        let target = CommitTarget { mtime: Some(state.mtime), ..target };
        let (report, outcome) = watch::channel(None);
        let mut location = Some((target.parent.clone(), target.name.clone()));
        let (commit, content, bytes, base) = match std::mem::replace(&mut state.content, Content::New) {
            Content::Staged { staged, basis } => {
                let base = basis.into_base();
                let transfer = self.progress.begin(self.ino(), &state.name);
                let bytes = staged.size();
                let commit = Commit {
                    context: self.context.clone(),
                    in_flight: Arc::default(),
                    tee: None,
                    transfer,
                    target,
                    base: base.clone(),
                    source: CommitSource::Staged(staged.clone()),
                };
                (commit, CommittingContent::Staged(staged), bytes, base)
            }
            other => {
                let (stream, base) = match other {
                    Content::Streaming { stream, basis } => (stream, basis.into_base()),
                    // An empty file is committed too.
                    _ => (self.new_stream(&state.name), None),
                };
                let bytes = stream.size();
                location = stream.session_location().or(location);
                let commit = stream.into_commit(target, base.clone());
                let content = CommittingContent::Stream(commit.in_flight().clone(), commit.tee.clone());
                (commit, content, bytes, base)
            }
        };
        self.set_commit_location(location);
        let transfer = commit.transfer.clone();
        state.content = Content::Committing { content, bytes, base, outcome, transfer: transfer.clone() };
        let guard = CommitGuard { file: self.clone(), report, transfer, is_reported: false };
        Ok(CommitStep::Run(Box::new(commit), guard))
    }

    /// Refuses content with too many bytes that no program wrote. The content stays: a program can still fill
    /// the holes.
    fn check_zero_fill(&self, content: &Content) -> Result<()> {
        let zeros = match content {
            Content::Streaming { stream, .. } => stream.zero_bytes(),
            Content::Staged { staged, .. } => staged.zero_bytes(),
            Content::New
            | Content::Clean { .. }
            | Content::Committing { .. }
            | Content::Failed { .. }
            | Content::Local(_) => 0,
        };
        let max = self.context.zero_fill_max;
        if zeros > max { Err(too_sparse(zeros, max)) } else { Ok(()) }
    }

    /// Marks the content as failed. For failures before a commit has begun.
    pub fn fail(&self, error: &Error) {
        self.lock().fail(error);
        self.state_changed.notify_waiters();
    }

    fn end_commit(&self, result: &Result<CommitOutcome>) {
        let mut state = self.lock();
        let Content::Committing { content, base, .. } = &state.content else {
            return;
        };
        self.set_commit_location(None);
        state.content = match result {
            Ok(outcome) => {
                let new = outcome.meta.clone();
                let bytes_max = RESUME_BYTES_MAX.min(self.context.part_size.get() - 1);
                let retained = content.retained(new.size, bytes_max);
                let cached_files = &self.context.cached_files;
                drop(base.as_ref().and_then(|old| cached_files.remove(&ReadTarget::of(old))));
                // With a disabled quota, a promoted file is staged within the local quota. It is not cached.
                let is_cached = retained.is_none() && !self.context.quota.is_disabled();
                if let Some(staged) = content.staged_file(new.size).filter(|_| is_cached) {
                    cached_files.insert(ReadTarget::of(&new), staged);
                }
                Content::Clean { base: new, retained }
            }
            Err(error) => Content::Failed { error: error.clone(), base: base.clone() },
        };
        if let (Err(_), Content::Failed { base: Some(base), .. }) = (result, &state.content) {
            state.mtime = base.mtime;
        }
        state.changed_by.clear();
        drop(state);
        self.state_changed.notify_waiters();
    }

    /// Ends the commit of a file that was unlinked since its start. Open handles continue on the local
    /// content, if there is any.
    fn abandon_commit(&self) {
        let mut state = self.lock();
        let Content::Committing { content, bytes, base, .. } = &state.content else { return };
        let staged = match content {
            CommittingContent::Staged(staged) => Some(staged.clone()),
            CommittingContent::Stream(..) => content.staged_file(*bytes),
        };
        let base = base.clone();
        state.content = if let Some(staged) = staged {
            Content::Staged { staged, basis: base.into() }
        } else {
            let error = Error::new(ErrorKind::NotFound, "the file was deleted during its commit");
            Content::Failed { error, base }
        };
        self.set_commit_location(None);
        drop(state);
        self.state_changed.notify_waiters();
    }
}

impl OpenFileState {
    fn fail(&mut self, error: &Error) {
        if let Content::Streaming { stream, .. } = &self.content {
            stream.transfer().failed(error);
        }
        let base = self.content.take_basis().into_base();
        self.content = Content::Failed { error: error.clone(), base };
        self.changed_by.clear();
    }
}

/// Reports the end of a commit to the file and to the waiters. Dropped without a report, it reports a
/// failure.
#[derive(Debug)]
pub struct CommitGuard {
    file: Arc<OpenFile>,
    report: watch::Sender<Option<Result<()>>>,
    transfer: Arc<Transfer>,
    is_reported: bool,
}

impl CommitGuard {
    /// A receiver of the outcome, to wait for.
    pub fn outcome(&self) -> CommitWatch {
        self.report.subscribe()
    }

    /// Reports the outcome.
    pub fn finish(mut self, result: &Result<CommitOutcome>) {
        self.report_result(result);
    }

    /// Reports that the file was unlinked: there is nothing to commit.
    pub fn abandon(mut self) {
        self.is_reported = true;
        self.file.abandon_commit();
        self.report.send_replace(Some(Ok(())));
    }

    fn report_result(&mut self, result: &Result<CommitOutcome>) {
        self.is_reported = true;
        match result {
            Ok(outcome) => self.transfer.committed(outcome.meta.size, outcome.method),
            Err(error) => self.transfer.failed(error),
        }
        self.file.end_commit(result);
        self.report.send_replace(Some(result.as_ref().map(|_| ()).map_err(Clone::clone)));
    }
}

impl Drop for CommitGuard {
    fn drop(&mut self) {
        if !self.is_reported {
            let aborted = Error::new(ErrorKind::Cancelled, "the commit was aborted");
            self.report_result(&Err(aborted));
        }
    }
}
