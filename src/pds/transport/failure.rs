//! Attempts without a usable answer, as failures: what is known of whether the request was carried out.
//!
//! Neither addresses, which may be signed, nor what answers say is in their texts.

use crate::error::{Error, ErrorKind};
use crate::pds::retry::{Failure, Sent};

/// The text of a JSON error may quote what it met, which may be a token or a signed URL: only the place is told.
pub(super) fn unreadable(path: &str, e: &serde_json::Error) -> Failure {
    let what = match e.classify() {
        serde_json::error::Category::Data => "not what was expected",
        serde_json::error::Category::Eof => "cut off",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "not JSON",
    };
    let place = format!("line {}, column {}", e.line(), e.column());
    let failure = protocol(format!("{path}: the answer makes no sense: {what} at {place}"));
    Failure { sent: Sent::Maybe, ..failure }
}

pub(super) fn protocol(detail: String) -> Failure {
    let error = Error::new(ErrorKind::Protocol, detail);
    Failure { error, code: String::new(), sent: Sent::Answered, retry_after: None }
}

pub(super) fn stall(what: &str) -> Failure {
    let error = Error::new(ErrorKind::Timeout, format!("{what}: nothing moved for too long"));
    Failure { error, code: String::new(), sent: Sent::Maybe, retry_after: None }
}

pub(super) fn out_of_reach(what: &str, sent: Sent) -> Failure {
    let error = Error::new(ErrorKind::Unreachable, format!("{what}: the service cannot be reached"));
    Failure { error, code: String::new(), sent, retry_after: None }
}

/// No answer came, or it broke off. The URL is left out: it may be signed.
pub(super) fn lost(what: &str, e: &reqwest::Error) -> Failure {
    let kind = if e.is_timeout() { ErrorKind::Timeout } else { ErrorKind::Unreachable };
    let sent = if e.is_connect() { Sent::No } else { Sent::Maybe };
    let mut detail = format!("{what}: no answer");
    let mut cause = std::error::Error::source(e);
    while let Some(e) = cause {
        detail.push_str(": ");
        detail.push_str(&e.to_string());
        cause = e.source();
    }
    Failure { error: Error::new(kind, detail), code: String::new(), sent, retry_after: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_makes_no_sense_is_not_quoted() {
        for (text, says) in [
            ("{\n \"a\": \"SECRET\"}", "not what was expected at line 2, column 14"),
            ("SECRET", "not JSON"),
            ("{\"SECRET", "cut off"),
        ] {
            let wrong = serde_json::from_str::<std::collections::HashMap<String, u32>>(text).unwrap_err();
            let said = unreadable("/v2/x", &wrong).error.to_string();
            assert!(said.contains(says) && !said.contains("SECRET"), "{said}");
        }
    }
}
