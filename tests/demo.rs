//! The demo as a user runs it: its start, its output and its cleanup.
//!
//! Each test has its own directories and looks only at descendants of the processes that it started.

// This crate has only tests, so its helpers may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Longest time that an immediate reaction may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time of `demo --once` in an unoptimised build on a busy machine.
const ONCE_MAX: Duration = Duration::from_secs(280);

/// Panics with the reason if a mount test cannot run.
fn require_fuse() {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    assert!(device.is_ok(), "mount tests need /dev/fuse: {device:?}");
}

/// A running demo; killed when it is dropped.
struct Demo {
    child: Child,
    lines: mpsc::Receiver<String>,
    mountpoint: PathBuf,
}

impl Demo {
    /// Starts the interactive demo and waits until it has mounted.
    fn start(data: &Path, mountpoint: &Path) -> Self {
        Self::start_with(&[], data, mountpoint)
    }

    /// Likewise, with these arguments.
    fn start_with(arguments: &[&str], data: &Path, mountpoint: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pdsfs"))
            .arg("demo")
            .args(arguments)
            .arg("--data")
            .args([data, mountpoint])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let demo = Self { child, lines, mountpoint: mountpoint.to_owned() };
        demo.wait_for_line("mounted at");
        assert!(is_mounted(mountpoint), "the demo reports a mount that does not exist");
        demo
    }

    fn wait_for_line(&self, part: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|e| panic!("no line with {part:?}: {e}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: the pid belongs to a child of this process, which is not reaped yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child, PATIENCE)
    }

    /// Waits for the end. Returns the exit code and the lines that no one has read.
    fn ended(&mut self) -> (Option<i32>, Vec<String>) {
        let code = self.wait().code();
        (code, self.lines.iter().collect())
    }

    /// The process of the embedded server.
    fn server(&self) -> (u32, String) {
        let mut processes = children(self.child.id());
        assert_eq!(processes.len(), 1, "one server");
        processes.remove(0)
    }
}

fn signal(process: &(u32, String), signal: i32) {
    let pid = libc::pid_t::try_from(process.0).unwrap();
    assert!(is_alive(process));
    // SAFETY: kill takes no pointers. The server lives as long as the demo.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Asserts that exactly one line contains `part`.
fn assert_printed_once(lines: &[String], part: &str) {
    assert_eq!(lines.iter().filter(|line| line.contains(part)).count(), 1, "{part}: {lines:#?}");
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if is_mounted(&self.mountpoint) {
            let _ = Command::new("fusermount3").args(["-u", "-z"]).arg(&self.mountpoint).status();
        }
    }
}

/// Waits for a child, and kills it after `longest`.
fn wait(child: &mut Child, longest: Duration) -> ExitStatus {
    let end = Instant::now() + longest;
    poll_until(end, || child.try_wait().unwrap()).unwrap_or_else(|| {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("not done after {longest:?}");
    })
}

/// Polls a state for which the kernel sends no event.
fn poll_until<T>(end: Instant, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

/// Children of `parent`, with their start times, because pids are reused.
fn children(parent: u32) -> Vec<(u32, String)> {
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| {
        let (its_parent, start) = stat(pid)?;
        (its_parent == parent).then_some((pid, start))
    })
    .collect()
}

/// Parent and start time of a living process.
fn stat(pid: u32) -> Option<(u32, String)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    (fields[0] != "Z").then_some((fields[1].parse().ok()?, fields[19].to_owned()))
}

fn is_alive(process: &(u32, String)) -> bool {
    stat(process.0).is_some_and(|(_, start)| start == process.1)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn demo_once_verifies_and_cleans_up() {
    require_fuse();
    let temporary = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_pdsfs"))
        .args(["demo", "--once"])
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut stdout).unwrap());
    let mut seen = Vec::new();
    let end = Instant::now() + ONCE_MAX;
    let status = poll_until(end, || {
        seen.extend(children(pid));
        child.try_wait().unwrap()
    });
    let status = status.unwrap_or_else(|| wait(&mut child, Duration::ZERO));
    let text = reader.join().unwrap();
    assert!(status.success(), "{status}\n{text}");
    assert!(text.contains("came back as it was written"), "{text}");
    let figure = |row: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(row));
        line.unwrap_or_else(|| panic!("no figure {row:?} in\n{text}")).trim_start()[row.len()..]
            .trim()
            .to_owned()
    };
    let parts: u32 = figure("at the server while still open").split(' ').next().unwrap().parse().unwrap();
    assert!(parts >= 1, "{text}");
    let how = figure("uploaded / instant / unchanged");
    let instant: u32 = how.split(" / ").nth(1).unwrap().parse().unwrap();
    assert!(instant >= 10, "files with repeated content were sent again: {how}");
    assert!(!seen.is_empty(), "no server process was found");
    assert!(!seen.iter().any(is_alive), "a process remains");
    assert_eq!(entries(temporary.path()), Vec::<PathBuf>::new());
}

#[test]
fn stopped_demo_cleans_up_and_keeps_files() {
    require_fuse();
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().canonicalize().unwrap();
    let (data, mountpoint) = (root.join("data"), root.join("drive"));
    let mut demo = Demo::start(&data, &mountpoint);
    let processes = children(demo.child.id());
    assert_eq!(processes.len(), 1, "one server");
    std::fs::write(mountpoint.join("hello.txt"), "hello").unwrap();
    let line = demo.wait_for_line("hello.txt");
    assert!(line.starts_with("on the drive"), "{line}");
    demo.signal(libc::SIGTERM);
    assert!(demo.wait().success());
    assert!(!is_alive(&processes[0]), "the server outlived the demo");
    assert!(
        !is_mounted(&mountpoint) && !mountpoint.exists(),
        "the demo did not remove the directory that it made"
    );
    let mut demo = Demo::start(&data, &mountpoint);
    assert_eq!(std::fs::read(mountpoint.join("hello.txt")).unwrap(), b"hello");
    demo.signal(libc::SIGINT);
    assert!(demo.wait().success());
}

#[test]
fn stopped_demo_keeps_old_content_of_an_overwrite() {
    require_fuse();
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().canonicalize().unwrap();
    let (data, mountpoint) = (root.join("data"), root.join("drive"));
    let mut demo = Demo::start(&data, &mountpoint);
    std::fs::write(mountpoint.join("report.bin"), "old content").unwrap();
    let mut file = std::fs::File::create(mountpoint.join("report.bin")).unwrap();
    file.write_all(&vec![7; 9 << 20]).unwrap();
    let mut new = std::fs::File::create(mountpoint.join("new.bin")).unwrap();
    new.write_all(b"new content").unwrap();
    demo.signal(libc::SIGINT);
    let (code, lines) = demo.ended();
    assert_eq!(code, Some(1), "{lines:#?}");
    let unsaved =
        "NOT SAVED /report.bin: its program was still writing (9.0 MiB so far); the old content stays";
    assert_printed_once(&lines, unsaved);
    assert_printed_once(
        &lines,
        "saved as far as it was written: /new.bin (11 B); a program still had it open",
    );
    assert_printed_once(&lines, "Ctrl-C again gives up");
    drop((file, new));
    let mut demo = Demo::start(&data, &mountpoint);
    assert_eq!(std::fs::read(mountpoint.join("report.bin")).unwrap(), b"old content");
    assert_eq!(std::fs::read(mountpoint.join("new.bin")).unwrap(), b"new content");
    demo.signal(libc::SIGINT);
    assert!(demo.wait().success());
}

/// A demo must not wait for a server whose process has ended.
#[test]
fn demo_ends_soon_after_its_server() {
    require_fuse();
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().canonicalize().unwrap();
    let mountpoint = root.join("drive");
    let mut demo = Demo::start(&root.join("data"), &mountpoint);
    let server = demo.server();
    let mut open = std::fs::File::create(mountpoint.join("open.bin")).unwrap();
    open.write_all(&vec![7; 9 << 20]).unwrap();
    signal(&server, libc::SIGSTOP);
    let closing = std::thread::spawn({
        let path = mountpoint.join("closing.bin");
        move || std::fs::write(path, "content")
    });
    // The kernel has the size when the write has returned, so the close waits for the drive soon.
    let written = || (std::fs::metadata(mountpoint.join("closing.bin")).ok()?.len() == 7).then_some(());
    poll_until(Instant::now() + PATIENCE, written).unwrap();
    let began = Instant::now();
    signal(&server, libc::SIGKILL);
    let (code, lines) = demo.ended();
    assert!(began.elapsed() < PATIENCE, "{lines:#?}");
    assert_eq!(code, Some(1), "{lines:#?}");
    assert_printed_once(&lines, "NOT SAVED /open.bin: ");
    assert_printed_once(&lines, "server.log");
    assert!(
        lines.iter().any(|line| line.contains("the server of the demo has exited (signal: 9")),
        "{lines:#?}"
    );
    drop((closing.join().unwrap(), open));
}

#[test]
fn demo_once_ends_soon_after_its_server() {
    require_fuse();
    let temporary = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_pdsfs"))
        .args(["demo", "--once"])
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    while !lines.recv_timeout(PATIENCE).unwrap().contains("copying") {}
    let server = children(child.id()).into_iter().find(|process| {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", process.0)).unwrap_or_default();
        name.starts_with("pdsfs")
    });
    let began = Instant::now();
    signal(&server.unwrap(), libc::SIGKILL);
    let status = wait(&mut child, PATIENCE);
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(status.code(), Some(1));
    let printed = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(
        printed.contains("the server of the demo has exited") && printed.contains("server.log"),
        "{printed}"
    );
    assert_eq!(entries(temporary.path()), Vec::<PathBuf>::new(), "{printed}");
}

/// A demo with an unsaved file, whose server does not answer.
struct StuckDemo {
    temporary: tempfile::TempDir,
    mountpoint: PathBuf,
    demo: Demo,
    server: (u32, String),
    file: std::fs::File,
}

impl StuckDemo {
    fn start() -> Self {
        require_fuse();
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        let mountpoint = root.join("drive");
        let demo = Demo::start(&root.join("data"), &mountpoint);
        let server = demo.server();
        let mut file = std::fs::File::create(mountpoint.join("f")).unwrap();
        file.write_all(b"content").unwrap();
        signal(&server, libc::SIGSTOP);
        Self { temporary, mountpoint, demo, server, file }
    }
}

#[test]
fn second_signal_ends_a_waiting_demo() {
    let StuckDemo { temporary: _temporary, mountpoint, mut demo, server, file } = StuckDemo::start();
    demo.signal(libc::SIGINT);
    demo.wait_for_line("Ctrl-C again gives up");
    // The demo takes signals within a second as one.
    let end = Instant::now() + PATIENCE;
    let line = poll_until(end, || {
        demo.signal(libc::SIGINT);
        let line = demo.lines.recv_timeout(Duration::from_millis(300)).ok()?;
        line.contains("NOT SAVED").then_some(line)
    });
    assert!(line.unwrap().contains("NOT SAVED /f: interrupted by SIGINT"));
    signal(&server, libc::SIGCONT);
    let (code, lines) = demo.ended();
    assert_eq!(code, Some(1));
    assert_printed_once(&lines, "the stop was cut short: interrupted by SIGINT");
    assert!(!is_mounted(&mountpoint));
    drop(file);
}

/// No earlier signal began the stop.
#[test]
fn one_signal_ends_a_demo_after_its_mount() {
    let StuckDemo { temporary: _temporary, mountpoint, mut demo, server, file } = StuckDemo::start();
    let path = std::ffi::CString::new(mountpoint.to_str().unwrap()).unwrap();
    // SAFETY: the path outlives the call. The path is in use, so the mount stays without a connection.
    assert_eq!(unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE) }, -1);
    demo.wait_for_line("gives up");
    // Signals within a second of the end are ignored. Only one is sent, so that no second one hides a lost first one.
    std::thread::sleep(Duration::from_millis(1200));
    demo.signal(libc::SIGINT);
    demo.wait_for_line("NOT SAVED /f: interrupted by SIGINT");
    signal(&server, libc::SIGCONT);
    assert_eq!(demo.ended().0, Some(1));
    drop(file);
}

#[test]
fn server_exits_with_killed_demo() {
    require_fuse();
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().canonicalize().unwrap();
    let mut demo = Demo::start(&root.join("data"), &root.join("drive"));
    let processes = children(demo.child.id());
    assert_eq!(processes.len(), 1, "one server");
    demo.signal(libc::SIGKILL);
    assert!(!demo.wait().success());
    let gone = poll_until(Instant::now() + PATIENCE, || (!is_alive(&processes[0])).then_some(()));
    assert!(gone.is_some(), "the server outlived the demo");
}

#[test]
fn nonempty_mountpoint_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    std::fs::write(temporary.path().join("precious"), "x").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pdsfs"))
        .args(["demo", "--data"])
        .args([&temporary.path().join("data"), temporary.path()])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("not empty"), "{output:?}");
    assert!(temporary.path().join("precious").is_file());
}

#[test]
fn demo_has_a_full_drive_and_a_slow_line() {
    require_fuse();
    let dir = tempfile::tempdir().unwrap();
    let (data, mountpoint) = (dir.path().join("data"), dir.path().join("m"));
    let mut demo = Demo::start_with(&["--quota", "1MiB", "--line", "256KiB/s"], &data, &mountpoint);
    demo.wait_for_line("the drive has 1.0 MiB, and the line takes 256 KiB/s");
    let began = Instant::now();
    // Not zeros, and not the same twice: the drive knows no byte of them.
    let bytes: Vec<u8> = (0..512 << 10).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(mountpoint.join("fits"), &bytes).unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "512 KiB took {:?}", began.elapsed());
    let more: Vec<u8> = bytes.iter().rev().chain(&bytes).copied().collect();
    let error = std::fs::File::create(mountpoint.join("too large"))
        .and_then(|mut file| file.write_all(&more).and_then(|()| file.sync_all()));
    assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    demo.signal(libc::SIGINT);
    demo.wait();
}
