//! The end of a mount: signals, time limits, exit codes and messages.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pdsfs::server::{FaultAction, FaultRule};

use crate::rig::{Mount, PATIENCE, Rig, fresh_bytes, is_mount, wait_until};

const PART: usize = 64 << 10;
const ARGUMENTS: [&str; 4] = ["--part-size", "64KiB", "--commit-timeout", "60s"];

fn logs(mount: &Mount, text: &str) -> bool {
    mount.log().iter().any(|line| line.contains(text))
}

fn wait_for_log(mount: &Mount, text: &str) {
    wait_until(text, || logs(mount, text).then_some(()));
}

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

#[test]
fn session_end_signals_count_as_one() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let (file, bytes) = unsaved_file(&rig, &mount);
    mount.signal(libc::SIGTERM);
    wait_for_log(&mount, "saving open files");
    mount.signal(libc::SIGHUP);
    mount.signal(libc::SIGTERM);
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
    wait_for_log(&mount, "SIGHUP: saving open files");
    wait_past_signal_burst();
    mount.signal(libc::SIGTERM);
    let (code, log) = mount.ended();
    assert_eq!(code, 1);
    assert!(log.iter().any(|line| line.contains("not saved: /f: interrupted by SIGTERM")), "{log:?}");
    drop(file);
}

#[test]
fn stop_lasts_while_bytes_move() {
    let rig = Rig::new();
    let slow = ["--part-size", "64KiB", "--parts-in-flight", "1", "--commit-timeout", "2s"];
    let mount = rig.mount_with(&slow);
    // A part takes a little more than a second.
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Throttle { bytes_per_s: 60_000 }));
    let bytes = fresh_bytes(4 * PART);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&bytes).unwrap();
    let began = Instant::now();
    mount.signal(libc::SIGTERM);
    let (code, log) = mount.ended();
    assert_eq!(code, 0, "{log:?}");
    assert!(began.elapsed() > Duration::from_secs(2), "the stop was not slow");
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    drop(file);
}

fn try_mount(rig: &Rig, dir: &std::path::Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    command.args(["mount", "--endpoint", &rig.endpoint(), "--drive-id", "1"]).arg(dir);
    command.env("PDSFS_TOKEN", crate::rig::TOKEN).stdin(Stdio::null()).output().unwrap()
}

/// The units do not restart a daemon that exits with 2.
#[test]
fn unusable_mountpoint_is_not_retried() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("kept"), b"x").unwrap();
    let refused = [
        (dir.path().join("missing"), "create it with mkdir"),
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
    assert!(rest.contains("not saved: attributes") && rest.contains("is unmounted, but"), "{rest}");
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
