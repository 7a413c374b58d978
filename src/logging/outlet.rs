//! Where lines go: never to where nobody reads.
//!
//! Lines come from threads that answer the kernel and from those that upload. A terminal that was stopped with
//! Ctrl-S, or a pipe to a pager, takes no more after a while, and whoever writes to it stands still. So a line that is not
//! taken in time is left out, and counted.

use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::Level;

use super::lines::{Style, write_line};

/// How long a line may wait for who reads; those that follow one that was not taken do not wait.
const PATIENCE: Duration = Duration::from_millis(100);

/// A descriptor that lines are written to. It may lead elsewhere after a while (`dup2`), and is not ours to close.
#[derive(Debug)]
pub(super) struct Outlet {
    fd: RawFd,
    style: Style,
    is_clogged: AtomicBool,
    left_out: AtomicU64,
    /// Held while a line is written: lines do not mix.
    writing: Mutex<()>,
}

impl Outlet {
    /// This process's stderr.
    pub(super) fn stderr(style: Style) -> Arc<Self> {
        Self::of(io::stderr().as_raw_fd(), style)
    }

    fn of(fd: RawFd, style: Style) -> Arc<Self> {
        let (is_clogged, left_out) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { fd, style, is_clogged, left_out, writing: Mutex::default() })
    }

    fn put(&self, line: &[u8]) -> io::Result<()> {
        let patience = if self.is_clogged.load(Ordering::Relaxed) { Duration::ZERO } else { PATIENCE };
        // Waited for without the lock: others would wait for all who wait.
        let is_taken = takes_more(self.fd, patience) && {
            let _whole = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            if takes_more(self.fd, Duration::ZERO) {
                self.is_clogged.store(false, Ordering::Relaxed);
                // SAFETY: the descriptor is open for as long as the process lives, and not closed here.
                let mut out = ManuallyDrop::new(unsafe { File::from_raw_fd(self.fd) });
                out.write_all(self.confession().as_bytes())?;
                out.write_all(line)?;
                true
            } else {
                false
            }
        };
        if !is_taken {
            self.is_clogged.store(true, Ordering::Relaxed);
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A line about lines that were left out; empty where there are none.
    fn confession(&self) -> String {
        let mut line = String::new();
        let count = self.left_out.swap(0, Ordering::Relaxed);
        if count > 0 {
            let text = format!("{count} lines were left out, because nobody read them");
            // Writing to a string cannot fail.
            let _ = write_line(&mut line, self.style.now(), Level::WARN, &text);
        }
        line
    }
}

/// One line's way to an outlet.
#[derive(Clone, Debug)]
pub(super) struct To(pub(super) Arc<Outlet>);

impl Write for To {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a write of a few thousand bytes would not have to wait, or has not to after at most `patience`.
fn takes_more(fd: RawFd, patience: Duration) -> bool {
    let mut asked = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    let patience_ms = patience.as_millis() as libc::c_int;
    // SAFETY: one entry, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut asked, 1, patience_ms) };
    // An error of the descriptor is told by the write.
    ready != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn who_does_not_read_holds_up_nobody_and_hears_how_much_is_missing() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let mut to = To(Outlet::of(writer.as_raw_fd(), Style::Journal));
        let line = [&[b'x'; 1000][..], b"\n"].concat();
        let (began, mut written) = (Instant::now(), 0);
        while !to.0.is_clogged.load(Ordering::Relaxed) {
            to.write_all(&line).unwrap();
            written += 1;
        }
        for _ in 0..5 {
            to.write_all(&line).unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(10), "somebody waited");
        let mut read = vec![0; (written - 1) * line.len()];
        reader.read_exact(&mut read).unwrap();
        to.write_all(b"<6>again\n").unwrap();
        drop(writer);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "<4>6 lines were left out, because nobody read them\n<6>again\n");
    }
}
