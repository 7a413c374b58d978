//! The table of plans, and what is true of every plan.

#![allow(clippy::single_range_in_vec_init)] // A list of requests may well have one.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;
const B: u64 = BLOCK_BYTES;

fn watching(next: u64) -> Window {
    Window::Watching(Row { next, bytes: 0, skipped_bytes: 0 })
}

fn streaming(next: u64, window_bytes: u64, asked_end: u64) -> Window {
    Window::Streaming {
        row: Row { next, bytes: window_bytes / 2, skipped_bytes: 0 },
        window_bytes,
        asked_end,
    }
}

/// What, the window after the read was noted, the read, the file's size, the blocks that are there; then
/// what is demanded, and what is read ahead.
type Case<'a> = (&'a str, Window, Range<u64>, u64, Range<u64>, &'a [Range<u64>], &'a [Range<u64>]);

#[test]
fn plans() {
    let nothing: &[Range<u64>] = &[];
    #[rustfmt::skip]
    let table: &[Case<'_>] = &[
        ("a random read fetches its blocks", watching(5 * B), 4 * B + 5..5 * B, 100 * M, 0..0, &[4 * B..5 * B], nothing),
        ("an unaligned one the blocks it touches", watching(5 * B + 1), 4 * B + 5..5 * B + 1, 100 * M, 0..0, &[4 * B..6 * B], nothing),
        ("what is there is not fetched again", watching(8 * B), 4 * B..8 * B, 100 * M, 5..6, &[4 * B..5 * B, 6 * B..8 * B], nothing),
        ("nothing at all when all is there", watching(8 * B), 4 * B..8 * B, 100 * M, 0..20, nothing, nothing),
        ("a small file is one request", watching(10), 0..10, 200 * K, 0..0, &[0..200 * K], nothing),
        ("also from its middle", watching(150 * K), 140 * K..150 * K, 200 * K, 0..0, &[0..200 * K], nothing),
        ("and a tiny one", watching(1), 0..1, 1, 0..0, &[0..1], nothing),
        ("the last block is short", watching(10 * M + 7), 10 * M + 2..10 * M + 7, 10 * M + 7, 0..0, &[10 * M..10 * M + 7], nothing),
        ("a long read is cut at multiples of the largest request", watching(9 * M), 3 * M..9 * M, 100 * M, 0..0,
            &[3 * M..4 * M, 4 * M..8 * M, 8 * M..9 * M], nothing),
        ("a window opens: what is asked for is a request of its own", streaming(256 * K, 512 * K, 0), 128 * K..256 * K, 100 * M, 0..2,
            &[128 * K..256 * K], &[256 * K..512 * K, 512 * K..768 * K]),
        ("it moves on by whole requests only", streaming(300 * K, 512 * K, 768 * K), 256 * K..300 * K, 100 * M, 0..12, nothing, nothing),
        ("and when a whole one fits, makes it", streaming(512 * K, 512 * K, 768 * K), 384 * K..512 * K, 100 * M, 0..12, nothing, &[768 * K..M]),
        ("a large window makes large requests", streaming(12 * M, 16 * M, 24 * M), 11 * M..12 * M, 100 * M, 0..24 * 16, nothing,
            &[24 * M..28 * M]),
        ("a window ends with the file", streaming(12 * M, 16 * M, 12 * M), 11 * M..12 * M, 17 * M + 1, 0..12 * 16, nothing,
            &[12 * M..16 * M, 16 * M..17 * M + 1]),
        ("nothing is asked for twice", streaming(12 * M, 16 * M, 17 * M + 1), 11 * M..12 * M, 17 * M + 1, 0..12 * 16, nothing, nothing),
        ("what was lost makes the window be looked through anew", streaming(2 * M, M, 3 * M), 2 * M - 128 * K..2 * M, 100 * M, 0..30,
            &[2 * M - 128 * K..2 * M], &[2 * M..2 * M + 256 * K, 2 * M + 256 * K..2 * M + 512 * K,
                2 * M + 512 * K..2 * M + 768 * K, 2 * M + 768 * K..3 * M]),
    ];
    for (what, window, read, size, present, demand, ahead) in table {
        let plan = plan_fetch(window, read, *size, |block| present.contains(&block));
        assert_eq!((&plan.demand[..], &plan.ahead[..]), (*demand, *ahead), "{what}");
    }
}

/// The window in bytes after each of these reads of `len`.
fn windows(reads: impl IntoIterator<Item = u64>, len: u64) -> Vec<u64> {
    let mut window = Window::Untouched;
    let note = |start| {
        window.note(&(start..start + len), WINDOW_BYTES_MAX);
        match window {
            Window::Streaming { window_bytes, .. } => window_bytes,
            _ => 0,
        }
    };
    reads.into_iter().map(note).collect()
}

#[test]
fn a_window_opens_with_the_second_read_and_doubles_with_what_was_read() {
    let seen = windows((0..100).map(|n| n * 128 * K), 128 * K);
    assert_eq!(seen[..6], [0, 512 * K, 512 * K, 512 * K, M, M]);
    assert_eq!(*seen.last().unwrap(), WINDOW_BYTES_MAX);
    assert!(seen.is_sorted());
}

#[test]
fn reads_that_overtake_each_other_are_still_sequential() {
    let seen = windows([0, 2, 1, 4, 3, 6, 5, 8, 7].map(|n| n * M), M);
    assert!(seen[1..].iter().all(|window| *window > 0), "{seen:?}");
}

#[test]
fn random_reads_and_repeated_reads_open_no_window() {
    assert_eq!(windows([500 * M, 3 * M, 90 * M, 4 * M, 100 * M], 64 * K), [0; 5]);
    assert_eq!(windows([0, 0, 0, 0], 128 * K), [0; 4]);
    assert_eq!(windows([9, 8, 7, 6, 5].map(|n| n * 64 * K), 64 * K), [0; 5]);
}

#[test]
fn a_seek_closes_the_window() {
    let seen = windows((0..50).map(|n| n * M).chain([900 * M, 901 * M]), M);
    assert_eq!((seen[49], seen[50], seen[51]), (WINDOW_BYTES_MAX, 0, 2 * M));
}

#[test]
fn skipping_all_the_time_is_not_reading_in_a_row() {
    let seen = windows((0..50).chain((5..20).map(|n| n * 10)).map(|n| n * M), M);
    assert_eq!((seen[49], *seen.last().unwrap()), (WINDOW_BYTES_MAX, 0), "{seen:?}");
}

#[test]
fn the_share_of_a_handle_limits_its_window() {
    let mut window = Window::Untouched;
    for n in 0..50 {
        window.note(&(n * M..(n + 1) * M), 3 * M);
    }
    assert!(matches!(window, Window::Streaming { window_bytes, .. } if window_bytes == 2 * M), "{window:?}");
    window.note(&(50 * M..51 * M), 100 * K);
    assert!(!window.is_streaming());
}

/// What is there after a history of reads, some of whose requests were refused or failed.
#[derive(Debug)]
struct History {
    size: u64,
    reads: Vec<(u64, u64, bool)>,
}

/// How a read relates to the one before it.
#[derive(Clone, Debug)]
enum Step {
    On,
    Seek(u64),
    Skip(u64),
}

fn history() -> impl Strategy<Value = History> {
    let step = prop_oneof![
        4 => Just(Step::On),
        1 => any::<u64>().prop_map(Step::Seek),
        1 => (0..20 * M).prop_map(Step::Skip),
    ];
    let read = (step, 1_u64..2 * M, proptest::bool::weighted(0.8));
    (1_u64..60 * M, proptest::collection::vec(read, 1..60)).prop_map(|(size, steps)| {
        let mut at = 0;
        let mut reads = Vec::new();
        for (step, len, kept) in steps {
            at = match step {
                Step::On => at,
                Step::Seek(to) => to,
                Step::Skip(bytes) => at + bytes,
            } % size;
            reads.push((at, (at + len).min(size), kept));
            at = (at + len).min(size);
        }
        History { size, reads }
    })
}

proptest! {
    #[test]
    fn every_plan_is_exact(history in history()) {
        let History { size, reads } = history;
        let mut window = Window::Untouched;
        let mut present = BTreeSet::new();
        for (start, end, kept) in reads {
            let read = start..end;
            window.note(&read, WINDOW_BYTES_MAX);
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
                prop_assert!(!present.contains(block), "block {block} was there");
            }
            // Exactly the missing blocks of the read are demanded (a small file counts as a whole).
            let need = if size <= WHOLE_BYTES_MAX { 0..size.div_ceil(B) } else { start / B..end.div_ceil(B) };
            let missing: Vec<u64> = need.filter(|block| !present.contains(block)).collect();
            prop_assert_eq!(&demand, &missing);
            match window {
                Window::Streaming { row, window_bytes, .. } => {
                    prop_assert!(plan.ahead.last().is_none_or(|run| run.end <= row.next + window_bytes));
                }
                _ => prop_assert!(plan.ahead.is_empty()),
            }
            present.extend(demand);
            if let Some(run) = plan.ahead.last() {
                window.asked(run.end);
            }
            if kept {
                present.extend(ahead);
            } else {
                // As if the cache had let something go meanwhile.
                present.retain(|block| block % 3 != 0);
            }
        }
    }

    /// Reading ahead costs at most a small multiple of what was read, whatever the pattern.
    #[test]
    fn reading_ahead_is_bounded_by_what_was_read(history in history()) {
        let History { size, reads } = history;
        let mut window = Window::Untouched;
        let (mut present, mut fetched, mut read_bytes) = (BTreeSet::new(), 0, 0);
        for (n, (start, end, _)) in (1..).zip(reads) {
            window.note(&(start..end), WINDOW_BYTES_MAX);
            let plan = plan_fetch(&window, &(start..end), size, |block| present.contains(&block));
            for run in plan.demand.iter().chain(&plan.ahead) {
                fetched += run.end - run.start;
                present.extend(run.start / B..run.end.div_ceil(B));
                window.asked(run.end);
            }
            read_bytes += end - start;
            let rounding = 2 * B * n + WHOLE_BYTES_MAX;
            prop_assert!(fetched <= 6 * read_bytes + rounding, "{fetched} for {read_bytes}");
        }
    }
}
