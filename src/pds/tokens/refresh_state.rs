//! The state that a [`TokenRefresher`](super::TokenRefresher) keeps between refreshes.

use std::time::Duration;
use std::time::Instant;

use tokio::sync::watch;

use super::auth_state::AuthError;
use crate::auth::sign::Authorization;
use crate::auth::{Grant, StoredCredential, Version};

pub(super) type RefreshResult = std::result::Result<(), AuthError>;

/// The reason for a refresh. Calls with equal requests share one refresh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RefreshRequest {
    /// The authorization that was rejected, has expired or is about to expire.
    pub(super) replaces: Option<Authorization>,
    pub(super) why: String,
    /// The old token is still valid.
    pub(super) is_early: bool,
}

/// A started refresh and its result.
#[derive(Debug)]
pub(super) struct RefreshInFlight {
    pub(super) request: RefreshRequest,
    pub(super) result: watch::Receiver<Option<RefreshResult>>,
}

impl RefreshInFlight {
    pub(super) fn is_running(&self) -> bool {
        self.result.borrow().is_none() && self.result.has_changed().is_ok()
    }
}

#[derive(Debug, Default)]
pub(super) struct RefreshState {
    /// A token that the service has issued and that could not be stored. It takes precedence over the stored
    /// one.
    pub(super) unpersisted: Option<StoredCredential>,
    /// Set while the credential is revoked.
    pub(super) revoked: Option<Revoked>,
    pub(super) rechecked_at: Option<Instant>,
    /// The last time that a recheck found another credential, and the pause before the next recheck.
    pub(super) replaced: Option<(Instant, Duration)>,
    /// The last logged reason why a found credential cannot be used.
    pub(super) last_warning: Option<String>,
    /// The grant in the store when it was last read.
    pub(super) stored_grant: Option<Grant>,
    /// The version of the store before it was last read.
    pub(super) version: Option<Version>,
}

/// A credential that the service has rejected for good.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revoked {
    /// The version of the store that holds it.
    pub(super) version: Option<Version>,
    /// When it was last tried.
    pub(super) tried_at: Instant,
}
