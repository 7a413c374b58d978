//! Who we are: the bearer of every call, and its renewal.
//!
//! Renewal is single-flight: whoever finds the token refused asks for a new one, everybody else
//! waits for that. A rotated refresh token is on disk before the access token that came with it is
//! used, so a crash in between never locks the user out.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::pds::retry::{Idempotency, RetryPolicy};
use crate::pds::transport::{Call, Transport};

/// Largest token file that is read, in bytes.
const TOKEN_FILE_BYTES_MAX: u64 = 64 << 10;

/// Where the access token comes from.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Given as it is; it cannot be renewed.
    Token(Secret<String>),
    /// A file that only its owner can read, with either the token itself or JSON
    /// `{"access_token", "refresh_token", "app_id"}`. Read again when the token is refused; with a
    /// refresh token, renewed and rewritten.
    File(PathBuf),
}

/// The JSON form of a token file.
#[derive(Clone, Serialize, Deserialize)]
struct TokenFile {
    access_token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app_id: Option<String>,
}

#[derive(Serialize)]
struct RefreshRequest<'a> {
    app_id: &'a str,
    grant_type: &'static str,
    refresh_token: &'a str,
}

#[derive(Deserialize)]
struct RefreshResponse {
    access_token: String,
    #[serde(default)]
    refresh_token: Option<String>,
}

/// The current bearer, and how to get the next one.
#[derive(Debug)]
pub struct TokenSource {
    credential: Credential,
    current: RwLock<Secret<String>>,
    /// Held while a renewal is under way.
    renewal: tokio::sync::Mutex<()>,
}

impl TokenSource {
    /// Reads the credential once.
    pub fn new(credential: Credential) -> Result<Self> {
        let token = match &credential {
            Credential::Token(token) => token.expose().clone(),
            Credential::File(path) => read_token_file(path)?.access_token,
        };
        check_token(&token)?;
        Ok(Self {
            credential,
            current: RwLock::new(Secret::new(token)),
            renewal: tokio::sync::Mutex::default(),
        })
    }

    /// The bearer for the next call.
    pub fn bearer(&self) -> Secret<String> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, token: String) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Secret::new(token);
    }

    /// Gets another token than `rejected`, which the service has refused.
    pub async fn renew(
        &self,
        rejected: &Secret<String>,
        transport: &Transport,
        endpoint: &url::Url,
    ) -> Result<()> {
        let _one_at_a_time = self.renewal.lock().await;
        if self.bearer() != *rejected {
            return Ok(());
        }
        let Credential::File(path) = &self.credential else {
            return Err(dead("it cannot be renewed because it was given without a refresh token"));
        };
        let mut file = read_token_file(path)?;
        if file.access_token != *rejected.expose() {
            self.set(file.access_token);
            return Ok(());
        }
        let (Some(refresh_token), Some(app_id)) = (&file.refresh_token, &file.app_id) else {
            return Err(dead("its file has no newer token and no refresh_token with app_id"));
        };
        let url =
            endpoint.join("/v2/account/token").map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))?;
        let call = Call {
            url: &url,
            bearer: None,
            idempotency: Idempotency::Once,
            policy: RetryPolicy::INTERACTIVE,
        };
        let request = RefreshRequest { app_id, grant_type: "refresh_token", refresh_token };
        let answer: RefreshResponse = transport
            .json(call, &request)
            .await
            .map_err(|f| f.error.context("the access token was refused and could not be renewed"))?;
        check_token(&answer.access_token)?;
        file.access_token.clone_from(&answer.access_token);
        if let Some(rotated) = answer.refresh_token.filter(|t| !t.is_empty()) {
            file.refresh_token = Some(rotated);
        }
        let stored = write_token_file(path, &file);
        self.set(file.access_token);
        if let Err(error) = stored {
            // The service has rotated the token already: using the new one is all that is left.
            tracing::error!(%error, "the renewed token could not be stored; the mount works until it expires");
            return Ok(());
        }
        tracing::info!("the access token was renewed");
        Ok(())
    }
}

fn dead(why: &str) -> Error {
    Error::new(
        ErrorKind::Unauthenticated,
        format!("the service refuses the access token, and {why}; mount again with a new one"),
    )
}

fn check_token(token: &str) -> Result<()> {
    if token.is_empty()
        || token.len() > 16 << 10
        || token.contains(|c: char| c.is_control() || c.is_whitespace())
    {
        return Err(Error::new(
            ErrorKind::Invalid,
            "the access token is empty or has characters that no token has",
        ));
    }
    Ok(())
}

/// Whether a token file can be used.
pub fn check_token_file(path: &Path) -> Result<()> {
    read_token_file(path).and_then(|file| check_token(&file.access_token))
}

/// Reads a token file; refuses one that others can read.
fn read_token_file(path: &Path) -> Result<TokenFile> {
    use std::os::unix::fs::PermissionsExt;
    let named = |e: std::io::Error| Error::from(e).context(format!("token file {}", path.display()));
    let metadata = std::fs::metadata(path).map_err(named)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        let detail = format!("token file {0} can be read by others; run: chmod 600 {0}", path.display());
        return Err(Error::new(ErrorKind::Denied, detail));
    }
    if metadata.len() > TOKEN_FILE_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("token file {} is too large to be one", path.display()),
        ));
    }
    let text = std::fs::read_to_string(path).map_err(named)?;
    let text = text.trim();
    if text.starts_with('{') {
        return serde_json::from_str(text)
            .map_err(|e| Error::new(ErrorKind::Invalid, format!("token file {}: {e}", path.display())));
    }
    Ok(TokenFile { access_token: text.to_owned(), refresh_token: None, app_id: None })
}

/// Replaces the file in one step; it is on disk when this returns.
fn write_token_file(path: &Path, file: &TokenFile) -> Result<()> {
    let named = |e: std::io::Error| Error::from(e).context(format!("token file {}", path.display()));
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let text = serde_json::to_vec_pretty(file).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
    // Temporary files are made with mode 0600.
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(named)?;
    temporary.write_all(&text).map_err(named)?;
    temporary.as_file().sync_all().map_err(named)?;
    temporary.persist(path).map_err(|e| named(e.error))?;
    std::fs::File::open(folder).and_then(|f| f.sync_all()).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file_with(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_plain_token_file_is_trimmed() {
        let file = file_with("tok\n", 0o600);
        let source = TokenSource::new(Credential::File(file.path().into())).unwrap();
        assert_eq!(source.bearer().expose(), "tok");
    }

    #[test]
    fn a_token_file_that_others_can_read_is_refused() {
        let file = file_with("tok", 0o644);
        let error = TokenSource::new(Credential::File(file.path().into())).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn empty_tokens_are_refused() {
        assert!(TokenSource::new(Credential::Token(Secret::new(String::new()))).is_err());
        assert!(TokenSource::new(Credential::Token(Secret::new("a b".into()))).is_err());
    }

    #[test]
    fn a_rewritten_token_file_keeps_what_it_had() {
        let file = file_with(r#"{"access_token":"a","refresh_token":"r","app_id":"x"}"#, 0o600);
        let mut read = read_token_file(file.path()).unwrap();
        read.access_token = "b".into();
        write_token_file(file.path(), &read).unwrap();
        let again = read_token_file(file.path()).unwrap();
        assert_eq!((again.access_token.as_str(), again.refresh_token.as_deref()), ("b", Some("r")));
    }
}
