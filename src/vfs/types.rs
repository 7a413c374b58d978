//! Arguments and results of the file-system operations. A leaf: depends on no other file of `vfs`.

use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::ids::Ino;
use crate::pds::drive::FileMeta;
use crate::tree::{FileKind, Name};

/// Attributes as in stat(2).
#[derive(Clone, Debug, PartialEq)]
pub struct Attr {
    pub ino: Ino,
    pub size: u64,
    /// The time set by a program, else the creation time.
    pub atime: SystemTime,
    pub mtime: SystemTime,
    pub ctime: SystemTime,
    pub crtime: SystemTime,
    pub kind: FileKind,
    /// Permission bits, 0 to 0o7777.
    pub perm: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A directory entry with its TTL in the kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub attr: Attr,
    /// For name and attributes.
    pub ttl: Duration,
}

/// The calling thread of a request.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Thread id. 0 for the kernel itself.
    pub tid: u32,
}

/// A file handle of this mount.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fh(pub u64);

/// A new handle and its flags for the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenedFile {
    pub fh: Fh,
    /// Reads and writes bypass the page cache.
    pub direct_io: bool,
    /// The page cache of the inode is still valid.
    pub keep_cache: bool,
}

/// Changes of `setattr`. `None` keeps a value.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SystemTime>,
    pub mtime: Option<SystemTime>,
}

/// Effects of fallocate(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FallocateMode {
    /// The range is filled with zeros.
    pub zeroes: bool,
    /// The file grows to the end of the range.
    pub grows: bool,
}

/// One entry of a directory listing.
#[derive(Clone, Debug)]
pub struct DirEntry {
    pub ino: Ino,
    pub kind: FileKind,
    /// The name that the kernel sees.
    pub name: std::ffi::OsString,
    /// Position after this entry. Valid for the life of the handle.
    pub cookie: u64,
    /// Attributes for readdirplus. `None` for `.` and `..`, and for plain readdir.
    pub entry: Option<Entry>,
}

/// Space on the drive, in blocks of [`Statfs::BLOCK_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    pub blocks: u64,
    pub blocks_free: u64,
}

impl Statfs {
    pub const BLOCK_BYTES: u32 = 4096;
}

/// A file, or the attributes, that could not be committed.
#[derive(Clone, Debug)]
pub struct UnsavedFile {
    /// `None` for attributes.
    pub ino: Option<Ino>,
    /// Path below the mountpoint, for display.
    pub path: String,
    pub error: Error,
}

/// A file that was committed while a program had it open.
#[derive(Clone, Debug)]
pub struct PartlySavedFile {
    pub ino: Ino,
    /// Path below the mountpoint, for display.
    pub path: String,
    /// Its size on the drive.
    pub bytes: u64,
}

/// An object in the recycle bin that was below the root of the mount.
#[derive(Clone, Debug)]
pub struct RecycledItem {
    pub meta: FileMeta,
    pub trashed_at: Option<SystemTime>,
    /// Where it was, below the mountpoint.
    pub path: String,
}

/// How rename treats an existing target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    Replace,
    /// Fails with EEXIST.
    NoReplace,
    Exchange,
}

#[derive(Clone, Debug)]
pub(super) struct NameInDir {
    pub(super) dir: Ino,
    pub(super) name: Name,
}
