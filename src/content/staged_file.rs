//! A staged file: the content of a file that is not written front to back, in a sparse local file.
//!
//! It lies over a *base revision* on the drive. Ranges that were not written here are fetched from the base
//! when the file is committed. So a change of one byte in a large file downloads nothing before the commit,
//! and a file that is overwritten completely downloads nothing at all.
//!
//! ```text
//!   file    |####....####|......|      # present: on this machine      . missing
//!   base    |bbbbbbbbbbbb|             missing and below `base_bytes`: the bytes of the base
//!                                      missing above: zeros
//! ```
//!
//! The local file has no name, so a crash leaves nothing behind. All calls block for the local disk.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{FallocateFlags, fallocate};

use super::direct_io::{ALIGN_BYTES, DirectFile, is_aligned};
use super::disk_quota::{DiskQuota, Reservation};
use super::part::{FrozenPart, too_large};
use super::present_ranges::PresentRanges;
use super::reader::ReadTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{PartNumber, PartSize};
use crate::pds::part_body::Frame;

/// Longest stored frame in bytes: the memory that one PUT of a staged part needs.
const FRAME_BYTES: u64 = 256 << 10;

/// Content in a sparse local file over a base revision.
#[derive(Debug)]
pub struct StagedFile {
    file: Arc<File>,
    /// The same file without the page cache, if the file system supports it.
    direct: Option<DirectFile>,
    /// Held over reads and writes of the local file. Locked before the locks of the quota: a reservation may
    /// evict cached files and tees.
    state: Mutex<StagedState>,
}

#[derive(Debug)]
struct StagedState {
    size: u64,
    base: Option<ReadTarget>,
    /// Bytes of the base that belong to the content, from its beginning. At most `size`.
    base_bytes: u64,
    /// Ranges below `size`.
    present: PresentRanges,
    reservation: Reservation,
}

/// A piece of a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Bytes of this machine.
    Data(Bytes),
    /// A range to read from the base revision.
    Base { target: ReadTarget, offset: u64, len: u64 },
}

impl StagedFile {
    /// A staged file with the content of `base`, nothing of which is present; an empty one without a base.
    pub(super) fn new(quota: &Arc<DiskQuota>, base: Option<ReadTarget>) -> Result<Arc<Self>> {
        let file = tempfile::tempfile_in(quota.dir()).map_err(|e| {
            Error::from(e).context(format!("cannot create a staged file in {}", quota.dir().display()))
        })?;
        let size = base.as_ref().map_or(0, |base| base.size);
        file.set_len(size)?;
        let (present, reservation) = (PresentRanges::default(), quota.reservation());
        let state = StagedState { size, base, base_bytes: size, present, reservation };
        let direct = DirectFile::of(&file);
        Ok(Arc::new(Self { file: Arc::new(file), direct, state: Mutex::new(state) }))
    }

    fn lock(&self) -> MutexGuard<'_, StagedState> {
        self.state.lock()
    }

    /// Size of the content in bytes.
    pub(super) fn size(&self) -> u64 {
        self.lock().size
    }

    /// Bytes that were not written and are not of the base: holes.
    pub(super) fn zero_bytes(&self) -> u64 {
        let state = self.lock();
        state.present.missing_bytes(&(state.base_bytes..state.size))
    }

    /// Makes ranges that were written as zeros holes. For a file without a base.
    pub(super) fn forget_zeros(&self, zeros: &PresentRanges) -> Result<()> {
        let mut state = self.lock();
        for range in zeros.iter() {
            state.present.remove(range);
        }
        state.shrink_reservation()
    }

    /// Writes `data`. A gap after the old end reads as zeros. `NoSpace` changes nothing.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.lock();
        let end = offset + data.len() as u64;
        state.reserve(&(offset..end))?;
        self.file.write_all_at(data, offset)?;
        state.present.insert(offset..end);
        state.size = state.size.max(end);
        Ok(())
    }

    /// Writes a part of a tee. Evicts nothing but cached files. The caller makes no other write at the same
    /// time.
    pub(super) fn write_part(&self, part: &FrozenPart) -> Result<()> {
        let end = part.offset + part.bytes;
        self.lock().reserve_optional(&(part.offset..end))?;
        // Without the lock: a reader of earlier parts does not wait for the disk.
        let mut at = part.offset;
        let direct = self.write_direct(part)?;
        for (index, frame) in part.frames.iter().enumerate() {
            if index >= direct {
                self.file.write_all_at(&frame.load()?, at)?;
            }
            at += frame.bytes();
        }
        let mut state = self.lock();
        state.present.insert(part.offset..end);
        state.size = state.size.max(end);
        Ok(())
    }

    /// Writes the aligned frames at the beginning of a part without the page cache. Returns how many.
    fn write_direct(&self, part: &FrozenPart) -> Result<usize> {
        let Some(direct) = self.direct.as_ref().filter(|_| part.offset.is_multiple_of(ALIGN_BYTES as u64))
        else {
            return Ok(0);
        };
        let pieces: Vec<&[u8]> = part
            .frames
            .iter()
            .map_while(|frame| match frame {
                Frame::Memory(bytes) if is_aligned(bytes) => Some(&bytes[..]),
                Frame::Memory(_) | Frame::Stored { .. } => None,
            })
            .collect();
        match direct.write_all_at(&pieces, part.offset) {
            Ok(()) => Ok(pieces.len()),
            // The file system accepted `O_DIRECT` at the open and refuses it here.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => Ok(0),
            Err(e) => Err(e.into()),
        }
    }

    /// Sets the size: truncates, or extends with zeros.
    pub(super) fn truncate(&self, size: u64) -> Result<()> {
        let mut state = self.lock();
        self.file.set_len(size)?;
        state.present.remove(size..u64::MAX);
        state.base_bytes = state.base_bytes.min(size);
        state.size = size;
        state.shrink_reservation()
    }

    /// Zeroes a range, as far as the content reaches. `NoSpace` changes nothing.
    pub(super) fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let mut state = self.lock();
        let end = offset.saturating_add(len).min(state.size);
        if offset >= end {
            return Ok(());
        }
        // Zeros over the base are present. Above the base, missing ranges are zeros already.
        let over_base = offset..end.min(state.base_bytes).max(offset);
        state.reserve(&over_base)?;
        punch_hole(&self.file, offset, end - offset)?;
        state.present.remove(offset..end);
        state.present.insert(over_base);
        state.shrink_reservation()
    }

    /// The pieces of bytes `offset..offset + len`, fewer only at the end of the content.
    pub(super) fn read(&self, offset: u64, len: u64) -> Result<Vec<Piece>> {
        let state = self.lock();
        let end = offset.saturating_add(len).min(state.size);
        let (mut at, mut pieces) = (offset, Vec::new());
        while let Some((run, is_present)) = state.present.first_run(&(at..end.max(at))) {
            at = run.end;
            match &state.base {
                Some(target) if !is_present && run.start < state.base_bytes => {
                    at = run.end.min(state.base_bytes);
                    let (target, len) = (target.clone(), at - run.start);
                    pieces.push(Piece::Base { target, offset: run.start, len });
                }
                _ => {
                    let mut bytes = vec![0; (run.end - run.start) as usize];
                    self.file.read_exact_at(&mut bytes, run.start)?;
                    pieces.push(Piece::Data(bytes.into()));
                }
            }
        }
        Ok(pieces)
    }

    /// The next missing range of the base, at most `bytes_max` long: base, offset, length.
    pub(super) fn next_backfill(&self, bytes_max: u64) -> Option<(ReadTarget, u64, u64)> {
        let state = self.lock();
        let gap = state.present.first_gap(&(0..state.base_bytes))?;
        let target = state.base.clone()?;
        Some((target, gap.start, (gap.end - gap.start).min(bytes_max)))
    }

    /// The base and how many of its bytes this file has, if nothing was written or back-filled.
    pub(super) fn clone_source(&self) -> Option<(ReadTarget, u64)> {
        let state = self.lock();
        let is_untouched = state.present.bytes() == 0 && state.base_bytes == state.size;
        state.base.clone().filter(|_| is_untouched).map(|base| (base, state.size))
    }

    /// Whether no range of the base is missing.
    pub(super) fn is_complete(&self) -> bool {
        self.next_backfill(1).is_none()
    }

    /// Stores bytes of the base in the ranges that are still missing.
    pub(super) fn backfill(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.lock();
        let end = (offset + data.len() as u64).min(state.base_bytes);
        let range = offset..end.max(offset);
        state.reserve(&range)?;
        while let Some(gap) = state.present.first_gap(&range) {
            let piece = &data[(gap.start - offset) as usize..(gap.end - offset) as usize];
            self.file.write_all_at(piece, gap.start)?;
            state.present.insert(gap);
        }
        Ok(())
    }

    /// The whole content as parts, whose bytes are read when they are sent. The file must be complete.
    /// `TooLarge` if there are not enough part numbers.
    pub(super) fn parts(&self, part_size: PartSize) -> Result<Vec<FrozenPart>> {
        let size = self.lock().size;
        let (mut parts, mut number, mut offset) = (Vec::new(), Some(PartNumber::FIRST), 0);
        while offset < size || parts.is_empty() {
            let Some(this) = number else {
                return Err(too_large(part_size));
            };
            let bytes = part_size.get().min(size - offset);
            let frames = self.frames(offset, bytes);
            parts.push(FrozenPart { number: this, offset, bytes, frames });
            offset += bytes;
            number = this.next();
        }
        Ok(parts)
    }

    fn frames(&self, offset: u64, bytes: u64) -> Arc<[Frame]> {
        let starts = (offset..offset + bytes).step_by(FRAME_BYTES as usize);
        let frame = |start| Frame::Stored {
            file: self.file.clone(),
            offset: start,
            bytes: FRAME_BYTES.min(offset + bytes - start),
        };
        starts.map(frame).collect()
    }
}

impl StagedState {
    /// Reserves disk space for a range that will be present.
    fn reserve(&mut self, range: &Range<u64>) -> Result<()> {
        self.reservation.resize(self.present.bytes() + self.present.missing_bytes(range))
    }

    /// Likewise, for a tee: evicts only cached files.
    fn reserve_optional(&mut self, range: &Range<u64>) -> Result<()> {
        self.reservation.resize_optional(self.present.bytes() + self.present.missing_bytes(range))
    }

    fn shrink_reservation(&mut self) -> Result<()> {
        self.reservation.resize(self.present.bytes())
    }
}

/// Zeroes a range: by a hole, or by written zeros if the file system has no holes.
fn punch_hole(file: &File, offset: u64, len: u64) -> Result<()> {
    if i64::try_from(offset.saturating_add(len)).is_err() {
        return Err(Error::new(ErrorKind::TooLarge, "the range ends beyond the largest file offset"));
    }
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if fallocate(file, mode, offset, len).is_ok() {
        return Ok(());
    }
    let zeros = vec![0; FRAME_BYTES as usize];
    let mut at = offset;
    while at < offset + len {
        let piece = &zeros[..(offset + len - at).min(FRAME_BYTES) as usize];
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{FileId, RevisionId};
    use proptest::prelude::*;

    const FILE_BYTES: u64 = 300;

    fn base(size: u64) -> ReadTarget {
        let revision = Some(RevisionId::new("r").unwrap());
        ReadTarget {
            file_id: FileId::new("f").unwrap(),
            revision,
            size,
            sha1: None,
            crc64: None,
            changed_at: None,
        }
    }

    fn content(staged: &StagedFile, base: &[u8], offset: u64, len: u64) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in staged.read(offset, len).unwrap() {
            match piece {
                Piece::Data(bytes) => all.extend_from_slice(&bytes),
                Piece::Base { offset, len, .. } => {
                    all.extend_from_slice(&base[offset as usize..(offset + len) as usize]);
                }
            }
        }
        all
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Truncate(u64),
        Punch(u64, u64),
        Backfill(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let at = || 0..FILE_BYTES;
        let step = prop_oneof![
            (at(), prop::collection::vec(1..=255_u8, 1..60)).prop_map(|(at, data)| Step::Write(at, data)),
            at().prop_map(Step::Truncate),
            (at(), at()).prop_map(|(at, len)| Step::Punch(at, len)),
            (at(), at()).prop_map(|(at, len)| Step::Backfill(at, len)),
        ];
        prop::collection::vec(step, 0..30)
    }

    proptest! {
        #[test]
        fn staged_file_over_a_base_acts_as_a_file(
            base_bytes in prop::collection::vec(1..=255_u8, 0..200), steps in steps()
        ) {
            let dir = tempfile::tempdir().unwrap();
            let quota = DiskQuota::new(dir.path(), None, 0);
            let staged = StagedFile::new(&quota, Some(base(base_bytes.len() as u64))).unwrap();
            let mut model = base_bytes.clone();
            for step in steps {
                match step {
                    Step::Write(at, data) => {
                        staged.write(at, &data).unwrap();
                        let end = at as usize + data.len();
                        model.resize(model.len().max(end), 0);
                        model[at as usize..end].copy_from_slice(&data);
                    }
                    Step::Truncate(size) => {
                        staged.truncate(size).unwrap();
                        model.resize(size as usize, 0);
                    }
                    Step::Punch(at, len) => {
                        staged.punch(at, len).unwrap();
                        let end = (at + len).min(model.len() as u64);
                        model.get_mut(at as usize..end as usize).into_iter().for_each(|hole| hole.fill(0));
                    }
                    Step::Backfill(at, len) => {
                        let end = (at + len).min(base_bytes.len() as u64);
                        if let Some(data) = base_bytes.get(at as usize..end as usize) {
                            staged.backfill(at, data).unwrap();
                        }
                    }
                }
                prop_assert_eq!(staged.size(), model.len() as u64);
                prop_assert_eq!(content(&staged, &base_bytes, 0, u64::MAX), model.clone());
                prop_assert_eq!(quota.reserved_bytes(), staged.lock().present.bytes());
                // Only zeros count as holes; written bytes and those of the base are not zero.
                let written: u64 = model.iter().map(|byte| u64::from(*byte != 0)).sum();
                prop_assert!(staged.zero_bytes() <= model.len() as u64 - written);
            }
            while let Some((_, at, len)) = staged.next_backfill(50) {
                staged.backfill(at, &base_bytes[at as usize..(at + len) as usize]).unwrap();
            }
            let parts = staged.parts(PartSize::new(64).unwrap()).unwrap();
            let frames = parts.iter().flat_map(|part| part.frames.iter());
            let whole: Vec<u8> = frames.flat_map(|frame| frame.load().unwrap().to_vec()).collect();
            prop_assert_eq!(whole, model);
            drop(staged);
            drop(parts);
            prop_assert_eq!(quota.reserved_bytes(), 0);
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn write_over_quota_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(dir.path(), Some(10), 0);
        let staged = StagedFile::new(&quota, None).unwrap();
        staged.write(0, &[1; 10]).unwrap();
        staged.write(5, &[2; 5]).unwrap();
        assert_eq!(staged.write(8, &[3; 3]).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!((staged.size(), quota.reserved_bytes()), (10, 10));
        assert_eq!(content(&staged, &[], 0, 20), [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn too_many_parts_are_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let staged = StagedFile::new(&DiskQuota::new(dir.path(), None, 0), None).unwrap();
        staged.truncate(64 * u64::from(PartNumber::MAX) + 1).unwrap();
        let refused = staged.parts(PartSize::new(64).unwrap()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TooLarge);
    }
}
