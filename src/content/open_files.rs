//! Which files are open: every handle of an inode meets in one [`OpenFile`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::open_file::OpenFile;
use crate::ids::Ino;

/// The files that are open, by inode.
#[derive(Debug, Default)]
pub struct OpenFiles {
    /// Locked after the tree; nothing else is locked while it is held.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    files: HashMap<Ino, Opened>,
    /// How many of them are kept.
    kept: usize,
}

#[derive(Debug)]
struct Opened {
    file: Arc<OpenFile>,
    handles: usize,
    writers: usize,
    /// It is here although nobody may have it open: nothing else holds its content.
    is_kept: bool,
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
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open file of an inode.
    pub fn get(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.lock().files.get(&ino).map(|opened| opened.file.clone())
    }

    /// One more handle; `make` makes the file if it is the first.
    pub fn open(&self, ino: Ino, writes: bool, make: impl FnOnce() -> Arc<OpenFile>) -> Arc<OpenFile> {
        let mut table = self.lock();
        let opened = table.files.entry(ino).or_insert_with(|| Opened {
            file: make(),
            handles: 0,
            writers: 0,
            is_kept: false,
        });
        opened.handles += 1;
        opened.writers += usize::from(writes);
        opened.file.clone()
    }

    /// Whether somebody has it open who may write.
    pub fn has_writers(&self, ino: Ino) -> bool {
        self.lock().files.get(&ino).is_some_and(|opened| opened.writers > 0)
    }

    /// Whether somebody has it open, and nobody may write.
    pub fn has_readers_only(&self, ino: Ino) -> bool {
        self.lock().files.get(&ino).is_some_and(|opened| opened.handles > 0 && opened.writers == 0)
    }

    /// A handle will write no more, before it is closed; whether it was the last one that could. Of
    /// several that leave at once exactly one is told so: it settles.
    pub fn leave_writer(&self, ino: Ino) -> bool {
        let mut table = self.lock();
        let Some(opened) = table.files.get_mut(&ino) else { return true };
        opened.writers -= 1;
        opened.writers == 0
    }

    /// One handle less, which writes no more; what is left.
    pub fn close(&self, ino: Ino) -> Left {
        let mut table = self.lock();
        let Some(opened) = table.files.get_mut(&ino) else { return Left::Nothing };
        opened.handles -= 1;
        match (opened.handles, opened.writers) {
            (0, _) if !opened.is_kept => {
                table.files.remove(&ino);
                Left::Nothing
            }
            (_, 0) => Left::Readers,
            _ => Left::Writers,
        }
    }

    /// Keeps an open file, also when nobody has it open any more, until [`Self::let_go`]. `false` where `max`
    /// are kept already.
    pub fn keep(&self, ino: Ino, max: usize) -> bool {
        let mut table = self.lock();
        let has_room = table.kept < max;
        let Some(opened) = table.files.get_mut(&ino).filter(|opened| has_room && !opened.is_kept) else {
            return false;
        };
        opened.is_kept = true;
        table.kept += 1;
        true
    }

    /// An open file is kept only as long as somebody has it open.
    pub fn let_go(&self, ino: Ino) {
        let mut table = self.lock();
        let Some(opened) = table.files.get_mut(&ino).filter(|opened| opened.is_kept) else { return };
        opened.is_kept = false;
        let is_open = opened.handles > 0;
        table.kept -= 1;
        if !is_open {
            table.files.remove(&ino);
        }
    }

    /// The files that are kept.
    pub fn kept(&self) -> Vec<Ino> {
        let table = self.lock();
        table.files.iter().filter(|(_, opened)| opened.is_kept).map(|(ino, _)| *ino).collect()
    }

    /// Every open file.
    pub fn all(&self) -> Vec<Arc<OpenFile>> {
        self.lock().files.values().map(|opened| opened.file.clone()).collect()
    }
}
