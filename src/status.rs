//! What is being uploaded right now, how fast, and what became of it.
//!
//! `content` reports, the front ends look. Reporting must cost nothing on the way of a written
//! byte: [`Transfer::wrote`] is two relaxed additions, and a lock is taken once per *part*. Looking
//! never blocks reporting for longer than it takes to copy a list of pointers. No I/O here.
//!
//! A transfer ends once: committed, failed, withdrawn (the content took another way), or dropped without any of these
//! (abandoned: unlinked while it was written, or nothing to save). Later reports about it change nothing.
//!
//! Lock order: the registry before the name and rate of one transfer; no two transfers at once.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

use crate::error::{Error, ErrorKind};

pub mod notify;
mod pause;
mod rate;
mod unsaved;

pub use unsaved::{Size, Unsaved};

pub use pause::{Pause, PauseReason};
use rate::RateWindow;

/// Events that a slow subscriber may be behind before it loses the oldest.
const EVENTS_MAX: usize = 4096;

/// How the drive came to have the content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Commit {
    /// Its bytes were sent.
    Uploaded,
    /// The service already had the bytes under another name.
    Instant,
    /// The file had exactly these bytes already; nothing was sent.
    Unchanged,
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uploaded => "uploaded",
            Self::Instant => "instant",
            Self::Unchanged => "unchanged",
        })
    }
}

/// How a transfer ended, and what became of the attributes of a file.
#[derive(Clone, Debug)]
pub enum Event {
    /// The file is on the drive, verified.
    Committed {
        /// The file's name when it ended.
        name: Arc<str>,
        /// Its size.
        bytes: u64,
        /// From the first sign of the transfer to the commit.
        elapsed_ms: u64,
        /// How the drive came to have it.
        how: Commit,
    },
    /// The file is not on the drive; the program that wrote it was told.
    Failed {
        /// The file's name when it ended.
        name: Arc<str>,
        /// Why.
        error: Error,
    },
    /// The drive does not keep the attributes that an object was given; no program was told.
    AttributesRefused {
        /// The object's name.
        name: Arc<str>,
        /// Why.
        error: Error,
    },
}

/// Where a transfer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransferState {
    /// A program has the file open and may write more.
    Writing,
    /// Everything is written; the last parts and the commit are on their way.
    Committing,
}

/// One transfer as it was at one moment.
#[derive(Clone, Debug)]
pub struct TransferView {
    /// The same for the life of a transfer, never used again in this process; grows with age.
    pub id: u64,
    /// The file's path below the mount.
    pub name: Arc<str>,
    /// Where it is.
    pub state: TransferState,
    /// Bytes that programs have written.
    pub bytes_written: u64,
    /// Bytes in parts that the drive has acknowledged.
    pub bytes_acked: u64,
    /// Bytes that are known (written, or announced by [`Transfer::expect_bytes`]) and not acknowledged.
    pub bytes_left: u64,
    /// Parts being sent.
    pub parts_in_flight: u32,
    /// How fast parts are acknowledged, lately.
    pub rate_bytes_s: u64,
    /// Time until everything known (written, or announced by [`Transfer::expect_bytes`]) is
    /// acknowledged at that rate; `None` while there is no rate.
    pub eta: Option<Duration>,
    /// Time since the transfer began.
    pub age: Duration,
}

/// Sums over the life of a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Files committed by sending their bytes.
    pub files_uploaded: u64,
    /// Files committed because the service had their bytes already.
    pub files_instant: u64,
    /// Files saved again with the same bytes.
    pub files_unchanged: u64,
    /// Files that could not be committed.
    pub files_failed: u64,
    /// Files that were deleted before they were committed.
    pub files_abandoned: u64,
    /// Bytes of all committed files.
    pub bytes_committed: u64,
    /// Bytes that programs have written.
    pub bytes_written: u64,
    /// Bytes in parts that the drive has acknowledged.
    pub bytes_acked: u64,
    /// How fast parts of all files together are acknowledged, lately.
    pub rate_bytes_s: u64,
}

impl Totals {
    /// Files that are on the drive, however they got there.
    pub fn files_committed(&self) -> u64 {
        self.files_uploaded + self.files_instant + self.files_unchanged
    }
}

/// All transfers of one mount.
#[derive(Debug)]
pub struct Progress {
    live: Mutex<Registry>,
    events: broadcast::Sender<Event>,
    sums: Sums,
    rate: Mutex<RateWindow>,
    pauses: watch::Sender<Vec<Pause>>,
    /// Failed files by why. A leaf lock.
    failed: Mutex<HashMap<ErrorKind, u64>>,
}

/// Transfers that have not ended, oldest first.
#[derive(Debug, Default)]
struct Registry {
    transfers: BTreeMap<u64, Weak<Transfer>>,
    next_id: u64,
}

#[derive(Debug, Default)]
struct Sums {
    uploaded: AtomicU64,
    instant: AtomicU64,
    unchanged: AtomicU64,
    failed: AtomicU64,
    abandoned: AtomicU64,
    bytes_committed: AtomicU64,
    bytes_written: AtomicU64,
    bytes_acked: AtomicU64,
    /// Not part of [`Totals`]: work that is no result.
    bytes_prepared: AtomicU64,
    /// The same, for what is no content.
    steps: AtomicU64,
}

impl Progress {
    /// No transfers yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            live: Mutex::default(),
            events: broadcast::Sender::new(EVENTS_MAX),
            sums: Sums::default(),
            rate: Mutex::new(RateWindow::new(Instant::now())),
            pauses: watch::Sender::new(Vec::new()),
            failed: Mutex::default(),
        })
    }

    /// A file is about to be sent. The transfer is listed until it ends or is dropped.
    pub fn begin(self: &Arc<Self>, name: &str) -> Arc<Transfer> {
        let now = Instant::now();
        let mut live = locked(&self.live);
        if live.transfers.is_empty() {
            // A pause between transfers says nothing of how fast they go.
            *locked(&self.rate) = RateWindow::new(now);
        }
        let id = live.next_id;
        live.next_id += 1;
        let transfer = Arc::new(Transfer {
            progress: Arc::clone(self),
            id,
            began: now,
            name: Mutex::new(name.into()),
            phase: AtomicU8::new(WRITING),
            bytes_written: AtomicU64::new(0),
            bytes_expected: AtomicU64::new(0),
            bytes_acked: AtomicU64::new(0),
            parts_in_flight: AtomicU32::new(0),
            rate: Mutex::new(RateWindow::new(now)),
        });
        live.transfers.insert(id, Arc::downgrade(&transfer));
        transfer
    }

    /// A program has written so many more bytes, into a local copy that is sent later.
    pub fn wrote(&self, bytes: u64) {
        self.sums.bytes_written.fetch_add(bytes, Relaxed);
    }

    /// Something that is no content was brought to the drive: attributes, a name.
    pub fn stepped(&self) {
        self.sums.steps.fetch_add(1, Relaxed);
    }

    /// How often [`Self::stepped`] was called.
    pub fn steps(&self) -> u64 {
        self.sums.steps.load(Relaxed)
    }

    /// The drive has refused the attributes of an object for good.
    pub fn attributes_refused(&self, name: &str, error: &Error) {
        let _ = self.events.send(Event::AttributesRefused { name: name.into(), error: error.clone() });
    }

    /// Every live transfer, oldest first.
    pub fn snapshot(&self) -> Vec<TransferView> {
        self.snapshot_at(Instant::now())
    }

    fn snapshot_at(&self, now: Instant) -> Vec<TransferView> {
        // The registry is released first: the last reference to a transfer may be the one taken
        // here, and dropping it takes the registry again.
        let live: Vec<Arc<Transfer>> = {
            let live = locked(&self.live);
            live.transfers.values().filter_map(Weak::upgrade).collect()
        };
        live.iter().map(|transfer| transfer.view(now)).collect()
    }

    /// Endings from now on. A subscriber that falls behind by more than 4,096 loses the oldest.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Files that could not be committed, by why; those that happened, in no order.
    pub fn failures_by_kind(&self) -> Vec<(ErrorKind, u64)> {
        locked(&self.failed).iter().map(|(kind, count)| (*kind, *count)).collect()
    }

    /// How many transfers are going on.
    pub fn live(&self) -> u64 {
        locked(&self.live).transfers.len() as u64
    }

    /// A number that grows with every byte that is fetched or hashed for a commit, or acknowledged.
    pub fn bytes_worked(&self) -> u64 {
        self.sums.bytes_acked.load(Relaxed).wrapping_add(self.sums.bytes_prepared.load(Relaxed))
    }

    /// Sums since the mount began.
    pub fn totals(&self) -> Totals {
        let sums = &self.sums;
        Totals {
            files_uploaded: sums.uploaded.load(Relaxed),
            files_instant: sums.instant.load(Relaxed),
            files_unchanged: sums.unchanged.load(Relaxed),
            files_failed: sums.failed.load(Relaxed),
            files_abandoned: sums.abandoned.load(Relaxed),
            bytes_committed: sums.bytes_committed.load(Relaxed),
            bytes_written: sums.bytes_written.load(Relaxed),
            bytes_acked: sums.bytes_acked.load(Relaxed),
            rate_bytes_s: locked(&self.rate).bytes_per_s(Instant::now()),
        }
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
    began: Instant,
    name: Mutex<Arc<str>>,
    /// [`WRITING`], [`COMMITTING`] or [`ENDED`]; only grows, and [`ENDED`] is entered once.
    phase: AtomicU8,
    bytes_written: AtomicU64,
    bytes_expected: AtomicU64,
    bytes_acked: AtomicU64,
    parts_in_flight: AtomicU32,
    rate: Mutex<RateWindow>,
}

impl Transfer {
    /// The file has a new name.
    pub fn renamed(&self, name: &str) {
        *locked(&self.name) = name.into();
    }

    /// The file will have this size (a hint, such as fallocate gives); only the ETA uses it.
    pub fn expect_bytes(&self, bytes: u64) {
        self.bytes_expected.store(bytes, Relaxed);
    }

    /// A program has written so many more bytes.
    pub fn wrote(&self, bytes: u64) {
        self.bytes_written.fetch_add(bytes, Relaxed);
        self.progress.sums.bytes_written.fetch_add(bytes, Relaxed);
    }

    /// So many bytes more were fetched or hashed for the commit.
    pub fn prepared(&self, bytes: u64) {
        self.progress.sums.bytes_prepared.fetch_add(bytes, Relaxed);
    }

    /// A part is being sent.
    pub fn part_started(&self) {
        self.parts_in_flight.fetch_add(1, Relaxed);
    }

    /// The sending of a part has ended; `ok` if the drive has it.
    pub fn part_done(&self, bytes: u64, ok: bool) {
        self.part_done_at(Instant::now(), bytes, ok);
    }

    fn part_done_at(&self, now: Instant, bytes: u64, ok: bool) {
        let fewer = |parts: u32| Some(parts.saturating_sub(1));
        let _ = self.parts_in_flight.fetch_update(Relaxed, Relaxed, fewer);
        if ok {
            self.bytes_acked.fetch_add(bytes, Relaxed);
            self.progress.sums.bytes_acked.fetch_add(bytes, Relaxed);
            locked(&self.rate).add(now, bytes);
            locked(&self.progress.rate).add(now, bytes);
        }
    }

    /// Everything is written; what is left is to wait for the drive.
    pub fn committing(&self) {
        let _ = self.phase.compare_exchange(WRITING, COMMITTING, Relaxed, Relaxed);
    }

    /// The file is on the drive, verified, with this size.
    pub fn committed(&self, bytes: u64, how: Commit) {
        let sums = &self.progress.sums;
        let count = match how {
            Commit::Uploaded => &sums.uploaded,
            Commit::Instant => &sums.instant,
            Commit::Unchanged => &sums.unchanged,
        };
        let counted = self.end(|| {
            count.fetch_add(1, Relaxed);
            sums.bytes_committed.fetch_add(bytes, Relaxed);
        });
        if !counted {
            return;
        }
        let elapsed_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let name = self.name();
        // Nobody listening is no failure.
        let _ = self.progress.events.send(Event::Committed { name, bytes, elapsed_ms, how });
    }

    /// The file is not on the drive, and the program that wrote it is told.
    pub fn failed(&self, error: &Error) {
        let counted = self.end(|| {
            self.progress.sums.failed.fetch_add(1, Relaxed);
            *locked(&self.progress.failed).entry(error.kind()).or_default() += 1;
        });
        if !counted {
            return;
        }
        let _ = self.progress.events.send(Event::Failed { name: self.name(), error: error.clone() });
    }

    /// The content goes to the drive in another way: this was no transfer in the end.
    pub fn withdrawn(&self) {
        self.end(|| ());
    }

    /// How it is now.
    pub fn look(&self) -> TransferView {
        self.view(Instant::now())
    }

    fn name(&self) -> Arc<str> {
        Arc::clone(&locked(&self.name))
    }

    /// Counts how the transfer ended, and takes it off the list; false if it had ended before. In this order:
    /// who sees it on no list any more finds it counted.
    fn end(&self, count: impl FnOnce()) -> bool {
        if self.phase.swap(ENDED, Relaxed) == ENDED {
            return false;
        }
        count();
        locked(&self.progress.live).transfers.remove(&self.id);
        true
    }

    fn view(&self, now: Instant) -> TransferView {
        let state = match self.phase.load(Relaxed) {
            WRITING => TransferState::Writing,
            _ => TransferState::Committing,
        };
        let bytes_written = self.bytes_written.load(Relaxed);
        let bytes_acked = self.bytes_acked.load(Relaxed);
        let rate_bytes_s = locked(&self.rate).bytes_per_s(now);
        let bytes_known = match state {
            TransferState::Writing => bytes_written.max(self.bytes_expected.load(Relaxed)),
            // A local copy was never written to the transfer: its size was announced.
            TransferState::Committing if bytes_written == 0 => self.bytes_expected.load(Relaxed),
            TransferState::Committing => bytes_written,
        };
        let bytes_left = bytes_known.saturating_sub(bytes_acked);
        TransferView {
            id: self.id,
            name: self.name(),
            state,
            bytes_written,
            bytes_acked,
            parts_in_flight: self.parts_in_flight.load(Relaxed),
            rate_bytes_s,
            bytes_left,
            eta: eta(bytes_left, rate_bytes_s),
            age: now.saturating_duration_since(self.began),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.end(|| {
            self.progress.sums.abandoned.fetch_add(1, Relaxed);
        });
    }
}

/// Time that `bytes_left` take at this rate; `None` without a rate.
fn eta(bytes_left: u64, rate_bytes_s: u64) -> Option<Duration> {
    let left_ms = u128::from(bytes_left) * 1000;
    let ms = left_ms.checked_div(u128::from(rate_bytes_s))?;
    Some(Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)))
}

/// Progress is for looking at: a thread that died while it held a lock is no reason to stop.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn only(progress: &Progress) -> TransferView {
        let mut views = progress.snapshot();
        assert_eq!(views.len(), 1);
        views.remove(0)
    }

    #[test]
    fn a_transfer_is_listed_until_it_is_committed() {
        let progress = Progress::new();
        let mut events = progress.subscribe();
        let transfer = progress.begin("a.bin");
        transfer.wrote(3 * MIB);
        transfer.part_started();
        transfer.part_started();
        transfer.part_done(MIB, true);
        let view = only(&progress);
        assert_eq!((&*view.name, view.state), ("a.bin", TransferState::Writing));
        assert_eq!((view.bytes_written, view.bytes_acked, view.parts_in_flight), (3 * MIB, MIB, 1));
        transfer.committing();
        assert_eq!(only(&progress).state, TransferState::Committing);
        transfer.part_done(2 * MIB, true);
        transfer.committed(3 * MIB, Commit::Uploaded);
        assert!(progress.snapshot().is_empty());
        let Ok(Event::Committed { name, bytes, how, .. }) = events.try_recv() else {
            panic!("no commit was reported");
        };
        assert_eq!((&*name, bytes, how), ("a.bin", 3 * MIB, Commit::Uploaded));
        let totals = progress.totals();
        assert_eq!((totals.files_uploaded, totals.bytes_committed), (1, 3 * MIB));
        assert_eq!((totals.bytes_written, totals.bytes_acked), (3 * MIB, 3 * MIB));
    }

    #[test]
    fn what_takes_another_way_is_not_abandoned() {
        let progress = Progress::new();
        let (withdrawn, dropped) = (progress.begin("a"), progress.begin("b"));
        withdrawn.withdrawn();
        drop((withdrawn, dropped));
        assert_eq!((progress.totals().files_abandoned, progress.snapshot().len()), (1, 0));
    }

    #[test]
    fn a_failed_part_is_not_counted_as_acknowledged() {
        let progress = Progress::new();
        let transfer = progress.begin("a");
        transfer.wrote(MIB);
        transfer.part_started();
        transfer.part_done(MIB, false);
        assert_eq!((only(&progress).bytes_acked, only(&progress).parts_in_flight), (0, 0));
        transfer.part_done(MIB, false);
        assert_eq!(only(&progress).parts_in_flight, 0, "never below zero");
    }

    #[test]
    fn the_first_ending_counts_and_the_second_does_not() {
        let progress = Progress::new();
        let mut events = progress.subscribe();
        let transfer = progress.begin("a");
        transfer.failed(&Error::new(ErrorKind::QuotaExceeded, "the drive is full"));
        transfer.committed(1, Commit::Instant);
        drop(transfer);
        let totals = progress.totals();
        assert_eq!((totals.files_failed, totals.files_committed(), totals.files_abandoned), (1, 0, 0));
        let Ok(Event::Failed { error, .. }) = events.try_recv() else { panic!("no failure was reported") };
        assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn a_dropped_transfer_is_abandoned_and_leaves_the_list() {
        let progress = Progress::new();
        let transfer = progress.begin("a");
        let second = progress.begin("b");
        drop(transfer);
        assert_eq!(&*only(&progress).name, "b");
        second.committed(0, Commit::Unchanged);
        drop(second);
        let totals = progress.totals();
        assert_eq!((totals.files_abandoned, totals.files_unchanged), (1, 1));
        assert!(progress.snapshot().is_empty());
    }

    #[test]
    fn a_pause_between_transfers_does_not_slow_the_rate() {
        let progress = Progress::new();
        progress.begin("a").part_done_at(Instant::now() + Duration::from_secs(60), MIB, true);
        assert!(progress.totals().rate_bytes_s > 0);
        let _next = progress.begin("b");
        assert_eq!(progress.totals().rate_bytes_s, 0, "it is measured anew");
    }

    #[test]
    fn a_rename_shows_at_once_and_keeps_the_id() {
        let progress = Progress::new();
        let transfer = progress.begin(".a.Xy12");
        let id = only(&progress).id;
        transfer.renamed("a");
        assert_eq!((only(&progress).id, &*only(&progress).name), (id, "a"));
    }

    #[test]
    fn the_eta_follows_from_rate_and_what_is_left() {
        let progress = Progress::new();
        let transfer = progress.begin("a");
        let began = transfer.began;
        transfer.wrote(20 * MIB);
        assert_eq!(only(&progress).eta, None, "no rate yet");
        transfer.part_done_at(began + Duration::from_secs(1), 4 * MIB, true);
        let view = transfer.view(began + Duration::from_secs(1));
        assert_eq!((view.rate_bytes_s, view.eta), (4 * MIB, Some(Duration::from_secs(4))));
        transfer.expect_bytes(84 * MIB);
        assert_eq!(transfer.view(began + Duration::from_secs(1)).eta, Some(Duration::from_secs(20)));
        transfer.committing();
        let eta = transfer.view(began + Duration::from_secs(1)).eta;
        assert_eq!(eta, Some(Duration::from_secs(4)), "what was announced but not written does not come");
        assert_eq!(view.age, Duration::from_secs(1));
    }

    #[test]
    fn looking_and_ending_at_the_same_time_does_not_lock_up() {
        let progress = Progress::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..500 {
                        let transfer = progress.begin("x");
                        transfer.wrote(1);
                        if n % 2 == 0 {
                            transfer.committed(1, Commit::Uploaded);
                        }
                    }
                });
            }
            scope.spawn(|| {
                while progress.totals().bytes_written < 2000 {
                    progress.snapshot();
                }
            });
        });
        let totals = progress.totals();
        assert_eq!((totals.files_uploaded, totals.files_abandoned), (1000, 1000));
        assert!(progress.snapshot().is_empty());
    }
}
