//! From written to on the drive: settling a file, and what follows from a commit for its name.
//!
//! A commit is a task of its own: whoever asked for it may be interrupted, the commit goes on.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Vfs;
use super::pending::Wanted;
use crate::content::finish::{Finish, Finished};
use crate::content::open_file::{OpenFile, Settle, Ticket};
use crate::content::shipper::Destination;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::drive::FileMeta;
use crate::pds::types::CheckNameMode;
use crate::tree::Identity;

/// How much of what shows from under an upload is read at once, in bytes.
const RUN_OVER_BYTES: u64 = 1 << 20;
/// Renames that are followed after one commit.
const LATE_RENAMES_MAX: usize = 8;

impl Vfs {
    /// Makes the drive equal to what was written to the file; returns when it is.
    pub async fn settle(&self, file: &Arc<OpenFile>) -> Result<()> {
        let mut outcome = loop {
            let begun = file.settle(|| self.destination(file.ino())).inspect_err(|error| {
                // What was deleted is missed by nobody.
                if self.destination(file.ino()).is_some() {
                    self.failures.record(file.ino(), Some(error));
                }
            });
            match begun? {
                Settle::Settled => return Ok(()),
                Settle::RunOver => {
                    let run_over = self.run_over(file, u64::MAX).await;
                    run_over.inspect_err(|error| {
                        self.failures.record(file.ino(), Some(error));
                        file.fail(error);
                    })?;
                }
                Settle::Join(outcome) => break outcome,
                Settle::Run(finish, ticket) => {
                    let outcome = ticket.outcome();
                    let commit = self.this()?.commit(file.clone(), *finish, ticket);
                    tokio::spawn(commit);
                    break outcome;
                }
            }
        };
        let ended = outcome.wait_for(Option::is_some).await;
        let stopped = || Err(Error::new(ErrorKind::Cancelled, "the commit was stopped"));
        ended.map_or_else(|_| stopped(), |result| result.clone().unwrap_or_else(stopped))
    }

    /// Sends what shows from under an upload, up to `to`, as if it had been written.
    ///
    /// In a box, because writing may have to settle first, and settling to run over.
    pub(super) fn run_over<'a>(
        &'a self,
        file: &'a Arc<OpenFile>,
        to: u64,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
        Box::pin(async move {
            let (cursor, destination) = (self.reader.cursor(), || self.destination(file.ino()));
            while let Some((target, at, len)) = file.gap(to) {
                let bytes = self.reader.read(&target, &cursor, at, len.min(RUN_OVER_BYTES)).await?;
                if bytes.is_empty() {
                    let detail = "the base of a changed file is shorter than it was";
                    return Err(Error::new(ErrorKind::Integrity, detail));
                }
                let step =
                    |done: usize| file.run_over(&target, at + done as u64, &bytes[done..], &destination);
                self.put(file, bytes.len(), step).await?;
            }
            Ok(())
        })
    }

    /// Where a file goes, by the names of now; `None` where it was deleted.
    pub(super) fn destination(&self, ino: Ino) -> Option<Destination> {
        let tree = self.tree();
        let place = tree.place(ino)?;
        let overwrite = match tree.identity(ino) {
            Some(Identity::Remote(file_id)) => Some(file_id),
            Some(Identity::Local) | None => tree.replaces(ino).map(|meta| meta.file_id.clone()),
        };
        // A file that was renamed over another one keeps its object where it was until it is committed.
        let has_sibling = overwrite.is_none()
            && self.files.all().iter().any(|other| {
                let meta = tree.meta(other.ino()).filter(|_| !tree.is_at_place(other.ino()));
                meta.is_some_and(|meta| {
                    *meta.name == *place.name && meta.parent_id.as_ref() == Some(&place.parent_id)
                })
            });
        let (parent, name, posix) = (place.parent_id, place.name.to_string(), self.posix_of(&tree, ino));
        Some(Destination { parent, name, overwrite, mtime: None, posix, has_sibling })
    }

    async fn commit(self: Arc<Self>, file: Arc<OpenFile>, finish: Finish, ticket: Ticket) {
        let finished = tokio::select! {
            finished = finish.run() => finished,
            error = self.is_late() => Err(error),
        };
        let landed = match finished {
            Ok(finished) => self.land(&file, finished).await,
            Err(error) => Err(error),
        };
        self.failures.record(file.ino(), landed.as_ref().err());
        if let Err(error) = &landed {
            let (op, ino, errno) = ("commit", file.ino().0, error.errno());
            if error.is_first_told() {
                tracing::error!(op, ino, errno, "{}: not saved: {error}", self.name_of(file.ino()));
            }
        }
        ticket.done(&landed);
        if let Ok(finished) = landed {
            self.follow_late_renames(&file, finished).await;
        }
    }

    /// Resolves when a commit has taken as long as a close waits for it; while the mount stops, when nothing has
    /// moved for so long.
    async fn is_late(&self) -> Error {
        let limit = self.config.commit_timeout;
        let moved = || (self.drive.bytes_moved(), self.progress.totals().bytes_acked);
        loop {
            let before = moved();
            tokio::time::sleep(limit).await;
            if !self.is_stopping.load(Ordering::Relaxed) || moved() == before {
                break;
            }
        }
        let detail = format!("the drive did not take the file within {} s", limit.as_secs());
        Error::new(ErrorKind::Timeout, detail)
    }

    /// A rename that came while the commit was ending has changed the tree only.
    pub(super) async fn follow_late_renames(&self, file: &Arc<OpenFile>, mut finished: Finished) {
        for _ in 0..LATE_RENAMES_MAX {
            if file.is_orphan() || file.is_unsaved() {
                return;
            }
            match self.follow_rename(file.ino(), &finished).await {
                Ok(Some(moved)) => {
                    let posix = finished.meta.posix.take();
                    finished.meta = self.impose(moved, file.mtime(), posix).await;
                    self.tree().adopt(file.ino(), finished.meta.clone(), Instant::now());
                    file.rebased(&finished.meta);
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(ino = %file.ino(), %error, "a renamed file is not at its new place");
                    return;
                }
            }
        }
    }

    /// The drive has the content: the name may have changed meanwhile, and the tree must learn.
    async fn land(&self, file: &Arc<OpenFile>, mut finished: Finished) -> Result<Finished> {
        let ino = file.ino();
        if file.is_orphan() {
            self.remove_orphan(&finished).await?;
            return Ok(finished);
        }
        if let Some(moved) = self.follow_rename(ino, &finished).await? {
            finished.meta = moved;
        }
        let posix = {
            let tree = self.tree();
            self.posix_of(&tree, ino)
        };
        finished.meta = self.impose(finished.meta, file.mtime(), posix).await;
        self.reader.forget(&finished.meta.file_id);
        let was_deleted = {
            let mut tree = self.tree();
            let was_deleted = file.is_orphan();
            if !was_deleted {
                let posix = self.posix_of(&tree, ino);
                if posix != finished.meta.posix {
                    // It was set while that was being told.
                    let mtime = finished.meta.mtime;
                    self.pending.set(&finished.meta, Wanted { mtime, posix: posix.clone() });
                    finished.meta.posix = posix;
                }
                // Whoever deletes from now on finds the new object in the tree.
                tree.adopt(ino, finished.meta.clone(), Instant::now());
            }
            was_deleted
        };
        if was_deleted {
            self.remove_orphan(&finished).await?;
        }
        Ok(finished)
    }

    /// Deleted while the commit ran: what came to be goes where deleted files go, unless it has
    /// become another file's.
    async fn remove_orphan(&self, finished: &Finished) -> Result<()> {
        let file_id = &finished.meta.file_id;
        if self.tree().is_wanted(file_id) {
            return Ok(());
        }
        self.drive.remove(file_id, self.config.remove).await?;
        self.tree().entomb(file_id.clone(), Instant::now());
        Ok(())
    }

    /// Brings a committed file to the place that it was renamed to while it was uploading.
    async fn follow_rename(&self, ino: Ino, finished: &Finished) -> Result<Option<FileMeta>> {
        let (place, replaces) = {
            let tree = self.tree();
            (tree.place(ino), tree.replaces(ino).cloned())
        };
        let Some(place) = place else { return Ok(None) };
        let used = &finished.destination;
        if let Some(target) = replaces.filter(|target| target.file_id != finished.meta.file_id) {
            return self.replace_committed(&target, &finished.meta).await.map(Some);
        }
        // The content is committed: whatever has the name by now must not keep it from its place.
        // The drive's word on where it is counts: it keeps the place of a file that gets a new revision.
        let mut moved = None;
        if place.parent_id != *finished.meta.parent_id.as_ref().unwrap_or(&used.parent) {
            self.drive.relocate(&finished.meta.file_id, &place.parent_id, CheckNameMode::Ignore).await?;
            moved = Some(self.drive.get(&finished.meta.file_id).await?);
        }
        if *place.name != *finished.meta.name {
            moved =
                Some(self.drive.rename(&finished.meta.file_id, &place.name, CheckNameMode::Ignore).await?);
        }
        Ok(moved)
    }
}
