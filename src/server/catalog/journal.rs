//! The catalog on disk: one thread that writes, many changes to a transaction.
//!
//! # Consistency
//!
//! Changes are queued under the lock of the catalog, so the order of the queue is the order in
//! which memory changed. The thread takes all that is queued into one transaction; a request is
//! answered after the transaction that holds its change. A failed transaction breaks the journal
//! for good: memory is then ahead of the disk, and every later change is refused.
//!
//! # Crash consistency
//!
//! Files are in place before the records that name them are queued, and are removed after the
//! transaction that forgets them. A kill between the two leaves files without a record, which
//! the next start sweeps; never a record without its file.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use tokio::sync::oneshot;

use super::load::DataLock;
use crate::server::blobs::Blob;

/// The tables. Keys and values are bytes: ids, and JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum Table {
    Meta,
    Drives,
    Nodes,
    Uploads,
    Parts,
    Blobs,
    Deltas,
    Tokens,
}

impl Table {
    pub(in crate::server) const ALL: [Self; 8] = [
        Self::Meta,
        Self::Drives,
        Self::Nodes,
        Self::Uploads,
        Self::Parts,
        Self::Blobs,
        Self::Deltas,
        Self::Tokens,
    ];

    fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(match self {
            Self::Meta => "meta",
            Self::Drives => "drives",
            Self::Nodes => "nodes",
            Self::Uploads => "uploads",
            Self::Parts => "parts",
            Self::Blobs => "blobs",
            Self::Deltas => "deltas",
            Self::Tokens => "tokens",
        })
    }
}

/// One record put or removed.
#[derive(Debug)]
pub(in crate::server) struct Write {
    pub(in crate::server) table: Table,
    pub(in crate::server) key: Vec<u8>,
    pub(in crate::server) value: Option<Vec<u8>>,
}

/// What belongs to one change: all of it is stored, or none.
#[derive(Debug, Default)]
pub(in crate::server) struct Change {
    pub(in crate::server) writes: Vec<Write>,
    /// Removed from the disk after the transaction.
    pub(in crate::server) doomed_blobs: Vec<Arc<Blob>>,
    /// Removed from the disk after the transaction: files or folders.
    pub(in crate::server) doomed_paths: Vec<PathBuf>,
}

impl Change {
    pub(in crate::server) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.doomed_blobs.is_empty() && self.doomed_paths.is_empty()
    }
}

struct Job {
    change: Change,
    is_awaited: bool,
    done: oneshot::Sender<()>,
}

/// How long a change that nobody waits for may wait for company, as a transaction costs more than
/// what it stores.
const COMPANY_WAIT_MAX: Duration = Duration::from_millis(20);

/// Most changes in one transaction.
const JOBS_MAX: usize = 4096;

/// The queue to the writing thread.
#[derive(Debug)]
pub(in crate::server) struct Journal {
    queue: Sender<Job>,
}

impl Journal {
    /// Queues a change. The receiver hears when it is on the disk, or is dropped when it is not.
    pub(in crate::server) fn queue(&self, change: Change, is_awaited: bool) -> oneshot::Receiver<()> {
        let (done, heard) = oneshot::channel();
        // A closed queue drops the sender, which the receiver hears.
        let _ = self.queue.send(Job { change, is_awaited, done });
        heard
    }
}

/// The records of one table.
pub(in crate::server) type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Opens the catalog's file and reads it whole. Fails where another server has it open.
pub(in crate::server) fn open(path: &Path, fsync: bool) -> Result<(Database, Vec<Records>), redb::Error> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let backend = FileBackend::new(file)?;
    let builder = Database::builder();
    let database = if fsync {
        builder.create_with_backend(backend)?
    } else {
        builder.create_with_backend(Unsynced(backend))?
    };
    let write = database.begin_write()?;
    for table in Table::ALL {
        write.open_table(table.definition())?;
    }
    write.commit()?;
    let read = database.begin_read()?;
    let mut all = Vec::with_capacity(Table::ALL.len());
    for table in Table::ALL {
        let mut records = Records::new();
        for entry in read.open_table(table.definition())?.iter()? {
            let (key, value) = entry?;
            records.push((key.value().to_vec(), value.value().to_vec()));
        }
        all.push(records);
    }
    drop(read);
    Ok((database, all))
}

/// Starts the writing thread. It ends, and closes the file, when the journal is dropped.
pub(super) fn start(database: Database, lock: DataLock) -> std::io::Result<(Journal, JoinHandle<()>)> {
    let (queue, jobs) = channel();
    let thread = std::thread::Builder::new().name("pdsfs-journal".into()).spawn(move || {
        run(&database, &jobs);
        drop(database);
        drop(lock);
    })?;
    Ok((Journal { queue }, thread))
}

fn run(database: &Database, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let deadline = Instant::now() + COMPANY_WAIT_MAX;
        let mut is_awaited = first.is_awaited;
        let mut batch = vec![first];
        while !is_awaited
            && batch.len() < JOBS_MAX
            && let Ok(next) = jobs.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            is_awaited = next.is_awaited;
            batch.push(next);
        }
        batch.extend(jobs.try_iter().take(JOBS_MAX));
        if let Err(error) = store(database, &batch) {
            // Dropping the jobs tells their requests; dropping the queue refuses all later ones.
            tracing::error!(%error, "the catalog cannot be written; no change is accepted any more");
            return;
        }
        for Job { change, done, .. } in batch {
            // The request may have gone away; its change is stored all the same.
            let _ = done.send(());
            for blob in change.doomed_blobs {
                blob.doom();
            }
            for path in change.doomed_paths {
                remove(&path);
            }
        }
    }
}

fn store(database: &Database, batch: &[Job]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for table in Table::ALL {
        let mut writes =
            batch.iter().flat_map(|job| &job.change.writes).filter(|write| write.table == table).peekable();
        if writes.peek().is_none() {
            continue;
        }
        let mut open = transaction.open_table(table.definition())?;
        for write in writes {
            match &write.value {
                Some(value) => open.insert(write.key.as_slice(), value.as_slice())?,
                None => open.remove(write.key.as_slice())?,
            };
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Removes a file or a folder. What stays is swept at the next start.
pub(in crate::server) fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot be removed now");
    }
}

/// Makes the entries of a folder survive a power cut.
pub(in crate::server) fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// A file whose writes are ordered by the page cache and never forced out: a killed process loses
/// nothing, and a change costs microseconds instead of a disk's fsync.
#[derive(Debug)]
struct Unsynced(FileBackend);

impl StorageBackend for Unsynced {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.0.write(offset, data)
    }
    fn close(&self) -> Result<(), std::io::Error> {
        self.0.close()
    }
}
