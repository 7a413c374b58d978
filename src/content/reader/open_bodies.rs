//! The bodies of stores that ignore `Range`, kept open between two runs of a reader.
//!
//! Such a store answers every request with the whole file. The body stays open behind the last run, and the
//! next run continues there. So a sequential read costs one download, for files of any size. A reader behind
//! all bodies of its file, such as one that seeks back beyond the cache, opens another.
//!
//! While it is unknown whether the store honours `Range`, and while a file has open bodies, its runs take
//! turns: a run waits for the body that is nearest before it, and the first run in the file goes first.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::target::ReadTarget;
use crate::ids::FileId;
use crate::pds::drive::OpenBody;

/// Open bodies at most, over all files of a mount. Each is a connection.
const BODIES_MAX: usize = 32;
/// How long a body stays open without a reader.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// The open bodies of a mount.
#[derive(Debug)]
pub(super) struct OpenBodies {
    /// A leaf lock.
    table: Mutex<BodyTable>,
    /// Notified when a body becomes free and when a run leaves the queue.
    changed: Notify,
}

#[derive(Debug, Default)]
struct BodyTable {
    /// Whether the store ignored `Range` in its last answer. `None` before the first answer.
    ignores_range: Option<bool>,
    entries: HashMap<ReadTarget, Vec<BodyEntry>>,
    /// Starts of the runs that wait, with a number of their own.
    waiting: HashMap<ReadTarget, BTreeSet<(u64, u64)>>,
    next_number: u64,
    /// A task closes idle bodies.
    is_sweeping: bool,
}

/// One body of a file, or the place of one that is being opened.
#[derive(Debug)]
struct BodyEntry {
    number: u64,
    usage: BodyUse,
}

#[derive(Debug)]
enum BodyUse {
    Idle {
        body: Box<OpenBody>,
        since: Instant,
    },
    /// A run receives these bytes.
    Busy(Range<u64>),
}

impl BodyEntry {
    fn position(&self) -> u64 {
        match &self.usage {
            BodyUse::Idle { body, .. } => body.position(),
            BodyUse::Busy(bytes) => bytes.end,
        }
    }
}

/// The permission to fetch one run. Its drop keeps the body open and lets the next run begin.
#[derive(Debug)]
pub(super) struct Turn {
    bodies: Arc<OpenBodies>,
    target: ReadTarget,
    /// `None` if the run needs no turn.
    entry: Option<u64>,
    /// The body to continue in, and afterwards the body to keep.
    pub(super) body: Mutex<Option<Box<OpenBody>>>,
}

/// How a run gets its bytes.
#[derive(Debug)]
pub(super) enum Admission {
    /// By a request, or from the body of the turn.
    Fetch(Turn),
    /// Another run has received them.
    Cached(Bytes),
}

impl OpenBodies {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { table: Mutex::default(), changed: Notify::new() })
    }

    fn table(&self) -> MutexGuard<'_, BodyTable> {
        self.table.lock()
    }

    /// Waits until `run` may be fetched, or until `cached` returns its bytes.
    pub(super) async fn admit(
        self: &Arc<Self>,
        target: &ReadTarget,
        run: &Range<u64>,
        queued: Option<QueuedRun>,
        cached: impl Fn() -> Option<Bytes>,
    ) -> Admission {
        let Some(queued) = queued.or_else(|| self.enqueue(target, run.start)) else {
            return Admission::Fetch(self.turn(target, None, None));
        };
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let is_serial = self.table().is_serial(target);
            if let Some(bytes) = is_serial.then(&cached).flatten() {
                return Admission::Cached(bytes);
            }
            if let Some(turn) = self.try_take(target, run, queued.number) {
                // Another run may have received the bytes and ended since the first look.
                let received = turn.entry.and_then(|_| cached());
                return received.map_or(Admission::Fetch(turn), Admission::Cached);
            }
            changed.await;
        }
    }

    /// Queues a run that begins at `start`. `None` if it needs no turn. Later runs of the file wait for a queued
    /// one, so the caller must not wait for another run before it passes the place to [`Self::admit`].
    pub(super) fn enqueue(self: &Arc<Self>, target: &ReadTarget, start: u64) -> Option<QueuedRun> {
        let mut table = self.table();
        if !table.is_serial(target) {
            return None;
        }
        let number = table.number();
        table.waiting.entry(target.clone()).or_default().insert((start, number));
        Some(QueuedRun { bodies: self.clone(), target: target.clone(), start, number })
    }

    fn try_take(self: &Arc<Self>, target: &ReadTarget, run: &Range<u64>, number: u64) -> Option<Turn> {
        let mut table = self.table();
        if !table.is_serial(target) {
            return Some(self.turn(target, None, None));
        }
        let (entry, body) = table.take(target, run, number)?;
        Some(self.turn(target, Some(entry), body))
    }

    fn turn(self: &Arc<Self>, target: &ReadTarget, entry: Option<u64>, body: Option<Box<OpenBody>>) -> Turn {
        Turn { bodies: self.clone(), target: target.clone(), entry, body: Mutex::new(body) }
    }

    /// Records whether the store ignored `Range`.
    pub(super) fn note_answer(&self, ignored_range: bool) {
        self.table().ignores_range = Some(ignored_range);
    }

    /// Records a failed run. Until an answer shows the contrary, the store counts as one that honours
    /// `Range`, so that runs do not fail one after the other.
    pub(super) fn note_failure(&self) {
        self.table().ignores_range.get_or_insert(false);
    }

    /// Closes the idle bodies of a file.
    pub(super) fn forget(&self, file_id: &FileId) {
        self.close_idle(|target, _| target.file_id == *file_id);
    }

    fn close_idle(&self, mut is_over: impl FnMut(&ReadTarget, Instant) -> bool) {
        let mut table = self.table();
        table.entries.retain(|target, entries| {
            entries.retain(|entry| match entry.usage {
                BodyUse::Idle { since, .. } => !is_over(target, since),
                BodyUse::Busy(_) => true,
            });
            !entries.is_empty()
        });
    }

    /// Ends a turn: `body` stays open for the next one. Without a runtime it is closed.
    fn release(self: &Arc<Self>, target: &ReadTarget, entry: Option<u64>, body: Option<Box<OpenBody>>) {
        let runtime = tokio::runtime::Handle::try_current().ok();
        let mut must_sweep = false;
        {
            let mut table = self.table();
            let number = entry.unwrap_or_else(|| table.number());
            table.remove(target, number);
            if let Some(body) = body.filter(|_| runtime.is_some() && table.has_room()) {
                let usage = BodyUse::Idle { body, since: Instant::now() };
                table.entries.entry(target.clone()).or_default().push(BodyEntry { number, usage });
                must_sweep = !std::mem::replace(&mut table.is_sweeping, true);
            }
        }
        if let Some(runtime) = runtime.filter(|_| must_sweep) {
            runtime.spawn(sweep(Arc::downgrade(self)));
        }
        self.changed.notify_waiters();
    }
}

/// Closes bodies that have no reader any more, until none is open.
async fn sweep(bodies: Weak<OpenBodies>) {
    loop {
        tokio::time::sleep(IDLE_MAX / 2).await;
        let Some(bodies) = bodies.upgrade() else { return };
        bodies.close_idle(|_, since| since.elapsed() > IDLE_MAX);
        let mut table = bodies.table();
        if table.entries.is_empty() {
            table.is_sweeping = false;
            return;
        }
    }
}

impl BodyTable {
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Whether the runs of a content take turns.
    fn is_serial(&self, target: &ReadTarget) -> bool {
        self.ignores_range != Some(false) || self.entries.contains_key(target)
    }

    /// Takes the body nearest before `run`, or a place for a new one. `None` if another run goes first.
    fn take(
        &mut self,
        target: &ReadTarget,
        run: &Range<u64>,
        number: u64,
    ) -> Option<(u64, Option<Box<OpenBody>>)> {
        let entries = self.entries.get(target).map_or(&[][..], Vec::as_slice);
        let is_busy = |entry: &BodyEntry| matches!(entry.usage, BodyUse::Busy(_));
        let receives = |entry: &BodyEntry| match &entry.usage {
            BodyUse::Busy(bytes) => bytes.contains(&run.start),
            BodyUse::Idle { .. } => false,
        };
        let before = entries.iter().filter(|entry| entry.position() <= run.start);
        let nearest = before.max_by_key(|entry| entry.position());
        let from = nearest.map_or(0, BodyEntry::position);
        let first = self.waiting.get(target)?.range((from, 0)..).next()?;
        if *first < (run.start, number) || nearest.is_some_and(is_busy) || entries.iter().any(receives) {
            return None;
        }
        let taken = nearest.map(|entry| entry.number);
        if taken.is_none() && !self.has_room() && !self.close_oldest() {
            return None;
        }
        let removed = taken.and_then(|number| self.remove(target, number));
        let number = removed.as_ref().map_or_else(|| self.number(), |entry| entry.number);
        let body = removed.and_then(|entry| match entry.usage {
            BodyUse::Idle { body, .. } => Some(body),
            BodyUse::Busy(_) => None,
        });
        let usage = BodyUse::Busy(from..run.end);
        self.entries.entry(target.clone()).or_default().push(BodyEntry { number, usage });
        Some((number, body))
    }

    fn has_room(&self) -> bool {
        self.entries.values().map(Vec::len).sum::<usize>() < BODIES_MAX
    }

    /// Closes the body that has been idle for longest. `false` if none is idle.
    fn close_oldest(&mut self) -> bool {
        let idle = self
            .entries
            .iter()
            .flat_map(|(target, entries)| entries.iter().map(move |entry| (target, entry)));
        let oldest = idle
            .filter_map(|(target, entry)| match entry.usage {
                BodyUse::Idle { since, .. } => Some((since, target.clone(), entry.number)),
                BodyUse::Busy(_) => None,
            })
            .min_by_key(|(since, ..)| *since);
        oldest.is_some_and(|(_, target, number)| self.remove(&target, number).is_some())
    }

    fn remove(&mut self, target: &ReadTarget, number: u64) -> Option<BodyEntry> {
        let entries = self.entries.get_mut(target)?;
        let index = entries.iter().position(|entry| entry.number == number)?;
        let entry = entries.swap_remove(index);
        if entries.is_empty() {
            self.entries.remove(target);
        }
        Some(entry)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let body = self.body.get_mut().take();
        if self.entry.is_some() || body.is_some() {
            self.bodies.release(&self.target, self.entry, body);
        }
    }
}

/// The place of a run in the queue. Its drop leaves the queue.
#[derive(Debug)]
pub(super) struct QueuedRun {
    bodies: Arc<OpenBodies>,
    target: ReadTarget,
    start: u64,
    number: u64,
}

impl Drop for QueuedRun {
    fn drop(&mut self) {
        let mut table = self.bodies.table();
        if let Some(waiting) = table.waiting.get_mut(&self.target) {
            waiting.remove(&(self.start, self.number));
            if waiting.is_empty() {
                table.waiting.remove(&self.target);
            }
        }
        drop(table);
        self.bodies.changed.notify_waiters();
    }
}
