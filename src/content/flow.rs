//! What a writer, its uploader and the readers of an unsaved file share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::part::read_frames;
use crate::error::{Error, Result};
use crate::pds::frame::Frame;

/// Bytes at the beginning of a file that stay readable while it is open.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Frozen parts that the drive does not have yet, and the first failure.
#[derive(Debug, Default)]
pub struct Flow {
    /// A leaf lock.
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By file offset.
    held: BTreeMap<u64, Arc<[Frame]>>,
    /// A copy of the first bytes that outlives their acknowledgement: file managers look at the
    /// first block of what they copy. A copy, because a slab that is kept would never come back.
    head: Bytes,
    /// Stored parts, in bytes.
    acknowledged_bytes: u64,
    /// Acknowledged parts stay readable.
    keep_all: bool,
    failed: Option<Error>,
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A part was frozen.
    pub fn hold(&self, offset: u64, frames: Arc<[Frame]>, keep_head: bool) {
        let mut state = self.lock();
        if offset == 0
            && keep_head
            && let Some(Frame::Memory(first)) = frames.first()
        {
            state.head = Bytes::copy_from_slice(&first[..first.len().min(HEAD_BYTES_MAX)]);
        }
        if state.failed.is_none() {
            state.held.insert(offset, frames);
        }
    }

    /// The store has a part.
    pub fn acknowledge(&self, offset: u64, bytes: u64) {
        let mut state = self.lock();
        if !state.keep_all {
            state.held.remove(&offset);
        }
        state.acknowledged_bytes += bytes;
        drop(state);
        self.changed.notify_waiters();
    }

    /// From now on, parts stay readable after their acknowledgement.
    pub fn keep_all(&self) {
        self.lock().keep_all = true;
    }

    /// The upload has failed; the first failure stays.
    pub fn fail(&self, error: &Error) {
        let dropped = {
            let mut state = self.lock();
            state.failed.get_or_insert_with(|| error.clone());
            // Nothing of it will be acknowledged, and others may wait for the memory.
            std::mem::take(&mut state.held)
        };
        drop(dropped);
        self.changed.notify_waiters();
    }

    /// The failure, if any.
    pub fn check(&self) -> Result<()> {
        self.lock().failed.clone().map_or(Ok(()), Err)
    }

    /// Frozen parts that are not acknowledged.
    pub fn parts_held(&self) -> usize {
        self.lock().held.len()
    }

    /// Bytes that the store has.
    pub fn acknowledged_bytes(&self) -> u64 {
        self.lock().acknowledged_bytes
    }

    /// Resolves when a part was acknowledged, or the upload failed, after the call.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Copies bytes at `offset` into `out`: as many as one held part has; `None` where they are no
    /// longer held.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let state = self.lock();
        let part = state.held.range(..=offset).next_back().map(|(start, frames)| (*start, frames.clone()));
        let head = state.head.clone();
        drop(state);
        if let Some((start, frames)) = part {
            let count = read_frames(&frames, offset - start, out)?;
            if count > 0 {
                return Ok(Some(count));
            }
        }
        let count = read_frames(&[Frame::Memory(head)], offset, out)?;
        Ok((count > 0).then_some(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn frames(text: &'static str) -> Arc<[Frame]> {
        [Frame::Memory(Bytes::from_static(text.as_bytes()))].into()
    }

    #[test]
    fn held_parts_are_readable_and_the_head_stays() {
        let flow = Flow::default();
        flow.hold(0, frames("abc"), true);
        flow.hold(3, frames("def"), true);
        let mut out = [0; 8];
        assert_eq!(flow.read(4, &mut out).unwrap(), Some(2));
        assert_eq!(&out[..2], b"ef");
        flow.acknowledge(0, 3);
        flow.acknowledge(3, 3);
        assert_eq!(flow.read(1, &mut out).unwrap(), Some(2));
        assert_eq!(flow.read(4, &mut out).unwrap(), None);
        assert_eq!((flow.parts_held(), flow.acknowledged_bytes()), (0, 6));
    }

    #[test]
    fn the_first_failure_stays() {
        let flow = Flow::default();
        flow.fail(&Error::new(ErrorKind::QuotaExceeded, "full"));
        flow.fail(&Error::new(ErrorKind::Io, "later"));
        assert_eq!(flow.check().unwrap_err().kind(), ErrorKind::QuotaExceeded);
    }
}
