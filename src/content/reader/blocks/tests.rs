//! Reads against a store whose answers the test lets through one by one, or all at once.

#![allow(clippy::single_range_in_vec_init)] // A list of requests may well have one.

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use tokio::sync::watch;

use super::*;
use crate::content::reader::tests::target;

const B: u64 = BLOCK_BYTES;
const M: u64 = 1 << 20;

/// The byte at an offset: differs between blocks and inside one.
fn byte_at(offset: u64) -> u8 {
    (offset / B * 31 + offset % 251) as u8
}

fn content(range: Range<u64>) -> Bytes {
    range.map(byte_at).collect()
}

/// A store that writes down what it is asked for. While the gate is shut, nothing is answered.
#[derive(Clone, Debug)]
struct Far {
    asked: Arc<Mutex<Vec<Range<u64>>>>,
    gate: watch::Sender<bool>,
    broken: Arc<AtomicBool>,
}

impl Far {
    fn new(open: bool) -> Self {
        Self { asked: Arc::default(), gate: watch::Sender::new(open), broken: Arc::default() }
    }

    fn fetch(&self, run: Range<u64>) -> impl Future<Output = Result<Bytes>> + Send + 'static + use<> {
        let (far, mut gate) = (self.clone(), self.gate.subscribe());
        far.asked.lock().unwrap().push(run.clone());
        async move {
            gate.wait_for(|open| *open).await.unwrap();
            if far.broken.load(Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::Unreachable, "no network"));
            }
            Ok(content(run))
        }
    }

    /// What was asked for since the last call.
    fn asked(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// Polls once; true if the future still waits.
async fn waits<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

#[tokio::test]
async fn a_read_is_the_content_and_ends_with_the_file() {
    let (blocks, far, file) = (Blocks::new(64 * M), Far::new(true), target("a", 10 * B + 7));
    let cursor = blocks.cursor();
    for (offset, len) in
        [(3, 10), (B - 1, 2), (0, 10 * B + 7), (9 * B, 100 * B), (10 * B + 6, 1), (5, u64::MAX)]
    {
        let got = blocks.read(&file, &cursor, offset, len, |run| far.fetch(run)).await.unwrap();
        assert_eq!(got, content(offset..offset.saturating_add(len).min(file.size)), "{offset} {len}");
    }
    far.asked();
    for (offset, len) in [(10 * B + 7, 1), (u64::MAX, 5), (0, 0)] {
        assert!(blocks.read(&file, &cursor, offset, len, |run| far.fetch(run)).await.unwrap().is_empty());
    }
    let empty = target("empty", 0);
    assert!(blocks.read(&empty, &cursor, 0, 10, |run| far.fetch(run)).await.unwrap().is_empty());
    assert_eq!(far.asked(), []);
}

#[tokio::test]
async fn two_readers_of_a_block_share_a_request_and_the_cache_keeps_it() {
    let (blocks, far, file) = (Blocks::new(64 * M), Far::new(false), target("a", 100 * M));
    let (one, two) = (blocks.cursor(), blocks.cursor());
    let fetch = |run| far.fetch(run);
    let mut first = std::pin::pin!(blocks.read(&file, &one, 4 * B, 2 * B, fetch));
    let mut second = std::pin::pin!(blocks.read(&file, &two, 5 * B, 2 * B, fetch));
    assert!(waits(first.as_mut()).await && waits(second.as_mut()).await);
    assert_eq!(far.asked(), [4 * B..6 * B, 6 * B..7 * B]);
    far.gate.send_replace(true);
    assert_eq!(first.await.unwrap(), content(4 * B..6 * B));
    assert_eq!(second.await.unwrap(), content(5 * B..7 * B));
    blocks.read(&file, &blocks.cursor(), 4 * B, 3 * B, fetch).await.unwrap();
    assert_eq!(far.asked(), []);
    assert_eq!(blocks.cached_bytes(), 3 * B);
    // Another content of the same file shares nothing.
    let other = ReadTarget { revision: crate::ids::RevisionId::new("r2").ok(), ..file.clone() };
    blocks.read(&other, &one, 4 * B, B, fetch).await.unwrap();
    assert_eq!(far.asked(), [4 * B..5 * B]);
}

#[tokio::test]
async fn a_waiter_that_leaves_does_not_end_the_request() {
    let (blocks, far, file) = (Blocks::new(64 * M), Far::new(false), target("a", 100 * M));
    let (one, two) = (blocks.cursor(), blocks.cursor());
    let fetch = |run| far.fetch(run);
    {
        let mut leaves = std::pin::pin!(blocks.read(&file, &one, 0, B, fetch));
        assert!(waits(leaves.as_mut()).await);
    }
    let mut stays = std::pin::pin!(blocks.read(&file, &two, 0, B, fetch));
    assert!(waits(stays.as_mut()).await);
    far.gate.send_replace(true);
    assert_eq!(stays.await.unwrap(), content(0..B));
    assert_eq!(far.asked().len(), 1);
}

#[tokio::test]
async fn a_failure_reaches_all_who_wait_and_is_not_kept() {
    let (blocks, far, file) = (Blocks::new(64 * M), Far::new(false), target("a", 100 * M));
    let (one, two) = (blocks.cursor(), blocks.cursor());
    let fetch = |run| far.fetch(run);
    far.broken.store(true, Ordering::SeqCst);
    let mut first = std::pin::pin!(blocks.read(&file, &one, 0, B, fetch));
    let mut second = std::pin::pin!(blocks.read(&file, &two, 0, B, fetch));
    assert!(waits(first.as_mut()).await && waits(second.as_mut()).await);
    far.gate.send_replace(true);
    assert_eq!(first.await.unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(second.await.unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(blocks.cached_bytes(), 0);
    far.broken.store(false, Ordering::SeqCst);
    assert_eq!(blocks.read(&file, &one, 0, B, fetch).await.unwrap(), content(0..B));
    assert_eq!(far.asked().len(), 2);
}

#[tokio::test]
async fn an_answer_of_the_wrong_length_is_an_error() {
    let (blocks, file) = (Blocks::new(64 * M), target("a", 100 * M));
    let short = |run: Range<u64>| async move { Ok(content(run.start..run.end - 1)) };
    let error = blocks.read(&file, &blocks.cursor(), 0, B, short).await.unwrap_err();
    assert_eq!((error.kind(), blocks.cached_bytes()), (ErrorKind::Integrity, 0));
}

#[tokio::test]
async fn a_request_that_dies_answers_its_waiters_and_can_be_made_again() {
    let (blocks, far, file) = (Blocks::new(64 * M), Far::new(true), target("a", 100 * M));
    let dies = |_| async { panic!("the test wants this") };
    let error = blocks.read(&file, &blocks.cursor(), 0, B, dies).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let got = blocks.read(&file, &blocks.cursor(), 0, B, |run| far.fetch(run)).await.unwrap();
    assert_eq!(got, content(0..B));
    assert_eq!(blocks.budget.available_permits() as u64, IN_FLIGHT_BYTES_MAX / B);
}

#[tokio::test]
async fn a_sequential_read_fetches_all_once_in_few_requests() {
    let (blocks, far, file) = (Blocks::new(64 * M), Far::new(true), target("a", 40 * M + 5));
    let cursor = blocks.cursor();
    let fetch = |run| far.fetch(run);
    for offset in (0..file.size).step_by(128 << 10) {
        let got = blocks.read(&file, &cursor, offset, 128 << 10, fetch).await.unwrap();
        assert_eq!(got, content(offset..(offset + (128 << 10)).min(file.size)));
    }
    let mut asked = far.asked();
    assert!(asked.len() < 50, "{} requests", asked.len());
    asked.sort_by_key(|run| run.start);
    assert_eq!((asked[0].start, asked.last().unwrap().end), (0, file.size));
    assert!(asked.windows(2).all(|pair| pair[0].end == pair[1].start), "{asked:?}");
    assert_eq!(blocks.streams.load(Ordering::Relaxed), 1);
    drop(cursor);
    assert_eq!(blocks.streams.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_read_does_not_wait_for_what_is_read_ahead() {
    let (blocks, far, file) = (Blocks::new(64 * M), Far::new(false), target("a", 100 * M));
    let cursor = blocks.cursor();
    let only_demand = |run: Range<u64>| {
        let (far, run) = (far.clone(), run);
        async move { if run.end <= 2 * M { Ok(content(run)) } else { far.fetch(run).await } }
    };
    for offset in [0, M] {
        blocks.read(&file, &cursor, offset, M, only_demand).await.unwrap();
    }
    // Lets the spawned requests get as far as the gate.
    tokio::task::yield_now().await;
    assert!(far.asked().iter().map(|run| run.end).max().unwrap() > 2 * M);
}

#[tokio::test]
async fn what_was_lost_on_the_way_is_asked_for_again() {
    let (blocks, far, file) = (Blocks::new(64 * M), Far::new(true), target("a", 100 * M));
    let cursor = blocks.cursor();
    let fetch = |run| far.fetch(run);
    for n in 0..4 {
        blocks.read(&file, &cursor, n * M, M, fetch).await.unwrap();
    }
    far.broken.store(true, Ordering::SeqCst);
    let mut n = 4;
    while blocks.read(&file, &cursor, n * M, M, fetch).await.is_ok() {
        n += 1;
    }
    far.broken.store(false, Ordering::SeqCst);
    far.asked();
    assert_eq!(blocks.read(&file, &cursor, n * M, M, fetch).await.unwrap(), content(n * M..(n + 1) * M));
    let again = far.asked();
    assert!(
        again.len() > 1 && again.last().unwrap().end > (n + 4) * M,
        "the window is asked for as well: {again:?}"
    );
}

#[tokio::test]
async fn many_streams_stay_within_the_bounds_and_leave_room_for_reads() {
    let (blocks, far) = (Blocks::new(64 * M), Far::new(false));
    let files: Vec<_> = (0..40).map(|n| (target(&format!("f{n}"), 100 * M), blocks.cursor())).collect();
    let mut waiting = Vec::new();
    for offset in [0, M, 2 * M] {
        for (file, cursor) in &files {
            let mut read = Box::pin(blocks.read(file, cursor, offset, M, |run| far.fetch(run)));
            assert!(waits(read.as_mut()).await);
            waiting.push(read);
        }
    }
    let ahead: u64 = far.asked().iter().map(|run| run.end - run.start).sum::<u64>() - 120 * M;
    assert!(ahead <= IN_FLIGHT_BYTES_MAX - DEMAND_BYTES, "{ahead}");
    far.gate.send_replace(true);
    for read in waiting {
        assert_eq!(read.await.unwrap().len() as u64, M);
    }
    assert!(blocks.cached_bytes() <= 64 * M);
    assert_eq!(blocks.budget.available_permits() as u64, IN_FLIGHT_BYTES_MAX / B);
}

proptest! {
    /// Any reads through any number of handles give the content, with a cache too small to help too.
    #[test]
    fn reads_are_the_content(
        size in 1..3 * M,
        cache_blocks in 0_u64..40,
        reads in proptest::collection::vec((0_usize..3, any::<u64>(), 0_u64..400_000, any::<bool>()), 1..30),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (blocks, far, file) = (Blocks::new(cache_blocks * B), Far::new(true), target("a", size));
            let whole = content(0..size);
            let cursors = [blocks.cursor(), blocks.cursor(), blocks.cursor()];
            let mut at = [0; 3];
            for (handle, seek, len, goes_on) in reads {
                let offset = if goes_on { at[handle] } else { seek % (size + 10) };
                let got = blocks.read(&file, &cursors[handle], offset, len, |run| far.fetch(run)).await.unwrap();
                let end = (offset + len).min(size);
                assert_eq!(got, whole.slice(offset.min(end) as usize..end as usize));
                at[handle] = end;
                assert!(blocks.cached_bytes() <= cache_blocks * B);
            }
        });
    }
}
