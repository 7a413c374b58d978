//! A live upload: a file that is being written front to back.
//!
//! `append` only copies; everything that waits for the network is a task. The first full part
//! starts the uploader; a file that ends before that goes the short way at the end: one `create`
//! with the hash of everything, and one PUT if the service does not have the bytes.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::finish::{Finish, Written};
use super::flow::Flow;
use super::part::Filling;
use super::reader::ReadTarget;
use super::shipper::{Destination, Env, FrozenPart, Shipped, ship};
use super::staged::{Staged, too_large};
use super::tee::Tee;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, PartNumber};
use crate::pds::drive::FileMeta;
use crate::status::Transfer;

/// Bytes that are moved at once into a copy.
const COPIED_BYTES: u64 = 1 << 20;

/// The live upload of one file.
#[derive(Debug)]
pub struct Streaming {
    env: Arc<Env>,
    flow: Arc<Flow>,
    transfer: Arc<Transfer>,
    filling: Filling,
    /// Where the filling part begins in the file.
    offset: u64,
    /// Number of the filling part; `None` when all numbers are used up.
    number: Option<PartNumber>,
    uploader: Option<Uploader>,
    /// Where the upload was begun for.
    aimed_at: Option<(FileId, String)>,
    /// The copy of the parts that have left, from the first on.
    tee: Option<Tee>,
    /// The size that was set; what is not written up to there is zeros.
    promised: u64,
    /// What shows beyond the frontier, until it is run over.
    under: Option<Under>,
}

/// The content that an upload goes over where there is no room for a copy of it.
#[derive(Clone, Debug)]
struct Under {
    target: ReadTarget,
    /// How much of it still shows, from its beginning.
    bytes: u64,
}

/// The task that sends the parts; stopped when this is dropped.
#[derive(Debug)]
pub(super) struct Uploader {
    /// `None` once the last part is on its way.
    parts: Option<mpsc::UnboundedSender<FrozenPart>>,
    task: JoinHandle<Result<Shipped>>,
}

impl Uploader {
    /// Sends the last part and waits until all are stored.
    pub(super) async fn finish(&mut self, last: Option<FrozenPart>) -> Result<Shipped> {
        // The uploader ends when its sender is gone; it is gone itself only after a failure.
        if let (Some(parts), Some(last)) = (self.parts.take(), last) {
            let _ = parts.send(last);
        }
        let ended = (&mut self.task).await;
        ended.map_err(|e| Error::new(ErrorKind::Cancelled, format!("the upload was stopped: {e}")))?
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a writer who could not append everything waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Memory of the budget.
    Memory,
    /// The drive: too much is not acknowledged.
    Drive,
    /// The local disk, for a moment.
    Disk,
    /// A commit that is under way.
    Commit,
}

/// How much was appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Bytes.
    pub bytes: usize,
    /// Why not all of them.
    pub wait: Option<Wait>,
}

impl Streaming {
    /// An empty one; nothing happens on the drive before the first full part or [`Self::finish`].
    pub fn new(env: Arc<Env>, transfer: Arc<Transfer>) -> Self {
        Self {
            env,
            flow: Arc::default(),
            transfer,
            filling: Filling::default(),
            offset: 0,
            number: Some(PartNumber::FIRST),
            uploader: None,
            aimed_at: None,
            tee: None,
            promised: 0,
            under: None,
        }
    }

    /// An upload over `target`: what is not written is what that has, and has to be sent too.
    pub fn over(env: Arc<Env>, transfer: Arc<Transfer>, target: ReadTarget) -> Self {
        let under = Some(Under { bytes: target.size, target });
        Self { under, ..Self::new(env, transfer) }
    }

    /// Bytes of the content: what was written, what shows from under it, and the zeros that were promised
    /// behind that.
    pub fn size(&self) -> u64 {
        self.frontier().max(self.promised).max(self.under_bytes())
    }

    fn under_bytes(&self) -> u64 {
        self.under.as_ref().map_or(0, |under| under.bytes)
    }

    /// What has to be appended next, of what shows from under the upload, before `to` can be written: the
    /// content, where it begins in both, and bytes.
    pub fn gap(&self, to: u64) -> Option<(ReadTarget, u64, u64)> {
        let under = self.under.as_ref()?;
        let (start, end) = (self.frontier(), under.bytes.min(to));
        (start < end).then(|| (under.target.clone(), start, end - start))
    }

    /// From where on what was written can still be changed.
    pub fn here_from(&self) -> u64 {
        self.offset
    }

    /// Changes bytes between [`Self::here_from`] and [`Self::frontier`]; how many of `data` lay there.
    pub fn patch(&mut self, offset: u64, data: &[u8]) -> Result<usize> {
        self.filling.patch(offset - self.offset, data)
    }

    /// Sets the size: a larger one is a promise of zeros, a smaller one cuts what has not left yet.
    /// `false`, and nothing has changed, where it would cut more than that.
    pub fn set_size(&mut self, size: u64) -> Result<bool> {
        if size < self.offset {
            return Ok(false);
        }
        if size < self.frontier() {
            self.filling.cut(size - self.offset)?;
        }
        if let Some(under) = &mut self.under {
            under.bytes = under.bytes.min(size);
        }
        self.promised = size;
        Ok(true)
    }

    /// Bytes so far: where the next write has to begin.
    pub fn frontier(&self) -> u64 {
        self.offset + self.filling.bytes()
    }

    /// Forgets what has left: the file was removed, and its upload failed with that. What is written from
    /// now on stays here.
    pub fn abandon(&mut self) {
        (self.uploader, self.tee, self.flow) = (None, None, Arc::default());
    }

    /// What is shared with the uploader and with readers.
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Whether parts have left already, so that the content is no longer whole here.
    pub fn has_shipped(&self) -> bool {
        self.uploader.is_some()
    }

    /// The progress of this upload.
    pub fn transfer(&self) -> &Arc<Transfer> {
        &self.transfer
    }

    /// Makes `data`, less than a part, the beginning of an empty upload. `false` where memory has to be
    /// waited for; the upload is of no use then.
    pub fn begin_with(&mut self, data: &[u8]) -> Result<bool> {
        let (part_bytes, spill_dir) = (self.env.part_size.get(), Some(self.env.spill_dir.as_path()));
        let taken = self.filling.take(data, part_bytes, &self.env.budget, spill_dir)?;
        Ok(taken.bytes == data.len())
    }

    /// Appends as much as memory and the drive allow now. `destination` is asked when the first
    /// part is full. Only with `may_block` are parts put aside on the local disk.
    pub fn append(
        &mut self,
        mut data: &[u8],
        destination: &dyn Fn() -> Option<Destination>,
        may_block: bool,
    ) -> Result<Appended> {
        self.flow.check()?;
        let part_bytes = self.env.part_size.get();
        let (offered, start) = (data.len(), self.frontier());
        let mut wait = None;
        while !data.is_empty() {
            if self.number.is_none() {
                return Err(self.too_large());
            }
            // A writer may be ahead of the drive by whole parts only, so this is asked once a part.
            let ahead = if self.uploader.is_some() { self.flow.parts_held() } else { 0 };
            if self.filling.bytes() == 0 && ahead >= self.env.gate.parts_ahead_max() {
                wait = Some(Wait::Drive);
                break;
            }
            if self.filling.bytes() == 0 && self.tee.as_ref().is_some_and(Tee::holds_up) {
                wait = Some(Wait::Disk);
                break;
            }
            let spill_dir = may_block.then_some(self.env.spill_dir.as_path());
            let taken = match self.filling.take(data, part_bytes, &self.env.budget, spill_dir) {
                Ok(taken) => taken,
                Err(error) => {
                    let bytes = (self.frontier() - start) as usize;
                    if bytes == 0 {
                        return Err(error);
                    }
                    // What was taken stays taken; the next call meets the error.
                    self.transfer.wrote(bytes as u64);
                    return Ok(Appended { bytes, wait: None });
                }
            };
            data = &data[taken.bytes..];
            if self.filling.bytes() == part_bytes && !self.ship(destination, may_block)? {
                wait = Some(Wait::Memory);
                break;
            }
            if taken.must_wait {
                wait = Some(Wait::Memory);
                break;
            }
        }
        let bytes = offered - data.len();
        self.transfer.wrote(bytes as u64);
        Ok(Appended { bytes, wait })
    }

    fn too_large(&self) -> Error {
        Error::new(ErrorKind::TooLarge, too_large(self.env.part_size))
    }

    /// The place that the upload was begun for.
    pub fn aimed_at(&self) -> Option<(FileId, String)> {
        self.aimed_at.clone()
    }

    /// Sends the filling part on its way and begins the next one. `false` where the file has no
    /// place on the drive any more and the part could only be put aside on the local disk.
    fn ship(&mut self, destination: &dyn Fn() -> Option<Destination>, may_block: bool) -> Result<bool> {
        if self.uploader.is_none() {
            // Parts that were put aside are never sent, so no upload begins behind them.
            match destination().filter(|_| self.offset == 0) {
                Some(destination) => {
                    self.aimed_at = Some((destination.parent.clone(), destination.name.clone()));
                    let (parts, queue) = mpsc::unbounded_channel();
                    let (flow, transfer) = (self.flow.clone(), self.transfer.clone());
                    let run = ship(self.env.clone(), destination, queue, flow, transfer);
                    let task = self.env.runtime.spawn(run);
                    self.uploader = Some(Uploader { parts: Some(parts), task });
                    self.tee = Tee::new(&self.env.space);
                }
                None if may_block => self.filling.put_aside(&self.env.spill_dir)?,
                None => return Ok(false),
            }
        }
        let Some(part) = self.freeze() else {
            return Err(self.too_large());
        };
        if let Some(parts) = self.uploader.as_ref().and_then(|uploader| uploader.parts.as_ref()) {
            // The uploader is gone only after a failure, which the flow tells.
            let _ = parts.send(part);
        }
        self.flow.check().map(|()| true)
    }

    /// Freezes the filling part.
    fn freeze(&mut self) -> Option<FrozenPart> {
        let number = self.number?;
        let filled = std::mem::take(&mut self.filling);
        let (offset, bytes) = (self.offset, filled.bytes());
        let frames: Arc<[_]> = filled.freeze().into();
        self.flow.hold(offset, frames.clone(), self.env.budget.is_roomy());
        self.offset += bytes;
        self.number = number.next();
        let part = FrozenPart { number, offset, bytes, frames };
        if let Some(tee) = &self.tee {
            tee.push(&part, &self.env.runtime);
        }
        Some(part)
    }

    /// A copy of everything that was written, where there is one or one can be made. Blocks for the local
    /// disk.
    pub fn copy(&self) -> Result<Option<Arc<Staged>>> {
        let copy = match &self.tee {
            _ if !self.has_shipped() => Staged::new(&self.env.space, None)?,
            Some(tee) => match tee.copy_of(self.offset) {
                Some(copy) => copy,
                None => return Ok(None),
            },
            None => return Ok(None),
        };
        let mut buffer = vec![0; COPIED_BYTES.min(self.frontier()) as usize];
        let mut at = if self.has_shipped() { self.offset } else { 0 };
        while at < self.frontier() {
            let count = buffer.len().min((self.frontier() - at) as usize);
            if self.read(at, &mut buffer[..count])? < count {
                return Ok(None);
            }
            copy.write(at, &buffer[..count])?;
            at += count as u64;
        }
        if copy.size() != self.size() {
            copy.truncate(self.size())?;
        }
        Ok(Some(copy))
    }

    /// Copies what was written from `offset` on into `out`: all of it, or as much as comes before something
    /// that has left and is not here any more.
    pub fn read(&self, mut offset: u64, out: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < out.len() && offset < self.frontier() {
            let count = if offset >= self.offset {
                self.filling.read(offset - self.offset, &mut out[done..])?
            } else {
                let room = (self.offset - offset).min((out.len() - done) as u64) as usize;
                read_left(&self.flow, self.tee.as_ref(), offset, &mut out[done..done + room])?
            };
            if count == 0 {
                break;
            }
            done += count;
            offset += count as u64;
        }
        Ok(done)
    }

    /// Everything that was written, for its commit. `base` is the content that the file has on the drive.
    pub fn finish(mut self, destination: Destination, base: Option<FileMeta>) -> Finish {
        let written = self.written(&destination).unwrap_or_else(Written::Lost);
        let Self { env, flow, tee, transfer, .. } = self;
        Finish { env, flow, tee, transfer, destination, base, written }
    }

    fn written(&mut self, destination: &Destination) -> Result<Written> {
        if self.gap(u64::MAX).is_some() {
            return Err(Error::new(
                ErrorKind::Io,
                "the end of a changed file was not read before its commit",
            ));
        }
        self.keep_promise(destination)?;
        let last = (self.filling.bytes() > 0 || self.uploader.is_none()).then(|| self.freeze()).flatten();
        match (self.uploader.take(), last) {
            (Some(uploader), last) => Ok(Written::Shipping { uploader, last, size: self.offset }),
            (None, Some(part)) if part.offset == 0 => Ok(Written::Whole(part)),
            (None, Some(_)) => {
                Err(Error::new(ErrorKind::NotFound, "the file was deleted while it was being written"))
            }
            (None, None) => Err(self.too_large()),
        }
    }

    /// Adds the zeros that a size was set for and nothing was written to.
    fn keep_promise(&mut self, destination: &Destination) -> Result<()> {
        let part_bytes = self.env.part_size.get();
        while self.frontier() < self.promised {
            let room = part_bytes - self.filling.bytes();
            self.filling.add_zeros(room.min(self.promised - self.frontier()));
            if self.filling.bytes() == part_bytes {
                self.ship(&|| Some(destination.clone()), true)?;
            }
        }
        Ok(())
    }
}

/// Reads what has left: from memory while it is held, else from the copy. Nothing where it is not here.
pub(super) fn read_left(flow: &Flow, tee: Option<&Tee>, offset: u64, out: &mut [u8]) -> Result<usize> {
    if let Some(count) = flow.read(offset, out)? {
        return Ok(count);
    }
    tee.map_or(Ok(0), |tee| tee.read(offset, out))
}
