//! Whether the service accepts the credential.

use std::time::SystemTime;

use crate::error::{Error, ErrorKind};
use crate::messages::Cause;

/// Starts as valid until the service rejects the credential for good.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthState {
    Valid,
    /// Uploads are parked until a new login.
    Revoked {
        since: SystemTime,
        /// The answer of the service, and the next step for the user.
        reason: String,
        cause: Option<Cause>,
    },
}

impl AuthState {
    /// The error of calls in this state.
    pub(super) fn error(&self) -> Option<Error> {
        let Self::Revoked { reason, cause, .. } = self else { return None };
        Some(match cause {
            Some(cause) => Error::from_cause(ErrorKind::Unauthenticated, cause.clone(), reason),
            None => Error::new(ErrorKind::Unauthenticated, reason),
        })
    }
}

/// Why there is no authorization for a call.
#[derive(Clone, Debug)]
pub enum AuthError {
    /// The service has rejected the credential for good.
    Revoked(Error),
    /// No answer, or a failure that may pass. A later attempt may succeed.
    Transient(Error),
}

impl From<AuthError> for Error {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Revoked(error) | AuthError::Transient(error) => error,
        }
    }
}
