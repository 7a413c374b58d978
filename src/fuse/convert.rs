//! Values of `vfs` in fuser's types, and back. Pure but for the counting in [`fill_plus`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    FileAttr, FopenFlags, Generation, INodeNo, RenameFlags, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyStatfs, ReplyXattr, TimeOrNow,
};

use super::dispatch::{Op, refuse};

use crate::error::{Error, ErrorKind, Result};
use crate::posix::{self, Special};
use crate::vfs::{Allocation, Attr, DirEntry, Entry, Kind, Opened, RenameMode, Statfs, Vfs};

/// Inode numbers are not reused while a mount lives.
pub(super) const GENERATION: Generation = Generation(0);
/// `st_blksize`: `cp` and others write in pieces of this size.
const BLOCK_BYTES_PREFERRED: u32 = 1 << 20;
/// Unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;
/// Longest name, in bytes.
const NAME_BYTES_MAX: u32 = 255;

/// Attributes of a name that does not exist; only the inode number 0 is looked at.
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

fn kind(kind: Kind) -> fuser::FileType {
    match kind {
        Kind::File => fuser::FileType::RegularFile,
        Kind::Folder => fuser::FileType::Directory,
        Kind::Special(Special::Link) => fuser::FileType::Symlink,
        Kind::Special(Special::Fifo) => fuser::FileType::NamedPipe,
        Kind::Special(Special::Socket) => fuser::FileType::Socket,
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
        rdev: 0,
        blksize: BLOCK_BYTES_PREFERRED,
        flags: 0,
    }
}

pub(super) fn entry(reply: ReplyEntry, entry: &Entry) {
    reply.entry(&entry.ttl, &attr(&entry.attr), GENERATION);
}

pub(super) fn time(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => posix::now(),
    }
}

pub(super) fn open_flags(opened: Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags
}

/// What mknod makes with this mode; `None` for devices.
pub(super) fn kind_of_mode(mode: u32) -> Option<Kind> {
    match mode & libc::S_IFMT {
        // A type of 0 means a regular file too (mknod(2)).
        libc::S_IFREG | 0 => Some(Kind::File),
        libc::S_IFIFO => Some(Kind::Special(Special::Fifo)),
        libc::S_IFSOCK => Some(Kind::Special(Special::Socket)),
        _ => None,
    }
}

/// Answers a call that has no outcome but its success.
pub(super) fn done(op: Op, reply: ReplyEmpty, outcome: Result<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => refuse(op, reply, &error),
    }
}

/// Answers with a value, or with its size where none was offered room for.
pub(super) fn xattr(op: Op, reply: ReplyXattr, room: u32, value: Result<Vec<u8>>) {
    match value {
        Ok(value) if room == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= room as usize => reply.data(&value),
        Ok(_) => refuse(op, reply, &Error::new(ErrorKind::OutOfRoom, "the buffer is too small")),
        Err(error) => refuse(op, reply, &error),
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
        Err(Error::new(ErrorKind::Invalid, format!("rename flags {flags} are not offered")))
    }
}

/// The meaning of an fallocate mode. The drive reserves no space, so all that is left of a
/// preallocation is the size.
pub(super) fn allocation(mode: i32) -> Result<Allocation> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    let (zeroes, grows) = match mode {
        0 => (false, true),
        KEEP => (false, false),
        libc::FALLOC_FL_ZERO_RANGE => (true, true),
        _ if mode == KEEP | libc::FALLOC_FL_ZERO_RANGE || mode == KEEP | libc::FALLOC_FL_PUNCH_HOLE => {
            (true, false)
        }
        _ => return Err(Error::new(ErrorKind::Unsupported, "shifted ranges are not offered")),
    };
    Ok(Allocation { zeroes, grows })
}

pub(super) fn statfs(reply: ReplyStatfs, space: Statfs) {
    let (unit, free) = (Statfs::BLOCK_BYTES, space.blocks_free);
    // No number of files is known: 0 of 0, as file systems without an inode table report.
    reply.statfs(space.blocks, free, free, 0, 0, unit, NAME_BYTES_MAX, unit);
}

/// Puts in as many entries as fit; the kernel asks for the rest by the cookie of the last.
pub(super) fn fill(reply: &mut ReplyDirectory, entries: Vec<DirEntry>) {
    for e in entries {
        if reply.add(INodeNo(e.ino.0), e.cookie, kind(e.kind), &e.name) {
            break;
        }
    }
}

/// The same with attributes. The kernel counts every entry as a lookup, except `.` and `..`.
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

/// What a listing shows of an entry whose attributes are not known. A real inode number would be
/// taken for a counted lookup, except at `.` and `..`.
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
    fn blocks_are_counted_in_512_bytes() {
        let mut a = Attr {
            ino: Ino(7),
            size: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: Kind::File,
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
    fn every_allocation_but_shifting_is_offered() {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let table = [
            (0, false, true),
            (keep, false, false),
            (libc::FALLOC_FL_PUNCH_HOLE | keep, true, false),
            (libc::FALLOC_FL_ZERO_RANGE, true, true),
            (libc::FALLOC_FL_ZERO_RANGE | keep, true, false),
        ];
        for (mode, zeroes, grows) in table {
            assert_eq!(allocation(mode).unwrap(), Allocation { zeroes, grows });
        }
        for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
            assert_eq!(allocation(mode).unwrap_err().kind(), ErrorKind::Unsupported);
        }
    }

    #[test]
    fn rename_flags_have_one_meaning_each() {
        assert_eq!(rename_mode(RenameFlags::empty()).unwrap(), RenameMode::Replace);
        assert_eq!(rename_mode(RenameFlags::RENAME_NOREPLACE).unwrap(), RenameMode::NoReplace);
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE).unwrap(), RenameMode::Exchange);
        let both = RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_NOREPLACE;
        assert!(rename_mode(both).is_err());
        assert!(rename_mode(RenameFlags::RENAME_WHITEOUT).is_err());
    }

    #[test]
    fn everything_but_devices_can_be_made() {
        assert_eq!(kind_of_mode(libc::S_IFREG | 0o644), Some(Kind::File));
        assert_eq!(kind_of_mode(0o644), Some(Kind::File));
        assert_eq!(kind_of_mode(libc::S_IFIFO | 0o644), Some(Kind::Special(Special::Fifo)));
        assert_eq!(kind_of_mode(libc::S_IFSOCK), Some(Kind::Special(Special::Socket)));
        assert_eq!((kind_of_mode(libc::S_IFCHR), kind_of_mode(libc::S_IFBLK | 0o600)), (None, None));
    }
}
