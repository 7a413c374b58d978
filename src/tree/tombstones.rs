//! Objects that were removed here and may still be listed for a while.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::ids::FileId;

/// Longest time that a tombstone is of use: longer than any listing takes.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// Most tombstones at a time; the oldest go first.
const COUNT_MAX: usize = 200_000;

/// When objects were removed.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    removed_at: HashMap<FileId, Instant>,
    by_age: VecDeque<(Instant, FileId)>,
}

impl Tombstones {
    /// Remembers a removal.
    pub(super) fn add(&mut self, file: FileId, now: Instant) {
        self.by_age.push_back((now, file.clone()));
        self.removed_at.insert(file, now);
        while let Some((at, _)) = self.by_age.front()
            && (self.by_age.len() > COUNT_MAX || *at + KEPT_FOR < now)
        {
            if let Some((at, file)) = self.by_age.pop_front()
                && self.removed_at.get(&file) == Some(&at)
            {
                self.removed_at.remove(&file);
            }
        }
    }

    /// Whether a listing that began at `started` may still show an object that is gone.
    pub(super) fn hides(&self, file: &FileId, started: Instant, grace: Duration) -> bool {
        self.removed_at.get(file).is_some_and(|&at| started < at + grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstones_are_few_and_end() {
        let start = Instant::now();
        let grace = Duration::from_secs(10);
        let mut tombstones = Tombstones::default();
        let file = FileId::new("f").unwrap();
        tombstones.add(file.clone(), start);
        assert!(tombstones.hides(&file, start, grace));
        assert!(!tombstones.hides(&file, start + grace, grace));
        tombstones.add(FileId::new("g").unwrap(), start + KEPT_FOR * 2);
        assert_eq!(tombstones.removed_at.len(), 1);
        for n in 0..=COUNT_MAX {
            tombstones.add(FileId::new(&n.to_string()).unwrap(), start + KEPT_FOR * 2);
        }
        assert_eq!(tombstones.by_age.len(), COUNT_MAX);
        assert_eq!(tombstones.removed_at.len(), COUNT_MAX);
    }
}
