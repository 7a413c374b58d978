//! One token refresh: requests a token, stores it, then uses it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::auth_state::{AuthError, AuthState};
use super::authorization::CurrentAuthorization;
use super::refresh_state::{RefreshRequest, RefreshResult, RefreshState, Revoked};
use super::refresher::TokenRefresher;
use super::token_calls::request_token;
use crate::auth::sign::Authorization;
use crate::auth::{CredentialLock, Grant, StoredCredential};
use crate::error::{Error, ErrorKind};
use crate::pds::transport::Transport;

/// Pause between attempts to store a token that could not be stored.
const PERSIST_INTERVAL: Duration = Duration::from_secs(30);
/// Credentials that one refresh tries, if each is rejected and another process stores the next one.
const CREDENTIALS_MAX: usize = 3;

impl TokenRefresher {
    /// Runs after other refreshes of this process.
    pub(super) async fn refresh_in_turn(
        &self,
        request: &RefreshRequest,
        transport: &Transport,
    ) -> RefreshResult {
        let mut state = self.refresh_state.lock().await;
        if self.current().is_some_and(|current| Some(&current.authorization) != request.replaces.as_ref()) {
            return Ok(());
        }
        // A refresh that ran before this one found the credential revoked. It is not tried again.
        if let (Some(error), Some(revoked)) = (self.state.borrow().error(), state.revoked)
            && revoked.version == self.store.version()
            && self.is_replaceable()
        {
            return Err(AuthError::Revoked(error));
        }
        match self.refresh_exclusively(&mut state, request, transport).await {
            Ok(()) => {
                state.revoked = None;
                self.state
                    .send_if_modified(|auth| std::mem::replace(auth, AuthState::Valid) != AuthState::Valid);
                Ok(())
            }
            // The old token is valid until it expires, and the refresh is tried again before that.
            Err(AuthError::Revoked(error))
                if request.is_early && self.current().is_some_and(|current| !current.is_expired()) =>
            {
                Err(AuthError::Transient(error))
            }
            Err(AuthError::Revoked(error)) => {
                self.mark_revoked(&mut state, &error);
                Err(AuthError::Revoked(error))
            }
            transient => transient,
        }
    }

    /// Holds the lock of the credential store, so that no other process refreshes at the same time.
    async fn refresh_exclusively(
        &self,
        state: &mut RefreshState,
        request: &RefreshRequest,
        transport: &Transport,
    ) -> RefreshResult {
        let lock = self.store.lock().await.map_err(AuthError::Transient)?;
        let mut stored = self.load_stored(state).await?;
        let mut tried = 0;
        loop {
            // Another process has refreshed it, or a login has replaced it.
            if let Some(current) = CurrentAuthorization::of(&stored).map_err(AuthError::Revoked)?
                && Some(&current.authorization) != request.replaces.as_ref()
                && !current.is_expired()
            {
                self.set_current(Some(current));
                return Ok(());
            }
            tried += 1;
            let refusal = match request_token(&stored.grant, stored.auth_endpoint.as_ref(), transport).await {
                Ok(Some(issued)) => {
                    return self.persist_and_use(state, &lock, stored.with_token(issued)).await;
                }
                Ok(None) => self.store.not_refreshable_error(&request.why),
                Err(AuthError::Revoked(error)) => {
                    let why = format!("{}, and the refresh was rejected", request.why);
                    self.store.revoked_error(&why, &error)
                }
                Err(transient) => return Err(transient),
            };
            // A program that ignores our lock may have used the refresh token and stored the next one.
            let newer = self.load_stored(state).await?;
            if newer == stored || tried == CREDENTIALS_MAX {
                return Err(AuthError::Revoked(refusal));
            }
            stored = newer;
        }
    }

    pub(super) fn mark_revoked(&self, state: &mut RefreshState, error: &Error) {
        state.revoked = Some(Revoked { version: state.version, tried_at: Instant::now() });
        let (since, reason, cause) = (SystemTime::now(), error.to_string(), error.cause().cloned());
        self.state.send_if_modified(|auth| {
            let was_valid = *auth == AuthState::Valid;
            if was_valid {
                tracing::debug!(detail = error.detail(), "the credential is refused");
                *auth = AuthState::Revoked { since, reason, cause };
            }
            was_valid
        });
    }

    /// The credential in use: the stored one, or the one that could not be stored.
    async fn load_stored(
        &self,
        state: &mut RefreshState,
    ) -> std::result::Result<StoredCredential, AuthError> {
        state.version = self.store.version();
        let stored = match self.store.load().await {
            Ok(stored) => stored,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unauthenticated) => {
                return Err(AuthError::Revoked(error));
            }
            Err(error) => return Err(AuthError::Transient(error)),
        };
        if state.stored_grant.as_ref() != Some(&stored.grant) {
            // Another process has stored a credential since. It takes precedence.
            state.unpersisted = None;
        }
        state.stored_grant = Some(stored.grant.clone());
        Ok(state.unpersisted.clone().unwrap_or(stored))
    }

    async fn persist_and_use(
        &self,
        state: &mut RefreshState,
        lock: &CredentialLock<'_>,
        issued: StoredCredential,
    ) -> RefreshResult {
        let current = CurrentAuthorization::of(&issued).map_err(AuthError::Transient)?;
        let persisted = self.store.save(lock, &issued).await;
        // The service has rotated the refresh token already. A token that cannot be stored is used all the
        // same.
        if matches!(persisted, Ok(true)) {
            self.note_persisted(state, issued);
        } else {
            state.unpersisted = Some(issued);
        }
        self.set_current(current);
        match persisted {
            Ok(_) => tracing::info!("access token refreshed"),
            Err(error) => tracing::error!(
                %error,
                "cannot store the refreshed token; trying again (if pdsfs exits before that, log in again)"
            ),
        }
        Ok(())
    }

    fn note_persisted(&self, state: &mut RefreshState, stored: StoredCredential) {
        (state.stored_grant, state.unpersisted) = (Some(stored.grant), None);
        state.version = self.store.version();
    }

    /// Stores a token that could not be stored before, unless another process has stored one since. Returns
    /// whether nothing is left to store.
    pub async fn persist_unsaved(&self) -> bool {
        let mut state = self.refresh_state.lock().await;
        let rotates = |issued: &StoredCredential| matches!(issued.grant, Grant::Refresh { .. });
        if !state.unpersisted.as_ref().is_some_and(rotates) {
            return true;
        }
        let Ok(lock) = self.store.lock().await else { return false };
        if self.load_stored(&mut state).await.is_err() {
            return false;
        }
        let Some(issued) = state.unpersisted.clone() else { return true };
        match self.store.save(&lock, &issued).await {
            Ok(true) => {
                self.note_persisted(&mut state, issued);
                tracing::info!("stored the refreshed token");
                true
            }
            Ok(false) => true,
            Err(error) => {
                tracing::debug!(%error, "still cannot store the refreshed token");
                false
            }
        }
    }

    /// Marks the credential revoked after the service has rejected a token that it had just issued. Does
    /// nothing if the token was replaced since.
    pub async fn reject_fresh_token(&self, rejected: &Authorization, refusal: &Error) -> RefreshResult {
        let mut state = self.refresh_state.lock().await;
        if self.current().is_some_and(|current| current.authorization != *rejected) {
            return Ok(());
        }
        let error = self.store.revoked_error("the service rejected a newly issued token", refusal);
        self.mark_revoked(&mut state, &error);
        Err(AuthError::Revoked(error))
    }
}

/// Retries to store an unpersisted token until it is stored or the refresher is dropped.
pub(super) async fn persist_later(refresher: Arc<TokenRefresher>) {
    let mut is_done = refresher.refresh_state.lock().await.unpersisted.is_none();
    let refresher = Arc::downgrade(&refresher);
    while !is_done {
        tokio::time::sleep(PERSIST_INTERVAL).await;
        let Some(refresher) = refresher.upgrade() else { return };
        is_done = refresher.persist_unsaved().await;
    }
}
