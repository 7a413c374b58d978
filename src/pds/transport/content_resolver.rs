//! [`ContentHosts`] as the resolver of clients for content, and its errors as failures of requests.

use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::failure::{connect_cause, protocol_error};
use crate::error::{Error, ErrorKind};
use crate::messages::Cause;
use crate::pds::content_hosts::{ContentHosts, HostError};
use crate::pds::retry::{Delivery, RequestFailure};

pub(super) struct ContentResolver(pub(super) Arc<ContentHosts>);

impl Resolve for ContentResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let hosts = self.0.clone();
        Box::pin(async move {
            let addresses = hosts.resolve(name.as_str(), 0).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// The failure of a request whose host was refused by the resolver.
pub(super) fn refused_host(error: &reqwest::Error) -> Option<RequestFailure> {
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        if let Some(refused @ HostError::Refused { .. }) = e.downcast_ref() {
            return Some(protocol_error(refused.to_string()));
        }
        cause = e.source();
    }
    None
}

pub(super) fn host_failure(error: &HostError) -> RequestFailure {
    match error {
        HostError::Refused { .. } => protocol_error(error.to_string()),
        HostError::Lookup(e) => {
            let cause = connect_cause(e, "the object store").unwrap_or(Cause::Unreachable);
            let error = Error::from_cause(ErrorKind::Unreachable, cause, error.to_string());
            RequestFailure { error, delivery: Delivery::NotSent, ..protocol_error(String::new()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reqwest::Url;

    use super::*;
    use crate::config::HostPatterns;
    use crate::pds::transport::{Transport, TransportLimits, TrustedPeers};

    #[tokio::test]
    async fn clients_for_content_obey_the_rule() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = format!("https://localhost:{}/x", listener.local_addr().unwrap().port());
        let (near, far) = (Url::parse(&near).unwrap(), Url::parse("https://203.0.113.1").unwrap());
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let wait = Duration::from_secs(20);
        let limits = TransportLimits { connect: wait, call: wait, idle: wait, calls_max: 1 };
        for (list, is_refused) in [("off", true), ("localhost", false)] {
            let content_hosts = HostPatterns::parse(list).unwrap();
            let peers = TrustedPeers { content_hosts, ..TrustedPeers::default() };
            let transport = Transport::new(limits, &far, peers).unwrap();
            assert!(transport.content(&near).content.is_some());
            let pools = transport.pools();
            for request in [pools.gets.get(near.clone()), pools.puts.put(near.clone())] {
                let failure = transport.send(("x", transport.content(&near)), request).await.unwrap_err();
                let has_reason = failure.error.to_string().contains("its host is this machine");
                let is_final = failure.delivery == Delivery::Answered;
                assert_eq!((has_reason, is_final), (is_refused, is_refused), "{list}: {}", failure.error);
            }
        }
    }
}
