//! Options of `pdsfs serve` that say who may log in, and how.

use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::super::quantities::duration_within;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::server::{AccessKey, Logins, ServerConfig, ServiceApp};

/// Largest key file that is read, in bytes.
const KEY_BYTES_MAX: u64 = 64 << 10;

/// Who may log in. Secrets are better given by the environment, which other users do not see.
#[derive(Debug, Args)]
pub(super) struct LoginOptions {
    /// Let apps of this client id log users in: shows the page of consent, /v2/oauth/authorize. Can be
    /// given more than once
    #[arg(long = "client-id", value_name = "ID")]
    client_ids: Vec<String>,
    /// What those apps must show when they ask for tokens [default: nothing]
    #[arg(
        long,
        env = "PDSFS_SERVE_CLIENT_SECRET",
        hide_env_values = true,
        value_name = "SECRET",
        requires = "client_ids"
    )]
    client_secret: Option<String>,
    /// Where the page of consent may send the browser, besides this machine. Can be given more than once
    #[arg(long = "redirect-uri", value_name = "URI", requires = "client_ids")]
    redirect_uris: Vec<String>,
    /// What the page of consent asks for [default: nothing; whoever opens it may press Allow]
    #[arg(
        long,
        env = "PDSFS_SERVE_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        requires = "client_ids"
    )]
    login_password: Option<String>,
    /// A service app and a file with its RSA public key (PEM). Can be given more than once
    #[arg(long = "service-app", value_name = "ID=FILE")]
    service_apps: Vec<String>,
    /// Id of an access key that may sign calls
    #[arg(long, value_name = "ID", requires = "access_key_secret")]
    access_key_id: Option<String>,
    /// Secret of that access key
    #[arg(long, env = "PDSFS_SERVE_ACCESS_KEY_SECRET", hide_env_values = true, value_name = "SECRET")]
    access_key_secret: Option<String>,
    /// How long an access token is good that was handed out, 1s to 30d
    #[arg(long, value_name = "DURATION", default_value = "2h", value_parser = duration_within(1, 2_592_000))]
    token_ttl: Duration,
}

fn invalid(detail: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::Invalid, detail)
}

impl LoginOptions {
    /// Checks the options and puts them into the configuration. `is_remote`: other machines reach the page.
    pub(super) fn apply(self, config: &mut ServerConfig, is_remote: bool) -> Result<()> {
        let secret = |text: Option<String>| text.filter(|text| !text.trim().is_empty()).map(Secret::new);
        let password = secret(self.login_password);
        if is_remote && !self.client_ids.is_empty() && password.is_none() {
            let detail = "other machines would reach the page of consent and could press Allow: set \
                --login-password (PDSFS_SERVE_PASSWORD)";
            return Err(invalid(detail));
        }
        let apps = self.service_apps.iter().map(|text| service_app(text)).collect::<Result<Vec<_>>>()?;
        let old = &config.logins;
        config.logins = Logins {
            client_ids: self.client_ids,
            client_secret: secret(self.client_secret),
            redirect_uris: self.redirect_uris,
            password,
            service_apps: apps,
            token_ttl: self.token_ttl,
            refresh_token: old.refresh_token.clone(),
            codes: old.codes.clone(),
        };
        if let (Some(id), Some(secret)) = (self.access_key_id, secret(self.access_key_secret)) {
            config.access_key = Some(AccessKey::new(&id, secret));
        }
        Ok(())
    }
}

fn service_app(text: &str) -> Result<ServiceApp> {
    let wrong = |detail: String| invalid(format!("--service-app {text}: {detail}"));
    let (id, path) = text.split_once('=').ok_or_else(|| wrong("write it as ID=FILE".to_owned()))?;
    let path = Path::new(path);
    let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
    if size > KEY_BYTES_MAX {
        return Err(wrong("the file is too large to be a key".to_owned()));
    }
    let pem = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    ServiceApp::new(id, &pem).map_err(wrong)
}
