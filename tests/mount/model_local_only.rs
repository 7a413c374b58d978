//! The random operations of the model, with one local-only name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::model::{Op, Pair, contents, random, tree};
use crate::model_operations::{crowded_op, op};
use crate::rig::{Mount, Rig};

/// The local-only name, and the arguments of its mount.
const LOCAL: &str = "d";
const LOCAL_ARGUMENTS: [&str; 4] = ["--part-size", "256", "--local-only", LOCAL];

/// The tree without files that may be local-only: whether one is on the drive depends on the name under which it
/// was created.
fn without_local(tree: BTreeMap<PathBuf, Option<String>>) -> BTreeMap<PathBuf, Option<String>> {
    let may_be_local = |path: &Path, is_file| is_file && path.ends_with(LOCAL);
    tree.into_iter().filter(|(path, entry)| !may_be_local(path, entry.is_some())).collect()
}

/// The same operations with one local-only name: programs see no difference, and the drive has all other files.
fn check_local(rig: &Rig, mount: &Mount, case: u32, ops: &[Op]) -> Result<(), TestCaseError> {
    let name = format!("case-{case}");
    let ops = ops.iter().filter(|op| !matches!(op, Op::Remount));
    let expected = Pair::new(mount.at(&name)).run(ops, |_| {})?;
    let fresh = rig.mount();
    let on_drive = without_local(contents(tree(&fresh.at(&name))));
    prop_assert_eq!(on_drive, without_local(contents(expected)), "through another mount");
    Ok(())
}

#[test]
fn local_only_operations_match_local_directory() {
    let rig = Rig::new();
    let mount = rig.mount_with(&LOCAL_ARGUMENTS);
    random(12, prop_oneof![op(), crowded_op()], |case, ops| check_local(&rig, &mount, case, ops));
    assert_eq!(mount.stop(), 0);
}
