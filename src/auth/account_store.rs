//! The directory of account files.
//!
//! A file is replaced atomically and is on disk when the writer continues. Writers hold the lock of the
//! account, so several mounts never redeem the same refresh token twice. Readers need no lock.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::account::{Account, AccountName, AccountSummary, SecretStorage};
use super::account_file::{AccountFile, Secrets, split};
use super::keyring;
use super::private_file::{FileOwner, lock_private, read_owned, remove_unfinished_writes, replace_private};
use super::systemd_credential::SystemdCredential;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::messages::Remedy;

/// Permissions that an account file must not have: any of group and others.
const SHARED_MODE: u32 = 0o077;
/// The name of the directory of account files.
const ACCOUNTS: &str = "accounts";

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccountStore {
    directory: PathBuf,
    /// The directory of systemd credentials (`LoadCredential=`).
    credentials: Option<PathBuf>,
}

/// One account of a store, which may not exist yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccountHandle {
    store: AccountStore,
    name: AccountName,
}

/// Identifies the state of a file. It changes with every atomic replacement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    ino: u64,
    changed_ns: i128,
    bytes: u64,
}

/// An account with its lock held, so that no other process changes it.
#[derive(Debug)]
pub struct LockedAccount<'a> {
    handle: &'a AccountHandle,
    /// Closing it releases the lock.
    _lock: File,
}

impl AccountStore {
    /// The directory `accounts` of `$STATE_DIRECTORY`, which may name it itself, else of `/var/lib/pdsfs` for
    /// root, else of `pdsfs` in the state directory of the user.
    pub fn from_env() -> Result<Self> {
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let is_root = rustix::process::geteuid().is_root();
        // systemd separates several directories by colons.
        let of_service = std::env::var("STATE_DIRECTORY")
            .ok()
            .and_then(|all| all.split(':').next().map(PathBuf::from).filter(|path| path.is_absolute()));
        let of_user =
            || absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
        let state = of_service
            .or_else(|| is_root.then(|| PathBuf::from("/var/lib/pdsfs")))
            .or_else(|| of_user().map(|state| state.join("pdsfs")))
            .ok_or_else(|| {
                let detail = "no directory for accounts: set HOME, XDG_STATE_HOME or STATE_DIRECTORY";
                Error::new(ErrorKind::Invalid, detail)
            })?;
        let is_itself = state.file_name().is_some_and(|name| name == ACCOUNTS);
        let directory = if is_itself { state } else { state.join(ACCOUNTS) };
        Ok(Self { directory, credentials: absolute("CREDENTIALS_DIRECTORY") })
    }

    /// A store in `directory`, and the directory of systemd credentials if there is one.
    #[cfg(test)]
    pub fn at(directory: impl Into<PathBuf>, credentials: Option<PathBuf>) -> Self {
        Self { directory: directory.into(), credentials }
    }

    pub fn account(&self, name: AccountName) -> AccountHandle {
        AccountHandle { store: self.clone(), name }
    }

    /// The names of all stored accounts, sorted.
    pub fn names(&self) -> Result<Vec<AccountName>> {
        let mut names = Vec::new();
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(names),
            Err(e) => return Err(self.not_readable(e)),
        };
        for entry in entries {
            let file = entry.map_err(|e| self.not_readable(e))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".json"));
            names.extend(name.and_then(|name| AccountName::new(name).ok()));
        }
        names.sort();
        Ok(names)
    }

    fn not_readable(&self, e: std::io::Error) -> Error {
        Error::from(e).context(format!("cannot read the account directory {}", self.directory.display()))
    }
}

/// Creates the directory for its user only. Of its new parents, others may list the names: the directory of the
/// system's accounts may belong to the user of the service, who must reach it.
fn create_directory(directory: &Path) -> std::io::Result<()> {
    if let Some(parent) = directory.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

impl AccountHandle {
    pub fn name(&self) -> &AccountName {
        &self.name
    }

    /// The path of the account file, which may not exist.
    pub fn path(&self) -> PathBuf {
        self.store.directory.join(format!("{}.json", self.name))
    }

    fn systemd_credential_path(&self) -> Option<PathBuf> {
        let path = self.store.credentials.as_ref()?.join(format!("pdsfs.{}", self.name));
        path.is_file().then_some(path)
    }

    fn systemd_credential(&self) -> Result<Option<SystemdCredential>> {
        self.systemd_credential_path().map(SystemdCredential::read).transpose()
    }

    /// Whether systemd provides a credential of this name.
    pub fn has_systemd_credential(&self) -> bool {
        self.systemd_credential_path().is_some()
    }

    /// The systemd credential, if it is an access token alone and not an account.
    pub fn systemd_token(&self) -> Result<Option<Secret<String>>> {
        self.systemd_credential()?.map_or(Ok(None), |credential| credential.token())
    }

    /// The next step for the user when the credential is revoked.
    pub fn login_remedy(&self) -> Remedy {
        match self.systemd_credential_path() {
            Some(_) => Remedy::UnitCredential(format!("pdsfs.{}", self.name)),
            None => Remedy::Login(self.name.to_string()),
        }
    }

    pub fn summary(&self) -> Result<AccountSummary> {
        self.record()?.summary().map_err(|e| self.with_name(&e))
    }

    /// Reads the account with its secrets. May prompt the user to unlock the keyring.
    pub async fn load(&self) -> Result<Account> {
        let record = self.record()?;
        let secrets = match record.secrets.clone() {
            Some(secrets) => secrets,
            None => self.read_keyring_secrets().await?,
        };
        record.with_secrets(secrets).map_err(|e| self.with_name(&e))
    }

    /// Changes whenever a process stores the account. `None` if it does not exist.
    pub fn version(&self) -> Option<Version> {
        Version::of(&self.path()).or_else(|| Version::of(&self.systemd_credential_path()?))
    }

    /// Whether the account is stored or provided as a systemd credential.
    pub fn exists(&self) -> bool {
        self.version().is_some()
    }

    /// Waits until no other process refreshes or replaces this account.
    pub async fn lock(&self) -> Result<LockedAccount<'_>> {
        let directory = &self.store.directory;
        let named = |e: std::io::Error| {
            Error::from(e).context(format!("cannot write to the account directory {}", directory.display()))
        };
        create_directory(directory).map_err(named)?;
        let path = directory.join(format!(".{}.lock", self.name));
        Ok(LockedAccount { handle: self, _lock: lock_private(&path, FileOwner::OfDirectory).await? })
    }

    fn with_name(&self, error: &Error) -> Error {
        error.clone().context(format!("account {} ({})", self.name, self.path().display()))
    }

    /// A systemd credential takes precedence, unless the stored account was refreshed from it.
    fn record(&self) -> Result<AccountFile> {
        let Some(credential) = self.systemd_credential()? else { return self.stored() };
        match self.stored() {
            Ok(stored) if stored.seed.as_ref() == Some(&credential.fingerprint()) => Ok(stored),
            _ => credential.record(),
        }
    }

    fn stored(&self) -> Result<AccountFile> {
        let text =
            read_owned(&self.path(), SHARED_MODE, FileOwner::OfDirectory).map_err(|e| self.not_found(e))?;
        AccountFile::parse(&text).map_err(|e| {
            let detail = format!("{e}; run pdsfs login {} to replace it", self.name);
            self.with_name(&Error::new(e.kind(), detail))
        })
    }

    fn not_found(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::NotFound {
            return error;
        }
        let name = &self.name;
        let detail = format!("no account {name}: run pdsfs login {name}");
        Error::new(ErrorKind::NotFound, detail)
    }

    /// Deletes unused secrets. A failure is only logged.
    async fn delete_keyring_secrets(&self) {
        if let Err(error) = keyring::remove(&self.name).await {
            tracing::debug!(%error, "cannot delete the secrets of account {} from the keyring", self.name);
        }
    }

    async fn read_keyring_secrets(&self) -> Result<Secrets> {
        let name = &self.name;
        let found = keyring::get(name).await.map_err(|e| {
            let advice = "without a desktop session, log in again with --store file";
            let message = format!("cannot read its secrets from the keyring ({advice})");
            self.with_name(&Error::with_source(e.kind(), message, e))
        })?;
        let text = found.ok_or_else(|| {
            let detail = format!("the keyring has no secrets for it: run pdsfs login {name}");
            self.with_name(&Error::new(ErrorKind::NotFound, detail))
        })?;
        serde_json::from_slice(&text).map_err(|e| {
            let detail = format!(
                "its secrets in the keyring are not valid JSON (column {}): run pdsfs login {name}",
                e.column()
            );
            self.with_name(&Error::new(ErrorKind::Invalid, detail))
        })
    }
}

impl LockedAccount<'_> {
    /// Stores the account; it is on disk when this returns. If the keyring fails, the secrets go to the file.
    /// Returns where they are.
    pub async fn save(&self, account: &Account) -> Result<SecretStorage> {
        let handle = self.handle;
        let was_in_keyring =
            handle.summary().is_ok_and(|before| before.secret_storage == SecretStorage::Keyring);
        let (mut record, secrets) = split(account);
        let mut secret_storage = account.secret_storage;
        if secret_storage == SecretStorage::Keyring {
            let text = serde_json::to_vec(&secrets).map_err(|e| Error::from_source(ErrorKind::Io, e))?;
            if let Err(error) = keyring::put(&handle.name, &text).await {
                tracing::warn!(
                    %error,
                    "cannot store the secrets of account {} in the keyring; storing them in its file", handle.name
                );
                secret_storage = SecretStorage::File;
            }
        }
        if secret_storage == SecretStorage::File {
            record.secrets = Some(secrets);
        }
        // A systemd credential is read-only, so the stored account records its origin. A login outside of the
        // unit keeps that origin, so that the unit uses the login instead of the credential.
        record.seed = match handle.systemd_credential()? {
            Some(credential) => Some(credential.fingerprint()),
            None => handle.stored().ok().and_then(|before| before.seed),
        };
        let text = serde_json::to_vec_pretty(&record).map_err(|e| Error::from_source(ErrorKind::Io, e))?;
        let path = handle.path();
        let write = move || replace_private(&path, &text, FileOwner::OfDirectory);
        let stopped = |e| Error::with_source(ErrorKind::Io, "the task that stores an account stopped", e);
        tokio::task::spawn_blocking(write).await.map_err(stopped)??;
        if was_in_keyring && secret_storage == SecretStorage::File {
            handle.delete_keyring_secrets().await;
        }
        Ok(secret_storage)
    }

    /// Stores a refreshed account, unless the systemd credential has the same grant and serves at the next
    /// start too. Returns whether it is stored.
    pub async fn save_refreshed(&self, account: &Account) -> Result<bool> {
        let provided = self.handle.systemd_credential()?.and_then(|credential| credential.account().ok());
        if provided.is_some_and(|provided| provided.grant == account.grant) {
            return Ok(false);
        }
        self.save(account).await.map(|_| true)
    }

    pub async fn load(&self) -> Result<Account> {
        self.handle.load().await
    }

    /// Deletes the account file and the secrets in the keyring.
    pub async fn remove(&self) -> Result<()> {
        let handle = self.handle;
        match handle.summary() {
            Ok(summary) if summary.secret_storage == SecretStorage::Keyring => {
                let message = "cannot delete its secrets from the keyring";
                keyring::remove(&handle.name).await.map_err(|e| handle.with_name(&e.context(message)))?;
            }
            Ok(_) => {}
            // A damaged file does not show where its secrets are.
            Err(_) => handle.delete_keyring_secrets().await,
        }
        remove_unfinished_writes(&handle.path());
        match std::fs::remove_file(handle.path()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(handle.with_name(&Error::from(e))),
            _ => Ok(()),
        }
    }
}

impl Version {
    /// `None` if the file does not exist.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        let changed_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Some(Self { ino: metadata.ino(), changed_ns, bytes: metadata.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{AccessToken, Grant, RefreshBy};
    use crate::ids::DriveId;
    use std::os::unix::fs::PermissionsExt as _;

    fn account(refresh: &str) -> Account {
        let endpoint: url::Url = "http://127.0.0.1:9".parse().unwrap();
        Account {
            endpoint: endpoint.clone(),
            auth_endpoint: endpoint,
            drive_id: Some(DriveId::new("1").unwrap()),
            user: "me".into(),
            grant: Grant::Refresh {
                client_id: "app".into(),
                client_secret: None,
                refresh_token: Secret::new(refresh.into()),
                by: RefreshBy::Oauth,
            },
            access: Some(AccessToken { token: Secret::new("AT".into()), expires_at_s: Some(7) }),
            secret_storage: SecretStorage::File,
        }
    }

    fn work(store: &AccountStore) -> AccountHandle {
        store.account(AccountName::new("work").unwrap())
    }

    #[tokio::test]
    async fn stored_account_is_private_and_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let store = AccountStore::at(dir.path().join("accounts"), None);
        let handle = work(&store);
        assert!(handle.load().await.unwrap_err().to_string().contains("pdsfs login work"));
        assert_eq!(handle.version(), None);
        let locked = handle.lock().await.unwrap();
        assert_eq!(locked.save(&account("RT")).await.unwrap(), SecretStorage::File);
        let first = handle.version();
        assert_eq!(locked.load().await.unwrap(), account("RT"));
        locked.save(&account("RT2")).await.unwrap();
        assert_ne!(handle.version(), first, "the version did not change");
        let without_drive = Account { drive_id: None, ..account("RT2") };
        locked.save(&without_drive).await.unwrap();
        assert_eq!(locked.load().await.unwrap(), without_drive);
        assert_eq!(store.names().unwrap(), [handle.name().clone()]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&handle.path()), mode(&store.directory)), (0o600, 0o700));
        std::fs::set_permissions(handle.path(), std::fs::Permissions::from_mode(0o604)).unwrap();
        assert!(handle.load().await.unwrap_err().to_string().contains("chmod 600"));
        locked.remove().await.unwrap();
        assert!(store.names().unwrap().is_empty());
    }

    #[tokio::test]
    async fn account_lock_is_exclusive() {
        const ROUNDS: u64 = 20;
        let dir = tempfile::tempdir().unwrap();
        let handle = work(&AccountStore::at(dir.path(), None));
        handle.lock().await.unwrap().save(&account("0")).await.unwrap();
        let count_up = async |handle: AccountHandle| {
            for _ in 0..ROUNDS {
                let locked = handle.lock().await.unwrap();
                let Grant::Refresh { refresh_token, .. } = locked.load().await.unwrap().grant else {
                    panic!("the grant changed")
                };
                let count: u64 = refresh_token.expose().parse().unwrap();
                locked.save(&account(&(count + 1).to_string())).await.unwrap();
            }
        };
        tokio::join!(count_up(handle.clone()), count_up(handle.clone()), count_up(handle.clone()));
        assert_eq!(handle.load().await.unwrap(), account(&(3 * ROUNDS).to_string()), "an update was lost");
    }

    #[tokio::test]
    async fn systemd_credential_wins_until_it_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let (provided, stored) = (dir.path().join("provided"), dir.path().join("stored"));
        std::fs::create_dir(&provided).unwrap();
        // The credential is the account file of a login on another machine.
        let elsewhere = AccountStore::at(dir.path().join("elsewhere"), None);
        let login = work(&elsewhere);
        login.lock().await.unwrap().save(&account("RT")).await.unwrap();
        std::fs::copy(login.path(), provided.join("pdsfs.work")).unwrap();
        let handle = work(&AccountStore::at(&stored, Some(provided.clone())));
        assert_eq!(handle.load().await.unwrap(), account("RT"));
        let locked = handle.lock().await.unwrap();
        assert!(!locked.save_refreshed(&account("RT")).await.unwrap(), "the refresh token was not rotated");
        assert!(!handle.path().exists(), "the credential is stored again");
        assert!(locked.save_refreshed(&account("RT2")).await.unwrap());
        assert_eq!(handle.load().await.unwrap(), account("RT2"), "the rotated token is lost");
        assert!(handle.login_remedy() == Remedy::UnitCredential("pdsfs.work".into()));
        drop(locked);
        // A login outside of the unit must win over the spent credential.
        let outside = work(&AccountStore::at(&stored, None));
        outside.lock().await.unwrap().save(&account("RT7")).await.unwrap();
        assert_eq!(handle.load().await.unwrap(), account("RT7"), "the unit does not use the login");
        login.lock().await.unwrap().save(&account("RT9")).await.unwrap();
        std::fs::copy(login.path(), provided.join("pdsfs.work")).unwrap();
        assert_eq!(handle.load().await.unwrap(), account("RT9"), "the new credential is not used");
    }

    #[test]
    fn systemd_credential_may_be_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let handle_with = |text: &str| {
            let path = dir.path().join("pdsfs.work");
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)).unwrap();
            work(&AccountStore::at(dir.path().join("stored"), Some(dir.path().into())))
        };
        let handle = handle_with("TOKEN\n");
        assert_eq!(handle.systemd_token().unwrap().unwrap().expose(), "TOKEN");
        assert!(handle.summary().unwrap_err().to_string().contains("endpoint and drive_id"));
        assert!(handle_with(" ").systemd_token().unwrap_err().to_string().contains("empty"));
        let wrong = handle_with("{\"access_token\":\"SECRET\"}").summary().unwrap_err().to_string();
        assert!(wrong.contains("--store file") && !wrong.contains("SECRET"), "{wrong}");
    }

    #[tokio::test]
    async fn damaged_file_errors_quote_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let handle = work(&AccountStore::at(dir.path(), None));
        handle.lock().await.unwrap().save(&account("SECRET-RT")).await.unwrap();
        let text = std::fs::read_to_string(handle.path()).unwrap();
        for broken in [
            text.replace("\"version\": 1", "\"version\": 9"),
            text.replace("SECRET-RT\"", "SECRET-RT"),
            text.replace("\"secrets\"", "\"sekrets\""),
            text.replace("http://127.0.0.1:9", "http://example.com"),
        ] {
            assert_ne!(broken, text);
            std::fs::write(handle.path(), broken).unwrap();
            let error = handle.load().await.unwrap_err().to_string();
            assert!(error.contains("work.json") && !error.contains("SECRET"), "{error}");
        }
        assert!(!format!("{:?}", account("SECRET-RT")).contains("SECRET-RT"));
    }
}
