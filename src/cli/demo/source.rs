//! The tree of files that `demo --once` copies.
//!
//! Everything follows from one seed: names and sizes are chosen to be awkward (empty files, one byte
//! around hash blocks and parts, names in several scripts), contents are pseudo-random, so that
//! nothing compresses and nothing is on the drive already. Some files repeat the content of their
//! neighbour on purpose. Sizes and hashes are noted while the files are made; the hash is
//! computed in one go over the whole content, not by the way that uploads compute it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::ids::Sha1Hash;

use super::once::Cancel;

/// Small files; they are spread over [`TOPS`] folders.
const SMALL_FILES: usize = 1_040;
/// Folders at the top of the tree.
pub(super) const TOPS: usize = 8;
/// Every so many files repeat the content of the one before.
const REPEAT_EVERY: usize = 65;
/// The big file, in bytes: 256 MiB and not a whole number of anything.
pub(super) const BIG_BYTES: u64 = (256 << 20) + 12_345;
/// The name of the big file, beside the folders.
pub(super) const BIG_NAME: &str = "the big one.bin";
/// Bytes made at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Names without their number and ending.
const STEMS: [&str; 10] = [
    "notes",
    "IMG",
    "r\u{e9}sum\u{e9}",
    "\u{5831}\u{544a}\u{66f8}",
    "\u{441}\u{43c}\u{435}\u{442}\u{430}",
    "two words",
    "semi;colon & 'quotes'",
    "\u{1f680} launch",
    "e\u{301}t\u{e9}",
    "#hash %41 +plus",
];
const ENDINGS: [&str; 5] = [".txt", ".jpg", ".tar.gz", "", ".\u{43f}\u{434}\u{444}"];
/// Sizes around what can go wrong, in bytes.
const EDGES: [u64; 12] = [0, 1, 63, 64, 65, 4_095, 4_096, 4_097, 65_535, 65_536, 131_072, 131_073];
/// Folders below a top folder; files take turns.
const NESTS: [&str; 4] =
    ["", "sub folder", "sub folder/\u{6df1}\u{3044}", "sub folder/\u{6df1}\u{3044}/d/e/e/p"];

/// What is known of one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Known {
    /// Its size.
    pub(super) bytes: u64,
    /// The hash of its content.
    pub(super) sha1: Sha1Hash,
}

/// Every file by its path below the root, with `/` between the parts.
pub(super) type Files = BTreeMap<String, Known>;

/// The tree as it must come out on the other side.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    /// The files.
    pub(super) files: Files,
    /// The folders.
    pub(super) folders: std::collections::BTreeSet<String>,
}

impl Manifest {
    /// Bytes of all files but the big one.
    pub(super) fn small_bytes(&self) -> u64 {
        self.files.iter().filter(|(path, _)| *path != BIG_NAME).map(|(_, known)| known.bytes).sum()
    }
}

/// The name of the top folder `n`.
pub(super) fn top(n: usize) -> String {
    format!("{n:02} folder")
}

/// Makes the tree below `root`, an existing folder.
pub(super) fn make(root: &Path, seed: u64, big_bytes: u64, cancel: &Cancel) -> Result<Manifest> {
    let mut manifest = Manifest::default();
    for n in 0..TOPS {
        for nest in NESTS {
            folder(root, &mut manifest, &join(&top(n), nest))?;
        }
        folder(root, &mut manifest, &join(&top(n), "empty"))?;
    }
    let mut random = Random(seed);
    let mut before = Content { seed: 0, bytes: 0 };
    for n in 0..SMALL_FILES {
        let fresh = Content { seed: random.next(), bytes: small_size(n, &mut random) };
        let content = if n % REPEAT_EVERY == REPEAT_EVERY - 1 { before } else { fresh };
        let name = format!("{} {n:04}{}", STEMS[n % STEMS.len()], ENDINGS[n / 3 % ENDINGS.len()]);
        let path = join(&join(&top(n % TOPS), NESTS[n / TOPS % NESTS.len()]), &name);
        file(root, &mut manifest, &path, content, cancel)?;
        before = content;
    }
    let part = crate::ids::PartSize::DEFAULT.get();
    let around_parts = [part - 1, part, part + 1, 2 * part + 64];
    for (n, bytes) in around_parts.into_iter().enumerate() {
        let path = join(&top(n), &format!("about {} parts.bin", n + 1));
        file(root, &mut manifest, &path, Content { seed: random.next(), bytes }, cancel)?;
    }
    let longest = join(&top(TOPS - 1), &"n".repeat(255));
    file(root, &mut manifest, &longest, Content { seed: random.next(), bytes: 77 }, cancel)?;
    file(root, &mut manifest, BIG_NAME, Content { seed: random.next(), bytes: big_bytes }, cancel)?;
    Ok(manifest)
}

/// Path `inner` below `outer`; either may be empty.
pub(super) fn join(outer: &str, inner: &str) -> String {
    if outer.is_empty() || inner.is_empty() { format!("{outer}{inner}") } else { format!("{outer}/{inner}") }
}

/// Every fourth size is an edge, the others spread evenly over the orders of magnitude.
fn small_size(n: usize, random: &mut Random) -> u64 {
    if n.is_multiple_of(4) {
        return EDGES[n / 4 % EDGES.len()];
    }
    let magnitude = 1 << (random.next() % 18);
    magnitude + random.next() % magnitude
}

/// Makes a folder and those above it.
fn folder(root: &Path, manifest: &mut Manifest, path: &str) -> Result<()> {
    let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
    for path in ends.map(|end| &path[..end]) {
        if manifest.folders.insert(path.into()) {
            std::fs::create_dir(root.join(path)).map_err(|e| Error::from(e).context(path))?;
        }
    }
    Ok(())
}

/// What a file holds.
#[derive(Clone, Copy)]
struct Content {
    seed: u64,
    bytes: u64,
}

fn file(root: &Path, manifest: &mut Manifest, path: &str, content: Content, cancel: &Cancel) -> Result<()> {
    let named = |e: std::io::Error| Error::from(e).context(path);
    let mut out = File::create_new(root.join(path)).map_err(named)?;
    let mut random = Random(content.seed);
    let mut hash = Sha1::new();
    let mut left = content.bytes;
    let mut chunk = vec![0; CHUNK_BYTES];
    while left > 0 {
        cancel.check()?;
        // At most CHUNK_BYTES, so the conversion cannot lose anything.
        let now = left.min(CHUNK_BYTES as u64) as usize;
        random.fill(&mut chunk[..now]);
        hash.update(&chunk[..now]);
        out.write_all(&chunk[..now]).map_err(named)?;
        left -= now as u64;
    }
    let known = Known { bytes: content.bytes, sha1: Sha1Hash(hash.finalize().into()) };
    manifest.files.insert(path.into(), known);
    Ok(())
}

/// `SplitMix64`: fast, and every seed is as good as any other.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for eight in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            eight.copy_from_slice(&word[..eight.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_as_awkward_as_promised() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = make(dir.path(), 7, 100_000, &Cancel::default()).unwrap();
        assert!(manifest.files.len() > SMALL_FILES);
        let mut hashes: Vec<_> = manifest.files.values().map(|known| known.sha1.to_string()).collect();
        let empty = manifest.files.values().filter(|known| known.bytes == 0).count();
        assert!(empty >= 10, "{empty} empty files");
        hashes.sort();
        hashes.dedup();
        let repeated = manifest.files.len() - hashes.len() - (empty - 1);
        assert!(repeated >= 10, "{repeated} repeated contents");
        assert!(manifest.files.keys().any(|path| !path.is_ascii()));
        assert!(manifest.files.keys().any(|path| path.matches('/').count() >= 5));
        for (path, known) in &manifest.files {
            let content = std::fs::read(dir.path().join(path)).unwrap();
            assert_eq!(content.len() as u64, known.bytes, "{path}");
            assert_eq!(Sha1Hash(Sha1::digest(&content).into()), known.sha1, "{path}");
        }
    }

    #[test]
    fn a_seed_repeats_a_tree_and_another_changes_it() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = make(a.path(), 1, 10, &Cancel::default()).unwrap();
        assert_eq!(make(b.path(), 1, 10, &Cancel::default()).unwrap().files, first.files);
        let c = tempfile::tempdir().unwrap();
        let other = make(c.path(), 2, 10, &Cancel::default()).unwrap();
        assert_ne!(other.files[BIG_NAME].sha1, first.files[BIG_NAME].sha1);
    }

    #[test]
    fn making_stops_when_it_is_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let cancel = Cancel::default();
        cancel.set();
        assert!(make(dir.path(), 1, 10, &cancel).is_err());
    }
}
