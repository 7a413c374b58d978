//! File handles of the kernel, with the access of each. All handles of an inode share one [`OpenFile`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::types::Fh;
use crate::content::open_file::OpenFile;
use crate::content::reader::ReadCursor;
use crate::error::{Error, ErrorKind, Result};

/// One `open(2)` of a file.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) file: Arc<OpenFile>,
    pub(super) access: Access,
    /// The process that opened it for writing.
    pub(super) opener: Option<u32>,
    /// Set by the first write through this handle.
    pub(super) wrote: AtomicBool,
    pub(super) cursor: ReadCursor,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Read,
    /// Opened for reading, but created the file, which must be committed.
    Create,
    Write {
        append: bool,
    },
}

impl Access {
    pub(super) fn of(flags: i32) -> Self {
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            Self::Read
        } else {
            Self::Write { append: flags & libc::O_APPEND != 0 }
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

    pub(super) fn add(&self, handle: Handle) -> Fh {
        let fh = Fh(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        self.lock().insert(fh, Arc::new(handle));
        fh
    }

    pub(super) fn get(&self, fh: Fh) -> Result<Arc<Handle>> {
        self.lock().get(&fh).cloned().ok_or_else(|| Error::new(ErrorKind::BadHandle, "no such file handle"))
    }

    pub(super) fn remove(&self, fh: Fh) -> Option<Arc<Handle>> {
        self.lock().remove(&fh)
    }
}

impl Handle {
    pub(super) fn write_offset(&self, offset: u64) -> Result<u64> {
        match self.access {
            Access::Read | Access::Create => Err(Error::new(ErrorKind::BadHandle, "not open for writing")),
            Access::Write { append: true } => Ok(self.file.size()),
            Access::Write { append: false } => Ok(offset),
        }
    }
}
