//! Changing a content other than by writing to it: cutting, growing, holes, preallocation, copies inside of
//! the drive.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::files::{Access, nowhere};
use super::{Allocation, Caller, Fh, Vfs, leave_session_thread};
use crate::content::open_file::{OpenFile, Wrote};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;

/// What a hole is filled with where holes cannot be made.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Vfs {
    /// Cuts a file to a size, or lets it grow by zeros.
    pub(super) async fn truncate(&self, file: &Arc<OpenFile>, size: u64) -> Result<()> {
        self.reshape(file, || file.truncate(size)).await
    }

    /// `copy_file_range(2)` from (handle, offset) to (handle, offset), at most `len` bytes; how many. Only of
    /// whole files that the drive has: the others are copied by the kernel, by reading and writing.
    pub async fn copy_range(&self, from: (Fh, u64), to: (Fh, u64), len: u64) -> Result<u32> {
        /// As many as one answer can tell, in whole pages.
        const BYTES_MAX: u64 = u32::MAX as u64 & !0xfff;
        let (source, target) = (self.handles.get(from.0)?, self.handles.get(to.0)?);
        let (start, end) = (from.1, from.1.saturating_add(len.min(BYTES_MAX)));
        let others = || Error::new(ErrorKind::Unsupported, "only whole files are copied inside of the drive");
        let base = source.file.base().filter(|_| !source.file.is_unsaved()).ok_or_else(others)?;
        // A stretch that ends before the file does is one of several only where there may be no more.
        let is_whole = end >= base.size || len > BYTES_MAX;
        if !is_whole || start != to.1 || start >= base.size || source.file.ino() == target.file.ino() {
            return Err(others());
        }
        if !matches!(target.access, Access::Write { append: false }) {
            return Err(others());
        }
        let end = end.min(base.size);
        leave_session_thread().await;
        if !tokio::task::block_in_place(|| target.file.clone_range(&base, start, end))? {
            return Err(others());
        }
        target.wrote.store(true, Ordering::Relaxed);
        self.tree().mark_unsaved(target.file.ino());
        Ok((end - start) as u32)
    }

    /// fallocate(2) of a stretch (from, bytes) of a file.
    pub async fn allocate(
        &self,
        ino: Ino,
        fh: Fh,
        (offset, len): (u64, u64),
        wanted: Allocation,
        caller: Caller,
    ) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or_else(|| Error::new(ErrorKind::TooLarge, "beyond the largest offset"))?;
        if wanted.zeroes {
            self.punch(fh, offset, len).await?;
        }
        // The kernel holds the inode's lock, so the size cannot change in between.
        if wanted.grows && self.getattr(ino).await?.attr.size < end {
            self.set_size(ino, Some(fh), end).await?;
        }
        self.drop_set_ids(ino, caller)
    }

    /// Makes zeros of a stretch of a file, as far as it reaches.
    async fn punch(&self, fh: Fh, offset: u64, len: u64) -> Result<()> {
        let handle = self.handles.get(fh)?;
        if !handle.access.commits() {
            return Err(Error::new(ErrorKind::BadHandle, "not open for writing"));
        }
        let file = &handle.file;
        if self.env.space.is_off() {
            return self.write_zeros(fh, offset, len).await;
        }
        self.reshape(file, || file.punch(offset, len)).await?;
        handle.wrote.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The same where there may be no local copy to make a hole in.
    async fn write_zeros(&self, fh: Fh, mut offset: u64, len: u64) -> Result<()> {
        let end = offset.saturating_add(len).min(self.handles.get(fh)?.file.size());
        while offset < end {
            let piece = Bytes::from_static(&ZEROS[..ZEROS.len().min((end - offset) as usize)]);
            offset += self.write(fh, offset, piece).await? as u64;
        }
        Ok(())
    }

    /// Changes a content as a whole, after a commit that is under way or has to come first.
    async fn reshape(&self, file: &Arc<OpenFile>, change: impl Fn() -> Result<Wrote>) -> Result<()> {
        leave_session_thread().await;
        loop {
            let (changed, memory_changed) = (file.state_changed(), self.env.budget.changed());
            match tokio::task::block_in_place(&change)? {
                Wrote::Some(appended) if appended.wait.is_some() => memory_changed.await,
                Wrote::Some(_) => {
                    if file.is_unsaved() {
                        self.tree().mark_unsaved(file.ino());
                    }
                    return Ok(());
                }
                Wrote::Committing => changed.await,
                Wrote::MustSettle if file.is_orphan() => return Err(nowhere()),
                Wrote::MustSettle => self.settle(file).await?,
                Wrote::MustRunOver { to } => self.run_over(file, to).await?,
            }
        }
    }

    /// `truncate(2)`: cuts a file that nobody may have open, and commits that.
    pub(super) async fn set_size(&self, ino: Ino, fh: Option<Fh>, size: u64) -> Result<()> {
        if let Some(fh) = fh {
            return self.truncate(&self.handles.get(fh)?.file, size).await;
        }
        let file = self.open_file(ino, true)?;
        let done = self.truncate(&file, size).await;
        // What others have written is committed whatever came of this.
        let settled = self.leave_writer(&file).await;
        self.close_file(&file);
        done.and(settled)
    }
}
