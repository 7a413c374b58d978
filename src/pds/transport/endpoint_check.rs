//! One request without authorization to an endpoint: whether its name has addresses, whether a server answers, and
//! its clock. For `pdsfs doctor`. Only `transport.rs` and its submodules import reqwest.

use std::net::IpAddr;

use reqwest::Url;
use reqwest::header::DATE;

use super::Transport;
use super::failure::connection_lost;
use crate::error::{Error, ErrorKind, Result};

/// The host that connections to an endpoint go to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResolvedHost {
    /// The proxy if there is one.
    pub host: String,
    pub addresses: Vec<IpAddr>,
}

/// The answer of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointAnswer {
    pub status: u16,
    /// Seconds since 1970, from the header `Date`.
    pub unix_s: Option<i64>,
}

impl Transport {
    /// Looks up the host that connections for `url` go to.
    pub async fn resolve(&self, url: &Url) -> Result<ResolvedHost> {
        let (host, addresses) = self.connectivity.lookup(url).await;
        let failed = |why: String| Error::new(ErrorKind::Unreachable, format!("{host} has no address{why}"));
        let addresses = addresses.map_err(|e| failed(format!(": {e}")))?;
        if addresses.is_empty() { Err(failed(String::new())) } else { Ok(ResolvedHost { host, addresses }) }
    }

    /// Sends one GET. Every HTTP status is an answer.
    pub async fn check_endpoint(&self, url: &Url) -> Result<EndpointAnswer> {
        let request = self.pools().calls_to(url).get(url.clone()).timeout(self.limits.call);
        let answer = request.send().await.map_err(|e| connection_lost(url.path(), e).error)?;
        let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
        Ok(EndpointAnswer { status: answer.status().as_u16(), unix_s: date.and_then(parse_date) })
    }
}

/// `Mon, 23 Nov 2026 17:56:33 GMT`.
fn parse_date(text: &str) -> Option<i64> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok().map(jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_header_is_parsed() {
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:01:00 GMT"), Some(60));
        assert_eq!(parse_date("yesterday"), None);
    }
}
