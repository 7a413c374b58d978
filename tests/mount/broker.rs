//! Daemons without rights, whose drives the broker mounts.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, shutdown, socket_with,
};

use pdsfs::server::{FaultAction, FaultRule};

use crate::killed_writers::{Writer, wait_for_content};
use crate::rig::{Mount, Rig, TOKEN, is_mount, unmount_lazily, wait_until};
use crate::users::{NEEDS_ROOT, OTHER_USER, OrdinaryUser, is_root};

/// A socket as `pdsfs-broker.socket` makes it: each connection starts one broker.
struct BrokerSocket {
    dir: tempfile::TempDir,
    listener: Arc<OwnedFd>,
    brokers: Arc<Mutex<Vec<Child>>>,
    user: OrdinaryUser,
    mountpoint: tempfile::TempDir,
}

impl BrokerSocket {
    fn new(rig: &Rig) -> Self {
        assert!(is_root(), "{NEEDS_ROOT}");
        let (dir, mountpoint) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let text = format!(
            "[drives.work]\nendpoint = \"{}\"\ndrive_id = \"1\"\nmountpoint = \"{}\"\npart_size = \"64KiB\"\n",
            rig.endpoint(),
            mountpoint.path().display()
        );
        let config = dir.path().join("config.toml");
        fs::write(&config, text).unwrap();
        let path = dir.path().join("socket");
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 8).unwrap();
        chown(&path, Some(OTHER_USER), None).unwrap();
        let (listener, brokers) = (Arc::new(listener), Arc::<Mutex<Vec<Child>>>::default());
        let (accepting, started) = (listener.clone(), brokers.clone());
        std::thread::spawn(move || {
            while let Ok(connection) = accept(&accepting) {
                let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
                command
                    .arg("broker")
                    .arg("--config")
                    .arg(&config)
                    .stdin(Stdio::from(connection))
                    .stderr(Stdio::null());
                started.lock().unwrap().push(command.spawn().unwrap());
            }
        });
        Self { dir, listener, brokers, user: OrdinaryUser::new(), mountpoint }
    }

    fn command(&self) -> Command {
        let mut command = self.user.command(self.user.binary());
        command.env("PDSFS_TOKEN", TOKEN);
        command
    }

    fn arguments(&self) -> [String; 5] {
        let path = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        let [config, socket] = ["config.toml", "socket"].map(path);
        ["--config".to_owned(), config, "--broker".to_owned(), socket, "work".to_owned()]
    }

    fn mount_command(&self) -> Command {
        let mut command = self.command();
        command.arg("mount").args(self.arguments()).stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn mount(&mut self) -> Mount {
        let dir = std::mem::replace(&mut self.mountpoint, tempfile::tempdir().unwrap());
        let arguments = self.arguments();
        let mount = Mount::start_plain(self.command(), &arguments.each_ref().map(String::as_str), dir);
        assert_eq!(fs::metadata(format!("/proc/{}", mount.pid())).unwrap().uid(), OTHER_USER);
        mount
    }

    /// The exit code of the only broker.
    fn broker_ended(&self) -> Option<i32> {
        let mut brokers = self.brokers.lock().unwrap();
        assert_eq!(brokers.len(), 1);
        brokers[0].wait().unwrap().code()
    }
}

impl Drop for BrokerSocket {
    fn drop(&mut self) {
        let _ = shutdown(&self.listener, rustix::net::Shutdown::Both);
        for broker in self.brokers.lock().unwrap().iter_mut() {
            let _ = broker.kill();
            let _ = broker.wait();
        }
        unmount_lazily(self.mountpoint.path());
    }
}

fn mounted() -> (Rig, BrokerSocket, Mount) {
    let rig = Rig::new();
    let mut socket = BrokerSocket::new(&rig);
    let mount = socket.mount();
    (rig, socket, mount)
}

/// The processes of the mount see it, and it belongs to root as every mount of the system.
#[test]
fn daemon_without_rights_serves_mount_of_root() {
    let (rig, socket, mount) = mounted();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(mount.path().to_str().unwrap())).unwrap();
    assert!(line.contains(" - fuse.pdsfs work:/ ") && line.contains("user_id=0,group_id=0"), "{line}");
    fs::write(mount.at("f"), b"bytes").unwrap();
    assert_eq!(
        (rig.client().read("f"), fs::read(mount.at("f")).unwrap()),
        (Some(b"bytes".to_vec()), b"bytes".to_vec())
    );
    let owner = fs::metadata(mount.at("f")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (0, 0));
    let status = fs::read_to_string(format!("/proc/{}/status", mount.pid())).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000\n"), "{status}");
    let path = mount.path().to_owned();
    assert_eq!(mount.stop(), 0);
    assert_eq!(socket.broker_ended(), Some(0));
    assert!(!is_mount(&path));
}

/// The facts about other processes come from the broker: the daemon may not read them.
#[test]
fn broker_tells_which_close_is_the_last() {
    let (rig, _socket, mount) = mounted();
    let mut first = File::create(mount.at("f")).unwrap();
    first.write_all(b"one").unwrap();
    let mut second = first.try_clone().unwrap();
    drop(first);
    assert_eq!(rig.client().read("f"), None);
    second.write_all(b" two").unwrap();
    drop(second);
    assert_eq!(rig.client().read("f"), Some(b"one two".to_vec()));
    let mut writer = Writer::overwriting(&mount.at("f"));
    writer.write(b"unfinished", &mount.at("f"), 10);
    writer.kill(libc::SIGKILL);
    wait_for_content(&mount.at("f"), b"one two");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn killed_daemon_leaves_no_dead_mount() {
    let (_rig, socket, mount) = mounted();
    let path = mount.path().to_owned();
    mount.signal(libc::SIGKILL);
    assert_eq!(socket.broker_ended(), Some(0));
    assert!(!is_mount(&path));
    assert_ne!(mount.ended().0, 0);
}

#[test]
fn daemon_saves_files_when_its_broker_dies() {
    let (rig, socket, mount) = mounted();
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(b"bytes").unwrap();
    socket.brokers.lock().unwrap()[0].kill().unwrap();
    wait_until("the drive has the file", || rig.client().read("f").filter(|read| read == b"bytes"));
    drop(file);
    mount.wait_for_log("the broker has ended, so the mount cannot be ended in order");
    let path = mount.path().to_owned();
    let (code, _dead) = mount.ended_dead();
    assert_eq!(code, Some(1));
    // As the unit does after the end of the daemon.
    let umount = Command::new(env!("CARGO_BIN_EXE_pdsfs")).args(["umount", "--dead"]).arg(&path).output();
    assert!(umount.unwrap().status.success() && !is_mount(&path));
}

/// Runs the daemon, which must fail, and returns its exit code and stderr.
fn refused(
    socket: &BrokerSocket,
    variables: &[(&str, &str)],
    mountpoint: Option<&Path>,
) -> (Option<i32>, String) {
    let mut command = socket.mount_command();
    end_of(command.args(mountpoint).envs(variables.iter().copied()).spawn().unwrap())
}

/// The exit code and stderr of a daemon that mounts nothing.
fn end_of(daemon: Child) -> (Option<i32>, String) {
    let output = daemon.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn broker_mounts_as_configured_only() {
    let rig = Rig::new();
    let socket = BrokerSocket::new(&rig);
    let other = tempfile::tempdir().unwrap();
    let (code, printed) = refused(&socket, &[("PDSFS_ALLOW_OTHER", "true")], Some(other.path()));
    assert!(code == Some(2) && printed.contains("set mountpoint, allow_other there"), "{printed}");
    assert!(!is_mount(other.path()) && !is_mount(socket.mountpoint.path()));
}

/// The message names the key of the configuration file: the flag that it names too is refused.
#[test]
fn broker_hides_contents_as_configured_only() {
    let rig = Rig::new();
    let mut socket = BrokerSocket::new(&rig);
    fs::write(socket.mountpoint.path().join("hidden"), b"").unwrap();
    let (code, printed) = refused(&socket, &[], None);
    let names_key = printed.contains("(allow_non_empty = true in the configuration file)");
    assert!(code == Some(2) && names_key, "{printed}");
    let allow = [("PDSFS_ALLOW_NON_EMPTY", "true"), ("PDSFS_ALLOW_USER_MOUNTPOINT", "true")];
    let (code, printed) = refused(&socket, &allow, None);
    let names_keys =
        printed.contains("set allow_non_empty, allow_user_mountpoint there, not in the environment");
    assert!(code == Some(2) && names_keys, "{printed}");
    assert!(!is_mount(socket.mountpoint.path()));
    let config = socket.dir.path().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "allow_non_empty = true\n").unwrap();
    assert_eq!(socket.mount().stop(), 0);
}

#[test]
fn broker_refuses_replaceable_mountpoint() {
    let rig = Rig::new();
    let socket = BrokerSocket::new(&rig);
    // The user of the service owns the directory above.
    chown(socket.mountpoint.path(), Some(OTHER_USER), None).unwrap();
    let inner: PathBuf = socket.mountpoint.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let config = socket.dir.path().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let mountpoint = socket.mountpoint.path().to_str().unwrap();
    fs::write(&config, text.replace(mountpoint, inner.to_str().unwrap())).unwrap();
    let (code, printed) = refused(&socket, &[], None);
    assert!(code == Some(2) && printed.contains("is not safe for a mount by root"), "{printed}");
    assert!(!is_mount(&inner));
}

/// Another mount appears between the check of the mountpoint and the mount. The unit tries again: the other mount may
/// end. The next try finds it at the check, and a person must choose.
#[test]
fn place_taken_after_its_check_is_not_mounted() {
    let rig = Rig::new();
    let socket = BrokerSocket::new(&rig);
    let path = socket.mountpoint.path();
    let faults = rig.server().faults();
    faults.add(FaultRule::new("file/list", FaultAction::Stall));
    let mut daemon = socket.mount_command().spawn().unwrap();
    rig.block_on(faults.wait_for_hits(1));
    let other = Command::new("mount").args(["-t", "tmpfs", "other"]).arg(path).status().unwrap();
    assert!(other.success());
    faults.clear();
    wait_until("the daemon ends", || daemon.try_wait().unwrap());
    let (code, printed) = end_of(daemon);
    assert!(code == Some(1) && printed.contains("other has been mounted at "), "{code:?}: {printed}");
    assert_eq!(socket.broker_ended(), Some(0));
    let (code, printed) = refused(&socket, &[], None);
    assert!(code == Some(2) && printed.contains("already has a mount (other of type tmpfs)"), "{printed}");
    assert!(Command::new("umount").arg(path).status().unwrap().success());
    assert!(!is_mount(path), "a drive is mounted below the other mount");
}
