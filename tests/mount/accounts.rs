//! Mounts of stored accounts: expired tokens and new logins.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use pdsfs::server::Secret;

use crate::monitoring::control_request;
use crate::rig::{Mount, PATIENCE, Rig, errno, fresh_bytes, is_mount, unmount_lazily};

const PART: usize = 64 << 10;

/// A server that accepts one refresh token, and a state directory for accounts.
struct Accounts {
    rig: Rig,
    state: tempfile::TempDir,
}

impl Accounts {
    fn new() -> Self {
        let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".into())));
        let accounts = Self { rig, state: tempfile::tempdir().unwrap() };
        accounts.login(&["--client-id", "app", "--refresh-token"], "RT-1");
        accounts
    }

    fn pdsfs(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
        command.env("STATE_DIRECTORY", self.state.path()).env_remove("DBUS_SESSION_BUS_ADDRESS");
        command.env_remove("PDSFS_TOKEN").env_remove("XDG_RUNTIME_DIR");
        command
    }

    fn login(&self, args: &[&str], secret: &str) {
        self.login_as("home", args, secret);
    }

    fn login_as(&self, name: &str, args: &[&str], secret: &str) {
        let mut login = self.pdsfs();
        login.args(["login", name, "--endpoint", &self.rig.endpoint(), "--store", "file"]).args(args);
        let mut child = login.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(secret.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Mounts with `--account` only: endpoint and drive come from the account.
    fn mount(&self, arguments: &[&str]) -> Mount {
        let arguments = [&["--account", "home", "--part-size", "64KiB"], arguments].concat();
        Mount::start_plain(self.pdsfs(), &arguments, tempfile::tempdir().unwrap())
    }
}

#[test]
fn mount_needs_only_an_account() {
    let accounts = Accounts::new();
    let mount = accounts.mount(&[]);
    let bytes = fresh_bytes(3 * PART + 7);
    std::fs::write(mount.at("f"), &bytes).unwrap();
    assert_eq!(accounts.rig.client().read("f").unwrap(), bytes);
}

#[test]
fn upload_resumes_after_new_login() {
    let accounts = Accounts::new();
    let mount = accounts.mount(&[]);
    let bytes = fresh_bytes(20 * PART + 11);
    let (first, second) = bytes.split_at(8 * PART);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(first).unwrap();
    let server = accounts.rig.server();
    accounts.rig.block_on(server.wait_until(|stats| stats.open_uploads.iter().any(|u| !u.parts.is_empty())));
    accounts.rig.block_on(server.revoke_all_tokens()).unwrap();
    // The rest is written and closed while the service refuses every call of the daemon.
    let writer = std::thread::spawn({
        let second = second.to_owned();
        move || {
            file.write_all(&second)?;
            // This is the error that close would report.
            file.sync_all()
        }
    });
    mount.wait_for_log("run pdsfs login home; uploads wait until then");
    // Calls other than writes fail at once.
    let code = errno(std::fs::read_dir(mount.at("no-such-dir")));
    assert!(code == libc::EACCES || code == libc::ENOENT, "{code}");
    assert!(!writer.is_finished(), "the upload failed before the new login");
    accounts.login(&["--token"], crate::rig::TOKEN);
    let end = std::time::Instant::now() + PATIENCE;
    while !writer.is_finished() && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(writer.is_finished(), "the upload does not resume");
    writer.join().unwrap().unwrap();
    assert_eq!(accounts.rig.client().read("f").unwrap(), bytes);
    assert_eq!(accounts.rig.client().names(""), ["f"]);
}

#[test]
fn close_fails_at_commit_timeout_without_login() {
    let accounts = Accounts::new();
    let mount = accounts.mount(&["--commit-timeout", "3s"]);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&fresh_bytes(PART)).unwrap();
    accounts.rig.block_on(accounts.rig.server().revoke_all_tokens()).unwrap();
    let code = errno(file.sync_all());
    assert_eq!(code, libc::ETIMEDOUT);
    drop(file);
    assert!(accounts.rig.client().names("").is_empty());
}

#[test]
fn running_mount_reloads_a_new_login() {
    let accounts = Accounts::new();
    let mount = accounts.mount(&[]);
    std::fs::write(mount.at("before"), b"x").unwrap();
    let reload = || control_request(&mount, "POST /v1/credentials/reload");
    // A login notifies the running mounts.
    accounts.login(&["--token"], crate::rig::TOKEN);
    accounts.rig.block_on(accounts.rig.server().revoke_all_tokens()).unwrap();
    std::fs::write(mount.at("after"), b"x").unwrap();
    assert_eq!(accounts.rig.client().names(""), ["after", "before"]);
    let statuses = accounts.rig.server().stats().statuses;
    assert!(!statuses.keys().any(|key| key.ends_with(" 401")), "the old token was used: {statuses:?}");

    let file = accounts.state.path().join("accounts/home.json");
    let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    let refused = reload();
    assert!(refused.starts_with("HTTP/1.1 409 ") && refused.contains("chmod 600"), "{refused}");
    std::fs::write(mount.at("still"), b"x").unwrap();
    mode(0o600);
    assert!(reload().starts_with("HTTP/1.1 200 "));
}

#[test]
fn two_mounts_share_an_expiring_account() {
    let accounts = Accounts::new();
    let mounts = [accounts.mount(&[]), accounts.mount(&[])];
    for round in 0..4 {
        // Both mounts are refused, and one of them refreshes the token.
        let ended = pdsfs::server::FaultRule::times("file/create", 1, pdsfs::server::FaultAction::Revoke);
        accounts.rig.server().faults().add(ended);
        for (n, mount) in mounts.iter().enumerate() {
            std::fs::write(mount.at(format!("f{round}-{n}")), fresh_bytes(100)).unwrap();
        }
    }
    assert_eq!(accounts.rig.client().names("").len(), 8);
    // One refresh for the login, and one for each round.
    assert_eq!(accounts.rig.server().stats().count("oauth/token"), 5);
    for mount in &mounts {
        assert!(!mount.log().iter().any(|line| line.contains("pdsfs login")), "{:?}", mount.log());
    }
}

#[test]
fn systemd_credential_overrides_configuration() {
    let accounts = Accounts::new();
    let (credentials, config) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    // The stored account moves to the service manager; the account store is empty.
    let stored = accounts.state.path().join("accounts/home.json");
    std::fs::rename(&stored, credentials.path().join("pdsfs.home")).unwrap();
    std::fs::write(config.path(), "[drives.home]\naccount = \"other\"\n").unwrap();
    let mount = || {
        let mut command = accounts.pdsfs();
        command.env("CREDENTIALS_DIRECTORY", credentials.path()).env("PDSFS_CONFIG", config.path());
        Mount::start_plain(command, &["home"], tempfile::tempdir().unwrap())
    };
    let first = mount();
    std::fs::write(first.at("a"), "a").unwrap();
    assert!(!stored.exists(), "the credential was stored again");
    let token_ends = || {
        let ended = pdsfs::server::FaultRule::times("file/create", 1, pdsfs::server::FaultAction::Revoke);
        accounts.rig.server().faults().add(ended);
    };
    token_ends();
    std::fs::write(first.at("b"), "b").unwrap();
    assert_eq!(first.stop(), 0);
    assert!(std::fs::read_to_string(&stored).unwrap().contains("seed"), "a rotated token is not stored");
    let second = mount();
    token_ends();
    std::fs::write(second.at("c"), "c").unwrap();
    assert_eq!(second.stop(), 0);
    assert_eq!(accounts.rig.client().names(""), ["a", "b", "c"]);
}

/// Unmounts a mount in the background after a failed assertion, which ends its daemon.
struct UnmountOnDrop(PathBuf);

impl Drop for UnmountOnDrop {
    fn drop(&mut self) {
        if is_mount(&self.0) {
            unmount_lazily(&self.0);
        }
    }
}

#[test]
fn mount_makes_a_missing_directory() {
    let accounts = Accounts::new();
    // Other tests of this user mount other names.
    accounts.login_as("missing", &["--token"], crate::rig::TOKEN);
    let parent = tempfile::tempdir().unwrap();
    let place = parent.path().join("Drive");
    let _guard = UnmountOnDrop(place.clone());
    let run = |args: &[&str]| {
        let output = accounts.pdsfs().args(args).stdin(Stdio::null()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let below = place.join("too/deep");
    let (is_ok, printed) = run(&["mount", "missing", below.to_str().unwrap()]);
    assert!(!is_ok && printed.contains("mkdir -p"), "{printed}");
    assert!(!place.exists());
    let (is_ok, printed) = run(&["mount", "missing", place.to_str().unwrap(), "--background"]);
    assert!(is_ok && printed.contains("made the directory"), "{printed}");
    assert!(is_mount(&place));
    // The account has no entry in a configuration: its name is that of the mount.
    let (is_ok, printed) = run(&["umount", "missing"]);
    assert!(is_ok && printed.contains("unmounted"), "{printed}");
    assert!(!is_mount(&place));
    let (is_ok, printed) = run(&["umount", "missing"]);
    assert!(!is_ok && printed.contains("missing is not mounted"), "{printed}");
    assert!(run(&["umount", "--dead", "missing"]).0);
}

#[test]
fn umount_takes_what_mount_takes() {
    let accounts = Accounts::new();
    accounts.login_as("several", &["--token"], crate::rig::TOKEN);
    std::fs::create_dir(accounts.mount(&[]).at("folder")).unwrap();
    let mount = |name: &str| Mount::start_plain(accounts.pdsfs(), &[name], tempfile::tempdir().unwrap());
    let umount = |target: &str| {
        let output = accounts.pdsfs().args(["umount", target]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (whole, folder) = (mount("several"), mount("several:/folder"));
    let (is_ok, printed) = umount("several");
    let named = [&whole, &folder].map(|mount| printed.contains(mount.path().to_str().unwrap()));
    assert!(!is_ok && named == [true; 2], "{printed}");
    let (is_ok, printed) = umount("several:/folder");
    assert!(is_ok && !is_mount(folder.path()) && is_mount(whole.path()), "{printed}");
    let (is_ok, printed) = umount("several");
    assert!(is_ok && !is_mount(whole.path()), "{printed}");
}

#[test]
fn mount_without_arguments_lists_names() {
    let accounts = Accounts::new();
    accounts.login_as("listed", &["--token"], crate::rig::TOKEN);
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), "[drives.photos]\naccount = \"home\"\nmountpoint = \"/mnt/photos\"\n")
        .unwrap();
    let mount = Mount::start_plain(accounts.pdsfs(), &["listed"], tempfile::tempdir().unwrap());
    let output = accounts.pdsfs().arg("mount").env("PDSFS_CONFIG", config.path()).output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let words: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[1][..3], ["photos", "drive", "/mnt/photos"]);
    // The account of the rig is in the list too.
    assert_eq!(words[3], ["listed", "account", mount.path().to_str().unwrap()]);
    // Nothing is mounted, so `pdsfs mount --background $EMPTY && rsync` must stop.
    assert_eq!(output.status.code(), Some(2));
    let output = accounts.pdsfs().args(["mount", "--background"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
