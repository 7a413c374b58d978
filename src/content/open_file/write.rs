//! Writes to an open file, and its size changes.
//!
//! Nothing here waits for the network. If an operation has to wait, it returns the reason, and the caller
//! waits and calls again.

use super::content::{Content, OpenFileState, Writer};
use super::file::OpenFile;
use crate::clock;
use crate::content::commit_target::CommitTarget;
use crate::content::part::{too_large, too_sparse};
use crate::content::reader::ReadTarget;
use crate::content::staged_file::StagedFile;
use crate::content::streaming::{Appended, Streaming, Wait};
use crate::content::write_plan::{ContentState, WritePlan, plan_write};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::PartNumber;
use crate::pds::drive::FileMeta;

/// The outcome of a write that did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteOutcome {
    /// Accepted completely, or as far as there was room.
    Accepted(Appended),
    /// Nothing was written: a commit is running.
    Committing,
    /// Nothing was written: sent bytes are no longer on this machine, so the file must be committed first.
    MustCommit,
    /// Nothing was written: the stream must be back-filled up to offset `to` first.
    MustBackfill { to: u64 },
}

/// The place of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteAt {
    Offset(u64),
    /// The end of the file at the moment of the write, as with `O_APPEND`.
    End,
}

impl WriteAt {
    /// The place of the rest of a write, after its first `bytes`.
    pub fn after(self, bytes: usize) -> Self {
        match self {
            Self::Offset(offset) => Self::Offset(offset + bytes as u64),
            Self::End => Self::End,
        }
    }
}

/// The outcome of staging a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Staging {
    /// The content takes any write now.
    Done,
    /// Nothing has changed: the file must be committed first.
    MustCommit,
    /// Nothing has changed: there is no memory now.
    Wait,
}

/// Nothing was written: the caller calls again where it may block for the local disk.
const RETRY_BLOCKING: WriteOutcome = WriteOutcome::Accepted(Appended { bytes: 0, wait: Some(Wait::Memory) });

impl OpenFile {
    /// Writes `data`, as far as there is room now. Never waits for the network. Blocks for the local disk
    /// only with `may_block`.
    pub fn write(
        &self,
        at: WriteAt,
        data: &[u8],
        writer: Writer,
        resolve_target: &dyn Fn() -> Option<CommitTarget>,
        may_block: bool,
    ) -> Result<WriteOutcome> {
        let mut state = self.lock();
        if data.is_empty() {
            return Ok(WriteOutcome::Accepted(Appended { bytes: 0, wait: None }));
        }
        let offset = match at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End => state.content.bytes(),
        };
        let outcome = self.write_locked(&mut state, offset, data, resolve_target, may_block)?;
        if matches!(outcome, WriteOutcome::Accepted(appended) if appended.bytes > 0) {
            state.note_change(writer);
        }
        Ok(outcome)
    }

    fn write_locked(
        &self,
        state: &mut OpenFileState,
        offset: u64,
        data: &[u8],
        resolve_target: &dyn Fn() -> Option<CommitTarget>,
        may_block: bool,
    ) -> Result<WriteOutcome> {
        if let Content::Streaming { stream, .. } = &mut state.content
            && let Err(error) = stream.in_flight().check()
        {
            if !self.is_unlinked() {
                // At any offset: the failure is sticky until the file is truncated to nothing.
                return Err(error);
            }
            stream.abandon();
        }
        loop {
            match plan_write(self.content_state(&state.content), offset) {
                WritePlan::ResumeStream | WritePlan::Stage | WritePlan::WriteStaged if !may_block => {
                    return Ok(RETRY_BLOCKING);
                }
                WritePlan::StartStream => self.start_stream(state),
                WritePlan::ResumeStream => {
                    if !self.resume_stream(state)? {
                        return Ok(RETRY_BLOCKING);
                    }
                }
                WritePlan::Append => return append(state, data, resolve_target, may_block),
                WritePlan::PatchTail => return patch_tail(state, offset, data),
                WritePlan::ZeroFill if needs_backfill(&state.content, offset) => {
                    return Ok(WriteOutcome::MustBackfill { to: offset });
                }
                WritePlan::ZeroFill => {
                    let filled = zero_fill(state, offset, resolve_target, may_block)?;
                    if filled.wait.is_some() {
                        return Ok(WriteOutcome::Accepted(filled));
                    }
                }
                WritePlan::WriteStaged => return self.write_staged(state, offset, data),
                WritePlan::Stage => match self.stage(state)? {
                    Staging::Done => {}
                    Staging::MustCommit => return Ok(WriteOutcome::MustCommit),
                    Staging::Wait => return Ok(RETRY_BLOCKING),
                },
                WritePlan::AwaitCommit => return Ok(WriteOutcome::Committing),
                WritePlan::ReportFailure => return report_failure(&state.content),
            }
        }
    }

    /// Stages a stream before its file is removed from the drive, which ends the upload. Without a staged
    /// file the stream goes on and fails. Blocks for the local disk.
    pub fn stage_for_unlink(&self) {
        let mut state = self.lock();
        if matches!(state.content, Content::Streaming { .. })
            && let Err(error) = self.stage(&mut state)
        {
            tracing::debug!(%error, "cannot stage a stream before its file is removed");
        }
    }

    fn content_state(&self, content: &Content) -> ContentState {
        match content {
            Content::New => ContentState::New,
            Content::Clean { base, retained } => {
                ContentState::Clean { size: base.size, resumable: retained.is_some() }
            }
            Content::Streaming { stream, .. } => ContentState::Streaming {
                patchable_from: stream.patchable_from(),
                frontier: stream.frontier(),
                // Without staged files, a longer gap is refused when it is appended.
                zero_fill_max: if self.context.quota.is_disabled() {
                    u64::MAX
                } else {
                    self.context.part_size.get().min(stream.gap_bytes_max())
                },
            },
            Content::Staged { .. } | Content::Local(_) => ContentState::Staged,
            Content::Committing { .. } => ContentState::Committing,
            Content::Failed { .. } => ContentState::Failed,
        }
    }

    fn start_stream(&self, state: &mut OpenFileState) {
        let stream = self.new_stream(&state.name);
        let basis = state.content.take_basis().truncated();
        state.content = Content::Streaming { stream, basis };
    }

    /// Makes a clean file with retained content a stream again. Returns `false` and changes nothing if there
    /// is no memory now.
    fn resume_stream(&self, state: &mut OpenFileState) -> Result<bool> {
        let mut stream = self.new_stream(&state.name);
        if let Content::Clean { retained: Some(bytes), .. } = &state.content
            && !stream.preload(bytes)?
        {
            stream.transfer().withdrawn();
            return Ok(false);
        }
        let basis = state.content.take_basis();
        state.content = Content::Streaming { stream, basis };
        Ok(true)
    }

    /// Appends bytes of `base` from offset `at`. Ranges that were written or truncated since are skipped.
    pub fn backfill(
        &self,
        base: &ReadTarget,
        at: u64,
        data: &[u8],
        resolve_target: &dyn Fn() -> Option<CommitTarget>,
    ) -> Result<WriteOutcome> {
        let skip_all = Ok(WriteOutcome::Accepted(Appended { bytes: data.len(), wait: None }));
        let mut state = self.lock();
        let end = at + data.len() as u64;
        let Content::Streaming { stream, .. } = &mut state.content else {
            return skip_all;
        };
        match stream.next_backfill(end) {
            Some((of, start, bytes)) if start >= at && of == *base => {
                let skipped = (start - at) as usize;
                let appended =
                    stream.append(&data[skipped..skipped + bytes as usize], resolve_target, true)?;
                Ok(WriteOutcome::Accepted(Appended { bytes: skipped + appended.bytes, ..appended }))
            }
            // Truncated, written, or another stream by now.
            _ => skip_all,
        }
    }

    /// Stages the content, so that it takes writes in any order. If staged files are disabled, starts a
    /// stream over the base instead.
    fn stage(&self, state: &mut OpenFileState) -> Result<Staging> {
        let quota = &self.context.quota;
        if matches!(state.content, Content::Staged { .. }) {
            return Ok(Staging::Done);
        }
        if quota.is_disabled() {
            return self.stream_over_base(state);
        }
        let staged = match &state.content {
            Content::Clean { retained: Some(bytes), .. } => {
                let staged = StagedFile::new(quota, None)?;
                staged.write(0, bytes)?;
                staged
            }
            Content::Clean { base, retained: None } => {
                match self.context.cached_files.remove(&ReadTarget::of(base)) {
                    Some(staged) => staged,
                    None => StagedFile::new(quota, Some(ReadTarget::of(base)))?,
                }
            }
            Content::Streaming { stream, .. } => match stream.to_staged()? {
                Some(staged) => staged,
                None if self.is_unlinked() => return Err(append_only_after_unlink()),
                None => return Ok(Staging::MustCommit),
            },
            _ => StagedFile::new(quota, None)?,
        };
        let basis = state.content.take_basis();
        state.content = Content::Staged { staged, basis };
        Ok(Staging::Done)
    }

    /// Starts a stream that begins at offset 0 over the base.
    fn stream_over_base(&self, state: &mut OpenFileState) -> Result<Staging> {
        let stream = match &state.content {
            Content::Clean { retained: Some(_), .. } => {
                return Ok(if self.resume_stream(state)? { Staging::Done } else { Staging::Wait });
            }
            Content::Clean { base, retained: None } => {
                let transfer = self.progress.begin(&state.name);
                Streaming::over_base(self.context.clone(), transfer, ReadTarget::of(base))
            }
            Content::Streaming { .. } if self.is_unlinked() => return Err(append_only_after_unlink()),
            Content::Streaming { .. } => return Ok(Staging::MustCommit),
            _ => self.new_stream(&state.name),
        };
        let basis = state.content.take_basis();
        state.content = Content::Streaming { stream, basis };
        Ok(Staging::Done)
    }

    /// Extends a clone of the first `from` bytes of `source` to `to` bytes. An empty file is a clone of no
    /// bytes. Returns `false` and changes nothing if the content is anything else.
    pub fn clone_range(&self, source: &FileMeta, from: u64, to: u64, writer: Writer) -> Result<bool> {
        if self.context.quota.is_disabled() {
            // If the drive refused the instant upload, there would be no space to fetch the bytes.
            return Ok(false);
        }
        let (mut state, source) = (self.lock(), ReadTarget::of(source));
        let is_ready = match &state.content {
            Content::Staged { staged, .. } if from > 0 => {
                staged.clone_source() == Some((source.clone(), from))
            }
            Content::Committing { .. } | Content::Failed { .. } | Content::Local(_) => false,
            content => from == 0 && content.bytes() == 0,
        };
        if !is_ready {
            return Ok(false);
        }
        let staged = StagedFile::new(&self.context.quota, Some(source.clone()))?;
        staged.truncate(to)?;
        self.set_cloned_from(source.file_id);
        let basis = state.content.take_basis();
        state.content = Content::Staged { staged, basis };
        state.mtime = clock::now();
        state.note_change(writer);
        Ok(true)
    }

    fn write_staged(&self, state: &mut OpenFileState, offset: u64, data: &[u8]) -> Result<WriteOutcome> {
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > self.bytes_max()) {
            return Err(too_large(self.context.part_size));
        }
        match &mut state.content {
            Content::Staged { staged, .. } => {
                staged.write(offset, data)?;
                self.progress.wrote(data.len() as u64);
            }
            Content::Local(local) => local.write(offset, data)?,
            _ => return Ok(WriteOutcome::Committing),
        }
        state.mtime = clock::now();
        Ok(WriteOutcome::Accepted(Appended { bytes: data.len(), wait: None }))
    }

    /// The largest file that all part numbers can carry.
    fn bytes_max(&self) -> u64 {
        self.context.part_size.get() * u64::from(PartNumber::MAX)
    }

    /// Sets the size: truncates, or extends with zeros. `TooLarge` for an extension that no commit would send.
    /// Blocks for the local disk. A truncation without a handle has no writer.
    pub fn truncate(&self, size: u64, writer: Option<Writer>) -> Result<WriteOutcome> {
        let state = self.lock();
        let is_committed = !matches!(state.content, Content::Local(_) | Content::Committing { .. });
        let zeros = size.saturating_sub(state.content.bytes());
        drop(state);
        if is_committed && !self.is_unlinked() && zeros > self.context.zero_fill_max {
            return Err(too_sparse(zeros, self.context.zero_fill_max));
        }
        self.set_size(size, writer)
    }

    /// Sets the size without a bound on zeros: the program is going to write there.
    pub fn set_size(&self, size: u64, writer: Option<Writer>) -> Result<WriteOutcome> {
        const DONE: WriteOutcome = WriteOutcome::Accepted(Appended { bytes: 0, wait: None });
        if size > self.bytes_max() {
            return Err(too_large(self.context.part_size));
        }
        let mut state = self.lock();
        match &state.content {
            Content::Committing { .. } => return Ok(WriteOutcome::Committing),
            Content::Failed { error, .. } if size != 0 => return Err(error.clone()),
            Content::Local(_) => {}
            // A truncation to nothing clears the failure.
            Content::Failed { .. } => self.start_stream(&mut state),
            content if content.bytes() == size => return Ok(DONE),
            _ if size == 0 => self.start_stream(&mut state),
            _ => match self.resize(&mut state, size)? {
                Staging::Done => {}
                Staging::MustCommit => return Ok(WriteOutcome::MustCommit),
                Staging::Wait => return Ok(RETRY_BLOCKING),
            },
        }
        if let Content::Local(local) = &mut state.content {
            local.truncate(size)?;
        }
        state.mtime = clock::now();
        if let Some(writer) = writer {
            state.note_change(writer);
        }
        Ok(DONE)
    }

    fn resize(&self, state: &mut OpenFileState, size: u64) -> Result<Staging> {
        if matches!(state.content, Content::New) {
            self.start_stream(state);
        }
        if let Content::Streaming { stream, .. } = &mut state.content
            && stream.in_flight().check().and_then(|()| stream.set_size(size))?
        {
            return Ok(Staging::Done);
        }
        let staging = self.stage(state)?;
        if staging == Staging::Done {
            match &mut state.content {
                Content::Staged { staged, .. } => staged.truncate(size)?,
                Content::Streaming { stream, .. } => {
                    stream.set_size(size)?;
                }
                _ => {}
            }
        }
        Ok(staging)
    }

    /// Zeroes a range, as far as the content reaches. Only if staged files are enabled. Blocks for the
    /// local disk.
    pub fn punch(&self, offset: u64, len: u64, writer: Writer) -> Result<WriteOutcome> {
        let mut state = self.lock();
        match &state.content {
            Content::Committing { .. } => return Ok(WriteOutcome::Committing),
            Content::Failed { error, .. } => return Err(error.clone()),
            _ => {}
        }
        if !matches!(state.content, Content::Local(_)) && self.stage(&mut state)? != Staging::Done {
            return Ok(WriteOutcome::MustCommit);
        }
        match &mut state.content {
            Content::Staged { staged, .. } => staged.punch(offset, len)?,
            Content::Local(local) => local.punch(offset, len)?,
            _ => {}
        }
        state.mtime = clock::now();
        state.note_change(writer);
        Ok(WriteOutcome::Accepted(Appended { bytes: 0, wait: None }))
    }
}

fn append_only_after_unlink() -> Error {
    let detail = "a deleted file that was streamed accepts only writes at its end";
    Error::new(ErrorKind::Unsupported, detail)
}

/// Whether a range of the base comes before `offset`.
fn needs_backfill(content: &Content, offset: u64) -> bool {
    matches!(content, Content::Streaming { stream, .. } if stream.next_backfill(offset).is_some())
}

fn append(
    state: &mut OpenFileState,
    data: &[u8],
    resolve_target: &dyn Fn() -> Option<CommitTarget>,
    may_block: bool,
) -> Result<WriteOutcome> {
    let Content::Streaming { stream, .. } = &mut state.content else {
        return Ok(WriteOutcome::Committing);
    };
    let appended = stream.append(data, resolve_target, may_block)?;
    if appended.bytes > 0 {
        state.mtime = clock::now();
    }
    Ok(WriteOutcome::Accepted(appended))
}

/// Overwrites bytes of the filling part. Bytes beyond it are for the next call.
fn patch_tail(state: &mut OpenFileState, offset: u64, data: &[u8]) -> Result<WriteOutcome> {
    let Content::Streaming { stream, .. } = &mut state.content else {
        return Ok(WriteOutcome::Committing);
    };
    let bytes = stream.patch(offset, data)?;
    state.mtime = clock::now();
    Ok(WriteOutcome::Accepted(Appended { bytes, wait: None }))
}

/// Appends zeros up to `offset`, as far as there is room.
fn zero_fill(
    state: &mut OpenFileState,
    offset: u64,
    resolve_target: &dyn Fn() -> Option<CommitTarget>,
    may_block: bool,
) -> Result<Appended> {
    let Content::Streaming { stream, .. } = &mut state.content else {
        return Ok(Appended { bytes: 0, wait: Some(Wait::Commit) });
    };
    let wait = stream.append_gap(offset, resolve_target, may_block)?;
    Ok(Appended { bytes: 0, wait })
}

fn report_failure(content: &Content) -> Result<WriteOutcome> {
    match content {
        Content::Failed { error, .. } => Err(error.clone()),
        _ => Ok(WriteOutcome::Committing),
    }
}
