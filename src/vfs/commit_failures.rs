//! Errors of failed commits, kept after the files are closed.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};

use crate::error::Error;
use crate::ids::Ino;

/// Failed files that are remembered after close.
const FAILURES_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Errors of the last commits, the newest of them. A successful commit removes the entry.
#[derive(Debug)]
pub(super) struct CommitFailures(Mutex<LruCache<Ino, Error>>);

impl Default for CommitFailures {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(FAILURES_MAX)))
    }
}

impl CommitFailures {
    /// A leaf lock.
    fn lock(&self) -> MutexGuard<'_, LruCache<Ino, Error>> {
        self.0.lock()
    }

    /// Records the result of a commit.
    pub(super) fn record(&self, ino: Ino, error: Option<&Error>) {
        match error {
            Some(error) => drop(self.lock().put(ino, error.clone())),
            None => drop(self.lock().pop(&ino)),
        }
    }

    pub(super) fn get(&self, ino: Ino) -> Option<Error> {
        self.lock().peek(&ino).cloned()
    }
}
