//! Answers: bodies that are whole, bodies that are read from files as they are sent, and the end
//! of a connection in place of an answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::Response;
use tokio::sync::mpsc;

use super::blobs::Reader;
use super::errors::ApiError;
use super::wire::Link;

/// Bytes read from a file at once.
pub(super) const CHUNK_BYTES: usize = 512 << 10;

/// Chunks that wait to be sent, for each download.
const CHUNKS_AHEAD: usize = 2;

/// A request that gets no answer: its connection ends.
#[derive(Debug, thiserror::Error)]
#[error("the connection was to end")]
pub(super) struct HungUp;

/// How far a body is that will be cut.
pub(super) enum CutAt {
    /// These bytes are to be sent.
    Bytes(Bytes),
    /// They were handed over when everything had been sent so often.
    Flush(u64),
}

/// A body.
pub(super) enum ReplyBody {
    /// All of it.
    Whole(Option<Bytes>),
    /// Some of it, then the connection ends.
    Cut { first: CutAt, declared: u64, link: Arc<Link> },
    /// From files.
    Stream { chunks: mpsc::Receiver<io::Result<Bytes>>, left: u64 },
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Cut { first, link, .. } => match first {
                CutAt::Bytes(bytes) => {
                    let bytes = std::mem::take(bytes);
                    *first = CutAt::Flush(link.flushes());
                    if bytes.is_empty() {
                        return self.poll_frame(cx);
                    }
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                CutAt::Flush(before) => {
                    ready!(link.poll_flushed(*before, cx));
                    Poll::Ready(Some(Err(io::Error::other(HungUp))))
                }
            },
            Self::Stream { chunks, left } => Poll::Ready(match ready!(chunks.poll_recv(cx)) {
                Some(Ok(bytes)) => {
                    *left = left.saturating_sub(bytes.len() as u64);
                    Some(Ok(Frame::data(bytes)))
                }
                Some(Err(error)) => Some(Err(error)),
                None if *left == 0 => None,
                None => Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof))),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Cut { .. } => false,
            Self::Stream { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Whole(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Self::Cut { declared, .. } => *declared,
            Self::Stream { left, .. } => *left,
        })
    }
}

impl ReplyBody {
    /// A body in memory.
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::Whole((!bytes.is_empty()).then_some(bytes))
    }

    /// The beginning of a body of `declared` bytes, after which the connection ends.
    pub(super) fn cut(first: Bytes, declared: u64, link: &Arc<Link>) -> Self {
        Self::Cut { first: CutAt::Bytes(first), declared, link: Arc::clone(link) }
    }

    /// A body that is read while it is sent. `pace` may change chunks and take its time.
    pub(super) fn stream(
        mut reader: Reader,
        len: u64,
        mut pace: impl FnMut(Bytes) -> io::Result<Bytes> + Send + 'static,
    ) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        tokio::task::spawn_blocking(move || {
            loop {
                let next = match reader.next(CHUNK_BYTES) {
                    Ok(Some(bytes)) => pace(bytes),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let is_last = next.is_err();
                // The receiver is gone when the client is.
                if sender.blocking_send(next).is_err() || is_last {
                    return;
                }
            }
        });
        Self::Stream { chunks, left: len }
    }
}

/// An answer of an API call, before it is HTTP.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// JSON, or nothing.
    pub(super) body: Bytes,
}

impl Answer {
    /// An answer without a body.
    pub(super) fn empty(status: u16) -> Self {
        Self { status, body: Bytes::new() }
    }

    /// An answer of JSON.
    pub(super) fn json(status: u16, body: &impl serde::Serialize) -> Result<Self, ApiError> {
        let body = serde_json::to_vec(body).map_err(|error| ApiError::internal(error.to_string()))?;
        Ok(Self { status, body: body.into() })
    }
}

/// A response; the parts are ours, so it always builds.
pub(super) fn response(
    status: u16,
    headers: &[(&'static str, String)],
    body: ReplyBody,
) -> Result<Response<ReplyBody>, HungUp> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, value);
    }
    builder.body(body).map_err(|_| HungUp)
}

/// The same bytes but for one bit.
pub(super) fn corrupt(bytes: &Bytes) -> Bytes {
    let mut changed = bytes.to_vec();
    if let Some(first) = changed.first_mut() {
        *first ^= 1;
    }
    changed.into()
}
