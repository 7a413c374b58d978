//! Looks at a mount and ends it: by this process, or by the broker, which sees mounts that a sandbox hides.

use std::io;
use std::sync::Arc;

use super::broker::BrokerClient;
use super::mount_root;
use super::mountinfo::{self, Mount};
use super::unmount;
use crate::error::{ErrorKind, Result};

/// Calls block.
#[derive(Clone, Debug)]
pub struct MountControl {
    mount: Mount,
    broker: Option<Arc<BrokerClient>>,
}

impl MountControl {
    pub(super) fn own(mount: Mount) -> Self {
        Self { mount, broker: None }
    }

    pub(super) fn by_broker(mount: Mount, broker: Arc<BrokerClient>) -> Self {
        Self { mount, broker: Some(broker) }
    }

    /// The mount when it was made.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    pub(super) fn broker(&self) -> Option<&Arc<BrokerClient>> {
        self.broker.as_ref()
    }

    /// Resolves if the mount cannot be controlled any more.
    pub async fn lost(&self) {
        match &self.broker {
            Some(broker) => broker.ended().await,
            None => std::future::pending().await,
        }
    }

    /// The present entry of the mount table; `None` if the mount has ended.
    pub fn current(&self) -> Result<Option<Mount>> {
        match &self.broker {
            Some(broker) => broker.current(),
            None => Ok(mountinfo::current(&self.mount)?),
        }
    }

    /// Requests the attributes of the root from the daemon, through the kernel.
    pub fn probe(&self) -> io::Result<()> {
        match &self.broker {
            Some(broker) => broker.probe(),
            None => mount_root::probe(&self.mount),
        }
    }

    pub(super) fn detach(&self) -> Result<()> {
        match &self.broker {
            Some(broker) => broker.detach(false).map(drop),
            None => detach_if(&self.mount, |_| true).map(drop),
        }
    }

    pub(super) fn detach_if_dead(&self, is_dead: fn(&Mount) -> bool) -> Result<bool> {
        match &self.broker {
            Some(broker) => broker.detach(true),
            None => detach_if(&self.mount, is_dead),
        }
    }
}

/// Unmounts lazily if the mount still exists and `is_meant`. Returns whether it did.
pub fn detach_if(mount: &Mount, is_meant: fn(&Mount) -> bool) -> Result<bool> {
    match mountinfo::current(mount)? {
        Some(now) if is_meant(&now) => match unmount::lazily(&now) {
            Err(error) if error.kind() == ErrorKind::Busy => {
                tracing::warn!("{error}");
                Ok(true)
            }
            unmounted => unmounted.map(|()| true),
        },
        _ => Ok(false),
    }
}
