//! What somebody sees who asks how a file, or everything, stands. Looking changes nothing and waits for
//! nothing.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::Vfs;
pub use crate::content::open_file::{Sight, Stage};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::types::FileType;

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
            b"error" => sight.and_then(|sight| sight.error).or(failure).map(|error| error.to_string()),
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

    /// How much of what is bounded is in use.
    pub fn load(&self) -> Load {
        Load {
            buffer_bytes: self.env.budget.bytes_in_use(),
            copy_bytes: self.env.space.taken_bytes(),
            parts_in_flight_max: self.env.gate.limit(),
        }
    }
}
