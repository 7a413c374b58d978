//! The bytes of one part: while it fills, and after it is frozen.
//!
//! A part is stored in slabs of the buffer pool. If no slab is free and none is in flight, the rest of the
//! part spills to an unlinked local file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::buffer_pool::{Allocation, BufferPool, Slab};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{PartNumber, PartSize};
use crate::pds::part_body::Frame;
use crate::rolling_sha1::RollingSha1;
use crate::units::exact_size;

/// Longest stored frame in bytes: the memory that one PUT of a spilled part needs.
const STORED_FRAME_BYTES: u64 = 256 << 10;

/// The source of zero-fill.
pub(super) static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A complete part.
#[derive(Clone, Debug)]
pub(super) struct FrozenPart {
    pub(super) number: PartNumber,
    /// File offset in bytes.
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) frames: Arc<[Frame]>,
}

/// A part that is being filled.
#[derive(Debug, Default)]
pub(super) struct FillingPart {
    slabs: Vec<Slab>,
    /// The bytes after the slabs.
    spilled: Option<SpillFile>,
    bytes: u64,
    /// How many of `bytes` are zeros at the end. They take no memory. Set right before the part is frozen.
    zeros: u64,
}

#[derive(Debug)]
struct SpillFile {
    file: Arc<File>,
    bytes: u64,
}

impl SpillFile {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let stored = self.file.write_all_at(bytes, self.bytes);
        stored.map_err(|e| Error::from(e).context("cannot spill a write buffer to the local disk"))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// The outcome of one append to a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PartAppend {
    pub(super) bytes: usize,
    /// No memory now: the caller appends the rest after the buffer pool has changed.
    pub(super) must_wait: bool,
}

impl FillingPart {
    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends bytes until the part has `part_bytes`. Without a `spill_dir` it never touches the disk: if it
    /// has to, the caller calls again with one.
    pub(super) fn append(
        &mut self,
        data: &[u8],
        part_bytes: u64,
        buffer_pool: &Arc<BufferPool>,
        spill_dir: Option<&Path>,
    ) -> Result<PartAppend> {
        let wanted = &data[..data.len().min((part_bytes - self.bytes) as usize)];
        let mut rest = wanted;
        while !rest.is_empty() {
            if let (Some(spilled), Some(_)) = (&mut self.spilled, spill_dir) {
                spilled.append(rest)?;
                self.bytes += rest.len() as u64;
                break;
            }
            let filled = self.slabs.last_mut().map_or(0, |slab| slab.fill(rest, usize::MAX));
            self.bytes += filled as u64;
            rest = &rest[filled..];
            if rest.is_empty() {
                break;
            }
            let must_wait = PartAppend { bytes: wanted.len() - rest.len(), must_wait: true };
            if self.spilled.is_some() {
                return Ok(must_wait);
            }
            match (buffer_pool.allocate(), spill_dir) {
                (Allocation::Slab(slab), _) => self.slabs.push(slab),
                (Allocation::Wait, _) | (Allocation::Spill, None) => return Ok(must_wait),
                (Allocation::Spill, Some(dir)) => {
                    self.spilled = Some(SpillFile { file: Arc::new(unlinked_file(dir)?), bytes: 0 });
                }
            }
        }
        Ok(PartAppend { bytes: wanted.len(), must_wait: false })
    }

    /// Copies bytes `offset..` of the part into `out`. Returns how many were copied.
    pub(super) fn read(&self, mut offset: u64, out: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        for slab in &self.slabs {
            let bytes = slab.bytes();
            if offset < bytes.len() as u64 {
                let piece = &bytes[offset as usize..];
                let count = piece.len().min(out.len() - done);
                out[done..done + count].copy_from_slice(&piece[..count]);
                done += count;
                offset = 0;
            } else {
                offset -= bytes.len() as u64;
            }
        }
        if let Some(spilled) = &self.spilled {
            let count = (out.len() - done).min(spilled.bytes.saturating_sub(offset) as usize);
            spilled.file.read_exact_at(&mut out[done..done + count], offset)?;
            done += count;
        }
        Ok(done)
    }

    /// Overwrites bytes `offset..` of the part. Returns how many bytes of `data` are within the part.
    pub(super) fn patch(&mut self, mut offset: u64, data: &[u8]) -> Result<usize> {
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
        if let Some(spilled) = &self.spilled {
            let count = (data.len() - done).min(spilled.bytes.saturating_sub(offset) as usize);
            spilled.file.write_all_at(&data[done..done + count], offset)?;
            done += count;
        }
        Ok(done)
    }

    /// Truncates the part to `bytes`.
    pub(super) fn truncate(&mut self, bytes: u64) -> Result<()> {
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
            spilled.file.set_len(left)?;
            spilled.bytes = spilled.bytes.min(left);
        }
        self.bytes = self.bytes.min(bytes);
        Ok(())
    }

    /// Ends the part with zeros. The caller freezes it next.
    pub(super) fn add_zeros(&mut self, bytes: u64) {
        self.zeros += bytes;
        self.bytes += bytes;
    }

    /// Moves the slabs to the local disk and releases their memory. On failure the part is unchanged.
    pub(super) fn spill(&mut self, spill_dir: &Path) -> Result<()> {
        if self.slabs.is_empty() && self.spilled.is_some() {
            return Ok(());
        }
        let mut whole = SpillFile { file: Arc::new(unlinked_file(spill_dir)?), bytes: 0 };
        for slab in &self.slabs {
            whole.append(slab.bytes())?;
        }
        if let Some(tail) = &self.spilled {
            let mut rest = vec![0; tail.bytes as usize];
            tail.file.read_exact_at(&mut rest, 0)?;
            whole.append(&rest)?;
        }
        self.slabs.clear();
        self.spilled = Some(whole);
        Ok(())
    }

    /// The frames of the complete part, in order.
    pub(super) fn freeze(self) -> Vec<Frame> {
        let mut frames: Vec<_> = BufferPool::freeze(self.slabs).map(Frame::Memory).collect();
        if let Some(spilled) = self.spilled {
            let mut offset = 0;
            while offset < spilled.bytes {
                let bytes = STORED_FRAME_BYTES.min(spilled.bytes - offset);
                frames.push(Frame::Stored { file: spilled.file.clone(), offset, bytes });
                offset += bytes;
            }
        }
        let mut zeros = self.zeros as usize;
        while zeros > 0 {
            let piece = &ZEROS[..zeros.min(ZEROS.len())];
            frames.push(Frame::Memory(Bytes::from_static(piece)));
            zeros -= piece.len();
        }
        frames
    }
}

/// CRC-64/XZ of frames. Blocks for local reads of stored frames.
pub fn crc64(frames: &[Frame]) -> Result<u64> {
    let mut digest = crate::crc64::digest();
    for frame in frames {
        digest.update(&frame.load()?);
    }
    Ok(digest.finalize())
}

/// Continues a SHA-1 over frames. Blocks.
pub(super) fn hash_frames(mut rolling: RollingSha1, frames: &[Frame]) -> Result<RollingSha1> {
    for frame in frames {
        rolling.update(&frame.load()?);
    }
    Ok(rolling)
}

/// A file in `dir` without a name: a crash leaves nothing behind.
fn unlinked_file(dir: &Path) -> Result<File> {
    tempfile::tempfile_in(dir).map_err(|e| {
        let detail = format!(
            "write buffers are full and a temporary file cannot be created in {}: {e}; free disk space there \
             or set a larger --buffer-size",
            dir.display()
        );
        Error::new(ErrorKind::NoSpace, detail)
    })
}

/// Copies bytes `offset..` of frames into `out`. Returns how many were copied.
pub(super) fn read_frames(frames: &[Frame], mut offset: u64, out: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    for frame in frames {
        if done == out.len() {
            break;
        }
        if offset < frame.bytes() {
            let piece = frame.load()?.slice(offset as usize..);
            let count = piece.len().min(out.len() - done);
            out[done..done + count].copy_from_slice(&piece[..count]);
            done += count;
            offset = 0;
        } else {
            offset -= frame.bytes();
        }
    }
    Ok(done)
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

    fn bytes(frames: &[Frame]) -> Vec<u8> {
        frames.iter().flat_map(|f| f.load().unwrap()).collect()
    }

    #[test]
    fn overflow_spills_and_reads_back_in_order() {
        let buffer_pool = BufferPool::new(128, 64);
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..300u32).map(|i| i as u8).collect();
        let mut part = FillingPart::default();
        let appended = part.append(&data, 256, &buffer_pool, Some(dir.path())).unwrap();
        assert_eq!(appended, PartAppend { bytes: 256, must_wait: false });
        assert_eq!(buffer_pool.bytes_in_use(), 128);
        let mut out = [0; 300];
        assert_eq!(part.read(100, &mut out).unwrap(), 156);
        assert_eq!(out[..156], data[100..256]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let frames = part.freeze();
        assert_eq!(bytes(&frames), data[..256]);
        assert_eq!(read_frames(&frames, 120, &mut out).unwrap(), 136);
        assert_eq!(out[..136], data[120..256]);
        drop(frames);
        assert_eq!(buffer_pool.bytes_in_use(), 0);
    }

    #[test]
    fn append_waits_while_a_part_is_in_flight() {
        let buffer_pool = BufferPool::new(64, 64);
        let dir = tempfile::tempdir().unwrap();
        let mut first = FillingPart::default();
        first.append(&[1; 64], 64, &buffer_pool, Some(dir.path())).unwrap();
        let first = first.freeze();
        let mut second = FillingPart::default();
        assert_eq!(
            second.append(&[2; 64], 64, &buffer_pool, Some(dir.path())).unwrap(),
            PartAppend { bytes: 0, must_wait: true }
        );
        drop(first);
        assert_eq!(
            second.append(&[2; 64], 64, &buffer_pool, Some(dir.path())).unwrap(),
            PartAppend { bytes: 64, must_wait: false }
        );
    }

    #[test]
    fn spilled_part_returns_its_memory() {
        let buffer_pool = BufferPool::new(128, 64);
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..200u32).map(|i| i as u8).collect();
        let mut part = FillingPart::default();
        part.append(&data, 200, &buffer_pool, Some(dir.path())).unwrap();
        assert!(part.spill(Path::new("/nonexistent")).is_err());
        let mut out = [0; 200];
        assert_eq!(
            (part.read(0, &mut out).unwrap(), &out[..]),
            (200, &data[..]),
            "a failed spill lost bytes"
        );
        part.spill(dir.path()).unwrap();
        assert_eq!(buffer_pool.bytes_in_use(), 0);
        part.spill(dir.path()).unwrap();
        assert_eq!(bytes(&part.freeze()), data);
    }

    #[test]
    fn missing_spill_dir_is_no_space() {
        let buffer_pool = BufferPool::new(64, 64);
        let mut first = FillingPart::default();
        first.append(&[1; 32], 128, &buffer_pool, Some(Path::new("/nonexistent"))).unwrap();
        let error = first.append(&[1; 64], 128, &buffer_pool, Some(Path::new("/nonexistent"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
    }
}
