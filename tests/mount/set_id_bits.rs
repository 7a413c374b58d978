//! The set-user-ID and set-group-ID bits of files that are changed, compared with a local directory.

use std::ffi::{CStr, CString};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::rig::Rig;

/// The uid of a user without files, and its groups.
const USER: u32 = 65_534;
const USER_GROUP: u32 = 65_534;
const USER_SECOND_GROUP: u32 = 65_533;

/// With and without permission of the group to execute.
const MODES: [u32; 7] = [0o6666, 0o6676, 0o6766, 0o6777, 0o2676, 0o2666, 0o4755];

/// The owner and group of the changed file: the user in its own, its second and a foreign group.
const OWNERS: [(u32, u32); 3] = [(USER, USER_GROUP), (USER, USER_SECOND_GROUP), (USER, 0)];

/// A change of a file by a program.
#[derive(Clone, Copy)]
enum Change {
    /// A script; `$0` is the file.
    Shell(&'static str),
    /// A system call in a process of its own, with the file and another one.
    Call(fn(&CStr, &CStr) -> bool),
    /// The same with an empty file.
    CallOnEmpty(fn(&CStr, &CStr) -> bool),
}

const CHANGES: [(&str, Change); 12] = [
    ("write", Change::Shell("printf x | dd of=$0 conv=notrunc")),
    ("append", Change::Shell("printf x >>$0")),
    ("direct write", Change::Shell("dd if=/dev/zero of=$0 oflag=direct bs=4096 count=1 conv=notrunc")),
    ("open with O_TRUNC", Change::Shell(": >$0")),
    ("open with O_RDONLY and O_TRUNC", Change::Call(truncate_by_reader)),
    ("copy_file_range", Change::CallOnEmpty(copy_over)),
    ("truncate", Change::Shell("truncate -s 1 $0")),
    ("extend", Change::Shell("truncate -s 9000 $0")),
    ("fallocate", Change::Shell("fallocate -l 9000 $0")),
    ("punch", Change::Shell("fallocate -p -o 0 -l 4096 $0")),
    ("chown", Change::Shell("chown $(stat -c %u:%g $0) $0")),
    ("read", Change::Shell("cat $0")),
];

/// Async-signal-safe.
fn truncate_by_reader(path: &CStr, _: &CStr) -> bool {
    // SAFETY: the path outlives the call.
    unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_TRUNC | libc::O_CLOEXEC) >= 0 }
}

/// Async-signal-safe.
fn copy_over(path: &CStr, source: &CStr) -> bool {
    // SAFETY: the paths outlive the calls, and null means the position of a descriptor.
    unsafe {
        let from = libc::open(source.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let to = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        let (start, end) = (std::ptr::null_mut(), std::ptr::null_mut());
        libc::copy_file_range(from, start, to, end, 1 << 20, 0) == SOURCE_BYTES
    }
}

/// Size of the file `source`.
const SOURCE_BYTES: isize = 6000;

/// Changes a file as root or as the user. Returns whether that succeeded.
fn make_change(change: Change, path: &Path, as_user: bool) -> bool {
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let (file, source) = (c_path(path), c_path(&path.with_file_name("source")));
    let (script, call) = match change {
        Change::Shell(script) => (script, None),
        Change::Call(call) | Change::CallOnEmpty(call) => ("true", Some(call)),
    };
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: all calls are async-signal-safe and touch nothing of this process.
    unsafe {
        command.pre_exec(move || {
            let groups = [USER_SECOND_GROUP];
            let has_failed = as_user
                && (libc::setgroups(1, groups.as_ptr()) != 0
                    || libc::setgid(USER_GROUP) != 0
                    || libc::setuid(USER) != 0);
            if has_failed || call.is_some_and(|call| !call(&file, &source)) {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.status().is_ok_and(|status| status.success())
}

/// The mode as `stat -c %a` sees it, which asks the kernel for the mode only.
fn shown_mode(path: &Path) -> String {
    let output = Command::new("stat").args(["-c", "%a"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The mode after a change, and whether the change succeeded.
fn mode_after(path: &Path, mode: u32, owner: (u32, u32), change: Change, as_user: bool) -> String {
    fs::write(path, [b'x'; 5000]).unwrap();
    chown(path, Some(owner.0), Some(owner.1)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    if matches!(change, Change::CallOnEmpty(_)) {
        // By root, which keeps the bits.
        fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
    }
    assert_eq!(shown_mode(path), format!("{mode:o}"));
    let has_succeeded = make_change(change, path, as_user);
    let shown = format!("{} success {has_succeeded}", shown_mode(path));
    fs::remove_file(path).unwrap();
    shown
}

#[test]
fn set_id_bits_are_cleared_as_on_local_fs() {
    // SAFETY: geteuid has no arguments and cannot fail.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test acts as two users, and only root can do that");
    let rig = Rig::new();
    let mount =
        rig.mount_with(&["--allow-other", "--remove", "delete", "--owners", "drive", "--special-bits", "on"]);
    fs::set_permissions(mount.path(), Permissions::from_mode(0o755)).unwrap();
    let local = tempfile::tempdir().unwrap();
    fs::set_permissions(local.path(), Permissions::from_mode(0o755)).unwrap();
    for dir in [mount.path(), local.path()] {
        fs::write(dir.join("source"), [b'y'; SOURCE_BYTES as usize]).unwrap();
        fs::set_permissions(dir.join("source"), Permissions::from_mode(0o644)).unwrap();
    }
    let mut different = Vec::new();
    for (name, change) in CHANGES {
        for mode in MODES {
            for owner in OWNERS {
                for as_user in [false, true] {
                    // Root clears no bits but in chown; one owner is enough to see that.
                    if !as_user && owner != OWNERS[2] {
                        continue;
                    }
                    let seen = mode_after(&mount.at("f"), mode, owner, change, as_user);
                    let expected = mode_after(&local.path().join("f"), mode, owner, change, as_user);
                    if seen != expected {
                        different.push(format!(
                            "{name} of {mode:o} {owner:?}, user {as_user}: {seen}, expected {expected}"
                        ));
                    }
                }
            }
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}
