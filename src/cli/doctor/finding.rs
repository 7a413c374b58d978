//! One line of the result of `pdsfs doctor`.

use serde::Serialize;

use crate::error::{Error, Result};

/// One line of the result.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    /// The drive or account, for checks of a service.
    pub(super) drive: Option<String>,
    pub(super) state: State,
    pub(super) detail: String,
    /// The command that mends the problem, if the detail does not contain it.
    pub(super) remedy: Option<String>,
    /// Names in the texts that a report masks, and what stands for them.
    #[serde(skip)]
    pub(super) private: Vec<PrivateWord>,
}

/// A name, and what stands for it in a report.
pub(super) type PrivateWord = (String, &'static str);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Ok,
    Problem,
    /// The check does not apply here, or needs one that has failed.
    Skipped,
}

impl Finding {
    pub(super) fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self {
            check,
            drive: None,
            state: State::Ok,
            detail: detail.into(),
            remedy: None,
            private: Vec::new(),
        }
    }

    pub(super) fn skipped(check: &'static str, detail: impl Into<String>) -> Self {
        Self { state: State::Skipped, ..Self::ok(check, detail) }
    }

    pub(super) fn problem(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Problem, remedy: Some(remedy.into()), ..Self::ok(check, detail) }
    }

    /// The text of an error names its remedy.
    pub(super) fn error(check: &'static str, error: &Error) -> Self {
        Self { state: State::Problem, ..Self::ok(check, error.to_string()) }
    }

    pub(super) fn of(check: &'static str, outcome: Result<String>) -> Self {
        outcome.map_or_else(|error| Self::error(check, &error), |detail| Self::ok(check, detail))
    }

    pub(super) fn with_private(mut self, words: impl IntoIterator<Item = PrivateWord>) -> Self {
        self.private.extend(words);
        self
    }

    pub(super) fn at(self, drive: &str) -> Self {
        Self { drive: Some(drive.to_owned()), ..self }
    }
}
