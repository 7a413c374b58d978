//! Why uploads are paused, while they are.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::messages::Cause;

/// The condition that paused uploads wait for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PauseReason {
    /// A login by the user.
    LoginNeeded,
    /// The network or the service.
    Offline,
}

impl PauseReason {
    /// The reason in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::LoginNeeded => "login needed",
            Self::Offline => "offline",
        }
    }
}

/// One reason, with its start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pause {
    pub reason: PauseReason,
    /// Details in words.
    pub detail: Arc<str>,
    pub cause: Option<Cause>,
    pub since: SystemTime,
}

/// All current pauses, at most one for each reason. A needed login comes first: only the user can end it.
#[derive(Debug, Default)]
pub(super) struct Pauses(watch::Sender<Vec<Pause>>);

impl Pauses {
    /// Adds a pause. Returns whether the reason is new; a known reason takes the new detail and keeps its
    /// start.
    pub(super) fn add(&self, reason: PauseReason, detail: &str, cause: Option<&Cause>) -> bool {
        let mut is_new = false;
        self.0.send_if_modified(|pauses| {
            if let Some(known) = pauses.iter_mut().find(|pause| pause.reason == reason) {
                let is_changed = &*known.detail != detail;
                if is_changed {
                    (known.detail, known.cause) = (detail.into(), cause.cloned());
                }
                return is_changed;
            }
            pauses.push(Pause {
                reason,
                detail: detail.into(),
                cause: cause.cloned(),
                since: SystemTime::now(),
            });
            pauses.sort_by_key(|pause| pause.reason);
            is_new = true;
            true
        });
        is_new
    }

    /// Removes a pause. Returns whether there was one.
    pub(super) fn remove(&self, reason: PauseReason) -> bool {
        self.0.send_if_modified(|pauses| {
            let before = pauses.len();
            pauses.retain(|pause| pause.reason != reason);
            pauses.len() < before
        })
    }

    pub(super) fn all(&self) -> Vec<Pause> {
        self.0.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Vec<Pause>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_starts_and_ends_once() {
        let pauses = Pauses::default();
        assert!(pauses.add(PauseReason::Offline, "no route", None));
        assert!(!pauses.add(PauseReason::Offline, "no name server", None));
        assert!(pauses.add(PauseReason::LoginNeeded, "refused", None));
        let all: Vec<_> = pauses.all().iter().map(|p| (p.reason, p.detail.to_string())).collect();
        let login = (PauseReason::LoginNeeded, "refused".to_owned());
        assert_eq!(all, [login.clone(), (PauseReason::Offline, "no name server".to_owned())]);
        assert!(pauses.remove(PauseReason::Offline));
        assert!(!pauses.remove(PauseReason::Offline));
        assert_eq!(pauses.all().len(), 1);
    }
}
