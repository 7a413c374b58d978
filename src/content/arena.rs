//! Memory of write buffers: aligned buffers that are cut from arenas.
//!
//! An arena is a huge page, if the kernel has one. So its first use costs one page fault instead of 512, and
//! its pages are contiguous for the socket and for `O_DIRECT`.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use super::direct_io::ALIGN_BYTES;

/// Bytes of an arena: a huge page of x86-64 and of most arm64 kernels.
pub(super) const ARENA_BYTES: usize = 2 << 20;

/// Uninitialized memory.
#[derive(Debug)]
struct Arena {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: an arena is memory without an owner thread. Only its buffers access it, and each has a range of its
// own.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// `bytes` must not be 0.
    fn new(bytes: usize) -> Self {
        let align = if bytes < ARENA_BYTES { ALIGN_BYTES } else { ARENA_BYTES };
        let Ok(layout) = Layout::from_size_align(bytes, align) else {
            handle_alloc_error(Layout::new::<u8>())
        };
        // SAFETY: the layout has a size.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        if bytes >= ARENA_BYTES {
            // SAFETY: the range was just allocated, and the advice does not change its content.
            let advised = unsafe {
                rustix::mm::madvise(start.as_ptr().cast(), bytes, rustix::mm::Advice::LinuxHugepage)
            };
            // A kernel without huge pages uses small ones.
            let _ = advised.is_ok();
        }
        Self { start, layout }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout. No buffer refers to the arena any more.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// A buffer of fixed capacity, aligned to [`ALIGN_BYTES`].
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    arena: Arc<Arena>,
    /// Offset in the arena. The range up to `capacity` belongs to this buffer alone.
    start: usize,
    capacity: usize,
    /// Bytes that were written.
    len: usize,
}

/// New buffers of at least `capacity` bytes each, in one arena: as many as fit into [`ARENA_BYTES`], at least
/// one and at most `count_max`.
pub(super) fn buffers(capacity: usize, count_max: usize) -> Vec<AlignedBuffer> {
    let capacity = capacity.next_multiple_of(ALIGN_BYTES);
    let count = (ARENA_BYTES / capacity).min(count_max).max(1);
    let arena = Arc::new(Arena::new(capacity * count));
    (0..count)
        .map(|index| AlignedBuffer { arena: arena.clone(), start: index * capacity, capacity, len: 0 })
        .collect()
}

impl AlignedBuffer {
    fn pointer(&self) -> *mut u8 {
        // SAFETY: `start` lies within the arena.
        unsafe { self.arena.start.as_ptr().add(self.start) }
    }

    /// Whether both buffers are in the same arena.
    pub(super) fn shares_arena(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.arena, &other.arena)
    }

    /// Appends as much of `data` as there is room for. Returns how much.
    pub(super) fn extend(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(self.capacity - self.len);
        // SAFETY: the range lies within the capacity and belongs to this buffer alone.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.pointer().add(self.len), taken) };
        self.len += taken;
        taken
    }

    pub(super) fn truncate(&mut self, bytes: usize) {
        self.len = self.len.min(bytes);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes of the capacity were written.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes of the capacity were written, and only this buffer has access to them.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::direct_io::is_aligned;

    #[test]
    fn buffers_are_aligned_and_hold_bytes() {
        let mut pair = buffers(5000, 2);
        let mut second = pair.pop().unwrap();
        let first = &mut pair[0];
        assert!(first.shares_arena(&second) && !first.shares_arena(&buffers(1, 1)[0]));
        assert_eq!((first.extend(&[1; 4096]), first.extend(&[2; 9000])), (4096, 4096));
        assert_eq!(second.extend(&[9; 3]), 3);
        assert!(is_aligned(first.bytes()) && !is_aligned(&first.bytes()[1..]));
        first.bytes_mut()[8191] = 7;
        assert_eq!(first.bytes()[8190..], [2, 7]);
        first.truncate(3);
        assert_eq!(first.extend(&[9; 2]), 2);
        assert_eq!(first.bytes(), [1, 1, 1, 9, 9]);
        drop(pair);
        assert_eq!(second.bytes(), [9, 9, 9], "the arena lives as long as its last buffer");
    }

    #[test]
    fn large_arena_is_a_huge_page() {
        let mut all = buffers(256 << 10, 8);
        assert!(all[0].pointer().addr().is_multiple_of(ARENA_BYTES));
        for buffer in &mut all {
            assert_eq!(buffer.extend(&vec![5; 300 << 10]), 256 << 10);
        }
        assert!(all.iter().all(|buffer| buffer.bytes().iter().all(|byte| *byte == 5)));
    }
}
