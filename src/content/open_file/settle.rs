//! Settling: a content on its way to the drive, and what is known when it has arrived.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::watch;

use super::{Content, Inner, OpenFile, Source, read_flow, take_base};
use crate::content::finish::{Finish, Finished, Written, target};
use crate::content::shipper::Destination;
use crate::content::staged::Staged;
use crate::error::{Error, ErrorKind, Result};

/// Largest content that stays in memory after its commit, so that a handle may write on, in bytes. It is
/// less than a part too: writing on has to find it whole in the part that is filling.
const RESUME_BYTES_MAX: u64 = 256 << 10;

/// The outcome of a commit; `None` while it runs.
pub type Outcome = watch::Receiver<Option<Result<()>>>;

/// What a settle has to do.
#[derive(Debug)]
pub enum Settle {
    /// Nothing: the drive has everything.
    Settled,
    /// What shows from under the upload has to be run over first: [`OpenFile::gap`].
    RunOver,
    /// A commit is under way: wait for it.
    Join(Outcome),
    /// Run this, then report to the ticket.
    Run(Box<Finish>, Ticket),
}

impl OpenFile {
    /// Begins to make the drive equal to what was written; tells what is left to do.
    pub fn settle(self: &Arc<Self>, destination: impl FnOnce() -> Option<Destination>) -> Result<Settle> {
        let mut inner = self.lock();
        match &inner.content {
            Content::Clean { .. } | Content::Local(_) => return Ok(Settle::Settled),
            Content::Failed { error, .. } => return Err(error.clone()),
            Content::Committing { outcome, .. } => return Ok(Settle::Join(outcome.clone())),
            Content::New | Content::Streaming { .. } | Content::Staged { .. } => {}
        }
        if self.is_orphan() {
            return Ok(Settle::Settled);
        }
        if let Content::Streaming { live, .. } = &inner.content
            && live.gap(u64::MAX).is_some()
        {
            let checked = live.flow().check();
            if let Err(error) = checked {
                // In the same step: what somebody begins anew meanwhile is not what has failed.
                inner.fail(&error);
                drop(inner);
                self.state_changed.notify_waiters();
                return Err(error);
            }
            return Ok(Settle::RunOver);
        }
        let gone = || Error::new(ErrorKind::NotFound, "the file was deleted while it was being written");
        let destination = destination().ok_or_else(gone)?;
        let destination = Destination { mtime: Some(inner.mtime), ..destination };
        let (report, outcome) = watch::channel(None);
        let mut aimed_at = Some((destination.parent.clone(), destination.name.clone()));
        let (finish, source, bytes, base) = match std::mem::replace(&mut inner.content, Content::New) {
            Content::Staged { copy, base } => {
                let (flow, transfer) = (Arc::default(), self.progress.begin(&inner.name));
                let (source, bytes, written) =
                    (Source::Copy(copy.clone()), copy.size(), Written::Copied(copy));
                let env = self.env.clone();
                (
                    Finish { env, flow, tee: None, transfer, destination, base: base.clone(), written },
                    source,
                    bytes,
                    base,
                )
            }
            content => {
                let (live, base) = match content {
                    Content::Streaming { live, base } => (live, base),
                    // An empty file is real.
                    _ => (self.live(&inner.name), None),
                };
                let bytes = live.size();
                aimed_at = live.aimed_at().or(aimed_at);
                let finish = live.finish(destination, base.clone());
                let source = Source::Flow(finish.flow().clone(), finish.tee.clone());
                (finish, source, bytes, base)
            }
        };
        self.aim_at(aimed_at);
        let transfer = finish.transfer.clone();
        inner.content = Content::Committing { source, bytes, base, outcome, transfer: transfer.clone() };
        Ok(Settle::Run(Box::new(finish), Ticket { file: self.clone(), report, transfer, done: false }))
    }

    /// What was written is lost, before its commit could begin.
    pub fn fail(&self, error: &Error) {
        self.lock().fail(error);
        self.state_changed.notify_waiters();
    }

    fn finished(&self, result: &Result<Finished>) {
        let mut inner = self.lock();
        let Content::Committing { source, base, .. } = &inner.content else {
            return;
        };
        self.marked.store(false, Ordering::Relaxed);
        self.aim_at(None);
        inner.content = match result {
            Ok(finished) => {
                let new = finished.meta.clone();
                let bytes_max = RESUME_BYTES_MAX.min(self.env.part_size.get() - 1);
                let held = source.held(new.size, bytes_max);
                let kept = self.env.space.kept();
                drop(base.as_ref().and_then(|old| kept.take(&target(old))));
                // A copy of a file that stayed here is in another room, where there shall be none of others.
                let is_kept = held.is_none() && !self.env.space.is_off();
                if let Some(copy) = source.copy(new.size).filter(|_| is_kept) {
                    kept.put(target(&new), copy);
                }
                Content::Clean { base: new, held }
            }
            Err(error) => Content::Failed { error: error.clone(), base: base.clone() },
        };
        if let (Err(_), Content::Failed { base: Some(base), .. }) = (result, &inner.content) {
            inner.mtime = base.mtime;
        }
        drop(inner);
        self.state_changed.notify_waiters();
    }
}

impl OpenFile {
    /// The commit is not: the file was deleted meanwhile. Who has it open goes on, as far as its content is still here.
    fn left(&self) {
        let mut inner = self.lock();
        let Content::Committing { source, bytes, base, .. } = &inner.content else { return };
        let copy = match source {
            Source::Copy(copy) => Some(copy.clone()),
            Source::Flow(..) => source.copy(*bytes),
        };
        let base = base.clone();
        inner.content = if let Some(copy) = copy {
            Content::Staged { copy, base }
        } else {
            let error = Error::new(ErrorKind::NotFound, "the file was deleted while it was being saved");
            Content::Failed { error, base }
        };
        self.marked.store(false, Ordering::Relaxed);
        self.aim_at(None);
        drop(inner);
        self.state_changed.notify_waiters();
    }
}

impl Inner {
    fn fail(&mut self, error: &Error) {
        if let Content::Streaming { live, .. } = &self.content {
            live.transfer().failed(error);
        }
        let base = take_base(&mut self.content);
        self.content = Content::Failed { error: error.clone(), base };
    }
}

impl Source {
    /// A committed content of so many bytes, where it is in memory and at most `bytes_max` long.
    fn held(&self, bytes: u64, bytes_max: u64) -> Option<Bytes> {
        let Self::Flow(flow, tee) = self else { return None };
        if bytes > bytes_max {
            return None;
        }
        let held = read_flow(flow, tee.as_ref(), 0, bytes as usize).ok();
        held.filter(|held| held.len() as u64 == bytes)
    }

    /// The copy of all of a committed content of so many bytes.
    fn copy(&self, bytes: u64) -> Option<Arc<Staged>> {
        match self {
            Self::Copy(copy) => Some(copy.clone()).filter(|copy| copy.is_whole()),
            Self::Flow(_, tee) => tee.as_ref()?.finished_copy(bytes),
        }
    }
}

/// The duty to report how a commit ended. Dropped without a report, it has failed.
#[derive(Debug)]
pub struct Ticket {
    file: Arc<OpenFile>,
    report: watch::Sender<Option<Result<()>>>,
    transfer: Arc<crate::status::Transfer>,
    done: bool,
}

impl Ticket {
    /// Who waits for the commit may wait here.
    pub fn outcome(&self) -> Outcome {
        self.report.subscribe()
    }

    /// The commit has ended.
    pub fn done(mut self, result: &Result<Finished>) {
        self.report_result(result);
    }

    /// There is nothing to commit any more: the file was deleted.
    pub fn left(mut self) {
        self.done = true;
        self.file.left();
        self.report.send_replace(Some(Ok(())));
    }

    fn report_result(&mut self, result: &Result<Finished>) {
        self.done = true;
        match result {
            Ok(finished) => self.transfer.committed(finished.meta.size, finished.how),
            Err(error) => self.transfer.failed(error),
        }
        self.file.finished(result);
        self.report.send_replace(Some(result.as_ref().map(|_| ()).map_err(Clone::clone)));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.done {
            let stopped = Error::new(ErrorKind::Cancelled, "the commit was stopped before it ended");
            self.report_result(&Err(stopped));
        }
    }
}
