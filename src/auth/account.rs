//! An account: where a drive is, and how the next token is obtained.

use std::fmt;

use serde::{Deserialize, Serialize};
use url::Url;

use super::sign::AccessKey;
use super::token::AccessToken;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, Secret};

/// The account that is used if none is named.
pub const DEFAULT_NAME: &str = "default";
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The name of an account, which is also its file name.
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
                "{name:?} is not a valid account name: use up to {NAME_BYTES_MAX} letters, digits, '-', '_' \
                 and '.', not beginning with '.' or '-'"
            );
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        Ok(Self(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The place of the secret half of an account.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SecretStorage {
    /// The account file, which only its owner can read.
    #[default]
    File,
    /// The keyring of the desktop session (freedesktop Secret Service).
    Keyring,
}

impl fmt::Display for SecretStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Keyring => "keyring",
        })
    }
}

/// The call that redeems the refresh token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefreshBy {
    /// `oauth/token` with a form: tokens of the authorization code flow.
    Oauth,
    /// `account/token` with JSON: tokens of an app with its own login.
    Account,
}

/// The subject that a service app acts for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    User,
    /// The domain itself.
    Service,
}

/// How the next access token is obtained.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Grant {
    /// There is no next token, only one access token.
    Fixed,
    Refresh {
        client_id: String,
        /// Only of confidential apps.
        client_secret: Option<Secret<String>>,
        /// May be valid only once.
        refresh_token: Secret<String>,
        by: RefreshBy,
    },
    /// With an assertion that is signed by the key of a service app.
    ServiceApp {
        client_id: String,
        /// The id of a user or of the domain.
        subject: String,
        subject_kind: SubjectKind,
        /// The audience of the assertion.
        domain_id: String,
        /// RSA private key in PEM.
        key_pem: Secret<String>,
    },
    /// No token: every call is signed.
    AccessKey {
        key: AccessKey,
        /// The owner of the drives that `pdsfs drives` lists.
        user_id: Option<String>,
    },
}

/// An account with its secrets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// Base URL of the API.
    pub endpoint: Url,
    /// Base URL of the token calls.
    pub auth_endpoint: Url,
    /// The drive that is mounted by default. `None` if the login ended before one was chosen.
    pub drive_id: Option<DriveId>,
    /// Display name.
    pub user: String,
    pub grant: Grant,
    /// The current token.
    pub access: Option<AccessToken>,
    pub secret_storage: SecretStorage,
}

/// The public half of an account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccountSummary {
    /// Base URL of the API.
    pub endpoint: Url,
    /// Base URL of the token calls.
    pub auth_endpoint: Url,
    /// The drive that is mounted by default. `None` if the login ended before one was chosen.
    pub drive_id: Option<DriveId>,
    /// Display name.
    pub user: String,
    pub secret_storage: SecretStorage,
    /// The app of an account with a refresh token.
    pub client_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_names_are_safe_file_names() {
        for fine in ["default", "work-2", "a.b_c"] {
            assert_eq!(AccountName::new(fine).unwrap().as_str(), fine);
        }
        for wrong in ["", ".", "..", ".x", "-x", "a/b", "a b", "\u{e9}", &"x".repeat(65)] {
            assert!(AccountName::new(wrong).is_err(), "{wrong}");
        }
    }
}
