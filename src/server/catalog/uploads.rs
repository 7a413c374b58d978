//! Uploads: begun by `create`, filled part by part, in order or in any order.

use super::journal::Table;
use super::records::{Kind, Midstates, Node, Op, Part, Revision, Target, Traits, Upload};
use super::{ApiError, Catalog, CheckNameMode, DriveId, FileId, State, UploadId};
use crate::ids::RevisionId;
use crate::server::blobs::{Received, Store};
use crate::server::clock::{self, hex, unhex};
use crate::server::config::Verify;
use crate::server::digest::{Hasher, Midstate};
use crate::server::errors::OssError;

/// What `create` asks for.
pub(in crate::server) struct NewUpload {
    pub(in crate::server) drive_id: DriveId,
    /// Ignored where `overwrite` names a file.
    pub(in crate::server) parent: FileId,
    pub(in crate::server) name: String,
    pub(in crate::server) mode: CheckNameMode,
    pub(in crate::server) overwrite: Option<FileId>,
    pub(in crate::server) last_revision: Option<String>,
    pub(in crate::server) parallel: bool,
    pub(in crate::server) size: Option<u64>,
    pub(in crate::server) content_hash: Option<String>,
    pub(in crate::server) pre_hash: Option<String>,
    pub(in crate::server) traits: Traits,
    pub(in crate::server) midstates: Midstates,
}

/// What `create` did.
pub(in crate::server) enum Begun {
    /// Nothing: this sibling has the name.
    Exists(FileId),
    /// The content was there already.
    Instant { file_id: FileId, revision_id: RevisionId },
    /// An upload.
    Started { file_id: FileId, revision_id: RevisionId, upload_id: UploadId, name: String, parent: FileId },
}

/// How a part is hashed while it arrives.
pub(in crate::server) struct PutStart {
    pub(in crate::server) hasher: Option<Hasher>,
    /// The declared state before the part.
    pub(in crate::server) start: Option<Midstate>,
}

/// Undoes [`State::start_part`] when the request ends, however it ends.
pub(in crate::server) struct Receiving<'a> {
    catalog: &'a Catalog,
    upload: UploadId,
    part: u32,
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.catalog.touch(|state| {
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
    /// Lets a part be received.
    pub(in crate::server) fn start_part(
        &self,
        upload: &UploadId,
        file: &FileId,
        part: u32,
        declared: Option<Midstate>,
        len: u64,
        verify: Verify,
    ) -> Result<(PutStart, Receiving<'_>), OssError> {
        let start = self.touch(|state| state.start_part(upload, file, part, declared, len, verify))?;
        Ok((start, Receiving { catalog: self, upload: upload.clone(), part }))
    }
}

impl State {
    /// `create` of a file.
    pub(in crate::server) fn begin(
        &mut self,
        new: NewUpload,
        store: &Store,
        now_ms: i64,
    ) -> Result<Begun, ApiError> {
        self.drive(&new.drive_id)?;
        let (parent, name) = if let Some(file) = &new.overwrite {
            let node = self.live(&new.drive_id, file)?;
            self.check_overwrite(node, new.last_revision.as_deref())?;
            (node.parent.clone(), node.name.clone())
        } else {
            self.check_folder(&new.drive_id, &new.parent)?;
            match self.settle_name(&new.drive_id, &new.parent, &new.name, new.mode, None, now_ms) {
                Ok(name) => (new.parent.clone(), name),
                Err(sibling) => return Ok(Begun::Exists(sibling.file_id.clone())),
            }
        };
        self.check_quota(&new.drive_id, new.size.unwrap_or(0))?;
        if let Some(pre_hash) = &new.pre_hash
            && new.content_hash.is_none()
            && self.quirks.pre_hash
        {
            self.check_pre_hash(pre_hash, new.size, &new)?;
        }
        if let Some(revision) = self.instant(&new, now_ms)? {
            let revision_id = revision.revision_id.clone();
            let file_id =
                self.commit_revision(new.overwrite, &new.drive_id, parent, name, new.traits, revision)?;
            return Ok(Begun::Instant { file_id, revision_id });
        }
        self.start_upload(new, parent, name, store, now_ms)
    }

    fn start_upload(
        &mut self,
        new: NewUpload,
        parent: FileId,
        name: String,
        store: &Store,
        now_ms: i64,
    ) -> Result<Begun, ApiError> {
        let upload_id = clock::upload_id()?;
        let revision_id = clock::revision_id(now_ms)?;
        let (file_id, target) = if let Some(file) = new.overwrite {
            (file, Target::Revision)
        } else {
            let target = Target::New { parent: parent.clone(), name: name.clone(), mode: new.mode };
            (clock::file_id(now_ms)?, target)
        };
        store.begin_upload(&upload_id)?;
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
            traits: new.traits,
            midstates: new.midstates,
            parts: std::collections::BTreeMap::new(),
            receiving: std::collections::BTreeMap::new(),
            completing: false,
        };
        self.put(Table::Uploads, upload_id.as_str().as_bytes(), &upload)?;
        self.uploads.insert(upload_id.clone(), upload);
        Ok(Begun::Started { file_id, revision_id, upload_id, name, parent })
    }

    fn check_overwrite(&self, node: &Node, last_revision: Option<&str>) -> Result<(), ApiError> {
        let Some(newest) = node.newest() else {
            return Err(ApiError::invalid("file_id", "It is not a file."));
        };
        match last_revision {
            Some(last) if self.quirks.last_revision_lock && last != newest.revision_id.as_str() => {
                Err(ApiError::conflict("The file has a newer revision."))
            }
            _ => Ok(()),
        }
    }

    fn check_pre_hash(&self, pre_hash: &str, size: Option<u64>, new: &NewUpload) -> Result<(), ApiError> {
        let Some(sizes) = self.heads.get(pre_hash) else { return Ok(()) };
        if size.is_some_and(|size| !sizes.contains(&size)) {
            return Ok(());
        }
        let mut error = ApiError::new(409, "PreHashMatched", "Pre hash matched.");
        error.more = vec![
            ("parent_file_id", new.parent.to_string()),
            ("file_name", new.name.clone()),
            ("pre_hash", pre_hash.to_owned()),
        ];
        Err(error)
    }

    /// A revision of content that is there already.
    fn instant(&self, new: &NewUpload, now_ms: i64) -> Result<Option<Revision>, ApiError> {
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

    /// Makes a revision visible: of the file `overwrite`, or of a new file.
    pub(super) fn commit_revision(
        &mut self,
        overwrite: Option<FileId>,
        drive: &DriveId,
        parent: FileId,
        name: String,
        traits: Traits,
        mut revision: Revision,
    ) -> Result<FileId, ApiError> {
        let now_ms = revision.created_ms;
        let Some(file) = overwrite else {
            let file_id = clock::file_id(now_ms)?;
            self.insert_file(file_id.clone(), drive, parent, name, traits, revision)?;
            return Ok(file_id);
        };
        let (keeps, most) = (self.quirks.revisions, self.quirks.revisions_max.max(1) as usize);
        self.edit_revisions(&file, Op::Overwrite, now_ms, |revisions| {
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
            let own = &mut node.traits;
            own.content_type = traits.content_type.or_else(|| own.content_type.take());
            own.local_modified_at = traits.local_modified_at.or_else(|| own.local_modified_at.take());
            own.description = traits.description.or_else(|| own.description.take());
            own.user_tags.extend(traits.user_tags);
            let node = node.clone();
            self.put(Table::Nodes, file.as_str().as_bytes(), &node)?;
        }
        Ok(file)
    }

    /// Puts a new file of one revision.
    pub(super) fn insert_file(
        &mut self,
        file_id: FileId,
        drive: &DriveId,
        parent: FileId,
        name: String,
        traits: Traits,
        revision: Revision,
    ) -> Result<(), ApiError> {
        let node = Node {
            file_id,
            drive_id: drive.clone(),
            parent,
            name,
            created_ms: revision.created_ms,
            updated_ms: revision.created_ms,
            kind: Kind::File { revisions: vec![revision] },
            trashed_ms: None,
            traits,
        };
        self.insert(node, Op::Create)
    }

    /// An upload of a file, or 404.
    pub(in crate::server) fn upload(
        &self,
        drive: &DriveId,
        file: &FileId,
        upload: &UploadId,
    ) -> Result<&Upload, ApiError> {
        self.drive(drive)?;
        self.uploads
            .get(upload)
            .filter(|found| found.file_id == *file && found.drive_id == *drive)
            .ok_or_else(|| ApiError::not_found("UploadId"))
    }

    pub(in crate::server) fn uploads(&self) -> impl Iterator<Item = &Upload> {
        self.uploads.values()
    }

    /// Remembers states that came with `get_upload_url`, and says which one each part has.
    pub(in crate::server) fn declare(
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
    ) -> Result<PutStart, OssError> {
        let (quirks, quota_bytes) = (&self.quirks, self.quota_bytes);
        let upload = self
            .uploads
            .get_mut(upload)
            .filter(|upload| upload.file_id == *file && !upload.completing)
            .ok_or_else(OssError::no_upload)?;
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
                    before.end.as_deref().and_then(unhex).and_then(|end| Hasher::load(name, &end))
                }
            }
        };
        *upload.receiving.entry(part).or_default() += 1;
        Ok(PutStart { hasher: hasher.filter(|_| verify == Verify::Full), start })
    }

    /// Records a part that was received whole, in place of an earlier one.
    pub(in crate::server) fn end_part(
        &mut self,
        upload_id: &UploadId,
        number: u32,
        received: Received,
        etag: &str,
        start: Option<Midstate>,
        store: &Store,
    ) -> Result<(), ApiError> {
        let Some(upload) = self.uploads.get_mut(upload_id).filter(|upload| !upload.completing) else {
            return Err(ApiError::not_found("UploadId"));
        };
        let part = Part {
            file: received.name,
            len: received.len,
            crc64: received.crc64,
            etag: etag.to_owned(),
            start,
            end: received.end.map(|end| hex(&end)),
            head: received.head,
        };
        let old = upload.parts.insert(number, part.clone());
        self.put(Table::Parts, &part_key(upload_id, number), &part)?;
        if let Some(old) = old {
            self.change.doomed_paths.push(store.upload_dir(upload_id).join(old.file));
        }
        Ok(())
    }

    /// Drops an upload with its parts.
    pub(in crate::server) fn burn(&mut self, upload_id: &UploadId, store: &Store) {
        if self.forget_upload(upload_id).is_some() {
            self.change.doomed_paths.push(store.upload_dir(upload_id));
        }
    }

    /// Drops the records of an upload; its folder has become something else.
    pub(super) fn forget_upload(&mut self, upload_id: &UploadId) -> Option<Upload> {
        let upload = self.uploads.remove(upload_id)?;
        self.erase(Table::Uploads, upload_id.as_str().as_bytes());
        for number in upload.parts.keys() {
            self.erase(Table::Parts, &part_key(upload_id, *number));
        }
        Some(upload)
    }

    /// Drops uploads that were begun before `before_ms` and at which nobody works.
    pub(in crate::server) fn burn_old(&mut self, before_ms: i64, store: &Store) {
        let idle = |upload: &Upload| !upload.completing && upload.receiving.is_empty();
        let old: Vec<_> = self
            .uploads
            .values()
            .filter(|upload| upload.created_ms < before_ms && idle(upload))
            .map(|upload| upload.upload_id.clone())
            .collect();
        for upload in old {
            self.burn(&upload, store);
        }
    }
}

fn part_key(upload: &UploadId, number: u32) -> Vec<u8> {
    let mut key = upload.as_str().as_bytes().to_vec();
    key.push(b'/');
    key.extend_from_slice(&number.to_be_bytes());
    key
}
