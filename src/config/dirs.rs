//! The paths of the configuration files, and paths inside them.
//!
//! The user's file is in the XDG configuration directory. Root has none: `sudo -E`, `su` and cron jobs run with
//! the variables of another user. Relative values of XDG variables count as unset, as
//! the specification requires.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

const DIR_NAME: &str = "pdsfs";
const CONFIG_FILE: &str = "config.toml";

/// The configuration files in the order of precedence: the user's, then the system's.
pub fn config_files() -> Vec<PathBuf> {
    config_files_with(rustix::process::geteuid().is_root(), &variable)
}

fn config_files_with(is_root: bool, variable: &dyn Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let user = user_config_file(variable).filter(|_| !is_root);
    user.into_iter().chain([system_config_file()]).collect()
}

fn user_config_file(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let base = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    Some(base?.join(DIR_NAME).join(CONFIG_FILE))
}

/// If this process runs as root: a file of root at the place of a user's file, which is not read.
pub fn unread_file_of_root() -> Option<PathBuf> {
    let file = user_config_file(&variable).filter(|_| rustix::process::geteuid().is_root())?;
    file.metadata().is_ok_and(|metadata| metadata.uid() == 0).then_some(file)
}

/// `/etc/pdsfs/config.toml`.
pub fn system_config_file() -> PathBuf {
    Path::new("/etc").join(DIR_NAME).join(CONFIG_FILE)
}

/// A path of the configuration file: absolute, or `~/` for the home directory.
pub fn absolute(text: &str) -> std::result::Result<PathBuf, String> {
    if text == "~" || text.starts_with("~/") {
        let below = text.trim_start_matches('~').trim_start_matches('/');
        return Ok(home()?.join(below));
    }
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("write an absolute path, or one that begins with ~/".to_owned())
    }
}

/// The home directory. That of root is the one of `/etc/passwd`: the variable may be that of another user.
fn home() -> std::result::Result<PathBuf, String> {
    if rustix::process::geteuid().is_root() {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let home = home_of_root(&passwd);
        return home.ok_or_else(|| {
            "cannot expand ~: /etc/passwd has no home of root; write an absolute path".to_owned()
        });
    }
    variable("HOME").ok_or_else(|| "cannot expand ~: HOME is not set; write an absolute path".to_owned())
}

fn home_of_root(passwd: &str) -> Option<PathBuf> {
    let root = passwd.lines().find(|line| line.split(':').nth(2) == Some("0"));
    root?.split(':').nth(5).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_the_file_are_absolute() {
        assert_eq!(absolute("/a/b"), Ok(PathBuf::from("/a/b")));
        assert!(absolute("a/b").unwrap_err().contains("~/"));
        assert_eq!(absolute("~/x"), home().map(|home| home.join("x")));
        assert!(absolute("~other/x").is_err());
    }

    #[test]
    fn home_of_root_is_that_of_passwd() {
        let passwd = "ann:x:1000:0:a:/home/ann:/bin/sh\nroot:x:0:0:root:/root:/bin/sh\n";
        assert_eq!(home_of_root(passwd), Some(PathBuf::from("/root")));
        for passwd in ["", "ann:x:1000:0:a:/home/ann:/bin/sh", "root:x:0:0:root::/bin/sh", "root:x:0"] {
            assert_eq!(home_of_root(passwd), None, "{passwd}");
        }
    }

    #[test]
    fn user_file_comes_before_system_file() {
        let system = PathBuf::from("/etc/pdsfs/config.toml");
        assert_eq!(config_files_with(false, &|_| None), std::slice::from_ref(&system));
        let home = |name: &str| (name == "HOME").then(|| PathBuf::from("/home/u"));
        assert_eq!(
            config_files_with(false, &home),
            [PathBuf::from("/home/u/.config/pdsfs/config.toml"), system.clone()]
        );
        assert_eq!(config_files().pop().as_ref(), Some(&system));
        assert_eq!(config_files_with(true, &home), [system], "root reads a file of another user");
    }
}
