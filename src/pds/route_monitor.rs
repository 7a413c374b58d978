//! Waits for changes of links, addresses or routes of this machine.
//!
//! Uses rtnetlink and not `NetworkManager`: rtnetlink exists on every Linux (desktops, containers, servers),
//! needs no privilege, and reports a change before any manager has reacted to it. The content of the messages
//! is not read. The caller compares the state that it depends on.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::unix::AsyncFd;

/// Messages are not read, so a longer one may be truncated.
const BUFFER_BYTES: usize = 64;
/// Largest number of messages that are reported as one change.
const MESSAGES_MAX: usize = 1000;
const GROUPS: [libc::c_int; 5] = [
    libc::RTMGRP_LINK,
    libc::RTMGRP_IPV4_IFADDR,
    libc::RTMGRP_IPV4_ROUTE,
    libc::RTMGRP_IPV6_IFADDR,
    libc::RTMGRP_IPV6_ROUTE,
];

/// An rtnetlink socket that has joined [`GROUPS`].
#[derive(Debug)]
pub(super) struct RouteMonitor(AsyncFd<OwnedFd>);

impl RouteMonitor {
    /// Must be called on a runtime.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        let groups = GROUPS.iter().fold(0, |all, group| all | group.cast_unsigned());
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        // SAFETY: an OwnedFd stays the same open descriptor for as long as it lives, here in the AsyncFd.
        Ok(Self(unsafe { AsyncFd::register(socket)? }))
    }

    /// Returns when something has changed since the last call.
    pub(super) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut received = 0;
            while received < MESSAGES_MAX {
                match ready.try_io(|socket| receive(socket.get_ref())) {
                    // An error means that the kernel dropped messages, which is a change too.
                    Ok(Ok(()) | Err(_)) => received += 1,
                    Err(_would_block) => break,
                }
            }
            if received > 0 {
                return Ok(());
            }
        }
    }
}

fn receive(socket: &OwnedFd) -> io::Result<()> {
    recv(socket, &mut [0_u8; BUFFER_BYTES], RecvFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn monitor_opens_and_reports_no_error() {
        let routes = RouteMonitor::open().unwrap();
        // Another process may change routes during the test. `tests/suites/network.sh` tests real changes.
        if let Ok(changed) = tokio::time::timeout(Duration::from_millis(50), routes.changed()).await {
            changed.unwrap();
        }
    }
}
