//! Where connections go: to a host and a port, which are those of a proxy where one stands in between. Whoever
//! asks whether the service can be reached must ask where the calls go, not where they end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::task::JoinSet;
use url::Url;

use super::KNOCK_MAX;
use crate::pds::endpoint;

/// Addresses of one name that are knocked at.
const ADDRESSES_MAX: usize = 8;

/// A host and a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place(String, u16);

impl Place {
    fn of(url: &Url) -> Self {
        // A literal IPv6 address has brackets in a URL and none in a lookup.
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        Self(host, url.port_or_known_default().unwrap_or(443))
    }

    pub(super) fn host(&self) -> &str {
        &self.0
    }

    /// The address that this machine would speak from to it; `None` where no route leads there. Sends
    /// nothing. The name is looked up once.
    pub(super) async fn source(&self, known: &mut Option<SocketAddr>) -> Option<IpAddr> {
        if known.is_none() {
            let found = tokio::time::timeout(KNOCK_MAX, lookup_host((self.0.as_str(), self.1))).await;
            *known = found.ok()?.ok()?.next();
        }
        let to = (*known)?;
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await.ok()?;
        socket.connect(to).await.ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    }

    /// Whether a connection can be made within `limit`.
    pub(super) async fn opens(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.answers()).await.unwrap_or(false)
    }

    /// Whether any of its addresses takes a connection: one of them may lead nowhere (IPv6 where only the name has it).
    async fn answers(&self) -> bool {
        let Ok(addresses) = lookup_host((self.0.as_str(), self.1)).await else { return false };
        let mut knocks: JoinSet<_> = addresses.take(ADDRESSES_MAX).map(TcpStream::connect).collect();
        while let Some(knock) = knocks.join_next().await {
            if matches!(knock, Ok(Ok(_))) {
                return true;
            }
        }
        false
    }
}

/// The proxies between this machine and others, by the variables that the HTTP client goes by too.
#[derive(Debug)]
pub(super) struct Proxies(Option<Matcher>);

impl Proxies {
    /// Those of the environment.
    pub(super) fn of_environment() -> Self {
        Self(Some(Matcher::from_system()))
    }

    /// Every connection goes where its URL says.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Where a connection for `url` goes. What goes to this machine goes there at once.
    pub(super) fn place(&self, url: &Url) -> Place {
        if endpoint::is_loopback(url) {
            return Place::of(url);
        }
        let uri = url.as_str().parse::<hyper::Uri>().ok();
        let proxy = self.0.as_ref().zip(uri).and_then(|(proxies, uri)| proxies.intercept(&uri));
        let Some(proxy) = proxy else { return Place::of(url) };
        let host = proxy.uri().host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let usual_port = match proxy.uri().scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            _ => 1080,
        };
        Place(host, proxy.uri().port_u16().unwrap_or(usual_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[tokio::test]
    async fn the_own_address_on_the_way_is_found_without_sending() {
        let (place, mut known) = (Place::of(&url("http://127.0.0.1:9")), None);
        assert_eq!(place.source(&mut known).await, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(known, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9))));
        // Nothing is ever routed to this address.
        known = Some(SocketAddr::from((Ipv4Addr::BROADCAST, 9)));
        assert_eq!(place.source(&mut known).await, None);
    }

    #[test]
    fn hosts_are_looked_up_without_brackets() {
        assert_eq!(Place::of(&url("http://[::1]:9")), Place("::1".into(), 9));
        assert_eq!(Place::of(&url("https://x.example/a?b")), Place("x.example".into(), 443));
    }

    #[test]
    fn a_proxy_is_where_connections_go() {
        let matcher = |proxy: &str| Matcher::builder().all(proxy.to_owned()).no("near.example").build();
        let proxies = |proxy: &str| Proxies(Some(matcher(proxy)));
        let far = url("https://far.example/x");
        let place = |host: &str, port| Place(host.to_owned(), port);
        assert_eq!(proxies("http://p.example:3128").place(&far), place("p.example", 3128));
        assert_eq!(proxies("http://[::1]").place(&far), place("::1", 80));
        assert_eq!(proxies("socks5://p.example").place(&far), place("p.example", 1080));
        let near = url("https://near.example/x");
        assert_eq!(proxies("http://p.example:3128").place(&near), place("near.example", 443));
        for own in ["http://127.0.0.1:9", "http://[::1]:9", "http://localhost:9"] {
            let own = url(own);
            assert_eq!(proxies("http://p.example:3128").place(&own), Place::of(&own));
        }
        assert_eq!(Proxies::none().place(&far), place("far.example", 443));
    }
}
