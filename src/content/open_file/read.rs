//! Reads of an open file: local bytes, or the place from which the caller reads them. Nothing here waits for
//! the network.

use bytes::Bytes;

use super::content::{CommittingContent, Content, read_in_flight};
use super::file::OpenFile;
use crate::content::reader::ReadTarget;
use crate::content::staged_file::Piece;
use crate::content::streaming::Streaming;
use crate::error::Result;
use crate::pds::drive::FileMeta;

/// The source of the bytes of a read.
#[derive(Debug)]
pub enum ReadSource {
    /// The revision on the drive.
    Drive(FileMeta),
    Memory(Bytes),
    /// Pieces of this machine and of the base revision.
    Pieces(Vec<Piece>),
    /// Sent and no longer on this machine. The drive returns it after the commit.
    Unavailable,
}

impl OpenFile {
    /// Whether [`Self::read`] may block for the local disk.
    pub fn may_read_disk(&self) -> bool {
        match &self.lock().content {
            Content::Staged { .. } | Content::Committing { content: CommittingContent::Staged(_), .. } => {
                true
            }
            Content::Clean { base, retained: None } => {
                self.context.cached_files.contains(&ReadTarget::of(base))
            }
            Content::Streaming { stream, .. } => stream.has_sent_parts(),
            Content::Committing { content: CommittingContent::Stream(_, tee), .. } => tee.is_some(),
            Content::Local(local) => local.is_on_disk(),
            Content::New | Content::Clean { .. } | Content::Failed { .. } => false,
        }
    }

    /// The source of bytes `offset..offset + len`.
    pub fn read(&self, offset: u64, len: usize) -> Result<ReadSource> {
        let state = self.lock();
        match &state.content {
            Content::New => Ok(ReadSource::Memory(Bytes::new())),
            Content::Local(local) => local.read(offset, len as u64).map(ReadSource::Pieces),
            Content::Clean { base, retained: None } => {
                match self.context.cached_files.get(&ReadTarget::of(base)) {
                    Some(staged) => staged.read(offset, len as u64).map(ReadSource::Pieces),
                    None => Ok(ReadSource::Drive(base.clone())),
                }
            }
            Content::Failed { base: Some(base), .. } => Ok(ReadSource::Drive(base.clone())),
            Content::Clean { retained: Some(bytes), .. } => {
                let start = bytes.len().min(offset as usize);
                Ok(ReadSource::Memory(bytes.slice(start..bytes.len().min(start + len))))
            }
            Content::Failed { error, base: None } => Err(error.clone()),
            Content::Streaming { stream, .. } => read_stream(stream, offset, len),
            Content::Committing { content: CommittingContent::Stream(in_flight, tee), bytes, .. } => {
                let len = len.min(bytes.saturating_sub(offset) as usize);
                let out = read_in_flight(in_flight, tee.as_ref(), offset, len)?;
                Ok(if out.len() == len { ReadSource::Memory(out) } else { ReadSource::Unavailable })
            }
            Content::Staged { staged, .. }
            | Content::Committing { content: CommittingContent::Staged(staged), .. } => {
                staged.read(offset, len as u64).map(ReadSource::Pieces)
            }
        }
    }
}

/// Reads written bytes, then the base past the frontier, then declared zeros.
fn read_stream(stream: &Streaming, offset: u64, len: usize) -> Result<ReadSource> {
    let end = stream.size().min(offset.saturating_add(len as u64)).max(offset);
    let mut out = vec![0; (end - offset) as usize];
    let written = stream.frontier().clamp(offset, end) - offset;
    if stream.read(offset, &mut out[..written as usize])? < written as usize {
        return Ok(ReadSource::Unavailable);
    }
    let Some((target, base_start, base_len)) = stream.next_backfill(end) else {
        return Ok(ReadSource::Memory(out.into()));
    };
    // The range of the base begins at the frontier. The read may begin inside it.
    let (start, base_end) = (base_start.max(offset), base_start + base_len);
    if start >= base_end {
        return Ok(ReadSource::Memory(out.into()));
    }
    let mut head = Bytes::from(out);
    let zeros = head.split_off((base_end - offset) as usize);
    head.truncate(written as usize);
    let base = Piece::Base { target, offset: start, len: base_end - start };
    Ok(ReadSource::Pieces(vec![Piece::Data(head), base, Piece::Data(zeros)]))
}
