//! What the daemon knows of a file or folder of the drive: checked once, here.

use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, RevisionId, Sha1Hash};
use crate::pds::types::{File, FileType};
use crate::posix::{self, Posix, Tags, Told};

/// Longest name that is accepted from a server, in bytes (API page of `CreateFile`).
const NAME_BYTES_MAX: usize = 1024;

/// A committed object of the drive.
#[derive(Clone, PartialEq, Debug)]
pub struct FileMeta {
    /// The object.
    pub file_id: FileId,
    /// The folder it is in, where the answer said so.
    pub parent_id: Option<FileId>,
    /// Its true name on the drive.
    pub name: String,
    /// File or folder.
    pub kind: FileType,
    /// Bytes; 0 for folders.
    pub size: u64,
    /// The client's modification time, else the service's.
    pub mtime: SystemTime,
    /// When the service last changed it.
    pub changed_at: SystemTime,
    /// When it came to be.
    pub created_at: SystemTime,
    /// The revision of the content.
    pub revision: Option<RevisionId>,
    /// SHA-1 of the content; absent on domains that hash otherwise.
    pub sha1: Option<Sha1Hash>,
    /// CRC-64/XZ of the content.
    pub crc64: Option<u64>,
    /// What its tags tell.
    pub posix: Option<Arc<Posix>>,
}

impl FileMeta {
    /// The tags that an object like this one has.
    pub fn tags(&self) -> Tags {
        posix::tags(self.posix.as_deref(), self.mtime)
    }
}

impl TryFrom<File> for FileMeta {
    type Error = Error;

    fn try_from(file: File) -> Result<Self> {
        if file.name.is_empty() || file.name.len() > NAME_BYTES_MAX {
            let detail = format!("the service gave {} a name of {} bytes", file.file_id, file.name.len());
            return Err(Error::new(ErrorKind::Protocol, detail));
        }
        let is_sha1 = file.content_hash_name.as_deref().is_none_or(|n| n.eq_ignore_ascii_case("sha1"));
        let sha1 = file.content_hash.as_deref().filter(|_| is_sha1).and_then(|hex| Sha1Hash::parse(hex).ok());
        let changed_at = parse_time(file.updated_at.as_deref());
        let created_at = parse_time(file.created_at.as_deref());
        let told = Told::parse(file.user_tags.unwrap_or_default());
        let own_mtime = parse_time(file.local_modified_at.as_deref()).map(|field| told.mtime_of(field));
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
            posix: told.posix,
        })
    }
}

fn parse_time(text: Option<&str>) -> Option<SystemTime> {
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
    fn times_go_over_the_wire_with_milliseconds() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_566_370_287_292);
        assert_eq!(wire_time(time).unwrap(), "2019-08-21T06:51:27.292Z");
        assert_eq!(parse_time(Some("2019-08-21T06:51:27.292Z")), Some(time));
        assert_eq!(
            wire_time(SystemTime::UNIX_EPOCH - Duration::from_millis(1)).unwrap(),
            "1969-12-31T23:59:59.999Z"
        );
    }

    #[test]
    fn sha256_is_not_taken_for_sha1() {
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
    fn a_nameless_object_is_refused() {
        let file: File = serde_json::from_str(r#"{"file_id":"f","type":"file"}"#).unwrap();
        assert_eq!(FileMeta::try_from(file).unwrap_err().kind(), ErrorKind::Protocol);
    }
}
