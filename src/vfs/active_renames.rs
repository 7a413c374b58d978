//! Files whose names or objects are being changed on the drive.
//!
//! A rename takes several calls. A commit that starts between them could write to a location, or over an
//! object, that is about to belong to another file. So a rename registers here first, and then checks for a
//! running commit. A commit marks itself as running first, and then waits here. At least one of the two sees
//! the other.

use std::collections::HashMap;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::ids::Ino;

#[derive(Debug, Default)]
pub(super) struct ActiveRenames {
    /// Number of active renames of an inode. A leaf lock.
    inodes: Mutex<HashMap<Ino, usize>>,
    ended: Notify,
}

/// An active rename; ends when dropped. Its holder must not wait for a commit of these inodes.
#[derive(Debug)]
pub(super) struct RenameGuard<'a> {
    active_renames: &'a ActiveRenames,
    inodes: Vec<Ino>,
}

impl ActiveRenames {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, usize>> {
        self.inodes.lock()
    }

    /// From now on no commit of `inodes` starts.
    pub(super) fn begin(&self, inodes: impl IntoIterator<Item = Ino>) -> RenameGuard<'_> {
        let inodes: Vec<_> = inodes.into_iter().collect();
        let mut counts = self.lock();
        for ino in &inodes {
            *counts.entry(*ino).or_default() += 1;
        }
        RenameGuard { active_renames: self, inodes }
    }

    /// Waits until no rename of `ino` is active.
    pub(super) async fn wait_idle(&self, ino: Ino) {
        loop {
            // Created before the check, so that no notification in between is missed.
            let ended = self.ended.notified();
            if !self.lock().contains_key(&ino) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for RenameGuard<'_> {
    fn drop(&mut self) {
        let mut counts = self.active_renames.lock();
        for ino in &self.inodes {
            if let Some(count) = counts.get_mut(ino) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(ino);
                }
            }
        }
        drop(counts);
        self.active_renames.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commit_waits_for_the_last_rename() {
        let renames = ActiveRenames::default();
        let (one, two) = (renames.begin([Ino(2), Ino(3)]), renames.begin([Ino(3), Ino(3)]));
        renames.wait_idle(Ino(1)).await;
        let waits = renames.wait_idle(Ino(3));
        tokio::pin!(waits);
        tokio::select! {
            biased;
            () = &mut waits => panic!("two renames are active"),
            () = std::future::ready(()) => {}
        }
        drop(one);
        tokio::select! {
            biased;
            () = &mut waits => panic!("one rename is active"),
            () = renames.wait_idle(Ino(2)) => {}
        }
        drop(two);
        waits.await;
        assert!(renames.lock().is_empty());
    }
}
