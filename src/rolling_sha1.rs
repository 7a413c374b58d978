//! SHA-1 over appended bytes, with the chaining value (midstate) at 64-byte boundaries.
//!
//! PDS takes the parts of one file in parallel if each part comes with the midstate *before* it
//! (`parallel_sha1_ctx`, API page `UploadPartInfo`). A front-to-back writer has it at no cost.
//! Pure: no I/O. The compression function is that of the `sha1` crate. The embedded server checks
//! midstates in another way (the crate's own state serialisation), never with this file.

use sha1::block_api::compress;

use crate::ids::Sha1Hash;

const BLOCK_BYTES: usize = 64;
const INITIAL: [u32; 5] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0];

/// The midstate before a part: the five chaining words after `part_offset` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sha1Midstate {
    /// H0 to H4.
    pub h: [u32; 5],
    /// Offset of the part in the file: a multiple of 64 bytes.
    pub part_offset: u64,
}

impl Sha1Midstate {
    /// Before the first byte.
    pub const START: Self = Self { h: INITIAL, part_offset: 0 };
}

/// A running SHA-1.
#[derive(Clone, Debug)]
pub struct RollingSha1 {
    state: [u32; 5],
    tail: [u8; BLOCK_BYTES],
    bytes: u64,
}

impl Default for RollingSha1 {
    fn default() -> Self {
        Self { state: INITIAL, tail: [0; BLOCK_BYTES], bytes: 0 }
    }
}

impl RollingSha1 {
    /// Bytes hashed so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn tail_bytes(&self) -> usize {
        // The remainder is below 64, so the conversion is exact.
        (self.bytes % BLOCK_BYTES as u64) as usize
    }

    pub fn update(&mut self, mut data: &[u8]) {
        let tail_len = self.tail_bytes();
        self.bytes += data.len() as u64;
        if tail_len > 0 {
            let taken = data.len().min(BLOCK_BYTES - tail_len);
            self.tail[tail_len..tail_len + taken].copy_from_slice(&data[..taken]);
            data = &data[taken..];
            if tail_len + taken < BLOCK_BYTES {
                return;
            }
            compress(&mut self.state, &[self.tail]);
        }
        let (blocks, rest) = data.as_chunks::<BLOCK_BYTES>();
        compress(&mut self.state, blocks);
        self.tail[..rest.len()].copy_from_slice(rest);
    }

    /// The midstate; `None` if the length so far is not a multiple of 64.
    pub fn midstate(&self) -> Option<Sha1Midstate> {
        (self.tail_bytes() == 0).then_some(Sha1Midstate { h: self.state, part_offset: self.bytes })
    }

    /// The SHA-1 of the bytes so far. More may follow.
    pub fn digest(&self) -> Sha1Hash {
        let mut end = self.clone();
        let bits = self.bytes * 8;
        let tail_len = self.tail_bytes();
        let pad_bytes = if tail_len < 56 { 56 - tail_len } else { 120 - tail_len };
        let mut padding = [0; 2 * BLOCK_BYTES];
        padding[0] = 0x80;
        padding[pad_bytes..pad_bytes + 8].copy_from_slice(&bits.to_be_bytes());
        end.update(&padding[..pad_bytes + 8]);
        let mut out = [0; 20];
        for (chunk, word) in out.chunks_exact_mut(4).zip(end.state) {
            chunk.copy_from_slice(&word.to_be_bytes());
        }
        Sha1Hash(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha1::{Digest, Sha1};

    #[test]
    fn known_vectors_match() {
        let mut rolling = RollingSha1::default();
        assert_eq!(rolling.digest().to_string(), "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709");
        rolling.update(b"abc");
        assert_eq!(rolling.digest().to_string(), "A9993E364706816ABA3E25717850C26C9CD0D89D");
        assert!(rolling.midstate().is_none());
    }

    proptest! {
        #[test]
        fn rolling_sha1_equals_sha1_under_any_chunking(data in prop::collection::vec(any::<u8>(), 0..2000),
                                          cuts in prop::collection::vec(0usize..300, 0..20)) {
            let mut rolling = RollingSha1::default();
            let mut rest = &data[..];
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                rolling.update(head);
                prop_assert_eq!(rolling.midstate().is_some(), rolling.bytes() % 64 == 0);
                rest = tail;
            }
            rolling.update(rest);
            let expected: [u8; 20] = Sha1::digest(&data).into();
            prop_assert_eq!(rolling.digest().0, expected);
            prop_assert_eq!(rolling.bytes(), data.len() as u64);
        }
    }
}
