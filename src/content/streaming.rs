//! A stream: a file that is written front to back, and uploaded while it is written.
//!
//! `append` only copies; all waiting for the network happens in tasks. The first full part starts the
//! uploader. A file that ends before its first full part is hashed and sent at its commit: one `create` with
//! the hash, and one PUT if the service does not have the bytes.

use std::sync::Arc;

use super::commit::{Commit, CommitSource};
use super::commit_target::CommitTarget;
use super::in_flight_parts::InFlightParts;
use super::part::{Blocked, FillingPart, FrozenPart, bytes_of, too_large, too_sparse};
use super::present_ranges::PresentRanges;
use super::reader::ReadTarget;
use super::tee::Tee;
use super::upload_context::UploadContext;
use super::uploader::Uploader;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, PartNumber};
use crate::local_disk::LocalFile;
use crate::pds::drive::FileMeta;
use crate::pds::part_body::{Frame, ZEROS};
use crate::status::Transfer;

/// The stream of one file.
#[derive(Debug)]
pub struct Streaming {
    context: Arc<UploadContext>,
    in_flight: Arc<InFlightParts>,
    transfer: Arc<Transfer>,
    filling: FillingPart,
    /// File offset of the filling part.
    offset: u64,
    /// Number of the filling part; `None` after the last number.
    number: Option<PartNumber>,
    uploader: Option<Uploader>,
    /// Parent and name that the upload session was opened for.
    session_location: Option<(FileId, String)>,
    tee: Option<Tee>,
    /// The size set by `ftruncate`: zeros follow the frontier up to there.
    declared_size: u64,
    /// Ranges below the frontier that no program wrote: they were appended as zeros.
    gaps: Box<PresentRanges>,
    /// Base content past the frontier that was not back-filled yet.
    base: Option<Box<Base>>,
}

/// The base revision of a stream. Only if staged files are disabled; else such a file is staged.
#[derive(Clone, Debug)]
struct Base {
    target: ReadTarget,
    /// Bytes of the base that belong to the content, from its beginning.
    bytes: u64,
}

/// The reason why a writer cannot append everything now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// The buffer pool is empty.
    Memory,
    /// Too many parts are not acknowledged.
    Drive,
    /// No memory will come: the rest must go to the local disk.
    Spill,
    /// A commit is running.
    Commit,
}

/// The outcome of one append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    pub bytes: usize,
    /// Set if the caller has to wait before it can append more. If everything was appended, the writer waits
    /// before it goes on: the next part may not begin yet.
    pub wait: Option<Wait>,
}

impl Streaming {
    /// An empty stream. The drive sees nothing before the first full part or the commit.
    pub(super) fn new(context: Arc<UploadContext>, transfer: Arc<Transfer>) -> Self {
        Self {
            context,
            in_flight: Arc::default(),
            transfer,
            filling: FillingPart::default(),
            offset: 0,
            number: Some(PartNumber::FIRST),
            uploader: None,
            session_location: None,
            tee: None,
            declared_size: 0,
            gaps: Box::default(),
            base: None,
        }
    }

    /// A stream over a base revision: ranges that are not written have to be back-filled from it.
    pub(super) fn over_base(
        context: Arc<UploadContext>,
        transfer: Arc<Transfer>,
        target: ReadTarget,
    ) -> Self {
        let base = Some(Box::new(Base { bytes: target.size, target }));
        Self { base, ..Self::new(context, transfer) }
    }

    /// Size of the content in bytes, with the base and the declared zeros.
    pub(super) fn size(&self) -> u64 {
        self.frontier().max(self.declared_size).max(self.base_bytes())
    }

    /// Bytes that no program wrote and that are not of the base: gaps, and the declared zeros.
    pub(super) fn zero_bytes(&self) -> u64 {
        self.gaps.bytes() + self.size() - self.frontier().max(self.base_bytes())
    }

    /// Longest gap that may still be appended as zeros, in bytes.
    pub(super) fn gap_bytes_max(&self) -> u64 {
        self.context.zero_fill_max.saturating_sub(self.gaps.bytes())
    }

    fn base_bytes(&self) -> u64 {
        self.base.as_ref().map_or(0, |base| base.bytes)
    }

    /// The range of the base that must be appended before offset `to` can be written: base, offset, length.
    pub(super) fn next_backfill(&self, to: u64) -> Option<(ReadTarget, u64, u64)> {
        let base = self.base.as_ref()?;
        let (start, end) = (self.frontier(), base.bytes.min(to));
        (start < end).then(|| (base.target.clone(), start, end - start))
    }

    /// The lowest offset that [`Self::patch`] can change: the beginning of the filling part.
    pub(super) fn patchable_from(&self) -> u64 {
        self.offset
    }

    /// Overwrites bytes between [`Self::patchable_from`] and [`Self::frontier`]. Returns how many bytes of
    /// `data` are in memory there: none if they begin in the spilled bytes.
    pub(super) fn patch(&mut self, offset: u64, data: &[u8]) -> usize {
        let bytes = self.filling.patch(offset - self.offset, data);
        self.note_patched(offset, bytes as u64);
        bytes
    }

    /// The place of spilled bytes of the filling part from `offset` on: file, offset in it, length.
    pub(super) fn spilled_range(&self, offset: u64) -> Option<(Arc<LocalFile>, u64, u64)> {
        self.filling.spilled_range(offset.checked_sub(self.offset)?)
    }

    /// Records that a program wrote these bytes of the filling part: they are no gap.
    pub(super) fn note_patched(&mut self, offset: u64, bytes: u64) {
        self.gaps.remove(offset..offset + bytes);
    }

    /// Records that the last `bytes` are zeros that no program wrote.
    pub(super) fn note_gap(&mut self, bytes: u64) {
        self.gaps.insert(self.frontier() - bytes..self.frontier());
    }

    /// Ranges of zeros that no program wrote.
    pub(super) fn gaps(&self) -> &PresentRanges {
        &self.gaps
    }

    /// The filling part, for a caller that spills it.
    pub(super) fn filling(&mut self) -> &mut FillingPart {
        &mut self.filling
    }

    /// Sets the size: declares zeros, or truncates the filling part. Returns `false` and changes nothing if
    /// the new end lies before the filling part.
    pub(super) fn set_size(&mut self, size: u64) -> bool {
        if size < self.offset {
            return false;
        }
        if size < self.frontier() {
            self.filling.truncate(size - self.offset);
            self.gaps.remove(size..u64::MAX);
        }
        if let Some(base) = &mut self.base {
            base.bytes = base.bytes.min(size);
        }
        self.declared_size = size;
        self.transfer.expect_bytes(size);
        true
    }

    /// The offset of the next append.
    pub(super) fn frontier(&self) -> u64 {
        self.offset + self.filling.bytes()
    }

    /// Drops the upload and its tee. For an unlinked file, whose upload has failed: later writes stay on this
    /// machine.
    pub(super) fn abandon(&mut self) {
        (self.uploader, self.tee, self.in_flight) = (None, None, Arc::default());
    }

    /// The parts shared with the uploader and with readers.
    pub(super) fn in_flight(&self) -> &Arc<InFlightParts> {
        &self.in_flight
    }

    /// Whether parts were sent, so that memory does not have the whole content.
    pub(super) fn has_sent_parts(&self) -> bool {
        self.uploader.is_some()
    }

    pub(super) fn transfer(&self) -> &Arc<Transfer> {
        &self.transfer
    }

    /// The tee, if parts were sent and it still has them.
    pub(super) fn tee(&self) -> Option<&Tee> {
        self.tee.as_ref()
    }

    /// Begins an empty stream with `data`, which is less than a part. If the buffer pool has no memory now,
    /// returns the reason; the stream must then be dropped.
    pub(super) fn preload(&mut self, data: &[u8]) -> Option<Blocked> {
        self.filling.append(data, self.context.part_size.get(), &self.context.buffer_pool).blocked
    }

    /// Appends as much as memory and the drive allow now. Resolves the target when the first part is full.
    pub(super) fn append(
        &mut self,
        mut data: &[u8],
        resolve_target: &dyn Fn() -> Option<CommitTarget>,
    ) -> Result<Appended> {
        self.in_flight.check()?;
        let part_bytes = self.context.part_size.get();
        let offered = data.len();
        let mut wait = None;
        while !data.is_empty() {
            if self.number.is_none() {
                return Err(too_large(self.context.part_size));
            }
            wait = self.wait_for_room();
            if wait.is_some() {
                break;
            }
            let appended = self.filling.append(data, part_bytes, &self.context.buffer_pool);
            data = &data[appended.bytes..];
            if self.filling.bytes() == part_bytes {
                match self.send_part(resolve_target) {
                    Ok(true) => {}
                    Ok(false) => {
                        wait = Some(Wait::Spill);
                        break;
                    }
                    // The part belongs to the content by now. The next append returns the failure.
                    Err(_) if self.filling.bytes() == 0 => break,
                    Err(error) => return Err(error),
                }
            }
            if let Some(blocked) = appended.blocked {
                wait = Some(blocked.into());
                break;
            }
        }
        let bytes = offered - data.len();
        self.transfer.wrote(bytes as u64);
        Ok(Appended { bytes, wait: wait.or_else(|| self.wait_for_room()) })
    }

    /// The reason why the next part may not begin now. The lead over the drive counts whole parts, so a part
    /// that has begun may be filled.
    pub(super) fn wait_for_room(&self) -> Option<Wait> {
        if self.filling.bytes() > 0 || self.uploader.is_none() || self.in_flight.check().is_err() {
            return None;
        }
        (!self.context.upload_limiter.may_begin_part(self.in_flight.count())).then_some(Wait::Drive)
    }

    /// Appends zeros up to `offset`, as far as memory and the drive allow now. `TooLarge`, and no change, if the
    /// content would have too many.
    pub(super) fn append_gap(
        &mut self,
        offset: u64,
        resolve_target: &dyn Fn() -> Option<CommitTarget>,
    ) -> Result<Option<Wait>> {
        let start = self.frontier();
        if offset.saturating_sub(start) > self.gap_bytes_max() {
            // Declared zeros do not count: the program can still write there.
            return Err(too_sparse(self.gaps.bytes() + offset - start, self.context.zero_fill_max));
        }
        while self.frontier() < offset {
            let zeros = &ZEROS[..ZEROS.len().min((offset - self.frontier()) as usize)];
            let appended = self.append(zeros, resolve_target)?;
            self.gaps.insert(start..self.frontier());
            if appended.wait.is_some() {
                return Ok(appended.wait);
            }
        }
        Ok(None)
    }

    /// Parent and name that the upload session was opened for.
    pub(super) fn session_location(&self) -> Option<(FileId, String)> {
        self.session_location.clone()
    }

    /// Hands the filling part to the uploader and begins the next one. A deleted file has no target: its parts
    /// are spilled. Returns `false` if the part must be spilled first.
    fn send_part(&mut self, resolve_target: &dyn Fn() -> Option<CommitTarget>) -> Result<bool> {
        if self.uploader.is_none() {
            // Spilled parts are never sent, so no upload begins after them.
            match resolve_target().filter(|_| self.offset == 0) {
                Some(target) => {
                    self.session_location = Some((target.parent.clone(), target.name.clone()));
                    let (in_flight, transfer) = (self.in_flight.clone(), self.transfer.clone());
                    self.uploader = Some(Uploader::spawn(&self.context, target, in_flight, transfer));
                    self.tee = Tee::new(&self.context.tees);
                }
                None if self.filling.is_spilled() => {}
                None => return Ok(false),
            }
        }
        let Some(part) = self.freeze() else {
            return Err(too_large(self.context.part_size));
        };
        if let Some(uploader) = &self.uploader {
            self.in_flight.count_ahead(self.context.upload_limiter.count_ahead());
            uploader.send(part);
        }
        self.in_flight.check().map(|()| true)
    }

    /// Freezes the filling part. `None` if all part numbers are used.
    fn freeze(&mut self) -> Option<FrozenPart> {
        let number = self.number?;
        let filled = std::mem::take(&mut self.filling);
        let (offset, bytes) = (self.offset, filled.bytes());
        let frames: Arc<[_]> = filled.freeze().into();
        self.in_flight.insert(offset, frames.clone(), self.context.buffer_pool.is_half_free());
        self.offset += bytes;
        self.number = number.next();
        let part = FrozenPart { number, offset, bytes, frames };
        if let Some(tee) = &self.tee {
            tee.push(&part, &self.context.runtime);
        }
        Some(part)
    }

    /// Written bytes `offset..offset + len`, as far as the frontier. `None` if some were sent and are no longer
    /// on this machine. Does no I/O.
    pub(super) fn read(&self, offset: u64, len: u64) -> Option<Vec<Frame>> {
        let end = offset.saturating_add(len).min(self.frontier());
        let sent = read_sent(&self.in_flight, self.tee.as_ref(), offset, end.min(self.offset))?;
        let start = offset.max(self.offset);
        let filling = self.filling.read(start - self.offset, end.saturating_sub(start));
        Some(sent.into_iter().chain(filling).collect())
    }

    /// The commit of everything that was written. `base` is the base revision of the file.
    pub(super) fn into_commit(mut self, target: CommitTarget, base: Option<FileMeta>) -> Commit {
        let source = self.commit_source(&target).unwrap_or_else(CommitSource::Failed);
        let Self { context, in_flight, tee, transfer, .. } = self;
        Commit { context, in_flight, tee, transfer, target, base, source }
    }

    fn commit_source(&mut self, target: &CommitTarget) -> Result<CommitSource> {
        if self.next_backfill(u64::MAX).is_some() {
            return Err(Error::new(ErrorKind::Io, "the stream was committed before it was back-filled"));
        }
        self.zero_fill_to_declared_size(target)?;
        let last = (self.filling.bytes() > 0 || self.uploader.is_none()).then(|| self.freeze()).flatten();
        match (self.uploader.take(), last) {
            (Some(uploader), last) => Ok(CommitSource::Stream { uploader, last, size: self.offset }),
            (None, Some(part)) if part.offset == 0 => Ok(CommitSource::SinglePart(part)),
            (None, Some(_)) => {
                Err(Error::new(ErrorKind::NotFound, "the file was deleted while it was being written"))
            }
            (None, None) => Err(too_large(self.context.part_size)),
        }
    }

    fn zero_fill_to_declared_size(&mut self, target: &CommitTarget) -> Result<()> {
        let part_bytes = self.context.part_size.get();
        while self.frontier() < self.declared_size {
            let room = part_bytes - self.filling.bytes();
            self.filling.add_zeros(room.min(self.declared_size - self.frontier()));
            if self.filling.bytes() == part_bytes {
                self.send_part(&|| Some(target.clone()))?;
            }
        }
        Ok(())
    }
}

impl From<Blocked> for Wait {
    fn from(blocked: Blocked) -> Self {
        match blocked {
            Blocked::Memory => Self::Memory,
            Blocked::Spill => Self::Spill,
        }
    }
}

/// Bytes `offset..end` of sent parts: from memory while a part is in flight, else from the tee. `None` if some
/// are no longer on this machine. Does no I/O.
pub(super) fn read_sent(
    in_flight: &InFlightParts,
    tee: Option<&Tee>,
    mut offset: u64,
    end: u64,
) -> Option<Vec<Frame>> {
    let mut all = Vec::new();
    while offset < end {
        let len = end - offset;
        let found = in_flight.read(offset, len).or_else(|| tee.map(|tee| tee.read(offset, len)))?;
        let bytes = bytes_of(&found);
        if bytes == 0 {
            return None;
        }
        all.extend(found);
        offset += bytes;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;
    use crate::config::{Credential, MountConfig};
    use crate::content::buffer_pool::BufferPool;
    use crate::content::cached_files::CachedFiles;
    use crate::content::commit_target::NoTree;
    use crate::content::disk_quota::DiskQuota;
    use crate::content::reader::Reader;
    use crate::content::tee_queue::TeeQueue;
    use crate::content::upload_limiter::UploadLimiter;
    use crate::ids::{DriveId, Ino, PartSize, Secret};
    use crate::local_disk::LocalDisk;
    use crate::pds::drive::Drive;
    use crate::status::Progress;

    fn context(dir: &tempfile::TempDir) -> Arc<UploadContext> {
        let token = Credential::Token(Secret::new("token".to_owned()));
        let endpoint = "http://127.0.0.1:9".parse().unwrap();
        let drive = Drive::new(&MountConfig::new(endpoint, DriveId::new("1").unwrap(), token)).unwrap();
        let disk = LocalDisk::of(dir);
        let quota = DiskQuota::new(disk.clone(), None, 0);
        Arc::new(UploadContext {
            resolver: Weak::<NoTree<fn()>>::new(),
            buffer_pool: BufferPool::new(1 << 20, 64),
            upload_limiter: UploadLimiter::new(4, 64),
            part_size: PartSize::new(64).unwrap(),
            zero_fill_max: 0,
            disk,
            tees: TeeQueue::new(quota.clone(), 1 << 20),
            local_quota: quota.clone(),
            spill_quota: quota.clone(),
            cached_files: CachedFiles::new(&quota),
            quota,
            reader: Reader::new(drive.clone(), 0),
            drive,
            runtime: tokio::runtime::Handle::current(),
        })
    }

    #[tokio::test]
    async fn bytes_before_a_failure_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let mut stream = Streaming::new(context(&dir), Progress::new().begin(Ino(1), "f"));
        let in_flight = stream.in_flight().clone();
        let target = CommitTarget {
            ino: Ino(7),
            parent: FileId::root(),
            name: "f".to_owned(),
            overwrite: None,
            mtime: None,
            posix: None,
            is_name_shared: false,
        };
        let resolve_target = || {
            in_flight.fail(&Error::new(ErrorKind::Protocol, "size needed"));
            Some(target.clone())
        };
        let appended = stream.append(&[7; 100], &resolve_target).unwrap();
        assert_eq!((appended, stream.frontier()), (Appended { bytes: 64, wait: None }, 64));
        let failure = stream.append(&[7; 36], &resolve_target).unwrap_err();
        assert_eq!((failure.kind(), stream.frontier()), (ErrorKind::Protocol, 64));
    }
}
