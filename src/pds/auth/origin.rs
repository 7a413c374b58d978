//! The place that a credential comes from, and goes back to when it was renewed.

use std::fs::File;
use std::path::{Path, PathBuf};

use url::Url;

use super::grants::Granted;
use super::{Credential, check_token, token_file};
use crate::account::{AccessToken, Grant, Handle, Locked, Stamp};
use crate::error::{Error, ErrorKind, Result};

/// What a place holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) grant: Grant,
    pub(super) access: Option<AccessToken>,
}

/// The place.
#[derive(Debug)]
pub(super) enum Origin {
    /// Nowhere: it was given by itself.
    Fixed(Box<Held>),
    /// A token file, and who renews it.
    File { path: PathBuf, auth_endpoint: Url },
    /// An account, and who renews it.
    Account { handle: Handle, auth_endpoint: Url },
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
        Self { grant, access: Some(granted.access) }
    }
}

impl Origin {
    /// The place, and what it holds as far as that can be read at once.
    pub(super) fn new(credential: Credential, endpoint: &Url) -> Result<(Self, Option<Held>)> {
        match credential {
            Credential::Token(token) => {
                check_token(token.expose())?;
                let access = Some(AccessToken { token, expires_at_s: None });
                Ok(fixed(Held { grant: Grant::Fixed, access }))
            }
            Credential::Key(key) => {
                Ok(fixed(Held { grant: Grant::AccessKey { key, user_id: None }, access: None }))
            }
            Credential::File(path) => {
                let held = token_file::read(&path)?;
                Ok((Self::File { path, auth_endpoint: endpoint.clone() }, Some(held)))
            }
            Credential::Account(handle) => {
                // The secrets may be in a keyring, which has to be asked.
                let outline = handle.outline()?;
                if outline.endpoint != *endpoint {
                    let detail = format!(
                        "account {} is one of {}, and its tokens go nowhere else: leave the endpoint away \
                         or run pdsfs login for {endpoint}",
                        handle.name(),
                        outline.endpoint
                    );
                    return Err(Error::new(ErrorKind::Invalid, detail));
                }
                Ok((Self::Account { handle, auth_endpoint: outline.auth_endpoint }, None))
            }
        }
    }

    /// Who gives tokens. A place without an answer never asks.
    pub(super) fn auth_endpoint(&self) -> Option<&Url> {
        match self {
            Self::Fixed(_) => None,
            Self::File { auth_endpoint, .. } | Self::Account { auth_endpoint, .. } => Some(auth_endpoint),
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
            Self::File { path, .. } => token_file::read(path),
            Self::Account { handle, .. } => {
                let account = handle.load().await?;
                Ok(Held { grant: account.grant, access: account.access })
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
            (_, Lock::Account(locked)) => {
                let mut account = locked.load().await?;
                account.grant = held.grant.clone();
                account.access = held.access.clone();
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

fn fixed(held: Held) -> (Origin, Option<Held>) {
    (Origin::Fixed(Box::new(held.clone())), Some(held))
}
