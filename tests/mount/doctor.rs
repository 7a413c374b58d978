//! `pdsfs doctor` with mounts.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;

use crate::rig::Rig;
use crate::users::OrdinaryUser;

/// A directory for `$PATH` with a `systemctl` that does what `script` says.
pub fn systemctl(script: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("systemctl");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    for path in [dir.path(), &path] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

/// State and remedy of the lines about mounts.
fn mounts() -> Vec<(String, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_pdsfs")).args(["doctor", "--json"]).output().unwrap();
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = result["checks"].as_array().unwrap().iter().filter(|line| line["check"] == "mounts");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    lines.map(|line| (text(&line["state"]), text(&line["remedy"]))).collect()
}

#[test]
fn doctor_names_the_command_for_a_dead_mount() {
    let rig = Rig::new();
    let mount = rig.mount();
    let path = mount.path().display().to_string();
    assert!(!mounts().iter().any(|(_, remedy)| remedy.contains(&path)));
    let dead = mount.kill();
    let found = mounts();
    let (_, remedy) =
        found.iter().find(|(state, remedy)| state == "problem" && remedy.contains(&path)).unwrap();
    let status =
        Command::new("sh").arg("-c").arg(remedy.replacen("pdsfs", env!("CARGO_BIN_EXE_pdsfs"), 1)).status();
    assert!(status.unwrap().success(), "{remedy}");
    assert!(!mounts().iter().any(|(_, remedy)| remedy.contains(&path)));
    drop(dead);
}

#[test]
fn doctor_asks_systemd_about_the_units_of_the_user() {
    let user = OrdinaryUser::new();
    let bin = systemctl(
        "[ \"$1\" = --user ] || exit 1\n\
         echo pdsfs@good.service loaded active running x\necho pdsfs@bad.service loaded failed failed x",
    );
    let path = format!("{}:/usr/bin:/bin", bin.path().display());
    let output = user.command(user.binary()).arg("doctor").env("PATH", path).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let line =
        |part: &str| printed.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{printed}"));
    assert!(line("pdsfs@good.service of").starts_with("unit             OK "), "{printed}");
    assert!(line("pdsfs@bad.service of").starts_with("unit             PROBLEM "), "{printed}");
    assert!(line("systemctl --user restart").contains("pdsfs@bad.service"), "{printed}");
    assert!(line("/dev/fuse").starts_with("fuse             OK "), "{printed}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn doctor_ends_although_a_mount_hangs() {
    let rig = Rig::new();
    let mount = rig.mount();
    let path = mount.path().display().to_string();
    mount.signal(libc::SIGSTOP);
    let found = mounts();
    mount.signal(libc::SIGCONT);
    let remedy = format!("pdsfs umount --lazy '{path}'");
    assert!(found.iter().any(|(state, text)| state == "problem" && text.contains(&remedy)), "{found:?}");
}
