//! The login options of `pdsfs serve`: apps, passwords, keys and tokens.

use std::path::Path;
use std::time::Duration;

use clap::Args;

use crate::error::{Error, Result};
use crate::server::{AcceptedAccessKey, Logins, Secret, ServerConfig, ServiceApp};
use crate::units::{duration_within, exact_size};

/// Largest size of a key file.
const KEY_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Args)]
pub(super) struct LoginOptions {
    /// Allow browser logins with this client id, on the consent page /v2/oauth/authorize. Repeatable
    #[arg(long = "client-id", value_name = "ID")]
    client_ids: Vec<String>,
    /// Client secret that those apps must send for a token [default: none]
    #[arg(
        long,
        env = "PDSFS_SERVE_CLIENT_SECRET",
        hide_env_values = true,
        value_name = "SECRET",
        requires = "client_ids"
    )]
    client_secret: Option<String>,
    /// Redirect URI that the consent page accepts in addition to loopback addresses. Repeatable
    #[arg(long = "redirect-uri", value_name = "URI", requires = "client_ids")]
    redirect_uris: Vec<String>,
    /// Password of the consent page [default: none; every visitor of the page can press Allow]
    #[arg(
        long,
        env = "PDSFS_SERVE_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        requires = "client_ids"
    )]
    login_password: Option<String>,
    /// Client id of a service app and a file with its RSA public key (PEM). Repeatable
    #[arg(long = "service-app", value_name = "ID=FILE")]
    service_apps: Vec<String>,
    /// Id of an access key that can sign calls
    #[arg(long, value_name = "ID", requires = "access_key_secret")]
    access_key_id: Option<String>,
    /// Secret of that access key
    #[arg(long, env = "PDSFS_SERVE_ACCESS_KEY_SECRET", hide_env_values = true, value_name = "SECRET")]
    access_key_secret: Option<String>,
    /// Lifetime of issued access tokens, 1s to 30d
    #[arg(long, value_name = "DURATION", default_value = "2h", value_parser = duration_within(1, 2_592_000))]
    token_ttl: Duration,
}

impl LoginOptions {
    /// Checks the options and adds them to the configuration. `is_remote`: other machines can reach the
    /// consent page.
    pub(super) fn apply(self, config: &mut ServerConfig, is_remote: bool) -> Result<()> {
        let secret = |text: Option<String>| text.filter(|text| !text.trim().is_empty()).map(Secret::new);
        let password = secret(self.login_password);
        if is_remote && !self.client_ids.is_empty() && password.is_none() {
            let detail = "other machines can reach the consent page and press Allow: set a password with \
                PDSFS_SERVE_PASSWORD or --login-password";
            return Err(Error::invalid(detail));
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
            config.access_key = Some(AcceptedAccessKey::new(&id, secret));
        }
        Ok(())
    }
}

fn service_app(text: &str) -> Result<ServiceApp> {
    let bad_app = |detail: String| Error::invalid(format!("--service-app {text}: {detail}"));
    let (id, path) = text.split_once('=').ok_or_else(|| bad_app("write it as ID=FILE".to_owned()))?;
    let path = Path::new(path);
    let size = std::fs::metadata(path).map_err(|e| bad_app(e.to_string()))?.len();
    if size > KEY_BYTES_MAX {
        return Err(bad_app(format!("not a key: larger than {}", exact_size(KEY_BYTES_MAX))));
    }
    let pem = std::fs::read_to_string(path).map_err(|e| bad_app(e.to_string()))?;
    ServiceApp::new(id, &pem).map_err(bad_app)
}
