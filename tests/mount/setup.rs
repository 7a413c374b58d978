//! `pdsfs setup`, with every answer as a flag.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

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
