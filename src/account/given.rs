//! What a service manager gives (`LoadCredential=`): the file of a login, or a token alone.
//!
//! It cannot be changed, and may lie encrypted everywhere but in the memory of this machine. So it is not stored
//! again; only a refresh token that the service has rotated is, because the one that was given is spent then.

use std::fmt::Write as _;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::Account;
use super::private_file::read_private;
use super::record::Record;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// Permissions of others. A service manager lets a service in by an ACL, whose mask shows as group.
const OTHERS_MODE: u32 = 0o007;

/// A credential, as it was given.
pub(super) struct Given {
    path: PathBuf,
    text: Vec<u8>,
}

impl Given {
    pub(super) fn read(path: PathBuf) -> Result<Self> {
        let text = read_private(&path, OTHERS_MODE)?;
        Ok(Self { path, text })
    }

    /// Tells whether a stored account descends from this one.
    pub(super) fn fingerprint(&self) -> String {
        Sha256::digest(&self.text).iter().fold(String::new(), |mut out, byte| {
            // Writing to a String does not fail.
            let _ = write!(out, "{byte:02x}");
            out
        })
    }

    /// The token, where it is one alone.
    pub(super) fn token(&self) -> Result<Option<Secret<String>>> {
        let text = std::str::from_utf8(&self.text).map_err(|_| self.wrong("it is not text"))?.trim();
        if text.is_empty() {
            return Err(self.wrong("it is empty"));
        }
        Ok((!text.starts_with('{')).then(|| Secret::new(text.to_owned())))
    }

    /// The account, where it is one.
    pub(super) fn record(&self) -> Result<Record> {
        if self.token()?.is_some() {
            let what = "a token alone does not say where the drive is; name endpoint and drive_id in the \
                configuration";
            return Err(self.wrong(what));
        }
        let advice = "; it must be a token, or the file of a login with --store file";
        let mut record = Record::parse(&self.text).map_err(|e| self.wrong(&format!("{e}{advice}")))?;
        if record.secrets.is_none() {
            return Err(self.wrong("it has no secrets: make it from the file of a login with --store file"));
        }
        record.seed = Some(self.fingerprint());
        Ok(record)
    }

    /// Both halves of the account.
    pub(super) fn account(&self) -> Result<Account> {
        let mut record = self.record()?;
        let secrets = record.secrets.take().unwrap_or_default();
        record.join(secrets).map_err(|e| self.wrong(&e.to_string()))
    }

    fn wrong(&self, what: &str) -> Error {
        Error::new(ErrorKind::Invalid, format!("credential {}: {what}", self.path.display()))
    }
}
