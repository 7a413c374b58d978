//! Which hosts content may be sent to and read from.
//!
//! The service chooses the URLs of content. A hostile or mistaken one could name a host that only this machine can
//! reach, such as the metadata service of a cloud, and have its answers uploaded. So content goes to public
//! addresses, or to addresses of the same class as the endpoint's own; an endpoint on this machine may be a way into a
//! private network. The addresses of a name are checked when the connection is made. Names of proxies are exempt,
//! because the user has chosen them; they must not be the host of content themselves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;
use url::{Host, Url};

use super::failure::protocol_error;
use crate::auth::endpoint;
use crate::error::{Error, ErrorKind};
use crate::pds::retry::{Delivery, RequestFailure};

/// The metadata services of Alibaba Cloud and of Azure.
const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
/// That of AWS, `fd00:ec2::254`.
const METADATA_AWS: [u16; 8] = [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254];
/// Longest lookup of the endpoint's name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The reach of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AddressClass {
    Public,
    /// RFC 1918, RFC 6598 and unique local addresses.
    Private,
    Loopback,
    /// Also the metadata services of clouds.
    LinkLocal,
    /// Multicast, reserved, broadcast and unspecified addresses.
    NoHost,
}

impl AddressClass {
    fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => {
                let segments = ip.segments();
                match segments {
                    _ if ip.is_loopback() => Self::Loopback,
                    _ if ip.is_unspecified() || ip.is_multicast() => Self::NoHost,
                    METADATA_AWS => Self::LinkLocal,
                    _ if ip.is_unicast_link_local() => Self::LinkLocal,
                    _ if ip.is_unique_local() || segments[0] & 0xffc0 == 0xfec0 => Self::Private,
                    // An IPv4 address in IPv6: compatible, mapped, of NAT64 (RFC 6052) or of 6to4 (RFC 3056).
                    [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
                    | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
                    | [0x2002, high, low, ..] => {
                        Self::of_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
                    }
                    _ => Self::Public,
                }
            }
        }
    }

    fn of_v4(ip: Ipv4Addr) -> Self {
        let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
        match ip {
            _ if METADATA.contains(&ip) => Self::LinkLocal,
            _ if ip.is_loopback() => Self::Loopback,
            _ if ip.octets()[0] == 0 || ip.octets()[0] >= 224 => Self::NoHost,
            _ if ip.is_link_local() => Self::LinkLocal,
            _ if ip.is_private() || is_shared => Self::Private,
            _ => Self::Public,
        }
    }
}

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Private => "a private address",
            Self::Loopback => "this machine",
            Self::LinkLocal => "a link-local address",
            Self::NoHost => "an address of no host",
        })
    }
}

/// The rule of one service.
#[derive(Debug)]
pub(super) struct ContentHosts {
    endpoint: Url,
    /// Names of proxies of the environment.
    proxies: Vec<String>,
}

/// The error of a name whose addresses are all refused.
#[derive(Debug)]
struct RefusedAddress(AddressClass);

impl fmt::Display for RefusedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the host is {}", self.0)
    }
}

impl std::error::Error for RefusedAddress {}

impl ContentHosts {
    pub(super) fn new(endpoint: &Url) -> Arc<Self> {
        let matcher = Matcher::from_system();
        let probes = ["https://x.invalid/", "http://x.invalid/"];
        let intercepted =
            probes.iter().filter_map(|probe| matcher.intercept(&hyper::Uri::from_static(probe)));
        let proxies = intercepted.filter_map(|proxy| Some(proxy.uri().host()?.to_owned())).collect();
        Arc::new(Self { endpoint: endpoint.clone(), proxies })
    }

    /// Parses the URL of content, and refuses one that content must not go to. A name is looked up later, by the
    /// client that uses this as its resolver.
    pub(super) async fn parse(&self, url: &str) -> Result<Url, RequestFailure> {
        let url =
            Url::parse(url).map_err(|_| protocol_error("the service returned an invalid URL".to_owned()))?;
        let is_plain = url.scheme() == "http";
        if url.scheme() != "https" && !(is_plain && endpoint::is_loopback(&self.endpoint)) {
            return Err(refused("its URL is not https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("its URL contains a user or password"));
        }
        let literal = match url.host() {
            Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            Some(Host::Domain(_)) => None,
            None => return Err(refused("its URL has no host")),
        };
        if let Some(ip) = literal {
            let class = AddressClass::of(ip);
            let allowed = self.allowed(&[class]).await;
            let unknown = |e| {
                let error = Error::with_source(ErrorKind::Unreachable, "cannot look up the endpoint", e);
                RequestFailure { error, delivery: Delivery::NotSent, ..protocol_error(String::new()) }
            };
            if !allowed.map_err(unknown)?.contains(&class) {
                return Err(refused(&format!("its host is {class}")));
            }
        }
        if url.host_str().is_some_and(|host| self.is_proxy(host)) {
            return Err(refused("its host is a proxy"));
        }
        Ok(url)
    }

    fn is_proxy(&self, name: &str) -> bool {
        self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
    }

    /// The classes of addresses, of those in `asked`, that content may go to.
    async fn allowed(&self, asked: &[AddressClass]) -> io::Result<Vec<AddressClass>> {
        let mut allowed = vec![AddressClass::Public];
        if asked.iter().any(|class| *class != AddressClass::Public) {
            let host = self.endpoint.host_str().unwrap_or_default().trim_matches(['[', ']']);
            let own = tokio::time::timeout(LOOKUP_TIMEOUT, lookup_host((host, 0))).await??;
            allowed.extend(own.map(|address| AddressClass::of(address.ip())));
            if allowed.contains(&AddressClass::Loopback) {
                allowed.push(AddressClass::Private);
            }
        }
        Ok(allowed)
    }

    async fn resolve_name(
        &self,
        name: &str,
    ) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let all: Vec<_> = lookup_host((name, 0)).await?.collect();
        if self.is_proxy(name) {
            return Ok(all);
        }
        let classes: Vec<_> = all.iter().map(|address| AddressClass::of(address.ip())).collect();
        let allowed = self.allowed(&classes).await?;
        let kept: Vec<_> = all
            .into_iter()
            .zip(&classes)
            .filter(|(_, class)| allowed.contains(class))
            .map(|(at, _)| at)
            .collect();
        match classes.first() {
            Some(class) if kept.is_empty() => Err(RefusedAddress(*class).into()),
            _ => Ok(kept),
        }
    }
}

/// The resolver of clients for content.
pub(super) struct ContentResolver(pub(super) Arc<ContentHosts>);

impl Resolve for ContentResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let hosts = self.0.clone();
        Box::pin(async move {
            let addresses = hosts.resolve_name(name.as_str()).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// The failure of a request whose host was refused by the resolver.
pub(super) fn refused_host(error: &reqwest::Error) -> Option<RequestFailure> {
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        if let Some(RefusedAddress(class)) = e.downcast_ref() {
            return Some(refused(&format!("its host is {class}")));
        }
        cause = e.source();
    }
    None
}

fn refused(why: &str) -> RequestFailure {
    protocol_error(format!(
        "the service returned a URL for content that is not allowed: {why}; check the endpoint"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_their_class() {
        for (class, addresses) in [
            (
                AddressClass::Public,
                &["8.8.8.8", "100.128.0.1", "2001:db8::1", "::ffff:8.8.8.8", "2002:808:808::1"][..],
            ),
            (AddressClass::Private, &["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1"]),
            (
                AddressClass::Private,
                &["::ffff:10.0.0.1", "64:ff9b::a00:1", "::10.0.0.1", "2002:a00:1::1", "fec0::1"],
            ),
            (AddressClass::Loopback, &["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]),
            (
                AddressClass::LinkLocal,
                &["169.254.169.254", "100.100.100.200", "168.63.129.16", "fe80::1", "fd00:ec2::254"],
            ),
            (
                AddressClass::NoHost,
                &["0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "240.0.0.1", "ff02::1"],
            ),
        ] {
            for address in addresses {
                assert_eq!(AddressClass::of(address.parse().unwrap()), class, "{address}");
            }
        }
    }

    async fn outcome(endpoint: &str, url: &str) -> Result<(), String> {
        let hosts = ContentHosts::new(&endpoint.parse().unwrap());
        hosts.parse(url).await.map(drop).map_err(|failure| failure.error.to_string())
    }

    #[tokio::test]
    async fn only_a_local_endpoint_has_local_content() {
        for (endpoint, url, why) in [
            ("https://203.0.113.1", "https://8.8.8.8/x", None),
            ("https://203.0.113.1", "https://store.example/x", None),
            ("https://203.0.113.1", "http://8.8.8.8/x", Some("not https")),
            ("https://203.0.113.1", "file:///etc/passwd", Some("not https")),
            ("https://203.0.113.1", "https://u:p@8.8.8.8/x", Some("user or password")),
            ("https://203.0.113.1", "https://100.100.100.200/x", Some("link-local")),
            ("https://203.0.113.1", "https://127.0.0.1:2379/x", Some("this machine")),
            ("https://203.0.113.1", "https://[::ffff:10.0.0.1]/x", Some("private")),
            ("https://10.0.0.1", "https://10.0.0.2/x", None),
            ("https://10.0.0.1", "http://10.0.0.2/x", Some("not https")),
            ("https://10.0.0.1", "https://169.254.169.254/x", Some("link-local")),
            ("http://127.0.0.1:9", "http://127.0.0.1:8/x", None),
            ("http://localhost:9", "http://[::1]:8/x", None),
            ("http://127.0.0.1:9", "http://169.254.169.254/x", Some("link-local")),
            ("http://127.0.0.1:9", "http://192.168.0.1/x", None),
        ] {
            let seen = outcome(endpoint, url).await;
            match why {
                None => assert_eq!(seen, Ok(()), "{endpoint} {url}"),
                Some(why) => {
                    assert!(seen.as_ref().is_err_and(|e| e.contains(why)), "{endpoint} {url}: {seen:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn names_are_checked_after_their_lookup() {
        let far = ContentHosts::new(&"https://203.0.113.1".parse().unwrap());
        let error = far.resolve_name("localhost").await.unwrap_err();
        assert_eq!(error.downcast_ref::<RefusedAddress>().unwrap().0, AddressClass::Loopback);
        let unknown = ContentHosts::new(&"https://endpoint.invalid".parse().unwrap());
        assert!(unknown.resolve_name("localhost").await.unwrap_err().downcast_ref::<io::Error>().is_some());
        let near = ContentHosts::new(&"http://127.0.0.1:9".parse().unwrap());
        assert!(
            near.resolve_name("localhost").await.unwrap().iter().all(|address| address.ip().is_loopback())
        );
    }
}
