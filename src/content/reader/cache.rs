//! The block cache: blocks of committed content, evicted least recently used first.
//!
//! A block is not copied out of its answer: all blocks of one answer share its buffer, which stays in memory
//! until the last of its blocks is evicted. So the cache counts *buffers*, each in full until it is freed.
//! The count is the memory that the cache really holds.
//!
//! The key is the content: a new revision has another key. So entries are dropped only if their bytes are wrong.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;

use super::target::ReadTarget;
use super::window::BLOCK_BYTES;

/// One block of one content.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct BlockKey {
    target: ReadTarget,
    block: u64,
}

/// One answer: the bytes of a run of blocks. Only the cache references it, once per block, so the cache sees
/// the drop of the last reference.
#[derive(Debug)]
struct Segment {
    start: u64,
    bytes: Bytes,
}

/// The cached blocks, bounded by the bytes of their buffers.
#[derive(Debug)]
pub(super) struct BlockCache {
    blocks: LruCache<BlockKey, Arc<Segment>>,
    bytes: u64,
    bytes_max: u64,
}

impl BlockCache {
    /// An empty cache, which holds at most `bytes_max` between two calls.
    pub(super) fn new(bytes_max: u64) -> Self {
        // `lru` bounds the number of entries. Buffers are the cost here, so `insert` keeps the bound.
        Self { blocks: LruCache::unbounded(), bytes: 0, bytes_max }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a block is cached. Does not count as a use.
    pub(super) fn contains(&self, target: &ReadTarget, block: u64) -> bool {
        self.blocks.contains(&BlockKey { target: target.clone(), block })
    }

    /// The longest beginning of `wanted` in one buffer, without a copy. Counts as a use of its blocks.
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

    /// Drops the blocks of a content.
    pub(super) fn remove(&mut self, target: &ReadTarget) {
        let blocks = self.blocks.iter().filter(|(key, _)| key.target == *target);
        let keys: Vec<_> = blocks.map(|(key, _)| key.clone()).collect();
        for key in keys {
            let segment = self.blocks.pop(&key);
            self.release(segment);
        }
    }

    /// Adds the bytes of a run. `start` must be the first byte of a block. Evicts the least recently used
    /// blocks.
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
        // From here on only the blocks hold references.
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
    fn piece_is_a_view_of_one_buffer() {
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
    fn buffer_counts_until_its_last_block_is_evicted() {
        let (file, mut cache) = (target("a", 100 * B), BlockCache::new(4 * B));
        cache.insert(&file, 0, run(4, 1));
        assert_eq!(cache.bytes(), 4 * B);
        // The last block was used and is evicted last. The buffer is freed only with it, so all must go.
        cache.get(&file, &(3 * B..4 * B)).unwrap();
        cache.insert(&file, 10 * B, run(1, 2));
        assert_eq!(cache.bytes(), B);
        assert!((0..4).all(|block| !cache.contains(&file, block)));
        assert!(cache.contains(&file, 10));
    }

    #[test]
    fn least_recently_used_block_is_evicted() {
        let (file, mut cache) = (target("a", 100 * B), BlockCache::new(2 * B));
        cache.insert(&file, 0, run(1, 1));
        cache.insert(&file, B, run(1, 2));
        cache.get(&file, &(0..1)).unwrap();
        cache.insert(&file, 2 * B, run(1, 3));
        assert!(cache.contains(&file, 0) && !cache.contains(&file, 1) && cache.contains(&file, 2));
    }

    #[test]
    fn short_last_block_and_zero_cache_work() {
        let (file, mut cache) = (target("a", B + 3), BlockCache::new(4 * B));
        cache.insert(&file, B, Bytes::from_static(b"xyz"));
        assert_eq!(cache.get(&file, &(B + 1..B + 3)).unwrap().as_ref(), b"yz");
        assert_eq!(cache.bytes(), 3);
        let mut none = BlockCache::new(0);
        none.insert(&file, 0, run(1, 1));
        assert_eq!((none.bytes(), none.contains(&file, 0)), (0, false));
    }

    proptest! {
        /// For overlapping inserts in any order: the bound holds, the count equals the referenced buffers,
        /// and a cached block has the bytes of its last insert.
        #[test]
        fn cache_count_equals_referenced_buffers(
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
