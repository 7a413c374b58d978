//! Credentials and accounts: where they are stored, and how requests are signed. A leaf without network
//! access.
//!
//! `pdsfs login` stores an account, every mount of it reads it, and each token refresh writes it. A rotating
//! refresh token is valid once. So a refresh takes the lock of the account, reads it again, and stores the
//! new token before it is used. The public half of an account is a file. The secret half is in the same file
//! or in the keyring of the desktop session. The refresh itself is in `pds/tokens.rs`.

mod account;
mod account_file;
mod account_store;
pub mod browser_login;
mod credential;
mod credential_store;
pub mod endpoint;
pub mod jwt;
mod keyring;
mod private_file;
mod private_group;
pub mod sign;
mod stored_credential;
mod systemd_credential;
mod token;
mod token_file;

pub use account::{
    Account, AccountName, AccountSummary, DEFAULT_NAME, Grant, RefreshBy, SecretStorage, SubjectKind,
};
pub use account_store::{AccountHandle, AccountStore, Version};
pub use credential::Credential;
pub use credential_store::{CredentialLock, CredentialStore, check_credential};
pub use keyring::{check_available as check_keyring, unlock_refused as keyring_unlock_refused};
pub use private_file::read_private;
pub use private_group::only_user_of_group;
pub use stored_credential::StoredCredential;
pub use token::{AccessToken, IssuedToken, check_token, unix_now_s};
