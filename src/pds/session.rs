//! Calls as somebody: adds the authorization, renews it where it is refused, and waits where it is dead and the
//! caller has time.
//!
//! A transfer whose credential is dead is *parked*: nothing has failed yet, and a new login lets it go on. It is
//! for the caller to bound that wait. Everything else fails at once with what to do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::pds::auth::{AuthState, Credential, LOOK_INTERVAL, TokenSource, Trouble};
use crate::pds::endpoint;
use crate::pds::retry::{Failure, Idempotency, RetryPolicy, Sent};
use crate::pds::sign::Authorization;
use crate::pds::transport::{Call, Timeouts, Transport};

/// A renewed token may be refused once more: another process has renewed it meanwhile.
const REFUSALS_MAX: usize = 3;
/// Pause before a token is asked for again where the service could not be reached.
const TOKEN_RETRY: Duration = Duration::from_secs(1);

/// Calls to one endpoint with one credential. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    transport: Transport,
    tokens: Arc<TokenSource>,
    endpoint: Url,
    /// A task looks whether a dead credential was replaced.
    is_watched: AtomicBool,
}

impl Session {
    /// No call is made yet.
    pub fn new(endpoint: &Url, credential: Credential, timeouts: Timeouts) -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            transport: Transport::new(timeouts, endpoint::is_loopback(endpoint))?,
            tokens: Arc::new(TokenSource::new(credential, endpoint)?),
            endpoint: endpoint.clone(),
            is_watched: AtomicBool::new(false),
        })))
    }

    /// For what needs no authorization: signed URLs.
    pub fn transport(&self) -> &Transport {
        &self.0.transport
    }

    /// Whether the service takes us, to be looked at or waited for.
    pub fn auth_state(&self) -> watch::Receiver<AuthState> {
        self.0.tokens.state()
    }

    /// Reads the credential again, as after a new login. What was parked goes on.
    pub async fn reload_credentials(&self) -> Result<()> {
        self.0.tokens.reload().await
    }

    /// Stores a renewed token that could not be stored when it came. For who ends the program.
    pub async fn store_credentials(&self) {
        self.0.tokens.store_again().await;
    }

    /// One call. A refused token is renewed; what else may be repeated is repeated below.
    pub async fn call<A: DeserializeOwned>(
        &self,
        path: &str,
        idempotency: Idempotency,
        policy: RetryPolicy,
        body: &impl Serialize,
    ) -> std::result::Result<A, Failure> {
        let Inner { transport, tokens, .. } = &*self.0;
        let url = endpoint::at(&self.0.endpoint, path);
        let (mut refusals, mut unreached_since) = (0, None);
        loop {
            let authorization = match tokens.authorization(transport).await {
                Ok(authorization) => authorization,
                Err(trouble) => {
                    self.sit_out(trouble, policy, &mut unreached_since).await?;
                    continue;
                }
            };
            self.renew_soon();
            let began_dead = tokens.is_dead();
            let call = Call { url: &url, authorization: Some(&authorization), idempotency, policy };
            let failure = match transport.json(call, body).await {
                Err(failure) if failure.error.kind() == ErrorKind::Unauthenticated => failure,
                answer => {
                    if began_dead && answer.is_ok() {
                        tokens.worked(&authorization);
                    }
                    return answer;
                }
            };
            unreached_since = None;
            refusals += 1;
            if let Err(trouble) = self.replace(&authorization, &failure.error, refusals).await {
                self.sit_out(trouble, policy, &mut unreached_since).await?;
                refusals = 0;
            }
        }
    }

    async fn replace(
        &self,
        refused: &Authorization,
        refusal: &Error,
        refusals: usize,
    ) -> std::result::Result<(), Trouble> {
        let Inner { transport, tokens, .. } = &*self.0;
        if refusals >= REFUSALS_MAX {
            return tokens.give_up(refused, refusal).await;
        }
        let why = match refused {
            Authorization::Bearer(_) => "the service refuses the access token".to_owned(),
            Authorization::Key(key) => format!("the service refuses the access key {} ({refusal})", key.id),
        };
        tokens.renew(Some(refused), &why, transport).await
    }

    /// Returns when the call may be tried again; fails where it should not be.
    async fn sit_out(
        &self,
        trouble: Trouble,
        policy: RetryPolicy,
        unreached_since: &mut Option<Instant>,
    ) -> std::result::Result<(), Failure> {
        let failure =
            |error: Error| Failure { error, code: String::new(), sent: Sent::Answered, retry_after: None };
        match trouble {
            Trouble::Dead(error) => {
                if !self.0.tokens.is_repairable() {
                    return Err(failure(error));
                }
                self.watch();
                if !policy.parks {
                    return Err(failure(error));
                }
                tracing::warn!(%error, "a transfer waits for a new login");
                // The sender lives as long as we do.
                self.0.tokens.state().wait_for(|state| *state == AuthState::Fine).await.ok();
                *unreached_since = None;
                Ok(())
            }
            Trouble::Passing(error) => {
                let since = *unreached_since.get_or_insert_with(Instant::now);
                if !policy.parks || since.elapsed() + TOKEN_RETRY > policy.elapsed_max {
                    return Err(failure(error));
                }
                tokio::time::sleep(TOKEN_RETRY).await;
                Ok(())
            }
        }
    }

    /// Renews the token in the background, where its end is near.
    fn renew_soon(&self) {
        if self.0.tokens.is_due() {
            let inner = self.0.clone();
            tokio::spawn(async move { inner.tokens.renew_ahead(&inner.transport).await });
        }
    }

    /// Sees to it that somebody looks for a new credential while this one is dead.
    fn watch(&self) {
        if self.0.is_watched.swap(true, Ordering::Relaxed) {
            return;
        }
        let inner = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            while let Some(inner) = look(&inner).await {
                drop(inner);
                // A file can be replaced from anywhere, also by a machine that mounts the same folder.
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        });
    }
}

/// One look; `None` when there is nothing more to look for.
async fn look(inner: &Weak<Inner>) -> Option<Arc<Inner>> {
    let inner = inner.upgrade()?;
    inner.tokens.look_again().await;
    if *inner.tokens.state().borrow() == AuthState::Fine {
        inner.is_watched.store(false, Ordering::Relaxed);
        return None;
    }
    Some(inner)
}
