//! The count of sent bytes of a file or a mount, and their rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;

use super::rate::{RateWindow, SPAN_MIN};

/// Bytes that connections have accepted. The bytes of a failed attempt are taken back.
#[derive(Debug)]
pub(super) struct SentBytes {
    count: AtomicU64,
    began: Instant,
    /// When the next sample of the count is due, in milliseconds after `began`. Between samples, counting takes no
    /// lock.
    next_sample_ms: AtomicU64,
    /// A leaf lock.
    window: Mutex<RateWindow>,
    /// Counts the bytes too: those of a file are also of its mount.
    all: Option<Arc<Self>>,
}

impl SentBytes {
    pub(super) fn new(now: Instant, all: Option<&Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicU64::new(0),
            began: now,
            next_sample_ms: AtomicU64::new(0),
            window: Mutex::new(RateWindow::new(now, 0)),
            all: all.cloned(),
        })
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    pub(super) fn add_at(&self, now: Instant, bytes: u64) {
        self.count.fetch_add(bytes, Relaxed);
        let elapsed_ms = self.ms_at(now);
        let due_ms = self.next_sample_ms.load(Relaxed);
        let next_ms = elapsed_ms.saturating_add(SPAN_MIN.as_millis() as u64);
        if elapsed_ms >= due_ms
            && self.next_sample_ms.compare_exchange(due_ms, next_ms, Relaxed, Relaxed).is_ok()
        {
            self.window.lock().observe(now, self.count());
        }
        if let Some(all) = &self.all {
            all.add_at(now, bytes);
        }
    }

    /// Takes bytes back.
    pub(super) fn remove(&self, bytes: u64) {
        self.count.fetch_sub(bytes, Relaxed);
        if let Some(all) = &self.all {
            all.remove(bytes);
        }
    }

    pub(super) fn bytes_per_s(&self, now: Instant) -> u64 {
        let mut window = self.window.lock();
        window.observe(now, self.count());
        window.bytes_per_s(now)
    }

    /// Starts a new window: an idle time must not lower the rate.
    pub(super) fn restart_window(&self, now: Instant) {
        *self.window.lock() = RateWindow::new(now, self.count());
    }

    fn ms_at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }
}
