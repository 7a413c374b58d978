//! The store that a credential is read from and written back to after a refresh.

use std::fs::File;
use std::path::PathBuf;

use url::Url;

use super::account::{Account, AccountSummary, Grant};
use super::account_store::{AccountHandle, LockedAccount, Version};
use super::credential::Credential;
use super::private_file::lock_beside;
use super::stored_credential::StoredCredential;
use super::token::{AccessToken, check_token};
use super::token_file;
use crate::error::{Error, ErrorKind, Result};
use crate::messages::{Cause, Remedy};

/// The place of a credential, and the endpoint that its tokens are sent to.
#[derive(Debug)]
pub enum CredentialStore {
    /// Only in memory: a token or an access key of the settings.
    Fixed(Box<StoredCredential>),
    /// A token file.
    File {
        path: PathBuf,
        endpoint: Url,
    },
    Account {
        handle: AccountHandle,
        endpoint: Url,
    },
}

/// Prevents refreshes of the credential by other processes while it exists.
pub enum CredentialLock<'a> {
    NotNeeded,
    /// The lock file beside a token file. Closing it releases the lock.
    TokenFile {
        _lock: File,
    },
    Account(LockedAccount<'a>),
}

impl CredentialStore {
    /// Opens the store and reads the credential. `None` for an account: its secrets may be in a keyring,
    /// which may have to ask the user.
    pub fn open(credential: Credential, endpoint: &Url) -> Result<(Self, Option<StoredCredential>)> {
        match credential {
            Credential::Token(token) => {
                check_token(token.expose())?;
                let access = Some(AccessToken { token, expires_at_s: None });
                Ok(fixed(StoredCredential { grant: Grant::Fixed, access, auth_endpoint: None }))
            }
            Credential::Key(key) => {
                let grant = Grant::AccessKey { key, user_id: None };
                Ok(fixed(StoredCredential { grant, access: None, auth_endpoint: None }))
            }
            Credential::File(path) => {
                let stored = token_file::read(&path, endpoint)?;
                Ok((Self::File { path, endpoint: endpoint.clone() }, Some(stored)))
            }
            Credential::Account(handle) => {
                let summary = handle.summary()?;
                check_same_endpoint(&handle, &summary.endpoint, endpoint)
                    .map_err(|what| Error::new(ErrorKind::Invalid, what))?;
                Ok((Self::Account { handle, endpoint: endpoint.clone() }, None))
            }
        }
    }

    /// Changes whenever the credential is stored.
    pub fn version(&self) -> Option<Version> {
        match self {
            Self::Fixed(_) => None,
            Self::File { path, .. } => Version::of(path),
            Self::Account { handle, .. } => handle.version(),
        }
    }

    pub async fn lock(&self) -> Result<CredentialLock<'_>> {
        match self {
            Self::Fixed(_) => Ok(CredentialLock::NotNeeded),
            Self::File { path, .. } => Ok(CredentialLock::TokenFile { _lock: lock_beside(path).await? }),
            Self::Account { handle, .. } => Ok(CredentialLock::Account(handle.lock().await?)),
        }
    }

    pub async fn load(&self) -> Result<StoredCredential> {
        match self {
            Self::Fixed(stored) => Ok(StoredCredential::clone(stored)),
            Self::File { path, endpoint } => token_file::read(path, endpoint),
            Self::Account { handle, endpoint } => {
                let account = handle.load().await?;
                check_same_endpoint(handle, &account.endpoint, endpoint)
                    .map_err(|what| Error::new(ErrorKind::Unauthenticated, what))?;
                let auth_endpoint = Some(account.auth_endpoint);
                Ok(StoredCredential { grant: account.grant, access: account.access, auth_endpoint })
            }
        }
    }

    /// Stores a refreshed credential; it is on disk when this returns. `false` if the account need not be
    /// stored.
    pub async fn save(&self, lock: &CredentialLock<'_>, refreshed: &StoredCredential) -> Result<bool> {
        match (self, lock) {
            (Self::File { path, .. }, _) => {
                let (path, refreshed) = (path.clone(), refreshed.clone());
                let stopped =
                    |e| Error::with_source(ErrorKind::Io, "the task that stores a token stopped", e);
                let written = tokio::task::spawn_blocking(move || token_file::write(&path, &refreshed)).await;
                written.map_err(stopped)?.map(|()| true)
            }
            (Self::Account { handle, .. }, CredentialLock::Account(locked)) => {
                // The old secrets are not read: if the keyring is gone, the new ones must still go to a file.
                let AccountSummary { endpoint, auth_endpoint, drive_id, user, secret_storage, .. } =
                    handle.summary()?;
                let (grant, access) = (refreshed.grant.clone(), refreshed.access.clone());
                let account =
                    Account { endpoint, auth_endpoint, drive_id, user, grant, access, secret_storage };
                locked.save_refreshed(&account).await
            }
            _ => Ok(true),
        }
    }

    /// The error for a credential that cannot get another token. `why` is the reason that it needs one.
    pub fn not_refreshable_error(&self, why: &str) -> Error {
        self.ended(format!("{why}, and it cannot be refreshed"))
    }

    /// The error after the service has rejected the credential for good. `why` states what it rejected.
    pub fn revoked_error(&self, why: &str, refusal: &Error) -> Error {
        let text = refusal.to_string();
        self.ended(format!("{why}: {}", refusal.detail().unwrap_or(&text)))
    }

    fn ended(&self, detail: String) -> Error {
        let cause = match self {
            Self::Fixed(stored) => match stored.grant {
                Grant::AccessKey { .. } => Cause::AccessKeyRefused,
                _ => Cause::TokenRefused { remedy: Some(Remedy::Token) },
            },
            Self::File { path, .. } => {
                Cause::TokenRefused { remedy: Some(Remedy::TokenFile(path.display().to_string())) }
            }
            Self::Account { handle, .. } => Cause::LoginEnded { remedy: handle.login_remedy() },
        };
        Error::from_cause(ErrorKind::Unauthenticated, cause, detail)
    }
}

/// Checks without the network whether a credential can be read and used with this endpoint.
pub fn check_credential(credential: Credential, endpoint: &Url) -> Result<()> {
    let (_, stored) = CredentialStore::open(credential, endpoint)?;
    stored.and_then(|stored| stored.access).map_or(Ok(()), |access| check_token(access.token.expose()))
}

/// A token is only ever sent to the endpoint of its login.
fn check_same_endpoint(
    handle: &AccountHandle,
    account_endpoint: &Url,
    endpoint: &Url,
) -> std::result::Result<(), String> {
    if account_endpoint == endpoint {
        return Ok(());
    }
    let (name, endpoint) = (handle.name(), endpoint.as_str().trim_end_matches('/'));
    Err(format!(
        "account {name} is a login for {account_endpoint}, and its tokens are not sent to another endpoint; \
         for {endpoint} run pdsfs login {name} --endpoint {endpoint}, or use another account"
    ))
}

fn fixed(credential: StoredCredential) -> (CredentialStore, Option<StoredCredential>) {
    (CredentialStore::Fixed(Box::new(credential.clone())), Some(credential))
}
