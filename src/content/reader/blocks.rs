//! Which blocks are there, which are on their way, and how a read is put together from both.
//!
//! Every block of a content is *cached*, *on its way* or *missing*, and only the one lock of this
//! file turns one into another, so no block is ever asked for twice at a time. How bytes are
//! fetched is the caller's business: a function from a range to a future.
//!
//! Memory: the cache is bounded by its own limit, requests on their way by
//! [`IN_FLIGHT_BYTES_MAX`]. Reading ahead is given up where the bound is met; what a program waits
//! for waits its turn.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ReadTarget;
use super::cache::BlockCache;
use super::flight::{Flight, Pilot};
use super::window::{BLOCK_BYTES, RUN_BYTES_MAX, WINDOW_BYTES_MAX, Window, plan_fetch};
use crate::error::{Error, ErrorKind, Result};

/// Bytes that may have been asked for and not yet have arrived, over all files of a mount.
pub(super) const IN_FLIGHT_BYTES_MAX: u64 = 48 << 20;
/// The share of it that reading ahead leaves to reads that somebody waits for.
const DEMAND_BYTES: u64 = 16 << 20;

// Whatever is asked for must fit at some time.
const _: () =
    assert!(RUN_BYTES_MAX <= DEMAND_BYTES && DEMAND_BYTES + WINDOW_BYTES_MAX <= IN_FLIGHT_BYTES_MAX);

/// Where the reads of one open handle are, and how far ahead of them to fetch. Cheap; made by
/// `Reader::cursor`, one per handle.
#[derive(Debug)]
pub struct ReadCursor {
    // Lock order: a cursor's window, then the store. Neither is held across an await.
    window: Mutex<Window>,
    streams: Arc<AtomicUsize>,
}

impl ReadCursor {
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ReadCursor {
    fn drop(&mut self) {
        if self.window().is_streaming() {
            self.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The blocks of all files of a mount.
#[derive(Debug)]
pub(super) struct Blocks {
    store: Mutex<Store>,
    /// One permit per block that may be on its way.
    budget: Arc<Semaphore>,
    /// Handles that read ahead now.
    streams: Arc<AtomicUsize>,
    /// What all of them may read ahead together: as much again stays for what was read before, so
    /// that nothing read ahead is pushed out before it is read.
    ahead_bytes_max: u64,
}

#[derive(Debug)]
struct Store {
    cache: BlockCache,
    /// Requests under way by their first byte. They never overlap.
    flights: HashMap<ReadTarget, BTreeMap<u64, Airborne>>,
}

#[derive(Clone, Debug)]
struct Airborne {
    run: Range<u64>,
    flight: Arc<Flight<Bytes>>,
}

/// Where a piece of a read comes from.
#[derive(Debug)]
enum Source {
    Here(Bytes),
    Coming { flight: Arc<Flight<Bytes>>, part: Range<usize> },
}

/// A request that is entered in the store and has yet to be sent.
struct Launch {
    landing: Landing,
    permit: Option<OwnedSemaphorePermit>,
}

impl Blocks {
    pub(super) fn new(cache_bytes_max: u64) -> Arc<Self> {
        let store = Store { cache: BlockCache::new(cache_bytes_max), flights: HashMap::new() };
        Arc::new(Self {
            store: Mutex::new(store),
            budget: Arc::new(Semaphore::new((IN_FLIGHT_BYTES_MAX / BLOCK_BYTES) as usize)),
            streams: Arc::default(),
            ahead_bytes_max: cache_bytes_max / 2,
        })
    }

    pub(super) fn cursor(&self) -> ReadCursor {
        ReadCursor { window: Mutex::new(Window::Untouched), streams: self.streams.clone() }
    }

    /// Bytes held by the cache.
    pub(super) fn cached_bytes(&self) -> u64 {
        self.store().cache.bytes()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes from `offset`, `len` of them or as many as there are before the end. Returns as soon
    /// as they are there, whatever else is on its way. `fetch` gets the bytes of one range; it is
    /// called before anything is awaited.
    pub(super) async fn read<Fut>(
        self: &Arc<Self>,
        target: &ReadTarget,
        cursor: &ReadCursor,
        offset: u64,
        len: u64,
        fetch: impl Fn(Range<u64>) -> Fut,
    ) -> Result<Bytes>
    where
        Fut: Future<Output = Result<Bytes>> + Send + 'static,
    {
        let read = offset..offset.saturating_add(len).min(target.size);
        if read.is_empty() {
            return Ok(Bytes::new());
        }
        let (sources, launches) = self.arrange(target, cursor, &read);
        // Spawned with the locks released: a runtime that is shutting down drops a new task at
        // once, and dropping it takes the lock of the store.
        for launch in launches {
            let answer = fetch(launch.landing.run.clone());
            tokio::spawn(launch.fly(self.budget.clone(), answer));
        }
        assemble(&read, sources?).await
    }

    /// Notes the read, enters the requests it makes, and finds where its bytes come from.
    fn arrange(
        self: &Arc<Self>,
        target: &ReadTarget,
        cursor: &ReadCursor,
        read: &Range<u64>,
    ) -> (Result<Vec<Source>>, Vec<Launch>) {
        let mut window = cursor.window();
        self.note(&mut window, read);
        let mut store = self.store();
        let plan = plan_fetch(&window, read, target.size, |block| store.has(target, block));
        let mut launches = Vec::with_capacity(plan.demand.len() + plan.ahead.len());
        for run in plan.demand {
            window.asked(run.end);
            launches.push(self.enter(&mut store, target, run, None));
        }
        for run in plan.ahead {
            let Some(permit) = self.permit_ahead(&run) else { break };
            window.asked(run.end);
            launches.push(self.enter(&mut store, target, run, Some(permit)));
        }
        (store.sources(target, read), launches)
    }

    fn note(&self, window: &mut Window, read: &Range<u64>) {
        let was_streaming = window.is_streaming();
        let others = self.streams.load(Ordering::Relaxed) - usize::from(was_streaming);
        let share = self.ahead_bytes_max / (others as u64 + 1);
        window.note(read, share.min(WINDOW_BYTES_MAX));
        match (was_streaming, window.is_streaming()) {
            (false, true) => self.streams.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.streams.fetch_sub(1, Ordering::Relaxed),
            _ => others,
        };
    }

    /// Room for reading `run` ahead, if there is enough now.
    fn permit_ahead(&self, run: &Range<u64>) -> Option<OwnedSemaphorePermit> {
        let blocks = blocks_of(run);
        let reserve = (DEMAND_BYTES / BLOCK_BYTES) as usize;
        if self.budget.available_permits() < reserve + blocks as usize {
            return None;
        }
        self.budget.clone().try_acquire_many_owned(blocks).ok()
    }

    fn enter(
        self: &Arc<Self>,
        store: &mut Store,
        target: &ReadTarget,
        run: Range<u64>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Launch {
        let (flight, pilot) = Flight::start();
        let airborne = Airborne { run: run.clone(), flight };
        store.flights.entry(target.clone()).or_default().insert(run.start, airborne);
        let landing = Landing { blocks: self.clone(), target: target.clone(), run, pilot: Some(pilot) };
        Launch { landing, permit }
    }
}

impl Store {
    fn has(&self, target: &ReadTarget, block: u64) -> bool {
        self.cache.contains(target, block) || self.airborne(target, block * BLOCK_BYTES).is_some()
    }

    fn airborne(&self, target: &ReadTarget, at: u64) -> Option<&Airborne> {
        let (_, before) = self.flights.get(target)?.range(..=at).next_back()?;
        (at < before.run.end).then_some(before)
    }

    /// Where the bytes of `read` come from, every block of which is there or on its way.
    fn sources(&mut self, target: &ReadTarget, read: &Range<u64>) -> Result<Vec<Source>> {
        let mut sources = Vec::new();
        let mut at = read.start;
        while at < read.end {
            if let Some(bytes) = self.cache.get(target, &(at..read.end)) {
                at += bytes.len() as u64;
                sources.push(Source::Here(bytes));
            } else if let Some(Airborne { run, flight }) = self.airborne(target, at) {
                let end = run.end.min(read.end);
                let part = (at - run.start) as usize..(end - run.start) as usize;
                sources.push(Source::Coming { flight: flight.clone(), part });
                at = end;
            } else {
                return Err(Error::new(ErrorKind::Io, format!("byte {at} was neither there nor asked for")));
            }
        }
        Ok(sources)
    }
}

/// Waits for the pieces and joins them. One piece, the usual case, is not copied.
async fn assemble(read: &Range<u64>, sources: Vec<Source>) -> Result<Bytes> {
    let alone = sources.len() == 1;
    let mut joined = BytesMut::new();
    for source in sources {
        let piece = match source {
            Source::Here(bytes) => bytes,
            // The length was checked when the flight landed.
            Source::Coming { flight, part } => flight.outcome().await?.slice(part),
        };
        if alone {
            return Ok(piece);
        }
        joined.reserve((read.end - read.start) as usize - joined.len());
        joined.extend_from_slice(&piece);
    }
    Ok(joined.freeze())
}

impl Launch {
    async fn fly(self, budget: Arc<Semaphore>, answer: impl Future<Output = Result<Bytes>>) {
        let Self { landing, permit } = self;
        let permit = match permit {
            Some(permit) => Ok(permit),
            None => budget.acquire_many_owned(blocks_of(&landing.run)).await,
        };
        let Ok(_permit) = permit else { return }; // Never closed; if it were, the landing says so.
        landing.land(answer.await);
    }
}

/// The end of one request: moves its blocks from *on their way* to *cached* or *missing* and tells
/// those who wait. Dropped without an answer, its blocks are missing again.
struct Landing {
    blocks: Arc<Blocks>,
    target: ReadTarget,
    run: Range<u64>,
    pilot: Option<Pilot<Bytes>>,
}

impl Landing {
    fn land(mut self, answer: Result<Bytes>) {
        let wanted = self.run.end - self.run.start;
        let outcome = answer.and_then(|bytes| {
            if bytes.len() as u64 == wanted {
                return Ok(bytes);
            }
            let detail = format!("{} bytes came where {wanted} were asked for", bytes.len());
            Err(Error::new(ErrorKind::Integrity, detail))
        });
        self.finish(Some(outcome));
    }

    fn finish(&mut self, outcome: Option<Result<Bytes>>) {
        let Some(pilot) = self.pilot.take() else { return };
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
            pilot.land(outcome);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.finish(None);
    }
}

fn blocks_of(run: &Range<u64>) -> u32 {
    (run.end - run.start).div_ceil(BLOCK_BYTES) as u32
}

#[cfg(test)]
mod tests;
