//! Files are uploaded while they are written.

use std::fs::{self, File};
use std::io::{Read, Write};

use pdsfs::server::{FaultAction, FaultRule};

use crate::rig::{Rig, fresh_bytes};

#[test]
fn close_commits_and_verifies() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    for size in [0, 1, 65_535, 65_536, 65_537, 1_000_000] {
        let bytes = fresh_bytes(size);
        fs::write(mount.at(format!("f{size}")), &bytes).unwrap();
        assert_eq!(rig.client().read(&format!("f{size}")).unwrap(), bytes, "{size} bytes");
    }
    assert_eq!(mount.stop(), 0);
}

#[test]
fn file_being_written_is_only_visible_here() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    let bytes = fresh_bytes(200_000);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&bytes).unwrap();
    assert_eq!(fs::metadata(mount.at("f")).unwrap().len(), 200_000);
    let mut first = [0; 4096];
    File::open(mount.at("f")).unwrap().read_exact(&mut first).unwrap();
    assert_eq!(first[..], bytes[..4096]);
    assert_eq!(rig.client().names(""), Vec::<String>::new());
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
}

#[test]
fn overwrite_keeps_old_content_until_commit() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    let (old, new) = (fresh_bytes(100_000), fresh_bytes(150_000));
    fs::write(mount.at("f"), &old).unwrap();
    let before = rig.client().find("f").unwrap();
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&new).unwrap();
    assert_eq!(rig.client().read("f").unwrap(), old);
    drop(file);
    let after = rig.client().find("f").unwrap();
    assert_eq!(rig.client().read("f").unwrap(), new);
    assert_eq!(after.file_id, before.file_id);
    assert_ne!(after.revision, before.revision);
}

#[test]
fn same_bytes_are_not_uploaded_again() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    for size in [1000, 200_000] {
        let bytes = fresh_bytes(size);
        fs::write(mount.at("f"), &bytes).unwrap();
        let before = rig.client().find("f").unwrap();
        fs::write(mount.at("f"), &bytes).unwrap();
        assert_eq!(rig.client().find("f").unwrap().revision, before.revision, "{size} bytes");
    }
}

/// Only descriptors that are open for writing delay a commit.
#[test]
fn regression_own_reader_does_not_delay_commit() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("f"), b"old").unwrap();
    let reader = File::open(mount.at("f")).unwrap();
    fs::write(mount.at("f"), b"new content").unwrap();
    assert_eq!(rig.client().read("f").unwrap(), b"new content");
    drop(reader);
}

/// A failed stream that stays open must not keep the memory that others wait for.
#[test]
fn regression_failed_file_frees_its_memory() {
    let rig = Rig::new();
    let mount =
        rig.mount_with(&["--part-size", "256KiB", "--buffer-size", "1MiB", "--commit-timeout", "20s"]);
    rig.server().faults().add(FaultRule::new("put_part", refused()));
    let mut failed = File::create(mount.at("failed")).unwrap();
    while failed.write_all(&fresh_bytes(256 << 10)).is_ok() {}
    rig.server().faults().clear();
    let bytes = fresh_bytes(3 << 20);
    fs::write(mount.at("other"), &bytes).unwrap();
    assert_eq!(rig.client().read("other").unwrap(), bytes);
    drop(failed);
}

fn refused() -> FaultAction {
    FaultAction::status(403, "AccessDenied")
}
