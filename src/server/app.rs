//! The state that all requests share.

use std::net::SocketAddr;

use super::blobs::BlobStore;
use super::catalog::Catalog;
use super::clock::Clock;
use super::config::ServerConfig;
use super::errors::ServiceError;
use super::faults::FaultInjector;
use super::password_gate::PasswordGate;
use super::sign::Signer;
use super::stats::{Counters, OpenUpload, Stats};

/// The `domain_id` of every response.
pub(super) const DOMAIN_ID: &str = "bj1";

/// The `user_id` of the only user.
pub(super) const USER_ID: &str = "owner";

pub(super) struct App {
    pub(super) config: ServerConfig,
    pub(super) addr: SocketAddr,
    pub(super) catalog: Catalog,
    pub(super) store: BlobStore,
    pub(super) signer: Signer,
    pub(super) login_guesses: PasswordGate,
    pub(super) share_guesses: PasswordGate,
    pub(super) faults: FaultInjector,
    pub(super) clock: Clock,
    pub(super) counters: Counters,
}

impl App {
    pub(super) async fn revoke_all_tokens(&self) -> Result<(), ServiceError> {
        self.catalog
            .change(|state| {
                state.drop_all_tokens();
                Ok(())
            })
            .await
    }

    pub(super) async fn discard_expired_uploads(&self) {
        let age_ms = i64::try_from(self.config.upload_age_max.as_millis()).unwrap_or(i64::MAX);
        let before_ms = self.clock.now_ms().saturating_sub(age_ms);
        let discarded = self
            .catalog
            .change(|state| {
                state.discard_uploads_before(before_ms, &self.store);
                Ok(())
            })
            .await;
        if let Err(error) = discarded {
            tracing::warn!(message = error.message, "cannot discard expired uploads");
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = self.counters.snapshot();
        stats.open_uploads = self.catalog.read(|state| state.uploads().map(OpenUpload::from).collect());
        stats.open_uploads.sort_by(|a, b| a.created_at.cmp(&b.created_at));
        stats
    }
}
