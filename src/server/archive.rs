//! The ZIP files of archives, made in memory when they are downloaded.

use hyper::Response;

use super::blobs::PartReader;
use super::call::ApiCall;
use super::catalog::ArchiveEntry;
use super::errors::{OssError, ServiceError};
use super::reply::{CHUNK_BYTES, ReplyBody, response};
use super::sign::ObjectKey;
use crate::ids::{DriveId, FileId, InvalidValue, RevisionId};

/// First part of the id of an archive in its URL. File ids are hexadecimal.
const ARCHIVE: &str = "archive-";

/// The download URL of the archive of a task.
pub(super) fn url(call: &ApiCall, drive: &DriveId, task: &str) -> Result<String, ServiceError> {
    let internal = |error: InvalidValue| ServiceError::internal(error.to_string());
    let object = ObjectKey {
        drive: drive.clone(),
        file: FileId::new(&format!("{ARCHIVE}{task}")).map_err(internal)?,
        revision: RevisionId::new("zip").map_err(internal)?,
    };
    let expires_s = call.app.clock.now_ms() / 1000 + i64::from(call.app.config.url_ttl_s);
    Ok(call.app.signer.get_url(&call.base, &object, expires_s))
}

/// The task of an archive that a URL names.
pub(super) fn task_of(object: &ObjectKey) -> Option<&str> {
    object.file.as_str().strip_prefix(ARCHIVE)
}

/// The ZIP file of a task.
pub(super) async fn download(call: &ApiCall, task: &str) -> Result<Response<ReplyBody>, OssError> {
    let missing = || OssError::new(404, "NoSuchKey", "The specified key does not exist.");
    let entries = call.app.catalog.read(|state| {
        let archive = state.archive(task).ok_or_else(missing)?;
        state.archive_entries(archive).map_err(|_| missing())
    })?;
    let zip = tokio::task::spawn_blocking(move || zip(&entries))
        .await
        .map_err(|error| OssError::internal(error.to_string()))??;
    call.app.counters.sent(zip.len() as u64);
    let headers =
        [("content-type", "application/zip".to_owned()), ("x-oss-request-id", call.request_id.clone())];
    response(200, &headers, ReplyBody::whole(zip)).map_err(|_| OssError::internal("no response"))
}

/// CRC-32 of IEEE 802.3.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1)))
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// The members that a local header and an entry of the directory share. Times are 1980, the first that the format has.
fn common_header(crc: u32, len: u32, name_len: u16) -> Vec<u8> {
    // Version 2.0, names in UTF-8, no compression, time, date.
    let mut header: Vec<u8> = [20u16, 0x0800, 0, 0, 0x21].iter().flat_map(|n| n.to_le_bytes()).collect();
    for number in [crc, len, len] {
        header.extend(number.to_le_bytes());
    }
    header.extend([name_len, 0].iter().flat_map(|n| n.to_le_bytes()));
    header
}

/// A ZIP file without compression.
fn zip(entries: &[ArchiveEntry]) -> std::io::Result<Vec<u8>> {
    let too_large = |_| std::io::Error::other("the archive is too large");
    let (mut zip, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let mut content = Vec::new();
        if let Some(blob) = &entry.blob {
            let mut reader = PartReader::of_blob(blob, 0, blob.record.size);
            while let Some(chunk) = reader.next(CHUNK_BYTES)? {
                content.extend_from_slice(&chunk);
            }
        }
        let (len, name_len) = (
            u32::try_from(content.len()).map_err(too_large)?,
            u16::try_from(entry.path.len()).map_err(too_large)?,
        );
        let start = u32::try_from(zip.len()).map_err(too_large)?;
        let header = common_header(crc32(&content), len, name_len);
        zip.extend(b"PK\x03\x04");
        zip.extend(&header);
        zip.extend(entry.path.as_bytes());
        zip.extend(content);
        // Made by version 2.0.
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(header);
        // No comment, disk 0, no attributes.
        directory.extend([0; 10]);
        directory.extend(start.to_le_bytes());
        directory.extend(entry.path.as_bytes());
    }
    let (count, start, len) = (
        u16::try_from(entries.len()).map_err(too_large)?,
        u32::try_from(zip.len()).map_err(too_large)?,
        u32::try_from(directory.len()).map_err(too_large)?,
    );
    zip.extend(directory);
    zip.extend(b"PK\x05\x06\x00\x00\x00\x00");
    zip.extend([count, count].iter().flat_map(|n| n.to_le_bytes()));
    zip.extend([len, start].iter().flat_map(|n| n.to_le_bytes()));
    zip.extend([0, 0]);
    Ok(zip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_has_its_check_value() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(b""), 0);
    }
}
