//! Single flight: one running request with any number of waiters.
//!
//! The request runs in a task of its own, so a waiter that ends (the kernel interrupted a read) does not end
//! the request. If the task dies, its waiters still get an answer: it holds a [`FlightOwner`], which
//! completes the flight when it is dropped.

use std::sync::Arc;

use tokio::sync::SetOnce;

use crate::error::{Error, ErrorKind, Result};

/// The outcome of one request. Set once.
#[derive(Debug)]
pub(super) struct Flight<T>(SetOnce<Result<T>>);

impl<T: Clone> Flight<T> {
    /// A running flight and its owner.
    pub(super) fn start() -> (Arc<Self>, FlightOwner<T>) {
        let flight = Arc::new(Self(SetOnce::new()));
        (flight.clone(), FlightOwner(flight))
    }

    /// Waits for the outcome. Cancel-safe.
    pub(super) async fn outcome(&self) -> Result<T> {
        self.0.wait().await.clone()
    }
}

/// The right to complete one flight. Dropped before, it completes the flight with `Cancelled`.
#[derive(Debug)]
pub(super) struct FlightOwner<T>(Arc<Flight<T>>);

impl<T> FlightOwner<T> {
    /// Sets the outcome for all present and later waiters.
    pub(super) fn complete(self, outcome: Result<T>) {
        // Only the owner sets the outcome, and this call consumes it.
        let _ = self.0.0.set(outcome);
    }

    /// Whether this is the owner of `flight`.
    pub(super) fn owns(&self, flight: &Arc<Flight<T>>) -> bool {
        Arc::ptr_eq(&self.0, flight)
    }
}

impl<T> Drop for FlightOwner<T> {
    fn drop(&mut self) {
        if !self.0.0.initialized() {
            let aborted = Error::new(ErrorKind::Cancelled, "the request was aborted");
            let _ = self.0.0.set(Err(aborted));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn early_and_late_waiters_get_the_outcome() {
        let (flight, owner) = Flight::start();
        let early = tokio::spawn({
            let flight = flight.clone();
            async move { flight.outcome().await }
        });
        assert!(owner.owns(&flight));
        owner.complete(Ok(7));
        assert_eq!(early.await.unwrap().unwrap(), 7);
        assert_eq!(flight.outcome().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn dead_task_still_answers_its_waiters() {
        let (flight, owner) = Flight::<u8>::start();
        let task = tokio::spawn(async move {
            let _owner = owner;
            std::future::pending::<()>().await;
        });
        task.abort();
        assert_eq!(flight.outcome().await.unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
