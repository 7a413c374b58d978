//! The arguments of `pdsfs mount`, and the drive that they select.
//!
//! A drive has a name in the configuration, or flags alone describe it.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::auth::{AccountName, AccountStore};
use crate::cli::config::ConfigArgs;
use crate::cli::named_drive;
use crate::config::MountConfig;
use crate::config::drive_path::DrivePath;
use crate::config::file::DriveEntry;
use crate::config::settings::Settings;
use crate::daemon::resolve;
use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, Args)]
#[command(after_help = "Sizes are bytes, or numbers with KiB, MiB, GiB (8M means 8MiB). Durations are \
    seconds, or numbers with ms, s, m, h, d.\n\nEnvironment variables override the configuration file, and \
    flags override both.\n\nThe access token comes from $PDSFS_TOKEN unless --token-file or an account is \
    given.\n\nSIGINT, SIGTERM or SIGHUP saves open files and unmounts. Another SIGINT or SIGTERM, at least a \
    second later, unmounts without saving.")]
pub struct MountArgs {
    /// A drive of the configuration or an account, as NAME or NAME:/FOLDER; an argument with a slash and no
    /// colon before it is the MOUNTPOINT, and flags describe the drive. Without it, nothing is mounted: all names are listed, and
    /// the exit code is 2
    #[arg(value_name = "NAME")]
    drive: Option<String>,
    /// The directory to mount at; made if it is missing and its parent belongs to you [default: from the
    /// configuration]
    mountpoint: Option<PathBuf>,
    /// Return when the drive is mounted; later messages go to the journal
    #[arg(long)]
    background: bool,
    /// Serve a drive in the background (for --background)
    #[arg(long, hide = true, conflicts_with = "background")]
    detached: bool,
    /// Print nothing when the drive is mounted (for mount(8))
    #[arg(long, hide = true)]
    quiet: bool,
    /// The source that the mount table shows
    #[arg(long, hide = true)]
    source: Option<String>,
    /// Have the broker at this socket mount the drive (for the system's unit)
    #[arg(long, hide = true, value_name = "SOCKET", conflicts_with_all = ["background", "detached"])]
    broker: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    settings: Settings,
}

/// The parsed positional arguments.
#[derive(Debug, PartialEq, Eq)]
struct MountTarget {
    name: Option<String>,
    folder: Option<DrivePath>,
    mountpoint: Option<PathBuf>,
}

/// How the drive is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) enum ServeMode {
    /// By this process, until a signal or an unmount.
    Foreground,
    /// By a process that this one starts.
    Background,
    /// By this process, started by `--background`, which waits for the mount.
    Detached,
}

impl MountArgs {
    pub(in crate::cli) fn mode(&self) -> ServeMode {
        match (self.background, self.detached) {
            (true, _) => ServeMode::Background,
            (_, true) => ServeMode::Detached,
            _ => ServeMode::Foreground,
        }
    }

    /// Whether there is nothing to mount: the names are listed.
    pub(in crate::cli) fn is_listing(&self) -> bool {
        self.drive.is_none()
    }

    pub(in crate::cli) fn config_args(&self) -> &ConfigArgs {
        &self.config
    }

    pub(in crate::cli) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Adds settings from the environment and the configuration, and checks them together.
    pub(in crate::cli) fn into_config(mut self) -> Result<MountConfig> {
        let (source, broker) = (self.source.take(), self.broker.clone());
        let mut config = self.merged_config()?;
        config.broker = broker;
        // A background process changes its working directory, so a relative path must become absolute.
        config.mountpoint = std::path::absolute(&config.mountpoint)
            .map_err(|e| Error::from(e).context(format!("mountpoint {}", config.mountpoint.display())))?;
        if let Some(name) = &config.name {
            config.source = format!("{name}:{}", config.folder);
        }
        config.source = source.unwrap_or(config.source);
        Ok(config)
    }

    fn merged_config(self) -> Result<MountConfig> {
        let drive = self.drive.unwrap_or_default();
        let target = parse_target(&drive, self.mountpoint)?;
        let (flags, variables) = (self.settings, Settings::from_environment()?);
        let Some(name) = target.name else {
            let mountpoint = target.mountpoint.ok_or_else(|| no_mountpoint(&drive))?;
            return resolve::mount_config(flags.layered_over(variables), None, mountpoint);
        };
        let mut entry = named_drive::find(&name, &self.config)?;
        if self.broker.is_some() {
            // Files without an owner belong to root, as in other mounts of root.
            let root = Settings { uid: Some(0), gid: Some(0), ..Settings::default() };
            entry.settings = entry.settings.layered_over(root);
        }
        merge(flags, variables, target.folder, target.mountpoint, name, entry)
    }
}

/// Merges all sources of settings: flags, variables, the systemd credential, the configuration.
fn merge(
    mut flags: Settings,
    variables: Settings,
    folder: Option<DrivePath>,
    mountpoint: Option<PathBuf>,
    name: String,
    entry: DriveEntry,
) -> Result<MountConfig> {
    // NAME:/FOLDER is part of the command line, so it overrides the variables.
    if let Some(named) = folder {
        if let Some(other) = flags.folder.as_ref().filter(|other| **other != named) {
            let detail = format!(
                "NAME:/FOLDER and --folder name different folders, {named} and {other}: leave one out"
            );
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        flags.folder = Some(named);
    }
    let mountpoint = mountpoint.or(entry.mountpoint).ok_or_else(|| no_mountpoint(&name))?;
    let upper = flags.layered_over(variables).layered_over(credential_settings(&name));
    check_token_home(&upper, &entry.settings)?;
    resolve::mount_config(upper.layered_over(entry.settings), Some(name), mountpoint)
}

/// A token file of the configuration is used only with the endpoint of the configuration: a flag or variable that was
/// meant for another drive would send the token there.
fn check_token_home(upper: &Settings, configured: &Settings) -> Result<()> {
    let has_own_login = upper.account.is_some() || upper.token_file.is_some() || upper.token.is_some();
    let is_elsewhere = upper.endpoint.is_some() && upper.endpoint != configured.endpoint;
    if has_own_login || configured.token_file.is_none() || !is_elsewhere {
        return Ok(());
    }
    let detail = "the token_file of the configuration is not sent to the endpoint of --endpoint or PDSFS_ENDPOINT: \
                  write that endpoint in the configuration, or give --token-file or --account with it";
    Err(Error::new(ErrorKind::Denied, detail))
}

/// A systemd credential with the name of the drive takes precedence over the account of the configuration.
fn credential_settings(name: &str) -> Settings {
    let account = AccountName::new(name).ok();
    let has_credential = |name: &AccountName| {
        AccountStore::from_env().is_ok_and(|store| store.account(name.clone()).has_systemd_credential())
    };
    Settings { account: account.filter(has_credential), ..Settings::default() }
}

fn no_mountpoint(drive: &str) -> Error {
    let detail = format!(
        "no mountpoint for {drive}: run pdsfs mount {drive} MOUNTPOINT, or set mountpoint = \"...\" in \
         [drives.{drive}]"
    );
    Error::new(ErrorKind::Invalid, detail)
}

/// Parses `NAME`, `NAME:/FOLDER` or a path.
fn parse_target(drive: &str, mountpoint: Option<PathBuf>) -> Result<MountTarget> {
    if named_drive::is_path(drive) {
        if let Some(second) = mountpoint {
            let detail = format!(
                "two mountpoints, {drive} and {}: the first argument must be a drive name, without a slash \
                 before a colon",
                second.display()
            );
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        return Ok(MountTarget { name: None, folder: None, mountpoint: Some(PathBuf::from(drive)) });
    }
    let (name, folder) = match drive.split_once(':') {
        Some((name, folder)) => (name, Some(folder.parse())),
        None => (drive, None),
    };
    let folder = folder
        .transpose()
        .map_err(|reason: &str| Error::new(ErrorKind::Invalid, format!("{drive:?}: {reason}")))?;
    crate::config::file::check_name(name).map_err(|reason| {
        let hint = if Path::new(name).is_dir() {
            "; to mount at the directory of that name, write ./ before it"
        } else {
            ""
        };
        Error::new(ErrorKind::Invalid, reason + hint)
    })?;
    Ok(MountTarget { name: Some(name.to_owned()), folder, mountpoint })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(drive: &str, mountpoint: Option<&str>) -> (Option<String>, Option<DrivePath>, Option<PathBuf>) {
        let target = parse_target(drive, mountpoint.map(PathBuf::from)).unwrap();
        (target.name, target.folder, target.mountpoint)
    }

    /// The configuration of `photos:FOLDER` with these flags.
    fn merged(flags: &[(&str, &str)], folder: &str) -> Result<MountConfig> {
        let token = tempfile::NamedTempFile::new()?;
        std::fs::write(token.path(), "token")?;
        let token_file = token.path().to_string_lossy().into_owned();
        let in_file =
            [("endpoint", "http://127.0.0.1:9"), ("drive_id", "1"), ("token_file", token_file.as_str())];
        let settings = |pairs: &[(&str, &str)]| {
            let parser = crate::config::parse::SettingParser::default();
            let read = |(key, text): &(&str, &str)| parser.parse_file_value(key, text).unwrap();
            pairs.iter().map(read).fold(Settings::default(), Settings::layered_over)
        };
        let entry = DriveEntry { settings: settings(&in_file), mountpoint: Some("/mnt".into()), line: 1 };
        merge(
            settings(flags),
            Settings::default(),
            Some(folder.parse().unwrap()),
            None,
            "photos".into(),
            entry,
        )
    }

    #[test]
    fn folder_in_name_is_always_used() {
        let by_id = merged(&[("root_id", "X")], "/a").unwrap();
        assert_eq!((by_id.root_id.as_str(), by_id.folder.to_string().as_str()), ("X", "/a"));
        assert_eq!(merged(&[("folder", "/a")], "/a").unwrap().folder.to_string(), "/a");
        let error = merged(&[("folder", "/b")], "/a").unwrap_err().to_string();
        assert!(error.contains("/a and /b"), "{error}");
    }

    #[test]
    fn slash_without_colon_makes_a_path() {
        let some = |text: &str| Some(text.to_owned());
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(parsed("/mnt", None), (None, None, path("/mnt")));
        assert_eq!(parsed("./a", None), (None, None, path("./a")));
        assert_eq!(parsed(".", None), (None, None, path(".")));
        assert_eq!(parsed("photos", None), (some("photos"), None, None));
        assert_eq!(parsed("photos", Some("/mnt")), (some("photos"), None, path("/mnt")));
        assert_eq!(parsed("photos:/a/b", Some("/mnt")), (some("photos"), "/a/b".parse().ok(), path("/mnt")));
        assert!(parse_target("/mnt", Some("/mnt2".into())).unwrap_err().to_string().contains("/mnt2"));
        assert!(parse_target("a b", None).unwrap_err().to_string().contains("not a valid drive name"));
        assert!(parse_target("a:/../b", None).is_err());
    }
}
