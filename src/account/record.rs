//! An account as JSON: a public half, and a secret half that may be elsewhere.

use serde::{Deserialize, Serialize};

use super::{AccessToken, Account, Grant, Keep, Outline, RefreshBy, SubjectKind};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, Secret};
use crate::pds::endpoint;
use crate::pds::sign::AccessKey;

/// Version of the form.
const VERSION: u32 = 1;

/// The file of an account.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    version: u32,
    endpoint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auth_endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drive_id: Option<DriveId>,
    #[serde(default)]
    user: String,
    method: Method,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at_s: Option<u64>,
    /// Absent where they are in the keyring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) secrets: Option<Secrets>,
    /// Hash of the credential that a service manager gave and that this one descends from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Method {
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
        subject_kind: Kind,
        domain_id: String,
    },
    AccessKey {
        id: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user_id: Option<String>,
    },
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    User,
    Service,
}

/// The secret half. It has no `Debug`.
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

/// The two halves of an account.
pub(super) fn split(account: &Account) -> (Record, Secrets) {
    let plain = |secret: &Secret<String>| Some(secret.expose().clone());
    let mut secrets = Secrets {
        access_token: account.access.as_ref().and_then(|access| plain(&access.token)),
        ..Secrets::default()
    };
    let method = match &account.grant {
        Grant::Fixed => Method::Fixed {},
        Grant::Refresh { client_id, client_secret, refresh_token, by } => {
            secrets.refresh_token = plain(refresh_token);
            secrets.client_secret = client_secret.as_ref().and_then(plain);
            let client_id = client_id.clone();
            match by {
                RefreshBy::Oauth => Method::Oauth { client_id },
                RefreshBy::Account => Method::Account { client_id },
            }
        }
        Grant::ServiceApp { client_id, subject, subject_kind, domain_id, key_pem } => {
            secrets.key_pem = plain(key_pem);
            Method::ServiceApp {
                client_id: client_id.clone(),
                subject: subject.clone(),
                subject_kind: match subject_kind {
                    SubjectKind::User => Kind::User,
                    SubjectKind::Service => Kind::Service,
                },
                domain_id: domain_id.clone(),
            }
        }
        Grant::AccessKey { key, user_id } => {
            secrets.access_key_secret = plain(&key.secret);
            secrets.security_token = key.security_token.as_ref().and_then(plain);
            Method::AccessKey { id: key.id.clone(), user_id: user_id.clone() }
        }
    };
    let record = Record {
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

impl Record {
    /// Reads the form; the place is named in errors by the caller.
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        // The text of a JSON error may quote what it met, which may be a secret: only the place is told.
        let record: Self = serde_json::from_slice(text).map_err(|e| {
            let detail = format!("not an account: line {}, column {}", e.line(), e.column());
            Error::new(ErrorKind::Invalid, detail)
        })?;
        if record.version != VERSION {
            let detail =
                format!("an account of version {}; this program knows version {VERSION}", record.version);
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        Ok(record)
    }

    /// What needs no secrets.
    pub(super) fn outline(&self) -> Result<Outline> {
        let url = |text: &str| endpoint::parse(text).map_err(|e| e.context("its endpoint"));
        let endpoint = url(&self.endpoint)?;
        Ok(Outline {
            auth_endpoint: self.auth_endpoint.as_deref().map_or_else(|| Ok(endpoint.clone()), url)?,
            endpoint,
            drive_id: self.drive_id.clone(),
            user: self.user.clone(),
            keep: if self.secrets.is_some() { Keep::File } else { Keep::Keyring },
            client_id: match &self.method {
                Method::Oauth { client_id } | Method::Account { client_id } => Some(client_id.clone()),
                _ => None,
            },
        })
    }

    /// Both halves together.
    pub(super) fn join(&self, secrets: Secrets) -> Result<Account> {
        let outline = self.outline()?;
        let need = |secret: Option<String>, what: &str| {
            secret.filter(|text| !text.is_empty()).map(Secret::new).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, format!("it has no {what}; run pdsfs login again"))
            })
        };
        let grant = match &self.method {
            Method::Fixed {} => Grant::Fixed,
            Method::Oauth { client_id } | Method::Account { client_id } => Grant::Refresh {
                client_id: client_id.clone(),
                client_secret: secrets.client_secret.map(Secret::new),
                refresh_token: need(secrets.refresh_token, "refresh token")?,
                by: match self.method {
                    Method::Account { .. } => RefreshBy::Account,
                    _ => RefreshBy::Oauth,
                },
            },
            Method::ServiceApp { client_id, subject, subject_kind, domain_id } => Grant::ServiceApp {
                client_id: client_id.clone(),
                subject: subject.clone(),
                subject_kind: match subject_kind {
                    Kind::User => SubjectKind::User,
                    Kind::Service => SubjectKind::Service,
                },
                domain_id: domain_id.clone(),
                key_pem: need(secrets.key_pem, "private key")?,
            },
            Method::AccessKey { id, user_id } => Grant::AccessKey {
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
            return Err(Error::new(ErrorKind::Invalid, "it has no token; run pdsfs login again"));
        }
        let Outline { endpoint, auth_endpoint, drive_id, user, keep, .. } = outline;
        Ok(Account { endpoint, auth_endpoint, drive_id, user, grant, access, keep })
    }
}
