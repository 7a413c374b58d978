//! Opens the catalog: reads the records, reconciles them with the files, and discards expired uploads.

use std::collections::HashMap;
use std::io;
use std::thread::JoinHandle;

use serde::de::DeserializeOwned;

use super::database::{self, Records, Table};
use super::records::{Delta, DriveRecord, Node, PartRecord, Token, Upload};
use super::{BlobEntry, Catalog, CatalogState};
use crate::ids::{DriveId, UploadId};
use crate::server::blobs::{BlobRecord, BlobStore};
use crate::server::clock::random_hex;
use crate::server::config::ServerConfig;
use crate::server::disk::{DataLock, check_owner, create_private_dir, make_private};

/// An opened data folder.
pub(in crate::server) struct OpenedCatalog {
    pub(in crate::server) catalog: Catalog,
    pub(in crate::server) store: BlobStore,
    /// The thread that writes the catalog.
    pub(in crate::server) writer: JoinHandle<()>,
}

/// Opens a data folder, or makes it.
pub(in crate::server) fn open(config: &ServerConfig, now_ms: i64) -> io::Result<OpenedCatalog> {
    create_private_dir(&config.data_dir)?;
    check_owner(&config.data_dir)?;
    let lock = DataLock::acquire(&config.data_dir)?;
    let store = BlobStore::open(&config.data_dir, config.fsync, now_ms)?;
    let path = config.data_dir.join("catalog.redb");
    let (database, tables) = database::open(&path, config.fsync).map_err(io::Error::other)?;
    make_private(&path)?;
    let mut state = CatalogState::from(config);
    for (table, records) in Table::ALL.into_iter().zip(tables) {
        state.load(table, records, &store)?;
    }
    state.reconcile(&store)?;
    let (queue, thread) = database::start(database, lock)?;
    state.write_queue = Some(queue);
    state.create_defaults(config.drives, now_ms)?;
    state.discard_uploads_before(
        now_ms - i64::try_from(config.upload_age_max.as_millis()).unwrap_or(i64::MAX),
        &store,
    );
    let queued = std::mem::take(&mut state.change);
    if let Some(queue) = &state.write_queue
        && !queued.is_empty()
    {
        queue.push(queued, true).blocking_recv().map_err(io::Error::other)?;
    }
    Ok(OpenedCatalog { catalog: Catalog::new(state), store, writer: thread })
}

fn parse<T: DeserializeOwned>(value: &[u8]) -> io::Result<T> {
    serde_json::from_slice(value).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

impl CatalogState {
    fn load(&mut self, table: Table, records: Records, store: &BlobStore) -> io::Result<()> {
        for (key, value) in records {
            let text = String::from_utf8_lossy(&key).into_owned();
            match table {
                Table::Meta => {
                    self.meta.insert(text, value);
                }
                Table::Drives => {
                    let drive: DriveRecord = parse(&value)?;
                    self.drives.insert(drive.drive_id.clone(), drive);
                }
                Table::Nodes => {
                    let node: Node = parse(&value)?;
                    self.nodes.insert(node.file_id.clone(), node);
                }
                Table::Uploads => {
                    let upload: Upload = parse(&value)?;
                    self.uploads.insert(upload.upload_id.clone(), upload);
                }
                Table::Parts => self.load_part(&key, parse(&value)?),
                Table::Blobs => {
                    let record: BlobRecord = parse(&value)?;
                    self.sizes_by_pre_hash.entry(record.pre_hash.clone()).or_default().push(record.size);
                    let hash = record.hash.clone();
                    self.blobs.insert(hash, BlobEntry { blob: store.blob(record), revisions: 0 });
                }
                Table::Deltas => {
                    let delta: Delta = parse(&value)?;
                    self.next_seq = delta.seq + 1;
                    self.deltas.push_back(delta);
                }
                Table::Tokens => {
                    let token: Token = parse(&value)?;
                    self.tokens.insert(text, token);
                }
                Table::Shares => {
                    self.shares.insert(text, parse(&value)?);
                }
            }
        }
        Ok(())
    }

    /// The key of a part is its upload id, a slash and its number (4 bytes, big endian). The table of the
    /// uploads is loaded before.
    fn load_part(&mut self, key: &[u8], part: PartRecord) {
        let Some((id, number)) = key.len().checked_sub(5).map(|at| key.split_at(at)) else { return };
        let id = UploadId::new(&String::from_utf8_lossy(id)).ok();
        let number = number.get(1..).and_then(|raw| raw.try_into().ok()).map(u32::from_be_bytes);
        if let (Some(id), Some(number)) = (id, number)
            && let Some(upload) = self.uploads.get_mut(&id)
        {
            upload.parts.insert(number, part);
        }
    }

    /// Computes the indexes and counters, and removes files without a record.
    fn reconcile(&mut self, store: &BlobStore) -> io::Result<()> {
        let nodes = std::mem::take(&mut self.nodes);
        for node in nodes.values() {
            self.index(node);
            if let Some(drive) = self.drives.get_mut(&node.drive_id) {
                drive.used_bytes += node.held_bytes();
            }
            for revision in node.revisions() {
                let held = self.blobs.get_mut(&revision.hash).ok_or_else(|| {
                    let detail = format!("{} has no content {}", node.file_id, revision.hash);
                    io::Error::new(io::ErrorKind::InvalidData, detail)
                })?;
                held.revisions += 1;
            }
        }
        self.nodes = nodes;
        let unreferenced: Vec<_> =
            self.blobs.iter().filter(|(_, held)| held.revisions == 0).map(|(hash, _)| hash.clone()).collect();
        for hash in unreferenced {
            self.release(&hash);
        }
        let known: std::collections::HashSet<&str> =
            self.blobs.values().map(|held| held.blob.record.dir.as_str()).collect();
        let parts: HashMap<_, Vec<_>> = self
            .uploads
            .values()
            .map(|upload| {
                (upload.upload_id.clone(), upload.parts.values().map(|part| part.file.clone()).collect())
            })
            .collect();
        store.sweep(&|dir| known.contains(dir), &parts)?;
        self.drop_lost_parts(store);
        Ok(())
    }

    /// Deletes the records of parts whose file is missing or short, and of uploads without a folder.
    fn drop_lost_parts(&mut self, store: &BlobStore) {
        let mut lost = Vec::new();
        for upload in self.uploads.values_mut() {
            let dir = store.upload_dir(&upload.upload_id);
            if dir.is_dir() {
                let is_whole =
                    |part: &PartRecord| dir.join(&part.file).metadata().is_ok_and(|m| m.len() == part.len);
                upload.parts.retain(|_, part| is_whole(part));
            } else {
                lost.push(upload.upload_id.clone());
            }
        }
        for upload in lost {
            self.forget_upload(&upload);
        }
    }

    /// Creates the signing key and the drives if they are missing.
    fn create_defaults(&mut self, drives: u32, now_ms: i64) -> io::Result<()> {
        let stored = |error: crate::server::errors::ServiceError| io::Error::other(error.message);
        if !self.meta.contains_key("key") {
            let key = random_hex(32)?.into_bytes();
            self.change.writes.push(database::Write {
                table: Table::Meta,
                key: b"key".to_vec(),
                value: Some(key.clone()),
            });
            self.meta.insert("key".into(), key);
        }
        for number in 1..=drives.max(1) {
            let drive_id = DriveId::new(&number.to_string()).map_err(io::Error::other)?;
            if self.drives.contains_key(&drive_id) {
                continue;
            }
            let name = if number == 1 { "Default".to_owned() } else { format!("Drive {number}") };
            let drive = DriveRecord { drive_id: drive_id.clone(), name, created_ms: now_ms, used_bytes: 0 };
            self.put_record(Table::Drives, drive_id.as_str().as_bytes(), &drive).map_err(stored)?;
            self.drives.insert(drive_id, drive);
        }
        Ok(())
    }
}
