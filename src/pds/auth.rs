//! Who we are: what authorizes every call, and its renewal.
//!
//! Renewal is single-flight: whoever finds the token refused or about to end asks for a new one, everybody else
//! waits for that or goes on with the old one. Between processes the lock of the account does the same. A rotated
//! refresh token is on disk before the access token that came with it is used, so a crash in between never locks
//! the user out; and a renewal belongs to nobody who waits for it, so it comes to its end when they are gone.
//!
//! A credential that is finally refused is *dead*: calls fail with what to do about it, until the place that it
//! came from has another one.

mod grants;
mod jwt;
pub mod oauth;
mod origin;
mod renewal;
mod token_file;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use crate::account::{AccessToken, Grant, Handle};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::pds::sign::{AccessKey, Authorization};
use crate::pds::transport::Transport;

use origin::{Held, Origin};
use renewal::{Flight, Renewal};

pub use grants::{CodeAnswer, Granted, by_code, by_grant};
pub use jwt::check_key;
pub use renewal::{LOOK_INTERVAL, UnderWay, none_under_way};

/// A token is not used in its last seconds: it would end on its way.
const LAST_S: u64 = 5;
/// How long before its end a token is renewed, at most.
const AHEAD_MAX_S: u64 = 600;
/// Pause after a renewal ahead of time that failed.
const AHEAD_RETRY: Duration = Duration::from_secs(30);
/// Longest token that is sent or stored.
const TOKEN_BYTES_MAX: usize = 64 << 10;

/// Where the access token comes from.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Given as it is; it cannot be renewed.
    Token(Secret<String>),
    /// A file that only its owner can read, with either the token itself or JSON
    /// `{"access_token", "refresh_token", "app_id"}`. Read again when the token is refused; with a
    /// refresh token, renewed and rewritten.
    File(PathBuf),
    /// An account that `pdsfs login` has made.
    Account(Handle),
    /// Every call is signed.
    Key(AccessKey),
}

/// Whether the service takes us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthState {
    /// As far as is known.
    Fine,
    /// Finally refused: uploads wait until somebody logs in again.
    Dead {
        /// When that was found out.
        since: SystemTime,
        /// What the service said, and what to do.
        reason: String,
    },
}

/// Why there is no authorization for a call.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// The credential is dead.
    Dead(Error),
    /// The service could not be asked; later it may.
    Passing(Error),
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Dead(error) | Trouble::Passing(error) => error,
        }
    }
}

/// The current authorization, and how to get the next one. How it is renewed is in `renewal.rs`.
#[derive(Debug)]
pub struct TokenSource {
    origin: Origin,
    /// Leaf lock.
    current: RwLock<Option<Current>>,
    /// Held while a renewal is under way.
    renewal: tokio::sync::Mutex<Renewal>,
    /// The renewal that was begun last. A leaf lock.
    flight: Mutex<Option<Flight>>,
    state: watch::Sender<AuthState>,
}

#[derive(Clone, Debug)]
struct Current {
    authorization: Authorization,
    expires_at_s: Option<u64>,
    /// From then on a call that has time for it begins a renewal.
    renew_at: Option<Instant>,
}

impl TokenSource {
    /// Checks what can be checked without asking anybody.
    pub fn new(credential: Credential, endpoint: &url::Url) -> Result<Self> {
        let (origin, held) = Origin::new(credential, endpoint)?;
        let current = held.as_ref().map(Current::of).transpose()?.flatten();
        Ok(Self {
            origin,
            current: RwLock::new(current),
            renewal: tokio::sync::Mutex::default(),
            flight: Mutex::default(),
            state: watch::Sender::new(AuthState::Fine),
        })
    }

    /// Whether the service takes us, to be looked at or waited for.
    pub fn state(&self) -> watch::Receiver<AuthState> {
        self.state.subscribe()
    }

    /// Whether a new login can bring a dead credential back.
    pub fn is_repairable(&self) -> bool {
        !matches!(self.origin, Origin::Fixed(_))
    }

    fn current(&self) -> Option<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn adopt(&self, current: Option<Current>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
    }

    /// What goes into the next call. Asks for a token first where there is none that holds.
    pub async fn authorization(
        self: &Arc<Self>,
        transport: &Transport,
    ) -> std::result::Result<Authorization, Trouble> {
        // What cannot be replaced is tried all the same: the service may change its mind.
        if self.is_repairable() {
            self.check_alive().await?;
        }
        let over = match self.current() {
            Some(current) if !current.is_over() => return Ok(current.authorization),
            over => over.map(|current| current.authorization),
        };
        self.renew(over.as_ref(), "the access token has ended", transport).await?;
        let fresh = self.current().map(|current| current.authorization);
        fresh.ok_or_else(|| Trouble::Passing(Error::new(ErrorKind::Io, "there is no access token")))
    }

    /// Whether somebody should renew the token soon. True once per pause.
    pub fn is_due(&self) -> bool {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let Some(renew_at) = current.as_mut().and_then(|current| current.renew_at.as_mut()) else {
            return false;
        };
        let now = Instant::now();
        if now < *renew_at {
            return false;
        }
        *renew_at = now + AHEAD_RETRY;
        true
    }

    /// Whether the credential is dead now, as far as is known.
    pub fn is_dead(&self) -> bool {
        *self.state.borrow() != AuthState::Fine
    }

    /// The service has taken this authorization in a call that began when the credential was dead: that is over. A
    /// call that began earlier says nothing, because the service judged it before it refused.
    pub fn worked(&self, taken: &Authorization) {
        if self.is_dead() && self.current().is_some_and(|current| current.authorization == *taken) {
            self.state.send_replace(AuthState::Fine);
        }
    }
}

impl Current {
    /// What a held credential gives without asking; nothing where there is no token yet.
    fn of(held: &Held) -> Result<Option<Self>> {
        if let Grant::AccessKey { key, .. } = &held.grant {
            let authorization = Authorization::Key(key.clone());
            return Ok(Some(Self { authorization, expires_at_s: None, renew_at: None }));
        }
        let Some(AccessToken { token, expires_at_s }) = &held.access else { return Ok(None) };
        check_token(token.expose())?;
        let renew_at = match expires_at_s {
            Some(end) if held.grant != Grant::Fixed => renew_at(end.saturating_sub(now_s()), random_u32()),
            _ => None,
        };
        let authorization = Authorization::Bearer(token.clone());
        Ok(Some(Self { authorization, expires_at_s: *expires_at_s, renew_at }))
    }

    /// Whether it would be refused, by our own clock.
    fn is_over(&self) -> bool {
        self.expires_at_s.is_some_and(|end| now_s() + LAST_S >= end)
    }
}

/// Between a tenth and a fifth of the time that is left, at most ten minutes, before its end: mounts that share
/// an account do not all come at once.
fn renew_at(left_s: u64, random: u32) -> Option<Instant> {
    let fifth_ms = left_s.min(AHEAD_MAX_S * 5) * 1000 / 5;
    let ahead_ms = fifth_ms / 2 + fifth_ms / 2 * u64::from(random) / u64::from(u32::MAX);
    Instant::now().checked_add(Duration::from_millis(left_s.saturating_mul(1000) - ahead_ms))
}

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Where there are no random bytes the middle does as well.
fn random_u32() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

/// Whether a text can be a token at all: it goes into a header, so it must be plain.
pub fn check_token(token: &str) -> Result<()> {
    let wrong = |what: String| Err(Error::new(ErrorKind::Invalid, what));
    if token.is_empty() {
        return wrong("the token is empty".to_owned());
    }
    if token.len() > TOKEN_BYTES_MAX {
        return wrong(format!(
            "the token has {} bytes; no token has more than {TOKEN_BYTES_MAX}",
            token.len()
        ));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return wrong("the token has characters that no token has".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn endpoint() -> url::Url {
        "http://127.0.0.1:9".parse().unwrap()
    }

    fn bearer(source: &TokenSource) -> Option<Authorization> {
        source.current().map(|current| current.authorization)
    }

    fn file_with(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_plain_token_file_is_trimmed() {
        let file = file_with("tok\n", 0o600);
        let source = TokenSource::new(Credential::File(file.path().into()), &endpoint()).unwrap();
        assert_eq!(bearer(&source), Some(Authorization::Bearer(Secret::new("tok".into()))));
    }

    #[test]
    fn a_token_file_that_others_can_read_is_refused() {
        let file = file_with("tok", 0o644);
        let error = TokenSource::new(Credential::File(file.path().into()), &endpoint()).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[tokio::test]
    async fn what_could_not_be_stored_goes_before_what_it_replaced() {
        let text = |n: u32| format!(r#"{{"access_token":"AT{n}","refresh_token":"RT{n}","app_id":"app"}}"#);
        let token = |n: u32| Some(Authorization::Bearer(Secret::new(format!("AT{n}"))));
        let file = file_with(&text(1), 0o600);
        let source = TokenSource::new(Credential::File(file.path().into()), &endpoint()).unwrap();
        let stored = source.origin.load().await.unwrap();
        std::fs::write(file.path(), text(2)).unwrap();
        let rotated = source.origin.load().await.unwrap();
        std::fs::write(file.path(), text(1)).unwrap();
        source.adopt(Current::of(&rotated).unwrap());
        {
            let mut renewal = source.renewal.lock().await;
            (renewal.seen, renewal.unsaved) = (Some(stored.grant), Some(rotated));
        }
        source.reload().await.unwrap();
        assert_eq!(bearer(&source), token(2), "a spent token is taken again");
        std::fs::write(file.path(), text(3)).unwrap();
        source.reload().await.unwrap();
        assert_eq!(bearer(&source), token(3), "a new login is not taken");
    }

    #[test]
    fn what_cannot_be_in_a_header_is_no_token() {
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        for wrong in ["", "a b", "a\r\nx-evil: 1", "a\n", "a\u{7f}", "a\u{e9}", &long] {
            let credential = Credential::Token(Secret::new(wrong.into()));
            assert!(TokenSource::new(credential, &endpoint()).is_err(), "{wrong:?}");
        }
        check_token(&long[1..]).unwrap();
    }

    #[test]
    fn tokens_are_renewed_in_their_last_tenth_to_fifth() {
        let left = |at: Option<Instant>, s: u64| {
            let until = at.unwrap().duration_since(Instant::now()).as_secs_f64();
            s as f64 - until
        };
        for (lifetime_s, least, most) in [(100, 10.0, 20.0), (7200, 300.0, 600.0), (86_400, 300.0, 600.0)] {
            let (late, early) = (renew_at(lifetime_s, 0), renew_at(lifetime_s, u32::MAX));
            assert!((left(late, lifetime_s) - least).abs() < 1.0, "{lifetime_s}");
            assert!((left(early, lifetime_s) - most).abs() < 1.0, "{lifetime_s}");
        }
        assert!(renew_at(0, 7).unwrap() <= Instant::now());
    }
}
