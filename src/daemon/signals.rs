//! The signals that end a command.
//!
//! A closed terminal sends SIGHUP more than once, and a session that ends sends SIGTERM and SIGHUP together.
//! So only a distinct second SIGINT or SIGTERM aborts a stop that is under way.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Result;

/// Signals within this time of the first one are the same request.
const SAME_MAX: Duration = Duration::from_secs(1);

/// SIGINT, SIGTERM and SIGHUP. Once this exists they no longer kill the process.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Must be called on a runtime.
    pub fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }

    /// Waits for the signal that aborts a stop, and returns its name. `first` is the time of the signal that
    /// began the stop; without one, the next signal counts as the first.
    pub async fn second_request(&mut self, first: Option<Instant>) -> &'static str {
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
