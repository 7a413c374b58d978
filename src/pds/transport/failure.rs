//! Attempts without a usable answer, as failures. Each states whether the request may have been carried out.
//!
//! Their texts contain neither URLs, which may be presigned, nor text of answers, which may be secret. Only
//! `transport.rs` and its submodules import reqwest.

use std::fmt;

use super::tls::certificate_refusal;
use crate::error::{Error, ErrorKind};
use crate::messages::Cause;
use crate::pds::retry::{Delivery, RequestFailure};

/// A JSON answer that cannot be parsed. The text of a JSON error may quote the answer, so only its position
/// is kept.
pub(super) fn unreadable_answer(path: &str, e: &serde_json::Error) -> RequestFailure {
    let what = match e.classify() {
        serde_json::error::Category::Data => "unexpected value",
        serde_json::error::Category::Eof => "truncated",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "not JSON",
    };
    let position = format!("line {}, column {}", e.line(), e.column());
    let failure = protocol_error(format!("{path}: invalid answer: {what} at {position}"));
    RequestFailure { delivery: Delivery::Unknown, ..failure }
}

pub(super) fn protocol_error(detail: String) -> RequestFailure {
    let error = Error::new(ErrorKind::Protocol, detail);
    RequestFailure {
        status: None,
        error,
        code: String::new(),
        delivery: Delivery::Answered,
        retry_after: None,
    }
}

pub(super) fn idle_timeout(what: &str) -> RequestFailure {
    let detail = format!("{what}: timed out without progress");
    let error = Error::from_cause(ErrorKind::Timeout, Cause::Stalled, detail);
    RequestFailure {
        status: None,
        error,
        code: String::new(),
        delivery: Delivery::Unknown,
        retry_after: None,
    }
}

pub(super) fn disk_timeout() -> RequestFailure {
    let error = Error::new(ErrorKind::Timeout, "the local disk does not answer");
    RequestFailure {
        status: None,
        error,
        code: String::new(),
        delivery: Delivery::Unknown,
        retry_after: None,
    }
}

/// `cause` is that of the outage.
pub(super) fn offline(what: &str, cause: Cause, delivery: Delivery) -> RequestFailure {
    let error = Error::from_cause(ErrorKind::Unreachable, cause, format!("{what}: the service is offline"));
    RequestFailure { status: None, error, code: String::new(), delivery, retry_after: None }
}

/// The whole cause chain of an HTTP error as one text, without its URL. `reqwest` shows only the outermost cause.
#[derive(Debug)]
pub(super) struct HttpError(reqwest::Error);

impl HttpError {
    pub(super) fn new(e: reqwest::Error) -> Self {
        Self(e.without_url())
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cause = std::error::Error::source(&self.0);
        if cause.is_none() {
            return self.0.fmt(f);
        }
        let mut separator = "";
        while let Some(e) = cause {
            write!(f, "{separator}{e}")?;
            (separator, cause) = (": ", e.source());
        }
        Ok(())
    }
}

impl std::error::Error for HttpError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// No answer came, or it broke off, or the certificate of the host was refused.
pub(super) fn connection_lost(what: &str, e: reqwest::Error) -> RequestFailure {
    if let Some((cause, advice)) = certificate_refusal(&e) {
        let error = Error::new(ErrorKind::Unreachable, format!("{what}: no connection: {cause}; {advice}"));
        return RequestFailure {
            status: None,
            error,
            code: String::new(),
            delivery: Delivery::Untrusted,
            retry_after: None,
        };
    }
    let kind = if e.is_timeout() { ErrorKind::Timeout } else { ErrorKind::Unreachable };
    let delivery = if e.is_connect() { Delivery::NotSent } else { Delivery::Unknown };
    let cause = cause_of(&e);
    let detail = format!("{what}: no answer: {}", HttpError::new(e));
    tracing::debug!("{detail}");
    let error = Error::from_cause(kind, cause, detail);
    RequestFailure { status: None, error, code: String::new(), delivery, retry_after: None }
}

/// The cause in terms of the user.
fn cause_of(e: &reqwest::Error) -> Cause {
    let url = e.url();
    let host = url.and_then(url::Url::host_str).unwrap_or_default();
    let host = match url.and_then(url::Url::port) {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    if host.is_empty() {
        return Cause::Unreachable;
    }
    connect_cause(e, &host).unwrap_or_else(|| match (e.is_timeout(), e.is_connect()) {
        (true, _) => Cause::NoAnswer { host },
        (false, true) => Cause::Unreachable,
        (false, false) => Cause::ConnectionBroke { host },
    })
}

/// Why no connection could be made, if the chain of `e` shows it.
pub(super) fn connect_cause(e: &(dyn std::error::Error + 'static), host: &str) -> Option<Cause> {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
    let mut chain = Some(e);
    while let Some(e) = chain {
        let host = || host.to_owned();
        match e.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(ConnectionRefused) => return Some(Cause::ConnectionRefused { host: host() }),
            Some(HostUnreachable | NetworkUnreachable) => return Some(Cause::NoRoute { host: host() }),
            Some(TimedOut) => return Some(Cause::NoAnswer { host: host() }),
            _ => {}
        }
        // A failed lookup has no kind. These are the texts of `gai_strerror`, which pdsfs never translates.
        let text = e.to_string();
        let says = |words: &[&str]| words.iter().any(|words| text.contains(words));
        if says(&["Name or service not known", "No address associated with hostname"]) {
            return Some(Cause::UnknownHost { host: host() });
        }
        if says(&["Temporary failure in name resolution"]) {
            return Some(Cause::NoNameServer { host: host() });
        }
        chain = e.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_text_does_not_quote_the_answer() {
        for (text, expected) in [
            ("{\n \"a\": \"SECRET\"}", "unexpected value at line 2, column 14"),
            ("SECRET", "not JSON"),
            ("{\"SECRET", "truncated"),
        ] {
            let error = serde_json::from_str::<std::collections::HashMap<String, u32>>(text).unwrap_err();
            let message = unreadable_answer("/v2/x", &error).error.to_string();
            assert!(message.contains(expected) && !message.contains("SECRET"), "{message}");
        }
    }
}
