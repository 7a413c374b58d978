//! The model once more, where files of one name live on this machine only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::model::{Op, Pair, contents, random, tree};
use crate::model_operations::{crowded_op, op};
use crate::rig::{Mount, Rig};

/// A name under which files live on this machine only, and the mount of which that is so.
const LOCAL: &str = "d";
const LOCAL_ARGUMENTS: [&str; 4] = ["--part-size", "256", "--local-only", LOCAL];

/// A tree without the files that may live on this machine only: whether one is on the drive depends on the
/// name that it was made under.
fn without_local(tree: BTreeMap<PathBuf, Option<String>>) -> BTreeMap<PathBuf, Option<String>> {
    let may_be_local = |path: &Path, is_file| is_file && path.ends_with(LOCAL);
    tree.into_iter().filter(|(path, entry)| !may_be_local(path, entry.is_some())).collect()
}

/// The same operations where files of one name live on this machine only: programs see no difference, and the
/// drive has the others.
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
fn random_operations_with_files_that_live_here_do_what_a_local_folder_does() {
    let rig = Rig::new();
    let mount = rig.mount_with(&LOCAL_ARGUMENTS);
    random(12, prop_oneof![op(), crowded_op()], |case, ops| check_local(&rig, &mount, case, ops));
    assert_eq!(mount.stop(), 0);
}
