//! Responses: bodies in memory, bodies streamed from files, and the end of a connection instead of a
//! response.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::Response;
use tokio::sync::mpsc;

use super::blobs::PartReader;
use super::connection::ConnectionControl;
use super::errors::ServiceError;

/// Size of one read of a streamed file.
pub(super) const CHUNK_BYTES: usize = 512 << 10;

/// Chunks read ahead for each download.
const CHUNKS_AHEAD: usize = 2;

/// The end of the connection instead of a response.
#[derive(Debug, thiserror::Error)]
#[error("connection closed by a fault")]
pub(super) struct Disconnect;

/// Progress of a truncated body: `Bytes` (unsent) -> `Flush` (given to hyper) -> end of the connection.
pub(super) enum CutState {
    Bytes(Bytes),
    /// The number of flushes before the bytes were given to hyper.
    Flush(u64),
}

pub(super) enum ReplyBody {
    Whole(Option<Bytes>),
    /// The first bytes of `declared`, then the end of the connection.
    Cut {
        first: CutState,
        declared: u64,
        control: Arc<ConnectionControl>,
    },
    /// `left` bytes from files.
    Stream {
        chunks: mpsc::Receiver<io::Result<Bytes>>,
        left: u64,
    },
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
            Self::Cut { first, control, .. } => match first {
                CutState::Bytes(bytes) => {
                    let bytes = std::mem::take(bytes);
                    *first = CutState::Flush(control.flushes());
                    if bytes.is_empty() {
                        return self.poll_frame(cx);
                    }
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                CutState::Flush(before) => {
                    ready!(control.poll_flushed(*before, cx));
                    Poll::Ready(Some(Err(io::Error::other(Disconnect))))
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
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self::Whole((!bytes.is_empty()).then_some(bytes))
    }

    /// The first bytes of a body with `Content-Length: declared`, then the end of the connection.
    pub(super) fn cut(first: Bytes, declared: u64, control: &Arc<ConnectionControl>) -> Self {
        Self::Cut { first: CutState::Bytes(first), declared, control: Arc::clone(control) }
    }

    /// A body that a blocking thread reads while it is sent. `pace` can change chunks and can sleep.
    pub(super) fn stream(
        mut reader: PartReader,
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
                // Fails when the client has disconnected.
                if sender.blocking_send(next).is_err() || is_last {
                    return;
                }
            }
        });
        Self::Stream { chunks, left: len }
    }
}

/// The response to an API call before it becomes HTTP. Batches contain such responses.
#[derive(Clone, Debug)]
pub(super) struct ApiResponse {
    pub(super) status: u16,
    /// JSON, or empty.
    pub(super) body: Bytes,
}

impl ApiResponse {
    pub(super) fn empty(status: u16) -> Self {
        Self { status, body: Bytes::new() }
    }

    pub(super) fn json(status: u16, body: &impl serde::Serialize) -> Result<Self, ServiceError> {
        let body = serde_json::to_vec(body).map_err(|error| ServiceError::internal(error.to_string()))?;
        Ok(Self { status, body: body.into() })
    }
}

/// Builds a response. Status and headers come from this program, so it does not fail in practice.
pub(super) fn response(
    status: u16,
    headers: &[(&'static str, String)],
    body: ReplyBody,
) -> Result<Response<ReplyBody>, Disconnect> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, value);
    }
    builder.body(body).map_err(|_| Disconnect)
}

/// Flips one bit of the first byte.
pub(super) fn corrupt(bytes: &Bytes) -> Bytes {
    let mut changed = bytes.to_vec();
    if let Some(first) = changed.first_mut() {
        *first ^= 1;
    }
    changed.into()
}
