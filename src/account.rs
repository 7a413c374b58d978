//! Accounts: where a drive is, who we are there, and how the next token is had.
//!
//! `pdsfs login` makes one, every mount of it reads it, and whoever renews a token writes it. A refresh token that
//! rotates is good once, so renewing takes the account's lock, reads again what the others have written, and has
//! the new token on disk before anything uses it. The public half of an account is a file; the secret half is in
//! the same file or in the keyring of the desktop session. Nothing here knows the network.

mod given;
mod keyring;
mod private_file;
mod record;
mod store;

use std::fmt;

use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, Secret};
use crate::pds::sign::AccessKey;

pub use keyring::{is_refused as keyring_is_refused, is_there as keyring_is_there};
pub use private_file::{lock_file, read_private, replace_private};
pub use store::{Handle, Locked, Stamp, Store};

/// Name of the account that is meant where none is named.
pub const DEFAULT_NAME: &str = "default";
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The name of an account: a file name without surprises.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AccountName(String);

impl AccountName {
    /// Letters, digits, `-`, `_` and `.`, not beginning with a dot.
    pub fn new(name: &str) -> Result<Self> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty()
            || name.len() > NAME_BYTES_MAX
            || name.starts_with(['.', '-'])
            || !name.chars().all(is_plain)
        {
            let detail = format!(
                "{name:?} cannot be the name of an account: use up to {NAME_BYTES_MAX} letters, digits, \
                 '-', '_' and '.', not beginning with '.' or '-'"
            );
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        Ok(Self(name.to_owned()))
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the secret half is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Keep {
    /// In the account's file, which only its owner can read.
    #[default]
    File,
    /// In the keyring of the desktop session (freedesktop Secret Service).
    Keyring,
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Keyring => "keyring",
        })
    }
}

/// An access token and its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessToken {
    /// The bearer.
    pub token: Secret<String>,
    /// Seconds since 1970 by the clock of this machine; `None` where nobody said.
    pub expires_at_s: Option<u64>,
}

/// Which call takes the refresh token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefreshBy {
    /// `oauth/token`, a form: tokens of the authorization code flow.
    Oauth,
    /// `account/token`, JSON: tokens of an app with its own login.
    Account,
}

/// Whom a service app acts for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubjectKind {
    /// One user.
    User,
    /// The domain itself.
    Service,
}

/// How the next token is had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Grant {
    /// Not at all: the access token is all there is.
    Fixed,
    /// By a refresh token.
    Refresh {
        /// Of the app.
        client_id: String,
        /// Of apps that keep one.
        client_secret: Option<Secret<String>>,
        /// Perhaps good once only.
        refresh_token: Secret<String>,
        /// Who takes it.
        by: RefreshBy,
    },
    /// By an assertion that is signed with the key of a service app.
    ServiceApp {
        /// Of the app.
        client_id: String,
        /// A user, or the domain.
        subject: String,
        /// Which of the two.
        subject_kind: SubjectKind,
        /// The audience.
        domain_id: String,
        /// RSA private key in PEM.
        key_pem: Secret<String>,
    },
    /// No token: every call is signed.
    AccessKey {
        /// The key.
        key: AccessKey,
        /// Whose drives are meant where the service asks.
        user_id: Option<String>,
    },
}

/// One account, whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// Base URL of the API.
    pub endpoint: Url,
    /// Base URL of the token calls.
    pub auth_endpoint: Url,
    /// What is mounted unless another is named; none, where a login ended before one was chosen.
    pub drive_id: Option<DriveId>,
    /// For people.
    pub user: String,
    /// How tokens are had.
    pub grant: Grant,
    /// The newest one.
    pub access: Option<AccessToken>,
    /// Where the secrets are.
    pub keep: Keep,
}

/// What can be told of an account without its secrets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outline {
    /// Base URL of the API.
    pub endpoint: Url,
    /// Base URL of the token calls.
    pub auth_endpoint: Url,
    /// What is mounted unless another is named; none, where a login ended before one was chosen.
    pub drive_id: Option<DriveId>,
    /// For people.
    pub user: String,
    /// Where the secrets are.
    pub keep: Keep,
    /// Of the app that asks for tokens by a refresh token.
    pub client_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names_without_surprises() {
        for fine in ["default", "work-2", "a.b_c"] {
            assert_eq!(AccountName::new(fine).unwrap().as_str(), fine);
        }
        for wrong in ["", ".", "..", ".x", "-x", "a/b", "a b", "\u{e9}", &"x".repeat(65)] {
            assert!(AccountName::new(wrong).is_err(), "{wrong}");
        }
    }
}
