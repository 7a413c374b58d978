//! The arguments of `pdsfs mount`, and which drive they mean.
//!
//! A drive is named by its name in the configuration, or described by flags alone.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::account::{AccountName, Store};
use crate::cli::config::{ConfigArgs, Configuration};
use crate::config::MountConfig;
use crate::config::file::DriveEntry;
use crate::config::folder::FolderPath;
use crate::config::settings::Settings;
use crate::error::{Error, ErrorKind, Result};

/// Arguments of `pdsfs mount`.
#[derive(Debug, Args)]
#[command(after_help = "Sizes are bytes, or numbers with KiB, MiB, GiB (8M means 8MiB). Durations are \
    seconds, or numbers with ms, s, m, h, d.\nWhat the configuration file says is overridden by variables, and \
    those by flags.\nThe access token is taken from $PDSFS_TOKEN unless a file is named.\nOn SIGINT, SIGTERM or \
    SIGHUP open files are saved before the drive is unmounted; another SIGINT or SIGTERM, a second or more later, gives \
    up.")]
pub struct MountArgs {
    /// A drive of the configuration or an account, as NAME or NAME:/FOLDER; an argument with a slash and no colon
    /// before it is MOUNTPOINT instead, and flags describe the drive
    #[arg(value_name = "NAME")]
    drive: String,
    /// The folder to mount at [default: that of the configuration]
    mountpoint: Option<PathBuf>,
    /// Return when the drive is mounted; messages go to the journal from then on
    #[arg(long)]
    background: bool,
    /// Be the process that serves a drive in the background
    #[arg(long, hide = true, conflicts_with = "background")]
    detached: bool,
    /// What the kernel shows as what is mounted
    #[arg(long, hide = true)]
    source: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    settings: Settings,
}

/// What the positional arguments mean.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    name: Option<String>,
    folder: Option<FolderPath>,
    mountpoint: Option<PathBuf>,
}

/// How the drive is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) enum Serving {
    /// By this process, until it is told to stop.
    Foreground,
    /// By another process, which this one has to start.
    Background,
    /// By this process, which somebody waits for who wants to go on.
    Detached,
}

impl MountArgs {
    /// Which process serves the drive.
    pub(in crate::cli) fn serving(&self) -> Serving {
        match (self.background, self.detached) {
            (true, _) => Serving::Background,
            (_, true) => Serving::Detached,
            _ => Serving::Foreground,
        }
    }

    /// Takes what is missing from the environment and the configuration, and checks what depends on
    /// each other.
    pub(in crate::cli) fn into_config(mut self) -> Result<MountConfig> {
        let source = self.source.take();
        let mut config = self.described()?;
        // Whoever serves in the background leaves the folder that a relative path begins at.
        config.mountpoint = std::path::absolute(&config.mountpoint)
            .map_err(|e| Error::from(e).context(format!("mountpoint {}", config.mountpoint.display())))?;
        if let Some(name) = &config.name {
            config.source = format!("{name}:{}", config.folder);
        }
        config.source = source.unwrap_or(config.source);
        Ok(config)
    }

    fn described(self) -> Result<MountConfig> {
        let target = target(&self.drive, self.mountpoint)?;
        let (flags, variables) = (self.settings, Settings::of_environment()?);
        let Some(name) = target.name else {
            let mountpoint = target.mountpoint.ok_or_else(|| no_mountpoint(&self.drive))?;
            return flags.over(variables).resolve(None, mountpoint);
        };
        let entry = match Configuration::read(&self.config)?.drive(&name) {
            Ok(entry) => entry,
            Err(error) => of_account(&name)?.ok_or_else(|| unknown(&error))?,
        };
        lay(flags, variables, target.folder, target.mountpoint, name, entry)
    }
}

/// A login makes a drive that the configuration need not know: the account's own.
fn of_account(name: &str) -> Result<Option<DriveEntry>> {
    let account = AccountName::new(name)?;
    let is_there = Store::from_env().is_ok_and(|store| store.account(account.clone()).stamp().is_some());
    let settings = Settings { account: Some(account), ..Settings::default() };
    Ok(is_there.then_some(DriveEntry { settings, mountpoint: None, line: 0 }))
}

/// The one place where what is said of a drive is laid over each other.
fn lay(
    mut flags: Settings,
    variables: Settings,
    folder: Option<FolderPath>,
    mountpoint: Option<PathBuf>,
    name: String,
    entry: DriveEntry,
) -> Result<MountConfig> {
    // The command line says it too, so it goes over the variables.
    if let Some(named) = folder {
        if let Some(other) = flags.folder.as_ref().filter(|other| **other != named) {
            let detail = format!("two folders of the drive are named, {named} and {other}: name one of them");
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        flags.folder = Some(named);
    }
    let mountpoint = mountpoint.or(entry.mountpoint).ok_or_else(|| no_mountpoint(&name))?;
    flags.over(variables).over(given(&name)).over(entry.settings).resolve(Some(name), mountpoint)
}

/// Neither the configuration nor a login has it.
fn unknown(error: &Error) -> Error {
    let accounts = Store::from_env().and_then(|store| store.names()).unwrap_or_default();
    let accounts: Vec<&str> = accounts.iter().map(AccountName::as_str).collect();
    let known = match accounts.as_slice() {
        [] => "none; pdsfs login makes one".to_owned(),
        names => names.join(", "),
    };
    Error::new(error.kind(), format!("{error}. Accounts: {known}"))
}

/// What a service manager gives under the name of a drive is who mounts it, whatever its file says.
fn given(name: &str) -> Settings {
    let account = AccountName::new(name).ok();
    let is_given =
        |name: &AccountName| Store::from_env().is_ok_and(|store| store.account(name.clone()).is_given());
    Settings { account: account.filter(is_given), ..Settings::default() }
}

fn no_mountpoint(drive: &str) -> Error {
    let detail = format!(
        "where to mount? give a folder: pdsfs mount {drive} MOUNTPOINT (or write mountpoint = \"...\" below \
         [drives.{drive}])"
    );
    Error::new(ErrorKind::Invalid, detail)
}

/// `NAME`, `NAME:/FOLDER` or a path.
fn target(drive: &str, mountpoint: Option<PathBuf>) -> Result<Target> {
    let is_path =
        drive.find('/').is_some_and(|slash| !drive[..slash].contains(':')) || matches!(drive, "." | "..");
    if is_path {
        if let Some(second) = mountpoint {
            let detail = format!(
                "{drive:?} is no name of a drive, and {} cannot be mounted at as well; names have no slash before \
                 a colon",
                second.display()
            );
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        return Ok(Target { name: None, folder: None, mountpoint: Some(PathBuf::from(drive)) });
    }
    let (name, folder) = match drive.split_once(':') {
        Some((name, folder)) => (name, Some(folder.parse())),
        None => (drive, None),
    };
    let folder = folder
        .transpose()
        .map_err(|what: &str| Error::new(ErrorKind::Invalid, format!("{drive:?}: {what}")))?;
    crate::config::file::check_name(name).map_err(|what| {
        let hint =
            if Path::new(name).is_dir() { "; to mount at that folder, write ./ before it" } else { "" };
        Error::new(ErrorKind::Invalid, what + hint)
    })?;
    Ok(Target { name: Some(name.to_owned()), folder, mountpoint })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(drive: &str, mountpoint: Option<&str>) -> (Option<String>, Option<FolderPath>, Option<PathBuf>) {
        let target = target(drive, mountpoint.map(PathBuf::from)).unwrap();
        (target.name, target.folder, target.mountpoint)
    }

    /// A drive with these flags and this folder in its name.
    fn laid(flags: &[(&str, &str)], folder: &str) -> Result<MountConfig> {
        let token = tempfile::NamedTempFile::new()?;
        std::fs::write(token.path(), "token")?;
        let token_file = token.path().to_string_lossy().into_owned();
        let of_file =
            [("endpoint", "http://127.0.0.1:9"), ("drive_id", "1"), ("token_file", token_file.as_str())];
        let settings = |pairs: &[(&str, &str)]| {
            let known = crate::config::file::flags();
            let read = |(key, text): &(&str, &str)| crate::config::file::setting(&known, key, text).unwrap();
            pairs.iter().map(read).fold(Settings::default(), Settings::over)
        };
        let entry = DriveEntry { settings: settings(&of_file), mountpoint: Some("/mnt".into()), line: 1 };
        lay(settings(flags), Settings::default(), Some(folder.parse().unwrap()), None, "photos".into(), entry)
    }

    #[test]
    fn the_folder_of_a_name_is_never_left_out() {
        let by_id = laid(&[("root_id", "X")], "/a").unwrap();
        assert_eq!((by_id.root_id.as_str(), by_id.folder.to_string().as_str()), ("X", "/a"));
        assert_eq!(laid(&[("folder", "/a")], "/a").unwrap().folder.to_string(), "/a");
        let error = laid(&[("folder", "/b")], "/a").unwrap_err().to_string();
        assert!(error.contains("/a and /b"), "{error}");
    }

    #[test]
    fn a_slash_makes_a_path_unless_a_colon_comes_before_it() {
        let some = |text: &str| Some(text.to_owned());
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(meant("/mnt", None), (None, None, path("/mnt")));
        assert_eq!(meant("./a", None), (None, None, path("./a")));
        assert_eq!(meant(".", None), (None, None, path(".")));
        assert_eq!(meant("photos", None), (some("photos"), None, None));
        assert_eq!(meant("photos", Some("/mnt")), (some("photos"), None, path("/mnt")));
        assert_eq!(meant("photos:/a/b", Some("/mnt")), (some("photos"), "/a/b".parse().ok(), path("/mnt")));
        assert!(target("/mnt", Some("/mnt2".into())).unwrap_err().to_string().contains("/mnt2"));
        assert!(target("a b", None).unwrap_err().to_string().contains("cannot name a drive"));
        assert!(target("a:/../b", None).is_err());
    }
}
