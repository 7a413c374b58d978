//! Blocking local I/O in async operations.

/// Leaves the FUSE session thread, which must not wait for the local disk: the code that follows runs in a
/// task of the runtime.
pub(super) async fn leave_session_thread() {
    tokio::task::yield_now().await;
}
