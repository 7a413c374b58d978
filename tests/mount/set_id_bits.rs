//! The set-user-ID and set-group-ID bits of files that are changed, compared with a local directory.

use std::fs::{self, Permissions};
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

/// Changes of the file `$0` by a program.
const CHANGES: [(&str, &str); 10] = [
    ("write", "printf x | dd of=$0 conv=notrunc"),
    ("append", "printf x >>$0"),
    ("direct write", "dd if=/dev/zero of=$0 oflag=direct bs=4096 count=1 conv=notrunc"),
    ("open with O_TRUNC", ": >$0"),
    ("truncate", "truncate -s 1 $0"),
    ("extend", "truncate -s 9000 $0"),
    ("fallocate", "fallocate -l 9000 $0"),
    ("punch", "fallocate -p -o 0 -l 4096 $0"),
    ("chown", "chown $(stat -c %u:%g $0) $0"),
    ("read", "cat $0"),
];

/// A command in this shell, as root or as the user.
fn shell(script: &str, path: &Path, as_user: bool) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if as_user {
        // SAFETY: both calls are async-signal-safe and touch nothing of this process.
        unsafe {
            command.pre_exec(|| {
                let groups = [USER_SECOND_GROUP];
                if libc::setgroups(1, groups.as_ptr()) != 0
                    || libc::setgid(USER_GROUP) != 0
                    || libc::setuid(USER) != 0
                {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
    }
    command
}

/// The mode as `stat -c %a` sees it, which asks the kernel for the mode only.
fn shown_mode(path: &Path) -> String {
    let output = Command::new("stat").args(["-c", "%a"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The mode after a change, and whether the change succeeded.
fn mode_after(path: &Path, mode: u32, owner: (u32, u32), change: &str, as_user: bool) -> String {
    fs::write(path, [b'x'; 5000]).unwrap();
    chown(path, Some(owner.0), Some(owner.1)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    assert_eq!(shown_mode(path), format!("{mode:o}"));
    let status = shell(change, path, as_user).status().unwrap();
    let shown = format!("{} success {}", shown_mode(path), status.success());
    fs::remove_file(path).unwrap();
    shown
}

#[test]
fn set_id_bits_are_cleared_as_on_local_fs() {
    // SAFETY: geteuid has no arguments and cannot fail.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test acts as two users, and only root can do that");
    let rig = Rig::new();
    let mount = rig.mount_with(&["--allow-other", "--remove", "delete"]);
    fs::set_permissions(mount.path(), Permissions::from_mode(0o755)).unwrap();
    let local = tempfile::tempdir().unwrap();
    fs::set_permissions(local.path(), Permissions::from_mode(0o755)).unwrap();
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
