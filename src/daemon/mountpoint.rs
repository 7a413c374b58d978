//! Checks the mountpoint, and removes a dead mount of pdsfs from it. Other mounts are never removed. Each
//! error states the remedy.
//!
//! A mount whose daemon hangs blocks every program that looks into it. So the mount table of the kernel is
//! read first, and a request to a mount has a time limit.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::liveness::{is_dead, probe_with_limit};
use super::path_walk::{self, Refusal, Trust};
use super::preflight;
use crate::config::MountOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::mountinfo::{self, Mount};
use crate::fuse::{MountDir, unmount};

/// Maximum number of dead mounts, stacked at one path, that are removed.
const DEAD_MOUNTS_MAX: usize = 8;

/// Checks the mountpoint and opens it.
pub(super) fn prepare(mountpoint: &Path, options: &MountOptions) -> Result<MountDir> {
    let path = resolve(mountpoint).map_err(|e| not_accessible(mountpoint, &e))?;
    remove_dead_mounts(&path)?;
    // On an automount point this triggers the automount, unless this process mounts for it.
    let mut dir = open(mountpoint, options)?;
    if remove_dead_mounts(dir.path())? > 0 {
        dir = open(mountpoint, options)?;
    }
    let (path, link) = (dir.path(), dir.link());
    let mountpoint = path.display();
    let metadata = link.metadata().map_err(|e| not_accessible(path, &e))?;
    if !metadata.is_dir() {
        return Err(Error::new(
            ErrorKind::NotDirectory,
            format!("{mountpoint} is not a directory: choose a directory to mount at"),
        ));
    }
    if !options.allow_non_empty && link.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::new(
            ErrorKind::NotEmpty,
            format!(
                "{mountpoint} is not empty: choose an empty directory, or hide its contents with --allow-non-empty \
                 (allow_non_empty = true in the configuration file)"
            ),
        ));
    }
    if options.nosymfollow && !rustix::process::geteuid().is_root() {
        let detail = "nosymfollow needs root: fusermount3 does not know the option";
        return Err(Error::new(ErrorKind::Denied, detail));
    }
    preflight::check(path, &metadata, options.allow_other)?;
    Ok(dir)
}

/// Makes the directory if only its last name is missing. Its parent must belong to this user; for root, no other user
/// may be able to replace a part of the path. `false` leaves the answer to the mount.
pub fn make_missing(mountpoint: &Path) -> Result<bool> {
    let is_missing = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    let (Some(parent), Some(name)) = (mountpoint.parent(), mountpoint.file_name()) else { return Ok(false) };
    if !resolve(mountpoint).is_err_and(|e| is_missing(&e)) {
        return Ok(false);
    }
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let Ok(dir) = path_walk::open(parent, trust(&MountOptions::default())) else { return Ok(false) };
    let owner = dir.link().metadata().map_err(|e| not_accessible(parent, &e))?.uid();
    if owner != rustix::process::geteuid().as_raw() {
        return Ok(false);
    }
    match std::fs::create_dir(dir.link().join(name)) {
        Ok(()) => Ok(true),
        // A link that leads nowhere, or another program was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::from(e).context(format!("cannot make {}", mountpoint.display()))),
    }
}

fn open(path: &Path, options: &MountOptions) -> Result<MountDir> {
    path_walk::open(path, trust(options)).map_err(|refusal| match refusal {
        Refusal::Io(e) => not_accessible(path, &e),
        Refusal::Unsafe(error) => Error::new(error.kind(), format!("{} {error}", path.display())),
    })
}

/// fusermount3 checks the path for other users.
fn trust(options: &MountOptions) -> Trust {
    if !rustix::process::geteuid().is_root() {
        Trust::Everyone
    } else if options.allow_user_mountpoint {
        Trust::RootAndOwner
    } else {
        Trust::Root
    }
}

/// Whether an error of [`prepare`] stays until a person changes something.
pub(super) fn is_final(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::NotDirectory
            | ErrorKind::NotEmpty
            | ErrorKind::Exists
            | ErrorKind::Denied
            | ErrorKind::Invalid
    )
}

/// The absolute path without links. Works for a mount that does not answer: the last component is only
/// resolved if nothing is mounted there.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return path.canonicalize();
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let joined = parent.canonicalize()?.join(name);
    if mountinfo::at(&joined)?.is_some() { Ok(joined) } else { joined.canonicalize() }
}

fn not_accessible(path: &Path, e: &io::Error) -> Error {
    let mountpoint = path.display();
    let (kind, detail) = match e.kind() {
        io::ErrorKind::NotFound => (
            ErrorKind::NotFound,
            format!("{mountpoint} does not exist: create it with mkdir -p '{mountpoint}'"),
        ),
        io::ErrorKind::NotConnected => {
            let above = mountinfo::above(path).ok().flatten().filter(Mount::is_ours);
            let remedy = above.map_or("unmount that mount first".to_owned(), |mount| {
                format!("remove it with pdsfs umount --lazy '{}'", mount.path.display())
            });
            (ErrorKind::Stale, format!("{mountpoint} is inside a mount whose program has died: {remedy}"))
        }
        io::ErrorKind::PermissionDenied => (
            ErrorKind::Denied,
            format!("{mountpoint} is inside a directory that you may not enter: choose another"),
        ),
        io::ErrorKind::NotADirectory => {
            (ErrorKind::NotDirectory, format!("{mountpoint} is below a file: choose another mountpoint"))
        }
        _ => (ErrorKind::Io, format!("cannot read {mountpoint}: {e}")),
    };
    Error::new(kind, detail)
}

/// The meaning of a mount at the mountpoint.
#[derive(PartialEq, Eq, Debug)]
enum Occupant {
    /// An automount point: the place of a mount.
    None,
    /// A mount of pdsfs whose daemon is gone.
    Dead,
    /// A mount of pdsfs whose daemon runs, though it may hang.
    Alive,
    /// A mount of another file system.
    Foreign,
}

/// `answer` probes the mount; it returns `None` if the mount does not answer in time.
fn occupant(mount: &Mount, answer: impl FnOnce() -> Option<io::Result<()>>) -> Occupant {
    if mount.is_automount() {
        return Occupant::None;
    }
    if !mount.is_ours() {
        return Occupant::Foreign;
    }
    match answer() {
        Some(Err(e)) if is_dead(&e) => Occupant::Dead,
        // A refusal is an answer: the mount of another user.
        Some(_) | None => Occupant::Alive,
    }
}

/// Removes mounts whose daemons are gone, and returns their number. Any other mount is an error.
fn remove_dead_mounts(path: &Path) -> Result<usize> {
    let mountpoint = path.display();
    for removed in 0..DEAD_MOUNTS_MAX {
        let Some(mount) = mountinfo::at(path)? else { return Ok(removed) };
        match occupant(&mount, || probe_with_limit(&mount)) {
            Occupant::None => return Ok(removed),
            Occupant::Dead => {
                unmount::lazily(&mount)?;
                tracing::info!("removed the dead mount at {mountpoint}; its daemon had exited");
            }
            Occupant::Alive => {
                let detail = format!(
                    "{} is already mounted at {mountpoint}: unmount it with pdsfs umount '{mountpoint}'",
                    mount.source
                );
                return Err(Error::new(ErrorKind::Exists, detail));
            }
            Occupant::Foreign => {
                let detail = format!(
                    "{mountpoint} already has a mount ({} of type {}): choose another directory",
                    mount.source, mount.fs_type
                );
                return Err(Error::new(ErrorKind::Exists, detail));
            }
        }
    }
    let detail = format!(
        "more than {DEAD_MOUNTS_MAX} dead mounts at {mountpoint}: remove them with umount -l '{mountpoint}'"
    );
    Err(Error::new(ErrorKind::Exists, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fs_type: &str) -> Mount {
        Mount {
            id: 40,
            device: "0:50".into(),
            path: "/m".into(),
            fs_type: fs_type.into(),
            source: "pds:1".into(),
            options: "rw".into(),
            owner: None,
        }
    }

    fn refusal(path: &Path) -> Error {
        prepare(path, &MountOptions::default()).unwrap_err()
    }

    fn error(kind: io::ErrorKind) -> io::Result<()> {
        Err(kind.into())
    }

    #[test]
    fn only_enotconn_means_dead() {
        let ours = mount(mountinfo::FS_TYPE);
        assert_eq!(occupant(&ours, || Some(error(io::ErrorKind::NotConnected))), Occupant::Dead);
        assert_eq!(occupant(&ours, || Some(Ok(()))), Occupant::Alive);
        assert_eq!(occupant(&ours, || Some(error(io::ErrorKind::PermissionDenied))), Occupant::Alive);
        assert_eq!(occupant(&ours, || None), Occupant::Alive, "hanging is not dead");
    }

    #[test]
    fn foreign_mounts_are_not_probed() {
        for fs_type in ["fuse.sshfs", "fuse", "tmpfs", "fuse.pdsfs2"] {
            let seen = occupant(&mount(fs_type), || unreachable!("asked {fs_type}"));
            assert_eq!(seen, Occupant::Foreign);
        }
        assert_eq!(occupant(&mount("autofs"), || unreachable!("asked autofs")), Occupant::None);
    }

    #[test]
    fn links_are_resolved_and_missing_paths_named() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(resolve(&link).unwrap(), real);
        assert_eq!(resolve(&real.join("../link/.")).unwrap(), real);
        assert_eq!(resolve(Path::new("/")).unwrap(), Path::new("/"));
        let error = refusal(&dir.path().join("none"));
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("mkdir"), "{error}");
    }

    #[test]
    fn files_and_foreign_mounts_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(refusal(file.path()).kind(), ErrorKind::NotDirectory);
        let error = refusal(Path::new("/proc"));
        assert!(error.kind() == ErrorKind::Exists && error.to_string().contains("type proc"), "{error}");
        assert!(is_final(&error));
    }

    #[test]
    fn missing_directory_is_made_in_an_own_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(make_missing(&dir.path().join("m")).unwrap());
        assert!(dir.path().join("m").is_dir());
        assert!(!make_missing(&dir.path().join("m")).unwrap(), "it exists");
        assert!(!make_missing(&dir.path().join("none/m")).unwrap(), "the parent is missing");
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert!(!make_missing(&dir.path().join("link")).unwrap());
        assert!(!make_missing(Path::new("/")).unwrap());
        assert!(!make_missing(Path::new("/proc/m")).is_ok_and(|made| made));
    }

    #[test]
    fn no_directory_is_made_in_that_of_another_user() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        let owner = std::os::unix::fs::chown(&theirs, Some(65_534), None);
        // Only root can give a directory away.
        assert_eq!(owner.is_ok(), rustix::process::geteuid().is_root());
        if owner.is_ok() {
            assert!(!make_missing(&theirs.join("m")).unwrap());
            assert!(!theirs.join("m").exists());
        }
    }

    #[test]
    fn non_empty_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), b"x").unwrap();
        let error = refusal(dir.path());
        assert!(
            error.kind() == ErrorKind::NotEmpty && error.to_string().contains("--allow-non-empty"),
            "{error}"
        );
        assert!(is_final(&error));
        assert!(!is_final(&Error::new(ErrorKind::Timeout, "x")));
    }
}
