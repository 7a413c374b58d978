//! The content of a local-only file: lock and junk files, which are never uploaded.
//!
//! Most of them have a few bytes, and there may be thousands. So small content is in memory, and larger
//! content in a staged file. Both count against the local quota. Calls block for the local disk.

use std::sync::Arc;

use super::disk_quota::{DiskQuota, Reservation};
use super::staged_file::{Piece, StagedFile};
use crate::error::Result;

/// Largest content in memory, in bytes.
const MEMORY_BYTES_MAX: u64 = 16 << 10;

/// The content of a local-only file.
#[derive(Debug)]
pub(super) enum LocalContent {
    Memory {
        /// At most [`MEMORY_BYTES_MAX`].
        bytes: Vec<u8>,
        reservation: Reservation,
    },
    Staged(Arc<StagedFile>),
}

impl LocalContent {
    pub(super) fn new(quota: &Arc<DiskQuota>) -> Self {
        Self::Memory { bytes: Vec::new(), reservation: quota.reservation() }
    }

    /// Size in bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Memory { bytes, .. } => bytes.len() as u64,
            Self::Staged(staged) => staged.size(),
        }
    }

    /// Whether a read may block for the local disk.
    pub(super) fn is_on_disk(&self) -> bool {
        matches!(self, Self::Staged(_))
    }

    /// Writes `data`. A gap after the old end reads as zeros. `NoSpace` changes nothing.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        match self {
            Self::Memory { bytes, reservation } if end <= MEMORY_BYTES_MAX => {
                let size = bytes.len().max(end as usize);
                reservation.resize(size as u64)?;
                bytes.resize(size, 0);
                bytes[offset as usize..end as usize].copy_from_slice(data);
                Ok(())
            }
            Self::Memory { .. } | Self::Staged(_) => self.move_to_disk()?.write(offset, data),
        }
    }

    /// Sets the size: truncates, or extends with zeros.
    pub(super) fn truncate(&mut self, size: u64) -> Result<()> {
        match self {
            Self::Memory { bytes, reservation } if size <= MEMORY_BYTES_MAX => {
                reservation.resize(size)?;
                bytes.resize(size as usize, 0);
                Ok(())
            }
            Self::Memory { .. } | Self::Staged(_) => self.move_to_disk()?.truncate(size),
        }
    }

    /// Zeroes a range, as far as the content reaches.
    pub(super) fn punch(&mut self, offset: u64, len: u64) -> Result<()> {
        match self {
            Self::Memory { bytes, .. } => {
                let size = bytes.len() as u64;
                let (start, end) = (offset.min(size), offset.saturating_add(len).min(size));
                bytes[start as usize..end as usize].fill(0);
                Ok(())
            }
            Self::Staged(staged) => staged.punch(offset, len),
        }
    }

    /// The pieces of bytes `offset..offset + len`, fewer only at the end of the content.
    pub(super) fn read(&self, offset: u64, len: u64) -> Result<Vec<Piece>> {
        match self {
            Self::Memory { bytes, .. } => {
                let size = bytes.len() as u64;
                let (start, end) = (offset.min(size), offset.saturating_add(len).min(size));
                let data = bytes[start as usize..end as usize].to_vec();
                Ok(vec![Piece::Data(data.into())])
            }
            Self::Staged(staged) => staged.read(offset, len),
        }
    }

    /// Moves content in memory to a staged file. Returns that file.
    pub(super) fn move_to_disk(&mut self) -> Result<Arc<StagedFile>> {
        let staged = match self {
            Self::Staged(staged) => return Ok(staged.clone()),
            Self::Memory { bytes, reservation } => {
                let staged = StagedFile::new(reservation.quota(), None)?;
                if !bytes.is_empty() {
                    staged.write(0, bytes)?;
                }
                staged
            }
        };
        *self = Self::Staged(staged.clone());
        Ok(staged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn whole(local: &LocalContent) -> Vec<u8> {
        let pieces = local.read(0, u64::MAX).unwrap();
        let bytes = pieces.into_iter().map(|piece| match piece {
            Piece::Data(bytes) => bytes.to_vec(),
            Piece::Base { .. } => panic!("there is no base"),
        });
        bytes.flatten().collect()
    }

    #[test]
    fn memory_and_disk_give_the_same_content() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(dir.path(), None, 0);
        let (mut small, mut large) = (LocalContent::new(&quota), LocalContent::new(&quota));
        large.move_to_disk().unwrap();
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
        assert_eq!(quota.reserved_bytes(), 0);
    }

    #[test]
    fn local_content_stays_within_the_quota() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(dir.path(), Some(100), 0);
        let mut local = LocalContent::new(&quota);
        local.write(0, &[1; 90]).unwrap();
        assert_eq!(local.write(90, &[2; 11]).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(local.truncate(101).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!((local.size(), quota.reserved_bytes()), (90, 90));
        assert_eq!(local.write(MEMORY_BYTES_MAX, &[3]).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(whole(&local), [1; 90]);
    }
}
