//! The request body of a part: reference-counted frames in memory or in a local file, with an exact length.
//! An attempt can be repeated without a copy.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, SizeHint};

use crate::pds::connectivity::Connectivity;

/// A piece of a part.
#[derive(Clone, Debug)]
pub enum Frame {
    Memory(Bytes),
    /// A range of a local file that does not change. It is read when it is sent, by one read.
    Stored {
        file: Arc<std::fs::File>,
        offset: u64,
        bytes: u64,
    },
}

impl Frame {
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Stored { bytes, .. } => *bytes,
        }
    }

    /// Returns the bytes. Blocks for one local read of a stored frame.
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

/// Bytes that are passed to the connection at once on a slow line: the granularity of progress.
const STEP_BYTES_MIN: usize = 32 << 10;
/// The same on a fast line, where steps double as long as each takes no longer than [`QUICK_STEP`].
const STEP_BYTES_MAX: usize = 256 << 10;
const QUICK_STEP: Duration = Duration::from_millis(5);

pub(super) struct PartBody {
    frames: VecDeque<Frame>,
    /// The rest of the frame that is being sent.
    current: Bytes,
    bytes_left: u64,
    step_bytes: usize,
    stepped_at: Option<Instant>,
    crc: crc_fast::Digest,
    progress: Arc<BodyProgress>,
    connectivity: Arc<Connectivity>,
    /// Bytes that connections have accepted for the file, in all attempts and parts.
    moved: Arc<AtomicU64>,
}

/// How much of a body the connection has accepted.
#[derive(Debug, Default)]
pub(super) struct BodyProgress {
    bytes: AtomicU64,
    /// CRC-64/XZ of these bytes.
    crc64: AtomicU64,
    is_complete: AtomicBool,
}

impl BodyProgress {
    pub(super) fn crc64(&self) -> u64 {
        self.crc64.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl PartBody {
    pub(super) fn new(
        frames: &[Frame],
        connectivity: Arc<Connectivity>,
        moved: Arc<AtomicU64>,
    ) -> (Self, Arc<BodyProgress>) {
        let progress = Arc::<BodyProgress>::default();
        let bytes_left = frames.iter().map(Frame::bytes).sum();
        let (frames, crc) = (frames.iter().cloned().collect(), crate::crc64::digest());
        let body = Self {
            frames,
            current: Bytes::new(),
            bytes_left,
            step_bytes: STEP_BYTES_MIN,
            stepped_at: None,
            crc,
            progress: progress.clone(),
            connectivity,
            moved,
        };
        (body, progress)
    }

    pub(super) fn bytes_left(&self) -> u64 {
        self.bytes_left
    }

    /// Bytes of the next step. The connection asks for it when it has passed on the one before.
    fn next_step(&mut self) -> usize {
        let now = Instant::now();
        let is_quick = self.stepped_at.replace(now).is_some_and(|before| now - before <= QUICK_STEP);
        self.step_bytes = if is_quick { (self.step_bytes * 2).min(STEP_BYTES_MAX) } else { STEP_BYTES_MIN };
        self.current.len().min(self.step_bytes)
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
        let length = self.next_step();
        let step = self.current.split_to(length);
        self.bytes_left -= length as u64;
        self.crc.update(&step);
        self.progress.crc64.store(self.crc.finalize(), Ordering::Relaxed);
        self.progress.is_complete.store(self.bytes_left == 0, Ordering::Relaxed);
        self.progress.bytes.fetch_add(length as u64, Ordering::Relaxed);
        self.moved.fetch_add(length as u64, Ordering::Relaxed);
        self.connectivity.note_uploaded(length as u64);
        Poll::Ready(Some(Ok(http_body::Frame::data(step))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes_left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes_left)
    }
}

/// How many idle limits the answer may take after the last byte of the body: the rest of the body drains from
/// the socket's buffer first.
const ANSWER_LIMITS: u32 = 3;

/// Resolves when the connection has accepted no byte of the body for `limit`. After the last byte, it waits
/// [`ANSWER_LIMITS`] times as long for the answer.
pub(super) async fn upload_stalled(progress: &BodyProgress, limit: Duration) {
    let mut before = progress.bytes();
    loop {
        tokio::time::sleep(limit).await;
        let now = progress.bytes();
        if now == before {
            if progress.is_complete.load(Ordering::Relaxed) {
                tokio::time::sleep(limit * (ANSWER_LIMITS - 1)).await;
            }
            return;
        }
        before = now;
    }
}
