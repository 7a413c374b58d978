//! The content of a local-only file: lock and junk files, which are never uploaded.
//!
//! Most of them have a few bytes, and there may be thousands. So small content is in memory, and larger
//! content in a staged file. Both count against the local quota. Nothing here waits for the local disk: the
//! caller changes the staged file.

use std::sync::Arc;

use bytes::Bytes;

use super::disk_quota::{DiskQuota, Reservation};
use super::staged_file::{Piece, StagedFile};
use crate::pds::part_body::Frame;

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

/// The place of a change.
#[derive(Debug)]
pub(super) enum ChangePlace {
    /// It was made in memory.
    Memory,
    /// The content must move to a staged file first.
    MustStage,
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

    /// Writes `data` if the content stays in memory. A gap after the old end reads as zeros.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> ChangePlace {
        let end = offset.saturating_add(data.len() as u64);
        let place = self.resize(end.max(self.size()));
        if let (Self::Memory { bytes, .. }, ChangePlace::Memory) = (self, &place) {
            bytes[offset as usize..end as usize].copy_from_slice(data);
        }
        place
    }

    /// Sets the size if the content stays in memory: truncates, or extends with zeros.
    pub(super) fn resize(&mut self, size: u64) -> ChangePlace {
        match self {
            Self::Staged(staged) => ChangePlace::Staged(staged.clone()),
            Self::Memory { .. } if size > MEMORY_BYTES_MAX => ChangePlace::MustStage,
            Self::Memory { bytes, reservation } => match reservation.resize_in_memory(size) {
                Ok(()) => {
                    bytes.resize(size as usize, 0);
                    ChangePlace::Memory
                }
                // There may be room after an eviction, which waits for the disk.
                Err(_) => ChangePlace::MustStage,
            },
        }
    }

    /// Zeroes a range in memory, as far as the content reaches.
    pub(super) fn punch(&mut self, offset: u64, len: u64) -> ChangePlace {
        match self {
            Self::Memory { bytes, .. } => {
                let size = bytes.len() as u64;
                let (start, end) = (offset.min(size), offset.saturating_add(len).min(size));
                bytes[start as usize..end as usize].fill(0);
                ChangePlace::Memory
            }
            Self::Staged(staged) => ChangePlace::Staged(staged.clone()),
        }
    }

    /// The pieces of bytes `offset..offset + len`, fewer only at the end of the content. Does no I/O.
    pub(super) fn read(&self, offset: u64, len: u64) -> Vec<Piece> {
        match self {
            Self::Memory { bytes, .. } => {
                let size = bytes.len() as u64;
                let (start, end) = (offset.min(size), offset.saturating_add(len).min(size));
                let data = Bytes::copy_from_slice(&bytes[start as usize..end as usize]);
                vec![Piece::Local(Frame::Memory(data))]
            }
            Self::Staged(staged) => staged.read(offset, len),
        }
    }

    /// The staged file with the content; the content itself if it is in memory.
    pub(super) fn staged_or_bytes(&self) -> std::result::Result<Arc<StagedFile>, Bytes> {
        match self {
            Self::Staged(staged) => Ok(staged.clone()),
            Self::Memory { bytes, .. } => Err(Bytes::copy_from_slice(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_disk::LocalDisk;

    fn whole(local: &LocalContent) -> Vec<u8> {
        let pieces = local.read(0, u64::MAX);
        let bytes = pieces.into_iter().map(|piece| match piece {
            Piece::Local(Frame::Memory(bytes)) => bytes.to_vec(),
            other => panic!("{other:?}"),
        });
        bytes.flatten().collect()
    }

    #[test]
    fn small_content_stays_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), None, 0);
        let mut local = LocalContent::new(&quota);
        assert!(matches!(local.write(2, b"abcdef"), ChangePlace::Memory));
        local.punch(3, 2);
        local.punch(7, 100);
        local.resize(12);
        local.write(11, b"xy");
        assert_eq!(whole(&local), b"\0\0a\0\0de\0\0\0\0xy");
        assert_eq!(local.read(50, 1).len(), 1);
        local.resize(3);
        assert_eq!((whole(&local), quota.reserved_bytes()), (b"\0\0a".to_vec(), 3));
        assert!(matches!(local.write(MEMORY_BYTES_MAX - 1, b"zz"), ChangePlace::MustStage));
        assert!(matches!(local.resize(MEMORY_BYTES_MAX + 1), ChangePlace::MustStage));
        assert_eq!(local.staged_or_bytes().unwrap_err(), b"\0\0a"[..]);
        let mut local = LocalContent::Staged(StagedFile::new(&quota, None, None).unwrap());
        assert!(matches!(local.write(0, b"a"), ChangePlace::Staged(_)));
        assert!(local.staged_or_bytes().is_ok());
    }

    #[test]
    fn local_content_stays_within_the_quota() {
        let dir = tempfile::tempdir().unwrap();
        let quota = DiskQuota::new(LocalDisk::of(&dir), Some(100), 0);
        let mut local = LocalContent::new(&quota);
        local.write(0, &[1; 90]);
        assert!(matches!(local.write(90, &[2; 11]), ChangePlace::MustStage));
        assert!(matches!(local.resize(101), ChangePlace::MustStage));
        assert_eq!((local.size(), quota.reserved_bytes()), (90, 90));
        assert_eq!(whole(&local), [1; 90]);
        drop(local);
        assert_eq!(quota.reserved_bytes(), 0);
    }
}
