//! Copies of committed contents that are still here: the read cache of what was just written, and what a
//! program that writes on goes on from.
//!
//! They take room that nothing else needs at the moment: where room is short, the one that was used longest
//! ago goes. Nobody may count on a copy that is kept, so readers ask for it each time.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::reader::ReadTarget;
use super::staged::Staged;

/// Copies at once: each has a file descriptor.
const COPIES_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Copies of committed contents, by what they are copies of.
#[derive(Debug)]
pub struct Kept {
    /// A leaf lock. No copy is dropped under it: that gives room back.
    copies: Mutex<LruCache<ReadTarget, Arc<Staged>>>,
    /// How many there are, for those who need not know which.
    count: AtomicUsize,
}

impl Default for Kept {
    fn default() -> Self {
        Self { copies: Mutex::new(LruCache::new(COPIES_MAX)), count: AtomicUsize::new(0) }
    }
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, LruCache<ReadTarget, Arc<Staged>>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table; what `change` takes out is dropped when the lock is not held any more.
    fn change<T>(&self, change: impl FnOnce(&mut LruCache<ReadTarget, Arc<Staged>>) -> T) -> T {
        let mut copies = self.lock();
        let out = change(&mut copies);
        self.count.store(copies.len(), Ordering::Relaxed);
        out
    }

    /// Keeps a copy that has all of a content.
    pub fn put(&self, target: ReadTarget, copy: Arc<Staged>) {
        let pushed_out = self.change(|copies| copies.push(target, copy));
        drop(pushed_out);
    }

    /// The copy of a content, which counts as used now.
    pub fn get(&self, target: &ReadTarget) -> Option<Arc<Staged>> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.lock().get(target).cloned()
    }

    /// Whether there is a copy of a content. Says nothing of the next moment.
    pub fn has(&self, target: &ReadTarget) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.lock().contains(target)
    }

    /// The copy of a content, to be changed: it is not kept any more.
    pub fn take(&self, target: &ReadTarget) -> Option<Arc<Staged>> {
        self.change(|copies| copies.pop(target))
    }

    /// A content is another file's, or another revision's, from now on.
    pub fn rename(&self, old: &ReadTarget, new: ReadTarget) {
        if let Some(copy) = self.take(old) {
            self.put(new, copy);
        }
    }

    /// Drops the copy that was used longest ago; `false` where there is none.
    pub fn drop_oldest(&self) -> bool {
        self.change(LruCache::pop_lru).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::space::Space;
    use crate::error::ErrorKind;
    use crate::ids::FileId;

    fn target(name: &str) -> ReadTarget {
        ReadTarget { file_id: FileId::new(name).unwrap(), revision: None, size: 10, sha1: None }
    }

    fn copy(space: &Arc<Space>) -> Arc<Staged> {
        let copy = Staged::new(space, None).unwrap();
        copy.write(0, &[1; 10]).unwrap();
        copy
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path(), Some(35), 0);
        for name in ["a", "b", "c"] {
            space.kept().put(target(name), copy(&space));
        }
        assert!(space.kept().get(&target("a")).is_some());
        let other = copy(&space);
        assert_eq!(["a", "b", "c"].map(|name| space.kept().has(&target(name))), [true, false, true]);
        other.write(10, &[1; 15]).unwrap();
        assert_eq!(["a", "b", "c"].map(|name| space.kept().has(&target(name))), [true, false, false]);
        assert_eq!(space.taken_bytes(), 35);
        other.write(25, &[1; 10]).unwrap();
        assert!(!space.kept().has(&target("a")));
        assert_eq!(other.write(35, b"x").unwrap_err().kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn a_copy_in_use_is_given_back_when_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path(), Some(10), 0);
        space.kept().put(target("a"), copy(&space));
        let used = space.kept().get(&target("a")).unwrap();
        let other = Staged::new(&space, None).unwrap();
        assert_eq!(other.write(0, b"x").unwrap_err().kind(), ErrorKind::NoSpace);
        drop(used);
        other.write(0, b"x").unwrap();
    }

    #[test]
    fn copies_follow_their_content() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path(), None, 0);
        let kept = space.kept();
        kept.put(target("a"), copy(&space));
        kept.rename(&target("a"), target("b"));
        kept.rename(&target("a"), target("c"));
        assert_eq!(["a", "b", "c"].map(|name| kept.has(&target(name))), [false, true, false]);
        assert!(kept.take(&target("b")).is_some() && kept.take(&target("b")).is_none());
        assert!(!kept.drop_oldest());
        for n in 0..300 {
            kept.put(target(&format!("f{n}")), Staged::new(&space, None).unwrap());
        }
        assert!(!kept.has(&target("f0")) && kept.has(&target("f299")));
    }
}
