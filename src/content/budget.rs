//! The one byte budget of all write buffers.
//!
//! Buffers are slabs, small enough that hundreds of files may be open for writing at once. Slabs
//! that carry a part on its way come back by themselves when the drive has it; slabs of a part that
//! is still filling come back only when that part is full. So a writer may wait for memory while
//! anything is on its way, and must go elsewhere (a local file) when nothing is: waiting then
//! would wait for itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::direct::Block;

/// Usual size of a slab in bytes.
const SLAB_BYTES: u64 = 256 << 10;
/// Free slabs that are kept for the next writer when nothing is in use.
const IDLE_SLABS_MAX: usize = 16;

/// Memory for write buffers, bounded.
#[derive(Debug)]
pub struct Budget {
    slab_bytes: usize,
    slabs_max: usize,
    /// A leaf lock: nothing else is locked while it is held.
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    in_use: usize,
    on_their_way: usize,
    free: Vec<Block>,
}

/// What a writer who needs memory shall do.
#[derive(Debug)]
pub enum Grant {
    /// Here it is.
    Slab(Slab),
    /// Some will come back: wait for [`Budget::changed`].
    Wait,
    /// None will come back by itself: use the disk.
    Spill,
}

impl Budget {
    /// `bytes_max` in slabs no larger than a part.
    pub fn new(bytes_max: u64, part_bytes: u64) -> Arc<Self> {
        let slab_bytes = SLAB_BYTES.min(part_bytes);
        Arc::new(Self {
            slab_bytes: slab_bytes as usize,
            slabs_max: (bytes_max / slab_bytes).max(1) as usize,
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in use.
    pub fn bytes_in_use(&self) -> u64 {
        (self.lock().in_use * self.slab_bytes) as u64
    }

    /// Whether less than half is in use.
    pub fn is_roomy(&self) -> bool {
        self.lock().in_use < self.slabs_max / 2
    }

    /// A slab, or what to do instead.
    pub fn take(self: &Arc<Self>) -> Grant {
        let mut state = self.lock();
        if state.in_use >= self.slabs_max {
            return if state.on_their_way > 0 { Grant::Wait } else { Grant::Spill };
        }
        state.in_use += 1;
        let bytes = state.free.pop().unwrap_or_else(|| Block::with_capacity(self.slab_bytes));
        Grant::Slab(Slab { bytes, budget: self.clone(), on_its_way: false })
    }

    /// Resolves when a slab came back, or a part went on its way, after the call.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

/// A buffer on loan from the budget.
#[derive(Debug)]
pub struct Slab {
    bytes: Block,
    budget: Arc<Budget>,
    on_its_way: bool,
}

impl Slab {
    /// Takes as much of `data` as there is room for; how much that was.
    pub fn fill(&mut self, data: &[u8], room_max: usize) -> usize {
        let taken = data.len().min(self.budget.slab_bytes - self.bytes().len()).min(room_max);
        self.bytes.extend(&data[..taken])
    }

    /// Changes bytes `at..`; how many of `data` there was something to change for.
    pub fn patch(&mut self, at: usize, data: &[u8]) -> usize {
        let held = &mut self.bytes.bytes_mut()[at..];
        let count = held.len().min(data.len());
        held[..count].copy_from_slice(&data[..count]);
        count
    }

    /// Keeps the first `bytes` only.
    pub fn cut(&mut self, bytes: usize) {
        self.bytes.truncate(bytes);
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.bytes()
    }

    /// The part is complete: the slab will come back without its writer's doing.
    pub fn set_on_its_way(&mut self) {
        if !self.on_its_way {
            self.on_its_way = true;
            self.budget.lock().on_their_way += 1;
        }
    }
}

impl AsRef<[u8]> for Slab {
    fn as_ref(&self) -> &[u8] {
        self.bytes.bytes()
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.truncate(0);
        let mut state = self.budget.lock();
        state.in_use -= 1;
        state.on_their_way -= usize::from(self.on_its_way);
        state.free.push(bytes);
        if state.in_use == 0 {
            state.free.truncate(IDLE_SLABS_MAX);
            state.free.shrink_to_fit();
        }
        drop(state);
        self.budget.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slab(budget: &Arc<Budget>) -> Slab {
        match budget.take() {
            Grant::Slab(slab) => slab,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn waiting_is_offered_only_while_something_comes_back() {
        let budget = Budget::new(128, 64);
        let (mut first, _second) = (slab(&budget), slab(&budget));
        assert!(matches!(budget.take(), Grant::Spill));
        first.set_on_its_way();
        assert!(matches!(budget.take(), Grant::Wait));
        drop(first);
        assert_eq!(budget.bytes_in_use(), 64);
        let _third = slab(&budget);
        assert!(matches!(budget.take(), Grant::Spill));
    }

    #[test]
    fn a_slab_takes_no_more_than_its_size() {
        let budget = Budget::new(64, 64);
        let mut slab = slab(&budget);
        assert_eq!(slab.fill(&[1; 100], 60), 60);
        assert_eq!(slab.fill(&[1; 100], 60), 4);
        assert_eq!(slab.bytes().len(), 64);
    }

    #[tokio::test]
    async fn a_returned_slab_wakes_the_waiter() {
        let budget = Budget::new(64, 64);
        let mut only = slab(&budget);
        only.set_on_its_way();
        let changed = budget.changed();
        drop(only);
        changed.await;
        assert!(matches!(budget.take(), Grant::Slab(_)));
    }
}
