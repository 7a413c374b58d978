//! The directories of the control sockets. Each is private to one user.
//!
//! A user who could create a socket there could pose as a mount. So a directory is used only if it is a real
//! directory, belongs to the user, and is closed to others.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Sockets that are listed; more than any machine has mounts.
const SOCKETS_MAX: usize = 256;
/// Sockets that are listed of one other user, so that no user displaces the others.
const SOCKETS_OF_OTHER_MAX: usize = 32;
/// Permissions that other users must not have.
const FORBIDDEN_BITS: u32 = 0o077;
/// The directory of root's sockets.
const SYSTEM_DIR: &str = "/run/pdsfs";
/// `RuntimeDirectory=` of the system's units, which have a user of their own.
const SERVICE_DIR: &str = "/run/pdsfs-service";

/// The users whose sockets are listed. Only root lists sockets of other users.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketUsers {
    /// The user of this process.
    Own,
    /// All users with a runtime directory.
    All,
    /// As `All`, and every directory that this user may have.
    AllAnd(u32),
}

/// The inputs that select the directories of a process.
#[derive(Clone, Debug, Default)]
pub struct SocketDirs {
    /// The effective user.
    pub uid: u32,
    /// `$RUNTIME_DIRECTORY`, which systemd sets for a unit with `RuntimeDirectory=`.
    pub unit_dir: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`.
    pub user_dir: Option<PathBuf>,
    /// The directory for temporary files.
    pub temp_dir: PathBuf,
}

impl SocketDirs {
    pub fn of_this_process() -> Self {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let unit = std::env::var("RUNTIME_DIRECTORY").ok();
        let unit = unit.as_deref().and_then(|dirs| dirs.split(':').next()).map(PathBuf::from);
        let uid = rustix::process::geteuid().as_raw();
        // cron and su leave the variable unset, but the directory has a fixed path.
        let user_dir = absolute("XDG_RUNTIME_DIR");
        Self {
            uid,
            unit_dir: unit.filter(|dir| dir.is_absolute()),
            user_dir: Some(user_dir.unwrap_or_else(|| format!("/run/user/{uid}").into())),
            temp_dir: std::env::temp_dir(),
        }
    }

    /// Directories that may hold a socket of this user, best first.
    fn candidates(&self) -> Vec<PathBuf> {
        let root_dir = if self.uid == 0 { Some(PathBuf::from(SYSTEM_DIR)) } else { None };
        let user_dir = self.user_dir.as_ref().filter(|_| self.uid != 0).map(|dir| dir.join("pdsfs"));
        let temp_dir = self.temp_dir.join(format!("pdsfs-{}", self.uid));
        [self.unit_dir.clone(), root_dir, user_dir, Some(temp_dir)].into_iter().flatten().collect()
    }

    /// The directory for the socket of this process. It is created if missing.
    pub fn prepare(&self) -> Result<PathBuf> {
        let mut last = Error::new(ErrorKind::NotFound, "no directory for the control socket");
        for dir in self.candidates() {
            match self.create_private(&dir) {
                Ok(()) => return Ok(dir),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn create_private(&self, dir: &Path) -> Result<()> {
        match std::fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::from(e).context(format!("cannot create {}", dir.display())))
            }
            _ => check_private(dir, Some(self.uid)),
        }
    }

    /// The sockets of the daemons of `users`.
    pub fn sockets(&self, users: SocketUsers) -> Vec<PathBuf> {
        let users = if self.uid == 0 { users } else { SocketUsers::Own };
        let own = self.candidates().into_iter().filter(|dir| check_private(dir, Some(self.uid)).is_ok());
        let owner = if let SocketUsers::AllAnd(uid) = users { Some(uid) } else { None };
        let of_owner = owner.into_iter().flat_map(|uid| {
            let user_dir = Some(PathBuf::from(format!("/run/user/{uid}")));
            let dirs = Self { uid, unit_dir: None, user_dir, temp_dir: self.temp_dir.clone() }.candidates();
            dirs.into_iter().filter(move |dir| check_private(dir, Some(uid)).is_ok())
        });
        // Only root can create or give away the directory.
        let service_dir = (self.uid == 0).then(|| PathBuf::from(SERVICE_DIR));
        let of_service = service_dir.into_iter().filter(|dir| check_private(dir, None).is_ok());
        // The login service creates the directories of /run/user, so only their users can write there.
        let homes = if users == SocketUsers::Own { None } else { std::fs::read_dir("/run/user").ok() };
        let others = homes.into_iter().flatten().flatten().map(|user| user.path().join("pdsfs"));
        let others = others.filter(|dir| check_private(dir, None).is_ok());
        let mut sockets: Vec<_> = own
            .chain(of_service)
            .flat_map(|dir| sockets_in(&dir))
            .chain(of_owner.chain(others).flat_map(|dir| sockets_in(&dir).take(SOCKETS_OF_OTHER_MAX)))
            .take(SOCKETS_MAX)
            .collect();
        sockets.sort();
        sockets.dedup();
        sockets
    }
}

/// The user of the system's units, if it is not root. Its daemons serve mounts of root.
pub fn service_user() -> Option<u32> {
    let metadata = Path::new(SERVICE_DIR).symlink_metadata().ok()?;
    (metadata.is_dir() && metadata.uid() != 0).then(|| metadata.uid())
}

fn sockets_in(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sockets = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
    sockets.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|is| is == "sock"))
}

/// Checks that only the owner of the directory (`owner`, if set) and root can create files in it.
fn check_private(dir: &Path, owner: Option<u32>) -> Result<()> {
    let shown = dir.display();
    let metadata = dir.symlink_metadata().map_err(|e| Error::from(e).context(shown.to_string()))?;
    let denied = |what: &str| Err(Error::new(ErrorKind::Denied, format!("{shown} {what}")));
    if !metadata.is_dir() {
        return denied("is not a directory; remove it");
    }
    if owner.is_some_and(|owner| owner != metadata.uid()) {
        return denied("belongs to another user; remove it as root");
    }
    if metadata.mode() & FORBIDDEN_BITS != 0 {
        return denied("is accessible to other users; run chmod 700 on it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn dirs_below(dir: &Path) -> SocketDirs {
        let uid = rustix::process::geteuid().as_raw();
        SocketDirs { uid, unit_dir: Some(dir.join("unit")), user_dir: None, temp_dir: dir.to_owned() }
    }

    #[test]
    fn first_candidate_depends_on_user_and_unit() {
        let dirs = |uid, unit: Option<&str>, user: Option<&str>| SocketDirs {
            uid,
            unit_dir: unit.map(PathBuf::from),
            user_dir: user.map(PathBuf::from),
            temp_dir: "/tmp".into(),
        };
        let first = |dirs: SocketDirs| dirs.candidates()[0].clone();
        assert_eq!(first(dirs(0, None, Some("/run/user/0"))), Path::new("/run/pdsfs"));
        assert_eq!(first(dirs(7, None, Some("/run/user/7"))), Path::new("/run/user/7/pdsfs"));
        assert_eq!(first(dirs(7, None, None)), Path::new("/tmp/pdsfs-7"));
        assert_eq!(first(dirs(7, Some("/run/pdsfs-service"), None)), Path::new("/run/pdsfs-service"));
    }

    #[test]
    fn directory_open_to_others_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs_below(dir.path());
        let created = dirs.prepare().unwrap();
        assert_eq!(created, dir.path().join("unit"));
        assert_eq!(created.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&created, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert_ne!(dirs.prepare().unwrap(), created);
        assert!(check_private(&created, Some(dirs.uid)).unwrap_err().to_string().contains("chmod 700"));
    }

    #[test]
    fn symlink_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("unit")).unwrap();
        let dirs = dirs_below(dir.path());
        assert_ne!(dirs.prepare().unwrap(), dir.path().join("unit"));
    }

    #[test]
    fn only_sockets_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs_below(dir.path());
        let created = dirs.prepare().unwrap();
        std::fs::write(created.join("1.sock"), b"").unwrap();
        let socket = std::os::unix::net::UnixListener::bind(created.join("2.sock")).unwrap();
        std::os::unix::net::UnixListener::bind(created.join("3.other")).unwrap();
        let found = dirs.sockets(SocketUsers::Own);
        assert!(found.contains(&created.join("2.sock")));
        assert!(!found.iter().any(|path| path.ends_with("1.sock") || path.ends_with("3.other")));
        drop(socket);
    }
}
