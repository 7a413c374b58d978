//! Renames that happened while a commit was ending: they are applied to the tree and not yet to the drive.
//!
//! ```text
//!   commit ended --> active --> done
//!                      |
//!                      v
//!                   pending --(retried periodically and by a drain)--> done
//! ```
//!
//! Until a late rename is done, the drive has the file under its former name. It counts as unsaved.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::content::commit::CommitOutcome;
use crate::content::open_file::OpenFile;
use crate::ids::Ino;

/// A committed file that is not at its location on the drive.
#[derive(Clone, Debug)]
pub(super) struct LateRename {
    pub(super) file: Arc<OpenFile>,
    pub(super) committed: CommitOutcome,
}

#[derive(Debug)]
pub(super) struct LateRenames {
    active: watch::Sender<usize>,
    /// A leaf lock.
    pending: Mutex<HashMap<Ino, LateRename>>,
}

impl Default for LateRenames {
    fn default() -> Self {
        Self { active: watch::Sender::new(0), pending: Mutex::default() }
    }
}

/// One attempt; ends when dropped.
#[derive(Debug)]
pub(super) struct LateRenameGuard<'a>(&'a LateRenames);

impl Drop for LateRenameGuard<'_> {
    fn drop(&mut self) {
        self.0.active.send_modify(|count| *count -= 1);
    }
}

impl LateRenames {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Ino, LateRename>> {
        self.pending.lock()
    }

    /// Begins an attempt. Called when a commit has ended: a rename may have happened while it ran.
    pub(super) fn begin(&self) -> LateRenameGuard<'_> {
        self.active.send_modify(|count| *count += 1);
        LateRenameGuard(self)
    }

    /// Number of files that are, or may be, at a wrong location.
    pub(super) fn count(&self) -> usize {
        *self.active.borrow() + self.lock().len()
    }

    pub(super) fn pending(&self) -> Vec<Arc<OpenFile>> {
        self.lock().values().map(|late_rename| late_rename.file.clone()).collect()
    }

    /// Waits until no attempt is active.
    pub(super) async fn wait_idle(&self) {
        // Cannot fail: the sender lives as long as `self`.
        let _ = self.active.subscribe().wait_for(|count| *count == 0).await.is_ok();
    }
}
