//! The bytes of one part: while it fills, and after it is frozen.
//!
//! A part is stored in slabs of the buffer pool. If no slab is free and none is in flight, the rest of the
//! part spills to an unlinked local file. Nothing here waits for the local disk: the caller writes that file
//! between [`FillingPart::spill_target`] and [`FillingPart::add_spilled`].

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::buffer_pool::{Allocation, BufferPool, Slab};
use super::disk_quota::{DiskQuota, Reservation};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{PartNumber, PartSize};
use crate::local_disk::LocalFile;
use crate::pds::part_body::Frame;
use crate::rolling_sha1::{RollingSha1, Sha1Midstate};
use crate::units::exact_size;

/// Bytes of one step of a hash over frames on the local disk.
const DISK_STEP_BYTES: u64 = 2 << 20;

/// A complete part.
#[derive(Clone, Debug)]
pub(super) struct FrozenPart {
    pub(super) number: PartNumber,
    /// File offset in bytes.
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) frames: Arc<[Frame]>,
}

/// A part and the midstate before it.
pub(super) type HashedPart = (FrozenPart, Sha1Midstate);

/// A part that is being filled.
#[derive(Debug, Default)]
pub(super) struct FillingPart {
    slabs: Vec<Slab>,
    /// The bytes after the slabs.
    spilled: Option<Spilled>,
    bytes: u64,
    /// How many of `bytes` are zeros at the end. They take no memory. Set right before the part is frozen.
    zeros: u64,
}

#[derive(Debug)]
struct Spilled {
    file: SpillFile,
    bytes: u64,
}

/// A local file for the bytes of one part. Its space counts against the disk quota until the file is closed.
#[derive(Clone, Debug)]
pub(super) struct SpillFile {
    file: Arc<LocalFile>,
    /// Locked for a write. Its holder waits for the local disk. The file holds it too.
    reservation: Arc<Mutex<Reservation>>,
}

impl SpillFile {
    /// A file of a user. Blocks for the local disk.
    pub(super) fn new(quota: &Arc<DiskQuota>, user: Option<u32>) -> Result<Self> {
        let (file, reservation) = quota.create_file(user, true).map_err(|e| {
            if e.kind() == ErrorKind::TooManyFiles {
                return e.context("write buffers are full");
            }
            let detail = format!(
                "write buffers are full and a temporary file cannot be created in {}: {e}; free disk space there \
                 or set a larger --buffer-size",
                quota.disk().dir().display()
            );
            Error::new(ErrorKind::NoSpace, detail)
        })?;
        Ok(Self { file, reservation })
    }

    /// `NoSpace` changes nothing. Blocks for the local disk.
    pub(super) fn write(&self, at: u64, data: &[u8]) -> Result<()> {
        let mut reservation = self.reservation.lock();
        reservation.grow(at + data.len() as u64).map_err(|e| e.context("write buffers are full"))?;
        let stored = self.file.write_all_at(data, at);
        stored.map_err(|e| Error::from(e).context("cannot spill a write buffer to the local disk"))
    }
}

/// The outcome of one append to a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PartAppend {
    pub(super) bytes: usize,
    pub(super) blocked: Option<Blocked>,
}

/// The reason why a part takes no more bytes now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Blocked {
    /// No memory now: the caller appends the rest after the buffer pool has changed.
    Memory,
    /// No memory will come: the caller spills the rest.
    Spill,
}

impl FillingPart {
    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends bytes until the part has `part_bytes`, as far as there is memory.
    pub(super) fn append(
        &mut self,
        data: &[u8],
        part_bytes: u64,
        buffer_pool: &Arc<BufferPool>,
    ) -> PartAppend {
        let wanted = &data[..data.len().min((part_bytes - self.bytes) as usize)];
        let mut rest = wanted;
        while !rest.is_empty() {
            let mut blocked = self.spilled.is_some().then_some(Blocked::Spill);
            if blocked.is_none() {
                let filled = self.slabs.last_mut().map_or(0, |slab| slab.fill(rest, usize::MAX));
                self.bytes += filled as u64;
                rest = &rest[filled..];
                if rest.is_empty() {
                    break;
                }
                blocked = match buffer_pool.allocate() {
                    Allocation::Slab(slab) => {
                        self.slabs.push(slab);
                        None
                    }
                    Allocation::Wait => Some(Blocked::Memory),
                    Allocation::Spill => Some(Blocked::Spill),
                };
            }
            if blocked.is_some() {
                return PartAppend { bytes: wanted.len() - rest.len(), blocked };
            }
        }
        PartAppend { bytes: wanted.len(), blocked: None }
    }

    /// The file that takes the next spilled bytes, and their offset in it; no file if none has spilled.
    pub(super) fn spill_target(&self) -> (Option<SpillFile>, u64) {
        self.spilled.as_ref().map_or((None, 0), |spilled| (Some(spilled.file.clone()), spilled.bytes))
    }

    /// Appends bytes that were written to the file at the offset of [`Self::spill_target`].
    pub(super) fn add_spilled(&mut self, file: SpillFile, bytes: u64) {
        self.spilled.get_or_insert(Spilled { file, bytes: 0 }).bytes += bytes;
        self.bytes += bytes;
    }

    /// Whether no byte is in memory.
    pub(super) fn is_spilled(&self) -> bool {
        self.slabs.is_empty()
    }

    /// Replaces the part by a file that has all its bytes. Releases the memory.
    pub(super) fn replace_by_file(&mut self, file: SpillFile) {
        self.slabs.clear();
        self.spilled = Some(Spilled { file, bytes: self.bytes });
    }

    /// Bytes `offset..offset + len` of the part, as far as it reaches. Bytes in memory are copied.
    pub(super) fn read(&self, mut offset: u64, mut len: u64) -> Vec<Frame> {
        let mut frames = Vec::new();
        for slab in &self.slabs {
            let bytes = slab.bytes();
            if offset < bytes.len() as u64 && len > 0 {
                let piece = &bytes[offset as usize..];
                let piece = &piece[..piece.len().min(len as usize)];
                frames.push(Frame::Memory(Bytes::copy_from_slice(piece)));
                len -= piece.len() as u64;
            }
            offset = offset.saturating_sub(bytes.len() as u64);
        }
        if let Some(spilled) = &self.spilled
            && offset < spilled.bytes
            && len > 0
        {
            let bytes = len.min(spilled.bytes - offset);
            frames.push(Frame::Stored { file: spilled.file.file.clone(), offset, bytes });
        }
        frames
    }

    /// Overwrites bytes `offset..` of the part in memory. Returns how many bytes of `data` are there: none if
    /// they begin in the spilled bytes.
    pub(super) fn patch(&mut self, mut offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for slab in &mut self.slabs {
            let slab_bytes = slab.bytes().len() as u64;
            if offset < slab_bytes {
                done += slab.patch(offset as usize, &data[done..]);
                offset = 0;
            } else {
                offset -= slab_bytes;
            }
        }
        done
    }

    /// The place of spilled bytes from `offset` of the part on: file, offset in it, length.
    pub(super) fn spilled_range(&self, offset: u64) -> Option<(Arc<LocalFile>, u64, u64)> {
        let spilled = self.spilled.as_ref()?;
        let at = offset.checked_sub(self.bytes - spilled.bytes)?;
        Some((spilled.file.file.clone(), at, spilled.bytes.checked_sub(at)?))
    }

    /// Truncates the part to `bytes`.
    pub(super) fn truncate(&mut self, bytes: u64) {
        let mut left = bytes;
        for slab in &mut self.slabs {
            let slab_bytes = slab.bytes().len() as u64;
            slab.truncate(left.min(slab_bytes) as usize);
            left = left.saturating_sub(slab_bytes);
        }
        self.slabs.retain(|slab| !slab.bytes().is_empty());
        if left == 0 {
            self.spilled = None;
        } else if let Some(spilled) = &mut self.spilled {
            // The file keeps the bytes after them until they are overwritten.
            spilled.bytes = spilled.bytes.min(left);
        }
        self.bytes = self.bytes.min(bytes);
    }

    /// Ends the part with zeros. The caller freezes it next.
    pub(super) fn add_zeros(&mut self, bytes: u64) {
        self.zeros += bytes;
        self.bytes += bytes;
    }

    /// The frames of the complete part, in order.
    pub(super) fn freeze(self) -> Vec<Frame> {
        let mut frames: Vec<_> = BufferPool::freeze(self.slabs).map(Frame::Memory).collect();
        if let Some(Spilled { file, bytes }) = self.spilled {
            frames.push(Frame::Stored { file: file.file, offset: 0, bytes });
        }
        if self.zeros > 0 {
            frames.push(Frame::Zeros(self.zeros));
        }
        frames
    }
}

/// CRC-64/XZ of frames.
pub(super) async fn crc64(frames: &[Frame]) -> Result<u64> {
    let digest = fold(frames, crate::crc64::digest(), crc_fast::Digest::update, |_| {}).await?;
    Ok(digest.finalize())
}

/// Continues a SHA-1 over frames. Reports the bytes of each step.
pub(super) async fn hash_frames(
    rolling: RollingSha1,
    frames: &[Frame],
    report: impl Fn(u64),
) -> Result<RollingSha1> {
    fold(frames, rolling, RollingSha1::update, report).await
}

/// Adds the bytes of frames to a state on other threads. If frames are stored, it goes in steps on threads of the
/// local disk, whose deadline is that of one step.
async fn fold<T: Send + 'static>(
    frames: &[Frame],
    mut state: T,
    add: fn(&mut T, &[u8]),
    report: impl Fn(u64),
) -> Result<T> {
    let end = bytes_of(frames);
    let disk = frames.iter().find_map(|frame| match frame {
        Frame::Stored { file, .. } => Some(file.disk().clone()),
        Frame::Memory(_) | Frame::Zeros(_) => None,
    });
    let Some(disk) = disk else {
        let frames = frames.to_vec();
        let aborted = |e| Error::with_source(ErrorKind::Io, "a local task was aborted", e);
        let state =
            tokio::task::spawn_blocking(move || add_all(&frames, state, add)).await.map_err(aborted)??;
        report(end);
        return Ok(state);
    };
    let mut at = 0;
    while at < end {
        let step = slice_frames(frames, at, DISK_STEP_BYTES);
        let bytes = bytes_of(&step);
        state = disk.run(move || add_all(&step, state, add)).await?;
        at += bytes;
        report(bytes);
    }
    Ok(state)
}

/// Adds the bytes of frames to a state. Blocks for the local disk if a frame is stored.
pub(super) fn add_all<T>(frames: &[Frame], mut state: T, add: impl Fn(&mut T, &[u8])) -> Result<T> {
    for frame in frames {
        frame.visit(|bytes| {
            add(&mut state, bytes);
            Ok(())
        })?;
    }
    Ok(state)
}

/// Bytes `offset..offset + len` of frames, as far as they reach.
pub(super) fn slice_frames(frames: &[Frame], mut offset: u64, mut len: u64) -> Vec<Frame> {
    let mut out = Vec::new();
    for frame in frames {
        if len == 0 {
            break;
        }
        if offset < frame.bytes() {
            let piece = frame.slice(offset, len);
            len -= piece.bytes();
            out.push(piece);
        }
        offset = offset.saturating_sub(frame.bytes());
    }
    out
}

/// Number of bytes of frames.
pub(super) fn bytes_of(frames: &[Frame]) -> u64 {
    frames.iter().map(Frame::bytes).sum()
}

/// The error of a file with more than `zero_fill_max` bytes that no program wrote.
pub(super) fn too_sparse(zeros: u64, zero_fill_max: u64) -> Error {
    let detail = format!(
        "{} that no program wrote would be uploaded as zeros, more than zero_fill_max ({}): write them, or mount \
         with a larger --zero-fill-max",
        exact_size(zeros),
        exact_size(zero_fill_max)
    );
    Error::new(ErrorKind::TooLarge, detail)
}

/// The error of a file with more bytes than its parts can carry.
pub(super) fn too_large(part_size: PartSize) -> Error {
    let detail = format!(
        "the file is larger than {} parts of {}; mount with a larger --part-size",
        PartNumber::MAX,
        exact_size(part_size.get())
    );
    Error::new(ErrorKind::TooLarge, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_disk::{FileLimits, LocalDisk};

    fn bytes(frames: &[Frame]) -> Vec<u8> {
        let mut all = Vec::new();
        for frame in frames {
            let visited = frame.visit(|bytes| {
                all.extend_from_slice(bytes);
                Ok(())
            });
            visited.unwrap();
        }
        all
    }

    /// Spills as much of `data` as the part has room for.
    fn spill(part: &mut FillingPart, data: &[u8], part_bytes: u64, quota: &Arc<DiskQuota>) {
        let (file, at) = part.spill_target();
        let file = file.unwrap_or_else(|| SpillFile::new(quota, None).unwrap());
        let data = &data[..data.len().min((part_bytes - part.bytes()) as usize)];
        file.write(at, data).unwrap();
        part.add_spilled(file, data.len() as u64);
    }

    #[test]
    fn overflow_spills_and_reads_back_in_order() {
        let buffer_pool = BufferPool::new(128, 64);
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), None, 0);
        let mut data: Vec<u8> = (0..300u32).map(|i| i as u8).collect();
        let mut part = FillingPart::default();
        let appended = part.append(&data, 256, &buffer_pool);
        assert_eq!(appended, PartAppend { bytes: 128, blocked: Some(Blocked::Spill) });
        assert!(part.spilled_range(128).is_none());
        spill(&mut part, &data[128..200], 256, &quota);
        assert_eq!(
            part.append(&data[200..], 256, &buffer_pool),
            PartAppend { bytes: 0, blocked: Some(Blocked::Spill) }
        );
        spill(&mut part, &data[200..], 256, &quota);
        assert_eq!(part.append(&data, 256, &buffer_pool), PartAppend { bytes: 0, blocked: None });
        assert_eq!((buffer_pool.bytes_in_use(), part.bytes()), (128, 256));
        assert_eq!(bytes(&part.read(100, 300)), data[100..256]);
        assert_eq!(bytes(&part.read(200, 9)), data[200..209]);
        assert!(part.read(256, 1).is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!((part.patch(127, b"ab"), part.patch(128, b"b")), (1, 0));
        let (file, at, len) = part.spilled_range(128).unwrap();
        assert_eq!((at, len), (0, 128));
        file.write_all_at(b"b", at).unwrap();
        data[127..129].copy_from_slice(b"ab");
        let frames = part.freeze();
        assert_eq!(bytes(&frames), data[..256]);
        assert_eq!(bytes(&slice_frames(&frames, 120, 1000)), data[120..256]);
        assert_eq!(bytes(&slice_frames(&frames, 126, 3)), data[126..129]);
        drop(frames);
        assert_eq!(buffer_pool.bytes_in_use(), 0);
    }

    #[test]
    fn append_waits_while_a_part_is_in_flight() {
        let buffer_pool = BufferPool::new(64, 64);
        let mut first = FillingPart::default();
        first.append(&[1; 64], 64, &buffer_pool);
        let first = first.freeze();
        let mut second = FillingPart::default();
        assert_eq!(
            second.append(&[2; 64], 64, &buffer_pool),
            PartAppend { bytes: 0, blocked: Some(Blocked::Memory) }
        );
        drop(first);
        assert_eq!(second.append(&[2; 64], 64, &buffer_pool), PartAppend { bytes: 64, blocked: None });
    }

    #[test]
    fn spilled_part_returns_its_memory() {
        let buffer_pool = BufferPool::new(128, 64);
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), None, 0);
        let data: Vec<u8> = (0..200u32).map(|i| i as u8).collect();
        let mut part = FillingPart::default();
        part.append(&data, 200, &buffer_pool);
        spill(&mut part, &data[128..], 200, &quota);
        assert!(!part.is_spilled());
        let whole = SpillFile::new(&quota, None).unwrap();
        whole.write(0, &bytes(&part.read(0, 200))).unwrap();
        part.replace_by_file(whole);
        assert!(part.is_spilled());
        assert_eq!(buffer_pool.bytes_in_use(), 0);
        part.truncate(150);
        spill(&mut part, &data[150..], 200, &quota);
        assert_eq!(bytes(&part.freeze()), data);
    }

    #[test]
    fn zeros_take_one_frame() {
        let mut part = FillingPart::default();
        part.append(b"abc", 1 << 30, &BufferPool::new(64, 64));
        part.add_zeros((1 << 30) - 3);
        let frames = part.freeze();
        assert_eq!((frames.len(), bytes_of(&frames)), (2, 1 << 30));
        assert_eq!(bytes(&slice_frames(&frames, 1, 5)), b"bc\0\0\0");
    }

    #[test]
    fn missing_spill_dir_is_no_space() {
        let dir = std::path::Path::new("/nonexistent");
        let disk = LocalDisk::new(dir, std::time::Duration::ZERO, FileLimits::NONE);
        let quota = DiskQuota::new(disk, None, 0);
        assert_eq!(SpillFile::new(&quota, None).unwrap_err().kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn spilled_bytes_count_against_the_quota() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), Some(100), 0);
        let (one, two) = (SpillFile::new(&quota, None).unwrap(), SpillFile::new(&quota, None).unwrap());
        one.write(0, &[1; 60]).unwrap();
        assert_eq!(two.write(0, &[2; 41]).unwrap_err().kind(), ErrorKind::NoSpace);
        two.write(0, &[2; 40]).unwrap();
        // Bytes that are written again count once.
        one.write(30, &[3; 30]).unwrap();
        assert_eq!(quota.reserved_bytes(), 100);
        let mut part = FillingPart::default();
        part.add_spilled(one, 60);
        let frames = part.freeze();
        drop(two);
        quota.disk().wait_closed();
        assert_eq!(quota.reserved_bytes(), 60, "a part in flight has its file");
        drop(frames);
        quota.disk().wait_closed();
        assert_eq!(quota.reserved_bytes(), 0);
    }
}
