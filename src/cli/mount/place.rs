//! The folder that is mounted at: looked at, freed of a dead mount of ours, and never of anything
//! else. Every refusal says what to do.
//!
//! A mount whose daemon hangs blocks whoever looks into it, so what the kernel lists as mounted is
//! read first, and a look into a mount has a time limit.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use super::rights;
use super::supervision::look;
use crate::config::MountConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::mountinfo::{self, Mount};
use crate::fuse::unmount;

/// How long a mount has to answer before it counts as alive but hanging.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Dead mounts that may lie on top of each other.
const DEAD_MOUNTS_MAX: usize = 8;

/// Checks that a drive can be mounted where the configuration says, and returns the path without links.
pub(super) fn prepare(config: &MountConfig) -> Result<PathBuf> {
    let path = resolve(&config.mountpoint).map_err(|e| missing(&config.mountpoint, &e))?;
    clear(&path)?;
    let shown = path.display();
    // Where a service manager waits to be asked to mount, this look asks it, unless it is what mounts for it.
    let metadata = path.metadata().map_err(|e| missing(&path, &e))?;
    clear(&path)?;
    if !metadata.is_dir() {
        return Err(Error::new(
            ErrorKind::NotDirectory,
            format!("{shown} is not a folder; a drive needs one: mkdir"),
        ));
    }
    if !config.allow_non_empty && path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::new(
            ErrorKind::NotEmpty,
            format!(
                "{shown} is not empty, and a drive would hide what it holds: take an empty folder, or hide it \
                 with --allow-non-empty"
            ),
        ));
    }
    rights::check(&path, &metadata, config.allow_other)?;
    Ok(path)
}

/// Whether a refusal of [`prepare`] stands until a person has changed something.
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

/// Absolute and without links, also where a mount does not answer: the last component is looked at
/// only if nothing is mounted there.
pub(in crate::cli) fn resolve(path: &Path) -> io::Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return path.canonicalize();
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let joined = parent.canonicalize()?.join(name);
    if mountinfo::at(&joined)?.is_some() { Ok(joined) } else { joined.canonicalize() }
}

fn missing(looked_at: &Path, e: &io::Error) -> Error {
    let path = looked_at.display();
    let (kind, detail) = match e.kind() {
        io::ErrorKind::NotFound => {
            (ErrorKind::NotFound, format!("{path} does not exist; make it with: mkdir -p '{path}'"))
        }
        io::ErrorKind::NotConnected => {
            let above = mountinfo::above(looked_at).ok().flatten().filter(Mount::is_ours);
            let remedy = above.map_or("unmount that first".to_owned(), |mount| {
                format!("take that away with: pdsfs umount --lazy '{}'", mount.path.display())
            });
            (ErrorKind::Stale, format!("{path} is inside a mount whose program has died; {remedy}"))
        }
        io::ErrorKind::PermissionDenied => {
            (ErrorKind::Denied, format!("{path} is in a folder that you may not enter"))
        }
        io::ErrorKind::NotADirectory => {
            (ErrorKind::NotDirectory, format!("{path} lies below a file, which holds no folders"))
        }
        _ => (ErrorKind::Io, format!("cannot look at {path}: {e}")),
    };
    Error::new(kind, detail)
}

/// Who is at a path.
#[derive(PartialEq, Eq, Debug)]
enum Occupant {
    Nobody,
    /// A mount of ours whose daemon is gone.
    Dead,
    /// A mount of ours whose daemon lives, though it may hang.
    Alive,
    Foreign,
}

/// `answer` is what looking into the mount brought; `None` if nothing within the time limit.
fn occupant(mount: Option<&Mount>, answer: impl FnOnce() -> Option<io::Result<()>>) -> Occupant {
    match mount {
        None => Occupant::Nobody,
        Some(mount) if mount.is_automount() => Occupant::Nobody,
        Some(mount) if !mount.is_ours() => Occupant::Foreign,
        Some(_) => match answer() {
            Some(Err(e)) if is_dead(&e) => Occupant::Dead,
            // Refused is an answer too: somebody else's mount.
            Some(_) | None => Occupant::Alive,
        },
    }
}

/// Whether the program behind a mount is gone.
pub(in crate::cli) fn is_dead(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted)
}

/// Whether a mount of ours is at a path whose program is gone.
pub(in crate::cli) fn has_died(path: &Path) -> bool {
    ask(path).is_some_and(|answer| answer.is_err_and(|e| is_dead(&e)))
}

/// Looks into a mount from a thread that may hang as long as it likes. The kernel may remember the
/// attributes of a mount whose program has just died, so it is made to ask.
fn ask(path: &Path) -> Option<io::Result<()>> {
    let (told, heard) = channel();
    let path = path.to_owned();
    std::thread::spawn(move || told.send(look(&path)).ok());
    heard.recv_timeout(ANSWER_MAX).ok()
}

/// Takes away what a killed daemon has left, and refuses what is in use.
fn clear(path: &Path) -> Result<()> {
    let shown = path.display();
    for _ in 0..DEAD_MOUNTS_MAX {
        let mount = mountinfo::at(path)?;
        match (occupant(mount.as_ref(), || ask(path)), mount) {
            (Occupant::Nobody, _) | (_, None) => return Ok(()),
            (Occupant::Dead, _) => {
                tracing::info!("taking away the mount at {shown} that an earlier run has left");
                unmount::lazily(path)?;
            }
            (Occupant::Alive, Some(mount)) => {
                let what = format!(
                    "{} is already mounted at {shown}; unmount it with: pdsfs umount '{shown}'",
                    mount.source
                );
                return Err(Error::new(ErrorKind::Exists, what));
            }
            (Occupant::Foreign, Some(mount)) => {
                let what = format!(
                    "{shown} is a mount already ({} of type {}); take another folder",
                    mount.source, mount.fs_type
                );
                return Err(Error::new(ErrorKind::Exists, what));
            }
        }
    }
    Err(Error::new(ErrorKind::Exists, format!("too many dead mounts lie on each other at {shown}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fs_type: &str) -> Mount {
        Mount {
            device: "0:50".into(),
            path: "/m".into(),
            fs_type: fs_type.into(),
            source: "pds:1".into(),
            owner: None,
        }
    }

    fn refusal(path: &Path) -> Error {
        use crate::config::Credential;
        use crate::ids::{DriveId, Secret};
        let credential = Credential::Token(Secret::new("t".into()));
        let drive_id = DriveId::new("1").unwrap();
        let config = MountConfig::new("https://a.b".parse().unwrap(), drive_id, credential);
        prepare(&MountConfig { mountpoint: path.to_owned(), ..config }).unwrap_err()
    }

    fn error(kind: io::ErrorKind) -> io::Result<()> {
        Err(kind.into())
    }

    #[test]
    fn only_a_mount_of_ours_that_says_so_is_dead() {
        let ours = mount(mountinfo::FS_TYPE);
        assert_eq!(occupant(Some(&ours), || Some(error(io::ErrorKind::NotConnected))), Occupant::Dead);
        assert_eq!(occupant(Some(&ours), || Some(Ok(()))), Occupant::Alive);
        assert_eq!(occupant(Some(&ours), || Some(error(io::ErrorKind::PermissionDenied))), Occupant::Alive);
        assert_eq!(occupant(Some(&ours), || None), Occupant::Alive, "hanging is not dead");
    }

    #[test]
    fn a_foreign_mount_is_not_even_asked() {
        for fs_type in ["fuse.sshfs", "fuse", "tmpfs", "fuse.pdsfs2"] {
            let seen = occupant(Some(&mount(fs_type)), || unreachable!("asked {fs_type}"));
            assert_eq!(seen, Occupant::Foreign);
        }
        for nobody in [None, Some(&mount("autofs"))] {
            assert_eq!(occupant(nobody, || unreachable!("asked nothing")), Occupant::Nobody);
        }
    }

    #[test]
    fn links_are_followed_and_missing_folders_are_named() {
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
    fn what_a_folder_holds_is_not_hidden_by_mistake() {
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
