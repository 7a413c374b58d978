//! A bounded HTTP/1 server: one request for each connection, at most as many connections as there are
//! permits.
//!
//! A client that does not send, or does not read, is disconnected after a time limit.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use crate::supervised;

/// Read buffer of a connection, and so the limit on the head of a request.
const READ_BUFFER_BYTES: usize = 16 << 10;
/// Pause after a failed `accept`. The usual cause is a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time limits of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For the head of the request.
    pub(super) head_max: Duration,
    /// For a write that makes no progress.
    pub(super) write_max: Duration,
}

/// Accepts connections until it is dropped, also after a panic. A connection is closed at once if `admit` refuses it
/// or no permit is free.
pub(super) async fn accept<S, F>(
    name: &str,
    poll_accept: impl Fn(&mut Context<'_>) -> Poll<io::Result<S>> + Clone + Send + 'static,
    permits: Arc<Semaphore>,
    admit: impl Fn(&S) -> bool + Clone + Send + 'static,
    serve: impl Fn(S) -> F + Clone + Send + 'static,
) where
    S: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let start = move || accept_loop(poll_accept.clone(), permits.clone(), admit.clone(), serve.clone());
    supervised::run(name, start).await;
}

async fn accept_loop<S, F>(
    mut poll_accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<S>>,
    permits: Arc<Semaphore>,
    admit: impl Fn(&S) -> bool,
    serve: impl Fn(S) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let stream = match std::future::poll_fn(&mut poll_accept).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !admit(&stream) {
            continue;
        }
        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
        let serving = serve(stream);
        tokio::spawn(async move {
            serving.await;
            drop(permit);
        });
    }
}

/// Serves one request.
pub(super) async fn serve<S, F, B>(stream: S, limits: Limits, respond: impl Fn(Request<Incoming>) -> F)
where
    S: AsyncRead + AsyncWrite,
    F: Future<Output = Response<B>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.write_max));
    let service = service_fn(move |request| {
        let response = respond(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_max)
        .max_buf_size(READ_BUFFER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn panic_does_not_end_the_accept_loop() {
        let (connect, connections) = mpsc::unbounded_channel();
        let connections = Arc::new(parking_lot::Mutex::new(connections));
        let poll_accept = move |cx: &mut Context<'_>| {
            let stream: Poll<Option<u32>> = connections.lock().poll_recv(cx);
            stream.map(|stream| stream.ok_or_else(|| io::ErrorKind::BrokenPipe.into()))
        };
        let (answer, mut answers) = mpsc::unbounded_channel();
        let admit = |stream: &u32| {
            assert_ne!(*stream, 2, "on purpose");
            true
        };
        let serve = move |stream| {
            let answer = answer.clone();
            async move { answer.send(stream).unwrap() }
        };
        let accepting = tokio::spawn(accept("test", poll_accept, Arc::new(Semaphore::new(1)), admit, serve));
        for stream in [1, 2, 3] {
            connect.send(stream).unwrap();
            if stream != 2 {
                let answered = tokio::time::timeout(Duration::from_secs(20), answers.recv()).await;
                assert_eq!(answered.unwrap(), Some(stream));
            }
        }
        accepting.abort();
    }
}
