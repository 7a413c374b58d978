//! A TCP connection that its requests can reset, or close once all data is sent. Faults use this.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::tls::Stream;
use crate::tcp_peer;

/// Shared by a connection and the request on it.
#[derive(Debug, Default)]
pub(super) struct ConnectionControl {
    /// The address of the client, and that of the server.
    ends: Option<(SocketAddr, SocketAddr)>,
    should_reset: AtomicBool,
    /// A leaf lock.
    flushes: Mutex<Flushes>,
}

#[derive(Debug, Default)]
struct Flushes {
    count: u64,
    waiting: Option<Waker>,
}

impl ConnectionControl {
    pub(super) fn new(stream: &TcpStream) -> Self {
        let ends = stream.peer_addr().and_then(|peer| Ok((peer, stream.local_addr()?)));
        Self { ends: ends.ok(), ..Self::default() }
    }

    /// The user of the client, if the client runs on this machine.
    pub(super) async fn client_uid(&self) -> Option<u32> {
        let (peer, local) = self.ends?;
        tcp_peer::uid(peer, local).await.ok().flatten()
    }

    /// Makes the connection end with a reset instead of a FIN.
    pub(super) fn reset(&self) {
        self.should_reset.store(true, Ordering::Release);
    }

    pub(super) fn should_reset(&self) -> bool {
        self.should_reset.load(Ordering::Acquire)
    }

    /// Number of completed flushes.
    pub(super) fn flushes(&self) -> u64 {
        self.flushes.lock().count
    }

    /// Ready after more than `before` flushes.
    pub(super) fn poll_flushed(&self, before: u64, cx: &mut Context<'_>) -> Poll<()> {
        let mut flushes = self.flushes.lock();
        if flushes.count > before {
            return Poll::Ready(());
        }
        flushes.waiting = Some(cx.waker().clone());
        Poll::Pending
    }

    fn flushed(&self) {
        let mut flushes = self.flushes.lock();
        flushes.count += 1;
        if let Some(waker) = flushes.waiting.take() {
            waker.wake();
        }
    }
}

/// A connection that counts its flushes in a [`ConnectionControl`].
pub(super) struct Connection {
    stream: TokioIo<Stream>,
    control: Arc<ConnectionControl>,
}

impl Connection {
    pub(super) fn new(stream: Stream, control: Arc<ConnectionControl>) -> Self {
        Self { stream: TokioIo::new(stream), control }
    }

    /// Makes the end of the connection send a reset.
    pub(super) fn set_zero_linger(&self) -> io::Result<()> {
        self.stream.inner().tcp().set_zero_linger()
    }
}

impl Read for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    // Hyper flushes after it has written its whole buffer.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.control.flushed();
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
