//! Which hosts content may be sent to and read from.
//!
//! The service chooses the URLs of content. A hostile or mistaken one could name a host that only this machine can
//! reach, such as the metadata service of a cloud, and have its answers uploaded. So content goes to public
//! addresses, or to addresses of the same class as the endpoint's own; an endpoint on this machine may be a way into a
//! private network. The setting `content_hosts` lists exceptions. The addresses of a name are checked when a
//! connection or a probe is made. Names of proxies are exempt, because the user has chosen them; they must not be the
//! host of content themselves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use hyper_util::client::proxy::matcher::Matcher;
use tokio::net::lookup_host;
use tokio::sync::Mutex;
use url::{Host, Url};

use crate::auth::endpoint;
use crate::config::HostPatterns;

/// The metadata services of Alibaba Cloud and of Azure.
const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
/// That of AWS, `fd00:ec2::254`.
const METADATA_AWS: [u16; 8] = [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254];
/// Longest lookup of the endpoint's name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the addresses of the endpoint count as known.
const OWN_ADDRESSES_TTL: Duration = Duration::from_secs(60);

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
    exceptions: HostPatterns,
    own: OwnAddresses,
}

/// Why a host is no host of content.
#[derive(Debug)]
pub(super) enum HostError {
    /// The reason.
    Refused(String),
    /// The addresses of the host, or of the endpoint, are unknown.
    Lookup(io::Error),
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => write!(
                f,
                "the service returned a URL for content that is not allowed: {why}; check the endpoint, or allow the \
                 host with content_hosts"
            ),
            Self::Lookup(e) => write!(f, "cannot look up a host: {e}"),
        }
    }
}

impl std::error::Error for HostError {}

impl From<io::Error> for HostError {
    fn from(e: io::Error) -> Self {
        Self::Lookup(e)
    }
}

impl ContentHosts {
    pub(super) fn new(endpoint: &Url, exceptions: HostPatterns) -> Arc<Self> {
        let matcher = Matcher::from_system();
        let probes = ["https://x.invalid/", "http://x.invalid/"];
        let intercepted =
            probes.iter().filter_map(|probe| matcher.intercept(&hyper::Uri::from_static(probe)));
        let proxies = intercepted.filter_map(|proxy| Some(proxy.uri().host()?.to_owned())).collect();
        Arc::new(Self { endpoint: endpoint.clone(), proxies, exceptions, own: OwnAddresses::default() })
    }

    /// Parses the URL of content, and refuses one that content must not go to. The addresses of a name are checked
    /// by [`Self::resolve`].
    pub(super) async fn parse(&self, url: &str) -> Result<Url, HostError> {
        let url = Url::parse(url).map_err(|_| refused("it is no valid URL"))?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let may_be_plain = endpoint::is_loopback(&self.endpoint) || self.exceptions.allows_plain(host);
        if url.scheme() != "https" && !(url.scheme() == "http" && may_be_plain) {
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
            self.keep_allowed(host, vec![SocketAddr::new(ip, 0)]).await?;
        }
        if self.is_proxy(host) {
            return Err(refused("its host is a proxy"));
        }
        Ok(url)
    }

    fn is_proxy(&self, name: &str) -> bool {
        self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
    }

    /// The addresses of a name that connections for content may use. Refuses a name without one.
    pub(super) async fn resolve(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, HostError> {
        let all: Vec<_> = lookup_host((name, port)).await?.collect();
        if self.is_proxy(name) { Ok(all) } else { self.keep_allowed(name, all).await }
    }

    async fn keep_allowed(&self, host: &str, all: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, HostError> {
        let mut allowed = vec![AddressClass::Public];
        let is_allowed =
            |allowed: &[AddressClass], at: &SocketAddr| allowed.contains(&AddressClass::of(at.ip()));
        if self.exceptions.matches(host) {
            allowed.extend([AddressClass::Private, AddressClass::Loopback]);
        }
        if !all.iter().all(|at| is_allowed(&allowed, at)) {
            allowed.extend(self.own.classes(Instant::now(), || self.look_up_endpoint()).await?);
            if allowed.contains(&AddressClass::Loopback) {
                allowed.push(AddressClass::Private);
            }
        }
        let first = all.first().map(|at| AddressClass::of(at.ip()));
        let kept: Vec<_> = all.into_iter().filter(|at| is_allowed(&allowed, at)).collect();
        match first {
            Some(class) if kept.is_empty() => Err(refused(&format!("its host is {class}"))),
            _ => Ok(kept),
        }
    }

    async fn look_up_endpoint(&self) -> io::Result<Vec<IpAddr>> {
        let host = self.endpoint.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, lookup_host((host, 0))).await??;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// The classes of the endpoint's own addresses, for [`OWN_ADDRESSES_TTL`]. Held while they are looked up, so that
/// there is one lookup at a time.
#[derive(Debug, Default)]
struct OwnAddresses(Mutex<Option<(Instant, Vec<AddressClass>)>>);

impl OwnAddresses {
    async fn classes<L>(&self, now: Instant, look_up: impl FnOnce() -> L) -> io::Result<Vec<AddressClass>>
    where
        L: Future<Output = io::Result<Vec<IpAddr>>>,
    {
        let mut known = self.0.lock().await;
        if let Some((at, classes)) = &*known
            && now.saturating_duration_since(*at) < OWN_ADDRESSES_TTL
        {
            return Ok(classes.clone());
        }
        let classes: Vec<_> = look_up().await?.into_iter().map(AddressClass::of).collect();
        *known = Some((now, classes.clone()));
        Ok(classes)
    }
}

fn refused(why: &str) -> HostError {
    HostError::Refused(why.to_owned())
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

    fn hosts(endpoint: &str, exceptions: &str) -> Arc<ContentHosts> {
        ContentHosts::new(&endpoint.parse().unwrap(), HostPatterns::parse(exceptions).unwrap())
    }

    async fn outcome(endpoint: &str, exceptions: &str, url: &str) -> Result<(), String> {
        hosts(endpoint, exceptions).parse(url).await.map(drop).map_err(|e| e.to_string())
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
            let seen = outcome(endpoint, "off", url).await;
            match why {
                None => assert_eq!(seen, Ok(()), "{endpoint} {url}"),
                Some(why) => {
                    assert!(seen.as_ref().is_err_and(|e| e.contains(why)), "{endpoint} {url}: {seen:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn listed_hosts_may_be_private_or_plain() {
        let list = "*.lan,10.0.0.2,127.0.0.1,http://plain.example,169.254.169.254";
        for (url, why) in [
            ("https://10.0.0.2/x", None),
            ("https://127.0.0.1/x", None),
            ("https://10.0.0.3/x", Some("private")),
            ("http://10.0.0.2/x", Some("not https")),
            ("http://plain.example/x", None),
            ("http://a.lan/x", Some("not https")),
            ("https://169.254.169.254/x", Some("link-local")),
        ] {
            let seen = outcome("https://203.0.113.1", list, url).await;
            match why {
                None => assert_eq!(seen, Ok(()), "{url}"),
                Some(why) => assert!(seen.as_ref().is_err_and(|e| e.contains(why)), "{url}: {seen:?}"),
            }
        }
        let listed = hosts("https://203.0.113.1", "local*").resolve("localhost", 1).await.unwrap();
        assert!(listed.iter().all(|at| at.ip().is_loopback() && at.port() == 1), "{listed:?}");
    }

    #[tokio::test]
    async fn names_are_checked_after_their_lookup() {
        let error = hosts("https://203.0.113.1", "off").resolve("localhost", 0).await.unwrap_err();
        assert!(matches!(&error, HostError::Refused(why) if why.contains("this machine")), "{error}");
        let unknown = hosts("https://endpoint.invalid", "off").resolve("localhost", 0).await.unwrap_err();
        assert!(matches!(unknown, HostError::Lookup(_)), "{unknown}");
        let near = hosts("http://127.0.0.1:9", "off").resolve("localhost", 0).await.unwrap();
        assert!(near.iter().all(|address| address.ip().is_loopback()));
    }

    #[tokio::test]
    async fn endpoint_is_looked_up_once_a_minute() {
        let (own, lookups, start) = (OwnAddresses::default(), std::cell::Cell::new(0), Instant::now());
        let ask = async |now| {
            let look_up = || async {
                lookups.set(lookups.get() + 1);
                if lookups.get() == 1 {
                    Err(io::ErrorKind::TimedOut.into())
                } else {
                    Ok(vec![[10, 0, 0, 1].into()])
                }
            };
            own.classes(now, look_up).await
        };
        assert!(ask(start).await.is_err());
        for (after, expected) in [(0, 2), (59, 2), (60, 3)] {
            let seen = ask(start + Duration::from_secs(after)).await.unwrap();
            assert_eq!((seen, lookups.get()), (vec![AddressClass::Private], expected), "after {after} s");
        }
    }
}
