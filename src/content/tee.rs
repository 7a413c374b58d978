//! The tee: a stream's second copy, in a staged file.
//!
//! A sent part leaves memory once the drive has it. The tee writes each part to a staged file too, in the
//! background, so that a program can still read or change what was sent. A stream never waits for its tee: if the
//! disk is full, or falls behind the drive, the stream goes on without it. A file that needs disk space evicts
//! tees, the largest first.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::disk_quota::Evictable;
use super::part::{FrozenPart, slice_frames};
use super::staged_file::{Piece, StagedFile};
use super::tee_queue::TeeQueue;
use crate::error::{Error, ErrorKind, Result};
use crate::pds::part_body::Frame;

/// How long an eviction waits for the part being written.
const EVICT_WAIT_MAX: Duration = Duration::from_secs(2);

/// The tee of one stream. With its last clone the file is dropped, unless another owner has it by then.
#[derive(Clone, Debug)]
pub(super) struct Tee(Arc<TeeOwner>);

#[derive(Debug)]
struct TeeOwner(Arc<TeeShared>);

impl Drop for TeeOwner {
    fn drop(&mut self) {
        self.0.drop_file(&mut self.0.lock());
    }
}

/// Shared by the stream and the task that writes.
#[derive(Debug)]
struct TeeShared {
    queue: Arc<TeeQueue>,
    /// Locked before the state of the staged file. Never held over I/O.
    state: Mutex<TeeState>,
    part_ended: Condvar,
}

#[derive(Debug, Default)]
struct TeeState {
    /// Parts to write, in order.
    backlog: VecDeque<FrozenPart>,
    /// The part that is being written.
    current: Option<FrozenPart>,
    /// A task is writing. It goes on until the backlog is empty.
    is_writing: bool,
    /// Bytes of the file that are written, from its beginning.
    written_bytes: u64,
    file: TeeFile,
}

#[derive(Debug, Default)]
enum TeeFile {
    /// Created with the first part.
    #[default]
    Pending,
    Open(Arc<StagedFile>),
    /// The disk failed or was too slow, or the tee was evicted: nothing is added any more.
    Dropped,
}

impl TeeFile {
    fn open(&self) -> Option<&Arc<StagedFile>> {
        match self {
            Self::Open(staged) => Some(staged),
            Self::Pending | Self::Dropped => None,
        }
    }

    fn is_dropped(&self) -> bool {
        matches!(self, Self::Dropped)
    }
}

impl Tee {
    /// A tee without a file. `None` if staged files are disabled.
    pub(super) fn new(queue: &Arc<TeeQueue>) -> Option<Self> {
        if queue.quota().is_disabled() {
            return None;
        }
        let (queue, state) = (queue.clone(), Mutex::default());
        let shared = Arc::new(TeeShared { queue, state, part_ended: Condvar::new() });
        let evictable: Weak<TeeShared> = Arc::downgrade(&shared);
        shared.queue.quota().add_evictable(evictable);
        Some(Self(Arc::new(TeeOwner(shared))))
    }

    fn shared(&self) -> &Arc<TeeShared> {
        &self.0.0
    }

    fn lock(&self) -> MutexGuard<'_, TeeState> {
        self.shared().lock()
    }

    /// Queues the next part. Does not wait.
    pub(super) fn push(&self, part: &FrozenPart, runtime: &tokio::runtime::Handle) {
        let mut state = self.lock();
        if state.file.is_dropped() {
            return;
        }
        if !self.shared().queue.add_part(part.bytes) {
            tracing::debug!("tee dropped: the drive is faster than the local disk");
            self.shared().drop_file(&mut state);
            return;
        }
        state.backlog.push_back(part.clone());
        if !state.is_writing {
            state.is_writing = true;
            runtime.spawn(self.shared().clone().write_backlog());
        }
    }

    /// The staged file, if it has the first `bytes` and the tee wrote no others. Waits for the backlog, as long
    /// as the disk makes progress.
    pub(super) async fn wait_for_file(&self, bytes: u64) -> Result<Option<Arc<StagedFile>>> {
        let queue = &self.shared().queue;
        loop {
            // Created before the look, so that no notification in between is missed.
            let part_written = queue.part_written();
            {
                let state = self.lock();
                if state.file.is_dropped() || state.written_bytes == bytes && !state.is_writing {
                    return Ok(state.file.open().cloned());
                }
                if !state.is_writing {
                    return Ok(None);
                }
            }
            queue.quota().disk().in_time(part_written).await?;
        }
    }

    /// The staged file, if it has exactly `bytes` already.
    pub(super) fn finished_file(&self, bytes: u64) -> Option<Arc<StagedFile>> {
        let state = self.lock();
        let staged = state.file.open()?;
        (state.written_bytes == bytes && staged.size() == bytes).then(|| staged.clone())
    }

    /// Bytes `offset..offset + len`, at most to the end of one part; none if the tee does not have the first.
    pub(super) fn read(&self, offset: u64, len: u64) -> Vec<Frame> {
        let state = self.lock();
        let holds = |part: &&FrozenPart| (part.offset..part.offset + part.bytes).contains(&offset);
        let Some(staged) = state.file.open().filter(|_| offset < state.written_bytes) else {
            let part = state.current.iter().chain(&state.backlog).find(holds);
            return part.map_or_else(Vec::new, |part| slice_frames(&part.frames, offset - part.offset, len));
        };
        let pieces = staged.read(offset, len.min(state.written_bytes - offset));
        let local = pieces.into_iter().map_while(|piece| match piece {
            Piece::Local(frame) => Some(frame),
            Piece::Base { .. } => None,
        });
        local.collect()
    }
}

impl TeeShared {
    fn lock(&self) -> MutexGuard<'_, TeeState> {
        self.state.lock()
    }

    /// Drops the file and the backlog, so that their space and memory are free at once. A part that is being
    /// written stays in memory and counts until the disk has it.
    fn drop_file(&self, state: &mut TeeState) {
        state.file = TeeFile::Dropped;
        state.current = None;
        let backlog = std::mem::take(&mut state.backlog);
        self.queue.finish_parts(backlog.iter().map(|part| part.bytes).sum());
    }

    async fn write_backlog(self: Arc<Self>) {
        while let Some(part) = self.next_part() {
            let (tee, range) = (self.clone(), part.offset..part.offset + part.bytes);
            let disk = self.queue.quota().disk();
            let written = disk.run_in_background(move || tee.write_part(&part)).await;
            self.end_part(range, written);
        }
    }

    /// Takes the next part of the backlog. Without one the task ends.
    fn next_part(&self) -> Option<FrozenPart> {
        let mut state = self.lock();
        state.current = state.backlog.pop_front();
        state.is_writing = state.current.is_some();
        let part = state.current.clone();
        drop(state);
        if part.is_none() {
            self.queue.finish_parts(0);
        }
        part
    }

    /// Blocks for the local disk.
    fn write_part(&self, part: &FrozenPart) -> Result<()> {
        let dropped = || Error::new(ErrorKind::Cancelled, "the tee was dropped");
        let open = match &self.lock().file {
            TeeFile::Open(staged) => Some(staged.clone()),
            TeeFile::Pending => None,
            TeeFile::Dropped => return Err(dropped()),
        };
        let staged = if let Some(staged) = open {
            staged
        } else {
            let new = StagedFile::new_tee(self.queue.quota())?;
            let mut state = self.lock();
            if state.file.is_dropped() {
                return Err(dropped());
            }
            state.file = TeeFile::Open(new.clone());
            new
        };
        staged.write_part(part)
    }

    fn end_part(&self, range: Range<u64>, written: Result<()>) {
        let mut state = self.lock();
        state.current = None;
        match written {
            _ if state.file.is_dropped() => {}
            Ok(()) => state.written_bytes = range.end,
            Err(error) => {
                tracing::debug!(%error, "tee dropped: a write failed");
                self.drop_file(&mut state);
            }
        }
        drop(state);
        self.queue.finish_parts(range.end - range.start);
        self.part_ended.notify_all();
    }
}

impl Evictable for TeeShared {
    fn bytes(&self) -> u64 {
        self.lock().written_bytes
    }

    fn evict(&self) -> bool {
        let mut state = self.lock();
        if state.file.open().is_none() {
            return false;
        }
        tracing::debug!("tee dropped: its disk space is needed");
        let is_busy = state.current.is_some();
        self.drop_file(&mut state);
        // The writing thread holds the space until it has written its part.
        if is_busy {
            self.part_ended.wait_until(&mut state, Instant::now() + EVICT_WAIT_MAX);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::disk_quota::DiskQuota;
    use crate::ids::PartNumber;
    use crate::local_disk::LocalDisk;
    use crate::pds::part_body::load;

    fn part(offset: u64, bytes: &'static [u8]) -> FrozenPart {
        let frames = [Frame::Memory(bytes::Bytes::from_static(bytes))].into();
        FrozenPart { number: PartNumber::FIRST, offset, bytes: bytes.len() as u64, frames }
    }

    fn queue(dir: &tempfile::TempDir, bytes_max: Option<u64>) -> Arc<TeeQueue> {
        TeeQueue::new(DiskQuota::new(LocalDisk::of(dir), bytes_max, 0), 64)
    }

    #[tokio::test]
    async fn parts_are_written_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let tee = Tee::new(&queue(&dir, None)).unwrap();
        let runtime = tokio::runtime::Handle::current();
        tee.push(&part(0, b"abc"), &runtime);
        // Unwritten parts are read from memory.
        assert_eq!(load(tee.read(1, 9)).await.unwrap(), b"bc"[..]);
        tee.push(&part(3, b"def"), &runtime);
        let staged = tee.wait_for_file(6).await.unwrap().unwrap();
        assert_eq!(staged.size(), 6);
        assert_eq!(load(tee.read(0, 9)).await.unwrap(), b"abcdef"[..]);
        assert!(tee.read(6, 1).is_empty());
        assert!(tee.finished_file(6).is_some() && tee.finished_file(5).is_none());
        assert!(tee.wait_for_file(5).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn disk_work_of_a_new_stream_is_in_the_background() {
        let dir = tempfile::tempdir().unwrap();
        let queue = queue(&dir, None);
        let busy = [(); 2].map(|()| {
            let (release, released) = std::sync::mpsc::channel::<()>();
            let quota = queue.quota().clone();
            tokio::spawn(async move {
                let hang = move || Ok(released.recv().is_ok());
                quota.disk().run_in_background(hang).await
            });
            release
        });
        tokio::task::yield_now().await;
        let tee = Tee::new(&queue).unwrap();
        tee.push(&part(0, b"abc"), &tokio::runtime::Handle::current());
        tokio::task::yield_now().await;
        assert!(matches!(tee.lock().file, TeeFile::Pending), "a file was created in the stream's thread");
        drop(busy);
        assert!(tee.wait_for_file(3).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn tees_beyond_the_queue_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let queue = TeeQueue::new(DiskQuota::new(LocalDisk::of(&dir), None, 0), 24);
        let (first, second) = (Tee::new(&queue).unwrap(), Tee::new(&queue).unwrap());
        let runtime = tokio::runtime::Handle::current();
        // No task writes before the next wait.
        first.push(&part(0, b"abc"), &runtime);
        second.push(&part(0, b"abcd"), &runtime);
        assert!(!first.lock().file.is_dropped() && second.lock().file.is_dropped());
        assert!(first.wait_for_file(3).await.unwrap().is_some());
        first.push(&part(3, b"def"), &runtime);
        assert!(first.wait_for_file(6).await.unwrap().is_some());
        assert!(second.wait_for_file(4).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn ended_stream_returns_memory_of_its_backlog() {
        let dir = tempfile::tempdir().unwrap();
        let queue = queue(&dir, None);
        let tee = Tee::new(&queue).unwrap();
        let (bytes, memory) = (Arc::new(()), part(0, b"abc"));
        let backlog = FrozenPart {
            frames: [Frame::Memory(bytes::Bytes::from_owner(Held(bytes.clone())))].into(),
            ..memory
        };
        tee.lock().is_writing = true;
        tee.push(&backlog, &tokio::runtime::Handle::current());
        drop(backlog);
        assert_eq!(Arc::strong_count(&bytes), 2);
        drop(tee);
        assert_eq!(Arc::strong_count(&bytes), 1);
        assert!(queue.add_part(16), "the backlog still counts");
    }

    struct Held(#[allow(dead_code, reason = "counted")] Arc<()>);

    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            b"abc"
        }
    }

    #[tokio::test]
    async fn needed_file_evicts_the_largest_tee() {
        let dir = tempfile::tempdir().unwrap();
        let queue = queue(&dir, Some(10));
        let (small, large) = (Tee::new(&queue).unwrap(), Tee::new(&queue).unwrap());
        let runtime = tokio::runtime::Handle::current();
        small.push(&part(0, b"abc"), &runtime);
        large.push(&part(0, b"abcdef"), &runtime);
        assert!(small.wait_for_file(3).await.unwrap().is_some());
        assert!(large.wait_for_file(6).await.unwrap().is_some());
        // A tee evicts no other tee.
        large.push(&part(6, b"ghij"), &runtime);
        assert!(large.wait_for_file(10).await.unwrap().is_none());
        queue.quota().disk().wait_closed();
        assert_eq!(queue.quota().reserved_bytes(), 3);
        let needed = StagedFile::new(queue.quota(), None, None).unwrap();
        needed.write(0, b"7 bytes").unwrap();
        assert!(small.finished_file(3).is_some());
        needed.write(7, b"8").unwrap();
        assert!(small.finished_file(3).is_none());
        assert!(needed.write(8, b"and more").is_err());
    }

    #[tokio::test]
    async fn tee_without_space_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let tee = Tee::new(&queue(&dir, Some(4))).unwrap();
        let runtime = tokio::runtime::Handle::current();
        tee.push(&part(0, b"abc"), &runtime);
        tee.push(&part(3, b"def"), &runtime);
        assert!(tee.wait_for_file(6).await.unwrap().is_none());
        tee.push(&part(6, b"g"), &runtime);
        assert!(tee.finished_file(7).is_none());
    }
}
