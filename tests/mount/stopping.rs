//! The end of a mount: signals, time limits, exit codes and messages.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pdsfs::server::{FaultAction, FaultRule};

use crate::monitoring::pdsfs_xattr;
use crate::rig::{Mount, PATIENCE, Rig, errno, fresh_bytes, is_mount, unmount_lazily, wait_until};

const PART: usize = 64 << 10;
const ARGUMENTS: [&str; 4] = ["--part-size", "64KiB", "--commit-timeout", "60s"];

/// An open file of three parts whose upload hangs until the faults are cleared.
fn unsaved_file(rig: &Rig, mount: &Mount) -> (File, Vec<u8>) {
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Stall));
    let bytes = fresh_bytes(3 * PART);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

/// Sleeps long enough that the daemon takes the next signal as a separate one; no event marks that.
fn wait_past_signal_burst() {
    std::thread::sleep(Duration::from_millis(1200));
}

/// Sends SIGTERM until a stop is given up: the daemon takes signals within a second as one.
fn give_up(mount: &Mount) {
    wait_until("the stop is given up", || {
        mount.signal(libc::SIGTERM);
        std::thread::sleep(Duration::from_millis(300));
        mount.log().iter().any(|line| line.contains(": interrupted by SIGTERM")).then_some(())
    });
}

#[test]
fn session_end_signals_count_as_one() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let (file, bytes) = unsaved_file(&rig, &mount);
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGTERM] {
        mount.signal(signal);
    }
    mount.wait_for_log("saving open files");
    wait_past_signal_burst();
    mount.signal(libc::SIGHUP);
    rig.server().faults().clear();
    let (code, log) = mount.ended();
    assert_eq!(code, 0, "{log:?}");
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    drop(file);
}

#[test]
fn second_signal_aborts_and_names_unsaved_files() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let (file, _) = unsaved_file(&rig, &mount);
    mount.signal(libc::SIGHUP);
    mount.wait_for_log("SIGHUP: saving open files");
    give_up(&mount);
    let (code, log) = mount.ended();
    assert_eq!(code, 1);
    assert!(log.iter().any(|line| line.contains("NOT SAVED /f: interrupted by SIGTERM")), "{log:?}");
    drop(file);
}

#[test]
fn stop_lasts_while_bytes_move() {
    let rig = Rig::new();
    let slow = ["--part-size", "64KiB", "--parts-in-flight", "1", "--commit-timeout", "4s"];
    let mount = rig.mount_with(&slow);
    // A part takes a little more than a second.
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Throttle { bytes_per_s: 60_000 }));
    let bytes = fresh_bytes(8 * PART);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&bytes).unwrap();
    let began = Instant::now();
    mount.signal(libc::SIGTERM);
    let (code, log) = mount.ended();
    assert_eq!(code, 0, "{log:?}");
    assert!(began.elapsed() > Duration::from_secs(4), "the stop was not slow");
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    drop(file);
}

/// The arguments of mounts with and without staged files.
fn with_and_without_cache() -> [Vec<&'static str>; 2] {
    [ARGUMENTS.to_vec(), [&ARGUMENTS[..], &["--cache-size", "off"]].concat()]
}

/// Asserts that the log has exactly one line with `text`.
fn assert_logged_once(log: &[String], text: &str) {
    assert_eq!(log.iter().filter(|line| line.contains(text)).count(), 1, "{text}: {log:?}");
}

#[test]
fn stop_keeps_old_content_of_unfinished_overwrite() {
    for arguments in with_and_without_cache() {
        let rig = Rig::new();
        let mount = rig.mount_with(&arguments);
        let old = fresh_bytes(2 * PART + 5);
        fs::write(mount.at("report.bin"), &old).unwrap();
        let before = rig.client().find("report.bin").unwrap();
        let mut file = File::create(mount.at("report.bin")).unwrap();
        file.write_all(&fresh_bytes(3 * PART)).unwrap();
        mount.signal(libc::SIGTERM);
        let (code, log) = mount.ended();
        assert_eq!(code, 1, "{log:?}");
        let line =
            "NOT SAVED /report.bin: its program was still writing (192 KiB so far); the old content stays";
        assert_logged_once(&log, line);
        assert_logged_once(&log, "report.bin");
        let after = rig.client().find("report.bin").unwrap();
        assert_eq!((after.revision, after.size), (before.revision, before.size));
        assert_eq!(rig.client().read("report.bin").unwrap(), old);
        drop(file);
    }
}

/// A staged overwrite: the writer goes back, so the content does not stream any more.
#[test]
fn stop_keeps_old_content_of_staged_overwrite() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let old = fresh_bytes(2 * PART);
    fs::write(mount.at("f"), &old).unwrap();
    let file = File::create(mount.at("f")).unwrap();
    file.write_all_at(&fresh_bytes(PART), 5 * PART as u64).unwrap();
    file.write_all_at(&fresh_bytes(PART), 0).unwrap();
    mount.signal(libc::SIGINT);
    let (code, log) = mount.ended();
    assert_eq!(code, 1, "{log:?}");
    assert_logged_once(&log, "NOT SAVED /f: its program was still writing");
    assert_eq!(rig.client().read("f").unwrap(), old);
    drop(file);
}

#[test]
fn stop_saves_new_appended_and_edited_files() {
    for arguments in with_and_without_cache() {
        let rig = Rig::new();
        let mount = rig.mount_with(&arguments);
        let (old, new) = (fresh_bytes(2 * PART), fresh_bytes(PART + 7));
        for name in ["appended", "edited", "closed"] {
            fs::write(mount.at(name), &old).unwrap();
        }
        let mut created = File::create(mount.at("created")).unwrap();
        created.write_all(&new).unwrap();
        let mut appended = File::options().append(true).open(mount.at("appended")).unwrap();
        appended.write_all(&new).unwrap();
        let edited = File::options().write(true).open(mount.at("edited")).unwrap();
        edited.write_all_at(&new, 9).unwrap();
        mount.signal(libc::SIGTERM);
        let (code, log) = mount.ended();
        assert_eq!(code, 0, "{log:?}");
        for (name, size) in [("created", "64 KiB"), ("appended", "192 KiB"), ("edited", "128 KiB")] {
            let line =
                format!("saved as far as it was written: /{name} ({size}); a program still had it open");
            assert_logged_once(&log, &line);
        }
        assert!(!log.iter().any(|line| line.contains("closed")), "{log:?}");
        let read = |name| rig.client().read(name).unwrap();
        assert_eq!(read("created"), new);
        assert_eq!(read("appended"), [&old[..], &new].concat());
        assert_eq!(read("edited"), [&old[..9], &new, &old[9 + new.len()..]].concat());
        drop((created, appended, edited));
    }
}

#[test]
fn stop_ends_while_a_program_writes_on() {
    for arguments in with_and_without_cache() {
        let rig = Rig::new();
        let mount = rig.mount_with(&arguments);
        let bytes = fresh_bytes(PART);
        let mut file = File::create(mount.at("f")).unwrap();
        let (written, at_least) =
            (std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0)), 20 * PART as u64);
        let counter = written.clone();
        let piece = bytes.clone();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        // Goes on after every error, as a log daemon does.
        let writer = std::thread::spawn(move || {
            let mut first_error = None;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                match file.write(&piece) {
                    Ok(count) => drop(counter.fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed)),
                    Err(error) => {
                        first_error.get_or_insert(error);
                        // So that a refused writer does not take a whole core from other tests.
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            }
            first_error.and_then(|error| error.raw_os_error())
        });
        wait_until("the program writes", || {
            (written.load(std::sync::atomic::Ordering::Relaxed) > at_least).then_some(())
        });
        mount.signal(libc::SIGTERM);
        let (code, log) = mount.ended();
        stop.send(()).unwrap();
        assert_eq!(writer.join().unwrap(), Some(libc::ESHUTDOWN));
        assert_eq!(code, 0, "{log:?}");
        assert_logged_once(&log, "saved as far as it was written: /f");
        let saved = rig.client().read("f").unwrap();
        assert!(saved.chunks(PART).all(|piece| *piece == bytes[..piece.len()]));
        assert_eq!(saved.len() as u64, written.load(std::sync::atomic::Ordering::Relaxed));
    }
}

#[test]
fn stopping_mount_accepts_no_new_content() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    fs::write(mount.at("old"), b"old content").unwrap();
    fs::write(mount.at("other"), b"other content").unwrap();
    let kept = File::options().write(true).open(mount.at("other")).unwrap();
    let (mut file, bytes) = unsaved_file(&rig, &mount);
    mount.signal(libc::SIGTERM);
    mount.wait_for_log("saving open files");
    assert_eq!(errno(file.write(b"x")), libc::ESHUTDOWN);
    assert_eq!(errno(kept.set_len(3)), libc::ESHUTDOWN);
    assert_eq!(errno(kept.write_all_at(b"x", 1)), libc::ESHUTDOWN);
    assert_eq!(errno(File::create(mount.at("old"))), libc::ESHUTDOWN);
    assert_eq!(errno(File::create(mount.at("new"))), libc::ESHUTDOWN);
    assert_eq!(fs::read(mount.at("old")).unwrap(), b"old content");
    rig.server().faults().clear();
    let (code, log) = mount.ended();
    assert_eq!(code, 0, "{log:?}");
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    assert_eq!(rig.client().read("old").unwrap(), b"old content");
    assert_eq!(rig.client().read("other").unwrap(), b"other content");
    assert_eq!(rig.client().find("new"), None);
    drop((file, kept));
}

/// The close of an overwrite that was given up must not report success.
#[test]
fn close_after_a_given_up_overwrite_fails() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    fs::write(mount.at("old"), b"old content").unwrap();
    let mut overwriting = File::create(mount.at("old")).unwrap();
    overwriting.write_all(b"new").unwrap();
    let (file, _) = unsaved_file(&rig, &mount);
    mount.signal(libc::SIGTERM);
    wait_until("the overwrite is given up", || {
        (pdsfs_xattr(&mount, "old", "state") == "failed").then_some(())
    });
    assert_eq!(errno(overwriting.sync_all()), libc::ESHUTDOWN);
    assert_eq!(fs::read(mount.at("old")).unwrap(), b"old content");
    rig.server().faults().clear();
    let (code, log) = mount.ended();
    assert_eq!(code, 1, "{log:?}");
    assert_logged_once(&log, "NOT SAVED /old");
    drop((file, overwriting));
}

/// The first attempt to save found their state out, and they are closed when the stop is given up.
#[test]
fn aborted_stop_names_files_closed_before() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    fs::write(mount.at("old"), b"old content").unwrap();
    let mut overwriting = File::create(mount.at("old")).unwrap();
    overwriting.write_all(b"new").unwrap();
    let mut partly = File::create(mount.at("partly")).unwrap();
    partly.write_all(b"so far").unwrap();
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Stall).part(2));
    let mut stuck = File::create(mount.at("stuck")).unwrap();
    stuck.write_all(&fresh_bytes(3 * PART)).unwrap();
    mount.signal(libc::SIGTERM);
    wait_until("two of the files are dealt with", || {
        let is_given_up = pdsfs_xattr(&mount, "old", "state") == "failed";
        (is_given_up && rig.client().find("partly").is_some()).then_some(())
    });
    drop((overwriting, partly));
    give_up(&mount);
    let (code, log) = mount.ended();
    assert_eq!(code, 1, "{log:?}");
    assert_logged_once(&log, "NOT SAVED /old: its program was still writing");
    assert_logged_once(&log, "NOT SAVED /stuck: interrupted by SIGTERM");
    assert_logged_once(&log, "saved as far as it was written: /partly (6 B)");
    drop(stuck);
}

/// A daemon of a test that may fail before its end.
struct KilledAtEnd(Child, PathBuf);

impl Drop for KilledAtEnd {
    fn drop(&mut self) {
        // Nothing is left to do if it has ended as it should.
        let _ = self.0.kill();
        let _ = self.0.wait();
        unmount_lazily(&self.1);
    }
}

/// The start waits for a listing that hangs. Meanwhile a program changes the root directory.
#[test]
fn signals_during_start_end_the_mount() {
    let rig = Rig::new();
    let faults = rig.server().faults();
    // The first listing checks the drive, the second one the mount.
    faults.add(FaultRule::new("file/list", FaultAction::Stall).after(1));
    let (dir, sockets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let socket = sockets.path().join("notify");
    let _manager = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let mut command = mount_command(&rig, dir.path());
    // The daemon lists its root directory for a service manager.
    command.env("NOTIFY_SOCKET", &socket).stderr(Stdio::piped());
    let mut daemon = KilledAtEnd(command.spawn().unwrap(), dir.path().to_owned());
    rig.block_on(faults.wait_for_hits(1));
    let began = Instant::now();
    faults.add(FaultRule::new("file/put_usertags", FaultAction::Stall));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let ended = wait_until("the daemon ends", || {
        // SAFETY: kill takes no pointers; the pid belongs to our child, which is not reaped yet.
        unsafe { libc::kill(daemon.0.id().cast_signed(), libc::SIGTERM) };
        // The daemon takes signals within a second as one.
        std::thread::sleep(Duration::from_millis(300));
        daemon.0.try_wait().unwrap()
    });
    let printed = std::io::read_to_string(daemon.0.stderr.take().unwrap()).unwrap();
    assert_eq!(ended.code(), Some(1), "{printed}");
    assert!(printed.contains("NOT SAVED attributes: interrupted by SIGTERM"), "{printed}");
    assert!(!is_mount(dir.path()));
    // Below every deadline of the listing.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}: {printed}", began.elapsed());
}

#[test]
fn waiting_stop_names_the_files_and_the_way_out() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let (file, bytes) = unsaved_file(&rig, &mount);
    mount.signal(libc::SIGINT);
    mount.wait_for_log("saving open files");
    mount.wait_for_log("waiting for /f (100 % of 192 KiB");
    mount.wait_for_log("a second Ctrl-C or SIGTERM gives up");
    rig.server().faults().clear();
    assert_eq!(mount.ended().0, 0);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    drop(file);
}

fn mount_command(rig: &Rig, dir: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    command.args(["mount", "--endpoint", &rig.endpoint(), "--drive-id", "1"]).arg(dir);
    command.env("PDSFS_TOKEN", crate::rig::TOKEN).stdin(Stdio::null());
    command
}

fn try_mount(rig: &Rig, dir: &std::path::Path) -> Output {
    mount_command(rig, dir).output().unwrap()
}

/// The units do not restart a daemon that exits with 2.
#[test]
fn unusable_mountpoint_is_not_retried() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("kept"), b"x").unwrap();
    let refused = [
        (dir.path().join("missing/below"), "create it with mkdir"),
        (dir.path().to_owned(), "is not empty"),
        (dir.path().join("kept"), "is not a directory"),
        ("/proc".into(), "already has a mount"),
    ];
    for (path, why) in refused {
        let output = try_mount(&rig, &path);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && printed.contains(why), "{} {printed}", output.status);
    }
    let mount = Mount::start(&rig.endpoint(), &["--allow-non-empty"], dir);
    assert!(!mount.at("kept").exists());
    let taken = try_mount(&rig, mount.path());
    assert_eq!(taken.status.code(), Some(2), "{taken:?}");
    assert_eq!(mount.stop(), 0);
}

fn umount(mount: &Mount, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    command.arg("umount").args(arguments).arg(mount.path()).stderr(Stdio::piped());
    command
}

#[test]
fn unreachable_daemon_is_not_drained() {
    let rig = Rig::new();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    command.env("RUNTIME_DIRECTORY", elsewhere.path());
    let mount = Mount::start_by(command, &rig.endpoint(), &ARGUMENTS, tempfile::tempdir().unwrap());
    let output = umount(&mount, &["--drain"]).output().unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && printed.contains("stays mounted"), "{printed}");
    assert!(printed.contains("pdsfs umount '"), "{printed}");
    assert!(is_mount(mount.path()));
    let output = umount(&mount, &["--drain"]).env("RUNTIME_DIRECTORY", elsewhere.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(mount.ended().0, 0);
}

/// Starts a drain, waits until it reports an open file, and returns the rest of its output as a reader.
fn start_drain(mount: &Mount) -> (Child, BufReader<ChildStderr>) {
    let mut draining = umount(mount, &["--drain"]).spawn().unwrap();
    let mut printed = BufReader::new(draining.stderr.take().unwrap());
    let mut line = String::new();
    printed.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for the programs"), "{line}");
    (draining, printed)
}

#[test]
fn failed_drain_names_unsaved_files() {
    let mut rig = Rig::new();
    let mount = rig.mount_with(&[&ARGUMENTS[..], &["--call-timeout", "1s"]].concat());
    fs::write(mount.at("f"), b"x").unwrap();
    let file = File::open(mount.at("f")).unwrap();
    let (mut draining, mut printed) = start_drain(&mount);
    rig.stop();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    drop(file);
    let mut rest = String::new();
    printed.read_to_string(&mut rest).unwrap();
    assert_eq!(draining.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("NOT SAVED attributes") && rest.contains("is unmounted, but"), "{rest}");
    assert_eq!(mount.ended().0, 1);
}

#[test]
fn daemon_death_during_drain_is_an_error() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let (file, _) = unsaved_file(&rig, &mount);
    let (mut draining, mut printed) = start_drain(&mount);
    let dead = mount.kill();
    drop(file);
    let mut rest = String::new();
    printed.read_to_string(&mut rest).unwrap();
    assert_eq!(draining.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("exited before it reported"), "{rest}");
    drop(dead);
}

#[test]
fn waiting_clients_do_not_delay_the_stop() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let mut follower = Command::new(env!("CARGO_BIN_EXE_pdsfs"))
        .args(["log", "-f"])
        .arg(mount.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    fs::write(mount.at("f"), b"x").unwrap();
    let mut line = String::new();
    BufReader::new(follower.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let began = Instant::now();
    assert_eq!(mount.stop(), 0);
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(follower.wait().unwrap().code(), Some(0), "the follower failed at the end of the log");
}
