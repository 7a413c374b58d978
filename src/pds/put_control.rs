//! The attempts to send a part, as the caller of the transport controls and observes them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Decides when an attempt to send a part begins, and observes it.
pub trait PutControl: Sync {
    /// The right to make one attempt. It is dropped if the attempt is aborted.
    type Permit: Send;

    /// Waits until an attempt may begin.
    fn admit(&self) -> impl Future<Output = Self::Permit> + Send;

    /// Called at the end of each attempt.
    fn ended(&self, permit: Self::Permit, end: PutEnd);

    /// Grows with each byte that a connection has accepted.
    fn bytes_moved(&self) -> &Arc<AtomicU64>;
}

/// The end of one attempt to send a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutEnd {
    Stored,
    /// The store asked for fewer requests.
    Throttled,
    Failed,
}
