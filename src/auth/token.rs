//! Access tokens and the answers that contain them.

use std::time::SystemTime;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, Secret};

/// Longest token that is sent or stored, in bytes.
const TOKEN_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessToken {
    pub token: Secret<String>,
    /// Seconds since 1970 by the clock of this machine; `None` if the service did not report a lifetime.
    pub expires_at_s: Option<u64>,
}

/// The answer to a token request.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    pub access: AccessToken,
    /// The rotated refresh token, if the service rotates it.
    pub refresh_token: Option<Secret<String>>,
    /// The default drive of the user, if the service reports it.
    pub default_drive_id: Option<DriveId>,
    /// Display name.
    pub user: String,
}

/// Seconds since 1970.
pub fn unix_now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Checks that a text can be a token: printable ASCII of bounded length, because it is sent in a header.
pub fn check_token(token: &str) -> Result<()> {
    let wrong = |what: String| Err(Error::new(ErrorKind::Invalid, what));
    if token.is_empty() {
        return wrong("the token is empty".to_owned());
    }
    if token.len() > TOKEN_BYTES_MAX {
        return wrong(format!("the token has {} bytes, more than {TOKEN_BYTES_MAX}", token.len()));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return wrong("the token contains spaces, line breaks or other invalid characters".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_header_text_is_no_token() {
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        for wrong in ["", "a b", "a\r\nx-evil: 1", "a\n", "a\u{7f}", "a\u{e9}", &long] {
            assert!(check_token(wrong).is_err(), "{wrong:?}");
        }
        check_token(&long[1..]).unwrap();
    }
}
