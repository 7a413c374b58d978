//! Files whose names or objects are being changed on the drive.
//!
//! A rename takes several calls. A commit that began in the middle of them would be sent to a place, or over an
//! object, that is about to be another file's. So whoever moves a file says so first and then looks whether a commit is
//! under way; and a commit says that it is under way first and then waits for those who move. One of the two sees the other.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::ids::Ino;

/// The files that are being moved.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// How many are at it. A leaf lock.
    inodes: Mutex<HashMap<Ino, usize>>,
    ended: Notify,
}

/// Whoever moves files; over when it is dropped.
#[derive(Debug)]
pub(super) struct Mover<'a> {
    moving: &'a Moving,
    inodes: Vec<Ino>,
}

impl Moving {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, usize>> {
        self.inodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on no commit of these begins. Nobody who holds this may wait for one.
    pub(super) fn begin(&self, inodes: impl IntoIterator<Item = Ino>) -> Mover<'_> {
        let inodes: Vec<_> = inodes.into_iter().collect();
        let mut moving = self.lock();
        for ino in &inodes {
            *moving.entry(*ino).or_default() += 1;
        }
        Mover { moving: self, inodes }
    }

    /// Waits until nobody moves a file.
    pub(super) async fn rests(&self, ino: Ino) {
        loop {
            // Made before the look, so that no end between the two is missed.
            let ended = self.ended.notified();
            if !self.lock().contains_key(&ino) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Mover<'_> {
    fn drop(&mut self) {
        let mut moving = self.moving.lock();
        for ino in &self.inodes {
            if let Some(count) = moving.get_mut(ino) {
                *count -= 1;
                if *count == 0 {
                    moving.remove(ino);
                }
            }
        }
        drop(moving);
        self.moving.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_would_commit_waits_for_the_last_who_moves() {
        let moving = Moving::default();
        let (one, two) = (moving.begin([Ino(2), Ino(3)]), moving.begin([Ino(3), Ino(3)]));
        moving.rests(Ino(1)).await;
        let waits = moving.rests(Ino(3));
        tokio::pin!(waits);
        tokio::select! {
            biased;
            () = &mut waits => panic!("it is being moved"),
            () = std::future::ready(()) => {}
        }
        drop(one);
        tokio::select! {
            biased;
            () = &mut waits => panic!("it is still being moved"),
            () = moving.rests(Ino(2)) => {}
        }
        drop(two);
        waits.await;
        assert!(moving.lock().is_empty());
    }
}
