//! Mounted file systems, from `/proc/self/mountinfo`. The only source for decisions to unmount.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file system type of pdsfs mounts.
pub const FS_TYPE: &str = "fuse.pdsfs";

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Id of the mount, unique while it exists.
    pub id: u64,
    /// Device number as `major:minor`, unique among mounted file systems.
    pub device: String,
    #[serde(with = "super::broker::path_bytes")]
    pub path: PathBuf,
    /// File system type, with the subtype after a dot.
    pub fs_type: String,
    pub source: String,
    /// Options of the mount and of its file system, comma-separated.
    pub options: String,
    /// User id of the mounting user, for FUSE file systems.
    pub owner: Option<u32>,
}

impl Mount {
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    pub fn has_option(&self, option: &str) -> bool {
        self.options.split(',').any(|other| other == option)
    }

    pub fn is_automount(&self) -> bool {
        self.fs_type == "autofs"
    }
}

/// The visible mount at `path`, which must be absolute and without symbolic links. `None` if it is not a
/// mountpoint.
pub fn at(path: &Path) -> std::io::Result<Option<Mount>> {
    Ok(topmost(&std::fs::read("/proc/self/mountinfo")?, path))
}

/// The mount in which a directory or file was opened. It exists as long as `file` is open.
pub fn of(file: &impl AsRawFd) -> std::io::Result<Option<Mount>> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let mountinfo = std::fs::read("/proc/self/mountinfo")?;
    Ok(mounts(&mountinfo).find(|mount| Some(mount.id) == id))
}

/// The present entry of a mount, also if another mount hides it. `None` if it has ended.
pub fn current(mount: &Mount) -> std::io::Result<Option<Mount>> {
    Ok(same(&std::fs::read("/proc/self/mountinfo")?, mount))
}

/// The kernel uses an id and a device number again after the end of a mount, hence the source.
fn same(mountinfo: &[u8], mount: &Mount) -> Option<Mount> {
    mounts(mountinfo).find(|other| {
        (other.id, &other.device, &other.fs_type, &other.source)
            == (mount.id, &mount.device, &mount.fs_type, &mount.source)
    })
}

/// All visible pdsfs mounts, including those of other users and of dead daemons.
pub fn ours() -> std::io::Result<Vec<Mount>> {
    let mountinfo = std::fs::read("/proc/self/mountinfo")?;
    Ok(mounts(&mountinfo).filter(Mount::is_ours).collect())
}

/// The mount that contains the absolute `path`. Compares names only, so a hung or dead mount does not block
/// it.
pub fn above(path: &Path) -> std::io::Result<Option<Mount>> {
    Ok(innermost(&std::fs::read("/proc/self/mountinfo")?, path))
}

fn innermost(mountinfo: &[u8], path: &Path) -> Option<Mount> {
    // Of several mounts at one path the last one is visible, and `max_by_key` returns the last.
    mounts(mountinfo).filter(|m| path.starts_with(&m.path)).max_by_key(|m| m.path.components().count())
}

/// Later lines are mounted over earlier ones.
fn topmost(mountinfo: &[u8], path: &Path) -> Option<Mount> {
    mounts(mountinfo).filter(|m| m.path == path).last()
}

fn mounts(mountinfo: &[u8]) -> impl Iterator<Item = Mount> {
    mountinfo.split(|&b| b == b'\n').filter_map(parse_line)
}

/// `36 35 0:52 /root /mount/point options [optional fields] - type source super-options`.
pub(super) fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = fields.nth(1)?;
    let path = fields.nth(1)?;
    let mount_options = fields.next()?;
    let mut rest = fields.skip_while(|&field| field != b"-").skip(1);
    let fs_type = rest.next()?;
    let source = rest.next()?;
    let options =
        String::from_utf8_lossy(&[mount_options, rest.next().unwrap_or_default()].join(&b',')).into_owned();
    let owner = options.split(',').find_map(|option| option.strip_prefix("user_id="));
    let owner = owner.and_then(|uid| uid.parse().ok());
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(Mount {
        id,
        device: text(device),
        path: PathBuf::from(OsString::from_vec(unescape(path))),
        fs_type: text(fs_type),
        source: text(source),
        options,
        owner,
    })
}

/// The kernel escapes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let code = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        out.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    out
}

/// Fuzz target: the mount table. Users choose paths and sources in it.
#[cfg(any(test, fuzzing))]
pub fn check_mountinfo(data: &[u8]) {
    for mount in mounts(data) {
        assert!(topmost(data, &mount.path).is_some_and(|top| top.path == mount.path), "{mount:?}");
        assert!(innermost(data, &mount.path).is_some(), "{mount:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:50 / /mnt/drive rw,nosuid,nodev,relatime shared:7 master:2 - fuse.pdsfs pds:1 rw,user_id=0
41 22 0:51 / /mnt/two\\040words\\134x rw - fuse.pdsfs pds:2 rw,user_id=1000,group_id=100
42 22 0:52 / /mnt/other rw - fuse.sshfs me@host: rw
43 22 0:53 / /mnt/drive rw - tmpfs none rw
garbage
";

    #[test]
    fn last_mount_at_a_path_is_visible() {
        let mount = topmost(SAMPLE, Path::new("/mnt/drive")).unwrap();
        assert_eq!((mount.device.as_str(), mount.fs_type.as_str()), ("0:53", "tmpfs"));
        assert!(!mount.is_ours());
    }

    #[test]
    fn escaped_paths_are_parsed() {
        let mount = topmost(SAMPLE, Path::new("/mnt/two words\\x")).unwrap();
        assert!(mount.is_ours());
        assert_eq!((mount.source.as_str(), mount.owner), ("pds:2", Some(1000)));
    }

    #[test]
    fn type_and_exact_path_are_compared() {
        assert!(!topmost(SAMPLE, Path::new("/mnt/other")).unwrap().is_ours());
        assert_eq!(topmost(SAMPLE, Path::new("/mnt/drive/sub")), None);
        assert_eq!(topmost(SAMPLE, Path::new("/mnt")), None);
    }

    #[test]
    fn innermost_mount_contains_the_path() {
        let source = |path: &str| innermost(SAMPLE, Path::new(path)).unwrap().source;
        assert_eq!(source("/mnt/drive/a/b"), "none");
        assert_eq!(source("/mnt/driver"), "/dev/vda");
        assert_eq!(source("/mnt/two words\\x/y"), "pds:2");
    }

    #[test]
    fn moved_and_hidden_mounts_are_found_by_id() {
        let mount = mounts(SAMPLE).find(|mount| mount.id == 40).unwrap();
        let moved = b"40 22 0:50 / /mnt/moved rw - fuse.pdsfs pds:1 ro\n\
            43 22 0:53 / /mnt/moved rw - tmpfs none rw";
        let now = same(moved, &mount).unwrap();
        assert_eq!((now.path.as_path(), now.has_option("ro")), (Path::new("/mnt/moved"), true));
        let reused = b"40 22 0:60 / /mnt/drive rw - fuse.pdsfs pds:1 rw";
        assert_eq!(same(reused, &mount), None);
    }

    #[test]
    fn open_directory_belongs_to_its_mount() {
        let mount = |path: &str| of(&std::fs::File::open(path).unwrap()).unwrap().unwrap();
        assert_eq!(mount("/proc/self"), mount("/proc"));
        assert_eq!(mount("/proc").path, Path::new("/proc"));
    }

    #[test]
    fn mountinfo_of_this_system_parses() {
        assert!(at(Path::new("/")).unwrap().is_some());
    }
}
