//! The end of a mount: it accepts no more content, commits what was written, and gives unfinished overwrites
//! up. The latter also at the death of a writer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::Vfs;
use super::types::{PartlySavedFile, UnsavedFile};
use crate::content::open_file::{OpenFile, Unsaved, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::supervised;
use crate::units::Size;

/// The name under which unsaved attributes appear in lists of unsaved files.
const ATTRIBUTES: &str = "attributes";

/// The files of a drain that are not on the drive as their programs meant them.
#[derive(Clone, Debug, Default)]
pub struct DrainReport {
    pub unsaved: Vec<UnsavedFile>,
    pub partly_saved: Vec<PartlySavedFile>,
}

/// The report of a drain that may be given up. A leaf lock.
type SharedReport = Arc<Mutex<DrainReport>>;

/// The two drains of a stop. Each has the results that are known when it is given up.
#[derive(Clone, Debug, Default)]
pub struct StopDrains {
    pub(crate) first: SharedReport,
    second: SharedReport,
}

/// What a drain found out about one file.
enum Drained {
    Saved,
    PartlySaved(PartlySavedFile),
    Unsaved(UnsavedFile),
}

impl DrainReport {
    fn add(&mut self, drained: Drained) {
        match drained {
            Drained::Saved => {}
            Drained::PartlySaved(file) => self.partly_saved.push(file),
            Drained::Unsaved(file) => self.unsaved.push(file),
        }
    }
}

impl Vfs {
    /// Refuses changes of content from now on. A stop begins with it: later writes could go on forever, and no
    /// commit would include them.
    pub fn begin_stop(&self) {
        self.stop.set();
    }

    /// Fails once the mount is stopping.
    pub(super) fn check_accepts_content(&self) -> Result<()> {
        if self.stop.is_set() {
            return Err(Error::new(ErrorKind::Stopping, "the mount is stopping and accepts no more content"));
        }
        Ok(())
    }

    /// Commits the open files as far as they were written. Unfinished overwrites are not committed. During a
    /// stop they are given up.
    pub async fn drain(&self) -> DrainReport {
        let report = SharedReport::default();
        self.drain_into(&report).await;
        std::mem::take(&mut *report.lock())
    }

    /// The first drain of a stop.
    pub async fn drain_first(&self, drains: &StopDrains) {
        self.drain_into(&drains.first).await;
    }

    /// The second drain of a stop. Also reports files of the first one that were closed since.
    pub async fn drain_again(&self, drains: &StopDrains) -> DrainReport {
        self.drain_into(&drains.second).await;
        self.merged(drains, Vec::new())
    }

    /// The files of a stop that ends now because of `error`. Also reports those of its drains that were closed
    /// since.
    pub fn given_up_report(&self, drains: &StopDrains, error: &Error) -> DrainReport {
        self.merged(drains, self.unsaved_after(error))
    }

    /// Like [`Self::drain`]. Adds each file to `report` as soon as its result is known.
    async fn drain_into(&self, report: &SharedReport) {
        let mut commits = JoinSet::new();
        for file in self.files.all() {
            let Ok(vfs) = self.this() else { break };
            let report = report.clone();
            commits.spawn(async move {
                let (ino, saving, results) = (file.ino(), vfs.clone(), report.clone());
                let drain = async move {
                    let drained = saving.drain_file(&file).await;
                    results.lock().add(drained);
                };
                vfs.supervise_drain(ino, &report, drain).await;
            });
        }
        commits.join_all().await;
        let late_renames = self.retry_late_renames().await;
        report.lock().unsaved.extend(late_renames);
        self.retry_removals().await;
        if let Err(error) = self.pending.flush(&self.drive, &self.tree).await {
            report.lock().unsaved.push(UnsavedFile { ino: None, path: ATTRIBUTES.into(), error });
        }
    }

    /// Runs the drain of one file, which adds its own result to `report`.
    pub(crate) async fn supervise_drain(
        &self,
        ino: Ino,
        report: &SharedReport,
        drain: impl Future<Output = ()> + Send + 'static,
    ) {
        if supervised::run_once("drain", drain).await.is_none() {
            let error = Error::new(ErrorKind::Cancelled, "internal error: the commit panicked");
            self.failures.record(ino, Some(&error));
            let file = UnsavedFile { ino: Some(ino), path: self.path_of(ino), error };
            report.lock().unsaved.push(file);
        }
    }

    async fn drain_file(&self, file: &Arc<OpenFile>) -> Drained {
        let ino = file.ino();
        let unsaved =
            |error| Drained::Unsaved(UnsavedFile { ino: Some(ino), path: self.path_of(ino), error });
        let is_being_written = self.files.has_writers(ino) && !file.is_unlinked();
        let bytes = file.unsaved_bytes().filter(|_| is_being_written);
        loop {
            match (self.commit_if(file, |unsaved| self.is_finished(ino, unsaved)).await, bytes) {
                (Err(error), _) => return unsaved(error),
                (Ok(true), None) => return Drained::Saved,
                (Ok(true), Some(bytes)) => {
                    let path = self.path_of(ino);
                    return Drained::PartlySaved(PartlySavedFile { ino, path, bytes });
                }
                (Ok(false), _) => {
                    if let Some(error) = self.withhold_overwrite(file) {
                        return unsaved(error);
                    }
                }
            }
        }
    }

    /// The reason why an unfinished overwrite is not committed now. `None` if it has ended.
    fn withhold_overwrite(&self, file: &OpenFile) -> Option<Error> {
        if self.stop.is_set() {
            return self.give_up_at_stop(file);
        }
        let bytes = file.unsaved_bytes()?;
        let detail =
            format!("its program is still writing ({} so far); the drive has the old content", Size(bytes));
        Some(Error::new(ErrorKind::Cancelled, detail))
    }

    /// Whether content may be committed although its writers did not ask for it.
    pub(super) fn is_finished(&self, ino: Ino, unsaved: &Unsaved) -> bool {
        !self.files.has_writers(ino) || !self.is_overwriting(ino, unsaved)
    }

    /// Gives up an unfinished overwrite that a stop interrupts. Its writers get the error.
    fn give_up_at_stop(&self, file: &OpenFile) -> Option<Error> {
        let ino = file.ino();
        file.give_up_overwrite(self.replaces_other(ino), |bytes| {
            let error = given_up(ErrorKind::Stopping, "its program was still writing", bytes);
            self.failures.record(ino, Some(&error));
            error
        })
    }

    /// Whether a commit now would replace a complete revision by content that may be incomplete.
    pub(super) fn is_overwriting(&self, ino: Ino, unsaved: &Unsaved) -> bool {
        unsaved.is_overwriting(self.replaces_other(ino))
    }

    /// Gives up the unfinished overwrite of a writer that has ended, unless another writer of the content remains.
    /// Readers have the old content again, and a file that was replaced has its name again.
    pub(super) fn give_up_writer(&self, file: &OpenFile, ended: Writer, why: &str) {
        let (ino, replaces) = (file.ino(), self.replaces_other(file.ino()));
        let error = file.give_up_overwrite_of(ended, replaces, |bytes| {
            // Handles that are still open may return it: not the errno after which programs repeat the call.
            let error = given_up(ErrorKind::Cancelled, why, bytes);
            self.failures.record(ino, Some(&error));
            self.tree().discard(ino, Instant::now());
            error
        });
        if let Some(error) = error {
            let (op, ino, errno) = ("commit", ino.0, error.errno());
            tracing::warn!(op, ino, errno, "{}: not saved: {error}", self.path_of(file.ino()));
        }
    }

    /// Whether a new file takes the place of another one with its first commit.
    pub(super) fn replaces_other(&self, ino: Ino) -> bool {
        self.tree().replaces(ino).is_some()
    }

    /// The results of both drains. A later result of a file replaces an earlier one, and `last` all of them.
    fn merged(&self, drains: &StopDrains, last: Vec<UnsavedFile>) -> DrainReport {
        let (first, second) = (drains.first.lock().clone(), drains.second.lock().clone());
        let is_still_unsaved =
            |file: &UnsavedFile| file.ino.is_some_and(|ino| self.failures.get(ino).is_some());
        let first_unsaved = first.unsaved.into_iter().filter(is_still_unsaved);
        let mut unsaved: HashMap<_, _> = first_unsaved.map(|file| (file.ino, file)).collect();
        unsaved.extend(second.unsaved.into_iter().chain(last).map(|file| (file.ino, file)));
        let partly_saved = first.partly_saved.into_iter().chain(second.partly_saved);
        let mut partly_saved: HashMap<_, _> = partly_saved.map(|file| (file.ino, file)).collect();
        partly_saved.retain(|ino, _| !unsaved.contains_key(&Some(*ino)));
        let mut report = DrainReport {
            unsaved: unsaved.into_values().collect(),
            partly_saved: partly_saved.into_values().collect(),
        };
        report.unsaved.sort_by(|a, b| a.path.cmp(&b.path));
        report.partly_saved.sort_by(|a, b| a.path.cmp(&b.path));
        report
    }

    /// The files that a stop leaves unsaved if it ends now because of `error`.
    fn unsaved_after(&self, error: &Error) -> Vec<UnsavedFile> {
        let files = self.files.all();
        let unsaved = files.iter().filter_map(|file| {
            let status = file.status();
            let is_unsaved = status.stage.is_unsaved() && !file.is_unlinked();
            let error = status.error.unwrap_or_else(|| error.clone());
            is_unsaved.then(|| UnsavedFile { ino: Some(file.ino()), path: self.path_of(file.ino()), error })
        });
        let attributes = (self.unsaved_attr_count() > 0).then(|| UnsavedFile {
            ino: None,
            path: ATTRIBUTES.to_owned(),
            error: error.clone(),
        });
        unsaved.chain(attributes).collect()
    }
}

/// The error of an overwrite that is not committed.
fn given_up(kind: ErrorKind, why: &str, bytes: u64) -> Error {
    Error::new(kind, format!("{why} ({} so far); the old content stays", Size(bytes)))
}
