//! The content of a credential store: how tokens are obtained, and the current token.

use url::Url;

use super::account::Grant;
use super::token::{AccessToken, IssuedToken};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredCredential {
    pub grant: Grant,
    pub access: Option<AccessToken>,
    /// Base URL of the token calls. `None` for a credential that cannot be refreshed.
    pub auth_endpoint: Option<Url>,
}

impl StoredCredential {
    /// The credential after the service has issued a token, with the rotated refresh token if there is one.
    pub fn with_token(self, issued: IssuedToken) -> Self {
        let mut grant = self.grant;
        if let (Grant::Refresh { refresh_token, .. }, Some(rotated)) = (&mut grant, issued.refresh_token) {
            *refresh_token = rotated;
        }
        Self { grant, access: Some(issued.access), auth_endpoint: self.auth_endpoint }
    }
}
