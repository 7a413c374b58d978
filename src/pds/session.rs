//! Calls with an authorization: adds it, refreshes it if the service rejects it, and parks uploads while it
//! is revoked.
//!
//! A parked call has not failed. It continues after a new login. The caller bounds that wait. Calls that do
//! not [wait for a login](RetryPolicy::waits_for_login) fail at once, with the next step for the user.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use url::Url;

use crate::auth::sign::Authorization;
use crate::auth::{Credential, endpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::messages::Cause;
use crate::pds::retry::{Delivery, Idempotency, RequestFailure, RetryPolicy};
use crate::pds::tokens::{AuthError, AuthState, RECHECK_INTERVAL, TokenRefresher};
use crate::pds::transport::{Call, CallPriority, Transport, TransportLimits, TrustedPeers};
use crate::supervised;

/// Rejections in a row before the credential counts as revoked. A refreshed token may be rejected once
/// because another process has refreshed it since.
const REFUSALS_MAX: usize = 3;
/// Pause between token refreshes while the service cannot be reached.
const TOKEN_RETRY: Duration = Duration::from_secs(1);

/// Calls to one endpoint with one credential. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Session(Arc<SessionInner>);

#[derive(Debug)]
struct SessionInner {
    transport: Transport,
    tokens: Arc<TokenRefresher>,
    endpoint: Url,
    /// A task rechecks the revoked credential.
    is_watching: AtomicBool,
}

impl Session {
    /// Makes no call yet.
    pub fn new(
        endpoint: &Url,
        credential: Credential,
        limits: TransportLimits,
        peers: TrustedPeers,
    ) -> Result<Self> {
        Ok(Self(Arc::new(SessionInner {
            transport: Transport::new(limits, endpoint, peers)?,
            tokens: Arc::new(TokenRefresher::new(credential, endpoint)?),
            endpoint: endpoint.clone(),
            is_watching: AtomicBool::new(false),
        })))
    }

    /// For requests to presigned URLs.
    pub fn transport(&self) -> &Transport {
        &self.0.transport
    }

    pub fn auth_state(&self) -> watch::Receiver<AuthState> {
        self.0.tokens.state()
    }

    /// Reads the credential again after a new login. Parked calls continue.
    pub async fn reload_credentials(&self) -> Result<()> {
        self.0.tokens.reload().await
    }

    /// Tries once more to store a refreshed token that could not be stored. Called before the process exits.
    pub async fn store_credentials(&self) {
        self.0.tokens.persist_unsaved().await;
    }

    /// One API call. Refreshes a rejected token; the transport retries other failures.
    pub async fn call<A: DeserializeOwned>(
        &self,
        (path, priority): (&str, CallPriority),
        idempotency: Idempotency,
        policy: RetryPolicy,
        body: &impl Serialize,
    ) -> std::result::Result<A, RequestFailure> {
        let SessionInner { transport, tokens, .. } = &*self.0;
        let url = endpoint::with_path(&self.0.endpoint, path);
        let (mut refusals, mut unreachable_since) = (0, None);
        loop {
            let authorization = match tokens.authorization(transport).await {
                Ok(authorization) => authorization,
                Err(error) => {
                    self.wait_or_fail(error, policy, &mut unreachable_since).await?;
                    continue;
                }
            };
            self.refresh_early_if_due();
            let began_revoked = tokens.is_revoked();
            let authorized = Some(&authorization);
            let call =
                Call { url: &url, authorization: authorized, secrets: &[], idempotency, policy, priority };
            let failure = match transport.json(call, body).await {
                Err(failure) if failure.error.kind() == ErrorKind::Unauthenticated => failure,
                answer => {
                    if began_revoked && answer.is_ok() {
                        tokens.note_accepted(&authorization);
                    }
                    return answer;
                }
            };
            unreachable_since = None;
            refusals += 1;
            if let Err(error) = self.refresh_rejected(&authorization, &failure.error, refusals).await {
                self.wait_or_fail(error, policy, &mut unreachable_since).await?;
                refusals = 0;
            }
        }
    }

    async fn refresh_rejected(
        &self,
        rejected: &Authorization,
        refusal: &Error,
        refusals: usize,
    ) -> std::result::Result<(), AuthError> {
        let SessionInner { transport, tokens, .. } = &*self.0;
        if refusals >= REFUSALS_MAX {
            return tokens.reject_fresh_token(rejected, refusal).await;
        }
        let why = match rejected {
            Authorization::Bearer(_) => "the service rejected the access token".to_owned(),
            Authorization::Key(key) => format!("the service rejected the access key {} ({refusal})", key.id),
        };
        tokens.refresh(Some(rejected), &why, transport).await.map_err(|error| match error {
            // A new credential would not help.
            AuthError::Revoked(_) if matches!(refusal.cause(), Some(Cause::ClockWrong { .. })) => {
                AuthError::Revoked(refusal.clone())
            }
            error => error,
        })
    }

    /// Waits until the call may be tried again, or fails if its policy does not wait.
    async fn wait_or_fail(
        &self,
        error: AuthError,
        policy: RetryPolicy,
        unreachable_since: &mut Option<Instant>,
    ) -> std::result::Result<(), RequestFailure> {
        let failure = |error: Error| RequestFailure {
            status: None,
            error,
            code: String::new(),
            delivery: Delivery::Answered,
            retry_after: None,
        };
        match error {
            AuthError::Revoked(error) => {
                if !self.0.tokens.is_replaceable() {
                    return Err(failure(error));
                }
                self.watch_for_new_login();
                if !policy.waits_for_login {
                    return Err(failure(error));
                }
                tracing::debug!(%error, "an upload is parked until a new login");
                // The sender lives as long as `self`.
                self.0.tokens.state().wait_for(|state| *state == AuthState::Valid).await.ok();
                *unreachable_since = None;
                Ok(())
            }
            AuthError::Transient(error) => {
                let since = *unreachable_since.get_or_insert_with(Instant::now);
                if !policy.waits_for_login || since.elapsed() + TOKEN_RETRY > policy.elapsed_max {
                    return Err(failure(error));
                }
                tokio::time::sleep(TOKEN_RETRY).await;
                Ok(())
            }
        }
    }

    /// Starts a refresh in the background if the token is about to expire.
    fn refresh_early_if_due(&self) {
        if self.0.tokens.refresh_is_due() {
            let inner = self.0.clone();
            tokio::spawn(async move { inner.tokens.refresh_early(&inner.transport).await });
        }
    }

    /// Starts a task that rechecks the credential until it is valid again.
    fn watch_for_new_login(&self) {
        if self.0.is_watching.swap(true, Ordering::Relaxed) {
            return;
        }
        let inner = Arc::downgrade(&self.0);
        tokio::spawn(supervised::run("login", move || {
            let inner = inner.clone();
            async move {
                while let Some(inner) = recheck_once(&inner).await {
                    drop(inner);
                    // No event reports every change: another machine may replace the file on a network file
                    // system.
                    tokio::time::sleep(RECHECK_INTERVAL).await;
                }
            }
        }));
    }
}

/// `None` once the credential is valid or the session is dropped.
async fn recheck_once(inner: &Weak<SessionInner>) -> Option<Arc<SessionInner>> {
    let inner = inner.upgrade()?;
    inner.tokens.recheck().await;
    if *inner.tokens.state().borrow() == AuthState::Valid {
        inner.is_watching.store(false, Ordering::Relaxed);
        return None;
    }
    Some(inner)
}
