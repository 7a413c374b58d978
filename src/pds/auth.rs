//! Who we are: what authorizes every call, and its renewal.
//!
//! Renewal is single-flight: whoever finds the token refused or about to end asks for a new one, everybody else
//! waits for that or goes on with the old one. Between processes the lock of the account does the same. A rotated
//! refresh token is on disk before the access token that came with it is used, so a crash in between never locks
//! the user out.
//!
//! A credential that is finally refused is *dead*: calls fail with what to do about it, until the place that it
//! came from has another one.

mod grants;
mod jwt;
pub mod oauth;
mod origin;
mod token_file;

use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use crate::account::{AccessToken, Grant, Handle, Stamp};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::pds::sign::{AccessKey, Authorization};
use crate::pds::transport::Transport;

use origin::{Held, Origin};

pub use grants::{CodeAnswer, Granted, by_code, by_grant};
pub use jwt::check_key;

/// How often the place of a dead credential is looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often a dead credential is tried again that may recover by itself: a clock that is set, a key that is let
/// in again.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// A token is not used in its last seconds: it would end on its way.
const LAST_S: u64 = 5;
/// How long before its end a token is renewed, at most.
const AHEAD_MAX_S: u64 = 600;
/// Pause after a renewal ahead of time that failed.
const AHEAD_RETRY: Duration = Duration::from_secs(30);
/// Longest token that is sent.
const TOKEN_BYTES_MAX: usize = 16 << 10;

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

/// The current authorization, and how to get the next one.
#[derive(Debug)]
pub struct TokenSource {
    origin: Origin,
    /// Leaf lock.
    current: RwLock<Option<Current>>,
    /// Held while a renewal is under way.
    renewal: tokio::sync::Mutex<Renewal>,
    state: watch::Sender<AuthState>,
}

#[derive(Clone, Debug)]
struct Current {
    authorization: Authorization,
    expires_at_s: Option<u64>,
    /// From then on a call that has time for it begins a renewal.
    renew_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Renewal {
    /// What the service gave and no disk has. It goes before what is stored.
    unsaved: Option<Held>,
    /// The origin as it was when the credential was found dead, and when it was tried last.
    dead: Option<(Option<Stamp>, Instant)>,
    looked_at: Option<Instant>,
    /// What the origin held when it was last read.
    seen: Option<Grant>,
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
    pub async fn authorization(&self, transport: &Transport) -> std::result::Result<Authorization, Trouble> {
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

    /// Renews the token before it ends. What fails here is met again when it has ended.
    pub async fn renew_ahead(&self, transport: &Transport) {
        let Some(current) = self.current() else { return };
        let outcome = self.renew(Some(&current.authorization), "the access token is about to end", transport);
        if let Err(trouble) = outcome.await {
            tracing::warn!(error = %Error::from(trouble), "the access token could not be renewed ahead of time");
        }
    }

    /// Gets another authorization than `rejected`, which the service refused or which has ended.
    pub async fn renew(
        &self,
        rejected: Option<&Authorization>,
        why: &str,
        transport: &Transport,
    ) -> std::result::Result<(), Trouble> {
        let mut renewal = self.renewal.lock().await;
        if self.current().is_some_and(|current| Some(&current.authorization) != rejected) {
            return Ok(());
        }
        // Others have waited for the one that found it dead: they need not ask again.
        if let (AuthState::Dead { reason, .. }, Some((stamp, _))) = (&*self.state.borrow(), renewal.dead)
            && stamp == self.origin.stamp()
            && self.is_repairable()
        {
            return Err(Trouble::Dead(Error::new(ErrorKind::Unauthenticated, reason)));
        }
        let outcome = self.renew_alone(&mut renewal, rejected, why, transport).await;
        match &outcome {
            Ok(()) => {
                renewal.dead = None;
                self.state
                    .send_if_modified(|state| std::mem::replace(state, AuthState::Fine) != AuthState::Fine);
            }
            Err(Trouble::Dead(error)) => {
                renewal.dead = Some((self.origin.stamp(), Instant::now()));
                let (since, reason) = (SystemTime::now(), error.to_string());
                self.state.send_if_modified(|state| {
                    let was_fine = *state == AuthState::Fine;
                    if was_fine {
                        tracing::error!("{reason}");
                        *state = AuthState::Dead { since, reason };
                    }
                    was_fine
                });
            }
            Err(Trouble::Passing(_)) => {}
        }
        outcome
    }

    async fn renew_alone(
        &self,
        renewal: &mut Renewal,
        rejected: Option<&Authorization>,
        why: &str,
        transport: &Transport,
    ) -> std::result::Result<(), Trouble> {
        let locked = self.origin.lock().await.map_err(Trouble::Passing)?;
        let stored = match self.origin.load().await {
            Ok(stored) => stored,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Trouble::Dead(error)),
            Err(error) => return Err(Trouble::Passing(error)),
        };
        if renewal.seen.as_ref() != Some(&stored.grant) {
            // Somebody else has stored something: it goes before what we could not store.
            renewal.unsaved = None;
        }
        renewal.seen = Some(stored.grant.clone());
        let held = renewal.unsaved.clone().unwrap_or(stored);
        // Somebody else has renewed it, or a login has replaced it.
        if let Some(current) = Current::of(&held).map_err(Trouble::Dead)?
            && Some(&current.authorization) != rejected
            && !current.is_over()
        {
            self.adopt(Some(current));
            return Ok(());
        }
        let granted = match by_grant(&held.grant, self.origin.auth_endpoint(), transport).await {
            Ok(Some(granted)) => granted,
            Ok(None) => return Err(Trouble::Dead(self.origin.hopeless(why))),
            Err(Trouble::Dead(error)) => return Err(Trouble::Dead(self.origin.dead(why, &error))),
            Err(passing) => return Err(passing),
        };
        let held = held.with(granted);
        let current = Current::of(&held).map_err(Trouble::Passing)?;
        let saved = self.origin.save(&locked, &held).await;
        // The service has rotated the token already: where it is not stored, using it is all that is left.
        renewal.unsaved = (!matches!(saved, Ok(true))).then_some(held);
        self.adopt(current);
        match saved {
            Ok(_) => tracing::info!("the access token was renewed"),
            Err(error) => {
                tracing::error!(%error, "the renewed token could not be stored; the mount works until it ends");
            }
        }
        Ok(())
    }

    /// Fails while the credential is dead. Looks for a new one, but not at every call.
    async fn check_alive(&self) -> std::result::Result<(), Trouble> {
        let dead = |state: &AuthState| match state {
            AuthState::Fine => None,
            AuthState::Dead { reason, .. } => Some(Error::new(ErrorKind::Unauthenticated, reason)),
        };
        if dead(&self.state.borrow()).is_none() {
            return Ok(());
        }
        if let Ok(mut renewal) = self.renewal.try_lock() {
            self.look(&mut renewal).await;
        }
        dead(&self.state.borrow()).map_or(Ok(()), |error| Err(Trouble::Dead(error)))
    }

    /// Looks whether a dead credential has been replaced. Cheap: most of the time it looks at a clock.
    pub async fn look_again(&self) {
        let mut renewal = self.renewal.lock().await;
        self.look(&mut renewal).await;
    }

    async fn look(&self, renewal: &mut Renewal) {
        let Some((stamp, tried_at)) = renewal.dead else { return };
        if renewal.looked_at.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
            return;
        }
        renewal.looked_at = Some(Instant::now());
        let now = self.origin.stamp();
        if now != stamp {
            renewal.dead = Some((now, tried_at));
            match self.reload_with(renewal).await {
                Ok(true) => tracing::info!("another credential was found"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the new credential cannot be used"),
            }
        } else if tried_at.elapsed() >= RETRY_INTERVAL && renewal.seen.as_ref().is_some_and(may_recover) {
            // Alive again until a call says otherwise: the next one tries.
            renewal.dead = Some((stamp, Instant::now()));
            self.state.send_replace(AuthState::Fine);
        }
    }

    /// Reads the credential again, now. Waits for a renewal that is under way.
    pub async fn reload(&self) -> Result<()> {
        let mut renewal = self.renewal.lock().await;
        self.reload_with(&mut renewal).await.map(|_| ())
    }

    /// Whether what is stored is something else than what was in use.
    async fn reload_with(&self, renewal: &mut Renewal) -> Result<bool> {
        let held = self.origin.load().await?;
        let fresh = Current::of(&held)?;
        let old = self.current().map(|current| current.authorization);
        let same = fresh.as_ref().map(|current| &current.authorization) == old.as_ref();
        // What could not be stored goes before what it has replaced.
        let is_ahead = renewal.unsaved.is_some();
        if (same || is_ahead) && renewal.seen.as_ref() == Some(&held.grant) {
            return Ok(false);
        }
        renewal.seen = Some(held.grant);
        renewal.unsaved = None;
        renewal.dead = None;
        self.adopt(fresh);
        self.state.send_replace(AuthState::Fine);
        Ok(true)
    }

    /// The service refuses even what it has just given.
    pub async fn give_up(&self, refusal: &Error) -> Error {
        let error = self.origin.dead("the service refuses a token that it has just given", refusal);
        let mut renewal = self.renewal.lock().await;
        renewal.dead = Some((self.origin.stamp(), Instant::now()));
        self.state.send_replace(AuthState::Dead { since: SystemTime::now(), reason: error.to_string() });
        error
    }

    /// A call was answered: whatever was wrong is over.
    pub fn worked(&self) {
        if *self.state.borrow() != AuthState::Fine {
            self.state.send_replace(AuthState::Fine);
        }
    }
}

/// Whether the same credential may be taken later.
fn may_recover(grant: &Grant) -> bool {
    matches!(grant, Grant::ServiceApp { .. } | Grant::AccessKey { .. })
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
    Instant::now().checked_add(Duration::from_millis(left_s * 1000 - ahead_ms))
}

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Where there are no random bytes the middle does as well.
fn random_u32() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

/// Whether a text can be a token at all.
pub fn check_token(token: &str) -> Result<()> {
    if token.is_empty()
        || token.len() > TOKEN_BYTES_MAX
        || token.contains(|c: char| c.is_control() || c.is_whitespace())
    {
        return Err(Error::new(
            ErrorKind::Invalid,
            "the access token is empty or has characters that no token has",
        ));
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
        *source.renewal.lock().await =
            Renewal { seen: Some(stored.grant), unsaved: Some(rotated), ..Renewal::default() };
        source.reload().await.unwrap();
        assert_eq!(bearer(&source), token(2), "a spent token is taken again");
        std::fs::write(file.path(), text(3)).unwrap();
        source.reload().await.unwrap();
        assert_eq!(bearer(&source), token(3), "a new login is not taken");
    }

    #[test]
    fn empty_tokens_are_refused() {
        for wrong in ["", "a b"] {
            let credential = Credential::Token(Secret::new(wrong.into()));
            assert!(TokenSource::new(credential, &endpoint()).is_err(), "{wrong:?}");
        }
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
