//! The `Host` header of a request from a browser.
//!
//! A web page can make its own name resolve to an address of this machine (DNS rebinding). The browser then sends that
//! name, and never an address.

use std::net::IpAddr;

use hyper::header::HOST;
use hyper::http::HeaderMap;
use hyper::http::uri::Authority;

/// Host and port of the header, as the client wrote them.
pub fn authority(headers: &HeaderMap) -> Option<Authority> {
    headers.get(HOST)?.to_str().ok()?.parse().ok()
}

/// Whether the host is an address or `localhost`, which no other machine can claim.
pub fn is_literal(authority: &Authority) -> bool {
    let host = authority.host();
    let ip = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || ip.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_not_literal() {
        let is_literal = |host: &str| is_literal(&host.parse().unwrap());
        for host in ["127.0.0.1", "127.0.0.1:80", "[::1]:80", "localhost", "LOCALHOST:1", "192.168.1.2:9"] {
            assert!(is_literal(host), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil", "1"] {
            assert!(!is_literal(host), "{host}");
        }
        assert_eq!(authority(&HeaderMap::new()), None);
    }
}
