//! From settings to the configuration of a mount: everything that depends on the account store and the
//! machine.
//!
//! `config` only parses text. This file reads accounts, credentials and the ids of the user, canonicalises
//! paths and creates the cache directory.

use std::io;
use std::path::{Path, PathBuf};

use url::Url;

use crate::auth::{AccountHandle, AccountName, AccountStore, Credential, DEFAULT_NAME, check_credential};
use crate::config::MountConfig;
use crate::config::file::DriveEntry;
use crate::config::secret_variables::TOKEN_VARIABLE;
use crate::config::settings::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, FileId, Secret};
use crate::pds::transport::ExtraRoots;

const DIR_NAME: &str = "pdsfs";

/// A drive, and the credential for it.
#[derive(Clone, Debug)]
pub struct DriveAccess {
    pub endpoint: Url,
    pub drive_id: DriveId,
    pub credential: Credential,
}

/// Makes the configuration of a mount. `name` is the name of the drive in the configuration file. An account
/// of that name is used if no account is set.
pub fn mount_config(settings: Settings, name: Option<String>, mountpoint: PathBuf) -> Result<MountConfig> {
    settings.check()?;
    let DriveAccess { endpoint, drive_id, credential } = drive_access(&settings, name.as_deref())?;
    let spill_dir = staging_dir(settings.spill_dir.as_deref())?;
    let mut options = settings.options();
    // A background process changes its working directory.
    let absolute = |file: PathBuf| {
        let wrong = |e| invalid_from(format!("cannot read ca-file {}", file.display()), e);
        std::path::absolute(&file).map_err(wrong)
    };
    options.ca_file = options.ca_file.map(absolute).transpose()?;
    Ok(MountConfig {
        name,
        root_id: settings.root_id.unwrap_or_else(FileId::root),
        folder: settings.folder.unwrap_or_default(),
        mountpoint,
        uid: settings.uid.unwrap_or_else(|| rustix::process::getuid().as_raw()),
        gid: settings.gid.unwrap_or_else(|| rustix::process::getgid().as_raw()),
        spill_dir,
        options,
        ..MountConfig::new(endpoint, drive_id, credential)
    })
}

/// The directory of staged files, in which this process can create files. `None` is the cache directory.
pub fn staging_dir(setting: Option<&Path>) -> Result<PathBuf> {
    let spill_dir = match setting {
        Some(dir) => dir.canonicalize().map_err(|e| {
            invalid_from(format!("cannot use spill-dir {} (create it first)", dir.display()), e)
        })?,
        None => cache_dir()?,
    };
    if !spill_dir.is_dir() {
        let detail = format!("spill-dir {} is not a directory: choose a directory", spill_dir.display());
        return Err(Error::invalid(detail));
    }
    tempfile::tempfile_in(&spill_dir).map_err(|e| {
        let (dir, uid) = (spill_dir.display(), rustix::process::geteuid().as_raw());
        let detail = format!(
            "cannot create files in {dir} for staged files: it must be writable for user {uid}, and the system's unit \
             needs ReadWritePaths={dir} (systemctl edit)"
        );
        invalid_from(detail, e)
    })?;
    Ok(spill_dir)
}

/// The problems that prevent a mount of this drive, found without the network. Each has a remedy.
pub fn mount_problems(entry: &DriveEntry, name: &str) -> Vec<String> {
    let access = drive_access(&entry.settings, Some(name));
    let checked = access.and_then(|access| check_credential(access.credential, &access.endpoint));
    let mut out: Vec<String> = checked.err().map(|e| e.to_string()).into_iter().collect();
    if let Some(mountpoint) = &entry.mountpoint
        && mountpoint.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    {
        out.push(format!("the mountpoint does not exist; run: mkdir -p '{}'", mountpoint.display()));
    }
    out.extend(ExtraRoots::read(entry.settings.ca_file.as_deref()).err().map(|e| e.to_string()));
    if let Some(dir) = entry.settings.spill_dir.as_ref().filter(|dir| !dir.is_dir()) {
        out.push(format!("spill-dir is not a directory; run: mkdir -p '{}'", dir.display()));
    }
    out
}

/// An account has an endpoint and a drive; a token has neither.
pub fn drive_access(settings: &Settings, name: Option<&str>) -> Result<DriveAccess> {
    if settings.token_file.is_some() || settings.token.is_some() {
        return with_token(
            settings,
            token_credential(settings.token_file.as_deref(), settings.token.as_ref())?,
        );
    }
    let account = account(settings, name)?;
    if let Some(token) = account.systemd_token()? {
        return with_token(settings, Credential::Token(token));
    }
    let summary = account.summary().map_err(|e| match &settings.account {
        Some(_) => e,
        None => Error::with_source(
            ErrorKind::Invalid,
            format!("not logged in: run pdsfs login, set {TOKEN_VARIABLE}, or use --token-file"),
            e,
        ),
    })?;
    let drive_id = settings.drive_id.clone().or(summary.drive_id).ok_or_else(|| {
        let name = account.name();
        Error::invalid(format!(
            "account {name} has no drive: set --drive-id (pdsfs drives {name} lists the drives), or run \
             pdsfs login {name} again"
        ))
    })?;
    let endpoint = settings.endpoint.clone().unwrap_or(summary.endpoint);
    Ok(DriveAccess { endpoint, drive_id, credential: Credential::Account(account) })
}

/// The account that is set, else the one with the name of the drive, else the default.
fn account(settings: &Settings, name: Option<&str>) -> Result<AccountHandle> {
    let store = AccountStore::from_env()?;
    if let Some(account) = &settings.account {
        return Ok(store.account(account.clone()));
    }
    let same_name = name.and_then(|name| AccountName::new(name).ok()).map(|name| store.account(name));
    match same_name.filter(AccountHandle::exists) {
        Some(account) => Ok(account),
        None => Ok(store.account(AccountName::new(DEFAULT_NAME)?)),
    }
}

fn with_token(settings: &Settings, credential: Credential) -> Result<DriveAccess> {
    let missing = |setting: &str| {
        Error::invalid(format!("an access token needs --{setting}, or the setting in the configuration file"))
    };
    Ok(DriveAccess {
        endpoint: settings.endpoint.clone().ok_or_else(|| missing("endpoint"))?,
        drive_id: settings.drive_id.clone().ok_or_else(|| missing("drive-id"))?,
        credential,
    })
}

/// The file overrides the token. The reader of the file checks its permissions.
fn token_credential(file: Option<&Path>, token: Option<&Secret<String>>) -> Result<Credential> {
    if let Some(file) = file {
        let absolute = file.canonicalize();
        let file =
            absolute.map_err(|e| invalid_from(format!("cannot read token-file {}", file.display()), e))?;
        return Ok(Credential::File(file));
    }
    match token.map(|token| token.expose().trim()) {
        Some("") => {
            let detail = format!("{TOKEN_VARIABLE} is empty: set it to an access token, or unset it");
            Err(Error::invalid(detail))
        }
        Some(token) => Ok(Credential::Token(Secret::new(token.to_owned()))),
        None => Err(Error::invalid(format!("no access token: set {TOKEN_VARIABLE} or use --token-file"))),
    }
}

/// The cache directory of the systemd unit, else of the user. That of root is no directory of a home, which the
/// variables of another user could name. It is created if missing.
fn cache_dir() -> Result<PathBuf> {
    let is_root = rustix::process::geteuid().is_root();
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let dir = cache_dir_with(&variable, is_root)
        .ok_or_else(|| Error::invalid("neither XDG_CACHE_HOME nor HOME is set: use --spill-dir"))?;
    create_private(&dir).and_then(|()| dir.canonicalize()).map_err(|e| {
        invalid_from(
            format!("cannot create the cache directory {} (--spill-dir names another)", dir.display()),
            e,
        )
    })
}

fn cache_dir_with(variable: &dyn Fn(&str) -> Option<PathBuf>, is_root: bool) -> Option<PathBuf> {
    // systemd separates several directories by colons.
    let first = |dirs: PathBuf| Some(PathBuf::from(dirs.to_str()?.split(':').next()?));
    let user_dir = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let base_dir = || if is_root { Some(PathBuf::from("/var/cache")) } else { user_dir() };
    variable("CACHE_DIRECTORY").and_then(first).or_else(|| base_dir().map(|base| base.join(DIR_NAME)))
}

/// Creates a directory with mode 0700, and missing parents.
fn create_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn invalid_from(message: String, source: io::Error) -> Error {
    Error::with_source(ErrorKind::Invalid, message, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    fn config_with(spill_dir: &Path) -> Result<MountConfig> {
        let settings = Settings {
            endpoint: Some("https://bj1.api.aliyunpds.com".parse().unwrap()),
            drive_id: Some("1".parse().unwrap()),
            spill_dir: Some(spill_dir.to_owned()),
            token: Some(token(" tok\n")),
            ..Settings::default()
        };
        mount_config(settings, None, "/mnt".into())
    }

    #[test]
    fn defaults_fill_unset_settings() {
        let spill_dir = tempfile::tempdir().unwrap();
        let config = config_with(spill_dir.path()).unwrap();
        assert_eq!((config.root_id, config.options.umask), (FileId::root(), 0o022));
        assert!(matches!(config.credential, Credential::Token(t) if t.expose() == "tok"));
    }

    #[test]
    fn unusable_spill_dir_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let missing = file.path().join("missing");
        // The kernel lets no process create a file there, not even one of root.
        let unwritable = Path::new("/sys/devices/system/cpu");
        for (dir, expected) in [
            (
                unwritable,
                "cannot create files in /sys/devices/system/cpu for staged files: it must be writable",
            ),
            (file.path(), "is not a directory: choose a directory"),
            (&missing, "(create it first)"),
        ] {
            let error = config_with(dir).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn cache_dir_of_unit_user_and_root() {
        let unset = |_: &str| None;
        assert_eq!(cache_dir_with(&unset, true), Some(PathBuf::from("/var/cache/pdsfs")));
        assert_eq!(cache_dir_with(&unset, false), None);
        let home = |name: &str| (name == "HOME").then(|| PathBuf::from("/root"));
        assert_eq!(cache_dir_with(&home, true), Some(PathBuf::from("/var/cache/pdsfs")));
        assert_eq!(cache_dir_with(&home, false), Some(PathBuf::from("/root/.cache/pdsfs")));
        let unit =
            |name: &str| (name == "CACHE_DIRECTORY").then(|| PathBuf::from("/var/cache/a:/var/cache/b"));
        assert_eq!(cache_dir_with(&unit, true), Some(PathBuf::from("/var/cache/a")));
    }

    #[test]
    fn missing_or_empty_token_is_an_error() {
        assert!(token_credential(None, None).unwrap_err().to_string().contains(TOKEN_VARIABLE));
        assert!(token_credential(None, Some(&token(" \n"))).unwrap_err().to_string().contains("empty"));
        assert!(token_credential(Some("/nonexistent/token".as_ref()), Some(&token("t"))).is_err());
    }

    #[test]
    fn token_file_overrides_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let credential = token_credential(Some(file.path()), Some(&token("t"))).unwrap();
        assert!(matches!(credential, Credential::File(_)));
    }
}
