//! The one retry policy: what may be tried again, how often, and after which pause.
//!
//! Whether an attempt may be repeated is the product of two facts: how it failed ([`Sent`]) and
//! what a second attempt would do ([`Idempotency`]). Everything else is a bounded, jittered
//! schedule. Nobody outside `transport.rs` repeats a request.
//!
//! An outage of the network is not a failure like others: transfers wait for its end, and whoever somebody waits
//! for sits out a short one, because most are short (another access point, a new lease), and fails soon in a long one.
//!
//! On a slow line one attempt may take longer than the time there is for all of them, with bytes moving to its end. What
//! failed then has had bad luck, so it counts for a part of that time only.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};

use crate::error::Error;
use crate::pds::reach::Reach;

/// Attempts in which bytes moved all the time that there is time for, at least.
const SLOW_ATTEMPTS: u32 = 4;
/// How long a call tries, at least, that begins when the service has long been out of reach.
const OUTAGE_TRY: Duration = Duration::from_secs(3);

/// What a second attempt of a request would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idempotency {
    /// Nothing that the first one did not do: list, get, part URLs, ranged GET, PUT of a part.
    Safe,
    /// Perhaps something else: retried only where the first attempt was surely not carried out.
    Once,
    /// The same, and what it has done cannot be found out by reading: it uses up what it sends, so its answer is waited for.
    Spends,
}

/// How far a failed attempt got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// The server refused before doing anything (429) or never saw the request.
    No,
    /// The request may have been carried out: the answer was lost or unusable.
    Maybe,
    /// The server answered, and the answer is final.
    Answered,
}

/// A failed attempt, or the last one of a failed request.
#[derive(Clone, Debug)]
pub struct Failure {
    /// For the program that asked.
    pub error: Error,
    /// The service's code (`NotFound.UploadId`), or empty.
    pub code: String,
    /// How far it got.
    pub sent: Sent,
    /// The pause that the server asked for.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Whether the code is `class` or begins with `class.`.
    pub fn is(&self, class: &str) -> bool {
        self.code.strip_prefix(class).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// Bounds of the repetition of one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    /// Attempts in all.
    pub attempts_max: usize,
    /// From the first attempt to the start of the last; an attempt in which bytes moved counts for a fraction of it at most.
    pub elapsed_max: Duration,
    /// Pause after the first attempt; doubles from there, plus a random part of itself.
    pub delay_base: Duration,
    /// Longest pause of our own making.
    pub delay_max: Duration,
    /// How much of an outage is sat out, from when it was found or from the first attempt, whichever was earlier;
    /// `None` where it is like any other failure.
    pub outage_max: Option<Duration>,
    /// Whether a dead credential is waited for, without a bound of its own.
    pub parks: bool,
}

impl RetryPolicy {
    /// A request that somebody at a terminal waits for: others wait for the folder meanwhile.
    pub const INTERACTIVE: Self = Self {
        attempts_max: 8,
        elapsed_max: Duration::from_secs(30),
        delay_base: Duration::from_millis(100),
        delay_max: Duration::from_secs(5),
        outage_max: Some(Duration::from_secs(10)),
        parks: false,
    };

    /// Reading content: one failure in the middle ends the copying of a large file.
    pub const READING: Self = Self { outage_max: Some(Duration::from_secs(30)), ..Self::INTERACTIVE };

    /// A transfer that must not fail while there is time left.
    pub fn transfer(elapsed_max: Duration) -> Self {
        Self {
            attempts_max: 1000,
            elapsed_max,
            delay_base: Duration::from_millis(200),
            delay_max: Duration::from_secs(10),
            outage_max: None,
            parks: true,
        }
    }

    /// The pauses between attempts.
    fn delays(self) -> impl Iterator<Item = Duration> {
        ExponentialBuilder::new()
            .with_min_delay(self.delay_base)
            .with_max_delay(self.delay_max)
            .with_max_times(self.attempts_max.saturating_sub(1))
            .with_jitter()
            .build()
    }

    /// When a call that began at `start` has sat out enough of an outage; `None` where there is none.
    fn leaves_at(self, start: Instant, reach: &Reach) -> Option<Instant> {
        let (outage_max, lost_at) = (self.outage_max?, reach.lost_at()?);
        Some((lost_at.min(start) + outage_max).max(start + OUTAGE_TRY))
    }

    /// What an attempt costs of the time there is for all.
    fn cost(self, took: Duration, has_moved: bool) -> Duration {
        if has_moved { took.min(self.elapsed_max / SLOW_ATTEMPTS) } else { took }
    }

    /// Runs `attempt` until it succeeds, fails for good, or the bounds are reached. A pause ends when
    /// the service comes back into reach, and then pauses are short again. `moved` grows while bytes of an attempt move.
    pub(super) async fn run<T, F, A>(
        self,
        idempotency: Idempotency,
        reach: &Reach,
        moved: &AtomicU64,
        mut attempt: F,
    ) -> Result<T, Failure>
    where
        F: FnMut() -> A,
        A: Future<Output = Result<T, Failure>>,
    {
        let start = Instant::now();
        let (mut delays, mut spent) = (self.delays(), Duration::ZERO);
        loop {
            let (mark, began, moved_before) = (reach.mark(), Instant::now(), moved.load(Relaxed));
            let failure = match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let Some(delay) = may_repeat(idempotency, failure.sent).then(|| delays.next()).flatten() else {
                return Err(failure);
            };
            let pause = failure.retry_after.map_or(delay, |asked| asked.max(delay));
            spent += self.cost(began.elapsed(), moved.load(Relaxed) != moved_before);
            if spent + pause > self.elapsed_max {
                return Err(failure);
            }
            let leaves_at = self.leaves_at(start, reach);
            if leaves_at.is_some_and(|at| at <= Instant::now()) {
                return Err(failure);
            }
            tracing::debug!(error = %failure.error, pause_ms = pause.as_millis(), "trying again");
            let paused = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = mark.come_back(), if failure.retry_after.is_none() => delays = self.delays(),
                () = sleep_until(leaves_at) => return Err(failure),
            }
            spent += paused.elapsed();
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn may_repeat(idempotency: Idempotency, sent: Sent) -> bool {
    match (idempotency, sent) {
        (_, Sent::Answered) | (Idempotency::Once | Idempotency::Spends, Sent::Maybe) => false,
        (_, Sent::No) | (Idempotency::Safe, Sent::Maybe) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// Nothing moves.
    static STILL: AtomicU64 = AtomicU64::new(0);

    fn failure(sent: Sent) -> Failure {
        Failure {
            error: Error::new(ErrorKind::Io, "x"),
            code: "NotFound.UploadId".into(),
            sent,
            retry_after: None,
        }
    }

    #[test]
    fn once_is_not_repeated_when_it_may_have_been_done() {
        assert!(!may_repeat(Idempotency::Once, Sent::Maybe));
        assert!(!may_repeat(Idempotency::Spends, Sent::Maybe));
        assert!(may_repeat(Idempotency::Once, Sent::No));
        assert!(may_repeat(Idempotency::Safe, Sent::Maybe));
        assert!(!may_repeat(Idempotency::Safe, Sent::Answered));
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let delays: Vec<_> = RetryPolicy::INTERACTIVE.delays().collect();
        assert_eq!(delays.len(), 7);
        assert!(delays[0] >= Duration::from_millis(100) && delays[0] <= Duration::from_millis(200));
        assert!(delays.iter().all(|d| *d <= Duration::from_secs(10)));
    }

    #[test]
    fn codes_match_by_class() {
        assert!(failure(Sent::No).is("NotFound"));
        assert!(failure(Sent::No).is("NotFound.UploadId"));
        assert!(!failure(Sent::No).is("NotFound.Upload"));
    }

    #[tokio::test]
    async fn attempts_are_bounded_in_count_and_time() {
        let policy =
            RetryPolicy { attempts_max: 3, delay_base: Duration::from_millis(1), ..RetryPolicy::INTERACTIVE };
        let reach = Reach::new(true);
        let mut calls = 0;
        let count = &mut calls;
        let outcome: Result<(), _> = policy
            .run(Idempotency::Safe, &reach, &STILL, || {
                *count += 1;
                async { Err(failure(Sent::Maybe)) }
            })
            .await;
        assert!(outcome.is_err());
        assert_eq!(calls, 3);
        let policy = RetryPolicy { elapsed_max: Duration::ZERO, ..RetryPolicy::INTERACTIVE };
        let outcome: Result<(), _> =
            policy.run(Idempotency::Safe, &reach, &STILL, || async { Err(failure(Sent::No)) }).await;
        assert!(outcome.is_err());
    }

    /// Attempts until a call gives up that each take as long as there is time for all.
    async fn slow_attempts(moves: bool) -> u32 {
        let elapsed_max = Duration::from_millis(40);
        let policy = RetryPolicy {
            elapsed_max,
            delay_base: Duration::from_micros(1),
            ..RetryPolicy::transfer(elapsed_max)
        };
        let (mut calls, moved, reach) = (0, AtomicU64::new(0), Reach::new(true));
        let (count, moving) = (&mut calls, &moved);
        let outcome: Result<(), _> = policy
            .run(Idempotency::Safe, &reach, &moved, || {
                *count += 1;
                async move {
                    tokio::time::sleep(elapsed_max * 2).await;
                    moving.fetch_add(u64::from(moves), Relaxed);
                    Err(failure(Sent::Maybe))
                }
            })
            .await;
        assert!(outcome.is_err());
        calls
    }

    #[tokio::test]
    async fn an_attempt_on_a_slow_line_does_not_take_the_time_of_all() {
        assert_eq!(slow_attempts(false).await, 1);
        assert_eq!(slow_attempts(true).await, SLOW_ATTEMPTS);
    }

    #[tokio::test]
    async fn a_short_outage_is_sat_out_and_a_long_one_is_not() {
        let url = url::Url::parse("http://127.0.0.1:1").unwrap();
        let reach = Reach::new(true);
        let (policy, now) = (RetryPolicy::INTERACTIVE, Instant::now());
        let outage_max = policy.outage_max.unwrap();
        assert_eq!(policy.leaves_at(now, &reach), None);
        reach.missed(&url);
        reach.missed(&url);
        let lost_at = reach.lost_at().unwrap();
        assert_eq!(policy.leaves_at(now, &reach), Some(now + outage_max), "began before");
        let soon = lost_at + Duration::from_secs(1);
        assert_eq!(policy.leaves_at(soon, &reach), Some(lost_at + outage_max), "began soon after");
        let late = lost_at + Duration::from_secs(100);
        assert_eq!(policy.leaves_at(late, &reach), Some(late + OUTAGE_TRY), "began in a long one");
        assert_eq!(RetryPolicy::transfer(Duration::from_secs(600)).leaves_at(late, &reach), None);
        let brief = RetryPolicy { outage_max: Some(Duration::ZERO), ..policy };
        let outcome: Result<(), _> =
            brief.run(Idempotency::Safe, &reach, &STILL, || async { Err(failure(Sent::No)) }).await;
        assert!(outcome.is_err());
        let took = now.elapsed();
        assert!(took >= OUTAGE_TRY && took < policy.elapsed_max, "{took:?}");
        reach.answered(&url);
        assert_eq!(policy.leaves_at(now, &reach), None);
    }

    #[tokio::test]
    async fn a_pause_ends_when_the_service_comes_back_and_no_long_one_is_left_over() {
        let url = url::Url::parse("http://127.0.0.1:1").unwrap();
        let reach = Reach::new(true);
        let (mut calls, start) = (0, Instant::now());
        let policy = RetryPolicy {
            delay_base: Duration::from_secs(1000),
            delay_max: Duration::from_secs(2000),
            ..RetryPolicy::transfer(Duration::from_secs(9000))
        };
        let (count, away) = (&mut calls, &reach);
        let outcome = policy.run(Idempotency::Safe, &reach, &STILL, || {
            *count += 1;
            let call = *count;
            let url = &url;
            async move {
                if call == 3 {
                    return Ok(());
                }
                // Out of reach, and back while the pause has begun.
                away.missed(url);
                away.missed(url);
                away.answered(url);
                Err(failure(Sent::No))
            }
        });
        outcome.await.unwrap();
        assert!(calls == 3 && start.elapsed() < Duration::from_secs(100), "{:?}", start.elapsed());
    }
}
