//! A request of a file that is repeated.

use std::fmt;
use std::sync::Arc;

/// The retry that a file waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retry {
    /// How often the request is repeated, with this time.
    pub times: u32,
    /// Why the last attempt failed.
    pub reason: Arc<str>,
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = match (self.times % 10, self.times % 100) {
            (_, 11..=13) => "th",
            (1, _) => "st",
            (2, _) => "nd",
            (3, _) => "rd",
            _ => "th",
        };
        write!(f, "retrying ({}{ending} time): {}", self.times, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_an_ordinal_number() {
        let text = |times| Retry { times, reason: "the drive answers 500".into() }.to_string();
        assert_eq!(text(5), "retrying (5th time): the drive answers 500");
        for (times, ordinal) in [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (13, "13th"), (22, "22nd")]
        {
            assert!(text(times).starts_with(&format!("retrying ({ordinal} time)")), "{times}");
        }
    }
}
