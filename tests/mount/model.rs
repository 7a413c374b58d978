//! Random operations on the mount and on a plain folder: every outcome, errno and byte must agree,
//! and the drive must hold the same in the end. Parts are tiny, so that boundaries are hit all the
//! time. A failure that was found here becomes a test of its own below.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::rig::{Rig, fresh_bytes};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
enum Op {
    Write { path: usize, len: usize, pieces: usize },
    Read { path: usize },
    Remove { path: usize },
    MakeFolder { path: usize },
    RemoveFolder { path: usize },
    Rename { from: usize, to: usize },
    List { path: usize },
    Cut { path: usize },
    RenameWhileWriting { path: usize, to: usize, len: usize },
    RemoveWhileWriting { path: usize, len: usize },
    SetTime { path: usize, seconds: u32 },
    Edit { path: usize, at: usize, len: usize },
    Append { path: usize, len: usize },
    SetLen { path: usize, size: usize },
    EditWhileRenaming { path: usize, to: usize, at: usize, len: usize },
    EditRemoved { path: usize, at: usize, len: usize },
}

/// Any number is a valid path: depth 0 to 2 over four names.
fn path(base: &Path, number: usize) -> PathBuf {
    let mut path = base.join(NAMES[number % 4]);
    let mut rest = number / 4;
    for _ in 0..(rest % 3) {
        rest /= 3;
        path.push(NAMES[rest % 4]);
    }
    path
}

fn op() -> impl Strategy<Value = Op> {
    let path = || 0..200usize;
    let len = || prop_oneof![Just(0usize), 1..300usize, Just(256usize), 256..5000usize];
    prop_oneof![
        5 => (path(), len(), 1..6usize).prop_map(|(path, len, pieces)| Op::Write { path, len, pieces }),
        2 => path().prop_map(|path| Op::Read { path }),
        2 => path().prop_map(|path| Op::Remove { path }),
        3 => path().prop_map(|path| Op::MakeFolder { path }),
        1 => path().prop_map(|path| Op::RemoveFolder { path }),
        4 => (path(), path()).prop_map(|(from, to)| Op::Rename { from, to }),
        1 => path().prop_map(|path| Op::List { path }),
        1 => path().prop_map(|path| Op::Cut { path }),
        2 => (path(), path(), len()).prop_map(|(path, to, len)| Op::RenameWhileWriting { path, to, len }),
        1 => (path(), len()).prop_map(|(path, len)| Op::RemoveWhileWriting { path, len }),
        3 => (path(), len(), len()).prop_map(|(path, at, len)| Op::Edit { path, at, len }),
        2 => (path(), len()).prop_map(|(path, len)| Op::Append { path, len }),
        2 => (path(), len()).prop_map(|(path, size)| Op::SetLen { path, size }),
        2 => (path(), path(), len(), len())
            .prop_map(|(path, to, at, len)| Op::EditWhileRenaming { path, to, at, len }),
        1 => (path(), len(), len()).prop_map(|(path, at, len)| Op::EditRemoved { path, at, len }),
        1 => (path(), 1..2_000_000_000u32).prop_map(|(path, seconds)| Op::SetTime { path, seconds }),
    ]
}

/// A file that must be there, for reading and writing.
fn existing(path: &Path) -> std::io::Result<File> {
    fs::OpenOptions::new().read(true).write(true).open(path)
}

/// What a program would notice of an operation.
fn apply(base: &Path, op: &Op, bytes: &[u8]) -> Result<String, Option<i32>> {
    let outcome = match op {
        Op::Write { path: p, len, pieces } => File::create(path(base, *p)).and_then(|mut file| {
            bytes[..*len].chunks((len / pieces).max(1)).try_for_each(|piece| file.write_all(piece))?;
            file.sync_all()?;
            Ok(String::new())
        }),
        Op::Read { path: p } => fs::read(path(base, *p)).map(|bytes| format!("{bytes:?}")),
        Op::Remove { path: p } => fs::remove_file(path(base, *p)).map(|()| String::new()),
        Op::MakeFolder { path: p } => fs::create_dir(path(base, *p)).map(|()| String::new()),
        Op::RemoveFolder { path: p } => fs::remove_dir(path(base, *p)).map(|()| String::new()),
        Op::Rename { from, to } => fs::rename(path(base, *from), path(base, *to)).map(|()| String::new()),
        Op::List { path: p } => fs::read_dir(path(base, *p)).map(|entries| {
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            format!("{names:?}")
        }),
        Op::Cut { path: p } => {
            fs::OpenOptions::new().write(true).truncate(true).open(path(base, *p)).map(|_| String::new())
        }
        Op::RenameWhileWriting { path: p, to, len } => File::create(path(base, *p)).and_then(|mut file| {
            file.write_all(&bytes[..len / 2])?;
            let renamed = fs::rename(path(base, *p), path(base, *to)).map_err(|e| e.raw_os_error());
            file.write_all(&bytes[len / 2..*len])?;
            Ok(format!("{renamed:?}"))
        }),
        Op::RemoveWhileWriting { path: p, len } => File::create(path(base, *p)).and_then(|mut file| {
            file.write_all(&bytes[..len / 2])?;
            fs::remove_file(path(base, *p))?;
            file.write_all(&bytes[len / 2..*len])?;
            Ok(String::new())
        }),
        Op::Edit { path: p, at, len } => existing(&path(base, *p)).and_then(|file| {
            file.write_all_at(&bytes[..*len], *at as u64)?;
            let mut seen = vec![0; 600];
            let count = file.read_at(&mut seen, at.saturating_sub(300) as u64)?;
            Ok(format!("{:?}", &seen[..count]))
        }),
        Op::Append { path: p, len } => {
            let file = fs::OpenOptions::new().append(true).create(true).open(path(base, *p));
            file.and_then(|mut file| file.write_all(&bytes[..*len])).map(|()| String::new())
        }
        Op::SetLen { path: p, size } => {
            existing(&path(base, *p)).and_then(|file| file.set_len(*size as u64)).map(|()| String::new())
        }
        Op::EditWhileRenaming { path: p, to, at, len } => existing(&path(base, *p)).and_then(|file| {
            file.write_all_at(&bytes[..len / 2], *at as u64)?;
            let renamed = fs::rename(path(base, *p), path(base, *to)).map_err(|e| e.raw_os_error());
            file.write_all_at(&bytes[len / 2..*len], (at / 2) as u64)?;
            Ok(format!("{renamed:?}"))
        }),
        Op::EditRemoved { path: p, at, len } => existing(&path(base, *p)).and_then(|file| {
            fs::remove_file(path(base, *p))?;
            file.write_all_at(&bytes[..*len], *at as u64)?;
            let mut seen = vec![0; 12_000];
            let count = file.read_at(&mut seen, 0)?;
            Ok(format!("{:?}", &seen[..count]))
        }),
        Op::SetTime { path: p, seconds } => File::open(path(base, *p)).and_then(|file| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs((*seconds).into());
            if file.metadata()?.is_file() {
                file.set_times(fs::FileTimes::new().set_modified(time))?;
                return Ok(format!("{:?}", file.metadata()?.modified()?));
            }
            Ok(String::new())
        }),
    };
    outcome.map_err(|error| error.raw_os_error())
}

/// Every path below a folder, with content and (for files) modification time in seconds.
fn tree(base: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![base.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let relative = path.strip_prefix(base).unwrap().to_owned();
            if entry.file_type().unwrap().is_dir() {
                found.insert(relative, None);
                todo.push(path);
            } else {
                found.insert(relative, Some(fs::read(&path).unwrap()));
            }
        }
    }
    found
}

fn check(rig: &Rig, mount: &Path, case: u32, ops: &[Op]) -> Result<(), TestCaseError> {
    let plain = tempfile::tempdir().unwrap();
    let name = format!("case-{case}");
    let mounted = mount.join(&name);
    fs::create_dir(&mounted).unwrap();
    for (step, op) in ops.iter().enumerate() {
        let bytes = fresh_bytes(5000);
        let expected = apply(plain.path(), op, &bytes);
        let seen = apply(&mounted, op, &bytes);
        prop_assert_eq!(&seen, &expected, "step {} {:?}", step, op);
        if step % 5 == 0 {
            prop_assert_eq!(tree(&mounted), tree(plain.path()), "after step {} {:?}", step, op);
        }
    }
    let expected = tree(plain.path());
    prop_assert_eq!(tree(&mounted), expected.clone());
    let fresh = rig.mount();
    prop_assert_eq!(tree(&fresh.at(&name)), expected, "through a fresh mount");
    Ok(())
}

fn run(rig: &Rig, ops: &[Op]) {
    let mount = rig.mount_with(&["--part-size", "256"]);
    check(rig, mount.path(), 0, ops).unwrap();
}

#[test]
fn random_operations_do_what_a_local_folder_does() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "256"]);
    let cases = std::env::var("PDSFS_MODEL_CASES").map_or(24, |text| text.parse().unwrap());
    let config = Config { cases, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let case = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&prop::collection::vec(op(), 1..40), |ops| {
            case.set(case.get() + 1);
            check(&rig, mount.path(), case.get(), &ops)
        })
        .unwrap();
}

#[test]
fn the_model_can_fail() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(one.path().join("a"), b"x").unwrap();
    let op = Op::Read { path: 0 };
    assert_ne!(apply(one.path(), &op, &[]), apply(other.path(), &op, &[]));
    assert_ne!(tree(one.path()), tree(other.path()));
}

/// A new revision keeps the name that the file had on the drive.
#[test]
fn regression_renamed_between_truncating_and_writing() {
    run(
        &Rig::new(),
        &[
            Op::RenameWhileWriting { path: 111, to: 3, len: 0 },
            Op::RenameWhileWriting { path: 15, to: 12, len: 2 },
        ],
    );
}

#[test]
fn regression_write_read_remove() {
    run(
        &Rig::new(),
        &[
            Op::Write { path: 0, len: 4096, pieces: 3 },
            Op::Read { path: 0 },
            Op::Remove { path: 0 },
            Op::Read { path: 0 },
        ],
    );
}
