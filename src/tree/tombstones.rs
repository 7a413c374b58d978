//! Objects removed by this mount. The drive may still list them for a while.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::ids::FileId;

/// Lifetime of a tombstone: longer than any listing takes.
const TTL: Duration = Duration::from_secs(3600);
/// Most tombstones at a time. The oldest are dropped first.
const COUNT_MAX: usize = 200_000;

#[derive(Debug, Default)]
pub(super) struct Tombstones {
    removed_at: HashMap<FileId, Instant>,
    by_age: VecDeque<(Instant, FileId)>,
}

impl Tombstones {
    pub(super) fn add(&mut self, file: FileId, now: Instant) {
        self.by_age.push_back((now, file.clone()));
        self.removed_at.insert(file, now);
        while let Some((at, _)) = self.by_age.front()
            && (self.by_age.len() > COUNT_MAX || *at + TTL < now)
        {
            if let Some((at, file)) = self.by_age.pop_front()
                && self.removed_at.get(&file) == Some(&at)
            {
                self.removed_at.remove(&file);
            }
        }
    }

    pub(super) fn remove(&mut self, file: &FileId) {
        self.removed_at.remove(file);
    }

    /// Whether a listing that began at `started` may still contain the removed object.
    pub(super) fn hides(&self, file: &FileId, started: Instant, listing_lag: Duration) -> bool {
        self.removed_at.get(file).is_some_and(|&at| started < at + listing_lag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstones_expire_and_are_bounded() {
        let start = Instant::now();
        let listing_lag = Duration::from_secs(10);
        let mut tombstones = Tombstones::default();
        let file = FileId::new("f").unwrap();
        tombstones.add(file.clone(), start);
        assert!(tombstones.hides(&file, start, listing_lag));
        assert!(!tombstones.hides(&file, start + listing_lag, listing_lag));
        tombstones.add(FileId::new("g").unwrap(), start + TTL * 2);
        assert_eq!(tombstones.removed_at.len(), 1);
        for n in 0..=COUNT_MAX {
            tombstones.add(FileId::new(&n.to_string()).unwrap(), start + TTL * 2);
        }
        assert_eq!(tombstones.by_age.len(), COUNT_MAX);
        assert_eq!(tombstones.removed_at.len(), COUNT_MAX);
    }
}
