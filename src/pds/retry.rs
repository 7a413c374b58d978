//! The retry policy: which requests are repeated, how often, and after which pause.
//!
//! Whether an attempt may be repeated depends on two facts: how far it got ([`Delivery`]) and what a second
//! attempt would do ([`Idempotency`]). The rest is a bounded schedule with jitter.
//!
//! Only `transport.rs` repeats a request after a transient failure. Other repetitions have another cause and a
//! bound of their own: a rejected token (`session.rs`), an expired URL, a wrong checksum, a taken name.
//!
//! An outage of the network is treated separately. Transfers wait until it ends. Interactive calls wait out a
//! short outage, because most are short (another access point, a new lease), and fail soon in a long one.
//!
//! On a slow line a single attempt may take longer than `elapsed_max` while bytes move until its end. Such an
//! attempt is charged only a part of that time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};

use crate::error::{Error, ErrorKind};
use crate::pds::connectivity::Connectivity;
use crate::pds::retry_observer;

/// Attempts with moving bytes that are always possible within `elapsed_max`, however long each takes.
const MOVING_ATTEMPTS_MIN: u32 = 4;
/// How long a call tries at least if it begins in a long outage.
const OUTAGE_TRY_MIN: Duration = Duration::from_secs(3);

/// The effect of a second attempt of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idempotency {
    /// Nothing new: list, get, part URLs, ranged GET, PUT of a part.
    Safe,
    /// Possibly a second effect: retried only if the first attempt was certainly not carried out.
    Once,
    /// As `Once`. The request also uses up what it sends (a refresh token), and its effect cannot be read
    /// afterwards. So a running attempt is never abandoned for another.
    NonReplayable,
}

/// How far a failed attempt got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// The server refused before doing anything (429) or never saw the request.
    NotSent,
    /// The request may have been carried out: the answer was lost or unusable.
    Unknown,
    /// The server answered, and the answer is final.
    Answered,
    /// The certificate of the host was refused, so nothing was sent. Only transfers try again: the network of a
    /// hotel may answer for the host until its user has logged in.
    Untrusted,
}

/// A failed attempt, or the last one of a failed request.
#[derive(Clone, Debug)]
pub struct RequestFailure {
    pub error: Error,
    /// The HTTP status of the answer, if there was one.
    pub status: Option<u16>,
    /// The service's code (`NotFound.UploadId`), or empty.
    pub code: String,
    pub delivery: Delivery,
    /// The pause that the server asked for.
    pub retry_after: Option<Duration>,
}

impl RequestFailure {
    /// The service is gone for good.
    fn abandoned(why: &str) -> Self {
        let (error, code) = (Error::new(ErrorKind::Unreachable, why), String::new());
        Self { status: None, error, code, delivery: Delivery::Unknown, retry_after: None }
    }

    /// The reason in few words, for people.
    fn reason(&self) -> String {
        match (self.status, self.error.kind()) {
            (Some(status), _) => format!("the drive answers {status}"),
            (None, ErrorKind::Unreachable) => "the drive cannot be reached".to_owned(),
            (None, ErrorKind::Timeout) => "the drive does not answer".to_owned(),
            (None, _) => self.error.to_string(),
        }
    }

    /// Whether the code is `class` or begins with `class.`.
    pub fn is(&self, class: &str) -> bool {
        self.code.strip_prefix(class).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl From<RequestFailure> for Error {
    fn from(failure: RequestFailure) -> Self {
        failure.error
    }
}

/// Bounds of the repetition of one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    pub attempts_max: usize,
    /// From the first attempt to the start of the last. An attempt in which bytes moved is charged at most a
    /// [`MOVING_ATTEMPTS_MIN`]th of it.
    pub elapsed_max: Duration,
    /// Pause after the first attempt. It doubles from there, plus a random part of itself.
    pub delay_base: Duration,
    /// Longest pause unless the server asks for a longer one.
    pub delay_max: Duration,
    /// How long an outage is waited out, from its detection or from the first attempt, whichever was earlier.
    /// Meanwhile the other bounds do not apply. `None` bounds it by them only.
    pub outage_max: Option<Duration>,
    /// Whether the request is parked while the credential is revoked. The wait has no bound of its own.
    pub waits_for_login: bool,
}

impl RetryPolicy {
    /// Calls that block a program or the kernel.
    pub const INTERACTIVE: Self = Self {
        attempts_max: 8,
        elapsed_max: Duration::from_secs(30),
        delay_base: Duration::from_millis(100),
        delay_max: Duration::from_secs(5),
        outage_max: Some(Duration::from_secs(10)),
        waits_for_login: false,
    };

    /// Content reads: one failure ends the copy of a large file, so an outage is waited out for longer.
    pub const READING: Self = Self { outage_max: Some(Duration::from_secs(30)), ..Self::INTERACTIVE };

    /// Uploads and commits.
    pub fn transfer(elapsed_max: Duration) -> Self {
        Self {
            attempts_max: 1000,
            elapsed_max,
            delay_base: Duration::from_millis(200),
            delay_max: Duration::from_secs(10),
            outage_max: None,
            waits_for_login: true,
        }
    }

    fn delays(self) -> impl Iterator<Item = Duration> {
        ExponentialBuilder::new()
            .with_min_delay(self.delay_base)
            .with_max_delay(self.delay_max)
            .with_max_times(self.attempts_max.saturating_sub(1))
            .with_jitter()
            .build()
    }

    fn is_retryable(self, idempotency: Idempotency, delivery: Delivery) -> bool {
        match (idempotency, delivery) {
            (_, Delivery::Answered) | (Idempotency::Once | Idempotency::NonReplayable, Delivery::Unknown) => {
                false
            }
            (_, Delivery::NotSent) | (Idempotency::Safe, Delivery::Unknown) => true,
            (_, Delivery::Untrusted) => self.outage_max.is_none(),
        }
    }

    /// When a call that began at `start` stops waiting for the end of the current outage. `None` while
    /// online.
    fn outage_deadline(self, start: Instant, connectivity: &Connectivity) -> Option<Instant> {
        let (outage_max, offline_since) = (self.outage_max?, connectivity.offline_since()?);
        Some((offline_since.min(start) + outage_max).max(start + OUTAGE_TRY_MIN))
    }

    /// The part of `elapsed_max` that an attempt is charged.
    fn charge(self, took: Duration, bytes_moved: bool) -> Duration {
        if bytes_moved { took.min(self.elapsed_max / MOVING_ATTEMPTS_MIN) } else { took }
    }

    /// Runs `attempt` until it succeeds, fails for good, or exceeds the bounds. A pause ends when the service
    /// comes back online, and the following pauses are short again. `progress` counts the bytes that attempts
    /// move.
    pub(super) async fn run<T, F, A>(
        self,
        idempotency: Idempotency,
        connectivity: &Connectivity,
        progress: &AtomicU64,
        mut attempt: F,
    ) -> Result<T, RequestFailure>
    where
        F: FnMut() -> A,
        A: Future<Output = Result<T, RequestFailure>>,
    {
        let admit = || std::future::ready(());
        self.run_admitted(idempotency, connectivity, progress, admit, |()| attempt()).await
    }

    /// Like [`Self::run`]. Each attempt gets a permit from `admit`, which it returns at its end. The wait for
    /// it is not charged.
    pub(super) async fn run_admitted<T, P, F, A, G, W>(
        self,
        idempotency: Idempotency,
        connectivity: &Connectivity,
        progress: &AtomicU64,
        admit: G,
        attempt: F,
    ) -> Result<T, RequestFailure>
    where
        G: FnMut() -> W,
        W: Future<Output = P>,
        F: FnMut(P) -> A,
        A: Future<Output = Result<T, RequestFailure>>,
    {
        tokio::select! {
            outcome = self.repeat(idempotency, connectivity, progress, admit, attempt) => outcome,
            why = connectivity.abandoned() => Err(RequestFailure::abandoned(&why)),
        }
    }

    async fn repeat<T, P, F, A, G, W>(
        self,
        idempotency: Idempotency,
        connectivity: &Connectivity,
        progress: &AtomicU64,
        mut admit: G,
        mut attempt: F,
    ) -> Result<T, RequestFailure>
    where
        G: FnMut() -> W,
        W: Future<Output = P>,
        F: FnMut(P) -> A,
        A: Future<Output = Result<T, RequestFailure>>,
    {
        let start = Instant::now();
        let (mut delays, mut spent, mut retries) = (self.delays(), Duration::ZERO, 0);
        loop {
            let permit = admit().await;
            let (recovery, progress_before) = (connectivity.recovery_waiter(), progress.load(Relaxed));
            let began = Instant::now();
            let failure = match attempt(permit).await {
                Ok(answer) => {
                    if retries > 0 {
                        retry_observer::report(|observer| observer.recovered());
                    }
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            spent += self.charge(began.elapsed(), progress.load(Relaxed) != progress_before);
            let outage_deadline = self.outage_deadline(start, connectivity);
            // An outage that is waited out has a bound of its own.
            let delay = delays.next().or(outage_deadline.map(|_| self.delay_max));
            let Some(delay) = delay.filter(|_| self.is_retryable(idempotency, failure.delivery)) else {
                return Err(failure);
            };
            let pause = failure.retry_after.map_or(delay, |asked| asked.max(delay));
            let is_over = match outage_deadline {
                Some(at) => at <= Instant::now(),
                None => spent + pause > self.elapsed_max,
            };
            if is_over {
                return Err(failure);
            }
            retries += 1;
            retry_observer::report(|observer| observer.retrying(retries, &failure.reason()));
            tracing::debug!(error = %failure.error, pause_ms = pause.as_millis(), "retrying");
            let paused = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = recovery.recovered(), if failure.retry_after.is_none() => delays = self.delays(),
                () = sleep_until(outage_deadline) => return Err(failure),
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

#[cfg(test)]
mod tests {
    use super::*;

    static NO_PROGRESS: AtomicU64 = AtomicU64::new(0);

    fn failure(delivery: Delivery) -> RequestFailure {
        RequestFailure {
            status: None,
            error: Error::new(ErrorKind::Io, "x"),
            code: "NotFound.UploadId".into(),
            delivery,
            retry_after: None,
        }
    }

    #[test]
    fn once_is_not_retried_when_delivery_is_unknown() {
        let policy = RetryPolicy::INTERACTIVE;
        assert!(!policy.is_retryable(Idempotency::Once, Delivery::Unknown));
        assert!(!policy.is_retryable(Idempotency::NonReplayable, Delivery::Unknown));
        assert!(policy.is_retryable(Idempotency::Once, Delivery::NotSent));
        assert!(policy.is_retryable(Idempotency::Safe, Delivery::Unknown));
        assert!(!policy.is_retryable(Idempotency::Safe, Delivery::Answered));
    }

    #[test]
    fn only_transfers_wait_for_a_better_certificate() {
        let transfer = RetryPolicy::transfer(Duration::from_secs(600));
        assert!(transfer.is_retryable(Idempotency::Once, Delivery::Untrusted));
        for policy in [RetryPolicy::INTERACTIVE, RetryPolicy::READING] {
            assert!(!policy.is_retryable(Idempotency::Safe, Delivery::Untrusted));
        }
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
        assert!(failure(Delivery::NotSent).is("NotFound"));
        assert!(failure(Delivery::NotSent).is("NotFound.UploadId"));
        assert!(!failure(Delivery::NotSent).is("NotFound.Upload"));
    }

    #[cfg(feature = "server")]
    #[tokio::test]
    async fn abandoned_service_ends_attempts_and_pauses() {
        let connectivity = Connectivity::new(true);
        let policy = RetryPolicy::transfer(Duration::from_secs(600));
        let stuck = policy.run(Idempotency::Safe, &connectivity, &NO_PROGRESS, || {
            std::future::pending::<Result<(), RequestFailure>>()
        });
        let (stuck, ()) = tokio::join!(stuck, async { connectivity.abandon("the server has exited") });
        assert_eq!(stuck.unwrap_err().error.to_string(), "the server has exited");
        let later: Result<(), _> = policy
            .run(Idempotency::Safe, &connectivity, &NO_PROGRESS, || async { Err(failure(Delivery::NotSent)) })
            .await;
        assert_eq!(later.unwrap_err().error.kind(), ErrorKind::Unreachable);
    }

    #[tokio::test]
    async fn attempts_are_bounded_in_count_and_time() {
        let policy =
            RetryPolicy { attempts_max: 3, delay_base: Duration::from_millis(1), ..RetryPolicy::INTERACTIVE };
        let connectivity = Connectivity::new(true);
        let mut calls = 0;
        let count = &mut calls;
        let outcome: Result<(), _> = policy
            .run(Idempotency::Safe, &connectivity, &NO_PROGRESS, || {
                *count += 1;
                async { Err(failure(Delivery::Unknown)) }
            })
            .await;
        assert!(outcome.is_err());
        assert_eq!(calls, 3);
        let policy = RetryPolicy { elapsed_max: Duration::ZERO, ..RetryPolicy::INTERACTIVE };
        let outcome: Result<(), _> = policy
            .run(Idempotency::Safe, &connectivity, &NO_PROGRESS, || async { Err(failure(Delivery::NotSent)) })
            .await;
        assert!(outcome.is_err());
    }

    /// The number of attempts of a call if each attempt takes longer than `elapsed_max`.
    async fn slow_attempts(bytes_move: bool) -> u32 {
        let elapsed_max = Duration::from_millis(160);
        let policy = RetryPolicy {
            elapsed_max,
            delay_base: Duration::from_micros(1),
            ..RetryPolicy::transfer(elapsed_max)
        };
        let (mut calls, progress, connectivity) = (0, AtomicU64::new(0), Connectivity::new(true));
        let (count, moved) = (&mut calls, &progress);
        let outcome: Result<(), _> = policy
            .run(Idempotency::Safe, &connectivity, &progress, || {
                *count += 1;
                async move {
                    tokio::time::sleep(elapsed_max * 2).await;
                    moved.fetch_add(u64::from(bytes_move), Relaxed);
                    Err(failure(Delivery::Unknown))
                }
            })
            .await;
        assert!(outcome.is_err());
        calls
    }

    #[tokio::test]
    async fn slow_line_allows_several_attempts() {
        assert_eq!(slow_attempts(false).await, 1);
        // The pauses count too, and a busy machine makes them longer.
        let attempts = slow_attempts(true).await;
        assert!((2..=MOVING_ATTEMPTS_MIN).contains(&attempts), "{attempts}");
    }

    #[tokio::test]
    async fn only_a_short_outage_is_waited_out() {
        let url = url::Url::parse("http://127.0.0.1:1").unwrap();
        let connectivity = Connectivity::new(true);
        let (policy, now) = (RetryPolicy::INTERACTIVE, Instant::now());
        let outage_max = policy.outage_max.unwrap();
        assert_eq!(policy.outage_deadline(now, &connectivity), None);
        connectivity.note_connect_failure(&url);
        connectivity.note_connect_failure(&url);
        let offline_since = connectivity.offline_since().unwrap();
        assert_eq!(policy.outage_deadline(now, &connectivity), Some(now + outage_max), "began before");
        let soon = offline_since + Duration::from_secs(1);
        assert_eq!(
            policy.outage_deadline(soon, &connectivity),
            Some(offline_since + outage_max),
            "began soon after"
        );
        let late = offline_since + Duration::from_secs(100);
        assert_eq!(
            policy.outage_deadline(late, &connectivity),
            Some(late + OUTAGE_TRY_MIN),
            "began in a long outage"
        );
        assert_eq!(
            RetryPolicy::transfer(Duration::from_secs(600)).outage_deadline(late, &connectivity),
            None
        );
        // In an outage, neither the number of attempts nor their time counts.
        let brief = RetryPolicy {
            attempts_max: 2,
            elapsed_max: Duration::from_millis(100),
            delay_base: Duration::from_millis(10),
            outage_max: Some(Duration::ZERO),
            ..policy
        };
        let outcome: Result<(), _> = brief
            .run(Idempotency::Safe, &connectivity, &NO_PROGRESS, || async { Err(failure(Delivery::NotSent)) })
            .await;
        assert!(outcome.is_err());
        let took = now.elapsed();
        assert!(took >= OUTAGE_TRY_MIN && took < policy.elapsed_max, "{took:?}");
        connectivity.note_answer(&url);
        assert_eq!(policy.outage_deadline(now, &connectivity), None);
    }

    #[tokio::test]
    async fn pause_ends_on_recovery_and_is_short_again() {
        let url = url::Url::parse("http://127.0.0.1:1").unwrap();
        let connectivity = Connectivity::new(true);
        let (mut calls, start) = (0, Instant::now());
        let policy = RetryPolicy {
            delay_base: Duration::from_secs(1000),
            delay_max: Duration::from_secs(2000),
            ..RetryPolicy::transfer(Duration::from_secs(9000))
        };
        let (count, state) = (&mut calls, &connectivity);
        let outcome = policy.run(Idempotency::Safe, &connectivity, &NO_PROGRESS, || {
            *count += 1;
            let call = *count;
            let url = &url;
            async move {
                if call == 3 {
                    return Ok(());
                }
                // Offline, and back online before the pause begins.
                state.note_connect_failure(url);
                state.note_connect_failure(url);
                state.note_answer(url);
                Err(failure(Delivery::NotSent))
            }
        });
        outcome.await.unwrap();
        assert!(calls == 3 && start.elapsed() < Duration::from_secs(100), "{:?}", start.elapsed());
    }
}
