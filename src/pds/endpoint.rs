//! Addresses that tokens are sent to.
//!
//! Whatever goes to one of them carries a secret, so plain http is taken only where the bytes never leave
//! this machine.

use url::{Host, Url};

use crate::error::{Error, ErrorKind, Result};

/// Domains of the service whose first label is the id of the domain.
const SERVICE_SUFFIXES: [&str; 2] = [".aliyunpds.com", ".aliyunfile.com"];

/// Whether nobody else can listen on the way to this URL.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// An https URL without a path; http only to this machine, because the token goes along.
pub fn parse(text: &str) -> Result<Url> {
    let wrong = |detail: String| Error::new(ErrorKind::Invalid, detail);
    let url =
        Url::parse(text).map_err(|e| wrong(format!("{e}; write it like https://bj1.api.aliyunpds.com")))?;
    if url.host().is_none() {
        return Err(wrong("it has no host".to_owned()));
    }
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => return Err(wrong("plain http would show the token to the network; use https".to_owned())),
        other => return Err(wrong(format!("{other} is not offered; use https"))),
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("it ends after the host and port".to_owned()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("no user or password belongs in it".to_owned()));
    }
    Ok(url)
}

/// The id of the domain, where the host is one of the service's.
pub fn domain_id(url: &Url) -> Option<&str> {
    let host = url.host_str()?;
    let is_service = SERVICE_SUFFIXES.iter().any(|suffix| host.ends_with(suffix));
    host.split('.').next().filter(|label| is_service && !label.is_empty())
}

/// Another path at the same place.
pub fn at(endpoint: &Url, path: &str) -> Url {
    let mut url = endpoint.clone();
    url.set_path(path);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_travels_encrypted_or_not_at_all() {
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
    fn the_domain_is_the_first_label_of_a_host_of_the_service() {
        let of = |text: &str| domain_id(&Url::parse(text).unwrap()).map(str::to_owned);
        assert_eq!(of("https://bj1.api.aliyunpds.com").as_deref(), Some("bj1"));
        assert_eq!(of("https://sh2.api.aliyunfile.com").as_deref(), Some("sh2"));
        assert_eq!(of("http://127.0.0.1:9"), None);
        assert_eq!(of("https://bj1.example.com"), None);
    }
}
