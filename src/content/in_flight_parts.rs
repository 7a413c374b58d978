//! The parts in flight of one file: shared by its writer, its uploader and its readers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::part::slice_frames;
use super::upload_limiter::PartAhead;
use crate::error::{Error, Result};
use crate::pds::part_body::Frame;

/// Bytes at the beginning of a file that stay readable after their acknowledgement.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Frozen parts that the drive has not acknowledged, and the first failure of the upload.
#[derive(Debug, Default)]
pub struct InFlightParts {
    /// A leaf lock.
    state: Mutex<InFlightState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct InFlightState {
    /// By file offset.
    parts: BTreeMap<u64, Arc<[Frame]>>,
    /// A copy of the first bytes: file managers read the first block of a file that they copy. The slab
    /// itself cannot stay, as it belongs to the buffer pool.
    head: Bytes,
    /// One for each part in flight that counts for the lead of the mount.
    ahead: Vec<PartAhead>,
    acknowledged_bytes: u64,
    /// Acknowledged parts stay readable.
    retain_all: bool,
    failed: Option<Error>,
}

impl InFlightParts {
    fn lock(&self) -> MutexGuard<'_, InFlightState> {
        self.state.lock()
    }

    /// Adds a frozen part. With `keep_head`, the first bytes of the file are copied.
    pub(super) fn insert(&self, offset: u64, frames: Arc<[Frame]>, keep_head: bool) {
        let mut state = self.lock();
        if offset == 0
            && keep_head
            && let Some(Frame::Memory(first)) = frames.first()
        {
            state.head = Bytes::copy_from_slice(&first[..first.len().min(HEAD_BYTES_MAX)]);
        }
        if state.failed.is_none() {
            state.parts.insert(offset, frames);
        }
    }

    /// Counts a part for the lead of the mount, until it is acknowledged or pauses, or the upload fails.
    pub(super) fn count_ahead(&self, part: PartAhead) {
        let mut state = self.lock();
        if state.failed.is_none() {
            state.ahead.push(part);
        }
    }

    /// A part will be sent again later. Meanwhile it takes nothing from the lead of other files.
    pub(super) fn pause_part(&self) {
        self.lock().ahead.pop();
    }

    /// Removes a part that the drive has.
    pub(super) fn acknowledge(&self, offset: u64, bytes: u64) {
        let mut state = self.lock();
        if !state.retain_all {
            state.parts.remove(&offset);
        }
        state.ahead.pop();
        state.acknowledged_bytes += bytes;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Keeps parts readable after their acknowledgement, from now on.
    pub(super) fn retain_all(&self) {
        self.lock().retain_all = true;
    }

    /// Records a failure of the upload. The first one stays.
    pub(super) fn fail(&self, error: &Error) {
        let dropped = {
            let mut state = self.lock();
            state.failed.get_or_insert_with(|| error.clone());
            // No part will be acknowledged, and other files may wait for the memory.
            state.ahead.clear();
            std::mem::take(&mut state.parts)
        };
        drop(dropped);
        self.changed.notify_waiters();
    }

    /// The failure of the upload, if any.
    pub(super) fn check(&self) -> Result<()> {
        self.lock().failed.clone().map_or(Ok(()), Err)
    }

    /// Number of parts that are not acknowledged.
    pub(super) fn count(&self) -> usize {
        self.lock().parts.len()
    }

    /// Makes writers look again whether they have to wait.
    pub(super) fn wake_writers(&self) {
        self.changed.notify_waiters();
    }

    /// Resolves when a part is acknowledged or the upload ends after this call.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Bytes `offset..offset + len`, at most to the end of one part. `None` if no part here has the first.
    pub(super) fn read(&self, offset: u64, len: u64) -> Option<Vec<Frame>> {
        let state = self.lock();
        let part = state.parts.range(..=offset).next_back();
        let found = part.map_or_else(Vec::new, |(start, frames)| slice_frames(frames, offset - start, len));
        let found = if found.is_empty() {
            slice_frames(&[Frame::Memory(state.head.clone())], offset, len)
        } else {
            found
        };
        (!found.is_empty()).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::upload_limiter::UploadLimiter;
    use crate::error::ErrorKind;

    fn frames(text: &'static str) -> Arc<[Frame]> {
        [Frame::Memory(Bytes::from_static(text.as_bytes()))].into()
    }

    fn read(in_flight: &InFlightParts, offset: u64) -> Option<Vec<u8>> {
        let frames = in_flight.read(offset, 8)?;
        let memory = frames.into_iter().map(|frame| match frame {
            Frame::Memory(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        });
        Some(memory.flatten().collect())
    }

    #[test]
    fn head_outlives_its_acknowledgement() {
        let in_flight = InFlightParts::default();
        in_flight.insert(0, frames("abc"), true);
        in_flight.insert(3, frames("def"), true);
        assert_eq!(read(&in_flight, 4).unwrap(), b"ef");
        in_flight.acknowledge(0, 3);
        in_flight.acknowledge(3, 3);
        assert_eq!(read(&in_flight, 1).unwrap(), b"bc");
        assert_eq!(read(&in_flight, 4), None);
        assert_eq!((in_flight.count(), in_flight.lock().acknowledged_bytes), (0, 6));
    }

    #[test]
    fn paused_and_failed_parts_take_no_lead() {
        let limiter = UploadLimiter::new(4, 8 << 20);
        let in_flight = InFlightParts::default();
        (0..4).for_each(|_| in_flight.count_ahead(limiter.count_ahead()));
        assert!(!limiter.may_begin_part(2) && limiter.may_begin_part(1));
        in_flight.pause_part();
        assert!(limiter.may_begin_part(2));
        in_flight.count_ahead(limiter.count_ahead());
        assert!(!limiter.may_begin_part(2));
        in_flight.acknowledge(0, 1);
        assert!(limiter.may_begin_part(2));
        in_flight.fail(&Error::new(ErrorKind::Io, "x"));
        (0..3).for_each(|_| in_flight.count_ahead(limiter.count_ahead()));
        assert!(limiter.may_begin_part(3));
    }

    #[test]
    fn first_failure_stays() {
        let in_flight = InFlightParts::default();
        in_flight.fail(&Error::new(ErrorKind::QuotaExceeded, "full"));
        in_flight.fail(&Error::new(ErrorKind::Io, "later"));
        assert_eq!(in_flight.check().unwrap_err().kind(), ErrorKind::QuotaExceeded);
    }
}
