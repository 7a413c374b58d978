//! Remote changes to a file that is open here: no written byte is lost, and no reader gets a short or mixed
//! content.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use pdsfs::server::{FaultAction, FaultRule};

use crate::rig::{Rig, fresh_bytes, wait_until};

const PART: usize = 64 << 10;
const ARGUMENTS: [&str; 2] = ["--part-size", "64KiB"];

pub fn remove_remotely(rig: &Rig, name: &str) {
    rig.client().trash(&rig.client().find(name).unwrap().file_id);
    assert_eq!(rig.client().find(name), None);
}

#[test]
fn remote_delete_during_edit_saves_new_file() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    for size in [5, PART + 1, 5 * PART] {
        fs::write(mount.at("f"), fresh_bytes(100)).unwrap();
        let bytes = fresh_bytes(size);
        let mut file = File::create(mount.at("f")).unwrap();
        file.write_all(&bytes).unwrap();
        remove_remotely(&rig, "f");
        file.sync_all().unwrap();
        assert_eq!(rig.client().read("f").unwrap(), bytes, "{size}");
        drop(file);
        assert_eq!(fs::read(mount.at("f")).unwrap(), bytes, "{size}");
    }
    assert_eq!(rig.client().names(""), ["f"]);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn remote_delete_during_commit_saves_new_file() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    fs::write(mount.at("f"), fresh_bytes(100)).unwrap();
    rig.server().faults().add(FaultRule::times("put_part", 1, FaultAction::Stall));
    // Written out of order, so that it is a staged file.
    let bytes = fresh_bytes(3 * PART);
    let file = OpenOptions::new().read(true).write(true).open(mount.at("f")).unwrap();
    file.write_all_at(&bytes[PART..], PART as u64).unwrap();
    file.write_all_at(&bytes[..PART], 0).unwrap();
    let syncing = std::thread::spawn(move || file.sync_all().map(|()| file));
    rig.block_on(rig.server().faults().wait_for_hits(1));
    remove_remotely(&rig, "f");
    rig.server().faults().clear();
    let file = syncing.join().unwrap().unwrap();
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    drop(file);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn old_bytes_are_written_over_remote_revision() {
    let rig = Rig::new();
    let (mount, other) = (rig.mount(), rig.mount());
    fs::write(mount.at("f"), b"the first content").unwrap();
    let mut file = OpenOptions::new().read(true).write(true).open(mount.at("f")).unwrap();
    let mut before = Vec::new();
    file.read_to_end(&mut before).unwrap();
    fs::write(other.at("f"), b"another content").unwrap();
    assert_eq!(rig.client().read("f").unwrap(), b"another content");
    file.set_len(0).unwrap();
    file.write_all_at(&before, 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(rig.client().read("f").unwrap(), b"the first content");
    let id = rig.client().find("f").unwrap().file_id;
    let revisions = rig.client().call("file/revision/list", serde_json::json!({"file_id": id}));
    let sizes: Vec<_> = revisions["items"].as_array().unwrap().iter().map(|r| r["size"].as_u64()).collect();
    assert!(sizes.contains(&Some(15)), "the remote revision is gone: {sizes:?}");
    drop(file);
    assert_eq!((mount.stop(), other.stop()), (0, 0));
}

#[test]
fn commit_lasts_while_bytes_move() {
    let rig = Rig::new();
    let slow = ["--part-size", "64KiB", "--parts-in-flight", "1", "--commit-timeout", "4s"];
    let mount = rig.mount_with(&slow);
    // A part takes a little more than a second.
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Throttle { bytes_per_s: 60_000 }));
    let bytes = fresh_bytes(8 * PART);
    let file = File::create(mount.at("f")).unwrap();
    // A staged file sends nothing before its commit.
    file.write_all_at(&bytes[2 * PART..], 2 * PART as u64).unwrap();
    file.write_all_at(&bytes[..2 * PART], 0).unwrap();
    let began = Instant::now();
    file.sync_all().unwrap();
    assert!(began.elapsed() > Duration::from_secs(6), "the commit was not slow");
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    assert_eq!(mount.stop(), 0);
}

/// A program reads a file to its end while another client changes it. With `is_opened_again`, another program opens
/// the file here in between.
fn change_during_read(rig: &Rig, size: usize, is_opened_again: bool) {
    let case = format!("{size} bytes, opened again: {is_opened_again}");
    let (before, after, other) = (fresh_bytes(READ_BYTES), fresh_bytes(size), rig.mount());
    fs::write(other.at("f"), &before).unwrap();
    let mount = rig.mount_with(&["--metadata-ttl", "100ms"]);
    let (mut file, mut read) = (File::open(mount.at("f")).unwrap(), vec![0; PART]);
    let old = file.metadata().unwrap();
    file.read_exact(&mut read).unwrap();
    fs::write(other.at("f"), &after).unwrap();
    wait_until("the remote change is visible", || {
        let now = fs::metadata(mount.at("f")).unwrap();
        (now.modified().unwrap() != old.modified().unwrap()).then_some(())
    });
    if is_opened_again {
        assert_eq!(fs::read(mount.at("f")).unwrap(), after, "{case}");
        let now = fs::metadata(mount.at("f")).unwrap();
        assert!(now.len() == after.len() as u64 && now.ino() != old.ino(), "{case}: {now:?}");
    }
    assert_eq!(file.metadata().unwrap().len(), before.len() as u64, "{case}");
    match file.read_to_end(&mut read) {
        Ok(_) => assert!(read == before, "{case}: {} bytes", read.len()),
        Err(e) => {
            assert_eq!(e.raw_os_error(), Some(libc::ESTALE), "{case}");
            assert!(before.starts_with(&read), "{case}: {} bytes", read.len());
        }
    }
    drop(file);
    assert_eq!(fs::read(mount.at("f")).unwrap(), after, "{case}");
    assert_eq!((mount.stop(), other.stop()), (0, 0));
}

/// More than the read-ahead.
const READ_BYTES: usize = 24 << 20;

#[test]
fn reader_sees_one_revision_or_estale() {
    let rig = Rig::new();
    for size in [10, READ_BYTES, READ_BYTES + PART] {
        for is_opened_again in [false, true] {
            change_during_read(&rig, size, is_opened_again);
        }
    }
}
