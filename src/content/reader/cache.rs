//! Blocks of content that were read, the least recently used going first.
//!
//! A block is not copied out of the answer it came in: all blocks of one answer share its buffer,
//! and a buffer stays in memory until the last of its blocks has left. So the cache counts
//! *buffers*, each in full until it is free, and what it counts is what it really holds.
//!
//! A key names the content itself, so nothing ever has to be invalidated: a new revision is
//! simply another key.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;

use super::ReadTarget;
use super::window::BLOCK_BYTES;

/// One block of one content.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct BlockKey {
    target: ReadTarget,
    block: u64,
}

/// One answer: the bytes of a run of blocks. Only the cache holds references to it, one per block,
/// which is how it knows when the last one leaves.
#[derive(Debug)]
struct Segment {
    start: u64,
    bytes: Bytes,
}

/// The blocks that are there, bounded by the bytes of their buffers.
#[derive(Debug)]
pub(super) struct BlockCache {
    blocks: LruCache<BlockKey, Arc<Segment>>,
    bytes: u64,
    bytes_max: u64,
}

impl BlockCache {
    /// An empty cache that never holds more than `bytes_max` between two calls.
    pub(super) fn new(bytes_max: u64) -> Self {
        // `lru` bounds entries; here buffers are what costs, so the bound is kept in `insert`.
        Self { blocks: LruCache::unbounded(), bytes: 0, bytes_max }
    }

    /// Bytes held now.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a block is there. Does not count as a use.
    pub(super) fn contains(&self, target: &ReadTarget, block: u64) -> bool {
        self.blocks.contains(&BlockKey { target: target.clone(), block })
    }

    /// The longest piece of `wanted` that starts at its start and is in one buffer, without copying.
    /// Its blocks count as used.
    pub(super) fn get(&mut self, target: &ReadTarget, wanted: &Range<u64>) -> Option<Bytes> {
        let mut key = BlockKey { target: target.clone(), block: wanted.start / BLOCK_BYTES };
        let segment = self.blocks.get(&key)?;
        let first = wanted.start.checked_sub(segment.start)? as usize;
        let last = (wanted.end - segment.start).min(segment.bytes.len() as u64) as usize;
        if first >= last {
            return None;
        }
        let piece = segment.bytes.slice(first..last);
        let end = segment.start + last as u64;
        for block in key.block + 1..end.div_ceil(BLOCK_BYTES) {
            key.block = block;
            self.blocks.promote(&key);
        }
        Some(piece)
    }

    /// Takes in the bytes that start at `start`, which must be a block's first byte, and lets the
    /// least recently used go.
    pub(super) fn insert(&mut self, target: &ReadTarget, start: u64, bytes: Bytes) {
        debug_assert!(start.is_multiple_of(BLOCK_BYTES), "{start} is inside a block");
        if bytes.is_empty() {
            return;
        }
        let first = start / BLOCK_BYTES;
        let count = (bytes.len() as u64).div_ceil(BLOCK_BYTES);
        self.bytes += bytes.len() as u64;
        let segment = Arc::new(Segment { start, bytes });
        for block in first..first + count {
            let old = self.blocks.put(BlockKey { target: target.clone(), block }, segment.clone());
            self.release(old);
        }
        // The blocks above hold the references that count.
        self.release(Some(segment));
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.blocks.pop_lru() else { break };
            self.release(Some(oldest));
        }
    }

    fn release(&mut self, reference: Option<Arc<Segment>>) {
        if let Some(freed) = reference.and_then(Arc::into_inner) {
            self.bytes -= freed.bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::reader::tests::target;

    const B: u64 = BLOCK_BYTES;

    fn run(blocks: u64, fill: u8) -> Bytes {
        Bytes::from(vec![fill; (blocks * B) as usize])
    }

    #[test]
    fn a_piece_is_a_view_of_the_buffer_and_ends_where_the_buffer_ends() {
        let (file, mut cache) = (target("a", 10 * B), BlockCache::new(100 * B));
        let buffer = run(3, 1);
        cache.insert(&file, 2 * B, buffer.clone());
        let piece = cache.get(&file, &(2 * B + 5..9 * B)).unwrap();
        assert_eq!(piece.len() as u64, 3 * B - 5);
        assert_eq!(piece.as_ptr(), buffer[5..].as_ptr());
        assert_eq!(cache.get(&file, &(5 * B..6 * B)), None);
        assert_eq!(cache.get(&target("b", 10 * B), &(2 * B..3 * B)), None);
    }

    #[test]
    fn a_buffer_counts_until_its_last_block_has_left() {
        let (file, mut cache) = (target("a", 100 * B), BlockCache::new(4 * B));
        cache.insert(&file, 0, run(4, 1));
        assert_eq!(cache.bytes(), 4 * B);
        // The last block is used and so outlives the others, but the buffer is one: all must go.
        cache.get(&file, &(3 * B..4 * B)).unwrap();
        cache.insert(&file, 10 * B, run(1, 2));
        assert_eq!(cache.bytes(), B);
        assert!((0..4).all(|block| !cache.contains(&file, block)));
        assert!(cache.contains(&file, 10));
    }

    #[test]
    fn what_was_used_last_stays() {
        let (file, mut cache) = (target("a", 100 * B), BlockCache::new(2 * B));
        cache.insert(&file, 0, run(1, 1));
        cache.insert(&file, B, run(1, 2));
        cache.get(&file, &(0..1)).unwrap();
        cache.insert(&file, 2 * B, run(1, 3));
        assert!(cache.contains(&file, 0) && !cache.contains(&file, 1) && cache.contains(&file, 2));
    }

    #[test]
    fn a_last_block_may_be_short_and_a_cache_may_hold_nothing() {
        let (file, mut cache) = (target("a", B + 3), BlockCache::new(4 * B));
        cache.insert(&file, B, Bytes::from_static(b"xyz"));
        assert_eq!(cache.get(&file, &(B + 1..B + 3)).unwrap().as_ref(), b"yz");
        assert_eq!(cache.bytes(), 3);
        let mut none = BlockCache::new(0);
        none.insert(&file, 0, run(1, 1));
        assert_eq!((none.bytes(), none.contains(&file, 0)), (0, false));
    }

    proptest! {
        /// Whatever comes in, in whatever order and overlapping: the bound holds, the count equals the
        /// buffers that are really referenced, and a block that is there has the bytes of its last insert.
        #[test]
        fn the_count_is_what_is_held(
            inserts in proptest::collection::vec((0_u64..12, 1_u64..5, 0_u64..12), 1..40),
            blocks_max in 0_u64..8,
        ) {
            let (file, mut cache) = (target("a", 100 * B), BlockCache::new(blocks_max * B));
            let mut newest = [0_u8; 16];
            for (fill, (first, count, used)) in (1_u8..).zip(inserts) {
                cache.insert(&file, first * B, run(count, fill));
                newest[first as usize..(first + count) as usize].fill(fill);
                let _ = cache.get(&file, &(used * B..used * B + 1));
                let mut held: Vec<_> = cache.blocks.iter().map(|(_, s)| (Arc::as_ptr(s), s.bytes.len())).collect();
                held.sort_unstable();
                held.dedup();
                prop_assert_eq!(cache.bytes(), held.iter().map(|(_, len)| *len as u64).sum::<u64>());
                prop_assert!(cache.bytes() <= blocks_max * B);
                for block in 0..16 {
                    if let Some(piece) = cache.get(&file, &(block * B..block * B + 1)) {
                        prop_assert_eq!(piece[0], newest[block as usize]);
                    }
                }
            }
        }
    }
}
