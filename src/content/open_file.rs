//! The content of one file that is open, or not yet on the drive.
//!
//! All handles of an inode meet here. The lock is a plain one and never held across an await:
//! whatever waits for the network is a task that comes back when it is done, and the state says so
//! meanwhile. A commit whose task dies leaves `Failed` behind, never success.

mod settle;
mod sight;
mod stay;
mod write;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::Notify;

use super::finish::target;
use super::flow::Flow;
use super::local::Local;
use super::reader::ReadTarget;
use super::shipper::Env;
use super::staged::{Piece, Staged};
use super::streaming::{Streaming, read_left};
use super::tee::Tee;
use crate::error::{Error, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::posix;
use crate::status::{Progress, Transfer};

pub use settle::{Outcome, Settle, Ticket};
use sight::{Locked, Seen};
pub use sight::{Sight, Stage};
pub use write::Wrote;

/// The content of one file. See the picture in `content.rs`.
#[derive(Debug)]
enum Content {
    New,
    /// `held` is all of it, in memory, so that a handle may write on; `Kept` may have a copy.
    Clean {
        base: FileMeta,
        held: Option<Bytes>,
    },
    Streaming {
        live: Streaming,
        base: Option<FileMeta>,
    },
    Staged {
        copy: Arc<Staged>,
        base: Option<FileMeta>,
    },
    Committing {
        source: Source,
        bytes: u64,
        base: Option<FileMeta>,
        outcome: Outcome,
        transfer: Arc<Transfer>,
    },
    Failed {
        error: Error,
        base: Option<FileMeta>,
    },
    /// Stays on this machine.
    Local(Local),
}

/// Where readers find a content that is being committed.
#[derive(Debug)]
enum Source {
    Flow(Arc<Flow>, Option<Tee>),
    Copy(Arc<Staged>),
}

impl Content {
    fn bytes(&self) -> u64 {
        match self {
            Self::New => 0,
            Self::Clean { base, .. } => base.size,
            Self::Streaming { live, .. } => live.size(),
            Self::Staged { copy, .. } => copy.size(),
            Self::Committing { bytes, .. } => *bytes,
            Self::Failed { base, .. } => base.as_ref().map_or(0, |base| base.size),
            Self::Local(local) => local.size(),
        }
    }
}

/// One file with open handles or unsaved content.
#[derive(Debug)]
pub struct OpenFile {
    ino: Ino,
    env: Arc<Env>,
    progress: Arc<Progress>,
    /// Locked before the leaf locks of budget, gate and flow; nothing is awaited meanwhile.
    inner: Mutex<Inner>,
    /// How it was when it was let go of last, for whoever looks meanwhile. A leaf lock.
    seen: Mutex<Seen>,
    /// Of which other file this was made a copy last; it may need nothing of it any more. A leaf lock.
    cloned: Mutex<Option<FileId>>,
    /// The folder and name that a commit which is under way may make it appear under. A leaf lock.
    aimed_at: Mutex<Option<(FileId, String)>>,
    /// Deleted here: nothing of it shall come to be on the drive.
    orphan: AtomicBool,
    /// The tree knows of the unsaved content.
    marked: AtomicBool,
    state_changed: Notify,
}

#[derive(Debug)]
struct Inner {
    content: Content,
    /// For progress lines.
    name: Arc<str>,
    mtime: SystemTime,
}

/// Where the bytes of a read come from.
#[derive(Debug)]
pub enum ReadFrom {
    /// From the drive.
    Drive(FileMeta),
    /// From here.
    Held(Bytes),
    /// From both.
    Pieces(Vec<Piece>),
    /// From nowhere: it has left, and the drive gives it only once the file is committed.
    Gone,
}

impl OpenFile {
    /// A file as the drive has it, or (without a base) one that was created here.
    pub fn new(
        ino: Ino,
        env: Arc<Env>,
        progress: Arc<Progress>,
        name: &str,
        base: Option<FileMeta>,
    ) -> Arc<Self> {
        let mtime = base.as_ref().map_or_else(posix::now, |base| base.mtime);
        let content = base.map_or(Content::New, |base| Content::Clean { base, held: None });
        let inner = Inner { content, name: name.into(), mtime };
        Arc::new(Self {
            ino,
            env,
            progress,
            seen: Mutex::new(inner.seen()),
            inner: Mutex::new(inner),
            cloned: Mutex::default(),
            aimed_at: Mutex::default(),
            orphan: AtomicBool::new(false),
            marked: AtomicBool::new(false),
            state_changed: Notify::new(),
        })
    }

    fn lock(&self) -> Locked<'_> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { inner, seen: &self.seen, is_changed: false }
    }

    /// The inode.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Bytes, including those that the drive does not have yet.
    pub fn size(&self) -> u64 {
        self.lock().content.bytes()
    }

    /// Modification time, including that of unsaved bytes.
    pub fn mtime(&self) -> SystemTime {
        self.lock().mtime
    }

    /// Sets the modification time; a commit that has not begun takes it along. Whether one will.
    pub fn set_mtime(&self, mtime: SystemTime) -> bool {
        let mut inner = self.lock();
        inner.mtime = mtime;
        match &inner.content {
            Content::New | Content::Staged { .. } | Content::Local(_) => true,
            Content::Streaming { live, .. } => !live.has_shipped(),
            Content::Clean { .. } | Content::Committing { .. } | Content::Failed { .. } => false,
        }
    }

    /// Whether there is content that the drive does not have yet.
    pub fn is_unsaved(&self) -> bool {
        !matches!(self.lock().content, Content::Clean { .. } | Content::Failed { .. })
    }

    /// The failure that every writer is told, if there was one.
    pub fn check(&self) -> Result<()> {
        match &self.lock().content {
            Content::Failed { error, .. } => Err(error.clone()),
            Content::Streaming { live, .. } => live.flow().check(),
            Content::New
            | Content::Clean { .. }
            | Content::Staged { .. }
            | Content::Committing { .. }
            | Content::Local(_) => Ok(()),
        }
    }

    /// The content as the drive has it, if it has any.
    pub fn base(&self) -> Option<FileMeta> {
        match &self.lock().content {
            Content::New | Content::Local(_) => None,
            Content::Clean { base, .. } => Some(base.clone()),
            Content::Streaming { base, .. }
            | Content::Staged { base, .. }
            | Content::Committing { base, .. }
            | Content::Failed { base, .. } => base.clone(),
        }
    }

    /// What this file was when it was opened, where the drive has another revision of it by now.
    pub fn former(&self, meta: &FileMeta) -> Option<FileMeta> {
        match &self.lock().content {
            Content::Clean { base, .. } if base.revision.is_some() && meta.revision.is_some() => {
                (base.revision != meta.revision).then(|| base.clone())
            }
            _ => None,
        }
    }

    /// What of this other file has still to be read for the copy of it that this is, if it is one.
    pub fn copies(&self, other: &FileId) -> Option<ReadTarget> {
        if self.cloned.lock().unwrap_or_else(PoisonError::into_inner).as_ref() != Some(other) {
            return None;
        }
        let copy = match &self.lock().content {
            Content::Staged { copy, .. } | Content::Committing { source: Source::Copy(copy), .. } => {
                copy.clone()
            }
            _ => return None,
        };
        copy.next_gap(1).map(|(source, ..)| source).filter(|source| source.file_id == *other)
    }

    /// A commit goes there from now on; `None` when it has ended.
    pub fn aim_at(&self, place: Option<(FileId, String)>) {
        *self.aimed_at.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// Whether a commit that is under way may make it appear there.
    pub fn is_aimed_at(&self, folder: &FileId, name: &str) -> bool {
        let aimed_at = self.aimed_at.lock().unwrap_or_else(PoisonError::into_inner);
        aimed_at.as_ref().is_some_and(|(parent, aimed)| parent == folder && aimed == name)
    }

    /// The file was deleted: nothing of it will come to be on the drive.
    pub fn unlinked(&self) {
        self.orphan.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::unlinked`] was called.
    pub fn is_orphan(&self) -> bool {
        self.orphan.load(Ordering::Relaxed)
    }

    /// The file has another path now.
    pub fn renamed(&self, path: &str) {
        let mut inner = self.lock();
        inner.name = path.into();
        match &inner.content {
            Content::Streaming { live, .. } => live.transfer().renamed(path),
            Content::Committing { transfer, .. } => transfer.renamed(path),
            Content::New
            | Content::Clean { .. }
            | Content::Staged { .. }
            | Content::Failed { .. }
            | Content::Local(_) => {}
        }
    }

    /// The content as the drive has it is another one now (a file that took over another's id).
    pub fn rebased(&self, meta: &FileMeta) {
        let mut inner = self.lock();
        match &mut inner.content {
            Content::New | Content::Local(_) => {}
            Content::Clean { base, held } => {
                if meta.sha1.is_none() || meta.sha1 != base.sha1 || meta.size != base.size {
                    // What is still here is not what the drive has now.
                    *held = None;
                } else {
                    self.env.space.kept().rename(&target(base), target(meta));
                }
                *base = meta.clone();
            }
            Content::Streaming { base, .. }
            | Content::Staged { base, .. }
            | Content::Committing { base, .. }
            | Content::Failed { base, .. } => {
                *base = Some(meta.clone());
            }
        }
    }

    /// The commit that is under way.
    pub fn running(&self) -> Option<Outcome> {
        match &self.lock().content {
            Content::Committing { outcome, .. } => Some(outcome.clone()),
            Content::New
            | Content::Clean { .. }
            | Content::Streaming { .. }
            | Content::Staged { .. }
            | Content::Failed { .. }
            | Content::Local(_) => None,
        }
    }

    /// Whether the tree has not been told yet that there is unsaved content; it is told now.
    pub fn mark(&self) -> bool {
        !self.marked.swap(true, Ordering::Relaxed)
    }

    /// Resolves when the state has changed after the call.
    pub fn state_changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.state_changed.notified()
    }

    /// What a writer waits on who could not write everything.
    pub fn flow(&self) -> Option<Arc<Flow>> {
        match &self.lock().content {
            Content::Streaming { live, .. } => Some(live.flow().clone()),
            Content::Committing { source: Source::Flow(flow, _), .. } => Some(flow.clone()),
            Content::New
            | Content::Clean { .. }
            | Content::Staged { .. }
            | Content::Committing { source: Source::Copy(_), .. }
            | Content::Failed { .. }
            | Content::Local(_) => None,
        }
    }

    /// What has to be run over before `to` can be written: see [`Streaming::gap`].
    pub fn gap(&self, to: u64) -> Option<(ReadTarget, u64, u64)> {
        match &self.lock().content {
            Content::Streaming { live, .. } => live.gap(to),
            _ => None,
        }
    }

    /// Whether [`Self::read`] may block for the local disk.
    pub fn may_read_disk(&self) -> bool {
        match &self.lock().content {
            Content::Staged { .. } | Content::Committing { source: Source::Copy(_), .. } => true,
            Content::Clean { base, held: None } => self.env.space.kept().has(&target(base)),
            Content::Streaming { live, .. } => live.has_shipped(),
            Content::Committing { source: Source::Flow(_, tee), .. } => tee.is_some(),
            Content::Local(local) => local.is_on_disk(),
            Content::New | Content::Clean { .. } | Content::Failed { .. } => false,
        }
    }

    /// Where bytes `offset..offset + len` come from.
    pub fn read(&self, offset: u64, len: usize) -> Result<ReadFrom> {
        let inner = self.lock();
        match &inner.content {
            Content::New => Ok(ReadFrom::Held(Bytes::new())),
            Content::Local(local) => local.read(offset, len as u64).map(ReadFrom::Pieces),
            Content::Clean { base, held: None } => match self.env.space.kept().get(&target(base)) {
                Some(copy) => copy.read(offset, len as u64).map(ReadFrom::Pieces),
                None => Ok(ReadFrom::Drive(base.clone())),
            },
            Content::Failed { base: Some(base), .. } => Ok(ReadFrom::Drive(base.clone())),
            Content::Clean { held: Some(bytes), .. } => {
                let start = bytes.len().min(offset as usize);
                Ok(ReadFrom::Held(bytes.slice(start..bytes.len().min(start + len))))
            }
            Content::Failed { error, base: None } => Err(error.clone()),
            Content::Streaming { live, .. } => read_live(live, offset, len),
            Content::Committing { source: Source::Flow(flow, tee), bytes, .. } => {
                let len = len.min(bytes.saturating_sub(offset) as usize);
                let out = read_flow(flow, tee.as_ref(), offset, len)?;
                Ok(if out.len() == len { ReadFrom::Held(out) } else { ReadFrom::Gone })
            }
            Content::Staged { copy, .. } | Content::Committing { source: Source::Copy(copy), .. } => {
                copy.read(offset, len as u64).map(ReadFrom::Pieces)
            }
        }
    }

    /// What is kept only for handles that may write on can go.
    pub fn no_more_writers(&self) {
        if let Content::Clean { held, .. } = &mut self.lock().content {
            *held = None;
        }
    }
}

/// The base of a content that is about to become another one. What was being sent of it is sent no more.
fn take_base(content: &mut Content) -> Option<FileMeta> {
    match std::mem::replace(content, Content::New) {
        Content::New | Content::Local(_) => None,
        Content::Clean { base, .. } => Some(base),
        Content::Streaming { live, base } => {
            live.transfer().withdrawn();
            base
        }
        Content::Staged { base, .. } | Content::Committing { base, .. } | Content::Failed { base, .. } => {
            base
        }
    }
}

/// Reads what was written, then what shows from under it, then promised zeros.
fn read_live(live: &Streaming, offset: u64, len: usize) -> Result<ReadFrom> {
    let end = live.size().min(offset.saturating_add(len as u64)).max(offset);
    let mut out = vec![0; (end - offset) as usize];
    let written = live.frontier().clamp(offset, end) - offset;
    if live.read(offset, &mut out[..written as usize])? < written as usize {
        return Ok(ReadFrom::Gone);
    }
    let Some((target, gap, gap_len)) = live.gap(end) else {
        return Ok(ReadFrom::Held(out.into()));
    };
    // The gap begins at the frontier; the read may begin in it.
    let (start, gap_end) = (gap.max(offset), gap + gap_len);
    if start >= gap_end {
        return Ok(ReadFrom::Held(out.into()));
    }
    let mut head = Bytes::from(out);
    let zeros = head.split_off((gap_end - offset) as usize);
    head.truncate(written as usize);
    let mut pieces = vec![Piece::Here(head), Piece::Base { target, offset: start, len: gap_end - start }];
    pieces.push(Piece::Here(zeros));
    Ok(ReadFrom::Pieces(pieces))
}

/// Reads what has left; less than `len` bytes where some of it is not here.
fn read_flow(flow: &Flow, tee: Option<&Tee>, offset: u64, len: usize) -> Result<Bytes> {
    let mut out = vec![0; len];
    let mut done = 0;
    while done < len {
        match read_left(flow, tee, offset + done as u64, &mut out[done..])? {
            0 => break,
            count => done += count,
        }
    }
    out.truncate(done);
    Ok(out.into())
}
