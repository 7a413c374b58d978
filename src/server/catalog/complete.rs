//! `complete`: verifies the parts of an upload session and publishes the file.
//!
//! The chain of midstates is verified with the states recorded while the parts were received: the state after
//! a part must equal the declared midstate of the next part. Only parts that were received without a state
//! are read again.

use std::path::Path;

use super::database::Table;
use super::records::{PartRecord, Revision, Upload, UploadTarget};
use super::{BlobEntry, Catalog, CatalogState, DriveId, FileId, ServiceError, UploadId};
use crate::crc64;
use crate::ids::RevisionId;
use crate::server::blobs::{BlobRecord, BlobStore, PRE_HASH_BYTES, PartReader};
use crate::server::clock::{decode_hex, hex};
use crate::server::config::{Quirks, Verify};
use crate::server::digest::{HashName, Hasher};
use sha1::{Digest as _, Sha1};

/// Size of one read of a part.
const READ_BYTES: usize = 1 << 20;

/// A `complete` in progress, with the parts of the file in order.
pub(in crate::server) struct PendingComplete {
    pub(in crate::server) upload_id: UploadId,
    pub(in crate::server) parts: Vec<PartRecord>,
    pub(in crate::server) declared_hash: Option<String>,
    pub(in crate::server) declared_size: Option<u64>,
    hash_name: HashName,
    verify: Verify,
}

/// The verified content of all parts.
pub(in crate::server) struct Assembled {
    pub(in crate::server) hash: String,
    pub(in crate::server) size: u64,
    pub(in crate::server) crc64: u64,
    pub(in crate::server) pre_hash: String,
    pub(in crate::server) parts: Vec<(String, u64)>,
}

impl Catalog {
    /// Locks an upload session for one `complete`. Waits for a running `complete` of the same session.
    ///
    /// Every success must be followed by [`Self::unlock`].
    pub(in crate::server) async fn lock_for_complete(
        &self,
        drive: &DriveId,
        file: &FileId,
        upload: &UploadId,
        listed: &[(u32, Option<String>)],
        verify: Verify,
    ) -> Result<PendingComplete, ServiceError> {
        loop {
            let mut complete_ended = std::pin::pin!(self.complete_ended.notified());
            complete_ended.as_mut().enable();
            let plan = self.change_in_memory(|state| {
                if state.upload(drive, file, upload)?.completing {
                    return Ok(None);
                }
                state.plan_complete(upload, listed, verify).map(Some)
            });
            match plan? {
                Some(plan) => return Ok(plan),
                None => complete_ended.await,
            }
        }
    }

    /// Unlocks an upload session, if it still exists, and wakes the next `complete`.
    pub(in crate::server) fn unlock(&self, upload: &UploadId) {
        self.change_in_memory(|state| {
            if let Some(upload) = state.uploads.get_mut(upload) {
                upload.completing = false;
            }
        });
        self.complete_ended.notify_waiters();
    }
}

impl CatalogState {
    fn plan_complete(
        &mut self,
        upload: &UploadId,
        listed: &[(u32, Option<String>)],
        verify: Verify,
    ) -> Result<PendingComplete, ServiceError> {
        let quirks = self.quirks.clone();
        let upload = self.uploads.get_mut(upload).ok_or_else(|| ServiceError::not_found("UploadId"))?;
        let chosen = select_parts(upload, listed)?;
        check_numbers(&chosen, upload, &quirks)?;
        check_sizes(&chosen, upload, &quirks)?;
        let parts = chosen.into_iter().map(|(_, part)| part.clone()).collect();
        upload.completing = true;
        Ok(PendingComplete {
            upload_id: upload.upload_id.clone(),
            parts,
            declared_hash: upload.declared_hash.clone(),
            declared_size: upload.declared_size,
            hash_name: quirks.hash_name,
            verify,
        })
    }

    /// Publishes the file of an upload session.
    pub(in crate::server) fn commit(
        &mut self,
        upload_id: &UploadId,
        assembled: Assembled,
        store: &BlobStore,
        now_ms: i64,
    ) -> Result<FileId, ServiceError> {
        let upload = self.uploads.get(upload_id).ok_or_else(|| ServiceError::not_found("UploadId"))?;
        let (drive, file) = (upload.drive_id.clone(), upload.file_id.clone());
        let (parent, name, is_new) = match &upload.target {
            UploadTarget::Revision => {
                let node = self.live(&drive, &file)?;
                (node.parent.clone(), node.name.clone(), false)
            }
            UploadTarget::New { parent, name, mode } => {
                self.check_folder(&drive, parent)?;
                let name = self
                    .resolve_name(&drive, parent, name, *mode, None, now_ms)
                    .map_err(|_| ServiceError::name_exists())?;
                (parent.clone(), name, true)
            }
        };
        self.check_quota(&drive, assembled.size)?;
        let revision = self.store_content(upload_id, assembled, store, now_ms)?;
        let Some(upload) = self.forget_upload(upload_id) else {
            return Err(ServiceError::not_found("UploadId"));
        };
        if is_new {
            self.insert_file(file.clone(), &drive, parent, name, upload.attrs, revision)?;
        } else {
            let overwrite = Some(file.clone());
            self.commit_revision(overwrite, &drive, parent, name, upload.attrs, revision)?;
        }
        Ok(file)
    }

    /// Turns the folder of an upload into a blob, or deletes it if a blob with this hash exists.
    fn store_content(
        &mut self,
        upload_id: &UploadId,
        assembled: Assembled,
        store: &BlobStore,
        now_ms: i64,
    ) -> Result<Revision, ServiceError> {
        let upload = self.uploads.get(upload_id).ok_or_else(|| ServiceError::not_found("UploadId"))?;
        let revision = Revision {
            revision_id: upload.revision_id.clone(),
            hash: assembled.hash.clone(),
            size: assembled.size,
            crc64: assembled.crc64,
            created_ms: now_ms,
            version: 1,
            keep_forever: false,
            description: String::new(),
        };
        if self.blobs.contains_key(&assembled.hash) {
            self.change.obsolete_paths.push(store.upload_dir(upload_id));
            return Ok(revision);
        }
        let unused: Vec<_> = upload
            .parts
            .values()
            .filter(|part| !assembled.parts.iter().any(|(name, _)| *name == part.file))
            .map(|part| part.file.clone())
            .collect();
        let dir = store.move_to_blobs(upload_id, &assembled.hash)?;
        let record = BlobRecord {
            hash: assembled.hash.clone(),
            size: assembled.size,
            crc64: assembled.crc64,
            pre_hash: assembled.pre_hash,
            dir,
            parts: assembled.parts,
        };
        self.put_record(Table::Blobs, record.hash.as_bytes(), &record)?;
        self.sizes_by_pre_hash.entry(record.pre_hash.clone()).or_default().push(record.size);
        let blob = store.blob(record);
        self.change.obsolete_paths.extend(unused.into_iter().map(|file| blob.path(&file)));
        self.blobs.insert(assembled.hash, BlobEntry { blob, revisions: 0 });
        Ok(revision)
    }

    /// The blob of a revision, for a download. `None` is the newest.
    pub(in crate::server) fn blob_of(
        &self,
        drive: &DriveId,
        file: &FileId,
        revision: Option<&RevisionId>,
    ) -> Option<std::sync::Arc<crate::server::blobs::Blob>> {
        let node = self.node(drive, file).ok()?;
        let revision = match revision {
            Some(id) => node.revisions().iter().find(|r| r.revision_id == *id)?,
            None => node.newest()?,
        };
        self.blobs.get(&revision.hash).map(|held| std::sync::Arc::clone(&held.blob))
    }
}

/// The parts of the file: the listed ones, or all if the list is empty.
fn select_parts<'a>(
    upload: &'a Upload,
    listed: &[(u32, Option<String>)],
) -> Result<Vec<(u32, &'a PartRecord)>, ServiceError> {
    if listed.is_empty() {
        return Ok(upload.parts.iter().map(|(number, part)| (*number, part)).collect());
    }
    let mut chosen = Vec::with_capacity(listed.len());
    for (number, etag) in listed {
        let found = upload.parts.get(number).filter(|part| {
            etag.as_ref().is_none_or(|etag| etag.trim_matches('"').eq_ignore_ascii_case(&part.etag))
        });
        let Some(part) = found else {
            let detail = format!("Part {number} was not uploaded, or has another etag.");
            return Err(ServiceError::invalid("part_info_list", &detail));
        };
        if chosen.last().is_some_and(|(last, _)| last >= number) {
            return Err(ServiceError::invalid("part_info_list", "The parts are not in ascending order."));
        }
        chosen.push((*number, part));
    }
    Ok(chosen)
}

fn check_numbers(
    chosen: &[(u32, &PartRecord)],
    upload: &Upload,
    quirks: &Quirks,
) -> Result<(), ServiceError> {
    if chosen.is_empty() && upload.declared_size != Some(0) {
        return Err(ServiceError::invalid("part_info_list", "Part 1 was not uploaded."));
    }
    let gap = (1u32..).zip(chosen).find(|(expected, (number, _))| expected != number);
    match gap {
        Some((missing, _)) if !quirks.part_gaps => {
            let detail = format!("Part {missing} was not uploaded.");
            Err(ServiceError::invalid("part_info_list", &detail))
        }
        _ => Ok(()),
    }
}

fn check_sizes(chosen: &[(u32, &PartRecord)], upload: &Upload, quirks: &Quirks) -> Result<(), ServiceError> {
    let Some((_, before_last)) = chosen.split_last() else { return Ok(()) };
    if let Some((number, part)) = before_last.iter().find(|(_, part)| part.len < quirks.part_bytes_min) {
        let detail =
            format!("Part {number} has {} bytes; the minimum is {}.", part.len, quirks.part_bytes_min);
        return Err(ServiceError::new(400, "EntityTooSmall", detail));
    }
    let first = before_last.first().map(|(_, part)| part.len);
    let unequal = before_last.iter().find(|(_, part)| Some(part.len) != first);
    match unequal {
        Some((number, _)) if upload.parallel && quirks.equal_part_sizes => {
            let detail = format!("Part {number} has another size than part 1.");
            Err(ServiceError::invalid("part_info_list", &detail))
        }
        _ => Ok(()),
    }
}

impl PendingComplete {
    /// Whether [`PendingComplete::assemble`] reads files, so that it must run on a blocking thread.
    pub(in crate::server) fn needs_io(&self) -> bool {
        let is_hashed = match self.verify {
            Verify::Full => self.parts.iter().all(|part| part.end.is_some()),
            Verify::Off => self.declared_hash.is_some(),
        };
        !is_hashed || self.recorded_pre_hash().is_none()
    }

    /// SHA-1 of the first KiB, if it was recorded.
    fn recorded_pre_hash(&self) -> Option<&String> {
        let first = self.parts.first()?;
        let is_whole = first.len >= PRE_HASH_BYTES as u64 || self.parts.len() == 1;
        first.head.as_ref().filter(|_| is_whole)
    }

    /// Verifies the chain of midstates and the declared hash. An error discards the upload session.
    pub(in crate::server) fn assemble(&self, store: &BlobStore) -> Result<Assembled, ServiceError> {
        let dir = store.upload_dir(&self.upload_id);
        let size: u64 = self.parts.iter().map(|part| part.len).sum();
        let mut offset = 0;
        for part in &self.parts {
            if part.start.as_ref().is_some_and(|start| start.offset != offset) {
                return Err(mismatch("part_offset of a part is not the number of bytes before it"));
            }
            offset += part.len;
        }
        let hash = match (self.verify, &self.declared_hash) {
            (Verify::Off, Some(declared)) => declared.clone(),
            (Verify::Off, None) => self.hash_from_last(&dir)?,
            (Verify::Full, _) => self.verified_hash(&dir)?,
        };
        if self.declared_hash.as_ref().is_some_and(|declared| *declared != hash) {
            return Err(mismatch(
                "file content hash is not matched with content_hash in complete file request",
            ));
        }
        let pre_hash = match self.recorded_pre_hash() {
            Some(head) => head.clone(),
            None => self.read_pre_hash(&dir)?,
        };
        let crcs = self.parts.iter().map(|part| (part.crc64, part.len));
        let crc64 = crcs.reduce(|(crc, len), (next, more)| (crc64::combine(crc, next, more), len + more));
        let crc64 = crc64.map_or(0, |(crc, _)| crc);
        let parts = self.parts.iter().map(|part| (part.file.clone(), part.len)).collect();
        Ok(Assembled { hash, size, crc64, pre_hash, parts })
    }

    /// The content hash; compares every declared midstate.
    fn verified_hash(&self, dir: &Path) -> Result<String, ServiceError> {
        let mut state = Hasher::new(self.hash_name);
        for (index, part) in self.parts.iter().enumerate() {
            if let Some(start) = &part.start {
                let declared = Hasher::resume(self.hash_name, start);
                if declared.is_none_or(|declared| declared.save() != state.save()) {
                    let detail =
                        format!("the bytes before part {} do not match its declared midstate", index + 1);
                    return Err(mismatch(&detail));
                }
            }
            match part.end.as_deref().and_then(decode_hex).and_then(|end| Hasher::load(self.hash_name, &end))
            {
                Some(end) => state = end,
                None => read_part(dir, part, |bytes| state.update(bytes))?,
            }
        }
        Ok(state.finish())
    }

    /// The content hash, computed from the last declared midstate on.
    fn hash_from_last(&self, dir: &Path) -> Result<String, ServiceError> {
        let from = self.parts.iter().rposition(|part| part.start.is_some()).unwrap_or(0);
        let start = self.parts.get(from).and_then(|part| part.start.as_ref());
        let resumed = start.and_then(|start| Hasher::resume(self.hash_name, start));
        let (from, mut state) = match resumed {
            Some(state) => (from, state),
            None => (0, Hasher::new(self.hash_name)),
        };
        for part in &self.parts[from.min(self.parts.len())..] {
            read_part(dir, part, |bytes| state.update(bytes))?;
        }
        Ok(state.finish())
    }

    fn read_pre_hash(&self, dir: &Path) -> Result<String, ServiceError> {
        let files = self.parts.iter().map(|part| (part.file.as_str(), part.len));
        let mut reader = PartReader::of_parts(dir, files, 0, PRE_HASH_BYTES as u64);
        let mut sha1 = Sha1::new();
        while let Some(bytes) = reader.next(PRE_HASH_BYTES)? {
            sha1.update(&bytes);
        }
        Ok(hex(&sha1.finalize()).to_uppercase())
    }
}

fn read_part(dir: &Path, part: &PartRecord, mut take: impl FnMut(&[u8])) -> Result<(), ServiceError> {
    let mut reader = PartReader::of_parts(dir, std::iter::once((part.file.as_str(), part.len)), 0, part.len);
    while let Some(bytes) = reader.next(READ_BYTES)? {
        take(&bytes);
    }
    Ok(())
}

fn mismatch(detail: &str) -> ServiceError {
    ServiceError::invalid("content_hash", detail)
}
