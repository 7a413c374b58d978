//! Reading folders: one reading per folder at a time, whoever waits for it, page by page.
//!
//! A reading runs ahead of the kernel by itself: the next page can be asked for only when its
//! marker has come with the page before. Cookies index what a handle was given at `opendir`, so they
//! stay good whatever changes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::names::{KNOWN_WAIT_MAX, is_outage};
use super::{DirEntry, Fh, Vfs};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;
use crate::tree::{Kind, Listed, Pass};

/// Pages of one folder, at most: a million entries.
const PAGES_MAX: usize = 10_000;
/// Pages in a row that bring nothing new, at most.
const BARREN_PAGES_MAX: usize = 100;
/// Siblings of one name that wait for the next page, at most.
const SIBLINGS_HELD_MAX: usize = 1000;
/// Entries that are asked for one by one after a reading, at most; the others' turn comes later.
const CONFIRMED_PER_READING_MAX: usize = 100;
/// Entries given to the kernel at once.
const ENTRIES_PER_CALL: usize = 512;
/// Cookies of `.` and `..`.
const DOTS: u64 = 2;

/// Folder handles, and the readings under way.
#[derive(Debug, Default)]
pub(super) struct Dirs {
    /// Locked before the tree.
    readings: Mutex<HashMap<Ino, Arc<Reading>>>,
    /// A leaf lock.
    handles: Mutex<HashMap<Fh, Arc<DirHandle>>>,
    next: AtomicU64,
    /// The drive did not answer when it was asked last.
    is_away: AtomicBool,
}

#[derive(Debug)]
struct DirHandle {
    dir: Ino,
    /// Replaced when the program rewinds. A leaf lock.
    reading: Mutex<Arc<Reading>>,
    /// The beginning was read: reading it again is a rewind.
    was_begun: AtomicBool,
}

/// One reading of a folder, from its first page to its last.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// A leaf lock.
    seen: Mutex<Seen>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Seen {
    entries: Vec<Listed>,
    ended: Option<Result<()>>,
}

impl Reading {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is over: the folder as it is known.
    fn of_before(entries: Vec<Listed>) -> Self {
        Self { seen: Mutex::new(Seen { entries, ended: Some(Ok(())) }), changed: Notify::new() }
    }

    fn add(&self, entries: Vec<Listed>) {
        if entries.is_empty() {
            return;
        }
        self.lock().entries.extend(entries);
        self.changed.notify_waiters();
    }

    fn end(&self, outcome: Result<()>) {
        self.lock().ended.get_or_insert(outcome);
        self.changed.notify_waiters();
    }

    /// Resolves when more has been read, or the end has come, after the call.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Whether the end has come.
    pub(super) fn has_ended(&self) -> Option<Result<()>> {
        self.lock().ended.clone()
    }

    /// Some entries from `index` on; empty at the end.
    async fn entries(&self, index: usize) -> Result<Vec<Listed>> {
        loop {
            let changed = self.changed.notified();
            {
                let seen = self.lock();
                if index < seen.entries.len() {
                    let end = seen.entries.len().min(index + ENTRIES_PER_CALL);
                    return Ok(seen.entries[index..end].to_vec());
                }
                if let Some(outcome) = &seen.ended {
                    return outcome.clone().map(|()| Vec::new());
                }
            }
            changed.await;
        }
    }
}

/// Ends a reading, whatever becomes of its task: one that nobody finished has failed.
struct Ending {
    vfs: Arc<Vfs>,
    pass: Pass,
    reading: Arc<Reading>,
    outcome: Result<()>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.outcome.is_err() {
            self.vfs.tree().abandon_pass(&self.pass);
        }
        // Whoever comes from now on begins a new reading, or finds this one's result.
        self.vfs.dirs.lock_readings().remove(&self.pass.dir());
        self.reading.end(self.outcome.clone());
    }
}

impl Dirs {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn lock_readings(&self) -> MutexGuard<'_, HashMap<Ino, Arc<Reading>>> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the drive did not answer when it was asked last.
    pub(super) fn is_drive_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }

    /// Remembers whether the drive answered.
    pub(super) fn note_outcome(&self, error: Option<&Error>) {
        self.is_away.store(error.is_some_and(is_outage), Ordering::Relaxed);
    }

    /// An answer is overdue: until one comes, nobody waits for what is known.
    pub(super) fn note_silence(&self) {
        self.is_away.store(true, Ordering::Relaxed);
    }

    fn lock_handles(&self) -> MutexGuard<'_, HashMap<Fh, Arc<DirHandle>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vfs {
    /// The reading of a folder that is under way, or a new one.
    pub(super) fn read_folder(&self, dir: Ino) -> Result<Arc<Reading>> {
        let vfs = self.this()?;
        let mut readings = self.dirs.lock_readings();
        if let Some(reading) = readings.get(&dir) {
            return Ok(reading.clone());
        }
        let (pass, file_id) = {
            let mut tree = self.tree();
            let file_id = tree.meta(dir).map(|meta| meta.file_id.clone()).ok_or_else(gone)?;
            (tree.begin_pass(dir, Instant::now())?, file_id)
        };
        let reading = Arc::<Reading>::default();
        readings.insert(dir, reading.clone());
        drop(readings);
        let stopped = Error::new(ErrorKind::Cancelled, "reading the folder was stopped");
        let mut ending = Ending { vfs, pass, reading: reading.clone(), outcome: Err(stopped) };
        self.env.runtime.spawn(async move {
            let vfs = ending.vfs.clone();
            let outcome = vfs.read_pages(&ending.pass, &file_id, &ending.reading).await;
            vfs.dirs.note_outcome(outcome.as_ref().err());
            if outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                vfs.tree().vanished(&file_id);
            }
            let (outcome, unconfirmed) = match outcome {
                Ok(unconfirmed) => (Ok(()), unconfirmed),
                Err(error) => (Err(error), Vec::new()),
            };
            ending.outcome = outcome;
            drop(ending);
            vfs.confirm(unconfirmed).await;
        });
        Ok(reading)
    }

    /// Reads a folder to its end. Gives what a listing should show by now and did not.
    async fn read_pages(&self, pass: &Pass, folder: &FileId, reading: &Reading) -> Result<Vec<FileId>> {
        let mut markers = HashSet::from([String::new()]);
        let mut barren_pages = 0;
        // Siblings of one name must be seen together, so the last name of a page waits for the next.
        let mut held: Vec<FileMeta> = Vec::new();
        let mut page = self.drive.list_page(folder, "").await?;
        for _ in 0..PAGES_MAX {
            held.extend(page.items);
            let Some(next) = page.next_marker else {
                let mut tree = self.tree();
                let listed = tree.merge_page(pass, held, Instant::now());
                let merged = tree.end_pass(pass, Instant::now())?;
                drop(tree);
                reading.add(listed);
                reading.add(merged.unlisted);
                return Ok(merged.unconfirmed);
            };
            if !markers.insert(next.clone()) {
                return Err(nonsense("the listing goes in circles: a marker comes again"));
            }
            let last = held.last().map(|meta| meta.name.clone()).unwrap_or_default();
            let keep = match held.iter().rposition(|meta| meta.name != last) {
                Some(index) => index + 1,
                None if held.len() > SIBLINGS_HELD_MAX => held.len(),
                None => 0,
            };
            let rest = held.split_off(keep);
            let whole = std::mem::replace(&mut held, rest);
            let merge = async {
                // The next page is asked for meanwhile: the connection must be let at its socket.
                tokio::task::yield_now().await;
                let listed = self.tree().merge_page(pass, whole, Instant::now());
                let is_barren = listed.is_empty();
                reading.add(listed);
                is_barren
            };
            let (ahead, is_barren) = tokio::join!(self.drive.list_page(folder, &next), merge);
            barren_pages = if is_barren { barren_pages + 1 } else { 0 };
            if barren_pages > BARREN_PAGES_MAX {
                return Err(nonsense("the listing goes on without anything new"));
            }
            page = ahead?;
        }
        Err(nonsense("the folder has more entries than can be shown; move some into folders"))
    }

    /// Asks for entries that a listing should show and does not.
    async fn confirm(&self, unconfirmed: Vec<FileId>) {
        for file in unconfirmed.into_iter().take(CONFIRMED_PER_READING_MAX) {
            let asked_at = Instant::now();
            match self.drive.get(&file).await {
                Ok(meta) => self.tree().observe(meta, asked_at),
                Err(error) if error.kind() == ErrorKind::NotFound => self.tree().vanished(&file),
                // It stays as it is, and its turn comes again.
                Err(error) => {
                    tracing::debug!(%file, %error, "an entry that no listing shows is not confirmed");
                    return;
                }
            }
        }
    }

    /// Opens a folder: what it has now, at once where that is known.
    #[allow(clippy::unused_async)] // Operations are asynchronous, whether they wait or not.
    pub async fn opendir(&self, ino: Ino) -> Result<Fh> {
        let reading = self.snapshot(ino)?;
        let fh = Fh(self.dirs.next.fetch_add(1, Ordering::Relaxed) + 1);
        self.tree().pin(ino)?;
        self.dirs.lock_handles().insert(
            fh,
            Arc::new(DirHandle { dir: ino, reading: Mutex::new(reading), was_begun: AtomicBool::new(false) }),
        );
        Ok(fh)
    }

    fn snapshot(&self, dir: Ino) -> Result<Arc<Reading>> {
        {
            let tree = self.tree();
            if tree.kind(dir)? != FileType::Folder {
                return Err(Error::new(ErrorKind::NotDirectory, "not a folder"));
            }
            if tree.is_listing_fresh(dir, Instant::now()) {
                return Ok(Arc::new(Reading::of_before(tree.snapshot(dir)?)));
            }
        }
        self.read_folder(dir)
    }

    /// Whether the drive would not answer: it did not when it was asked last, or it is out of reach.
    pub(super) fn answers_not(&self) -> bool {
        self.dirs.is_drive_away() || !self.drive.is_online()
    }

    /// Where the drive does not answer, a folder that was read before is shown as it was.
    async fn begin(&self, handle: &DirHandle) -> Result<()> {
        let reading = handle.reading();
        if !self.tree().was_listed(handle.dir) {
            return Ok(());
        }
        let wait_max = if self.answers_not() { Duration::ZERO } else { KNOWN_WAIT_MAX };
        let answers = match tokio::time::timeout(wait_max, reading.entries(0)).await {
            Ok(Err(error)) => !is_outage(&error),
            Ok(Ok(_)) => true,
            Err(_) => {
                self.dirs.note_silence();
                false
            }
        };
        if !answers {
            tracing::debug!(ino = %handle.dir, "the drive does not answer; the folder is shown as it was");
            handle.set_reading(Reading::of_before(self.tree().snapshot(handle.dir)?).into());
        }
        Ok(())
    }

    /// Some entries after `cookie`; empty at the end. With `plus`, with their attributes.
    pub async fn readdir(&self, dh: Fh, cookie: u64, plus: bool) -> Result<Vec<DirEntry>> {
        let handle = self.dirs.lock_handles().get(&dh).cloned();
        let handle = handle.ok_or_else(|| Error::new(ErrorKind::BadHandle, "no such open folder"))?;
        if cookie < DOTS {
            return Ok(self.dots(handle.dir, cookie));
        }
        if cookie == DOTS && handle.was_begun.swap(true, Ordering::Relaxed) {
            // Rewound: what has changed meanwhile shall be seen.
            handle.set_reading(self.snapshot(handle.dir)?);
        }
        if cookie == DOTS {
            self.begin(&handle).await?;
        }
        let mut index = (cookie - DOTS) as usize;
        let reading = handle.reading();
        loop {
            let listed = reading.entries(index).await?;
            if listed.is_empty() {
                return Ok(Vec::new());
            }
            let first = index;
            index += listed.len();
            let entries: Vec<_> = listed
                .into_iter()
                .enumerate()
                .filter_map(|(at, entry)| {
                    self.dir_entry(handle.dir, &entry, (first + at + 1) as u64 + DOTS, plus)
                })
                .collect();
            // All of them may have been deleted meanwhile; that is not the end.
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }

    /// `None` where the name has been removed or has gone to another inode since it was read.
    fn dir_entry(&self, dir: Ino, listed: &Listed, cookie: u64, plus: bool) -> Option<DirEntry> {
        if self.tree().child(dir, &listed.name) != Some(listed.ino) {
            return None;
        }
        Some(DirEntry {
            ino: listed.ino,
            kind: listed.kind,
            name: listed.name.to_string().into(),
            cookie,
            entry: if plus { self.entry(listed.ino).ok() } else { None },
        })
    }

    fn dots(&self, dir: Ino, cookie: u64) -> Vec<DirEntry> {
        let parent = self.tree().parent(dir).unwrap_or(Ino::ROOT);
        let dot = |ino, name: &str, cookie| DirEntry {
            ino,
            kind: Kind::Folder,
            name: name.into(),
            cookie,
            entry: None,
        };
        let mut dots = vec![dot(dir, ".", 1), dot(parent, "..", 2)];
        dots.split_off(cookie as usize)
    }

    /// Closes a folder.
    pub fn releasedir(&self, dh: Fh) {
        if let Some(handle) = self.dirs.lock_handles().remove(&dh) {
            self.tree().unpin(handle.dir);
        }
    }
}

impl DirHandle {
    fn set_reading(&self, reading: Arc<Reading>) {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = reading;
    }

    fn reading(&self) -> Arc<Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn nonsense(detail: &str) -> Error {
    Error::new(ErrorKind::Protocol, detail)
}

fn gone() -> Error {
    Error::new(ErrorKind::Stale, "the folder is not on the drive any more")
}
