//! From parts to a file: what `complete` checks, and how the file comes to be.
//!
//! The chain of midstates is checked from what was recorded when the parts arrived: the state
//! after each part must be the declared state before the next one. Only parts that arrived
//! without a state are read again.

use std::path::Path;

use super::journal::Table;
use super::records::{BlobRecord, Part, Revision, Target, Upload};
use super::{ApiError, Catalog, DriveId, FileId, Held, State, UploadId};
use crate::crc64;
use crate::ids::RevisionId;
use crate::server::blobs::{PRE_HASH_BYTES, Reader, Store};
use crate::server::clock::{hex, unhex};
use crate::server::config::{Quirks, Verify};
use crate::server::digest::{HashName, Hasher};
use sha1::{Digest as _, Sha1};

/// Bytes read at once where parts must be read again.
const READ_BYTES: usize = 1 << 20;

/// A `complete` in progress: the parts that make the file.
pub(in crate::server) struct Plan {
    pub(in crate::server) upload_id: UploadId,
    pub(in crate::server) parts: Vec<Part>,
    pub(in crate::server) declared_hash: Option<String>,
    pub(in crate::server) declared_size: Option<u64>,
    hash_name: HashName,
    verify: Verify,
}

/// What the parts are together.
pub(in crate::server) struct Assembled {
    pub(in crate::server) hash: String,
    pub(in crate::server) size: u64,
    pub(in crate::server) crc64: u64,
    pub(in crate::server) pre_hash: String,
    pub(in crate::server) parts: Vec<(String, u64)>,
}

impl Catalog {
    /// Takes an upload for `complete`, after any other `complete` of it.
    pub(in crate::server) async fn take_for_complete(
        &self,
        drive: &DriveId,
        file: &FileId,
        upload: &UploadId,
        listed: &[(u32, Option<String>)],
        verify: Verify,
    ) -> Result<Plan, ApiError> {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            let plan = self.touch(|state| {
                if state.upload(drive, file, upload)?.completing {
                    return Ok(None);
                }
                state.plan(upload, listed, verify).map(Some)
            });
            match plan? {
                Some(plan) => return Ok(plan),
                None => settled.await,
            }
        }
    }

    /// Gives an upload back that was not completed.
    pub(in crate::server) fn give_back(&self, upload: &UploadId) {
        self.touch(|state| {
            if let Some(upload) = state.uploads.get_mut(upload) {
                upload.completing = false;
            }
        });
        self.settled.notify_waiters();
    }
}

impl State {
    fn plan(
        &mut self,
        upload: &UploadId,
        listed: &[(u32, Option<String>)],
        verify: Verify,
    ) -> Result<Plan, ApiError> {
        let quirks = self.quirks.clone();
        let upload = self.uploads.get_mut(upload).ok_or_else(|| ApiError::not_found("UploadId"))?;
        let chosen = choose(upload, listed)?;
        check_numbers(&chosen, upload, &quirks)?;
        check_sizes(&chosen, upload, &quirks)?;
        let parts = chosen.into_iter().map(|(_, part)| part.clone()).collect();
        upload.completing = true;
        Ok(Plan {
            upload_id: upload.upload_id.clone(),
            parts,
            declared_hash: upload.declared_hash.clone(),
            declared_size: upload.declared_size,
            hash_name: quirks.hash_name,
            verify,
        })
    }

    /// Makes the file of an upload visible.
    pub(in crate::server) fn commit(
        &mut self,
        upload_id: &UploadId,
        assembled: Assembled,
        store: &Store,
        now_ms: i64,
    ) -> Result<FileId, ApiError> {
        let upload = self.uploads.get(upload_id).ok_or_else(|| ApiError::not_found("UploadId"))?;
        let (drive, file) = (upload.drive_id.clone(), upload.file_id.clone());
        let (parent, name, is_new) = match &upload.target {
            Target::Revision => {
                let node = self.live(&drive, &file)?;
                (node.parent.clone(), node.name.clone(), false)
            }
            Target::New { parent, name, mode } => {
                self.check_folder(&drive, parent)?;
                let name = self
                    .settle_name(&drive, parent, name, *mode, None, now_ms)
                    .map_err(|_| ApiError::exists())?;
                (parent.clone(), name, true)
            }
        };
        self.check_quota(&drive, assembled.size)?;
        let revision = self.adopt(upload_id, assembled, store, now_ms)?;
        let Some(upload) = self.forget_upload(upload_id) else {
            return Err(ApiError::not_found("UploadId"));
        };
        if is_new {
            self.insert_file(file.clone(), &drive, parent, name, upload.traits, revision)?;
        } else {
            let overwrite = Some(file.clone());
            self.commit_revision(overwrite, &drive, parent, name, upload.traits, revision)?;
        }
        Ok(file)
    }

    /// Turns an upload's folder into a blob, or drops it where the blob is there already.
    fn adopt(
        &mut self,
        upload_id: &UploadId,
        assembled: Assembled,
        store: &Store,
        now_ms: i64,
    ) -> Result<Revision, ApiError> {
        let upload = self.uploads.get(upload_id).ok_or_else(|| ApiError::not_found("UploadId"))?;
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
            self.change.doomed_paths.push(store.upload_dir(upload_id));
            return Ok(revision);
        }
        let unused: Vec<_> = upload
            .parts
            .values()
            .filter(|part| !assembled.parts.iter().any(|(name, _)| *name == part.file))
            .map(|part| part.file.clone())
            .collect();
        let dir = store.promote(upload_id, &assembled.hash)?;
        let record = BlobRecord {
            hash: assembled.hash.clone(),
            size: assembled.size,
            crc64: assembled.crc64,
            pre_hash: assembled.pre_hash,
            dir,
            parts: assembled.parts,
        };
        self.put(Table::Blobs, record.hash.as_bytes(), &record)?;
        self.heads.entry(record.pre_hash.clone()).or_default().push(record.size);
        let blob = store.blob(record);
        self.change.doomed_paths.extend(unused.into_iter().map(|file| blob.path(&file)));
        self.blobs.insert(assembled.hash, Held { blob, revisions: 0 });
        Ok(revision)
    }

    /// The blob of a revision of a file, for a download.
    pub(in crate::server) fn content(
        &self,
        drive: &DriveId,
        file: &FileId,
        revision: &RevisionId,
    ) -> Option<std::sync::Arc<crate::server::blobs::Blob>> {
        let node = self.any(drive, file).ok()?;
        let revision = node.revisions().iter().find(|r| r.revision_id == *revision)?;
        self.blobs.get(&revision.hash).map(|held| std::sync::Arc::clone(&held.blob))
    }
}

/// The parts that make the file: those listed if any are, else all.
fn choose<'a>(
    upload: &'a Upload,
    listed: &[(u32, Option<String>)],
) -> Result<Vec<(u32, &'a Part)>, ApiError> {
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
            return Err(ApiError::invalid("part_info_list", &detail));
        };
        if chosen.last().is_some_and(|(last, _)| last >= number) {
            return Err(ApiError::invalid("part_info_list", "The parts are not in ascending order."));
        }
        chosen.push((*number, part));
    }
    Ok(chosen)
}

fn check_numbers(chosen: &[(u32, &Part)], upload: &Upload, quirks: &Quirks) -> Result<(), ApiError> {
    if chosen.is_empty() && upload.declared_size != Some(0) {
        return Err(ApiError::invalid("part_info_list", "Part 1 was not uploaded."));
    }
    let gap = (1u32..).zip(chosen).find(|(expected, (number, _))| expected != number);
    match gap {
        Some((missing, _)) if !quirks.part_gaps => {
            let detail = format!("Part {missing} was not uploaded.");
            Err(ApiError::invalid("part_info_list", &detail))
        }
        _ => Ok(()),
    }
}

fn check_sizes(chosen: &[(u32, &Part)], upload: &Upload, quirks: &Quirks) -> Result<(), ApiError> {
    let Some((_, before_last)) = chosen.split_last() else { return Ok(()) };
    if let Some((number, part)) = before_last.iter().find(|(_, part)| part.len < quirks.part_bytes_min) {
        let detail = format!("Part {number} has {} bytes; the least is {}.", part.len, quirks.part_bytes_min);
        return Err(ApiError::new(400, "EntityTooSmall", detail));
    }
    let first = before_last.first().map(|(_, part)| part.len);
    let unequal = before_last.iter().find(|(_, part)| Some(part.len) != first);
    match unequal {
        Some((number, _)) if upload.parallel && quirks.equal_part_sizes => {
            let detail = format!("Part {number} has another size than part 1.");
            Err(ApiError::invalid("part_info_list", &detail))
        }
        _ => Ok(()),
    }
}

impl Plan {
    /// Whether [`Plan::assemble`] reads files, and so must not run where it would block others.
    pub(in crate::server) fn reads(&self) -> bool {
        let is_hashed = match self.verify {
            Verify::Full => self.parts.iter().all(|part| part.end.is_some()),
            Verify::Off => self.declared_hash.is_some(),
        };
        !is_hashed || self.head().is_none()
    }

    /// SHA-1 of the first KiB, if it is known without reading.
    fn head(&self) -> Option<&String> {
        let first = self.parts.first()?;
        let is_whole = first.len >= PRE_HASH_BYTES as u64 || self.parts.len() == 1;
        first.head.as_ref().filter(|_| is_whole)
    }

    /// Checks the chain and computes what the file is. An error ends the upload.
    pub(in crate::server) fn assemble(&self, store: &Store) -> Result<Assembled, ApiError> {
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
            (Verify::Full, _) => self.hash_all(&dir)?,
        };
        if self.declared_hash.as_ref().is_some_and(|declared| *declared != hash) {
            return Err(mismatch(
                "file content hash is not matched with content_hash in complete file request",
            ));
        }
        let pre_hash = match self.head() {
            Some(head) => head.clone(),
            None => self.read_head(&dir)?,
        };
        let crcs = self.parts.iter().map(|part| (part.crc64, part.len));
        let crc64 = crcs.reduce(|(crc, len), (next, more)| (crc64::append(crc, next, more), len + more));
        let crc64 = crc64.map_or(0, |(crc, _)| crc);
        let parts = self.parts.iter().map(|part| (part.file.clone(), part.len)).collect();
        Ok(Assembled { hash, size, crc64, pre_hash, parts })
    }

    /// The hash of everything, with every declared state compared.
    fn hash_all(&self, dir: &Path) -> Result<String, ApiError> {
        let mut state = Hasher::new(self.hash_name);
        for (index, part) in self.parts.iter().enumerate() {
            if let Some(start) = &part.start {
                let declared = Hasher::resume(self.hash_name, start);
                if declared.is_none_or(|declared| declared.save() != state.save()) {
                    let detail =
                        format!("the bytes before part {} do not have the declared state", index + 1);
                    return Err(mismatch(&detail));
                }
            }
            match part.end.as_deref().and_then(unhex).and_then(|end| Hasher::load(self.hash_name, &end)) {
                Some(end) => state = end,
                None => read_part(dir, part, |bytes| state.update(bytes))?,
            }
        }
        Ok(state.finish())
    }

    /// The hash as the last part's declared state gives it; of everything where it has none.
    fn hash_from_last(&self, dir: &Path) -> Result<String, ApiError> {
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

    fn read_head(&self, dir: &Path) -> Result<String, ApiError> {
        let files = self.parts.iter().map(|part| (part.file.as_str(), part.len));
        let mut reader = Reader::of_parts(dir, files, 0, PRE_HASH_BYTES as u64);
        let mut sha1 = Sha1::new();
        while let Some(bytes) = reader.next(PRE_HASH_BYTES)? {
            sha1.update(&bytes);
        }
        Ok(hex(&sha1.finalize()).to_uppercase())
    }
}

fn read_part(dir: &Path, part: &Part, mut take: impl FnMut(&[u8])) -> Result<(), ApiError> {
    let mut reader = Reader::of_parts(dir, std::iter::once((part.file.as_str(), part.len)), 0, part.len);
    while let Some(bytes) = reader.next(READ_BYTES)? {
        take(&bytes);
    }
    Ok(())
}

fn mismatch(detail: &str) -> ApiError {
    ApiError::invalid("content_hash", detail)
}
