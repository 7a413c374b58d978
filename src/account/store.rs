//! The folder of accounts.
//!
//! A file is replaced in one step and is on disk when the writer goes on. Writers hold the account's lock, so
//! several mounts share an account without spending a refresh token twice; readers need none.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::given::Given;
use super::private_file::{lock_file, read_private, replace_private, sweep_unfinished};
use super::record::{Record, Secrets, split};
use super::{Account, AccountName, Keep, Outline, keyring};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// Permissions of group and others.
const SHARED_MODE: u32 = 0o077;

/// Where accounts are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Store {
    folder: PathBuf,
    /// Where a service manager puts accounts that it was told to give (`LoadCredential=`).
    credentials: Option<PathBuf>,
}

/// One account of a store, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handle {
    store: Store,
    name: AccountName,
}

/// When a file was last written, as far as the file system tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    ino: u64,
    changed_ns: i128,
    bytes: u64,
}

/// An account that nobody else changes while this lives.
#[derive(Debug)]
pub struct Locked<'a> {
    handle: &'a Handle,
    /// Closing it releases the lock.
    _lock: File,
}

impl Store {
    /// The folder of this user or service: `$STATE_DIRECTORY`, else `/var/lib/pdsfs` for root, else `pdsfs` in the
    /// user's state folder.
    pub fn from_env() -> Result<Self> {
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        // SAFETY: the call only reads the process's own id and cannot fail.
        let is_root = unsafe { libc::geteuid() } == 0;
        // systemd separates several folders by colons.
        let of_service = std::env::var("STATE_DIRECTORY")
            .ok()
            .and_then(|all| all.split(':').next().map(PathBuf::from).filter(|path| path.is_absolute()));
        let of_user =
            || absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
        let state = of_service
            .or_else(|| is_root.then(|| PathBuf::from("/var/lib/pdsfs")))
            .or_else(|| of_user().map(|state| state.join("pdsfs")))
            .ok_or_else(|| {
                let detail = "there is no place for accounts: set HOME, XDG_STATE_HOME or STATE_DIRECTORY";
                Error::new(ErrorKind::Invalid, detail)
            })?;
        Ok(Self { folder: state.join("accounts"), credentials: absolute("CREDENTIALS_DIRECTORY") })
    }

    /// A folder of its own, and where a service manager's credentials are, if anywhere.
    pub fn at(folder: impl Into<PathBuf>, credentials: Option<PathBuf>) -> Self {
        Self { folder: folder.into(), credentials }
    }

    /// One of its accounts, which need not exist yet.
    pub fn account(&self, name: AccountName) -> Handle {
        Handle { store: self.clone(), name }
    }

    /// The names of all accounts, sorted.
    pub fn names(&self) -> Result<Vec<AccountName>> {
        let mut names = Vec::new();
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(names),
            Err(e) => return Err(Error::from(e).context(self.folder.display())),
        };
        for entry in entries {
            let file = entry.map_err(|e| Error::from(e).context(self.folder.display()))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".json"));
            names.extend(name.and_then(|name| AccountName::new(name).ok()));
        }
        names.sort();
        Ok(names)
    }
}

impl Handle {
    /// The account's name.
    pub fn name(&self) -> &AccountName {
        &self.name
    }

    /// The file that it is stored in, or would be.
    pub fn path(&self) -> PathBuf {
        self.store.folder.join(format!("{}.json", self.name))
    }

    fn given_at(&self) -> Option<PathBuf> {
        let path = self.store.credentials.as_ref()?.join(format!("pdsfs.{}", self.name));
        path.is_file().then_some(path)
    }

    fn given(&self) -> Result<Option<Given>> {
        self.given_at().map(Given::read).transpose()
    }

    /// Whether a service manager has given it.
    pub fn is_given(&self) -> bool {
        self.given_at().is_some()
    }

    /// The token that a service manager has given, where it is one alone and no account.
    pub fn given_token(&self) -> Result<Option<Secret<String>>> {
        self.given()?.map_or(Ok(None), |given| given.token())
    }

    /// What brings it back when the service does not take it any more.
    pub fn remedy(&self) -> String {
        match self.given_at() {
            Some(_) => format!("give the service a new credential pdsfs.{} and restart it", self.name),
            None => format!("run pdsfs login {}", self.name),
        }
    }

    /// What needs no secrets.
    pub fn outline(&self) -> Result<Outline> {
        self.record()?.outline().map_err(|e| self.named(&e))
    }

    /// The whole account. Asks the keyring where the secrets are there.
    pub async fn load(&self) -> Result<Account> {
        let record = self.record()?;
        let secrets = match record.secrets.clone() {
            Some(secrets) => secrets,
            None => self.secrets_in_keyring().await?,
        };
        record.join(secrets).map_err(|e| self.named(&e))
    }

    /// Changes when the account is stored again by anybody; `None` where it is not there.
    pub fn stamp(&self) -> Option<Stamp> {
        Stamp::of(&self.path()).or_else(|| Stamp::of(&self.given_at()?))
    }

    /// Waits until no other process renews or replaces this account.
    pub async fn lock(&self) -> Result<Locked<'_>> {
        let folder = &self.store.folder;
        let named =
            |e: std::io::Error| Error::from(e).context(format!("the accounts in {}", folder.display()));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(named)?;
        let path = folder.join(format!(".{}.lock", self.name));
        let lock = private(std::fs::OpenOptions::new().create(true).truncate(false).write(true), &path)
            .map_err(named)?;
        Ok(Locked { handle: self, _lock: lock_file(lock, &path).await? })
    }

    fn named(&self, error: &Error) -> Error {
        error.clone().context(format!("account {} ({})", self.name, self.path().display()))
    }

    /// What a service manager gives goes first, unless what is stored descends from it.
    fn record(&self) -> Result<Record> {
        let Some(given) = self.given()? else { return self.stored() };
        match self.stored() {
            Ok(stored) if stored.seed.as_ref() == Some(&given.fingerprint()) => Ok(stored),
            _ => given.record(),
        }
    }

    fn stored(&self) -> Result<Record> {
        let text = read_private(&self.path(), SHARED_MODE).map_err(|e| self.missing(e))?;
        Record::parse(&text).map_err(|e| self.named(&e))
    }

    fn missing(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::NotFound {
            return error;
        }
        let name = &self.name;
        let detail = format!("there is no account {name}: run pdsfs login {name}");
        Error::new(ErrorKind::NotFound, detail)
    }

    /// Takes secrets out of the keyring that nobody needs any more.
    async fn forget_in_keyring(&self) {
        if let Err(error) = keyring::remove(&self.name).await {
            tracing::debug!(%error, "the keyring may have secrets of account {} left", self.name);
        }
    }

    async fn secrets_in_keyring(&self) -> Result<Secrets> {
        let name = &self.name;
        let found = keyring::get(name).await.map_err(|e| {
            let advice = "log in again with --store file where there is no desktop session";
            self.named(&Error::new(e.kind(), format!("its secrets are in the keyring: {e}; {advice}")))
        })?;
        let text = found.ok_or_else(|| {
            let detail = format!("its secrets are not in the keyring any more: run pdsfs login {name}");
            self.named(&Error::new(ErrorKind::NotFound, detail))
        })?;
        serde_json::from_slice(&text).map_err(|e| {
            let detail = format!("what the keyring has is no secret of ours (column {})", e.column());
            self.named(&Error::new(ErrorKind::Invalid, detail))
        })
    }
}

impl Locked<'_> {
    /// Stores the account, on disk when this returns. Where the keyring refuses, the file takes the secrets;
    /// the answer says which has them.
    pub async fn save(&self, account: &Account) -> Result<Keep> {
        let handle = self.handle;
        let was_in_keyring = handle.outline().is_ok_and(|before| before.keep == Keep::Keyring);
        let (mut record, secrets) = split(account);
        let mut keep = account.keep;
        if keep == Keep::Keyring {
            let text = serde_json::to_vec(&secrets).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
            if let Err(error) = keyring::put(&handle.name, &text).await {
                tracing::warn!(%error, "the secrets of account {} go to a file instead", handle.name);
                keep = Keep::File;
            }
        }
        if keep == Keep::File {
            record.secrets = Some(secrets);
        }
        // What a service manager gave cannot be changed: the stored account says that it came from there. A login
        // outside of the service takes the place of what descends from it, or the service would not see the login.
        record.seed = match handle.given()? {
            Some(given) => Some(given.fingerprint()),
            None => handle.stored().ok().and_then(|before| before.seed),
        };
        let text =
            serde_json::to_vec_pretty(&record).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
        let path = handle.path();
        let write = move || replace_private(&path, &text);
        let stopped = |e| Error::new(ErrorKind::Io, format!("storing an account stopped: {e}"));
        tokio::task::spawn_blocking(write).await.map_err(stopped)??;
        if was_in_keyring && keep == Keep::File {
            handle.forget_in_keyring().await;
        }
        Ok(keep)
    }

    /// Stores what was renewed, unless the service manager gives as much at the next start; whether it is stored.
    pub async fn save_renewed(&self, account: &Account) -> Result<bool> {
        let given = self.handle.given()?.and_then(|given| given.account().ok());
        if given.is_some_and(|given| given.grant == account.grant) {
            return Ok(false);
        }
        self.save(account).await.map(|_| true)
    }

    /// Reads the account as it is now.
    pub async fn load(&self) -> Result<Account> {
        self.handle.load().await
    }

    /// Forgets the account: its file, and its secrets in the keyring where they are there.
    pub async fn remove(&self) -> Result<()> {
        let handle = self.handle;
        match handle.outline() {
            Ok(outline) if outline.keep == Keep::Keyring => keyring::remove(&handle.name).await?,
            Ok(_) => {}
            // A damaged file does not say where its secrets are.
            Err(_) => handle.forget_in_keyring().await,
        }
        sweep_unfinished(&handle.path());
        match std::fs::remove_file(handle.path()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(handle.named(&Error::from(e))),
            _ => Ok(()),
        }
    }
}

impl Stamp {
    /// The stamp of a file.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        let changed_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Some(Self { ino: metadata.ino(), changed_ns, bytes: metadata.len() })
    }
}

fn private(options: &mut std::fs::OpenOptions, path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    options.mode(0o600).custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{AccessToken, Grant, RefreshBy};
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
            keep: Keep::File,
        }
    }

    fn named(store: &Store) -> Handle {
        store.account(AccountName::new("work").unwrap())
    }

    #[tokio::test]
    async fn an_account_comes_back_as_it_was_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().join("accounts"), None);
        let handle = named(&store);
        assert!(handle.load().await.unwrap_err().to_string().contains("pdsfs login work"));
        assert_eq!(handle.stamp(), None);
        let locked = handle.lock().await.unwrap();
        assert_eq!(locked.save(&account("RT")).await.unwrap(), Keep::File);
        let first = handle.stamp();
        assert_eq!(locked.load().await.unwrap(), account("RT"));
        locked.save(&account("RT2")).await.unwrap();
        assert_ne!(handle.stamp(), first, "a change shows");
        let without_drive = Account { drive_id: None, ..account("RT2") };
        locked.save(&without_drive).await.unwrap();
        assert_eq!(locked.load().await.unwrap(), without_drive);
        assert_eq!(store.names().unwrap(), [handle.name().clone()]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&handle.path()), mode(&store.folder)), (0o600, 0o700));
        std::fs::set_permissions(handle.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(handle.load().await.unwrap_err().to_string().contains("chmod 600"));
        locked.remove().await.unwrap();
        assert!(store.names().unwrap().is_empty());
    }

    #[tokio::test]
    async fn one_process_at_a_time_holds_an_account() {
        const ROUNDS: u64 = 20;
        let folder = tempfile::tempdir().unwrap();
        let handle = named(&Store::at(folder.path(), None));
        handle.lock().await.unwrap().save(&account("0")).await.unwrap();
        let count_up = async |handle: Handle| {
            for _ in 0..ROUNDS {
                let held = handle.lock().await.unwrap();
                let Grant::Refresh { refresh_token, .. } = held.load().await.unwrap().grant else {
                    panic!("the account changed its kind")
                };
                let count: u64 = refresh_token.expose().parse().unwrap();
                held.save(&account(&(count + 1).to_string())).await.unwrap();
            }
        };
        tokio::join!(count_up(handle.clone()), count_up(handle.clone()), count_up(handle.clone()));
        assert_eq!(
            handle.load().await.unwrap(),
            account(&(3 * ROUNDS).to_string()),
            "somebody was overtaken"
        );
    }

    #[tokio::test]
    async fn what_a_service_manager_gives_goes_first_until_it_was_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let (given, stored) = (folder.path().join("given"), folder.path().join("stored"));
        std::fs::create_dir(&given).unwrap();
        // A login elsewhere makes what is given.
        let elsewhere = Store::at(folder.path().join("elsewhere"), None);
        let login = named(&elsewhere);
        login.lock().await.unwrap().save(&account("RT")).await.unwrap();
        std::fs::copy(login.path(), given.join("pdsfs.work")).unwrap();
        let handle = named(&Store::at(&stored, Some(given.clone())));
        assert_eq!(handle.load().await.unwrap(), account("RT"));
        let locked = handle.lock().await.unwrap();
        assert!(!locked.save_renewed(&account("RT")).await.unwrap(), "nothing was rotated");
        assert!(!handle.path().exists(), "what is given is not stored again");
        assert!(locked.save_renewed(&account("RT2")).await.unwrap());
        assert_eq!(handle.load().await.unwrap(), account("RT2"), "the rotated token goes to the state");
        assert!(handle.remedy().contains("credential pdsfs.work"));
        drop(locked);
        // A login outside of the service repairs it, which the spent credential must not undo.
        let outside = named(&Store::at(&stored, None));
        outside.lock().await.unwrap().save(&account("RT7")).await.unwrap();
        assert_eq!(handle.load().await.unwrap(), account("RT7"), "the login is not seen by the service");
        login.lock().await.unwrap().save(&account("RT9")).await.unwrap();
        std::fs::copy(login.path(), given.join("pdsfs.work")).unwrap();
        assert_eq!(handle.load().await.unwrap(), account("RT9"), "a new credential replaces both");
    }

    #[test]
    fn a_token_alone_is_given_too() {
        let folder = tempfile::tempdir().unwrap();
        let given = |text: &str| {
            std::fs::write(folder.path().join("pdsfs.work"), text).unwrap();
            std::fs::set_permissions(
                folder.path().join("pdsfs.work"),
                std::fs::Permissions::from_mode(0o440),
            )
            .unwrap();
            named(&Store::at(folder.path().join("stored"), Some(folder.path().into())))
        };
        let handle = given("TOKEN\n");
        assert_eq!(handle.given_token().unwrap().unwrap().expose(), "TOKEN");
        assert!(handle.outline().unwrap_err().to_string().contains("endpoint and drive_id"));
        assert!(given(" ").given_token().unwrap_err().to_string().contains("empty"));
        let wrong = given("{\"access_token\":\"SECRET\"}").outline().unwrap_err().to_string();
        assert!(wrong.contains("--store file") && !wrong.contains("SECRET"), "{wrong}");
    }

    #[tokio::test]
    async fn damaged_files_are_told_apart_without_their_text() {
        let folder = tempfile::tempdir().unwrap();
        let handle = named(&Store::at(folder.path(), None));
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
