//! The worker of the file-manager extensions (`packaging/desktop`) on a real mount: states, events, commands.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use pdsfs::server::{FaultAction, FaultRule};
use serde_json::{Value, json};

use crate::rig::{PATIENCE, Rig, fresh_bytes};

const PART: usize = 64 << 10;

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/desktop").join(path)
}

fn python() -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// The process that a file manager starts. It ends with its input.
struct Worker(Child, ChildStdin, Receiver<Value>);

impl Worker {
    /// `program` stands in for pdsfs. No notification service is reached.
    fn start(program: &Path) -> Self {
        let mut command = python();
        command.arg(source("pdsfs_desktop/worker.py")).env("PDSFS", program);
        command.env_remove("DBUS_SESSION_BUS_ADDRESS");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("install the package python3");
        let (sender, messages) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        let input = child.stdin.take().unwrap();
        Self(child, input, messages)
    }

    fn send(&mut self, request: &Value) {
        writeln!(self.1, "{request}").unwrap();
    }

    fn read(&mut self, path: &Path) {
        self.send(&json!({"read": path}));
    }

    /// Waits for a message that passes the check.
    fn wait_for(&self, what: &str, check: impl Fn(&Value) -> bool) -> Value {
        let mut others = Vec::new();
        loop {
            match self.2.recv_timeout(PATIENCE) {
                Ok(message) if check(&message) => return message,
                Ok(message) => others.push(message),
                Err(error) => panic!("no message of {what}: {error}; others: {others:?}"),
            }
        }
    }

    fn wait_for_state(&self, path: &Path, state: &str) {
        let path = path.to_str().unwrap();
        self.wait_for(state, |message| message["path"] == path && message["state"] == state);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn emblem_follows_an_upload_by_events() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    let path = mount.at("caf\u{e9} 1.bin");
    let mut worker = Worker::start(Path::new("/bin/false"));
    let mut file = File::create(&path).unwrap();
    file.write_all(&fresh_bytes(2 * PART)).unwrap();
    worker.read(&path);
    worker.wait_for_state(&path, "uploading");
    drop(file);
    // This state comes by the event of the commit: it was not asked for.
    worker.wait_for_state(&path, "saved");
}

#[test]
fn emblem_of_a_failed_file_recovers() {
    let rig = Rig::new();
    let mount = rig.mount();
    let path = mount.at("f");
    let denied = FaultAction::Status {
        status: 403,
        code: "Forbidden".into(),
        message: "no".into(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: false,
    };
    let mut worker = Worker::start(Path::new("/bin/false"));
    let mut file = File::create(&path).unwrap();
    rig.server().faults().add(FaultRule::new("file/create", denied.clone()));
    rig.server().faults().add(FaultRule::new("file/complete", denied));
    file.write_all(b"content").unwrap();
    assert!(file.sync_all().is_err());
    worker.read(&path);
    worker.wait_for_state(&path, "failed");
    drop(file);
    rig.server().faults().clear();
    fs::write(&path, b"again").unwrap();
    worker.wait_for_state(&path, "saved");
}

#[test]
fn emblem_shows_an_unreachable_drive() {
    let mut rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    let path = mount.at("f");
    let mut worker = Worker::start(Path::new("/bin/false"));
    let mut file = File::create(&path).unwrap();
    worker.read(&path);
    rig.stop();
    let writer =
        std::thread::spawn(move || file.write_all(&fresh_bytes(4 * PART)).and_then(|()| file.sync_all()));
    worker.wait_for_state(&path, "offline");
    rig.resume();
    writer.join().unwrap().unwrap();
    worker.wait_for_state(&path, "saved");
}

#[test]
fn dead_mount_is_offline_in_the_file_manager() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("f"), b"content").unwrap();
    let path = mount.at("f");
    let mut worker = Worker::start(Path::new("/bin/false"));
    worker.read(&path);
    worker.wait_for_state(&path, "saved");
    let _dead = mount.kill();
    // The end of the event stream tells the worker.
    worker.wait_for_state(&path, "offline");
}

#[test]
fn menu_has_only_commands_that_exist() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("pdsfs");
    let script = r#"#!/bin/sh
case "$*" in
"share --help" | "versions --help") ;;
"share -- /mnt/-x") echo "https://drive.test/s/1 until tomorrow" ;;
"versions -- /mnt/-x") echo "two versions" ;;
*) exit 2 ;;
esac
"#;
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut worker = Worker::start(&program);
    let found = worker.wait_for("commands", |message| message.get("commands").is_some());
    assert_eq!(found["commands"], json!(["share", "versions"]));
    worker.send(&json!({"run": "share", "path": "/mnt/-x"}));
    let copied = worker.wait_for("the clipboard", |message| message.get("copy").is_some());
    assert_eq!(copied["copy"], "https://drive.test/s/1");
    worker.send(&json!({"run": "versions", "path": "/mnt/-x"}));
    let shown = worker.wait_for("the window", |message| message.get("text").is_some());
    assert_eq!(shown["text"], "two versions");
}

#[test]
fn python_unit_tests_pass() {
    let output = python()
        .args(["-m", "unittest", "discover", "-s"])
        .arg(source("tests"))
        .current_dir(source(""))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("Ran 0 tests"), "{said}");
}
