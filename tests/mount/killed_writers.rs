//! Writers that die of a signal: an unfinished overwrite keeps the old content, other content is saved as far as it
//! was written.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pdsfs::server::{FaultAction, FaultRule};

use crate::monitoring::{pdsfs_xattr, status};
use crate::rig::{Mount, Rig, fresh_bytes, wait_until};

const PART: usize = 64 << 10;
/// Arguments of mounts with and without staged files.
const MOUNTS: [&[&str]; 2] = [&["--part-size", "64KiB"], &["--part-size", "64KiB", "--cache-size", "off"]];

/// A shell that writes to a file of a mount. Its input is a pipe of this process. Killed when it is dropped.
pub struct Writer(Child);

impl Writer {
    /// Runs a script with the path of the file as `$f`.
    fn start(script: &str, path: &Path) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("f", path).stdin(Stdio::piped());
        Self(interruptible(&mut command).spawn().unwrap())
    }

    /// A program that copies its input over a file, as `cat > file` does.
    pub fn overwriting(path: &Path) -> Self {
        Self::start("exec cat > \"$f\"", path)
    }

    /// Passes bytes on, and waits until the file has `size` bytes.
    pub fn write(&mut self, bytes: &[u8], path: &Path, size: usize) {
        self.0.stdin.as_mut().unwrap().write_all(bytes).unwrap();
        wait_for_size(path, size);
    }

    /// Sends a signal to the writer, which dies of it.
    pub fn kill(mut self, signal: i32) {
        self.signal(signal);
        let ended = wait_until("the writer is dead", || self.0.try_wait().unwrap());
        assert_eq!(ended.signal(), Some(signal));
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill takes no pointers; the pid belongs to our child, which is not reaped yet.
        assert_eq!(unsafe { libc::kill(self.0.id().cast_signed(), signal) }, 0);
    }

    /// Ends the input. Returns the exit code.
    fn finish(mut self) -> Option<i32> {
        drop(self.0.stdin.take());
        wait_until("the writer ends", || self.0.try_wait().unwrap()).code()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// SIGINT kills the program, also if this process was started with that signal ignored.
fn interruptible(command: &mut Command) -> &mut Command {
    // SAFETY: signal is async-signal-safe and touches nothing of this process.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        })
    }
}

fn wait_for_size(path: &Path, size: usize) {
    wait_until(&format!("{} has {size} bytes", path.display()), || {
        (fs::metadata(path).unwrap().len() == size as u64).then_some(())
    });
}

/// A mount with a complete file `f` of this content.
fn mount_with_file(rig: &Rig, arguments: &[&str], old: &[u8]) -> (Mount, PathBuf) {
    let mount = rig.mount_with(arguments);
    let path = mount.at("f");
    fs::write(&path, old).unwrap();
    (mount, path)
}

fn saved(rig: &Rig) -> Vec<u8> {
    rig.client().read("f").unwrap()
}

/// Waits until the mount shows `bytes` again.
pub fn wait_for_content(path: &Path, bytes: &[u8]) {
    wait_until("readers see the content", || (fs::read(path).ok()? == bytes).then_some(()));
}

#[test]
fn killed_overwrite_keeps_old_content() {
    for (arguments, signals) in
        [(MOUNTS[0], &[libc::SIGINT, libc::SIGKILL, libc::SIGSEGV][..]), (MOUNTS[1], &[libc::SIGTERM])]
    {
        let rig = Rig::new();
        let old = fresh_bytes(2 * PART + 9);
        let (mount, path) = mount_with_file(&rig, arguments, &old);
        let (before, mtime) = (rig.client().find("f"), fs::metadata(&path).unwrap().modified().unwrap());
        for signal in signals {
            let mut writer = Writer::overwriting(&path);
            writer.write(&fresh_bytes(3 * PART), &path, 3 * PART);
            writer.kill(*signal);
            wait_for_content(&path, &old);
            let seen = fs::metadata(&path).unwrap();
            assert_eq!((seen.len(), seen.modified().unwrap()), (old.len() as u64, mtime));
            assert_eq!(rig.client().find("f"), before);
        }
        assert_eq!(saved(&rig), old);
        let why = "its program was killed while it wrote (192 KiB so far); the old content stays";
        // The content is restored before its failure is recorded and logged.
        let failures = wait_until("all failures are recorded", || {
            let seen = status(&mount);
            (seen.totals.files_failed >= signals.len() as u64).then_some(seen.failures)
        });
        assert_eq!(failures.len(), 1, "a file counts once");
        assert_eq!((failures[0].path.as_deref(), failures[0].text.as_str()), (Some("/f"), why));
        let is_named = |line: &&String| line.contains(&format!("/f: not saved: {why}"));
        let log = wait_until("all failures are logged", || {
            let log = mount.log();
            (log.iter().filter(is_named).count() >= signals.len()).then_some(log)
        });
        let named: Vec<_> = log.iter().filter(is_named).collect();
        assert!(named.len() == signals.len() && named[0].contains(" WARN "), "{log:?}");
        assert_eq!(
            (pdsfs_xattr(&mount, "f", "state"), pdsfs_xattr(&mount, "f", "error")),
            ("failed".into(), why.into())
        );
        let status = status(&mount);
        assert_eq!((status.pending.files, status.transfers.len()), (0, 0));
        // The next complete overwrite is committed.
        fs::write(&path, b"complete").unwrap();
        assert_eq!((saved(&rig), pdsfs_xattr(&mount, "f", "state")), (b"complete".to_vec(), "saved".into()));
        assert_eq!(mount.stop(), 0);
    }
}

/// Whether a program waits for an open that truncates.
fn waits_for_truncation(pid: u32) -> bool {
    // The call and its arguments in hexadecimal, while the program waits in it.
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let mut words = call.split_ascii_whitespace();
    let is_open = words.next().and_then(|number| number.parse().ok()) == Some(libc::SYS_openat);
    let flags = words.nth(2).and_then(|flags| i32::from_str_radix(flags.trim_start_matches("0x"), 16).ok());
    is_open && flags.is_some_and(|flags| flags & libc::O_TRUNC != 0)
}

/// The truncation waits for a commit, and is made when the program is dead.
#[test]
fn killed_in_its_open_keeps_the_old_content() {
    let rig = Rig::new();
    let (mount, path) = mount_with_file(&rig, MOUNTS[0], b"old content");
    rig.server().faults().add(FaultRule::new("file/complete", FaultAction::Stall));
    let (bytes, saving) = (fresh_bytes(PART + 5), path.clone());
    let written = bytes.clone();
    let saving = std::thread::spawn(move || fs::write(saving, written));
    rig.block_on(rig.server().faults().wait_for_hits(1));
    let killed = Writer::start(": > \"$f\"", &path);
    wait_until("the program waits for its open", || waits_for_truncation(killed.0.id()).then_some(()));
    killed.kill(libc::SIGKILL);
    rig.server().faults().clear();
    saving.join().unwrap().unwrap();
    wait_until("the truncation is given up", || {
        let why = "f: not saved: its program did not get the file that it truncated";
        mount.log().iter().any(|line| line.contains(why)).then_some(())
    });
    assert!(fs::read(&path).unwrap() == bytes && saved(&rig) == bytes);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn cp_that_is_interrupted_keeps_the_old_file() {
    let rig = Rig::new();
    let old = fresh_bytes(PART);
    let (mount, path) = mount_with_file(&rig, MOUNTS[0], &old);
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Throttle { bytes_per_s: 60_000 }));
    let source = tempfile::NamedTempFile::new().unwrap();
    fs::write(source.path(), fresh_bytes(100 * PART)).unwrap();
    let mut cp = interruptible(Command::new("cp").arg(source.path()).arg(&path)).spawn().unwrap();
    wait_until("cp writes", || (fs::metadata(&path).unwrap().len() > 2 * PART as u64).then_some(()));
    // SAFETY: kill takes no pointers; the pid belongs to our child, which is not reaped yet.
    assert_eq!(unsafe { libc::kill(cp.id().cast_signed(), libc::SIGINT) }, 0);
    assert_eq!(cp.wait().unwrap().signal(), Some(libc::SIGINT));
    wait_for_content(&path, &old);
    assert_eq!(saved(&rig), old);
    rig.server().faults().clear();
    assert_eq!(mount.stop(), 0);
}

#[test]
fn killed_writer_of_a_new_file_is_saved() {
    for arguments in MOUNTS {
        let rig = Rig::new();
        let mount = rig.mount_with(arguments);
        let (path, bytes) = (mount.at("f"), fresh_bytes(PART + 5));
        let mut writer = Writer::overwriting(&path);
        wait_until("the file exists", || path.exists().then_some(()));
        writer.write(&bytes, &path, bytes.len());
        writer.kill(libc::SIGKILL);
        wait_until("the file is on the drive", || rig.client().read("f").filter(|read| *read == bytes));
        // An empty file has no content to lose.
        fs::write(&path, b"").unwrap();
        let mut writer = Writer::overwriting(&path);
        writer.write(b"first bytes", &path, 11);
        writer.kill(libc::SIGINT);
        wait_until("the bytes are on the drive", || (saved(&rig) == b"first bytes").then_some(()));
        assert_eq!(mount.stop(), 0);
    }
}

#[test]
fn killed_append_and_edit_are_saved() {
    for arguments in MOUNTS {
        let rig = Rig::new();
        let old = fresh_bytes(2 * PART);
        let (mount, path) = mount_with_file(&rig, arguments, &old);
        let mut writer = Writer::start("exec cat >> \"$f\"", &path);
        writer.write(b"appended", &path, old.len() + 8);
        writer.kill(libc::SIGINT);
        let appended = [&old[..], b"appended"].concat();
        wait_until("the appended bytes are saved", || (saved(&rig) == appended).then_some(()));
        let mut writer = Writer::start("exec cat 1<> \"$f\"", &path);
        writer.write(b"edited", &path, appended.len());
        wait_until("the edit is written", || (fs::read(&path).ok()?[..6] == *b"edited").then_some(()));
        writer.kill(libc::SIGKILL);
        let edited = [b"edited", &appended[6..]].concat();
        wait_until("the edited bytes are saved", || (saved(&rig) == edited).then_some(()));
        assert_eq!(mount.stop(), 0);
    }
}

#[test]
fn program_that_handles_the_signal_commits() {
    let rig = Rig::new();
    let (mount, path) = mount_with_file(&rig, MOUNTS[0], b"old content");
    let script =
        "trap 'printf end >&3; exit 0' INT; exec 3> \"$f\"; printf begin >&3; while :; do sleep 0.05; done";
    let mut writer = Writer::start(script, &path);
    wait_for_size(&path, 5);
    writer.signal(libc::SIGINT);
    assert_eq!(wait_until("the program ends", || writer.0.try_wait().unwrap()).code(), Some(0));
    assert_eq!(saved(&rig), b"beginend");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn killed_producer_of_a_pipe_commits() {
    let rig = Rig::new();
    let (mount, path) = mount_with_file(&rig, MOUNTS[0], b"old content");
    let writer = Writer::start("sh -c 'printf new; kill -9 $$' | cat > \"$f\"", &path);
    assert_eq!(writer.finish(), Some(0));
    assert_eq!(saved(&rig), b"new");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn killed_writer_leaves_the_file_to_another_one() {
    for arguments in MOUNTS {
        let rig = Rig::new();
        let (mount, path) = mount_with_file(&rig, arguments, b"old content");
        let bytes = fresh_bytes(3 * PART);
        let mut writer = Writer::overwriting(&path);
        writer.write(&bytes[..2 * PART], &path, 2 * PART);
        let second = File::options().write(true).open(&path).unwrap();
        second.write_all_at(&bytes[2 * PART..], 2 * PART as u64).unwrap();
        writer.kill(libc::SIGKILL);
        assert_eq!(fs::metadata(&path).unwrap().len(), bytes.len() as u64);
        assert_eq!(saved(&rig), b"old content");
        drop(second);
        assert_eq!(saved(&rig), bytes);
        assert_eq!(mount.stop(), 0);
    }
}

/// The second program has the file open for writing and has written nothing.
#[test]
fn idle_writer_keeps_no_unfinished_overwrite() {
    let rig = Rig::new();
    let (mount, path) = mount_with_file(&rig, MOUNTS[0], b"old content");
    let idle = File::options().read(true).write(true).open(&path).unwrap();
    let mut writer = Writer::overwriting(&path);
    writer.write(&fresh_bytes(2 * PART), &path, 2 * PART);
    writer.kill(libc::SIGKILL);
    wait_for_content(&path, b"old content");
    idle.write_all_at(b"new", 0).unwrap();
    drop(idle);
    assert_eq!(saved(&rig), b"new content");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn killed_child_decides_nothing_for_its_parent() {
    let rig = Rig::new();
    let (mount, path) = mount_with_file(&rig, MOUNTS[0], b"old content");
    let script =
        "exec 3> \"$f\"; printf abc >&3; sh -c 'printf def >&3; kill -9 $$'; read line; printf ghi >&3";
    let writer = Writer::start(script, &path);
    wait_for_size(&path, 6);
    assert_eq!(saved(&rig), b"old content");
    assert_eq!(writer.finish(), Some(0));
    assert_eq!(saved(&rig), b"abcdefghi");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn killed_parent_leaves_the_file_to_its_child() {
    let rig = Rig::new();
    let (mount, path) = mount_with_file(&rig, MOUNTS[0], b"old content");
    let script = "exec 3> \"$f\"; printf abc >&3; (sleep 0.3; printf def >&3) & kill -9 $$";
    let mut writer = Writer::start(script, &path);
    let ended = wait_until("the parent is dead", || writer.0.try_wait().unwrap());
    assert_eq!(ended.signal(), Some(libc::SIGKILL));
    wait_until("the child has written", || (saved(&rig) != b"old content").then_some(()));
    assert_eq!(saved(&rig), b"abcdef");
    assert_eq!(mount.stop(), 0);
}

/// The variable that makes a test of this file the program under test: `exit`, `kill` or `sync`, and the path.
const PROGRAM: &str = "PDSFS_TEST_THREADED_WRITER";

/// Runs [`threads_decide_by_the_end_of_their_process`] as a program with several threads that does not close its file.
fn run_threaded_writer(end: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["killed_writers::threads_decide_by_the_end_of_their_process", "--exact"])
        .env(PROGRAM, format!("{end} {}", path.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The end of a process kills its other threads, also when it exits by itself.
#[test]
fn threads_decide_by_the_end_of_their_process() {
    if let Ok(program) = std::env::var(PROGRAM) {
        let (end, path) = program.split_once(' ').unwrap();
        let mut file = File::create(path).unwrap();
        file.write_all(b"threaded").unwrap();
        for _ in 0..4 {
            std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60)));
        }
        if end == "sync" {
            file.sync_all().unwrap();
            file.write_all(b"more").unwrap();
        }
        if end != "exit" {
            // SAFETY: kill takes no pointers.
            unsafe { libc::kill(std::process::id().cast_signed(), libc::SIGKILL) };
        }
        std::process::exit(0);
    }
    let rig = Rig::new();
    let (mount, path) = mount_with_file(&rig, MOUNTS[0], b"old content");
    let mut killed = run_threaded_writer("kill", &path);
    assert_eq!(killed.wait().unwrap().signal(), Some(libc::SIGKILL));
    wait_for_content(&path, b"old content");
    let mut exited = run_threaded_writer("exit", &path);
    assert_eq!(exited.wait().unwrap().code(), Some(0));
    wait_until("the content is on the drive", || (saved(&rig) == b"threaded").then_some(()));
    assert_eq!(mount.stop(), 0);
}

/// fsync commits what was written so far; only the bytes after it are unfinished.
#[test]
fn killed_after_fsync_keeps_the_synced_content() {
    let rig = Rig::new();
    let (mount, path) = mount_with_file(&rig, MOUNTS[0], b"old content");
    let mut killed = run_threaded_writer("sync", &path);
    assert_eq!(killed.wait().unwrap().signal(), Some(libc::SIGKILL));
    wait_until("the bytes after the fsync are saved", || (saved(&rig) == b"threadedmore").then_some(()));
    assert_eq!(mount.stop(), 0);
}
