//! Writes to a drive that becomes full.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::monitoring::{pdsfs_xattr, status};
use crate::rig::{Mount, Rig, errno, fresh_bytes, wait_until};

const MIB: usize = 1 << 20;
const QUOTA_MIB: usize = 40;

fn rig() -> Rig {
    Rig::with(|config| config.quota_bytes = Some((QUOTA_MIB * MIB) as u64))
}

/// Writes MiB after MiB until one is refused. Returns how many were accepted, and the open file.
fn fill(path: &Path) -> (usize, File, io::Result<()>) {
    let mut file = File::create(path).unwrap();
    for accepted in 0..2 * QUOTA_MIB {
        if let Err(refused) = file.write_all(&fresh_bytes(MIB)) {
            return (accepted, file, Err(refused));
        }
    }
    (2 * QUOTA_MIB, file, Ok(()))
}

/// Waits until the mount knows the quota.
fn know_quota(mount: &Mount) {
    let total = |mount: &Mount| rustix::fs::statvfs(mount.path()).unwrap().f_blocks * 4096;
    wait_until("the quota is known", || (total(mount) == (QUOTA_MIB * MIB) as u64).then_some(()));
}

#[test]
fn write_beyond_the_free_space_is_refused() {
    let rig = rig();
    let mount = rig.mount();
    fs::write(mount.at("f"), b"old").unwrap();
    fs::write(mount.at("waste"), fresh_bytes(10 * MIB)).unwrap();
    fs::remove_file(mount.at("waste")).unwrap();
    know_quota(&mount);
    let (accepted, file, refused) = fill(&mount.at("f"));
    assert_eq!(errno(refused), libc::ENOSPC);
    // 30 MiB are free, but for the old revision.
    assert_eq!(accepted, 30, "the write that passes what is free is refused, and no earlier one");
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), b"old", "half a file has replaced the complete one");
    let seen = status(&mount);
    let failure = &seen.failures[0];
    assert_eq!((failure.path.as_deref(), seen.pending.files_failed), (Some("/f"), 1));
    assert!(failure.text.contains("the drive is full: 30 MiB of 40 MiB are free"), "{}", failure.text);
    assert!(
        failure.text.contains("10 MiB lie in the recycle bin; empty it with pdsfs trash empty"),
        "{}",
        failure.text
    );
    assert_eq!(pdsfs_xattr(&mount, "f", "error"), failure.text);
    // The drive is asked again.
    rig.client().call("recyclebin/clear", json!({ "drive_id": "1" }));
    wait_until("the space of the recycle bin is used", || {
        fs::write(mount.at("f"), fresh_bytes(35 * MIB)).ok()
    });
    assert_eq!(rig.client().find("f").unwrap().size, (35 * MIB) as u64);
    assert_eq!(status(&mount).pending.files_failed, 0, "the file was saved");
}

#[test]
fn unsaved_bytes_of_all_files_count() {
    let rig = rig();
    let mount = rig.mount();
    know_quota(&mount);
    let mut first = File::create(mount.at("first")).unwrap();
    first.write_all(&fresh_bytes(25 * MIB)).unwrap();
    let (accepted, second, refused) = fill(&mount.at("second"));
    assert_eq!((accepted, errno(refused)), (15, libc::ENOSPC));
    drop(second);
    first.sync_all().unwrap();
    assert_eq!(rig.client().find("first").unwrap().size, (25 * MIB) as u64);
    assert!(rig.client().find("second").is_none());
}

#[test]
fn appended_bytes_survive_a_refused_write() {
    let rig = rig();
    let mount = rig.mount();
    // The server counts old revisions too: the whole file must fit into what is free.
    let (first, second) = (fresh_bytes(MIB / 16), fresh_bytes(MIB / 2));
    fs::write(mount.at("log"), &first).unwrap();
    know_quota(&mount);
    let mut log = File::options().append(true).open(mount.at("log")).unwrap();
    log.write_all(&second).unwrap();
    fs::write(mount.at("filler"), fresh_bytes(39 * MIB)).unwrap();
    let refused = log.write_all(&fresh_bytes(MIB - MIB / 16));
    assert_eq!(errno(refused), libc::ENOSPC);
    drop(log);
    wait_until("the appended bytes are on the drive", || {
        (rig.client().read("log")? == [&first[..], &second[..]].concat()).then_some(())
    });
}

/// A sparse file that does not fit takes no room from others.
#[test]
fn file_beyond_the_drive_stops_no_other_file() {
    let rig = rig();
    let mount = rig.mount();
    know_quota(&mount);
    let sparse = File::create(mount.at("sparse")).unwrap();
    sparse.set_len((60 * MIB) as u64).unwrap();
    let content = fresh_bytes(20 * MIB);
    fs::write(mount.at("photo"), &content).unwrap();
    assert_eq!(rig.client().read("photo").unwrap(), content);
    drop(sparse);
}
