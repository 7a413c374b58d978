//! Why nothing is sent: what is missing, for as long as it is.

use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Progress;

/// What is missing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// A login: nothing goes on until somebody has logged in again.
    LoginNeeded,
    /// The network.
    Offline,
    /// A word of another version: only who asks a mount meets it.
    #[default]
    #[serde(other)]
    Unknown,
}

impl PauseReason {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::LoginNeeded => "login needed",
            Self::Offline => "offline",
            Self::Unknown => "for another reason",
        }
    }
}

/// Something that is missing, since when, and what is known about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pause {
    /// What.
    pub reason: PauseReason,
    /// For people.
    pub detail: Arc<str>,
    /// Since when.
    pub since: SystemTime,
}

impl Progress {
    /// Nothing is sent from now on, for this reason; whether that is news.
    pub fn pause(&self, reason: PauseReason, detail: &str) -> bool {
        let mut is_news = false;
        self.pauses.send_if_modified(|pauses| {
            if let Some(known) = pauses.iter_mut().find(|pause| pause.reason == reason) {
                let is_other = &*known.detail != detail;
                if is_other {
                    known.detail = detail.into();
                }
                return is_other;
            }
            pauses.push(Pause { reason, detail: detail.into(), since: SystemTime::now() });
            pauses.sort_by_key(|pause| pause.reason);
            is_news = true;
            true
        });
        is_news
    }

    /// This is not missing any more; whether it was.
    pub fn resume(&self, reason: PauseReason) -> bool {
        self.pauses.send_if_modified(|pauses| {
            let before = pauses.len();
            pauses.retain(|pause| pause.reason != reason);
            pauses.len() < before
        })
    }

    /// What is missing, what only a person can give first.
    pub fn pauses(&self) -> Vec<Pause> {
        self.pauses.borrow().clone()
    }

    /// Changes with what is missing.
    pub fn subscribe_pauses(&self) -> watch::Receiver<Vec<Pause>> {
        self.pauses.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_comes_and_goes_once() {
        let progress = Progress::new();
        assert!(progress.pause(PauseReason::Offline, "no route"));
        assert!(!progress.pause(PauseReason::Offline, "no name server"));
        assert!(progress.pause(PauseReason::LoginNeeded, "refused"));
        let seen: Vec<_> = progress.pauses().iter().map(|p| (p.reason, p.detail.to_string())).collect();
        let login = (PauseReason::LoginNeeded, "refused".to_owned());
        assert_eq!(seen, [login.clone(), (PauseReason::Offline, "no name server".to_owned())]);
        assert!(progress.resume(PauseReason::Offline));
        assert!(!progress.resume(PauseReason::Offline));
        assert_eq!(progress.pauses().len(), 1);
    }
}
