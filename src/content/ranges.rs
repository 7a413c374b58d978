//! A set of byte ranges: which bytes of a file are here.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint ranges that do not touch, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges {
    /// Start to end.
    ends: BTreeMap<u64, u64>,
    /// Sum of their lengths.
    bytes: u64,
}

impl Ranges {
    /// Bytes in the set.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a range; how many bytes of it were not in the set.
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let before = self.bytes;
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&left, &left_end)) = self.ends.range(..start).next_back()
            && left_end >= start
        {
            start = left;
            end = end.max(left_end);
        }
        while let Some((&next, &next_end)) = self.ends.range(start..=end).next() {
            end = end.max(next_end);
            self.ends.remove(&next);
            self.bytes -= next_end - next;
        }
        self.ends.insert(start, end);
        self.bytes += end - start;
        self.bytes - before
    }

    /// How many bytes of a range are not in the set.
    pub fn missing_bytes(&self, range: Range<u64>) -> u64 {
        let mut missing = range.end.saturating_sub(range.start);
        if let Some((_, end)) = self.ends.range(..range.start).next_back() {
            missing -= (*end).min(range.end).saturating_sub(range.start);
        }
        let begin_inside = self.ends.range(range.start..range.end.max(range.start));
        missing - begin_inside.map(|(start, end)| (*end).min(range.end) - start).sum::<u64>()
    }

    /// Takes a range away.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some((&left, &left_end)) = self.ends.range(..range.start).next_back()
            && left_end > range.start
        {
            self.ends.insert(left, range.start);
            self.bytes -= left_end - range.start;
            if left_end > range.end {
                self.ends.insert(range.end, left_end);
                self.bytes += left_end - range.end;
            }
        }
        while let Some((&next, &next_end)) = self.ends.range(range.clone()).next() {
            self.ends.remove(&next);
            self.bytes -= next_end - next;
            if next_end > range.end {
                self.ends.insert(range.end, next_end);
                self.bytes += next_end - range.end;
            }
        }
    }

    /// The first stretch of a range that is wholly in the set or wholly outside, and which of the two.
    /// `None` for an empty range.
    pub fn first_stretch(&self, range: Range<u64>) -> Option<(Range<u64>, bool)> {
        if range.is_empty() {
            return None;
        }
        let inside = self.ends.range(..=range.start).next_back().filter(|(_, end)| **end > range.start);
        if let Some((_, end)) = inside {
            return Some((range.start..range.end.min(*end), true));
        }
        let next = self.ends.range(range.start..range.end).next().map_or(range.end, |(start, _)| *start);
        Some((range.start..next, false))
    }

    /// The first stretch of a range that is not in the set.
    pub fn first_gap(&self, range: Range<u64>) -> Option<Range<u64>> {
        match self.first_stretch(range.clone())? {
            (gap, false) => Some(gap),
            // Ranges do not touch, so what follows is a gap.
            (held, true) => self.first_stretch(held.end..range.end).map(|(gap, _)| gap),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const END: u64 = 64;

    fn stretches(ranges: &Ranges) -> Vec<bool> {
        let (mut bits, mut at) = (Vec::new(), 0);
        while let Some((stretch, held)) = ranges.first_stretch(at..END) {
            assert_eq!(stretch.start, at);
            bits.extend(stretch.clone().map(|_| held));
            at = stretch.end;
        }
        bits
    }

    proptest! {
        #[test]
        fn the_set_is_a_set_of_bytes(steps in prop::collection::vec((any::<bool>(), 0..END, 0..END), 0..40)) {
            let mut bits = vec![false; END as usize];
            let mut ranges = Ranges::default();
            for (adds, from, to) in steps {
                let range = from.min(to)..from.max(to);
                let changed = &mut bits[range.start as usize..range.end as usize];
                let new = changed.iter().filter(|bit| !**bit).count() as u64;
                prop_assert_eq!(ranges.missing_bytes(range.clone()), new);
                if adds {
                    prop_assert_eq!(ranges.insert(range), new);
                } else {
                    ranges.remove(range);
                }
                changed.fill(adds);
                prop_assert_eq!(stretches(&ranges), bits.clone());
                prop_assert_eq!(ranges.bytes(), bits.iter().filter(|bit| **bit).count() as u64);
                for (start, end) in &ranges.ends {
                    prop_assert!(start < end && !ranges.ends.contains_key(end));
                }
                let first = bits[3..].iter().position(|bit| !bit).map(|at| at as u64 + 3);
                prop_assert_eq!(ranges.first_gap(3..END).map(|gap| gap.start), first);
            }
        }
    }
}
