//! [`ContentHosts`] as the resolver of clients for content, and its errors as failures of requests.

use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::failure::protocol_error;
use crate::error::{Error, ErrorKind};
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

pub(super) fn host_failure(error: HostError) -> RequestFailure {
    match error {
        HostError::Refused { .. } => protocol_error(error.to_string()),
        HostError::Lookup(_) => {
            let error = Error::from_source(ErrorKind::Unreachable, error);
            RequestFailure { error, delivery: Delivery::NotSent, ..protocol_error(String::new()) }
        }
    }
}
