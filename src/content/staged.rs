//! A staged copy: the content of a file that is not written front to back, in a sparse local file.
//!
//! It lies over the content that the drive has, the *base*: what was not written here is still there
//! and is fetched when the whole is needed. So changing a byte of a large file costs no download before
//! the file is committed, and writing all of it costs none at all.
//!
//! ```text
//!   file    |####....####|......|      # present: here      . absent
//!   base    |bbbbbbbbbbbb|             absent and below `base_bytes`: as the base has it
//!                                      absent above: zeros
//! ```
//!
//! The file has no name: whatever happens, nothing is left behind. Blocks for the local disk; callers
//! are where that is allowed.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::direct::{ALIGN_BYTES, DirectFile, is_aligned};
use super::ranges::Ranges;
use super::reader::ReadTarget;
use super::shipper::FrozenPart;
use super::space::{Share, Space};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{PartNumber, PartSize};
use crate::pds::frame::Frame;

/// Longest piece of a part in bytes: what one PUT keeps in memory of it.
const FRAME_BYTES: u64 = 256 << 10;

/// A staged copy.
#[derive(Debug)]
pub struct Staged {
    file: Arc<File>,
    /// Another way to write it, where there is one.
    direct: Option<DirectFile>,
    /// A leaf lock, held over reads and writes of the local file.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    size: u64,
    base: Option<ReadTarget>,
    /// How much of the base still shows, from its beginning. At most `size`.
    base_bytes: u64,
    /// At most up to `size`.
    present: Ranges,
    share: Share,
}

/// A piece of a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Here.
    Here(Bytes),
    /// In the base.
    Base {
        /// Which.
        target: ReadTarget,
        /// Where in it.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Staged {
    /// A copy of `base`, none of which is here yet; without one, of nothing.
    pub fn new(space: &Arc<Space>, base: Option<ReadTarget>) -> Result<Arc<Self>> {
        let file = tempfile::tempfile_in(space.folder()).map_err(|e| {
            Error::from(e).context(format!("cannot make a local copy in {}", space.folder().display()))
        })?;
        let size = base.as_ref().map_or(0, |base| base.size);
        file.set_len(size)?;
        let state = State { size, base, base_bytes: size, present: Ranges::default(), share: space.share() };
        let direct = DirectFile::of(&file);
        Ok(Arc::new(Self { file: Arc::new(file), direct, state: Mutex::new(state) }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the content.
    pub fn size(&self) -> u64 {
        self.lock().size
    }

    /// Writes `data`, behind the end too: the gap reads as zeros. `NoSpace` changes nothing.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.lock();
        let end = offset + data.len() as u64;
        state.reserve(offset..end)?;
        self.file.write_all_at(data, offset)?;
        state.present.insert(offset..end);
        state.size = state.size.max(end);
        Ok(())
    }

    /// Writes the frames of a part into a copy that is not needed. Not at the same time as any other write.
    pub fn write_part(&self, part: &FrozenPart) -> Result<()> {
        let end = part.offset + part.bytes;
        self.lock().reserve_spare(part.offset..end)?;
        // Without the lock: readers of what is here already need not wait for the disk.
        let mut at = part.offset;
        let whole = self.write_direct(part)?;
        for (index, frame) in part.frames.iter().enumerate() {
            if index >= whole {
                self.file.write_all_at(&frame.load()?, at)?;
            }
            at += frame.bytes();
        }
        let mut state = self.lock();
        state.present.insert(part.offset..end);
        state.size = state.size.max(end);
        Ok(())
    }

    /// Writes the first frames past the page cache, as far as that is possible; how many.
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
            // The file system said yes when it was opened and means no.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => Ok(0),
            Err(e) => Err(e.into()),
        }
    }

    /// Cuts the content, or lets it grow by zeros.
    pub fn truncate(&self, size: u64) -> Result<()> {
        let mut state = self.lock();
        self.file.set_len(size)?;
        state.present.remove(size..u64::MAX);
        state.base_bytes = state.base_bytes.min(size);
        state.size = size;
        state.fit()
    }

    /// Makes zeros of a stretch, as far as the content reaches. `NoSpace` changes nothing.
    pub fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let mut state = self.lock();
        let end = offset.saturating_add(len).min(state.size);
        if offset >= end {
            return Ok(());
        }
        // What shows the base must show zeros from now on; what lies above it does already.
        let covered = offset..end.min(state.base_bytes).max(offset);
        state.reserve(covered.clone())?;
        punch(&self.file, offset, end - offset)?;
        state.present.remove(offset..end);
        state.present.insert(covered);
        state.fit()
    }

    /// Bytes from `offset`: `len` of them, fewer only at the end.
    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<Piece>> {
        let state = self.lock();
        let end = offset.saturating_add(len).min(state.size);
        let (mut at, mut pieces) = (offset, Vec::new());
        while let Some((stretch, is_present)) = state.present.first_stretch(at..end.max(at)) {
            at = stretch.end;
            match &state.base {
                Some(target) if !is_present && stretch.start < state.base_bytes => {
                    at = stretch.end.min(state.base_bytes);
                    let (target, len) = (target.clone(), at - stretch.start);
                    pieces.push(Piece::Base { target, offset: stretch.start, len });
                }
                _ => {
                    let mut bytes = vec![0; (stretch.end - stretch.start) as usize];
                    self.file.read_exact_at(&mut bytes, stretch.start)?;
                    pieces.push(Piece::Here(bytes.into()));
                }
            }
        }
        Ok(pieces)
    }

    /// The next stretch of the base that is needed and not here, at most `bytes_max` long.
    pub fn next_gap(&self, bytes_max: u64) -> Option<(ReadTarget, u64, u64)> {
        let state = self.lock();
        let gap = state.present.first_gap(0..state.base_bytes)?;
        let target = state.base.clone()?;
        Some((target, gap.start, (gap.end - gap.start).min(bytes_max)))
    }

    /// What this is the beginning of, and how many bytes of it, where nothing else was ever written.
    pub fn clone_of(&self) -> Option<(ReadTarget, u64)> {
        let state = self.lock();
        let is_untouched = state.present.bytes() == 0 && state.base_bytes == state.size;
        state.base.clone().filter(|_| is_untouched).map(|base| (base, state.size))
    }

    /// Whether nothing of the base is needed any more.
    pub fn is_whole(&self) -> bool {
        self.next_gap(1).is_none()
    }

    /// Takes bytes of the base, where nothing was written meanwhile.
    pub fn fill(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.lock();
        let end = (offset + data.len() as u64).min(state.base_bytes);
        state.reserve(offset..end.max(offset))?;
        while let Some(gap) = state.present.first_gap(offset..end.max(offset)) {
            let piece = &data[(gap.start - offset) as usize..(gap.end - offset) as usize];
            self.file.write_all_at(piece, gap.start)?;
            state.present.insert(gap);
        }
        Ok(())
    }

    /// Everything as parts, read when their turn comes. Only for a copy without gaps; `TooLarge` where
    /// the numbers of parts do not suffice.
    pub fn parts(&self, part_size: PartSize) -> Result<Vec<FrozenPart>> {
        let size = self.lock().size;
        let (mut parts, mut number, mut offset) = (Vec::new(), Some(PartNumber::FIRST), 0);
        while offset < size || parts.is_empty() {
            let Some(this) = number else {
                return Err(Error::new(ErrorKind::TooLarge, too_large(part_size)));
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

impl State {
    /// Room for a stretch that will be present.
    fn reserve(&mut self, range: std::ops::Range<u64>) -> Result<()> {
        self.share.resize(self.present.bytes() + self.present.missing_bytes(range))
    }

    /// The same for a copy that gives way to others.
    fn reserve_spare(&mut self, range: std::ops::Range<u64>) -> Result<()> {
        self.share.resize_spare(self.present.bytes() + self.present.missing_bytes(range))
    }

    /// Gives room back that is not needed any more.
    fn fit(&mut self) -> Result<()> {
        self.share.resize(self.present.bytes())
    }
}

/// What to do about a file that has more bytes than parts can carry.
pub fn too_large(part_size: PartSize) -> String {
    format!(
        "the file is larger than {} parts of {} bytes; mount with a larger --part-size",
        PartNumber::MAX,
        part_size.get()
    )
}

fn punch(file: &File, offset: u64, len: u64) -> Result<()> {
    let too_far = |_| Error::new(ErrorKind::TooLarge, "beyond the largest offset");
    let (start, bytes) = (i64::try_from(offset).map_err(too_far)?, i64::try_from(len).map_err(too_far)?);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers are passed, and the descriptor is open.
    if unsafe { libc::fallocate(file.as_raw_fd(), mode, start, bytes) } == 0 {
        return Ok(());
    }
    // Not every file system makes holes; zeros are as good.
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
        ReadTarget { file_id: FileId::new("f").unwrap(), revision, size, sha1: None }
    }

    fn content(copy: &Staged, base: &[u8], offset: u64, len: u64) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in copy.read(offset, len).unwrap() {
            match piece {
                Piece::Here(bytes) => all.extend_from_slice(&bytes),
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
        Fill(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let at = || 0..FILE_BYTES;
        let step = prop_oneof![
            (at(), prop::collection::vec(1..=255_u8, 1..60)).prop_map(|(at, data)| Step::Write(at, data)),
            at().prop_map(Step::Truncate),
            (at(), at()).prop_map(|(at, len)| Step::Punch(at, len)),
            (at(), at()).prop_map(|(at, len)| Step::Fill(at, len)),
        ];
        prop::collection::vec(step, 0..30)
    }

    proptest! {
        #[test]
        fn a_copy_over_a_base_is_a_file(
            base_bytes in prop::collection::vec(1..=255_u8, 0..200), steps in steps()
        ) {
            let folder = tempfile::tempdir().unwrap();
            let space = Space::new(folder.path(), None, 0);
            let copy = Staged::new(&space, Some(base(base_bytes.len() as u64))).unwrap();
            let mut model = base_bytes.clone();
            for step in steps {
                match step {
                    Step::Write(at, data) => {
                        copy.write(at, &data).unwrap();
                        let end = at as usize + data.len();
                        model.resize(model.len().max(end), 0);
                        model[at as usize..end].copy_from_slice(&data);
                    }
                    Step::Truncate(size) => {
                        copy.truncate(size).unwrap();
                        model.resize(size as usize, 0);
                    }
                    Step::Punch(at, len) => {
                        copy.punch(at, len).unwrap();
                        let end = (at + len).min(model.len() as u64);
                        model.get_mut(at as usize..end as usize).into_iter().for_each(|hole| hole.fill(0));
                    }
                    Step::Fill(at, len) => {
                        let end = (at + len).min(base_bytes.len() as u64);
                        if let Some(data) = base_bytes.get(at as usize..end as usize) {
                            copy.fill(at, data).unwrap();
                        }
                    }
                }
                prop_assert_eq!(copy.size(), model.len() as u64);
                prop_assert_eq!(content(&copy, &base_bytes, 0, u64::MAX), model.clone());
                prop_assert_eq!(space.taken_bytes(), copy.lock().present.bytes());
            }
            while let Some((_, at, len)) = copy.next_gap(50) {
                copy.fill(at, &base_bytes[at as usize..(at + len) as usize]).unwrap();
            }
            let parts = copy.parts(PartSize::new(64).unwrap()).unwrap();
            let frames = parts.iter().flat_map(|part| part.frames.iter());
            let whole: Vec<u8> = frames.flat_map(|frame| frame.load().unwrap().to_vec()).collect();
            prop_assert_eq!(whole, model);
            drop(copy);
            drop(parts);
            prop_assert_eq!(space.taken_bytes(), 0);
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_full_cap_refuses_the_write_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path(), Some(10), 0);
        let copy = Staged::new(&space, None).unwrap();
        copy.write(0, &[1; 10]).unwrap();
        copy.write(5, &[2; 5]).unwrap();
        assert_eq!(copy.write(8, &[3; 3]).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!((copy.size(), space.taken_bytes()), (10, 10));
        assert_eq!(content(&copy, &[], 0, 20), [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn more_bytes_than_parts_can_carry_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let copy = Staged::new(&Space::new(folder.path(), None, 0), None).unwrap();
        copy.truncate(64 * u64::from(PartNumber::MAX) + 1).unwrap();
        let refused = copy.parts(PartSize::new(64).unwrap()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TooLarge);
    }
}
