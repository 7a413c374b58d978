//! The byte ranges of a file that are present on this machine: a `RangeSet` with a running total.

use std::ops::Range;

use rangemap::RangeSet;

/// Disjoint byte ranges, and the number of bytes in them.
#[derive(Clone, Debug, Default)]
pub(super) struct PresentRanges {
    set: RangeSet<u64>,
    /// Sum of the lengths. Kept because a write needs it, and summing up a fragmented file takes long.
    bytes: u64,
}

impl PresentRanges {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The ranges in ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.set.iter().cloned()
    }

    pub(super) fn insert(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.bytes += self.missing_bytes(&range);
            self.set.insert(range);
        }
    }

    pub(super) fn remove(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.bytes -= range.end - range.start - self.missing_bytes(&range);
            self.set.remove(range);
        }
    }

    /// How many bytes of `range` are not present.
    pub(super) fn missing_bytes(&self, range: &Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        self.set.gaps(range).map(|gap| gap.end - gap.start).sum()
    }

    /// The longest beginning of `range` that is all present or all missing, and whether it is present. `None`
    /// for an empty range.
    pub(super) fn first_run(&self, range: &Range<u64>) -> Option<(Range<u64>, bool)> {
        if range.is_empty() {
            return None;
        }
        if let Some(present) = self.set.get(&range.start) {
            return Some((range.start..range.end.min(present.end), true));
        }
        self.first_gap(range).map(|gap| (gap, false))
    }

    /// The first missing part of `range`.
    pub(super) fn first_gap(&self, range: &Range<u64>) -> Option<Range<u64>> {
        if range.is_empty() { None } else { self.set.gaps(range).next() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const END: u64 = 64;

    fn bits_of(ranges: &PresentRanges) -> Vec<bool> {
        let (mut bits, mut at) = (Vec::new(), 0);
        while let Some((run, is_present)) = ranges.first_run(&(at..END)) {
            assert_eq!(run.start, at);
            bits.extend(run.clone().map(|_| is_present));
            at = run.end;
        }
        bits
    }

    proptest! {
        #[test]
        fn ranges_match_a_bit_map(steps in prop::collection::vec((any::<bool>(), 0..END, 0..END), 0..40)) {
            let mut bits = vec![false; END as usize];
            let mut ranges = PresentRanges::default();
            for (inserts, from, to) in steps {
                let range = from.min(to)..from.max(to);
                let changed = &mut bits[range.start as usize..range.end as usize];
                let missing = changed.iter().filter(|bit| !**bit).count() as u64;
                prop_assert_eq!(ranges.missing_bytes(&range), missing);
                if inserts {
                    ranges.insert(range);
                } else {
                    ranges.remove(range);
                }
                changed.fill(inserts);
                prop_assert_eq!(bits_of(&ranges), bits.clone());
                prop_assert_eq!(ranges.bytes(), bits.iter().filter(|bit| **bit).count() as u64);
                let first = bits[3..].iter().position(|bit| !bit).map(|at| at as u64 + 3);
                prop_assert_eq!(ranges.first_gap(&(3..END)).map(|gap| gap.start), first);
            }
        }
    }
}
