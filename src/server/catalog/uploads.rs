//! Upload sessions: `create` begins one, parts fill it, in sequence or in any order.

use super::database::Table;
use super::records::{
    CatalogOp, ClientAttrs, Midstates, Node, NodeKind, PartRecord, Revision, Upload, UploadTarget,
};
use super::{BlobEntry, Catalog, CatalogState, CheckNameMode, DriveId, FileId, ServiceError, UploadId};
use crate::ids::RevisionId;
use crate::server::blobs::{BlobRecord, BlobStore, PartFile};
use crate::server::clock::{self, decode_hex, hex};
use crate::server::config::Verify;
use crate::server::digest::{HashName, Hasher, Midstate};
use crate::server::errors::OssError;

/// A request to create a file.
pub(in crate::server) struct NewUpload {
    pub(in crate::server) drive_id: DriveId,
    /// Ignored if `overwrite` is set.
    pub(in crate::server) parent: FileId,
    pub(in crate::server) name: String,
    pub(in crate::server) mode: CheckNameMode,
    pub(in crate::server) overwrite: Option<FileId>,
    pub(in crate::server) last_revision: Option<String>,
    pub(in crate::server) parallel: bool,
    pub(in crate::server) size: Option<u64>,
    pub(in crate::server) content_hash: Option<String>,
    pub(in crate::server) pre_hash: Option<String>,
    pub(in crate::server) attrs: ClientAttrs,
    pub(in crate::server) midstates: Midstates,
}

/// The outcome of `create`.
pub(in crate::server) enum CreateResult {
    /// This sibling has the name; nothing was changed.
    NameExists(FileId),
    /// Instant upload: a blob with this hash existed, and the file is committed.
    Instant { file_id: FileId, revision_id: RevisionId },
    /// An upload session was begun.
    Started { file_id: FileId, revision_id: RevisionId, upload_id: UploadId, name: String, parent: FileId },
}

/// The hash state at the start of a part.
pub(in crate::server) struct PartStart {
    pub(in crate::server) hasher: Option<Hasher>,
    /// The declared midstate.
    pub(in crate::server) start: Option<Midstate>,
}

/// Marks a part as being received. The drop removes the mark.
pub(in crate::server) struct ReceivingGuard<'a> {
    catalog: &'a Catalog,
    upload: UploadId,
    part: u32,
}

impl Drop for ReceivingGuard<'_> {
    fn drop(&mut self) {
        self.catalog.change_in_memory(|state| {
            let Some(upload) = state.uploads.get_mut(&self.upload) else { return };
            if let Some(requests) = upload.receiving.get_mut(&self.part) {
                *requests -= 1;
                if *requests == 0 {
                    upload.receiving.remove(&self.part);
                }
            }
        });
    }
}

impl Catalog {
    /// Checks that a part can be received now, and marks it as being received.
    pub(in crate::server) fn start_part(
        &self,
        upload: &UploadId,
        file: &FileId,
        part: u32,
        declared: Option<Midstate>,
        len: u64,
        verify: Verify,
    ) -> Result<(PartStart, ReceivingGuard<'_>), OssError> {
        let start =
            self.change_in_memory(|state| state.start_part(upload, file, part, declared, len, verify))?;
        Ok((start, ReceivingGuard { catalog: self, upload: upload.clone(), part }))
    }
}

impl CatalogState {
    /// `create` of a file.
    pub(in crate::server) fn create_file(
        &mut self,
        new: NewUpload,
        store: &BlobStore,
        now_ms: i64,
    ) -> Result<CreateResult, ServiceError> {
        self.drive(&new.drive_id)?;
        let (parent, name) = if let Some(file) = &new.overwrite {
            let node = self.live(&new.drive_id, file)?;
            self.check_overwrite(node, new.last_revision.as_deref())?;
            if self.quirks.refuse_overwrite && new.mode == CheckNameMode::Refuse {
                return Ok(CreateResult::NameExists(file.clone()));
            }
            (node.parent.clone(), node.name.clone())
        } else {
            self.check_folder(&new.drive_id, &new.parent)?;
            match self.resolve_name(&new.drive_id, &new.parent, &new.name, new.mode, None, now_ms) {
                Ok(name) => (new.parent.clone(), name),
                Err(sibling) => return Ok(CreateResult::NameExists(sibling.file_id.clone())),
            }
        };
        self.check_quota(&new.drive_id, new.size.unwrap_or(0))?;
        if let Some(pre_hash) = &new.pre_hash
            && new.content_hash.is_none()
            && self.quirks.pre_hash
        {
            self.check_pre_hash(pre_hash, new.size, &new)?;
        }
        self.provide_empty_blob(&new, store)?;
        if let Some(revision) = self.instant(&new, now_ms)? {
            let revision_id = revision.revision_id.clone();
            let file_id =
                self.commit_revision(new.overwrite, &new.drive_id, parent, name, new.attrs, revision)?;
            return Ok(CreateResult::Instant { file_id, revision_id });
        }
        self.start_upload(new, parent, name, store, now_ms)
    }

    fn start_upload(
        &mut self,
        new: NewUpload,
        parent: FileId,
        name: String,
        store: &BlobStore,
        now_ms: i64,
    ) -> Result<CreateResult, ServiceError> {
        let upload_id = clock::upload_id()?;
        let revision_id = clock::revision_id(now_ms)?;
        let (file_id, target) = if let Some(file) = new.overwrite {
            (file, UploadTarget::Revision)
        } else {
            let target = UploadTarget::New { parent: parent.clone(), name: name.clone(), mode: new.mode };
            (clock::file_id(now_ms)?, target)
        };
        store.create_upload_dir(&upload_id)?;
        let upload = Upload {
            upload_id: upload_id.clone(),
            drive_id: new.drive_id,
            file_id: file_id.clone(),
            revision_id: revision_id.clone(),
            target,
            parallel: new.parallel,
            declared_size: new.size,
            declared_hash: new.content_hash,
            created_ms: now_ms,
            attrs: new.attrs,
            midstates: new.midstates,
            parts: std::collections::BTreeMap::new(),
            receiving: std::collections::BTreeMap::new(),
            completing: false,
        };
        self.put_record(Table::Uploads, upload_id.as_str().as_bytes(), &upload)?;
        self.uploads.insert(upload_id.clone(), upload);
        Ok(CreateResult::Started { file_id, revision_id, upload_id, name, parent })
    }

    fn check_overwrite(&self, node: &Node, last_revision: Option<&str>) -> Result<(), ServiceError> {
        let Some(newest) = node.newest() else {
            return Err(ServiceError::invalid("file_id", "It is not a file."));
        };
        match last_revision {
            Some(last) if self.quirks.last_revision_lock && last != newest.revision_id.as_str() => {
                Err(ServiceError::conflict("The file has a newer revision."))
            }
            _ => Ok(()),
        }
    }

    fn check_pre_hash(&self, pre_hash: &str, size: Option<u64>, new: &NewUpload) -> Result<(), ServiceError> {
        let Some(sizes) = self.sizes_by_pre_hash.get(pre_hash) else { return Ok(()) };
        if size.is_some_and(|size| !sizes.contains(&size)) {
            return Ok(());
        }
        let mut error = ServiceError::new(409, "PreHashMatched", "Pre hash matched.");
        error.extra = vec![
            ("parent_file_id", new.parent.to_string()),
            ("file_name", new.name.clone()),
            ("pre_hash", pre_hash.to_owned()),
        ];
        Err(error)
    }

    /// The content of an empty file exists as soon as a client names its hash.
    fn provide_empty_blob(&mut self, new: &NewUpload, store: &BlobStore) -> Result<(), ServiceError> {
        let hash = self.quirks.hash_name.of_nothing();
        let is_empty = new.size == Some(0) && new.content_hash.as_ref() == Some(&hash);
        let is_instant = self.quirks.instant_upload && self.quirks.empty_is_instant;
        if !is_empty || !is_instant || self.blobs.contains_key(&hash) {
            return Ok(());
        }
        let record = BlobRecord {
            hash: hash.clone(),
            size: 0,
            crc64: 0,
            pre_hash: HashName::Sha1.of_nothing(),
            // Without parts no folder is needed.
            dir: format!("{}/{hash}-empty", &hash[..2]),
            parts: Vec::new(),
        };
        self.put_record(Table::Blobs, hash.as_bytes(), &record)?;
        self.sizes_by_pre_hash.entry(record.pre_hash.clone()).or_default().push(0);
        self.blobs.insert(hash, BlobEntry { blob: store.blob(record), revisions: 0 });
        Ok(())
    }

    /// The revision of an instant upload, if the content exists.
    fn instant(&self, new: &NewUpload, now_ms: i64) -> Result<Option<Revision>, ServiceError> {
        if !self.quirks.instant_upload {
            return Ok(None);
        }
        let (Some(hash), Some(size)) = (&new.content_hash, new.size) else { return Ok(None) };
        let Some(held) = self.blobs.get(hash).filter(|held| held.blob.record.size == size) else {
            return Ok(None);
        };
        Ok(Some(Revision {
            revision_id: clock::revision_id(now_ms)?,
            hash: hash.clone(),
            size,
            crc64: held.blob.record.crc64,
            created_ms: now_ms,
            version: 1,
            keep_forever: false,
            description: String::new(),
        }))
    }

    /// Publishes a revision: of the file `overwrite`, or of a new file.
    pub(super) fn commit_revision(
        &mut self,
        overwrite: Option<FileId>,
        drive: &DriveId,
        parent: FileId,
        name: String,
        attrs: ClientAttrs,
        mut revision: Revision,
    ) -> Result<FileId, ServiceError> {
        let now_ms = revision.created_ms;
        let Some(file) = overwrite else {
            let file_id = clock::file_id(now_ms)?;
            self.insert_file(file_id.clone(), drive, parent, name, attrs, revision)?;
            return Ok(file_id);
        };
        let (keeps, most) = (self.quirks.revisions, self.quirks.revisions_max.max(1) as usize);
        self.edit_revisions(&file, CatalogOp::Overwrite, now_ms, |revisions| {
            revision.version = revisions.last().map_or(0, |last| last.version) + u64::from(keeps);
            if keeps {
                while revisions.len() >= most {
                    let oldest = revisions.iter().position(|r| !r.keep_forever).unwrap_or(0);
                    revisions.remove(oldest);
                }
            } else {
                revisions.clear();
            }
            revisions.push(revision);
        })?;
        if let Some(node) = self.nodes.get_mut(&file) {
            let own = &mut node.attrs;
            own.content_type = attrs.content_type.or_else(|| own.content_type.take());
            own.local_modified_at = attrs.local_modified_at.or_else(|| own.local_modified_at.take());
            own.description = attrs.description.or_else(|| own.description.take());
            own.user_tags.extend(attrs.user_tags);
            let node = node.clone();
            self.put_record(Table::Nodes, file.as_str().as_bytes(), &node)?;
        }
        Ok(file)
    }

    /// Adds a file with one revision.
    pub(super) fn insert_file(
        &mut self,
        file_id: FileId,
        drive: &DriveId,
        parent: FileId,
        name: String,
        attrs: ClientAttrs,
        revision: Revision,
    ) -> Result<(), ServiceError> {
        let node = Node {
            file_id,
            drive_id: drive.clone(),
            parent,
            name,
            created_ms: revision.created_ms,
            updated_ms: revision.created_ms,
            kind: NodeKind::File { revisions: vec![revision] },
            trashed_ms: None,
            attrs,
        };
        self.insert(node, CatalogOp::Create)
    }

    /// An upload session of a file, or 404.
    pub(in crate::server) fn upload(
        &self,
        drive: &DriveId,
        file: &FileId,
        upload: &UploadId,
    ) -> Result<&Upload, ServiceError> {
        self.drive(drive)?;
        self.uploads
            .get(upload)
            .filter(|found| found.file_id == *file && found.drive_id == *drive)
            .ok_or_else(|| ServiceError::not_found("UploadId"))
    }

    pub(in crate::server) fn uploads(&self) -> impl Iterator<Item = &Upload> {
        self.uploads.values()
    }

    /// Stores the midstates of a `get_upload_url` call. Returns the midstate of each part, also from earlier
    /// calls.
    pub(in crate::server) fn declare_midstates(
        &mut self,
        upload: &UploadId,
        parts: impl Iterator<Item = (u32, Option<Midstate>)>,
    ) -> Vec<Option<Midstate>> {
        let Some(upload) = self.uploads.get_mut(upload) else { return Vec::new() };
        parts
            .map(|(part, state)| match state {
                Some(state) => {
                    upload.midstates.insert(part, state.clone());
                    Some(state)
                }
                None => upload.midstates.get(&part).cloned(),
            })
            .collect()
    }

    fn start_part(
        &mut self,
        upload: &UploadId,
        file: &FileId,
        part: u32,
        declared: Option<Midstate>,
        len: u64,
        verify: Verify,
    ) -> Result<PartStart, OssError> {
        let (quirks, quota_bytes) = (&self.quirks, self.quota_bytes);
        let upload = self
            .uploads
            .get_mut(upload)
            .filter(|upload| upload.file_id == *file && !upload.completing)
            .ok_or_else(OssError::no_such_upload)?;
        if quirks.quota_at_put
            && let (Some(quota), Some(drive)) = (quota_bytes, self.drives.get(&upload.drive_id))
            && drive.used_bytes + upload.parts.values().map(|p| p.len).sum::<u64>() + len > quota
        {
            return Err(OssError::new(403, "QuotaExhausted.Drive", "The drive is full."));
        }
        if let Some(old) = upload.parts.get(&part)
            && (!upload.parallel || quirks.refuse_part_again)
        {
            return Err(OssError::new(
                409,
                "PartAlreadyExist",
                "For sequential multipart upload, you can't overwrite uploaded parts.",
            )
            .with("PartEtag", format!("\"{}\"", old.etag))
            .with("PartNumber", part.to_string())
            .with("EC", "0042-00000108"));
        }
        let start = if upload.parallel && part == 1 && declared.is_none() {
            Some(Midstate { offset: 0, h: Vec::new() })
        } else {
            declared.filter(|_| upload.parallel)
        };
        let name = quirks.hash_name;
        let hasher = if upload.parallel {
            start.as_ref().and_then(|start| Hasher::resume(name, start))
        } else {
            let before = upload.parts.last_key_value();
            if part != before.map_or(0, |(last, _)| *last) + 1 || !upload.receiving.is_empty() {
                return Err(OssError::new(
                    400,
                    "PartNotSequential",
                    "For sequential multipart upload, you must upload or complete parts with sequential part number.",
                )
                .with("PartNumber", part.to_string()));
            }
            match before {
                None => Some(Hasher::new(name)),
                Some((_, before)) => {
                    before.end.as_deref().and_then(decode_hex).and_then(|end| Hasher::load(name, &end))
                }
            }
        };
        *upload.receiving.entry(part).or_default() += 1;
        Ok(PartStart { hasher: hasher.filter(|_| verify == Verify::Full), start })
    }

    /// Records a complete part. It replaces an earlier part with the same number.
    pub(in crate::server) fn record_part(
        &mut self,
        upload_id: &UploadId,
        number: u32,
        received: PartFile,
        etag: &str,
        start: Option<Midstate>,
        store: &BlobStore,
    ) -> Result<(), ServiceError> {
        let Some(upload) = self.uploads.get_mut(upload_id).filter(|upload| !upload.completing) else {
            return Err(ServiceError::not_found("UploadId"));
        };
        let part = PartRecord {
            file: received.name,
            len: received.len,
            crc64: received.crc64,
            etag: etag.to_owned(),
            start,
            end: received.end.map(|end| hex(&end)),
            head: received.head,
        };
        let old = upload.parts.insert(number, part.clone());
        self.put_record(Table::Parts, &part_key(upload_id, number), &part)?;
        if let Some(old) = old {
            self.change.obsolete_paths.push(store.upload_dir(upload_id).join(old.file));
        }
        Ok(())
    }

    /// Deletes an upload session with its parts.
    pub(in crate::server) fn discard_upload(&mut self, upload_id: &UploadId, store: &BlobStore) {
        if self.forget_upload(upload_id).is_some() {
            self.change.obsolete_paths.push(store.upload_dir(upload_id));
        }
    }

    /// Deletes the records of an upload session, but not its folder.
    pub(super) fn forget_upload(&mut self, upload_id: &UploadId) -> Option<Upload> {
        let upload = self.uploads.remove(upload_id)?;
        self.delete_record(Table::Uploads, upload_id.as_str().as_bytes());
        for number in upload.parts.keys() {
            self.delete_record(Table::Parts, &part_key(upload_id, *number));
        }
        Some(upload)
    }

    /// Deletes idle upload sessions that were begun before `before_ms`.
    pub(in crate::server) fn discard_uploads_before(&mut self, before_ms: i64, store: &BlobStore) {
        let idle = |upload: &Upload| !upload.completing && upload.receiving.is_empty();
        let old: Vec<_> = self
            .uploads
            .values()
            .filter(|upload| upload.created_ms < before_ms && idle(upload))
            .map(|upload| upload.upload_id.clone())
            .collect();
        for upload in old {
            self.discard_upload(&upload, store);
        }
    }
}

fn part_key(upload: &UploadId, number: u32) -> Vec<u8> {
    let mut key = upload.as_str().as_bytes().to_vec();
    key.push(b'/');
    key.extend_from_slice(&number.to_be_bytes());
    key
}
