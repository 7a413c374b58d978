//! Monitoring of a running mount: `pdsfs status`, `wait` and `log`, the control socket, `user.pdsfs.*` attributes,
//! Prometheus metrics, and the log.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pdsfs::control_api::{Drained, EventKind, LogEntry, Status, TransferStage};
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

pub fn pdsfs(mount: &Mount, words: &[&str]) -> Output {
    command(mount, words).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
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

/// The control socket of a mount. The kernel lists the name that the daemon has bound, before its rename.
fn socket(mount: &Mount) -> Option<PathBuf> {
    let bound = format!("/{}.new", mount.pid());
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let mut paths = sockets.lines().filter_map(|line| line.split_whitespace().nth(7));
    let path = paths.find(|path| path.ends_with(&bound)).map(|path| Path::new(path).with_extension("sock"));
    path.filter(|path| path.exists())
}

fn drain(mount: &Mount, timeout: Duration) -> Drained {
    let answer = control_request(mount, &format!("POST /v1/drain?timeout_ms={}", timeout.as_millis()));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    serde_json::from_str(body).unwrap()
}

/// The whole answer of the control socket to a request such as `GET /v1/status`.
pub fn control_request(mount: &Mount, request: &str) -> String {
    let mut stream = UnixStream::connect(socket(mount).unwrap()).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub fn pdsfs_xattr(mount: &Mount, file: &str, name: &str) -> String {
    text(&xattr(&mount.at(file), &format!("user.pdsfs.{name}")).unwrap())
}

/// A running command and the lines that it prints. Dropping it kills the command.
pub struct Running(Child, std::sync::mpsc::Receiver<String>);

impl Running {
    pub fn start(mount: &Mount, words: &[&str]) -> Self {
        let mut child = command(mount, words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, printed) = std::sync::mpsc::channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Self(child, printed)
    }

    /// Waits for a line that contains `part` and returns it.
    pub fn line(&self, part: &str) -> String {
        loop {
            let line = self.1.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line has {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    pub fn code(&mut self) -> Option<i32> {
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
fn failure_text_is_the_same_everywhere() {
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
        // Dropping a File hides the error of its close.
        move || {
            let mut file = fs::File::create(path)?;
            file.write_all(&fresh_bytes(2000))?;
            file.sync_all()
        }
    });
    wait_until("the file is pending", || (status(&mount).pending.files == 1).then_some(()));
    let mut waiting = Running::start(&mount, &["wait"]);
    waiting.line("waiting for");
    // A new fault plan releases the stalled calls.
    rig.server().faults().set(FaultPlan { rules: vec![full] });
    assert_eq!(errno(writer.join().unwrap()), libc::ENOSPC);

    let failure = waiting.line("NOT SAVED");
    assert_eq!(waiting.code(), Some(1));
    let seen = status(&mount);
    assert_eq!((seen.totals.files_failed, seen.pending.files, seen.failures.len()), (1, 0, 1));
    let reason = seen.failures[0].text.clone();
    assert!(failure.contains("/f: ") && failure.ends_with(&reason), "{failure:?} and {reason:?}");
    assert_eq!(seen.failures[0].path.as_deref(), Some("/f"));
    assert_eq!(pdsfs_xattr(&mount, "f", "error"), reason);
    assert_eq!(pdsfs_xattr(&mount, "f", "state"), "failed");
    let events = events(&mount);
    let failures: Vec<_> = events.iter().filter(|entry| entry.what == EventKind::Failed).collect();
    assert_eq!(failures.len(), 1, "{events:?}");
    assert_eq!(failures[0].text, reason);
    let log = mount.wait_for_log(&reason);
    let lines: Vec<_> = log.iter().filter(|line| line.contains(&reason)).collect();
    assert_eq!(lines.len(), 1, "a failure is more than one line: {lines:?}");
    for part in ["/f: ", "op=", "errno=28"] {
        assert!(lines[0].contains(part), "{part} is missing: {lines:?}");
    }

    rig.server().faults().clear();
    fs::write(&path, fresh_bytes(3000)).unwrap();
    assert_eq!(pdsfs_xattr(&mount, "f", "state"), "saved", "a failure outlives the next success");
    assert_eq!(errno(xattr(&path, "user.pdsfs.error")), libc::ENODATA);
}

/// Control characters, line separators, and characters that change the direction of text.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[test]
fn control_characters_in_names_are_escaped() {
    const NAME: &str = "a\n\x1b[2J\u{202e}b\u{9b}";
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Stall));
    let path = mount.at(NAME);
    let mut file = File::create(&path).unwrap();
    file.write_all(&fresh_bytes(2000)).unwrap();
    let writer = std::thread::spawn(move || file.sync_all());
    wait_until("the file is pending", || (status(&mount).pending.files == 1).then_some(()));
    // The timeout leaves time for the first answer of a busy daemon.
    let mut outputs = vec![pdsfs(&mount, &["status"]), pdsfs(&mount, &["wait", "--timeout", "2s"])];
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
        outputs.push(pdsfs(&mount, words));
    }
    let named = events(&mount).into_iter().find(|entry| entry.what == EventKind::Failed).unwrap();
    assert_eq!(named.path.unwrap(), format!("/{NAME}"), "JSON does not have the name unchanged");
    // This one is still open at the end.
    let mut file = File::create(&path).unwrap();
    file.write_all(&fresh_bytes(2000)).unwrap();
    mount.signal(libc::SIGTERM);
    let (code, log) = mount.ended();
    assert_eq!(code, 1, "{log:?}");
    assert!(log.iter().any(|line| line.starts_with("NOT SAVED /a\\n\\u{1b}")), "{log:?}");
    let mut lines = log;
    for output in outputs {
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(all.contains("/a\\n"), "the name is missing: {all:?}");
        lines.extend(all.lines().map(str::to_owned));
    }
    for line in lines {
        assert!(!line.contains(is_control), "{line:?}");
    }
}

#[test]
fn wait_includes_open_unsaved_files() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!(status(&mount).pending.files_open, 1);
    assert_eq!(status(&mount).transfers[0].state, TransferStage::Writing);
    assert_eq!(pdsfs(&mount, &["wait", "--timeout", "0s"]).status.code(), Some(3));
    assert_eq!(pdsfs(&mount, &["wait", "--closed"]).status.code(), Some(0));
    // An open file without unsaved bytes is not waited for.
    file.sync_all().unwrap();
    assert_eq!(pdsfs(&mount, &["wait"]).status.code(), Some(0));
    drop(file);
    let staged = File::options().write(true).open(mount.at("f")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&staged, b"H", 0).unwrap();
    assert_eq!(status(&mount).transfers[0].state, TransferStage::Staged);
    assert_eq!(pdsfs_xattr(&mount, "f", "state"), "staged");
    assert_eq!(pdsfs(&mount, &["wait", "--timeout", "0s"]).status.code(), Some(3));
    drop(staged);
    assert_eq!(pdsfs(&mount, &["wait"]).status.code(), Some(0));
}

#[test]
fn drain_commits_open_files() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(b"so far").unwrap();
    let drained = drain(&mount, PATIENCE);
    assert!(drained.unsaved.is_empty() && !drained.timed_out, "{drained:?}");
    assert_eq!(rig.client().read("f").unwrap(), b"so far");
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Stall));
    file.write_all(&fresh_bytes(3 * PART)).unwrap();
    assert!(drain(&mount, Duration::from_millis(100)).timed_out);
    rig.server().faults().clear();
}

#[test]
fn drain_leaves_unfinished_overwrites_alone() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    fs::write(mount.at("f"), b"old content").unwrap();
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(b"half of ").unwrap();
    let drained = drain(&mount, PATIENCE);
    let unsaved: Vec<_> =
        drained.unsaved.iter().map(|file| (file.path.as_str(), file.error.as_str())).collect();
    let expected = "its program is still writing (8 B so far); the drive has the old content";
    assert_eq!(unsaved, [("/f", expected)]);
    assert_eq!(rig.client().read("f").unwrap(), b"old content");
    file.write_all(b"the new content").unwrap();
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), b"half of the new content");
    assert!(drain(&mount, PATIENCE).unsaved.is_empty());
}

#[test]
fn pdsfs_xattrs_are_readable_but_not_listed() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let path = mount.at("f");
    fs::write(&path, b"x").unwrap();
    set_xattr(&path, "user.kept", b"1", 0).unwrap();
    assert_eq!(xattrs(&path), ["user.kept"]);
    let meta = rig.client().find("f").unwrap();
    assert_eq!(pdsfs_xattr(&mount, "f", "file_id"), meta.file_id);
    assert_eq!(pdsfs_xattr(&mount, "f", "revision"), meta.revision.unwrap());
    assert_eq!(pdsfs_xattr(&mount, "f", "sha1"), meta.sha1.unwrap());
    assert_eq!(pdsfs_xattr(&mount, "f", "progress_bytes"), "1");
    assert_eq!(errno(xattr(&path, "user.pdsfs.nonsense")), libc::ENODATA);
    assert_eq!(errno(set_xattr(&path, "user.pdsfs.state", b"x", 0)), libc::EPERM);
    assert_eq!(errno(remove_xattr(&path, "user.pdsfs.state")), libc::EPERM);
    assert_eq!(errno(xattr(mount.path(), "user.pdsfs.state")), libc::ENODATA, "a directory has a state");
}

#[test]
fn control_socket_is_private_and_cleaned_up() {
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
    assert!(!path.exists(), "the socket of a dead daemon remains");
    drop(dead);
}

#[test]
fn status_names_a_dead_mount() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let path = mount.path().to_str().unwrap().to_owned();
    let dead = mount.kill();
    // Other mounts may end at the same time, which hides the dead one for a moment.
    wait_until("status names the dead mount", || {
        let output = Command::new(env!("CARGO_BIN_EXE_pdsfs")).arg("status").output().unwrap();
        let died = format!("the program behind {path} has died; pdsfs umount '{path}' removes the mount");
        (output.status.code() == Some(1) && text(&output.stderr).contains(&died)).then_some(())
    });
    drop(dead);
}

/// Starts to follow the log and returns the HTTP status. Reads nothing after it.
fn follow(mount: &Mount) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(socket(mount).unwrap()).unwrap();
    stream.write_all(b"GET /v1/events?since=0&follow=true HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut begin = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut begin).unwrap();
    (stream, text(&begin[9..]))
}

#[test]
fn slow_control_clients_block_nothing() {
    const FOLLOWERS: usize = 32;
    const FILES: usize = 250;
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    // Long paths make large events: the socket of a follower is full after about sixty of them.
    let dir = (0..13).fold(mount.at(""), |dir, _| dir.join("d".repeat(250)));
    fs::create_dir_all(&dir).unwrap();
    let save = |kind: &str| {
        let began = Instant::now();
        (0..FILES).for_each(|n| fs::write(dir.join(format!("{kind}{n}")), b"x").unwrap());
        began.elapsed()
    };
    let alone = save("a");
    let before = mount.peak_memory_bytes();
    let all: Vec<_> = (0..FOLLOWERS + 8).map(|_| follow(&mount)).collect();
    let granted = all.iter().filter(|(_, code)| code == "200").count();
    assert_eq!((granted, all.iter().filter(|(_, code)| code == "503").count()), (FOLLOWERS, 8));
    // A daemon that waited for these clients would wait until it disconnects them, after 20 s.
    let beside = save("b");
    assert!(beside < alone * 3 + Duration::from_secs(10), "{beside:?} with the clients, {alone:?} without");
    // A buffer for each client with all its unread events would take 27 MiB.
    let more = mount.peak_memory_bytes() - before;
    assert!(more < 16 << 20, "{more} bytes are buffered");
    let events = events(&mount);
    let saved = events.iter().filter(|entry| entry.what == EventKind::Committed).count();
    assert_eq!(saved, 2 * FILES, "a client that reads misses events");
    drop(all);
    wait_until("the disconnected clients free their slots", || (follow(&mount).1 == "200").then_some(()));
    let answer = control_request(&mount, "POST /v1/status");
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("POST is not supported"), "{answer}");
}

#[test]
fn status_watch_prints_lines_without_terminal() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let watching = Running::start(&mount, &["status", "--watch", "--interval", "100ms"]);
    for _ in 0..3 {
        watching.line("everything is on the drive");
    }
}

/// Every sample belongs to a described family and has a number.
fn check_metrics(text: &str) -> Vec<(String, u64)> {
    let body = text.strip_suffix("# EOF\n").expect("no end marker");
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
fn metrics_are_served_when_enabled() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB", "--metrics-listen", "127.0.0.1:0"]);
    let address = wait_until("the address is in the log", || {
        let log = mount.log();
        let line = log.iter().find(|line| line.contains("/metrics"))?;
        Some(line.split("http://").nth(1)?.split('/').next()?.to_owned())
    });
    fs::write(mount.at("private-name"), fresh_bytes(1000)).unwrap();
    let get_from = |host: &str, path: &str| {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    };
    let get = |path: &str| get_from(&address, path);
    let (head, body) = get_from("rebound.example", "/metrics");
    assert!(head.starts_with("HTTP/1.1 403 ") && !body.contains("pdsfs_"), "{head}");
    let (head, body) = get("/metrics");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("openmetrics-text"), "{head}");
    assert!(!body.contains("private-name"), "a file name is in {body}");
    let samples = check_metrics(&body);
    let value = |name: &str| samples.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{body}")).1;
    assert_eq!(value("pdsfs_committed_files_total{how=\"uploaded\"}"), 1);
    assert_eq!(value("pdsfs_committed_bytes_total"), 1000);
    assert_eq!(value("pdsfs_transfers{state=\"writing\"}"), 0);
    assert_eq!(value("pdsfs_lag_bytes"), 0);
    assert_eq!(value("pdsfs_paused"), 0);
    // Counters exist before their first event: a counter that appeared with it would show no increase.
    assert_eq!(value("pdsfs_failed_files_total{kind=\"quota_exceeded\"}"), 0);
    assert_eq!(value("pdsfs_refused_attributes"), 0);
    assert!(value("pdsfs_mount_time_seconds") > 1_000_000_000);
    assert!(get("/").0.starts_with("HTTP/1.1 404 "));
}
