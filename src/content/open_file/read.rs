//! Reads of an open file: the places of its bytes. Nothing here waits for the network or the local disk.

use super::content::{CommittingContent, Content};
use super::file::OpenFile;
use crate::content::reader::ReadTarget;
use crate::content::staged_file::Piece;
use crate::content::streaming::{Streaming, read_sent};
use crate::error::Result;
use crate::pds::drive::FileMeta;
use crate::pds::part_body::Frame;

/// The source of the bytes of a read.
#[derive(Debug)]
pub enum ReadSource {
    /// The revision on the drive.
    Drive(FileMeta),
    /// Pieces of this machine and of the base revision.
    Pieces(Vec<Piece>),
    /// Pieces of the cached file of this revision. The drive has the bytes too.
    Cached(ReadTarget, Vec<Piece>),
    /// Sent and no longer on this machine. The drive returns it after the commit.
    Unavailable,
}

impl ReadSource {
    fn of_frames(frames: Option<Vec<Frame>>) -> Self {
        let pieces = |frames: Vec<Frame>| Self::Pieces(frames.into_iter().map(Piece::Local).collect());
        frames.map_or(Self::Unavailable, pieces)
    }
}

impl OpenFile {
    /// The source of bytes `offset..offset + len`.
    pub fn read(&self, offset: u64, len: u64) -> Result<ReadSource> {
        let state = self.lock();
        match &state.content {
            Content::New => Ok(ReadSource::Pieces(Vec::new())),
            Content::Local(local) => Ok(ReadSource::Pieces(local.read(offset, len))),
            Content::Clean { base, retained: None } => {
                let target = ReadTarget::of(base);
                match self.context.cached_files.get(&target) {
                    Some(staged) => Ok(ReadSource::Cached(target, staged.read(offset, len))),
                    None => Ok(ReadSource::Drive(base.clone())),
                }
            }
            Content::Failed { base: Some(base), .. } => Ok(ReadSource::Drive(base.clone())),
            Content::Clean { retained: Some(bytes), .. } => {
                let all = Frame::Memory(bytes.clone());
                Ok(ReadSource::of_frames(Some(vec![all.slice(offset, len)])))
            }
            Content::Failed { error, base: None } => Err(error.clone()),
            Content::Streaming { stream, .. } => Ok(read_stream(stream, offset, len)),
            Content::Committing { content: CommittingContent::Stream(in_flight, tee), bytes, .. } => {
                let end = offset.saturating_add(len).min(*bytes);
                Ok(ReadSource::of_frames(read_sent(in_flight, tee.as_ref(), offset, end)))
            }
            Content::Staged { staged, .. }
            | Content::Committing { content: CommittingContent::Staged(staged), .. } => {
                Ok(ReadSource::Pieces(staged.read(offset, len)))
            }
        }
    }
}

/// Written bytes, then the base past the frontier, then declared zeros.
fn read_stream(stream: &Streaming, offset: u64, len: u64) -> ReadSource {
    let end = stream.size().min(offset.saturating_add(len)).max(offset);
    let Some(written) = stream.read(offset, end - offset) else { return ReadSource::Unavailable };
    let mut pieces: Vec<_> = written.into_iter().map(Piece::Local).collect();
    let mut at = stream.frontier().clamp(offset, end);
    if let Some((target, base_start, base_len)) = stream.next_backfill(end) {
        // The range of the base begins at the frontier. The read may begin inside it.
        let (start, base_end) = (base_start.max(offset), base_start + base_len);
        if start < base_end {
            pieces.push(Piece::Base { target, offset: start, len: base_end - start });
            at = base_end;
        }
    }
    if at < end {
        pieces.push(Piece::Local(Frame::Zeros(end - at)));
    }
    ReadSource::Pieces(pieces)
}
