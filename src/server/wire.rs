//! What a request can do to its connection: reset it, or end it once everything is out.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Shared by a connection and the request that it serves.
#[derive(Debug, Default)]
pub(super) struct Link {
    is_to_reset: AtomicBool,
    flushes: Mutex<Flushes>,
}

#[derive(Debug, Default)]
struct Flushes {
    done: u64,
    waiting: Option<Waker>,
}

impl Link {
    /// Lets the connection be reset when it ends.
    pub(super) fn reset(&self) {
        self.is_to_reset.store(true, Ordering::Release);
    }

    pub(super) fn is_to_reset(&self) -> bool {
        self.is_to_reset.load(Ordering::Acquire)
    }

    /// How often everything that was to be sent was sent.
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner).done
    }

    /// Ready when everything was sent once more than `before` times.
    pub(super) fn poll_flushed(&self, before: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut flushes = self.flushes.lock().unwrap_or_else(PoisonError::into_inner);
        if flushes.done > before {
            return Poll::Ready(());
        }
        flushes.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    fn flushed(&self) {
        let mut flushes = self.flushes.lock().unwrap_or_else(PoisonError::into_inner);
        flushes.done += 1;
        if let Some(waker) = flushes.waiting.take() {
            waker.wake();
        }
    }
}

/// A TCP connection that tells its [`Link`] when hyper has nothing left to send.
pub(super) struct Wire {
    stream: TokioIo<TcpStream>,
    link: Arc<Link>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, link: Arc<Link>) -> Self {
        Self { stream: TokioIo::new(stream), link }
    }

    pub(super) fn into_inner(self) -> TcpStream {
        self.stream.into_inner()
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    // Hyper flushes after it has written all that it holds.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.link.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
