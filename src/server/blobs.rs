//! Bytes on disk.
//!
//! An upload is a folder of part files, a blob is such a folder under the name of its hash:
//! completing an upload is one rename, and no byte is written or read twice. A part file is
//! written under its final name, which no other reception ever has; a part exists when the
//! catalog names its file. Whatever the catalog does not name is swept at the next start.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use md5::Md5;
use sha1::{Digest as _, Sha1};

use super::catalog::journal::{remove, sync_dir};
use super::catalog::records::BlobRecord;
use super::clock::hex;
use super::digest::Hasher;
use crate::crc64;
use crate::ids::UploadId;

/// Bytes whose hash is the `pre_hash` of a file.
pub(super) const PRE_HASH_BYTES: usize = 1024;

/// Where uploads and blobs are.
#[derive(Debug)]
pub(super) struct Store {
    uploads: PathBuf,
    blobs: PathBuf,
    fsync: bool,
    /// Makes the names of part files unique; begins anew with every start of the server, after
    /// the time of which it carries in its upper bits.
    receptions: AtomicU64,
}

impl Store {
    /// Opens or makes the folders.
    pub(super) fn open(data_dir: &Path, fsync: bool, now_ms: i64) -> io::Result<Self> {
        let (uploads, blobs) = (data_dir.join("uploads"), data_dir.join("blobs"));
        fs::create_dir_all(&uploads)?;
        fs::create_dir_all(&blobs)?;
        let receptions = AtomicU64::new(now_ms.unsigned_abs() << 20);
        Ok(Self { uploads, blobs, fsync, receptions })
    }

    /// The folder of an upload's parts.
    pub(super) fn upload_dir(&self, upload: &UploadId) -> PathBuf {
        self.uploads.join(upload.as_str())
    }

    /// Makes the folder of a new upload.
    pub(super) fn begin_upload(&self, upload: &UploadId) -> io::Result<()> {
        fs::create_dir(self.upload_dir(upload))
    }

    /// Opens a file for one reception of a part.
    pub(super) fn begin_part(&self, upload: &UploadId, part: u32, checks: Checks) -> io::Result<PartSink> {
        let reception = self.receptions.fetch_add(1, Ordering::Relaxed);
        let name = format!("{upload}.{part:05}.{reception:x}");
        let path = self.upload_dir(upload).join(&name);
        let file = File::create_new(&path)?;
        let crc = crc64::digest();
        let head = (part == 1).then(Vec::new);
        Ok(PartSink { file: Some(file), path, name, crc, head, checks, len: 0, fsync: self.fsync })
    }

    /// Removes a part file that was received in vain.
    pub(super) fn discard(&self, upload: &UploadId, part: &Received) {
        remove(&self.upload_dir(upload).join(&part.name));
    }

    /// Makes an upload's folder the folder of a blob and says where that is.
    pub(super) fn promote(&self, upload: &UploadId, hash: &str) -> io::Result<String> {
        let dir = format!("{}/{hash}-{}", &hash[..2], &upload.as_str()[..8.min(upload.as_str().len())]);
        let target = self.blobs.join(&dir);
        fs::create_dir_all(self.blobs.join(&hash[..2]))?;
        fs::rename(self.upload_dir(upload), &target)?;
        if self.fsync {
            sync_dir(&self.blobs.join(&hash[..2]))?;
            sync_dir(&self.blobs)?;
            sync_dir(&self.uploads)?;
        }
        Ok(dir)
    }

    /// The blob of a record.
    pub(super) fn blob(&self, record: BlobRecord) -> Arc<Blob> {
        let dir = self.blobs.join(&record.dir);
        Arc::new(Blob { record, dir, doomed: AtomicBool::new(false) })
    }

    /// Removes what the catalog does not know, and takes back uploads whose `complete` was cut
    /// between the rename and the record.
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
                let cut = owner(&blob.path())?
                    .filter(|id| uploads.contains_key(id) && !self.upload_dir(id).exists());
                match cut {
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

/// The upload that a folder of part files came from; its id begins the name of each file.
fn owner(dir: &Path) -> io::Result<Option<UploadId>> {
    let Some(first) = fs::read_dir(dir)?.next() else { return Ok(None) };
    let name = first?.file_name().to_string_lossy().into_owned();
    Ok(name.split('.').next().and_then(|id| UploadId::new(id).ok()))
}

/// What is computed while a part is received.
#[derive(Default)]
pub(super) struct Checks {
    /// Continues from the state before the part.
    pub(super) hasher: Option<Hasher>,
    /// For `Content-MD5`.
    pub(super) md5: Option<Md5>,
}

/// A part file being written. Dropped before [`PartSink::finish`] it takes its file along.
pub(super) struct PartSink {
    file: Option<File>,
    path: PathBuf,
    name: String,
    crc: crc_fast::Digest,
    /// The first KiB, of part 1.
    head: Option<Vec<u8>>,
    checks: Checks,
    len: u64,
    fsync: bool,
}

/// A part file that is whole.
pub(super) struct Received {
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) crc64: u64,
    /// State of the hasher after the part.
    pub(super) end: Option<Vec<u8>>,
    pub(super) md5: Option<Vec<u8>>,
    /// SHA-1 of the first KiB, of part 1.
    pub(super) head: Option<String>,
}

impl PartSink {
    /// Takes the next bytes of the body.
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

    /// Ends the body. The file stays.
    pub(super) fn finish(mut self) -> io::Result<Received> {
        if let Some(file) = &self.file
            && self.fsync
        {
            file.sync_data()?;
            sync_dir(self.path.parent().unwrap_or(&self.path))?;
        }
        self.file = None;
        let checks = std::mem::take(&mut self.checks);
        Ok(Received {
            name: std::mem::take(&mut self.name),
            len: self.len,
            crc64: self.crc.finalize(),
            end: checks.hasher.map(|hasher| hasher.save()),
            md5: checks.md5.map(|md5| md5.finalize().to_vec()),
            head: self.head.take().map(|head| hex(&Sha1::digest(&head)).to_uppercase()),
        })
    }
}

impl Drop for PartSink {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            remove(&self.path);
        }
    }
}

/// The content of revisions. Its folder goes when it was doomed and nobody reads it any more.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) record: BlobRecord,
    dir: PathBuf,
    doomed: AtomicBool,
}

impl Blob {
    /// Where a file of the folder is.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Lets the folder be removed. Only for blobs that the catalog has forgotten on disk.
    pub(super) fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        if *self.doomed.get_mut() {
            remove(&self.dir);
        }
    }
}

/// Reads a stretch of part files from front to back.
pub(super) struct Reader {
    dir: PathBuf,
    /// Remaining files with the stretch of each.
    todo: std::vec::IntoIter<(String, u64, u64)>,
    /// The file being read and how many bytes of it are left.
    open: Option<(File, u64)>,
    /// Keeps the folder.
    _blob: Option<Arc<Blob>>,
}

impl Reader {
    /// Reads bytes `from..to` of a blob.
    pub(super) fn of_blob(blob: &Arc<Blob>, from: u64, to: u64) -> Self {
        let parts = blob.record.parts.iter().map(|(name, len)| (name.as_str(), *len));
        Self { _blob: Some(Arc::clone(blob)), ..Self::of_parts(&blob.dir, parts, from, to) }
    }

    /// Reads bytes `from..to` of the files `parts` in `dir`, given with their lengths.
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

    /// The next at most `bytes_max` bytes; none at the end.
    pub(super) fn next(&mut self, bytes_max: usize) -> io::Result<Option<Bytes>> {
        loop {
            if let Some((file, left)) = &mut self.open
                && *left > 0
            {
                let len = usize::try_from(*left).map_or(bytes_max, |left| left.min(bytes_max));
                // Reads into memory that was not written before; `vec![0; len]` would cost a pass.
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

    fn store() -> (tempfile::TempDir, Store, UploadId) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), false, 0).unwrap();
        let upload = UploadId::new("0123456789ABCDEF0123456789ABCDEF").unwrap();
        store.begin_upload(&upload).unwrap();
        (dir, store, upload)
    }

    fn part(store: &Store, upload: &UploadId, number: u32, bytes: &[u8]) -> Received {
        let mut sink = store.begin_part(upload, number, Checks::default()).unwrap();
        sink.write(bytes).unwrap();
        sink.finish().unwrap()
    }

    #[test]
    fn parts_read_back_as_one_stretch() {
        let (_dir, store, upload) = store();
        let parts = [part(&store, &upload, 1, b"hello "), part(&store, &upload, 2, b"world")];
        let files: Vec<_> = parts.iter().map(|p| (p.name.as_str(), p.len)).collect();
        for (from, to) in [(0, 11), (3, 8), (6, 11), (0, 0), (10, 11)] {
            let mut reader = Reader::of_parts(&store.upload_dir(&upload), files.iter().copied(), from, to);
            let mut all = Vec::new();
            while let Some(chunk) = reader.next(4).unwrap() {
                all.extend_from_slice(&chunk);
            }
            assert_eq!(all, &b"hello world"[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()]);
        }
    }

    #[test]
    fn a_part_that_was_cut_leaves_nothing() {
        let (_dir, store, upload) = store();
        let mut sink = store.begin_part(&upload, 1, Checks::default()).unwrap();
        sink.write(b"half").unwrap();
        drop(sink);
        assert_eq!(fs::read_dir(store.upload_dir(&upload)).unwrap().count(), 0);
    }

    #[test]
    fn the_sweep_takes_back_a_cut_complete_and_removes_orphans() {
        let (_dir, store, upload) = store();
        let kept = part(&store, &upload, 1, b"kept");
        let orphan = part(&store, &upload, 1, b"an older reception");
        let promoted = store.promote(&upload, "AB00").unwrap();
        let known = HashMap::from([(upload.clone(), vec![kept.name.clone()])]);
        store.sweep(&|_| false, &known).unwrap();
        assert!(!store.blobs.join(&promoted).exists());
        assert!(store.upload_dir(&upload).join(&kept.name).exists());
        assert!(!store.upload_dir(&upload).join(&orphan.name).exists());
        store.sweep(&|_| false, &HashMap::new()).unwrap();
        assert!(!store.upload_dir(&upload).exists());
    }

    #[test]
    fn a_doomed_blob_stays_while_it_is_read() {
        let (_dir, store, upload) = store();
        let only = part(&store, &upload, 1, b"bytes");
        let dir = store.promote(&upload, "CD11").unwrap();
        let blob = store.blob(BlobRecord {
            hash: "CD11".into(),
            size: 5,
            crc64: 0,
            pre_hash: String::new(),
            dir: dir.clone(),
            parts: vec![(only.name, 5)],
        });
        let mut reader = Reader::of_blob(&blob, 0, 5);
        blob.doom();
        drop(blob);
        assert_eq!(reader.next(9).unwrap().unwrap(), "bytes");
        drop(reader);
        assert!(!store.blobs.join(&dir).exists());
    }
}
