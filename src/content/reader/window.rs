//! The read-ahead window of a handle, and the requests of each read. Pure.
//!
//! The kernel sends the reads of one program a little out of order. So a read counts as sequential if it is
//! *near* the end of the last one. A window opens with the second sequential read and grows with the bytes
//! read since. Read-ahead costs at most a small multiple of the bytes that the program reads. A program that
//! reads only the first block of a file costs that block. A read elsewhere closes the window.
//!
//! Requests end at multiples of their size, so that the aligned reads of the kernel are mostly views of one
//! answer.

use std::ops::Range;

/// Unit of the cache and of requests. Small, because a random read fetches whole blocks.
pub(super) const BLOCK_BYTES: u64 = 64 << 10;
/// Largest request: a multiple of the block size.
pub(super) const RUN_BYTES_MAX: u64 = 4 << 20;
/// Smallest read-ahead request, except at the end of a file.
const RUN_BYTES_MIN: u64 = 256 << 10;
/// Largest window of one handle.
pub(super) const WINDOW_BYTES_MAX: u64 = 16 << 20;
/// Size of a window when it opens.
const WINDOW_BYTES_MIN: u64 = 512 << 10;
/// A file up to this size is fetched by one request, at any offset of the first read.
const WHOLE_BYTES_MAX: u64 = 256 << 10;
/// Without a window, a read up to this far from the end of the last one is still sequential.
const NEAR_BYTES: u64 = 256 << 10;
/// Sequential bytes after a first read that open a window.
const OPENING_BYTES: u64 = 128 << 10;

/// A sequence of reads, each near the end of the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ReadSequence {
    /// The highest end of the reads.
    next: u64,
    /// Bytes read since the first of them, less skipped bytes. Bounded, so that skips end a sequence of any
    /// length.
    bytes: u64,
    /// Skipped bytes that an overtaken read may still request.
    skipped_bytes: u64,
}

/// The read-ahead state of one handle.
///
/// ```text
/// Unused -- any read --> Closed -- enough sequential bytes --> Open
///                          ^                                     |
///                          +-------- read or skip elsewhere -----+
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Window {
    /// Nothing was read yet.
    Unused,
    /// No read-ahead: the reads are not known to be sequential.
    Closed(ReadSequence),
    /// Read-ahead after sequential reads.
    Open {
        sequence: ReadSequence,
        /// Read-ahead beyond the sequence.
        window_bytes: u64,
        /// All before this offset was requested. A multiple of the block size, or the end of the file.
        requested_end: u64,
    },
}

impl ReadSequence {
    /// The sequence with one more read; `None` if the read is farther than `reach` from its end.
    fn extend_with(self, read: &Range<u64>, reach: u64) -> Option<Self> {
        let reach = reach.max(2 * (read.end - read.start));
        if read.start > self.next.saturating_add(reach) || read.end.saturating_add(reach) < self.next {
            return None;
        }
        let gap = read.start.saturating_sub(self.next);
        let ahead = read.end.saturating_sub(self.next.max(read.start));
        // A read before the end counts only as far as it may be an overtaken one; then it also restores what
        // the skip had cost. Reading the same bytes again does not predict the next read.
        let behind = (read.end - read.start - ahead).min(self.skipped_bytes);
        Some(Self {
            next: self.next.max(read.end),
            bytes: (self.bytes.saturating_sub(gap) + ahead + 2 * behind).min(WINDOW_BYTES_MAX),
            skipped_bytes: self.skipped_bytes - behind + gap,
        })
    }
}

/// The requests of one read: byte ranges that begin at a block, not empty, disjoint, in ascending order.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct FetchPlan {
    /// The read waits for these.
    pub(super) demand: Vec<Range<u64>>,
    /// Read-ahead.
    pub(super) ahead: Vec<Range<u64>>,
}

impl Window {
    /// Records a read. `window_bytes_max` limits the read-ahead of this handle now; 0 forbids it.
    pub(super) fn record(&mut self, read: &Range<u64>, window_bytes_max: u64) {
        let (sequence, reach, requested_end) = match *self {
            Self::Unused => (None, 0, 0),
            Self::Closed(sequence) => (Some(sequence), NEAR_BYTES, 0),
            Self::Open { sequence, window_bytes, requested_end } => {
                (Some(sequence), window_bytes.max(NEAR_BYTES), requested_end)
            }
        };
        let Some(sequence) = sequence.and_then(|sequence| sequence.extend_with(read, reach)) else {
            *self = Self::Closed(ReadSequence { next: read.end, bytes: 0, skipped_bytes: 0 });
            return;
        };
        let window_bytes = match sequence.bytes {
            0..OPENING_BYTES => 0,
            bytes => floor_power_of_two(2 * bytes).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX),
        };
        let window_bytes = window_bytes.min(floor_power_of_two(window_bytes_max));
        *self = if window_bytes < RUN_BYTES_MIN {
            Self::Closed(sequence)
        } else {
            Self::Open { sequence, window_bytes, requested_end }
        };
    }

    /// Records that all before `end` was requested.
    pub(super) fn set_requested(&mut self, end: u64) {
        if let Self::Open { requested_end, .. } = self {
            *requested_end = end;
        }
    }

    /// Whether the handle reads ahead.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }
}

/// Plans the requests of a read that `window` has recorded. `read` must not be empty and must lie within
/// `size`. `has` returns whether a block is cached or in flight.
pub(super) fn plan_fetch(
    window: &Window,
    read: &Range<u64>,
    size: u64,
    mut has: impl FnMut(u64) -> bool,
) -> FetchPlan {
    let need = if size <= WHOLE_BYTES_MAX {
        0..size
    } else {
        floor(read.start, BLOCK_BYTES)..ceil(read.end, BLOCK_BYTES).min(size)
    };
    let demand = missing_runs(&need, size, RUN_BYTES_MAX, &mut has);
    let mut plan = FetchPlan { demand, ahead: Vec::new() };
    if let Window::Open { sequence, window_bytes, requested_end } = *window {
        let run_bytes = (window_bytes / 4).clamp(RUN_BYTES_MIN, RUN_BYTES_MAX);
        // A missing block that was requested was lost: its request failed, or it was evicted. Later blocks
        // may be lost too, so the whole window is planned again.
        let start = if plan.demand.is_empty() { need.end.max(requested_end) } else { need.end };
        let end = sequence.next.saturating_add(window_bytes);
        let end = if end >= size { size } else { floor(end, run_bytes) };
        if start < end {
            plan.ahead = missing_runs(&(start..end), size, run_bytes, &mut has);
        }
    }
    plan
}

/// The missing parts of `range`, split at multiples of `run_bytes`. `range` begins at a block, and ends at
/// one or at the end of the file.
fn missing_runs(
    range: &Range<u64>,
    size: u64,
    run_bytes: u64,
    has: &mut impl FnMut(u64) -> bool,
) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for block in range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES) {
        if has(block) {
            continue;
        }
        let start = block * BLOCK_BYTES;
        let end = (start + BLOCK_BYTES).min(size);
        match runs.last_mut() {
            Some(run) if run.end == start && !start.is_multiple_of(run_bytes) => run.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

fn floor(offset: u64, unit: u64) -> u64 {
    offset - offset % unit
}

fn ceil(offset: u64, unit: u64) -> u64 {
    floor(offset, unit).saturating_add(if offset.is_multiple_of(unit) { 0 } else { unit })
}

fn floor_power_of_two(bytes: u64) -> u64 {
    bytes.checked_ilog2().map_or(0, |log| 1 << log)
}

#[cfg(test)]
mod tests;
