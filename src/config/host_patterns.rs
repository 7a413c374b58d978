//! The setting `content_hosts`: patterns of host names and addresses.

use std::fmt;
use std::net::Ipv6Addr;

use crate::error::{Error, Result};
use crate::name_patterns::NamePatterns;

/// Before a pattern whose hosts may be used without TLS.
const PLAIN: &str = "http://";
/// The word for an empty list.
const NONE: &str = "off";

/// Hosts that the user allows for content.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostPatterns {
    /// As they were written.
    texts: Vec<String>,
    all: NamePatterns,
    plain: NamePatterns,
}

impl HostPatterns {
    /// Parses a list with commas; `off` is the empty list.
    pub fn parse(list: &str) -> Result<Self> {
        let texts: Vec<String> = list.split(',').map(|text| text.trim().to_ascii_lowercase()).collect();
        if texts == [NONE] {
            return Ok(Self::default());
        }
        texts.iter().try_for_each(|text| check(host(text)))?;
        let plain: Vec<&str> = texts.iter().filter_map(|text| text.strip_prefix(PLAIN)).collect();
        let plain = if plain.is_empty() { NamePatterns::default() } else { NamePatterns::new(plain)? };
        Ok(Self { all: NamePatterns::new(texts.iter().map(|text| host(text)))?, plain, texts })
    }

    /// Whether the host, a name or an address without brackets, is in the list.
    pub fn matches(&self, host: &str) -> bool {
        self.all.matches(&host.to_ascii_lowercase())
    }

    /// Whether plain http to the host is allowed too.
    pub fn allows_plain(&self, host: &str) -> bool {
        self.plain.matches(&host.to_ascii_lowercase())
    }
}

impl fmt::Display for HostPatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.texts.is_empty() { f.write_str(NONE) } else { f.write_str(&self.texts.join(",")) }
    }
}

fn host(text: &str) -> &str {
    text.strip_prefix(PLAIN).unwrap_or(text)
}

fn check(host: &str) -> Result<()> {
    let is_name = host.chars().all(|c| c.is_ascii_alphanumeric() || "-._*?".contains(c));
    if !is_name && host.parse::<Ipv6Addr>().is_err() {
        let detail = format!(
            "{host:?} is not a host pattern; write names or addresses without port, brackets and path, such as \
             *.internal.example"
        );
        return Err(Error::invalid(detail));
    }
    if host.chars().all(|c| matches!(c, '*' | '?' | '.')) {
        return Err(Error::invalid(format!("{host:?} would match every host; name at least a part of it")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_hosts() {
        let list = HostPatterns::parse("*.Internal.example, http://store.lan,10.0.0.5,fd00::1").unwrap();
        for host in ["a.internal.example", "A.b.INTERNAL.example", "store.lan", "10.0.0.5", "fd00::1"] {
            assert!(list.matches(host), "{host}");
            assert_eq!(list.allows_plain(host), host == "store.lan", "{host}");
        }
        for host in ["internal.example", "store.lan.example", "10.0.0.50"] {
            assert!(!list.matches(host), "{host}");
        }
        assert_eq!(HostPatterns::parse(&list.to_string()).unwrap(), list);
        let none = HostPatterns::parse("off").unwrap();
        assert!(none == HostPatterns::default() && !none.matches("off") && none.to_string() == "off");
    }

    #[test]
    fn invalid_host_patterns_are_refused() {
        for wrong in ["", "*", "*.*", "a,", "host:80", "https://a", "a/b", "[fd00::1]", "a,off,http://"] {
            assert!(HostPatterns::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
