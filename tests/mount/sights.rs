//! What a running mount tells of itself: `pdsfs status`, `wait` and `log` of the built binary beside it, the
//! control socket under them, attributes of files, figures for Prometheus, and the log.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pdsfs::control::Surroundings;
use pdsfs::control::types::{Happening, LogEntry, Stage, Status};
use pdsfs::server::{FaultAction, FaultPlan, FaultRule};

use crate::metadata::{remove_xattr, set_xattr, xattr, xattrs};
use crate::rig::{Mount, PATIENCE, Rig, errno, fresh_bytes, wait_until};

const PART: usize = 64 << 10;
const ARGUMENTS: [&str; 2] = ["--part-size", "64KiB"];

/// `pdsfs WORDS MOUNTPOINT`.
fn command(mount: &Mount, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    command.args(words).arg(mount.path()).stdin(Stdio::null());
    command
}

fn pdsfs(mount: &Mount, words: &[&str]) -> Output {
    command(mount, words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn status(mount: &Mount) -> Status {
    let output = pdsfs(mount, &["status", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut all: Vec<Status> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn events(mount: &Mount) -> Vec<LogEntry> {
    let output = pdsfs(mount, &["log", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn socket(mount: &Mount) -> Option<PathBuf> {
    let name = format!("{}.sock", mount.pid());
    Surroundings::of_this_process().sockets(None).into_iter().find(|path| path.ends_with(&name))
}

/// The whole answer of the control socket to a request in few words, such as `GET /v1/status`.
pub fn ask(mount: &Mount, request: &str) -> String {
    let mut stream = UnixStream::connect(socket(mount).unwrap()).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub fn own(mount: &Mount, file: &str, name: &str) -> String {
    text(&xattr(&mount.at(file), &format!("user.pdsfs.{name}")).unwrap())
}

/// A command that runs, and the lines that it says. Ended when it is dropped.
struct Running(Child, std::sync::mpsc::Receiver<String>);

impl Running {
    fn start(mount: &Mount, words: &[&str]) -> Self {
        let mut child = command(mount, words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (told, heard) = std::sync::mpsc::channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let told = told.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = told.send(line);
                }
            });
        }
        Self(child, heard)
    }

    /// Waits for a line with this in it.
    fn line(&self, part: &str) -> String {
        loop {
            let line = self.1.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line has {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    fn code(&mut self) -> Option<i32> {
        wait_until("the command ends", || self.0.try_wait().unwrap()).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_upload_is_seen_while_it_is_under_way_and_waited_for() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let log = Running::start(&mount, &["log", "-f"]);
    let (path, bytes) = (mount.at("slow.bin"), fresh_bytes(6 * PART));
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Stall).after(4));
    let writer = std::thread::spawn(move || fs::write(path, bytes));
    let seen = wait_until("four parts have arrived and the file is closed", || {
        let seen = status(&mount);
        let file = seen.transfers.first()?;
        (file.bytes_acked == 4 * PART as u64 && file.state == Stage::Committing).then_some(seen)
    });
    assert_eq!((seen.pid, seen.drive_id.as_str()), (mount.pid(), "1"));
    assert_eq!(seen.mountpoint, mount.path().to_str().unwrap());
    let file = &seen.transfers[0];
    assert_eq!((file.path.as_str(), file.bytes), ("/slow.bin", 6 * PART as u64));
    assert!(file.parts_in_flight > 0 && file.age_ms > 0, "{file:?}");
    assert_eq!((seen.pending.files, seen.pending.files_open), (1, 0));
    assert_eq!(seen.pending.bytes, 2 * PART as u64);
    assert_eq!((seen.totals.bytes_written, seen.totals.bytes_acked), (6 * PART as u64, 4 * PART as u64));
    assert_eq!(own(&mount, "slow.bin", "state"), "committing");
    assert_eq!(own(&mount, "slow.bin", "progress_bytes"), (4 * PART).to_string());

    let table = text(&pdsfs(&mount, &["status"]).stdout);
    assert!(table.contains("committing") && table.contains("/slow.bin") && table.contains("66 %"), "{table}");
    let late = pdsfs(&mount, &["wait", "--timeout", "100ms"]);
    assert_eq!(late.status.code(), Some(3));
    assert!(text(&late.stderr).contains("slow.bin: committing"), "{}", text(&late.stderr));
    let mut waiting = Running::start(&mount, &["wait"]);
    waiting.line("waiting for 1 file");
    rig.server().faults().clear();
    assert_eq!(waiting.code(), Some(0));
    writer.join().unwrap().unwrap();
    log.line("on the drive  /slow.bin  384.00 KiB");
    let seen = status(&mount);
    assert_eq!((seen.transfers.len(), seen.pending.files, seen.totals.files_uploaded), (0, 0, 1));
    assert_eq!(own(&mount, "slow.bin", "state"), "saved");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn a_failure_has_the_same_words_everywhere() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let path = mount.at("f");
    fs::write(&path, fresh_bytes(1000)).unwrap();
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Stall));
    let full = FaultAction::Status {
        status: 403,
        code: "QuotaExhausted.Drive".into(),
        message: "the quota is used up".into(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: false,
    };
    let full = FaultRule::new("file/complete", full);
    rig.server().faults().add(full.clone());
    let writer = std::thread::spawn({
        let path = path.clone();
        // Dropping a file hides what its close says.
        move || {
            let mut file = fs::File::create(path)?;
            file.write_all(&fresh_bytes(2000))?;
            file.sync_all()
        }
    });
    wait_until("the file is pending", || (status(&mount).pending.files == 1).then_some(()));
    let mut waiting = Running::start(&mount, &["wait"]);
    waiting.line("waiting for");
    // A new plan lets go of what was stalled.
    rig.server().faults().set(FaultPlan { rules: vec![full] });
    assert_eq!(errno(writer.join().unwrap()), libc::ENOSPC);

    let failure = waiting.line("not saved");
    assert_eq!(waiting.code(), Some(1));
    let seen = status(&mount);
    assert_eq!((seen.totals.files_failed, seen.pending.files, seen.failures.len()), (1, 0, 1));
    let reason = seen.failures[0].text.clone();
    assert!(failure.contains("/f: ") && failure.ends_with(&reason), "{failure:?} and {reason:?}");
    assert_eq!(seen.failures[0].path.as_deref(), Some("/f"));
    assert_eq!(own(&mount, "f", "error"), reason);
    assert_eq!(own(&mount, "f", "state"), "failed");
    let events = events(&mount);
    let failures: Vec<_> = events.iter().filter(|entry| entry.what == Happening::Failed).collect();
    assert_eq!(failures.len(), 1, "{events:?}");
    assert_eq!(failures[0].text, reason);
    let lines: Vec<_> = mount.log().into_iter().filter(|line| line.contains(&reason)).collect();
    assert_eq!(lines.len(), 1, "one failure is one line: {lines:?}");
    for part in ["/f: ", "op=", "errno=28"] {
        assert!(lines[0].contains(part), "{part} is missing: {lines:?}");
    }

    rig.server().faults().clear();
    fs::write(&path, fresh_bytes(3000)).unwrap();
    assert_eq!(own(&mount, "f", "state"), "saved", "a failure outlives the next success");
    assert_eq!(errno(xattr(&path, "user.pdsfs.error")), libc::ENODATA);
}

#[test]
fn a_name_is_obeyed_by_no_terminal() {
    const NAME: &str = "a\n\x1b[2J\u{202e}b\u{9b}";
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Stall));
    let path = mount.at(NAME);
    let mut file = File::create(&path).unwrap();
    file.write_all(&fresh_bytes(2000)).unwrap();
    let writer = std::thread::spawn(move || file.sync_all());
    wait_until("the file is pending", || (status(&mount).pending.files == 1).then_some(()));
    let mut told = vec![pdsfs(&mount, &["status"]), pdsfs(&mount, &["wait", "--timeout", "0s"])];
    let refused = FaultAction::Status {
        status: 403,
        code: "QuotaExhausted.Drive".into(),
        message: "full\n\x1b[2J\u{202e}".into(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: false,
    };
    rig.server().faults().set(FaultPlan { rules: vec![FaultRule::new("file/complete", refused)] });
    assert_eq!(errno(writer.join().unwrap()), libc::ENOSPC);
    for words in [&["status"][..], &["status", "--json"], &["log"], &["log", "--json"]] {
        told.push(pdsfs(&mount, words));
    }
    let named = events(&mount).into_iter().find(|entry| entry.what == Happening::Failed).unwrap();
    assert_eq!(named.path.unwrap(), format!("/{NAME}"), "a program is told the name as it is");
    // One that is still open at the end.
    let mut file = File::create(&path).unwrap();
    file.write_all(&fresh_bytes(2000)).unwrap();
    mount.signal(libc::SIGTERM);
    let (code, log) = mount.ended();
    assert_eq!(code, 1, "{log:?}");
    assert!(log.iter().any(|line| line.starts_with("pdsfs: not saved: /a\\n\\u{1b}")), "{log:?}");
    let mut lines = log;
    for output in told {
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(all.contains("/a\\n"), "the name is not told: {all:?}");
        lines.extend(all.lines().map(str::to_owned));
    }
    for line in lines {
        assert!(!line.contains(pdsfs::printable::is_active), "{line:?}");
    }
}

#[test]
fn a_file_that_is_open_and_unsaved_is_waited_for_unless_it_is_left_out() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!(status(&mount).pending.files_open, 1);
    assert_eq!(status(&mount).transfers[0].state, Stage::Writing);
    assert_eq!(pdsfs(&mount, &["wait", "--timeout", "0s"]).status.code(), Some(3));
    assert_eq!(pdsfs(&mount, &["wait", "--closed"]).status.code(), Some(0));
    // What is open with everything saved is nothing to wait for.
    file.sync_all().unwrap();
    assert_eq!(pdsfs(&mount, &["wait"]).status.code(), Some(0));
    drop(file);
    let staged = File::options().write(true).open(mount.at("f")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&staged, b"H", 0).unwrap();
    assert_eq!(status(&mount).transfers[0].state, Stage::Staged);
    assert_eq!(own(&mount, "f", "state"), "staged");
    assert_eq!(pdsfs(&mount, &["wait", "--timeout", "0s"]).status.code(), Some(3));
    drop(staged);
    assert_eq!(pdsfs(&mount, &["wait"]).status.code(), Some(0));
}

#[test]
fn what_is_open_is_drained_on_request() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(b"so far").unwrap();
    let drained = rig.block_on(pdsfs::control::drain(mount.path(), PATIENCE)).unwrap();
    assert!(drained.unsaved.is_empty() && !drained.timed_out, "{drained:?}");
    assert_eq!(rig.client().read("f").unwrap(), b"so far");
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Stall));
    file.write_all(&fresh_bytes(3 * PART)).unwrap();
    let late = rig.block_on(pdsfs::control::drain(mount.path(), Duration::from_millis(100))).unwrap();
    assert!(late.timed_out);
    rig.server().faults().clear();
    let elsewhere = rig.block_on(pdsfs::control::drain("/nonexistent".as_ref(), PATIENCE));
    // Where another daemon is stopped at this moment, it might have been that one.
    let kind = elsewhere.unwrap_err().kind();
    assert!(matches!(kind, pdsfs::ErrorKind::NotFound | pdsfs::ErrorKind::Timeout), "{kind:?}");
}

#[test]
fn attributes_of_the_mount_are_told_but_not_listed_set_or_copied() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let path = mount.at("f");
    fs::write(&path, b"x").unwrap();
    set_xattr(&path, "user.kept", b"1", 0).unwrap();
    assert_eq!(xattrs(&path), ["user.kept"]);
    let meta = rig.client().find("f").unwrap();
    assert_eq!(own(&mount, "f", "file_id"), meta.file_id.to_string());
    assert_eq!(own(&mount, "f", "revision"), meta.revision.unwrap().to_string());
    assert_eq!(own(&mount, "f", "sha1"), meta.sha1.unwrap().to_string());
    assert_eq!(own(&mount, "f", "progress_bytes"), "1");
    assert_eq!(errno(xattr(&path, "user.pdsfs.nonsense")), libc::ENODATA);
    assert_eq!(errno(set_xattr(&path, "user.pdsfs.state", b"x", 0)), libc::EPERM);
    assert_eq!(errno(remove_xattr(&path, "user.pdsfs.state")), libc::EPERM);
    assert_eq!(errno(xattr(mount.path(), "user.pdsfs.state")), libc::ENODATA, "a folder has no state");
}

#[test]
fn the_socket_is_private_goes_with_the_mount_and_is_taken_away_after_a_kill() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let path = socket(&mount).unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(mount.stop(), 0);
    assert!(!path.exists(), "the socket outlives the mount");

    let mount = rig.mount_with(&ARGUMENTS);
    let path = socket(&mount).unwrap();
    let dead = mount.kill();
    let mount = rig.mount_with(&ARGUMENTS);
    status(&mount);
    assert!(!path.exists(), "the socket of a dead daemon stays");
    drop(dead);
}

/// Asks to follow the log, reads whether that was granted, and nothing of what follows.
fn follow(mount: &Mount) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(socket(mount).unwrap()).unwrap();
    stream.write_all(b"GET /v1/events?since=0&follow=true HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut begin = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut begin).unwrap();
    (stream, text(&begin[9..]))
}

#[test]
fn clients_that_never_read_hold_up_nobody() {
    const FOLLOWERS: usize = 32;
    const FILES: usize = 250;
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    // Long paths make large events: a follower's socket is full after some sixty of them.
    let folder = (0..13).fold(mount.at(""), |folder, _| folder.join("d".repeat(250)));
    fs::create_dir_all(&folder).unwrap();
    let save = |kind: &str| {
        let began = Instant::now();
        (0..FILES).for_each(|n| fs::write(folder.join(format!("{kind}{n}")), b"x").unwrap());
        began.elapsed()
    };
    let alone = save("a");
    let before = mount.peak_memory_bytes();
    let all: Vec<_> = (0..FOLLOWERS + 8).map(|_| follow(&mount)).collect();
    let granted = all.iter().filter(|(_, code)| code == "200").count();
    assert_eq!((granted, all.iter().filter(|(_, code)| code == "503").count()), (FOLLOWERS, 8));
    // Whoever waited for them would wait until they are cut off, after 20 s.
    let beside = save("b");
    assert!(beside < alone * 3 + Duration::from_secs(10), "{beside:?} in place of {alone:?}");
    // To keep for each what it does not read would take 27 MiB.
    let more = mount.peak_memory_bytes() - before;
    assert!(more < 16 << 20, "{more} bytes are kept");
    let told = events(&mount);
    let saved = told.iter().filter(|entry| entry.what == Happening::Committed).count();
    assert_eq!(saved, 2 * FILES, "who reads is told everything");
    drop(all);
    wait_until("their places are free", || (follow(&mount).1 == "200").then_some(()));
    let answer = ask(&mount, "POST /v1/status");
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("POST is not offered"), "{answer}");
}

#[test]
fn a_status_without_a_terminal_is_repeated_as_lines() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let watching = Running::start(&mount, &["status", "--watch", "--interval", "100ms"]);
    for _ in 0..3 {
        watching.line("everything is on the drive");
    }
}

/// Every sample belongs to a family that was explained, and has a number.
fn check_figures(text: &str) -> Vec<(String, u64)> {
    let body = text.strip_suffix("# EOF\n").expect("the end is not marked");
    let (mut family, mut samples) = (String::new(), Vec::new());
    let mut explained = Vec::new();
    for line in body.lines() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => {
                assert!(!help.is_empty() && !explained.contains(&name.to_owned()), "{line}");
                name.clone_into(&mut family);
            }
            ["#", "TYPE", name, kind] => {
                assert!(name == family && ["counter", "gauge"].contains(&kind), "{line}");
                explained.push(name.to_owned());
            }
            ["#", "UNIT", name, unit] => assert!(name == family && name.ends_with(unit), "{line}"),
            _ => {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let plain = name.split('{').next().unwrap();
                assert!(explained.contains(&family) && plain.starts_with(&family), "{line}");
                assert!(plain.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
                samples.push((name.to_owned(), value.parse().unwrap()));
            }
        }
    }
    samples
}

#[test]
fn figures_for_prometheus_are_served_where_that_is_asked_for() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB", "--metrics-listen", "127.0.0.1:0"]);
    let address = wait_until("the address is told", || {
        let log = mount.log();
        let line = log.iter().find(|line| line.contains("/metrics"))?;
        Some(line.split("http://").nth(1)?.split('/').next()?.to_owned())
    });
    fs::write(mount.at("f"), fresh_bytes(1000)).unwrap();
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    };
    let (head, body) = get("/metrics");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("openmetrics-text"), "{head}");
    let samples = check_figures(&body);
    let value = |name: &str| samples.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{body}")).1;
    assert_eq!(value("pdsfs_committed_files_total{how=\"uploaded\"}"), 1);
    assert_eq!(value("pdsfs_committed_bytes_total"), 1000);
    assert_eq!(value("pdsfs_transfers{state=\"writing\"}"), 0);
    assert_eq!(value("pdsfs_lag_bytes"), 0);
    assert_eq!(value("pdsfs_paused"), 0);
    // What did not happen yet is there too: what appears with its first failure has no increase to be seen.
    assert_eq!(value("pdsfs_failed_files_total{kind=\"quota_exceeded\"}"), 0);
    assert_eq!(value("pdsfs_refused_attributes"), 0);
    assert!(value("pdsfs_mount_time_seconds") > 1_000_000_000);
    assert!(get("/").0.starts_with("HTTP/1.1 404 "));
}
