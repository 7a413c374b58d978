//! Questions at a terminal.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::{Command, Stdio};

use crate::rig::{CLIENT, Rig, visit};

/// A terminal: the end of the person, and the end of the program.
pub fn terminal() -> (File, OwnedFd) {
    let (mut person, mut program) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: the first two arguments are valid for writes; the others may be null.
    let opened = unsafe { libc::openpty(&raw mut person, &raw mut program, null, null.cast(), null.cast()) };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: openpty has returned two new descriptors.
    unsafe { (File::from_raw_fd(person), OwnedFd::from_raw_fd(program)) }
}

/// Gives the command a terminal as stdin. Returns the end of the person.
fn at_terminal(command: &mut Command) -> File {
    let (person, program) = terminal();
    command.stdin(Stdio::from(program));
    person
}

/// What the program suggests to this user.
fn suggested(name: &str) -> String {
    // SAFETY: the call has no arguments and cannot fail.
    if unsafe { libc::geteuid() } == 0 { format!("/mnt/{name}") } else { "~/Drive".to_owned() }
}

#[test]
fn login_asks_for_domain_and_app_at_a_terminal() {
    let rig = Rig::new();
    let mut command = rig.pdsfs(&["login", "--no-browser", "--port", "0", "--store", "file"]);
    let mut person = at_terminal(&mut command);
    // The second answer is no domain, so it is asked again.
    write!(person, "no domain\n{}\n{CLIENT}\n", rig.endpoint()).unwrap();
    let (login, page) = Rig::start(command);
    let shown = visit(&rig.press(&page, "allow")).text();
    assert!(shown.contains("You are logged in as owner"), "{shown}");
    let (is_ok, printed) = login.end();
    assert!(is_ok, "{printed}");
    for expected in
        ["pds.console.aliyun.com", "no domain", "waiting for the browser; Ctrl-C ends this", "--paste"]
    {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
    let next = format!("mount it with: pdsfs mount default {}", suggested("default"));
    assert!(printed.contains(&next) && printed.contains("drive 1 ("), "{printed}");
}

#[test]
fn login_without_terminal_names_both_flags() {
    let rig = Rig::new();
    let output = rig.run(&["login"], "");
    let printed = crate::rig::stderr(&output);
    assert!(printed.contains("--endpoint") && printed.contains("--client-id"), "{printed}");
}
