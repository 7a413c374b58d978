//! The kernel's word that links, addresses or routes of this machine have changed.
//!
//! By rtnetlink and not by `NetworkManager`, because it works wherever Linux does (desktops, containers,
//! servers), needs no right, and is heard before any manager has drawn its conclusion. What changed is
//! not looked at: whoever cares tries.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;

/// Messages are not looked at, so most of one may be cut off.
const BUFFER_BYTES: usize = 64;
/// Messages that are taken as one change, at most.
const MESSAGES_MAX: usize = 1000;
const GROUPS: [libc::c_int; 5] = [
    libc::RTMGRP_LINK,
    libc::RTMGRP_IPV4_IFADDR,
    libc::RTMGRP_IPV4_ROUTE,
    libc::RTMGRP_IPV6_IFADDR,
    libc::RTMGRP_IPV6_ROUTE,
];

/// A listener; it hears of changes after it was opened.
#[derive(Debug)]
pub(super) struct Routes(AsyncFd<OwnedFd>);

impl Routes {
    /// Must be called on a runtime.
    pub(super) fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers are passed; the result is checked before it is owned.
        let socket = unsafe {
            match libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        // SAFETY: zeroed is a valid sockaddr_nl, which outlives the call; its true size is passed.
        let failed = unsafe {
            let mut address: libc::sockaddr_nl = std::mem::zeroed();
            address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
            address.nl_groups = GROUPS.iter().fold(0, |all, group| all | group.cast_unsigned());
            let len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) != 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: an OwnedFd stays the same descriptor and open for as long as it lives, here in the AsyncFd.
        Ok(Self(unsafe { AsyncFd::register(socket)? }))
    }

    /// Returns when something has changed since the last call.
    pub(super) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut heard = 0;
            while heard < MESSAGES_MAX {
                match ready.try_io(|socket| receive(socket.get_ref())) {
                    // Messages that were lost for want of room are a change too.
                    Ok(Ok(()) | Err(_)) => heard += 1,
                    Err(_would_block) => break,
                }
            }
            if heard > 0 {
                return Ok(());
            }
        }
    }
}

fn receive(socket: &OwnedFd) -> io::Result<()> {
    let mut buffer = [0_u8; BUFFER_BYTES];
    // SAFETY: the buffer outlives the call and is as long as is said.
    let received = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), BUFFER_BYTES, 0) };
    if received < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_quiet_machine_is_heard_as_quiet_or_busy_but_never_as_broken() {
        let routes = Routes::open().unwrap();
        // Whether anything changes meanwhile is not up to the test; `tests/suites/network.sh` changes routes.
        if let Ok(heard) = tokio::time::timeout(Duration::from_millis(50), routes.changed()).await {
            heard.unwrap();
        }
    }
}
