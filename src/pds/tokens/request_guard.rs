//! Counts token requests whose answers exist only in memory until they are stored.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::sync::watch;

static TOKEN_REQUESTS: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// Exists from before a token request until its answer is stored.
#[derive(Debug)]
pub struct TokenRequestGuard(());

impl TokenRequestGuard {
    pub fn begin() -> Self {
        TOKEN_REQUESTS.send_modify(|count| *count += 1);
        Self(())
    }
}

impl Drop for TokenRequestGuard {
    fn drop(&mut self) {
        TOKEN_REQUESTS.send_modify(|count| *count -= 1);
    }
}

/// Waits until no [`TokenRequestGuard`] exists, at most for `limit`. Called before the process exits: a token
/// that the service has just issued would be lost.
pub async fn wait_for_token_requests(limit: Duration) {
    let mut count = TOKEN_REQUESTS.subscribe();
    tokio::time::timeout(limit, count.wait_for(|count| *count == 0)).await.ok();
}
