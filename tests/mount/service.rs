//! Notifications to a service manager (`sd_notify`), and several mounts at once.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pdsfs::server::{FaultAction, FaultRule};

use crate::rig::{Mount, PATIENCE, Rig, TOKEN, fresh_bytes, is_mount, refused_mount, wait_until};
use crate::users::{NEEDS_ROOT, OrdinaryUser, is_root};

const PART: usize = 64 << 10;
const ARGUMENTS: [&str; 4] = ["--part-size", "64KiB", "--commit-timeout", "60s"];

/// The notification socket of a service manager.
struct NotifySocket {
    _dir: tempfile::TempDir,
    socket: UnixDatagram,
    lines: Vec<String>,
}

impl NotifySocket {
    fn new() -> (Self, Command) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000").env_remove("WATCHDOG_PID");
        (Self { _dir: dir, socket, lines: Vec::new() }, command)
    }

    fn receive(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(len) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8(buffer[..len].to_vec()).unwrap();
            self.lines.extend(text.lines().map(str::to_owned));
        }
    }

    /// Waits for a line that begins with `start` and returns it.
    fn expect(&mut self, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.receive();
            if let Some(line) = self.lines.iter().find(|line| line.starts_with(start)) {
                return line.clone();
            }
            assert!(Instant::now() < deadline, "no line {start}, but {:?}", self.lines);
        }
    }

    fn clear(&mut self) {
        self.receive();
        self.lines.clear();
    }
}

fn start(rig: &Rig, command: Command, more: &[&str]) -> Mount {
    let arguments = [&ARGUMENTS[..], more].concat();
    Mount::start_by(command, &rig.endpoint(), &arguments, tempfile::tempdir().unwrap())
}

#[test]
fn sd_notify_reports_state_from_start_to_stop() {
    let rig = Rig::new();
    let (mut manager, command) = NotifySocket::new();
    let mount = start(&rig, command, &[]);
    manager.expect("READY=1");
    assert!(is_mount(mount.path()));
    manager.expect("STATUS=nothing to save; 0 files (0 B) saved");
    manager.expect("WATCHDOG=1");

    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Stall));
    let mut file = File::create(mount.at("f")).unwrap();
    let bytes = fresh_bytes(3 * PART);
    file.write_all(&bytes).unwrap();
    manager.expect("STATUS=saving: 1 file, 192 KiB sent, 0 B waiting");
    manager.clear();
    manager.expect("WATCHDOG=1");

    mount.signal(libc::SIGTERM);
    manager.expect("STOPPING=1");
    let more = manager.expect("EXTEND_TIMEOUT_USEC=");
    assert!(more["EXTEND_TIMEOUT_USEC=".len()..].parse::<u64>().unwrap() > 60_000_000, "{more}");
    manager.expect("STATUS=saving before unmounting: 1 file (/f), 100 % of 192 KiB");
    manager.clear();
    rig.server().faults().clear();
    manager.expect("EXTEND_TIMEOUT_USEC=");
    wait_until("the drive has the file", || rig.client().read("f").filter(|read| *read == bytes));
    drop(file);
    let (code, log) = mount.ended();
    assert_eq!(code, 0, "{log:?}");
}

#[test]
fn sd_notify_counts_staged_files() {
    let rig = Rig::new();
    let (mut manager, command) = NotifySocket::new();
    let mount = start(&rig, command, &[]);
    fs::write(mount.at("f"), fresh_bytes(2 * PART)).unwrap();
    manager.expect("STATUS=nothing to save; 1 file");
    let file = File::options().write(true).open(mount.at("f")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"changed", 5).unwrap();
    manager.expect("STATUS=saving: 1 file, 0 B sent, 128 KiB waiting");
    drop(file);
    manager.expect("STATUS=nothing to save; 2 files");
}

/// The threads of a daemon that read kernel requests, stopped by ptrace: the mount hangs, and the process lives.
struct FrozenReaders(Vec<i32>);

impl FrozenReaders {
    fn freeze(mount: &Mount) -> Self {
        // SAFETY: geteuid has no arguments and cannot fail.
        assert_eq!(unsafe { libc::geteuid() }, 0, "this test needs root, to trace the daemon");
        let tasks =
            fs::read_dir(format!("/proc/{}/task", mount.pid())).unwrap().map(|task| task.unwrap().path());
        let reads_kernel =
            |task: &std::path::PathBuf| fs::read_to_string(task.join("comm")).unwrap().starts_with("fuser");
        let ids = tasks
            .filter(reads_kernel)
            .map(|task| task.file_name().unwrap().to_str().unwrap().parse().unwrap());
        let frozen = Self(ids.collect());
        assert!(!frozen.0.is_empty(), "no thread reads kernel requests");
        for tid in &frozen.0 {
            frozen.ptrace(libc::PTRACE_SEIZE, *tid);
            frozen.ptrace(libc::PTRACE_INTERRUPT, *tid);
            // SAFETY: this thread traces that one; a null pointer means that no status is written.
            let stopped = unsafe { libc::waitpid(*tid, std::ptr::null_mut(), libc::__WALL) };
            assert_eq!(stopped, *tid);
        }
        frozen
    }

    fn ptrace(&self, request: libc::c_uint, tid: i32) {
        // SAFETY: these requests read and write no memory of this process.
        let outcome = unsafe { libc::ptrace(request, tid, 0, 0) };
        assert_eq!(outcome, 0, "ptrace of {:?}: {}", self.0, std::io::Error::last_os_error());
    }
}

impl Drop for FrozenReaders {
    fn drop(&mut self) {
        for tid in &self.0 {
            // SAFETY: as above; the kernel refuses a thread that is not traced.
            unsafe { libc::ptrace(libc::PTRACE_DETACH, *tid, 0, 0) };
        }
    }
}

#[test]
fn hung_daemon_sends_no_watchdog() {
    let rig = Rig::new();
    let (mut manager, command) = NotifySocket::new();
    let mount = start(&rig, command, &[]);
    manager.expect("WATCHDOG=1");
    let frozen = FrozenReaders::freeze(&mount);
    // Some may be in flight. Ten are due in a second of a mount that answers.
    let (start, mut last) = (Instant::now(), Instant::now());
    while last.elapsed() < Duration::from_secs(1) {
        assert!(start.elapsed() < PATIENCE, "a hanging mount sends watchdog messages");
        manager.receive();
        if manager.lines.drain(..).any(|line| line == "WATCHDOG=1") {
            last = Instant::now();
        }
    }
    let mut status = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    let answer = status.args(["status", "--json"]).arg(mount.path()).output().unwrap();
    assert!(answer.status.success(), "the daemon is dead, so the test proves nothing: {answer:?}");
    drop(frozen);
    manager.expect("WATCHDOG=1");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn offline_stop_names_unsaved_files() {
    let mut rig = Rig::new();
    let (mut manager, command) = NotifySocket::new();
    let mount = start(&rig, command, &["--stall-timeout", "1s"]);
    let mut file = File::create(mount.at("precious")).unwrap();
    file.write_all(&fresh_bytes(PART + 1)).unwrap();
    rig.stop();
    file.write_all(&fresh_bytes(PART)).unwrap();
    mount.signal(libc::SIGTERM);
    manager.expect("STATUS=paused: offline; saving before unmounting: 1 file (/precious)");
    let log = wait_until("the daemon gives up", || {
        let log = mount.log();
        log.iter().any(|line| line.contains("no progress for")).then_some(log)
    });
    assert!(log.iter().any(|line| line.contains("NOT SAVED /precious")), "{log:?}");
    assert_eq!(mount.stop(), 1);
}

#[test]
fn status_of_a_failed_stop_names_the_file() {
    let rig = Rig::new();
    let (mut manager, command) = NotifySocket::new();
    let mount = start(&rig, command, &[]);
    fs::write(mount.at("report"), b"old").unwrap();
    let mut file = File::create(mount.at("report")).unwrap();
    file.write_all(b"new").unwrap();
    mount.signal(libc::SIGTERM);
    manager.expect("STATUS=1 file not saved: /report: its program was still writing (3 B so far)");
    assert_eq!(mount.ended().0, 1);
    manager.receive();
    let last = manager.lines.iter().rfind(|line| line.starts_with("STATUS=")).unwrap();
    assert!(last.starts_with("STATUS=1 file not saved"), "{last}");
    drop(file);
}

#[test]
fn daemon_makes_no_core_dumps() {
    let rig = Rig::new();
    let mount = rig.mount();
    let limits = fs::read_to_string(format!("/proc/{}/limits", mount.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_ascii_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);
}

#[test]
fn two_drives_share_a_spill_directory() {
    let rigs = [Rig::new(), Rig::new()];
    let spill = tempfile::tempdir().unwrap();
    let spill_dir = spill.path().to_str().unwrap();
    let mounts =
        rigs.each_ref().map(|rig| rig.mount_with(&["--part-size", "64KiB", "--spill-dir", spill_dir]));
    // Back to front, so that both mounts make staged files, at the same time.
    let bytes = [fresh_bytes(5 * PART), fresh_bytes(5 * PART)];
    let files = mounts.each_ref().map(|mount| File::create(mount.at("f")).unwrap());
    for at in (0..5).rev().map(|part| part * PART) {
        for (file, bytes) in files.iter().zip(&bytes) {
            file.write_all_at(&bytes[at..at + PART], at as u64).unwrap();
        }
    }
    drop(files);
    for (rig, bytes) in rigs.iter().zip(&bytes) {
        assert_eq!(rig.client().read("f").unwrap(), *bytes);
    }
    let [one, two] = mounts;
    assert_eq!(one.stop(), 0);
    fs::write(two.at("g"), b"still here").unwrap();
    assert_eq!(rigs[1].client().read("g").unwrap(), b"still here");
    assert_eq!(two.stop(), 0);
    assert_eq!(fs::read_dir(spill.path()).unwrap().count(), 0);
}

#[test]
fn spill_directory_of_another_user_is_refused() {
    assert!(is_root(), "{NEEDS_ROOT}");
    let (rig, user) = (Rig::new(), OrdinaryUser::new());
    let (spill, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::set_permissions(spill.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = user.command(user.binary());
    command.args(["mount", "--endpoint", &rig.endpoint(), "--drive-id", "1", "--spill-dir"]);
    command.args([spill.path(), dir.path()]).env("PDSFS_TOKEN", TOKEN);
    let printed = refused_mount(command, dir.path());
    let advice = "for staged files: it must be writable for user 65534";
    let expected = format!("cannot create files in {} {advice}", spill.path().display());
    assert!(printed.contains(&expected), "{printed}");
}

#[test]
fn two_folders_of_one_drive_mount_at_once() {
    let rig = Rig::new();
    let whole = rig.mount();
    for name in ["a", "b"] {
        fs::create_dir(whole.at(name)).unwrap();
    }
    let of = |name: &str| {
        let id = rig.client().find(name).unwrap().file_id;
        rig.mount_with(&["--root-id", &id, "--metadata-ttl", "0s"])
    };
    let (a, b) = (of("a"), of("b"));
    fs::write(a.at("f"), b"in a").unwrap();
    fs::write(b.at("f"), b"in b").unwrap();
    assert_eq!(rig.client().read("a/f").unwrap(), b"in a");
    assert_eq!(rig.client().read("b/f").unwrap(), b"in b");
    let devices: HashSet<u64> = [&whole, &a, &b].map(|mount| device(mount.path())).into_iter().collect();
    assert_eq!(devices.len(), 3);
    assert_eq!((a.stop(), b.stop(), whole.stop()), (0, 0, 0));
}

fn device(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().dev()
}

fn umount(mount: &Mount, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    command.arg("umount").args(arguments).arg(mount.path());
    command
}

#[test]
fn drain_waits_for_writers_then_unmounts() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let mut file = File::create(mount.at("f")).unwrap();
    let bytes = fresh_bytes(2 * PART);
    file.write_all(&bytes[..PART]).unwrap();
    let refused = umount(&mount, &["--drain", "--timeout", "300ms"]).output().unwrap();
    let printed = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(3) && printed.contains("stays mounted"), "{printed}");
    assert!(is_mount(mount.path()));

    let mut draining = umount(&mount, &["--drain"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut printed = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(draining.stderr.take().unwrap()), &mut printed)
        .unwrap();
    assert!(printed.contains("waiting for the programs"), "{printed}");
    file.write_all(&bytes[PART..]).unwrap();
    assert!(draining.try_wait().unwrap().is_none(), "the drain did not wait");
    assert_eq!(rig.client().find("f"), None, "a partial file is on the drive");
    file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    drop(file);
    assert!(draining.wait().unwrap().success());
    assert!(!is_mount(mount.path()));
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    assert_eq!(rig.client().find("f").unwrap().mode_tag(), Some(0o640));
}

#[test]
fn umount_dead_keeps_living_mounts() {
    let rig = Rig::new();
    let mount = rig.mount();
    assert!(umount(&mount, &["--dead"]).status().unwrap().success());
    assert!(is_mount(mount.path()), "a living mount was unmounted");
    // The kernel caches the attributes of the root for a while.
    fs::metadata(mount.path()).unwrap();
    let path = mount.path().to_owned();
    let dead = mount.kill();
    assert!(is_mount(&path));
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    assert!(command.args(["umount", "--dead"]).arg(&path).status().unwrap().success());
    assert!(!is_mount(&path));
    drop(dead);
}
