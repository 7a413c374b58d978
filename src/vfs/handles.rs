//! File handles of the kernel, with the access of each. All handles of an inode share one [`OpenFile`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::types::Fh;
use crate::content::open_file::{OpenFile, Writer};
use crate::content::reader::ReadCursor;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;

/// One `open(2)` of a file.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) file: Arc<OpenFile>,
    pub(super) access: Access,
    pub(super) id: HandleId,
    pub(super) cursor: ReadCursor,
    /// The last descriptor that was closed belonged to a process that was dying of a signal.
    was_killed: AtomicBool,
}

/// The identity of a handle.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandleId {
    pub(super) fh: Fh,
    /// The process that opened it for writing, if known.
    pub(super) opener: Option<u32>,
}

impl HandleId {
    /// The writer of what is written through the handle.
    pub(super) fn writer(self) -> Writer {
        self.opener.map_or(Writer::Handle(self.fh.0), Writer::Process)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Read,
    /// Opened for reading, but created or truncated the file, which must be committed.
    ReadNew,
    Write,
}

impl Access {
    pub(super) fn of(flags: i32) -> Self {
        match flags & libc::O_ACCMODE {
            libc::O_RDONLY if flags & libc::O_TRUNC == 0 => Self::Read,
            libc::O_RDONLY => Self::ReadNew,
            _ => Self::Write,
        }
    }

    /// Whether closing such a handle may commit.
    pub(super) fn may_commit(self) -> bool {
        !matches!(self, Self::Read)
    }
}

#[derive(Debug, Default)]
pub(super) struct Handles {
    /// A leaf lock.
    open: Mutex<HashMap<Fh, Arc<Handle>>>,
    next: AtomicU64,
}

impl Handles {
    fn lock(&self) -> MutexGuard<'_, HashMap<Fh, Arc<Handle>>> {
        self.open.lock()
    }

    /// The identity of a handle that is opened next.
    pub(super) fn next_id(&self, opener: Option<u32>) -> HandleId {
        HandleId { fh: Fh(self.next.fetch_add(1, Ordering::Relaxed) + 1), opener }
    }

    pub(super) fn add(&self, handle: Handle) -> Fh {
        let fh = handle.id.fh;
        self.lock().insert(fh, Arc::new(handle));
        fh
    }

    pub(super) fn get(&self, fh: Fh) -> Result<Arc<Handle>> {
        self.lock().get(&fh).cloned().ok_or_else(|| Error::new(ErrorKind::BadHandle, "no such file handle"))
    }

    pub(super) fn remove(&self, fh: Fh) -> Option<Arc<Handle>> {
        self.lock().remove(&fh)
    }

    /// Whether a writer has an open handle of a file.
    pub(super) fn has_writer(&self, ino: Ino, writer: Writer) -> bool {
        let is_its = |handle: &Arc<Handle>| handle.file.ino() == ino && handle.id.writer() == writer;
        self.lock().values().any(is_its)
    }
}

impl Handle {
    pub(super) fn new(file: Arc<OpenFile>, access: Access, id: HandleId, cursor: ReadCursor) -> Self {
        Self { file, access, id, cursor, was_killed: AtomicBool::new(false) }
    }

    /// Records the close of a descriptor. A RELEASE has no process: it uses the last one.
    pub(super) fn note_close(&self, is_killed: bool) {
        self.was_killed.store(is_killed, Ordering::Relaxed);
    }

    pub(super) fn was_killed(&self) -> bool {
        self.was_killed.load(Ordering::Relaxed)
    }

    pub(super) fn check_open_for_writing(&self) -> Result<()> {
        match self.access {
            Access::Read | Access::ReadNew => Err(Error::new(ErrorKind::BadHandle, "not open for writing")),
            Access::Write => Ok(()),
        }
    }
}
