//! Implements fuser's trait on top of [`Vfs`]. Converts types and dispatches requests; makes no decisions.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

mod request;

use super::capabilities;
use super::convert::{self, GENERATION, caller};
use super::dispatch::{Deadline, FuseOp, OpenedDir, Uncounted, caller_killed, guarded, reply_error};
use crate::error::{Error, ErrorKind};
use crate::ids::Ino;
use crate::vfs::{Fh, SetAttr, Vfs};

/// Deadline of operations that transfer no content.
const METADATA_WAIT_MAX: Deadline = Deadline::Fixed(Duration::from_secs(60));
/// Deadline of one READ. It may wait for a commit, which uploads.
const READ_WAIT_MAX: Deadline = Deadline::TransferIdle(Duration::from_secs(120));
/// Added to the commit timeout, so that the more precise error of the layer below comes first.
const COMMIT_MARGIN: Duration = Duration::from_secs(30);

pub(super) struct FuseAdapter {
    vfs: Arc<Vfs>,
    runtime: Handle,
    commit_wait_max: Deadline,
    /// Set when the session has ended.
    ended: watch::Sender<bool>,
    /// Cloned into every task. The receiver closes when all tasks and the session have ended.
    busy: mpsc::Sender<()>,
}

/// The signatures are fuser's.
#[allow(clippy::too_many_arguments)]
impl Filesystem for FuseAdapter {
    fn init(&mut self, _: &Request, kernel: &mut KernelConfig) -> std::io::Result<()> {
        capabilities::negotiate(kernel);
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.send_replace(true);
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        let absent_ttl = vfs.negative_ttl();
        let op = FuseOp::new(req, "lookup", parent.0);
        let work = async move { vfs.lookup(Ino(parent.0), &name).await };
        self.dispatch(op, METADATA_WAIT_MAX, reply, work, move |reply, found| match found {
            Some(entry) => convert::entry(reply, &entry),
            // Inode 0 makes a negative entry with this TTL.
            None if absent_ttl > Duration::ZERO => reply.entry(&absent_ttl, &convert::ABSENT, GENERATION),
            None => reply_error(op, reply, &Error::new(ErrorKind::NotFound, "no such file or directory")),
        });
    }

    /// Needs no reply and no I/O, so it runs in the session thread.
    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        guarded("forget", || self.vfs.forget(Ino(ino.0), lookups));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let vfs = self.vfs.clone();
        let op = FuseOp::new(req, "getattr", ino.0).with_handle(fh.map_or(0, |fh| fh.0));
        let work = async move { vfs.getattr(Ino(ino.0)).await.map(Uncounted) };
        self.dispatch(op, METADATA_WAIT_MAX, reply, work, |reply, Uncounted(entry)| {
            reply.attr(&entry.ttl, &convert::attr(&entry.attr));
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let vfs = self.vfs.clone();
        let op = FuseOp::new(req, "setattr", ino.0)
            .with_handle(fh.map_or(0, |fh| fh.0))
            .with_range(0, size.unwrap_or(0));
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(convert::time),
            mtime: mtime.map(convert::time),
        };
        let caller = caller(req);
        // A new size may have to wait for content.
        let deadline = if size.is_some() { self.commit_wait_max } else { METADATA_WAIT_MAX };
        let work =
            async move { vfs.setattr(Ino(ino.0), fh.map(|fh| Fh(fh.0)), set, caller).await.map(Uncounted) };
        self.dispatch(op, deadline, reply, work, |reply, Uncounted(entry)| {
            reply.attr(&entry.ttl, &convert::attr(&entry.attr));
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let op = FuseOp::new(req, "mknod", parent.0);
        let Some(kind) = convert::kind_of_mode(mode, rdev) else {
            return Self::reply_unsupported(op, ErrorKind::Invalid, reply);
        };
        let (vfs, name, caller) = (self.vfs.clone(), name.to_owned(), caller(req));
        let work = async move { vfs.mknod(Ino(parent.0), &name, kind, mode, caller).await };
        self.dispatch(op, self.commit_wait_max, reply, work, |reply, entry| convert::entry(reply, &entry));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let (vfs, name, caller) = (self.vfs.clone(), name.to_owned(), caller(req));
        let work = async move { vfs.mkdir(Ino(parent.0), &name, mode, caller).await };
        self.dispatch(FuseOp::new(req, "mkdir", parent.0), METADATA_WAIT_MAX, reply, work, |reply, entry| {
            convert::entry(reply, &entry);
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        let work = async move { vfs.unlink(Ino(parent.0), &name).await };
        self.dispatch(FuseOp::new(req, "unlink", parent.0), METADATA_WAIT_MAX, reply, work, |reply, ()| {
            reply.ok();
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        let work = async move { vfs.rmdir(Ino(parent.0), &name).await };
        self.dispatch(FuseOp::new(req, "rmdir", parent.0), METADATA_WAIT_MAX, reply, work, |reply, ()| {
            reply.ok();
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (vfs, name, caller) = (self.vfs.clone(), name.to_owned(), caller(req));
        let target = target.as_os_str().to_owned();
        let work = async move { vfs.symlink(Ino(parent.0), &name, &target, caller).await };
        let op = FuseOp::new(req, "symlink", parent.0);
        self.dispatch(op, self.commit_wait_max, reply, work, |reply, entry| convert::entry(reply, &entry));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.readlink(Ino(ino.0)).await };
        self.dispatch(FuseOp::new(req, "readlink", ino.0), READ_WAIT_MAX, reply, work, |reply, target| {
            reply.data(&target);
        });
    }

    fn link(&self, req: &Request, ino: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        Self::reply_unsupported(FuseOp::new(req, "link", ino.0), ErrorKind::NotPermitted, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let op = FuseOp::new(req, "rename", parent.0);
        let mode = match convert::rename_mode(flags) {
            Ok(mode) => mode,
            Err(error) => return self.reply_error(op, reply, &error),
        };
        let (vfs, name, new_name) = (self.vfs.clone(), name.to_owned(), new_name.to_owned());
        let caller = caller(req);
        let work = async move {
            vfs.rename((Ino(parent.0), &name), (Ino(new_parent.0), &new_name), mode, caller).await
        };
        // A replace may have to move the content of the source.
        self.dispatch(op, self.commit_wait_max, reply, work, |reply, ()| reply.ok());
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work = async move { vfs.access(Ino(ino.0), mask.bits(), caller).await };
        self.dispatch(FuseOp::new(req, "access", ino.0), METADATA_WAIT_MAX, reply, work, |reply, ()| {
            reply.ok();
        });
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let vfs = self.vfs.clone();
        let work = async move { Ok(vfs.statfs().await) };
        self.dispatch(FuseOp::new(req, "statfs", ino.0), METADATA_WAIT_MAX, reply, work, convert::statfs);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work = async move { vfs.opendir(Ino(ino.0), caller).await.map(OpenedDir) };
        self.dispatch(FuseOp::new(req, "opendir", ino.0), METADATA_WAIT_MAX, reply, work, |reply, dir| {
            reply.opened(FileHandle(dir.0.0), fuser::FopenFlags::empty());
        });
    }

    fn readdir(&self, req: &Request, ino: INodeNo, dh: FileHandle, cookie: u64, reply: ReplyDirectory) {
        let vfs = self.vfs.clone();
        let op = FuseOp::new(req, "readdir", ino.0).with_handle(dh.0).with_range(cookie, 0);
        let work = async move { vfs.readdir(Fh(dh.0), cookie, false).await };
        self.dispatch(op, METADATA_WAIT_MAX, reply, work, |mut reply, entries| {
            convert::fill(&mut reply, entries);
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        dh: FileHandle,
        cookie: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (vfs, counting) = (self.vfs.clone(), self.vfs.clone());
        let op = FuseOp::new(req, "readdirplus", ino.0).with_handle(dh.0).with_range(cookie, 0);
        let work = async move { vfs.readdir(Fh(dh.0), cookie, true).await };
        self.dispatch(op, METADATA_WAIT_MAX, reply, work, move |mut reply, entries| {
            convert::fill_plus(&mut reply, entries, &counting);
            reply.ok();
        });
    }

    fn releasedir(&self, req: &Request, ino: INodeNo, dh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        let op = FuseOp::new(req, "releasedir", ino.0).with_handle(dh.0);
        let work = |vfs: &Vfs| {
            vfs.releasedir(Fh(dh.0));
            Ok(())
        };
        self.at_once(op, reply, work, |reply, ()| reply.ok());
    }

    /// Nothing to do: a change of a name returns after the drive has it. The name of an unsaved file is
    /// stored with its content.
    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work = async move { vfs.open(Ino(ino.0), flags.0, caller).await };
        // With `O_TRUNC`, an open waits for a running commit of the file.
        self.dispatch(FuseOp::new(req, "open", ino.0), self.commit_wait_max, reply, work, |reply, opened| {
            reply.opened(FileHandle(opened.fh.0), convert::open_flags(opened));
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (vfs, name, caller) = (self.vfs.clone(), name.to_owned(), caller(req));
        let op = FuseOp::new(req, "create", parent.0);
        let work = async move { vfs.create(Ino(parent.0), &name, (flags, mode), caller).await };
        self.dispatch(op, METADATA_WAIT_MAX, reply, work, |reply, (entry, opened)| {
            let (attr, fh) = (convert::attr(&entry.attr), FileHandle(opened.fh.0));
            reply.created(&entry.ttl, &attr, GENERATION, fh, convert::open_flags(opened));
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let vfs = self.vfs.clone();
        let op = FuseOp::new(req, "read", ino.0).with_handle(fh.0).with_range(offset, size.into());
        let work = async move { vfs.read(Fh(fh.0), offset, size).await };
        self.dispatch(op, READ_WAIT_MAX, reply, work, |reply, bytes| reply.data(&bytes));
    }

    /// The common case needs no copy and no task: the bytes fit into a part buffer.
    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        bytes: &[u8],
        flags: WriteFlags,
        open_flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let op = FuseOp::new(req, "write", ino.0).with_handle(fh.0).with_range(offset, bytes.len() as u64);
        let at = convert::write_at(offset, flags, open_flags);
        let appended = guarded(op.name, || {
            if flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
                self.vfs.clear_setid_bits(Ino(ino.0), caller(req))?;
            }
            self.vfs.try_write(Fh(fh.0), at, bytes)
        });
        let accepted = match appended {
            Some(Ok(appended)) if appended.bytes == bytes.len() && appended.wait.is_none() => {
                return reply.written(bytes.len() as u32);
            }
            Some(Ok(appended)) => appended.bytes,
            Some(Err(error)) => return self.reply_error(op, reply, &error),
            None => return,
        };
        // Usually empty: the bytes are accepted, and the reply waits until the next part may begin.
        let (vfs, rest) = (self.vfs.clone(), Bytes::copy_from_slice(&bytes[accepted..]));
        let work = async move {
            let write_rest = async {
                if rest.is_empty() {
                    return vfs.wait_for_room(Fh(fh.0)).await.map(|()| 0);
                }
                vfs.write(Fh(fh.0), at.after(accepted), rest).await
            };
            // A killed program writes no more; its close follows at once. Dropping the write is safe wherever
            // it waits.
            let outcome = tokio::select! {
                outcome = write_rest => outcome,
                error = caller_killed(&vfs, op.pid) => Err(error),
            };
            match outcome {
                // A short write; the next call returns the error.
                Err(_) if accepted > 0 => Ok(accepted as u32),
                outcome => outcome.map(|written| (accepted + written) as u32),
            }
        };
        self.dispatch(op, self.commit_wait_max, reply, work, ReplyWrite::written);
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let op = FuseOp::new(req, "flush", ino.0).with_handle(fh.0);
        let work = async move { vfs.flush(Fh(fh.0), caller).await };
        self.dispatch(op, self.commit_wait_max, reply, work, |reply, ()| reply.ok());
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let op = FuseOp::new(req, "fsync", ino.0).with_handle(fh.0);
        let work = async move { vfs.fsync(Fh(fh.0), caller).await };
        self.dispatch(op, self.commit_wait_max, reply, work, |reply, ()| reply.ok());
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let vfs = self.vfs.clone();
        let op = FuseOp::new(req, "release", ino.0).with_handle(fh.0);
        let work = async move { vfs.release(Fh(fh.0)).await };
        self.dispatch(op, self.commit_wait_max, reply, work, |reply, ()| reply.ok());
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let op = FuseOp::new(req, "fallocate", ino.0).with_handle(fh.0).with_range(offset, length);
        let mode = match convert::allocation(mode) {
            Ok(mode) => mode,
            Err(error) => return self.reply_error(op, reply, &error),
        };
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work = async move { vfs.allocate(Ino(ino.0), Fh(fh.0), (offset, length), mode, caller).await };
        self.dispatch(op, self.commit_wait_max, reply, work, |reply, ()| reply.ok());
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let (vfs, name, value) = (self.vfs.clone(), name.to_owned(), value.to_vec());
        let work = async move { vfs.setxattr(Ino(ino.0), &name, &value, flags).await };
        let op = FuseOp::new(req, "setxattr", ino.0);
        self.dispatch(op, METADATA_WAIT_MAX, reply, work, |reply, ()| reply.ok());
    }

    /// Answered from memory, without a task: programs that list directories call it for each file.
    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let op = FuseOp::new(req, "getxattr", ino.0);
        let work = |vfs: &Vfs| vfs.getxattr(Ino(ino.0), name);
        self.at_once(op, reply, work, |reply, value| convert::xattr(op, reply, size, &value));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let op = FuseOp::new(req, "listxattr", ino.0);
        let work = |vfs: &Vfs| vfs.listxattr(Ino(ino.0));
        self.at_once(op, reply, work, |reply, names| convert::xattr(op, reply, size, &names));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        let work = async move { vfs.removexattr(Ino(ino.0), &name).await };
        let op = FuseOp::new(req, "removexattr", ino.0);
        self.dispatch(op, METADATA_WAIT_MAX, reply, work, |reply, ()| reply.ok());
    }

    // Answered once with ENOSYS; the kernel does not send it again.

    fn lseek(&self, req: &Request, ino: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        Self::reply_unsupported(FuseOp::new(req, "lseek", ino.0), ErrorKind::NotImplemented, reply);
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        Self::reply_unsupported(FuseOp::new(req, "ioctl", ino.0), ErrorKind::NotImplemented, reply);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino: INodeNo,
        from: FileHandle,
        offset: u64,
        _: INodeNo,
        to: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let op = FuseOp::new(req, "copy_file_range", ino.0).with_handle(from.0).with_range(offset, len);
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work =
            async move { vfs.copy_range((Fh(from.0), offset), (Fh(to.0), to_offset), len, caller).await };
        self.dispatch(op, self.commit_wait_max, reply, work, ReplyWrite::written);
    }
}
