//! Writing past the page cache: a third of the work of writing through it, where memory and file are
//! aligned. What is written once and seldom read need not pass through it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

/// What addresses, offsets and lengths have to be multiples of, in bytes.
pub const ALIGN_BYTES: usize = 4096;
/// Pieces in one call; Linux takes 1,024.
const PIECES_MAX: usize = 256;

#[repr(C, align(4096))]
#[derive(Debug)]
struct Page([u8; ALIGN_BYTES]);

/// A buffer of a fixed capacity that begins at a multiple of [`ALIGN_BYTES`]. Memory that was never
/// written to is never touched.
#[derive(Debug, Default)]
pub struct Block {
    /// Has a capacity and no elements.
    pages: Vec<Page>,
    /// Bytes of the capacity that hold something.
    len: usize,
}

impl Block {
    /// An empty one for at least so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { pages: Vec::with_capacity(bytes.div_ceil(ALIGN_BYTES)), len: 0 }
    }

    /// Takes as much of `data` as there is room for; how much that was.
    pub fn extend(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(self.pages.capacity() * ALIGN_BYTES - self.len);
        // SAFETY: the range lies within the capacity and belongs to this buffer alone.
        unsafe {
            let end = self.pages.as_mut_ptr().cast::<u8>().add(self.len);
            std::ptr::copy_nonoverlapping(data.as_ptr(), end, taken);
        }
        self.len += taken;
        taken
    }

    /// Keeps the first `bytes` only.
    pub fn truncate(&mut self, bytes: usize) {
        self.len = self.len.min(bytes);
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes of the capacity were written.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }

    /// What it holds, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes of the capacity were written, and any bytes will do.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }
}

/// A second way to a file, past the page cache.
#[derive(Debug)]
pub struct DirectFile(File);

impl DirectFile {
    /// None where the file system has no such way.
    pub fn of(file: &File) -> Option<Self> {
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(link).ok().map(Self)
    }

    /// Writes pieces one after the other. All of them, and `offset`, have to be aligned.
    pub fn write_all_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        let (mut rest, mut skip, mut at) = (pieces, 0, offset);
        while let Some(first) = rest.first() {
            if first.len() == skip {
                (rest, skip) = (&rest[1..], 0);
                continue;
            }
            let mut written = self.write_some(rest, skip, at)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at += written as u64;
            while let Some(first) = rest.first()
                && written >= first.len() - skip
            {
                written -= first.len() - skip;
                (rest, skip) = (&rest[1..], 0);
            }
            skip += written;
        }
        Ok(())
    }

    fn write_some(&self, pieces: &[&[u8]], skip: usize, offset: u64) -> io::Result<usize> {
        let skips = std::iter::once(skip).chain(std::iter::repeat(0));
        let vectors: Vec<libc::iovec> = pieces
            .iter()
            .zip(skips)
            .take(PIECES_MAX)
            .map(|(piece, skip)| libc::iovec {
                iov_base: piece[skip..].as_ptr().cast_mut().cast(),
                iov_len: piece.len() - skip,
            })
            .collect();
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
        // SAFETY: the vectors are of slices that outlive the call, which only reads them.
        let written = unsafe { libc::pwritev(self.0.as_raw_fd(), vectors.as_ptr(), count, offset) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}

/// Whether a piece may be written past the page cache.
pub fn is_aligned(piece: &[u8]) -> bool {
    piece.as_ptr().addr().is_multiple_of(ALIGN_BYTES) && piece.len().is_multiple_of(ALIGN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::io::Seek as _;

    #[test]
    fn blocks_are_aligned_and_hold_bytes() {
        let mut block = Block::with_capacity(5000);
        assert_eq!((block.extend(&[1; 4096]), block.extend(&[2; 9000])), (4096, 4096));
        assert!(is_aligned(block.bytes()) && !is_aligned(&block.bytes()[1..]));
        block.bytes_mut()[8191] = 7;
        assert_eq!(block.bytes()[8190..], [2, 7]);
        block.truncate(3);
        assert_eq!(block.extend(&[9; 2]), 2);
        assert_eq!(block.bytes(), [1, 1, 1, 9, 9]);
        assert!(Block::default().bytes().is_empty());
    }

    #[test]
    fn pieces_come_to_the_file_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        let Some(direct) = DirectFile::of(&file) else {
            // This file system has no way past the cache; there is nothing to be wrong with.
            return;
        };
        let blocks: Vec<Block> = (0..PIECES_MAX + 3)
            .map(|index| {
                let mut block = Block::with_capacity(ALIGN_BYTES);
                block.extend(&[index as u8; ALIGN_BYTES]);
                block
            })
            .collect();
        let pieces: Vec<&[u8]> = blocks.iter().map(Block::bytes).collect();
        direct.write_all_at(&pieces, ALIGN_BYTES as u64).unwrap();
        let mut seen = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut seen).unwrap();
        assert_eq!(seen[..ALIGN_BYTES], [0; ALIGN_BYTES]);
        assert_eq!(seen[ALIGN_BYTES..], pieces.concat());
    }
}
