//! The content of a file that stays on this machine: lock and junk files.
//!
//! Most are a few bytes and there may be thousands, so a small one is in memory and a larger one in a local
//! file without a name. Both count against the room of staged copies. Blocks for the local disk; callers are
//! where that is allowed.

use std::sync::Arc;

use super::space::{Share, Space};
use super::staged::{Piece, Staged};
use crate::error::Result;

/// Largest content that stays in memory, in bytes.
const MEMORY_BYTES_MAX: u64 = 16 << 10;

/// A content that no upload is made of.
#[derive(Debug)]
pub enum Local {
    /// In memory.
    Memory {
        /// All of it, at most [`MEMORY_BYTES_MAX`].
        bytes: Vec<u8>,
        /// As large.
        share: Share,
    },
    /// In a local file.
    Copy(Arc<Staged>),
}

impl Local {
    /// An empty one.
    pub fn new(space: &Arc<Space>) -> Self {
        Self::Memory { bytes: Vec::new(), share: space.share() }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Memory { bytes, .. } => bytes.len() as u64,
            Self::Copy(copy) => copy.size(),
        }
    }

    /// Whether reading it may block for the local disk.
    pub fn is_on_disk(&self) -> bool {
        matches!(self, Self::Copy(_))
    }

    /// Writes `data`, behind the end too: the gap reads as zeros. `NoSpace` changes nothing.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        match self {
            Self::Memory { bytes, share } if end <= MEMORY_BYTES_MAX => {
                let size = bytes.len().max(end as usize);
                share.resize(size as u64)?;
                bytes.resize(size, 0);
                bytes[offset as usize..end as usize].copy_from_slice(data);
                Ok(())
            }
            Self::Memory { .. } | Self::Copy(_) => self.copy()?.write(offset, data),
        }
    }

    /// Cuts the content, or lets it grow by zeros.
    pub fn truncate(&mut self, size: u64) -> Result<()> {
        match self {
            Self::Memory { bytes, share } if size <= MEMORY_BYTES_MAX => {
                share.resize(size)?;
                bytes.resize(size as usize, 0);
                Ok(())
            }
            Self::Memory { .. } | Self::Copy(_) => self.copy()?.truncate(size),
        }
    }

    /// Makes zeros of a stretch, as far as the content reaches.
    pub fn punch(&mut self, offset: u64, len: u64) -> Result<()> {
        match self {
            Self::Memory { bytes, .. } => {
                let size = bytes.len() as u64;
                let (start, end) = (offset.min(size), offset.saturating_add(len).min(size));
                bytes[start as usize..end as usize].fill(0);
                Ok(())
            }
            Self::Copy(copy) => copy.punch(offset, len),
        }
    }

    /// Bytes from `offset`: `len` of them, fewer only at the end.
    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<Piece>> {
        match self {
            Self::Memory { bytes, .. } => {
                let size = bytes.len() as u64;
                let (start, end) = (offset.min(size), offset.saturating_add(len).min(size));
                let here = bytes[start as usize..end as usize].to_vec();
                Ok(vec![Piece::Here(here.into())])
            }
            Self::Copy(copy) => copy.read(offset, len),
        }
    }

    /// All of it in a local file, from now on.
    pub fn copy(&mut self) -> Result<Arc<Staged>> {
        let copy = match self {
            Self::Copy(copy) => return Ok(copy.clone()),
            Self::Memory { bytes, share } => {
                let copy = Staged::new(share.space(), None)?;
                if !bytes.is_empty() {
                    copy.write(0, bytes)?;
                }
                copy
            }
        };
        *self = Self::Copy(copy.clone());
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn whole(local: &Local) -> Vec<u8> {
        let pieces = local.read(0, u64::MAX).unwrap();
        let bytes = pieces.into_iter().map(|piece| match piece {
            Piece::Here(bytes) => bytes.to_vec(),
            Piece::Base { .. } => panic!("there is no base"),
        });
        bytes.flatten().collect()
    }

    #[test]
    fn a_content_is_the_same_in_memory_and_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path(), None, 0);
        let (mut small, mut large) = (Local::new(&space), Local::new(&space));
        large.copy().unwrap();
        for local in [&mut small, &mut large] {
            local.write(2, b"abcdef").unwrap();
            local.punch(3, 2).unwrap();
            local.punch(7, 100).unwrap();
            local.truncate(12).unwrap();
            local.write(11, b"xy").unwrap();
            assert_eq!(whole(local), b"\0\0a\0\0de\0\0\0\0xy");
            assert_eq!(local.read(50, 1).unwrap().len(), usize::from(!local.is_on_disk()));
            local.truncate(3).unwrap();
        }
        assert!(!small.is_on_disk() && large.is_on_disk());
        small.write(MEMORY_BYTES_MAX - 1, b"zz").unwrap();
        assert!(small.is_on_disk());
        let bytes = whole(&small);
        assert_eq!((bytes.len() as u64, &bytes[..4]), (MEMORY_BYTES_MAX + 1, &b"\0\0a\0"[..]));
        drop((small, large));
        assert_eq!(space.taken_bytes(), 0);
    }

    #[test]
    fn it_has_no_more_room_than_copies() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path(), Some(100), 0);
        let mut local = Local::new(&space);
        local.write(0, &[1; 90]).unwrap();
        assert_eq!(local.write(90, &[2; 11]).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(local.truncate(101).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!((local.size(), space.taken_bytes()), (90, 90));
        assert_eq!(local.write(MEMORY_BYTES_MAX, &[3]).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(whole(&local), [1; 90]);
    }
}
