//! Notifications to the service manager: the datagrams of `sd_notify(3)`.
//!
//! The environment variable `NOTIFY_SOCKET` has the address of the socket. It is read once, before the first
//! thread starts, and removed, so that child processes cannot send messages for this process. The crate
//! `sd-notify` formats the messages. It would read the environment for each message, so the socket is kept
//! here. Without a service manager, every call does nothing.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sd_notify::NotifyState;

use crate::escape::is_active;

const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
/// How long a message waits for a full socket before it is dropped.
const SEND_MAX: Duration = Duration::from_secs(1);
/// Longest status text, in bytes: `systemctl status` shows one line.
const STATUS_BYTES_MAX: usize = 500;

/// The connection to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct SystemdNotifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
    has_failed: AtomicBool,
    /// Whether the last status line was sent. A leaf lock, held during a send.
    has_last_status: Mutex<bool>,
}

impl SystemdNotifier {
    /// Without a service manager.
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads and removes `NOTIFY_SOCKET` and the variables of the watchdog.
    ///
    /// # Safety
    ///
    /// No other thread may use the environment during the call.
    pub unsafe fn from_environment() -> Self {
        let address = std::env::var_os(SOCKET_VARIABLE).filter(|address| !address.is_empty());
        // SAFETY: the caller guarantees that no other thread uses the environment.
        let watchdog = unsafe {
            std::env::remove_var(SOCKET_VARIABLE);
            sd_notify::watchdog_enabled_and_unset_env()
        };
        let Some(address) = address else { return Self::none() };
        match connect(&address) {
            Ok(socket) => Self { socket: Some(socket), watchdog, ..Self::default() },
            Err(e) => {
                tracing::warn!("cannot notify the service manager at {}: {e}", address.display());
                Self::none()
            }
        }
    }

    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// The watchdog timeout; `None` without a watchdog.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|limit| self.is_connected() && !limit.is_zero())
    }

    /// The mount is ready.
    pub fn ready(&self) {
        self.send(&[NotifyState::Ready]);
    }

    /// The mount is stopping.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// Sets the status line of the unit. Does nothing after [`Self::last_status`].
    pub fn status(&self, line: &str) {
        let has_last_status = self.has_last_status.lock();
        if !*has_last_status {
            self.send(&[NotifyState::Status(one_line(line).as_str())]);
        }
    }

    /// Sets the status line that the service manager shows after the end of the program.
    pub fn last_status(&self, line: &str) {
        let mut has_last_status = self.has_last_status.lock();
        *has_last_status = true;
        self.send(&[NotifyState::Status(one_line(line).as_str())]);
    }

    /// Resets the watchdog.
    pub fn keep_alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// Extends the current start or stop timeout to `time` from now.
    pub fn extend_timeout(&self, time: Duration) {
        self.send(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let mut message = String::new();
        for state in states {
            message.push_str(&state.to_string());
            message.push('\n');
        }
        if let Err(e) = socket.send(message.as_bytes())
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("cannot notify the service manager: {e}");
        }
    }
}

fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(SEND_MAX))?;
    Ok(socket)
}

/// Replaces control characters, which may come from file names: a line break would start another message.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        if line.len() + c.len_utf8() > STATUS_BYTES_MAX {
            break;
        }
        line.push(if is_active(c) { ' ' } else { c });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(listener: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let len = listener.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    fn notifier(address: &OsStr, watchdog: Option<Duration>) -> SystemdNotifier {
        let socket = Some(connect(address).unwrap());
        SystemdNotifier { socket, watchdog, ..SystemdNotifier::default() }
    }

    #[test]
    fn messages_arrive_by_path_and_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("pdsfs-test-{}", std::process::id());
        let listeners = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (
                format!("@{name}").into(),
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
            ),
        ];
        for (address, listener) in listeners {
            let notifier = notifier(&address, None);
            notifier.ready();
            assert_eq!(received(&listener), "READY=1\n");
            notifier.status("saving \"a\nWATCHDOG=trigger\"");
            assert_eq!(received(&listener), "STATUS=saving \"a WATCHDOG=trigger\"\n");
            notifier.extend_timeout(Duration::from_secs(90));
            assert_eq!(received(&listener), "EXTEND_TIMEOUT_USEC=90000000\n");
            notifier.keep_alive();
            assert_eq!(received(&listener), "WATCHDOG=1\n");
            notifier.stopping();
            assert_eq!(received(&listener), "STOPPING=1\n");
        }
    }

    #[test]
    fn last_status_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let notifier = notifier(path.as_os_str(), None);
        notifier.last_status("1 file not saved");
        notifier.status("unmounting");
        notifier.keep_alive();
        assert_eq!([received(&listener), received(&listener)], ["STATUS=1 file not saved\n", "WATCHDOG=1\n"]);
    }

    #[test]
    fn environment_is_read_once_and_removed() {
        const CHILD: &str = "PDSFS_TEST_NOTIFY_CHILD";
        const VARIABLES: [&str; 3] = [SOCKET_VARIABLE, "WATCHDOG_USEC", "WATCHDOG_PID"];
        if std::env::var_os(CHILD).is_some() {
            // SAFETY: this process runs this test alone.
            let notifier = unsafe { SystemdNotifier::from_environment() };
            assert!(VARIABLES.iter().all(|name| std::env::var_os(name).is_none()));
            assert_eq!(notifier.watchdog(), Some(Duration::from_secs(7)));
            notifier.ready();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let own_name = std::thread::current().name().unwrap().to_owned();
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([own_name.as_str(), "--exact"])
            .env(CHILD, "1")
            .env(SOCKET_VARIABLE, &path)
            .env("WATCHDOG_USEC", "7000000")
            .env_remove("WATCHDOG_PID")
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        assert_eq!(received(&listener), "READY=1\n");
    }

    #[test]
    fn missing_listener_is_not_an_error() {
        let none = SystemdNotifier::none();
        none.ready();
        assert!(!none.is_connected() && none.watchdog().is_none());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let notifier = notifier(path.as_os_str(), Some(Duration::from_secs(60)));
        assert_eq!(notifier.watchdog(), Some(Duration::from_secs(60)));
        drop(listener);
        notifier.keep_alive();
        assert!(notifier.has_failed.load(Ordering::Relaxed));
    }

    #[test]
    fn status_is_one_short_line() {
        assert_eq!(one_line("a\r\n\tb"), "a   b");
        let long = one_line(&"\u{e9}".repeat(STATUS_BYTES_MAX));
        assert!(long.len() <= STATUS_BYTES_MAX && long.ends_with('\u{e9}'));
    }
}
