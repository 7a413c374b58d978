//! The root directory of a mount, held by a descriptor. The names on the way to a mount may lead elsewhere at
//! any time; its id and its root stay the same.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, statx};

use super::mountinfo::{self, Mount};

/// How often the path of a mount is read again because a directory on the way was renamed.
const ATTEMPTS: usize = 8;

/// The mount stays busy while this exists.
#[derive(Debug)]
pub struct MountRoot {
    dir: OwnedFd,
    pub mount: Mount,
}

/// The search for the root of a mount.
#[derive(Debug)]
pub enum FoundRoot {
    Root(MountRoot),
    /// Another mount hides it, or a directory on the way is renamed all the time.
    Hidden,
    Ended,
}

impl MountRoot {
    /// The visible mount at `path`, whose last component is not followed. `None` if nothing is mounted there.
    /// Sends no request to the file system.
    pub fn at(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        let Some(mount) = mountinfo::of(&dir)? else { return Ok(None) };
        let root = Self { dir, mount };
        let is_root = root.link().read_link()? == root.mount.path;
        Ok(is_root.then_some(root))
    }

    /// The root of a known mount, wherever it is now.
    pub fn of(mount: &Mount) -> io::Result<FoundRoot> {
        for _ in 0..ATTEMPTS {
            let Some(now) = mountinfo::current(mount)? else { return Ok(FoundRoot::Ended) };
            match Self::at(&now.path) {
                Ok(Some(root)) if root.mount.id == now.id => return Ok(FoundRoot::Root(root)),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(FoundRoot::Hidden)
    }

    /// A path that leads here after every rename and later mount.
    pub fn link(&self) -> PathBuf {
        descriptor_path(&self.dir)
    }

    /// Requests the attributes from the daemon, past the attribute cache of the kernel. Blocks for as long as
    /// the mount hangs.
    pub fn probe(&self) -> io::Result<()> {
        let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::EMPTY_PATH;
        statx(&self.dir, "", flags, StatxFlags::BASIC_STATS)?;
        Ok(())
    }
}

/// Requests the attributes of the root of a mount from its daemon, wherever the mount is now. Blocks for as
/// long as the mount hangs. A mount that has ended, or that another one hides, is not asked.
pub fn probe(mount: &Mount) -> io::Result<()> {
    match MountRoot::of(mount)? {
        FoundRoot::Root(root) => root.probe(),
        FoundRoot::Hidden | FoundRoot::Ended => Ok(()),
    }
}

/// The path of an open descriptor of this process.
pub(super) fn descriptor_path(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_of_a_mount_answers() {
        let root = MountRoot::at(Path::new("/proc")).unwrap().unwrap();
        assert_eq!((root.mount.path.as_path(), root.mount.fs_type.as_str()), (Path::new("/proc"), "proc"));
        root.probe().unwrap();
        let FoundRoot::Root(same) = MountRoot::of(&root.mount).unwrap() else { panic!("not found") };
        assert_eq!(same.mount, root.mount);
    }

    #[test]
    fn directory_inside_a_mount_is_no_root() {
        assert!(MountRoot::at(Path::new("/proc/self/fd")).unwrap().is_none());
        assert_eq!(MountRoot::at(Path::new("/proc/missing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn mount_with_a_reused_id_has_ended() {
        let proc = MountRoot::at(Path::new("/proc")).unwrap().unwrap().mount;
        let other_device = Mount { device: "0:0".into(), ..proc.clone() };
        let other_source = Mount { source: "pds:1".into(), ..proc };
        for ended in [other_device, other_source] {
            assert!(matches!(MountRoot::of(&ended).unwrap(), FoundRoot::Ended), "{ended:?}");
        }
    }
}
