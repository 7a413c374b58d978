//! Checks before the mount whether this process may mount. The kernel and fusermount3 only return an errno;
//! these checks return the cause and the remedy.
//!
//! Root mounts directly and needs `CAP_SYS_ADMIN`. Other users mount through fusermount3: it must be
//! installed and set-uid root, it must be able to gain privileges, and it accepts only a directory that the
//! user owns or can write.

use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat, getxattr_query};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

use crate::error::{Error, ErrorKind, Result};
use crate::fuse::unmount;

/// Rules of fusermount3 for users other than root.
const FUSE_CONF: &str = "/etc/fuse.conf";
/// `CAP_SYS_ADMIN` in a mask of capabilities.
const SYS_ADMIN: u64 = 1 << 21;
/// Limit of open files to request. A staged file needs two.
const OPEN_FILES_MAX: u64 = 1 << 20;
const STICKY: u32 = 0o1000;
const SET_UID: u32 = 0o4000;

/// The facts that decide whether this process may mount.
#[derive(Debug)]
struct MountRights {
    device: io::Result<()>,
    uid: u32,
    has_sys_admin: bool,
    /// Child processes cannot gain privileges.
    no_new_privileges: bool,
    fusermount: Option<Fusermount>,
    conf_allows_other: bool,
}

#[derive(Debug)]
struct Fusermount {
    path: PathBuf,
    is_privileged: bool,
}

#[derive(Clone, Copy, Debug)]
struct Mountpoint<'a> {
    path: &'a Path,
    owner: u32,
    mode: u32,
    is_writable: bool,
}

/// How this process mounts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MountMethod {
    /// By the system call, as root.
    Direct,
    /// Through this set-uid program.
    Fusermount(PathBuf),
}

/// Fails if the FUSE device cannot be opened.
pub fn check_device() -> Result<()> {
    MountRights::of_this_process().check_device()
}

/// Fails if this process may mount nowhere.
pub fn mount_method() -> Result<MountMethod> {
    MountRights::of_this_process().method()
}

/// Fails if this process may not mount at `path`.
pub(super) fn check(path: &Path, metadata: &Metadata, allow_other: bool) -> Result<()> {
    let mountpoint =
        Mountpoint { path, owner: metadata.uid(), mode: metadata.mode(), is_writable: is_writable(path) };
    MountRights::of_this_process().check(mountpoint, allow_other)
}

/// Raises the soft limit of open files to the hard limit: each open file needs up to two descriptors. The
/// usual soft limit of 1,024 exists only for programs that use `select(2)`.
pub(super) fn raise_open_files() {
    // `None` means unlimited.
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(OPEN_FILES_MAX);
    let current = limit.current.map(|current| current.max(wanted));
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum }) {
        tracing::debug!("cannot raise the limit of open files: {}", io::Error::from(e));
    }
}

/// Turns core dumps off: they would contain secrets and content of files. Other processes of the user cannot
/// read the memory, the environment or the descriptors of this one.
pub(super) fn protect_memory() {
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::debug!("cannot close the memory of the process: {}", io::Error::from(e));
    }
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(e) = setrlimit(Resource::Core, none) {
        tracing::debug!("cannot turn core dumps off: {}", io::Error::from(e));
    }
}

/// Adds the likely cause and the remedy to an error of the mount itself.
pub(super) fn explain(error: Error) -> Error {
    let message = error.to_string().to_lowercase();
    let hint = if error.kind() == ErrorKind::Denied || message.contains("not permitted") {
        "a container needs --device /dev/fuse --cap-add SYS_ADMIN; a user namespace needs its own mount \
         namespace (unshare -m); AppArmor or SELinux may forbid mounts (see journalctl -k)"
    } else if message.contains("no such device") {
        "the kernel has no FUSE: load it with modprobe fuse"
    } else if message.contains("function not implemented") {
        "root needs Linux 5.4 or later; other users can mount through fusermount3"
    } else if message.contains("invalid argument") {
        "the kernel does not know an option: nosymfollow needs Linux 5.14 or later"
    } else if message.contains("too many") {
        "unmount a FUSE file system, or raise mount_max in /etc/fuse.conf as root"
    } else {
        return error;
    };
    Error::with_source(error.kind(), format!("cannot mount ({hint})"), error)
}

impl MountRights {
    fn of_this_process() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let uid = rustix::process::geteuid().as_raw();
        let fusermount = if uid == 0 { None } else { unmount::fusermount_path() };
        let fusermount = fusermount.map(|path| Fusermount { is_privileged: is_privileged(&path), path });
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map(|_| ());
        let conf = std::fs::read_to_string(FUSE_CONF).unwrap_or_default();
        Self {
            device,
            uid,
            // If /proc does not show it, the mount itself fails.
            has_sys_admin: field(&status, "CapEff:")
                .and_then(|mask| u64::from_str_radix(mask, 16).ok())
                .is_none_or(|mask| mask & SYS_ADMIN != 0),
            no_new_privileges: field(&status, "NoNewPrivs:") == Some("1"),
            fusermount,
            conf_allows_other: allows_other(&conf),
        }
    }

    fn check_device(&self) -> Result<()> {
        self.device.as_ref().copied().map_err(no_device)
    }

    fn method(&self) -> Result<MountMethod> {
        if self.uid == 0 {
            if self.has_sys_admin {
                return Ok(MountMethod::Direct);
            }
            return Err(denied(
                "cannot mount: root lacks CAP_SYS_ADMIN here; start a container with --cap-add SYS_ADMIN \
                 --device /dev/fuse; in a service, leave CAP_SYS_ADMIN in CapabilityBoundingSet",
            ));
        }
        let Some(fusermount) = &self.fusermount else {
            return Err(denied("cannot mount: fusermount3 is not installed; install the package fuse3"));
        };
        let program = fusermount.path.display();
        if !fusermount.is_privileged {
            return Err(denied(format!(
                "cannot mount: {program} is not set-uid root; run as root: chown root {program} && chmod \
                 4755 {program}"
            )));
        }
        if self.no_new_privileges {
            return Err(denied(format!(
                "cannot mount: {program} cannot become root because NoNewPrivileges is set; in a service, \
                 set NoNewPrivileges=no and no option that implies it"
            )));
        }
        Ok(MountMethod::Fusermount(fusermount.path.clone()))
    }

    fn check(&self, mountpoint: Mountpoint<'_>, allow_other: bool) -> Result<()> {
        self.check_device()?;
        if self.method()? == MountMethod::Direct {
            return Ok(());
        }
        if allow_other && !self.conf_allows_other {
            return Err(denied(format!(
                "--allow-other needs root or the line user_allow_other in {FUSE_CONF}"
            )));
        }
        let display = mountpoint.path.display();
        let foreign = format!(
            "{display} belongs to user {}: choose a directory of your own, or run as root: chown {} \
             '{display}'",
            mountpoint.owner, self.uid
        );
        if mountpoint.owner != self.uid && (mountpoint.mode & STICKY != 0 || !mountpoint.is_writable) {
            return Err(denied(foreign));
        }
        if !mountpoint.is_writable {
            return Err(denied(format!("{display} is not writable for you: run chmod u+w '{display}'")));
        }
        Ok(())
    }
}

fn denied(detail: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::Denied, detail)
}

fn no_device(e: &io::Error) -> Error {
    let (kind, remedy) = match e.kind() {
        io::ErrorKind::NotFound => (
            ErrorKind::NotFound,
            "load the module with modprobe fuse (in a container: --device /dev/fuse --cap-add SYS_ADMIN)",
        ),
        io::ErrorKind::PermissionDenied => (ErrorKind::Denied, "run as root: chmod 666 /dev/fuse"),
        _ => (ErrorKind::Io, "the kernel may lack FUSE: try modprobe fuse"),
    };
    Error::new(kind, format!("cannot open /dev/fuse: {e}; {remedy}"))
}

/// The value of a field of `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Whether the program is set-uid root or has file capabilities.
fn is_privileged(program: &Path) -> bool {
    let is_set_uid = |m: &Metadata| m.permissions().mode() & SET_UID != 0 && m.uid() == 0;
    program.metadata().is_ok_and(|m| is_set_uid(&m)) || has_capabilities(program)
}

fn has_capabilities(program: &Path) -> bool {
    getxattr_query(program, c"security.capability").is_ok_and(|size| size > 0)
}

fn is_writable(path: &Path) -> bool {
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// Each option of `fuse.conf` has a line of its own; `#` begins a comment.
fn allows_other(conf: &str) -> bool {
    conf.lines().any(|line| line.split('#').next().is_some_and(|option| option.trim() == "user_allow_other"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Mountpoint<'static> {
        Mountpoint { path: Path::new("/home/u/m"), owner: 1000, mode: 0o40_755, is_writable: true }
    }

    fn user() -> MountRights {
        MountRights {
            device: Ok(()),
            uid: 1000,
            has_sys_admin: false,
            no_new_privileges: false,
            fusermount: Some(Fusermount { path: "/usr/bin/fusermount3".into(), is_privileged: true }),
            conf_allows_other: true,
        }
    }

    fn refusal(rights: &MountRights, mountpoint: Mountpoint<'_>) -> String {
        rights.check(mountpoint, true).unwrap_err().to_string()
    }

    #[test]
    fn sufficient_rights_pass() {
        user().check(own(), true).unwrap();
        user().check(Mountpoint { owner: 0, ..own() }, false).unwrap();
        let root =
            MountRights { uid: 0, has_sys_admin: true, no_new_privileges: true, fusermount: None, ..user() };
        root.check(Mountpoint { is_writable: false, ..own() }, true).unwrap();
    }

    #[test]
    fn every_refusal_has_a_remedy() {
        let device = |kind: io::ErrorKind| MountRights { device: Err(kind.into()), ..user() };
        let table = [
            (device(io::ErrorKind::NotFound), "modprobe fuse"),
            (device(io::ErrorKind::PermissionDenied), "chmod 666 /dev/fuse"),
            (MountRights { uid: 0, ..user() }, "--cap-add SYS_ADMIN"),
            (MountRights { fusermount: None, ..user() }, "package fuse3"),
            (
                MountRights {
                    fusermount: Some(Fusermount { path: "/bin/fusermount3".into(), is_privileged: false }),
                    ..user()
                },
                "chmod 4755 /bin/fusermount3",
            ),
            (MountRights { no_new_privileges: true, ..user() }, "NoNewPrivileges=no"),
            (MountRights { conf_allows_other: false, ..user() }, "user_allow_other"),
        ];
        for (rights, remedy) in table {
            let text = refusal(&rights, own());
            assert!(text.contains(remedy), "{text}");
        }
        assert!(MountRights { conf_allows_other: false, ..user() }.check(own(), false).is_ok());
    }

    #[test]
    fn foreign_directory_is_refused() {
        let theirs = Mountpoint { owner: 0, is_writable: false, ..own() };
        assert!(refusal(&user(), theirs).contains("belongs to user 0"));
        assert!(refusal(&user(), theirs).contains("chown 1000 '/home/u/m'"));
        let tmp = Mountpoint { owner: 0, mode: 0o41_777, ..own() };
        assert!(refusal(&user(), tmp).contains("belongs to user 0"), "sticky");
        assert!(refusal(&user(), Mountpoint { is_writable: false, ..own() }).contains("chmod u+w"));
    }

    #[test]
    fn mount_errors_are_explained() {
        let io = |text: &str| Error::new(ErrorKind::Io, text);
        assert!(
            explain(io("fusermount3: mount failed: Operation not permitted"))
                .to_string()
                .contains("unshare -m")
        );
        assert!(explain(Error::new(ErrorKind::Denied, "x")).to_string().contains("SYS_ADMIN"));
        assert!(explain(io("No such device (os error 19)")).to_string().contains("modprobe"));
        assert!(explain(io("Function not implemented (os error 38)")).to_string().contains("Linux 5.4"));
        assert!(explain(io("Invalid argument (os error 22)")).to_string().contains("nosymfollow"));
        assert!(explain(io("too many FUSE filesystems mounted")).to_string().contains("mount_max"));
        assert_eq!(explain(io("something else")).to_string(), io("something else").to_string());
    }

    #[test]
    fn rights_of_this_process_are_read() {
        let rights = MountRights::of_this_process();
        let status = "Name:\tx\nNoNewPrivs:\t1\nCapEff:\t000001ffffffffff\n";
        assert_eq!(field(status, "NoNewPrivs:"), Some("1"));
        assert_eq!(field(status, "CapEff:"), Some("000001ffffffffff"));
        assert_eq!(field(status, "CapBnd:"), None);
        assert_eq!(rights.uid, rustix::process::geteuid().as_raw());
        assert!(is_writable(&std::env::temp_dir()));
        assert!(!is_writable(Path::new("/no/such/directory")));
        assert!(!is_privileged(Path::new("/no/such/program")));
        assert!(!is_privileged(Path::new("/proc/self/exe")), "tests are not set-uid");
    }

    #[test]
    fn fuse_conf_is_parsed_by_line() {
        assert!(allows_other("mount_max = 9\n  user_allow_other  \n"));
        assert!(allows_other("user_allow_other # for backups"));
        assert!(!allows_other("#user_allow_other\n# user_allow_other\nuser_allow_others"));
        assert!(!allows_other(""));
    }
}
