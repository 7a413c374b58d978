//! URLs of endpoints that tokens are sent to.
//!
//! Every request to them carries a secret, so plain http is accepted only to this machine.

use url::{Host, Url};

use crate::error::{Error, ErrorKind, Result};

/// Host suffixes of the service. The first label of such a host is the domain id.
const SERVICE_SUFFIXES: [&str; 2] = [".aliyunpds.com", ".aliyunfile.com"];

/// Whether the host of the URL is this machine, judged by name without a lookup.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Parses an https URL without a path. Accepts http only to this machine.
pub fn parse(text: &str) -> Result<Url> {
    let wrong = |detail: String| Error::new(ErrorKind::Invalid, detail);
    let example = "use a URL such as https://bj1.api.aliyunpds.com";
    let url = Url::parse(text).map_err(|e| match e {
        url::ParseError::RelativeUrlWithoutBase => wrong(format!("the URL has no scheme; {example}")),
        e => wrong(format!("not a valid URL ({e}); {example}")),
    })?;
    if url.host().is_none() {
        return Err(wrong(format!("the URL has no host; {example}")));
    }
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => return Err(wrong("plain http would send the token unencrypted; use https".to_owned())),
        other => return Err(wrong(format!("the scheme {other} is not supported; use https"))),
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("the URL must end after the host and port; remove its path and query".to_owned()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("the URL must not contain a user or password".to_owned()));
    }
    Ok(url)
}

/// The domain id, if the host belongs to the service.
pub fn domain_id(url: &Url) -> Option<&str> {
    let host = url.host_str()?;
    let is_service = SERVICE_SUFFIXES.iter().any(|suffix| host.ends_with(suffix));
    host.split('.').next().filter(|label| is_service && !label.is_empty())
}

/// The same URL with another path.
pub fn with_path(endpoint: &Url, path: &str) -> Url {
    let mut url = endpoint.clone();
    url.set_path(path);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_only_for_loopback() {
        for fine in
            ["https://x.api.aliyunpds.com", "http://127.0.0.1:80", "http://localhost:1", "http://[::1]:9"]
        {
            assert!(parse(fine).is_ok(), "{fine}");
        }
        let refused = [
            "http://x.api.aliyunpds.com",
            "http://localhost.example.com",
            "ftp://x",
            "x.api.aliyunpds.com",
            "https://x/v2",
            "https://x?y",
            "https://me:pw@x",
        ];
        for wrong in refused {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn domain_id_is_the_first_host_label() {
        let of = |text: &str| domain_id(&Url::parse(text).unwrap()).map(str::to_owned);
        assert_eq!(of("https://bj1.api.aliyunpds.com").as_deref(), Some("bj1"));
        assert_eq!(of("https://sh2.api.aliyunfile.com").as_deref(), Some("sh2"));
        assert_eq!(of("http://127.0.0.1:9"), None);
        assert_eq!(of("https://bj1.example.com"), None);
    }
}
