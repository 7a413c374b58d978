//! The transfers of one mount, as `content` reports them.
//!
//! Reports must not slow down writes: [`Transfer::wrote`] is two relaxed additions. A lock is taken at most ten times
//! a second for sent bytes, and once for each part. A snapshot blocks reports only while it copies a list of pointers.
//!
//! A transfer ends once: committed, failed, withdrawn (the content is saved in another way), or abandoned
//! (dropped: unlinked during the write, or nothing to save). Later reports about it change nothing.
//!
//! Lock order: the registry before the name and rate of one transfer; never two transfers at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use super::event::{CommitMethod, ProgressEvent};
use super::failed_files::{FailedFile, FailedFiles, FailedObject};
use super::figures::Figures;
use super::part_attempt::PartAttempt;
use super::pause::{Pause, PauseReason, Pauses};
use super::retry::Retry;
use super::sent_bytes::SentBytes;
use super::view::{ProgressTotals, TransferState, TransferView};
use crate::error::{Error, ErrorKind};
use crate::ids::{FileId, Ino};
use crate::messages::Cause;

/// Events that a slow subscriber may be behind before it loses the oldest.
const EVENTS_MAX: usize = 4096;

/// All transfers of one mount.
#[derive(Debug)]
pub struct Progress {
    /// A leaf lock.
    live: Mutex<LiveTransfers>,
    events: broadcast::Sender<ProgressEvent>,
    counters: ProgressCounters,
    sent: Arc<SentBytes>,
    pauses: Pauses,
    /// A leaf lock.
    failed: Mutex<HashMap<ErrorKind, u64>>,
    /// A leaf lock.
    failed_files: Mutex<FailedFiles>,
}

/// Transfers that have not ended, oldest first.
#[derive(Debug, Default)]
struct LiveTransfers {
    transfers: BTreeMap<u64, Weak<Transfer>>,
    next_id: u64,
}

#[derive(Debug, Default)]
struct ProgressCounters {
    uploaded: AtomicU64,
    instant: AtomicU64,
    unchanged: AtomicU64,
    failed: AtomicU64,
    abandoned: AtomicU64,
    bytes_committed: AtomicU64,
    bytes_written: AtomicU64,
    bytes_acked: AtomicU64,
    /// Not part of the totals; it shows that a commit makes progress.
    bytes_prepared: AtomicU64,
    /// Likewise, for attributes and names.
    metadata_saves: AtomicU64,
}

impl Progress {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            live: Mutex::default(),
            events: broadcast::Sender::new(EVENTS_MAX),
            counters: ProgressCounters::default(),
            sent: SentBytes::new(Instant::now(), None),
            pauses: Pauses::default(),
            failed: Mutex::default(),
            failed_files: Mutex::default(),
        })
    }

    /// Starts a transfer. It is listed until it ends or is dropped.
    pub fn begin(self: &Arc<Self>, ino: Ino, name: &str) -> Arc<Transfer> {
        let now = Instant::now();
        let mut live = self.live.lock();
        if live.transfers.is_empty() {
            // Idle time between transfers must not lower the rate.
            self.sent.restart_window(now);
        }
        let id = live.next_id;
        live.next_id += 1;
        let transfer = Arc::new(Transfer {
            progress: Arc::clone(self),
            id,
            ino,
            retry: Mutex::default(),
            began: now,
            name: Mutex::new(name.into()),
            phase: AtomicU8::new(WRITING),
            bytes_written: AtomicU64::new(0),
            bytes_expected: AtomicU64::new(0),
            bytes_acked: AtomicU64::new(0),
            bytes_moved: Arc::default(),
            parts_waiting: AtomicU32::new(0),
            parts_in_flight: AtomicU32::new(0),
            sent: SentBytes::new(now, Some(&self.sent)),
        });
        live.transfers.insert(id, Arc::downgrade(&transfer));
        transfer
    }

    /// Counts bytes that a program wrote to a staged file, which is sent later.
    pub fn wrote(&self, bytes: u64) {
        self.counters.bytes_written.fetch_add(bytes, Relaxed);
    }

    pub fn bytes_committed(&self) -> u64 {
        self.counters.bytes_committed.load(Relaxed)
    }

    pub fn bytes_written(&self) -> u64 {
        self.counters.bytes_written.load(Relaxed)
    }

    /// Counts attributes or a name that the drive has stored.
    pub fn metadata_saved(&self) {
        self.counters.metadata_saves.fetch_add(1, Relaxed);
    }

    pub fn metadata_saves(&self) -> u64 {
        self.counters.metadata_saves.load(Relaxed)
    }

    /// Reports attributes that the drive has refused for good.
    pub fn attributes_refused(&self, object: &FileId, name: &str, error: &Error) {
        let refused = FailedObject::Attributes(object.clone());
        self.failed_files.lock().add(refused, name.into(), error.clone());
        let _ =
            self.events.send(ProgressEvent::AttributesRefused { name: name.into(), error: error.clone() });
    }

    /// All live transfers, oldest first.
    pub fn snapshot(&self) -> Vec<TransferView> {
        self.snapshot_at(Instant::now())
    }

    fn snapshot_at(&self, now: Instant) -> Vec<TransferView> {
        // The registry is unlocked first: this may hold the last reference to a transfer, and to drop that
        // locks the registry again.
        let live: Vec<Arc<Transfer>> = {
            let live = self.live.lock();
            live.transfers.values().filter_map(Weak::upgrade).collect()
        };
        live.iter().map(|transfer| transfer.view(now)).collect()
    }

    /// Events from now on. A subscriber that falls behind by more than 4,096 loses the oldest.
    pub fn subscribe(&self) -> broadcast::Receiver<ProgressEvent> {
        self.events.subscribe()
    }

    /// Files that could not be saved and were not saved since, each once. The newest 1,000, the last failure last.
    pub fn failed_files(&self) -> Vec<FailedFile> {
        self.failed_files.lock().all()
    }

    /// Number of files whose content could not be saved and was not saved since.
    pub fn failed_file_count(&self) -> u64 {
        self.failed_files.lock().count_content()
    }

    /// Forgets a failed object that was removed, or whose attributes were set again.
    pub fn clear_failure(&self, object: &FailedObject) {
        self.failed_files.lock().clear(object, None);
    }

    /// Forgets all failed files.
    pub fn dismiss_failures(&self) {
        self.failed_files.lock().clear_all();
    }

    /// Failed files by kind of error, unordered, without zeros.
    pub fn failures_by_kind(&self) -> Vec<(ErrorKind, u64)> {
        self.failed.lock().iter().map(|(kind, count)| (*kind, *count)).collect()
    }

    pub fn live_transfers(&self) -> u64 {
        self.live.lock().transfers.len() as u64
    }

    /// A number that grows with every byte that is acknowledged, or fetched or hashed for a commit. It may
    /// wrap.
    pub fn bytes_processed(&self) -> u64 {
        self.counters.bytes_acked.load(Relaxed).wrapping_add(self.counters.bytes_prepared.load(Relaxed))
    }

    pub fn totals(&self) -> ProgressTotals {
        let counters = &self.counters;
        ProgressTotals {
            files_uploaded: counters.uploaded.load(Relaxed),
            files_instant: counters.instant.load(Relaxed),
            files_unchanged: counters.unchanged.load(Relaxed),
            files_failed: counters.failed.load(Relaxed),
            files_abandoned: counters.abandoned.load(Relaxed),
            bytes_committed: counters.bytes_committed.load(Relaxed),
            bytes_written: counters.bytes_written.load(Relaxed),
            bytes_acked: counters.bytes_acked.load(Relaxed),
            bytes_sent: self.sent.count(),
            rate_bytes_s: self.sent.bytes_per_s(Instant::now()),
        }
    }

    /// Starts or updates a pause of all uploads. Returns whether the reason is new.
    pub fn pause(&self, reason: PauseReason, detail: &str, cause: Option<&Cause>) -> bool {
        self.pauses.add(reason, detail, cause)
    }

    /// Ends a pause. Returns whether there was one.
    pub fn resume(&self, reason: PauseReason) -> bool {
        self.pauses.remove(reason)
    }

    /// Current pauses. A needed login comes first.
    pub fn pauses(&self) -> Vec<Pause> {
        self.pauses.all()
    }

    pub fn subscribe_pauses(&self) -> watch::Receiver<Vec<Pause>> {
        self.pauses.subscribe()
    }
}

const WRITING: u8 = 0;
const COMMITTING: u8 = 1;
const ENDED: u8 = 2;

/// One file on its way to the drive.
#[derive(Debug)]
pub struct Transfer {
    progress: Arc<Progress>,
    id: u64,
    ino: Ino,
    /// A leaf lock.
    retry: Mutex<Option<Retry>>,
    began: Instant,
    /// A leaf lock.
    name: Mutex<Arc<str>>,
    /// [`WRITING`], [`COMMITTING`] or [`ENDED`]. It only grows, and enters [`ENDED`] once.
    phase: AtomicU8,
    bytes_written: AtomicU64,
    bytes_expected: AtomicU64,
    bytes_acked: AtomicU64,
    /// Bytes that connections have accepted, and bytes that were fetched or hashed for the commit.
    bytes_moved: Arc<AtomicU64>,
    /// Parts that wait for a permit.
    parts_waiting: AtomicU32,
    parts_in_flight: AtomicU32,
    sent: Arc<SentBytes>,
}

/// One part in a count of its transfer. Dropping it ends that.
#[derive(Debug)]
pub struct PartCount {
    transfer: Arc<Transfer>,
    count: fn(&Transfer) -> &AtomicU32,
}

impl PartCount {
    fn new(transfer: &Arc<Transfer>, count: fn(&Transfer) -> &AtomicU32) -> Self {
        count(transfer).fetch_add(1, Relaxed);
        Self { transfer: transfer.clone(), count }
    }
}

impl Drop for PartCount {
    fn drop(&mut self) {
        (self.count)(&self.transfer).fetch_sub(1, Relaxed);
    }
}

impl Transfer {
    pub fn renamed(&self, name: &str) {
        *self.name.lock() = name.into();
    }

    /// Sets the size that the file will have: a program has declared it, or the file is complete.
    pub fn expect_bytes(&self, bytes: u64) {
        self.bytes_expected.store(bytes, Relaxed);
    }

    /// Counts bytes that a program has written.
    pub fn wrote(&self, bytes: u64) {
        self.bytes_written.fetch_add(bytes, Relaxed);
        self.progress.counters.bytes_written.fetch_add(bytes, Relaxed);
    }

    /// Counts bytes that were fetched or hashed for the commit.
    pub fn prepared(&self, bytes: u64) {
        self.bytes_moved.fetch_add(bytes, Relaxed);
        self.progress.counters.bytes_prepared.fetch_add(bytes, Relaxed);
    }

    /// Grows with any progress of this file. It may wrap.
    pub fn bytes_moved(&self) -> &Arc<AtomicU64> {
        &self.bytes_moved
    }

    /// Counts a part that waits for a permit.
    pub fn part_waiting(self: &Arc<Self>) -> PartCount {
        PartCount::new(self, |transfer| &transfer.parts_waiting)
    }

    /// Counts a part that is being sent.
    pub fn part_sending(self: &Arc<Self>) -> PartCount {
        PartCount::new(self, |transfer| &transfer.parts_in_flight)
    }

    /// Whether parts of other files must end before a part of this one can be sent.
    pub fn waits_for_others(&self) -> bool {
        self.parts_waiting.load(Relaxed) > 0 && self.parts_in_flight.load(Relaxed) == 0
    }

    /// Begins an attempt to send a part.
    pub fn begin_attempt(&self) -> PartAttempt {
        PartAttempt::new(self.sent.clone(), self.bytes_moved.clone())
    }

    /// Counts a part that the drive has acknowledged, after the attempt that has sent it. `None`: the drive had the
    /// part.
    pub fn part_stored(&self, bytes: u64, attempt: Option<&PartAttempt>) {
        let counted = attempt.map_or(0, PartAttempt::keep);
        let uncounted = bytes.saturating_sub(counted);
        self.bytes_moved.fetch_add(uncounted, Relaxed);
        self.sent.add_at(Instant::now(), uncounted);
        self.bytes_acked.fetch_add(bytes, Relaxed);
        self.progress.counters.bytes_acked.fetch_add(bytes, Relaxed);
    }

    /// A request of the file will be repeated for the `times`th time. The most frequent repetition is shown.
    pub fn retrying(&self, times: u32, reason: &str) {
        let mut retry = self.retry.lock();
        if retry.as_ref().is_none_or(|now| now.times <= times) {
            *retry = Some(Retry { times, reason: reason.into() });
        }
    }

    /// A repeated request has succeeded.
    pub fn recovered(&self) {
        self.retry.lock().take();
    }

    /// Nothing of the file counts as sent any more: all its parts go to another upload session.
    pub fn restarted(&self) {
        self.recovered();
        self.sent.remove(self.bytes_acked.swap(0, Relaxed));
    }

    /// The file is completely written.
    pub fn committing(&self) {
        let _ = self.phase.compare_exchange(WRITING, COMMITTING, Relaxed, Relaxed);
    }

    /// Ends the transfer: the drive has the file, verified, with this size.
    pub fn committed(&self, bytes: u64, how: CommitMethod) {
        let counters = &self.progress.counters;
        let count = match how {
            CommitMethod::Uploaded => &counters.uploaded,
            CommitMethod::Instant => &counters.instant,
            CommitMethod::Unchanged => &counters.unchanged,
        };
        let has_ended_now = self.end(|| {
            let mut failed_files = self.progress.failed_files.lock();
            failed_files.clear(&FailedObject::Content(self.ino), Some(&self.name()));
            count.fetch_add(1, Relaxed);
            counters.bytes_committed.fetch_add(bytes, Relaxed);
        });
        if !has_ended_now {
            return;
        }
        let elapsed_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let name = self.name();
        // Sending fails only without subscribers.
        let _ = self.progress.events.send(ProgressEvent::Committed { name, bytes, elapsed_ms, how });
    }

    /// Ends the transfer: the file could not be saved, and its writer gets the error.
    pub fn failed(&self, error: &Error) {
        let has_ended_now = self.end(|| {
            self.progress.counters.failed.fetch_add(1, Relaxed);
            *self.progress.failed.lock().entry(error.kind()).or_default() += 1;
            let failed = FailedObject::Content(self.ino);
            self.progress.failed_files.lock().add(failed, self.name(), error.clone());
        });
        if !has_ended_now {
            return;
        }
        let _ = self.progress.events.send(ProgressEvent::Failed { name: self.name(), error: error.clone() });
    }

    /// Ends the transfer without a result: the content is saved in another way.
    pub fn withdrawn(&self) {
        self.end(|| ());
    }

    pub fn snapshot(&self) -> TransferView {
        self.view(Instant::now())
    }

    fn name(&self) -> Arc<str> {
        Arc::clone(&self.name.lock())
    }

    /// Counts the end and removes the transfer from the list; `false` if it had ended before. It counts
    /// first, so an observer that misses the transfer in the list finds it in the totals.
    fn end(&self, count: impl FnOnce()) -> bool {
        if self.phase.swap(ENDED, Relaxed) == ENDED {
            return false;
        }
        count();
        self.progress.live.lock().transfers.remove(&self.id);
        true
    }

    fn view(&self, now: Instant) -> TransferView {
        let state = match self.phase.load(Relaxed) {
            WRITING => TransferState::Writing,
            _ => TransferState::Committing,
        };
        let bytes_written = self.bytes_written.load(Relaxed);
        let bytes_expected = self.bytes_expected.load(Relaxed);
        // A program may write past the size that it has declared.
        let is_declared = bytes_expected > 0 && bytes_expected >= bytes_written;
        let is_size_known = is_declared || state == TransferState::Committing;
        let size = if is_size_known && bytes_expected > 0 { bytes_expected } else { bytes_written };
        let figures = Figures::new(size, self.sent.count(), is_size_known, self.sent.bytes_per_s(now));
        TransferView {
            id: self.id,
            name: self.name(),
            state,
            bytes_written,
            bytes_acked: self.bytes_acked.load(Relaxed),
            figures,
            retry: self.retry.lock().clone(),
            parts_in_flight: self.parts_in_flight.load(Relaxed),
            age: now.saturating_duration_since(self.began),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.end(|| {
            self.progress.counters.abandoned.fetch_add(1, Relaxed);
        });
    }
}

#[cfg(test)]
mod tests;
