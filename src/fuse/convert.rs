//! Values of `vfs` in fuser's types, and back. Pure but for the counting in [`fill_plus`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    FileAttr, FopenFlags, Generation, INodeNo, RenameFlags, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry,
    ReplyStatfs, TimeOrNow,
};

use crate::error::{Error, ErrorKind, Result};
use crate::pds::types::FileType;
use crate::vfs::{Attr, DirEntry, Entry, Opened, RenameMode, Statfs, Vfs};

/// Inode numbers are not reused while a mount lives.
pub(super) const GENERATION: Generation = Generation(0);
/// `st_blksize`: `cp` and others write in pieces of this size.
const BLOCK_BYTES_PREFERRED: u32 = 1 << 20;
/// Unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;
/// Longest name, in bytes.
const NAME_BYTES_MAX: u32 = 255;
/// How mknod opens what it makes.
pub(super) const CREATE_NEW: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;

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

fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::File => fuser::FileType::RegularFile,
        FileType::Folder => fuser::FileType::Directory,
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
        TimeOrNow::Now => SystemTime::now(),
    }
}

pub(super) fn open_flags(opened: Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags
}

pub(super) fn is_regular(mode: u32) -> bool {
    // A type of 0 means a regular file too (mknod(2)).
    matches!(mode & libc::S_IFMT, libc::S_IFREG | 0)
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

/// What an fallocate does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Allocation {
    /// The stretch becomes zeros.
    pub(super) zeroes: bool,
    /// The file becomes as long as the stretch reaches.
    pub(super) grows: bool,
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
            kind: FileType::File,
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
    fn devices_are_not_regular_files() {
        assert!(is_regular(libc::S_IFREG | 0o644) && is_regular(0o644));
        assert!(!is_regular(libc::S_IFIFO | 0o644) && !is_regular(libc::S_IFSOCK));
    }
}
