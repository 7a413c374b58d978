//! Changes of flags of a mounted file system. The kernel enforces them alone: the daemon does not learn of them.

use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount_remount};

use super::mount_root::MountRoot;
use super::mountinfo::Mount;
use crate::error::{Error, ErrorKind, Result};

/// Flags as `mountinfo` names them. A remount clears those that it does not repeat.
const FLAGS: [(&str, MountFlags); 8] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("nosymfollow", MountFlags::NOSYMFOLLOW),
];

/// New flags of a mount. `None` keeps a flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlagChange {
    pub read_only: Option<bool>,
    pub noexec: Option<bool>,
}

/// Changes the flags of the mount at `path`, which is absolute and without symbolic links. A mount that takes
/// its place meanwhile keeps its own.
pub fn remount(path: &Path, change: FlagChange) -> Result<()> {
    let remounted = MountRoot::at(path).and_then(|root| {
        let root = root.filter(|root| root.mount.is_ours());
        root.map(|root| Ok(mount_remount(root.link(), new_flags(&root.mount, change), "")?)).transpose()
    });
    remounted.map_err(|e| explain(path, change, e))?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("{} is not a mounted drive: mount it first", path.display()))
    })
}

fn new_flags(mount: &Mount, change: FlagChange) -> MountFlags {
    let mut flags = MountFlags::empty();
    for (_, flag) in FLAGS.into_iter().filter(|(name, _)| mount.has_option(name)) {
        flags |= flag;
    }
    for (flag, new) in [(MountFlags::RDONLY, change.read_only), (MountFlags::NOEXEC, change.noexec)] {
        flags.set(flag, new.unwrap_or(flags.contains(flag)));
    }
    flags
}

fn explain(path: &Path, change: FlagChange, e: io::Error) -> Error {
    let why = match e.kind() {
        io::ErrorKind::PermissionDenied => " (only root can change the options of a mount)",
        io::ErrorKind::ResourceBusy if change.read_only == Some(true) => {
            " read-only: programs have files of it open for writing, or deleted files (fuser -vm names them)"
        }
        _ => "",
    };
    Error::from(e).context(format!("cannot remount {}{why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_of_a_drive_is_remounted() {
        for path in ["/proc", "/proc/self/fd"] {
            let error = remount(Path::new(path), FlagChange::default()).unwrap_err();
            assert!(error.to_string().contains("is not a mounted drive"), "{error}");
        }
        let error = remount(Path::new("/proc/missing"), FlagChange::default()).unwrap_err();
        assert!(error.to_string().starts_with("cannot remount /proc/missing: "), "{error}");
    }

    #[test]
    fn remount_keeps_the_other_flags() {
        let line = b"40 22 0:50 / /mnt/a rw,nosuid,nodev,noexec,noatime - fuse.pdsfs a ro,user_id=0,rodent";
        let mount = crate::fuse::mountinfo::parse_line(line).unwrap();
        let kept = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        let flags = |read_only, noexec| new_flags(&mount, FlagChange { read_only, noexec });
        assert_eq!(flags(None, None), kept | MountFlags::NOEXEC | MountFlags::RDONLY);
        assert_eq!(flags(Some(false), None), kept | MountFlags::NOEXEC);
        assert_eq!(flags(Some(true), Some(false)), kept | MountFlags::RDONLY);
    }
}
