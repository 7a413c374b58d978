//! The authorization that calls use until it expires.

use std::time::{Duration, Instant};

use crate::auth::sign::Authorization;
use crate::auth::{AccessToken, Grant, StoredCredential, check_token, unix_now_s};
use crate::error::Result;

/// A token is not used in its last seconds: it could expire on the way to the service.
const EXPIRY_MARGIN_S: u64 = 5;
/// Longest time before the expiry at which an early refresh starts.
const EARLY_REFRESH_S_MAX: u64 = 600;

#[derive(Clone, Debug)]
pub(super) struct CurrentAuthorization {
    pub(super) authorization: Authorization,
    expires_at_s: Option<u64>,
    /// When the next call starts an early refresh.
    pub(super) refresh_at: Option<Instant>,
}

impl CurrentAuthorization {
    /// `None` if the credential has no access token yet.
    pub(super) fn of(stored: &StoredCredential) -> Result<Option<Self>> {
        if let Grant::AccessKey { key, .. } = &stored.grant {
            let authorization = Authorization::Key(key.clone());
            return Ok(Some(Self { authorization, expires_at_s: None, refresh_at: None }));
        }
        let Some(AccessToken { token, expires_at_s }) = &stored.access else { return Ok(None) };
        check_token(token.expose())?;
        let refresh_at = match expires_at_s {
            Some(end) if stored.grant != Grant::Fixed => {
                refresh_at(end.saturating_sub(unix_now_s()), random_u32())
            }
            _ => None,
        };
        let authorization = Authorization::Bearer(token.clone());
        Ok(Some(Self { authorization, expires_at_s: *expires_at_s, refresh_at }))
    }

    /// By the clock of this machine.
    pub(super) fn is_expired(&self) -> bool {
        self.expires_at_s.is_some_and(|end| unix_now_s() + EXPIRY_MARGIN_S >= end)
    }
}

/// A random moment when between a tenth and a fifth of the lifetime is left, at most ten minutes. So mounts
/// that share an account do not refresh at the same time.
fn refresh_at(left_s: u64, random: u32) -> Option<Instant> {
    let fifth_ms = left_s.min(EARLY_REFRESH_S_MAX * 5) * 1000 / 5;
    let ahead_ms = fifth_ms / 2 + fifth_ms / 2 * u64::from(random) / u64::from(u32::MAX);
    Instant::now().checked_add(Duration::from_millis(left_s.saturating_mul(1000) - ahead_ms))
}

/// The middle of the range if the kernel returns no random bytes.
fn random_u32() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_refresh_is_due_before_the_expiry() {
        let left = |at: Option<Instant>, s: u64| {
            let until = at.unwrap().duration_since(Instant::now()).as_secs_f64();
            s as f64 - until
        };
        for (lifetime_s, least, most) in [(100, 10.0, 20.0), (7200, 300.0, 600.0), (86_400, 300.0, 600.0)] {
            let (late, early) = (refresh_at(lifetime_s, 0), refresh_at(lifetime_s, u32::MAX));
            assert!((left(late, lifetime_s) - least).abs() < 1.0, "{lifetime_s}");
            assert!((left(early, lifetime_s) - most).abs() < 1.0, "{lifetime_s}");
        }
        assert!(refresh_at(0, 7).unwrap() <= Instant::now());
    }
}
