//! Compares the tree that was copied with what the drive has, by two routes.
//!
//! The *server* is asked for names, sizes and hashes of everything (it computed them from the bytes
//! it stores); and every byte is read back through a mount that has never seen the files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Sha1Hash};
use crate::pds::drive::{Drive, FileMeta};
use crate::pds::types::FileType;

use super::once::Cancel;
use super::source::{Manifest, join};

/// Pages of all listings together; more is a server that does not stop.
const PAGES_MAX: usize = 10_000;
/// Bytes compared at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What was found on the other side.
#[derive(Debug, Default)]
pub(super) struct Found {
    files: BTreeMap<String, (u64, Option<Sha1Hash>)>,
    folders: BTreeSet<String>,
}

/// Everything below a folder of the drive, as the server lists it.
pub(super) async fn listed_by_server(drive: &Drive, root: &FileId) -> Result<Found> {
    let mut found = Found::default();
    let mut todo = vec![(String::new(), root.clone())];
    let mut pages = 0;
    while let Some((path, folder)) = todo.pop() {
        let mut marker = String::new();
        loop {
            pages += 1;
            if pages > PAGES_MAX {
                return Err(Error::new(ErrorKind::Protocol, "the listing of the drive does not end"));
            }
            let page = drive.list_page(&folder, &marker).await?;
            for item in page.items {
                let path = join(&path, &item.name);
                match item.kind {
                    FileType::Folder => {
                        found.folders.insert(path.clone());
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

/// The child of a folder with this name, as the server lists it.
pub(super) async fn child(drive: &Drive, folder: &FileId, name: &str) -> Result<Option<FileMeta>> {
    let mut marker = String::new();
    for _ in 0..PAGES_MAX {
        let page = drive.list_page(folder, &marker).await?;
        if let Some(item) = page.items.into_iter().find(|item| item.name == name) {
            return Ok(Some(item));
        }
        let Some(next) = page.next_marker else { return Ok(None) };
        marker = next;
    }
    Err(Error::new(ErrorKind::Protocol, "the listing of the drive does not end"))
}

/// One sentence for each thing that differs; empty if the server has exactly the manifest.
pub(super) fn differences(manifest: &Manifest, found: &Found) -> Vec<String> {
    let mut out = Vec::new();
    for (path, known) in &manifest.files {
        match found.files.get(path) {
            None => out.push(format!("{path}: not on the drive")),
            Some((bytes, _)) if *bytes != known.bytes => {
                out.push(format!("{path}: {bytes} bytes on the drive, {} were written", known.bytes));
            }
            Some((_, Some(sha1))) if *sha1 == known.sha1 => {}
            Some((_, None)) if known.bytes == 0 => {}
            Some((_, None)) => out.push(format!("{path}: the drive gives no SHA-1")),
            Some((_, Some(sha1))) => {
                out.push(format!("{path}: SHA-1 {sha1} on the drive, {} was written", known.sha1));
            }
        }
    }
    out.extend(extra(found.files.keys().filter(|path| !manifest.files.contains_key(*path))));
    out.extend(manifest.folders.difference(&found.folders).map(|path| format!("{path}: folder missing")));
    out.extend(extra(found.folders.difference(&manifest.folders)));
    out
}

fn extra<'a>(paths: impl Iterator<Item = &'a String>) -> impl Iterator<Item = String> {
    paths.map(|path| format!("{path}: on the drive, but nobody put it there"))
}

/// Reads everything below `there` and compares it with the same path below `here`: one sentence
/// for each thing that differs.
pub(super) fn read_back(
    here: &Path,
    there: &Path,
    manifest: &Manifest,
    cancel: &Cancel,
) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let mut seen = Found::default();
    let mut todo = vec![String::new()];
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(there.join(&folder)).map_err(|e| Error::from(e).context(&folder))? {
            cancel.check()?;
            let entry = entry?;
            let path = join(&folder, &entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                seen.folders.insert(path.clone());
                todo.push(path);
            } else if let Some(known) = manifest.files.get(&path) {
                let same = same_bytes(&here.join(&path), &there.join(&path), cancel)
                    .map_err(|e| e.context(format!("reading {path} back")))?;
                if !same {
                    out.push(format!("{path}: read back other bytes than were written"));
                }
                seen.files.insert(path, (known.bytes, Some(known.sha1)));
            } else {
                seen.files.insert(path, (0, None));
            }
        }
    }
    out.extend(differences(manifest, &seen));
    Ok(out)
}

fn same_bytes(a: &Path, b: &Path, cancel: &Cancel) -> Result<bool> {
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

/// Reads until the buffer is full or the file ends.
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
    use super::super::source::{Known, make};
    use super::*;

    fn known(bytes: u64, byte: u8) -> Known {
        Known { bytes, sha1: Sha1Hash([byte; 20]) }
    }

    #[test]
    fn every_kind_of_difference_is_named() {
        let mut manifest = Manifest::default();
        for (name, bytes) in
            [("same", 5), ("short", 5), ("other", 5), ("missing", 5), ("empty", 0), ("bare", 5)]
        {
            manifest.files.insert(name.into(), known(bytes, 1));
        }
        manifest.folders.insert("folder".into());
        let mut found = Found::default();
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
        let expected = ["bare", "extra", "folder", "missing", "other", "short"];
        assert_eq!(names, expected.map(String::from).into());
    }

    #[test]
    fn reading_back_sees_one_changed_byte_one_missing_and_one_extra_file() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let cancel = Cancel::default();
        let manifest = make(here.path(), 3, 3 << 20, &cancel).unwrap();
        make(there.path(), 3, 3 << 20, &cancel).unwrap();
        let check = || read_back(here.path(), there.path(), &manifest, &cancel).unwrap();
        assert_eq!(check(), Vec::<String>::new());
        let big = there.path().join(super::super::source::BIG_NAME);
        let mut content = std::fs::read(&big).unwrap();
        content[2 << 20] ^= 1;
        std::fs::write(&big, content).unwrap();
        let gone = manifest.files.keys().next().unwrap();
        std::fs::remove_file(there.path().join(gone)).unwrap();
        std::fs::write(there.path().join("extra"), "").unwrap();
        let lines = check();
        assert_eq!(lines.len(), 3, "{lines:?}");
    }
}
