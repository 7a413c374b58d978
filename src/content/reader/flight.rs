//! One request under way that any number of tasks wait for.
//!
//! The request runs in a task of its own, so a waiter that goes away (the kernel interrupted a
//! read) takes nothing from the others. Whatever becomes of that task, its waiters get an answer:
//! the task holds a [`Pilot`], which lands the flight when it is dropped.

use std::sync::Arc;

use tokio::sync::SetOnce;

use crate::error::{Error, ErrorKind, Result};

/// The outcome of one request, once it is there. Set once, never changed.
#[derive(Debug)]
pub(super) struct Flight<T>(SetOnce<Result<T>>);

impl<T: Clone> Flight<T> {
    /// A flight that nobody has landed yet, and the right to land it.
    pub(super) fn start() -> (Arc<Self>, Pilot<T>) {
        let flight = Arc::new(Self(SetOnce::new()));
        (flight.clone(), Pilot(flight))
    }

    /// Waits until the flight has landed. May be given up at any time.
    pub(super) async fn outcome(&self) -> Result<T> {
        self.0.wait().await.clone()
    }
}

/// The right to land one flight. Dropped without having landed, it lands with `Cancelled`.
#[derive(Debug)]
pub(super) struct Pilot<T>(Arc<Flight<T>>);

impl<T> Pilot<T> {
    /// Hands the outcome to everybody who waits or will wait.
    pub(super) fn land(self, outcome: Result<T>) {
        // Only the pilot sets the outcome, and landing consumes it.
        let _ = self.0.0.set(outcome);
    }

    /// Whether this is the one to land `flight`.
    pub(super) fn flies(&self, flight: &Arc<Flight<T>>) -> bool {
        Arc::ptr_eq(&self.0, flight)
    }
}

impl<T> Drop for Pilot<T> {
    fn drop(&mut self) {
        if !self.0.0.initialized() {
            let given_up =
                Error::new(ErrorKind::Cancelled, "the request was given up before its answer came");
            let _ = self.0.0.set(Err(given_up));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everybody_gets_the_outcome_early_or_late() {
        let (flight, pilot) = Flight::start();
        let early = tokio::spawn({
            let flight = flight.clone();
            async move { flight.outcome().await }
        });
        assert!(pilot.flies(&flight));
        pilot.land(Ok(7));
        assert_eq!(early.await.unwrap().unwrap(), 7);
        assert_eq!(flight.outcome().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_task_that_dies_still_answers_its_waiters() {
        let (flight, pilot) = Flight::<u8>::start();
        let task = tokio::spawn(async move {
            let _pilot = pilot;
            std::future::pending::<()>().await;
        });
        task.abort();
        assert_eq!(flight.outcome().await.unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
