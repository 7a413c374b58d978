//! Writing and cutting: what changes a content.

use std::sync::PoisonError;

use super::{Content, Inner, OpenFile, take_base};
use crate::content::finish::target;
use crate::content::part::ZEROS;
use crate::content::reader::ReadTarget;
use crate::content::shipper::Destination;
use crate::content::staged::{Staged, too_large};
use crate::content::streaming::{Appended, Streaming, Wait};
use crate::content::{Plan, Shape, plan_write};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::PartNumber;
use crate::pds::drive::FileMeta;
use crate::posix;

/// How a write went, as far as it did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrote {
    /// All of it, or as much as there was room for; the rest has to wait.
    Some(Appended),
    /// Nothing: a commit is under way.
    Committing,
    /// Nothing: what was streamed is not here any more, so it has to be committed first.
    MustSettle,
    /// Nothing: what shows from under the upload has to be run over first, up to where the write begins.
    MustRunOver {
        /// In the file.
        to: u64,
    },
}

/// What came of staging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Staging {
    /// The content takes any change now.
    Done,
    /// It has to be committed first; nothing has changed.
    MustSettle,
    /// Memory has to be waited for; nothing has changed.
    Wait,
}

/// Nothing was taken; the caller has to come again where the local disk may be used.
const NOT_HERE: Wrote = Wrote::Some(Appended { bytes: 0, wait: Some(Wait::Memory) });

impl OpenFile {
    pub(super) fn live(&self, name: &str) -> Streaming {
        Streaming::new(self.env.clone(), self.progress.begin(name))
    }

    /// Writes `data` at `offset`, as much as there is room for now. Never waits for the network, and
    /// only with `may_block` for the local disk.
    pub fn write(
        &self,
        offset: u64,
        data: &[u8],
        destination: &dyn Fn() -> Option<Destination>,
        may_block: bool,
    ) -> Result<Wrote> {
        let mut inner = self.lock();
        if data.is_empty() {
            return Ok(Wrote::Some(Appended { bytes: 0, wait: None }));
        }
        if let Content::Streaming { live, .. } = &mut inner.content
            && let Err(error) = live.flow().check()
        {
            if !self.is_orphan() {
                // Wherever the write goes: the failure stays until the file is cut to nothing.
                return Err(error);
            }
            live.abandon();
        }
        loop {
            match plan_write(self.shape(&inner.content), offset) {
                Plan::Resume | Plan::Stage | Plan::Copy if !may_block => return Ok(NOT_HERE),
                Plan::Start => self.start(&mut inner),
                Plan::Resume => {
                    if !self.resume(&mut inner)? {
                        return Ok(NOT_HERE);
                    }
                }
                Plan::Append => return append(&mut inner, data, destination, may_block),
                Plan::Patch => return patch(&mut inner, offset, data),
                Plan::Pad if has_gap(&inner.content, offset) => return Ok(Wrote::MustRunOver { to: offset }),
                Plan::Pad => {
                    let padded = pad(&mut inner, offset, destination, may_block)?;
                    if padded.wait.is_some() {
                        return Ok(Wrote::Some(padded));
                    }
                }
                Plan::Copy => return self.write_copy(&mut inner, offset, data),
                Plan::Stage => match self.stage(&mut inner)? {
                    Staging::Done => {}
                    Staging::MustSettle => return Ok(Wrote::MustSettle),
                    Staging::Wait => return Ok(NOT_HERE),
                },
                Plan::Wait => return Ok(Wrote::Committing),
                Plan::Refuse => return refuse(&inner.content),
            }
        }
    }

    /// Takes a live upload back to a local copy, where one can be had: the file is about to be removed
    /// from the drive, and its upload would end with it. Blocks for the local disk.
    pub fn take_back(&self) {
        let mut inner = self.lock();
        if matches!(inner.content, Content::Streaming { .. })
            && let Err(error) = self.stage(&mut inner)
        {
            tracing::debug!(%error, "a file that is being removed goes on without a local copy");
        }
    }

    fn shape(&self, content: &Content) -> Shape {
        match content {
            Content::New => Shape::New,
            Content::Clean { base, held } => Shape::Clean { size: base.size, resumable: held.is_some() },
            Content::Streaming { live, .. } => Shape::Streaming {
                here_from: live.here_from(),
                frontier: live.frontier(),
                pad_max: if self.env.space.is_off() { u64::MAX } else { self.env.part_size.get() },
            },
            Content::Staged { .. } | Content::Local(_) => Shape::Staged,
            Content::Committing { .. } => Shape::Committing,
            Content::Failed { .. } => Shape::Failed,
        }
    }

    fn start(&self, inner: &mut Inner) {
        let live = self.live(&inner.name);
        let base = take_base(&mut inner.content);
        inner.content = Content::Streaming { live, base };
    }

    /// Makes a committed file that is still here a live upload again. `false`, and nothing has changed,
    /// where memory has to be waited for.
    fn resume(&self, inner: &mut Inner) -> Result<bool> {
        let mut live = self.live(&inner.name);
        if let Content::Clean { held: Some(bytes), .. } = &inner.content
            && !live.begin_with(bytes)?
        {
            live.transfer().withdrawn();
            return Ok(false);
        }
        let base = take_base(&mut inner.content);
        inner.content = Content::Streaming { live, base };
        Ok(true)
    }

    /// Appends bytes `at..` of what shows from under an upload, as far as nobody has written there meanwhile.
    pub fn run_over(
        &self,
        target: &ReadTarget,
        at: u64,
        data: &[u8],
        destination: &dyn Fn() -> Option<Destination>,
    ) -> Result<Wrote> {
        let mut inner = self.lock();
        let end = at + data.len() as u64;
        let Content::Streaming { live, .. } = &mut inner.content else {
            return Ok(Wrote::Some(Appended { bytes: data.len(), wait: None }));
        };
        match live.gap(end) {
            Some((of, start, bytes)) if start >= at && of == *target => {
                let skipped = (start - at) as usize;
                let appended = live.append(&data[skipped..skipped + bytes as usize], destination, true)?;
                Ok(Wrote::Some(Appended { bytes: skipped + appended.bytes, ..appended }))
            }
            // It was cut, or written, or is another upload by now.
            _ => Ok(Wrote::Some(Appended { bytes: data.len(), wait: None })),
        }
    }

    /// Makes a content that is not written front to back one that takes it: a staged copy, or (where there
    /// shall be none) an upload over what it was.
    fn stage(&self, inner: &mut Inner) -> Result<Staging> {
        let space = &self.env.space;
        if matches!(inner.content, Content::Staged { .. }) {
            return Ok(Staging::Done);
        }
        if space.is_off() {
            return self.stream_over(inner);
        }
        let copy = match &inner.content {
            Content::Clean { held: Some(bytes), .. } => {
                let copy = Staged::new(space, None)?;
                copy.write(0, bytes)?;
                copy
            }
            Content::Clean { base, held: None } => match space.kept().take(&target(base)) {
                Some(copy) => copy,
                None => Staged::new(space, Some(target(base)))?,
            },
            Content::Streaming { live, .. } => match live.copy()? {
                Some(copy) => copy,
                None if self.is_orphan() => {
                    let detail = "a deleted file that was streamed can only be written on at its end";
                    return Err(Error::new(ErrorKind::Unsupported, detail));
                }
                None => return Ok(Staging::MustSettle),
            },
            _ => Staged::new(space, None)?,
        };
        let base = take_base(&mut inner.content);
        inner.content = Content::Staged { copy, base };
        Ok(Staging::Done)
    }

    /// Makes a content an upload that goes over it from the beginning.
    fn stream_over(&self, inner: &mut Inner) -> Result<Staging> {
        let live = match &inner.content {
            Content::Clean { held: Some(_), .. } => {
                return Ok(if self.resume(inner)? { Staging::Done } else { Staging::Wait });
            }
            Content::Clean { base, held: None } => {
                Streaming::over(self.env.clone(), self.progress.begin(&inner.name), target(base))
            }
            Content::Streaming { .. } if self.is_orphan() => {
                let detail = "a deleted file that was streamed can only be written on at its end";
                return Err(Error::new(ErrorKind::Unsupported, detail));
            }
            Content::Streaming { .. } => return Ok(Staging::MustSettle),
            _ => self.live(&inner.name),
        };
        let base = take_base(&mut inner.content);
        inner.content = Content::Streaming { live, base };
        Ok(Staging::Done)
    }

    /// Makes the content, as far as it is `from` bytes of `source` or nothing, that of `source` up to `to`.
    /// `false`, and nothing has changed, where it is anything else.
    pub fn clone_range(&self, source: &FileMeta, from: u64, to: u64) -> Result<bool> {
        if self.env.space.is_off() {
            // Where the drive should not take it so, there would be no room to fetch it.
            return Ok(false);
        }
        let (mut inner, source) = (self.lock(), target(source));
        let is_ready = match &inner.content {
            Content::Staged { copy, .. } if from > 0 => copy.clone_of() == Some((source.clone(), from)),
            Content::Committing { .. } | Content::Failed { .. } | Content::Local(_) => false,
            content => from == 0 && content.bytes() == 0,
        };
        if !is_ready {
            return Ok(false);
        }
        let copy = Staged::new(&self.env.space, Some(source.clone()))?;
        copy.truncate(to)?;
        *self.cloned.lock().unwrap_or_else(PoisonError::into_inner) = Some(source.file_id);
        let base = take_base(&mut inner.content);
        inner.content = Content::Staged { copy, base };
        inner.mtime = posix::now();
        Ok(true)
    }

    fn write_copy(&self, inner: &mut Inner, offset: u64, data: &[u8]) -> Result<Wrote> {
        let bytes_max = self.env.part_size.get() * u64::from(PartNumber::MAX);
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > bytes_max) {
            return Err(Error::new(ErrorKind::TooLarge, too_large(self.env.part_size)));
        }
        match &mut inner.content {
            Content::Staged { copy, .. } => {
                copy.write(offset, data)?;
                self.progress.wrote(data.len() as u64);
            }
            Content::Local(local) => local.write(offset, data)?,
            _ => return Ok(Wrote::Committing),
        }
        inner.mtime = posix::now();
        Ok(Wrote::Some(Appended { bytes: data.len(), wait: None }))
    }

    /// Cuts the content to `size`, or lets it grow by zeros. Blocks for the local disk.
    pub fn truncate(&self, size: u64) -> Result<Wrote> {
        const DONE: Wrote = Wrote::Some(Appended { bytes: 0, wait: None });
        let bytes_max = self.env.part_size.get() * u64::from(PartNumber::MAX);
        if size > bytes_max {
            return Err(Error::new(ErrorKind::TooLarge, too_large(self.env.part_size)));
        }
        let mut inner = self.lock();
        match &inner.content {
            Content::Committing { .. } => return Ok(Wrote::Committing),
            Content::Failed { error, .. } if size != 0 => return Err(error.clone()),
            Content::Local(_) => {}
            // A new beginning is what a failed file needs.
            Content::Failed { .. } => self.start(&mut inner),
            content if content.bytes() == size => return Ok(DONE),
            _ if size == 0 => self.start(&mut inner),
            _ => match self.set_size(&mut inner, size)? {
                Staging::Done => {}
                Staging::MustSettle => return Ok(Wrote::MustSettle),
                Staging::Wait => return Ok(NOT_HERE),
            },
        }
        if let Content::Local(local) = &mut inner.content {
            local.truncate(size)?;
        }
        inner.mtime = posix::now();
        Ok(DONE)
    }

    fn set_size(&self, inner: &mut Inner, size: u64) -> Result<Staging> {
        if matches!(inner.content, Content::New) {
            self.start(inner);
        }
        if let Content::Streaming { live, .. } = &mut inner.content
            && live.flow().check().and_then(|()| live.set_size(size))?
        {
            return Ok(Staging::Done);
        }
        let staging = self.stage(inner)?;
        if staging == Staging::Done {
            match &mut inner.content {
                Content::Staged { copy, .. } => copy.truncate(size)?,
                Content::Streaming { live, .. } => {
                    live.set_size(size)?;
                }
                _ => {}
            }
        }
        Ok(staging)
    }

    /// Makes zeros of a stretch, as far as the content reaches. Blocks for the local disk. Only where there
    /// may be copies.
    pub fn punch(&self, offset: u64, len: u64) -> Result<Wrote> {
        let mut inner = self.lock();
        match &inner.content {
            Content::Committing { .. } => return Ok(Wrote::Committing),
            Content::Failed { error, .. } => return Err(error.clone()),
            _ => {}
        }
        if !matches!(inner.content, Content::Local(_)) && self.stage(&mut inner)? != Staging::Done {
            return Ok(Wrote::MustSettle);
        }
        match &mut inner.content {
            Content::Staged { copy, .. } => copy.punch(offset, len)?,
            Content::Local(local) => local.punch(offset, len)?,
            _ => {}
        }
        inner.mtime = posix::now();
        Ok(Wrote::Some(Appended { bytes: 0, wait: None }))
    }
}

/// Whether something that shows from under an upload comes before `offset`.
fn has_gap(content: &Content, offset: u64) -> bool {
    matches!(content, Content::Streaming { live, .. } if live.gap(offset).is_some())
}

fn append(
    inner: &mut Inner,
    data: &[u8],
    destination: &dyn Fn() -> Option<Destination>,
    may_block: bool,
) -> Result<Wrote> {
    let Content::Streaming { live, .. } = &mut inner.content else {
        return Ok(Wrote::Committing);
    };
    let appended = live.append(data, destination, may_block)?;
    if appended.bytes > 0 {
        inner.mtime = posix::now();
    }
    Ok(Wrote::Some(appended))
}

/// Changes what has not left yet; what lies beyond it is for the next call.
fn patch(inner: &mut Inner, offset: u64, data: &[u8]) -> Result<Wrote> {
    let Content::Streaming { live, .. } = &mut inner.content else {
        return Ok(Wrote::Committing);
    };
    let bytes = live.patch(offset, data)?;
    inner.mtime = posix::now();
    Ok(Wrote::Some(Appended { bytes, wait: None }))
}

/// Streams zeros up to `offset`, as many as there is room for.
fn pad(
    inner: &mut Inner,
    offset: u64,
    destination: &dyn Fn() -> Option<Destination>,
    may_block: bool,
) -> Result<Appended> {
    let Content::Streaming { live, .. } = &mut inner.content else {
        return Ok(Appended { bytes: 0, wait: Some(Wait::Commit) });
    };
    while live.frontier() < offset {
        let zeros = &ZEROS[..ZEROS.len().min((offset - live.frontier()) as usize)];
        let appended = live.append(zeros, destination, may_block)?;
        if let Some(wait) = appended.wait {
            return Ok(Appended { bytes: 0, wait: Some(wait) });
        }
    }
    Ok(Appended { bytes: 0, wait: None })
}

fn refuse(content: &Content) -> Result<Wrote> {
    match content {
        Content::Failed { error, .. } => Err(error.clone()),
        _ => Ok(Wrote::Committing),
    }
}
