//! A systemd credential (`LoadCredential=`): an account file, or an access token alone.
//!
//! It is read-only, and may be encrypted everywhere except in memory. So it is not stored again. Only a
//! rotated refresh token is stored, because the provided one is then no longer valid.

use std::fmt::Write as _;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::account::Account;
use super::account_file::AccountFile;
use super::private_file::read_private;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// Permissions that a credential must not have: those of others. systemd grants access by an ACL, whose mask
/// shows as the permissions of the group.
const OTHERS_MODE: u32 = 0o007;

pub(super) struct SystemdCredential {
    path: PathBuf,
    text: Vec<u8>,
}

impl SystemdCredential {
    pub(super) fn read(path: PathBuf) -> Result<Self> {
        let text = read_private(&path, OTHERS_MODE)?;
        Ok(Self { path, text })
    }

    /// Identifies this credential in the accounts that were refreshed from it.
    pub(super) fn fingerprint(&self) -> String {
        Sha256::digest(&self.text).iter().fold(String::new(), |mut out, byte| {
            // Writing to a String does not fail.
            let _ = write!(out, "{byte:02x}");
            out
        })
    }

    /// The access token, or `None` for an account.
    pub(super) fn token(&self) -> Result<Option<Secret<String>>> {
        let text = std::str::from_utf8(&self.text).map_err(|_| self.invalid("not UTF-8 text"))?.trim();
        if text.is_empty() {
            return Err(self.invalid("empty; provide an access token or an account file"));
        }
        Ok((!text.starts_with('{')).then(|| Secret::new(text.to_owned())))
    }

    pub(super) fn record(&self) -> Result<AccountFile> {
        if self.token()?.is_some() {
            let what = "an access token needs endpoint and drive_id in the configuration";
            return Err(self.invalid(what));
        }
        let advice = "; use an access token, or the account file of a login with --store file";
        let mut record = AccountFile::parse(&self.text).map_err(|e| self.invalid(&format!("{e}{advice}")))?;
        if record.secrets.is_none() {
            return Err(
                self.invalid("it contains no secrets; use the account file of a login with --store file")
            );
        }
        record.seed = Some(self.fingerprint());
        Ok(record)
    }

    /// The account with its secrets.
    pub(super) fn account(&self) -> Result<Account> {
        let mut record = self.record()?;
        let secrets = record.secrets.take().unwrap_or_default();
        record.with_secrets(secrets).map_err(|e| self.invalid(&e.to_string()))
    }

    fn invalid(&self, what: &str) -> Error {
        Error::new(ErrorKind::Invalid, format!("credential {}: {what}", self.path.display()))
    }
}
