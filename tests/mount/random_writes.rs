//! Random writes, reads and truncations of one file through several handles, compared with a local file. Every
//! outcome and byte must agree, and the drive must have the same content in the end.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use pdsfs::server::{FaultAction, FaultRule};

use crate::rig::{Mount, Rig, fresh_bytes};

#[derive(Clone, Debug)]
enum Step {
    Write { at: u64, len: usize, append: bool },
    Read { at: u64, len: usize },
    Truncate { size: u64 },
    Sync,
    Reopen { truncate: bool },
    SecondHandle { at: u64, len: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = || prop_oneof![3 => 0..3000_u64, 1 => Just(0_u64), 1 => (0..12_u64).prop_map(|n| n * 256)];
    let len = || prop_oneof![1..700_usize, Just(256_usize), Just(1_usize)];
    let step = prop_oneof![
        6 => (at(), len(), any::<bool>()).prop_map(|(at, len, append)| Step::Write { at, len, append }),
        3 => (at(), len()).prop_map(|(at, len)| Step::Read { at, len }),
        2 => at().prop_map(|size| Step::Truncate { size }),
        1 => Just(Step::Sync),
        1 => any::<bool>().prop_map(|truncate| Step::Reopen { truncate }),
        1 => (at(), len()).prop_map(|(at, len)| Step::SecondHandle { at, len }),
    ];
    prop::collection::vec(step, 1..30)
}

/// Runs the steps and returns every outcome that a program sees.
fn run(path: &Path, steps: &[Step], bytes: &[u8]) -> Vec<String> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let mut seen = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let data = |len: usize| &bytes[index * 7..index * 7 + len];
        seen.push(match step {
            Step::Write { at, len, append } => {
                let at = if *append { file.metadata().unwrap().len() } else { *at };
                format!("{:?}", file.write_all_at(data(*len), at).map_err(|e| e.raw_os_error()))
            }
            Step::Read { at, len } => {
                let mut buffer = vec![0; *len];
                let count = file.read_at(&mut buffer, *at).map_err(|e| e.raw_os_error());
                format!("{count:?} {buffer:?}")
            }
            Step::Truncate { size } => format!("{:?}", file.set_len(*size).map_err(|e| e.raw_os_error())),
            Step::Sync => format!("{:?}", file.sync_all().map_err(|e| e.raw_os_error())),
            Step::Reopen { truncate } => {
                drop(file);
                file = OpenOptions::new().read(true).write(true).truncate(*truncate).open(path).unwrap();
                format!("{}", file.metadata().unwrap().len())
            }
            Step::SecondHandle { at, len } => {
                let other = OpenOptions::new().write(true).open(path).unwrap();
                format!("{:?}", other.write_all_at(data(*len), *at).map_err(|e| e.raw_os_error()))
            }
        });
    }
    drop(file);
    seen.push(format!("{:?}", fs::read(path).unwrap()));
    seen
}

fn check(rig: &Rig, mount: &Mount, name: &str, steps: &[Step]) -> Result<(), TestCaseError> {
    let (plain, bytes) = (tempfile::tempdir().unwrap(), fresh_bytes(2000));
    let expected = run(&plain.path().join(name), steps, &bytes);
    let seen = run(&mount.at(name), steps, &bytes);
    for (index, (seen, expected)) in seen.iter().zip(&expected).enumerate() {
        prop_assert_eq!(seen, expected, "step {} {:?}", index, steps.get(index));
    }
    prop_assert_eq!(
        rig.client().read(name).unwrap(),
        fs::read(plain.path().join(name)).unwrap(),
        "the drive"
    );
    Ok(())
}

/// Uses tiny parts, so that every boundary is hit.
fn random_writes(cache: &[&str]) {
    let rig = Rig::new();
    let mount = rig.mount_with(&[&["--part-size", "256"], cache].concat());
    let cases = std::env::var("PDSFS_MODEL_CASES").map_or(60, |text| text.parse().unwrap());
    let config = Config { cases, max_shrink_iters: 300, failure_persistence: None, ..Config::default() };
    let case = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&steps(), |steps| {
            case.set(case.get() + 1);
            check(&rig, &mount, &format!("case-{}", case.get()), &steps)
        })
        .unwrap();
}

#[test]
fn random_writes_match_local_file() {
    random_writes(&[]);
}

#[test]
fn cache_off_random_writes_match_local_file() {
    random_writes(&["--cache-size", "off"]);
}

#[test]
fn regression_slow_drive_allows_write_after_commit() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "256", "--cache-size", "off"]);
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Delay { ms: 150 }));
    // From here on the mount knows the speed of the drive and lets a writer be only two parts ahead.
    fs::write(mount.at("first"), fresh_bytes(12 * 256)).unwrap();
    for bytes in [1280, 250] {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(mount.at("f")).unwrap();
        file.set_len(bytes).unwrap();
        file.sync_all().unwrap();
        file.write_all_at(b"x", bytes).unwrap();
        drop(file);
        assert_eq!(rig.client().read("f").unwrap(), [vec![0; bytes as usize], b"x".to_vec()].concat());
    }
}
