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
//! The local file has no name, so a crash leaves nothing behind. Changes block for the local disk. Reads only
//! plan: they return the places of the bytes.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{FallocateFlags, fallocate};

use super::direct_io::{ALIGN_BYTES, DirectFile, is_aligned};
use super::disk_quota::{DiskQuota, Reservation};
use super::part::{FrozenPart, too_large};
use super::present_ranges::PresentRanges;
use super::reader::ReadTarget;
use crate::error::Result;
use crate::ids::{PartNumber, PartSize};
use crate::local_disk::{LocalDisk, LocalFile};
use crate::pds::part_body::{Frame, ZEROS};

/// Content in a sparse local file over a base revision.
#[derive(Debug)]
pub struct StagedFile {
    file: Arc<LocalFile>,
    /// Locked for each change from its reservation to its end, so that changes do not mix. Its holder waits
    /// for the local disk. Locked before `state` and before the locks of the quota: a reservation may evict
    /// cached files and tees. The file holds it too: the space is free when the file is closed.
    change: Arc<Mutex<Reservation>>,
    /// A leaf lock. Never held over I/O: observers take it.
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
}

/// A piece of a read.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes of this machine.
    Local(Frame),
    /// A range to read from the base revision.
    Base { target: ReadTarget, offset: u64, len: u64 },
}

impl StagedFile {
    /// A staged file with the content of `base`, nothing of which is present; an empty one without a base. It counts
    /// as a file of `user`. Blocks for the local disk.
    pub(super) fn new(
        quota: &Arc<DiskQuota>,
        base: Option<ReadTarget>,
        user: Option<u32>,
    ) -> Result<Arc<Self>> {
        Self::with(quota, base, quota.create_file(user, true))
    }

    /// A staged file for a tee: evicts nothing but cached files.
    pub(super) fn new_tee(quota: &Arc<DiskQuota>) -> Result<Arc<Self>> {
        Self::with(quota, None, quota.create_file(None, false))
    }

    fn with(
        quota: &Arc<DiskQuota>,
        base: Option<ReadTarget>,
        created: Result<(Arc<LocalFile>, Arc<Mutex<Reservation>>)>,
    ) -> Result<Arc<Self>> {
        let dir = quota.disk().dir().display();
        let (file, change) =
            created.map_err(|e| e.context(format!("cannot create a staged file in {dir}")))?;
        let size = base.as_ref().map_or(0, |base| base.size);
        file.set_len(size)?;
        let state = StagedState { size, base, base_bytes: size, present: PresentRanges::default() };
        Ok(Arc::new(Self { file, change, state: Mutex::new(state) }))
    }

    fn lock(&self) -> MutexGuard<'_, StagedState> {
        self.state.lock()
    }

    /// The disk of the local file.
    pub(super) fn disk(&self) -> &Arc<LocalDisk> {
        self.file.disk()
    }

    /// Counts it as a file of `user` from now on, or of none. `TooManyFiles` at the limit of the user.
    pub(super) fn count_for(&self, user: Option<u32>) -> Result<()> {
        self.file.count_for(user)
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

    /// Makes ranges that were written as zeros holes. Where the file system has no holes, they stay present. For a
    /// file without a base.
    pub(super) fn forget_zeros(&self, zeros: &PresentRanges) -> Result<()> {
        let mut reservation = self.change.lock();
        for range in zeros.iter() {
            let len = range.end - range.start;
            // A shorter range shares its blocks with bytes that were written.
            if len >= ALIGN_BYTES as u64 && !make_hole(&self.file, range.start, len) {
                break;
            }
            self.lock().present.remove(range);
        }
        let present = self.lock().present.bytes();
        reservation.resize(present)
    }

    /// Writes `data`. A gap after the old end reads as zeros. `NoSpace` changes nothing.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut reservation = self.change.lock();
        let range = offset..offset + data.len() as u64;
        reservation.resize(self.bytes_with(&range))?;
        self.file.write_all_at(data, offset)?;
        self.note_written(range);
        Ok(())
    }

    /// Writes frames one after the other, likewise.
    pub(super) fn write_frames(&self, mut offset: u64, frames: &[Frame]) -> Result<()> {
        for frame in frames {
            frame.visit(|bytes| {
                self.write(offset, bytes)?;
                offset += bytes.len() as u64;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Writes a part of a tee. Evicts nothing but cached files.
    pub(super) fn write_part(&self, part: &FrozenPart) -> Result<()> {
        let mut reservation = self.change.lock();
        let range = part.offset..part.offset + part.bytes;
        reservation.resize_optional(self.bytes_with(&range))?;
        let mut at = part.offset;
        let direct = self.write_direct(part)?;
        for (index, frame) in part.frames.iter().enumerate() {
            if index < direct {
                at += frame.bytes();
                continue;
            }
            frame.visit(|bytes| {
                self.file.write_all_at(bytes, at)?;
                at += bytes.len() as u64;
                Ok(())
            })?;
        }
        self.note_written(range);
        Ok(())
    }

    /// Writes the aligned frames at the beginning of a part without the page cache. Returns how many.
    fn write_direct(&self, part: &FrozenPart) -> Result<usize> {
        let pieces: Vec<&[u8]> = part
            .frames
            .iter()
            .map_while(|frame| match frame {
                Frame::Memory(bytes) if is_aligned(bytes) => Some(&bytes[..]),
                Frame::Memory(_) | Frame::Stored { .. } | Frame::Zeros(_) => None,
            })
            .collect();
        if pieces.is_empty() || !part.offset.is_multiple_of(ALIGN_BYTES as u64) {
            return Ok(0);
        }
        // Opened for each part: few staged files are tees, and descriptors are scarce.
        let Some(direct) = DirectFile::of(&self.file) else { return Ok(0) };
        match direct.write_all_at(&pieces, part.offset) {
            Ok(()) => Ok(pieces.len()),
            // The file system accepted `O_DIRECT` at the open and refuses it here.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => Ok(0),
            Err(e) => Err(e.into()),
        }
    }

    /// Present bytes once `range` is present too.
    fn bytes_with(&self, range: &Range<u64>) -> u64 {
        let state = self.lock();
        state.present.bytes() + state.present.missing_bytes(range)
    }

    fn note_written(&self, range: Range<u64>) {
        let mut state = self.lock();
        state.size = state.size.max(range.end);
        state.present.insert(range);
    }

    /// Sets the size: truncates, or extends with zeros.
    pub(super) fn truncate(&self, size: u64) -> Result<()> {
        let mut reservation = self.change.lock();
        self.file.set_len(size)?;
        let present = {
            let mut state = self.lock();
            state.present.remove(size..u64::MAX);
            state.base_bytes = state.base_bytes.min(size);
            state.size = size;
            state.present.bytes()
        };
        reservation.resize(present)
    }

    /// Zeroes a range, as far as the content reaches. Where the file system has no holes, written bytes stay
    /// present, as zeros. `NoSpace` changes nothing.
    pub(super) fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let mut reservation = self.change.lock();
        let (end, base_bytes) = {
            let state = self.lock();
            (offset.saturating_add(len).min(state.size), state.base_bytes)
        };
        if offset >= end {
            return Ok(());
        }
        // Zeros over the base are present. Above the base, missing ranges are zeros already.
        let over_base = offset..end.min(base_bytes).max(offset);
        reservation.resize(self.bytes_with(&over_base))?;
        let is_hole = make_hole(&self.file, offset, end - offset);
        if !is_hole {
            write_zeros(&self.file, over_base.clone())?;
            let written = self.lock().present.clone();
            let mut at = over_base.end;
            while let Some((run, is_present)) = written.first_run(&(at..end)) {
                at = run.end;
                if is_present {
                    write_zeros(&self.file, run)?;
                }
            }
        }
        let present = {
            let mut state = self.lock();
            if is_hole {
                state.present.remove(offset..end);
            }
            state.present.insert(over_base);
            state.present.bytes()
        };
        reservation.resize(present)
    }

    /// The pieces of bytes `offset..offset + len`, fewer only at the end of the content. Does no I/O.
    pub(super) fn read(&self, offset: u64, len: u64) -> Vec<Piece> {
        let state = self.lock();
        let end = offset.saturating_add(len).min(state.size);
        let (mut at, mut pieces) = (offset, Vec::new());
        while let Some((run, is_present)) = state.present.first_run(&(at..end.max(at))) {
            at = run.end;
            let piece = match &state.base {
                _ if is_present => {
                    let (file, bytes) = (self.file.clone(), run.end - run.start);
                    Piece::Local(Frame::Stored { file, offset: run.start, bytes })
                }
                Some(target) if run.start < state.base_bytes => {
                    at = run.end.min(state.base_bytes);
                    Piece::Base { target: target.clone(), offset: run.start, len: at - run.start }
                }
                _ => Piece::Local(Frame::Zeros(run.end - run.start)),
            };
            pieces.push(piece);
        }
        pieces
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
        let mut reservation = self.change.lock();
        let end = (offset + data.len() as u64).min(self.lock().base_bytes);
        let range = offset..end.max(offset);
        reservation.resize(self.bytes_with(&range))?;
        loop {
            let Some(gap) = self.lock().present.first_gap(&range) else { return Ok(()) };
            let piece = &data[(gap.start - offset) as usize..(gap.end - offset) as usize];
            self.file.write_all_at(piece, gap.start)?;
            self.lock().present.insert(gap);
        }
    }

    /// The whole content as parts, whose bytes are read when they are sent. The file must be complete.
    /// `TooLarge` if there are not enough part numbers. Does no I/O.
    pub(super) fn parts(&self, part_size: PartSize) -> Result<Vec<FrozenPart>> {
        let size = self.size();
        let (mut parts, mut number, mut offset) = (Vec::new(), Some(PartNumber::FIRST), 0);
        while offset < size || parts.is_empty() {
            let Some(this) = number else {
                return Err(too_large(part_size));
            };
            let bytes = part_size.get().min(size - offset);
            let frame = Frame::Stored { file: self.file.clone(), offset, bytes };
            parts.push(FrozenPart { number: this, offset, bytes, frames: [frame].into() });
            offset += bytes;
            number = this.next();
        }
        Ok(parts)
    }
}

/// Whether a range could be made a hole.
fn make_hole(file: &File, offset: u64, len: u64) -> bool {
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len).is_ok()
}

fn write_zeros(file: &File, range: Range<u64>) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let piece = &ZEROS[..(range.end - at).min(ZEROS.len() as u64) as usize];
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::buffer_pool::BufferPool;
    use crate::content::part::FillingPart;
    use crate::error::ErrorKind;
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

    fn append(all: &mut Vec<u8>, frame: &Frame) {
        let appended = frame.visit(|bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        });
        appended.unwrap();
    }

    fn content(staged: &StagedFile, base: &[u8], offset: u64, len: u64) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in staged.read(offset, len) {
            match piece {
                Piece::Local(frame) => append(&mut all, &frame),
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
            let quota = DiskQuota::new(LocalDisk::of(&dir), None, 0);
            let staged = StagedFile::new(&quota, Some(base(base_bytes.len() as u64)), None).unwrap();
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
            let mut whole = Vec::new();
            parts.iter().flat_map(|part| part.frames.iter()).for_each(|frame| append(&mut whole, frame));
            prop_assert_eq!(whole, model);
            drop(staged);
            drop(parts);
            quota.disk().wait_closed();
            prop_assert_eq!(quota.reserved_bytes(), 0);
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn write_over_quota_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), Some(10), 0);
        let staged = StagedFile::new(&quota, None, None).unwrap();
        staged.write(0, &[1; 10]).unwrap();
        staged.write(5, &[2; 5]).unwrap();
        assert_eq!(staged.write(8, &[3; 3]).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!((staged.size(), quota.reserved_bytes()), (10, 10));
        assert_eq!(content(&staged, &[], 0, 20), [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn regression_forgotten_zeros_free_their_space() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), None, 0);
        let staged = StagedFile::new(&quota, None, None).unwrap();
        let block = ALIGN_BYTES as u64;
        let (mut left, mut zeros) = (vec![1; 3 * ALIGN_BYTES], PresentRanges::default());
        for range in [10..11, block..2 * block] {
            left[range.start as usize..range.end as usize].fill(0);
            zeros.insert(range);
        }
        // Not zeros, so that the file shows where it has a hole.
        staged.write(0, &[1; 3 * ALIGN_BYTES]).unwrap();
        staged.forget_zeros(&zeros).unwrap();
        assert_eq!(content(&staged, &[], 0, u64::MAX), left);
        assert_eq!(present(&staged), [0..10, 11..block, 2 * block..3 * block]);
        assert_eq!(quota.reserved_bytes(), 2 * block - 1);
        left[10] = 1;
        assert_eq!(on_disk(&staged, 3 * ALIGN_BYTES), left);
    }

    fn present(staged: &StagedFile) -> Vec<Range<u64>> {
        staged.lock().present.iter().collect()
    }

    /// The first bytes of the local file.
    fn on_disk(staged: &StagedFile, len: usize) -> Vec<u8> {
        let mut bytes = vec![2; len];
        staged.file.read_at_zero_filled(&mut bytes, 0).unwrap();
        bytes
    }

    /// Runs `work` on a thread whose `fallocate` fails, as on a file system without holes.
    fn without_holes(work: impl FnOnce() + Send + 'static) {
        let step = |code, jf, k| libc::sock_filter { code: code as u16, jt: 0, jf, k };
        let refused = libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP as u32;
        let worker = std::thread::spawn(move || {
            let mut filter = [
                // The first field of `seccomp_data` is the number of the call.
                step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
                step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_fallocate as u32),
                step(libc::BPF_RET | libc::BPF_K, 0, refused),
                step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
            ];
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
            // SAFETY: the calls change this thread only. The kernel copies the filter.
            let installed = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                    && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
            };
            assert!(installed, "{}", std::io::Error::last_os_error());
            work();
        });
        worker.join().unwrap();
    }

    #[test]
    fn regression_zeros_without_holes_stay_reserved() {
        without_holes(|| {
            let dir = tempfile::tempdir().unwrap();
            let quota = DiskQuota::new(LocalDisk::of(&dir), None, 0);
            let block = ALIGN_BYTES as u64;
            let staged = StagedFile::new(&quota, Some(base(block)), None).unwrap();
            staged.write(block, &[1; 2 * ALIGN_BYTES]).unwrap();
            staged.truncate(5 * block).unwrap();
            // One block of the base, two written ones, and a missing one.
            staged.punch(0, 4 * block).unwrap();
            assert_eq!(present(&staged).first(), Some(&(0..3 * block)));
            assert_eq!(quota.reserved_bytes(), 3 * block);
            assert_eq!(on_disk(&staged, 3 * ALIGN_BYTES), [0; 3 * ALIGN_BYTES]);
            assert_eq!(content(&staged, &[1; ALIGN_BYTES], 0, u64::MAX), vec![0; 5 * ALIGN_BYTES]);
            assert!(staged.is_complete());
        });
    }

    #[test]
    fn observers_do_not_wait_for_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let staged = StagedFile::new(&DiskQuota::new(LocalDisk::of(&dir), None, 0), None, None).unwrap();
        staged.write(0, b"abc").unwrap();
        let running_change = staged.change.lock();
        assert_eq!((staged.size(), staged.is_complete(), staged.read(0, 9).len()), (3, true, 1));
        assert_eq!(staged.parts(PartSize::new(64).unwrap()).unwrap().len(), 1);
        drop(running_change);
    }

    #[test]
    fn staged_file_has_one_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), None, 0);
        let of_dir = || {
            let all = std::fs::read_dir("/proc/self/fd").unwrap();
            let links = all.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
            links.filter(|link| link.starts_with(dir.path())).count()
        };
        let staged = StagedFile::new(&quota, None, None).unwrap();
        let mut filling = FillingPart::default();
        filling.append(&[7; ALIGN_BYTES], 1 << 20, &BufferPool::new(1 << 20, 1 << 20));
        let frames: Arc<[Frame]> = filling.freeze().into();
        assert!(matches!(&frames[0], Frame::Memory(bytes) if is_aligned(bytes)));
        let part = FrozenPart { number: PartNumber::FIRST, offset: 0, bytes: ALIGN_BYTES as u64, frames };
        staged.write_part(&part).unwrap();
        assert_eq!((content(&staged, &[], 4095, 2), of_dir()), (vec![7], 1));
    }

    #[test]
    fn too_many_parts_are_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let staged = StagedFile::new(&DiskQuota::new(LocalDisk::of(&dir), None, 0), None, None).unwrap();
        staged.truncate(64 * u64::from(PartNumber::MAX) + 1).unwrap();
        let refused = staged.parts(PartSize::new(64).unwrap()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TooLarge);
    }
}
