//! The buffer pool: the memory of all write buffers of a mount, with one limit.
//!
//! Buffers are slabs, small enough for hundreds of files open for writing. A slab of a part in flight returns
//! when the drive has the part. A slab of a filling part returns only after that part is full. So a writer
//! may wait for memory while any slab is in flight. If none is in flight, the writer must spill to a local
//! file: it would wait for itself.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::arena::{AlignedBuffer, buffers};

/// Usual size of a slab in bytes.
const SLAB_BYTES: u64 = 256 << 10;
/// Arenas that stay allocated while no slab is in use.
const IDLE_ARENAS_MAX: usize = 2;

/// A bounded pool of slabs.
#[derive(Debug)]
pub struct BufferPool {
    slab_bytes: usize,
    slabs_max: usize,
    /// A leaf lock: nothing else is locked under it.
    state: Mutex<PoolState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct PoolState {
    in_use: usize,
    in_flight: usize,
    free: Vec<AlignedBuffer>,
}

impl PoolState {
    /// Frees the memory of all but [`IDLE_ARENAS_MAX`] arenas. All slabs are free.
    fn trim(&mut self) {
        let (mut kept, mut arenas) = (Vec::<AlignedBuffer>::new(), 0);
        for buffer in std::mem::take(&mut self.free) {
            let is_known = kept.iter().any(|other| other.shares_arena(&buffer));
            if is_known || arenas < IDLE_ARENAS_MAX {
                arenas += usize::from(!is_known);
                kept.push(buffer);
            }
        }
        self.free = kept;
    }
}

/// The outcome of [`BufferPool::allocate`].
#[derive(Debug)]
pub(super) enum Allocation {
    Slab(Slab),
    /// A slab in flight will return: wait for [`BufferPool::changed`].
    Wait,
    /// No slab returns by itself: spill to the local disk.
    Spill,
}

impl BufferPool {
    /// A pool of `bytes_max`, in slabs no larger than a part.
    pub fn new(bytes_max: u64, part_bytes: u64) -> Arc<Self> {
        let slab_bytes = SLAB_BYTES.min(part_bytes);
        Arc::new(Self {
            slab_bytes: slab_bytes as usize,
            slabs_max: (bytes_max / slab_bytes).max(1) as usize,
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock()
    }

    pub fn bytes_in_use(&self) -> u64 {
        (self.lock().in_use * self.slab_bytes) as u64
    }

    /// Whether less than half of the pool is in use.
    pub(super) fn is_half_free(&self) -> bool {
        self.lock().in_use < self.slabs_max / 2
    }

    pub(super) fn allocate(self: &Arc<Self>) -> Allocation {
        let mut state = self.lock();
        if state.in_use >= self.slabs_max {
            return if state.in_flight > 0 { Allocation::Wait } else { Allocation::Spill };
        }
        if state.free.is_empty() {
            state.free = buffers(self.slab_bytes, self.slabs_max - state.in_use);
        }
        let Some(buffer) = state.free.pop() else { return Allocation::Spill };
        state.in_use += 1;
        Allocation::Slab(Slab { buffer: Some(buffer), pool: self.clone() })
    }

    /// Ends the slabs of a complete part. They are in flight from now on, and return together when the last
    /// of the returned views is dropped.
    pub(super) fn freeze(slabs: Vec<Slab>) -> impl Iterator<Item = Bytes> {
        let pool = slabs.first().map(|slab| slab.pool.clone());
        let part = pool.map(|pool| {
            let buffers: Vec<_> = slabs.into_iter().filter_map(|mut slab| slab.buffer.take()).collect();
            pool.lock().in_flight += buffers.len();
            Arc::new(SlabsInFlight { buffers, pool })
        });
        let count = part.as_ref().map_or(0, |part| part.buffers.len());
        let views = std::iter::repeat_n(part, count).flatten().enumerate();
        views.map(|(index, part)| Bytes::from_owner(SlabView { part, index }))
    }

    fn release(&self, buffers: impl Iterator<Item = AlignedBuffer>, in_flight: usize) {
        let mut state = self.lock();
        for mut buffer in buffers {
            buffer.truncate(0);
            state.free.push(buffer);
            state.in_use -= 1;
        }
        state.in_flight -= in_flight;
        if state.in_use == 0 {
            state.trim();
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Resolves when a slab is returned after this call.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

/// A buffer of the pool. Dropping it returns it.
#[derive(Debug)]
pub(super) struct Slab {
    /// `None` once the part of the slab is frozen.
    buffer: Option<AlignedBuffer>,
    pool: Arc<BufferPool>,
}

impl Slab {
    /// Appends up to `room_max` bytes of `data`, as far as the slab has room. Returns how many.
    pub(super) fn fill(&mut self, data: &[u8], room_max: usize) -> usize {
        let taken = data.len().min(self.pool.slab_bytes - self.bytes().len()).min(room_max);
        self.buffer.as_mut().map_or(0, |buffer| buffer.extend(&data[..taken]))
    }

    /// Overwrites bytes `at..`. Returns how many bytes of `data` were within the slab.
    pub(super) fn patch(&mut self, at: usize, data: &[u8]) -> usize {
        let Some(buffer) = &mut self.buffer else { return 0 };
        let tail = &mut buffer.bytes_mut()[at..];
        let count = tail.len().min(data.len());
        tail[..count].copy_from_slice(&data[..count]);
        count
    }

    pub(super) fn truncate(&mut self, bytes: usize) {
        if let Some(buffer) = &mut self.buffer {
            buffer.truncate(bytes);
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], AlignedBuffer::bytes)
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.release(std::iter::once(buffer), 0);
        }
    }
}

/// The slabs of a part in flight.
#[derive(Debug)]
struct SlabsInFlight {
    buffers: Vec<AlignedBuffer>,
    pool: Arc<BufferPool>,
}

impl Drop for SlabsInFlight {
    fn drop(&mut self) {
        let count = self.buffers.len();
        self.pool.release(self.buffers.drain(..), count);
    }
}

/// One slab of a part in flight.
struct SlabView {
    part: Arc<SlabsInFlight>,
    index: usize,
}

impl AsRef<[u8]> for SlabView {
    fn as_ref(&self) -> &[u8] {
        self.part.buffers.get(self.index).map_or(&[], AlignedBuffer::bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::arena::ARENA_BYTES;

    fn slab(buffer_pool: &Arc<BufferPool>) -> Slab {
        match buffer_pool.allocate() {
            Allocation::Slab(slab) => slab,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn wait_needs_a_slab_in_flight() {
        let buffer_pool = BufferPool::new(128, 64);
        let (first, _second) = (slab(&buffer_pool), slab(&buffer_pool));
        assert!(matches!(buffer_pool.allocate(), Allocation::Spill));
        let first: Vec<Bytes> = BufferPool::freeze(vec![first]).collect();
        assert!(matches!(buffer_pool.allocate(), Allocation::Wait));
        drop(first);
        assert_eq!(buffer_pool.bytes_in_use(), 64);
        let _third = slab(&buffer_pool);
        assert!(matches!(buffer_pool.allocate(), Allocation::Spill));
    }

    #[test]
    fn slabs_of_a_part_return_together() {
        let buffer_pool = BufferPool::new(256, 64);
        let mut slabs = vec![slab(&buffer_pool), slab(&buffer_pool), slab(&buffer_pool)];
        for (index, slab) in slabs.iter_mut().enumerate() {
            slab.fill(&[index as u8; 9], 9);
        }
        let mut views: Vec<Bytes> = BufferPool::freeze(slabs).collect();
        assert_eq!((views.len(), &views[2][..]), (3, &[2; 9][..]));
        views.truncate(1);
        assert_eq!(buffer_pool.bytes_in_use(), 192, "a view keeps its part");
        drop(views);
        assert_eq!(buffer_pool.bytes_in_use(), 0);
        assert!(slab(&buffer_pool).bytes().is_empty());
    }

    #[test]
    fn idle_pool_keeps_little_memory() {
        let buffer_pool = BufferPool::new(64 << 20, 1 << 20);
        let slabs: Vec<Slab> = (0..100).map(|_| slab(&buffer_pool)).collect();
        drop(slabs);
        let free = buffer_pool.lock().free.len();
        assert_eq!(free * buffer_pool.slab_bytes, IDLE_ARENAS_MAX * ARENA_BYTES);
    }

    #[test]
    fn slab_takes_no_more_than_its_size() {
        let buffer_pool = BufferPool::new(64, 64);
        let mut slab = slab(&buffer_pool);
        assert_eq!(slab.fill(&[1; 100], 60), 60);
        assert_eq!(slab.fill(&[1; 100], 60), 4);
        assert_eq!(slab.bytes().len(), 64);
    }

    #[tokio::test]
    async fn returned_slab_wakes_the_waiter() {
        let buffer_pool = BufferPool::new(64, 64);
        let only: Vec<Bytes> = BufferPool::freeze(vec![slab(&buffer_pool)]).collect();
        let changed = buffer_pool.changed();
        drop(only);
        changed.await;
        assert!(matches!(buffer_pool.allocate(), Allocation::Slab(_)));
    }
}
