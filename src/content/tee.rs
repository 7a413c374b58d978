//! The copy of what is streamed, made behind the writer's back.
//!
//! Parts that have left are gone from memory once the drive has them. The tee writes them to a staged
//! copy as well, on a thread of its own, so that a program may still go back to them. It is worth
//! something and never needed: it may hold up its stream for a small share of the time, and where the disk
//! is slower than that, or has no room, the stream goes on without it. Where a copy that is needed finds no room, it
//! gives way, the largest first.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::part::read_frames;
use super::shipper::FrozenPart;
use super::space::{Space, Spare};
use super::staged::{Piece, Staged};
use crate::error::Result;

/// How long a stream waits for the disk before its copy is given up: so long at once, and one part in so many
/// of the time that it has taken.
const STALL: Duration = Duration::from_millis(300);
const STALL_SHARE: u32 = 20;

/// How long the room of a copy that is being written to is waited for.
const GIVE_WAY_MAX: Duration = Duration::from_secs(2);

/// What a live upload copies to.
#[derive(Clone, Debug)]
pub struct Tee(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    space: Arc<Space>,
    began: Instant,
    /// A leaf lock.
    state: Mutex<State>,
    caught_up: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// In order, those being written too.
    backlog: std::collections::VecDeque<FrozenPart>,
    /// A thread is at work on the backlog.
    is_busy: bool,
    /// From the beginning of the file to here, everything is in the copy.
    copied: u64,
    /// `None` when the disk has failed or was too slow, or its room was needed: nothing is added any more.
    copy: Option<Arc<Staged>>,
    /// How long the stream has waited for the disk, without the wait under way.
    stalled: Duration,
    stalled_since: Option<Instant>,
}

impl Tee {
    /// A tee into a new copy; none where there is no room for one.
    pub fn new(space: &Arc<Space>) -> Option<Self> {
        let state = State { copy: Some(Staged::new(space, None).ok()?), ..State::default() };
        let (state, caught_up) = (Mutex::new(state), Condvar::new());
        let inner = Arc::new(Inner { space: space.clone(), began: Instant::now(), state, caught_up });
        let spare: Weak<Inner> = Arc::downgrade(&inner);
        space.add_spare(spare);
        Some(Self(inner))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Whether the stream should wait a moment before it begins its next part: the disk is behind, and has
    /// not held it up for long.
    pub fn holds_up(&self) -> bool {
        let mut state = self.lock();
        if state.copy.is_none() {
            return false;
        }
        if !self.0.space.is_behind() {
            if let Some(since) = state.stalled_since.take() {
                state.stalled += since.elapsed();
            }
            return false;
        }
        let stalled = state.stalled + state.stalled_since.get_or_insert_with(Instant::now).elapsed();
        if stalled <= STALL + self.0.began.elapsed() / STALL_SHARE {
            return true;
        }
        tracing::debug!("a stream is faster than the local disk; it goes on without a copy");
        state.copy = None;
        false
    }

    /// Takes the next part. Does not wait.
    pub fn push(&self, part: &FrozenPart, runtime: &tokio::runtime::Handle) {
        let mut state = self.lock();
        if state.copy.is_none() {
            return;
        }
        if !self.0.space.part_waits() {
            tracing::debug!("too many streams are faster than the local disk; one goes on without a copy");
            state.copy = None;
            return;
        }
        state.backlog.push_back(part.clone());
        if !state.is_busy {
            state.is_busy = true;
            let tee = self.clone();
            runtime.spawn_blocking(move || tee.work());
        }
    }

    /// Writes until nothing is left to write.
    fn work(&self) {
        loop {
            let (next, copy) = {
                let state = self.lock();
                (state.backlog.front().cloned(), state.copy.clone())
            };
            let Some(part) = next else { return };
            let written = copy.is_some_and(|copy| {
                let written = copy.write_part(&part);
                written
                    .inspect_err(|error| tracing::debug!(%error, "a stream goes on without a local copy"))
                    .is_ok()
            });
            drop(part);
            let mut state = self.lock();
            if written && state.copy.is_some() {
                if let Some(done) = state.backlog.pop_front() {
                    self.0.space.parts_done(1);
                    state.copied = done.offset + done.bytes;
                }
            } else {
                state.copy = None;
                self.0.space.parts_done(state.backlog.len());
                state.backlog.clear();
            }
            if state.backlog.is_empty() {
                state.is_busy = false;
                drop(state);
                self.0.caught_up.notify_all();
                return;
            }
        }
    }

    /// The copy of the first `bytes`, if it has all of them; what is under way is waited for. Blocks for
    /// the local disk.
    pub fn copy_of(&self, bytes: u64) -> Option<Arc<Staged>> {
        let mut state = self.lock();
        while state.is_busy {
            state = self.0.caught_up.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.copy.clone().filter(|_| state.copied == bytes)
    }

    /// The copy, if it is one of exactly `bytes` already.
    pub fn finished_copy(&self, bytes: u64) -> Option<Arc<Staged>> {
        let state = self.lock();
        state.copy.clone().filter(|copy| state.copied == bytes && copy.size() == bytes)
    }

    /// Copies bytes at `offset` into `out`: at least one of what was pushed, unless the tee is broken.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let (copied, waiting, copy) = {
            let state = self.lock();
            let holds = |part: &&FrozenPart| (part.offset..part.offset + part.bytes).contains(&offset);
            (state.copied, state.backlog.iter().find(holds).cloned(), state.copy.clone())
        };
        if let Some(part) = waiting {
            return read_frames(&part.frames, offset - part.offset, out);
        }
        let Some(copy) = copy else { return Ok(0) };
        let len = copied.saturating_sub(offset).min(out.len() as u64);
        let mut done = 0;
        for piece in copy.read(offset, len)? {
            if let Piece::Here(bytes) = piece {
                out[done..done + bytes.len()].copy_from_slice(&bytes);
                done += bytes.len();
            }
        }
        Ok(done)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spare for Inner {
    fn bytes(&self) -> u64 {
        self.lock().copied
    }

    fn give_way(&self) -> bool {
        let mut state = self.lock();
        if state.copy.take().is_none() {
            return false;
        }
        tracing::debug!("a stream goes on without a local copy: its room is needed");
        // Who writes to it holds the room to the end of a part.
        let end = Instant::now() + GIVE_WAY_MAX;
        while state.is_busy && Instant::now() < end {
            let waited = self.caught_up.wait_timeout(state, GIVE_WAY_MAX);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PartNumber;
    use crate::pds::frame::Frame;

    fn part(offset: u64, bytes: &'static [u8]) -> FrozenPart {
        let frames = [Frame::Memory(bytes::Bytes::from_static(bytes))].into();
        FrozenPart { number: PartNumber::FIRST, offset, bytes: bytes.len() as u64, frames }
    }

    #[tokio::test]
    async fn parts_come_to_the_copy_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let tee = Tee::new(&Space::new(folder.path(), None, 0)).unwrap();
        let runtime = tokio::runtime::Handle::current();
        tee.push(&part(0, b"abc"), &runtime);
        tee.push(&part(3, b"def"), &runtime);
        let (waiting, pieces) = (tee.clone(), b"abcdef");
        let copy = tokio::task::spawn_blocking(move || waiting.copy_of(6)).await.unwrap().unwrap();
        assert_eq!(copy.read(0, 9).unwrap(), [Piece::Here(bytes::Bytes::from_static(pieces))]);
        let mut out = [0; 4];
        assert_eq!((tee.read(4, &mut out).unwrap(), &out[..2]), (2, &b"ef"[..]));
        assert_eq!(tee.read(6, &mut out).unwrap(), 0);
        tee.lock().backlog.push_back(part(6, b"ghi"));
        assert_eq!((tee.read(7, &mut out).unwrap(), &out[..2]), (2, &b"hi"[..]));
        tee.lock().backlog.clear();
        assert!(tee.finished_copy(6).is_some() && tee.finished_copy(5).is_none());
    }

    #[test]
    fn a_stream_waits_for_the_disk_but_not_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path(), None, 0);
        let tee = Tee::new(&space).unwrap();
        assert!(!tee.holds_up());
        let waiting = std::iter::repeat_with(|| space.part_waits()).take_while(|waits| *waits).count();
        assert!(tee.holds_up());
        space.parts_done(waiting);
        assert!(!tee.holds_up());
        assert!(tee.lock().stalled > Duration::ZERO);
        assert!(std::iter::repeat_with(|| space.part_waits()).take_while(|waits| *waits).count() == waiting);
        tee.lock().stalled = Duration::from_secs(3600);
        assert!(!tee.holds_up() && tee.lock().copy.is_none());
        assert!(tee.finished_copy(0).is_none());
    }

    #[tokio::test]
    async fn it_gives_way_to_what_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path(), Some(10), 0);
        let (small, large) = (Tee::new(&space).unwrap(), Tee::new(&space).unwrap());
        let runtime = tokio::runtime::Handle::current();
        small.push(&part(0, b"abc"), &runtime);
        large.push(&part(0, b"abcdef"), &runtime);
        let done = [(small.clone(), 3), (large.clone(), 6)];
        for (tee, bytes) in done {
            let copy = tokio::task::spawn_blocking(move || tee.copy_of(bytes)).await.unwrap();
            assert!(copy.is_some(), "{bytes}");
        }
        // No spare copy takes the room of another one.
        large.push(&part(6, b"ghij"), &runtime);
        let waiting = large.clone();
        assert!(tokio::task::spawn_blocking(move || waiting.copy_of(10)).await.unwrap().is_none());
        assert_eq!(space.taken_bytes(), 3);
        let needed = Staged::new(&space, None).unwrap();
        needed.write(0, b"7 bytes").unwrap();
        assert!(small.finished_copy(3).is_some());
        needed.write(7, b"8").unwrap();
        assert!(small.finished_copy(3).is_none());
        assert!(needed.write(8, b"and more").is_err());
    }

    #[tokio::test]
    async fn without_room_there_is_no_copy_and_nothing_else_happens() {
        let folder = tempfile::tempdir().unwrap();
        let tee = Tee::new(&Space::new(folder.path(), Some(4), 0)).unwrap();
        let runtime = tokio::runtime::Handle::current();
        tee.push(&part(0, b"abc"), &runtime);
        tee.push(&part(3, b"def"), &runtime);
        let waiting = tee.clone();
        assert!(tokio::task::spawn_blocking(move || waiting.copy_of(6)).await.unwrap().is_none());
        tee.push(&part(6, b"g"), &runtime);
        assert!(tee.finished_copy(7).is_none());
    }
}
