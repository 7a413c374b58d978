//! Reads from a store whose answers the test holds back or lets through.

#![allow(clippy::single_range_in_vec_init)] // A list of requests may have one range.

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

/// A store that records its requests. It answers while the gate is open.
#[derive(Clone, Debug)]
struct FakeStore {
    requests: Arc<Mutex<Vec<Range<u64>>>>,
    gate: watch::Sender<bool>,
    broken: Arc<AtomicBool>,
}

impl FakeStore {
    fn new(open: bool) -> Self {
        Self { requests: Arc::default(), gate: watch::Sender::new(open), broken: Arc::default() }
    }

    fn fetch(&self, run: Range<u64>) -> impl Future<Output = Result<Bytes>> + Send + 'static + use<> {
        let (store, mut gate) = (self.clone(), self.gate.subscribe());
        store.requests.lock().push(run.clone());
        async move {
            gate.wait_for(|open| *open).await.unwrap();
            if store.broken.load(Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::Unreachable, "no network"));
            }
            Ok(content(run))
        }
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut *self.requests.lock())
    }
}

/// Polls once; true if the future still waits.
async fn still_waits<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

#[tokio::test]
async fn read_returns_content_up_to_the_end() {
    let (blocks, store, file) = (Blocks::new(64 * M), FakeStore::new(true), target("a", 10 * B + 7));
    let cursor = blocks.cursor();
    for (offset, len) in
        [(3, 10), (B - 1, 2), (0, 10 * B + 7), (9 * B, 100 * B), (10 * B + 6, 1), (5, u64::MAX)]
    {
        let got = blocks.read(&file, &cursor, offset, len, |run, _| store.fetch(run)).await.unwrap();
        assert_eq!(got, content(offset..offset.saturating_add(len).min(file.size)), "{offset} {len}");
    }
    store.requests();
    for (offset, len) in [(10 * B + 7, 1), (u64::MAX, 5), (0, 0)] {
        assert!(
            blocks.read(&file, &cursor, offset, len, |run, _| store.fetch(run)).await.unwrap().is_empty()
        );
    }
    let empty = target("empty", 0);
    assert!(blocks.read(&empty, &cursor, 0, 10, |run, _| store.fetch(run)).await.unwrap().is_empty());
    assert_eq!(store.requests(), []);
}

#[tokio::test]
async fn readers_of_a_block_share_a_request() {
    let (blocks, store, file) = (Blocks::new(64 * M), FakeStore::new(false), target("a", 100 * M));
    let (one, two) = (blocks.cursor(), blocks.cursor());
    let fetch = |run, _| store.fetch(run);
    let mut first = std::pin::pin!(blocks.read(&file, &one, 4 * B, 2 * B, fetch));
    let mut second = std::pin::pin!(blocks.read(&file, &two, 5 * B, 2 * B, fetch));
    assert!(still_waits(first.as_mut()).await && still_waits(second.as_mut()).await);
    assert_eq!(store.requests(), [4 * B..6 * B, 6 * B..7 * B]);
    store.gate.send_replace(true);
    assert_eq!(first.await.unwrap(), content(4 * B..6 * B));
    assert_eq!(second.await.unwrap(), content(5 * B..7 * B));
    blocks.read(&file, &blocks.cursor(), 4 * B, 3 * B, fetch).await.unwrap();
    assert_eq!(store.requests(), []);
    assert_eq!(blocks.cached_bytes(), 3 * B);
    // Another content of the same file shares nothing.
    let other = ReadTarget { revision: crate::ids::RevisionId::new("r2").ok(), ..file.clone() };
    blocks.read(&other, &one, 4 * B, B, fetch).await.unwrap();
    assert_eq!(store.requests(), [4 * B..5 * B]);
}

#[tokio::test]
async fn cancelled_waiter_does_not_end_the_request() {
    let (blocks, store, file) = (Blocks::new(64 * M), FakeStore::new(false), target("a", 100 * M));
    let (one, two) = (blocks.cursor(), blocks.cursor());
    let fetch = |run, _| store.fetch(run);
    {
        let mut cancelled = std::pin::pin!(blocks.read(&file, &one, 0, B, fetch));
        assert!(still_waits(cancelled.as_mut()).await);
    }
    let mut remaining = std::pin::pin!(blocks.read(&file, &two, 0, B, fetch));
    assert!(still_waits(remaining.as_mut()).await);
    store.gate.send_replace(true);
    assert_eq!(remaining.await.unwrap(), content(0..B));
    assert_eq!(store.requests().len(), 1);
}

#[tokio::test]
async fn read_failure_reaches_all_waiters_uncached() {
    let (blocks, store, file) = (Blocks::new(64 * M), FakeStore::new(false), target("a", 100 * M));
    let (one, two) = (blocks.cursor(), blocks.cursor());
    let fetch = |run, _| store.fetch(run);
    store.broken.store(true, Ordering::SeqCst);
    let mut first = std::pin::pin!(blocks.read(&file, &one, 0, B, fetch));
    let mut second = std::pin::pin!(blocks.read(&file, &two, 0, B, fetch));
    assert!(still_waits(first.as_mut()).await && still_waits(second.as_mut()).await);
    store.gate.send_replace(true);
    assert_eq!(first.await.unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(second.await.unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(blocks.cached_bytes(), 0);
    store.broken.store(false, Ordering::SeqCst);
    assert_eq!(blocks.read(&file, &one, 0, B, fetch).await.unwrap(), content(0..B));
    assert_eq!(store.requests().len(), 2);
}

#[tokio::test]
async fn answer_of_wrong_length_is_an_error() {
    let (blocks, file) = (Blocks::new(64 * M), target("a", 100 * M));
    let short = |run: Range<u64>, _| async move { Ok(content(run.start..run.end - 1)) };
    let error = blocks.read(&file, &blocks.cursor(), 0, B, short).await.unwrap_err();
    assert_eq!((error.kind(), blocks.cached_bytes()), (ErrorKind::Integrity, 0));
}

#[tokio::test]
async fn dead_request_answers_waiters_and_is_repeatable() {
    let (blocks, store, file) = (Blocks::new(64 * M), FakeStore::new(true), target("a", 100 * M));
    let dies = |_, _| async { panic!("a panic on purpose") };
    let error = blocks.read(&file, &blocks.cursor(), 0, B, dies).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let got = blocks.read(&file, &blocks.cursor(), 0, B, |run, _| store.fetch(run)).await.unwrap();
    assert_eq!(got, content(0..B));
    assert_eq!(blocks.in_flight_permits.available_permits() as u64, IN_FLIGHT_BYTES_MAX / B);
}

#[tokio::test]
async fn sequential_read_needs_few_requests() {
    let (blocks, store, file) = (Blocks::new(64 * M), FakeStore::new(true), target("a", 40 * M + 5));
    let cursor = blocks.cursor();
    let fetch = |run, _| store.fetch(run);
    for offset in (0..file.size).step_by(128 << 10) {
        let got = blocks.read(&file, &cursor, offset, 128 << 10, fetch).await.unwrap();
        assert_eq!(got, content(offset..(offset + (128 << 10)).min(file.size)));
    }
    let mut requests = store.requests();
    assert!(requests.len() < 50, "{} requests", requests.len());
    requests.sort_by_key(|run| run.start);
    assert_eq!((requests[0].start, requests.last().unwrap().end), (0, file.size));
    assert!(requests.windows(2).all(|pair| pair[0].end == pair[1].start), "{requests:?}");
    assert_eq!(blocks.streams.load(Ordering::Relaxed), 1);
    drop(cursor);
    assert_eq!(blocks.streams.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn read_does_not_wait_for_read_ahead() {
    let (blocks, store, file) = (Blocks::new(64 * M), FakeStore::new(false), target("a", 100 * M));
    let cursor = blocks.cursor();
    let only_demand = |run: Range<u64>, _| {
        let (store, run) = (store.clone(), run);
        async move { if run.end <= 2 * M { Ok(content(run)) } else { store.fetch(run).await } }
    };
    for offset in [0, M] {
        blocks.read(&file, &cursor, offset, M, only_demand).await.unwrap();
    }
    // Lets the spawned requests reach the gate.
    tokio::task::yield_now().await;
    assert!(store.requests().iter().map(|run| run.end).max().unwrap() > 2 * M);
}

#[tokio::test]
async fn lost_blocks_are_requested_again() {
    let (blocks, store, file) = (Blocks::new(64 * M), FakeStore::new(true), target("a", 100 * M));
    let cursor = blocks.cursor();
    let fetch = |run, _| store.fetch(run);
    for n in 0..4 {
        blocks.read(&file, &cursor, n * M, M, fetch).await.unwrap();
    }
    store.broken.store(true, Ordering::SeqCst);
    let mut n = 4;
    while blocks.read(&file, &cursor, n * M, M, fetch).await.is_ok() {
        n += 1;
    }
    store.broken.store(false, Ordering::SeqCst);
    store.requests();
    assert_eq!(blocks.read(&file, &cursor, n * M, M, fetch).await.unwrap(), content(n * M..(n + 1) * M));
    let again = store.requests();
    assert!(
        again.len() > 1 && again.last().unwrap().end > (n + 4) * M,
        "the window is not requested again: {again:?}"
    );
}

#[tokio::test]
async fn many_streams_stay_within_the_bounds() {
    let (blocks, store) = (Blocks::new(64 * M), FakeStore::new(false));
    let files: Vec<_> = (0..40).map(|n| (target(&format!("f{n}"), 100 * M), blocks.cursor())).collect();
    let mut waiting = Vec::new();
    for offset in [0, M, 2 * M] {
        for (file, cursor) in &files {
            let mut read = Box::pin(blocks.read(file, cursor, offset, M, |run, _| store.fetch(run)));
            assert!(still_waits(read.as_mut()).await);
            waiting.push(read);
        }
    }
    let ahead: u64 = store.requests().iter().map(|run| run.end - run.start).sum::<u64>() - 120 * M;
    assert!(ahead <= IN_FLIGHT_BYTES_MAX - DEMAND_BYTES, "{ahead}");
    store.gate.send_replace(true);
    for read in waiting {
        assert_eq!(read.await.unwrap().len() as u64, M);
    }
    assert!(blocks.cached_bytes() <= 64 * M);
    assert_eq!(blocks.in_flight_permits.available_permits() as u64, IN_FLIGHT_BYTES_MAX / B);
}

proptest! {
    /// Any reads through any number of handles return the content, also with a very small cache.
    #[test]
    fn any_reads_return_the_content(
        size in 1..3 * M,
        cache_blocks in 0_u64..40,
        reads in proptest::collection::vec((0_usize..3, any::<u64>(), 0_u64..400_000, any::<bool>()), 1..30),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (blocks, store, file) = (Blocks::new(cache_blocks * B), FakeStore::new(true), target("a", size));
            let whole = content(0..size);
            let cursors = [blocks.cursor(), blocks.cursor(), blocks.cursor()];
            let mut at = [0; 3];
            for (handle, seek, len, continues) in reads {
                let offset = if continues { at[handle] } else { seek % (size + 10) };
                let got = blocks.read(&file, &cursors[handle], offset, len, |run, _| store.fetch(run)).await.unwrap();
                let end = (offset + len).min(size);
                assert_eq!(got, whole.slice(offset.min(end) as usize..end as usize));
                at[handle] = end;
                assert!(blocks.cached_bytes() <= cache_blocks * B);
            }
        });
    }
}
