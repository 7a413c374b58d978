//! The tree of files that `demo --once` copies.
//!
//! One seed determines the tree. Names and sizes are edge cases: empty files, one byte around hash blocks and
//! parts, names in several scripts. Contents are pseudo-random, so they do not compress and are not on the
//! drive yet; some files repeat the content of the file before, to test instant uploads. Sizes and hashes are
//! recorded while the files are made. The hash covers the whole content at once, so it checks the midstates
//! of uploads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::ids::Sha1Hash;

use super::cancel::CancelFlag;

/// Number of small files, spread over [`TOP_DIRS`] directories.
const SMALL_FILES: usize = 1_040;
/// Number of directories at the top of the tree.
pub(super) const TOP_DIRS: usize = 8;
/// Every 65th file repeats the content of the file before.
const REPEAT_EVERY: usize = 65;
/// Size of the big file: above 256 MiB, and no multiple of any block or part size.
pub(super) const BIG_BYTES: u64 = (256 << 20) + 12_345;
/// The big file lies beside the top directories.
pub(super) const BIG_NAME: &str = "the big one.bin";
const CHUNK_BYTES: usize = 1 << 20;
/// Names without number and extension.
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
/// Sizes in bytes around the boundaries of hash blocks and pages.
const EDGES: [u64; 12] = [0, 1, 63, 64, 65, 4_095, 4_096, 4_097, 65_535, 65_536, 131_072, 131_073];
/// Directories below each top directory. The files are distributed over them in turn.
const NESTED_DIRS: [&str; 4] =
    ["", "sub folder", "sub folder/\u{6df1}\u{3044}", "sub folder/\u{6df1}\u{3044}/d/e/e/p"];

/// The content that the drive must return for one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ExpectedFile {
    pub(super) bytes: u64,
    pub(super) sha1: Sha1Hash,
}

/// The tree that the drive must return. Paths are relative to the root, with `/` between the names.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    pub(super) files: BTreeMap<String, ExpectedFile>,
    pub(super) dirs: BTreeSet<String>,
}

impl Manifest {
    /// Size of all files but the big one.
    pub(super) fn small_bytes(&self) -> u64 {
        self.files.iter().filter(|(path, _)| *path != BIG_NAME).map(|(_, expected)| expected.bytes).sum()
    }
}

/// Name of top directory `n`.
pub(super) fn top_dir(n: usize) -> String {
    format!("{n:02} folder")
}

/// Makes the tree below `root`, an existing directory.
pub(super) fn make(root: &Path, seed: u64, big_bytes: u64, cancel: &CancelFlag) -> Result<Manifest> {
    let mut manifest = Manifest::default();
    for n in 0..TOP_DIRS {
        for nest in NESTED_DIRS {
            make_dirs(root, &mut manifest, &join(&top_dir(n), nest))?;
        }
        make_dirs(root, &mut manifest, &join(&top_dir(n), "empty"))?;
    }
    let mut random = Random(seed);
    let mut previous = ContentSpec { seed: 0, bytes: 0 };
    for n in 0..SMALL_FILES {
        let fresh = ContentSpec { seed: random.next(), bytes: small_size(n, &mut random) };
        let content = if n % REPEAT_EVERY == REPEAT_EVERY - 1 { previous } else { fresh };
        let name = format!("{} {n:04}{}", STEMS[n % STEMS.len()], ENDINGS[n / 3 % ENDINGS.len()]);
        let path = join(&join(&top_dir(n % TOP_DIRS), NESTED_DIRS[n / TOP_DIRS % NESTED_DIRS.len()]), &name);
        make_file(root, &mut manifest, &path, content, cancel)?;
        previous = content;
    }
    let part = crate::ids::PartSize::DEFAULT.get();
    let around_parts = [part - 1, part, part + 1, 2 * part + 64];
    for (n, bytes) in around_parts.into_iter().enumerate() {
        let path = join(&top_dir(n), &format!("about {} parts.bin", n + 1));
        make_file(root, &mut manifest, &path, ContentSpec { seed: random.next(), bytes }, cancel)?;
    }
    let longest = join(&top_dir(TOP_DIRS - 1), &"n".repeat(255));
    make_file(root, &mut manifest, &longest, ContentSpec { seed: random.next(), bytes: 77 }, cancel)?;
    make_file(root, &mut manifest, BIG_NAME, ContentSpec { seed: random.next(), bytes: big_bytes }, cancel)?;
    Ok(manifest)
}

/// Path `inner` below `outer`; either may be empty.
pub(super) fn join(outer: &str, inner: &str) -> String {
    if outer.is_empty() || inner.is_empty() { format!("{outer}{inner}") } else { format!("{outer}/{inner}") }
}

/// Every fourth size is a boundary; the others are spread evenly over the orders of magnitude.
fn small_size(n: usize, random: &mut Random) -> u64 {
    if n.is_multiple_of(4) {
        return EDGES[n / 4 % EDGES.len()];
    }
    let magnitude = 1 << (random.next() % 18);
    magnitude + random.next() % magnitude
}

/// Makes a directory and its parents.
fn make_dirs(root: &Path, manifest: &mut Manifest, path: &str) -> Result<()> {
    let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
    for path in ends.map(|end| &path[..end]) {
        if manifest.dirs.insert(path.into()) {
            std::fs::create_dir(root.join(path)).map_err(|e| Error::from(e).context(path))?;
        }
    }
    Ok(())
}

/// Determines the content of a file.
#[derive(Clone, Copy)]
struct ContentSpec {
    seed: u64,
    bytes: u64,
}

fn make_file(
    root: &Path,
    manifest: &mut Manifest,
    path: &str,
    content: ContentSpec,
    cancel: &CancelFlag,
) -> Result<()> {
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
    let expected = ExpectedFile { bytes: content.bytes, sha1: Sha1Hash(hash.finalize().into()) };
    manifest.files.insert(path.into(), expected);
    Ok(())
}

/// `SplitMix64`: fast, and without weak seeds.
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
    fn tree_contains_the_edge_cases() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = make(dir.path(), 7, 100_000, &CancelFlag::default()).unwrap();
        assert!(manifest.files.len() > SMALL_FILES);
        let mut hashes: Vec<_> = manifest.files.values().map(|expected| expected.sha1.to_string()).collect();
        let empty = manifest.files.values().filter(|expected| expected.bytes == 0).count();
        assert!(empty >= 10, "{empty} empty files");
        hashes.sort();
        hashes.dedup();
        let repeated = manifest.files.len() - hashes.len() - (empty - 1);
        assert!(repeated >= 10, "{repeated} repeated contents");
        assert!(manifest.files.keys().any(|path| !path.is_ascii()));
        assert!(manifest.files.keys().any(|path| path.matches('/').count() >= 5));
        for (path, expected) in &manifest.files {
            let content = std::fs::read(dir.path().join(path)).unwrap();
            assert_eq!(content.len() as u64, expected.bytes, "{path}");
            assert_eq!(Sha1Hash(Sha1::digest(&content).into()), expected.sha1, "{path}");
        }
    }

    #[test]
    fn same_seed_makes_the_same_tree() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = make(a.path(), 1, 10, &CancelFlag::default()).unwrap();
        assert_eq!(make(b.path(), 1, 10, &CancelFlag::default()).unwrap().files, first.files);
        let c = tempfile::tempdir().unwrap();
        let other = make(c.path(), 2, 10, &CancelFlag::default()).unwrap();
        assert_ne!(other.files[BIG_NAME].sha1, first.files[BIG_NAME].sha1);
    }

    #[test]
    fn cancel_stops_the_generation() {
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancelFlag::default();
        cancel.set();
        assert!(make(dir.path(), 1, 10, &cancel).is_err());
    }
}
