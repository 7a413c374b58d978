//! The catalog on disk: a redb file, written by one thread with many changes in a transaction.
//!
//! # Consistency
//!
//! Changes are queued under the lock of the catalog, so the queue has the order of the changes in memory. The
//! thread writes the whole queue in one transaction. A request is answered after the transaction with its
//! change. After a failed transaction memory is ahead of the disk; therefore every later change is refused.
//!
//! # Crash consistency
//!
//! Files exist before the records that name them are queued, and are removed after the transaction that
//! deletes those records. A kill in between leaves files without a record, which the next start removes, and
//! never a record without its file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use tokio::sync::oneshot;

use crate::server::blobs::Blob;
use crate::server::disk::{DataLock, private_file, remove};

/// The tables. Keys are ids; values are JSON, except in `Meta`.
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
    Shares,
}

impl Table {
    pub(in crate::server) const ALL: [Self; 9] = [
        Self::Meta,
        Self::Drives,
        Self::Nodes,
        Self::Uploads,
        Self::Parts,
        Self::Blobs,
        Self::Deltas,
        Self::Tokens,
        Self::Shares,
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
            Self::Shares => "shares",
        })
    }
}

/// A record to store, or to delete if `value` is `None`.
#[derive(Debug)]
pub(in crate::server) struct Write {
    pub(in crate::server) table: Table,
    pub(in crate::server) key: Vec<u8>,
    pub(in crate::server) value: Option<Vec<u8>>,
}

/// The records of one change. They are stored in one transaction.
#[derive(Debug, Default)]
pub(in crate::server) struct Change {
    pub(in crate::server) writes: Vec<Write>,
    /// Removed after the transaction.
    pub(in crate::server) obsolete_blobs: Vec<Arc<Blob>>,
    /// Files or folders, removed after the transaction.
    pub(in crate::server) obsolete_paths: Vec<PathBuf>,
}

impl Change {
    pub(in crate::server) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.obsolete_blobs.is_empty() && self.obsolete_paths.is_empty()
    }
}

struct Job {
    change: Change,
    /// A request waits for this change, so the transaction must not be delayed.
    is_awaited: bool,
    done: oneshot::Sender<()>,
}

/// How long a change that is not awaited may be delayed to share a transaction. A transaction costs more than
/// the records in it.
const BATCH_DELAY_MAX: Duration = Duration::from_millis(20);

/// Bound on the changes of one transaction.
const JOBS_MAX: usize = 4096;

/// The queue of the writing thread. Its drop ends the thread.
#[derive(Debug)]
pub(in crate::server) struct WriteQueue {
    queue: Sender<Job>,
}

impl WriteQueue {
    /// Queues a change. The receiver completes once the change is stored, and fails if it cannot be stored.
    pub(in crate::server) fn push(&self, change: Change, is_awaited: bool) -> oneshot::Receiver<()> {
        let (done, stored) = oneshot::channel();
        // A closed queue drops `done`, which fails the receiver.
        let _ = self.queue.send(Job { change, is_awaited, done });
        stored
    }
}

/// The records of one table.
pub(in crate::server) type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Opens the file, or makes it, and reads all records.
pub(in crate::server) fn open(path: &Path, fsync: bool) -> Result<(Database, Vec<Records>), redb::Error> {
    let file = private_file().read(true).create(true).truncate(false).open(path)?;
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

/// Starts the writing thread. When the queue is dropped it stores the rest, closes the file and releases the
/// lock.
pub(super) fn start(database: Database, lock: DataLock) -> std::io::Result<(WriteQueue, JoinHandle<()>)> {
    let (queue, jobs) = channel();
    let thread = std::thread::Builder::new().name("server-catalog".into()).spawn(move || {
        run(&database, &jobs);
        drop(database);
        drop(lock);
    })?;
    Ok((WriteQueue { queue }, thread))
}

fn run(database: &Database, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let deadline = Instant::now() + BATCH_DELAY_MAX;
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
            // The drop of the jobs fails their requests; the drop of the receiver fails later ones.
            tracing::error!(%error, "cannot write the catalog; changes are refused until a restart");
            return;
        }
        for Job { change, done, .. } in batch {
            // Fails if the request was cancelled; its change is stored nevertheless.
            let _ = done.send(());
            for blob in change.obsolete_blobs {
                blob.remove_when_unused();
            }
            for path in change.obsolete_paths {
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

/// A file without fsync. The page cache keeps the writes of a killed process, and a change costs microseconds
/// instead of an fsync.
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
