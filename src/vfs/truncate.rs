//! Changes of content other than writes: truncation, holes, preallocation, server-side copies.

use std::sync::Arc;

use bytes::Bytes;

use super::Vfs;
use super::close::process_of;
use super::handles::Access;
use super::types::{Caller, FallocateMode, Fh};
use crate::content::open_file::{DiskOutcome, OpenFile, Unsaved, WriteAt, WriteOutcome, Writer};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::part_body::ZEROS;

impl Vfs {
    /// Truncates a file through a handle, or extends it with zeros.
    pub(super) async fn truncate(&self, fh: Fh, size: u64) -> Result<()> {
        self.change_through(fh, |file, writer| file.truncate(size, writer)).await?;
        let handle = self.handles.get(fh)?;
        if !handle.file.has_local_content() {
            // It has this size already. Through a handle, that sets the times too.
            self.set_mtime_now(handle.file.ino())?;
        }
        Ok(())
    }

    /// `copy_file_range(2)` between (handle, offset) pairs, at most `len` bytes. Returns the number of bytes.
    /// Supports only whole committed files; the kernel copies others by reading and writing.
    pub async fn copy_range(&self, from: (Fh, u64), to: (Fh, u64), len: u64, caller: Caller) -> Result<u32> {
        /// Longest copy in one call: fits the 32-bit answer, in whole pages.
        const BYTES_MAX: u64 = u32::MAX as u64 & !0xfff;
        let (source, target) = (self.handles.get(from.0)?, self.handles.get(to.0)?);
        let (start, end) = (from.1, from.1.saturating_add(len.min(BYTES_MAX)));
        let unsupported = || Error::new(ErrorKind::Unsupported, "server-side copy supports only whole files");
        let base = source.file.base().filter(|_| !source.file.has_local_content()).ok_or_else(unsupported)?;
        // A range that ends before the file does is one piece of several, unless the kernel limited its
        // length.
        let is_whole = end >= base.size || len > BYTES_MAX;
        if !is_whole || start != to.1 || start >= base.size || source.file.ino() == target.file.ino() {
            return Err(unsupported());
        }
        if target.access != Access::Write {
            return Err(unsupported());
        }
        let end = end.min(base.size);
        self.check_accepts_content()?;
        let is_open = || self.handles.get(to.0).is_ok();
        if !target.file.clone_range(&base, (start, end), target.id.writer(), is_open).await? {
            return Err(unsupported());
        }
        self.clear_setid_bits(target.file.ino(), caller)?;
        Ok((end - start) as u32)
    }

    /// fallocate(2) of a range (offset, length).
    pub async fn allocate(
        &self,
        ino: Ino,
        fh: Fh,
        (offset, len): (u64, u64),
        mode: FallocateMode,
        caller: Caller,
    ) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
        let too_large = || Error::new(ErrorKind::TooLarge, "the range ends beyond the largest file offset");
        let end = end.ok_or_else(too_large)?;
        if mode.zeroes {
            self.zero_range(fh, offset, len).await?;
        }
        // The kernel holds the inode lock, so the size cannot change in between.
        let size = if mode.grows { self.getattr(ino).await?.attr.size } else { end };
        if size < end {
            let handle = self.handles.get(fh)?;
            let file = &handle.file;
            if !file.is_local() && !file.is_unlinked() {
                self.check_free_space(end - size).await?;
            }
            self.change_through(fh, |file, writer| file.set_size(end, writer)).await?;
        }
        self.clear_setid_bits(ino, caller)
    }

    /// Fills a range of a file with zeros, within its size.
    async fn zero_range(&self, fh: Fh, offset: u64, len: u64) -> Result<()> {
        let handle = self.handles.get(fh)?;
        if !handle.access.may_commit() {
            return Err(Error::new(ErrorKind::BadHandle, "not open for writing"));
        }
        if self.upload_context.quota.is_disabled() {
            return self.write_zeros(fh, offset, len).await;
        }
        self.change_through(fh, |file, writer| file.punch(offset, len, writer)).await
    }

    /// Writes zeros if there is no staged file in which a hole could be punched.
    async fn write_zeros(&self, fh: Fh, mut offset: u64, len: u64) -> Result<()> {
        let end = offset.saturating_add(len).min(self.handles.get(fh)?.file.size());
        while offset < end {
            let piece = Bytes::from_static(&ZEROS[..ZEROS.len().min((end - offset) as usize)]);
            offset += self.write(fh, WriteAt::Offset(offset), piece).await? as u64;
        }
        Ok(())
    }

    /// Changes the content through a handle. Fails once the handle is released: its program had its answer at the
    /// deadline.
    async fn change_through(
        &self,
        fh: Fh,
        change: impl Fn(&Arc<OpenFile>, Writer) -> Result<WriteOutcome>,
    ) -> Result<()> {
        let handle = self.handles.get(fh)?;
        let (file, writer) = (&handle.file, handle.id.writer());
        let change = || self.handles.get(fh).and_then(|_| change(file, writer));
        self.change_content(file, &[Some(writer)], change).await
    }

    /// Changes the content, after a running or necessary commit. `writers`: those that may need one.
    pub(super) async fn change_content(
        &self,
        file: &Arc<OpenFile>,
        writers: &[Option<Writer>],
        change: impl Fn() -> Result<WriteOutcome>,
    ) -> Result<()> {
        loop {
            self.check_accepts_content()?;
            let (changed, memory_changed) = (file.state_changed(), self.upload_context.buffer_pool.changed());
            let outcome = match change()? {
                WriteOutcome::Disk(change) => change.run(Bytes::new()).await?,
                WriteOutcome::Accepted(appended) if appended.wait.is_some() => {
                    self.bounded(memory_changed).await?;
                    continue;
                }
                WriteOutcome::Accepted(_) => DiskOutcome::Done(0),
                WriteOutcome::Committing => {
                    self.bounded(changed).await?;
                    continue;
                }
                WriteOutcome::DiskBusy => {
                    file.wait_for_disk().await?;
                    continue;
                }
                WriteOutcome::MustCommit => DiskOutcome::MustCommit,
                WriteOutcome::MustBackfill { to } => {
                    self.backfill(file, to).await?;
                    continue;
                }
            };
            match outcome {
                DiskOutcome::Again => {}
                DiskOutcome::MustCommit => self.commit_first(file, writers).await?,
                DiskOutcome::Done(_) => return Ok(()),
            }
        }
    }

    /// `truncate(2)`: changes the size of a file that may be closed, and commits it.
    pub(super) async fn set_size(&self, ino: Ino, fh: Option<Fh>, size: u64, caller: Caller) -> Result<()> {
        self.check_accepts_content()?;
        if let Some(fh) = fh {
            return self.truncate(fh, size).await;
        }
        let file = self.open_file(ino, true)?;
        file.set_user(caller.uid);
        let change = || file.truncate(size, Writer::NoHandle);
        let writers = [Some(Writer::NoHandle), process_of(caller)];
        let mut done = self.change_content(&file, &writers, change).await;
        if done.is_ok() {
            // Also while others have the file open for writing, if they changed nothing.
            let is_own = |unsaved: &Unsaved| unsaved.is_changed_only_by(Writer::NoHandle);
            done = self.commit_if(&file, is_own).await.map(drop);
        }
        // Bytes of other writers are committed in any case.
        let committed = self.release_writer(&file).await;
        self.close_file(&file);
        done.and(committed)
    }
}
