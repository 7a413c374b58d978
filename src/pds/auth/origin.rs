//! The place that a credential comes from, and goes back to when it was renewed.

use std::fs::File;
use std::path::{Path, PathBuf};

use url::Url;

use super::grants::Granted;
use super::{Credential, check_token, token_file};
use crate::account::{AccessToken, Account, Grant, Handle, Locked, Outline, Stamp};
use crate::error::{Error, ErrorKind, Result};

/// What a place holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) grant: Grant,
    pub(super) access: Option<AccessToken>,
    /// Who gives the next token; nobody, where a credential was given by itself.
    pub(super) auth_endpoint: Option<Url>,
}

/// The place.
#[derive(Debug)]
pub(super) enum Origin {
    /// Nowhere: it was given by itself.
    Fixed(Box<Held>),
    /// A token file, and where its tokens go.
    File { path: PathBuf, endpoint: Url },
    /// An account, and where its tokens go.
    Account { handle: Handle, endpoint: Url },
}

/// Nobody else renews what is at this place while it lives.
pub(super) enum Lock<'a> {
    Nothing,
    /// The folder of a token file. Closing it releases the lock.
    Folder {
        _folder: File,
    },
    Account(Locked<'a>),
}

impl Held {
    /// The same after the service has given a token.
    pub(super) fn with(self, granted: Granted) -> Self {
        let mut grant = self.grant;
        if let (Grant::Refresh { refresh_token, .. }, Some(rotated)) = (&mut grant, granted.refresh_token) {
            *refresh_token = rotated;
        }
        Self { grant, access: Some(granted.access), auth_endpoint: self.auth_endpoint }
    }
}

impl Origin {
    /// The place, and what it holds as far as that can be read at once.
    pub(super) fn new(credential: Credential, endpoint: &Url) -> Result<(Self, Option<Held>)> {
        match credential {
            Credential::Token(token) => {
                check_token(token.expose())?;
                let access = Some(AccessToken { token, expires_at_s: None });
                Ok(fixed(Held { grant: Grant::Fixed, access, auth_endpoint: None }))
            }
            Credential::Key(key) => {
                let grant = Grant::AccessKey { key, user_id: None };
                Ok(fixed(Held { grant, access: None, auth_endpoint: None }))
            }
            Credential::File(path) => {
                let held = token_file::read(&path, endpoint)?;
                Ok((Self::File { path, endpoint: endpoint.clone() }, Some(held)))
            }
            Credential::Account(handle) => {
                // The secrets may be in a keyring, which has to be asked.
                let outline = handle.outline()?;
                stays_at_home(&handle, &outline.endpoint, endpoint)
                    .map_err(|what| Error::new(ErrorKind::Invalid, what))?;
                Ok((Self::Account { handle, endpoint: endpoint.clone() }, None))
            }
        }
    }

    pub(super) fn stamp(&self) -> Option<Stamp> {
        match self {
            Self::Fixed(_) => None,
            Self::File { path, .. } => Stamp::of(path),
            Self::Account { handle, .. } => handle.stamp(),
        }
    }

    pub(super) async fn lock(&self) -> Result<Lock<'_>> {
        match self {
            Self::Fixed(_) => Ok(Lock::Nothing),
            Self::File { path, .. } => {
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let held = crate::account::lock_file(File::open(folder)?, folder).await?;
                Ok(Lock::Folder { _folder: held })
            }
            Self::Account { handle, .. } => Ok(Lock::Account(handle.lock().await?)),
        }
    }

    pub(super) async fn load(&self) -> Result<Held> {
        match self {
            Self::Fixed(held) => Ok(Held::clone(held)),
            Self::File { path, endpoint } => token_file::read(path, endpoint),
            Self::Account { handle, endpoint } => {
                let account = handle.load().await?;
                stays_at_home(handle, &account.endpoint, endpoint)
                    .map_err(|what| Error::new(ErrorKind::Unauthenticated, what))?;
                let auth_endpoint = Some(account.auth_endpoint);
                Ok(Held { grant: account.grant, access: account.access, auth_endpoint })
            }
        }
    }

    /// Stores what was renewed, on disk when this returns; whether the place takes it.
    pub(super) async fn save(&self, lock: &Lock<'_>, held: &Held) -> Result<bool> {
        match (self, lock) {
            (Self::File { path, .. }, _) => {
                let (path, held) = (path.clone(), held.clone());
                let stopped = |e| Error::new(ErrorKind::Io, format!("storing a token stopped: {e}"));
                let written = tokio::task::spawn_blocking(move || token_file::write(&path, &held)).await;
                written.map_err(stopped)?.map(|()| true)
            }
            (Self::Account { handle, .. }, Lock::Account(locked)) => {
                // The old secrets are not asked for: a keyring that has gone must not keep a file from taking these.
                let Outline { endpoint, auth_endpoint, drive_id, user, keep, .. } = handle.outline()?;
                let (grant, access) = (held.grant.clone(), held.access.clone());
                let account = Account { endpoint, auth_endpoint, drive_id, user, grant, access, keep };
                locked.save_renewed(&account).await
            }
            _ => Ok(true),
        }
    }

    /// There is no way to another token.
    pub(super) fn hopeless(&self, why: &str) -> Error {
        let detail = match self {
            Self::Fixed(_) => {
                format!(
                    "{why}, and it cannot be renewed because it was given without a refresh token; give a new one"
                )
            }
            Self::File { path, .. } => format!(
                "{why}, and {} has no newer token and no refresh_token with app_id; put a new one there",
                path.display()
            ),
            Self::Account { handle, .. } => {
                format!("{why}, and account {} cannot renew it; {}", handle.name(), handle.remedy())
            }
        };
        Error::new(ErrorKind::Unauthenticated, detail)
    }

    /// The service has finally refused to give another token.
    pub(super) fn dead(&self, why: &str, refusal: &Error) -> Error {
        let advice = match self {
            Self::Fixed(_) => "give a new one".to_owned(),
            Self::File { path, .. } => format!("put a new one into {}", path.display()),
            Self::Account { handle, .. } => handle.remedy(),
        };
        Error::new(ErrorKind::Unauthenticated, format!("{why}, and was not renewed: {refusal}; {advice}"))
    }
}

/// A token goes to the endpoint that it was given for and nowhere else; what is wrong otherwise.
fn stays_at_home(handle: &Handle, home: &Url, endpoint: &Url) -> std::result::Result<(), String> {
    if home == endpoint {
        return Ok(());
    }
    let (name, endpoint) = (handle.name(), endpoint.as_str().trim_end_matches('/'));
    Err(format!(
        "account {name} is a login for {home}, and its tokens go nowhere else; for {endpoint} run \
         pdsfs login {name} --endpoint {endpoint}, or use another account"
    ))
}

fn fixed(held: Held) -> (Origin, Option<Held>) {
    (Origin::Fixed(Box::new(held.clone())), Some(held))
}
