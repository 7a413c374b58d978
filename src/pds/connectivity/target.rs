//! The host and port that connections for a URL go to: those of the proxy, if one is used. A probe must test
//! the target that the calls connect to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::task::JoinSet;
use url::Url;

use crate::auth::endpoint;
use crate::pds::content_hosts::ContentHosts;

/// Addresses of one name that are probed.
const ADDRESSES_MAX: usize = 8;
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// The URL of a request.
#[derive(Clone, Copy, Debug)]
pub(in crate::pds) struct Destination<'a> {
    pub(in crate::pds) url: &'a Url,
    /// The rule for its host, if the service has chosen it.
    pub(in crate::pds) content: Option<&'a Arc<ContentHosts>>,
}

impl<'a> From<&'a Url> for Destination<'a> {
    fn from(url: &'a Url) -> Self {
        Self { url, content: None }
    }
}

/// A host and a port.
#[derive(Clone, Debug)]
pub(super) struct ProbeTarget {
    host: String,
    port: u16,
    /// See [`Destination::content`]. `None` for a proxy.
    content: Option<Arc<ContentHosts>>,
}

impl PartialEq for ProbeTarget {
    fn eq(&self, other: &Self) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

impl ProbeTarget {
    fn of(to: Destination<'_>) -> Self {
        // A literal IPv6 address has brackets in a URL and none in a lookup.
        let host = to.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        Self { host, port: to.url.port_or_known_default().unwrap_or(443), content: to.content.cloned() }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) async fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(lookup_host((self.host.as_str(), self.port)).await?.map(|address| address.ip()).collect())
    }

    /// The local address that connections to this target would use, `None` without a route. Sends nothing.
    /// The name is looked up once and stored in `resolved`.
    pub(super) async fn local_address(&self, resolved: &mut Option<SocketAddr>) -> Option<IpAddr> {
        if resolved.is_none() {
            let found =
                tokio::time::timeout(LOOKUP_TIMEOUT, lookup_host((self.host.as_str(), self.port))).await;
            *resolved = found.ok()?.ok()?.next();
        }
        let to = (*resolved)?;
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await.ok()?;
        socket.connect(to).await.ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    }

    /// Whether a connection can be made within `limit`.
    pub(super) async fn is_reachable(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.accepts_connection()).await.unwrap_or(false)
    }

    /// Whether any address accepts a connection. All are tried at once, because some may be unreachable (an
    /// IPv6 address on a machine without IPv6).
    async fn accepts_connection(&self) -> bool {
        let addresses = match &self.content {
            Some(hosts) => hosts.resolve(&self.host, self.port).await.ok(),
            None => lookup_host((self.host.as_str(), self.port)).await.ok().map(Iterator::collect),
        };
        let addresses: Vec<_> = addresses.unwrap_or_default();
        let mut attempts: JoinSet<_> =
            addresses.into_iter().take(ADDRESSES_MAX).map(TcpStream::connect).collect();
        while let Some(attempt) = attempts.join_next().await {
            if matches!(attempt, Ok(Ok(_))) {
                return true;
            }
        }
        false
    }
}

/// The proxies of the environment, by the same variables that the HTTP client uses.
#[derive(Debug)]
pub(super) struct Proxies(Option<Matcher>);

impl Proxies {
    pub(super) fn from_environment() -> Self {
        Self(Some(Matcher::from_system()))
    }

    /// Every connection goes directly to the host of its URL.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// The target of connections for a URL. Loopback URLs never use a proxy.
    pub(super) fn target<'a>(&self, to: impl Into<Destination<'a>>) -> ProbeTarget {
        let to = to.into();
        if endpoint::is_loopback(to.url) {
            return ProbeTarget::of(to);
        }
        let uri = to.url.as_str().parse::<hyper::Uri>().ok();
        let proxy = self.0.as_ref().zip(uri).and_then(|(proxies, uri)| proxies.intercept(&uri));
        let Some(proxy) = proxy else { return ProbeTarget::of(to) };
        let host = proxy.uri().host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let default_port = match proxy.uri().scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            _ => 1080,
        };
        let port = proxy.uri().port_u16().unwrap_or(default_port);
        ProbeTarget { host, port, content: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostPatterns;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn target(host: &str, port: u16) -> ProbeTarget {
        ProbeTarget { host: host.to_owned(), port, content: None }
    }

    #[tokio::test]
    async fn probes_of_content_obey_its_rule() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for (host, exceptions, is_probed) in
            [("127.0.0.1", "off", false), ("localhost", "off", false), ("localhost", "localhost", true)]
        {
            let (near, far) = (url(&format!("https://{host}:{port}/x")), url("https://203.0.113.1"));
            let hosts = ContentHosts::new(&far, HostPatterns::parse(exceptions).unwrap());
            let to = Destination { url: &near, content: Some(&hosts) };
            let seen = Proxies::none().target(to).is_reachable(Duration::from_secs(10)).await;
            assert_eq!(seen, is_probed, "{host} with {exceptions}");
            assert!(Proxies::none().target(&near).is_reachable(Duration::from_secs(10)).await);
        }
    }

    #[tokio::test]
    async fn local_address_is_found_without_sending() {
        let (target, mut resolved) = (ProbeTarget::of((&url("http://127.0.0.1:9")).into()), None);
        assert_eq!(target.local_address(&mut resolved).await, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(resolved, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9))));
        // No route leads to the broadcast address.
        resolved = Some(SocketAddr::from((Ipv4Addr::BROADCAST, 9)));
        assert_eq!(target.local_address(&mut resolved).await, None);
    }

    #[test]
    fn host_names_have_no_brackets() {
        assert_eq!(ProbeTarget::of((&url("http://[::1]:9")).into()), target("::1", 9));
        assert_eq!(ProbeTarget::of((&url("https://x.example/a?b")).into()), target("x.example", 443));
    }

    #[test]
    fn target_is_the_proxy() {
        let matcher = |proxy: &str| Matcher::builder().all(proxy.to_owned()).no("near.example").build();
        let proxies = |proxy: &str| Proxies(Some(matcher(proxy)));
        let far = url("https://far.example/x");
        assert_eq!(proxies("http://p.example:3128").target(&far), target("p.example", 3128));
        assert_eq!(proxies("http://[::1]").target(&far), target("::1", 80));
        assert_eq!(proxies("socks5://p.example").target(&far), target("p.example", 1080));
        let near = url("https://near.example/x");
        assert_eq!(proxies("http://p.example:3128").target(&near), target("near.example", 443));
        for loopback in ["http://127.0.0.1:9", "http://[::1]:9", "http://localhost:9"] {
            let loopback = url(loopback);
            assert_eq!(
                proxies("http://p.example:3128").target(&loopback),
                ProbeTarget::of((&loopback).into())
            );
        }
        assert_eq!(Proxies::none().target(&far), target("far.example", 443));
    }
}
