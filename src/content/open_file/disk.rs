//! Changes of a file's content on the local disk.
//!
//! The lock of the file is not held while the disk works. Instead the state records that a change is running.
//! Until its end no other change and no commit begins: a write that hangs must not reach a file that has become
//! the cached file of a revision. A change that its caller has given up still runs to its end.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::content::{Content, OpenFileState, Writer};
use super::file::OpenFile;
use crate::content::disk_quota::DiskQuota;
use crate::content::local_content::LocalContent;
use crate::content::part::SpillFile;
use crate::content::reader::ReadTarget;
use crate::content::staged_file::StagedFile;
use crate::content::streaming::Streaming;
use crate::content::tee::Tee;
use crate::error::{Error, ErrorKind, Result};
use crate::local_disk::{LocalDisk, LocalFile};
use crate::pds::part_body::{Frame, ZEROS};

/// How long the removal of a file waits for the copy of its stream.
const STAGE_FOR_UNLINK_MAX: Duration = Duration::from_secs(5);
/// Bytes of one copy step.
const COPY_CHUNK_BYTES: u64 = 1 << 20;

/// The one running change of a file. Its end wakes the waiters.
#[derive(Debug)]
pub(super) struct DiskTurn {
    file: Arc<OpenFile>,
}

impl DiskTurn {
    /// The caller has seen that no change is running. All work on the disk holds a clone.
    pub(super) fn take(file: &Arc<OpenFile>, state: &mut OpenFileState) -> Arc<Self> {
        state.is_disk_busy = true;
        Arc::new(Self { file: file.clone() })
    }
}

impl Drop for DiskTurn {
    fn drop(&mut self) {
        self.file.lock().is_disk_busy = false;
        self.file.state_changed.notify_waiters();
    }
}

/// A change that waits for the local disk.
#[derive(Debug)]
pub struct DiskChange {
    turn: Arc<DiskTurn>,
    kind: ChangeKind,
    /// The writer to record at the end.
    writer: Option<Writer>,
}

#[derive(Debug)]
pub(super) enum ChangeKind {
    /// Moves the content to a staged file.
    Stage,
    Write {
        staged: Arc<StagedFile>,
        offset: u64,
    },
    SetSize {
        staged: Arc<StagedFile>,
        size: u64,
    },
    Punch {
        staged: Arc<StagedFile>,
        offset: u64,
        len: u64,
    },
    /// Appends this range of the data to the filling part of a stream, on the disk.
    Spill(Range<usize>),
    /// Likewise, zeros.
    SpillZeros(u64),
    /// Overwrites spilled bytes of the filling part at `offset` of the content: file, offset in it, length.
    PatchSpilled {
        offset: u64,
        file: Arc<LocalFile>,
        at: u64,
        len: usize,
    },
}

/// The outcome of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskOutcome {
    /// This many bytes of the data were written.
    Done(usize),
    /// The content is ready for the next step: the caller calls again.
    Again,
    /// Sent bytes are no longer on this machine, so the file must be committed first.
    MustCommit,
}

impl DiskChange {
    pub(super) fn new(turn: Arc<DiskTurn>, kind: ChangeKind) -> Self {
        Self { turn, kind, writer: None }
    }

    pub(super) fn by(self, writer: Writer) -> Self {
        Self { writer: Some(writer), ..self }
    }

    /// Makes the change. `data` are the bytes of a write. May be dropped while it waits.
    pub async fn run(self, data: Bytes) -> Result<DiskOutcome> {
        let Self { turn, kind, writer } = self;
        match kind {
            ChangeKind::Stage => turn.stage().await,
            ChangeKind::Spill(range) => {
                let noted = move |_: &mut Streaming, _| writer;
                let spilled = turn.spill(data.slice(range.clone()), noted).await?;
                Ok(DiskOutcome::Done(if spilled == 0 { 0 } else { range.start + spilled }))
            }
            ChangeKind::SpillZeros(zeros) => {
                let len = zeros.min(ZEROS.len() as u64) as usize;
                let noted = |stream: &mut Streaming, bytes| {
                    stream.note_gap(bytes);
                    None
                };
                turn.spill(Bytes::from_static(&ZEROS[..len]), noted).await?;
                Ok(DiskOutcome::Again)
            }
            ChangeKind::Write { staged, offset } => {
                let bytes = data.len();
                turn.change(staged, writer, bytes, move |staged| staged.write(offset, &data)).await
            }
            ChangeKind::SetSize { staged, size } => {
                turn.change(staged, writer, 0, move |staged| staged.truncate(size)).await
            }
            ChangeKind::Punch { staged, offset, len } => {
                turn.change(staged, writer, 0, move |staged| staged.punch(offset, len)).await
            }
            ChangeKind::PatchSpilled { offset, file: spilled, at, len } => {
                let (file, disk) = (turn.file.clone(), spilled.disk().clone());
                let patch = move || {
                    spilled.write_all_at(&data[..len], at)?;
                    Ok(file.note_disk_change(writer, len, |content| match content {
                        // No other stream begins during a change.
                        Content::Streaming { stream, .. } => {
                            stream.note_patched(offset, len as u64);
                            true
                        }
                        _ => false,
                    }))
                };
                turn.run(disk, patch).await
            }
        }
    }
}

impl OpenFile {
    /// Records the end of a change if `is_changed` finds the content that was changed. It may have been given up
    /// meanwhile.
    fn note_disk_change(
        &self,
        writer: Option<Writer>,
        bytes: usize,
        is_changed: impl FnOnce(&mut Content) -> bool,
    ) -> DiskOutcome {
        let mut state = self.lock();
        if !is_changed(&mut state.content) {
            return DiskOutcome::Again;
        }
        if let Some(writer) = writer {
            state.note_change(writer);
        }
        DiskOutcome::Done(bytes)
    }

    /// Waits until the running change has ended, if any. Another one may begin before the caller looks again.
    pub async fn wait_for_disk(&self) -> Result<()> {
        // Created before the look, so that no notification in between is missed.
        let changed = self.state_changed();
        if self.lock().is_disk_busy {
            self.context.disk.in_time(changed).await?;
        }
        Ok(())
    }

    /// Waits until no change is running, and begins one.
    pub(super) async fn disk_turn(self: &Arc<Self>) -> Result<Arc<DiskTurn>> {
        loop {
            {
                let mut state = self.lock();
                if !state.is_disk_busy {
                    return Ok(DiskTurn::take(self, &mut state));
                }
            }
            self.wait_for_disk().await?;
        }
    }

    /// Stages a stream before its file is removed from the drive, which ends the upload. Without a staged
    /// file, also if the disk is slow, the stream goes on and fails.
    pub async fn stage_for_unlink(self: &Arc<Self>) {
        if self.context.quota.is_disabled() || !matches!(self.lock().content, Content::Streaming { .. }) {
            return;
        }
        let staged = async { self.disk_turn().await?.stage().await };
        match tokio::time::timeout(STAGE_FOR_UNLINK_MAX, staged).await {
            Ok(Ok(_)) => {}
            outcome => tracing::debug!(?outcome, "cannot stage a stream before its file is removed"),
        }
    }

    /// The staged file of local-only content, which moves there from memory. `None` if the file is not
    /// local-only. The caller keeps the turn until it has used the file.
    pub(super) async fn stage_local(self: &Arc<Self>) -> Result<Option<(Arc<DiskTurn>, Arc<StagedFile>)>> {
        let turn = self.disk_turn().await?;
        let staged = turn.stage_local().await?;
        Ok(staged.map(|staged| (turn, staged)))
    }
}

/// The source of the bytes of a new staged file.
enum StageSource {
    Empty,
    Bytes(Bytes),
    Base(ReadTarget),
    Stream(Option<Tee>),
    Local,
    /// There is nothing to stage any more.
    Nothing,
}

impl StageSource {
    fn of(content: &Content) -> Self {
        match content {
            Content::New => Self::Empty,
            Content::Clean { retained: Some(bytes), .. } => Self::Bytes(bytes.clone()),
            Content::Clean { base, retained: None } => Self::Base(ReadTarget::of(base)),
            Content::Streaming { stream, .. } => Self::Stream(stream.tee().cloned()),
            Content::Local(_) => Self::Local,
            Content::Staged { .. } | Content::Committing { .. } | Content::Failed { .. } => Self::Nothing,
        }
    }

    /// Whether the content is still the one that was staged.
    fn is_of(&self, content: &Content) -> bool {
        match (self, content) {
            (Self::Empty, Content::New) | (Self::Stream(_), Content::Streaming { .. }) => true,
            (Self::Bytes(bytes), Content::Clean { retained: Some(now), .. }) => bytes == now,
            (Self::Base(target), Content::Clean { base, .. }) => *target == ReadTarget::of(base),
            _ => false,
        }
    }
}

impl DiskTurn {
    /// Runs work on the disk. The turn lasts until its end, also if this future is dropped.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        disk: Arc<LocalDisk>,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = self.clone();
        let work = move || {
            let done = work();
            drop(turn);
            done
        };
        disk.run(work).await
    }

    /// Changes the staged file of the content. The change is recorded on the disk thread, also if this future is
    /// dropped.
    async fn change(
        self: &Arc<Self>,
        staged: Arc<StagedFile>,
        writer: Option<Writer>,
        bytes: usize,
        change: impl FnOnce(&StagedFile) -> Result<()> + Send + 'static,
    ) -> Result<DiskOutcome> {
        let (file, disk) = (self.file.clone(), staged.disk().clone());
        let work = move || {
            change(&staged)?;
            Ok(file.note_disk_change(writer, bytes, |content| {
                if matches!(content, Content::Staged { .. }) {
                    file.progress.wrote(bytes as u64);
                }
                content.is_staged_as(&staged)
            }))
        };
        self.run(disk, work).await
    }

    /// Moves the content to a staged file.
    async fn stage(self: &Arc<Self>) -> Result<DiskOutcome> {
        let (file, context) = (&self.file, &self.file.context);
        let source = StageSource::of(&file.lock().content);
        let (disk, quota, user) = (context.disk.clone(), context.quota.clone(), file.user());
        let staged = match &source {
            StageSource::Nothing => return Ok(DiskOutcome::Again),
            StageSource::Local => return self.stage_local().await.map(|_| DiskOutcome::Again),
            StageSource::Empty => self.run(disk, move || StagedFile::new(&quota, None, user)).await?,
            StageSource::Bytes(bytes) => self.new_with(bytes.clone(), quota).await?,
            StageSource::Base(target) => {
                if let Some(cached) = context.cached_files.remove(target) {
                    cached.count_for(user)?;
                    cached
                } else {
                    let target = target.clone();
                    self.run(disk, move || StagedFile::new(&quota, Some(target), user)).await?
                }
            }
            StageSource::Stream(tee) => match self.stage_stream(tee.as_ref()).await? {
                Some(staged) => staged,
                None if file.is_unlinked() => return Err(append_only_after_unlink()),
                None => return Ok(DiskOutcome::MustCommit),
            },
        };
        let mut state = file.lock();
        // The last writer may have closed the file since.
        if source.is_of(&state.content) && file.check_has_committer(&state.content).is_ok() {
            let basis = state.content.take_basis();
            state.content = Content::Staged { staged, basis };
        }
        Ok(DiskOutcome::Again)
    }

    /// A new staged file with these bytes.
    async fn new_with(self: &Arc<Self>, bytes: Bytes, quota: Arc<DiskQuota>) -> Result<Arc<StagedFile>> {
        let user = self.file.user();
        let new = move || {
            let staged = StagedFile::new(&quota, None, user)?;
            staged.write(0, &bytes)?;
            Ok(staged)
        };
        self.run(self.file.context.disk.clone(), new).await
    }

    async fn stage_local(self: &Arc<Self>) -> Result<Option<Arc<StagedFile>>> {
        let found = match &self.file.lock().content {
            Content::Local(local) => local.staged_or_bytes(),
            _ => return Ok(None),
        };
        let bytes = match found {
            Ok(staged) => return Ok(Some(staged)),
            Err(bytes) => bytes,
        };
        let staged = self.new_with(bytes, self.file.context.local_quota.clone()).await?;
        let mut state = self.file.lock();
        let Content::Local(local) = &mut state.content else { return Ok(None) };
        *local = LocalContent::Staged(staged.clone());
        Ok(Some(staged))
    }

    /// A staged file with everything that was written to the stream. `None` if parts were sent and the tee does
    /// not have them.
    async fn stage_stream(self: &Arc<Self>, tee: Option<&Tee>) -> Result<Option<Arc<StagedFile>>> {
        let (file, context) = (&self.file, &self.file.context);
        let (has_sent_parts, sent_bytes) = match &file.lock().content {
            Content::Streaming { stream, .. } => (stream.has_sent_parts(), stream.patchable_from()),
            _ => return Ok(None),
        };
        let (staged, mut at) = match tee {
            _ if !has_sent_parts => {
                let (quota, user) = (context.quota.clone(), file.user());
                (self.run(context.disk.clone(), move || StagedFile::new(&quota, None, user)).await?, 0)
            }
            Some(tee) => match tee.wait_for_file(sent_bytes).await? {
                Some(staged) => {
                    staged.count_for(file.user())?;
                    (staged, sent_bytes)
                }
                None => return Ok(None),
            },
            None => return Ok(None),
        };
        loop {
            let (frames, size, gaps) = match &file.lock().content {
                Content::Streaming { stream, .. } => {
                    let is_end = at >= stream.frontier();
                    let gaps = is_end.then(|| stream.gaps().clone());
                    (stream.read(at, COPY_CHUNK_BYTES), stream.size(), gaps)
                }
                _ => return Ok(None),
            };
            let Some(frames) = frames else { return Ok(None) };
            let bytes: u64 = frames.iter().map(Frame::bytes).sum();
            let (writing, is_end) = (staged.clone(), gaps.is_some());
            let step = move || {
                writing.write_frames(at, &frames)?;
                let Some(gaps) = gaps else { return Ok(()) };
                writing.forget_zeros(&gaps)?;
                if writing.size() == size { Ok(()) } else { writing.truncate(size) }
            };
            self.run(context.disk.clone(), step).await?;
            if is_end {
                return Ok(Some(staged));
            }
            at += bytes;
        }
    }

    /// Appends bytes to the filling part of a stream, on the disk. Returns how many. A complete part moves to
    /// the disk as a whole. `noted` gets their number, and returns the writer to record.
    async fn spill(
        self: &Arc<Self>,
        data: Bytes,
        noted: impl FnOnce(&mut Streaming, u64) -> Option<Writer>,
    ) -> Result<usize> {
        let (file, disk) = (&self.file, self.file.context.disk.clone());
        let part_bytes = file.context.part_size.get();
        let (target, at, room) = match &mut file.lock().content {
            Content::Streaming { stream, .. } => {
                let filling = stream.filling();
                let (target, at) = filling.spill_target();
                (target, at, part_bytes - filling.bytes())
            }
            _ => return Ok(0),
        };
        if room == 0 {
            return self.spill_part(part_bytes).await.map(|()| 0);
        }
        let data = data.slice(..data.len().min(room as usize));
        let bytes = data.len();
        let (quota, user) = (file.context.spill_quota.clone(), file.user());
        let append = move || {
            let spilled = target.map_or_else(|| SpillFile::new(&quota, user), Ok)?;
            spilled.write(at, &data)?;
            Ok(spilled)
        };
        let spilled = self.run(disk, append).await?;
        let mut state = file.lock();
        let Content::Streaming { stream, .. } = &mut state.content else { return Ok(0) };
        stream.filling().add_spilled(spilled, bytes as u64);
        stream.transfer().wrote(bytes as u64);
        if let Some(writer) = noted(stream, bytes as u64) {
            state.note_change(writer);
        }
        Ok(bytes)
    }

    /// Moves the complete filling part to the disk and releases its memory. On failure the part is unchanged.
    async fn spill_part(self: &Arc<Self>, part_bytes: u64) -> Result<()> {
        let (file, disk) = (&self.file, self.file.context.disk.clone());
        let (quota, user) = (file.context.spill_quota.clone(), file.user());
        let whole = self.run(disk.clone(), move || SpillFile::new(&quota, user)).await?;
        let mut at = 0;
        while at < part_bytes {
            let frames = match &mut file.lock().content {
                Content::Streaming { stream, .. } => stream.filling().read(at, COPY_CHUNK_BYTES),
                _ => return Ok(()),
            };
            let (target, bytes) = (whole.clone(), frames.iter().map(Frame::bytes).sum::<u64>());
            self.run(disk.clone(), move || write_frames(&target, at, &frames)).await?;
            at += bytes;
        }
        if let Content::Streaming { stream, .. } = &mut file.lock().content {
            stream.filling().replace_by_file(whole);
        }
        Ok(())
    }
}

pub(super) fn append_only_after_unlink() -> Error {
    let detail = "a deleted file that was streamed accepts only writes at its end";
    Error::new(ErrorKind::Unsupported, detail)
}

fn write_frames(target: &SpillFile, mut at: u64, frames: &[Frame]) -> Result<()> {
    for frame in frames {
        frame.visit(|bytes| {
            target.write(at, bytes)?;
            at += bytes.len() as u64;
            Ok(())
        })?;
    }
    Ok(())
}
