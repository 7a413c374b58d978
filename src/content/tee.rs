//! The tee: a stream's second copy, in a staged file.
//!
//! A sent part leaves memory once the drive has it. The tee writes each part to a staged file too, on a
//! thread of its own, so that a program can still read or change what was sent. The tee is optional. It may
//! pause its stream for a small share of the time. If the disk is slower than that or full, the stream goes
//! on without it. A file that needs disk space evicts tees, the largest first.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::disk_quota::{DiskQuota, Evictable};
use super::part::{FrozenPart, read_frames};
use super::staged_file::{Piece, StagedFile};
use crate::error::Result;

/// How long a stream waits for the disk before it drops its tee: this time, plus a fraction of its age.
const PAUSE_MAX: Duration = Duration::from_millis(300);
/// Divisor of the age of a stream: see [`PAUSE_MAX`].
const PAUSE_FRACTION: u32 = 20;

/// How long an eviction waits for the part being written.
const EVICT_WAIT_MAX: Duration = Duration::from_secs(2);

/// The tee of one stream.
#[derive(Clone, Debug)]
pub(super) struct Tee(Arc<TeeShared>);

#[derive(Debug)]
struct TeeShared {
    quota: Arc<DiskQuota>,
    started: Instant,
    /// Locked before the state of the staged file, never while that is written.
    state: Mutex<TeeState>,
    writer_idle: Condvar,
}

#[derive(Debug, Default)]
struct TeeState {
    /// Parts in order, the one being written first.
    backlog: VecDeque<FrozenPart>,
    /// A thread is writing the backlog.
    is_writing: bool,
    /// Bytes of the file that are written, from its beginning.
    written_bytes: u64,
    /// `None` if the disk failed or was too slow, or the tee was evicted: nothing is added any more.
    staged: Option<Arc<StagedFile>>,
    /// Time that the stream has waited for the disk, without the current pause.
    paused: Duration,
    paused_since: Option<Instant>,
}

impl Tee {
    /// A tee into a new staged file; `None` if that cannot be created.
    pub(super) fn new(quota: &Arc<DiskQuota>) -> Option<Self> {
        let state = TeeState { staged: Some(StagedFile::new(quota, None).ok()?), ..TeeState::default() };
        let (state, writer_idle) = (Mutex::new(state), Condvar::new());
        let shared =
            Arc::new(TeeShared { quota: quota.clone(), started: Instant::now(), state, writer_idle });
        let evictable: Weak<TeeShared> = Arc::downgrade(&shared);
        quota.add_evictable(evictable);
        Some(Self(shared))
    }

    fn lock(&self) -> MutexGuard<'_, TeeState> {
        self.0.state.lock()
    }

    /// Whether the stream should wait before its next part: the disk is behind, and has not paused the stream
    /// for long.
    pub(super) fn should_pause(&self) -> bool {
        let mut state = self.lock();
        if state.staged.is_none() {
            return false;
        }
        if !self.0.quota.is_tee_backlogged() {
            if let Some(since) = state.paused_since.take() {
                state.paused += since.elapsed();
            }
            return false;
        }
        let paused = state.paused + state.paused_since.get_or_insert_with(Instant::now).elapsed();
        if paused <= PAUSE_MAX + self.0.started.elapsed() / PAUSE_FRACTION {
            return true;
        }
        tracing::debug!("tee dropped: the stream is faster than the local disk");
        state.staged = None;
        false
    }

    /// Queues the next part. Does not wait.
    pub(super) fn push(&self, part: &FrozenPart, runtime: &tokio::runtime::Handle) {
        let mut state = self.lock();
        if state.staged.is_none() {
            return;
        }
        if !self.0.quota.queue_tee_part() {
            tracing::debug!("tee dropped: all streams together are faster than the local disk");
            state.staged = None;
            return;
        }
        state.backlog.push_back(part.clone());
        if !state.is_writing {
            state.is_writing = true;
            let tee = self.clone();
            runtime.spawn_blocking(move || tee.write_backlog());
        }
    }

    fn write_backlog(&self) {
        loop {
            let (next, staged) = {
                let state = self.lock();
                (state.backlog.front().cloned(), state.staged.clone())
            };
            let Some(part) = next else { return };
            let written = staged.is_some_and(|staged| {
                let written = staged.write_part(&part);
                written.inspect_err(|error| tracing::debug!(%error, "tee dropped: a write failed")).is_ok()
            });
            drop(part);
            let mut state = self.lock();
            if written && state.staged.is_some() {
                if let Some(part) = state.backlog.pop_front() {
                    self.0.quota.finish_tee_parts(1);
                    state.written_bytes = part.offset + part.bytes;
                }
            } else {
                state.staged = None;
                self.0.quota.finish_tee_parts(state.backlog.len());
                state.backlog.clear();
            }
            if state.backlog.is_empty() {
                state.is_writing = false;
                drop(state);
                self.0.writer_idle.notify_all();
                return;
            }
        }
    }

    /// The staged file, if it has exactly the first `bytes`. Waits for the backlog; blocks for the local
    /// disk.
    pub(super) fn wait_for_file(&self, bytes: u64) -> Option<Arc<StagedFile>> {
        let mut state = self.lock();
        while state.is_writing {
            self.0.writer_idle.wait(&mut state);
        }
        state.staged.clone().filter(|_| state.written_bytes == bytes)
    }

    /// The staged file, if it has exactly `bytes` already.
    pub(super) fn finished_file(&self, bytes: u64) -> Option<Arc<StagedFile>> {
        let state = self.lock();
        state.staged.clone().filter(|staged| state.written_bytes == bytes && staged.size() == bytes)
    }

    /// Copies bytes at `offset` into `out`: at least one pushed byte, or none if the tee was dropped.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let (written_bytes, queued, staged) = {
            let state = self.lock();
            let holds = |part: &&FrozenPart| (part.offset..part.offset + part.bytes).contains(&offset);
            (state.written_bytes, state.backlog.iter().find(holds).cloned(), state.staged.clone())
        };
        if let Some(part) = queued {
            return read_frames(&part.frames, offset - part.offset, out);
        }
        let Some(staged) = staged else { return Ok(0) };
        let len = written_bytes.saturating_sub(offset).min(out.len() as u64);
        let mut done = 0;
        for piece in staged.read(offset, len)? {
            if let Piece::Data(bytes) = piece {
                out[done..done + bytes.len()].copy_from_slice(&bytes);
                done += bytes.len();
            }
        }
        Ok(done)
    }
}

impl Evictable for TeeShared {
    fn bytes(&self) -> u64 {
        self.state.lock().written_bytes
    }

    fn evict(&self) -> bool {
        let mut state = self.state.lock();
        if state.staged.take().is_none() {
            return false;
        }
        tracing::debug!("tee dropped: its disk space is needed");
        // The writing thread holds the space until it has written its part.
        let end = Instant::now() + EVICT_WAIT_MAX;
        while state.is_writing && Instant::now() < end {
            self.writer_idle.wait_until(&mut state, end);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PartNumber;
    use crate::pds::part_body::Frame;

    fn part(offset: u64, bytes: &'static [u8]) -> FrozenPart {
        let frames = [Frame::Memory(bytes::Bytes::from_static(bytes))].into();
        FrozenPart { number: PartNumber::FIRST, offset, bytes: bytes.len() as u64, frames }
    }

    #[tokio::test]
    async fn parts_are_written_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let tee = Tee::new(&DiskQuota::new(dir.path(), None, 0)).unwrap();
        let runtime = tokio::runtime::Handle::current();
        tee.push(&part(0, b"abc"), &runtime);
        tee.push(&part(3, b"def"), &runtime);
        let (waiting, pieces) = (tee.clone(), b"abcdef");
        let staged = tokio::task::spawn_blocking(move || waiting.wait_for_file(6)).await.unwrap().unwrap();
        assert_eq!(staged.read(0, 9).unwrap(), [Piece::Data(bytes::Bytes::from_static(pieces))]);
        let mut out = [0; 4];
        assert_eq!((tee.read(4, &mut out).unwrap(), &out[..2]), (2, &b"ef"[..]));
        assert_eq!(tee.read(6, &mut out).unwrap(), 0);
        tee.lock().backlog.push_back(part(6, b"ghi"));
        assert_eq!((tee.read(7, &mut out).unwrap(), &out[..2]), (2, &b"hi"[..]));
        tee.lock().backlog.clear();
        assert!(tee.finished_file(6).is_some() && tee.finished_file(5).is_none());
    }

    #[test]
    fn stream_waits_for_the_disk_but_not_long() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(dir.path(), None, 0);
        let tee = Tee::new(&quota).unwrap();
        assert!(!tee.should_pause());
        let waiting = std::iter::repeat_with(|| quota.queue_tee_part()).take_while(|waits| *waits).count();
        assert!(tee.should_pause());
        quota.finish_tee_parts(waiting);
        assert!(!tee.should_pause());
        assert!(tee.lock().paused > Duration::ZERO);
        assert!(
            std::iter::repeat_with(|| quota.queue_tee_part()).take_while(|waits| *waits).count() == waiting
        );
        tee.lock().paused = Duration::from_secs(3600);
        assert!(!tee.should_pause() && tee.lock().staged.is_none());
        assert!(tee.finished_file(0).is_none());
    }

    #[tokio::test]
    async fn needed_file_evicts_the_largest_tee() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(dir.path(), Some(10), 0);
        let (small, large) = (Tee::new(&quota).unwrap(), Tee::new(&quota).unwrap());
        let runtime = tokio::runtime::Handle::current();
        small.push(&part(0, b"abc"), &runtime);
        large.push(&part(0, b"abcdef"), &runtime);
        let done = [(small.clone(), 3), (large.clone(), 6)];
        for (tee, bytes) in done {
            let staged = tokio::task::spawn_blocking(move || tee.wait_for_file(bytes)).await.unwrap();
            assert!(staged.is_some(), "{bytes}");
        }
        // A tee evicts no other tee.
        large.push(&part(6, b"ghij"), &runtime);
        let waiting = large.clone();
        assert!(tokio::task::spawn_blocking(move || waiting.wait_for_file(10)).await.unwrap().is_none());
        assert_eq!(quota.reserved_bytes(), 3);
        let needed = StagedFile::new(&quota, None).unwrap();
        needed.write(0, b"7 bytes").unwrap();
        assert!(small.finished_file(3).is_some());
        needed.write(7, b"8").unwrap();
        assert!(small.finished_file(3).is_none());
        assert!(needed.write(8, b"and more").is_err());
    }

    #[tokio::test]
    async fn tee_without_space_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let tee = Tee::new(&DiskQuota::new(dir.path(), Some(4), 0)).unwrap();
        let runtime = tokio::runtime::Handle::current();
        tee.push(&part(0, b"abc"), &runtime);
        tee.push(&part(3, b"def"), &runtime);
        let waiting = tee.clone();
        assert!(tokio::task::spawn_blocking(move || waiting.wait_for_file(6)).await.unwrap().is_none());
        tee.push(&part(6, b"g"), &runtime);
        assert!(tee.finished_file(7).is_none());
    }
}
