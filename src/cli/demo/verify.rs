//! Compares the copied tree with the drive, in two ways: by the listing of the *server* with names, sizes and
//! hashes, which it computed from the bytes that it stored; and by reading every byte through a fresh mount.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Sha1Hash};
use crate::pds::drive::{Drive, FileMeta};
use crate::pds::types::FileType;

use super::cancel::CancelFlag;
use super::source::{Manifest, join};

/// Bound on the pages of all listings together, against a server that returns markers forever.
const PAGES_MAX: usize = 10_000;
const CHUNK_BYTES: usize = 1 << 20;

/// The tree as it was found on the drive or in the mount.
#[derive(Debug, Default)]
pub(super) struct ListedTree {
    files: BTreeMap<String, (u64, Option<Sha1Hash>)>,
    dirs: BTreeSet<String>,
}

/// Lists everything below a folder of the drive.
pub(super) async fn list_tree(drive: &Drive, root: &FileId) -> Result<ListedTree> {
    let mut found = ListedTree::default();
    let mut todo = vec![(String::new(), root.clone())];
    let mut pages = 0;
    while let Some((path, dir)) = todo.pop() {
        let mut marker = String::new();
        loop {
            pages += 1;
            if pages > PAGES_MAX {
                return Err(endless_listing());
            }
            let page = drive.list_page(&dir, &marker).await?;
            for item in page.items {
                let path = join(&path, &item.name);
                match item.kind {
                    FileType::Folder => {
                        found.dirs.insert(path.clone());
                        todo.push((path, item.file_id));
                    }
                    FileType::File => {
                        found.files.insert(path, (item.size, item.sha1));
                    }
                }
            }
            match page.next_marker {
                Some(next) => marker = next,
                None => break,
            }
        }
    }
    Ok(found)
}

/// Looks a name up in the listing of a folder.
pub(super) async fn child(drive: &Drive, dir: &FileId, name: &str) -> Result<Option<FileMeta>> {
    let mut marker = String::new();
    for _ in 0..PAGES_MAX {
        let page = drive.list_page(dir, &marker).await?;
        if let Some(item) = page.items.into_iter().find(|item| item.name == name) {
            return Ok(Some(item));
        }
        let Some(next) = page.next_marker else { return Ok(None) };
        marker = next;
    }
    Err(endless_listing())
}

fn endless_listing() -> Error {
    Error::new(ErrorKind::Protocol, format!("the listing of the drive has more than {PAGES_MAX} pages"))
}

/// One line for each difference; empty if the tree is exactly the manifest.
pub(super) fn differences(manifest: &Manifest, found: &ListedTree) -> Vec<String> {
    let mut out = Vec::new();
    for (path, expected) in &manifest.files {
        match found.files.get(path) {
            None => out.push(format!("{path}: not on the drive")),
            Some((bytes, _)) if *bytes != expected.bytes => {
                out.push(format!("{path}: {bytes} bytes on the drive, {} were written", expected.bytes));
            }
            Some((_, Some(sha1))) if *sha1 == expected.sha1 => {}
            Some((_, None)) if expected.bytes == 0 => {}
            Some((_, None)) => out.push(format!("{path}: no SHA-1 on the drive")),
            Some((_, Some(sha1))) => {
                out.push(format!("{path}: SHA-1 {sha1} on the drive, {} was written", expected.sha1));
            }
        }
    }
    out.extend(unexpected(found.files.keys().filter(|path| !manifest.files.contains_key(*path))));
    out.extend(manifest.dirs.difference(&found.dirs).map(|path| format!("{path}: directory missing")));
    out.extend(unexpected(found.dirs.difference(&manifest.dirs)));
    out
}

fn unexpected<'a>(paths: impl Iterator<Item = &'a String>) -> impl Iterator<Item = String> {
    paths.map(|path| format!("{path}: on the drive, but not copied there"))
}

/// Reads everything below `copy` and compares it with the same path below `source`. Returns one line for each
/// difference.
pub(super) fn compare_bytes(
    source: &Path,
    copy: &Path,
    manifest: &Manifest,
    cancel: &CancelFlag,
) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let mut seen = ListedTree::default();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(copy.join(&dir)).map_err(|e| Error::from(e).context(&dir))? {
            cancel.check()?;
            let entry = entry?;
            let path = join(&dir, &entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                seen.dirs.insert(path.clone());
                todo.push(path);
            } else if let Some(expected) = manifest.files.get(&path) {
                let same = same_bytes(&source.join(&path), &copy.join(&path), cancel)
                    .map_err(|e| e.context(format!("reading {path} back")))?;
                if !same {
                    out.push(format!("{path}: the bytes read back differ"));
                }
                seen.files.insert(path, (expected.bytes, Some(expected.sha1)));
            } else {
                seen.files.insert(path, (0, None));
            }
        }
    }
    out.extend(differences(manifest, &seen));
    Ok(out)
}

fn same_bytes(a: &Path, b: &Path, cancel: &CancelFlag) -> Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    loop {
        cancel.check()?;
        let (n, m) = (read_full(&mut a, &mut left)?, read_full(&mut b, &mut right)?);
        if left[..n] != right[..m] {
            return Ok(false);
        }
        if n < CHUNK_BYTES {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or at the end of the file.
fn read_full(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::super::source::{ExpectedFile, make};
    use super::*;

    fn expected(bytes: u64, byte: u8) -> ExpectedFile {
        ExpectedFile { bytes, sha1: Sha1Hash([byte; 20]) }
    }

    #[test]
    fn every_kind_of_difference_is_reported() {
        let mut manifest = Manifest::default();
        for (name, bytes) in
            [("same", 5), ("short", 5), ("other", 5), ("missing", 5), ("empty", 0), ("bare", 5)]
        {
            manifest.files.insert(name.into(), expected(bytes, 1));
        }
        manifest.dirs.insert("dir".into());
        let mut found = ListedTree::default();
        let good = Some(Sha1Hash([1; 20]));
        let there = [
            ("same", 5, good),
            ("short", 4, good),
            ("other", 5, Some(Sha1Hash([2; 20]))),
            ("empty", 0, None),
            ("bare", 5, None),
            ("extra", 5, good),
        ];
        for (name, bytes, sha1) in there {
            found.files.insert(name.into(), (bytes, sha1));
        }
        let names: BTreeSet<String> = differences(&manifest, &found)
            .iter()
            .map(|line| line.split(':').next().unwrap().into())
            .collect();
        let expected = ["bare", "dir", "extra", "missing", "other", "short"];
        assert_eq!(names, expected.map(String::from).into());
    }

    #[test]
    fn changed_missing_and_extra_files_are_reported() {
        let (source, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cancel = CancelFlag::default();
        let manifest = make(source.path(), 3, 3 << 20, &cancel).unwrap();
        make(copy.path(), 3, 3 << 20, &cancel).unwrap();
        let check = || compare_bytes(source.path(), copy.path(), &manifest, &cancel).unwrap();
        assert_eq!(check(), Vec::<String>::new());
        let big = copy.path().join(super::super::source::BIG_NAME);
        let mut content = std::fs::read(&big).unwrap();
        content[2 << 20] ^= 1;
        std::fs::write(&big, content).unwrap();
        let gone = manifest.files.keys().next().unwrap();
        std::fs::remove_file(copy.path().join(gone)).unwrap();
        std::fs::write(copy.path().join("extra"), "").unwrap();
        let lines = check();
        assert_eq!(lines.len(), 3, "{lines:?}");
    }
}
