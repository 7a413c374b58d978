//! `pdsfs setup`, with every answer as a flag.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::certificates::Authority;
use crate::doctor::systemctl;
use crate::rig::{Rig, TOKEN, is_mount, unmount_lazily};
use crate::users::OrdinaryUser;

/// A home directory, a server and the directory to mount at.
struct NewUser {
    rig: Rig,
    home: tempfile::TempDir,
}

impl NewUser {
    fn new() -> Self {
        let rig = Rig::with(|config| config.drives = 2);
        Self { rig, home: tempfile::tempdir().unwrap() }
    }

    fn place(&self) -> std::path::PathBuf {
        self.home.path().join("Drive")
    }

    fn config(&self) -> std::path::PathBuf {
        self.home.path().join("config/config.toml")
    }

    fn pdsfs(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
        command.args(args).env("STATE_DIRECTORY", self.home.path().join("state"));
        command.env("PDSFS_CONFIG", self.config()).env("XDG_CACHE_HOME", self.home.path().join("cache"));
        command
            .env_remove("PDSFS_TOKEN")
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .env_remove("XDG_RUNTIME_DIR");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command with a line as its input, and returns its success and its messages.
    fn run(&self, args: &[&str], line: &str) -> (bool, String) {
        let mut child = self.pdsfs(args).spawn().unwrap();
        // A program that fails early does not read stdin.
        let _ = child.stdin.take().unwrap().write_all(line.as_bytes());
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn setup(&self, args: &[&str], line: &str) -> (bool, String) {
        let place = self.place();
        self.run(
            &[&["setup", "--mountpoint", place.to_str().unwrap(), "--store", "file"], args].concat(),
            line,
        )
    }
}

impl Drop for NewUser {
    fn drop(&mut self) {
        if is_mount(&self.place()) {
            unmount_lazily(&self.place());
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn setup_logs_in_mounts_and_can_run_again() {
    let user = NewUser::new();
    let endpoint = user.rig.endpoint();
    let login = ["--endpoint", &endpoint, "--token", "--drive-id", "2", "--at-login", "no", "trial"];
    let (is_ok, printed) = user.setup(&login, TOKEN);
    assert!(is_ok && is_mount(&user.place()), "{printed}");
    for expected in
        ["logged in", "made the directory", "wrote the drive to", "pdsfs umount trial", "pdsfs status"]
    {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
    std::fs::write(user.place().join("f"), b"x").unwrap();
    assert!(!printed.contains(TOKEN));
    let written = read(&user.config());
    assert!(written.starts_with("[drives.trial]\n") && written.contains("account = \"trial\""), "{written}");
    std::fs::write(user.config(), format!("# mine\n{written}")).unwrap();
    // Nothing is left to answer, and nothing to do.
    let (is_ok, printed) = user.run(&["setup", "trial"], "");
    assert!(is_ok && printed.contains("logged in already") && printed.contains("mounted at"), "{printed}");
    assert_eq!(read(&user.config()), format!("# mine\n{written}"));
    // The name is enough from now on.
    let (is_ok, printed) = user.run(&["umount", "trial"], "");
    assert!(is_ok && !is_mount(&user.place()), "{printed}");
    let (is_ok, printed) = user.run(&["setup", "trial"], "");
    assert!(is_ok && is_mount(&user.place()), "{printed}");
}

#[test]
fn setup_without_answers_names_the_flags() {
    let user = NewUser::new();
    let (is_ok, printed) = user.setup(&[], "");
    assert!(!is_ok && printed.contains("--endpoint") && printed.contains("--client-id"), "{printed}");
    assert!(!user.place().exists() && !user.config().exists(), "nothing was made");
}

#[test]
fn setup_refuses_what_it_would_replace() {
    let user = NewUser::new();
    std::fs::create_dir(user.config().parent().unwrap()).unwrap();
    let before = "[drives.trial]\naccount = \"work\" # mine\n";
    std::fs::write(user.config(), before).unwrap();
    let endpoint = user.rig.endpoint();
    let (is_ok, printed) = user.setup(&["trial", "--endpoint", &endpoint, "--token"], TOKEN);
    assert!(!is_ok && printed.contains("account work") && printed.contains("account trial"), "{printed}");
    assert_eq!(read(&user.config()), before);
    // The unit reads the default file only.
    let (is_ok, printed) =
        user.setup(&["new", "--endpoint", &endpoint, "--token", "--at-login", "yes"], TOKEN);
    assert!(!is_ok && printed.contains("--at-login yes") && printed.contains("--config"), "{printed}");
    assert!(!user.place().exists() && !user.home.path().join("state").exists(), "nothing was made");
}

#[test]
fn setup_stores_the_ca_file() {
    let (user, authority) = (NewUser::new(), Authority::new("setup"));
    let (endpoint, file) = (user.rig.endpoint(), authority.file());
    let file = file.to_str().unwrap();
    let login = ["trial", "--endpoint", &endpoint, "--token", "--ca-file", file, "--no-mount"];
    let (is_ok, printed) = user.setup(&login, TOKEN);
    assert!(is_ok && read(&user.config()).contains(&format!("ca_file = \"{file}\"\n")), "{printed}");
    // A second run uses that file.
    std::fs::remove_file(file).unwrap();
    let (is_ok, printed) = user.run(&["setup", "trial", "--no-mount"], "");
    assert!(!is_ok && printed.contains("cannot use ca_file"), "{printed}");
}

#[test]
fn setup_keeps_the_mountpoint_of_the_drive() {
    let user = NewUser::new();
    let endpoint = user.rig.endpoint();
    let login = ["trial", "--endpoint", &endpoint, "--token", "--drive-id", "2", "--at-login", "no"];
    let (is_ok, printed) = user.setup(&login, TOKEN);
    assert!(is_ok, "{printed}");
    std::fs::create_dir(user.place().join("a")).unwrap();
    let written = read(&user.config());
    let (is_ok, printed) = user.run(&["umount", "trial"], "");
    assert!(is_ok, "{printed}");
    let other = user.home.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let (is_ok, printed) = user.run(&["mount", "trial:/a", other.to_str().unwrap(), "--background"], "");
    assert!(is_ok && is_mount(&other), "{printed}");
    let (is_ok, printed) = user.run(&["setup", "trial", "--no-mount"], "");
    unmount_lazily(&other);
    assert!(is_ok, "{printed}");
    assert_eq!(read(&user.config()), written);
}

#[test]
fn setup_can_leave_the_mount_for_later() {
    let user = NewUser::new();
    let endpoint = user.rig.endpoint();
    let (is_ok, printed) = user.setup(&["work", "--endpoint", &endpoint, "--token", "--no-mount"], TOKEN);
    assert!(is_ok && !is_mount(&user.place()), "{printed}");
    assert!(printed.contains("mount it with: pdsfs mount work"), "{printed}");
    assert!(read(&user.config()).starts_with("[drives.work]\n"));
}

#[test]
fn setup_enables_the_unit_of_the_user() {
    let (rig, user) = (Rig::new(), OrdinaryUser::new());
    let bin = systemctl("echo \"$@\" >>\"$HOME/asked\"");
    let run = |args: &[&str]| {
        let mut command = user.command(user.binary());
        command
            .env("PATH", format!("{}:/usr/bin:/bin", bin.path().display()))
            .env_remove("DBUS_SESSION_BUS_ADDRESS");
        for variable in
            ["STATE_DIRECTORY", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "PDSFS_CONFIG", "PDSFS_TOKEN"]
        {
            command.env_remove(variable);
        }
        let mut child = command.args(args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(TOKEN.as_bytes());
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let endpoint = rig.endpoint();
    let (is_ok, printed) =
        run(&["setup", "unit", "--endpoint", &endpoint, "--token", "--store", "file", "--at-login", "yes"]);
    assert!(is_ok && printed.contains("the user unit pdsfs@unit mounts it at each login"), "{printed}");
    let read = |name: &str| std::fs::read_to_string(user.home().join(name)).unwrap();
    assert!(read("asked").ends_with("--user enable --now pdsfs@unit.service\n"), "{}", read("asked"));
    let place = user.home().join("unit");
    assert!(place.is_dir() && !is_mount(&place), "the unit mounts it");
    assert!(read(".config/pdsfs/config.toml").contains(&format!("mountpoint = \"{}\"", place.display())));
}
