//! Reads a file that decides where tokens go: the configuration, and the certificates of peers. Only root and the user of this process may be able to write it.
//!
//! The directory is opened first and the file in it. The checks and the read use these two descriptors.

use std::fs::{File, Metadata};
use std::io::{ErrorKind as IoKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::auth::only_user_of_group;
use crate::error::{Error, ErrorKind, Result};
use crate::units::exact_size;

const STICKY: u32 = 0o1000;
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;

/// The bytes of the file; `None` if it does not exist. The error is [`ErrorKind::Denied`] if others can write it.
pub fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>> {
    let named = |e: std::io::Error| Error::from(e).context(path.display());
    let Some((directory, file)) = open(path).map_err(named)? else { return Ok(None) };
    let metadata = file.metadata().map_err(named)?;
    let invalid = |detail: String| Err(Error::new(ErrorKind::Invalid, detail));
    if !metadata.is_file() {
        return invalid(format!("{} is not a file", path.display()));
    }
    check(&parent(path).display().to_string(), &directory.metadata().map_err(named)?)?;
    check(&path.display().to_string(), &metadata)?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(named)?;
    if bytes.len() as u64 > bytes_max {
        let most = exact_size(bytes_max);
        return invalid(format!("{} is too large (at most {most})", path.display()));
    }
    Ok(Some(bytes))
}

fn open(path: &Path) -> std::io::Result<Option<(File, File)>> {
    let name = path.file_name().ok_or(IoKind::InvalidInput)?;
    // A path only, because a directory may be searchable and not readable.
    let directory_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // A pipe must not block the open.
    let file_flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(parent(path), directory_flags, Mode::empty()).and_then(|directory| {
        // A link is followed: only those who pass the check of the directory can make it.
        let file = rustix::fs::openat(&directory, name, file_flags, Mode::empty())?;
        Ok((File::from(directory), File::from(file)))
    });
    match opened.map_err(std::io::Error::from) {
        Ok(opened) => Ok(Some(opened)),
        Err(e) if matches!(e.kind(), IoKind::NotFound | IoKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn check(shown: &str, metadata: &Metadata) -> Result<()> {
    let has_private_group = || only_user_of_group(metadata.gid()) == Some(metadata.uid());
    let ours = rustix::process::geteuid().as_raw();
    match refusal(ours, shown, metadata.uid(), metadata.mode(), metadata.is_dir(), has_private_group) {
        None => Ok(()),
        Some((what, remedy)) => {
            let detail = format!("{shown} {what}; run: {remedy} '{shown}'");
            Err(Error::new(ErrorKind::Denied, detail))
        }
    }
}

/// The reason why a file or directory is not trusted, and the command against it.
fn refusal(
    ours: u32,
    shown: &str,
    owner: u32,
    mode: u32,
    is_dir: bool,
    has_private_group: impl FnOnce() -> bool,
) -> Option<(String, String)> {
    if owner != ours && owner != 0 {
        let heir = if Path::new(shown).starts_with("/etc") { "root".to_owned() } else { ours.to_string() };
        return Some((format!("belongs to another user (uid {owner})"), format!("chown {heir}")));
    }
    // Others cannot replace what is in a directory such as /tmp.
    let is_sticky = is_dir && mode & STICKY != 0;
    if !is_sticky && mode & OTHERS_WRITE != 0 {
        return Some(("is writable by every user".to_owned(), "chmod o-w".to_owned()));
    }
    if !is_sticky && mode & GROUP_WRITES != 0 && !has_private_group() {
        return Some(("is writable by a group".to_owned(), "chmod g-w".to_owned()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn owner_and_mode_decide() {
        let remedy = |owner, mode, is_dir, is_private| {
            refusal(1000, "/home/x", owner, mode, is_dir, || is_private)
                .map(|(_, remedy)| remedy)
                .unwrap_or_default()
        };
        assert_eq!(remedy(1000, 0o644, false, false), "");
        assert_eq!(remedy(0, 0o644, false, false), "");
        assert_eq!(remedy(1001, 0o600, false, true), "chown 1000");
        assert_eq!(remedy(1000, 0o646, false, true), "chmod o-w");
        assert_eq!(remedy(1000, 0o664, false, false), "chmod g-w");
        assert_eq!(remedy(1000, 0o664, false, true), "");
        assert_eq!(remedy(1000, 0o1664, false, false), "chmod g-w", "a file is never sticky");
        assert_eq!(
            (remedy(0, 0o1777, true, false), remedy(0, 0o777, true, false).as_str()),
            (String::new(), "chmod o-w")
        );
        assert_eq!(remedy(1001, 0o1777, true, false), "chown 1000");
    }

    #[test]
    fn file_in_a_directory_of_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        assert_eq!(read(&path, 100).unwrap(), None);
        std::fs::write(&path, "text").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read(&path, 4).unwrap().as_deref(), Some(&b"text"[..]));
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o757)).unwrap();
        let error = read(&path, 100).unwrap_err().to_string();
        assert!(error.ends_with(&format!("run: chmod o-w '{}'", dir.path().display())), "{error}");
    }

    #[test]
    fn files_of_the_system_belong_to_root() {
        let metadata = std::fs::metadata("/etc").unwrap();
        for shown in ["/etc/pdsfs", "/etc/pdsfs/config.toml"] {
            let (_, remedy) = refusal(1000, shown, 1001, metadata.mode(), true, || false).unwrap();
            assert_eq!(remedy, "chown root");
        }
    }

    #[test]
    fn pipe_and_large_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "text").unwrap();
        assert!(read(&path, 3).unwrap_err().to_string().contains("too large"));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(read(&pipe, 100).unwrap_err().to_string().contains("not a file"));
    }
}
