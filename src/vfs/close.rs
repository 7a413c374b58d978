//! The ends of handles: flush, fsync, release, and what they commit or give up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Vfs;
use super::callers::{dies_of_signal, is_in_execve, thread_group};
use super::handles::{Access, Handle};
use super::types::{Caller, Fh};
use crate::content::open_file::{OpenFile, Unsaved, Writer};
use crate::content::open_files::CloseOutcome;
use crate::content::reader::ReadTarget;
use crate::error::{Error, ErrorKind, Result};

/// Longest look at the descriptors of a process that closes one. A process may have very many.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Why an unfinished overwrite is given up.
const KILLED: &str = "its program was killed while it wrote";
const NOT_OPENED: &str = "its program did not get the file that it truncated";

impl Vfs {
    /// Handles a closed descriptor. Returns the pending error, if any. Else commits if it was the last
    /// descriptor of the process that opened the file. Bytes of other processes only are left to their
    /// closes, or to the last handle.
    pub async fn flush(&self, fh: Fh, caller: Caller) -> Result<()> {
        let handle = self.handles.get(fh)?;
        if !handle.access.may_commit() {
            return Ok(());
        }
        let (file, ino, writer) = (&handle.file, handle.file.ino(), handle.id.writer());
        file.check()?;
        let has_own_changes = file.is_changed_by(writer);
        if !file.has_local_content() || !has_own_changes && self.files.has_several_writers(ino) {
            return Ok(());
        }
        let (is_killed, is_still_open) = self.look_at_closer(&handle, caller).await?;
        handle.note_close(is_killed);
        // Unknown: commit if something was written. A shell that redirects a command closes a descriptor of
        // the new empty file first; nothing is written through a handle for reading.
        let is_complete = handle.access == Access::ReadNew;
        let is_written = || has_own_changes && (is_complete || file.size() > 0);
        if is_still_open.map_or_else(is_written, |is_open| !is_open) {
            // An overwrite of a killed process: another process may have the handle too, so its RELEASE decides.
            let is_own = |unsaved: &Unsaved| {
                (unsaved.is_changed_by(writer) || !self.files.has_several_writers(ino))
                    && !(is_killed && self.is_overwriting(ino, unsaved))
            };
            self.commit_if(file, is_own).await?;
        }
        Ok(())
    }

    /// Whether the process that closes a descriptor dies of a signal, and whether the process that opened the
    /// handle still has the file open for writing. `None` if that is unknown.
    async fn look_at_closer(&self, handle: &Handle, caller: Caller) -> Result<(bool, Option<bool>)> {
        // Not bounded: without these facts, the overwrite of a killed process could be committed. The look waits for
        // no lock of the process.
        let inspector = self.inspector.get().cloned();
        let look = move || {
            let is_killed = dies_of_signal(caller.tid, inspector.as_deref());
            (is_killed, thread_group(caller.tid), is_in_execve(caller.tid))
        };
        let (is_killed, closer, in_execve) = tokio::task::spawn_blocking(look).await.map_err(look_failed)?;
        let (opener, ino) = (handle.id.opener, handle.file.ino());
        if closer.is_some() && opener.is_some() && closer != opener {
            return Ok((is_killed, Some(true)));
        }
        // `execve` closes descriptors under a lock that the next look would wait for.
        let Some((closer, inspector)) = closer.zip(self.inspector.get().cloned()).filter(|_| !in_execve)
        else {
            return Ok((is_killed, None));
        };
        let look = tokio::task::spawn_blocking(move || inspector.holds_open(closer, ino));
        match tokio::time::timeout(LOOK_MAX, look).await {
            Ok(looked) => Ok((is_killed, looked.map_err(look_failed)?)),
            Err(_) => Ok((is_killed, None)),
        }
    }

    /// Commits content and attributes of the file, through any handle.
    pub async fn fsync(&self, fh: Fh, caller: Caller) -> Result<()> {
        let handle = self.handles.get(fh)?;
        let file = &handle.file;
        self.commit_for(&[Some(handle.id.writer()), process_of(caller)], file).await?;
        if let Some(base) = file.base() {
            self.pending.flush_file(&self.drive, &self.tree, &base.file_id).await?;
        }
        Ok(())
    }

    /// Commits a file because `writers` need it; `None` is a process that is not known. Only a process that wrote
    /// may publish an overwrite that is not finished: for others this fails with `Busy`, and the old content stays.
    pub(super) async fn commit_for(&self, writers: &[Option<Writer>], file: &Arc<OpenFile>) -> Result<()> {
        let ino = file.ino();
        // A truncation by path counts as a writer of the file until its end.
        let is_last = || writers.contains(&Some(Writer::NoHandle)) && !self.files.has_several_writers(ino);
        let may_publish = |unsaved: &Unsaved| {
            writers.iter().any(|writer| unsaved.is_of(*writer)) || is_last() || self.is_finished(ino, unsaved)
        };
        if self.commit_if(file, may_publish).await? {
            return Ok(());
        }
        let detail = "another program is overwriting the file; the old content stays until it is done";
        Err(Error::new(ErrorKind::Busy, detail))
    }

    /// The last descriptor of a handle is closed. Commits content that no FLUSH committed.
    pub async fn release(&self, fh: Fh) -> Result<()> {
        self.end_handle(fh, |handle| handle.was_killed().then_some(KILLED)).await
    }

    /// Ends a handle that its program did not get: the reply was too late. Its truncation is given up.
    pub async fn abandon_open(&self, fh: Fh) -> Result<()> {
        self.end_handle(fh, |_| Some(NOT_OPENED)).await
    }

    /// Ends a handle. `given_up`: why an unfinished overwrite through it is not committed.
    async fn end_handle(&self, fh: Fh, given_up: impl FnOnce(&Handle) -> Option<&'static str>) -> Result<()> {
        let Some(handle) = self.handles.remove(fh) else {
            return Err(Error::new(ErrorKind::BadHandle, "no such file handle"));
        };
        let (writes, writer) = (handle.access.may_commit(), handle.id.writer());
        if let Some(why) = given_up(&handle)
            && writes
            && !self.handles.has_writer(handle.file.ino(), writer)
        {
            self.give_up_writer(&handle.file, writer, why);
        }
        let committed = if writes { self.release_writer(&handle.file).await } else { Ok(()) };
        self.close_file(&handle.file);
        committed
    }

    /// Ends the writing of a handle. The last writer commits.
    pub(super) async fn release_writer(&self, file: &Arc<OpenFile>) -> Result<()> {
        if !self.files.release_writer(file.ino()) {
            return Ok(());
        }
        // Another program may have opened it since.
        let is_finished = |unsaved: &Unsaved| self.is_finished(file.ino(), unsaved);
        let committed = self.commit_if(file, is_finished).await.map(drop);
        if let Err(error) = &committed
            && file.has_local_content()
            && !self.files.has_writers(file.ino())
        {
            // No writer is left that could change what was refused.
            file.fail(error);
        }
        committed
    }

    /// Removes a handle that does not write any more.
    pub(super) fn close_file(&self, file: &Arc<OpenFile>) {
        let failed = file.check().is_err();
        let outcome = {
            // Under the tree lock, as in `open_file`: a name must not be discarded under a new handle.
            let mut tree = self.tree();
            let outcome = self.files.close(file.ino());
            if outcome == CloseOutcome::Closed && failed {
                // The content was not committed, and the error was reported.
                tree.discard(file.ino(), Instant::now());
            }
            tree.unpin(file.ino());
            outcome
        };
        if outcome == CloseOutcome::Closed
            && file.is_unlinked()
            && let Some(base) = file.base()
        {
            if self.files.all().iter().all(|other| other.pending_clone_of(&base.file_id).is_none()) {
                self.reader.unpin(&ReadTarget::of(&base));
            }
            drop(self.upload_context.cached_files.remove(&ReadTarget::of(&base)));
        }
        if outcome == CloseOutcome::ReadersRemain {
            file.writers_closed();
        }
    }
}

/// The writer of what the process of a caller writes, if the process is known.
pub(super) fn process_of(caller: Caller) -> Option<Writer> {
    thread_group(caller.tid).map(Writer::Process)
}

fn look_failed(error: tokio::task::JoinError) -> Error {
    Error::with_source(ErrorKind::Cancelled, "the look at the closing process failed", error)
}
