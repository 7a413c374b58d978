//! A drive, and mounts of it.
//!
//! The server runs in the test process, on a runtime of its own; the daemon is the built binary in
//! a process of its own, so that the kernel never waits for the process that waits for it. Dropping
//! a [`Mount`] ends both, also when the test has failed; the daemon also ends by itself when
//! this process dies.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pdsfs::config::{Credential, MountConfig};
use pdsfs::ids::{DriveId, FileId, Secret};
use pdsfs::pds::drive::{Drive, FileMeta};
use pdsfs::server::{Server, ServerConfig};

/// Of addresses that are used at once.
const URL_LIFETIME: Duration = Duration::from_secs(600);
/// The bearer of every test server.
pub const TOKEN: &str = "test-token";
/// How long a thing that should happen at once may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An embedded server with an empty drive "1".
pub struct Rig {
    runtime: tokio::runtime::Runtime,
    server: Option<Server>,
    port: u16,
    data: tempfile::TempDir,
    configure: Box<dyn Fn(&mut ServerConfig) + Send + Sync>,
}

impl Rig {
    /// With everything checked.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With a configuration of its own.
    pub fn with(configure: impl Fn(&mut ServerConfig) + Send + Sync + 'static) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let data = tempfile::tempdir().unwrap();
        let mut rig = Self { runtime, server: None, port: 0, data, configure: Box::new(configure) };
        rig.start();
        rig
    }

    fn start(&mut self) {
        let mut config = ServerConfig::new(self.data.path().to_owned(), Secret::new(TOKEN.to_owned()));
        (self.configure)(&mut config);
        let server = self.runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
            Server::start(listener, config).await.unwrap()
        });
        self.port = server.addr().port();
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
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A client of its own: what everybody else sees.
    pub fn client(&self) -> Client<'_> {
        let credential = Credential::Token(Secret::new(TOKEN.into()));
        let drive_id = DriveId::new("1").unwrap();
        let config = MountConfig {
            commit_timeout: Duration::from_secs(30),
            ..MountConfig::new(self.endpoint().parse().unwrap(), drive_id, credential)
        };
        Client { rig: self, drive: Drive::new(&config).unwrap() }
    }

    /// Runs a future on the server's runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Mounts the drive.
    pub fn mount(&self) -> Mount {
        self.mount_with(&[])
    }

    /// Mounts the drive with more arguments.
    pub fn mount_with(&self, arguments: &[&str]) -> Mount {
        Mount::start(&self.endpoint(), arguments, tempfile::tempdir().unwrap())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What another client of the drive sees.
pub struct Client<'a> {
    rig: &'a Rig,
    pub drive: Drive,
}

impl Client<'_> {
    /// The entries of a folder, whole.
    pub fn list(&self, folder: &FileId) -> Vec<FileMeta> {
        self.rig.block_on(async {
            let (mut entries, mut marker) = (Vec::new(), String::new());
            loop {
                let page = self.drive.list_page(folder, &marker).await.unwrap();
                entries.extend(page.items);
                match page.next_marker {
                    Some(next) => marker = next,
                    None => return entries,
                }
            }
        })
    }

    /// The object at a path below the root; `None` where there is none.
    pub fn find(&self, path: &str) -> Option<FileMeta> {
        let mut folder = FileId::root();
        let mut found = None;
        for name in path.split('/') {
            let entry = self.list(&folder).into_iter().find(|e| e.name == name)?;
            folder = entry.file_id.clone();
            found = Some(entry);
        }
        found
    }

    /// The content of a file, read from the server.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let meta = self.find(path)?;
        if meta.size == 0 {
            return Some(Vec::new());
        }
        let bytes = self.rig.block_on(async {
            let url = self.drive.download_url(&meta.file_id, None, URL_LIFETIME).await.unwrap();
            self.drive.read_range(&url, 0..meta.size).await
        });
        match bytes {
            Ok(bytes) => Some(bytes.to_vec()),
            Err(error) => panic!("{path} cannot be read: {error:?}"),
        }
    }

    /// Names of a folder by path ("" is the root), sorted.
    pub fn names(&self, path: &str) -> Vec<String> {
        let folder = if path.is_empty() { FileId::root() } else { self.find(path).unwrap().file_id };
        let mut names: Vec<_> = self.list(&folder).into_iter().map(|e| e.name).collect();
        names.sort();
        names
    }
}

/// A mount of the built binary.
pub struct Mount {
    child: Child,
    folder: tempfile::TempDir,
    log: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Mount {
    /// Mounts `endpoint`'s drive "1" and waits until it answers. Fails, with the daemon's own words,
    /// where it cannot.
    pub fn start(endpoint: &str, arguments: &[&str], folder: tempfile::TempDir) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_pdsfs")), endpoint, arguments, folder)
    }

    /// The same by a command that may run as somebody else.
    pub fn start_by(
        mut command: Command,
        endpoint: &str,
        arguments: &[&str],
        folder: tempfile::TempDir,
    ) -> Self {
        command.env("PDSFS_TOKEN", TOKEN);
        let arguments = [&["--endpoint", endpoint, "--drive-id", "1"], arguments].concat();
        Self::start_plain(command, &arguments, folder)
    }

    /// The same with nothing but these arguments.
    pub fn start_plain(mut command: Command, arguments: &[&str], folder: tempfile::TempDir) -> Self {
        command
            .arg("mount")
            .args(arguments)
            .arg(folder.path())
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
        let mount = Self { child, folder, log };
        assert!(
            ready.is_ok() && is_mount(mount.path()),
            "mount tests need /dev/fuse and the right to mount: {:?}",
            mount.log()
        );
        mount
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path below the mount.
    pub fn at(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path().join(Path::new(name.as_ref()))
    }

    /// What the daemon has said.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory of the daemon at its highest, in bytes.
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Stops the daemon as a service manager would; its exit code.
    pub fn stop(mut self) -> i32 {
        self.signal(libc::SIGTERM);
        let status = wait_until("the daemon ends", || self.child.try_wait().unwrap());
        assert!(!is_mount(self.path()), "still mounted after SIGTERM");
        status.code().unwrap_or(-1)
    }

    /// Waits until the daemon has ended; its exit code and what it has said.
    pub fn ended(mut self) -> (i32, Vec<String>) {
        let status = wait_until("the daemon ends", || self.child.try_wait().unwrap());
        assert!(!is_mount(self.path()), "still mounted after its end");
        // The end of its stderr is seen by another thread.
        wait_until("its last words are read", || (Arc::strong_count(&self.log) == 1).then_some(()));
        (status.code().unwrap_or(-1), self.log())
    }

    /// Stops the daemon, which must have saved everything, and mounts at the same place again.
    pub fn restart(mut self, endpoint: &str, arguments: &[&str]) -> Self {
        self.signal(libc::SIGTERM);
        let status = wait_until("the daemon ends", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{:?}", self.log());
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        Self::start(endpoint, arguments, folder)
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the pid is that of our child, which has not been waited for.
        unsafe { libc::kill(self.pid().cast_signed(), signal) };
    }

    /// Kills the daemon and leaves the dead mount behind; its folder, to mount again or drop.
    pub fn kill(mut self) -> DeadMount {
        self.signal(libc::SIGKILL);
        self.child.wait().unwrap();
        let replacement = tempfile::tempdir().unwrap();
        DeadMount(Some(std::mem::replace(&mut self.folder, replacement)))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's last words: {:#?}", self.log());
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

/// The folder of a daemon that was killed.
pub struct DeadMount(Option<tempfile::TempDir>);

impl DeadMount {
    /// Gives the folder away; the dead mount is still on it.
    pub fn into_folder(mut self) -> tempfile::TempDir {
        self.0.take().unwrap()
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            unmount_lazily(folder.path());
        }
    }
}

/// Takes a mount out of the name space, also a dead one.
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

/// Whether something is mounted exactly there. Asks the kernel's table, not the mount, which may be dead.
pub fn is_mount(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// Polls for what has no event to wait for: the state of another process or of the server.
pub fn wait_until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that no other call gives.
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
