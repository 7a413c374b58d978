//! Cached blocks and blocks in flight, and the assembly of reads from both.
//!
//! Every block of a content is *cached*, *in flight* or *missing*. One lock guards all changes between these,
//! so no block is requested twice at a time. The caller passes the function that fetches a range.
//!
//! Memory: the cache has its own limit, and [`IN_FLIGHT_BYTES_MAX`] limits the requests in flight. At that
//! limit, read-ahead is skipped, and reads that a program waits for are queued.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cache::BlockCache;
use super::flight::{Flight, FlightOwner};
use super::target::ReadTarget;
use super::window::{BLOCK_BYTES, RUN_BYTES_MAX, WINDOW_BYTES_MAX, Window, plan_fetch};
use crate::error::{Error, ErrorKind, Result};
use crate::pds::drive::CallPriority;

/// Bytes in flight at most, over all files of a mount.
pub(super) const IN_FLIGHT_BYTES_MAX: u64 = 48 << 20;
/// Bytes in flight that read-ahead leaves to reads that a program waits for.
const DEMAND_BYTES: u64 = 16 << 20;

// Every request must fit into the permits.
const _: () =
    assert!(RUN_BYTES_MAX <= DEMAND_BYTES && DEMAND_BYTES + WINDOW_BYTES_MAX <= IN_FLIGHT_BYTES_MAX);

/// The read position of one open handle, and its read-ahead window.
#[derive(Debug)]
pub struct ReadCursor {
    /// Locked before the store. Neither lock is held across an await.
    window: Mutex<Window>,
    streams: Arc<AtomicUsize>,
}

impl ReadCursor {
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock()
    }
}

impl Drop for ReadCursor {
    fn drop(&mut self) {
        if self.window().is_open() {
            self.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The blocks of all files of a mount.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Locked after the window of a cursor. No lock is taken under it.
    store: Mutex<Store>,
    /// One permit per block in flight.
    in_flight_permits: Arc<Semaphore>,
    /// Number of handles with an open window.
    streams: Arc<AtomicUsize>,
    /// Read-ahead bytes of all handles together. The same amount of the cache stays for blocks read before,
    /// so that no block is evicted between its read-ahead and its read.
    ahead_bytes_max: u64,
}

#[derive(Debug)]
struct Store {
    cache: BlockCache,
    /// Requests in flight by their first byte. They never overlap.
    flights: HashMap<ReadTarget, BTreeMap<u64, InFlightRun>>,
}

#[derive(Clone, Debug)]
struct InFlightRun {
    run: Range<u64>,
    flight: Arc<Flight<Bytes>>,
}

/// The source of a piece of a read.
#[derive(Debug)]
enum PieceSource {
    Cached(Bytes),
    InFlight { flight: Arc<Flight<Bytes>>, part: Range<usize> },
}

/// A request that is registered in the store and not sent yet.
struct RunRequest {
    completion: RunCompletion,
    permit: Option<OwnedSemaphorePermit>,
}

impl Blocks {
    pub(super) fn new(cache_bytes_max: u64) -> Arc<Self> {
        let store = Store { cache: BlockCache::new(cache_bytes_max), flights: HashMap::new() };
        Arc::new(Self {
            store: Mutex::new(store),
            in_flight_permits: Arc::new(Semaphore::new((IN_FLIGHT_BYTES_MAX / BLOCK_BYTES) as usize)),
            streams: Arc::default(),
            ahead_bytes_max: cache_bytes_max / 2,
        })
    }

    pub(super) fn cursor(&self) -> ReadCursor {
        ReadCursor { window: Mutex::new(Window::Unused), streams: self.streams.clone() }
    }

    #[cfg(test)]
    pub(super) fn cached_bytes(&self) -> u64 {
        self.store().cache.bytes()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock()
    }

    /// Reads bytes `offset..offset + len`, fewer at the end. Does not wait for read-ahead. `fetch` gets the
    /// bytes of one range, for read-ahead with a lower priority; it is called before the first await.
    pub(super) async fn read<Fut>(
        self: &Arc<Self>,
        target: &ReadTarget,
        cursor: &ReadCursor,
        offset: u64,
        len: u64,
        fetch: impl Fn(Range<u64>, CallPriority) -> Fut,
    ) -> Result<Bytes>
    where
        Fut: Future<Output = Result<Bytes>> + Send + 'static,
    {
        let read = offset..offset.saturating_add(len).min(target.size);
        if read.is_empty() {
            return Ok(Bytes::new());
        }
        let (sources, requests) = self.plan_read(target, cursor, &read);
        // Spawned without the locks: a runtime that shuts down drops a new task at once, and the drop takes
        // the lock of the store.
        for request in requests {
            let is_ahead = request.permit.is_some();
            let priority = if is_ahead { CallPriority::ReadAhead } else { CallPriority::Lookup };
            let answer = fetch(request.completion.run.clone(), priority);
            tokio::spawn(request.run(self.in_flight_permits.clone(), answer));
        }
        assemble(&read, sources?).await
    }

    /// The bytes of `run`, if all of it is cached.
    pub(super) fn cached(&self, target: &ReadTarget, run: &Range<u64>) -> Option<Bytes> {
        let mut store = self.store();
        let first = store.cache.get(target, run)?;
        if first.len() as u64 == run.end - run.start {
            return Some(first);
        }
        let mut bytes = BytesMut::with_capacity((run.end - run.start) as usize);
        bytes.extend_from_slice(&first);
        while (bytes.len() as u64) < run.end - run.start {
            let at = run.start + bytes.len() as u64;
            bytes.extend_from_slice(&store.cache.get(target, &(at..run.end))?);
        }
        Some(bytes.freeze())
    }

    /// Caches bytes that the store sent unasked before `run`. The first of them begin at a block. Bytes far
    /// before the run are dropped: they would evict what programs read.
    pub(super) fn insert_skipped(&self, target: &ReadTarget, run: &Range<u64>, at: u64, bytes: Bytes) {
        if run.start.saturating_sub(at) <= self.ahead_bytes_max {
            self.store().cache.insert(target, at, bytes);
        }
    }

    /// Drops the cached blocks of a content.
    pub(super) fn drop_content(&self, target: &ReadTarget) {
        self.store().cache.remove(target);
    }

    /// Records the read, registers its requests, and finds the sources of its bytes.
    fn plan_read(
        self: &Arc<Self>,
        target: &ReadTarget,
        cursor: &ReadCursor,
        read: &Range<u64>,
    ) -> (Result<Vec<PieceSource>>, Vec<RunRequest>) {
        let mut window = cursor.window();
        self.record(&mut window, read);
        let mut store = self.store();
        let plan = plan_fetch(&window, read, target.size, |block| store.has(target, block));
        let mut requests = Vec::with_capacity(plan.demand.len() + plan.ahead.len());
        for run in plan.demand {
            window.set_requested(run.end);
            requests.push(self.register(&mut store, target, run, None));
        }
        for run in plan.ahead {
            let Some(permit) = self.permit_ahead(&run) else { break };
            window.set_requested(run.end);
            requests.push(self.register(&mut store, target, run, Some(permit)));
        }
        (store.sources(target, read), requests)
    }

    fn record(&self, window: &mut Window, read: &Range<u64>) {
        let was_open = window.is_open();
        let others = self.streams.load(Ordering::Relaxed) - usize::from(was_open);
        let share = self.ahead_bytes_max / (others as u64 + 1);
        window.record(read, share.min(WINDOW_BYTES_MAX));
        match (was_open, window.is_open()) {
            (false, true) => self.streams.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.streams.fetch_sub(1, Ordering::Relaxed),
            _ => others,
        };
    }

    /// Permits for the read-ahead of `run`, if there are enough now.
    fn permit_ahead(&self, run: &Range<u64>) -> Option<OwnedSemaphorePermit> {
        let blocks = blocks_of(run);
        let reserve = (DEMAND_BYTES / BLOCK_BYTES) as usize;
        if self.in_flight_permits.available_permits() < reserve + blocks as usize {
            return None;
        }
        self.in_flight_permits.clone().try_acquire_many_owned(blocks).ok()
    }

    fn register(
        self: &Arc<Self>,
        store: &mut Store,
        target: &ReadTarget,
        run: Range<u64>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> RunRequest {
        let (flight, owner) = Flight::start();
        let in_flight = InFlightRun { run: run.clone(), flight };
        store.flights.entry(target.clone()).or_default().insert(run.start, in_flight);
        let completion =
            RunCompletion { blocks: self.clone(), target: target.clone(), run, owner: Some(owner) };
        RunRequest { completion, permit }
    }
}

impl Store {
    fn has(&self, target: &ReadTarget, block: u64) -> bool {
        self.cache.contains(target, block) || self.in_flight(target, block * BLOCK_BYTES).is_some()
    }

    fn in_flight(&self, target: &ReadTarget, at: u64) -> Option<&InFlightRun> {
        let (_, before) = self.flights.get(target)?.range(..=at).next_back()?;
        (at < before.run.end).then_some(before)
    }

    /// The sources of the bytes of `read`. Every block of it must be cached or in flight.
    fn sources(&mut self, target: &ReadTarget, read: &Range<u64>) -> Result<Vec<PieceSource>> {
        let mut sources = Vec::new();
        let mut at = read.start;
        while at < read.end {
            if let Some(bytes) = self.cache.get(target, &(at..read.end)) {
                at += bytes.len() as u64;
                sources.push(PieceSource::Cached(bytes));
            } else if let Some(InFlightRun { run, flight }) = self.in_flight(target, at) {
                let end = run.end.min(read.end);
                let part = (at - run.start) as usize..(end - run.start) as usize;
                sources.push(PieceSource::InFlight { flight: flight.clone(), part });
                at = end;
            } else {
                return Err(Error::new(ErrorKind::Io, format!("byte {at} was not requested")));
            }
        }
        Ok(sources)
    }
}

/// Waits for the pieces and joins them. A single piece, the usual case, is not copied.
async fn assemble(read: &Range<u64>, sources: Vec<PieceSource>) -> Result<Bytes> {
    let alone = sources.len() == 1;
    let mut joined = BytesMut::new();
    for source in sources {
        let piece = match source {
            PieceSource::Cached(bytes) => bytes,
            // The completion has checked the length.
            PieceSource::InFlight { flight, part } => flight.outcome().await?.slice(part),
        };
        if alone {
            return Ok(piece);
        }
        joined.reserve((read.end - read.start) as usize - joined.len());
        joined.extend_from_slice(&piece);
    }
    Ok(joined.freeze())
}

impl RunRequest {
    async fn run(self, in_flight_permits: Arc<Semaphore>, answer: impl Future<Output = Result<Bytes>>) {
        let Self { completion, permit } = self;
        let permit = match permit {
            Some(permit) => Ok(permit),
            None => in_flight_permits.acquire_many_owned(blocks_of(&completion.run)).await,
        };
        // The semaphore is never closed. If it were, the drop of `completion` would answer the waiters.
        let Ok(_permit) = permit else { return };
        completion.complete(answer.await);
    }
}

/// The completion of one request: makes its blocks *cached* or *missing* and answers the waiters. Dropped
/// without an answer, it makes them missing.
struct RunCompletion {
    blocks: Arc<Blocks>,
    target: ReadTarget,
    run: Range<u64>,
    owner: Option<FlightOwner<Bytes>>,
}

impl RunCompletion {
    fn complete(mut self, answer: Result<Bytes>) {
        let wanted = self.run.end - self.run.start;
        let outcome = answer.and_then(|bytes| {
            if bytes.len() as u64 == wanted {
                return Ok(bytes);
            }
            let detail = format!("the store returned {} bytes instead of {wanted}", bytes.len());
            Err(Error::new(ErrorKind::Integrity, detail))
        });
        self.finish(Some(outcome));
    }

    fn finish(&mut self, outcome: Option<Result<Bytes>>) {
        let Some(owner) = self.owner.take() else { return };
        {
            let mut store = self.blocks.store();
            if let Some(runs) = store.flights.get_mut(&self.target) {
                runs.remove(&self.run.start);
                if runs.is_empty() {
                    store.flights.remove(&self.target);
                }
            }
            if let Some(Ok(bytes)) = &outcome {
                store.cache.insert(&self.target, self.run.start, bytes.clone());
            }
        }
        if let Some(outcome) = outcome {
            owner.complete(outcome);
        }
    }
}

impl Drop for RunCompletion {
    fn drop(&mut self) {
        self.finish(None);
    }
}

fn blocks_of(run: &Range<u64>) -> u32 {
    (run.end - run.start).div_ceil(BLOCK_BYTES) as u32
}

#[cfg(test)]
mod tests;
