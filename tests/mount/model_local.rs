//! The model once more, where files of one name live on this machine only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::model::{Op, World, apply, contents, op, tree};
use crate::rig::{Mount, Rig, fresh_bytes};

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
    let plain = tempfile::tempdir().unwrap();
    let name = format!("case-{case}");
    let mounted = mount.at(&name);
    let (inside, plain_inside) = (mounted.join("inside"), plain.path().join("inside"));
    fs::create_dir_all(&inside).unwrap();
    fs::create_dir(&plain_inside).unwrap();
    let (mut ours, mut theirs) = (World::new(&inside), World::new(&plain_inside));
    for (step, op) in ops.iter().filter(|op| !matches!(op, Op::Remount)).enumerate() {
        let bytes = fresh_bytes(5000);
        let expected = apply(&mut theirs, op, &bytes);
        let seen = apply(&mut ours, op, &bytes);
        prop_assert_eq!(&seen, &expected, "step {} {:?}", step, op);
        if step % 5 == 0 {
            prop_assert_eq!(tree(&mounted), tree(plain.path()), "after step {} {:?}", step, op);
        }
    }
    drop((ours, theirs));
    let expected = tree(plain.path());
    prop_assert_eq!(tree(&mounted), expected.clone());
    let fresh = rig.mount();
    let on_drive = without_local(contents(tree(&fresh.at(&name))));
    prop_assert_eq!(on_drive, without_local(contents(expected)), "through another mount");
    Ok(())
}

#[test]
fn random_operations_with_files_that_live_here_do_what_a_local_folder_does() {
    let rig = Rig::new();
    let mount = rig.mount_with(&LOCAL_ARGUMENTS);
    let cases = std::env::var("PDSFS_MODEL_CASES").map_or(12, |text| text.parse().unwrap());
    let config = Config { cases, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let case = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&prop::collection::vec(op(), 1..40), |ops| {
            case.set(case.get() + 1);
            check_local(&rig, &mount, case.get(), &ops)
        })
        .unwrap();
    assert_eq!(mount.stop(), 0);
}
