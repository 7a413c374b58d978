//! The setting that names the source of the authorization.

use std::path::PathBuf;

use super::account_store::AccountHandle;
use super::sign::AccessKey;
use crate::ids::Secret;

#[derive(Clone, Debug)]
pub enum Credential {
    /// An access token alone. It cannot be refreshed.
    Token(Secret<String>),
    /// A private file with an access token, or JSON `{"access_token", "refresh_token", "app_id"}`. It is read
    /// again when the token is rejected. With a refresh token, it is rewritten after each refresh.
    File(PathBuf),
    /// An account that `pdsfs login` has stored.
    Account(AccountHandle),
    /// Every call is signed with this key.
    Key(AccessKey),
}
