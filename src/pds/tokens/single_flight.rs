//! Makes a token refresh single-flight: calls that need the same refresh share one task and its result.
//!
//! The refresh is a task and not part of a call. The service rotates the refresh token when it answers. If
//! the kernel cancels a request, the only copy of the new token must not be lost with it.

use std::sync::Arc;

use tokio::sync::watch;

use super::auth_state::AuthError;
use super::refresh::persist_later;
use super::refresh_state::{RefreshInFlight, RefreshRequest, RefreshResult};
use super::refresher::TokenRefresher;
use super::request_guard::TokenRequestGuard;
use crate::auth::sign::Authorization;
use crate::error::{Error, ErrorKind};
use crate::pds::transport::Transport;

impl TokenRefresher {
    /// Refreshes the token before it expires. A failure is only logged, because the old token stays usable.
    pub async fn refresh_early(self: &Arc<Self>, transport: &Transport) {
        let Some(current) = self.current() else { return };
        let why = "the access token is about to expire".to_owned();
        let request = RefreshRequest { replaces: Some(current.authorization), why, is_early: true };
        if let Err(error) = self.refresh_single_flight(request, transport).await {
            tracing::warn!(error = %Error::from(error), "cannot refresh the access token before it expires");
        }
    }

    /// Obtains another authorization than `replaces`, which was rejected or has expired.
    pub async fn refresh(
        self: &Arc<Self>,
        replaces: Option<&Authorization>,
        why: &str,
        transport: &Transport,
    ) -> RefreshResult {
        let request = RefreshRequest { replaces: replaces.cloned(), why: why.to_owned(), is_early: false };
        self.refresh_single_flight(request, transport).await
    }

    /// Waits for the shared refresh. The refresh continues if this future is dropped.
    async fn refresh_single_flight(
        self: &Arc<Self>,
        request: RefreshRequest,
        transport: &Transport,
    ) -> RefreshResult {
        let mut result = self.join_or_start_refresh(request, transport);
        let finished = result.wait_for(Option::is_some).await.ok().and_then(|result| result.clone());
        let stopped = || Error::new(ErrorKind::Io, "the token refresh task stopped");
        finished.unwrap_or_else(|| Err(AuthError::Transient(stopped())))
    }

    fn join_or_start_refresh(
        self: &Arc<Self>,
        request: RefreshRequest,
        transport: &Transport,
    ) -> watch::Receiver<Option<RefreshResult>> {
        let mut last = self.in_flight.lock();
        if let Some(running) = last.as_ref().filter(|last| last.request == request && last.is_running()) {
            return running.result.clone();
        }
        let (sender, result) = watch::channel(None);
        *last = Some(RefreshInFlight { request: request.clone(), result: result.clone() });
        let (this, transport, guard) = (self.clone(), transport.clone(), TokenRequestGuard::begin());
        tokio::spawn(async move {
            let finished = this.refresh_in_turn(&request, &transport).await;
            sender.send_replace(Some(finished));
            drop(guard);
            persist_later(this).await;
        });
        result
    }
}
