//! The table of fetch plans, and the properties of every plan.

#![allow(clippy::single_range_in_vec_init)] // A list of requests may have one range.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;
const B: u64 = BLOCK_BYTES;

fn closed(next: u64) -> Window {
    Window::Closed(ReadSequence { next, bytes: 0, skipped_bytes: 0 })
}

fn open(next: u64, window_bytes: u64, requested_end: u64) -> Window {
    Window::Open {
        sequence: ReadSequence { next, bytes: window_bytes / 2, skipped_bytes: 0 },
        window_bytes,
        requested_end,
    }
}

/// Label, window after the read was recorded, read, file size, present blocks; then demand and read-ahead.
type Case<'a> = (&'a str, Window, Range<u64>, u64, Range<u64>, &'a [Range<u64>], &'a [Range<u64>]);

#[test]
fn fetch_plans_match_the_table() {
    let nothing: &[Range<u64>] = &[];
    #[rustfmt::skip]
    let table: &[Case<'_>] = &[
        ("a random read fetches its blocks", closed(5 * B), 4 * B + 5..5 * B, 100 * M, 0..0, &[4 * B..5 * B], nothing),
        ("an unaligned read fetches the blocks that it touches", closed(5 * B + 1), 4 * B + 5..5 * B + 1, 100 * M, 0..0, &[4 * B..6 * B], nothing),
        ("a present block is not fetched again", closed(8 * B), 4 * B..8 * B, 100 * M, 5..6, &[4 * B..5 * B, 6 * B..8 * B], nothing),
        ("present blocks need no request", closed(8 * B), 4 * B..8 * B, 100 * M, 0..20, nothing, nothing),
        ("a small file is one request", closed(10), 0..10, 200 * K, 0..0, &[0..200 * K], nothing),
        ("a small file is one request from its middle too", closed(150 * K), 140 * K..150 * K, 200 * K, 0..0, &[0..200 * K], nothing),
        ("a tiny file is one request", closed(1), 0..1, 1, 0..0, &[0..1], nothing),
        ("the last block is short", closed(10 * M + 7), 10 * M + 2..10 * M + 7, 10 * M + 7, 0..0, &[10 * M..10 * M + 7], nothing),
        ("a long read is split at multiples of the largest request", closed(9 * M), 3 * M..9 * M, 100 * M, 0..0,
            &[3 * M..4 * M, 4 * M..8 * M, 8 * M..9 * M], nothing),
        ("an opening window keeps demand and read-ahead apart", open(256 * K, 512 * K, 0), 128 * K..256 * K, 100 * M, 0..2,
            &[128 * K..256 * K], &[256 * K..512 * K, 512 * K..768 * K]),
        ("a window advances by whole requests only", open(300 * K, 512 * K, 768 * K), 256 * K..300 * K, 100 * M, 0..12, nothing, nothing),
        ("a whole request that fits is made", open(512 * K, 512 * K, 768 * K), 384 * K..512 * K, 100 * M, 0..12, nothing, &[768 * K..M]),
        ("a large window makes large requests", open(12 * M, 16 * M, 24 * M), 11 * M..12 * M, 100 * M, 0..24 * 16, nothing,
            &[24 * M..28 * M]),
        ("a window ends with the file", open(12 * M, 16 * M, 12 * M), 11 * M..12 * M, 17 * M + 1, 0..12 * 16, nothing,
            &[12 * M..16 * M, 16 * M..17 * M + 1]),
        ("no block is requested twice", open(12 * M, 16 * M, 17 * M + 1), 11 * M..12 * M, 17 * M + 1, 0..12 * 16, nothing, nothing),
        ("a lost block plans the whole window again", open(2 * M, M, 3 * M), 2 * M - 128 * K..2 * M, 100 * M, 0..30,
            &[2 * M - 128 * K..2 * M], &[2 * M..2 * M + 256 * K, 2 * M + 256 * K..2 * M + 512 * K,
                2 * M + 512 * K..2 * M + 768 * K, 2 * M + 768 * K..3 * M]),
    ];
    for (label, window, read, size, present, demand, ahead) in table {
        let plan = plan_fetch(window, read, *size, |block| present.contains(&block));
        assert_eq!((&plan.demand[..], &plan.ahead[..]), (*demand, *ahead), "{label}");
    }
}

/// The window in bytes after each of these reads of `len`.
fn windows(reads: impl IntoIterator<Item = u64>, len: u64) -> Vec<u64> {
    let mut window = Window::Unused;
    let record = |start| {
        window.record(&(start..start + len), WINDOW_BYTES_MAX);
        match window {
            Window::Open { window_bytes, .. } => window_bytes,
            _ => 0,
        }
    };
    reads.into_iter().map(record).collect()
}

#[test]
fn window_opens_at_second_read_and_doubles() {
    let windows_seen = windows((0..100).map(|n| n * 128 * K), 128 * K);
    assert_eq!(windows_seen[..6], [0, 512 * K, 512 * K, 512 * K, M, M]);
    assert_eq!(*windows_seen.last().unwrap(), WINDOW_BYTES_MAX);
    assert!(windows_seen.is_sorted());
}

#[test]
fn overtaking_reads_are_sequential() {
    let windows_seen = windows([0, 2, 1, 4, 3, 6, 5, 8, 7].map(|n| n * M), M);
    assert!(windows_seen[1..].iter().all(|window| *window > 0), "{windows_seen:?}");
}

#[test]
fn random_and_repeated_reads_open_no_window() {
    assert_eq!(windows([500 * M, 3 * M, 90 * M, 4 * M, 100 * M], 64 * K), [0; 5]);
    assert_eq!(windows([0, 0, 0, 0], 128 * K), [0; 4]);
    assert_eq!(windows([9, 8, 7, 6, 5].map(|n| n * 64 * K), 64 * K), [0; 5]);
}

#[test]
fn seek_closes_the_window() {
    let windows_seen = windows((0..50).map(|n| n * M).chain([900 * M, 901 * M]), M);
    assert_eq!((windows_seen[49], windows_seen[50], windows_seen[51]), (WINDOW_BYTES_MAX, 0, 2 * M));
}

#[test]
fn constant_skipping_is_not_sequential() {
    let windows_seen = windows((0..50).chain((5..20).map(|n| n * 10)).map(|n| n * M), M);
    assert_eq!((windows_seen[49], *windows_seen.last().unwrap()), (WINDOW_BYTES_MAX, 0), "{windows_seen:?}");
}

#[test]
fn share_of_a_handle_limits_its_window() {
    let mut window = Window::Unused;
    for n in 0..50 {
        window.record(&(n * M..(n + 1) * M), 3 * M);
    }
    assert!(matches!(window, Window::Open { window_bytes, .. } if window_bytes == 2 * M), "{window:?}");
    window.record(&(50 * M..51 * M), 100 * K);
    assert!(!window.is_open());
}

/// A history of reads, some of whose requests failed.
#[derive(Debug)]
struct History {
    size: u64,
    reads: Vec<(u64, u64, bool)>,
}

/// The position of a read relative to the one before.
#[derive(Clone, Debug)]
enum Step {
    Continue,
    Seek(u64),
    Skip(u64),
}

fn history() -> impl Strategy<Value = History> {
    let step = prop_oneof![
        4 => Just(Step::Continue),
        1 => any::<u64>().prop_map(Step::Seek),
        1 => (0..20 * M).prop_map(Step::Skip),
    ];
    let read = (step, 1_u64..2 * M, proptest::bool::weighted(0.8));
    (1_u64..60 * M, proptest::collection::vec(read, 1..60)).prop_map(|(size, steps)| {
        let mut at = 0;
        let mut reads = Vec::new();
        for (step, len, succeeds) in steps {
            at = match step {
                Step::Continue => at,
                Step::Seek(to) => to,
                Step::Skip(bytes) => at + bytes,
            } % size;
            reads.push((at, (at + len).min(size), succeeds));
            at = (at + len).min(size);
        }
        History { size, reads }
    })
}

proptest! {
    #[test]
    fn fetch_plans_request_exactly_the_missing_blocks(history in history()) {
        let History { size, reads } = history;
        let mut window = Window::Unused;
        let mut present = BTreeSet::new();
        for (start, end, succeeds) in reads {
            let read = start..end;
            window.record(&read, WINDOW_BYTES_MAX);
            let plan = plan_fetch(&window, &read, size, |block| present.contains(&block));
            let mut last_end = None;
            for run in plan.demand.iter().chain(&plan.ahead) {
                prop_assert!(run.start < run.end && run.end <= size, "{run:?} of {size}");
                prop_assert!(run.start.is_multiple_of(B) && (run.end.is_multiple_of(B) || run.end == size));
                prop_assert!(run.end - run.start <= RUN_BYTES_MAX);
                prop_assert!(last_end.is_none_or(|last| last <= run.start), "in order, no overlap");
                last_end = Some(run.end);
            }
            let blocks = |runs: &[Range<u64>]| -> Vec<u64> {
                runs.iter().flat_map(|run| run.start / B..run.end.div_ceil(B)).collect()
            };
            let (demand, ahead) = (blocks(&plan.demand), blocks(&plan.ahead));
            for block in demand.iter().chain(&ahead) {
                prop_assert!(!present.contains(block), "block {block} was present");
            }
            // The demand is exactly the missing blocks of the read (of the whole file, if that is small).
            let need = if size <= WHOLE_BYTES_MAX { 0..size.div_ceil(B) } else { start / B..end.div_ceil(B) };
            let missing: Vec<u64> = need.filter(|block| !present.contains(block)).collect();
            prop_assert_eq!(&demand, &missing);
            match window {
                Window::Open { sequence, window_bytes, .. } => {
                    prop_assert!(plan.ahead.last().is_none_or(|run| run.end <= sequence.next + window_bytes));
                }
                _ => prop_assert!(plan.ahead.is_empty()),
            }
            present.extend(demand);
            if let Some(run) = plan.ahead.last() {
                window.set_requested(run.end);
            }
            if succeeds {
                present.extend(ahead);
            } else {
                // As if the cache had evicted blocks since.
                present.retain(|block| block % 3 != 0);
            }
        }
    }

    /// For any pattern, read-ahead costs at most a small multiple of the bytes read.
    #[test]
    fn read_ahead_is_bounded_by_the_bytes_read(history in history()) {
        let History { size, reads } = history;
        let mut window = Window::Unused;
        let (mut present, mut fetched, mut read_bytes) = (BTreeSet::new(), 0, 0);
        for (n, (start, end, _)) in (1..).zip(reads) {
            window.record(&(start..end), WINDOW_BYTES_MAX);
            let plan = plan_fetch(&window, &(start..end), size, |block| present.contains(&block));
            for run in plan.demand.iter().chain(&plan.ahead) {
                fetched += run.end - run.start;
                present.extend(run.start / B..run.end.div_ceil(B));
                window.set_requested(run.end);
            }
            read_bytes += end - start;
            let rounding = 2 * B * n + WHOLE_BYTES_MAX;
            prop_assert!(fetched <= 6 * read_bytes + rounding, "{fetched} for {read_bytes}");
        }
    }
}
