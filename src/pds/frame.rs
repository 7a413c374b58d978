//! The body of a part: reference-counted pieces in memory or on the local disk, with an exact
//! length, so that an attempt can be repeated without copying anything.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, SizeHint};

use crate::pds::reach::Reach;

/// A piece of a part: in memory, or in a local file.
#[derive(Clone, Debug)]
pub enum Frame {
    /// Reference-counted.
    Memory(Bytes),
    /// Read when its turn comes; short enough for one read.
    Stored {
        /// Ours alone: nobody else changes it.
        file: Arc<std::fs::File>,
        /// Where in the file.
        offset: u64,
        /// Length.
        bytes: u64,
    },
}

impl Frame {
    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Stored { bytes, .. } => *bytes,
        }
    }

    /// The bytes themselves. Blocks for one local read where they are stored.
    pub fn load(&self) -> std::io::Result<Bytes> {
        use std::os::unix::fs::FileExt;
        match self {
            Self::Memory(bytes) => Ok(bytes.clone()),
            Self::Stored { file, offset, bytes } => {
                let mut buffer = vec![0; *bytes as usize];
                file.read_exact_at(&mut buffer, *offset)?;
                Ok(buffer.into())
            }
        }
    }
}

/// Bytes that are handed to the connection at once. On a slow line they are the grain in which movement is seen.
const STEP_BYTES: usize = 32 << 10;

/// A request body of frames with an exact length.
pub(super) struct PartBody {
    frames: VecDeque<Frame>,
    /// The rest of the frame whose turn it is.
    current: Bytes,
    bytes_left: u64,
    crc: crc_fast::Digest,
    sent: Arc<Sent>,
    reach: Arc<Reach>,
}

/// What a connection has taken from a body.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Bytes that were taken.
    moved: AtomicU64,
    /// CRC-64/XZ of the frames so far. Summed up while the connection copies them anyway.
    crc64: AtomicU64,
    /// Nothing is left to be taken.
    is_whole: AtomicBool,
}

impl Sent {
    /// CRC-64/XZ of what was taken.
    pub(super) fn crc64(&self) -> u64 {
        self.crc64.load(Ordering::Relaxed)
    }

    /// Grows while bytes are taken.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

impl PartBody {
    /// The body, and what the connection has taken from it.
    pub(super) fn new(frames: &[Frame], reach: Arc<Reach>) -> (Self, Arc<Sent>) {
        let sent = Arc::<Sent>::default();
        let bytes_left = frames.iter().map(Frame::bytes).sum();
        let (frames, crc) = (frames.iter().cloned().collect(), crate::crc64::digest());
        (Self { frames, current: Bytes::new(), bytes_left, crc, sent: sent.clone(), reach }, sent)
    }

    /// Bytes that are still to be sent.
    pub(super) fn bytes_left(&self) -> u64 {
        self.bytes_left
    }
}

impl Body for PartBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<http_body::Frame<Bytes>>>> {
        while self.current.is_empty() {
            match self.frames.pop_front().map(|frame| frame.load()) {
                Some(Ok(bytes)) => self.current = bytes,
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                None => return Poll::Ready(None),
            }
        }
        let length = self.current.len().min(STEP_BYTES);
        let step = self.current.split_to(length);
        self.bytes_left -= length as u64;
        self.crc.update(&step);
        self.sent.crc64.store(self.crc.finalize(), Ordering::Relaxed);
        self.sent.is_whole.store(self.bytes_left == 0, Ordering::Relaxed);
        self.sent.moved.fetch_add(length as u64, Ordering::Relaxed);
        self.reach.moved(length as u64);
        Poll::Ready(Some(Ok(http_body::Frame::data(step))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes_left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes_left)
    }
}

/// How many times longer the answer may take than a step of the body: the rest of it drains from
/// the socket's buffer first.
const ANSWER_LIMITS: u32 = 3;

/// Resolves when nothing was taken from the body for `limit`, and no answer came for a few times
/// that after the last of it was taken.
pub(super) async fn stalled(sent: &Sent, limit: Duration) {
    let mut seen = sent.moved.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(limit).await;
        let now = sent.moved.load(Ordering::Relaxed);
        if now == seen {
            if sent.is_whole.load(Ordering::Relaxed) {
                tokio::time::sleep(limit * (ANSWER_LIMITS - 1)).await;
            }
            return;
        }
        seen = now;
    }
}
