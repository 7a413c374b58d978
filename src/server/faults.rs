//! Fault injection.
//!
//! A plan is a list of rules. A request counts against every rule that it matches. Matching delays and
//! throttles add up; the first other matching action is applied, and later rules are not considered. The plan
//! can be changed while the server runs, in process or over HTTP; a change releases stalled requests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A list of faults.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultPlan {
    /// Evaluated in order.
    pub rules: Vec<FaultRule>,
}

/// One fault: the requests it matches, and its action.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// A path below `/v2/` such as `file/create`, or `put_part` or `get_object` of the object store. A
    /// trailing `*` matches every suffix.
    pub endpoint: String,
    /// Matches only this part number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
    /// Number of matching requests that pass before the rule applies.
    #[serde(default)]
    pub after: u32,
    /// How many requests the rule applies to; unlimited if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// The fault.
    pub action: FaultAction,
}

impl FaultRule {
    /// A rule for every request to `endpoint`.
    pub fn new(endpoint: &str, action: FaultAction) -> Self {
        Self { endpoint: endpoint.into(), part: None, after: 0, times: None, action }
    }

    /// A rule for `times` requests to `endpoint`.
    pub fn times(endpoint: &str, times: u32, action: FaultAction) -> Self {
        Self { times: Some(times), ..Self::new(endpoint, action) }
    }

    /// Restricts the rule to one part number.
    #[must_use]
    pub fn part(self, part: u32) -> Self {
        Self { part: Some(part), ..self }
    }

    /// Lets `after` matching requests pass first.
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

/// The effect of a fault on a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultAction {
    /// An error response. The request is not executed.
    Status {
        /// HTTP status.
        status: u16,
        /// `code` in the body, which is JSON or XML depending on the endpoint.
        #[serde(default)]
        code: String,
        /// `message` in the body.
        #[serde(default)]
        message: String,
        /// `Retry-After` in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_s: Option<u32>,
        /// `x-retry-after` in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        x_retry_after_ms: Option<u32>,
        /// Sends no body.
        #[serde(default)]
        empty_body: bool,
    },
    /// Executes the request after a delay.
    Delay {
        /// In milliseconds.
        ms: u64,
    },
    /// Executes the request after the next change of the plan.
    Stall,
    /// Closes the connection after `bytes` bytes of the body: of the request for `put_part`, of the response
    /// for other endpoints.
    Cut {
        /// Body bytes before the close.
        bytes: u64,
    },
    /// Resets the connection without a response. The request is not executed.
    Reset,
    /// Executes the request, then closes the connection without a response.
    CloseAfter,
    /// The object store answers 200 after `bytes` bytes of a part, without a checksum, and discards the part.
    AnswerEarly {
        /// Body bytes before the answer.
        bytes: u64,
    },
    /// The object store answers that the URL has expired.
    Expire,
    /// Revokes the bearer token of the request until the next change of the plan.
    Revoke,
    /// Flips one bit of a downloaded body.
    Corrupt,
    /// A download ends after `bytes` bytes, with a matching `Content-Length`.
    Short {
        /// Length of the body.
        bytes: u64,
    },
    /// Limits the rate of each body of the object store.
    Throttle {
        /// Bytes per second.
        bytes_per_s: u64,
    },
    /// Limits the rate of all bodies of the object store together, like a slow network. `line` in JSON.
    #[serde(rename = "line")]
    SharedThrottle {
        /// Bytes per second.
        bytes_per_s: u64,
    },
}

impl FaultAction {
    /// [`FaultAction::Status`] with a code and without a message.
    pub fn status(status: u16, code: &str) -> Self {
        Self::Status {
            status,
            code: code.to_owned(),
            message: String::new(),
            retry_after_s: None,
            x_retry_after_ms: None,
            empty_body: false,
        }
    }
}

/// A rate limit that bodies share.
#[derive(Clone, Debug)]
pub(super) struct SharedThrottle {
    bytes_per_s: u64,
    /// When all bytes so far have passed. A leaf lock.
    free_at: Arc<Mutex<Instant>>,
}

impl SharedThrottle {
    /// How long to wait until `bytes` more bytes have passed, after the bytes of all other bodies.
    pub(super) fn delay(&self, bytes: u64) -> Duration {
        let takes = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / self.bytes_per_s);
        let now = Instant::now();
        let mut free_at = self.free_at.lock();
        *free_at = now.max(*free_at) + takes;
        free_at.saturating_duration_since(now)
    }
}

/// The faults of one request.
#[derive(Clone, Debug, Default)]
pub(super) struct FaultDecision {
    pub(super) delay: Duration,
    pub(super) throttle_bytes_per_s: Option<u64>,
    pub(super) shared_throttle: Option<SharedThrottle>,
    pub(super) action: Option<FaultAction>,
    /// The generation of the plan. A stall ends when it changes.
    generation: u64,
}

#[derive(Debug, Default)]
struct ActivePlan {
    rules: Vec<(FaultRule, RuleCounts)>,
    revoked: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct RuleCounts {
    seen: u32,
    hits: u32,
}

/// The fault plan of a running server. Clones share it.
#[derive(Clone, Debug)]
pub struct FaultInjector {
    /// A leaf lock.
    active: Arc<Mutex<ActivePlan>>,
    /// Generation of the plan. Stalled requests wait for its change.
    plan: watch::Sender<u64>,
    /// Incremented by every hit.
    hits: watch::Sender<u64>,
    /// Shared by all [`SharedThrottle`]s.
    free_at: Arc<Mutex<Instant>>,
}

impl FaultInjector {
    pub(super) fn new(plan: FaultPlan) -> Self {
        let faults = Self {
            active: Arc::default(),
            plan: watch::Sender::new(0),
            hits: watch::Sender::new(0),
            free_at: Arc::new(Mutex::new(Instant::now())),
        };
        faults.set(plan);
        faults
    }

    /// Replaces the plan and releases stalled requests.
    pub fn set(&self, plan: FaultPlan) {
        let rules = plan.rules.into_iter().map(|rule| (rule, RuleCounts::default())).collect();
        let mut active = self.lock();
        *active = ActivePlan { rules, revoked: Vec::new() };
        // Under the lock: a decision and its generation must belong together.
        self.plan.send_modify(|n| *n += 1);
    }

    /// Appends a rule. Stalled requests stay stalled.
    pub fn add(&self, rule: FaultRule) {
        self.lock().rules.push((rule, RuleCounts::default()));
    }

    /// Removes all rules and releases stalled requests.
    pub fn clear(&self) {
        self.set(FaultPlan::default());
    }

    /// A copy of the plan.
    pub fn plan(&self) -> FaultPlan {
        FaultPlan { rules: self.lock().rules.iter().map(|(rule, _)| rule.clone()).collect() }
    }

    /// How often each rule was applied, in the order of the rules.
    pub fn hits(&self) -> Vec<u32> {
        self.lock().rules.iter().map(|(_, counts)| counts.hits).collect()
    }

    /// Waits until the rules were applied at least `hits` times in total. There is no timeout.
    pub async fn wait_for_hits(&self, hits: u32) {
        let mut changes = self.hits.subscribe();
        while self.hits().iter().sum::<u32>() < hits {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Counts a request against the rules and returns its faults.
    pub(super) fn decide(&self, endpoint: &str, part: Option<u32>) -> FaultDecision {
        let mut active = self.lock();
        let mut decision = FaultDecision { generation: *self.plan.borrow(), ..FaultDecision::default() };
        let mut any = false;
        for (rule, counts) in &mut active.rules {
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
                FaultAction::Delay { ms } => decision.delay += Duration::from_millis(*ms),
                FaultAction::Throttle { bytes_per_s } => {
                    let slower = decision.throttle_bytes_per_s.unwrap_or(u64::MAX).min(*bytes_per_s);
                    decision.throttle_bytes_per_s = Some(slower.max(1));
                }
                FaultAction::SharedThrottle { bytes_per_s } => {
                    let (bytes_per_s, free_at) = ((*bytes_per_s).max(1), self.free_at.clone());
                    decision.shared_throttle = Some(SharedThrottle { bytes_per_s, free_at });
                }
                action => {
                    decision.action = Some(action.clone());
                    break;
                }
            }
        }
        drop(active);
        if any {
            self.hits.send_modify(|n| *n += 1);
        }
        decision
    }

    /// Waits for the delay; for a stall, until the plan changes.
    pub(super) async fn wait(&self, decision: &FaultDecision) {
        if !decision.delay.is_zero() {
            tokio::time::sleep(decision.delay).await;
        }
        if decision.action == Some(FaultAction::Stall) {
            // Fails when the server is dropped.
            let _ = self.plan.subscribe().wait_for(|now| *now != decision.generation).await;
        }
    }

    pub(super) fn revoke(&self, token: &str) {
        self.lock().revoked.push(token.to_owned());
    }

    pub(super) fn is_revoked(&self, token: &str) -> bool {
        self.lock().revoked.iter().any(|revoked| revoked == token)
    }

    fn lock(&self) -> MutexGuard<'_, ActivePlan> {
        self.active.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_apply_in_order() {
        let faults = FaultInjector::new(FaultPlan::default());
        faults.add(FaultRule::times("put_part", 1, FaultAction::Expire).part(2).after(1));
        faults.add(FaultRule::new("file/*", FaultAction::Delay { ms: 5 }));
        faults.add(FaultRule::times("file/create", 1, FaultAction::Reset));
        let put = |part| faults.decide("put_part", Some(part)).action;
        assert_eq!((put(1), put(2), put(2), put(2)), (None, None, Some(FaultAction::Expire), None));
        let first = faults.decide("file/create", None);
        assert_eq!((first.delay.as_millis(), first.action), (5, Some(FaultAction::Reset)));
        assert_eq!(faults.decide("file/create", None).action, None);
        assert_eq!(faults.hits(), [1, 2, 1]);
    }

    #[test]
    fn shared_throttle_delays_all_bodies() {
        let faults = FaultInjector::new(FaultPlan::default());
        faults.add(FaultRule::new("put_part", FaultAction::SharedThrottle { bytes_per_s: 1000 }));
        let throttles = [1, 2].map(|part| faults.decide("put_part", Some(part)).shared_throttle.unwrap());
        let delays: Vec<_> = (0..4).map(|n| throttles[n % 2].delay(500)).collect();
        // Each waits for the others, minus the time that the test itself takes.
        for (n, delay) in delays.into_iter().enumerate() {
            let most = Duration::from_millis(500 * (n as u64 + 1));
            assert!(delay <= most && delay > most / 2, "{n}: {delay:?}");
        }
        assert!(faults.decide("get_object", None).shared_throttle.is_none());
    }

    #[test]
    fn plans_are_parsed_from_json() {
        let text = r#"{"rules":[{"endpoint":"put_part","part":2,"times":1,"action":"expire"},
            {"endpoint":"*","action":{"status":{"status":429,"code":"TooManyRequests","retry_after_s":1}}},
            {"endpoint":"*","action":{"line":{"bytes_per_s":9}}}]}"#;
        let plan: FaultPlan = serde_json::from_str(text).unwrap();
        assert_eq!(plan.rules[2].action, FaultAction::SharedThrottle { bytes_per_s: 9 });
        assert_eq!(plan.rules[0].action, FaultAction::Expire);
        assert!(matches!(plan.rules[1].action, FaultAction::Status { status: 429, .. }));
        assert!(serde_json::from_str::<FaultPlan>(r#"{"rulez":[]}"#).is_err());
    }

    #[tokio::test]
    async fn clear_releases_stalled_requests() {
        let faults = FaultInjector::new(FaultPlan { rules: vec![FaultRule::new("x", FaultAction::Stall)] });
        let decision = faults.decide("x", None);
        let waiter = {
            let faults = faults.clone();
            tokio::spawn(async move { faults.wait(&decision).await })
        };
        faults.wait_for_hits(1).await;
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        faults.clear();
        waiter.await.unwrap();
    }
}
