//! What somebody sees who asks how a file, or everything, stands. Looking changes nothing and waits for
//! nothing.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;

use super::Vfs;
pub use crate::content::open_file::{Sight, Stage};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::types::FileType;
use crate::status::Unsaved;

/// Failed files that are remembered after they were closed.
const FAILURES_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Why files could not be saved; the newest of them. A file that is saved again is forgotten here.
#[derive(Debug)]
pub(super) struct Failures(Mutex<LruCache<Ino, Error>>);

impl Default for Failures {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(FAILURES_MAX)))
    }
}

impl Failures {
    /// A leaf lock.
    fn lock(&self) -> MutexGuard<'_, LruCache<Ino, Error>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file was committed, or could not be.
    pub(super) fn record(&self, ino: Ino, error: Option<&Error>) {
        match error {
            Some(error) => drop(self.lock().put(ino, error.clone())),
            None => drop(self.lock().pop(&ino)),
        }
    }

    /// Why the last commit of a file failed.
    pub(super) fn get(&self, ino: Ino) -> Option<Error> {
        self.lock().peek(&ino).cloned()
    }
}

/// A file that is open or on its way.
#[derive(Clone, Debug)]
pub struct SeenFile {
    /// Path below the mount, beginning with `/`.
    pub path: String,
    /// How it stands.
    pub sight: Sight,
    /// A program has it open and may write.
    pub is_open: bool,
}

impl SeenFile {
    /// What the drive does not have of it, as far as that is known.
    fn bytes_left(&self) -> u64 {
        let view = self.sight.transfer.as_ref();
        let (announced, acked) = view.map_or((0, 0), |view| (view.bytes_left, view.bytes_acked));
        announced.max(self.sight.bytes.saturating_sub(acked))
    }
}

/// Sums files up: the one place that says what there is to save.
pub fn sum_up(seen: &[SeenFile]) -> Unsaved {
    let mut sum = Unsaved::default();
    for file in seen {
        if file.sight.stage == Stage::Failed {
            sum.failed_open += 1;
            continue;
        }
        let is_committing = file.sight.stage == Stage::Committing;
        sum.files += 1;
        sum.open += u64::from(file.is_open && !is_committing);
        sum.committing += u64::from(is_committing);
        sum.bytes = sum.bytes.saturating_add(file.bytes_left());
        let age = file.sight.transfer.as_ref().map_or(Duration::ZERO, |view| view.age);
        sum.oldest = sum.oldest.max(age);
    }
    sum
}

/// How much of what is bounded is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Bytes of write buffers.
    pub buffer_bytes: u64,
    /// Bytes of local copies.
    pub copy_bytes: u64,
    /// Parts that may be in flight by now.
    pub parts_in_flight_max: usize,
}

impl Vfs {
    /// Every file that the drive does not have as it is here, also those that failed and are still open.
    pub fn seen_files(&self) -> Vec<SeenFile> {
        let open: Vec<_> = self.files.all().iter().map(|file| (file.ino(), file.sight())).collect();
        let id = |sight: &Sight| sight.transfer.as_ref().map(|view| view.id);
        let known: HashSet<u64> = open.iter().filter_map(|(_, sight)| id(sight)).collect();
        // A commit goes on after the file was closed, where whoever closed it was interrupted.
        let closed = self.progress.snapshot().into_iter().filter(|view| !known.contains(&view.id));
        let closed = closed.map(|view| SeenFile {
            path: view.name.to_string(),
            sight: Sight::of_transfer(view),
            is_open: false,
        });
        let open = open.into_iter().filter(|(_, sight)| sight.stage.is_unsaved());
        let open = open.map(|(ino, sight)| {
            let path = Some(self.name_of(ino)).filter(|path| path.starts_with('/'));
            let is_open = self.files.has_writers(ino);
            SeenFile { path: path.unwrap_or_else(|| sight.name.clone()), sight, is_open }
        });
        let mut seen: Vec<_> = open.chain(closed).collect();
        seen.sort_by_key(|file| id(&file.sight).unwrap_or(u64::MAX));
        seen
    }

    /// What is not on the drive, as [`Self::seen_files`] are together.
    pub fn unsaved_sum(&self) -> Unsaved {
        sum_up(&self.seen_files()).at_rate(self.progress.totals().rate_bytes_s)
    }

    /// How one file stands: the value of `user.pdsfs.NAME`.
    pub(super) fn own_attribute(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let (meta, kind) = {
            let tree = self.tree();
            (tree.meta(ino).cloned(), tree.kind(ino)?)
        };
        let sight = self.files.get(ino).map(|file| file.sight());
        let failure = self.failures.get(ino);
        let is_file = kind == FileType::File;
        let value = match name {
            b"state" if is_file => {
                let stage = sight.map_or(Stage::Saved, |sight| sight.stage);
                let failed = failure.filter(|_| stage == Stage::Saved).map(|_| Stage::Failed);
                Some(failed.unwrap_or(stage).name().to_owned())
            }
            b"progress_bytes" if is_file => {
                let saved = meta.map_or(0, |meta| meta.size);
                let unsaved = sight.filter(|sight| sight.stage != Stage::Saved);
                let acked = |sight: Sight| sight.transfer.map_or(0, |view| view.bytes_acked);
                Some(unsaved.map_or(saved, acked).to_string())
            }
            b"error" => {
                let refused = || self.pending.refusal(&meta.as_ref()?.file_id);
                let error = sight.and_then(|sight| sight.error).or(failure).or_else(refused);
                error.map(|error| error.to_string())
            }
            b"file_id" => meta.map(|meta| meta.file_id.to_string()),
            b"revision" => meta.and_then(|meta| meta.revision).map(|revision| revision.to_string()),
            b"sha1" => meta.and_then(|meta| meta.sha1).map(|sha1| sha1.to_string()),
            _ => None,
        };
        let absent = || Error::new(ErrorKind::NoAttribute, "no such extended attribute");
        value.map(String::into_bytes).ok_or_else(absent)
    }

    /// Objects whose attributes, or whose place, the drive does not have yet.
    pub fn pending_attributes(&self) -> usize {
        self.pending.count() + self.late_renames.count()
    }

    /// Objects whose attributes the drive has refused for good, the newest of them.
    pub fn refused_attributes(&self) -> usize {
        self.pending.refused_count()
    }

    /// How much of what is bounded is in use.
    pub fn load(&self) -> Load {
        Load {
            buffer_bytes: self.env.budget.bytes_in_use(),
            copy_bytes: self.env.space.taken_bytes(),
            parts_in_flight_max: self.env.gate.limit(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Progress;

    fn file(stage: Stage, bytes: u64, is_open: bool) -> SeenFile {
        let sight = Sight { stage, name: "f".to_owned(), bytes, transfer: None, error: None };
        SeenFile { path: "/f".to_owned(), sight, is_open }
    }

    #[test]
    fn everything_that_waits_here_is_unsaved() {
        let progress = Progress::new();
        let transfer = progress.begin("a");
        transfer.wrote(500);
        transfer.part_done(200, true);
        let sending = SeenFile {
            sight: Sight { transfer: Some(transfer.look()), ..file(Stage::Writing, 500, true).sight },
            ..file(Stage::Writing, 500, true)
        };
        let files = [
            sending,
            file(Stage::Staged, 1000, true),
            file(Stage::Committing, 30, true),
            file(Stage::Failed, 7, true),
        ];
        let sum = sum_up(&files);
        assert_eq!((sum.files, sum.open, sum.committing, sum.failed_open, sum.bytes), (3, 2, 1, 1, 1330));
    }
}
