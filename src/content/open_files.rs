//! Which files are open: every handle of an inode meets in one [`OpenFile`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::open_file::OpenFile;
use crate::ids::Ino;

/// The files that are open, by inode.
#[derive(Debug, Default)]
pub struct OpenFiles {
    /// Locked after the tree; nothing else is locked while it is held.
    files: Mutex<HashMap<Ino, Opened>>,
}

#[derive(Debug)]
struct Opened {
    file: Arc<OpenFile>,
    handles: usize,
    writers: usize,
}

/// The handles of a file after one was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// None: the file is not open any more.
    Nothing,
    /// None that could write.
    Readers,
    /// Some that can write.
    Writers,
}

impl OpenFiles {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, Opened>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open file of an inode.
    pub fn get(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.lock().get(&ino).map(|opened| opened.file.clone())
    }

    /// One more handle; `make` makes the file if it is the first.
    pub fn open(&self, ino: Ino, writes: bool, make: impl FnOnce() -> Arc<OpenFile>) -> Arc<OpenFile> {
        let mut files = self.lock();
        let opened = files.entry(ino).or_insert_with(|| Opened { file: make(), handles: 0, writers: 0 });
        opened.handles += 1;
        opened.writers += usize::from(writes);
        opened.file.clone()
    }

    /// A handle will write no more, before it is closed; whether it was the last one that could. Of
    /// several that leave at once exactly one is told so: it settles.
    pub fn leave_writer(&self, ino: Ino) -> bool {
        let mut files = self.lock();
        let Some(opened) = files.get_mut(&ino) else { return true };
        opened.writers -= 1;
        opened.writers == 0
    }

    /// One handle less, which writes no more; what is left.
    pub fn close(&self, ino: Ino) -> Left {
        let mut files = self.lock();
        let Some(opened) = files.get_mut(&ino) else { return Left::Nothing };
        opened.handles -= 1;
        match (opened.handles, opened.writers) {
            (0, _) => {
                files.remove(&ino);
                Left::Nothing
            }
            (_, 0) => Left::Readers,
            _ => Left::Writers,
        }
    }

    /// Every open file.
    pub fn all(&self) -> Vec<Arc<OpenFile>> {
        self.lock().values().map(|opened| opened.file.clone()).collect()
    }
}
