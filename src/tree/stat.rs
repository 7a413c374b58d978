//! Attributes of an inode as far as the tree knows them.

use std::sync::Arc;
use std::time::SystemTime;

use crate::pds::types::FileType;
use crate::posix::{Posix, Special};

#[derive(Clone, PartialEq, Debug)]
pub struct Stat {
    pub kind: FileKind,
    pub size: u64,
    pub mtime: SystemTime,
    pub ctime: SystemTime,
    pub crtime: SystemTime,
    /// Attributes for which the drive has no field.
    pub posix: Option<Arc<Posix>>,
    /// Link count. A file has 1. A listed directory has 2 (its name and `.`) plus one for each subdirectory.
    /// A directory that was not listed has 1. An inode without a dentry has 0.
    pub nlink: u32,
}

/// The type of a file as programs see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    File,
    Directory,
    /// A regular file on the drive.
    Special(Special),
}

impl FileKind {
    pub(super) fn of(kind: FileType, posix: Option<&Posix>) -> Self {
        match kind {
            FileType::Folder => Self::Directory,
            FileType::File => posix.and_then(|posix| posix.special).map_or(Self::File, Self::Special),
        }
    }
}
