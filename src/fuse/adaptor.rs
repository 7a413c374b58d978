//! fuser's trait on top of [`Vfs`]: types are converted, requests dispatched, nothing is decided.

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

mod answering;

use super::capabilities;
use super::convert::{self, GENERATION};
use super::dispatch::{Limit, Op, OpenedFolder, Seen, killed, refuse};
use crate::error::{Error, ErrorKind};
use crate::ids::Ino;
use crate::vfs::{Caller, Fh, SetAttr, Vfs};

/// Longest wait for anything that moves no content.
const METADATA_WAIT_MAX: Limit = Limit::Within(Duration::from_secs(60));
/// Longest wait for one READ.
const READ_WAIT_MAX: Limit = Limit::WhileComing(Duration::from_secs(120));
/// What is added to the commit timeout, so that the better message of the layer below comes first.
const COMMIT_MARGIN: Duration = Duration::from_secs(30);

/// The file system as fuser drives it.
pub(super) struct Adaptor {
    vfs: Arc<Vfs>,
    runtime: Handle,
    commit_wait_max: Limit,
    /// Set when the session is over.
    ended: watch::Sender<bool>,
    /// Cloned into every task: the receiver's end is the end of all of them and of the session.
    busy: mpsc::Sender<()>,
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), tid: request.pid() }
}

/// The signatures are fuser's.
#[allow(clippy::too_many_arguments)]
impl Filesystem for Adaptor {
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
        let op = Op::on(req, "lookup", parent.0);
        let work = async move { vfs.lookup(Ino(parent.0), &name).await };
        self.dispatch(op, METADATA_WAIT_MAX, reply, work, move |reply, found| match found {
            Some(entry) => convert::entry(reply, &entry),
            // Inode 0 is "no such name", to be remembered for that long.
            None if absent_ttl > Duration::ZERO => reply.entry(&absent_ttl, &convert::ABSENT, GENERATION),
            None => refuse(op, reply, &Error::new(ErrorKind::NotFound, "no such name")),
        });
    }

    /// Without reply and without I/O, so it is done here; a batch comes one by one.
    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.vfs.forget(Ino(ino.0), lookups);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let vfs = self.vfs.clone();
        let op = Op::on(req, "getattr", ino.0).with_handle(fh.map_or(0, |fh| fh.0));
        let work = async move { vfs.getattr(Ino(ino.0)).await.map(Seen) };
        self.dispatch(op, METADATA_WAIT_MAX, reply, work, |reply, Seen(entry)| {
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
        let op =
            Op::on(req, "setattr", ino.0).with_handle(fh.map_or(0, |fh| fh.0)).over(0, size.unwrap_or(0));
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
        let limit = if size.is_some() { self.commit_wait_max } else { METADATA_WAIT_MAX };
        let work = async move { vfs.setattr(Ino(ino.0), fh.map(|fh| Fh(fh.0)), set, caller).await.map(Seen) };
        self.dispatch(op, limit, reply, work, |reply, Seen(entry)| {
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
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let op = Op::on(req, "mknod", parent.0);
        let Some(kind) = convert::kind_of_mode(mode) else {
            return Self::never(op, ErrorKind::NotPermitted, reply);
        };
        let (vfs, name, caller) = (self.vfs.clone(), name.to_owned(), caller(req));
        let work = async move { vfs.mknod(Ino(parent.0), &name, kind, mode, caller).await };
        self.dispatch(op, self.commit_wait_max, reply, work, |reply, entry| convert::entry(reply, &entry));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let (vfs, name, caller) = (self.vfs.clone(), name.to_owned(), caller(req));
        let work = async move { vfs.mkdir(Ino(parent.0), &name, mode, caller).await };
        self.dispatch(Op::on(req, "mkdir", parent.0), METADATA_WAIT_MAX, reply, work, |reply, entry| {
            convert::entry(reply, &entry);
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        let work = async move { vfs.unlink(Ino(parent.0), &name).await };
        self.dispatch(Op::on(req, "unlink", parent.0), METADATA_WAIT_MAX, reply, work, |reply, ()| {
            reply.ok();
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), name.to_owned());
        let work = async move { vfs.rmdir(Ino(parent.0), &name).await };
        self.dispatch(Op::on(req, "rmdir", parent.0), METADATA_WAIT_MAX, reply, work, |reply, ()| reply.ok());
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (vfs, name, caller) = (self.vfs.clone(), name.to_owned(), caller(req));
        let target = target.as_os_str().to_owned();
        let work = async move { vfs.symlink(Ino(parent.0), &name, &target, caller).await };
        self.dispatch(Op::on(req, "symlink", parent.0), self.commit_wait_max, reply, work, |reply, entry| {
            convert::entry(reply, &entry);
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.readlink(Ino(ino.0)).await };
        self.dispatch(Op::on(req, "readlink", ino.0), READ_WAIT_MAX, reply, work, |reply, target| {
            reply.data(&target);
        });
    }

    fn link(&self, req: &Request, ino: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        Self::never(Op::on(req, "link", ino.0), ErrorKind::NotPermitted, reply);
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
        let op = Op::on(req, "rename", parent.0);
        let mode = match convert::rename_mode(flags) {
            Ok(mode) => mode,
            Err(error) => return self.refuse(op, reply, &error),
        };
        let (vfs, name, new_name) = (self.vfs.clone(), name.to_owned(), new_name.to_owned());
        let work =
            async move { vfs.rename((Ino(parent.0), &name), (Ino(new_parent.0), &new_name), mode).await };
        // Giving the target the content of the source may have to move it.
        self.dispatch(op, self.commit_wait_max, reply, work, |reply, ()| reply.ok());
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work = async move { vfs.access(Ino(ino.0), mask.bits(), caller).await };
        self.dispatch(Op::on(req, "access", ino.0), METADATA_WAIT_MAX, reply, work, |reply, ()| reply.ok());
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let vfs = self.vfs.clone();
        let work = async move { Ok(vfs.statfs().await) };
        self.dispatch(Op::on(req, "statfs", ino.0), METADATA_WAIT_MAX, reply, work, convert::statfs);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.opendir(Ino(ino.0)).await.map(OpenedFolder) };
        self.dispatch(Op::on(req, "opendir", ino.0), METADATA_WAIT_MAX, reply, work, |reply, folder| {
            reply.opened(FileHandle(folder.0.0), fuser::FopenFlags::empty());
        });
    }

    fn readdir(&self, req: &Request, ino: INodeNo, dh: FileHandle, cookie: u64, reply: ReplyDirectory) {
        let vfs = self.vfs.clone();
        let op = Op::on(req, "readdir", ino.0).with_handle(dh.0).over(cookie, 0);
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
        let op = Op::on(req, "readdirplus", ino.0).with_handle(dh.0).over(cookie, 0);
        let work = async move { vfs.readdir(Fh(dh.0), cookie, true).await };
        self.dispatch(op, METADATA_WAIT_MAX, reply, work, move |mut reply, entries| {
            convert::fill_plus(&mut reply, entries, &counting);
            reply.ok();
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, dh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.vfs.releasedir(Fh(dh.0));
        reply.ok();
    }

    /// Changes of a folder are on the drive when they are answered.
    /// What changes a name returns when the drive has the change. The name of a file that is not saved yet comes with
    /// its content.
    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work = async move { vfs.open(Ino(ino.0), flags.0, caller).await };
        // A file that is just being committed is opened when that is over.
        self.dispatch(Op::on(req, "open", ino.0), self.commit_wait_max, reply, work, |reply, opened| {
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
        let op = Op::on(req, "create", parent.0);
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
        let op = Op::on(req, "read", ino.0).with_handle(fh.0).over(offset, size.into());
        let work = async move { vfs.read(Fh(fh.0), offset, size).await };
        self.dispatch(op, READ_WAIT_MAX, reply, work, |reply, bytes| reply.data(&bytes));
    }

    /// The common case is answered here, without a copy and without a task: the bytes fit into a
    /// part buffer.
    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        bytes: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let op = Op::on(req, "write", ino.0).with_handle(fh.0).over(offset, bytes.len() as u64);
        if flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
            && let Err(error) = self.vfs.drop_set_ids(Ino(ino.0), caller(req))
        {
            return self.refuse(op, reply, &error);
        }
        let taken = match self.vfs.write_now(Fh(fh.0), offset, bytes) {
            Ok(taken) if taken == bytes.len() => return reply.written(bytes.len() as u32),
            Ok(taken) => taken,
            Err(error) => return self.refuse(op, reply, &error),
        };
        let (vfs, rest) = (self.vfs.clone(), Bytes::copy_from_slice(&bytes[taken..]));
        let work = async move {
            // Nothing more is written for who is dead: its close follows at once. A write can be left wherever it waits.
            let outcome = tokio::select! {
                outcome = vfs.write(Fh(fh.0), offset + taken as u64, rest) => outcome,
                error = killed(op.pid) => Err(error),
            };
            match outcome {
                // What was taken stays taken; the error comes with the next call.
                Err(_) if taken > 0 => Ok(taken as u32),
                outcome => outcome.map(|written| (taken + written) as u32),
            }
        };
        self.dispatch(op, self.commit_wait_max, reply, work, ReplyWrite::written);
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let op = Op::on(req, "flush", ino.0).with_handle(fh.0);
        let work = async move { vfs.flush(Fh(fh.0), caller).await };
        self.dispatch(op, self.commit_wait_max, reply, work, |reply, ()| reply.ok());
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        let op = Op::on(req, "fsync", ino.0).with_handle(fh.0);
        let work = async move { vfs.fsync(Fh(fh.0)).await };
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
        let op = Op::on(req, "release", ino.0).with_handle(fh.0);
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
        let op = Op::on(req, "fallocate", ino.0).with_handle(fh.0).over(offset, length);
        let wanted = match convert::allocation(mode) {
            Ok(wanted) => wanted,
            Err(error) => return self.refuse(op, reply, &error),
        };
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work = async move { vfs.allocate(Ino(ino.0), Fh(fh.0), (offset, length), wanted, caller).await };
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
        let set = self.vfs.setxattr(Ino(ino.0), name, value, flags);
        convert::done(Op::on(req, "setxattr", ino.0), reply, set);
    }

    /// All is known here, so these are answered at once; programs that list folders ask for each file.
    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.vfs.getxattr(Ino(ino.0), name);
        convert::xattr(Op::on(req, "getxattr", ino.0), reply, size, value);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.vfs.listxattr(Ino(ino.0));
        convert::xattr(Op::on(req, "listxattr", ino.0), reply, size, names);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.vfs.removexattr(Ino(ino.0), name);
        convert::done(Op::on(req, "removexattr", ino.0), reply, removed);
    }

    // From here on: refused once, after which the kernel knows and answers by itself.

    fn lseek(&self, req: &Request, ino: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        Self::never(Op::on(req, "lseek", ino.0), ErrorKind::NotImplemented, reply);
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
        Self::never(Op::on(req, "ioctl", ino.0), ErrorKind::NotImplemented, reply);
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
        let op = Op::on(req, "copy_file_range", ino.0).with_handle(from.0).over(offset, len);
        let vfs = self.vfs.clone();
        let work = async move { vfs.copy_range((Fh(from.0), offset), (Fh(to.0), to_offset), len).await };
        self.dispatch(op, self.commit_wait_max, reply, work, ReplyWrite::written);
    }
}
