//! A token file that a user or a script writes: an access token alone, or JSON with a refresh token.

use std::path::Path;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

use super::account::{Grant, RefreshBy};
use super::private_file::{FileOwner, read_private, replace_private};
use super::stored_credential::StoredCredential;
use super::token::AccessToken;

/// Permissions that a token file must not have: any of group and others.
const SHARED_MODE: u32 = 0o077;

/// The JSON form of a token file.
#[derive(Serialize, Deserialize)]
struct TokenFile {
    access_token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app_id: Option<String>,
}

/// Refuses a file that others can read. Refresh tokens of the file are redeemed at `endpoint`.
pub(super) fn read(path: &Path, endpoint: &Url) -> Result<StoredCredential> {
    let named = |e: Error| e.context("token file");
    let text = read_private(path, SHARED_MODE).map_err(named)?;
    let wrong =
        |what: String| Error::new(ErrorKind::Invalid, format!("token file {}: {what}", path.display()));
    let advice = "write an access token, or JSON with access_token, refresh_token and app_id";
    let text = std::str::from_utf8(&text).map_err(|_| wrong(format!("not UTF-8 text; {advice}")))?.trim();
    if !text.starts_with('{') {
        return Ok(StoredCredential { grant: Grant::Fixed, access: Some(access(text)), auth_endpoint: None });
    }
    // The text of a JSON error may quote a secret, so only its position is used.
    let file: TokenFile = serde_json::from_str(text)
        .map_err(|e| wrong(format!("invalid JSON at line {}, column {}; {advice}", e.line(), e.column())))?;
    let grant = match (file.refresh_token, file.app_id) {
        (Some(refresh_token), Some(client_id)) => Grant::Refresh {
            client_id,
            client_secret: None,
            refresh_token: Secret::new(refresh_token),
            by: RefreshBy::Account,
        },
        _ => Grant::Fixed,
    };
    Ok(StoredCredential {
        grant,
        access: Some(access(&file.access_token)),
        auth_endpoint: Some(endpoint.clone()),
    })
}

fn access(token: &str) -> AccessToken {
    AccessToken { token: Secret::new(token.to_owned()), expires_at_s: None }
}

/// Replaces the file atomically; it is on disk when this returns. Does nothing for a file without a refresh
/// token.
pub(super) fn write(path: &Path, stored: &StoredCredential) -> Result<()> {
    let StoredCredential {
        grant: Grant::Refresh { client_id, refresh_token, .. }, access: Some(access), ..
    } = stored
    else {
        return Ok(());
    };
    let file = TokenFile {
        access_token: access.token.expose().clone(),
        refresh_token: Some(refresh_token.expose().clone()),
        app_id: Some(client_id.clone()),
    };
    let text = serde_json::to_vec_pretty(&file).map_err(|e| Error::from_source(ErrorKind::Io, e))?;
    replace_private(path, &text, FileOwner::Own).map_err(|e| e.context("token file"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn rewritten_file_keeps_its_refresh_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"access_token":"a","refresh_token":"r","app_id":"x"}"#).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
        let endpoint = "http://127.0.0.1:9".parse().unwrap();
        let mut stored = read(file.path(), &endpoint).unwrap();
        stored.access = Some(access("b"));
        write(file.path(), &stored).unwrap();
        assert_eq!(read(file.path(), &endpoint).unwrap(), stored);
        assert!(
            matches!(stored.grant, Grant::Refresh { refresh_token, .. } if refresh_token.expose() == "r")
        );
    }
}
