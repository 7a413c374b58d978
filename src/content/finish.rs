//! From everything written to a committed revision.
//!
//! Where parts have left already, the last one follows them. Where the content is known as a whole, its
//! hash goes first: the drive may have the bytes, or the file may have had them before.

use std::sync::Arc;

use super::flow::Flow;
use super::reader::ReadTarget;
use super::shipper::{
    Destination, Env, FrozenPart, Put, Ready, create, first_numbers, hash_frames, ship_known,
};
use super::staged::Staged;
use super::streaming::Uploader;
use super::tee::Tee;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, PartNumber, Sha1Hash};
use crate::pds::drive::{Created, Expected, FileMeta, Upload};
use crate::pds::frame::Frame;
use crate::pds::types::PartUrl;
use crate::rolling_sha1::{RollingSha1, Sha1Ctx};
use crate::status::{Commit, Transfer};

/// A whole file up to this size is hashed where it stands: that is quicker than handing it over.
const INLINE_HASH_BYTES_MAX: u64 = 256 << 10;
/// How many places a commit tries.
const PLACES_MAX: usize = 3;
/// Bytes of the base that one read asks for.
const FILL_BYTES: u64 = 4 << 20;

/// A content that is being committed.
#[derive(Debug)]
pub struct Finish {
    pub(super) env: Arc<Env>,
    pub(super) flow: Arc<Flow>,
    pub(super) tee: Option<Tee>,
    pub(super) transfer: Arc<Transfer>,
    pub(super) destination: Destination,
    /// The content that the file has on the drive: where that is the same bytes, nothing is committed.
    pub(super) base: Option<FileMeta>,
    pub(super) written: Written,
}

/// What there is to commit.
#[derive(Debug)]
pub(super) enum Written {
    /// Parts have left; the last follows.
    Shipping { uploader: Uploader, last: Option<FrozenPart>, size: u64 },
    /// One part, which is the whole.
    Whole(FrozenPart),
    /// A staged copy.
    Copied(Arc<Staged>),
    /// Nothing that could be sent.
    Lost(Error),
}

/// A committed file.
#[derive(Clone, Debug)]
pub struct Finished {
    /// As the drive has it.
    pub meta: FileMeta,
    /// How it got there.
    pub how: Commit,
    /// The place that was used.
    pub destination: Destination,
}

/// A content that is known before any of it is sent.
struct Known {
    size: u64,
    sha1: Sha1Hash,
    parts: Vec<Ready>,
}

impl Finish {
    /// For readers meanwhile.
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Runs the commit.
    pub async fn run(mut self) -> Result<Finished> {
        self.transfer.committing();
        match std::mem::replace(&mut self.written, Written::Lost(taken())) {
            Written::Shipping { uploader, last, size } => self.end_of_stream(uploader, last, size).await,
            Written::Whole(part) => {
                // Readers meanwhile are served from here until the file is committed.
                self.flow.keep_all();
                let known = hash_whole(part, &self.transfer).await?;
                self.commit(known).await
            }
            Written::Copied(copy) => {
                self.transfer.expect_bytes(copy.size());
                if let Some(finished) = self.commit_clone(&copy).await? {
                    return Ok(finished);
                }
                self.fill(&copy).await?;
                let (part_size, transfer) = (self.env.part_size, self.transfer.clone());
                let known = run_blocking(move || hash_all(copy.parts(part_size)?, &transfer)).await?;
                self.transfer.expect_bytes(known.size);
                self.commit(known).await
            }
            Written::Lost(error) => Err(error),
        }
    }

    /// Whether the drive has these bytes as this file's newest content: as far as was known when the file was opened,
    /// and still.
    async fn unchanged(&self, expected: &Expected) -> Result<Option<Finished>> {
        let is_same = |meta: &FileMeta| meta.size == expected.size && meta.sha1 == Some(expected.sha1);
        let Some(base) = self.base.as_ref().filter(|base| is_same(base)) else { return Ok(None) };
        let meta = match self.env.drive.newest(&base.file_id).await {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let destination = self.destination.clone();
        Ok(is_same(&meta).then_some(Finished { meta, how: Commit::Unchanged, destination }))
    }

    async fn end_of_stream(
        self,
        mut uploader: Uploader,
        last: Option<FrozenPart>,
        size: u64,
    ) -> Result<Finished> {
        let shipped = uploader.finish(last).await?;
        let expected = Expected { size, sha1: shipped.sha1, crc64: Some(shipped.crc64) };
        if let Some(finished) = self.unchanged(&expected).await? {
            return Ok(finished);
        }
        match self.env.drive.complete(&shipped.upload, &expected).await {
            Ok(meta) => Ok(Finished { meta, how: Commit::Uploaded, destination: shipped.destination }),
            Err(error) if self.is_misplaced(&error, &shipped.destination) => {
                self.send_again(size, &shipped.destination, error).await
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a commit was refused because of where it was to go: the name was given away, or the file that was to get a
    /// new revision does not exist any more, or the folder, which the file has left.
    fn is_misplaced(&self, error: &Error, used: &Destination) -> bool {
        match error.kind() {
            ErrorKind::Exists => true,
            ErrorKind::NotFound => used.overwrite.is_some() || used.is_left(&self.env),
            _ => false,
        }
    }

    /// The place that the upload was begun for is not to be had any more: the name was given away since, perhaps
    /// because the file was renamed, or somebody else has deleted the file. What was streamed goes to the place of
    /// now, where it is still here.
    async fn send_again(mut self, size: u64, used: &Destination, refused: Error) -> Result<Finished> {
        let Some(tee) = self.tee.clone() else { return Err(refused) };
        let (part_size, transfer) = (self.env.part_size, self.transfer.clone());
        let refused_kind = refused.kind();
        tracing::info!(name = self.destination.name, %refused, "an upload is sent again");
        let known = run_blocking(move || {
            let copy = tee.copy_of(size).ok_or(refused)?;
            hash_all(copy.parts(part_size)?, &transfer)
        });
        let gone = used.overwrite.clone().filter(|_| refused_kind == ErrorKind::NotFound);
        let known = known.await?;
        self.commit_elsewhere(&known, gone).await
    }

    /// Where the copy is the whole of another file, the drive has the bytes: none are moved. `None` where it
    /// wants them all the same.
    async fn commit_clone(&mut self, copy: &Staged) -> Result<Option<Finished>> {
        let Some((source, size)) = copy.clone_of() else { return Ok(None) };
        let Some(sha1) = source.sha1.filter(|_| source.size == size) else { return Ok(None) };
        let expected = Expected { size, sha1, crc64: None };
        if let Some(finished) = self.unchanged(&expected).await? {
            return Ok(Some(finished));
        }
        let first = [(PartNumber::FIRST, Sha1Ctx::START)];
        self.destination.aim(&self.env)?;
        let created = create(&self.env, &mut self.destination, Some((size, sha1)), &first).await?;
        let Created::Instant(file_id) = created else { return Ok(None) };
        let meta = self.env.drive.committed(&file_id, &expected).await?;
        let destination = self.destination.clone();
        Ok(Some(Finished { meta, how: Commit::Instant, destination }))
    }

    /// Fetches what the copy lacks.
    async fn fill(&self, copy: &Arc<Staged>) -> Result<()> {
        let cursor = self.env.reader.cursor();
        while let Some((target, offset, len)) = copy.next_gap(FILL_BYTES) {
            let bytes = self.env.reader.read(&target, &cursor, offset, len).await?;
            if bytes.is_empty() {
                return Err(Error::new(
                    ErrorKind::Integrity,
                    "the base of a changed file is shorter than it was",
                ));
            }
            self.transfer.prepared(bytes.len() as u64);
            let copy = copy.clone();
            run_blocking(move || copy.fill(offset, &bytes)).await?;
        }
        Ok(())
    }

    async fn commit(mut self, known: Known) -> Result<Finished> {
        self.commit_elsewhere(&known, None).await
    }

    /// Commits to the place of now. `gone` is an object that does not exist any more, whatever is thought of it here.
    async fn commit_elsewhere(&mut self, known: &Known, mut gone: Option<FileId>) -> Result<Finished> {
        let expected = Expected { size: known.size, sha1: known.sha1, crc64: None };
        if let Some(finished) = self.unchanged(&expected).await? {
            return Ok(finished);
        }
        let mut tries_left = PLACES_MAX;
        loop {
            self.destination.aim(&self.env)?;
            self.destination.overwrite.take_if(|object| Some(&*object) == gone.as_ref());
            tries_left -= 1;
            match self.commit_once(known, expected).await {
                // While it was being sent, names have changed hands, or somebody else has deleted the file.
                Err(error) if tries_left > 0 && self.is_misplaced(&error, &self.destination) => {
                    if error.kind() == ErrorKind::NotFound {
                        gone = self.destination.overwrite.take().or(gone);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    async fn commit_once(&mut self, known: &Known, expected: Expected) -> Result<Finished> {
        let drive = self.env.drive.clone();
        let content = Some((known.size, known.sha1));
        let first = first_numbers(&known.parts);
        let (upload, urls) = match create(&self.env, &mut self.destination, content, &first).await? {
            Created::Session(upload, urls) => (upload, urls),
            Created::Instant(file_id) => {
                let meta = drive.committed(&file_id, &expected).await?;
                let destination = self.destination.clone();
                return Ok(Finished { meta, how: Commit::Instant, destination });
            }
            Created::Taken(..) => {
                return Err(Error::new(ErrorKind::Exists, "the name on the drive is taken"));
            }
        };
        let crc64 = self.send(&upload, urls, known.parts.clone()).await?;
        let meta = drive.complete(&upload, &Expected { crc64: Some(crc64), ..expected }).await?;
        Ok(Finished { meta, how: Commit::Uploaded, destination: self.destination.clone() })
    }

    async fn send(&self, upload: &Upload, mut urls: Vec<PartUrl>, mut parts: Vec<Ready>) -> Result<u64> {
        let (env, flow, transfer) = (self.env.clone(), self.flow.clone(), self.transfer.clone());
        if parts.len() > 1 {
            return ship_known(env, upload, urls, parts, flow, transfer).await;
        }
        // The usual file is small: its one part needs no task of its own.
        let (Some((part, ctx)), Some(url)) = (parts.pop(), urls.pop()) else {
            return Err(Error::new(ErrorKind::Protocol, "no URL for a part"));
        };
        let put = Put { env, flow, transfer, upload: upload.clone(), part, ctx };
        put.run(url).await.map(|(_, _, crc64)| crc64)
    }
}

fn taken() -> Error {
    Error::new(ErrorKind::Cancelled, "a commit was run twice")
}

async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let stopped = |e| Error::new(ErrorKind::Io, format!("local work stopped: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(stopped)?
}

/// Hashes one part, which is the whole: at once where it is small and in memory, elsewhere where that
/// would hold up others.
async fn hash_whole(part: FrozenPart, transfer: &Arc<Transfer>) -> Result<Known> {
    let is_quick = part.bytes <= INLINE_HASH_BYTES_MAX
        && part.frames.iter().all(|frame| matches!(frame, Frame::Memory(_)));
    if is_quick {
        return hash_all(vec![part], transfer);
    }
    let transfer = transfer.clone();
    run_blocking(move || hash_all(vec![part], &transfer)).await
}

/// Hashes parts in order. Blocks.
fn hash_all(parts: Vec<FrozenPart>, transfer: &Transfer) -> Result<Known> {
    let mut rolling = RollingSha1::default();
    let (mut size, mut ready) = (0, Vec::with_capacity(parts.len()));
    for part in parts {
        // Part sizes are multiples of 64, so a state exists at every boundary.
        let ctx =
            rolling.ctx().ok_or_else(|| Error::new(ErrorKind::Io, "a part begins off the SHA-1 grid"))?;
        rolling = hash_frames(rolling, &part.frames)?;
        size += part.bytes;
        transfer.prepared(part.bytes);
        ready.push((part, ctx));
    }
    Ok(Known { size, sha1: rolling.digest(), parts: ready })
}

/// What a staged copy of a committed file lies over.
pub fn target(base: &FileMeta) -> ReadTarget {
    ReadTarget {
        file_id: base.file_id.clone(),
        revision: base.revision.clone(),
        size: base.size,
        sha1: base.sha1,
    }
}
