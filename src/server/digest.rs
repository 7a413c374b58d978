//! Hashes that continue from a midstate that a client declared.
//!
//! The implementation uses the serialized states of the hash crates. It does not share code with the client's
//! rolling SHA-1, so that the two check each other.

use serde::{Deserialize, Serialize};
use sha1::digest::common::hazmat::SerializableState;
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use super::clock::hex;

/// The algorithm of a domain for content hashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HashName {
    /// The default of the service.
    #[default]
    Sha1,
    /// Midstates are declared as `parallel_sha256_ctx`.
    Sha256,
}

impl HashName {
    /// The value of `content_hash_name`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }

    /// The hash of no bytes, in upper case.
    pub(super) fn of_nothing(self) -> String {
        match self {
            Self::Sha1 => hex(&Sha1::digest(b"")).to_uppercase(),
            Self::Sha256 => hex(&Sha256::digest(b"")).to_uppercase(),
        }
    }

    /// Number of 32-bit words in a chaining value.
    pub(super) fn words(self) -> usize {
        match self {
            Self::Sha1 => 5,
            Self::Sha256 => 8,
        }
    }

    /// The hash in upper case; `None` if `hex` is not a hash.
    pub(super) fn parse_hash(self, hex: &str) -> Option<String> {
        let is_hash = hex.len() == self.words() * 8 && hex.bytes().all(|c| c.is_ascii_hexdigit());
        is_hash.then(|| hex.to_uppercase())
    }
}

/// The hash state before a part. The URL of the part contains it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Midstate {
    /// Number of bytes before the part; a multiple of 64.
    pub(super) offset: u64,
    /// Chaining value; may be empty at offset 0.
    pub(super) h: Vec<u32>,
}

#[derive(Clone)]
pub(super) enum Hasher {
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    pub(super) fn new(name: HashName) -> Self {
        match name {
            HashName::Sha1 => Self::Sha1(Sha1::new()),
            HashName::Sha256 => Self::Sha256(Sha256::new()),
        }
    }

    /// Continues after `state.offset` bytes. `None` if the shape of the state does not fit the hash.
    pub(super) fn resume(name: HashName, state: &Midstate) -> Option<Self> {
        if state.offset == 0 && state.h.is_empty() {
            return Some(Self::new(name));
        }
        if state.h.len() != name.words() || !state.offset.is_multiple_of(64) {
            return None;
        }
        // Serialized form: the words, the number of blocks, then the buffer, which is empty here.
        let mut raw = Self::new(name).save();
        let words = state.h.iter().flat_map(|word| word.to_le_bytes());
        let blocks = (state.offset / 64).to_le_bytes();
        for (slot, byte) in raw.iter_mut().zip(words.chain(blocks)) {
            *slot = byte;
        }
        Self::load(name, &raw)
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(hash) => hash.update(bytes),
            Self::Sha256(hash) => hash.update(bytes),
        }
    }

    /// The serialized state. Equal states have equal bytes.
    pub(super) fn save(&self) -> Vec<u8> {
        match self {
            Self::Sha1(hash) => hash.serialize().to_vec(),
            Self::Sha256(hash) => hash.serialize().to_vec(),
        }
    }

    /// The inverse of [`Hasher::save`].
    pub(super) fn load(name: HashName, raw: &[u8]) -> Option<Self> {
        match name {
            HashName::Sha1 => Some(Self::Sha1(Sha1::deserialize(raw.try_into().ok()?).ok()?)),
            HashName::Sha256 => Some(Self::Sha256(Sha256::deserialize(raw.try_into().ok()?).ok()?)),
        }
    }

    /// The hash in upper-case hex.
    pub(super) fn finish(self) -> String {
        let lower = match self {
            Self::Sha1(hash) => hex(&hash.finalize()),
            Self::Sha256(hash) => hex(&hash.finalize()),
        };
        lower.to_uppercase()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(len: usize) -> Vec<u8> {
        (0u32..).flat_map(|i| Sha256::digest(format!("pds-fixture-{i}")).to_vec()).take(len).collect()
    }

    #[test]
    fn midstate_of_a_capture_continues_to_the_hash() {
        let bytes = fixture(20_971_520);
        let h = vec![3_878_741_040, 1_575_060_864, 2_109_439_271, 1_964_027_421, 1_891_679_086];
        let declared = Midstate { offset: 10_485_824, h };
        let (head, tail) = bytes.split_at(10_485_824);
        let mut first = Hasher::new(HashName::Sha1);
        first.update(head);
        let mut rest = Hasher::resume(HashName::Sha1, &declared).unwrap();
        assert_eq!(first.save(), rest.save());
        rest.update(tail);
        assert_eq!(rest.finish(), "257F8B21431BB4A0ADC8A6613CF4EDE3B906166C");
    }

    #[test]
    fn sha256_continues_from_a_midstate() {
        let bytes = fixture(1000);
        let mut whole = Hasher::new(HashName::Sha256);
        whole.update(&bytes[..640]);
        let saved = whole.save();
        let h = saved[..32].chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
        let mut rest = Hasher::resume(HashName::Sha256, &Midstate { offset: 640, h }).unwrap();
        rest.update(&bytes[640..]);
        assert_eq!(rest.finish(), hex(&Sha256::digest(&bytes)).to_uppercase());
    }

    #[test]
    fn state_inside_a_block_round_trips() {
        let mut hash = Hasher::new(HashName::Sha1);
        hash.update(b"abc");
        let loaded = Hasher::load(HashName::Sha1, &hash.save()).unwrap();
        assert_eq!(loaded.finish(), "A9993E364706816ABA3E25717850C26C9CD0D89D");
        assert_ne!(hash.save(), Hasher::new(HashName::Sha1).save());
    }

    #[test]
    fn malformed_midstates_are_refused() {
        for (offset, h) in [(64, vec![]), (64, vec![1; 4]), (65, vec![1; 5]), (64, vec![1; 8])] {
            assert!(Hasher::resume(HashName::Sha1, &Midstate { offset, h }).is_none());
        }
    }
}
