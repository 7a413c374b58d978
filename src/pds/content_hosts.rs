//! Which hosts content may be sent to and read from.
//!
//! The service chooses the URLs of content. A hostile or mistaken one could name a host that only this machine can
//! reach, such as the metadata service of a cloud, and have its answers uploaded. So content goes to public
//! addresses, or to addresses of the same class as the endpoint's own; an endpoint on this machine may be a way into a
//! private network. An address counts as the endpoint's own if the endpoint has answered from it: its DNS could list
//! any address. The setting `content_hosts` lists exceptions. The addresses of a name are checked when a connection or
//! a probe is made. A proxy looks names up itself, so behind a proxy a name is also looked up here, before the
//! request. Names of proxies are exempt, because the user has chosen them; they must not be the host of content
//! themselves.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use hyper_util::client::proxy::matcher::Matcher;
use parking_lot::Mutex;
use tokio::net::lookup_host;
use url::{Host, Url};

use crate::auth::endpoint;
use crate::config::HostPatterns;

/// The metadata services of Alibaba Cloud and of Azure.
const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
/// That of AWS, `fd00:ec2::254`.
const METADATA_AWS: [u16; 8] = [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254];
/// Longest lookup of a name whose connections are made by a proxy.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long its result is used.
const LOOKUP_TTL: Duration = Duration::from_secs(60);
/// Results that are stored.
const LOOKUPS_MAX: usize = 64;
/// Longest host in a message; names have at most 253 characters.
const HOST_CHARS_SHOWN: usize = 253;

/// The reach of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AddressClass {
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
    /// The proxies of the environment; `None` if content bypasses them.
    matcher: Option<Matcher>,
    /// Their names.
    proxies: Vec<String>,
    exceptions: HostPatterns,
    /// Classes beyond the public one from which the endpoint has answered. A leaf lock.
    own: Mutex<Vec<AddressClass>>,
    /// Names of content that go through a proxy, with their addresses. A leaf lock.
    proxied: Mutex<BTreeMap<String, (Instant, Vec<SocketAddr>)>>,
}

/// Why a host is no host of content.
#[derive(Debug)]
pub(super) enum HostError {
    Refused {
        /// Empty if the URL has none.
        host: String,
        reason: Refusal,
    },
    /// The addresses of the host are unknown.
    Lookup(io::Error),
}

/// What is wrong with a URL for content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    NoUrl,
    NoHost,
    OtherScheme,
    PlainHttp,
    HasUser,
    Address(AddressClass),
    Proxy,
}

impl Refusal {
    fn why(self) -> String {
        let why = match self {
            Self::NoUrl => "it is no valid URL",
            Self::NoHost => "its URL has no host",
            Self::OtherScheme | Self::PlainHttp => "its URL is not https",
            Self::HasUser => "its URL contains a user or password",
            Self::Address(class) => return format!("its host is {class}"),
            Self::Proxy => "its host is a proxy",
        };
        why.to_owned()
    }

    fn remedy(self, host: &str) -> String {
        match self {
            Self::PlainHttp => format!("if it is right, list http://{host} in content_hosts"),
            Self::Address(AddressClass::Private | AddressClass::Loopback) => {
                "if it is right, list it in content_hosts".to_owned()
            }
            Self::Address(_) => "check the endpoint; content_hosts cannot allow it".to_owned(),
            Self::Proxy => "check the endpoint and the proxy variables".to_owned(),
            Self::NoUrl | Self::NoHost | Self::OtherScheme | Self::HasUser => "check the endpoint".to_owned(),
        }
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { host, reason } => {
                f.write_str("the service returned a URL for content that is not allowed")?;
                if !host.is_empty() {
                    write!(f, " (host {host})")?;
                }
                write!(f, ": {}; {}", reason.why(), reason.remedy(host))
            }
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
        let matcher = (!endpoint::is_loopback(endpoint)).then(Matcher::from_system);
        Self::with_proxies(endpoint, exceptions, matcher)
    }

    fn with_proxies(endpoint: &Url, exceptions: HostPatterns, matcher: Option<Matcher>) -> Arc<Self> {
        let probes = ["https://x.invalid/", "http://x.invalid/"].map(hyper::Uri::from_static);
        let intercepted =
            matcher.iter().flat_map(|matcher| probes.iter().filter_map(move |p| matcher.intercept(p)));
        let proxies = intercepted.filter_map(|proxy| Some(proxy.uri().host()?.to_owned())).collect();
        let configured = match endpoint.host() {
            Some(Host::Ipv4(ip)) => Some(AddressClass::of(IpAddr::V4(ip))),
            Some(Host::Ipv6(ip)) => Some(AddressClass::of(IpAddr::V6(ip))),
            _ => endpoint::is_loopback(endpoint).then_some(AddressClass::Loopback),
        };
        let hosts = Self {
            endpoint: endpoint.clone(),
            matcher,
            proxies,
            exceptions,
            own: Mutex::default(),
            proxied: Mutex::default(),
        };
        if let Some(class) = configured {
            hosts.add_own(class);
        }
        Arc::new(hosts)
    }

    /// Only these two: content on an address of the link, or of no host, is never meant.
    fn add_own(&self, class: AddressClass) {
        let mut own = self.own.lock();
        if matches!(class, AddressClass::Private | AddressClass::Loopback) && !own.contains(&class) {
            own.push(class);
        }
    }

    /// Records that `peer` has answered a request for `url`. Its certificate was checked.
    pub(super) fn note_peer(&self, url: &Url, peer: SocketAddr) {
        if url.origin() == self.endpoint.origin() && !self.is_proxied(url) {
            self.add_own(AddressClass::of(peer.ip()));
        }
    }

    fn is_proxied(&self, url: &Url) -> bool {
        let uri = url.as_str().parse::<hyper::Uri>().ok();
        self.matcher.as_ref().zip(uri).is_some_and(|(matcher, uri)| matcher.intercept(&uri).is_some())
    }

    /// Parses the URL of content, and refuses one that content must not go to. The addresses of a name are checked
    /// by [`Self::resolve`], or here if the request goes through a proxy.
    pub(super) async fn parse(&self, url: &str) -> Result<Url, HostError> {
        let url = Url::parse(url).map_err(|_| refused("", Refusal::NoUrl))?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let may_be_plain = endpoint::is_loopback(&self.endpoint) || self.exceptions.allows_plain(host);
        match url.scheme() {
            "https" => {}
            "http" if may_be_plain => {}
            "http" => return Err(refused(host, Refusal::PlainHttp)),
            _ => return Err(refused(host, Refusal::OtherScheme)),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused(host, Refusal::HasUser));
        }
        if self.is_proxy(host) {
            return Err(refused(host, Refusal::Proxy));
        }
        match url.host() {
            Some(Host::Ipv4(ip)) => self.check_address(host, IpAddr::V4(ip))?,
            Some(Host::Ipv6(ip)) => self.check_address(host, IpAddr::V6(ip))?,
            Some(Host::Domain(_)) if self.is_proxied(&url) => {
                self.check_any(host, &self.proxied_addresses(host).await)?;
            }
            Some(Host::Domain(_)) => {}
            None => return Err(refused(host, Refusal::NoHost)),
        }
        Ok(url)
    }

    fn is_proxy(&self, name: &str) -> bool {
        self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
    }

    /// The addresses of a name that connections for content may use. Refuses a name without one.
    pub(super) async fn resolve(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, HostError> {
        let all: Vec<_> = lookup_host((name, port)).await?.collect();
        if self.is_proxy(name) {
            return Ok(all);
        }
        let first = all.first().map(SocketAddr::ip);
        let kept: Vec<_> = all.into_iter().filter(|at| self.allows(name, at.ip())).collect();
        match first {
            Some(ip) if kept.is_empty() => Err(refused(name, Refusal::Address(AddressClass::of(ip)))),
            _ => Ok(kept),
        }
    }

    /// The addresses that this machine finds for a name; none if it finds none, as behind some proxies.
    async fn proxied_addresses(&self, name: &str) -> Vec<SocketAddr> {
        let now = Instant::now();
        if let Some((at, addresses)) = self.proxied.lock().get(name)
            && now.saturating_duration_since(*at) < LOOKUP_TTL
        {
            return addresses.clone();
        }
        let found = tokio::time::timeout(LOOKUP_TIMEOUT, lookup_host((name, 0))).await;
        let found: Vec<_> = found.ok().and_then(Result::ok).map(Iterator::collect).unwrap_or_default();
        let mut proxied = self.proxied.lock();
        if proxied.len() >= LOOKUPS_MAX {
            proxied.clear();
        }
        proxied.insert(name.to_owned(), (Instant::now(), found.clone()));
        found
    }

    /// Refuses a name if there are addresses and none is allowed. A filter that hides a name from this machine
    /// answers with the unspecified address.
    fn check_any(&self, host: &str, addresses: &[SocketAddr]) -> Result<(), HostError> {
        let found = || addresses.iter().map(SocketAddr::ip).filter(|ip| !ip.to_canonical().is_unspecified());
        match found().next() {
            Some(ip) if !found().any(|ip| self.allows(host, ip)) => self.check_address(host, ip),
            _ => Ok(()),
        }
    }

    fn check_address(&self, host: &str, ip: IpAddr) -> Result<(), HostError> {
        if self.allows(host, ip) {
            return Ok(());
        }
        Err(refused(host, Refusal::Address(AddressClass::of(ip))))
    }

    fn allows(&self, host: &str, ip: IpAddr) -> bool {
        let own = |class| self.own.lock().contains(&class);
        match AddressClass::of(ip) {
            AddressClass::Public => true,
            AddressClass::Private | AddressClass::Loopback if self.exceptions.matches(host) => true,
            AddressClass::Private => own(AddressClass::Private) || own(AddressClass::Loopback),
            AddressClass::Loopback => own(AddressClass::Loopback),
            AddressClass::LinkLocal | AddressClass::NoHost => false,
        }
    }
}

/// The parser of URLs has encoded control characters of the host.
fn refused(host: &str, reason: Refusal) -> HostError {
    let host = host.chars().take(HOST_CHARS_SHOWN).collect();
    HostError::Refused { host, reason }
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
            ("https://203.0.113.1", "https://u@8.8.8.8/x", Some("user or password")),
            ("https://203.0.113.1", "https://:p@8.8.8.8/x", Some("user or password")),
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
        assert!(
            matches!(&error, HostError::Refused { .. }) && error.to_string().contains("this machine"),
            "{error}"
        );
        let unknown = hosts("https://203.0.113.1", "off").resolve("unknown.invalid", 0).await.unwrap_err();
        assert!(matches!(unknown, HostError::Lookup(_)), "{unknown}");
        let near = hosts("http://127.0.0.1:9", "off").resolve("localhost", 0).await.unwrap();
        assert!(near.iter().all(|address| address.ip().is_loopback()));
    }

    #[tokio::test]
    async fn peer_of_the_endpoint_allows_its_class() {
        let endpoint: Url = "https://drive.example".parse().unwrap();
        let content = "https://10.0.0.2/x";
        let peer = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 443);
        for (url, ip, content, is_allowed) in [
            ("https://drive.example/v2/x", "10.0.0.1", content, true),
            ("https://drive.example/v2/x", "127.0.0.1", content, true),
            ("https://drive.example/v2/x", "127.0.0.1", "https://127.0.0.2/x", true),
            ("https://drive.example/v2/x", "10.0.0.1", "https://127.0.0.2/x", false),
            ("https://drive.example/v2/x", "8.8.8.8", content, false),
            ("https://drive.example/v2/x", "169.254.0.1", "https://169.254.169.254/x", false),
            ("https://drive.example/v2/x", "0.0.0.0", "https://0.0.0.0/x", false),
            ("https://drive.example:8443/v2/x", "10.0.0.1", content, false),
            ("https://login.example/v2/x", "10.0.0.1", content, false),
        ] {
            let hosts = hosts(endpoint.as_str(), "off");
            let before = hosts.parse(content).await;
            assert!(matches!(before, Err(HostError::Refused { .. })), "{content}: {before:?}");
            hosts.note_peer(&url.parse().unwrap(), peer(ip));
            assert_eq!(hosts.parse(content).await.is_ok(), is_allowed, "{content} from {url} at {ip}");
        }
    }

    #[tokio::test]
    async fn names_are_checked_behind_a_proxy_too() {
        let endpoint: Url = "https://drive.example".parse().unwrap();
        let matcher = || Matcher::builder().all("http://p.example:3128").no("near.example").build();
        let hosts = |list: &str| {
            ContentHosts::with_proxies(&endpoint, HostPatterns::parse(list).unwrap(), Some(matcher()))
        };
        let error = hosts("off").parse("https://localhost/x").await.unwrap_err();
        assert!(error.to_string().contains("this machine"), "{error}");
        hosts("localhost").parse("https://localhost/x").await.unwrap();
        // The proxy may know a name that this machine does not.
        hosts("off").parse("https://unknown.invalid/x").await.unwrap();
        for (addresses, why) in [
            (&["127.0.0.1", "8.8.8.8"][..], None),
            (&["0.0.0.0"], None),
            (&["0.0.0.0", "::"], None),
            (&["0.0.0.0", "127.0.0.1"], Some("this machine")),
            (&["10.0.0.1", "fd00::1"], Some("private")),
            (&["169.254.169.254"], Some("link-local")),
        ] {
            let hosts = hosts("off");
            let found = addresses.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect();
            hosts.proxied.lock().insert("known.example".to_owned(), (Instant::now(), found));
            let seen = hosts.parse("https://known.example/x").await.map_err(|error| error.to_string());
            match why {
                None => assert!(seen.is_ok(), "{addresses:?}: {seen:?}"),
                Some(why) => {
                    assert!(seen.as_ref().is_err_and(|e| e.contains(why)), "{addresses:?}: {seen:?}");
                }
            }
        }
        // The peer is the proxy.
        let hosts = hosts("off");
        hosts.note_peer(&endpoint, SocketAddr::from(([10, 0, 0, 1], 3128)));
        assert!(hosts.parse("https://10.0.0.2/x").await.is_err());
    }

    #[tokio::test]
    async fn refusals_name_the_host_and_a_remedy() {
        let far = "https://203.0.113.1";
        for (url, host, remedy) in [
            ("https://10.0.0.2/x", "10.0.0.2", "list it in content_hosts"),
            ("http://store.example/x", "store.example", "list http://store.example in content_hosts"),
            ("https://169.254.169.254/x", "169.254.169.254", "content_hosts cannot allow it"),
            ("https://0.0.0.0/x", "0.0.0.0", "content_hosts cannot allow it"),
            ("https://u:p@8.8.8.8/x", "8.8.8.8", "check the endpoint"),
            ("gopher://store.example\u{7}/x", "store.example", "check the endpoint"),
            ("nonsense", "", "check the endpoint"),
        ] {
            let error = outcome(far, "off", url).await.unwrap_err();
            assert!(error.contains(host) && error.contains(remedy), "{url}: {error}");
            assert!(!error.contains(char::is_control) && !error.contains("u:p"), "{error:?}");
            assert_eq!(remedy.contains("list "), error.contains("list "), "{error}");
        }
    }
}
