//! Who may mount, and who may see a mount.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::rig::{Mount, Rig, TOKEN, errno, is_mount, wait_until};

/// Why a test cannot run.
const TWO_USERS: &str = "this test acts as two users, and only root can do that";
/// A user that owns nothing.
const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    // SAFETY: reads an id of this process.
    unsafe { libc::geteuid() == 0 }
}

/// An ordinary user: `NOBODY` where this is root, else whoever this is.
struct Ordinary {
    /// Holds a copy of the binary: the checkout may lie where nobody else may look.
    _place: tempfile::TempDir,
    binary: PathBuf,
    home: tempfile::TempDir,
}

impl Ordinary {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let binary = place.path().join("pdsfs");
        fs::copy(env!("CARGO_BIN_EXE_pdsfs"), &binary).unwrap();
        Self { _place: place, binary, home: Self::folder() }
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        if is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        folder
    }

    /// Runs as that user, with a home of its own.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.env("HOME", self.home.path()).env_remove("XDG_CACHE_HOME").current_dir("/");
        command
    }

    /// The outcome of a script whose `$0` is a folder.
    fn runs(&self, script: &str, folder: &Path) -> Output {
        self.command(Path::new("/bin/sh")).args(["-c", script]).arg(folder).output().unwrap()
    }

    /// A mount that cannot come to be.
    fn refused(&self, rig: &Rig, arguments: &[&str]) -> String {
        let folder = Self::folder();
        let mut command = self.command(&self.binary);
        command.args(["mount", "--endpoint", &rig.endpoint(), "--drive-id", "1"]).args(arguments);
        let Output { status, stderr, .. } =
            command.arg(folder.path()).env("PDSFS_TOKEN", TOKEN).output().unwrap();
        assert!(!status.success());
        String::from_utf8(stderr).unwrap()
    }
}

/// What keeps every ordinary user of this machine from mounting, in the words of the program.
fn obstacle() -> Option<&'static str> {
    if fs::metadata("/dev/fuse").unwrap().permissions().mode() & 0o006 != 0o006 {
        return Some("root has to allow it with: chmod 666 /dev/fuse");
    }
    let has_fusermount = Command::new("fusermount3").arg("-V").output().is_ok();
    (!has_fusermount).then_some("fusermount3 is not installed (package fuse3)")
}

/// `fuse.conf` lets ordinary users share their mounts.
fn may_share() -> bool {
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

#[test]
fn an_ordinary_user_mounts_and_nobody_else_sees_it() {
    let (rig, user) = (Rig::new(), Ordinary::new());
    if let Some(obstacle) = obstacle() {
        let said = user.refused(&rig, &[]);
        assert!(said.contains(obstacle), "{said}");
        return;
    }
    let command = user.command(&user.binary);
    let mount = Mount::start_by(command, &rig.endpoint(), &[], Ordinary::folder());
    let done = user.runs("cd \"$0\" && echo hello >f && cat f", mount.path());
    assert_eq!(String::from_utf8_lossy(&done.stdout), "hello\n", "{done:?}");
    assert_eq!(rig.client().read("f").unwrap(), b"hello\n");
    if is_root() {
        assert_eq!(errno(fs::metadata(mount.at("f"))), libc::EACCES);
    }
    assert_eq!(mount.stop(), 0);
}

#[test]
fn an_ordinary_user_shares_a_mount_only_where_root_allows_it() {
    let (rig, user) = (Rig::new(), Ordinary::new());
    if obstacle().is_none() && may_share() {
        let command = user.command(&user.binary);
        let mount = Mount::start_by(command, &rig.endpoint(), &["--allow-other"], Ordinary::folder());
        fs::write(mount.at("f"), "hello").unwrap();
        assert_eq!(mount.stop(), 0);
        return;
    }
    let said = user.refused(&rig, &["--allow-other"]);
    let expected = obstacle().unwrap_or("root has to put user_allow_other into /etc/fuse.conf");
    assert!(said.contains(expected), "{said}");
}

#[test]
fn root_shares_a_mount_with_allow_other_only() {
    assert!(is_root(), "{TWO_USERS}");
    let (rig, user) = (Rig::new(), Ordinary::new());
    let script = "cat \"$0/f\"";
    for (arguments, expected) in [(&[][..], ""), (&["--allow-other"][..], "hello")] {
        let mount = rig.mount_with(arguments);
        fs::write(mount.at("f"), "hello").unwrap();
        let seen = user.runs(script, mount.path());
        assert_eq!(String::from_utf8_lossy(&seen.stdout), expected, "{seen:?}");
        assert_eq!(mount.stop(), 0);
    }
}

#[test]
fn root_drains_the_mount_of_a_user() {
    assert!(is_root(), "{TWO_USERS}");
    let (rig, user) = (Rig::new(), Ordinary::new());
    assert_eq!(obstacle(), None);
    let mut command = user.command(&user.binary);
    command.env_remove("XDG_RUNTIME_DIR");
    let mount = Mount::start_by(command, &rig.endpoint(), &[], Ordinary::folder());
    let done = user.runs("echo hello >\"$0/f\" && chmod 600 \"$0/f\"", mount.path());
    assert!(done.status.success(), "{done:?}");
    let mut umount = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    let output = umount.args(["umount", "--drain"]).arg(mount.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(mount.ended().0, 0);
    assert_eq!(rig.client().find("f").unwrap().posix.and_then(|posix| posix.perm), Some(0o600));
}

/// A fusermount3 that takes its time, and says when it is asked to mount.
#[test]
fn a_signal_while_the_kernel_is_asked_leaves_no_dead_mount() {
    let (rig, user) = (Rig::new(), Ordinary::new());
    assert!(is_root() && obstacle().is_none(), "{TWO_USERS}, or {:?}", obstacle());
    let (slow, folder) = (Ordinary::folder(), Ordinary::folder());
    let (program, asked) = (slow.path().join("fusermount3"), slow.path().join("asked"));
    let script = "#!/bin/sh\ncase \"$*\" in *fsname*) touch \"$ASKED\"; sleep 1;; esac\n\
                  PATH=${PATH#*:} exec fusermount3 \"$@\"\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut command = user.command(&user.binary);
    command.args(["mount", "--endpoint", &rig.endpoint(), "--drive-id", "1"]).arg(folder.path());
    command.env("PDSFS_TOKEN", TOKEN).env("ASKED", &asked);
    command.env("PATH", format!("{}:{path}", slow.path().display()));
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it is being mounted", || asked.exists().then_some(()));
    assert!(!is_mount(folder.path()));
    // SAFETY: the pid is that of our child, which has not been waited for.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!is_mount(folder.path()), "a dead mount is left: {said}");
    assert!(said.contains("SIGTERM"), "{said}");
}

#[test]
fn files_without_an_owner_are_of_whom_the_mount_says() {
    use std::os::unix::fs::MetadataExt as _;
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("f"), "x").unwrap();
    // A user may not give files away; here the drive gives the owner of nothing.
    assert_eq!(mount.stop(), 0);
    let mount = rig.mount_with(&["--uid", "12345", "--gid", "54321"]);
    for path in [mount.path().to_owned(), mount.at("f")] {
        let seen = fs::metadata(path).unwrap();
        assert_eq!((seen.uid(), seen.gid()), (12345, 54321));
    }
    assert_eq!(mount.stop(), 0);
}

#[test]
fn what_the_kernel_has_cut_off_is_saved_taken_away_and_no_success() {
    assert!(is_root(), "only root can have the kernel cut a mount off");
    let rig = Rig::new();
    let mount = rig.mount();
    let mut file = fs::File::create(mount.at("f")).unwrap();
    file.write_all(b"not closed").unwrap();
    let path = std::ffi::CString::new(mount.path().to_str().unwrap()).unwrap();
    // SAFETY: the path outlives the call. It is in use, so the mount stays, without a connection.
    assert_eq!(unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE) }, -1);
    let (code, log) = mount.ended();
    assert_eq!(code, 1, "{log:?}");
    assert!(log.iter().any(|line| line.contains("cut the mount off")), "{log:?}");
    assert_eq!(rig.client().read("f").unwrap(), b"not closed");
}

#[test]
fn a_mount_that_is_seen_twice_is_one_that_answers() {
    assert!(is_root(), "only root can show a mount at a second place");
    let rig = Rig::new();
    let mount = rig.mount();
    fs::create_dir(mount.at("music")).unwrap();
    let second = tempfile::tempdir().unwrap();
    let bind =
        Command::new("mount").arg("--bind").arg(mount.at("music")).arg(second.path()).output().unwrap();
    assert!(bind.status.success(), "{bind:?}");
    let output = Command::new(env!("CARGO_BIN_EXE_pdsfs")).args(["status"]).output().unwrap();
    crate::rig::unmount_lazily(second.path());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains(second.path().to_str().unwrap()), "{said}");
    assert_eq!(mount.stop(), 0);
}
