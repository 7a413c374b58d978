//! From written to on the drive: settling a file, and what follows from a commit for its name.
//!
//! A commit is a task of its own: whoever asked for it may be interrupted, the commit goes on.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Vfs;
use super::pending::Wanted;
use crate::content::finish::{Finish, Finished};
use crate::content::open_file::{OpenFile, Settle, Ticket};
use crate::content::shipper::{Destination, Places};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::tree::{Identity, Tree};

/// How much of what shows from under an upload is read at once, in bytes.
const RUN_OVER_BYTES: u64 = 1 << 20;
/// How often is looked for a movement while a commit may be late, at least; and of its limit, that many times.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(5);
const LOOKS_PER_LIMIT: u32 = 8;

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
        let has_sibling =
            overwrite.is_none() && self.is_to_be_left(&tree, &place.parent_id, &place.name, Some(ino));
        let (parent, name, posix) = (place.parent_id, place.name.to_string(), self.posix_of(&tree, ino));
        Some(Destination { ino, parent, name, overwrite, mtime: None, posix, has_sibling })
    }

    /// Whether a file of this mount other than `ino` has the name on the drive until it is taken elsewhere, or will have it
    /// for a moment: one that was renamed over another keeps its object where it was until its commit, and one that was
    /// renamed or deleted during its commit appears where that was begun for.
    pub(super) fn is_to_be_left(&self, tree: &Tree, folder: &FileId, name: &str, ino: Option<Ino>) -> bool {
        let others = self.files.all().into_iter().chain(self.late_renames.strays());
        others.filter(|other| Some(other.ino()) != ino).any(|other| {
            let elsewhere = tree.objects(other.ino()).elsewhere;
            other.is_aimed_at(folder, name)
                || elsewhere.is_some_and(|meta| meta.name == name && meta.parent_id.as_ref() == Some(folder))
        })
    }

    async fn commit(self: Arc<Self>, file: Arc<OpenFile>, finish: Finish, ticket: Ticket) {
        // Its name and object may be about to become another's.
        self.moving.rests(file.ino()).await;
        if file.is_orphan() {
            return ticket.left();
        }
        let finished = tokio::select! {
            finished = finish.run() => finished,
            error = self.is_late() => Err(error),
        };
        let landed = match finished {
            Ok(finished) => self.land(&file, finished).await,
            Err(error) if file.is_orphan() => {
                tracing::debug!(%error, "what was deleted is not saved");
                return ticket.left();
            }
            Err(error) => Err(error),
        };
        self.failures.record(file.ino(), landed.as_ref().err());
        if let Err(error) = &landed {
            let (op, ino, errno) = ("commit", file.ino().0, error.errno());
            if error.is_first_told() {
                tracing::error!(op, ino, errno, "{}: not saved: {error}", self.name_of(file.ino()));
            }
        }
        let under_way = self.late_renames.begin();
        ticket.done(&landed);
        if let Ok(finished) = landed {
            self.follow_late_renames(&file, finished).await;
        }
        drop(under_way);
    }

    /// Resolves when nothing has moved for as long as a commit waits.
    async fn is_late(&self) -> Error {
        let limit = self.config.commit_timeout;
        self.standstill(limit).await;
        let detail = format!("the drive has not taken a byte of the file for {} s", limit.as_secs());
        Error::new(ErrorKind::Timeout, detail)
    }

    /// Resolves when no byte has gone to the drive, or been fetched or hashed for a commit, for `limit`.
    pub async fn standstill(&self, limit: Duration) {
        stands_still(limit, || self.drive.bytes_moved().wrapping_add(self.progress.bytes_worked())).await;
    }

    /// Resolves when no byte of content has come from the drive for `limit`.
    pub async fn drought(&self, limit: Duration) {
        stands_still(limit, || self.drive.bytes_read()).await;
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
        self.remove_object(file_id, None, self.config.remove).await?;
        self.tree().entomb(file_id.clone(), Instant::now());
        Ok(())
    }
}

impl Places for Vfs {
    fn destination(&self, ino: Ino) -> Option<Destination> {
        let destination = Self::destination(self, ino)?;
        if let Some(file) = self.files.get(ino) {
            file.aim_at(Some((destination.parent.clone(), destination.name.clone())));
        }
        Some(destination)
    }

    fn is_at(&self, destination: &Destination) -> bool {
        let place = self.tree().place(destination.ino);
        place.is_some_and(|place| place.parent_id == destination.parent && *place.name == destination.name)
    }

    fn is_anothers(&self, object: &FileId, ino: Ino) -> bool {
        self.tree().is_anothers(object, ino)
    }
}

/// Resolves when `moved` has shown no movement for `limit`.
async fn stands_still(limit: Duration, moved: impl Fn() -> u64) {
    let pause = (limit / LOOKS_PER_LIMIT).min(LOOK_INTERVAL_MAX);
    let (mut seen, mut since) = (moved(), Instant::now());
    while since.elapsed() < limit {
        tokio::time::sleep(pause.min(limit.saturating_sub(since.elapsed()))).await;
        if moved() != seen {
            (seen, since) = (moved(), Instant::now());
        }
    }
}
