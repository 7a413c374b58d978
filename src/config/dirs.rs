//! Which folders of a machine are ours.
//!
//! For a person: the XDG base folders. For a service, those that systemd names. Relative values count as
//! unset, as the XDG specification wants it.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The name of our folder in each base folder, and of the system's configuration folder.
const OURS: &str = "pdsfs";
/// The name of the configuration file.
const CONFIG_FILE: &str = "config.toml";

/// Where configuration is looked for, first one first: the user's file, then the system's.
pub fn config_files() -> Vec<PathBuf> {
    config_files_of(&variable)
}

fn config_files_of(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let user = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    let user = user.map(|base| base.join(OURS).join(CONFIG_FILE));
    user.into_iter().chain([system_config_file()]).collect()
}

/// The configuration of the machine.
pub fn system_config_file() -> PathBuf {
    Path::new("/etc").join(OURS).join(CONFIG_FILE)
}

/// Where copies of content lie: the cache folder of a systemd unit, else of the user; made if it is
/// missing.
pub fn cache() -> Result<PathBuf> {
    // SAFETY: the call only reads the process's own id and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let dir = cache_of(&variable, is_root)
        .ok_or_else(|| invalid("neither XDG_CACHE_HOME nor HOME is set: name a --spill-dir"))?;
    make_private(&dir).and_then(|()| dir.canonicalize()).map_err(|e| {
        invalid(format!("cannot make {}: {e}; name another folder with --spill-dir", dir.display()))
    })
}

fn cache_of(variable: &dyn Fn(&str) -> Option<PathBuf>, is_root: bool) -> Option<PathBuf> {
    // systemd separates several folders by colons.
    let first = |dirs: PathBuf| Some(PathBuf::from(dirs.to_str()?.split(':').next()?));
    let of_user = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    // At boot root has no folder of its own.
    let of_root = || is_root.then(|| PathBuf::from("/var/cache"));
    variable("CACHE_DIRECTORY")
        .and_then(first)
        .or_else(|| of_user().or_else(of_root).map(|base| base.join(OURS)))
}

/// Makes a folder that only we can look into, and what is missing above it.
pub fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// A path as people write it in a file: `~/` is the user's own folder, anything else is absolute.
pub fn absolute(text: &str) -> std::result::Result<PathBuf, String> {
    if text == "~" || text.starts_with("~/") {
        let own = home(text.trim_start_matches('~').trim_start_matches('/'));
        return own.ok_or_else(|| "~ means nothing here, because HOME is not set".to_owned());
    }
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("write the whole path, from / or ~/".to_owned()) }
}

fn home(below: &str) -> Option<PathBuf> {
    variable("HOME").map(|home| home.join(below))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn invalid(detail: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::Invalid, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_files_are_whole() {
        assert_eq!(absolute("/a/b"), Ok(PathBuf::from("/a/b")));
        assert!(absolute("a/b").unwrap_err().contains("~/"));
        let home = std::env::var_os("HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        assert_eq!(absolute("~/x").ok(), home.map(|home| home.join("x")));
        assert!(absolute("~other/x").is_err());
    }

    #[test]
    fn root_without_a_home_has_the_folders_of_the_system() {
        let nothing = |_: &str| None;
        assert_eq!(cache_of(&nothing, true), Some(PathBuf::from("/var/cache/pdsfs")));
        assert_eq!(cache_of(&nothing, false), None);
        assert_eq!(config_files_of(&nothing), [PathBuf::from("/etc/pdsfs/config.toml")]);
        let home = |name: &str| (name == "HOME").then(|| PathBuf::from("/root"));
        assert_eq!(cache_of(&home, true), Some(PathBuf::from("/root/.cache/pdsfs")));
        let of_unit =
            |name: &str| (name == "CACHE_DIRECTORY").then(|| PathBuf::from("/var/cache/a:/var/cache/b"));
        assert_eq!(cache_of(&of_unit, true), Some(PathBuf::from("/var/cache/a")));
    }

    #[test]
    fn the_system_is_asked_last() {
        assert_eq!(config_files().pop(), Some(PathBuf::from("/etc/pdsfs/config.toml")));
    }
}
