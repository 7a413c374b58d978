//! Renames and removals during commits: a commit never replaces a later file of its name.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use pdsfs::server::{FaultAction, FaultRule};

use crate::metadata::xattr;
use crate::remote_changes::remove_remotely;
use crate::rig::{Mount, Rig, fresh_bytes, wait_until};

const PART: usize = 64 << 10;

fn mount(rig: &Rig) -> Mount {
    rig.mount_with(&["--part-size", "64KiB"])
}

/// A file of `size` bytes leaves its name while its commit waits at `endpoint`; another file is saved under the name.
fn reuse_name_during_commit(
    size: usize,
    endpoint: &str,
    leave: impl FnOnce(&Mount),
) -> (Rig, Mount, Vec<u8>, Vec<u8>) {
    let rig = Rig::new();
    let mount = mount(&rig);
    let (first, second) = (fresh_bytes(size), fresh_bytes(3 * PART + 1));
    rig.server().faults().add(FaultRule::times(endpoint, 1, FaultAction::Stall));
    let (path, bytes) = (mount.at("a"), first.clone());
    let writer = std::thread::spawn(move || fs::write(path, bytes));
    rig.block_on(rig.server().faults().wait_for_hits(1));
    leave(&mount);
    fs::write(mount.at("a"), &second).unwrap();
    rig.server().faults().clear();
    writer.join().unwrap().unwrap();
    (rig, mount, first, second)
}

const CASES: [(usize, &str); 4] =
    [(3 * PART, "file/complete"), (10, "file/complete"), (10, "file/create"), (3 * PART, "put_part")];

#[test]
fn delete_during_commit_keeps_successor() {
    for (size, endpoint) in CASES {
        let (rig, mount, _, second) =
            reuse_name_during_commit(size, endpoint, |mount| fs::remove_file(mount.at("a")).unwrap());
        assert!(fs::read(mount.at("a")).unwrap() == second, "{size} bytes at {endpoint}");
        assert_eq!(mount.stop(), 0, "{size} bytes at {endpoint}");
        assert_eq!(rig.client().names(""), ["a"], "{size} bytes at {endpoint}");
        assert!(rig.client().read("a").unwrap() == second, "{size} bytes at {endpoint}");
    }
}

#[test]
fn rename_during_commit_keeps_successor() {
    for (size, endpoint) in CASES {
        let (rig, mount, first, second) = reuse_name_during_commit(size, endpoint, |mount| {
            fs::rename(mount.at("a"), mount.at("b")).unwrap();
        });
        assert!(fs::read(mount.at("a")).unwrap() == second, "{size} bytes at {endpoint}");
        assert!(fs::read(mount.at("b")).unwrap() == first, "{size} bytes at {endpoint}");
        assert_eq!(mount.stop(), 0, "{size} bytes at {endpoint}");
        assert_eq!(rig.client().names(""), ["a", "b"], "{size} bytes at {endpoint}");
        assert!(rig.client().read("a").unwrap() == second, "{size} bytes at {endpoint}");
        assert!(rig.client().read("b").unwrap() == first, "{size} bytes at {endpoint}");
    }
}

#[test]
fn close_does_not_undo_concurrent_replace() {
    let rig = Rig::new();
    let mount = mount(&rig);
    let (old, new) = (fresh_bytes(2 * PART), fresh_bytes(2 * PART + 5));
    fs::write(mount.at("b"), &old).unwrap();
    fs::write(mount.at("tmp"), &new).unwrap();
    let open = OpenOptions::new().write(true).open(mount.at("b")).unwrap();
    open.write_all_at(b"late", 0).unwrap();
    rig.server().faults().add(FaultRule::times("file/create", 1, FaultAction::Stall));
    let (from, to) = (mount.at("tmp"), mount.at("b"));
    let renaming = std::thread::spawn(move || fs::rename(from, to));
    rig.block_on(rig.server().faults().wait_for_hits(1));
    let closing = std::thread::spawn(move || drop(open));
    wait_until("the close has begun", || {
        (xattr(&mount.at("b"), "user.pdsfs.state").ok()? == b"committing").then_some(())
    });
    rig.server().faults().clear();
    renaming.join().unwrap().unwrap();
    closing.join().unwrap();
    assert!(fs::read(mount.at("b")).unwrap() == new);
    assert_eq!(mount.stop(), 0);
    assert_eq!(rig.client().names(""), ["b"]);
    assert!(rig.client().read("b").unwrap() == new);
}

#[test]
fn new_file_survives_removal_of_its_directory() {
    let rig = Rig::new();
    let mount = mount(&rig);
    for dir in ["one", "two"] {
        fs::create_dir(mount.at(dir)).unwrap();
    }
    let bytes = fresh_bytes(4 * PART + 9);
    let mut file = File::create(mount.at("one/f")).unwrap();
    file.write_all(&bytes).unwrap();
    wait_until("the upload has begun", || {
        rig.server().stats().open_uploads.iter().any(|upload| !upload.parts.is_empty()).then_some(())
    });
    fs::rename(mount.at("one/f"), mount.at("two/f")).unwrap();
    fs::remove_dir(mount.at("one")).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(rig.client().read("two/f").unwrap() == bytes);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn rename_over_remotely_deleted_file_works() {
    let rig = Rig::new();
    let mount = mount(&rig);
    for is_saved in [true, false] {
        fs::write(mount.at("b"), b"old").unwrap();
        let mut file = File::create(mount.at("tmp")).unwrap();
        let bytes = fresh_bytes(PART);
        file.write_all(&bytes).unwrap();
        if is_saved {
            file.sync_all().unwrap();
            remove_remotely(&rig, "b");
        }
        fs::rename(mount.at("tmp"), mount.at("b")).unwrap();
        if !is_saved {
            remove_remotely(&rig, "b");
        }
        file.sync_all().unwrap();
        drop(file);
        assert_eq!(rig.client().names(""), ["b"], "{is_saved}");
        assert!(rig.client().read("b").unwrap() == bytes && fs::read(mount.at("b")).unwrap() == bytes);
    }
    assert_eq!(mount.stop(), 0);
}
