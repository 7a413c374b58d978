//! Whether this process may mount here, found out beforehand: the kernel and fusermount3 say no in one
//! word, and not what to do.
//!
//! Root mounts by itself and needs the capability. Everybody else goes through fusermount3, which must be
//! there, must be privileged, must be able to gain its rights, and lets a user mount only over what is the
//! user's own.

use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::fuse::unmount;

/// Where fusermount3 learns what ordinary users may do.
const FUSE_CONF: &str = "/etc/fuse.conf";
/// `CAP_SYS_ADMIN` in a mask of capabilities.
const SYS_ADMIN: u64 = 1 << 21;
/// More than enough: every local copy needs two.
const OPEN_FILES_MAX: libc::rlim_t = 1 << 20;
const STICKY: u32 = 0o1000;
const SET_UID: u32 = 0o4000;

/// What decides whether this process may mount.
#[derive(Debug)]
struct Rights {
    device: io::Result<()>,
    uid: u32,
    has_sys_admin: bool,
    /// Programs that are started cannot gain rights.
    no_new_privileges: bool,
    fusermount: Option<Fusermount>,
    conf_allows_other: bool,
}

#[derive(Debug)]
struct Fusermount {
    path: PathBuf,
    is_privileged: bool,
}

/// The folder to mount at.
#[derive(Clone, Copy, Debug)]
struct Folder<'a> {
    path: &'a Path,
    owner: u32,
    mode: u32,
    is_writable: bool,
}

/// Whether this user may mount at a folder.
pub(super) fn check(path: &Path, metadata: &Metadata, allow_other: bool) -> Result<()> {
    let folder =
        Folder { path, owner: metadata.uid(), mode: metadata.mode(), is_writable: is_writable(path) };
    Rights::of_this_process().judge(folder, allow_other)
}

/// Takes as many descriptors as this process may have: each file that is changed needs one or two, and what a shell
/// gives is meant for programs that wait with `select(2)`.
pub(super) fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is ours and outlives both calls.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_cur.max(limit.rlim_max.min(OPEN_FILES_MAX));
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if !raised {
        tracing::debug!("the limit of open files stays: {}", io::Error::last_os_error());
    }
}

/// Says of a mount that was refused all the same what may be behind it.
pub(super) fn explain(error: Error) -> Error {
    let said = error.to_string().to_lowercase();
    let hint = if error.kind() == ErrorKind::Denied || said.contains("not permitted") {
        "mounting is not allowed here: a container needs --device /dev/fuse --cap-add SYS_ADMIN, a user \
         namespace needs a mount namespace of its own (unshare -m), and AppArmor or SELinux may say no \
         (journalctl -k shows it)"
    } else if said.contains("no such device") {
        "the kernel has no FUSE; try: modprobe fuse"
    } else if said.contains("too many") {
        "umount a drive, or let root raise mount_max in /etc/fuse.conf"
    } else {
        return error;
    };
    Error::new(error.kind(), format!("{error}; {hint}"))
}

impl Rights {
    fn of_this_process() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let fusermount =
            unmount::fusermount_path().map(|path| Fusermount { is_privileged: is_privileged(&path), path });
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map(|_| ());
        let conf = std::fs::read_to_string(FUSE_CONF).unwrap_or_default();
        Self {
            device,
            // SAFETY: the call only reads the process's own id and cannot fail.
            uid: unsafe { libc::geteuid() },
            // Where /proc does not tell, the kernel will.
            has_sys_admin: field(&status, "CapEff:")
                .and_then(|mask| u64::from_str_radix(mask, 16).ok())
                .is_none_or(|mask| mask & SYS_ADMIN != 0),
            no_new_privileges: field(&status, "NoNewPrivs:") == Some("1"),
            fusermount,
            conf_allows_other: allows_other(&conf),
        }
    }

    fn judge(&self, folder: Folder<'_>, allow_other: bool) -> Result<()> {
        if let Err(e) = &self.device {
            return Err(no_device(e));
        }
        if self.uid == 0 {
            if self.has_sys_admin {
                return Ok(());
            }
            return Err(denied(
                "this root may not mount (CAP_SYS_ADMIN is missing); give a container --cap-add SYS_ADMIN \
                 --device /dev/fuse, a service AmbientCapabilities or no CapabilityBoundingSet without it",
            ));
        }
        let Some(fusermount) = &self.fusermount else {
            return Err(denied("only root may mount here: fusermount3 is not installed (package fuse3)"));
        };
        let program = fusermount.path.display();
        if !fusermount.is_privileged {
            return Err(denied(format!(
                "{program} is not set-uid root, so it cannot mount; root sets it right with: chown root \
                 {program} && chmod 4755 {program}"
            )));
        }
        if self.no_new_privileges {
            return Err(denied(format!(
                "{program} cannot gain its rights in this process: NoNewPrivileges is set (of a service: \
                 NoNewPrivileges=no, and no option that implies it)"
            )));
        }
        if allow_other && !self.conf_allows_other {
            return Err(denied(format!(
                "--allow-other is not allowed to ordinary users: root has to put user_allow_other into \
                 {FUSE_CONF}"
            )));
        }
        let shown = folder.path.display();
        let foreign = format!(
            "{shown} belongs to user {}: take a folder of your own, or let root run: chown {} '{shown}'",
            folder.owner, self.uid
        );
        if folder.owner != self.uid && (folder.mode & STICKY != 0 || !folder.is_writable) {
            return Err(denied(foreign));
        }
        if !folder.is_writable {
            return Err(denied(format!("you cannot write to {shown}; run: chmod u+w '{shown}'")));
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
            "load the module with: modprobe fuse (in a container: --device /dev/fuse --cap-add SYS_ADMIN)",
        ),
        io::ErrorKind::PermissionDenied => {
            (ErrorKind::Denied, "root has to allow it with: chmod 666 /dev/fuse")
        }
        _ => (ErrorKind::Io, "the kernel may lack FUSE; try: modprobe fuse"),
    };
    Error::new(kind, format!("cannot open /dev/fuse: {e}; {remedy}"))
}

/// The value of a line of `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Set-uid root, or with capabilities of its own.
fn is_privileged(program: &Path) -> bool {
    let is_set_uid = |m: &Metadata| m.permissions().mode() & SET_UID != 0 && m.uid() == 0;
    program.metadata().is_ok_and(|m| is_set_uid(&m)) || has_capabilities(program)
}

fn has_capabilities(program: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(program.as_os_str().as_bytes()) else { return false };
    // SAFETY: both are C strings that outlive the call; with size 0 nothing is written.
    unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

fn is_writable(path: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: a C string that outlives the call.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK, libc::AT_EACCESS) == 0 }
}

/// Options stand on lines of their own; `#` begins a comment.
fn allows_other(conf: &str) -> bool {
    conf.lines().any(|line| line.split('#').next().is_some_and(|option| option.trim() == "user_allow_other"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Folder<'static> {
        Folder { path: Path::new("/home/u/m"), owner: 1000, mode: 0o40_755, is_writable: true }
    }

    fn user() -> Rights {
        Rights {
            device: Ok(()),
            uid: 1000,
            has_sys_admin: false,
            no_new_privileges: false,
            fusermount: Some(Fusermount { path: "/usr/bin/fusermount3".into(), is_privileged: true }),
            conf_allows_other: true,
        }
    }

    fn refusal(rights: &Rights, folder: Folder<'_>) -> String {
        rights.judge(folder, true).unwrap_err().to_string()
    }

    #[test]
    fn whoever_has_everything_may_mount() {
        user().judge(own(), true).unwrap();
        user().judge(Folder { owner: 0, ..own() }, false).unwrap();
        let root =
            Rights { uid: 0, has_sys_admin: true, no_new_privileges: true, fusermount: None, ..user() };
        root.judge(Folder { is_writable: false, ..own() }, true).unwrap();
    }

    #[test]
    fn every_reason_says_what_to_do() {
        let device = |kind: io::ErrorKind| Rights { device: Err(kind.into()), ..user() };
        let table = [
            (device(io::ErrorKind::NotFound), "modprobe fuse"),
            (device(io::ErrorKind::PermissionDenied), "chmod 666 /dev/fuse"),
            (Rights { uid: 0, ..user() }, "--cap-add SYS_ADMIN"),
            (Rights { fusermount: None, ..user() }, "package fuse3"),
            (
                Rights {
                    fusermount: Some(Fusermount { path: "/bin/fusermount3".into(), is_privileged: false }),
                    ..user()
                },
                "chmod 4755 /bin/fusermount3",
            ),
            (Rights { no_new_privileges: true, ..user() }, "NoNewPrivileges=no"),
            (Rights { conf_allows_other: false, ..user() }, "user_allow_other"),
        ];
        for (rights, remedy) in table {
            let said = refusal(&rights, own());
            assert!(said.contains(remedy), "{said}");
        }
        assert!(Rights { conf_allows_other: false, ..user() }.judge(own(), false).is_ok());
    }

    #[test]
    fn only_a_folder_of_ones_own_is_mounted_over() {
        let theirs = Folder { owner: 0, is_writable: false, ..own() };
        assert!(refusal(&user(), theirs).contains("belongs to user 0"));
        assert!(refusal(&user(), theirs).contains("chown 1000 '/home/u/m'"));
        let tmp = Folder { owner: 0, mode: 0o41_777, ..own() };
        assert!(refusal(&user(), tmp).contains("belongs to user 0"), "sticky");
        assert!(refusal(&user(), Folder { is_writable: false, ..own() }).contains("chmod u+w"));
    }

    #[test]
    fn what_the_kernel_says_is_explained() {
        let io = |text: &str| Error::new(ErrorKind::Io, text);
        assert!(
            explain(io("fusermount3: mount failed: Operation not permitted"))
                .to_string()
                .contains("unshare -m")
        );
        assert!(explain(Error::new(ErrorKind::Denied, "x")).to_string().contains("SYS_ADMIN"));
        assert!(explain(io("No such device (os error 19)")).to_string().contains("modprobe"));
        assert!(explain(io("too many FUSE filesystems mounted")).to_string().contains("mount_max"));
        assert_eq!(explain(io("something else")).to_string(), io("something else").to_string());
    }

    #[test]
    fn this_process_is_read() {
        let rights = Rights::of_this_process();
        let status = "Name:\tx\nNoNewPrivs:\t1\nCapEff:\t000001ffffffffff\n";
        assert_eq!(field(status, "NoNewPrivs:"), Some("1"));
        assert_eq!(field(status, "CapEff:"), Some("000001ffffffffff"));
        assert_eq!(field(status, "CapBnd:"), None);
        // SAFETY: the call only reads the process's own id.
        assert_eq!(rights.uid, unsafe { libc::geteuid() });
        assert!(is_writable(&std::env::temp_dir()));
        assert!(!is_writable(Path::new("/no/such/folder")) && !is_privileged(Path::new("/no/such/program")));
        assert!(!is_privileged(Path::new("/proc/self/exe")), "tests are not set-uid");
    }

    #[test]
    fn fuse_conf_is_read_line_by_line() {
        assert!(allows_other("mount_max = 9\n  user_allow_other  \n"));
        assert!(allows_other("user_allow_other # for backups"));
        assert!(!allows_other("#user_allow_other\n# user_allow_other\nuser_allow_others"));
        assert!(!allows_other(""));
    }
}
