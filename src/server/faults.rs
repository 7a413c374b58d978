//! Faults on purpose.
//!
//! A plan is a list of rules. A request that matches a rule uses it up once; delays and throttles
//! add up, the first other action that matches decides. The plan can be changed while the server
//! runs, from the process or over HTTP, and releases what it stalled when it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// What shall go wrong.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultPlan {
    /// Tried in order.
    pub rules: Vec<FaultRule>,
}

/// Which requests, and what happens to them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// A path below `/v2/` such as `file/create`; `put_part` and `get_object` for the object
    /// store; a trailing `*` matches every ending.
    pub endpoint: String,
    /// Only this part number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// Matching requests that pass before the rule begins.
    #[serde(default)]
    pub after: u32,
    /// How often it applies; for ever if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// What happens.
    pub action: FaultAction,
}

impl FaultRule {
    /// A rule for every request to `endpoint`.
    pub fn new(endpoint: &str, action: FaultAction) -> Self {
        Self { endpoint: endpoint.into(), part: None, after: 0, times: None, action }
    }

    /// The same, so often.
    pub fn times(endpoint: &str, times: u32, action: FaultAction) -> Self {
        Self { times: Some(times), ..Self::new(endpoint, action) }
    }

    /// The same, for one part number.
    #[must_use]
    pub fn part(self, part: u32) -> Self {
        Self { part: Some(part), ..self }
    }

    /// The same, after so many requests that pass.
    #[must_use]
    pub fn after(self, after: u32) -> Self {
        Self { after, ..self }
    }

    fn matches(&self, endpoint: &str, part: Option<u32>) -> bool {
        let path = match self.endpoint.strip_suffix('*') {
            Some(start) => endpoint.starts_with(start),
            None => self.endpoint == endpoint,
        };
        path && (self.part.is_none() || self.part == part)
    }
}

/// What happens to a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultAction {
    /// An error answer instead of the work.
    Status {
        /// HTTP status.
        status: u16,
        /// Code of the body (JSON or XML, as fits the endpoint).
        #[serde(default)]
        code: String,
        /// Message of the body.
        #[serde(default)]
        message: String,
        /// `Retry-After` in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_s: Option<u32>,
        /// `x-retry-after` in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        x_retry_after_ms: Option<u32>,
        /// No body at all.
        #[serde(default)]
        empty_body: bool,
    },
    /// Waits, then goes on.
    Delay {
        /// How long.
        ms: u64,
    },
    /// Waits until the plan is changed or cleared, then goes on.
    Stall,
    /// Closes the connection after so many bytes of the body: of the request for `put_part`, of
    /// the answer elsewhere.
    Cut {
        /// Body bytes that pass.
        bytes: u64,
    },
    /// Resets the connection without an answer and without doing the work.
    Reset,
    /// Does the work, then closes the connection without an answer.
    CloseAfter,
    /// The object store says that the URL has expired.
    Expire,
    /// The bearer token of the request is invalid from now on, until the plan is changed.
    Revoke,
    /// Flips a bit of a downloaded body.
    Corrupt,
    /// A download answers only so many bytes, as if they were all.
    Short {
        /// Bytes answered.
        bytes: u64,
    },
    /// Bodies of the object store pass no faster.
    Throttle {
        /// Speed.
        bytes_per_s: u64,
    },
    /// The same for all bodies together, as on one line.
    Line {
        /// Speed.
        bytes_per_s: u64,
    },
}

/// A line that bodies share.
#[derive(Clone, Debug)]
pub(super) struct Line {
    bytes_per_s: u64,
    /// When what was given to it so far will have passed. A leaf lock.
    free_at: Arc<Mutex<Instant>>,
}

impl Line {
    /// How long so many more bytes take, with what others have given to the line before.
    pub(super) fn pause(&self, bytes: u64) -> Duration {
        let takes = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / self.bytes_per_s);
        let now = Instant::now();
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at = now.max(*free_at) + takes;
        free_at.saturating_duration_since(now)
    }
}

/// What the plan says about one request.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    pub(super) delay: Duration,
    pub(super) throttle_bytes_per_s: Option<u64>,
    pub(super) line: Option<Line>,
    pub(super) action: Option<FaultAction>,
    /// The plan that said so; a stall ends with it.
    generation: u64,
}

#[derive(Debug, Default)]
struct Armed {
    rules: Vec<(FaultRule, Counts)>,
    revoked: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    seen: u32,
    hits: u32,
}

/// The plan of a running server. Clones share it.
#[derive(Clone, Debug)]
pub struct Faults {
    armed: Arc<Mutex<Armed>>,
    /// Counts changes of the plan; stalled requests wait for one.
    plan: watch::Sender<u64>,
    /// Counts hits.
    hits: watch::Sender<u64>,
    /// Of every [`Line`].
    free_at: Arc<Mutex<Instant>>,
}

impl Faults {
    pub(super) fn new(plan: FaultPlan) -> Self {
        let faults = Self {
            armed: Arc::default(),
            plan: watch::Sender::new(0),
            hits: watch::Sender::new(0),
            free_at: Arc::new(Mutex::new(Instant::now())),
        };
        faults.set(plan);
        faults
    }

    /// Replaces the plan and releases what was stalled.
    pub fn set(&self, plan: FaultPlan) {
        let rules = plan.rules.into_iter().map(|rule| (rule, Counts::default())).collect();
        let mut armed = self.lock();
        *armed = Armed { rules, revoked: Vec::new() };
        // Under the lock, so that a verdict and its generation belong together.
        self.plan.send_modify(|n| *n += 1);
    }

    /// Appends a rule; what is stalled stays so.
    pub fn add(&self, rule: FaultRule) {
        self.lock().rules.push((rule, Counts::default()));
    }

    /// Ends all faults and releases what was stalled.
    pub fn clear(&self) {
        self.set(FaultPlan::default());
    }

    /// The plan as it stands.
    pub fn plan(&self) -> FaultPlan {
        FaultPlan { rules: self.lock().rules.iter().map(|(rule, _)| rule.clone()).collect() }
    }

    /// How often each rule applied.
    pub fn hits(&self) -> Vec<u32> {
        self.lock().rules.iter().map(|(_, counts)| counts.hits).collect()
    }

    /// Waits until all rules together applied at least `hits` times.
    pub async fn wait_for_hits(&self, hits: u32) {
        let mut changes = self.hits.subscribe();
        while self.hits().iter().sum::<u32>() < hits {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Uses up the rules that match a request.
    pub(super) fn judge(&self, endpoint: &str, part: Option<u32>) -> Verdict {
        let mut armed = self.lock();
        let mut verdict = Verdict { generation: *self.plan.borrow(), ..Verdict::default() };
        let mut any = false;
        for (rule, counts) in &mut armed.rules {
            if !rule.matches(endpoint, part) || rule.times.is_some_and(|times| counts.hits >= times) {
                continue;
            }
            counts.seen = counts.seen.saturating_add(1);
            if counts.seen <= rule.after {
                continue;
            }
            counts.hits = counts.hits.saturating_add(1);
            any = true;
            match &rule.action {
                FaultAction::Delay { ms } => verdict.delay += Duration::from_millis(*ms),
                FaultAction::Throttle { bytes_per_s } => {
                    let slower = verdict.throttle_bytes_per_s.unwrap_or(u64::MAX).min(*bytes_per_s);
                    verdict.throttle_bytes_per_s = Some(slower.max(1));
                }
                FaultAction::Line { bytes_per_s } => {
                    let line = Line { bytes_per_s: (*bytes_per_s).max(1), free_at: self.free_at.clone() };
                    verdict.line = Some(line);
                }
                action => {
                    verdict.action = Some(action.clone());
                    break;
                }
            }
        }
        drop(armed);
        if any {
            self.hits.send_modify(|n| *n += 1);
        }
        verdict
    }

    /// Waits out the delay and, if the verdict is to stall, the current plan.
    pub(super) async fn wait(&self, verdict: &Verdict) {
        if !verdict.delay.is_zero() {
            tokio::time::sleep(verdict.delay).await;
        }
        if verdict.action == Some(FaultAction::Stall) {
            // An error means that the server is gone.
            let _ = self.plan.subscribe().wait_for(|now| *now != verdict.generation).await;
        }
    }

    pub(super) fn revoke(&self, token: &str) {
        self.lock().revoked.push(token.to_owned());
    }

    pub(super) fn is_revoked(&self, token: &str) -> bool {
        self.lock().revoked.iter().any(|revoked| revoked == token)
    }

    fn lock(&self) -> MutexGuard<'_, Armed> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_used_up_in_order() {
        let faults = Faults::new(FaultPlan::default());
        faults.add(FaultRule::times("put_part", 1, FaultAction::Expire).part(2).after(1));
        faults.add(FaultRule::new("file/*", FaultAction::Delay { ms: 5 }));
        faults.add(FaultRule::times("file/create", 1, FaultAction::Reset));
        let put = |part| faults.judge("put_part", Some(part)).action;
        assert_eq!((put(1), put(2), put(2), put(2)), (None, None, Some(FaultAction::Expire), None));
        let first = faults.judge("file/create", None);
        assert_eq!((first.delay.as_millis(), first.action), (5, Some(FaultAction::Reset)));
        assert_eq!(faults.judge("file/create", None).action, None);
        assert_eq!(faults.hits(), [1, 2, 1]);
    }

    #[test]
    fn a_line_is_shared() {
        let faults = Faults::new(FaultPlan::default());
        faults.add(FaultRule::new("put_part", FaultAction::Line { bytes_per_s: 1000 }));
        let lines = [1, 2].map(|part| faults.judge("put_part", Some(part)).line.unwrap());
        let pauses: Vec<_> = (0..4).map(|n| lines[n % 2].pause(500)).collect();
        // Each waits for the others; a little less for what has passed meanwhile.
        for (n, pause) in pauses.into_iter().enumerate() {
            let most = Duration::from_millis(500 * (n as u64 + 1));
            assert!(pause <= most && pause > most / 2, "{n}: {pause:?}");
        }
        assert!(faults.judge("get_object", None).line.is_none());
    }

    #[test]
    fn plans_are_json() {
        let text = r#"{"rules":[{"endpoint":"put_part","part":2,"times":1,"action":"expire"},
            {"endpoint":"*","action":{"status":{"status":429,"code":"TooManyRequests","retry_after_s":1}}}]}"#;
        let plan: FaultPlan = serde_json::from_str(text).unwrap();
        assert_eq!(plan.rules[0].action, FaultAction::Expire);
        assert!(matches!(plan.rules[1].action, FaultAction::Status { status: 429, .. }));
        assert!(serde_json::from_str::<FaultPlan>(r#"{"rulez":[]}"#).is_err());
    }

    #[tokio::test]
    async fn clearing_releases_what_is_stalled() {
        let faults = Faults::new(FaultPlan { rules: vec![FaultRule::new("x", FaultAction::Stall)] });
        let verdict = faults.judge("x", None);
        let waiter = {
            let faults = faults.clone();
            tokio::spawn(async move { faults.wait(&verdict).await })
        };
        faults.wait_for_hits(1).await;
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        faults.clear();
        waiter.await.unwrap();
    }
}
