//! What is mounted, as `/proc/self/mountinfo` tells it. Nothing is unmounted on anybody's word but
//! this file's.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type that mounts of this program carry.
pub const FS_TYPE: &str = "fuse.pdsfs";

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Device number as `major:minor`; no two file systems have the same at one time.
    pub device: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its type, with the subtype after a dot.
    pub fs_type: String,
    /// What is mounted.
    pub source: String,
    /// Who mounted it, where it is a FUSE file system.
    pub owner: Option<u32>,
}

impl Mount {
    /// Whether it was mounted by this program.
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// Whether it waits for somebody to mount over it.
    pub fn is_automount(&self) -> bool {
        self.fs_type == "autofs"
    }
}

/// The mount that is seen at `path` (absolute, without links), or `None` if nothing is mounted
/// exactly there.
pub fn at(path: &Path) -> std::io::Result<Option<Mount>> {
    Ok(topmost(&std::fs::read("/proc/self/mountinfo")?, path))
}

/// Every mount of this program that is seen here, also those of other users and of daemons that are gone.
pub fn ours() -> std::io::Result<Vec<Mount>> {
    let mountinfo = std::fs::read("/proc/self/mountinfo")?;
    Ok(mountinfo.split(|&b| b == b'\n').filter_map(parse_line).filter(Mount::is_ours).collect())
}

/// The mount that `path` (absolute) lies in, by its name alone: nothing is looked at, so it may hang or
/// be dead.
pub fn above(path: &Path) -> std::io::Result<Option<Mount>> {
    Ok(innermost(&std::fs::read("/proc/self/mountinfo")?, path))
}

fn innermost(mountinfo: &[u8], path: &Path) -> Option<Mount> {
    let mounts = mountinfo.split(|&b| b == b'\n').filter_map(parse_line);
    // Of several at one path the last one counts, and that is what max_by_key gives.
    mounts.filter(|m| path.starts_with(&m.path)).max_by_key(|m| m.path.components().count())
}

/// Later lines were mounted over earlier ones.
fn topmost(mountinfo: &[u8], path: &Path) -> Option<Mount> {
    mountinfo.split(|&b| b == b'\n').filter_map(parse_line).rfind(|m| m.path == path)
}

/// `36 35 0:52 /root /mount/point options [optional fields] - type source super-options`.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let device = fields.nth(2)?;
    let path = fields.nth(1)?;
    let mut rest = fields.skip_while(|&field| field != b"-").skip(1);
    let fs_type = rest.next()?;
    let source = rest.next()?;
    let options = String::from_utf8_lossy(rest.next().unwrap_or_default());
    let owner = options.split(',').find_map(|option| option.strip_prefix("user_id="));
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(Mount {
        device: text(device),
        path: PathBuf::from(OsString::from_vec(unescape(path))),
        fs_type: text(fs_type),
        source: text(source),
        owner: owner.and_then(|uid| uid.parse().ok()),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
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
    fn the_last_mount_at_a_path_is_the_one_seen() {
        let seen = topmost(SAMPLE, Path::new("/mnt/drive")).unwrap();
        assert_eq!((seen.device.as_str(), seen.fs_type.as_str()), ("0:53", "tmpfs"));
        assert!(!seen.is_ours());
    }

    #[test]
    fn escaped_paths_are_read() {
        let seen = topmost(SAMPLE, Path::new("/mnt/two words\\x")).unwrap();
        assert!(seen.is_ours());
        assert_eq!((seen.source.as_str(), seen.owner), ("pds:2", Some(1000)));
    }

    #[test]
    fn only_our_type_is_ours_and_only_the_exact_path_counts() {
        assert!(!topmost(SAMPLE, Path::new("/mnt/other")).unwrap().is_ours());
        assert_eq!(topmost(SAMPLE, Path::new("/mnt/drive/sub")), None);
        assert_eq!(topmost(SAMPLE, Path::new("/mnt")), None);
    }

    #[test]
    fn the_mount_around_a_path_is_the_innermost() {
        let source = |path: &str| innermost(SAMPLE, Path::new(path)).unwrap().source;
        assert_eq!(source("/mnt/drive/a/b"), "none");
        assert_eq!(source("/mnt/driver"), "/dev/vda");
        assert_eq!(source("/mnt/two words\\x/y"), "pds:2");
    }

    #[test]
    fn the_running_system_parses() {
        assert!(at(Path::new("/")).unwrap().is_some());
    }
}
