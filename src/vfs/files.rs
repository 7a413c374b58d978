//! Bytes: open, create, read, write, flush, release, fsync. Other changes are in `vfs/reshape.rs`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::callers::{holds_open, thread_group};
use super::{Caller, Entry, Fh, Kind, Opened, Vfs, leave_session_thread};
use crate::content::finish::target;
use crate::content::flow::Flow;
use crate::content::open_file::{OpenFile, ReadFrom, Wrote};
use crate::content::open_files::Left;
use crate::content::reader::ReadCursor;
use crate::content::staged::Piece;
use crate::content::streaming::Wait;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::types::FileType;
use crate::posix::{self, Posix};
use crate::tree::Name;

/// How long a writer who is ahead of the local disk waits before it looks again.
const DISK_WAIT: Duration = Duration::from_millis(100);

/// A cursor on an open file.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) file: Arc<OpenFile>,
    pub(super) access: Access,
    /// The process that opened it for writing.
    opener: Option<u32>,
    /// Something was written through this handle.
    pub(super) wrote: AtomicBool,
    cursor: ReadCursor,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Read,
    /// Only reads, but has made the file, which has to come to the drive.
    Make,
    Write {
        append: bool,
    },
}

impl Access {
    fn of(flags: i32) -> Self {
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            Self::Read
        } else {
            Self::Write { append: flags & libc::O_APPEND != 0 }
        }
    }

    /// Whether closing such a handle has something to commit.
    pub(super) fn commits(self) -> bool {
        !matches!(self, Self::Read)
    }
}

/// The open handles of a mount.
#[derive(Debug, Default)]
pub(super) struct Handles {
    /// A leaf lock.
    open: Mutex<HashMap<Fh, Arc<Handle>>>,
    next: AtomicU64,
}

impl Handles {
    fn lock(&self) -> MutexGuard<'_, HashMap<Fh, Arc<Handle>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, handle: Handle) -> Fh {
        let fh = Fh(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        self.lock().insert(fh, Arc::new(handle));
        fh
    }

    pub(super) fn get(&self, fh: Fh) -> Result<Arc<Handle>> {
        self.lock().get(&fh).cloned().ok_or_else(|| Error::new(ErrorKind::BadHandle, "no such open file"))
    }

    fn remove(&self, fh: Fh) -> Option<Arc<Handle>> {
        self.lock().remove(&fh)
    }
}

impl Vfs {
    /// Opens a file. `flags` are those of open(2).
    pub async fn open(&self, ino: Ino, flags: i32, caller: Caller) -> Result<Opened> {
        let access = Access::of(flags);
        let truncates = flags & libc::O_TRUNC != 0;
        if access.commits() || truncates {
            self.check_writable()?;
        }
        if truncates && !access.commits() {
            // Nobody else will commit it.
            self.set_size(ino, None, 0).await?;
        }
        let file = self.open_file(ino, access.commits())?;
        if access.commits()
            && truncates
            && let Err(error) = self.truncate(&file, 0).await.and_then(|()| self.drop_set_ids(ino, caller))
        {
            if let Err(error) = self.leave_writer(&file).await {
                tracing::debug!(%ino, %error, "a file that could not be opened is not saved");
            }
            self.close_file(&file);
            return Err(error);
        }
        Ok(self.add_handle(file, access, caller))
    }

    /// One more handle of an inode: its open file, made where this is the first.
    ///
    /// Who reads it goes on reading what it was when somebody else has changed it, or hears that it is gone, and never gets
    /// some of each: then the new content is another inode.
    pub(super) fn open_file(&self, ino: Ino, writes: bool) -> Result<Arc<OpenFile>> {
        let now = self.tree().meta(ino).cloned();
        let former = self.files.get(ino).zip(now).and_then(|(file, now)| file.former(&now));
        let (file, meta) = {
            let mut tree = self.tree();
            if let Some(former) = former
                && self.files.has_readers_only(ino)
                && tree.renew(ino, former)
            {
                // As below.
                return Err(Error::new(ErrorKind::Stale, "somebody else has changed the file"));
            }
            if tree.kind(ino)? == FileType::Folder {
                return Err(Error::new(ErrorKind::IsDirectory, "a folder cannot be opened as a file"));
            }
            if tree.parent(ino).is_none() && self.files.get(ino).is_none() {
                // The kernel looks the name up again when it hears this.
                return Err(Error::new(ErrorKind::Stale, "the file was removed"));
            }
            tree.pin(ino)?;
            let (meta, name) = (tree.meta(ino).cloned(), tree.display_path(ino));
            let (env, progress) = (self.env.clone(), self.progress.clone());
            let make = || OpenFile::new(ino, env, progress, &name, meta.clone());
            (self.files.open(ino, writes, make), meta)
        };
        if let (false, Some(meta)) = (file.is_unsaved(), meta)
            && file.base().is_none_or(|base| base.revision != meta.revision)
        {
            // Somebody else has changed the file since it was first opened here.
            file.rebased(&meta);
        }
        Ok(file)
    }

    fn add_handle(&self, file: Arc<OpenFile>, access: Access, caller: Caller) -> Opened {
        let ino = file.ino();
        let fresh = file.is_unsaved();
        let revision = file.base().and_then(|base| base.revision).filter(|_| !fresh);
        let keep_cache = !access.commits() && self.page_cache_is_of(ino, revision);
        let handle = Handle {
            file,
            access,
            opener: access.commits().then(|| thread_group(caller.tid)).flatten(),
            wrote: AtomicBool::new(false),
            cursor: self.reader.cursor(),
        };
        // What is still growing must not be cached by the kernel; streams are twice as fast past it.
        let direct_io = access.commits() || fresh;
        Opened { fh: self.handles.add(handle), direct_io, keep_cache: keep_cache && !direct_io }
    }

    /// Creates a file and opens it. Nothing happens on the drive before there is a full part, or
    /// the file is closed.
    pub async fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        (flags, mode): (i32, u32),
        caller: Caller,
    ) -> Result<(Entry, Opened)> {
        let posix = self.newborn(parent, Kind::File, mode, caller)?;
        self.create_as(parent, name, flags, posix, caller).await
    }

    /// The same, with everything that is known of the new file.
    pub(super) async fn create_as(
        &self,
        parent: Ino,
        name: &OsStr,
        flags: i32,
        posix: Option<Arc<Posix>>,
        caller: Caller,
    ) -> Result<(Entry, Opened)> {
        self.check_writable()?;
        if let Some(entry) = self.lookup(parent, name).await? {
            let opened = if flags & libc::O_EXCL != 0 {
                Err(Error::new(ErrorKind::Exists, format!("{} exists", name.display())))
            } else {
                self.open(entry.attr.ino, flags, caller).await
            };
            // The lookup counts for the entry that is returned, and for nothing else.
            return opened
                .map(|opened| (entry.clone(), opened))
                .inspect_err(|_| self.forget(entry.attr.ino, 1));
        }
        let (now, name) = (posix::now(), Name::new(name)?);
        let ino = {
            let mut tree = self.tree();
            let ino = tree.create_local(parent, &name, Instant::now(), (now, posix))?;
            tree.names_set(&[parent], &[], now);
            // For the entry that is returned.
            let _ = tree.count_lookup(ino);
            ino
        };
        let access = match Access::of(flags) {
            Access::Read => Access::Make,
            access => access,
        };
        let file = self.open_file(ino, true)?;
        if let Err(error) = self.stay_if_local_only(&file, parent, &name) {
            self.orphan(ino);
            self.tree().unlink(ino, Instant::now());
            self.files.leave_writer(ino);
            self.close_file(&file);
            self.forget(ino, 1);
            return Err(error);
        }
        file.set_mtime(now);
        let opened = self.add_handle(file, access, caller);
        Ok((self.getattr(ino).await?, opened))
    }

    /// Bytes at `offset`; fewer than asked for only at the end.
    pub async fn read(&self, fh: Fh, offset: u64, size: u32) -> Result<Bytes> {
        let handle = self.handles.get(fh)?;
        loop {
            let read = || handle.file.read(offset, size as usize);
            let found = if handle.file.may_read_disk() {
                leave_session_thread().await;
                tokio::task::block_in_place(read)
            } else {
                read()
            };
            match found? {
                ReadFrom::Held(bytes) => return Ok(bytes),
                ReadFrom::Drive(base) => {
                    return self.reader.read(&target(&base), &handle.cursor, offset, size.into()).await;
                }
                ReadFrom::Pieces(pieces) => return self.join(&handle, pieces).await,
                ReadFrom::Gone => self.bring_back(&handle).await?,
            }
        }
    }

    /// What a program has streamed and wants to read is on the drive once it is committed. Only for who
    /// writes: others must not bring about a revision of half a file.
    async fn bring_back(&self, handle: &Handle) -> Result<()> {
        if let Some(mut running) = handle.file.running() {
            // How it ends is for the next look.
            let _ = running.wait_for(Option::is_some).await.is_ok();
            return Ok(());
        }
        if handle.access.commits() && !handle.file.is_orphan() {
            return self.settle(&handle.file).await;
        }
        let detail =
            "this part of the file is on its way to the drive and cannot be read before the file is closed";
        Err(Error::new(ErrorKind::Unsupported, detail))
    }

    /// Puts a read together from what is here and what the drive has.
    async fn join(&self, handle: &Handle, mut pieces: Vec<Piece>) -> Result<Bytes> {
        if let [Piece::Here(bytes)] = &mut pieces[..] {
            return Ok(std::mem::take(bytes));
        }
        let mut all = BytesMut::new();
        for piece in pieces {
            match piece {
                Piece::Here(bytes) => all.extend_from_slice(&bytes),
                Piece::Base { target, offset, len } => {
                    let bytes = self.reader.read(&target, &handle.cursor, offset, len).await?;
                    if bytes.len() as u64 != len {
                        let detail = "the base of a changed file is shorter than it was";
                        return Err(Error::new(ErrorKind::Integrity, detail));
                    }
                    all.extend_from_slice(&bytes);
                }
            }
        }
        Ok(all.freeze())
    }

    /// The fast path of a write: takes as many bytes as need no waiting, perhaps none.
    pub fn write_now(&self, fh: Fh, offset: u64, data: &[u8]) -> Result<usize> {
        let handle = self.handles.get(fh)?;
        let offset = handle.write_offset(offset)?;
        match handle.file.write(offset, data, &|| self.destination(handle.file.ino()), false)? {
            Wrote::Some(appended) => {
                self.note_written(&handle, appended.bytes);
                Ok(appended.bytes)
            }
            Wrote::Committing | Wrote::MustSettle | Wrote::MustRunOver { .. } => Ok(0),
        }
    }

    /// The first bytes after a commit make the file unsaved for the tree too.
    fn note_written(&self, handle: &Handle, bytes: usize) {
        if bytes > 0 {
            handle.wrote.store(true, Ordering::Relaxed);
            if handle.file.mark() {
                self.tree().mark_unsaved(handle.file.ino());
            }
        }
    }

    /// Writes all of `data`, waiting for the drive where it has to. A short count where an error
    /// comes after some bytes were taken.
    pub async fn write(&self, fh: Fh, offset: u64, data: Bytes) -> Result<usize> {
        let handle = self.handles.get(fh)?;
        leave_session_thread().await;
        let destination = || self.destination(handle.file.ino());
        let step = |done: usize| {
            let offset = handle.write_offset(offset + done as u64)?;
            let wrote = handle.file.write(offset, &data[done..], &destination, true)?;
            if let Wrote::Some(appended) = wrote {
                self.note_written(&handle, appended.bytes);
            }
            Ok(wrote)
        };
        self.put(&handle.file, data.len(), step).await
    }

    /// Takes steps, each told how many bytes are done, until `len` are or one fails.
    pub(super) async fn put(
        &self,
        file: &Arc<OpenFile>,
        len: usize,
        step: impl Fn(usize) -> Result<Wrote>,
    ) -> Result<usize> {
        let mut done = 0;
        while done < len {
            let flow = file.flow();
            // Created before the attempt, so that no change between the two is missed.
            let flow_changed = flow.as_deref().map(Flow::changed);
            let state_changed = file.state_changed();
            let memory_changed = self.env.budget.changed();
            let part_copied = self.env.space.part_done();
            let wait = match tokio::task::block_in_place(|| step(done)) {
                Ok(Wrote::Some(appended)) => {
                    done += appended.bytes;
                    Ok(appended.wait)
                }
                Ok(Wrote::Committing) => Ok(Some(Wait::Commit)),
                Ok(Wrote::MustSettle) if file.is_orphan() => Err(nowhere()),
                Ok(Wrote::MustSettle) => self.settle(file).await.map(|()| None),
                Ok(Wrote::MustRunOver { to }) => self.run_over(file, to).await.map(|()| None),
                Err(error) => Err(error),
            };
            let wait = match wait {
                Ok(wait) => wait,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            if done == len || wait.is_none() || (wait == Some(Wait::Drive) && flow.is_none()) {
                continue;
            }
            tokio::select! {
                () = notified(flow_changed) => {}
                () = state_changed => {}
                () = memory_changed => {}
                () = part_copied, if wait == Some(Wait::Disk) => {}
                // A disk that hangs copies no part, and must not be waited for long.
                () = tokio::time::sleep(DISK_WAIT), if wait == Some(Wait::Disk) => {}
                () = self.standstill(self.config.commit_timeout) => break,
            }
        }
        if done == 0 && len > 0 {
            return Err(Error::new(ErrorKind::Timeout, "the drive takes no bytes"));
        }
        Ok(done)
    }

    /// A descriptor was closed. Commits where that was the last one of the process that opened the
    /// file; otherwise only reports.
    pub async fn flush(&self, fh: Fh, caller: Caller) -> Result<()> {
        let handle = self.handles.get(fh)?;
        if !handle.access.commits() {
            return Ok(());
        }
        handle.file.check()?;
        if handle.file.is_unsaved() && self.is_last_close(&handle, caller) {
            return self.settle(&handle.file).await;
        }
        Ok(())
    }

    /// Whether the close behind a FLUSH is the one that commits: the last one of the process that
    /// opened the file.
    fn is_last_close(&self, handle: &Handle, caller: Caller) -> bool {
        let closer = thread_group(caller.tid);
        if closer.is_some() && handle.opener.is_some() && closer != handle.opener {
            return false;
        }
        let held = closer
            .zip(self.device.get())
            .and_then(|(closer, device)| holds_open(closer, handle.file.ino(), *device));
        // Where it cannot be found out, a handle that was written through is committed.
        held.map_or_else(|| handle.wrote.load(Ordering::Relaxed), |held| !held)
    }

    /// Brings everything to the drive, the modification time too.
    pub async fn fsync(&self, fh: Fh) -> Result<()> {
        let handle = self.handles.get(fh)?;
        if handle.access.commits() {
            self.settle(&handle.file).await?;
            if let Some(base) = handle.file.base() {
                self.pending.flush_file(&self.drive, &self.tree, &base.file_id).await?;
            }
        }
        Ok(())
    }

    /// The last descriptor of a handle is gone. What nobody committed yet is committed now.
    pub async fn release(&self, fh: Fh) -> Result<()> {
        let Some(handle) = self.handles.remove(fh) else {
            return Err(Error::new(ErrorKind::BadHandle, "no such open file"));
        };
        let writes = handle.access.commits();
        let settled = if writes { self.leave_writer(&handle.file).await } else { Ok(()) };
        self.close_file(&handle.file);
        settled
    }

    /// One writer less; the last one commits.
    pub(super) async fn leave_writer(&self, file: &Arc<OpenFile>) -> Result<()> {
        if self.files.leave_writer(file.ino()) { self.settle(file).await } else { Ok(()) }
    }

    /// One handle less, which writes no more.
    pub(super) fn close_file(&self, file: &Arc<OpenFile>) {
        let failed = file.check().is_err();
        let left = {
            // Under the tree's lock, as opening is: a name is not discarded under a new handle.
            let mut tree = self.tree();
            let left = self.files.close(file.ino());
            if left == Left::Nothing && failed {
                // It did not come to the drive, and its error has been told.
                tree.discard(file.ino(), Instant::now());
            }
            tree.unpin(file.ino());
            left
        };
        if left == Left::Nothing
            && file.is_orphan()
            && let Some(base) = file.base()
        {
            if self.files.all().iter().all(|other| other.copies(&base.file_id).is_none()) {
                self.reader.let_go(&target(&base));
            }
            drop(self.env.space.kept().take(&target(&base)));
        }
        if left == Left::Readers {
            file.no_more_writers();
        }
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        if self.config.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "mounted read-only"));
        }
        Ok(())
    }
}

/// A deleted file cannot be committed to be changed.
pub(super) fn nowhere() -> Error {
    Error::new(ErrorKind::Unsupported, "a deleted file that was streamed can only be written on at its end")
}

/// Waits for a change that may come; for ever, where none can.
async fn notified(change: Option<tokio::sync::futures::Notified<'_>>) {
    match change {
        Some(change) => change.await,
        None => std::future::pending().await,
    }
}

impl Handle {
    fn write_offset(&self, offset: u64) -> Result<u64> {
        match self.access {
            Access::Read | Access::Make => Err(Error::new(ErrorKind::BadHandle, "not open for writing")),
            Access::Write { append: true } => Ok(self.file.size()),
            Access::Write { append: false } => Ok(offset),
        }
    }
}
