//! Renames that came while a commit was ending: the tree has them, and the drive must still be told.
//!
//! ```text
//!   commit has ended --> under way --> done
//!                            |
//!                            v
//!                          stray --(tried again, now and then, and by a drain)--> done
//! ```
//!
//! Until it is done, the file is on the drive under its former name: it counts as not saved for who waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Left, Vfs};
use crate::content::finish::Finished;
use crate::content::open_file::OpenFile;
use crate::error::{ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::drive::FileMeta;
use crate::pds::types::CheckNameMode;

/// Renames that are followed at once.
const FOLLOWED_MAX: usize = 8;
/// Until a stray is tried again, after all the retries of the calls themselves.
const PAUSE: Duration = Duration::from_secs(10);

/// A committed file that is not where it was renamed to.
#[derive(Clone, Debug)]
struct Stray {
    file: Arc<OpenFile>,
    finished: Finished,
}

/// What the drive must still be told of places.
#[derive(Debug)]
pub(super) struct LateRenames {
    under_way: watch::Sender<usize>,
    /// A leaf lock.
    strays: Mutex<HashMap<Ino, Stray>>,
}

impl Default for LateRenames {
    fn default() -> Self {
        Self { under_way: watch::Sender::new(0), strays: Mutex::default() }
    }
}

/// One look for late renames; over when it is dropped.
#[derive(Debug)]
pub(super) struct UnderWay<'a>(&'a LateRenames);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|count| *count -= 1);
    }
}

impl LateRenames {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, Stray>> {
        self.strays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A commit has ended, and a rename may have come meanwhile.
    pub(super) fn begin(&self) -> UnderWay<'_> {
        self.under_way.send_modify(|count| *count += 1);
        UnderWay(self)
    }

    /// Files that are, or may be, elsewhere than they were renamed to.
    pub(super) fn count(&self) -> usize {
        *self.under_way.borrow() + self.lock().len()
    }

    /// Files that are elsewhere than they were renamed to.
    pub(super) fn strays(&self) -> Vec<Arc<OpenFile>> {
        self.lock().values().map(|stray| stray.file.clone()).collect()
    }

    /// Waits for what is under way.
    async fn quiet(&self) {
        // The sender is here: it does not go away meanwhile.
        let _ = self.under_way.subscribe().wait_for(|count| *count == 0).await.is_ok();
    }
}

impl Vfs {
    /// A rename that came while the commit was ending has changed the tree only.
    pub(super) async fn follow_late_renames(&self, file: &Arc<OpenFile>, finished: Finished) {
        let mut stray = Stray { file: file.clone(), finished };
        let Err(error) = self.bring_home(&mut stray).await else { return };
        let ino = file.ino();
        tracing::error!(%ino, %error, "{}: renamed, but not yet on the drive", self.name_of(ino));
        self.failures.record(ino, Some(&error));
        let is_first = {
            let mut strays = self.late_renames.lock();
            strays.insert(ino, stray);
            strays.len() == 1
        };
        if is_first {
            let vfs = self.this.clone();
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(PAUSE).await;
                    let Some(vfs) = vfs.upgrade() else { return };
                    vfs.bring_strays_home().await;
                    if vfs.late_renames.lock().is_empty() {
                        return;
                    }
                }
            });
        }
    }

    /// Tries again what could not be brought to its place; what still could not.
    pub(super) async fn bring_strays_home(&self) -> Vec<Left> {
        self.late_renames.quiet().await;
        let strays: Vec<_> = self.late_renames.lock().values().cloned().collect();
        let mut failed = Vec::new();
        for mut stray in strays {
            let ino = stray.file.ino();
            let under_way = self.late_renames.begin();
            match self.bring_home(&mut stray).await {
                Ok(()) => {
                    self.progress.stepped();
                    self.late_renames.lock().remove(&ino);
                    self.failures.record(ino, None);
                }
                Err(error) => {
                    self.failures.record(ino, Some(&error));
                    // As far as it came.
                    self.late_renames.lock().insert(ino, stray);
                    failed.push(Left { ino: Some(ino), name: self.name_of(ino), error });
                }
            }
            drop(under_way);
        }
        failed
    }

    /// A file that somebody else has removed has no place any more.
    async fn bring_home(&self, stray: &mut Stray) -> Result<()> {
        let Stray { file, finished } = stray;
        for _ in 0..FOLLOWED_MAX {
            if file.is_orphan() || file.is_unsaved() {
                return Ok(());
            }
            match self.follow_rename(file.ino(), finished).await {
                Ok(Some(moved)) => {
                    // The file may be closed by now: what was set since is known to the tree alone.
                    if moved.file_id != finished.meta.file_id {
                        let (mtime, posix) = self.attributes_of_now(&self.tree(), file.ino(), &moved);
                        self.impose(moved.clone(), mtime, posix).await;
                    }
                    let mut tree = self.tree();
                    let (mtime, posix) = self.attributes_of_now(&tree, file.ino(), &moved);
                    finished.meta = FileMeta { mtime, posix, ..moved };
                    tree.adopt(file.ino(), finished.meta.clone(), Instant::now());
                    drop(tree);
                    file.rebased(&finished.meta);
                }
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Brings a committed file to the place that it was renamed to while it was uploading.
    pub(super) async fn follow_rename(&self, ino: Ino, finished: &Finished) -> Result<Option<FileMeta>> {
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
