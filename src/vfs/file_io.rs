//! File content: open, create, read, write. The ends of handles are in [`super::close`], truncation and holes in
//! [`super::truncate`].

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::Vfs;
use super::callers::thread_group;
use super::handles::{Access, Handle, HandleId};
use super::types::{Caller, Entry, Fh, OpenedFile};
use crate::clock;
use crate::content::open_file::{DiskOutcome, OpenFile, ReadSource, WriteAt, WriteOutcome, Writer};
use crate::content::reader::ReadTarget;
use crate::content::staged_file::Piece;
use crate::content::streaming::{Appended, Wait};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Ino;
use crate::pds::part_body::load;
use crate::pds::types::FileType;
use crate::posix::Posix;
use crate::tree::{FileKind, Name};
use crate::units::exact_duration;

/// Longest wait for bytes of a cached file. The drive has them too.
const CACHED_READ_MAX: Duration = Duration::from_secs(10);

impl Vfs {
    /// `flags` as in open(2).
    pub async fn open(&self, ino: Ino, flags: i32, caller: Caller) -> Result<OpenedFile> {
        self.check_not_recycled(ino)?;
        let access = Access::of(flags);
        let file = self.open_file(ino, access.may_commit())?;
        if access.may_commit() {
            file.set_user(caller.uid);
        }
        let id = self.next_handle_id(access, caller);
        let opened = self.add_handle(file, access, id);
        if flags & libc::O_TRUNC != 0 {
            let truncated = self.truncate(opened.fh, 0).await;
            let is_truncated = truncated.is_ok();
            if let Err(error) = truncated.and_then(|()| self.clear_setid_bits(ino, caller)) {
                let ended = if is_truncated {
                    self.abandon_open(opened.fh).await
                } else {
                    self.release(opened.fh).await
                };
                tracing::debug!(%ino, ?ended, "a handle ended because its open failed");
                return Err(error);
            }
        }
        Ok(opened)
    }

    fn next_handle_id(&self, access: Access, caller: Caller) -> HandleId {
        self.handles.next_id(access.may_commit().then(|| thread_group(caller.tid)).flatten())
    }

    /// Adds a handle to the open file of an inode. The first handle creates the open file.
    ///
    /// After a remote change, existing readers continue to read the revision that they opened, or get ESTALE.
    /// They never see a mixture. New readers get a new inode with the new revision.
    pub(super) fn open_file(&self, ino: Ino, writes: bool) -> Result<Arc<OpenFile>> {
        let now = self.tree().meta(ino).cloned();
        let former = self.files.get(ino).zip(now).and_then(|(file, now)| file.stale_base(&now));
        let (file, meta) = {
            let mut tree = self.tree();
            if let Some(former) = former
                && self.files.has_readers_only(ino)
                && tree.reallocate_inode(ino, former)
            {
                // ESTALE makes the kernel look the name up again.
                return Err(Error::new(ErrorKind::Stale, "another client has changed the file"));
            }
            if tree.kind(ino)? == FileType::Folder {
                return Err(Error::new(ErrorKind::IsDirectory, "is a directory"));
            }
            if tree.parent(ino).is_none() && self.files.get(ino).is_none() {
                // The same: another file may have the name by now.
                return Err(Error::new(ErrorKind::Stale, "the file was removed"));
            }
            tree.pin(ino)?;
            let (meta, name) = (tree.meta(ino).cloned(), tree.display_path(ino));
            let (upload_context, progress) = (self.upload_context.clone(), self.progress.clone());
            let make = || OpenFile::new(ino, upload_context, progress, &name, meta.clone());
            (self.files.open(ino, writes, make), meta)
        };
        if let (false, Some(meta)) = (file.has_local_content(), meta)
            && file.base().is_none_or(|base| base.revision != meta.revision)
        {
            // Another client has changed the file since it was first opened here.
            file.set_base(&meta);
        }
        Ok(file)
    }

    fn add_handle(&self, file: Arc<OpenFile>, access: Access, id: HandleId) -> OpenedFile {
        let ino = file.ino();
        let has_local_content = file.has_local_content();
        let revision = file.base().and_then(|base| base.revision).filter(|_| !has_local_content);
        let keep_cache = !access.may_commit() && self.set_cached_revision(ino, revision);
        let handle = Handle::new(file, access, id, self.reader.cursor());
        // The kernel must not cache content that is still growing. Streams are twice as fast without the page
        // cache.
        let direct_io = access.may_commit() || has_local_content;
        OpenedFile { fh: self.handles.add(handle), direct_io, keep_cache: keep_cache && !direct_io }
    }

    /// Creates and opens a file. The drive sees it with the first full part or at close.
    pub async fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        (flags, mode): (i32, u32),
        caller: Caller,
    ) -> Result<(Entry, OpenedFile)> {
        let posix = self.initial_posix(parent, FileKind::File, mode, caller)?;
        self.create_as(parent, name, flags, posix, caller).await
    }

    /// Like [`Self::create`], with given attributes.
    pub(super) async fn create_as(
        &self,
        parent: Ino,
        name: &OsStr,
        flags: i32,
        posix: Option<Arc<Posix>>,
        caller: Caller,
    ) -> Result<(Entry, OpenedFile)> {
        self.check_not_recycled(parent)?;
        if let Some(entry) = self.lookup_known(parent, name).await? {
            let opened = if flags & libc::O_EXCL != 0 {
                Err(Error::new(ErrorKind::Exists, format!("{} exists", name.display())))
            } else {
                self.open(entry.attr.ino, flags, caller).await
            };
            // The lookup is counted for the returned entry only.
            return opened
                .map(|opened| (entry.clone(), opened))
                .inspect_err(|_| self.forget(entry.attr.ino, 1));
        }
        self.check_accepts_content()?;
        let (now, name) = (clock::now(), Name::new(name)?);
        let ino = {
            let mut tree = self.tree();
            let ino = tree.create_local(parent, &name, Instant::now(), (now, posix))?;
            tree.names_changed(&[parent], &[], now);
            // For the entry that is returned.
            let _ = tree.count_lookup(ino);
            ino
        };
        let access = match Access::of(flags) {
            Access::Read => Access::ReadNew,
            access => access,
        };
        let file = self.open_file(ino, true)?;
        if let Err(error) = self.make_local_if_matching(&file, parent, &name) {
            self.mark_unlinked(ino);
            self.tree().unlink(ino, Instant::now());
            self.files.release_writer(ino);
            self.close_file(&file);
            self.forget(ino, 1);
            return Err(error);
        }
        file.set_mtime(now);
        file.set_user(caller.uid);
        let id = self.next_handle_id(access, caller);
        file.created_by(id.writer());
        let opened = self.add_handle(file, access, id);
        Ok((self.getattr(ino).await?, opened))
    }

    /// Reads bytes at `offset`. A short read means end of file.
    pub async fn read(&self, fh: Fh, offset: u64, size: u32) -> Result<Bytes> {
        let handle = self.handles.get(fh)?;
        loop {
            match handle.file.read(offset, size.into())? {
                ReadSource::Drive(base) => {
                    return self
                        .reader
                        .read(&ReadTarget::of(&base), &handle.cursor, offset, size.into())
                        .await;
                }
                ReadSource::Pieces(pieces) => return self.read_pieces(&handle, pieces).await,
                ReadSource::Cached(target, pieces) => match self.read_cached(&handle, pieces).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => self.drop_cached(&handle.file, &target, &error),
                },
                ReadSource::Unavailable => self.make_readable(&handle).await?,
            }
        }
    }

    async fn read_cached(&self, handle: &Handle, pieces: Vec<Piece>) -> Result<Bytes> {
        let cached = self.read_pieces(handle, pieces);
        let disk = &self.upload_context.disk;
        disk.within(CACHED_READ_MAX, cached).await?
    }

    /// Drops a cached file that cannot be read: the drive has its bytes.
    fn drop_cached(&self, file: &OpenFile, target: &ReadTarget, error: &Error) {
        drop(self.upload_context.cached_files.remove(target));
        let (op, ino, errno, dir) = ("read", file.ino(), error.errno(), self.upload_context.disk.dir());
        tracing::warn!(
            op,
            %ino,
            errno,
            "{}: not read from the local disk but from the drive: {error} (check the disk of {}, or choose another \
             directory with --spill-dir)",
            self.path_of(ino),
            dir.display()
        );
    }

    /// Makes streamed bytes readable again by a commit. Only for writers: a reader must not cause a revision
    /// of half a file.
    async fn make_readable(&self, handle: &Handle) -> Result<()> {
        if let Some(mut running) = handle.file.running_commit() {
            // The next attempt handles the result.
            let _ = self.bounded(running.wait_for(Option::is_some)).await?.is_ok();
            return Ok(());
        }
        if handle.access.may_commit() && !handle.file.is_unlinked() {
            return self.commit_for(&[Some(handle.id.writer())], &handle.file).await;
        }
        let detail = "these bytes were uploaded and can be read after the file is closed";
        Err(Error::new(ErrorKind::Unsupported, detail))
    }

    /// Assembles a read from local bytes and bytes of the drive.
    async fn read_pieces(&self, handle: &Handle, pieces: Vec<Piece>) -> Result<Bytes> {
        let (mut all, mut local) = (BytesMut::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Local(frame) => local.push(frame),
                Piece::Base { target, offset, len } => {
                    all.extend_from_slice(&load(std::mem::take(&mut local)).await?);
                    let bytes = self.reader.read(&target, &handle.cursor, offset, len).await?;
                    if bytes.len() as u64 != len {
                        let detail = "the base revision on the drive is shorter than its recorded size";
                        return Err(Error::new(ErrorKind::Integrity, detail));
                    }
                    all.extend_from_slice(&bytes);
                }
            }
        }
        let rest = load(local).await?;
        if all.is_empty() {
            return Ok(rest);
        }
        all.extend_from_slice(&rest);
        Ok(all.freeze())
    }

    /// The fast path of a write: accepts as many bytes as possible without waiting, possibly none.
    pub fn try_write(&self, fh: Fh, at: WriteAt, data: &[u8]) -> Result<Appended> {
        self.check_accepts_content()?;
        let handle = self.handles.get(fh)?;
        handle.check_open_for_writing()?;
        if self.is_room_unchecked(data.len()) {
            return Ok(Appended { bytes: 0, wait: None });
        }
        let resolve_target = || self.commit_target(handle.file.ino());
        match handle.file.write(at, data, handle.id.writer(), &resolve_target)? {
            WriteOutcome::Accepted(appended) => Ok(appended),
            WriteOutcome::Committing => Ok(Appended { bytes: 0, wait: Some(Wait::Commit) }),
            WriteOutcome::MustCommit
            | WriteOutcome::MustBackfill { .. }
            | WriteOutcome::Disk(_)
            | WriteOutcome::DiskBusy => Ok(Appended { bytes: 0, wait: None }),
        }
    }

    /// Writes all of `data` and waits where necessary. A short count means that an error followed.
    pub async fn write(&self, fh: Fh, at: WriteAt, data: Bytes) -> Result<usize> {
        let handle = self.handles.get(fh)?;
        handle.check_open_for_writing()?;
        self.check_room(&handle.file, at, data.len()).await?;
        let (writer, resolve_target) = (handle.id.writer(), || self.commit_target(handle.file.ino()));
        let step = |done| {
            self.check_accepts_content()?;
            // It may have been released since: the program had its answer at the deadline.
            self.handles.get(fh)?;
            handle.file.write(at.after(done), &data[done..], writer, &resolve_target)
        };
        let written = self.write_steps(&handle.file, Some(writer), &data, step).await?;
        self.wait_for_room_in(&handle.file).await;
        Ok(written)
    }

    /// Calls `step` with the number of bytes done, until all `data` is done or a step fails. `writer`: the one
    /// that may need a commit first.
    pub(super) async fn write_steps(
        &self,
        file: &Arc<OpenFile>,
        writer: Option<Writer>,
        data: &Bytes,
        step: impl Fn(usize) -> Result<WriteOutcome>,
    ) -> Result<usize> {
        let (mut done, len) = (0, data.len());
        while done < len {
            let upload = file.upload();
            // Created before the attempt, so that no notification in between is missed.
            let changes = self.changes(file, upload.as_ref());
            let stepped = match step(done) {
                Ok(outcome) => self.finish_step(file, writer, outcome, data.slice(done..)).await,
                Err(error) => Err(error),
            };
            let wait = stepped.map(|(bytes, wait)| {
                done += bytes;
                wait
            });
            let wait = match wait {
                Ok(wait) => wait,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            let Some(wait) = wait.filter(|_| done < len) else { continue };
            tokio::select! {
                () = changes.wait(wait) => {}
                () = self.writer_idle(wait, upload.as_ref()) => break,
            }
        }
        if done == 0 && len > 0 {
            return Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "upload stalled: no data of this file accepted for {}",
                    exact_duration(self.config.options.commit_timeout)
                ),
            ));
        }
        Ok(done)
    }

    /// Finishes a step of a write, of which `rest` is not written yet. Returns the bytes that were written, and
    /// what to wait for before the next step.
    async fn finish_step(
        &self,
        file: &Arc<OpenFile>,
        writer: Option<Writer>,
        outcome: WriteOutcome,
        rest: Bytes,
    ) -> Result<(usize, Option<Wait>)> {
        match outcome {
            WriteOutcome::Accepted(appended) => Ok((appended.bytes, appended.wait)),
            WriteOutcome::Committing => Ok((0, Some(Wait::Commit))),
            WriteOutcome::MustCommit => self.commit_first(file, &[writer]).await.map(|()| (0, None)),
            WriteOutcome::MustBackfill { to } => self.backfill(file, to).await.map(|()| (0, None)),
            WriteOutcome::DiskBusy => file.wait_for_disk().await.map(|()| (0, None)),
            WriteOutcome::Disk(change) => match change.run(rest).await? {
                DiskOutcome::Done(bytes) => Ok((bytes, None)),
                DiskOutcome::Again => Ok((0, None)),
                DiskOutcome::MustCommit => self.commit_first(file, &[writer]).await.map(|()| (0, None)),
            },
        }
    }

    /// Commits a file of which this machine does not have all bytes, before one of `writers` changes it.
    pub(super) async fn commit_first(&self, file: &Arc<OpenFile>, writers: &[Option<Writer>]) -> Result<()> {
        if file.is_unlinked() {
            let detail = "a deleted file that was streamed accepts only writes at its end";
            return Err(Error::new(ErrorKind::Unsupported, detail));
        }
        self.commit_for(writers, file).await
    }
}
