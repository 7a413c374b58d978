//! The bytes on disk.
//!
//! An upload session is a folder of part files; a blob is such a folder under the name of its hash.
//! Completing an upload is one rename: no byte is written or read twice. Every request that sends a part
//! writes a file with a unique, final name. A part exists once the catalog names its file. The next start
//! removes unnamed files.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use md5::Md5;
use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use super::clock::hex;
use super::digest::Hasher;
use super::disk::{create_private_dir, make_private, private_file, remove, sync_dir};
use crate::crc64;
use crate::ids::UploadId;

/// Bytes whose hash is the `pre_hash` of a file.
pub(super) const PRE_HASH_BYTES: usize = 1024;

/// The stored form of a blob: the concatenation of its files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct BlobRecord {
    pub(super) hash: String,
    pub(super) size: u64,
    pub(super) crc64: u64,
    /// SHA-1 of the first KiB.
    pub(super) pre_hash: String,
    /// Its folder, relative to the folder of all blobs.
    pub(super) dir: String,
    /// Names and lengths of its files.
    pub(super) parts: Vec<(String, u64)>,
}

/// The folders of uploads and blobs.
#[derive(Debug)]
pub(super) struct BlobStore {
    uploads: PathBuf,
    blobs: PathBuf,
    fsync: bool,
    /// Makes the names of part files unique. The upper bits hold the start time of the server, so names are
    /// unique across restarts.
    part_file_counter: AtomicU64,
}

impl BlobStore {
    /// Makes missing folders.
    pub(super) fn open(data_dir: &Path, fsync: bool, now_ms: i64) -> io::Result<Self> {
        let (uploads, blobs) = (data_dir.join("uploads"), data_dir.join("blobs"));
        for dir in [&uploads, &blobs] {
            create_private_dir(dir)?;
            make_private(dir)?;
        }
        let part_file_counter = AtomicU64::new(now_ms.unsigned_abs() << 20);
        Ok(Self { uploads, blobs, fsync, part_file_counter })
    }

    pub(super) fn upload_dir(&self, upload: &UploadId) -> PathBuf {
        self.uploads.join(upload.as_str())
    }

    pub(super) fn create_upload_dir(&self, upload: &UploadId) -> io::Result<()> {
        create_private_dir(&self.upload_dir(upload))
    }

    /// Creates the file for one request that sends a part.
    pub(super) fn create_part(
        &self,
        upload: &UploadId,
        part: u32,
        checks: PartHashers,
    ) -> io::Result<PartWriter> {
        let number = self.part_file_counter.fetch_add(1, Ordering::Relaxed);
        let name = format!("{upload}.{part:05}.{number:x}");
        let path = self.upload_dir(upload).join(&name);
        let file = private_file().create_new(true).open(&path)?;
        let crc = crc64::digest();
        let head = (part == 1).then(Vec::new);
        Ok(PartWriter { file: Some(file), path, name, crc, head, checks, len: 0, fsync: self.fsync })
    }

    /// Removes the file of a rejected part.
    pub(super) fn remove_part(&self, upload: &UploadId, part: &PartFile) {
        remove(&self.upload_dir(upload).join(&part.name));
    }

    /// Turns the folder of an upload into the folder of a blob. Returns its path relative to the blobs.
    pub(super) fn move_to_blobs(&self, upload: &UploadId, hash: &str) -> io::Result<String> {
        let dir = format!("{}/{hash}-{}", &hash[..2], &upload.as_str()[..8.min(upload.as_str().len())]);
        let target = self.blobs.join(&dir);
        create_private_dir(&self.blobs.join(&hash[..2]))?;
        fs::rename(self.upload_dir(upload), &target)?;
        if self.fsync {
            sync_dir(&self.blobs.join(&hash[..2]))?;
            sync_dir(&self.blobs)?;
            sync_dir(&self.uploads)?;
        }
        Ok(dir)
    }

    pub(super) fn blob(&self, record: BlobRecord) -> Arc<Blob> {
        let dir = self.blobs.join(&record.dir);
        Arc::new(Blob { record, dir, remove_on_drop: AtomicBool::new(false) })
    }

    /// Removes folders and files that are not in the catalog. Restores uploads whose `complete` was
    /// interrupted between the rename and the record: `uploads` holds the part files of each.
    pub(super) fn sweep(
        &self,
        blobs: &dyn Fn(&str) -> bool,
        uploads: &HashMap<UploadId, Vec<String>>,
    ) -> io::Result<()> {
        for first in fs::read_dir(&self.blobs)? {
            let first = first?.file_name();
            for blob in fs::read_dir(self.blobs.join(&first))? {
                let blob = blob?;
                let name = format!("{}/{}", first.to_string_lossy(), blob.file_name().to_string_lossy());
                if blobs(&name) {
                    continue;
                }
                let interrupted = upload_of(&blob.path())?
                    .filter(|id| uploads.contains_key(id) && !self.upload_dir(id).exists());
                match interrupted {
                    Some(upload) => fs::rename(blob.path(), self.upload_dir(&upload))?,
                    None => remove(&blob.path()),
                }
            }
        }
        for upload in fs::read_dir(&self.uploads)? {
            let upload = upload?;
            let id = UploadId::new(&upload.file_name().to_string_lossy()).ok();
            match id.and_then(|id| uploads.get(&id)) {
                None => remove(&upload.path()),
                Some(known) => sweep_parts(&upload.path(), known)?,
            }
        }
        Ok(())
    }
}

fn sweep_parts(dir: &Path, known: &[String]) -> io::Result<()> {
    for part in fs::read_dir(dir)? {
        let part = part?;
        if !known.iter().any(|name| part.file_name() == name.as_str()) {
            remove(&part.path());
        }
    }
    Ok(())
}

/// The upload that wrote the part files in a folder. Their names begin with its id.
fn upload_of(dir: &Path) -> io::Result<Option<UploadId>> {
    let Some(first) = fs::read_dir(dir)?.next() else { return Ok(None) };
    let name = first?.file_name().to_string_lossy().into_owned();
    Ok(name.split('.').next().and_then(|id| UploadId::new(id).ok()))
}

/// The hashes of a part in progress, besides its CRC-64.
#[derive(Default)]
pub(super) struct PartHashers {
    /// Continues from the midstate before the part.
    pub(super) hasher: Option<Hasher>,
    /// For `Content-MD5`.
    pub(super) md5: Option<Md5>,
}

/// A part file being written. A drop before [`PartWriter::finish`] removes the file.
pub(super) struct PartWriter {
    file: Option<File>,
    path: PathBuf,
    name: String,
    crc: crc_fast::Digest,
    /// The first KiB of part 1.
    head: Option<Vec<u8>>,
    checks: PartHashers,
    len: u64,
    fsync: bool,
}

/// A complete part file.
pub(super) struct PartFile {
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) crc64: u64,
    /// State of the content hash after the part.
    pub(super) end: Option<Vec<u8>>,
    pub(super) md5: Option<Vec<u8>>,
    /// SHA-1 of the first KiB of part 1.
    pub(super) head: Option<String>,
}

impl PartWriter {
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        }
        self.crc.update(bytes);
        if let Some(hasher) = &mut self.checks.hasher {
            hasher.update(bytes);
        }
        if let Some(md5) = &mut self.checks.md5 {
            md5.update(bytes);
        }
        if let Some(head) = &mut self.head
            && head.len() < PRE_HASH_BYTES
        {
            head.extend_from_slice(&bytes[..bytes.len().min(PRE_HASH_BYTES - head.len())]);
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Keeps the file and returns its hashes.
    pub(super) fn finish(mut self) -> io::Result<PartFile> {
        if let Some(file) = &self.file
            && self.fsync
        {
            file.sync_data()?;
            sync_dir(self.path.parent().unwrap_or(&self.path))?;
        }
        self.file = None;
        let checks = std::mem::take(&mut self.checks);
        Ok(PartFile {
            name: std::mem::take(&mut self.name),
            len: self.len,
            crc64: self.crc.finalize(),
            end: checks.hasher.map(|hasher| hasher.save()),
            md5: checks.md5.map(|md5| md5.finalize().to_vec()),
            head: self.head.take().map(|head| hex(&Sha1::digest(&head)).to_uppercase()),
        })
    }
}

impl Drop for PartWriter {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            remove(&self.path);
        }
    }
}

/// The content of one or more revisions. After [`Blob::remove_when_unused`] the last drop removes its folder,
/// so a running download can read to its end.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) record: BlobRecord,
    dir: PathBuf,
    remove_on_drop: AtomicBool,
}

impl Blob {
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Only for blobs whose record was deleted on disk.
    pub(super) fn remove_when_unused(&self) {
        self.remove_on_drop.store(true, Ordering::Release);
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        if *self.remove_on_drop.get_mut() {
            remove(&self.dir);
        }
    }
}

/// Reads a range of concatenated part files from front to back.
pub(super) struct PartReader {
    dir: PathBuf,
    /// Remaining files with start and end of the range in each.
    todo: std::vec::IntoIter<(String, u64, u64)>,
    /// The current file and its remaining bytes.
    open: Option<(File, u64)>,
    /// Keeps the folder of the blob from being removed.
    _blob: Option<Arc<Blob>>,
}

impl PartReader {
    /// Reads bytes `from..to` of a blob.
    pub(super) fn of_blob(blob: &Arc<Blob>, from: u64, to: u64) -> Self {
        let parts = blob.record.parts.iter().map(|(name, len)| (name.as_str(), *len));
        Self { _blob: Some(Arc::clone(blob)), ..Self::of_parts(&blob.dir, parts, from, to) }
    }

    /// Reads bytes `from..to` of the files `parts` in `dir`. `parts` holds names and lengths.
    pub(super) fn of_parts<'a>(
        dir: &Path,
        parts: impl Iterator<Item = (&'a str, u64)>,
        from: u64,
        to: u64,
    ) -> Self {
        let mut start = 0;
        let mut todo = Vec::new();
        for (name, len) in parts {
            let (begin, end) = (from.max(start), to.min(start + len));
            if begin < end {
                todo.push((name.to_owned(), begin - start, end - start));
            }
            start += len;
        }
        Self { dir: dir.to_owned(), todo: todo.into_iter(), open: None, _blob: None }
    }

    /// The next bytes, at most `bytes_max`; `None` at the end.
    pub(super) fn next(&mut self, bytes_max: usize) -> io::Result<Option<Bytes>> {
        loop {
            if let Some((file, left)) = &mut self.open
                && *left > 0
            {
                let len = usize::try_from(*left).map_or(bytes_max, |left| left.min(bytes_max));
                // Avoids the zeroing of `vec![0; len]`.
                let mut chunk = Vec::with_capacity(len);
                file.take(len as u64).read_to_end(&mut chunk)?;
                if chunk.len() < len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *left -= len as u64;
                return Ok(Some(chunk.into()));
            }
            let Some((name, begin, end)) = self.todo.next() else { return Ok(None) };
            let mut file = File::open(self.dir.join(name))?;
            if begin > 0 {
                file.seek(io::SeekFrom::Start(begin))?;
            }
            self.open = Some((file, end - begin));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, BlobStore, UploadId) {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path(), false, 0).unwrap();
        let upload = UploadId::new("0123456789ABCDEF0123456789ABCDEF").unwrap();
        store.create_upload_dir(&upload).unwrap();
        (dir, store, upload)
    }

    fn part(store: &BlobStore, upload: &UploadId, number: u32, bytes: &[u8]) -> PartFile {
        let mut sink = store.create_part(upload, number, PartHashers::default()).unwrap();
        sink.write(bytes).unwrap();
        sink.finish().unwrap()
    }

    #[test]
    fn parts_are_read_as_one_range() {
        let (_dir, store, upload) = store();
        let parts = [part(&store, &upload, 1, b"hello "), part(&store, &upload, 2, b"world")];
        let files: Vec<_> = parts.iter().map(|p| (p.name.as_str(), p.len)).collect();
        for (from, to) in [(0, 11), (3, 8), (6, 11), (0, 0), (10, 11)] {
            let mut reader =
                PartReader::of_parts(&store.upload_dir(&upload), files.iter().copied(), from, to);
            let mut all = Vec::new();
            while let Some(chunk) = reader.next(4).unwrap() {
                all.extend_from_slice(&chunk);
            }
            assert_eq!(all, &b"hello world"[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()]);
        }
    }

    #[test]
    fn truncated_part_leaves_no_file() {
        let (_dir, store, upload) = store();
        let mut sink = store.create_part(&upload, 1, PartHashers::default()).unwrap();
        sink.write(b"half").unwrap();
        drop(sink);
        assert_eq!(fs::read_dir(store.upload_dir(&upload)).unwrap().count(), 0);
    }

    #[test]
    fn sweep_restores_an_interrupted_complete() {
        let (_dir, store, upload) = store();
        let kept = part(&store, &upload, 1, b"kept");
        let superseded = part(&store, &upload, 1, b"an earlier request");
        let promoted = store.move_to_blobs(&upload, "AB00").unwrap();
        let known = HashMap::from([(upload.clone(), vec![kept.name.clone()])]);
        store.sweep(&|_| false, &known).unwrap();
        assert!(!store.blobs.join(&promoted).exists());
        assert!(store.upload_dir(&upload).join(&kept.name).exists());
        assert!(!store.upload_dir(&upload).join(&superseded.name).exists());
        store.sweep(&|_| false, &HashMap::new()).unwrap();
        assert!(!store.upload_dir(&upload).exists());
    }

    #[test]
    fn deleted_blob_stays_while_it_is_read() {
        let (_dir, store, upload) = store();
        let only = part(&store, &upload, 1, b"bytes");
        let dir = store.move_to_blobs(&upload, "CD11").unwrap();
        let blob = store.blob(BlobRecord {
            hash: "CD11".into(),
            size: 5,
            crc64: 0,
            pre_hash: String::new(),
            dir: dir.clone(),
            parts: vec![(only.name, 5)],
        });
        let mut reader = PartReader::of_blob(&blob, 0, 5);
        blob.remove_when_unused();
        drop(blob);
        assert_eq!(reader.next(9).unwrap().unwrap(), "bytes");
        drop(reader);
        assert!(!store.blobs.join(&dir).exists());
    }
}
