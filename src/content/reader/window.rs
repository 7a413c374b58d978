//! How far to read ahead, and which requests that makes. Pure.
//!
//! The kernel sends the reads of one program a little out of order, so a read counts as the next
//! one when it is *near* where the last ended. A window opens with the second read in a row and
//! grows with what was read since: reading ahead never costs more than a small multiple of what
//! the program has really read, and a program that looks at the first block of a file costs that
//! block. A read elsewhere closes the window.
//!
//! Requests end at multiples of their size, so that the kernel's reads, which are aligned, are
//! mostly views of one answer.

use std::ops::Range;

/// Unit of the cache and of every request. Small, because a random read fetches whole blocks.
pub(super) const BLOCK_BYTES: u64 = 64 << 10;
/// Largest request. Divides evenly into blocks.
pub(super) const RUN_BYTES_MAX: u64 = 4 << 20;
/// Smallest request that is made only to read ahead, but for the end of a file.
const RUN_BYTES_MIN: u64 = 256 << 10;
/// Farthest that is read ahead of one handle.
pub(super) const WINDOW_BYTES_MAX: u64 = 16 << 20;
/// A window that opens has this size.
const WINDOW_BYTES_MIN: u64 = 512 << 10;
/// A file up to this size is fetched by one request, wherever the first read is.
const WHOLE_BYTES_MAX: u64 = 256 << 10;
/// While no window is open, a read this far from where the last ended is still the next one.
const NEAR_BYTES: u64 = 256 << 10;
/// Bytes that must have been read in a row, after a first read, for a window to open.
const OPENING_BYTES: u64 = 128 << 10;

/// A row of reads, each near where the one before it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Row {
    /// Where the farthest of them ended.
    next: u64,
    /// Bytes read since the first of them, less what was skipped; kept small enough for a row to
    /// end by skipping, however long it was.
    bytes: u64,
    /// Bytes skipped that a read which was overtaken may still ask for.
    skipped_bytes: u64,
}

/// What the reads of one handle look like.
///
/// ```text
/// Untouched -- any read --> Watching -- enough in a row --> Streaming
///                              ^                                |
///                              +---- read or skip elsewhere ----+
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Window {
    /// Nothing was read yet.
    Untouched,
    /// Not known to be sequential: only what is asked for is fetched.
    Watching(Row),
    /// Sequential.
    Streaming {
        /// The reads so far.
        row: Row,
        /// How far beyond them to ask.
        window_bytes: u64,
        /// Everything before this was asked for; a multiple of the block size, or the file's end.
        asked_end: u64,
    },
}

impl Row {
    /// The row with one more read, or `None` where the read is more than `reach` from its end.
    fn extended(self, read: &Range<u64>, reach: u64) -> Option<Self> {
        let reach = reach.max(2 * (read.end - read.start));
        if read.start > self.next.saturating_add(reach) || read.end.saturating_add(reach) < self.next {
            return None;
        }
        let gap = read.start.saturating_sub(self.next);
        let ahead = read.end.saturating_sub(self.next.max(read.start));
        // A read behind the end counts only as far as it may be one that was overtaken, which then
        // also makes good what the skip had cost: reading the same bytes again says nothing about
        // what comes next.
        let behind = (read.end - read.start - ahead).min(self.skipped_bytes);
        Some(Self {
            next: self.next.max(read.end),
            bytes: (self.bytes.saturating_sub(gap) + ahead + 2 * behind).min(WINDOW_BYTES_MAX),
            skipped_bytes: self.skipped_bytes - behind + gap,
        })
    }
}

/// The requests that one read makes. Ranges of bytes, each starting at a block's first byte, none
/// empty, none overlapping another, in rising order.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct Plan {
    /// Without these the read cannot be answered.
    pub(super) demand: Vec<Range<u64>>,
    /// These are likely to be read next.
    pub(super) ahead: Vec<Range<u64>>,
}

impl Window {
    /// Takes note of a read. `window_bytes_max` is what this handle may read ahead now; 0 forbids it.
    pub(super) fn note(&mut self, read: &Range<u64>, window_bytes_max: u64) {
        let (row, reach, asked_end) = match *self {
            Self::Untouched => (None, 0, 0),
            Self::Watching(row) => (Some(row), NEAR_BYTES, 0),
            Self::Streaming { row, window_bytes, asked_end } => {
                (Some(row), window_bytes.max(NEAR_BYTES), asked_end)
            }
        };
        let Some(row) = row.and_then(|row| row.extended(read, reach)) else {
            *self = Self::Watching(Row { next: read.end, bytes: 0, skipped_bytes: 0 });
            return;
        };
        let window_bytes = match row.bytes {
            0..OPENING_BYTES => 0,
            bytes => floor_power_of_two(2 * bytes).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX),
        };
        let window_bytes = window_bytes.min(floor_power_of_two(window_bytes_max));
        *self = if window_bytes < RUN_BYTES_MIN {
            Self::Watching(row)
        } else {
            Self::Streaming { row, window_bytes, asked_end }
        };
    }

    /// Takes note that everything before `end` has been asked for.
    pub(super) fn asked(&mut self, end: u64) {
        if let Self::Streaming { asked_end, .. } = self {
            *asked_end = end;
        }
    }

    /// Whether this handle reads ahead.
    pub(super) fn is_streaming(&self) -> bool {
        matches!(self, Self::Streaming { .. })
    }
}

/// Which requests to make for a read that was noted in `window`. `read` must not be empty and must
/// lie within `size`. `has` says of a block whether it is there or on its way.
pub(super) fn plan_fetch(
    window: &Window,
    read: &Range<u64>,
    size: u64,
    mut has: impl FnMut(u64) -> bool,
) -> Plan {
    let need = if size <= WHOLE_BYTES_MAX {
        0..size
    } else {
        floor(read.start, BLOCK_BYTES)..ceil(read.end, BLOCK_BYTES).min(size)
    };
    let demand = missing_runs(&need, size, RUN_BYTES_MAX, &mut has);
    let mut plan = Plan { demand, ahead: Vec::new() };
    if let Window::Streaming { row, window_bytes, asked_end } = *window {
        let run_bytes = (window_bytes / 4).clamp(RUN_BYTES_MIN, RUN_BYTES_MAX);
        // Something that was asked for and is not there was lost: a failed request, or the cache
        // has let it go. What lies behind it may be lost too, so the window is looked through anew.
        let start = if plan.demand.is_empty() { need.end.max(asked_end) } else { need.end };
        let end = row.next.saturating_add(window_bytes);
        let end = if end >= size { size } else { floor(end, run_bytes) };
        if start < end {
            plan.ahead = missing_runs(&(start..end), size, run_bytes, &mut has);
        }
    }
    plan
}

/// The parts of `range` that are missing, cut at multiples of `run_bytes`. `range` starts at a
/// block's first byte and ends at one or at the end of the file.
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
