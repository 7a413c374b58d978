//! The content of one file that is open, or not yet on the drive.
//!
//! All handles of an inode meet here. The lock is a plain one and never held across an await:
//! whatever waits for the network is a task that comes back when it is done, and the state says so
//! meanwhile. A commit whose task dies leaves `Failed` behind, never success.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::flow::Flow;
use super::shipper::{Destination, Env};
use super::streaming::{Appended, Finish, Finished, Streaming, not_held};
use super::{Plan, Shape, plan_write};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::drive::FileMeta;
use crate::status::Progress;

/// Largest content that stays here after its commit, so that a handle may write on, in bytes.
const RESUME_BYTES_MAX: u64 = 256 << 10;

/// The outcome of a commit; `None` while it runs.
pub type Outcome = watch::Receiver<Option<Result<()>>>;

/// The content of one file. See the picture in `content.rs`.
#[derive(Debug)]
enum Content {
    New,
    Clean { base: FileMeta, resume: Option<Bytes> },
    Streaming { live: Streaming, base: Option<FileMeta> },
    Committing { flow: Arc<Flow>, bytes: u64, base: Option<FileMeta>, outcome: Outcome },
    Failed { error: Error, base: Option<FileMeta> },
}

/// One file with open handles or unsaved content.
#[derive(Debug)]
pub struct OpenFile {
    ino: Ino,
    env: Arc<Env>,
    progress: Arc<Progress>,
    /// Locked before the leaf locks of budget, gate and flow; nothing is awaited meanwhile.
    inner: Mutex<Inner>,
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
    name: String,
    mtime: SystemTime,
}

/// How a write went, as far as it did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrote {
    /// All of it, or as much as there was room for; the rest has to wait.
    Some(Appended),
    /// Nothing: a commit is under way.
    Committing,
}

/// Where the bytes of a read come from.
#[derive(Debug)]
pub enum ReadFrom {
    /// From the drive.
    Drive(FileMeta),
    /// From here.
    Held(Bytes),
}

/// What a settle has to do.
#[derive(Debug)]
pub enum Settle {
    /// Nothing: the drive has everything.
    Settled,
    /// A commit is under way: wait for it.
    Join(Outcome),
    /// Run this, then report to the ticket.
    Run(Box<Finish>, Ticket),
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
        let mtime = base.as_ref().map_or_else(SystemTime::now, |base| base.mtime);
        let content = base.map_or(Content::New, |base| Content::Clean { base, resume: None });
        Arc::new(Self {
            ino,
            env,
            progress,
            inner: Mutex::new(Inner { content, name: name.to_owned(), mtime }),
            orphan: AtomicBool::new(false),
            marked: AtomicBool::new(false),
            state_changed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inode.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Bytes, including those that the drive does not have yet.
    pub fn size(&self) -> u64 {
        match &self.lock().content {
            Content::New => 0,
            Content::Clean { base, .. } => base.size,
            Content::Streaming { live, .. } => live.frontier(),
            Content::Committing { bytes, .. } => *bytes,
            Content::Failed { base, .. } => base.as_ref().map_or(0, |base| base.size),
        }
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
            Content::New => true,
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
            Content::New | Content::Clean { .. } | Content::Committing { .. } => Ok(()),
        }
    }

    /// The content as the drive has it, if it has any.
    pub fn base(&self) -> Option<FileMeta> {
        match &self.lock().content {
            Content::New => None,
            Content::Clean { base, .. } => Some(base.clone()),
            Content::Streaming { base, .. }
            | Content::Committing { base, .. }
            | Content::Failed { base, .. } => base.clone(),
        }
    }

    /// The file was deleted: nothing of it will come to be on the drive.
    pub fn unlinked(&self) {
        self.orphan.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::unlinked`] was called.
    pub fn is_orphan(&self) -> bool {
        self.orphan.load(Ordering::Relaxed)
    }

    /// The file has another name now.
    pub fn renamed(&self, name: &str) {
        let mut inner = self.lock();
        name.clone_into(&mut inner.name);
        if let Content::Streaming { live, .. } = &inner.content {
            live.transfer().renamed(name);
        }
    }

    /// The content as the drive has it is another one now (a file that took over another's id).
    pub fn rebased(&self, meta: &FileMeta) {
        let mut inner = self.lock();
        match &mut inner.content {
            Content::New => {}
            Content::Clean { base, resume } => {
                if meta.sha1.is_none() || meta.sha1 != base.sha1 || meta.size != base.size {
                    // What is still here is not what the drive has now.
                    *resume = None;
                }
                *base = meta.clone();
            }
            Content::Streaming { base, .. }
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
            Content::New | Content::Clean { .. } | Content::Streaming { .. } | Content::Failed { .. } => None,
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
            Content::Committing { flow, .. } => Some(flow.clone()),
            Content::New | Content::Clean { .. } | Content::Failed { .. } => None,
        }
    }

    fn live(&self, name: &str) -> Streaming {
        Streaming::new(self.env.clone(), self.progress.begin(name))
    }

    /// Writes `data` at `offset`, as much as there is room for now. Never waits for the network, and
    /// only with `may_block` for the local disk.
    ///
    /// A write that is not front to back is `Unsupported` and changes nothing.
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
        match plan_write(shape(&inner.content), offset) {
            Plan::Append => {}
            Plan::Start => {
                let live = self.live(&inner.name);
                let base = take_base(&mut inner.content);
                inner.content = Content::Streaming { live, base };
            }
            Plan::Resume => self.resume(&mut inner, destination)?,
            Plan::Stage => {
                let detail = format!("a write at {offset} of {:?} is not front to back", inner.name);
                return Err(Error::new(ErrorKind::Unsupported, detail));
            }
            Plan::Wait => return Ok(Wrote::Committing),
            Plan::Refuse => drop_failed(&inner.content)?,
        }
        let Content::Streaming { live, .. } = &mut inner.content else {
            return Ok(Wrote::Committing);
        };
        let appended = live.append(data, destination, may_block)?;
        if appended.bytes > 0 {
            inner.mtime = SystemTime::now();
        }
        Ok(Wrote::Some(appended))
    }

    /// Makes a committed file that is still here a live upload again.
    fn resume(&self, inner: &mut Inner, destination: &dyn Fn() -> Option<Destination>) -> Result<()> {
        let mut live = self.live(&inner.name);
        if let Content::Clean { resume: Some(bytes), .. } = &inner.content {
            let held = bytes.len();
            let appended = live.append(bytes, destination, true)?;
            if appended.bytes < held {
                return Err(Error::new(ErrorKind::NoSpace, "no memory to go on writing; try again"));
            }
        }
        let base = take_base(&mut inner.content);
        inner.content = Content::Streaming { live, base };
        Ok(())
    }

    /// Cuts the content to `size`. `Unsupported` for what needs a local copy.
    pub fn truncate(&self, size: u64) -> Result<Wrote> {
        let mut inner = self.lock();
        let now = match &inner.content {
            Content::Committing { .. } => return Ok(Wrote::Committing),
            Content::New => 0,
            Content::Clean { base, .. } => base.size,
            Content::Streaming { live, .. } => live.frontier(),
            // A new beginning is what a failed file needs.
            Content::Failed { .. } if size == 0 => u64::MAX,
            Content::Failed { error, .. } => return Err(error.clone()),
        };
        if size != now {
            if size != 0 {
                let detail = format!("{:?} cannot be cut or grown from {now} to {size} bytes", inner.name);
                return Err(Error::new(ErrorKind::Unsupported, detail));
            }
            let live = self.live(&inner.name);
            let base = take_base(&mut inner.content);
            inner.content = Content::Streaming { live, base };
            inner.mtime = SystemTime::now();
        }
        Ok(Wrote::Some(Appended { bytes: 0, wait: None }))
    }

    /// Where bytes `offset..offset + len` come from.
    pub fn read(&self, offset: u64, len: usize) -> Result<ReadFrom> {
        let inner = self.lock();
        match &inner.content {
            Content::New => Ok(ReadFrom::Held(Bytes::new())),
            Content::Clean { base, resume: None } | Content::Failed { base: Some(base), .. } => {
                Ok(ReadFrom::Drive(base.clone()))
            }
            Content::Clean { resume: Some(bytes), .. } => {
                let start = bytes.len().min(offset as usize);
                Ok(ReadFrom::Held(bytes.slice(start..bytes.len().min(start + len))))
            }
            Content::Failed { error, base: None } => Err(error.clone()),
            Content::Streaming { live, .. } => {
                let mut out = vec![0; len.min(live.frontier().saturating_sub(offset) as usize)];
                let count = live.read(offset, &mut out)?;
                out.truncate(count);
                Ok(ReadFrom::Held(out.into()))
            }
            Content::Committing { flow, bytes, .. } => {
                let out = read_flow(flow, offset, len.min(bytes.saturating_sub(offset) as usize))?;
                Ok(ReadFrom::Held(out))
            }
        }
    }

    /// Begins to make the drive equal to what was written; tells what is left to do.
    pub fn settle(self: &Arc<Self>, destination: impl FnOnce() -> Option<Destination>) -> Result<Settle> {
        let mut inner = self.lock();
        match &inner.content {
            Content::Clean { .. } => return Ok(Settle::Settled),
            Content::Failed { error, .. } => return Err(error.clone()),
            Content::Committing { outcome, .. } => return Ok(Settle::Join(outcome.clone())),
            Content::New | Content::Streaming { .. } => {}
        }
        if self.is_orphan() {
            return Ok(Settle::Settled);
        }
        let gone = || Error::new(ErrorKind::NotFound, "the file was deleted while it was being written");
        let destination = destination().ok_or_else(gone)?;
        let destination = Destination { mtime: Some(inner.mtime), ..destination };
        let (report, outcome) = watch::channel(None);
        let (live, base) = match std::mem::replace(&mut inner.content, Content::New) {
            Content::Streaming { live, base } => (live, base),
            // An empty file is real.
            _ => (self.live(&inner.name), None),
        };
        let bytes = live.frontier();
        let transfer = live.transfer().clone();
        let finish = live.finish(destination, base.clone());
        let flow = finish.flow().clone();
        inner.content = Content::Committing { flow, bytes, base, outcome };
        Ok(Settle::Run(Box::new(finish), Ticket { file: self.clone(), report, transfer, done: false }))
    }

    fn finished(&self, result: &Result<Finished>) {
        let mut inner = self.lock();
        let Content::Committing { flow, base, .. } = &inner.content else {
            return;
        };
        self.marked.store(false, Ordering::Relaxed);
        inner.content = match result {
            Ok(finished) => {
                let whole = finished.meta.size <= RESUME_BYTES_MAX;
                let resume = whole.then(|| read_flow(flow, 0, finished.meta.size as usize).ok()).flatten();
                let resume = resume.filter(|bytes| bytes.len() as u64 == finished.meta.size);
                Content::Clean { base: finished.meta.clone(), resume }
            }
            Err(error) => Content::Failed { error: error.clone(), base: base.clone() },
        };
        if let (Err(_), Content::Failed { base: Some(base), .. }) = (result, &inner.content) {
            inner.mtime = base.mtime;
        }
        drop(inner);
        self.state_changed.notify_waiters();
    }

    /// What is kept only for handles that may write on can go.
    pub fn no_more_writers(&self) {
        if let Content::Clean { resume, .. } = &mut self.lock().content {
            *resume = None;
        }
    }
}

/// The duty to report how a commit ended. Dropped without a report, it has failed.
#[derive(Debug)]
pub struct Ticket {
    file: Arc<OpenFile>,
    report: watch::Sender<Option<Result<()>>>,
    transfer: Arc<crate::status::Transfer>,
    done: bool,
}

impl Ticket {
    /// Who waits for the commit may wait here.
    pub fn outcome(&self) -> Outcome {
        self.report.subscribe()
    }

    /// The commit has ended.
    pub fn done(mut self, result: &Result<Finished>) {
        self.report_result(result);
    }

    fn report_result(&mut self, result: &Result<Finished>) {
        self.done = true;
        match result {
            Ok(finished) => self.transfer.committed(finished.meta.size, finished.how),
            Err(error) => self.transfer.failed(error),
        }
        self.file.finished(result);
        self.report.send_replace(Some(result.as_ref().map(|_| ()).map_err(Clone::clone)));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.done {
            let stopped = Error::new(ErrorKind::Cancelled, "the commit was stopped before it ended");
            self.report_result(&Err(stopped));
        }
    }
}

fn shape(content: &Content) -> Shape {
    match content {
        Content::New => Shape::New,
        Content::Clean { base, resume } => Shape::Clean { size: base.size, resumable: resume.is_some() },
        Content::Streaming { live, .. } => Shape::Streaming { frontier: live.frontier() },
        Content::Committing { .. } => Shape::Committing,
        Content::Failed { .. } => Shape::Failed,
    }
}

fn drop_failed(content: &Content) -> Result<()> {
    match content {
        Content::Failed { error, .. } => Err(error.clone()),
        _ => Ok(()),
    }
}

/// The base of a content that is about to become another one.
fn take_base(content: &mut Content) -> Option<FileMeta> {
    match std::mem::replace(content, Content::New) {
        Content::New => None,
        Content::Clean { base, .. } => Some(base),
        Content::Streaming { base, .. } | Content::Committing { base, .. } | Content::Failed { base, .. } => {
            base
        }
    }
}

fn read_flow(flow: &Flow, offset: u64, len: usize) -> Result<Bytes> {
    let mut out = vec![0; len];
    let mut done = 0;
    while done < len {
        done += flow.read(offset + done as u64, &mut out[done..])?.ok_or_else(not_held)?;
    }
    Ok(out.into())
}
