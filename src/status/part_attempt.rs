//! The bytes of one attempt to send a part.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::sent_bytes::SentBytes;

/// The count of an attempt that has ended.
const ENDED: u64 = u64::MAX;

/// An attempt to send a part. Dropping it takes its bytes back, unless the part was stored: they must be sent again.
#[derive(Debug)]
pub struct PartAttempt(Arc<AttemptMeter>);

/// Counts the bytes of an attempt for its file.
#[derive(Debug)]
pub struct AttemptMeter {
    sent: Arc<SentBytes>,
    /// Bytes of the file that have moved, also in failed attempts.
    moved: Arc<AtomicU64>,
    /// [`ENDED`] after the end: a connection may still read the body of an aborted request.
    bytes: AtomicU64,
}

impl PartAttempt {
    pub(super) fn new(sent: Arc<SentBytes>, moved: Arc<AtomicU64>) -> Self {
        Self(Arc::new(AttemptMeter { sent, moved, bytes: AtomicU64::new(0) }))
    }

    pub fn meter(&self) -> &Arc<AttemptMeter> {
        &self.0
    }

    /// Ends the attempt. Returns its bytes, which stay counted.
    pub(super) fn keep(&self) -> u64 {
        Some(self.0.bytes.swap(ENDED, Relaxed)).filter(|bytes| *bytes != ENDED).unwrap_or(0)
    }
}

impl Drop for PartAttempt {
    fn drop(&mut self) {
        self.0.sent.remove(self.keep());
    }
}

impl AttemptMeter {
    /// Counts bytes that a connection has accepted. After the end of the attempt they count only as movement.
    pub fn sent(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Relaxed);
        self.sent.add_at(Instant::now(), bytes);
        let add = |count| (count != ENDED).then(|| count + bytes);
        if self.bytes.fetch_update(Relaxed, Relaxed, add).is_err() {
            self.sent.remove(bytes);
        }
    }
}
