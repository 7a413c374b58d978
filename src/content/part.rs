//! The bytes of one part: while it fills, and once it is frozen.
//!
//! A part lives in slabs of the budget. Where the budget has none left that would come back by
//! themselves, the rest of the part goes to an unlinked local file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::budget::{Budget, Grant, Slab};
use crate::error::{Error, ErrorKind, Result};
use crate::pds::frame::Frame;

/// Longest stored frame in bytes: what one PUT keeps in memory of a spilled part.
const STORED_FRAME_BYTES: u64 = 256 << 10;

/// What promised zeros, and gaps that a stream runs over, are made of.
pub(super) static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A part that takes more bytes.
#[derive(Debug, Default)]
pub struct Filling {
    slabs: Vec<Slab>,
    /// What came after the last slab was full and the budget had none left.
    spilled: Option<Spilled>,
    bytes: u64,
    /// How many of `bytes` are zeros at the end, of which nothing is kept. Only before the freezing.
    zeros: u64,
}

#[derive(Debug)]
struct Spilled {
    file: Arc<File>,
    bytes: u64,
}

impl Spilled {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let stored = self.file.write_all_at(bytes, self.bytes);
        stored.map_err(|e| Error::from(e).context("cannot put a part aside"))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// How much a part took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Bytes taken.
    pub bytes: usize,
    /// Memory has run out for the moment; the rest may be offered again when the budget changes.
    pub must_wait: bool,
}

impl Filling {
    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes bytes until the part has `part_bytes`. Without a `spill_dir` it never touches the disk,
    /// and the caller must come again with one.
    pub fn take(
        &mut self,
        data: &[u8],
        part_bytes: u64,
        budget: &Arc<Budget>,
        spill_dir: Option<&Path>,
    ) -> Result<Taken> {
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
            let must_wait = Taken { bytes: wanted.len() - rest.len(), must_wait: true };
            if self.spilled.is_some() {
                return Ok(must_wait);
            }
            match (budget.take(), spill_dir) {
                (Grant::Slab(slab), _) => self.slabs.push(slab),
                (Grant::Wait, _) | (Grant::Spill, None) => return Ok(must_wait),
                (Grant::Spill, Some(folder)) => {
                    self.spilled = Some(Spilled { file: Arc::new(unlinked_file(folder)?), bytes: 0 });
                }
            }
        }
        Ok(Taken { bytes: wanted.len(), must_wait: false })
    }

    /// Copies bytes `offset..` of the part into `out`, as many as there are.
    pub fn read(&self, mut offset: u64, out: &mut [u8]) -> Result<usize> {
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

    /// Changes bytes `offset..` of the part; how many of `data` it had a place for.
    pub fn patch(&mut self, mut offset: u64, data: &[u8]) -> Result<usize> {
        let mut done = 0;
        for slab in &mut self.slabs {
            let held = slab.bytes().len() as u64;
            if offset < held {
                done += slab.patch(offset as usize, &data[done..]);
                offset = 0;
            } else {
                offset -= held;
            }
        }
        if let Some(spilled) = &self.spilled {
            let count = (data.len() - done).min(spilled.bytes.saturating_sub(offset) as usize);
            spilled.file.write_all_at(&data[done..done + count], offset)?;
            done += count;
        }
        Ok(done)
    }

    /// Forgets everything from `bytes` on.
    pub fn cut(&mut self, bytes: u64) -> Result<()> {
        let mut left = bytes;
        for slab in &mut self.slabs {
            let held = slab.bytes().len() as u64;
            slab.cut(left.min(held) as usize);
            left = left.saturating_sub(held);
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

    /// Ends the part with zeros; after this it is frozen.
    pub fn add_zeros(&mut self, bytes: u64) {
        self.zeros += bytes;
        self.bytes += bytes;
    }

    /// Moves everything to the local disk, so that it may be kept for as long as it takes.
    pub fn put_aside(&mut self, spill_dir: &Path) -> Result<()> {
        if self.slabs.is_empty() && self.spilled.is_some() {
            return Ok(());
        }
        // What is here goes only when all of it is there.
        let mut aside = Spilled { file: Arc::new(unlinked_file(spill_dir)?), bytes: 0 };
        for slab in &self.slabs {
            aside.append(slab.bytes())?;
        }
        if let Some(later) = &self.spilled {
            let mut rest = vec![0; later.bytes as usize];
            later.file.read_exact_at(&mut rest, 0)?;
            aside.append(&rest)?;
        }
        self.slabs.clear();
        self.spilled = Some(aside);
        Ok(())
    }

    /// No more bytes: the frames in order.
    pub fn freeze(self) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(self.slabs.len());
        for mut slab in self.slabs {
            slab.set_on_its_way();
            frames.push(Frame::Memory(Bytes::from_owner(slab)));
        }
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

/// CRC-64/XZ of frozen frames. Blocks for local reads where they are stored.
pub fn crc64(frames: &[Frame]) -> Result<u64> {
    let mut digest = crate::crc64::digest();
    for frame in frames {
        digest.update(&frame.load()?);
    }
    Ok(digest.finalize())
}

/// A file without a name in `folder`: nothing is left behind whatever happens.
fn unlinked_file(folder: &Path) -> Result<File> {
    tempfile::tempfile_in(folder).map_err(|e| {
        let detail = format!("write buffers are full and {} takes no temporary file: {e}", folder.display());
        Error::new(ErrorKind::NoSpace, detail)
    })
}

/// Copies bytes `offset..` of frozen frames into `out`, as many as there are.
pub fn read_frames(frames: &[Frame], mut offset: u64, out: &mut [u8]) -> Result<usize> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(frames: &[Frame]) -> Vec<u8> {
        frames.iter().flat_map(|f| f.load().unwrap()).collect()
    }

    #[test]
    fn what_does_not_fit_into_memory_goes_to_disk_and_comes_back_in_order() {
        let budget = Budget::new(128, 64);
        let folder = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..300u32).map(|i| i as u8).collect();
        let mut part = Filling::default();
        let taken = part.take(&data, 256, &budget, Some(folder.path())).unwrap();
        assert_eq!(taken, Taken { bytes: 256, must_wait: false });
        assert_eq!(budget.bytes_in_use(), 128);
        let mut out = [0; 300];
        assert_eq!(part.read(100, &mut out).unwrap(), 156);
        assert_eq!(out[..156], data[100..256]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let frames = part.freeze();
        assert_eq!(bytes(&frames), data[..256]);
        assert_eq!(read_frames(&frames, 120, &mut out).unwrap(), 136);
        assert_eq!(out[..136], data[120..256]);
        drop(frames);
        assert_eq!(budget.bytes_in_use(), 0);
    }

    #[test]
    fn a_part_waits_while_another_is_on_its_way() {
        let budget = Budget::new(64, 64);
        let folder = tempfile::tempdir().unwrap();
        let mut first = Filling::default();
        first.take(&[1; 64], 64, &budget, Some(folder.path())).unwrap();
        let first = first.freeze();
        let mut second = Filling::default();
        assert_eq!(
            second.take(&[2; 64], 64, &budget, Some(folder.path())).unwrap(),
            Taken { bytes: 0, must_wait: true }
        );
        drop(first);
        assert_eq!(
            second.take(&[2; 64], 64, &budget, Some(folder.path())).unwrap(),
            Taken { bytes: 64, must_wait: false }
        );
    }

    #[test]
    fn a_part_that_is_put_aside_gives_its_memory_back() {
        let budget = Budget::new(128, 64);
        let folder = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..200u32).map(|i| i as u8).collect();
        let mut part = Filling::default();
        part.take(&data, 200, &budget, Some(folder.path())).unwrap();
        assert!(part.put_aside(Path::new("/nonexistent")).is_err());
        let mut out = [0; 200];
        assert_eq!((part.read(0, &mut out).unwrap(), &out[..]), (200, &data[..]), "lost for want of room");
        part.put_aside(folder.path()).unwrap();
        assert_eq!(budget.bytes_in_use(), 0);
        part.put_aside(folder.path()).unwrap();
        assert_eq!(bytes(&part.freeze()), data);
    }

    #[test]
    fn a_spill_folder_that_is_gone_is_no_space() {
        let budget = Budget::new(64, 64);
        let mut first = Filling::default();
        first.take(&[1; 32], 128, &budget, Some(Path::new("/nonexistent"))).unwrap();
        let error = first.take(&[1; 64], 128, &budget, Some(Path::new("/nonexistent"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
    }
}
