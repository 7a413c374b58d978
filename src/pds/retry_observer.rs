//! Reports the retries of requests to the file that they belong to.
//!
//! The observer is a value of the task, so that no call has to pass it on. A task that is spawned below it needs its own
//! [`observed`].

use std::sync::Arc;

/// Learns of the retries of the requests of one file.
pub trait RetryObserver: Send + Sync {
    /// A request will be repeated for the `times`th time.
    fn retrying(&self, times: u32, reason: &str);

    /// A request that was repeated has succeeded.
    fn recovered(&self);
}

tokio::task_local! {
    static OBSERVER: Arc<dyn RetryObserver>;
}

/// Runs a future whose requests report their retries.
pub async fn observed<F: Future>(observer: Arc<dyn RetryObserver>, requests: F) -> F::Output {
    OBSERVER.scope(observer, requests).await
}

/// Calls the observer of this task, if there is one.
pub(super) fn report(call: impl FnOnce(&dyn RetryObserver)) {
    // An error means that the requests of this task are not observed.
    let _ = OBSERVER.try_with(|observer| call(&**observer));
}
