//! Cached files, and mounts with `cache_size = "off"`.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::rig::{Rig, errno, fresh_bytes, wait_until};

#[test]
fn cache_off_write_reuploads_whole_file() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB", "--cache-size", "off"]);
    let mut bytes = fresh_bytes(500_000);
    fs::write(mount.at("f"), &bytes).unwrap();
    let received = || rig.server().stats().received_bytes;
    let before = received();
    let file = File::options().read(true).write(true).open(mount.at("f")).unwrap();
    for at in [5, 300_000, 499_990] {
        file.write_all_at(b"changed", at).unwrap();
        bytes[at as usize..at as usize + 7].copy_from_slice(b"changed");
    }
    let mut seen = vec![0; bytes.len()];
    file.read_exact_at(&mut seen[..1000], 400_000).unwrap();
    assert_eq!(seen[..1000], bytes[400_000..401_000]);
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    assert_eq!(received() - before, 500_000, "edits from front to back are not one upload");
    // A write to a part that is sent already: the stream is committed first.
    let mut file = File::create(mount.at("back")).unwrap();
    file.write_all(&bytes).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    bytes[..5].copy_from_slice(b"start");
    file.set_len(450_000).unwrap();
    bytes.truncate(450_000);
    drop(file);
    assert_eq!(rig.client().read("back").unwrap(), bytes);
    let mut file = File::options().append(true).open(mount.at("back")).unwrap();
    file.write_all(b"end").unwrap();
    drop(file);
    bytes.extend_from_slice(b"end");
    assert_eq!(rig.client().read("back").unwrap(), bytes);
}

/// A read through the writing descriptor commits the stream; a read through another descriptor fails.
#[test]
fn cache_off_stream_can_be_read_back() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB", "--cache-size", "off"]);
    let bytes = fresh_bytes(500_000);
    let file = File::options().read(true).write(true).create_new(true).open(mount.at("f")).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let mut seen = vec![0; 100_000];
    let other = File::open(mount.at("f")).unwrap();
    let refused = wait_until("sent parts leave the memory", || other.read_exact_at(&mut seen, 100_000).err());
    assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
    assert_eq!(rig.client().names(""), Vec::<String>::new(), "a partial file is visible");
    file.read_exact_at(&mut seen, 100_000).unwrap();
    assert!(seen == bytes[100_000..200_000]);
}

#[test]
fn written_file_is_cached_and_evictable() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB", "--cache-size", "1MiB"]);
    let downloads = || rig.server().stats().count("get_object");
    // A stream leaves a cached file only if the local disk is as fast as the drive, so this is tried repeatedly.
    let (streamed, edited) = wait_until("the local disk keeps up with the drive", || {
        let before = downloads();
        let streamed = fresh_bytes(300_000);
        fs::write(mount.at("streamed"), &streamed).unwrap();
        fs::write(mount.at("edited"), fresh_bytes(400_000)).unwrap();
        let file = File::options().write(true).open(mount.at("edited")).unwrap();
        file.write_all_at(b"edit", 1000).unwrap();
        drop(file);
        assert!(fs::read(mount.at("streamed")).unwrap() == streamed);
        let edited = fs::read(mount.at("edited")).unwrap();
        assert_eq!(&edited[1000..1004], b"edit");
        (downloads() == before).then_some((streamed, edited))
    });
    let before = downloads();
    // A writer that needs the space gets it, and the evicted files are read from the drive.
    let file = File::create(mount.at("random")).unwrap();
    file.write_all_at(&fresh_bytes(500_000), 500_000).unwrap();
    file.write_all_at(&fresh_bytes(400_000), 0).unwrap();
    drop(file);
    // Direct I/O, because the page cache has the bytes too.
    let read = |name: &str, len: usize| {
        let mut options = File::options();
        let file = options.read(true).custom_flags(libc::O_DIRECT).open(mount.at(name)).unwrap();
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(read("streamed", streamed.len()) == streamed);
    assert!(read("edited", edited.len()) == edited);
    assert!(downloads() > before);
}

/// `tmpfile()` with more than one part: nothing of the file is on the drive, and it cannot be committed.
#[test]
fn regression_cache_off_unlinked_rewrite_fails() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB", "--cache-size", "off"]);
    let file = File::options().read(true).write(true).create_new(true).open(mount.at("f")).unwrap();
    fs::remove_file(mount.at("f")).unwrap();
    file.write_all_at(&fresh_bytes(200_000), 0).unwrap();
    assert_eq!(errno(file.write_all_at(b"back", 0)), libc::EOPNOTSUPP);
    assert_eq!(errno(file.set_len(100_000)), libc::EOPNOTSUPP);
    file.write_all_at(b"end", 200_000).unwrap();
    drop(file);
    assert_eq!(rig.client().names(""), Vec::<String>::new());
}
