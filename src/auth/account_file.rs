//! The JSON of an account: a public half, and a secret half that is in the same file or in the keyring.

use serde::{Deserialize, Serialize};

use super::account::{Account, AccountSummary, Grant, RefreshBy, SecretStorage, SubjectKind};
use super::endpoint;
use super::sign::AccessKey;
use super::token::AccessToken;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, Secret};

/// Version of the file format.
const VERSION: u32 = 1;

/// The content of an account file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AccountFile {
    version: u32,
    endpoint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auth_endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drive_id: Option<DriveId>,
    #[serde(default)]
    user: String,
    method: GrantFields,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at_s: Option<u64>,
    /// Absent if they are in the keyring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) secrets: Option<Secrets>,
    /// Fingerprint of the systemd credential that this account was refreshed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum GrantFields {
    Fixed {},
    Oauth {
        client_id: String,
    },
    Account {
        client_id: String,
    },
    ServiceApp {
        client_id: String,
        subject: String,
        subject_kind: SubjectKind,
        domain_id: String,
    },
    AccessKey {
        id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user_id: Option<String>,
    },
}

/// The secret half. It does not implement `Debug`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Secrets {
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_pem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_key_secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    security_token: Option<String>,
}

/// Splits an account into its halves. The secrets are not in the file yet.
pub(super) fn split(account: &Account) -> (AccountFile, Secrets) {
    let plain = |secret: &Secret<String>| Some(secret.expose().clone());
    let mut secrets = Secrets {
        access_token: account.access.as_ref().and_then(|access| plain(&access.token)),
        ..Secrets::default()
    };
    let method = match &account.grant {
        Grant::Fixed => GrantFields::Fixed {},
        Grant::Refresh { client_id, client_secret, refresh_token, by } => {
            secrets.refresh_token = plain(refresh_token);
            secrets.client_secret = client_secret.as_ref().and_then(plain);
            let client_id = client_id.clone();
            match by {
                RefreshBy::Oauth => GrantFields::Oauth { client_id },
                RefreshBy::Account => GrantFields::Account { client_id },
            }
        }
        Grant::ServiceApp { client_id, subject, subject_kind, domain_id, key_pem } => {
            secrets.key_pem = plain(key_pem);
            GrantFields::ServiceApp {
                client_id: client_id.clone(),
                subject: subject.clone(),
                subject_kind: *subject_kind,
                domain_id: domain_id.clone(),
            }
        }
        Grant::AccessKey { key, user_id } => {
            secrets.access_key_secret = plain(&key.secret);
            secrets.security_token = key.security_token.as_ref().and_then(plain);
            GrantFields::AccessKey { id: key.id.clone(), user_id: user_id.clone() }
        }
    };
    let record = AccountFile {
        version: VERSION,
        endpoint: account.endpoint.to_string(),
        auth_endpoint: (account.auth_endpoint != account.endpoint).then(|| account.auth_endpoint.to_string()),
        drive_id: account.drive_id.clone(),
        user: account.user.clone(),
        method,
        expires_at_s: account.access.as_ref().and_then(|access| access.expires_at_s),
        secrets: None,
        seed: None,
    };
    (record, secrets)
}

impl AccountFile {
    /// The caller adds the path to errors.
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        // The text of a JSON error may quote a secret, so only its position is used.
        let record: Self = serde_json::from_slice(text).map_err(|e| {
            let detail = format!("not a valid account file (line {}, column {})", e.line(), e.column());
            Error::new(ErrorKind::Invalid, detail)
        })?;
        if record.version != VERSION {
            let detail = format!(
                "not a supported account file: it has version {}, and this pdsfs supports version {VERSION}",
                record.version
            );
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        Ok(record)
    }

    pub(super) fn summary(&self) -> Result<AccountSummary> {
        let url = |text: &str| endpoint::parse(text).map_err(|e| e.context("endpoint"));
        let endpoint = url(&self.endpoint)?;
        Ok(AccountSummary {
            auth_endpoint: self.auth_endpoint.as_deref().map_or_else(|| Ok(endpoint.clone()), url)?,
            endpoint,
            drive_id: self.drive_id.clone(),
            user: self.user.clone(),
            secret_storage: if self.secrets.is_some() { SecretStorage::File } else { SecretStorage::Keyring },
            client_id: match &self.method {
                GrantFields::Oauth { client_id } | GrantFields::Account { client_id } => {
                    Some(client_id.clone())
                }
                _ => None,
            },
        })
    }

    /// Joins both halves.
    pub(super) fn with_secrets(&self, secrets: Secrets) -> Result<Account> {
        let summary = self.summary()?;
        let need = |secret: Option<String>, what: &str| {
            secret.filter(|text| !text.is_empty()).map(Secret::new).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, format!("no {what} is stored; run pdsfs login again"))
            })
        };
        let grant = match &self.method {
            GrantFields::Fixed {} => Grant::Fixed,
            GrantFields::Oauth { client_id } | GrantFields::Account { client_id } => Grant::Refresh {
                client_id: client_id.clone(),
                client_secret: secrets.client_secret.map(Secret::new),
                refresh_token: need(secrets.refresh_token, "refresh token")?,
                by: match self.method {
                    GrantFields::Account { .. } => RefreshBy::Account,
                    _ => RefreshBy::Oauth,
                },
            },
            GrantFields::ServiceApp { client_id, subject, subject_kind, domain_id } => Grant::ServiceApp {
                client_id: client_id.clone(),
                subject: subject.clone(),
                subject_kind: *subject_kind,
                domain_id: domain_id.clone(),
                key_pem: need(secrets.key_pem, "private key")?,
            },
            GrantFields::AccessKey { id, user_id } => Grant::AccessKey {
                key: AccessKey {
                    id: id.clone(),
                    secret: need(secrets.access_key_secret, "access key secret")?,
                    security_token: secrets.security_token.map(Secret::new),
                },
                user_id: user_id.clone(),
            },
        };
        let expires_at_s = self.expires_at_s;
        let access =
            secrets.access_token.map(|token| AccessToken { token: Secret::new(token), expires_at_s });
        if grant == Grant::Fixed && access.is_none() {
            return Err(Error::new(ErrorKind::Invalid, "no access token is stored; run pdsfs login again"));
        }
        let AccountSummary { endpoint, auth_endpoint, drive_id, user, secret_storage, .. } = summary;
        Ok(Account { endpoint, auth_endpoint, drive_id, user, grant, access, secret_storage })
    }
}
