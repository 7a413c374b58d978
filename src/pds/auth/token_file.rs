//! A file with a token, as a user or a script writes it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::account::{AccessToken, Grant, RefreshBy, read_private, replace_private};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

use super::origin::Held;

/// Permissions of group and others.
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

/// Reads a token file; refuses one that others can read. Its endpoint gives the next token too.
pub(super) fn read(path: &Path, endpoint: &Url) -> Result<Held> {
    let named = |e: Error| e.context("token file");
    let text = read_private(path, SHARED_MODE).map_err(named)?;
    let wrong =
        |what: String| Error::new(ErrorKind::Invalid, format!("token file {}: {what}", path.display()));
    let text = std::str::from_utf8(&text).map_err(|_| wrong("it is not text".to_owned()))?.trim();
    if !text.starts_with('{') {
        return Ok(Held { grant: Grant::Fixed, access: Some(access(text)), auth_endpoint: None });
    }
    // The text of a JSON error may quote the secret that it met: only the place is told.
    let file: TokenFile = serde_json::from_str(text)
        .map_err(|e| wrong(format!("line {}, column {} makes no sense", e.line(), e.column())))?;
    let grant = match (file.refresh_token, file.app_id) {
        (Some(refresh_token), Some(client_id)) => Grant::Refresh {
            client_id,
            client_secret: None,
            refresh_token: Secret::new(refresh_token),
            by: RefreshBy::Account,
        },
        _ => Grant::Fixed,
    };
    Ok(Held { grant, access: Some(access(&file.access_token)), auth_endpoint: Some(endpoint.clone()) })
}

fn access(token: &str) -> AccessToken {
    AccessToken { token: Secret::new(token.to_owned()), expires_at_s: None }
}

/// Replaces the file in one step; it is on disk when this returns.
pub(super) fn write(path: &Path, held: &Held) -> Result<()> {
    let Held { grant: Grant::Refresh { client_id, refresh_token, .. }, access: Some(access), .. } = held
    else {
        return Ok(());
    };
    let file = TokenFile {
        access_token: access.token.expose().clone(),
        refresh_token: Some(refresh_token.expose().clone()),
        app_id: Some(client_id.clone()),
    };
    let text = serde_json::to_vec_pretty(&file).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
    replace_private(path, &text).map_err(|e| e.context("token file"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_rewritten_token_file_keeps_what_it_had() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"access_token":"a","refresh_token":"r","app_id":"x"}"#).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
        let endpoint = "http://127.0.0.1:9".parse().unwrap();
        let mut held = read(file.path(), &endpoint).unwrap();
        held.access = Some(access("b"));
        write(file.path(), &held).unwrap();
        assert_eq!(read(file.path(), &endpoint).unwrap(), held);
        assert!(matches!(held.grant, Grant::Refresh { refresh_token, .. } if refresh_token.expose() == "r"));
    }
}
