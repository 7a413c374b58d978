//! The open files of a mount. All handles of an inode share one [`OpenFile`].

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::open_file::OpenFile;
use crate::ids::Ino;

/// The open files by inode.
#[derive(Debug, Default)]
pub struct OpenFiles {
    /// Locked after the tree. Nothing else is locked under it.
    table: Mutex<OpenTable>,
}

#[derive(Debug, Default)]
struct OpenTable {
    files: HashMap<Ino, OpenEntry>,
    /// Number of pinned files.
    pinned: usize,
}

#[derive(Debug)]
struct OpenEntry {
    file: Arc<OpenFile>,
    handles: usize,
    writers: usize,
    /// The entry stays without handles: nothing else holds its content.
    is_pinned: bool,
}

/// The handles that remain after a close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseOutcome {
    /// None: the entry is gone.
    Closed,
    /// Only handles that cannot write, or none of a pinned file.
    ReadersRemain,
    WritersRemain,
}

impl OpenFiles {
    fn lock(&self) -> MutexGuard<'_, OpenTable> {
        self.table.lock()
    }

    pub fn get(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.lock().files.get(&ino).map(|entry| entry.file.clone())
    }

    /// Adds a handle. `make` creates the file for the first one.
    pub fn open(&self, ino: Ino, writes: bool, make: impl FnOnce() -> Arc<OpenFile>) -> Arc<OpenFile> {
        let mut table = self.lock();
        let entry = table.files.entry(ino).or_insert_with(|| OpenEntry {
            file: make(),
            handles: 0,
            writers: 0,
            is_pinned: false,
        });
        entry.handles += 1;
        entry.writers += usize::from(writes);
        entry.file.set_has_writers(entry.writers > 0);
        entry.file.clone()
    }

    /// Whether a handle can write.
    pub fn has_writers(&self, ino: Ino) -> bool {
        self.lock().files.get(&ino).is_some_and(|entry| entry.writers > 0)
    }

    /// Whether more than one handle can write.
    pub fn has_several_writers(&self, ino: Ino) -> bool {
        self.lock().files.get(&ino).is_some_and(|entry| entry.writers > 1)
    }

    /// Whether there are handles, none of which can write.
    pub fn has_readers_only(&self, ino: Ino) -> bool {
        self.lock().files.get(&ino).is_some_and(|entry| entry.handles > 0 && entry.writers == 0)
    }

    /// Ends the writing of a handle before its close. Returns whether it was the last writer: exactly one of
    /// several concurrent callers gets `true`, and commits.
    pub fn release_writer(&self, ino: Ino) -> bool {
        let mut table = self.lock();
        let Some(entry) = table.files.get_mut(&ino) else { return true };
        entry.writers -= 1;
        entry.file.set_has_writers(entry.writers > 0);
        entry.writers == 0
    }

    /// Removes a handle whose writing has ended.
    pub fn close(&self, ino: Ino) -> CloseOutcome {
        let mut table = self.lock();
        let Some(entry) = table.files.get_mut(&ino) else { return CloseOutcome::Closed };
        entry.handles -= 1;
        match (entry.handles, entry.writers) {
            (0, _) if !entry.is_pinned => {
                table.files.remove(&ino);
                CloseOutcome::Closed
            }
            (_, 0) => CloseOutcome::ReadersRemain,
            _ => CloseOutcome::WritersRemain,
        }
    }

    /// Keeps the entry without handles, until [`Self::unpin`]. Returns `false` if `max` entries are pinned
    /// already, or this one is pinned or absent.
    pub fn pin(&self, ino: Ino, max: usize) -> bool {
        let mut table = self.lock();
        let has_room = table.pinned < max;
        let Some(entry) = table.files.get_mut(&ino).filter(|entry| has_room && !entry.is_pinned) else {
            return false;
        };
        entry.is_pinned = true;
        table.pinned += 1;
        true
    }

    /// Ends a pin. Without handles the entry is removed.
    pub fn unpin(&self, ino: Ino) {
        let mut table = self.lock();
        let Some(entry) = table.files.get_mut(&ino).filter(|entry| entry.is_pinned) else { return };
        entry.is_pinned = false;
        let is_open = entry.handles > 0;
        table.pinned -= 1;
        if !is_open {
            table.files.remove(&ino);
        }
    }

    pub fn pinned(&self) -> Vec<Ino> {
        let table = self.lock();
        table.files.iter().filter(|(_, entry)| entry.is_pinned).map(|(ino, _)| *ino).collect()
    }

    pub fn all(&self) -> Vec<Arc<OpenFile>> {
        self.lock().files.values().map(|entry| entry.file.clone()).collect()
    }
}
