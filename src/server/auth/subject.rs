//! The subject of a login: what its tokens act for.

use crate::server::catalog::records::Token;

/// The subject of a login.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject {
    User,
    /// A service app that acts for the whole domain.
    Service,
}

impl Subject {
    pub(super) fn role(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Service => "superadmin",
        }
    }

    pub(super) fn refresh_token(self) -> Token {
        match self {
            Self::User => Token::Refresh,
            Self::Service => Token::ServiceRefresh,
        }
    }
}
