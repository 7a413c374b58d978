//! Drives of a configuration file: by name, below a folder, in the background, and by `mount(8)`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::rig::{Rig, TOKEN, is_mount, unmount_lazily, wait_until};

/// A user's folders, with a configuration of the drive "photos" and a place to mount at.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn new(rig: &Rig, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = Self { folder };
        fs::create_dir_all(home.at("config/pdsfs")).unwrap();
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
        fs::write(home.at("config/pdsfs/config.toml"), config).unwrap();
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn mountpoint(&self) -> PathBuf {
        self.at("mnt")
    }

    /// Runs a program of ours to its end, with nothing of this process's environment but what it needs.
    fn run(&self, program: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("XDG_CONFIG_HOME", self.at("config"))
            .env("XDG_CACHE_HOME", self.at("cache"))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn pdsfs(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        self.run(Path::new(env!("CARGO_BIN_EXE_pdsfs")), arguments, variables)
    }

    /// Mounts in the background; the daemon ends with the mount, and that ends with this value.
    fn mount(&self, arguments: &[&str], variables: &[(&str, &str)]) {
        let output = self.pdsfs(&[&["mount", "--background"], arguments].concat(), variables);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(is_mount(&self.mountpoint()), "{}", said(&output));
    }

    fn unmount(&self) {
        let output = self.pdsfs(&["umount", self.mountpoint().to_str().unwrap()], &[]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert!(!is_mount(&self.mountpoint()));
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        unmount_lazily(&self.mountpoint());
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn a_drive_is_mounted_by_its_name_below_a_folder() {
    let rig = Rig::new();
    let whole = rig.mount();
    fs::create_dir_all(whole.at("Pictures/2024")).unwrap();
    let home = Home::new(&rig, "folder = \"/Pictures/2024\"");
    home.mount(&["photos"], &[]);
    fs::write(home.mountpoint().join("a.jpg"), b"picture").unwrap();
    home.unmount();
    assert_eq!(rig.client().read("Pictures/2024/a.jpg").unwrap(), b"picture");
    // Said with the name, another folder is meant.
    home.mount(&["photos:/Pictures"], &[]);
    assert_eq!(fs::read(home.mountpoint().join("2024/a.jpg")).unwrap(), b"picture");
    home.unmount();
    let output = home.pdsfs(&["mount", "photos:/Pictures/1999"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("there is no folder \"1999\""), "{}", said(&output));
}

#[test]
fn a_flag_goes_over_a_variable_and_that_over_the_file() {
    let rig = Rig::new();
    let home = Home::new(&rig, "read_only = true");
    let writes = || fs::write(home.mountpoint().join("f"), b"x").is_ok();
    home.mount(&["photos"], &[]);
    assert!(!writes(), "the file says read-only");
    home.unmount();
    home.mount(&["photos"], &[("PDSFS_READ_ONLY", "false")]);
    assert!(writes(), "the variable says not");
    home.unmount();
    home.mount(&["photos", "--read-only"], &[("PDSFS_READ_ONLY", "false")]);
    assert!(!writes(), "the flag says read-only");
    home.unmount();
}

#[test]
fn mount_8_finds_what_it_needs() {
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
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    fs::write(mountpoint.join("f"), b"by mount").unwrap();
    assert_eq!(fs::metadata(&mountpoint).unwrap().permissions().mode() & 0o777, 0o700);
    home.unmount();
    wait_until("the file is on the drive", || rig.client().read("f").filter(|bytes| bytes == b"by mount"));
    let output = home.run(&program, &["photos", dir, "-o", "umask=9"], &[]);
    assert_ne!(output.status.code(), Some(0));
    assert!(said(&output).contains("option umask: "), "{}", said(&output));
}

#[test]
fn what_goes_wrong_in_the_background_is_told_in_front() {
    let mut rig = Rig::new();
    let home = Home::new(&rig, "call_timeout = \"1s\"");
    rig.stop();
    let output = home.pdsfs(&["mount", "--background", "photos"], &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("cannot reach drive 1"), "{}", said(&output));
    let broken = Home::new(&rig, "umask = \"9\"");
    let output = broken.pdsfs(&["mount", "--background", "photos"], &[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("config.toml:8: drives.photos.umask"), "{}", said(&output));
    let output = broken.pdsfs(&["config", "check"], &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("config.toml:8: drives.photos.umask"), "{}", said(&output));
    assert_eq!(home.pdsfs(&["config", "check"], &[]).status.code(), Some(0));
    assert_eq!(home.pdsfs(&["mount", "fotos"], &[]).status.code(), Some(2));
}
