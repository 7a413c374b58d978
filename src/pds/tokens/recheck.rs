//! Looks for another credential while the current one is revoked, and reloads credentials on request.

use std::time::{Duration, Instant};

use super::auth_state::{AuthError, AuthState};
use super::authorization::CurrentAuthorization;
use super::refresh_state::{RefreshResult, RefreshState, Revoked};
use super::refresher::TokenRefresher;
use crate::auth::Grant;
use crate::error::{Error, Result};

/// Pause between rechecks of the store of a revoked credential.
pub const RECHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Pause before a revoked credential that can recover by itself is tried again. Examples are a clock that is
/// corrected and an access key that is enabled again.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// If a found credential is revoked again within this number of pauses, the next pause doubles.
const SHORT_LIFE: u32 = 10;

impl TokenRefresher {
    /// Fails while the credential is revoked. Rechecks the store first, at most once per
    /// [`RECHECK_INTERVAL`].
    pub(super) async fn check_not_revoked(&self) -> RefreshResult {
        if self.state.borrow().error().is_none() {
            return Ok(());
        }
        if let Ok(mut state) = self.refresh_state.try_lock() {
            self.recheck_locked(&mut state).await;
        }
        self.state.borrow().error().map_or(Ok(()), |error| Err(AuthError::Revoked(error)))
    }

    /// Looks whether a revoked credential was replaced. Cheap: most calls only compare times.
    pub async fn recheck(&self) {
        let mut state = self.refresh_state.lock().await;
        self.recheck_locked(&mut state).await;
    }

    async fn recheck_locked(&self, state: &mut RefreshState) {
        let Some(Revoked { version, tried_at }) = state.revoked else { return };
        let pause = state.replaced.map_or(RECHECK_INTERVAL, |(_, pause)| pause);
        if state.rechecked_at.is_some_and(|at| at.elapsed() < pause) {
            return;
        }
        state.rechecked_at = Some(Instant::now());
        let now = self.store.version();
        if now != version {
            match self.reload_locked(state).await {
                Ok(true) => {
                    tracing::info!("found another credential in the store; using it");
                    note_replacement(state);
                }
                Ok(false) => state.revoked = Some(Revoked { version: now, tried_at }),
                // The store is read again at the next recheck.
                Err(error) => warn_once(state, &error),
            }
        } else if tried_at.elapsed() >= RETRY_INTERVAL && state.stored_grant.as_ref().is_some_and(can_recover)
        {
            // Counts as valid until the next call tries it.
            state.revoked = Some(Revoked { version, tried_at: Instant::now() });
            self.state.send_replace(AuthState::Valid);
        }
    }

    /// Reads the credential again, after a refresh that is running.
    pub async fn reload(&self) -> Result<()> {
        let mut state = self.refresh_state.lock().await;
        self.reload_locked(&mut state).await.map(|_| ())
    }

    /// Returns whether the stored credential differs from the one in use.
    async fn reload_locked(&self, state: &mut RefreshState) -> Result<bool> {
        let version = self.store.version();
        let stored = self.store.load().await?;
        let fresh = CurrentAuthorization::of(&stored)?;
        state.version = version;
        let old = self.current().map(|current| current.authorization);
        let is_same = fresh.as_ref().map(|current| &current.authorization) == old.as_ref();
        // An unpersisted token is newer than the stored one that it replaced.
        if (is_same || state.unpersisted.is_some()) && state.stored_grant.as_ref() == Some(&stored.grant) {
            return Ok(false);
        }
        state.stored_grant = Some(stored.grant);
        (state.unpersisted, state.revoked, state.last_warning) = (None, None, None);
        self.set_current(fresh);
        self.state.send_replace(AuthState::Valid);
        Ok(true)
    }
}

/// Records that a recheck found another credential. If found credentials are soon revoked again (several
/// mounts of one account, each storing the tokens issued to it), the pause between rechecks grows up to
/// [`RETRY_INTERVAL`].
fn note_replacement(state: &mut RefreshState) {
    let pause = match state.replaced {
        Some((at, pause)) if at.elapsed() < pause * SHORT_LIFE => (pause * 2).min(RETRY_INTERVAL),
        _ => RECHECK_INTERVAL,
    };
    state.replaced = Some((Instant::now(), pause));
}

fn warn_once(state: &mut RefreshState, error: &Error) {
    let text = error.to_string();
    if state.last_warning.as_ref() != Some(&text) {
        tracing::warn!(%error, "cannot use the credential in the store");
        state.last_warning = Some(text);
    }
}

/// Whether the service may accept the same credential later.
fn can_recover(grant: &Grant) -> bool {
    matches!(grant, Grant::ServiceApp { .. } | Grant::AccessKey { .. })
}
