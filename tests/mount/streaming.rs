//! Files are uploaded while they are written.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use crate::rig::{Rig, errno, fresh_bytes};

#[test]
fn a_file_is_on_the_drive_when_close_returns() {
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
fn a_file_being_written_grows_here_and_is_invisible_elsewhere() {
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
fn overwriting_makes_a_new_revision_and_the_old_content_stays_until_then() {
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
fn a_write_elsewhere_is_refused_and_what_was_written_stays() {
    let rig = Rig::new();
    let mount = rig.mount();
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(mount.at("f")).unwrap();
    file.write_all(b"front to back").unwrap();
    file.seek(SeekFrom::Start(2)).unwrap();
    assert_eq!(errno(file.write(b"x")), libc::EOPNOTSUPP);
    assert_eq!(errno(file.write_at(b"x", 100)), libc::EOPNOTSUPP);
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), b"front to back");
}

#[test]
fn the_same_bytes_again_are_not_uploaded() {
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
