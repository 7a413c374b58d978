//! Writes to an open file, and its size changes.
//!
//! Nothing here waits for the network or the local disk. If an operation has to wait, it returns the reason, and
//! the caller waits and calls again. Changes on the local disk are in `disk`.

use std::sync::Arc;

use super::content::{Content, OpenFileState, Writer};
use super::disk::{ChangeKind, DiskChange, DiskTurn, append_only_after_unlink};
use super::file::OpenFile;
use crate::content::commit_target::CommitTarget;
use crate::content::local_content::ChangePlace;
use crate::content::part::{Blocked, too_large, too_sparse};
use crate::content::reader::ReadTarget;
use crate::content::staged_file::StagedFile;
use crate::content::streaming::{Appended, Streaming, Wait};
use crate::content::write_plan::{ContentState, WriteAt, WritePlan, plan_write};
use crate::error::Result;
use crate::ids::PartNumber;

/// The outcome of a write that did not fail.
#[derive(Debug)]
pub enum WriteOutcome {
    /// Accepted completely, or as far as there was room.
    Accepted(Appended),
    /// Nothing was written: a commit is running.
    Committing,
    /// Nothing was written: sent bytes are no longer on this machine, so the file must be committed first.
    MustCommit,
    /// Nothing was written: the stream must be back-filled up to offset `to` first.
    MustBackfill { to: u64 },
    /// Nothing was written: the caller runs this change on the local disk, or drops it.
    Disk(DiskChange),
    /// Nothing was written: another change on the local disk is running.
    DiskBusy,
}

impl WriteOutcome {
    /// Records the writer of a change that still has to be made.
    fn by(self, writer: Writer) -> Self {
        match self {
            Self::Disk(change) => Self::Disk(change.by(writer)),
            done => done,
        }
    }
}

/// The preparation of a file for any write.
enum Staging {
    /// The content takes any write now.
    Done,
    /// Nothing has changed yet.
    Blocked(WriteOutcome),
}

impl OpenFile {
    /// Writes `data`, as far as there is room now.
    pub fn write(
        self: &Arc<Self>,
        at: WriteAt,
        data: &[u8],
        writer: Writer,
        resolve_target: &dyn Fn() -> Option<CommitTarget>,
    ) -> Result<WriteOutcome> {
        let mut state = self.lock();
        if data.is_empty() {
            return Ok(accepted(0, None));
        }
        if state.is_disk_busy {
            return Ok(WriteOutcome::DiskBusy);
        }
        self.check_has_committer(&state.content)?;
        let offset = match at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End => state.content.bytes(),
        };
        let outcome = self.write_locked(&mut state, offset, data, resolve_target)?;
        if matches!(outcome, WriteOutcome::Accepted(appended) if appended.bytes > 0) {
            state.note_change(writer);
        }
        Ok(outcome.by(writer))
    }

    fn write_locked(
        self: &Arc<Self>,
        state: &mut OpenFileState,
        offset: u64,
        data: &[u8],
        resolve_target: &dyn Fn() -> Option<CommitTarget>,
    ) -> Result<WriteOutcome> {
        if let Content::Streaming { stream, .. } = &mut state.content
            && let Err(error) = stream.in_flight().check()
            && !self.context.stages_all()
        {
            if !self.is_unlinked() {
                // At any offset: the failure is sticky until the file is truncated to nothing.
                return Err(error);
            }
            stream.abandon();
        }
        loop {
            match self.plan(&state.content, offset) {
                WritePlan::StartStream => self.start_stream(state),
                WritePlan::ResumeStream => match self.resume_stream(state) {
                    None => {}
                    Some(Blocked::Memory) => return Ok(accepted(0, Some(Wait::Memory))),
                    Some(Blocked::Spill) => match self.stage(state)? {
                        Staging::Done => {}
                        Staging::Blocked(outcome) => return Ok(outcome),
                    },
                },
                WritePlan::Append => {
                    let appended = match append(state, data, resolve_target) {
                        // The first refusal of an upload without a size. Nothing was appended.
                        Err(_) if self.context.stages_all() => continue,
                        appended => appended?,
                    };
                    return Ok(self.spill_if_needed(state, appended, ChangeKind::Spill(0..data.len())));
                }
                WritePlan::PatchTail => return Ok(self.patch_tail(state, offset, data)),
                WritePlan::ZeroFill if state.content.needs_backfill(offset) => {
                    return Ok(WriteOutcome::MustBackfill { to: offset });
                }
                WritePlan::ZeroFill => {
                    let (filled, left) = match zero_fill(state, offset, resolve_target) {
                        Err(_) if self.context.stages_all() => continue,
                        filled => filled?,
                    };
                    if filled.wait.is_some() {
                        return Ok(self.spill_if_needed(state, filled, ChangeKind::SpillZeros(left)));
                    }
                }
                WritePlan::WriteStaged => return self.write_staged(state, offset, data),
                WritePlan::Stage => match self.stage(state)? {
                    Staging::Done => {}
                    Staging::Blocked(outcome) => return Ok(outcome),
                },
                WritePlan::AwaitCommit => return Ok(WriteOutcome::Committing),
                WritePlan::ReportFailure => return report_failure(&state.content),
            }
        }
    }

    /// A change on the local disk, which becomes the running one. The caller has seen that there is none.
    pub(super) fn begin_change(
        self: &Arc<Self>,
        state: &mut OpenFileState,
        kind: ChangeKind,
    ) -> WriteOutcome {
        WriteOutcome::Disk(DiskChange::new(DiskTurn::take(self, state), kind))
    }

    /// The outcome of an append: the bytes, or `spill` if none was appended because memory is used up.
    fn spill_if_needed(
        self: &Arc<Self>,
        state: &mut OpenFileState,
        appended: Appended,
        spill: ChangeKind,
    ) -> WriteOutcome {
        match appended {
            Appended { bytes: 0, wait: Some(Wait::Spill) } => self.begin_change(state, spill),
            appended => WriteOutcome::Accepted(appended),
        }
    }

    fn plan(&self, content: &Content, offset: u64) -> WritePlan {
        let plan = plan_write(self.content_state(content), offset);
        if self.context.stages_all() { plan.staged() } else { plan }
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

    /// Makes a clean file with retained content a stream again. If there is no memory now, changes nothing and
    /// returns the reason.
    fn resume_stream(&self, state: &mut OpenFileState) -> Option<Blocked> {
        let mut stream = self.new_stream(&state.name);
        if let Content::Clean { retained: Some(bytes), .. } = &state.content
            && let Some(blocked) = stream.preload(bytes)
        {
            stream.transfer().withdrawn();
            return Some(blocked);
        }
        let basis = state.content.take_basis();
        state.content = Content::Streaming { stream, basis };
        None
    }

    /// Appends bytes of `base` from offset `at`. Ranges that were written or truncated since are skipped.
    pub fn backfill(
        self: &Arc<Self>,
        base: &ReadTarget,
        at: u64,
        data: &[u8],
        resolve_target: &dyn Fn() -> Option<CommitTarget>,
    ) -> Result<WriteOutcome> {
        let skip_all = Ok(accepted(data.len(), None));
        let mut state = self.lock();
        if state.is_disk_busy {
            return Ok(WriteOutcome::DiskBusy);
        }
        let end = at + data.len() as u64;
        let Content::Streaming { stream, .. } = &mut state.content else {
            return skip_all;
        };
        match stream.next_backfill(end) {
            Some((of, start, bytes)) if start >= at && of == *base => {
                let skip = (start - at) as usize;
                let range = skip..skip + bytes as usize;
                match stream.append(&data[range.clone()], resolve_target)? {
                    Appended { bytes: 0, wait: Some(Wait::Spill) } => {
                        Ok(self.begin_change(&mut state, ChangeKind::Spill(range)))
                    }
                    Appended { bytes, wait } => Ok(accepted(skip + bytes, wait)),
                }
            }
            // Truncated, written, or another stream by now.
            _ => skip_all,
        }
    }

    /// Stages the content, so that it takes writes in any order: a change on the local disk. If staged files are
    /// disabled, starts a stream over the base instead.
    fn stage(self: &Arc<Self>, state: &mut OpenFileState) -> Result<Staging> {
        if matches!(state.content, Content::Staged { .. }) {
            return Ok(Staging::Done);
        }
        if self.context.quota.is_disabled() {
            return self.stream_over_base(state);
        }
        if let Content::Streaming { stream, .. } = &state.content
            && stream.has_sent_parts()
            && stream.tee().is_none()
        {
            return self.must_commit();
        }
        Ok(Staging::Blocked(self.begin_change(state, ChangeKind::Stage)))
    }

    /// Sent bytes are no longer on this machine.
    fn must_commit(&self) -> Result<Staging> {
        if self.is_unlinked() {
            return Err(append_only_after_unlink());
        }
        Ok(Staging::Blocked(WriteOutcome::MustCommit))
    }

    /// Starts a stream that begins at offset 0 over the base.
    fn stream_over_base(&self, state: &mut OpenFileState) -> Result<Staging> {
        if matches!(state.content, Content::Clean { retained: Some(_), .. }) {
            match self.resume_stream(state) {
                None => return Ok(Staging::Done),
                Some(Blocked::Memory) => return Ok(Staging::Blocked(accepted(0, Some(Wait::Memory)))),
                // The drive has the bytes too.
                Some(Blocked::Spill) => {}
            }
        }
        let stream = match &state.content {
            Content::Clean { base, .. } => {
                let transfer = self.progress.begin(self.ino(), &state.name);
                Streaming::over_base(self.context.clone(), transfer, ReadTarget::of(base))
            }
            Content::Streaming { .. } => return self.must_commit(),
            _ => self.new_stream(&state.name),
        };
        let basis = state.content.take_basis();
        state.content = Content::Streaming { stream, basis };
        Ok(Staging::Done)
    }

    fn write_staged(
        self: &Arc<Self>,
        state: &mut OpenFileState,
        offset: u64,
        data: &[u8],
    ) -> Result<WriteOutcome> {
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > self.bytes_max()) {
            return Err(too_large(self.context.part_size));
        }
        let place = match &mut state.content {
            Content::Staged { staged, .. } => ChangePlace::Staged(staged.clone()),
            Content::Local(local) => local.write(offset, data),
            _ => return Ok(WriteOutcome::Committing),
        };
        let change = |staged| ChangeKind::Write { staged, offset };
        Ok(self.change_at(state, place, data.len(), change))
    }

    /// The outcome of a change of staged or local content at this place. One in memory is done already.
    fn change_at(
        self: &Arc<Self>,
        state: &mut OpenFileState,
        place: ChangePlace,
        bytes: usize,
        change: impl FnOnce(Arc<StagedFile>) -> ChangeKind,
    ) -> WriteOutcome {
        match place {
            ChangePlace::Memory => accepted(bytes, None),
            ChangePlace::MustStage => self.begin_change(state, ChangeKind::Stage),
            ChangePlace::Staged(staged) => self.begin_change(state, change(staged)),
        }
    }

    /// The largest file that all part numbers can carry.
    fn bytes_max(&self) -> u64 {
        self.context.part_size.get() * u64::from(PartNumber::MAX)
    }

    /// Sets the size: truncates, or extends with zeros. `TooLarge` for an extension that no commit would send.
    pub fn truncate(self: &Arc<Self>, size: u64, writer: Writer) -> Result<WriteOutcome> {
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
    ///
    /// A truncation to the present size is a change too, and a truncation through a handle sets the time. A clean
    /// file stays clean: the caller sets the time.
    pub fn set_size(self: &Arc<Self>, size: u64, writer: Writer) -> Result<WriteOutcome> {
        if size > self.bytes_max() {
            return Err(too_large(self.context.part_size));
        }
        let mut state = self.lock();
        self.check_has_committer(&state.content)?;
        let (is_disk_busy, is_same) = (state.is_disk_busy, state.content.bytes() == size);
        let change = |staged| ChangeKind::SetSize { staged, size };
        match &mut state.content {
            Content::Committing { .. } => return Ok(WriteOutcome::Committing),
            Content::Failed { error, .. } if size != 0 => return Err(error.clone()),
            _ if is_disk_busy => return Ok(WriteOutcome::DiskBusy),
            // A truncation to nothing clears the failure.
            Content::Failed { .. } => self.start_stream(&mut state),
            Content::Clean { .. } if is_same => return Ok(accepted(0, None)),
            _ if is_same => {}
            Content::Local(local) => match local.resize(size) {
                ChangePlace::Memory => {}
                place => return Ok(self.change_at(&mut state, place, 0, change).by(writer)),
            },
            _ if size == 0 => self.start_stream(&mut state),
            _ => {
                if let Some(outcome) = self.resize(&mut state, size)? {
                    return Ok(outcome.by(writer));
                }
            }
        }
        if is_same && writer == Writer::NoHandle {
            state.note_writer(writer);
        } else {
            state.note_change(writer);
        }
        Ok(accepted(0, None))
    }

    /// Returns the outcome if the size is not set yet.
    fn resize(self: &Arc<Self>, state: &mut OpenFileState, size: u64) -> Result<Option<WriteOutcome>> {
        if matches!(state.content, Content::New) {
            self.start_stream(state);
        }
        if let Content::Streaming { stream, .. } = &mut state.content {
            let is_stream = !self.context.stages_all();
            if is_stream {
                stream.in_flight().check()?;
            }
            if is_stream && stream.set_size(size) {
                return Ok(None);
            }
        }
        if let Staging::Blocked(outcome) = self.stage(state)? {
            return Ok(Some(outcome));
        }
        match &mut state.content {
            Content::Staged { staged, .. } => {
                let change = ChangeKind::SetSize { staged: staged.clone(), size };
                Ok(Some(self.begin_change(state, change)))
            }
            Content::Streaming { stream, .. } => {
                stream.set_size(size);
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Zeroes a range, as far as the content reaches. Only if staged files are enabled.
    pub fn punch(self: &Arc<Self>, offset: u64, len: u64, writer: Writer) -> Result<WriteOutcome> {
        let mut state = self.lock();
        self.check_has_committer(&state.content)?;
        match &state.content {
            Content::Committing { .. } => return Ok(WriteOutcome::Committing),
            Content::Failed { error, .. } => return Err(error.clone()),
            _ if state.is_disk_busy => return Ok(WriteOutcome::DiskBusy),
            Content::Local(_) => {}
            _ => {
                if let Staging::Blocked(outcome) = self.stage(&mut state)? {
                    return Ok(outcome);
                }
            }
        }
        let place = match &mut state.content {
            Content::Staged { staged, .. } => ChangePlace::Staged(staged.clone()),
            Content::Local(local) => local.punch(offset, len),
            _ => return Ok(accepted(0, None)),
        };
        if matches!(place, ChangePlace::Memory) {
            state.note_change(writer);
        }
        let change = |staged| ChangeKind::Punch { staged, offset, len };
        Ok(self.change_at(&mut state, place, 0, change).by(writer))
    }

    /// Overwrites bytes of the filling part. Bytes beyond it are for the next call.
    fn patch_tail(self: &Arc<Self>, state: &mut OpenFileState, offset: u64, data: &[u8]) -> WriteOutcome {
        let Content::Streaming { stream, .. } = &mut state.content else {
            return WriteOutcome::Committing;
        };
        let bytes = stream.patch(offset, data);
        if bytes == 0
            && let Some((file, at, len)) = stream.spilled_range(offset)
        {
            let len = len.min(data.len() as u64) as usize;
            return self.begin_change(state, ChangeKind::PatchSpilled { offset, file, at, len });
        }
        accepted(bytes, None)
    }
}

fn accepted(bytes: usize, wait: Option<Wait>) -> WriteOutcome {
    WriteOutcome::Accepted(Appended { bytes, wait })
}

fn append(
    state: &mut OpenFileState,
    data: &[u8],
    resolve_target: &dyn Fn() -> Option<CommitTarget>,
) -> Result<Appended> {
    let Content::Streaming { stream, .. } = &mut state.content else {
        return Ok(Appended { bytes: 0, wait: Some(Wait::Commit) });
    };
    stream.append(data, resolve_target)
}

/// Appends zeros up to `offset`, as far as there is room. Returns no bytes, and the number of zeros that are
/// left.
fn zero_fill(
    state: &mut OpenFileState,
    offset: u64,
    resolve_target: &dyn Fn() -> Option<CommitTarget>,
) -> Result<(Appended, u64)> {
    let Content::Streaming { stream, .. } = &mut state.content else {
        return Ok((Appended { bytes: 0, wait: Some(Wait::Commit) }, 0));
    };
    let wait = stream.append_gap(offset, resolve_target)?;
    Ok((Appended { bytes: 0, wait }, offset.saturating_sub(stream.frontier())))
}

fn report_failure(content: &Content) -> Result<WriteOutcome> {
    match content {
        Content::Failed { error, .. } => Err(error.clone()),
        _ => Ok(WriteOutcome::Committing),
    }
}
