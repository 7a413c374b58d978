//! What a name on the command line means: a drive of the configuration, else the default drive of an account.

use super::config::{ConfigArgs, Configuration};
use crate::auth::{AccountName, AccountStore};
use crate::config::file::{DriveEntry, check_name};
use crate::config::settings::Settings;
use crate::error::{Error, Result};
use crate::fuse::mountinfo::{self, Mount};

/// The drive of that name.
pub(super) fn find(name: &str, config: &ConfigArgs) -> Result<DriveEntry> {
    match Configuration::read(config)?.drive(name) {
        Ok(entry) => Ok(entry),
        Err(error) => account_as_drive(name)?.ok_or_else(|| unknown_drive(&error)),
    }
}

/// The default drive of an account, if there is an account of this name.
pub(super) fn account_as_drive(name: &str) -> Result<Option<DriveEntry>> {
    let account = AccountName::new(name)?;
    let exists = AccountStore::from_env().is_ok_and(|store| store.account(account.clone()).exists());
    let settings = Settings { account: Some(account), ..Settings::default() };
    Ok(exists.then_some(DriveEntry { settings, mountpoint: None, line: 0 }))
}

/// The names of all accounts.
pub(super) fn accounts() -> Vec<String> {
    let names = AccountStore::from_env().and_then(|store| store.names()).unwrap_or_default();
    names.iter().map(ToString::to_string).collect()
}

/// Adds the accounts to the error about an unknown drive.
pub(super) fn unknown_drive(error: &Error) -> Error {
    let known = match accounts().as_slice() {
        [] => "none (pdsfs login adds one)".to_owned(),
        names => names.join(", "),
    };
    Error::new(error.kind(), format!("{error}. Accounts: {known}"))
}

/// The visible mounts of this user by this name: NAME, or NAME:/FOLDER as it was mounted. Other users can choose any
/// name for theirs.
pub(super) fn mounted(name: &str) -> Result<Vec<Mount>> {
    let uid = rustix::process::geteuid().as_raw();
    Ok(mountinfo::ours()?.into_iter().filter(|mount| is_called(mount, name, uid)).collect())
}

/// The name that a mount was given. Its user chose the text, so another text than a valid name is none.
pub(super) fn mount_name(mount: &Mount) -> Option<&str> {
    // A mount without a name is `pds:ID`.
    mount.source.split_once(":/").map(|(name, _)| name).filter(|name| check_name(name).is_ok())
}

fn is_called(mount: &Mount, name: &str, uid: u32) -> bool {
    // A mount without a name is `pds:ID`.
    let own_name = mount.source.split_once(":/").map(|(own_name, _)| own_name);
    mount.owner == Some(uid) && (own_name == Some(name) || own_name.is_some() && mount.source == name)
}

/// Whether an argument is a path and not NAME or NAME:/FOLDER: it has a slash, and no colon before that.
pub(super) fn is_path(text: &str) -> bool {
    text.find('/').is_some_and(|slash| !text[..slash].contains(':')) || matches!(text, "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_is_called_by_its_name_or_folder() {
        let mount = |source: &str, owner| Mount {
            id: 1,
            device: String::new(),
            path: "/m".into(),
            fs_type: mountinfo::FS_TYPE.into(),
            source: source.into(),
            options: String::new(),
            owner: Some(owner),
        };
        let photos = mount("photos:/a", 7);
        assert!(is_called(&photos, "photos", 7) && is_called(&photos, "photos:/a", 7));
        assert!(!is_called(&photos, "photos:/b", 7) && !is_called(&photos, "photo", 7));
        assert!(!is_called(&photos, "photos", 8), "a mount of another user");
        assert!(!is_called(&mount("pds:1", 7), "pds", 7) && !is_called(&mount("pds:1", 7), "pds:1", 7));
    }
}
