//! The system calls of real programs, as observed with strace and a FUSE log, so that no program must be
//! installed. The result must equal that in a local directory.

use std::ffi::CString;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::rig::{Mount, Rig, fresh_bytes, wait_until};

const SIZE: usize = 5_000_000;

fn small_parts(rig: &Rig) -> Mount {
    rig.mount_with(&["--part-size", "512KiB"])
}

fn old_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_500_000_000_123)
}

fn times() -> FileTimes {
    FileTimes::new().set_accessed(old_time()).set_modified(old_time())
}

fn create_new(path: &Path) -> File {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap()
}

fn set_times(path: &Path) {
    // With utimensat(2) on the path, without an open descriptor.
    let c_path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let since = old_time().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let spec =
        libc::timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: i64::from(since.subsec_nanos()) };
    // SAFETY: the path and both times outlive the call.
    let done = unsafe { libc::utimensat(libc::AT_FDCWD, c_path.as_ptr(), [spec, spec].as_ptr(), 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Checks content and modification time, in the mount and on the drive.
fn assert_arrived(rig: &Rig, mount: &Mount, name: &str, bytes: &[u8]) {
    assert_eq!(fs::read(mount.at(name)).unwrap(), bytes);
    assert_eq!(rig.client().read(name).unwrap(), bytes);
    assert_eq!(fs::metadata(mount.at(name)).unwrap().modified().unwrap(), old_time());
    wait_until("the drive has the modification time", || {
        (rig.client().find(name).unwrap().mtime() == old_time()).then_some(())
    });
}

#[test]
fn cp_p_keeps_times_and_mode() {
    let rig = Rig::new();
    let mount = small_parts(&rig);
    let bytes = fresh_bytes(SIZE);
    let mut file = create_new(&mount.at("copy"));
    for piece in bytes.chunks(128 << 10) {
        file.write_all(piece).unwrap();
    }
    file.set_times(times()).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    drop(file);
    assert_eq!(fs::metadata(mount.at("copy")).unwrap().mode() & 0o777, 0o640);
    assert_arrived(&rig, &mount, "copy", &bytes);
}

#[test]
fn gio_copy_is_readable_and_keeps_late_times() {
    let rig = Rig::new();
    let mount = small_parts(&rig);
    let bytes = fresh_bytes(SIZE);
    let mut file = create_new(&mount.at("copy"));
    for piece in bytes.chunks(1 << 20) {
        file.write_all(piece).unwrap();
        let mut block = [0; 4096];
        File::open(mount.at("copy")).unwrap().read_exact(&mut block).unwrap();
        assert_eq!(block[..], bytes[..4096]);
    }
    assert_eq!(file.metadata().unwrap().len(), SIZE as u64);
    drop(file);
    for _ in 0..2 {
        set_times(&mount.at("copy"));
        fs::set_permissions(mount.at("copy"), fs::Permissions::from_mode(0o644)).unwrap();
    }
    assert_arrived(&rig, &mount, "copy", &bytes);
}

#[test]
fn gio_save_renames_open_file_over_target() {
    let rig = Rig::new();
    let mount = small_parts(&rig);
    let (old, new) = (fresh_bytes(SIZE), fresh_bytes(SIZE / 2));
    fs::write(mount.at("text"), &old).unwrap();
    let before = rig.client().find("text").unwrap();
    let mut reader = File::open(mount.at("text")).unwrap();
    let mut file = create_new(&mount.at(".goutputstream-ABC123"));
    file.write_all(&new).unwrap();
    file.sync_all().unwrap();
    fs::rename(mount.at(".goutputstream-ABC123"), mount.at("text")).unwrap();
    assert_eq!(rig.client().names(""), ["text"]);
    drop(file);
    set_times(&mount.at("text"));
    assert_arrived(&rig, &mount, "text", &new);
    let after = rig.client().find("text").unwrap();
    assert_eq!(after.file_id, before.file_id, "shares and versions of the target would be lost");
    let mut first = [0; 100];
    reader.read_exact(&mut first).unwrap();
    assert_eq!(first[..], old[..100], "an open descriptor does not read the old file");
}

#[test]
fn rsync_close_utimes_rename_works() {
    let rig = Rig::new();
    let mount = small_parts(&rig);
    let bytes = fresh_bytes(SIZE);
    let mut file = create_new(&mount.at(".copy.x7Hs2k"));
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    for piece in bytes.chunks(256 << 10) {
        file.write_all(piece).unwrap();
    }
    drop(file);
    set_times(&mount.at(".copy.x7Hs2k"));
    fs::set_permissions(mount.at(".copy.x7Hs2k"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::rename(mount.at(".copy.x7Hs2k"), mount.at("copy")).unwrap();
    assert_eq!(rig.client().names(""), ["copy"]);
    assert_arrived(&rig, &mount, "copy", &bytes);
}

#[test]
fn dolphin_statfs_and_late_attributes_work() {
    let rig = Rig::new();
    let mount = small_parts(&rig);
    let bytes = fresh_bytes(SIZE);
    let c_path = CString::new(mount.path().as_os_str().as_bytes()).unwrap();
    // SAFETY: zeroed is a valid statvfs; path and buffer outlive the call.
    let space = unsafe {
        let mut space: libc::statvfs = std::mem::zeroed();
        assert_eq!(libc::statvfs(c_path.as_ptr(), &raw mut space), 0);
        space
    };
    assert!(space.f_bavail * space.f_frsize > SIZE as u64);
    let mut file = create_new(&mount.at("copy"));
    file.set_permissions(fs::Permissions::from_mode(0o644)).unwrap();
    for piece in bytes.chunks(512 << 10) {
        file.write_all(piece).unwrap();
    }
    file.set_times(times()).unwrap();
    drop(file);
    fs::set_permissions(mount.at("copy"), fs::Permissions::from_mode(0o644)).unwrap();
    set_times(&mount.at("copy"));
    assert_arrived(&rig, &mount, "copy", &bytes);
}

#[test]
fn shell_group_output_is_one_upload() {
    let rig = Rig::new();
    let mount = small_parts(&rig);
    let script =
        "exec 3>list; for i in 1 2 3 4 5; do echo line $i >&3; done; (echo child >&3); echo last >&3";
    let status =
        std::process::Command::new("sh").args(["-c", script]).current_dir(mount.path()).status().unwrap();
    assert!(status.success());
    let text = "line 1\nline 2\nline 3\nline 4\nline 5\nchild\nlast\n";
    assert_eq!(fs::read_to_string(mount.at("list")).unwrap(), text);
    wait_until("the drive has the list", || (rig.client().read("list")? == text.as_bytes()).then_some(()));
    assert_eq!(rig.server().stats().count("file/complete"), 1, "there is more than one upload");
}

#[test]
fn redirected_command_commits_once() {
    let rig = Rig::new();
    let mount = small_parts(&rig);
    let script =
        "cat /dev/null > empty; { echo one; echo more; } > small; (cat /dev/null; echo two) >> small2";
    let status =
        std::process::Command::new("sh").args(["-c", script]).current_dir(mount.path()).status().unwrap();
    assert!(status.success());
    wait_until("the drive has all three", || {
        (rig.client().names("") == ["empty", "small", "small2"]).then_some(())
    });
    assert_eq!(rig.client().read("small").unwrap(), b"one\nmore\n");
    assert_eq!(rig.client().read("small2").unwrap(), b"two\n");
    let stats = rig.server().stats();
    // Three files; an empty file needs no upload if the drive has an empty file already.
    assert_eq!(stats.count("file/create"), 3, "a file was uploaded twice");
    assert!(stats.count("file/complete") <= 3);
}
