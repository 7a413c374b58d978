//! Mounts at directories that other users can replace, move or link elsewhere. The tests act as root and as
//! another user.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use pdsfs::server::{FaultAction, FaultRule};

use crate::rig::{Mount, Rig, TOKEN, is_mount, unmount_lazily, wait_until};
use crate::users::{OTHER_USER, OrdinaryUser};

/// Lets root mount in the directories of another user.
const ALLOW: (&str, &str) = ("PDSFS_ALLOW_USER_MOUNTPOINT", "true");

/// Directories of `owner` below a directory of root, which is removed with all mounts in it.
struct Home {
    dir: tempfile::TempDir,
    owner: u32,
}

impl Home {
    fn new(owner: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let home = Self { dir, owner };
        home.make("home");
        home.make("home/drive");
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// Makes a directory of the owner.
    fn make(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        fs::create_dir(&path).unwrap();
        chown(&path, Some(self.owner), Some(self.owner)).unwrap();
        path
    }

    fn link(&self, target: &Path, name: &str) -> PathBuf {
        let path = self.at(name);
        symlink(target, &path).unwrap();
        std::os::unix::fs::lchown(&path, Some(self.owner), Some(self.owner)).unwrap();
        path
    }

    /// All mountpoints in the directory.
    fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let paths = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        paths.filter(|path| path.starts_with(self.at(""))).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for path in self.mounts() {
            unmount_lazily(&path);
        }
    }
}

fn command(rig: &Rig, dir: &Path, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    command.args(["mount", "--endpoint", &rig.endpoint(), "--drive-id", "1"]).arg(dir);
    command.env("PDSFS_TOKEN", TOKEN).envs(variables.iter().copied());
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Mounts as root, which must fail with exit code 2. Returns stderr.
fn refused(rig: &Rig, home: &Home, dir: &Path, variables: &[(&str, &str)]) -> String {
    let child = command(rig, dir, variables).spawn().unwrap();
    let output = ended(child, home);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{}: {printed}", dir.display());
    printed
}

/// Waits for the end. A daemon that has mounted is stopped first.
fn ended(mut child: Child, home: &Home) -> Output {
    wait_until("the daemon ends", || {
        for path in home.mounts() {
            unmount_lazily(&path);
        }
        child.try_wait().unwrap()
    });
    child.wait_with_output().unwrap()
}

/// Root waits for the first listing. Meanwhile the mountpoint is moved, and its name leads elsewhere.
#[test]
fn replaced_mountpoint_is_not_mounted() {
    for owner in [OTHER_USER, 0] {
        let (rig, home) = (Rig::new(), Home::new(owner));
        let victim = home.at("victim");
        fs::create_dir(&victim).unwrap();
        let faults = rig.server().faults();
        faults.add(FaultRule::new("file/list", FaultAction::Stall));
        let child = command(&rig, &home.at("home/drive"), &[ALLOW]).spawn().unwrap();
        rig.block_on(faults.wait_for_hits(1));
        fs::rename(home.at("home/drive"), home.at("home/moved")).unwrap();
        home.link(&victim, "home/drive");
        faults.clear();
        let output = child.wait_with_output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(home.mounts(), [] as [PathBuf; 0], "{printed}");
        assert_eq!(output.status.code(), Some(1), "{printed}");
        assert!(printed.contains("was moved or replaced"), "{printed}");
    }
}

/// Another mount appears while root waits for the first listing.
#[test]
fn mountpoint_taken_meanwhile_is_not_mounted() {
    let (rig, home) = (Rig::new(), Home::new(0));
    let path = home.at("home/drive");
    let faults = rig.server().faults();
    faults.add(FaultRule::new("file/list", FaultAction::Stall));
    let mut child = command(&rig, &path, &[]).spawn().unwrap();
    rig.block_on(faults.wait_for_hits(1));
    let other = Command::new("mount").args(["-t", "tmpfs", "other"]).arg(&path).status().unwrap();
    assert!(other.success());
    faults.clear();
    let code = wait_until("the daemon ends", || child.try_wait().unwrap()).code();
    let printed = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert!(code == Some(1) && printed.contains("other has been mounted at "), "{code:?}: {printed}");
    assert_eq!(home.mounts(), [path]);
}

#[test]
fn directory_of_another_user_is_refused() {
    let (rig, home) = (Rig::new(), Home::new(OTHER_USER));
    let printed = refused(&rig, &home, &home.at("home/drive"), &[]);
    assert!(printed.contains("belongs to user 65534"), "{printed}");
    assert!(printed.contains("allow_user_mountpoint"), "{printed}");
    let shared = home.at("shared");
    fs::create_dir_all(shared.join("drive")).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o775)).unwrap();
    for variables in [&[][..], &[ALLOW]] {
        let printed = refused(&rig, &home, &shared.join("drive"), variables);
        assert!(printed.contains("chmod go-w"), "{printed}");
    }
    // Other users cannot rename or remove what root has in a sticky directory.
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    let mut sticky = command(&rig, &shared.join("drive"), &[]).spawn().unwrap();
    wait_until("the drive is mounted", || is_mount(&shared.join("drive")).then_some(()));
    unmount_lazily(&shared.join("drive"));
    assert!(sticky.wait().unwrap().success());
    home.make("shared/theirs");
    assert!(refused(&rig, &home, &home.at("shared/theirs"), &[]).contains("belongs to user 65534"));
    assert_eq!(home.mounts(), [] as [PathBuf; 0]);
}

#[test]
fn link_of_another_user_is_refused() {
    let (rig, home) = (Rig::new(), Home::new(OTHER_USER));
    let victim = home.at("victim");
    fs::create_dir(&victim).unwrap();
    let link = home.link(&victim, "home/link");
    for variables in [&[][..], &[ALLOW]] {
        refused(&rig, &home, &link, variables);
    }
    let printed = refused(&rig, &home, &link, &[ALLOW]);
    assert!(printed.contains("symbolic link"), "{printed}");
    // A directory of root in the home directory, and one that its user cannot reach.
    fs::create_dir(home.at("home/root")).unwrap();
    let printed = refused(&rig, &home, &home.at("home/root"), &[ALLOW]);
    assert!(printed.contains("belongs to user 0"), "{printed}");
    fs::set_permissions(home.at("home/root"), fs::Permissions::from_mode(0o700)).unwrap();
    home.make("home/root/drive");
    refused(&rig, &home, &home.at("home/root/drive"), &[ALLOW]);
    assert_eq!(home.mounts(), [] as [PathBuf; 0]);
}

#[test]
fn allowed_user_mountpoint_is_mounted() {
    let (rig, home) = (Rig::new(), Home::new(OTHER_USER));
    // Only its user and root can enter it.
    fs::set_permissions(home.at("home"), fs::Permissions::from_mode(0o700)).unwrap();
    let dir = tempfile::tempdir_in(home.at("home/drive")).unwrap();
    chown(dir.path(), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    let mount = Mount::start(&rig.endpoint(), &["--allow-user-mountpoint"], dir);
    fs::write(mount.at("f"), "hello").unwrap();
    assert_eq!(rig.client().read("f").unwrap(), b"hello");
    assert_eq!(mount.stop(), 0);
}

/// A link of root, and a directory of another user below directories of root only.
#[test]
fn directories_of_root_lead_to_the_mountpoint() {
    let (rig, home) = (Rig::new(), Home::new(0));
    let dir = tempfile::tempdir_in(home.at("home")).unwrap();
    symlink(home.at("home"), home.at("link")).unwrap();
    chown(dir.path(), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    let path = home.at("link").join(dir.path().file_name().unwrap());
    let mut child = command(&rig, &path, &[]).spawn().unwrap();
    wait_until("the drive is mounted", || is_mount(dir.path()).then_some(()));
    unmount_lazily(dir.path());
    assert!(child.wait().unwrap().success());
}

/// By root, and by another user through `fusermount3`.
#[test]
fn moved_mount_is_unmounted_by_a_stop() {
    let (rig, user) = (Rig::new(), OrdinaryUser::new());
    for owner in [0, OTHER_USER] {
        let home = Home::new(owner);
        let dir = tempfile::tempdir_in(home.at("home/drive")).unwrap();
        chown(dir.path(), Some(owner), Some(owner)).unwrap();
        let command = match owner {
            0 => Command::new(env!("CARGO_BIN_EXE_pdsfs")),
            _ => user.command(user.binary()),
        };
        let name = dir.path().file_name().unwrap().to_owned();
        let mount = Mount::start_by(command, &rig.endpoint(), &[], dir);
        fs::rename(home.at("home/drive"), home.at("home/moved")).unwrap();
        assert!(is_mount(&home.at("home/moved").join(name)));
        let code = mount.stop();
        assert_eq!(home.mounts(), [] as [PathBuf; 0], "a dead mount is left");
        assert_eq!(code, 0);
    }
}

#[test]
fn umount_finds_a_moved_mount() {
    let (rig, home) = (Rig::new(), Home::new(0));
    let config = home.at("config.toml");
    let drive = home.at("home/drive");
    let text = format!("[drives.photos]\nmountpoint = \"{}\"\n", drive.display());
    fs::write(&config, text).unwrap();
    let pdsfs = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
        command.args(arguments).args(["--config", config.to_str().unwrap()]).env("PDSFS_TOKEN", TOKEN);
        command.env("PDSFS_ENDPOINT", rig.endpoint()).env("PDSFS_DRIVE_ID", "1");
        command
    };
    for arguments in [&["umount"][..], &["umount", "--lazy"], &["umount", "--drain"], &["umount", "--dead"]] {
        let mut daemon = pdsfs(&["mount", "photos"]).stderr(Stdio::piped()).spawn().unwrap();
        // A daemon that is killed while it asks its own mount does not die.
        let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("mounted drive")));
        fs::rename(home.at("home"), home.at("moved")).unwrap();
        let (moved, is_dead) = (home.at("moved/drive"), arguments.contains(&"--dead"));
        if is_dead {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
        let target = if is_dead { "photos" } else { moved.to_str().unwrap() };
        let output = pdsfs(&[arguments, &[target]].concat()).output().unwrap();
        let mounts = home.mounts();
        assert_eq!((mounts, output.status.code()), (vec![], Some(0)), "{arguments:?} {output:?}");
        daemon.wait().unwrap();
        fs::rename(home.at("moved"), home.at("home")).unwrap();
    }
}
