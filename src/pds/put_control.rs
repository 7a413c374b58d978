//! The attempts to send a part, as the caller of the transport controls and observes them.

use std::fmt::Debug;
use std::sync::Arc;

/// Decides when an attempt to send a part begins, and observes it.
pub trait PutControl: Sync {
    /// The right to make one attempt. It is dropped if the attempt is aborted.
    type Permit: Send;

    /// Waits until an attempt may begin.
    fn admit(&self) -> impl Future<Output = Self::Permit> + Send;

    /// Called at the end of each attempt.
    fn ended(&self, permit: Self::Permit, end: PutEnd);

    /// Counts the bytes of the attempt that holds this permit.
    fn meter(&self, permit: &Self::Permit) -> Arc<dyn PutMeter>;
}

/// Counts the bytes of one attempt.
pub trait PutMeter: Debug + Send + Sync {
    /// A connection has accepted this many more bytes. May still be called after the end of the attempt.
    fn sent(&self, bytes: u64);
}

/// The end of one attempt to send a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutEnd {
    Stored,
    /// The store asked for fewer requests.
    Throttled,
    Failed,
}
