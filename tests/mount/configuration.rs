//! Drives of a configuration file: mounted by name, with another folder, in the background, and by `mount(8)`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::rig::{Rig, TOKEN, is_mount, unmount_lazily, wait_until};

/// Directories of a user, with a configuration of the drive "photos" and a mountpoint.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new(rig: &Rig, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Self { dir };
        fs::create_dir(home.mountpoint()).unwrap();
        fs::write(home.at("token"), TOKEN).unwrap();
        fs::set_permissions(home.at("token"), fs::Permissions::from_mode(0o600)).unwrap();
        let config = format!(
            "[defaults]\npart_size = \"1MiB\"\n[drives.photos]\nendpoint = \"{}\"\ndrive_id = 1\n\
             token_file = \"{}\"\nmountpoint = \"{}\"\n{more}\n",
            rig.endpoint(),
            home.at("token").display(),
            home.mountpoint().display()
        );
        fs::write(home.config(), config).unwrap();
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.at("config.toml")
    }

    fn mountpoint(&self) -> PathBuf {
        self.at("mnt")
    }

    /// Runs a program with a minimal environment and returns its output.
    fn run(&self, program: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PDSFS_CONFIG", self.config())
            .env("CACHE_DIRECTORY", self.at("cache"))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn pdsfs(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        self.run(Path::new(env!("CARGO_BIN_EXE_pdsfs")), arguments, variables)
    }

    /// Mounts in the background. The drop of `Home` unmounts, which ends the daemon.
    fn mount(&self, arguments: &[&str], variables: &[(&str, &str)]) {
        let output = self.pdsfs(&[&["mount", "--background"], arguments].concat(), variables);
        assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
        assert!(is_mount(&self.mountpoint()), "{}", output_text(&output));
    }

    fn unmount(&self) {
        let output = self.pdsfs(&["umount", self.mountpoint().to_str().unwrap()], &[]);
        assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
        assert!(!is_mount(&self.mountpoint()));
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        unmount_lazily(&self.mountpoint());
    }
}

fn output_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn drive_mounts_by_name_and_by_folder() {
    let rig = Rig::new();
    let whole = rig.mount();
    fs::create_dir_all(whole.at("Pictures/2024")).unwrap();
    let home = Home::new(&rig, "folder = \"/Pictures/2024\"");
    home.mount(&["photos"], &[]);
    fs::write(home.mountpoint().join("a.jpg"), b"picture").unwrap();
    home.unmount();
    assert_eq!(rig.client().read("Pictures/2024/a.jpg").unwrap(), b"picture");
    // A folder after the name replaces the configured folder.
    home.mount(&["photos:/Pictures"], &[]);
    assert_eq!(fs::read(home.mountpoint().join("2024/a.jpg")).unwrap(), b"picture");
    home.unmount();
    let output = home.pdsfs(&["mount", "photos:/Pictures/1999"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output_text(&output).contains("no folder \"1999\""), "{}", output_text(&output));
}

/// The kernel takes at most 255 bytes for the source.
#[test]
fn long_folder_path_is_mounted() {
    let rig = Rig::new();
    let whole = rig.mount();
    let folder = ["\u{e4}".repeat(100), "b".repeat(200)].join("/");
    fs::create_dir_all(whole.at(&folder)).unwrap();
    let home = Home::new(&rig, &format!("folder = \"/{folder}\""));
    home.mount(&["photos"], &[]);
    fs::write(home.mountpoint().join("f"), b"x").unwrap();
    home.unmount();
    assert_eq!(rig.client().read(&format!("{folder}/f")).unwrap(), b"x");
    assert_eq!(whole.stop(), 0);
}

#[test]
fn flag_overrides_variable_overrides_file() {
    let rig = Rig::new();
    let home = Home::new(&rig, "read_only = true");
    let writes = || fs::write(home.mountpoint().join("f"), b"x").is_ok();
    home.mount(&["photos"], &[]);
    assert!(!writes(), "the file does not set read-only");
    home.unmount();
    home.mount(&["photos"], &[("PDSFS_READ_ONLY", "false")]);
    assert!(writes(), "the variable does not override the file");
    home.unmount();
    home.mount(&["photos", "--read-only"], &[("PDSFS_READ_ONLY", "false")]);
    assert!(!writes(), "the flag does not override the variable");
    home.unmount();
    // A folder after the name counts as a flag. Of two settings that exclude each other, the stronger source wins.
    let whole = rig.mount();
    fs::create_dir(whole.at("Pictures")).unwrap();
    let token = home.at("token");
    let variables =
        [("PDSFS_FOLDER", "/nowhere"), ("PDSFS_ACCOUNT", "missing"), ("PDSFS_READ_ONLY", "false")];
    home.mount(&["photos:/Pictures", "--token-file", token.to_str().unwrap()], &variables);
    assert!(writes());
    home.unmount();
    assert_eq!(rig.client().names("Pictures"), ["f"]);
    let output = home.pdsfs(&["mount", "photos"], &[("PDSFS_PART_SIZE", "63")]);
    assert_eq!(output.status.code(), Some(2), "{}", output_text(&output));
    assert!(output_text(&output).contains("PDSFS_PART_SIZE: "), "{}", output_text(&output));
    let help = home.pdsfs(&["mount", "--help"], &[]);
    assert!(output_text(&help).contains("[env: PDSFS_PART_SIZE="), "the help does not list the variables");
}

#[test]
fn mount_8_helper_mounts_and_reports_errors() {
    let rig = Rig::new();
    let home = Home::new(&rig, "");
    let program = home.at("mount.fuse.pdsfs");
    symlink(env!("CARGO_BIN_EXE_pdsfs"), &program).unwrap();
    let mountpoint = home.mountpoint();
    let dir = mountpoint.to_str().unwrap();
    let output = home.run(
        &program,
        &["photos", dir, "-n", "-o", "rw,noauto,_netdev,umask=077", "-t", "fuse.pdsfs"],
        &[],
    );
    assert_eq!((output.status.code(), output_text(&output).as_str()), (Some(0), ""));
    fs::write(mountpoint.join("f"), b"by mount").unwrap();
    assert_eq!(fs::metadata(&mountpoint).unwrap().permissions().mode() & 0o777, 0o700);
    home.unmount();
    wait_until("the file is on the drive", || rig.client().read("f").filter(|bytes| bytes == b"by mount"));
    let missing = home.at("missing");
    let codes = [
        (&["photos", dir, "-o", "umask=9"][..], 1, "option umask: "),
        (&["photos", dir, "-o", "suid"], 1, "option suid: "),
        (&["fotos", dir], 1, "fotos"),
        (&["photos", dir, "-f"], 0, ""),
        (&["photos", missing.to_str().unwrap()], 32, "does not exist"),
        (&["photos:/nowhere", dir], 32, "no folder"),
    ];
    for (arguments, code, why) in codes {
        let output = home.run(&program, arguments, &[]);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", output_text(&output));
        assert!(output_text(&output).contains(why), "{arguments:?}: {}", output_text(&output));
    }
}

/// The real `mount(8)`, which finds its helpers in /sbin: in a mount namespace where /sbin has only ours.
#[test]
fn mount_8_mounts_fstab_lines() {
    // SAFETY: geteuid has no arguments and cannot fail.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test needs root, to replace /sbin in a mount namespace");
    let rig = Rig::new();
    let home = Home::new(
        &rig,
        "read_only = true\n[drives.second]\nendpoint = \"http://127.0.0.1:9\"\ndrive_id = 1\n",
    );
    let dir = home.mountpoint();
    fs::create_dir(home.at("second")).unwrap();
    fs::create_dir(home.at("third")).unwrap();
    let fstab = format!(
        "photos {} fuse.pdsfs _netdev,noexec,noatime,umask=022,read_only=false 0 0\n\
         photos:/ {} fuse.pdsfs noauto 0 0\n\
         second {} fuse.pdsfs noauto,token_file={} 0 0\n\
         unknown {} fuse.pdsfs noauto 0 0\n",
        dir.display(),
        home.at("third").display(),
        home.at("second").display(),
        home.at("token").display(),
        home.at("second").display(),
    );
    fs::write(home.at("fstab"), fstab).unwrap();
    let script = r#"
        mount --make-rprivate / && mount -t tmpfs none "$(readlink -f /sbin)" || exit 99
        ln -s "$PDSFS" /sbin/mount.fuse.pdsfs
        trap 'umount -l "$DIR" "$DIR/../third" 2>/dev/null' EXIT
        printed=$(mount -T "$FSTAB" -a 2>&1); echo "all $? $printed"
        findmnt -no SOURCE,FSTYPE,OPTIONS "$DIR"
        echo "echo hello" >"$DIR/program" && chmod +x "$DIR/program" && "$DIR/program"; echo "runs $?"
        mount -T "$FSTAB" -a; echo "again $?"
        mount -T "$FSTAB" photos; echo "twice $?"
        mount -T "$FSTAB" second; echo "unreachable $?"
        mount -T "$FSTAB" unknown; echo "unknown $?"
        mount -T "$FSTAB" photos:/; echo "third $?"; touch "$DIR/../third/new"; echo "refused $?"
        mount -T "$FSTAB" -o remount,ro "$DIR"; touch "$DIR/new"; echo "read-only $?"
        "$PDSFS" umount --drain "$DIR"; echo "umount $?"
        "$PDSFS" umount --drain "$DIR/../third"; echo "umount $?"
    "#;
    let fstab = home.at("fstab");
    let variables = [
        ("PDSFS", env!("CARGO_BIN_EXE_pdsfs")),
        ("FSTAB", fstab.to_str().unwrap()),
        ("DIR", dir.to_str().unwrap()),
        ("PDSFS_CALL_TIMEOUT", "1s"),
    ];
    let output = home.run(Path::new("unshare"), &["-m", "sh", "-c", script], &variables);
    let text = output_text(&output);
    let lines = [
        "all 0 ",
        "runs 126",
        "again 0",
        "twice 32",
        "unreachable 32",
        "unknown 1",
        "umount 0",
        "third 0",
        "refused 1",
        "read-only 1",
    ];
    for line in lines {
        assert!(text.lines().any(|text| text == line), "no line {line:?} in {text}");
    }
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    let shown = text.lines().find(|line| line.contains("fuse.pdsfs") && line.contains("user_id=0")).unwrap();
    assert!(shown.starts_with("photos ") && shown.contains("noexec"), "{shown}");
    assert_eq!(rig.client().read("program").unwrap(), b"echo hello\n");
}

/// Through the real `mount(8)`, which adds the present options of the mount.
#[test]
fn mount_8_remounts_read_only_and_back() {
    // SAFETY: geteuid has no arguments and cannot fail.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test needs root, to replace /sbin in a mount namespace");
    let rig = Rig::new();
    let home = Home::new(&rig, "");
    let script = r#"
        mount --make-rprivate / && mount -t tmpfs none "$(readlink -f /sbin)" || exit 99
        ln -s "$PDSFS" /sbin/mount.fuse.pdsfs
        trap 'umount -l "$DIR" 2>/dev/null' EXIT
        options() { findmnt -no VFS-OPTIONS,FS-OPTIONS "$DIR" | tr -s ' '; }
        is_read_only() { "$PDSFS" status --json "$DIR" | grep -o '"read_only": *[a-z]*' | tr -d ' '; }
        mount -t fuse.pdsfs photos "$DIR"; echo "mount $?"
        echo old >"$DIR/f"; echo "write $?"
        exec 3>"$DIR/open"; mount -o remount,ro "$DIR"; echo "busy $?"; exec 3>&-
        echo gone >"$DIR/gone"; exec 3<"$DIR/gone"; rm "$DIR/gone"; mount -o remount,ro "$DIR"; echo "deleted $?"; exec 3<&-
        mount -o remount,ro "$DIR"; echo "ro $?"; echo "now $(options) $(is_read_only)"
        cat "$DIR/f"; echo new >"$DIR/f"; echo "refused $?"
        for refused in "touch $DIR/g" "mkdir $DIR/d" "rm $DIR/f" "chmod 600 $DIR/f"; do $refused; echo "$refused $?"; done
        mount -o remount,rw,noexec "$DIR"; echo "rw $?"; echo "then $(options) $(is_read_only)"
        echo new >"$DIR/f"; echo "written $?"
        "$PDSFS" umount --drain "$DIR"; echo "umount $?"
        mount -t fuse.pdsfs -o ro photos "$DIR"; echo "again $?"; echo "first $(options) $(is_read_only)"
        mount -o remount,rw "$DIR"; echo more >>"$DIR/f"; echo "more $?"
        "$PDSFS" umount --drain "$DIR"; echo "umount $?"
    "#;
    let dir = home.mountpoint();
    let variables = [("PDSFS", env!("CARGO_BIN_EXE_pdsfs")), ("DIR", dir.to_str().unwrap())];
    let output = home.run(Path::new("unshare"), &["-m", "bash", "-c", script], &variables);
    let text = output_text(&output);
    let refused = ["touch D/g 1", "mkdir D/d 1", "rm D/f 1", "chmod 600 D/f 1", "refused 1"];
    let refused = refused.map(|line| line.replace('D', dir.to_str().unwrap()));
    let lines = [
        "mount 0",
        "write 0",
        "busy 32",
        "deleted 32",
        "ro 0",
        "old",
        "rw 0",
        "written 0",
        "again 0",
        "more 0",
    ];
    for line in lines.into_iter().chain(refused.iter().map(String::as_str)) {
        assert!(text.lines().any(|text| text == line), "no line {line:?} in {text}");
    }
    assert!(text.contains("programs have files of it open for writing"), "{text}");
    let count = |what: &str| text.matches(what).count();
    assert_eq!(count("Read-only file system"), refused.len(), "{text}");
    assert_eq!(text.lines().filter(|line| *line == "umount 0").count(), 2, "{text}");
    let options = |tag: &str| text.lines().find(|line| line.starts_with(tag)).unwrap().to_owned();
    for (tag, flags) in [
        ("now", "ro,nosuid,nodev,noatime"),
        ("then", "rw,nosuid,nodev,noexec,noatime"),
        ("first", "ro,nosuid,nodev,noatime"),
    ] {
        assert!(options(tag).starts_with(&format!("{tag} {flags} {}", &flags[..2])), "{text}");
        assert!(options(tag).ends_with(&format!("\"read_only\":{}", flags.starts_with("ro"))), "{text}");
    }
    assert_eq!(rig.client().read("f").unwrap(), b"new\nmore\n");
}

#[test]
fn configured_token_stays_with_its_endpoint() {
    let (rig, other) = (Rig::new(), Rig::new());
    let home = Home::new(&rig, "");
    let variables = [("PDSFS_ENDPOINT", other.endpoint())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let output = home.pdsfs(&["mount", "--background", "photos"], &variables);
    assert_eq!(output.status.code(), Some(2), "{}", output_text(&output));
    assert!(
        output_text(&output).contains("token_file of the configuration is not sent"),
        "{}",
        output_text(&output)
    );
    // With a token of its own, the endpoint may differ.
    let token = home.at("token");
    home.mount(&["photos", "--token-file", token.to_str().unwrap()], &variables);
    fs::write(home.mountpoint().join("f"), b"x").unwrap();
    home.unmount();
    assert_eq!(other.client().read("f").unwrap(), b"x");
}

#[test]
fn relative_mountpoint_uses_caller_directory() {
    let rig = Rig::new();
    let home = Home::new(&rig, "");
    let output = Command::new(env!("CARGO_BIN_EXE_pdsfs"))
        .args(["mount", "--background", "photos", "mnt"])
        .current_dir(home.dir.path())
        .env("PDSFS_CONFIG", home.config())
        .env("CACHE_DIRECTORY", home.at("cache"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", output_text(&output));
    assert!(is_mount(&home.mountpoint()), "it is not mounted at the relative path");
    home.unmount();
}

#[test]
fn detached_mount_without_caller_unmounts() {
    let rig = Rig::new();
    let home = Home::new(&rig, "");
    let mut child = Command::new(env!("CARGO_BIN_EXE_pdsfs"))
        .args(["mount", "--detached", "photos"])
        .env("PDSFS_CONFIG", home.config())
        .env("CACHE_DIRECTORY", home.at("cache"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
    assert!(output_text(&output).contains("is gone"), "{}", output_text(&output));
    assert!(!is_mount(&home.mountpoint()), "a dead mount remains");
}

#[test]
fn background_mount_gets_the_token_of_its_caller() {
    let rig = Rig::new();
    let home = Home::new(&rig, "");
    let dir = home.mountpoint();
    let endpoint = rig.endpoint();
    let arguments = ["--endpoint", &endpoint, "--drive-id", "1", dir.to_str().unwrap()];
    home.mount(&arguments, &[("PDSFS_TOKEN", TOKEN)]);
    fs::write(dir.join("f"), "x").unwrap();
    home.unmount();
    assert_eq!(rig.client().read("f").unwrap(), b"x");
}

#[test]
fn background_mount_reports_errors_to_caller() {
    let mut rig = Rig::new();
    let home = Home::new(&rig, "call_timeout = \"1s\"");
    rig.stop();
    let output = home.pdsfs(&["mount", "--background", "photos"], &[]);
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
    assert!(output_text(&output).contains("cannot open drive 1"), "{}", output_text(&output));
    let broken = Home::new(&rig, "umask = \"9\"");
    let output = broken.pdsfs(&["mount", "--background", "photos"], &[]);
    assert_eq!(output.status.code(), Some(2), "{}", output_text(&output));
    assert!(output_text(&output).contains("config.toml:8: drives.photos.umask"), "{}", output_text(&output));
    let output = broken.pdsfs(&["config", "check"], &[]);
    assert_eq!(output.status.code(), Some(1), "{}", output_text(&output));
    assert!(output_text(&output).contains("config.toml:8: drives.photos.umask"), "{}", output_text(&output));
    assert_eq!(home.pdsfs(&["config", "check"], &[]).status.code(), Some(0));
    assert_eq!(home.pdsfs(&["mount", "fotos"], &[]).status.code(), Some(2));
}

#[test]
fn closed_pipe_ends_command_without_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    let output = command.args(["config", "example"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output_text(&output).as_str()), (Some(0), ""));
}
