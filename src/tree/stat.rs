//! What a program is told of an inode, as far as the tree knows.

use std::sync::Arc;
use std::time::SystemTime;

use crate::pds::types::FileType;
use crate::posix::{Posix, Special};

/// Attributes as the drive has them.
#[derive(Clone, PartialEq, Debug)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Last change of content.
    pub mtime: SystemTime,
    /// Last change of anything.
    pub ctime: SystemTime,
    /// When the object came to be.
    pub crtime: SystemTime,
    /// What else is known.
    pub posix: Option<Arc<Posix>>,
    /// Names that lead to it: one for a file; for a folder its own, its `.`, and the `..` of each folder in
    /// it; one where those are not known. None where no folder has a dentry for it.
    pub nlink: u32,
}

/// What an inode is to a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// To the drive, a file.
    Special(Special),
}

impl Kind {
    pub(super) fn of(kind: FileType, posix: Option<&Posix>) -> Self {
        match kind {
            FileType::Folder => Self::Folder,
            FileType::File => posix.and_then(|posix| posix.special).map_or(Self::File, Self::Special),
        }
    }
}
