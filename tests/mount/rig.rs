//! An embedded server in the test process, and mounts of it by the built binary.
//!
//! The server has its own runtime. The daemon is a separate process, so the kernel never waits for
//! the process that waits for the kernel. Dropping a [`Mount`] ends the daemon and the mount, also
//! after a failed test. The daemon also exits when the test process dies.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pdsfs::server::{Secret, Server, ServerConfig};

use crate::drive_client::DriveClient;

/// The access token of every test server.
pub const TOKEN: &str = "test-token";
/// Longest time that an immediate reaction may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An embedded server with an empty drive "1".
pub struct Rig {
    runtime: tokio::runtime::Runtime,
    server: Option<Server>,
    /// Bound and never listening: it reserves the port while the server is stopped.
    port: tokio::net::TcpSocket,
    data: tempfile::TempDir,
    configure: Box<dyn Fn(&mut ServerConfig) + Send + Sync>,
}

impl Rig {
    /// A server with the default checks and quirks.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// A server whose configuration `configure` changes.
    pub fn with(configure: impl Fn(&mut ServerConfig) + Send + Sync + 'static) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let data = tempfile::tempdir().unwrap();
        let port = tokio::net::TcpSocket::new_v4().unwrap();
        port.set_reuseaddr(true).unwrap();
        port.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let mut rig = Self { runtime, server: None, port, data, configure: Box::new(configure) };
        rig.start();
        rig
    }

    fn start(&mut self) {
        let mut config = ServerConfig::new(self.data.path().to_owned(), Secret::new(TOKEN.to_owned()));
        (self.configure)(&mut config);
        let server = self.runtime.block_on(async {
            // Tokio sets SO_REUSEADDR, so both sockets may be bound.
            let listener = tokio::net::TcpListener::bind(self.addr()).await.unwrap();
            Server::start(listener, config).await.unwrap()
        });
        self.server = Some(server);
    }

    /// Stops the server; [`Self::resume`] starts it again on the same port with the same data.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.shutdown());
        }
    }

    /// See [`Self::stop`].
    pub fn resume(&mut self) {
        self.start();
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("the server is stopped")
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr())
    }

    fn addr(&self) -> SocketAddr {
        self.port.local_addr().unwrap()
    }

    /// Another client of the drive, independent of every mount.
    pub fn client(&self) -> DriveClient {
        DriveClient::new(self.server().addr())
    }

    /// Runs a future on the server's runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Mounts the drive.
    pub fn mount(&self) -> Mount {
        self.mount_with(&[])
    }

    /// Mounts the drive with these additional arguments.
    pub fn mount_with(&self, arguments: &[&str]) -> Mount {
        Mount::start(&self.endpoint(), arguments, tempfile::tempdir().unwrap())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A mount of the built binary.
pub struct Mount {
    child: Child,
    dir: tempfile::TempDir,
    log: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Mount {
    /// Mounts drive "1" of `endpoint` and waits until the mount answers. Panics with the daemon's log
    /// if the machine cannot mount.
    pub fn start(endpoint: &str, arguments: &[&str], dir: tempfile::TempDir) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_pdsfs")), endpoint, arguments, dir)
    }

    /// Like [`Self::start`], with a command that may run as another user.
    pub fn start_by(
        mut command: Command,
        endpoint: &str,
        arguments: &[&str],
        dir: tempfile::TempDir,
    ) -> Self {
        command.env("PDSFS_TOKEN", TOKEN);
        let arguments = [&["--endpoint", endpoint, "--drive-id", "1"], arguments].concat();
        Self::start_plain(command, &arguments, dir)
    }

    /// Like [`Self::start`], with only these arguments: no endpoint, drive or token.
    pub fn start_plain(mut command: Command, arguments: &[&str], dir: tempfile::TempDir) -> Self {
        command
            .arg("mount")
            .args(arguments)
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: prctl is async-signal-safe and touches nothing of this process.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let mut child = command.spawn().expect("the built binary does not start");
        let log = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (mounted, ready) = mpsc::channel();
        let (stderr, lines) = (child.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("mounted") {
                    let _ = mounted.send(());
                }
                lines.lock().unwrap().push(line);
            }
        });
        let ready = ready.recv_timeout(PATIENCE);
        let mount = Self { child, dir, log };
        assert!(
            ready.is_ok() && is_mount(mount.path()),
            "mount tests need /dev/fuse and the right to mount: {:?}",
            mount.log()
        );
        mount
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path below the mount.
    pub fn at(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path().join(Path::new(name.as_ref()))
    }

    /// All lines that the daemon has printed.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the daemon has printed a line with `part`, which another thread reads. Returns all lines.
    pub fn wait_for_log(&self, part: &str) -> Vec<String> {
        wait_until(&format!("the log has {part:?}"), || {
            let log = self.log();
            log.iter().any(|line| line.contains(part)).then_some(log)
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Peak resident memory of the daemon, in bytes.
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Stops the daemon with SIGTERM, as a service manager does. Returns the exit code.
    pub fn stop(mut self) -> i32 {
        self.signal(libc::SIGTERM);
        let status = wait_until("the daemon ends", || self.child.try_wait().unwrap());
        assert!(!is_mount(self.path()), "still mounted after SIGTERM");
        status.code().unwrap_or(-1)
    }

    /// Waits until the daemon has exited. Returns the exit code and all printed lines.
    pub fn ended(mut self) -> (i32, Vec<String>) {
        let status = wait_until("the daemon ends", || self.child.try_wait().unwrap());
        assert!(!is_mount(self.path()), "still mounted after its end");
        // Another thread reads stderr to its end.
        wait_until("the last lines are read", || (Arc::strong_count(&self.log) == 1).then_some(()));
        (status.code().unwrap_or(-1), self.log())
    }

    /// Stops the daemon, which must save everything, and mounts again at the same mountpoint.
    pub fn restart(mut self, endpoint: &str, arguments: &[&str]) -> Self {
        self.signal(libc::SIGTERM);
        let status = wait_until("the daemon ends", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{:?}", self.log());
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        Self::start(endpoint, arguments, dir)
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the pid belongs to our child, which is not reaped yet.
        unsafe { libc::kill(self.pid().cast_signed(), signal) };
    }

    /// Kills the daemon and leaves the dead mount behind, to mount over it again or drop it.
    pub fn kill(self) -> DeadMount {
        self.signal(libc::SIGKILL);
        self.ended_dead().1
    }

    /// Waits until the daemon has exited and left its mount behind. Returns the exit code.
    pub fn ended_dead(mut self) -> (Option<i32>, DeadMount) {
        let status = self.child.wait().unwrap();
        let replacement = tempfile::tempdir().unwrap();
        (status.code(), DeadMount(Some(std::mem::replace(&mut self.dir, replacement))))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the daemon: {:#?}", self.log());
        }
        if self.child.try_wait().ok().flatten().is_none() {
            self.signal(libc::SIGTERM);
            let deadline = Instant::now() + PATIENCE;
            while self.child.try_wait().ok().flatten().is_none() {
                if Instant::now() > deadline {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        unmount_lazily(self.path());
    }
}

/// The mountpoint of a killed daemon.
pub struct DeadMount(Option<tempfile::TempDir>);

impl DeadMount {
    /// The mountpoint, with the dead mount still on it.
    pub fn into_dir(mut self) -> tempfile::TempDir {
        self.0.take().unwrap()
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            unmount_lazily(dir.path());
        }
    }
}

/// Runs a command that mounts at `dir`, and returns what it prints to stderr. Panics if it mounts.
#[track_caller]
pub fn refused_mount(mut command: Command, dir: &Path) -> String {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let is_mounted = wait_until("the mount is refused", || {
        let is_over = child.try_wait().unwrap().is_some();
        (is_over || is_mount(dir)).then_some(!is_over)
    });
    if is_mounted {
        // SAFETY: the pid belongs to our child, which is not reaped yet.
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
    }
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!is_mounted && !output.status.success(), "it was mounted: {printed}");
    printed
}

/// Unmounts lazily; works on a dead mount too.
pub fn unmount_lazily(path: &Path) {
    while is_mount(path) {
        let status = Command::new("umount").arg("-l").arg(path).stderr(Stdio::null()).status();
        if !status.is_ok_and(|s| s.success())
            && !Command::new("fusermount3").args(["-u", "-z"]).arg(path).status().is_ok_and(|s| s.success())
        {
            break;
        }
    }
}

/// Whether `path` is a mountpoint. Reads the mount table of the kernel, because the mount may be dead.
pub fn is_mount(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// Polls a state that sends no event: that of another process or of the server.
pub fn wait_until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Pseudo-random bytes that differ from call to call.
pub fn fresh_bytes(len: usize) -> Vec<u8> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut state = CALLS.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ u64::from(std::process::id());
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The errno of a failed operation.
pub fn errno<T: Debug>(outcome: std::io::Result<T>) -> i32 {
    match outcome {
        Ok(value) => panic!("succeeded with {value:?}"),
        Err(error) => error.raw_os_error().expect("an error without errno"),
    }
}
