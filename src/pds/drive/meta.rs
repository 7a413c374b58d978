//! The metadata of an object of the drive, checked once when an answer arrives.

use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, RevisionId, Sha1Hash};
use crate::pds::types::{File, FileType};
use crate::posix::{self, ParsedTags, Posix, Tags};

/// Longest name of an object, in bytes (API page of `CreateFile`).
const NAME_BYTES_MAX: usize = 1024;

/// Largest size of a file, in bytes: offsets of the kernel are signed.
const SIZE_MAX: u64 = i64::MAX as u64;

/// A committed file or folder of the drive.
#[derive(Clone, PartialEq, Debug)]
pub struct FileMeta {
    pub file_id: FileId,
    /// `None` if the answer did not contain it.
    pub parent_id: Option<FileId>,
    /// The name on the drive, which may differ from the name in the mount.
    pub name: String,
    pub kind: FileType,
    /// Bytes; 0 for folders.
    pub size: u64,
    /// The modification time that the client set, else the service's.
    pub mtime: SystemTime,
    /// When the service last changed the object.
    pub changed_at: SystemTime,
    pub created_at: SystemTime,
    pub revision: Option<RevisionId>,
    /// SHA-1 of the content. `None` on domains with another hash.
    pub sha1: Option<Sha1Hash>,
    /// CRC-64/XZ of the content.
    pub crc64: Option<u64>,
    /// POSIX attributes in the tags.
    pub posix: Option<Arc<Posix>>,
}

impl FileMeta {
    /// Whether the service reports a hash of the content.
    pub(super) fn has_hash(&self) -> bool {
        self.sha1.is_some() || self.crc64.is_some()
    }

    /// Bytes of the name and of the tags.
    pub fn bytes(&self) -> u64 {
        (self.name.len() + self.posix.as_ref().map_or(0, |posix| posix.bytes())) as u64
    }

    /// The tags of an object with these attributes.
    pub fn tags(&self) -> Tags {
        posix::tags(self.posix.as_deref(), self.mtime)
    }
}

impl TryFrom<File> for FileMeta {
    type Error = Error;

    fn try_from(file: File) -> Result<Self> {
        if file.name.is_empty() || file.name.len() > NAME_BYTES_MAX {
            let detail = format!(
                "the service returned object {} with a name of {} bytes, not 1 to {NAME_BYTES_MAX}",
                file.file_id,
                file.name.len()
            );
            return Err(Error::new(ErrorKind::Protocol, detail));
        }
        if file.file_type == FileType::File && file.size.is_none_or(|size| size > SIZE_MAX) {
            let size = file.size.map_or("no size".to_owned(), |size| format!("a size of {size} bytes"));
            let detail = format!("the service returned file {} with {size}", file.file_id);
            return Err(Error::new(ErrorKind::Protocol, detail));
        }
        let is_sha1 = file.content_hash_name.as_deref().is_none_or(|n| n.eq_ignore_ascii_case("sha1"));
        let sha1 = file.content_hash.as_deref().filter(|_| is_sha1).and_then(|hex| Sha1Hash::parse(hex).ok());
        let changed_at = parse_time(file.updated_at.as_deref());
        let created_at = parse_time(file.created_at.as_deref());
        let parsed = ParsedTags::parse(file.user_tags.unwrap_or_default());
        let own_mtime = parsed.mtime(parse_time(file.local_modified_at.as_deref()));
        let mtime = own_mtime.or(changed_at).or(created_at);
        let epoch = SystemTime::UNIX_EPOCH;
        Ok(Self {
            file_id: file.file_id,
            parent_id: file.parent_file_id,
            name: file.name,
            kind: file.file_type,
            size: file.size.unwrap_or(0),
            mtime: mtime.unwrap_or(epoch),
            changed_at: changed_at.or(mtime).unwrap_or(epoch),
            created_at: created_at.or(mtime).unwrap_or(epoch),
            revision: file.revision_id,
            sha1,
            crc64: file.crc64_hash.and_then(|text| text.parse().ok()),
            posix: parsed.posix,
        })
    }
}

pub(super) fn parse_time(text: Option<&str>) -> Option<SystemTime> {
    text?.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

/// The wire form of a time: RFC 3339 UTC with milliseconds.
pub(crate) fn wire_time(time: SystemTime) -> Option<String> {
    let stamp = jiff::Timestamp::try_from(time).ok()?;
    Some(stamp.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn wire_times_have_milliseconds() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_566_370_287_292);
        assert_eq!(wire_time(time).unwrap(), "2019-08-21T06:51:27.292Z");
        assert_eq!(parse_time(Some("2019-08-21T06:51:27.292Z")), Some(time));
        assert_eq!(
            wire_time(SystemTime::UNIX_EPOCH - Duration::from_millis(1)).unwrap(),
            "1969-12-31T23:59:59.999Z"
        );
    }

    #[test]
    fn sha256_is_not_read_as_sha1() {
        let file = |name: &str| -> File {
            let hash = "A".repeat(40);
            let text = format!(
                r#"{{"file_id":"f","name":"n","type":"file","size":1,"content_hash":"{hash}","content_hash_name":"{name}"}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        assert!(FileMeta::try_from(file("sha1")).unwrap().sha1.is_some());
        assert!(FileMeta::try_from(file("sha256")).unwrap().sha1.is_none());
    }

    #[test]
    fn object_without_name_or_size_is_rejected() {
        let read = |text: &str| FileMeta::try_from(serde_json::from_str::<File>(text).unwrap());
        for wrong in [
            r#"{"file_id":"f","type":"file","size":1}"#,
            r#"{"file_id":"f","type":"file","name":"n"}"#,
            r#"{"file_id":"f","type":"file","name":"n","size":9223372036854775808}"#,
        ] {
            assert_eq!(read(wrong).unwrap_err().kind(), ErrorKind::Protocol, "{wrong}");
        }
        read(r#"{"file_id":"f","type":"file","name":"n","size":9223372036854775807}"#).unwrap();
        read(r#"{"file_id":"f","type":"folder","name":"n"}"#).unwrap();
    }
}
