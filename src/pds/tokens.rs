//! The authorization of every call, and the refresh of access tokens.
//!
//! A refresh is single-flight (`single_flight.rs`): the first call that needs a new token starts it, other
//! calls wait for it or continue with the old token. Between processes the lock of the account has the same
//! effect. A rotated refresh token is on disk before the access token that came with it is used, so a crash
//! never loses the login. A refresh is a task of its own and finishes even if every waiting call is
//! cancelled.
//!
//! ```text
//! Valid --service rejects the refresh--> Revoked --another credential is stored--> Valid
//!                                              \--a call is accepted again------/
//! ```
//!
//! While the credential is revoked, calls fail with the next step for the user (`recheck.rs`).

mod auth_state;
mod authorization;
mod recheck;
mod refresh;
mod refresh_state;
mod refresher;
mod request_guard;
mod single_flight;
mod token_calls;

pub use auth_state::{AuthError, AuthState};
pub use recheck::RECHECK_INTERVAL;
pub use refresher::TokenRefresher;
pub use request_guard::{TokenRequestGuard, wait_for_token_requests};
#[cfg(any(test, fuzzing))]
pub use token_calls::check_token_answer;
pub use token_calls::{AuthorizationCode, redeem_code, request_token};
