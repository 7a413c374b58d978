//! What somebody else does on the drive to a file that is open here: nothing written is lost by it, and nothing read is
//! cut short or mixed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use pdsfs::config::RemoveMode;
use pdsfs::server::{FaultAction, FaultRule};

use crate::rig::{Rig, fresh_bytes, wait_until};

const PART: usize = 64 << 10;
const ARGUMENTS: [&str; 2] = ["--part-size", "64KiB"];

pub fn remove_elsewhere(rig: &Rig, name: &str) {
    let (client, meta) = (rig.client(), rig.client().find(name).unwrap());
    rig.block_on(client.drive.remove(&meta.file_id, RemoveMode::Trash)).unwrap();
    assert_eq!(rig.client().find(name), None);
}

#[test]
fn a_file_that_somebody_else_deletes_while_it_is_changed_is_saved_as_a_new_one() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    for size in [5, PART + 1, 5 * PART] {
        fs::write(mount.at("f"), fresh_bytes(100)).unwrap();
        let bytes = fresh_bytes(size);
        let mut file = File::create(mount.at("f")).unwrap();
        file.write_all(&bytes).unwrap();
        remove_elsewhere(&rig, "f");
        file.sync_all().unwrap();
        assert_eq!(rig.client().read("f").unwrap(), bytes, "{size}");
        drop(file);
        assert_eq!(fs::read(mount.at("f")).unwrap(), bytes, "{size}");
    }
    assert_eq!(rig.client().names(""), ["f"]);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn a_file_that_somebody_else_deletes_while_it_is_committed_is_saved_as_a_new_one() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    fs::write(mount.at("f"), fresh_bytes(100)).unwrap();
    rig.server().faults().add(FaultRule::times("put_part", 1, FaultAction::Stall));
    // Of random places, so that it is a local copy.
    let bytes = fresh_bytes(3 * PART);
    let file = OpenOptions::new().read(true).write(true).open(mount.at("f")).unwrap();
    file.write_all_at(&bytes[PART..], PART as u64).unwrap();
    file.write_all_at(&bytes[..PART], 0).unwrap();
    let syncing = std::thread::spawn(move || file.sync_all().map(|()| file));
    rig.block_on(rig.server().faults().wait_for_hits(1));
    remove_elsewhere(&rig, "f");
    rig.server().faults().clear();
    let file = syncing.join().unwrap().unwrap();
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    drop(file);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn bytes_that_the_file_had_are_written_over_those_that_somebody_else_gave_it() {
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
    drop(file);
    assert_eq!((mount.stop(), other.stop()), (0, 0));
}

#[test]
fn a_commit_takes_as_long_as_bytes_move() {
    let rig = Rig::new();
    let slow = ["--part-size", "64KiB", "--parts-in-flight", "1", "--commit-timeout", "2s"];
    let mount = rig.mount_with(&slow);
    // A part takes a little more than a second.
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Throttle { bytes_per_s: 60_000 }));
    let bytes = fresh_bytes(4 * PART);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&bytes).unwrap();
    let began = Instant::now();
    file.sync_all().unwrap();
    assert!(began.elapsed() > Duration::from_millis(2500), "it was not slow");
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    assert_eq!(mount.stop(), 0);
}

/// A program reads a file to its end; somebody else changes it meanwhile, and perhaps another program opens it here.
fn change_while_it_is_read(rig: &Rig, size: usize, is_opened_again: bool) {
    let case = format!("{size} bytes, opened again: {is_opened_again}");
    let (before, after, other) = (fresh_bytes(READ_BYTES), fresh_bytes(size), rig.mount());
    fs::write(other.at("f"), &before).unwrap();
    let mount = rig.mount_with(&["--metadata-ttl", "100ms"]);
    let (mut file, mut read) = (File::open(mount.at("f")).unwrap(), vec![0; PART]);
    let old = file.metadata().unwrap();
    file.read_exact(&mut read).unwrap();
    fs::write(other.at("f"), &after).unwrap();
    wait_until("the change is seen", || {
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

/// More than is read ahead.
const READ_BYTES: usize = 24 << 20;

#[test]
fn who_reads_a_file_that_somebody_else_changes_gets_what_it_was_or_an_error() {
    let rig = Rig::new();
    for size in [10, READ_BYTES, READ_BYTES + PART] {
        for is_opened_again in [false, true] {
            change_while_it_is_read(&rig, size, is_opened_again);
        }
    }
}
