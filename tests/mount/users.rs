//! Mounts by root and by ordinary users, and access to them by other users.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pdsfs::control_api::Status;

use crate::rig::{Mount, Rig, TOKEN, errno, is_mount, refused_mount, wait_until};

/// The failure of a test that cannot run.
pub const NEEDS_ROOT: &str = "this test acts as two users, and only root can do that";
/// The uid and gid of a user without files.
pub const OTHER_USER: u32 = 65_534;

pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// An ordinary user: `OTHER_USER` if the tests run as root, else the user of the tests.
pub struct OrdinaryUser {
    /// Contains a copy of the binary, because other users may not be able to read the checkout.
    _dir: tempfile::TempDir,
    binary: PathBuf,
    home: tempfile::TempDir,
}

impl OrdinaryUser {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let binary = dir.path().join("pdsfs");
        // By another process: a child that is forked during a copy of ours holds the file open for writing, and
        // the start of the copy fails with ETXTBSY.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_pdsfs")).arg(&binary).status().unwrap();
        assert!(copied.success(), "{copied}");
        Self { _dir: dir, binary, home: Self::directory() }
    }

    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        if is_root() {
            chown(dir.path(), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
        }
        dir
    }

    /// A copy of the program.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A command that runs as this user, with a separate home.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if is_root() {
            command.uid(OTHER_USER).gid(OTHER_USER);
        }
        command.env("HOME", self.home.path()).env_remove("XDG_CACHE_HOME").current_dir("/");
        command
    }

    /// Runs a script whose `$0` is `dir`.
    fn run(&self, script: &str, dir: &Path) -> Output {
        self.command(Path::new("/bin/sh")).args(["-c", script]).arg(dir).output().unwrap()
    }

    /// Tries to mount, which must fail, and returns stderr.
    fn refused(&self, rig: &Rig, arguments: &[&str]) -> String {
        let dir = Self::directory();
        let mut command = self.command(&self.binary);
        command.args(["mount", "--endpoint", &rig.endpoint(), "--drive-id", "1"]).args(arguments);
        command.arg(dir.path()).env("PDSFS_TOKEN", TOKEN);
        refused_mount(command, dir.path())
    }
}

/// The reason why ordinary users of this machine cannot mount: a part of the daemon's message.
fn mount_obstacle() -> Option<&'static str> {
    if fs::metadata("/dev/fuse").unwrap().permissions().mode() & 0o006 != 0o006 {
        return Some("run as root: chmod 666 /dev/fuse");
    }
    let has_fusermount = Command::new("fusermount3").arg("-V").output().is_ok();
    (!has_fusermount).then_some("install the package fuse3")
}

/// Whether `fuse.conf` allows ordinary users to share their mounts.
fn allows_other() -> bool {
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

#[test]
fn user_mount_is_private_to_the_user() {
    let (rig, user) = (Rig::new(), OrdinaryUser::new());
    if let Some(mount_obstacle) = mount_obstacle() {
        let printed = user.refused(&rig, &[]);
        assert!(printed.contains(mount_obstacle), "{printed}");
        return;
    }
    let command = user.command(&user.binary);
    let mount = Mount::start_by(command, &rig.endpoint(), &[], OrdinaryUser::directory());
    let done = user.run("cd \"$0\" && echo hello >f && cat f", mount.path());
    assert_eq!(String::from_utf8_lossy(&done.stdout), "hello\n", "{done:?}");
    assert_eq!(rig.client().read("f").unwrap(), b"hello\n");
    if is_root() {
        assert_eq!(errno(fs::metadata(mount.at("f"))), libc::EACCES);
    }
    assert_eq!(mount.stop(), 0);
}

#[test]
fn user_allow_other_needs_fuse_conf() {
    let (rig, user) = (Rig::new(), OrdinaryUser::new());
    if mount_obstacle().is_none() && allows_other() {
        let command = user.command(&user.binary);
        let mount = Mount::start_by(command, &rig.endpoint(), &["--allow-other"], OrdinaryUser::directory());
        fs::write(mount.at("f"), "hello").unwrap();
        assert_eq!(mount.stop(), 0);
        return;
    }
    let printed = user.refused(&rig, &["--allow-other"]);
    let expected = mount_obstacle().unwrap_or("the line user_allow_other in /etc/fuse.conf");
    assert!(printed.contains(expected), "{printed}");
}

#[test]
fn user_mount_cannot_have_nosymfollow() {
    let printed = OrdinaryUser::new().refused(&Rig::new(), &["--nosymfollow"]);
    assert!(printed.contains("nosymfollow needs root"), "{printed}");
}

#[test]
fn root_mount_is_shared_only_with_allow_other() {
    assert!(is_root(), "{NEEDS_ROOT}");
    let (rig, user) = (Rig::new(), OrdinaryUser::new());
    let script = "cat \"$0/f\"";
    for (arguments, expected) in [(&[][..], ""), (&["--allow-other"][..], "hello")] {
        let mount = rig.mount_with(arguments);
        fs::write(mount.at("f"), "hello").unwrap();
        let seen = user.run(script, mount.path());
        assert_eq!(String::from_utf8_lossy(&seen.stdout), expected, "{seen:?}");
        assert_eq!(mount.stop(), 0);
    }
}

#[test]
fn root_drains_mount_of_another_user() {
    assert!(is_root(), "{NEEDS_ROOT}");
    let (rig, user) = (Rig::new(), OrdinaryUser::new());
    assert_eq!(mount_obstacle(), None);
    let mut command = user.command(&user.binary);
    command.env_remove("XDG_RUNTIME_DIR");
    let mount = Mount::start_by(command, &rig.endpoint(), &[], OrdinaryUser::directory());
    let done = user.run("echo hello >\"$0/f\" && chmod 600 \"$0/f\"", mount.path());
    assert!(done.status.success(), "{done:?}");
    let mut umount = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    let output = umount.args(["umount", "--drain"]).arg(mount.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(mount.ended().0, 0);
    assert_eq!(rig.client().find("f").unwrap().mode_tag(), Some(0o600));
}

/// Uses a slow `fusermount3` that creates a file when it starts.
#[test]
fn signal_during_mount_leaves_no_dead_mount() {
    let (rig, user) = (Rig::new(), OrdinaryUser::new());
    assert!(is_root() && mount_obstacle().is_none(), "{NEEDS_ROOT}, or {:?}", mount_obstacle());
    let (slow, dir) = (OrdinaryUser::directory(), OrdinaryUser::directory());
    let (program, asked) = (slow.path().join("fusermount3"), slow.path().join("asked"));
    let script = "#!/bin/sh\ncase \"$*\" in *fsname*) touch \"$ASKED\"; sleep 4;; esac\n\
                  PATH=${PATH#*:} exec fusermount3 \"$@\"\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut command = user.command(&user.binary);
    command.args(["mount", "--endpoint", &rig.endpoint(), "--drive-id", "1"]).arg(dir.path());
    command.env("PDSFS_TOKEN", TOKEN).env("ASKED", &asked);
    command.env("PATH", format!("{}:{path}", slow.path().display()));
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the mount has begun", || asked.exists().then_some(()));
    assert!(!is_mount(dir.path()));
    // SAFETY: the pid belongs to our child, which is not reaped yet.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!is_mount(dir.path()), "a dead mount remains: {printed}");
    assert!(printed.contains("SIGTERM"), "{printed}");
}

#[test]
fn files_without_owner_get_uid_and_gid_settings() {
    use std::os::unix::fs::MetadataExt as _;
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("f"), "x").unwrap();
    // The drive stores no owner for this file, because its owner was never changed.
    assert_eq!(mount.stop(), 0);
    let mount = rig.mount_with(&["--uid", "12345", "--gid", "54321"]);
    for path in [mount.path().to_owned(), mount.at("f")] {
        let seen = fs::metadata(path).unwrap();
        assert_eq!((seen.uid(), seen.gid()), (12345, 54321));
    }
    assert_eq!(mount.stop(), 0);
}

#[test]
fn aborted_mount_saves_files_and_exits_1() {
    assert!(is_root(), "this test needs root, to abort a mount");
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("complete"), b"complete").unwrap();
    let mut file = fs::File::create(mount.at("f")).unwrap();
    file.write_all(b"not closed").unwrap();
    let mut overwriting = fs::File::create(mount.at("complete")).unwrap();
    overwriting.write_all(b"com").unwrap();
    let path = std::ffi::CString::new(mount.path().to_str().unwrap()).unwrap();
    // SAFETY: the path outlives the call. The path is in use, so the mount stays without a connection.
    assert_eq!(unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE) }, -1);
    let (code, log) = mount.ended();
    assert_eq!(code, 1, "{log:?}");
    assert!(log.iter().any(|line| line.contains("aborted the connection of the mount")), "{log:?}");
    assert_eq!(rig.client().read("f").unwrap(), b"not closed");
    assert!(log.iter().any(|line| line.contains("NOT SAVED /complete: its program was still")), "{log:?}");
    assert_eq!(rig.client().read("complete").unwrap(), b"complete");
}

#[test]
fn bind_mount_is_not_reported_as_silent() {
    assert!(is_root(), "this test needs root, to make a bind mount");
    let rig = Rig::new();
    let mount = rig.mount();
    fs::create_dir(mount.at("music")).unwrap();
    let second = tempfile::tempdir().unwrap();
    let bind =
        Command::new("mount").arg("--bind").arg(mount.at("music")).arg(second.path()).output().unwrap();
    assert!(bind.status.success(), "{bind:?}");
    let output = Command::new(env!("CARGO_BIN_EXE_pdsfs")).args(["status"]).output().unwrap();
    crate::rig::unmount_lazily(second.path());
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!printed.contains(second.path().to_str().unwrap()), "{printed}");
    assert_eq!(mount.stop(), 0);
}

/// Runs `pdsfs` as root in its own environment.
fn as_root(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pdsfs")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn root_reads_no_configuration_of_others() {
    assert!(is_root(), "{NEEDS_ROOT}");
    let dir = OrdinaryUser::directory();
    let file = dir.path().join("pdsfs/config.toml");
    fs::create_dir(dir.path().join("pdsfs")).unwrap();
    fs::write(&file, "[drives.planted]\n").unwrap();
    chown(&file, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    let check = |variable: &str, path: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
        let output = command.args(["config", "check"]).env(variable, path).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let printed = check("XDG_CONFIG_HOME", dir.path());
    assert!(!printed.contains("planted") && printed.contains("/etc/pdsfs/config.toml"), "{printed}");
    let named = || check("PDSFS_CONFIG", &file);
    chown(&file, Some(0), Some(0)).unwrap();
    let printed = check("XDG_CONFIG_HOME", dir.path());
    assert!(printed.contains("move it to /etc/pdsfs/config.toml"), "{printed}");
    chown(&file, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    let printed = named();
    assert!(printed.contains("belongs to another user (uid 65534)"), "{printed}");
    chown(&file, Some(0), Some(OTHER_USER)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o664)).unwrap();
    let printed = named();
    assert!(printed.contains("is writable by a group; run: chmod g-w"), "{printed}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    chown(file.parent().unwrap(), Some(OTHER_USER), None).unwrap();
    let printed = named();
    assert!(printed.contains("belongs to another user"), "{printed}");
    chown(file.parent().unwrap(), Some(0), None).unwrap();
    let printed = named();
    assert!(printed.contains("planted"), "{printed}");
}

#[test]
fn root_home_is_not_that_of_the_environment() {
    assert!(is_root(), "{NEEDS_ROOT}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, "[drives.x]\nmountpoint = \"~/no/such/dir\"\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    command.args(["config", "check"]).env("PDSFS_CONFIG", &file).env("HOME", "/elsewhere");
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(printed.contains("/no/such/dir'") && !printed.contains("/elsewhere"), "{printed}");
}

/// In a mount namespace with another `/etc`.
#[test]
fn untrusted_system_file_blocks_no_user() {
    assert!(is_root(), "{NEEDS_ROOT}");
    let user = OrdinaryUser::new();
    let script = "mount -t tmpfs -o mode=755 none /etc && mkdir /etc/pdsfs && chown 12345 /etc/pdsfs &&
        : >/etc/pdsfs/config.toml &&
        exec setpriv --reuid \"$1\" --regid \"$1\" --clear-groups \"$0\" mount unheard-of /mnt";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(&user.binary);
    let output = command.arg(OTHER_USER.to_string()).env("HOME", user.home.path()).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(printed.contains("unknown drive \"unheard-of\""), "{printed}");
    assert!(printed.contains("chown root '/etc/pdsfs'"), "{printed}");
}

/// A process of another user that claims to be the daemon of a mount. Dropping it removes its socket.
struct FakeDaemon(PathBuf);

impl FakeDaemon {
    /// Listens in the runtime directory of `OTHER_USER` and answers each request with `status`.
    fn new(name: &str, status: &Status) -> Self {
        let socket = runtime_dir().join(format!("pdsfs/{name}-{}.sock", std::process::id()));
        let (listening_tx, listening) = std::sync::mpsc::channel();
        let (path, body) = (socket.clone(), serde_json::to_vec(status).unwrap());
        std::thread::spawn(move || {
            // The C library would change all threads.
            // SAFETY: the calls take numbers only, and change this thread.
            let changed = unsafe {
                libc::syscall(libc::SYS_setresgid, OTHER_USER, OTHER_USER, OTHER_USER)
                    + libc::syscall(libc::SYS_setresuid, OTHER_USER, OTHER_USER, OTHER_USER)
            };
            assert_eq!(changed, 0);
            let listener = UnixListener::bind(&path).unwrap();
            listening_tx.send(()).unwrap();
            for mut stream in listener.incoming().flatten() {
                let head = BufReader::new(&stream).lines().map_while(Result::ok);
                head.take_while(|line| !line.is_empty()).for_each(drop);
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                // The client may have enough before the end.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        listening.recv().unwrap();
        Self(socket)
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The runtime directory of `OTHER_USER`, as the login service creates it, with the directory of its sockets.
fn runtime_dir() -> PathBuf {
    let dir = PathBuf::from(format!("/run/user/{OTHER_USER}"));
    for dir in [&dir, &dir.join("pdsfs")] {
        fs::create_dir_all(dir).unwrap();
        chown(dir, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    dir
}

#[test]
fn other_user_cannot_answer_for_root_mount() {
    assert!(is_root(), "{NEEDS_ROOT}");
    let rig = Rig::new();
    let mount = rig.mount();
    let path = mount.path().to_str().unwrap().to_owned();
    let mut claim = Status { mountpoint: path.clone(), ..Status::default() };
    claim.pending.files = 1;
    let busy = FakeDaemon::new("busy", &claim);
    let output = as_root(&["wait", "--timeout", "20s", &path]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = as_root(&["status", "--json", &path]);
    let found: Vec<Status> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found.iter().map(|status| status.pid).collect::<Vec<_>>(), [mount.pid()]);
    drop(busy);
    claim.pending.files = 0;
    let _idle = FakeDaemon::new("idle", &claim);
    // The other user speaks for a mount of theirs, and gives it the path and the name of root's.
    assert_eq!(mount_obstacle(), None);
    let user = OrdinaryUser::new();
    let own = Mount::start_by(user.command(&user.binary), &rig.endpoint(), &[], OrdinaryUser::directory());
    let claim = |name: &str| Status {
        mountpoint: own.path().to_str().unwrap().to_owned(),
        name: Some(name.to_owned()),
        ..Status::default()
    };
    let _named = [FakeDaemon::new("path", &claim(&path)), FakeDaemon::new("name", &claim("photos"))];
    let dead = mount.kill();
    for command in ["wait", "status", "log"] {
        for wanted in [path.as_str(), "photos"] {
            let output = as_root(&[command, wanted]);
            assert_eq!(output.status.code(), Some(1), "{command} {wanted}: {output:?}");
        }
        let output = as_root(&[command, &path]);
        let expected = format!("the program behind {path} has died; pdsfs umount '{path}' removes the mount");
        assert!(String::from_utf8_lossy(&output.stderr).contains(&expected), "{command}: {output:?}");
    }
    let output = as_root(&["status", "--json", own.path().to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    drop(dead);
    own.stop();
}

/// In a mount namespace without the mounts and sockets of the other tests.
#[test]
fn root_wait_covers_root_unless_all() {
    assert!(is_root(), "{NEEDS_ROOT}");
    let (rig, user) = (Rig::new(), OrdinaryUser::new());
    assert_eq!(mount_obstacle(), None);
    let mut command = user.command(&user.binary);
    command.env("XDG_RUNTIME_DIR", runtime_dir());
    let mount = Mount::start_by(command, &rig.endpoint(), &[], OrdinaryUser::directory());
    let mut writer = user.command(Path::new("/bin/sh"));
    let script = "exec >\"$0/f\"; echo unsaved; echo written >&2; read _ || :";
    let mut writer = writer
        .args(["-c", script])
        .arg(mount.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(writer.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "written\n");
    let wait = |flag: &str| {
        let script = format!(
            "mount -t tmpfs -o mode=700 none /run/pdsfs\n\
             for other in $(grep -F ' - fuse.pdsfs ' /proc/self/mountinfo | cut -d ' ' -f 5); do\n\
             [ $other = $1 ] || umount -l $other; done\n\
             $0 wait --timeout 2s {flag}"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        command.arg(env!("CARGO_BIN_EXE_pdsfs")).arg(mount.path()).output().unwrap()
    };
    fs::create_dir_all("/run/pdsfs").unwrap();
    let (own, all) = (wait(""), wait("--all"));
    assert_eq!(own.status.code(), Some(0), "{own:?}");
    assert_eq!(all.status.code(), Some(3), "{all:?}");
    drop(writer.stdin.take());
    assert!(writer.wait().unwrap().success());
    assert_eq!(mount.stop(), 0);
}

#[test]
fn answers_of_other_users_are_bounded() {
    assert!(is_root(), "{NEEDS_ROOT}");
    let large = Status { name: Some("x".repeat(15 << 20)), ..Status::default() };
    let daemons: Vec<_> = (0..6).map(|n| FakeDaemon::new(&format!("large{n}"), &large)).collect();
    let output = as_root(&["status", "--all"]);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(printed.contains("the answers of other users exceed 64MiB"), "{printed}");
    drop(daemons);
}

/// Other processes of the user see neither the memory nor the environment of the daemon. Streams, staged files
/// and status work as before.
#[test]
fn daemon_of_a_user_hides_memory_and_token() {
    use std::os::unix::fs::MetadataExt as _;
    assert!(is_root() && mount_obstacle().is_none(), "{NEEDS_ROOT}, or {:?}", mount_obstacle());
    let (rig, user) = (Rig::new(), OrdinaryUser::new());
    let tools = OrdinaryUser::directory();
    let (program, seen) = (tools.path().join("fusermount3"), tools.path().join("seen"));
    fs::write(&program, "#!/bin/sh\nenv >>\"$SEEN\"\nPATH=${PATH#*:} exec fusermount3 \"$@\"\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let mut command = user.command(&user.binary);
    let path = std::env::var("PATH").unwrap();
    command.env("SEEN", &seen).env("PATH", format!("{}:{path}", tools.path().display()));
    let arguments = ["--part-size", "64KiB"];
    let mount = Mount::start_by(command, &rig.endpoint(), &arguments, OrdinaryUser::directory());
    let inherited = fs::read_to_string(&seen).unwrap();
    assert!(inherited.contains("SEEN=") && !inherited.contains(TOKEN), "{inherited}");
    let environ = PathBuf::from(format!("/proc/{}/environ", mount.pid()));
    let shown = fs::read(&environ).unwrap();
    let contains = |text: &str| shown.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(contains("HOME=") && !contains(TOKEN), "{}", String::from_utf8_lossy(&shown));
    assert_eq!(fs::metadata(&environ).unwrap().uid(), 0, "other processes of the user can read the memory");
    let script =
        "cd \"$0\" && head -c 200000 /dev/urandom >a && printf xyz | dd of=a bs=1 seek=9 conv=notrunc &&
        cp a b && cmp a b && df . && ls -l";
    let done = user.run(script, mount.path());
    assert!(done.status.success(), "{done:?}");
    let status = user.command(&user.binary).args(["status", "--json"]).output().unwrap();
    assert!(String::from_utf8_lossy(&status.stdout).contains("mountpoint"), "{status:?}");
    assert_eq!(mount.stop(), 0);
}
