//! Random operations on the mount and on a local directory, with open handles, other processes and remounts.
//! Every outcome, errno and byte must agree, and the drive must have the same tree in the end. Parts are tiny,
//! so that boundaries are hit often. Each failure found here becomes a regression test below.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

pub use crate::model_operations::Op;
use crate::model_operations::{World, apply, crowded_op, op, show};
use crate::rig::{Mount, Rig, fresh_bytes};

const ARGUMENTS: [&str; 2] = ["--part-size", "256"];

/// Mode and content of every path below a directory; `None` for a subdirectory.
pub type Tree = BTreeMap<PathBuf, Option<(u32, String)>>;

/// Reads the tree below a directory. The content of a link is its target.
pub fn tree(base: &Path) -> Tree {
    let mut found = BTreeMap::new();
    let mut todo = vec![base.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let relative = path.strip_prefix(base).unwrap().to_owned();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                found.insert(relative, None);
                todo.push(path);
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).unwrap().display().to_string();
                found.insert(relative, Some((meta.permissions().mode(), target)));
            } else {
                found.insert(relative, Some((meta.permissions().mode(), show(&fs::read(&path).unwrap()))));
            }
        }
    }
    found
}

/// The mount, which a remount replaces.
type Remountable = RefCell<Option<Mount>>;

fn remount(rig: &Rig, mount: &Remountable) {
    let before = mount.take().unwrap();
    mount.replace(Some(before.restart(&rig.endpoint(), &ARGUMENTS)));
}

/// The tree without modes.
pub fn contents(tree: Tree) -> BTreeMap<PathBuf, Option<String>> {
    tree.into_iter().map(|(path, entry)| (path, entry.map(|(_, content)| content))).collect()
}

/// A directory of the mount and a local one that get the same operations.
pub struct Pair {
    plain: tempfile::TempDir,
    mounted: PathBuf,
}

impl Pair {
    pub fn new(mounted: PathBuf) -> Self {
        let plain = tempfile::tempdir().unwrap();
        // Links may lead one directory up.
        fs::create_dir_all(mounted.join("inside")).unwrap();
        fs::create_dir(plain.path().join("inside")).unwrap();
        Self { plain, mounted }
    }

    /// Compares each outcome, and the trees at every fifth step. Returns the final tree. `after` is called after
    /// each operation.
    pub fn run<'a>(
        &self,
        ops: impl IntoIterator<Item = &'a Op>,
        after: impl Fn(&Op),
    ) -> Result<Tree, TestCaseError> {
        let [mut ours, mut theirs] =
            [self.mounted.as_path(), self.plain.path()].map(|side| World::new(&side.join("inside")));
        for (step, op) in ops.into_iter().enumerate() {
            let bytes = fresh_bytes(5000);
            let expected = apply(&mut theirs, op, &bytes);
            let seen = apply(&mut ours, op, &bytes);
            prop_assert_eq!(&seen, &expected, "step {} {:?}", step, op);
            after(op);
            if step % 5 == 0 {
                prop_assert_eq!(tree(&self.mounted), tree(self.plain.path()), "after step {} {:?}", step, op);
            }
        }
        drop((ours, theirs));
        let expected = tree(self.plain.path());
        prop_assert_eq!(tree(&self.mounted), expected.clone());
        Ok(expected)
    }
}

/// Runs `check` with the number of the case and its random operations.
pub fn random(
    cases: u32,
    op: impl Strategy<Value = Op>,
    check: impl Fn(u32, &[Op]) -> Result<(), TestCaseError>,
) {
    let cases = std::env::var("PDSFS_MODEL_CASES").map_or(cases, |text| text.parse().unwrap());
    let config = Config { cases, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let case = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&prop::collection::vec(op, 1..40), |ops| {
            case.set(case.get() + 1);
            check(case.get(), &ops)
        })
        .unwrap();
}

fn check(rig: &Rig, mount: &Remountable, case: u32, ops: &[Op]) -> Result<(), TestCaseError> {
    let name = format!("case-{case}");
    let mounted = mount.borrow().as_ref().unwrap().at(&name);
    let expected = Pair::new(mounted.clone()).run(ops, |op| {
        if matches!(op, Op::Remount) {
            remount(rig, mount);
        }
    })?;
    // Attributes reach the drive up to a second later, so only content is compared first.
    let fresh = rig.mount();
    prop_assert_eq!(contents(tree(&fresh.at(&name))), contents(expected.clone()), "through another mount");
    drop(fresh);
    remount(rig, mount);
    prop_assert_eq!(tree(&mounted), expected, "through a fresh mount");
    Ok(())
}

fn run(rig: &Rig, ops: &[Op]) {
    let mount = RefCell::new(Some(rig.mount_with(&ARGUMENTS)));
    check(rig, &mount, 0, ops).unwrap();
}

#[test]
fn random_operations_match_local_directory() {
    let rig = Rig::new();
    let mount = RefCell::new(Some(rig.mount_with(&ARGUMENTS)));
    random(24, op(), |case, ops| check(&rig, &mount, case, ops));
}

#[test]
fn crowded_operations_match_local_directory() {
    let rig = Rig::new();
    let mount = RefCell::new(Some(rig.mount_with(&ARGUMENTS)));
    random(24, crowded_op(), |case, ops| check(&rig, &mount, case, ops));
}

#[test]
fn model_detects_a_difference() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(one.path().join("a"), b"x").unwrap();
    let op = Op::Read { path: 0 };
    let mut worlds = [World::new(one.path()), World::new(other.path())];
    let seen = worlds.each_mut().map(|world| apply(world, &op, &[]));
    assert_ne!(seen[0], seen[1]);
    assert_ne!(tree(one.path()), tree(other.path()));
}

/// A new revision keeps the remote name of the file.
#[test]
fn regression_rename_between_truncate_and_write() {
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

/// A file that replaces a link is not a link.
#[test]
fn regression_rename_over_symlink() {
    run(
        &Rig::new(),
        &[
            Op::Write { path: 1, len: 0, pieces: 1 },
            Op::Link { path: 0, to: 0 },
            Op::Rename { from: 1, to: 0 },
        ],
    );
}

/// A new file under the old name of a renamed, uncommitted file is a different file.
#[test]
fn regression_new_file_under_name_of_unsaved_file() {
    for target in [None, Some(5)] {
        let mut ops = vec![Op::Write { path: 2, len: 10, pieces: 1 }];
        ops.extend(target.map(|_| Op::Write { path: 1, len: 20, pieces: 1 }));
        ops.extend([
            Op::Open { slot: 0, path: 2 },
            Op::EditWhileRenaming { path: 2, to: 1, at: 0, len: 2 },
            Op::Write { path: 2, len: 300, pieces: 1 },
            Op::WriteHandle { slot: 0, at: 5, len: 1000 },
            Op::MakeDir { path: 0 },
        ]);
        run(&Rig::new(), &ops);
    }
}

#[test]
fn regression_reuse_name_after_rename_over_file() {
    run(
        &Rig::new(),
        &[
            Op::Open { slot: 0, path: 0 },
            Op::Edit { path: 0, at: 0, len: 256 },
            Op::Write { path: 1, len: 0, pieces: 1 },
            Op::Rename { from: 0, to: 1 },
            Op::RenameWhileWriting { path: 0, to: 4, len: 0 },
        ],
    );
}

/// The target moves to the old name of the source, and the source is removed.
#[test]
fn regression_rename_over_unsaved_replacement() {
    for is_unsaved in [false, true] {
        let mut ops: Vec<_> = (0..3).map(|path| Op::Write { path, len: 10 + path, pieces: 1 }).collect();
        ops.extend([
            Op::Open { slot: 0, path: 0 },
            Op::WriteHandle { slot: 0, at: 3, len: 300 },
            Op::Rename { from: 0, to: 1 },
            Op::Open { slot: 1, path: 2 },
        ]);
        ops.extend(is_unsaved.then_some(Op::WriteHandle { slot: 1, at: 5, len: 700 }));
        ops.extend([Op::Rename { from: 2, to: 1 }, Op::ReadHandle { slot: 0, at: 0 }, Op::Remount]);
        run(&Rig::new(), &ops);
    }
}

/// A file that was renamed over another and is still open for writing keeps its former name on the drive.
#[test]
fn regression_saved_file_takes_unsaved_name() {
    for in_subdir in [false, true] {
        // The second case is in a subdirectory.
        let source = if in_subdir { 6 } else { 2 };
        let mut ops = vec![Op::MakeDir { path: 2 }];
        ops.truncate(usize::from(in_subdir));
        ops.extend([
            Op::Write { path: 0, len: 10, pieces: 1 },
            Op::Write { path: 1, len: 20, pieces: 1 },
            Op::Open { slot: 0, path: 0 },
            Op::WriteHandle { slot: 0, at: 5, len: 300 },
            Op::Rename { from: 0, to: 1 },
            Op::Write { path: source, len: 30, pieces: 1 },
            Op::Rename { from: source, to: 0 },
            Op::WriteHandle { slot: 0, at: 9, len: 40 },
        ]);
        run(&Rig::new(), &ops);
    }
}

/// The replaced file stayed under the intermediate name.
#[test]
fn regression_unsaved_file_renamed_over_then_away() {
    run(
        &Rig::new(),
        &[
            Op::Write { path: 3, len: 5, pieces: 1 },
            Op::Open { slot: 1, path: 2 },
            Op::Rename { from: 2, to: 3 },
            Op::Rename { from: 3, to: 0 },
            Op::Write { path: 3, len: 0, pieces: 1 },
            Op::WriteHandle { slot: 1, at: 0, len: 7 },
        ],
    );
}

/// An unsaved copy needs the bytes of its source, also after the source is removed.
#[test]
fn regression_source_of_unsaved_copy_is_removed() {
    for last in [Op::Rename { from: 1, to: 2 }, Op::Remove { path: 1 }] {
        run(
            &Rig::new(),
            &[
                Op::Write { path: 2, len: 345, pieces: 1 },
                Op::Open { slot: 1, path: 3 },
                Op::Write { path: 1, len: 2000, pieces: 1 },
                // The copy is committed when its last writer closes.
                Op::Copy { from: 1, to: 3 },
                last,
                Op::ReadHandle { slot: 1, at: 256 },
                Op::WriteHandle { slot: 1, at: 300, len: 5 },
            ],
        );
    }
}
