//! Conversions between types of `vfs` and fuser. Pure, except for the lookup counts in [`fill_plus`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    FileAttr, FopenFlags, Generation, INodeNo, OpenFlags, RenameFlags, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEntry, ReplyStatfs, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::dispatch::{FuseOp, reply_error};

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::posix::{DeviceNumber, Special};
use crate::vfs::{
    Attr, Caller, DirEntry, Entry, FallocateMode, FileKind, OpenedFile, RenameMode, Statfs, Vfs, WriteAt,
};

/// Inode numbers are not reused during a mount.
pub(super) const GENERATION: Generation = Generation(0);
/// `st_blksize`: programs like `cp` write in pieces of this size.
const BLOCK_BYTES_PREFERRED: u32 = 1 << 20;
/// Unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;
/// Longest name, in bytes.
const NAME_BYTES_MAX: u32 = 255;

/// Attributes of a negative entry. The kernel reads only the inode number 0.
pub(super) const ABSENT: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: fuser::FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: BLOCK_BYTES_PREFERRED,
    flags: 0,
};

pub(super) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), tid: request.pid() }
}

fn kind(kind: FileKind) -> fuser::FileType {
    match kind {
        FileKind::File => fuser::FileType::RegularFile,
        FileKind::Directory => fuser::FileType::Directory,
        FileKind::Special(Special::Link) => fuser::FileType::Symlink,
        FileKind::Special(Special::Fifo) => fuser::FileType::NamedPipe,
        FileKind::Special(Special::Socket) => fuser::FileType::Socket,
        FileKind::Special(Special::CharDevice(_)) => fuser::FileType::CharDevice,
        FileKind::Special(Special::BlockDevice(_)) => fuser::FileType::BlockDevice,
    }
}

/// A device number in the kernel's 32 bits: 12 bits of the major number between 8 and 12 bits of the minor.
fn encode_device(number: DeviceNumber) -> u32 {
    (number.minor & 0xff) | ((number.major & 0xfff) << 8) | ((number.minor & 0xf_ff00) << 12)
}

fn decode_device(rdev: u32) -> DeviceNumber {
    DeviceNumber { major: (rdev >> 8) & 0xfff, minor: (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00) }
}

fn rdev(kind: FileKind) -> u32 {
    match kind {
        FileKind::Special(Special::CharDevice(number) | Special::BlockDevice(number)) => {
            encode_device(number)
        }
        FileKind::File
        | FileKind::Directory
        | FileKind::Special(Special::Link | Special::Fifo | Special::Socket) => 0,
    }
}

pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.size.div_ceil(STAT_BLOCK_BYTES),
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.crtime,
        kind: kind(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: rdev(attr.kind),
        blksize: BLOCK_BYTES_PREFERRED,
        flags: 0,
    }
}

pub(super) fn entry(reply: ReplyEntry, entry: &Entry) {
    reply.entry(&entry.ttl, &attr(&entry.attr), GENERATION);
}

/// Only the request says whether a write appends: `fcntl(2)` changes the flag of an open file, and the kernel
/// writes a mapping back through any handle, at the offset of the page.
pub(super) fn write_at(offset: u64, write_flags: WriteFlags, open_flags: OpenFlags) -> WriteAt {
    if open_flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
        WriteAt::End
    } else {
        WriteAt::Offset(offset)
    }
}

pub(super) fn time(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => clock::now(),
    }
}

pub(super) fn open_flags(opened: OpenedFile) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags
}

/// The file type of a mknod mode and device number. `None` for types that mknod(2) does not know.
pub(super) fn kind_of_mode(mode: u32, rdev: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        // Type 0 means a regular file too (mknod(2)).
        libc::S_IFREG | 0 => Some(FileKind::File),
        libc::S_IFIFO => Some(FileKind::Special(Special::Fifo)),
        libc::S_IFSOCK => Some(FileKind::Special(Special::Socket)),
        libc::S_IFCHR => Some(FileKind::Special(Special::CharDevice(decode_device(rdev)))),
        libc::S_IFBLK => Some(FileKind::Special(Special::BlockDevice(decode_device(rdev)))),
        _ => None,
    }
}

/// Replies to a call without a result value.
/// Replies with a value, or with its size if the caller offers no buffer.
pub(super) fn xattr(op: FuseOp, reply: ReplyXattr, room: u32, value: &[u8]) {
    if room == 0 {
        reply.size(value.len() as u32);
    } else if value.len() <= room as usize {
        reply.data(value);
    } else {
        let error = Error::new(ErrorKind::OutOfRoom, "buffer too small for the extended attribute");
        reply_error(op, reply, &error);
    }
}

pub(super) fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else {
        Err(Error::new(ErrorKind::Invalid, format!("rename flags {flags} are not supported")))
    }
}

/// The effects of a fallocate mode. The drive reserves no space, so a preallocation only changes the size.
pub(super) fn allocation(mode: i32) -> Result<FallocateMode> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    let (zeroes, grows) = match mode {
        0 => (false, true),
        KEEP => (false, false),
        libc::FALLOC_FL_ZERO_RANGE => (true, true),
        _ if mode == KEEP | libc::FALLOC_FL_ZERO_RANGE || mode == KEEP | libc::FALLOC_FL_PUNCH_HOLE => {
            (true, false)
        }
        _ => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "fallocate modes that shift ranges are not supported",
            ));
        }
    };
    Ok(FallocateMode { zeroes, grows })
}

pub(super) fn statfs(reply: ReplyStatfs, space: Statfs) {
    let (unit, free) = (Statfs::BLOCK_BYTES, space.blocks_free);
    // The number of files is unknown: 0 of 0, as for file systems without an inode table.
    reply.statfs(space.blocks, free, free, 0, 0, unit, NAME_BYTES_MAX, unit);
}

/// Adds entries until the reply is full. The kernel continues at the cookie of the last one.
pub(super) fn fill(reply: &mut ReplyDirectory, entries: Vec<DirEntry>) {
    for e in entries {
        if reply.add(INodeNo(e.ino.0), e.cookie, kind(e.kind), &e.name) {
            break;
        }
    }
}

/// Like [`fill`], with attributes. The kernel counts each entry as a lookup, except `.` and `..`.
pub(super) fn fill_plus(reply: &mut ReplyDirectoryPlus, entries: Vec<DirEntry>, vfs: &Vfs) {
    for e in entries {
        let full = if let Some(entry) = &e.entry {
            // Counted first: the kernel may forget it as soon as it has the reply.
            vfs.count_lookup(e.ino);
            let full =
                reply.add(INodeNo(e.ino.0), e.cookie, &e.name, &entry.ttl, &attr(&entry.attr), GENERATION);
            if full {
                vfs.forget(e.ino, 1);
            }
            full
        } else {
            let bare = bare_attr(&e);
            reply.add(bare.ino, e.cookie, &e.name, &Duration::ZERO, &bare, GENERATION)
        };
        if full {
            break;
        }
    }
}

/// A placeholder for unknown attributes. A real inode number would count as a lookup, except for `.` and
/// `..`.
fn bare_attr(e: &DirEntry) -> FileAttr {
    let is_dot = e.name == "." || e.name == "..";
    let ino = if is_dot { INodeNo(e.ino.0) } else { INodeNo(0) };
    FileAttr { ino, kind: kind(e.kind), ..ABSENT }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Ino;

    #[test]
    fn st_blocks_counts_512_bytes() {
        let mut a = Attr {
            ino: Ino(7),
            size: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileKind::File,
            perm: 0o644,
            nlink: 1,
            uid: 1,
            gid: 2,
        };
        for (size, blocks) in [(0, 0), (1, 1), (512, 1), (513, 2), (1 << 20, 2048)] {
            a.size = size;
            assert_eq!(attr(&a).blocks, blocks, "{size}");
        }
        assert_eq!(attr(&a).kind, fuser::FileType::RegularFile);
    }

    #[test]
    fn fallocate_modes_except_shifting_are_supported() {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let table = [
            (0, false, true),
            (keep, false, false),
            (libc::FALLOC_FL_PUNCH_HOLE | keep, true, false),
            (libc::FALLOC_FL_ZERO_RANGE, true, true),
            (libc::FALLOC_FL_ZERO_RANGE | keep, true, false),
        ];
        for (mode, zeroes, grows) in table {
            assert_eq!(allocation(mode).unwrap(), FallocateMode { zeroes, grows });
        }
        for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
            assert_eq!(allocation(mode).unwrap_err().kind(), ErrorKind::Unsupported);
        }
    }

    #[test]
    fn rename_flags_are_exclusive() {
        assert_eq!(rename_mode(RenameFlags::empty()).unwrap(), RenameMode::Replace);
        assert_eq!(rename_mode(RenameFlags::RENAME_NOREPLACE).unwrap(), RenameMode::NoReplace);
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE).unwrap(), RenameMode::Exchange);
        let both = RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_NOREPLACE;
        assert!(rename_mode(both).is_err());
        assert!(rename_mode(RenameFlags::RENAME_WHITEOUT).is_err());
    }

    #[test]
    fn mknod_supports_all_file_types() {
        let number = DeviceNumber { major: 1, minor: 3 };
        let of = |mode| kind_of_mode(mode, encode_device(number));
        assert_eq!(of(libc::S_IFREG | 0o644), Some(FileKind::File));
        assert_eq!(of(0o644), Some(FileKind::File));
        assert_eq!(of(libc::S_IFIFO | 0o644), Some(FileKind::Special(Special::Fifo)));
        assert_eq!(of(libc::S_IFSOCK), Some(FileKind::Special(Special::Socket)));
        assert_eq!(of(libc::S_IFCHR), Some(FileKind::Special(Special::CharDevice(number))));
        assert_eq!(of(libc::S_IFBLK | 0o600), Some(FileKind::Special(Special::BlockDevice(number))));
        assert_eq!((of(libc::S_IFDIR), of(libc::S_IFLNK)), (None, None));
    }

    #[test]
    fn device_numbers_round_trip() {
        for (major, minor, rdev) in
            [(0, 0, 0), (1, 3, 0x103), (8, 0x1_2345, 0x1230_0845), (4095, 1_048_575, u32::MAX)]
        {
            let number = DeviceNumber { major, minor };
            assert_eq!((encode_device(number), decode_device(rdev)), (rdev, number));
        }
    }
}
