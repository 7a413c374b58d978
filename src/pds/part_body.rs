//! The request body of a part: reference-counted frames in memory or in a local file, with an exact length.
//! An attempt can be repeated without a copy.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, SizeHint};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::local_disk::LocalFile;
use crate::pds::connectivity::Connectivity;
use crate::pds::put_control::PutMeter;

/// Longest read of a stored frame in bytes. [`READS_AHEAD`] of them are the memory that one PUT of stored bytes
/// needs.
const READ_BYTES: u64 = 256 << 10;
/// Reads of stored frames that run at once for one PUT.
const READS_AHEAD: usize = 2;
/// How long a PUT waits for the local disk before it returns its permit and waits without one.
const DISK_WAIT_MAX: Duration = Duration::from_secs(2);
/// Bytes of a read that shows whether the local disk answers.
const PROBE_BYTES: u64 = 4096;

/// The source of zeros.
pub static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A piece of a part.
#[derive(Clone, Debug)]
pub enum Frame {
    Memory(Bytes),
    /// A range of a local file. It does not change while it is sent.
    Stored {
        file: Arc<LocalFile>,
        offset: u64,
        bytes: u64,
    },
    /// This many zeros. They take no memory.
    Zeros(u64),
}

impl Frame {
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Stored { bytes, .. } | Self::Zeros(bytes) => *bytes,
        }
    }

    /// Bytes `start..start + len` of the frame, as far as it reaches.
    #[must_use]
    pub fn slice(&self, start: u64, len: u64) -> Self {
        let start = start.min(self.bytes());
        let len = len.min(self.bytes() - start);
        match self {
            Self::Memory(bytes) => Self::Memory(bytes.slice(start as usize..(start + len) as usize)),
            Self::Stored { file, offset, .. } => {
                Self::Stored { file: file.clone(), offset: offset + start, bytes: len }
            }
            Self::Zeros(_) => Self::Zeros(len),
        }
    }

    /// Whether [`Self::visit`] reads the local disk.
    pub fn is_stored(&self) -> bool {
        matches!(self, Self::Stored { .. })
    }

    /// Calls `visit` with the bytes in order, in pieces. Blocks for the local disk if the frame is stored.
    pub fn visit(&self, mut visit: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self {
            Self::Memory(bytes) => visit(bytes),
            Self::Stored { file, offset, bytes } => {
                let (mut at, end) = (*offset, offset + bytes);
                let mut buffer = vec![0; READ_BYTES.min(*bytes) as usize];
                while at < end {
                    let piece = &mut buffer[..READ_BYTES.min(end - at) as usize];
                    file.read_exact_at(piece, at)?;
                    visit(piece)?;
                    at += piece.len() as u64;
                }
                Ok(())
            }
            Self::Zeros(bytes) => {
                let mut left = *bytes;
                while left > 0 {
                    let piece = &ZEROS[..left.min(ZEROS.len() as u64) as usize];
                    visit(piece)?;
                    left -= piece.len() as u64;
                }
                Ok(())
            }
        }
    }
}

/// The bytes of frames, for a reader. Past the end of a local file they are zeros: it may be truncated at the
/// same time.
pub async fn load(frames: Vec<Frame>) -> Result<Bytes> {
    if let [Frame::Memory(bytes)] = &frames[..] {
        return Ok(bytes.clone());
    }
    let disk = frames.iter().find_map(|frame| match frame {
        Frame::Stored { file, .. } => Some(file.disk().clone()),
        Frame::Memory(_) | Frame::Zeros(_) => None,
    });
    match disk {
        Some(disk) => disk.run(move || concat(&frames)).await,
        None => concat(&frames),
    }
}

/// Blocks for the local disk if a frame is stored.
fn concat(frames: &[Frame]) -> Result<Bytes> {
    let mut all = BytesMut::with_capacity(frames.iter().map(Frame::bytes).sum::<u64>() as usize);
    for frame in frames {
        let start = all.len();
        match frame {
            Frame::Memory(bytes) => all.extend_from_slice(bytes),
            Frame::Zeros(bytes) => all.resize(start + *bytes as usize, 0),
            Frame::Stored { file, offset, bytes } => {
                all.resize(start + *bytes as usize, 0);
                file.read_at_zero_filled(&mut all[start..], *offset)?;
            }
        }
    }
    Ok(all.freeze())
}

/// Bytes that are passed to the connection at once on a slow line: the granularity of progress.
const STEP_BYTES_MIN: usize = 32 << 10;
/// The same on a fast line, where steps double as long as each takes no longer than [`QUICK_STEP`].
const STEP_BYTES_MAX: usize = 256 << 10;
const QUICK_STEP: Duration = Duration::from_millis(5);

pub(super) struct PartBody {
    /// The frames after `ahead`.
    frames: VecDeque<Frame>,
    /// The next pieces. Reads of stored frames run already.
    ahead: VecDeque<Ahead>,
    /// The rest of the piece that is being sent.
    current: Bytes,
    bytes_left: u64,
    step_bytes: usize,
    stepped_at: Option<Instant>,
    crc: crc_fast::Digest,
    progress: Arc<BodyProgress>,
    connectivity: Arc<Connectivity>,
    meter: Arc<dyn PutMeter>,
}

/// A piece that is sent soon.
enum Ahead {
    Ready(Bytes),
    Read(Frame, JoinHandle<Result<Bytes>>),
}

/// How much of a body the connection has accepted.
#[derive(Debug, Default)]
pub(super) struct BodyProgress {
    bytes: AtomicU64,
    /// CRC-64/XZ of these bytes.
    crc64: AtomicU64,
    is_complete: AtomicBool,
    disk: Mutex<DiskProgress>,
}

/// The reads of stored frames. Locked as a leaf.
#[derive(Debug, Default)]
struct DiskProgress {
    /// The read that the body waits for, and since when.
    waits_for: Option<(Frame, Instant)>,
    /// The failure that has ended the body.
    error: Option<Error>,
}

impl BodyProgress {
    /// The failure of the local disk that has ended the body, if any. A repetition does not mend it.
    pub(super) fn disk_error(&self) -> Option<Error> {
        self.disk.lock().error.clone()
    }

    /// Resolves with the stored frame that the body has waited for longer than [`DISK_WAIT_MAX`].
    pub(super) async fn disk_stalled(&self) -> Frame {
        loop {
            tokio::time::sleep(DISK_WAIT_MAX / 4).await;
            if let Some((frame, since)) = &self.disk.lock().waits_for
                && since.elapsed() >= DISK_WAIT_MAX
            {
                return frame.clone();
            }
        }
    }

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
        meter: Arc<dyn PutMeter>,
    ) -> (Self, Arc<BodyProgress>) {
        let progress = Arc::<BodyProgress>::default();
        let bytes_left = frames.iter().map(Frame::bytes).sum();
        let (frames, crc) = (frames.iter().cloned().collect(), crate::crc64::digest());
        let body = Self {
            frames,
            ahead: VecDeque::new(),
            current: Bytes::new(),
            bytes_left,
            step_bytes: STEP_BYTES_MIN,
            stepped_at: None,
            crc,
            progress: progress.clone(),
            connectivity,
            meter,
        };
        (body, progress)
    }

    /// Starts the next reads. They run on threads of the local disk: a task of the runtime must not wait for it.
    fn read_ahead(&mut self) {
        while self.ahead.len() < READS_AHEAD
            && let Some(frame) = self.frames.pop_front()
        {
            let bytes_max = match &frame {
                Frame::Memory(bytes) => bytes.len() as u64,
                Frame::Stored { .. } => READ_BYTES,
                Frame::Zeros(_) => ZEROS.len() as u64,
            };
            if frame.bytes() > bytes_max {
                self.frames.push_front(frame.slice(bytes_max, u64::MAX));
            }
            let next = frame.slice(0, bytes_max);
            self.ahead.push_back(match next {
                Frame::Memory(bytes) => Ahead::Ready(bytes),
                Frame::Zeros(bytes) => Ahead::Ready(Bytes::from_static(&ZEROS[..bytes as usize])),
                Frame::Stored { ref file, offset, bytes } => {
                    let read = tokio::spawn(read(file.clone(), offset, bytes));
                    Ahead::Read(next, read)
                }
            });
        }
    }

    /// The next piece of the body; `None` at its end.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<std::io::Result<Bytes>>> {
        self.read_ahead();
        let piece = match self.ahead.front_mut() {
            None => return Poll::Ready(None),
            Some(Ahead::Ready(bytes)) => Ok(std::mem::take(bytes)),
            Some(Ahead::Read(frame, read)) => {
                let aborted = |e| Err(Error::with_source(ErrorKind::Io, "a local read was aborted", e));
                let polled = Pin::new(read).poll(context);
                let mut disk = self.progress.disk.lock();
                if polled.is_pending() {
                    disk.waits_for.get_or_insert_with(|| (frame.clone(), Instant::now()));
                    return Poll::Pending;
                }
                disk.waits_for = None;
                drop(disk);
                ready!(polled).unwrap_or_else(aborted)
            }
        };
        self.ahead.pop_front();
        Poll::Ready(Some(piece.map_err(|error| {
            let failed = std::io::Error::other(error.to_string());
            self.progress.disk.lock().error = Some(error);
            failed
        })))
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

/// Waits until the local disk answers for a stored frame, at most until its deadline. Other frames need no disk.
pub(super) async fn wait_for_disk(frame: Option<Frame>) {
    if let Some(Frame::Stored { file, offset, bytes }) = frame {
        // The PUT reads it again, and reports an error.
        let _ = read(file, offset, bytes.min(PROBE_BYTES)).await.is_ok();
    }
}

/// Reads a range of a local file.
async fn read(file: Arc<LocalFile>, offset: u64, bytes: u64) -> Result<Bytes> {
    let disk = file.disk().clone();
    let read = move || {
        let mut buffer = vec![0; bytes as usize];
        file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    };
    disk.run(read).await
}

impl Body for PartBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<http_body::Frame<Bytes>>>> {
        while self.current.is_empty() {
            match ready!(self.poll_piece(context)) {
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
        self.meter.sent(length as u64);
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
