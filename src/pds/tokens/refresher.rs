//! The current authorization of one credential, shared by all calls of a session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::auth_state::{AuthError, AuthState};
use super::authorization::CurrentAuthorization;
use super::refresh_state::{RefreshInFlight, RefreshState};
use crate::auth::sign::Authorization;
use crate::auth::{Credential, CredentialStore};
use crate::error::{Error, ErrorKind, Result};
use crate::pds::transport::Transport;

/// Pause after a failed early refresh.
const EARLY_REFRESH_RETRY: Duration = Duration::from_secs(30);

/// Holds the current authorization and refreshes it. The refresh is in `single_flight.rs`, `refresh.rs` and
/// `recheck.rs`.
#[derive(Debug)]
pub struct TokenRefresher {
    pub(super) store: CredentialStore,
    /// A leaf lock.
    current: RwLock<Option<CurrentAuthorization>>,
    /// Held during a refresh.
    pub(super) refresh_state: tokio::sync::Mutex<RefreshState>,
    /// The refresh that was started last. A leaf lock.
    pub(super) in_flight: Mutex<Option<RefreshInFlight>>,
    pub(super) state: watch::Sender<AuthState>,
}

impl TokenRefresher {
    /// Fails if the credential cannot be read or is for another endpoint. Makes no call.
    pub fn new(credential: Credential, endpoint: &url::Url) -> Result<Self> {
        let (store, stored) = CredentialStore::open(credential, endpoint)?;
        let current = stored.as_ref().map(CurrentAuthorization::of).transpose()?.flatten();
        Ok(Self {
            store,
            current: RwLock::new(current),
            refresh_state: tokio::sync::Mutex::default(),
            in_flight: Mutex::default(),
            state: watch::Sender::new(AuthState::Valid),
        })
    }

    pub fn state(&self) -> watch::Receiver<AuthState> {
        self.state.subscribe()
    }

    /// Whether a new login can replace a revoked credential.
    pub fn is_replaceable(&self) -> bool {
        !matches!(self.store, CredentialStore::Fixed(_))
    }

    pub(super) fn current(&self) -> Option<CurrentAuthorization> {
        self.current.read().clone()
    }

    pub(super) fn set_current(&self, current: Option<CurrentAuthorization>) {
        *self.current.write() = current;
    }

    /// The authorization for the next call. Refreshes the token first if it has expired.
    pub async fn authorization(
        self: &Arc<Self>,
        transport: &Transport,
    ) -> std::result::Result<Authorization, AuthError> {
        // A credential that cannot be replaced is always tried: the service may accept it again.
        if self.is_replaceable() {
            self.check_not_revoked().await?;
        }
        let expired = match self.current() {
            Some(current) if !current.is_expired() => return Ok(current.authorization),
            expired => expired.map(|current| current.authorization),
        };
        self.refresh(expired.as_ref(), "the access token has expired", transport).await?;
        let fresh = self.current().map(|current| current.authorization);
        let missing = || Error::new(ErrorKind::Io, "no access token after the refresh");
        fresh.ok_or_else(|| AuthError::Transient(missing()))
    }

    /// Whether the caller should start an early refresh. Returns `true` once per [`EARLY_REFRESH_RETRY`].
    pub fn refresh_is_due(&self) -> bool {
        let mut current = self.current.write();
        let Some(refresh_at) = current.as_mut().and_then(|current| current.refresh_at.as_mut()) else {
            return false;
        };
        let now = Instant::now();
        if now < *refresh_at {
            return false;
        }
        *refresh_at = now + EARLY_REFRESH_RETRY;
        true
    }

    pub fn is_revoked(&self) -> bool {
        *self.state.borrow() != AuthState::Valid
    }

    /// Records that the service accepted this authorization in a call that began while the credential was
    /// revoked: it is valid again. A call that began earlier proves nothing, because it was judged before the
    /// rejection.
    pub fn note_accepted(&self, accepted: &Authorization) {
        if self.is_revoked() && self.current().is_some_and(|current| current.authorization == *accepted) {
            self.state.send_replace(AuthState::Valid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Secret;
    use std::os::unix::fs::PermissionsExt;

    fn file_with(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    fn open(file: &tempfile::NamedTempFile) -> Result<TokenRefresher> {
        let endpoint = "http://127.0.0.1:9".parse().unwrap();
        TokenRefresher::new(Credential::File(file.path().into()), &endpoint)
    }

    fn bearer(refresher: &TokenRefresher) -> Option<Authorization> {
        refresher.current().map(|current| current.authorization)
    }

    #[test]
    fn plain_token_file_is_trimmed() {
        let refresher = open(&file_with("tok\n", 0o600)).unwrap();
        assert_eq!(bearer(&refresher), Some(Authorization::Bearer(Secret::new("tok".into()))));
    }

    #[test]
    fn token_file_that_others_can_read_is_refused() {
        let error = open(&file_with("tok", 0o644)).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[tokio::test]
    async fn unpersisted_token_wins_over_the_stored_one() {
        let text = |n: u32| format!(r#"{{"access_token":"AT{n}","refresh_token":"RT{n}","app_id":"app"}}"#);
        let token = |n: u32| Some(Authorization::Bearer(Secret::new(format!("AT{n}"))));
        let file = file_with(&text(1), 0o600);
        let refresher = open(&file).unwrap();
        let stored = refresher.store.load().await.unwrap();
        std::fs::write(file.path(), text(2)).unwrap();
        let rotated = refresher.store.load().await.unwrap();
        std::fs::write(file.path(), text(1)).unwrap();
        refresher.set_current(CurrentAuthorization::of(&rotated).unwrap());
        {
            let mut state = refresher.refresh_state.lock().await;
            (state.stored_grant, state.unpersisted) = (Some(stored.grant), Some(rotated));
        }
        refresher.reload().await.unwrap();
        assert_eq!(bearer(&refresher), token(2), "the stored token replaced the unpersisted one");
        std::fs::write(file.path(), text(3)).unwrap();
        refresher.reload().await.unwrap();
        assert_eq!(bearer(&refresher), token(3), "a new login is not used");
    }
}
