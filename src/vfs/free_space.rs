//! Refuses the write that passes the free space of the drive.
//!
//! Without this, a program learns that the drive is full at its close, after all bytes were sent. A write compares one
//! count with one bound. Only if it passes the bound, the unsaved bytes of all files are compared with the free space,
//! and before a refusal the drive is asked again.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::Vfs;
use super::quota_cache::UNKNOWN_STEP_BYTES;
use crate::content::open_file::{OpenFile, WriteAt};
use crate::error::{Error, ErrorKind, Result};
use crate::messages::{Cause, Room};
use crate::pds::drive::Quota;

/// Written bytes between looks at most: other clients use the drive too.
const STEP_BYTES_MAX: u64 = 1 << 30;
/// An older answer about the quota is renewed, while the writes go on.
const QUOTA_TTL: Duration = Duration::from_secs(10);
/// A refusal needs an answer that is not older.
const REFUSAL_TTL: Duration = Duration::from_secs(2);
/// How long a write waits for an answer about the drive.
const ASK_TIME_MAX: Duration = Duration::from_secs(1);
/// How long the usage of the recycle bin is known.
const BIN_TTL: Duration = Duration::from_secs(10);

impl Vfs {
    /// Whether a write of `bytes` needs [`Self::check_room`] first.
    pub(super) fn is_room_unchecked(&self, bytes: usize) -> bool {
        self.progress.bytes_written() + bytes as u64 > self.quota.free_space.look_at.load(Relaxed)
    }

    /// `QuotaExceeded` if a write needs more than what is free on the drive. Content that would be incomplete without
    /// the write fails with it: its close must not replace a complete file.
    pub(super) async fn check_room(&self, file: &OpenFile, at: WriteAt, bytes: usize) -> Result<()> {
        if !self.is_room_unchecked(bytes) || file.is_local() || file.is_unlinked() {
            return Ok(());
        }
        let grows = file.growth_by(at, bytes as u64);
        if grows == 0 {
            return Ok(());
        }
        // What was committed since the last answer needs space too.
        let committed =
            || self.progress.bytes_committed().saturating_sub(self.quota.free_space.committed.load(Relaxed));
        if self.has_room(grows.saturating_add(committed())) {
            return Ok(());
        }
        // The answer is used by the next write if it comes late.
        let _ = tokio::time::timeout(ASK_TIME_MAX, self.ask_for_quota()).await;
        let Some((asked, quota)) = self.quota.get() else { return Ok(()) };
        if self.has_room(grows.saturating_add(committed())) {
            return Ok(());
        }
        if asked.elapsed() > REFUSAL_TTL {
            // An old answer refuses nothing.
            let look_at = self.progress.bytes_written() + UNKNOWN_STEP_BYTES;
            self.quota.free_space.look_at.store(look_at, Relaxed);
            return Ok(());
        }
        let cause = Cause::DriveFull { room: Some(self.room(quota).await) };
        let error =
            Error::from_cause(ErrorKind::QuotaExceeded, cause, "unsaved files need more than is free");
        let ino = file.ino();
        if file.fail_incomplete(self.replaces_other(ino), &error) {
            self.failures.record(ino, Some(&error));
            let (op, ino, errno) = ("write", ino.0, error.errno());
            if error.claim_log_line() {
                tracing::error!(op, ino, errno, "{}: not saved: {error}", self.path_of(file.ino()));
            }
        }
        Err(error)
    }

    /// Whether the unsaved bytes of all files and `more` fit into the last known free space. Sets the next look.
    fn has_room(&self, more: u64) -> bool {
        let written = self.progress.bytes_written();
        let known = self.quota.get();
        if known.is_none_or(|(asked, _)| asked.elapsed() > QUOTA_TTL)
            && let Ok(vfs) = self.this()
        {
            self.upload_context.runtime.spawn(async move { vfs.refresh_quota().await });
        }
        let Some((_, quota)) = known else {
            self.quota.free_space.look_at.store(written + UNKNOWN_STEP_BYTES, Relaxed);
            return true;
        };
        let Some(total) = quota.total_bytes else {
            self.quota.free_space.look_at.store(written + STEP_BYTES_MAX, Relaxed);
            return true;
        };
        let free = total.saturating_sub(quota.used_bytes);
        // A file that does not fit alone, such as a sparse one, takes no room from others.
        let growths = self.files.all().into_iter().map(|file| file.unsaved_growth());
        let unsaved: u64 = growths.filter(|growth| *growth <= free).sum();
        let room = free.checked_sub(unsaved.saturating_add(more));
        let Some(room) = room else { return false };
        self.quota.free_space.look_at.store(written + (room / 2).min(STEP_BYTES_MAX), Relaxed);
        true
    }

    /// Asks for the quota unless the last answer is recent and nothing was removed since.
    async fn ask_for_quota(&self) {
        // A call may be running.
        drop(self.quota.refreshing.lock().await);
        let is_recent = |(asked, _): (Instant, Quota)| asked.elapsed() < REFUSAL_TTL;
        if self.quota.free_space.has_removed.swap(false, Relaxed) || !self.quota.get().is_some_and(is_recent)
        {
            self.refresh_quota().await;
        }
    }

    /// What a refusal says about the drive.
    async fn room(&self, quota: Quota) -> Room {
        let known = *self.quota.free_space.bin.lock();
        let bin = match known {
            Some((asked, bin)) if asked.elapsed() < BIN_TTL => Some(bin),
            _ => tokio::time::timeout(ASK_TIME_MAX, self.drive.bin_usage()).await.ok().and_then(Result::ok),
        };
        *self.quota.free_space.bin.lock() = bin.map(|bin| (Instant::now(), bin));
        let total = quota.total_bytes.unwrap_or(0);
        let recycled = bin.filter(|bin| bin.is_complete && bin.bytes > 0).map(|bin| bin.bytes);
        Room { free: total.saturating_sub(quota.used_bytes), total, recycled }
    }
}
