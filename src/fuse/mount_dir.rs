//! The directory to mount at, and mounts by root that reach it by its descriptor. No path is resolved between
//! the check of the directory and the mount.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::mount_root::descriptor_path;
use super::mountinfo::{self, Mount};
use super::unmount;
use crate::config::MountOptions;
use crate::error::{Error, ErrorKind, Result};

/// File type and permissions of a mount root before the daemon has reported them.
const ROOT_MODE: &str = "40000";

/// Longest value of an option of `fsconfig(2)`.
const SOURCE_BYTES_MAX: usize = 255;

/// A checked directory. It stays the same one when its path leads elsewhere.
#[derive(Debug)]
pub struct MountDir {
    dir: OwnedFd,
    path: PathBuf,
}

impl MountDir {
    /// Takes the present path of an open directory.
    pub fn new(dir: OwnedFd) -> io::Result<Self> {
        let path = descriptor_path(&dir).read_link()?;
        Ok(Self { dir, path })
    }

    /// The path when the directory was checked, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to the directory, or to the mount in which it was opened, but to no later mount.
    pub fn link(&self) -> PathBuf {
        descriptor_path(&self.dir)
    }

    /// Fails if the path does not lead to the directory any more, also if it leads to a mount there. Time has passed
    /// since the directory was checked: the drive was reached, or the daemon of a broker chose the time.
    pub(super) fn check_in_place(&self) -> Result<()> {
        if !self.link().read_link().is_ok_and(|path| path == self.path) {
            return Err(replaced());
        }
        match mountinfo::at(&self.path)? {
            Some(mount) if !mount.is_automount() => {
                let detail =
                    format!("{} has been mounted at {} meanwhile", mount.source, self.path.display());
                Err(Error::new(ErrorKind::Exists, detail))
            }
            _ => Ok(()),
        }
    }

    /// Makes the mount visible at the directory. It is not if this fails.
    pub fn attach(&self, mount: &OwnedFd) -> Result<Mount> {
        self.check_in_place()?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(mount, "", &self.dir, "", flags).map_err(io::Error::from)?;
        let found = match mountinfo::of(mount) {
            Ok(Some(mount)) if mount.is_ours() && mount.path == self.path => return Ok(mount),
            Ok(_) => replaced(),
            Err(error) => error.into(),
        };
        unmount::umount_lazily(&descriptor_path(mount))?;
        Err(found)
    }
}

fn replaced() -> Error {
    let detail = "the directory was moved or replaced after it was checked; nothing is mounted";
    Error::new(ErrorKind::Stale, detail)
}

/// The source as far as the kernel takes it, whole characters.
fn kernel_source(source: &str) -> &str {
    let mut end = source.len().min(SOURCE_BYTES_MAX);
    while !source.is_char_boundary(end) {
        end -= 1;
    }
    &source[..end]
}

/// A mount that no path leads to yet. It ends when both descriptors are closed.
#[derive(Debug)]
pub struct DetachedMount {
    /// Its reader serves the mount. The kernel sends the first request at once.
    pub device: OwnedFd,
    pub mount: OwnedFd,
}

impl DetachedMount {
    pub fn new(source: &str, options: &MountOptions) -> io::Result<Self> {
        let device = OwnedFd::from(File::options().read(true).write(true).open("/dev/fuse")?);
        let mount = detached_mount(&device, source, options)?;
        Ok(Self { device, mount })
    }
}

fn detached_mount(device: &OwnedFd, source: &str, options: &MountOptions) -> io::Result<OwnedFd> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let ids = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let settings = [
        ("source", kernel_source(source).to_owned()),
        ("subtype", "pdsfs".to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", ROOT_MODE.to_owned()),
        ("user_id", ids.0.to_string()),
        ("group_id", ids.1.to_string()),
    ];
    for (key, value) in settings {
        fsconfig_set_string(&context, key, value)?;
    }
    let flags =
        [("default_permissions", true), ("allow_other", options.allow_other), ("ro", options.read_only)];
    for (key, _) in flags.into_iter().filter(|(_, is_set)| *is_set) {
        fsconfig_set_flag(&context, key)?;
    }
    fsconfig_create(&context)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, options.read_only);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, options.noexec);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, options.nosymfollow);
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
