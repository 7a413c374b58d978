//! One guess of a password at a time, so that more connections allow no more guesses.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};

/// Pause before the answer to a wrong password.
const WRONG_PASSWORD_PAUSE: Duration = Duration::from_secs(1);

/// The answer to a guess.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Guess {
    Right,
    Wrong,
    /// Too many guesses wait. The password was not compared.
    Busy,
}

/// The guesses of the passwords of one purpose.
pub(super) struct PasswordGate {
    /// One permit for the guess that is compared, and one for each that may wait for it.
    admitted: Arc<Semaphore>,
    /// Held from the comparison until the end of the pause.
    turn: Arc<Mutex<()>>,
}

impl PasswordGate {
    /// At most `waiting_max` guesses wait for another one.
    pub(super) fn new(waiting_max: usize) -> Self {
        Self { admitted: Arc::new(Semaphore::new(1 + waiting_max)), turn: Arc::default() }
    }

    /// Compares a password with `is_right` in its turn.
    pub(super) async fn check(&self, is_right: impl FnOnce() -> bool) -> Guess {
        let Ok(admitted) = self.admitted.clone().try_acquire_owned() else { return Guess::Busy };
        let turn = self.turn.clone().lock_owned().await;
        if is_right() {
            return Guess::Right;
        }
        // A client that closes its connection ends this call. It must not end the pause.
        let pause = tokio::spawn(async move {
            let _held = (admitted, turn);
            tokio::time::sleep(WRONG_PASSWORD_PAUSE).await;
        });
        // It fails only at the end of the server.
        let _ = pause.await;
        Guess::Wrong
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::task::JoinHandle;

    use super::*;

    /// Begins a wrong guess, which is counted when it is compared. No timer of the runtime fires before this thread
    /// waits.
    async fn guess_wrong(gate: &Arc<PasswordGate>, compared: &Arc<AtomicU32>) -> JoinHandle<Guess> {
        let (gate, compared) = (gate.clone(), compared.clone());
        let guess = tokio::spawn(async move {
            let is_right = || {
                compared.fetch_add(1, Ordering::Relaxed);
                false
            };
            gate.check(is_right).await
        });
        tokio::task::yield_now().await;
        guess
    }

    #[tokio::test]
    async fn no_guess_is_compared_during_another() {
        let gate = Arc::new(PasswordGate::new(0));
        let wrong = guess_wrong(&gate, &Arc::default()).await;
        assert_eq!(gate.check(|| true).await, Guess::Busy);
        assert_eq!(wrong.await.unwrap(), Guess::Wrong);
        assert_eq!(gate.check(|| true).await, Guess::Right);
    }

    #[tokio::test]
    async fn closed_connection_does_not_end_the_pause() {
        let gate = Arc::new(PasswordGate::new(0));
        let wrong = guess_wrong(&gate, &Arc::default()).await;
        wrong.abort();
        assert!(wrong.await.unwrap_err().is_cancelled());
        assert_eq!(gate.check(|| true).await, Guess::Busy);
    }

    #[tokio::test]
    async fn guesses_wait_in_a_bounded_queue() {
        let (gate, compared) = (Arc::new(PasswordGate::new(1)), Arc::new(AtomicU32::new(0)));
        let wrong = guess_wrong(&gate, &compared).await;
        let second = guess_wrong(&gate, &compared).await;
        assert_eq!(gate.check(|| true).await, Guess::Busy);
        assert_eq!(wrong.await.unwrap(), Guess::Wrong);
        let third = gate.check(|| compared.load(Ordering::Relaxed) == 2).await;
        assert_eq!(third, Guess::Right, "it did not wait for the second guess");
        assert_eq!(second.await.unwrap(), Guess::Wrong);
    }
}
