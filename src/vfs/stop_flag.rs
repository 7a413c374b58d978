//! Whether the mount is about to end.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Set once, and never cleared.
#[derive(Debug, Default)]
pub(super) struct StopFlag {
    is_set: AtomicBool,
    was_set: Notify,
}

impl StopFlag {
    pub(super) fn set(&self) {
        self.is_set.store(true, Ordering::SeqCst);
        self.was_set.notify_waiters();
    }

    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::SeqCst)
    }

    /// Resolves when the flag is set after this call.
    pub(super) fn was_set(&self) -> Notified<'_> {
        self.was_set.notified()
    }
}
