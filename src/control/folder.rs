//! Where the sockets of the daemons are: in a folder that belongs to the user alone.
//!
//! Whoever could put a socket there could pose as a mount, so the folder must be ours, a real one, and
//! closed to everybody else; otherwise it is not used.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Sockets that are asked; more than any machine has mounts.
const SOCKETS_MAX: usize = 256;
/// What others may do in the folder: nothing.
const FORBIDDEN_BITS: u32 = 0o077;

/// A process, as far as the place of its socket depends on it.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Its effective user.
    pub uid: u32,
    /// `$RUNTIME_DIRECTORY`, which systemd sets for a unit with `RuntimeDirectory=`.
    pub unit_dir: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`.
    pub user_dir: Option<PathBuf>,
    /// The folder for temporary files.
    pub temp_dir: PathBuf,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let unit = std::env::var("RUNTIME_DIRECTORY").ok();
        let unit = unit.as_deref().and_then(|dirs| dirs.split(':').next()).map(PathBuf::from);
        // SAFETY: the call only reads the process's own id and cannot fail.
        let uid = unsafe { libc::geteuid() };
        // Also without its variable (cron, su) the folder of the user is where it always is.
        let user_dir = absolute("XDG_RUNTIME_DIR");
        Self {
            uid,
            unit_dir: unit.filter(|dir| dir.is_absolute()),
            user_dir: Some(user_dir.unwrap_or_else(|| format!("/run/user/{uid}").into())),
            temp_dir: std::env::temp_dir(),
        }
    }

    /// Where a socket may be, best first.
    fn candidates(&self) -> Vec<PathBuf> {
        let of_all = if self.uid == 0 { Some(PathBuf::from("/run/pdsfs")) } else { None };
        let of_user = self.user_dir.as_ref().filter(|_| self.uid != 0).map(|dir| dir.join("pdsfs"));
        let of_temp = self.temp_dir.join(format!("pdsfs-{}", self.uid));
        [self.unit_dir.clone(), of_all, of_user, Some(of_temp)].into_iter().flatten().collect()
    }

    /// The folder for the socket of this process; it is made if it is missing.
    pub fn prepare(&self) -> Result<PathBuf> {
        let mut last = Error::new(ErrorKind::NotFound, "there is no folder for the control socket");
        for dir in self.candidates() {
            match self.make_private(&dir) {
                Ok(()) => return Ok(dir),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn make_private(&self, dir: &Path) -> Result<()> {
        match std::fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::from(e).context(format!("cannot make {}", dir.display())))
            }
            _ => check_private(dir, Some(self.uid)),
        }
    }

    /// The sockets of all daemons of this user; root sees those of everybody who has a runtime folder, and with
    /// `owner` all that this user may have.
    pub fn sockets(&self, owner: Option<u32>) -> Vec<PathBuf> {
        let own = self.candidates().into_iter().filter(|dir| check_private(dir, Some(self.uid)).is_ok());
        let theirs = owner.filter(|_| self.uid == 0).into_iter().flat_map(|uid| {
            let user_dir = Some(PathBuf::from(format!("/run/user/{uid}")));
            let unit_dir = Some(PathBuf::from("/run/pdsfs"));
            let dirs = Self { uid, unit_dir, user_dir, temp_dir: self.temp_dir.clone() }.candidates();
            dirs.into_iter().filter(move |dir| check_private(dir, Some(uid)).is_ok())
        });
        // The folders below are made by the login service; what is in one is its user's.
        let users = if self.uid == 0 { std::fs::read_dir("/run/user").ok() } else { None };
        let others = users.into_iter().flatten().flatten().map(|user| user.path().join("pdsfs"));
        let others = others.filter(|dir| check_private(dir, None).is_ok());
        let mut sockets: Vec<_> = own
            .chain(theirs)
            .chain(others)
            .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
            .take(SOCKETS_MAX)
            .collect();
        sockets.sort();
        sockets.dedup();
        sockets
    }
}

/// Whether what lies in the folder can only come from its owner, who is `owner` where that matters, or root.
fn check_private(dir: &Path, owner: Option<u32>) -> Result<()> {
    let shown = dir.display();
    let metadata = dir.symlink_metadata().map_err(|e| Error::from(e).context(shown.to_string()))?;
    let denied = |what: &str| Err(Error::new(ErrorKind::Denied, format!("{shown} {what}")));
    if !metadata.is_dir() {
        return denied("is not a folder");
    }
    if owner.is_some_and(|owner| owner != metadata.uid()) {
        return denied("belongs to another user");
    }
    if metadata.mode() & FORBIDDEN_BITS != 0 {
        return denied("is open to others; close it with: chmod 700");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn surroundings(dir: &Path) -> Surroundings {
        // SAFETY: the call only reads the process's own id and cannot fail.
        let uid = unsafe { libc::geteuid() };
        Surroundings { uid, unit_dir: Some(dir.join("unit")), user_dir: None, temp_dir: dir.to_owned() }
    }

    #[test]
    fn the_place_depends_on_who_asks() {
        let of = |uid, unit: Option<&str>, user: Option<&str>| Surroundings {
            uid,
            unit_dir: unit.map(PathBuf::from),
            user_dir: user.map(PathBuf::from),
            temp_dir: "/tmp".into(),
        };
        let first = |s: Surroundings| s.candidates()[0].clone();
        assert_eq!(first(of(0, None, Some("/run/user/0"))), Path::new("/run/pdsfs"));
        assert_eq!(first(of(7, None, Some("/run/user/7"))), Path::new("/run/user/7/pdsfs"));
        assert_eq!(first(of(7, None, None)), Path::new("/tmp/pdsfs-7"));
        assert_eq!(first(of(7, Some("/run/pdsfs"), None)), Path::new("/run/pdsfs"));
    }

    #[test]
    fn a_folder_that_others_can_enter_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let s = surroundings(dir.path());
        let made = s.prepare().unwrap();
        assert_eq!(made, dir.path().join("unit"));
        assert_eq!(made.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert_ne!(s.prepare().unwrap(), made, "an open folder was used");
        assert!(check_private(&made, Some(s.uid)).unwrap_err().to_string().contains("chmod 700"));
    }

    #[test]
    fn a_link_is_no_folder_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("unit")).unwrap();
        let s = surroundings(dir.path());
        assert_ne!(s.prepare().unwrap(), dir.path().join("unit"));
    }

    #[test]
    fn only_sockets_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let s = surroundings(dir.path());
        let made = s.prepare().unwrap();
        std::fs::write(made.join("1.sock"), b"").unwrap();
        let socket = std::os::unix::net::UnixListener::bind(made.join("2.sock")).unwrap();
        std::os::unix::net::UnixListener::bind(made.join("3.other")).unwrap();
        let found = s.sockets(None);
        assert!(found.contains(&made.join("2.sock")));
        assert!(!found.iter().any(|path| path.ends_with("1.sock") || path.ends_with("3.other")));
        drop(socket);
    }
}
