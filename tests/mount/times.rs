//! Access, modification and change times, compared with a local file system that is mounted with `noatime`.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::rig::{Rig, unmount_lazily};

/// Access, modification and change time of a path, in nanoseconds.
fn times(path: &Path) -> [i128; 3] {
    let meta = fs::symlink_metadata(path).unwrap();
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    [
        nanos(meta.atime(), meta.atime_nsec()),
        nanos(meta.mtime(), meta.mtime_nsec()),
        nanos(meta.ctime(), meta.ctime_nsec()),
    ]
}

/// Which of the three times an operation changes, as `amc` with `-` for an unchanged one.
fn changed(path: &Path, operation: impl FnOnce()) -> String {
    let before = times(path);
    // Longer than the resolution of the times of any local file system.
    let start = SystemTime::now();
    while SystemTime::now() < start + Duration::from_millis(20) {
        std::hint::spin_loop();
    }
    operation();
    let after = times(path);
    (0..3).map(|i| if before[i] == after[i] { '-' } else { ['a', 'm', 'c'][i] }).collect()
}

/// The changed times of a directory in which a file is created.
fn create(dir: &Path) -> String {
    fs::create_dir(dir.join("sub")).unwrap();
    changed(&dir.join("sub"), || fs::write(dir.join("sub/f"), b"one").unwrap())
}

/// The changed times of one operation after another on a file and on its directory.
fn run(dir: &Path) -> Vec<String> {
    let (sub, f) = (dir.join("sub"), dir.join("sub/f"));
    let mut seen = Vec::new();
    let mut note = |name: &str, text: String| seen.push(format!("{name}: {text}"));
    note("read", changed(&f, || drop(fs::read(&f).unwrap())));
    note("list, directory", changed(&sub, || assert_eq!(fs::read_dir(&sub).unwrap().count(), 1)));
    note("overwrite", changed(&f, || fs::write(&f, b"two").unwrap()));
    let append = || File::options().append(true).open(&f).unwrap().write_all(b"three").unwrap();
    note("append", changed(&f, append));
    let mut file = File::options().append(true).open(&f).unwrap();
    note("write of an open file", changed(&f, || file.write_all(b"four").unwrap()));
    note("close", changed(&f, || drop(file)));
    note("read again", changed(&f, || drop(fs::read(&f).unwrap())));
    note("truncate", changed(&f, || File::options().write(true).open(&f).unwrap().set_len(2).unwrap()));
    note("chmod", changed(&f, || fs::set_permissions(&f, Permissions::from_mode(0o600)).unwrap()));
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let set = |times: FileTimes| File::open(&f).unwrap().set_times(times).unwrap();
    let mut file = File::create(dir.join("sub/unsaved")).unwrap();
    file.write_all(b"one").unwrap();
    let unsaved = dir.join("sub/unsaved");
    let set_unsaved = || file.set_times(FileTimes::new().set_modified(time)).unwrap();
    note("set mtime of an open new file", changed(&unsaved, set_unsaved));
    note("close of a new file", changed(&unsaved, || drop(file)));
    note("set mtime", changed(&f, || set(FileTimes::new().set_modified(time))));
    note("set atime", changed(&f, || set(FileTimes::new().set_accessed(time))));
    note("append after set atime", changed(&f, append));
    let g = dir.join("sub/g");
    note("rename, directory", changed(&sub, || fs::rename(&f, &g).unwrap()));
    note("unlink, directory", changed(&sub, || fs::remove_file(&g).unwrap()));
    seen
}

/// A tmpfs that is mounted with `noatime`, unmounted on drop.
struct NoAtimeDir(tempfile::TempDir);

impl NoAtimeDir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "noatime", "none"]).arg(dir.path()).status();
        assert!(mounted.unwrap().success(), "this test needs root, to mount a tmpfs");
        Self(dir)
    }
}

impl Drop for NoAtimeDir {
    fn drop(&mut self) {
        unmount_lazily(self.0.path());
    }
}

#[test]
fn times_change_as_with_noatime() {
    let local = NoAtimeDir::new();
    let expected = (create(local.0.path()), run(local.0.path()));
    let rig = Rig::new();
    let mount = rig.mount();
    assert_eq!((create(mount.path()), run(mount.path())), expected);
    // The same with files that the mount did not create.
    let rig = Rig::new();
    let mount = rig.mount();
    create(mount.path());
    assert_eq!(mount.stop(), 0);
    let mount = rig.mount();
    assert_eq!(run(mount.path()), expected.1);
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(1) == mount.path().to_str()).unwrap();
    assert!(line.split([' ', ',']).any(|option| option == "noatime"), "{line}");
}

#[test]
fn access_time_is_creation_until_it_is_set() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("f"), b"x").unwrap();
    fs::write(mount.at("same"), b"x").unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let set = |name: &str, times| File::open(mount.at(name)).unwrap().set_times(times).unwrap();
    set("f", FileTimes::new().set_modified(time));
    set("same", FileTimes::new().set_modified(time).set_accessed(time));
    assert_eq!(mount.stop(), 0);
    let mount = rig.mount();
    let created = rig.client().find("f").unwrap().created_at();
    let meta = fs::metadata(mount.at("f")).unwrap();
    assert_eq!((meta.accessed().unwrap(), meta.modified().unwrap()), (created, time));
    let meta = fs::metadata(mount.at("same")).unwrap();
    assert_eq!((meta.accessed().unwrap(), meta.modified().unwrap()), (time, time));
}
