//! Local-only files (lock and junk files): they exist only in the mount, cost no calls, and become ordinary files
//! with an ordinary name.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use pdsfs::server::{FaultAction, FaultRule};

use crate::monitoring::pdsfs_xattr;
use crate::rig::{Mount, Rig, errno, fresh_bytes, wait_until};

/// A long TTL, so that no call happens because a listing is stale.
const ARGUMENTS: [&str; 4] = ["--metadata-ttl", "1h", "--part-size", "64KiB"];
const JUNK: [&str; 5] = [".~lock.a.odt#", ".DS_Store", "._b.jpg", "Thumbs.db", ".c.txt.swp"];
/// More than the part of a local-only file that stays in memory.
const LARGE: usize = 300 << 10;

fn calls(rig: &Rig) -> u64 {
    rig.server().stats().requests.into_values().sum()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}

/// A mount whose root is listed and whose free space is known.
fn listed_mount(rig: &Rig, arguments: &[&str]) -> Mount {
    let mount = rig.mount_with(&[&ARGUMENTS, arguments].concat());
    names(mount.path());
    mount
}

/// Writes, reads, truncates, extends, syncs, and sets times and mode of a file.
fn work_on(path: &Path) {
    let bytes = fresh_bytes(LARGE);
    for content in [&bytes[..300], &bytes[..]] {
        fs::write(path, content).unwrap();
        assert_eq!(fs::read(path).unwrap(), content);
    }
    let mut file = File::options().read(true).write(true).open(path).unwrap();
    file.write_all_at(b"change", 100).unwrap();
    file.set_len(200).unwrap();
    file.set_len(500 << 20).unwrap();
    file.write_all_at(b"end", (500 << 20) - 3).unwrap();
    file.set_len(1000).unwrap();
    file.sync_all().unwrap();
    file.seek(SeekFrom::Start(98)).unwrap();
    let mut seen = [0; 10];
    file.read_exact(&mut seen).unwrap();
    assert_eq!(seen, [&bytes[98..100], b"change", &bytes[106..108]].concat()[..]);
    drop(file);
    let mut file = File::options().append(true).open(path).unwrap();
    file.write_all(b"tail").unwrap();
    drop(file);
    let expected = [&bytes[..100], b"change", &bytes[106..200], &[0; 800], b"tail"].concat();
    assert_eq!(fs::read(path).unwrap(), expected);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_234_567_890);
    let file = File::options().write(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
    drop(file);
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    let meta = fs::metadata(path).unwrap();
    assert_eq!((meta.len(), meta.modified().unwrap(), meta.mode()), (1004, time, 0o100_600));
}

#[test]
fn local_only_files_cost_no_calls() {
    let rig = Rig::new();
    let mount = listed_mount(&rig, &[]);
    let before = calls(&rig);
    for name in JUNK {
        work_on(&mount.at(name));
    }
    let mut sorted = JUNK.map(str::to_owned);
    sorted.sort();
    assert_eq!(names(mount.path()), sorted);
    // Renamed over another one, to a free name, and while it is open.
    let moved = fs::read(mount.at("Thumbs.db")).unwrap();
    let mut open = File::options().append(true).open(mount.at("Thumbs.db")).unwrap();
    fs::rename(mount.at("Thumbs.db"), mount.at(".DS_Store")).unwrap();
    open.write_all(b"more").unwrap();
    assert_eq!(fs::read(mount.at(".DS_Store")).unwrap(), [&moved[..], b"more"].concat());
    fs::rename(mount.at(".DS_Store"), mount.at("x.swp")).unwrap();
    fs::remove_file(mount.at("x.swp")).unwrap();
    // An open descriptor stays usable.
    open.write_all(b"and more").unwrap();
    assert_eq!(open.metadata().unwrap().len(), moved.len() as u64 + 12);
    drop(open);
    assert_eq!(names(mount.path()), ["._b.jpg", ".c.txt.swp", ".~lock.a.odt#"]);
    assert_eq!(calls(&rig), before, "{:?}", rig.server().stats().requests);
    assert_eq!(rig.client().names(""), [""; 0]);
    // They do not delay the stop, and end with the mount.
    assert_eq!(mount.stop(), 0);
    assert_eq!(names(rig.mount().path()), [""; 0]);
}

#[test]
fn renamed_local_only_file_is_uploaded() {
    let rig = Rig::new();
    let mount = listed_mount(&rig, &[]);
    for (size, name) in [(0, "empty"), (100, "small"), (LARGE, "large")] {
        let bytes = fresh_bytes(size);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
        let mut file = File::create(mount.at("._new")).unwrap();
        file.write_all(&bytes).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
        drop(file);
        let state = |file| (pdsfs_xattr(&mount, file, "state"), pdsfs_xattr(&mount, file, "progress_bytes"));
        assert_eq!(state("._new"), ("local".to_owned(), "0".to_owned()));
        fs::rename(mount.at("._new"), mount.at(name)).unwrap();
        assert_eq!(state(name), ("saved".to_owned(), size.to_string()));
        // After the rename, it is on the drive.
        assert_eq!(rig.client().read(name).unwrap(), bytes);
        assert_eq!(rig.client().find(name).unwrap().mtime(), time);
        assert_eq!(fs::read(mount.at(name)).unwrap(), bytes);
        fs::write(mount.at(name), b"and on").unwrap();
        assert_eq!(rig.client().read(name).unwrap(), b"and on");
    }
    // With an open writer, the close commits.
    let mut file = File::create(mount.at("._new")).unwrap();
    file.write_all(b"begun, ").unwrap();
    fs::rename(mount.at("._new"), mount.at("open")).unwrap();
    file.write_all(b"ended").unwrap();
    drop(file);
    assert_eq!(rig.client().read("open").unwrap(), b"begun, ended");
    assert_eq!(rig.client().names(""), ["empty", "large", "open", "small"]);
    assert_eq!(names(mount.path()), ["empty", "large", "open", "small"]);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn local_only_file_replaces_remote_file() {
    let rig = Rig::new();
    {
        let mount = rig.mount_with(&["--local-only", "off"]);
        fs::write(mount.at("text"), b"old").unwrap();
        fs::write(mount.at(".DS_Store"), b"of the drive").unwrap();
    }
    let before = rig.client().find("text").unwrap();
    let mount = listed_mount(&rig, &[]);
    // A file that is on the drive stays an ordinary file under any name.
    assert_eq!(fs::read(mount.at(".DS_Store")).unwrap(), b"of the drive");
    fs::write(mount.at(".DS_Store"), b"written").unwrap();
    assert_eq!(rig.client().read(".DS_Store").unwrap(), b"written");
    for (name, id) in
        [("text", &before.file_id), (".DS_Store", &rig.client().find(".DS_Store").unwrap().file_id)]
    {
        fs::write(mount.at("._new"), name).unwrap();
        fs::rename(mount.at("._new"), mount.at(name)).unwrap();
        assert_eq!(rig.client().read(name).unwrap(), name.as_bytes());
        assert_eq!(&rig.client().find(name).unwrap().file_id, id, "{name} is another object");
    }
    // A rename to a local-only name keeps the file on the drive and replaces a local-only file of that name.
    fs::rename(mount.at("text"), mount.at("text.swp")).unwrap();
    assert_eq!(rig.client().read("text.swp").unwrap(), b"text");
    fs::write(mount.at("._new"), b"is replaced").unwrap();
    fs::rename(mount.at("text.swp"), mount.at("._new")).unwrap();
    assert_eq!(fs::read(mount.at("._new")).unwrap(), b"text");
    assert_eq!(rig.client().names(""), [".DS_Store", "._new"]);
    fs::remove_file(mount.at(".DS_Store")).unwrap();
    fs::write(mount.at(".DS_Store"), b"local").unwrap();
    assert_eq!(rig.client().names(""), ["._new"]);
    assert_eq!(names(mount.path()), [".DS_Store", "._new"]);
    assert_eq!(mount.stop(), 0);
}

/// The answer of a full drive.
fn no_room() -> FaultAction {
    FaultAction::status(403, "QuotaExhausted.Drive")
}

#[test]
fn refused_promotion_keeps_local_file() {
    let rig = Rig::new();
    let mount = listed_mount(&rig, &["--commit-timeout", "20s"]);
    fs::write(mount.at("text"), b"old").unwrap();
    let bytes = fresh_bytes(LARGE);
    fs::write(mount.at("._new"), &bytes).unwrap();
    rig.server().faults().add(FaultRule::new("file/create", no_room()));
    for name in ["text", "free"] {
        assert_eq!(errno(fs::rename(mount.at("._new"), mount.at(name))), libc::ENOSPC, "{name}");
        assert_eq!(names(mount.path()), ["._new", "text"]);
        assert_eq!(fs::read(mount.at("._new")).unwrap(), bytes);
        assert_eq!(fs::read(mount.at("text")).unwrap(), b"old");
    }
    rig.server().faults().clear();
    let mut file = File::options().append(true).open(mount.at("._new")).unwrap();
    file.write_all(b"tail").unwrap();
    drop(file);
    fs::rename(mount.at("._new"), mount.at("text")).unwrap();
    assert_eq!(rig.client().read("text").unwrap(), [&bytes[..], b"tail"].concat());
    assert_eq!(names(mount.path()), ["text"]);
    assert_eq!(mount.stop(), 0);
}

/// A rename that the drive refuses loses nothing of the target.
#[test]
fn refused_replace_keeps_the_open_target() {
    let rig = Rig::new();
    let mount = listed_mount(&rig, &["--commit-timeout", "20s"]);
    fs::write(mount.at("text"), b"old").unwrap();
    fs::write(mount.at("._new"), b"refused").unwrap();
    let open = File::options().write(true).open(mount.at("text")).unwrap();
    open.write_all_at(b"new, and longer", 0).unwrap();
    // The first creation is that of the open file.
    rig.server().faults().add(FaultRule { after: 1, ..FaultRule::new("file/create", no_room()) });
    assert_eq!(errno(fs::rename(mount.at("._new"), mount.at("text"))), libc::ENOSPC);
    rig.server().faults().clear();
    drop(open);
    assert_eq!(fs::read(mount.at("text")).unwrap(), b"new, and longer");
    assert_eq!(rig.client().read("text").unwrap(), b"new, and longer");
    assert_eq!(fs::read(mount.at("._new")).unwrap(), b"refused");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn local_only_patterns_are_configurable() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--local-only", "*.tmp,cache-?,#*#"]);
    for name in ["a.tmp", "cache-1", "#draft#", ".DS_Store", "cache-10"] {
        fs::write(mount.at(name), b"x").unwrap();
    }
    assert_eq!(rig.client().names(""), [".DS_Store", "cache-10"]);
    // Patterns never match directories.
    fs::create_dir(mount.at("dir.tmp")).unwrap();
    fs::write(mount.at("dir.tmp/x.tmp"), b"x").unwrap();
    assert_eq!(rig.client().names("dir.tmp"), [""; 0]);
    assert_eq!(errno(fs::remove_dir(mount.at("dir.tmp"))), libc::ENOTEMPTY);
    fs::rename(mount.at("dir.tmp"), mount.at("dir")).unwrap();
    assert_eq!(fs::read(mount.at("dir/x.tmp")).unwrap(), b"x");
    fs::remove_dir_all(mount.at("dir")).unwrap();
    assert_eq!(rig.client().names(""), [".DS_Store", "cache-10"]);
    assert_eq!(mount.stop(), 0);
    let mount = rig.mount_with(&["--local-only", "off"]);
    fs::write(mount.at("x.swp"), b"x").unwrap();
    assert_eq!(rig.client().read("x.swp").unwrap(), b"x");
}

#[test]
fn local_only_files_work_with_cache_off() {
    let rig = Rig::new();
    let mount = listed_mount(&rig, &["--cache-size", "off"]);
    work_on(&mount.at("Thumbs.db"));
    let bytes = fresh_bytes(LARGE);
    fs::write(mount.at("Thumbs.db"), &bytes).unwrap();
    // As an ordinary file it still accepts writes in any order.
    let file = File::options().read(true).write(true).open(mount.at("Thumbs.db")).unwrap();
    fs::rename(mount.at("Thumbs.db"), mount.at("pictures")).unwrap();
    file.write_all_at(b"middle", 1000).unwrap();
    file.set_len(2000).unwrap();
    drop(file);
    assert_eq!(
        rig.client().read("pictures").unwrap(),
        [&bytes[..1000], b"middle", &bytes[1006..2000]].concat()
    );
    // The size of local-only files is bounded.
    let file = File::create(mount.at("Thumbs.db")).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let refused = (1..300).find_map(|n| file.write_all_at(&bytes, n * LARGE as u64).err());
    assert_eq!(refused.and_then(|error| error.raw_os_error()), Some(libc::ENOSPC));
    drop(file);
    fs::remove_file(mount.at("Thumbs.db")).unwrap();
    fs::write(mount.at("Thumbs.db"), &bytes).unwrap();
    assert_eq!(mount.stop(), 0);
}

/// Files beyond the bound are ordinary ones, and those in remotely removed directories no longer count.
#[test]
fn local_only_files_are_bounded() {
    const MAX: usize = 4096;
    let rig = Rig::new();
    let mount = rig.mount_with(&["--metadata-ttl", "1s"]);
    fs::create_dir(mount.at("dir")).unwrap();
    for n in 0..MAX {
        File::create(mount.at(format!("dir/{n}.swp"))).unwrap();
    }
    assert_eq!(rig.client().names("dir"), [""; 0]);
    fs::write(mount.at("dir/beyond.swp"), b"x").unwrap();
    assert_eq!(rig.client().names("dir"), ["beyond.swp"]);
    let dir = rig.client().find("dir").unwrap();
    rig.client().trash(&dir.file_id);
    wait_until("the directory has vanished from the mount", || (!mount.at("dir").exists()).then_some(()));
    fs::write(mount.at("within.swp"), b"x").unwrap();
    assert_eq!(rig.client().names(""), [""; 0]);
    assert_eq!(mount.stop(), 0);
}
