//! The paths of the configuration files, and paths inside them.
//!
//! The user's file is in the XDG configuration directory. Root has none: `sudo -E`, `su` and cron jobs run with
//! the variables of another user. Relative values of XDG variables count as unset, as
//! the specification requires.

use std::path::{Path, PathBuf};

const DIR_NAME: &str = "pdsfs";
const CONFIG_FILE: &str = "config.toml";

/// The configuration files in the order of precedence: the user's, then the system's.
pub fn config_files() -> Vec<PathBuf> {
    config_files_with(rustix::process::geteuid().is_root(), &variable)
}

fn config_files_with(is_root: bool, variable: &dyn Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let user = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    let user = user.filter(|_| !is_root).map(|base| base.join(DIR_NAME).join(CONFIG_FILE));
    user.into_iter().chain([system_config_file()]).collect()
}

/// `/etc/pdsfs/config.toml`.
pub fn system_config_file() -> PathBuf {
    Path::new("/etc").join(DIR_NAME).join(CONFIG_FILE)
}

/// A path of the configuration file: absolute, or `~/` for the home directory.
pub fn absolute(text: &str) -> std::result::Result<PathBuf, String> {
    if text == "~" || text.starts_with("~/") {
        let below = text.trim_start_matches('~').trim_start_matches('/');
        let home = variable("HOME")
            .ok_or_else(|| "cannot expand ~: HOME is not set; write an absolute path".to_owned())?;
        return Ok(home.join(below));
    }
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("write an absolute path, or one that begins with ~/".to_owned())
    }
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
        let home = std::env::var_os("HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        assert_eq!(absolute("~/x").ok(), home.map(|home| home.join("x")));
        assert!(absolute("~other/x").is_err());
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
