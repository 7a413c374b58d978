//! The login options of `pdsfs serve`: apps, passwords, keys and tokens.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::cli::login::read_private_text;
use crate::config::secret_variables;
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
    /// File with the client secret that those apps must send for a token [default: the secret in
    /// PDSFS_SERVE_CLIENT_SECRET, else none]
    #[arg(long, value_name = "FILE", requires = "client_ids")]
    client_secret_file: Option<PathBuf>,
    /// Redirect URI that the consent page accepts in addition to loopback addresses. Repeatable
    #[arg(long = "redirect-uri", value_name = "URI", requires = "client_ids")]
    redirect_uris: Vec<String>,
    /// File with the password of the consent page [default: the password in PDSFS_SERVE_PASSWORD, else none: only
    /// the user of the server can press Allow]
    #[arg(long, value_name = "FILE", requires = "client_ids")]
    login_password_file: Option<PathBuf>,
    /// Client id of a service app and a file with its RSA public key (PEM). Repeatable
    #[arg(long = "service-app", value_name = "ID=FILE")]
    service_apps: Vec<String>,
    /// Id of an access key that can sign calls
    #[arg(long, value_name = "ID")]
    access_key_id: Option<String>,
    /// File with the secret of that access key [default: the secret in PDSFS_SERVE_ACCESS_KEY_SECRET]
    #[arg(long, value_name = "FILE", requires = "access_key_id")]
    access_key_secret_file: Option<PathBuf>,
    /// Lifetime of issued access tokens, 1s to 30d
    #[arg(long, value_name = "DURATION", default_value = "2h", value_parser = duration_within(1, 2_592_000))]
    token_ttl: Duration,
}

impl LoginOptions {
    /// Checks the options and adds them to the configuration. `is_remote`: other machines can reach the
    /// consent page.
    pub(super) fn apply(self, config: &mut ServerConfig, is_remote: bool) -> Result<()> {
        let password =
            secret(self.login_password_file.as_deref(), "--login-password-file", "PDSFS_SERVE_PASSWORD")?;
        let client_secret =
            secret(self.client_secret_file.as_deref(), "--client-secret-file", "PDSFS_SERVE_CLIENT_SECRET")?;
        if is_remote && !self.client_ids.is_empty() && password.is_none() {
            let detail = "other machines can reach the consent page and press Allow: set a password with \
                PDSFS_SERVE_PASSWORD or --login-password-file";
            return Err(Error::invalid(detail));
        }
        let apps = self.service_apps.iter().map(|text| service_app(text)).collect::<Result<Vec<_>>>()?;
        let old = &config.logins;
        config.logins = Logins {
            client_ids: self.client_ids,
            client_secret,
            redirect_uris: self.redirect_uris,
            password,
            service_apps: apps,
            token_ttl: self.token_ttl,
            refresh_token: old.refresh_token.clone(),
            codes: old.codes.clone(),
        };
        if let Some(id) = self.access_key_id {
            let file = self.access_key_secret_file.as_deref();
            let key = secret(file, "--access-key-secret-file", "PDSFS_SERVE_ACCESS_KEY_SECRET")?;
            let key = key.ok_or_else(|| {
                Error::invalid(
                    "--access-key-id needs a secret: set PDSFS_SERVE_ACCESS_KEY_SECRET or give \
                     --access-key-secret-file",
                )
            })?;
            config.access_key = Some(AcceptedAccessKey::new(&id, key));
        }
        Ok(())
    }
}

/// A secret from a private file, else from a variable, of which an empty one counts as unset. Never from an argument,
/// because all users of the machine can read those.
pub(super) fn secret(file: Option<&Path>, flag: &str, variable: &str) -> Result<Option<Secret<String>>> {
    if let Some(file) = file {
        let text = read_private_text(file, flag)?;
        if text.expose().is_empty() {
            let detail =
                format!("{flag} {} is empty: write the secret to it, or leave it out", file.display());
            return Err(Error::invalid(detail));
        }
        return Ok(Some(text));
    }
    let Some(value) = secret_variables::get(variable) else { return Ok(None) };
    let value = value.into_string().map(Secret::new);
    let value = value.map_err(|_| Error::invalid(format!("{variable} is not UTF-8: set it to a text")))?;
    let text = value.expose().trim();
    Ok((!text.is_empty()).then(|| Secret::new(text.to_owned())))
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
