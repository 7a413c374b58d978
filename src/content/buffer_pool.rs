//! The buffer pool: the memory of all write buffers of a mount, with one limit.
//!
//! Buffers are slabs, small enough for hundreds of files open for writing. A slab of a part in flight returns
//! when the drive has the part. A slab of a filling part returns only after that part is full. So a writer
//! may wait for memory while any slab is in flight. If none is in flight, the writer must spill to a local
//! file: it would wait for itself.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::direct_io::AlignedBuffer;

/// Usual size of a slab in bytes.
const SLAB_BYTES: u64 = 256 << 10;
/// Free slabs that stay allocated while none is in use.
const IDLE_SLABS_MAX: usize = 16;

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
        state.in_use += 1;
        let buffer = state.free.pop().unwrap_or_else(|| AlignedBuffer::with_capacity(self.slab_bytes));
        Allocation::Slab(Slab { buffer, pool: self.clone(), in_flight: false })
    }

    /// Resolves when a slab is returned after this call.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

/// A buffer of the pool. Dropping it returns it.
#[derive(Debug)]
pub(super) struct Slab {
    buffer: AlignedBuffer,
    pool: Arc<BufferPool>,
    in_flight: bool,
}

impl Slab {
    /// Appends up to `room_max` bytes of `data`, as far as the slab has room. Returns how many.
    pub(super) fn fill(&mut self, data: &[u8], room_max: usize) -> usize {
        let taken = data.len().min(self.pool.slab_bytes - self.bytes().len()).min(room_max);
        self.buffer.extend(&data[..taken])
    }

    /// Overwrites bytes `at..`. Returns how many bytes of `data` were within the slab.
    pub(super) fn patch(&mut self, at: usize, data: &[u8]) -> usize {
        let tail = &mut self.buffer.bytes_mut()[at..];
        let count = tail.len().min(data.len());
        tail[..count].copy_from_slice(&data[..count]);
        count
    }

    pub(super) fn truncate(&mut self, bytes: usize) {
        self.buffer.truncate(bytes);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// Counts the slab as in flight: its part is complete, so the slab returns by itself.
    pub(super) fn mark_in_flight(&mut self) {
        if !self.in_flight {
            self.in_flight = true;
            self.pool.lock().in_flight += 1;
        }
    }
}

impl AsRef<[u8]> for Slab {
    fn as_ref(&self) -> &[u8] {
        self.buffer.bytes()
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.truncate(0);
        let mut state = self.pool.lock();
        state.in_use -= 1;
        state.in_flight -= usize::from(self.in_flight);
        state.free.push(buffer);
        if state.in_use == 0 {
            state.free.truncate(IDLE_SLABS_MAX);
            state.free.shrink_to_fit();
        }
        drop(state);
        self.pool.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slab(buffer_pool: &Arc<BufferPool>) -> Slab {
        match buffer_pool.allocate() {
            Allocation::Slab(slab) => slab,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn wait_needs_a_slab_in_flight() {
        let buffer_pool = BufferPool::new(128, 64);
        let (mut first, _second) = (slab(&buffer_pool), slab(&buffer_pool));
        assert!(matches!(buffer_pool.allocate(), Allocation::Spill));
        first.mark_in_flight();
        assert!(matches!(buffer_pool.allocate(), Allocation::Wait));
        drop(first);
        assert_eq!(buffer_pool.bytes_in_use(), 64);
        let _third = slab(&buffer_pool);
        assert!(matches!(buffer_pool.allocate(), Allocation::Spill));
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
        let mut only = slab(&buffer_pool);
        only.mark_in_flight();
        let changed = buffer_pool.changed();
        drop(only);
        changed.await;
        assert!(matches!(buffer_pool.allocate(), Allocation::Slab(_)));
    }
}
