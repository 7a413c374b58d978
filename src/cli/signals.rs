//! The signals that end a command.
//!
//! A closed terminal sends SIGHUP more than once, and a session that ends sends SIGTERM and SIGHUP together. So a
//! stop that is under way is given up at nothing but an INT or TERM that is clearly another one.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Result;

/// Signals that come within this time of the first one say the same.
const SAME_MAX: Duration = Duration::from_secs(1);

/// SIGINT, SIGTERM and SIGHUP. From the making of this value on they do not kill the process.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Must be called on a runtime.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one and names it.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }

    /// Waits until somebody wants a stop that is under way to be given up, and names the signal. `first` is when
    /// a signal began it; where none did, the next one only asks for what is being done already.
    pub(super) async fn insists(&mut self, first: Option<Instant>) -> &'static str {
        let mut first = first;
        loop {
            let name = self.next().await;
            if name == "SIGHUP" {
                continue;
            }
            match first {
                Some(first) if first.elapsed() > SAME_MAX => return name,
                Some(_) => {}
                None => first = Some(Instant::now()),
            }
        }
    }
}
