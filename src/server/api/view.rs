//! Objects in the JSON of responses.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::ids::{DriveId, FileId, RevisionId, UploadId};
use crate::pds::types::FileType;
use crate::server::app::DOMAIN_ID;
use crate::server::call::ApiCall;
use crate::server::catalog::records::{DriveRecord, Node, Revision, Upload, UploadTarget};
use crate::server::clock::rfc3339;
use crate::server::sign::ObjectKey;

/// A file or folder.
#[derive(Serialize)]
pub(super) struct FileView<'a> {
    domain_id: &'static str,
    drive_id: &'a DriveId,
    file_id: &'a FileId,
    parent_file_id: &'a str,
    name: &'a str,
    #[serde(rename = "type")]
    file_type: FileType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<u64>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_extension: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) category: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash_name: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc64_hash: Option<String>,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_created_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_modified_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trashed_at: Option<String>,
    hidden: bool,
    starred: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    labels: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) user_tags: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_meta: Option<&'a str>,
    encrypt_mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    upload_id: Option<&'a UploadId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision_id: Option<&'a RevisionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision_version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) download_url: Option<String>,
    /// The same URL; clients read either.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) thumbnail_urls: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dir_size_info: Option<DirSize>,
}

/// The number of objects below a folder.
#[derive(Serialize)]
pub(super) struct DirSize {
    pub(super) dir_count: u64,
    pub(super) file_count: u64,
}

pub(super) fn extension(name: &str) -> Option<&str> {
    name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).map(|(_, e)| e)
}

/// The category that the service derives from the extension of a name.
pub(super) fn category(name: &str) -> &'static str {
    let ending = extension(name).unwrap_or("").to_ascii_lowercase();
    match ending.as_str() {
        "jpg" | "jpeg" | "png" | "gif" | "webp" | "bmp" | "heic" | "tif" | "tiff" | "svg" => "image",
        "mp4" | "mkv" | "mov" | "avi" | "webm" | "m4v" | "ts" => "video",
        "mp3" | "flac" | "wav" | "ogg" | "m4a" | "aac" => "audio",
        "zip" | "rar" | "7z" | "gz" | "tar" | "xz" | "bz2" | "zst" => "zip",
        "doc" | "docx" | "xls" | "xlsx" | "ppt" | "pptx" | "pdf" | "txt" | "odt" | "md" => "doc",
        "apk" | "exe" | "dmg" | "msi" | "ipa" => "app",
        _ => "others",
    }
}

impl<'a> FileView<'a> {
    pub(super) fn of(call: &ApiCall, node: &'a Node) -> Self {
        let newest = node.newest();
        let is_file = newest.is_some();
        let quirks = &call.app.config.quirks;
        let hashed = newest.filter(|_| !quirks.no_hashes);
        let attrs = &node.attrs;
        Self {
            domain_id: DOMAIN_ID,
            drive_id: &node.drive_id,
            file_id: &node.file_id,
            parent_file_id: node.parent.as_str(),
            name: &node.name,
            file_type: node.file_type(),
            size: newest.map(|revision| revision.size),
            status: "available",
            content_type: is_file.then(|| attrs.content_type.as_deref().unwrap_or("application/oct-stream")),
            file_extension: extension(&node.name).filter(|_| is_file),
            category: is_file.then(|| category(&node.name)),
            content_hash: hashed.map(|revision| revision.hash.as_str()),
            content_hash_name: hashed.map(|_| quirks.hash_name.as_str()),
            crc64_hash: hashed.map(|revision| revision.crc64.to_string()),
            created_at: rfc3339(node.created_ms),
            updated_at: rfc3339(node.updated_ms),
            local_created_at: attrs.local_created_at.as_deref(),
            local_modified_at: attrs.local_modified_at.as_deref(),
            trashed_at: node.trashed_ms.map(rfc3339),
            hidden: attrs.hidden,
            starred: attrs.starred,
            description: attrs.description.as_deref(),
            labels: &attrs.labels,
            user_tags: &attrs.user_tags,
            user_meta: attrs.user_meta.as_deref(),
            encrypt_mode: "none",
            upload_id: None,
            revision_id: newest.map(|revision| &revision.revision_id),
            revision_version: newest.map(|revision| revision.version),
            download_url: None,
            url: None,
            thumbnail_urls: BTreeMap::new(),
            dir_size_info: None,
        }
    }

    /// The root folder of a drive.
    pub(super) fn of_root(
        drive: &'a DriveRecord,
        root: &'a FileId,
        none: &'a BTreeMap<String, String>,
    ) -> Self {
        Self {
            domain_id: DOMAIN_ID,
            drive_id: &drive.drive_id,
            file_id: root,
            parent_file_id: "",
            name: "root",
            file_type: FileType::Folder,
            size: None,
            status: "available",
            content_type: None,
            file_extension: None,
            category: None,
            content_hash: None,
            content_hash_name: None,
            crc64_hash: None,
            created_at: rfc3339(drive.created_ms),
            updated_at: rfc3339(drive.created_ms),
            local_created_at: None,
            local_modified_at: None,
            trashed_at: None,
            hidden: false,
            starred: false,
            description: None,
            labels: &[],
            user_tags: none,
            user_meta: None,
            encrypt_mode: "none",
            upload_id: None,
            revision_id: None,
            revision_version: None,
            download_url: None,
            url: None,
            thumbnail_urls: BTreeMap::new(),
            dir_size_info: None,
        }
    }

    /// A new file that is being uploaded, for listings with `status: uploading`.
    pub(super) fn of_upload(upload: &'a Upload) -> Option<Self> {
        let UploadTarget::New { parent, name, .. } = &upload.target else { return None };
        let attrs = &upload.attrs;
        Some(Self {
            domain_id: DOMAIN_ID,
            drive_id: &upload.drive_id,
            file_id: &upload.file_id,
            parent_file_id: parent.as_str(),
            name,
            file_type: FileType::File,
            size: upload.declared_size,
            status: "uploading",
            content_type: attrs.content_type.as_deref(),
            file_extension: extension(name),
            category: Some(category(name)),
            content_hash: None,
            content_hash_name: None,
            crc64_hash: None,
            created_at: rfc3339(upload.created_ms),
            updated_at: rfc3339(upload.created_ms),
            local_created_at: attrs.local_created_at.as_deref(),
            local_modified_at: attrs.local_modified_at.as_deref(),
            trashed_at: None,
            hidden: attrs.hidden,
            starred: attrs.starred,
            description: attrs.description.as_deref(),
            labels: &attrs.labels,
            user_tags: &attrs.user_tags,
            user_meta: attrs.user_meta.as_deref(),
            encrypt_mode: "none",
            upload_id: Some(&upload.upload_id),
            revision_id: None,
            revision_version: None,
            download_url: None,
            url: None,
            thumbnail_urls: BTreeMap::new(),
            dir_size_info: None,
        })
    }
}

impl FileView<'_> {
    pub(super) fn is_in(&self, parent: &FileId) -> bool {
        self.parent_file_id == parent.as_str()
    }
}

/// The download URL of a revision, and its expiry in Unix time.
pub(super) fn download_url(call: &ApiCall, node: &Node, revision: &Revision, ttl_s: u32) -> (String, i64) {
    let object = ObjectKey {
        drive: node.drive_id.clone(),
        file: node.file_id.clone(),
        revision: revision.revision_id.clone(),
    };
    let expires_s = call.app.clock.now_ms() / 1000 + i64::from(ttl_s);
    (call.app.signer.get_url(&call.base, &object, expires_s), expires_s)
}

/// The kind of owner of all drives.
pub(super) fn owner_type(call: &ApiCall) -> &'static str {
    if call.app.config.quirks.group_drives { "group" } else { "user" }
}

#[derive(Serialize)]
pub(super) struct DriveView<'a> {
    domain_id: &'static str,
    drive_id: &'a DriveId,
    drive_name: &'a str,
    drive_type: &'static str,
    owner: &'static str,
    owner_type: &'static str,
    creator: &'static str,
    description: &'static str,
    status: &'static str,
    total_size: i64,
    used_size: i64,
    created_at: String,
}

impl<'a> DriveView<'a> {
    pub(super) fn of(call: &ApiCall, drive: &'a DriveRecord, quota_bytes: Option<u64>) -> Self {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Self {
            domain_id: DOMAIN_ID,
            drive_id: &drive.drive_id,
            drive_name: &drive.name,
            drive_type: "normal",
            owner: "owner",
            owner_type: owner_type(call),
            creator: "system",
            description: "",
            status: "enabled",
            total_size: quota_bytes.map_or(-1, signed),
            used_size: signed(drive.used_bytes),
            created_at: rfc3339(drive.created_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn category_follows_the_extension() {
        assert_eq!(category("a.JPG"), "image");
        assert_eq!(category("a.tar.gz"), "zip");
        assert_eq!(category(".txt"), "others");
        assert_eq!(category("plain"), "others");
    }
}
