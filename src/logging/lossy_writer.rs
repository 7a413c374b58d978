//! A log writer that drops and counts lines while the reader does not read.
//!
//! Log lines come from threads that answer the kernel and from uploads. A terminal stopped with Ctrl-S, or a
//! pipe to a pager, blocks its writers after a while. A line that cannot be written in time is dropped and
//! counted.

use std::fs::File;
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::broadcast;
use tracing::Level;

use super::line::{LineStyle, write_line};

/// How long a line may wait for the reader. Lines after a dropped one do not wait.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// A writer to a descriptor that the process owns. `dup2` may redirect the descriptor.
#[derive(Debug)]
pub(super) struct LossyWriter {
    fd: RawFd,
    style: LineStyle,
    /// Takes the lines while it has receivers.
    diverted: broadcast::Sender<Arc<str>>,
    is_blocked: AtomicBool,
    dropped: AtomicU64,
    /// Held while a line is written, so that lines do not mix.
    writing: Mutex<()>,
}

impl LossyWriter {
    pub(super) fn stderr(style: LineStyle, diverted: broadcast::Sender<Arc<str>>) -> Arc<Self> {
        Self::new(io::stderr().as_raw_fd(), style, diverted)
    }

    fn new(fd: RawFd, style: LineStyle, diverted: broadcast::Sender<Arc<str>>) -> Arc<Self> {
        let (is_blocked, dropped) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { fd, style, diverted, is_blocked, dropped, writing: Mutex::default() })
    }

    fn put(&self, line: &[u8]) -> io::Result<()> {
        let wait_max = if self.is_blocked.load(Ordering::Relaxed) { Duration::ZERO } else { WAIT_MAX };
        // It waits without the lock: otherwise each thread would wait for all before it.
        let is_written = is_writable(self.fd, wait_max) && {
            let _whole_line = self.writing.lock();
            if is_writable(self.fd, Duration::ZERO) {
                self.is_blocked.store(false, Ordering::Relaxed);
                // SAFETY: the descriptor is open as long as the process lives, and is not closed here.
                let mut out = ManuallyDrop::new(unsafe { File::from_raw_fd(self.fd) });
                out.write_all(self.dropped_notice().as_bytes())?;
                out.write_all(line)?;
                true
            } else {
                false
            }
        };
        if !is_written {
            self.is_blocked.store(true, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A line with the number of dropped lines; empty if there are none.
    fn dropped_notice(&self) -> String {
        let mut line = String::new();
        let count = self.dropped.swap(0, Ordering::Relaxed);
        if count > 0 {
            let text = format!("{count} log lines were dropped: the reader of the log was blocked");
            // Writing to a string cannot fail.
            let _ = write_line(&mut line, self.style.current(), Level::WARN, &text);
        }
        line
    }
}

/// A handle for `tracing-subscriber`, which requests one writer for each line.
#[derive(Clone, Debug)]
pub(super) struct LineWriter(pub(super) Arc<LossyWriter>);

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.diverted.receiver_count() > 0 {
            // Fails only without receivers.
            let _ = self.0.diverted.send(String::from_utf8_lossy(line).trim_end().into());
            return Ok(line.len());
        }
        self.0.put(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a write of a few thousand bytes does not block, now or after at most `wait_max`.
fn is_writable(fd: RawFd, wait_max: Duration) -> bool {
    // SAFETY: the descriptor is open as long as the process lives.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(wait_max.subsec_nanos()) };
    // An error counts as writable: the write returns it.
    poll(&mut fds, Some(&timeout)) != Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn blocked_reader_delays_nothing_and_gets_a_count() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let mut to =
            LineWriter(LossyWriter::new(writer.as_raw_fd(), LineStyle::Journal, broadcast::Sender::new(1)));
        let line = [&[b'x'; 1000][..], b"\n"].concat();
        let (began, mut written) = (Instant::now(), 0);
        while !to.0.is_blocked.load(Ordering::Relaxed) {
            to.write_all(&line).unwrap();
            written += 1;
        }
        for _ in 0..5 {
            to.write_all(&line).unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(10), "a writer was blocked");
        let mut read = vec![0; (written - 1) * line.len()];
        reader.read_exact(&mut read).unwrap();
        to.write_all(b"<6>again\n").unwrap();
        drop(writer);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "<4>6 log lines were dropped: the reader of the log was blocked\n<6>again\n");
    }

    #[test]
    fn diverted_lines_do_not_reach_the_descriptor() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let diverted = broadcast::Sender::new(1);
        let mut to = LineWriter(LossyWriter::new(writer.as_raw_fd(), LineStyle::Plain, diverted.clone()));
        let mut screen = diverted.subscribe();
        to.write_all(b"for the screen\n").unwrap();
        assert_eq!(&*screen.try_recv().unwrap(), "for the screen");
        drop(screen);
        to.write_all(b"for stderr\n").unwrap();
        drop((to, writer));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "for stderr\n");
    }
}
