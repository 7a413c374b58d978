//! How a credential is renewed, dies, and comes back.
//!
//! A renewal is a task, not a part of whoever asked: the service rotates the refresh token when it answers, and a
//! request that the kernel has given up must not take the only copy of the new one along.

use std::sync::{Arc, LazyLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::grants::by_grant;
use super::origin::{Held, Lock};
use super::{AuthState, Current, TokenSource, Trouble};
use crate::account::{Grant, Stamp};
use crate::error::{Error, ErrorKind, Result};
use crate::pds::sign::Authorization;
use crate::pds::transport::Transport;

/// How often the place of a dead credential is looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often a dead credential is tried again that may recover by itself: a clock that is set, a key that is let
/// in again.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// How often is tried to store what could not be stored.
const STORE_INTERVAL: Duration = Duration::from_secs(30);
/// A credential that was found and is refused before so many of the looks to come: the next look takes its time.
const SHORT_LIFE: u32 = 10;
/// How many credentials one renewal tries: each is refused, and another one is stored meanwhile.
const CREDENTIALS_MAX: usize = 3;

/// Renewals of this process that are under way.
static UNDER_WAY: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// What a renewal comes to.
type Outcome = std::result::Result<(), Trouble>;

/// What a renewal shall replace.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Need {
    /// The service has refused it, or it has ended, or will soon.
    rejected: Option<Authorization>,
    why: String,
    /// What shall be replaced is still good.
    is_ahead: bool,
}

/// A renewal that was begun, and what it came to; whoever has the same need waits for the same one.
#[derive(Debug)]
pub(super) struct Flight {
    need: Need,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// What is known from earlier renewals.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    /// What the service gave and no disk has. It goes before what is stored.
    pub(super) unsaved: Option<Held>,
    /// The origin as it was when the credential was found dead, and when it was tried last.
    dead: Option<(Option<Stamp>, Instant)>,
    looked_at: Option<Instant>,
    /// When a look has found another credential, and the pause before the next look.
    revived: Option<(Instant, Duration)>,
    /// Why what was found cannot be used, as it was told last.
    told: Option<String>,
    /// What the origin held when it was last read.
    pub(super) seen: Option<Grant>,
    /// The origin as it was before it was last read: what is stored while it is read is another one.
    stamp: Option<Stamp>,
}

/// Counts a renewal, or what comes to the same, while it lives.
#[derive(Debug)]
pub struct UnderWay(());

impl UnderWay {
    /// The service is about to be asked for what it gives once.
    pub fn begin() -> Self {
        UNDER_WAY.send_modify(|count| *count += 1);
        Self(())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.send_modify(|count| *count -= 1);
    }
}

/// Waits until this process renews nothing, but no longer than that. For who ends the program: what the service
/// has just given would be lost with it.
pub async fn none_under_way(limit: Duration) {
    let mut count = UNDER_WAY.subscribe();
    tokio::time::timeout(limit, count.wait_for(|count| *count == 0)).await.ok();
}

impl Renewal {
    /// A look has found another credential. Where one after the other is refused (mounts of one account, of which
    /// each stores what it is given), the looks become rare.
    fn is_revived(&mut self) {
        let pause = match self.revived {
            Some((at, pause)) if at.elapsed() < pause * SHORT_LIFE => (pause * 2).min(RETRY_INTERVAL),
            _ => LOOK_INTERVAL,
        };
        self.revived = Some((Instant::now(), pause));
    }

    /// Says once why what was found cannot be used.
    fn tell(&mut self, error: &Error) {
        let text = error.to_string();
        if self.told.as_ref() != Some(&text) {
            tracing::warn!(%error, "the new credential cannot be used");
            self.told = Some(text);
        }
    }
}

impl Flight {
    /// Whether it has not come to anything yet.
    fn is_under_way(&self) -> bool {
        self.outcome.borrow().is_none() && self.outcome.has_changed().is_ok()
    }
}

impl TokenSource {
    /// Renews the token before it ends. What fails here is met again when it has ended.
    pub async fn renew_ahead(self: &Arc<Self>, transport: &Transport) {
        let Some(current) = self.current() else { return };
        let why = "the access token is about to end".to_owned();
        let need = Need { rejected: Some(current.authorization), why, is_ahead: true };
        if let Err(trouble) = self.fly(need, transport).await {
            tracing::warn!(error = %Error::from(trouble), "the access token could not be renewed ahead of time");
        }
    }

    /// Gets another authorization than `rejected`, which the service refused or which has ended.
    pub async fn renew(
        self: &Arc<Self>,
        rejected: Option<&Authorization>,
        why: &str,
        transport: &Transport,
    ) -> Outcome {
        let need = Need { rejected: rejected.cloned(), why: why.to_owned(), is_ahead: false };
        self.fly(need, transport).await
    }

    /// Waits for a renewal that serves this need. It goes on where nobody waits any more.
    async fn fly(self: &Arc<Self>, need: Need, transport: &Transport) -> Outcome {
        let mut outcome = self.flight(need, transport);
        let told = outcome.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
        let stopped = || Error::new(ErrorKind::Io, "the renewal of the access token stopped");
        told.unwrap_or_else(|| Err(Trouble::Passing(stopped())))
    }

    fn flight(self: &Arc<Self>, need: Need, transport: &Transport) -> watch::Receiver<Option<Outcome>> {
        let mut last = self.flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = last.as_ref().filter(|last| last.need == need && last.is_under_way()) {
            return flight.outcome.clone();
        }
        let (told, outcome) = watch::channel(None);
        *last = Some(Flight { need: need.clone(), outcome: outcome.clone() });
        let (this, transport, counted) = (self.clone(), transport.clone(), UnderWay::begin());
        tokio::spawn(async move {
            let done = this.renew_in_turn(&need, &transport).await;
            told.send_replace(Some(done));
            drop(counted);
            store_later(this).await;
        });
        outcome
    }

    /// One renewal after the other.
    async fn renew_in_turn(&self, need: &Need, transport: &Transport) -> Outcome {
        let mut renewal = self.renewal.lock().await;
        if self.current().is_some_and(|current| Some(&current.authorization) != need.rejected.as_ref()) {
            return Ok(());
        }
        // Others have waited for the one that found it dead: they need not ask again.
        if let (AuthState::Dead { reason, .. }, Some((stamp, _))) = (&*self.state.borrow(), renewal.dead)
            && stamp == self.origin.stamp()
            && self.is_repairable()
        {
            return Err(Trouble::Dead(Error::new(ErrorKind::Unauthenticated, reason)));
        }
        let outcome = self.renew_alone(&mut renewal, need, transport).await;
        match outcome {
            Ok(()) => {
                renewal.dead = None;
                self.state
                    .send_if_modified(|state| std::mem::replace(state, AuthState::Fine) != AuthState::Fine);
                Ok(())
            }
            // Nothing is lost yet: what shall be replaced holds until its end, and it is tried again meanwhile.
            Err(Trouble::Dead(error))
                if need.is_ahead && self.current().is_some_and(|current| !current.is_over()) =>
            {
                Err(Trouble::Passing(error))
            }
            Err(Trouble::Dead(error)) => {
                self.die(&mut renewal, &error);
                Err(Trouble::Dead(error))
            }
            passing => passing,
        }
    }

    /// The service has finally refused what was last read.
    fn die(&self, renewal: &mut Renewal, error: &Error) {
        renewal.dead = Some((renewal.stamp, Instant::now()));
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

    async fn renew_alone(&self, renewal: &mut Renewal, need: &Need, transport: &Transport) -> Outcome {
        let locked = self.origin.lock().await.map_err(Trouble::Passing)?;
        let mut held = self.stored(renewal).await?;
        let mut tried = 0;
        loop {
            // Somebody else has renewed it, or a login has replaced it.
            if let Some(current) = Current::of(&held).map_err(Trouble::Dead)?
                && Some(&current.authorization) != need.rejected.as_ref()
                && !current.is_over()
            {
                self.adopt(Some(current));
                return Ok(());
            }
            tried += 1;
            let refusal = match by_grant(&held.grant, held.auth_endpoint.as_ref(), transport).await {
                Ok(Some(granted)) => return self.keep(renewal, &locked, held.with(granted)).await,
                Ok(None) => self.origin.hopeless(&need.why),
                Err(Trouble::Dead(error)) => self.origin.dead(&need.why, &error),
                Err(passing) => return Err(passing),
            };
            // Who does not know our lock may have spent it, and stored what came of that.
            let stored = self.stored(renewal).await?;
            if stored == held || tried == CREDENTIALS_MAX {
                return Err(Trouble::Dead(refusal));
            }
            held = stored;
        }
    }

    /// What counts at the moment: what is stored, or what could not be.
    async fn stored(&self, renewal: &mut Renewal) -> std::result::Result<Held, Trouble> {
        renewal.stamp = self.origin.stamp();
        let stored = match self.origin.load().await {
            Ok(stored) => stored,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unauthenticated) => {
                return Err(Trouble::Dead(error));
            }
            Err(error) => return Err(Trouble::Passing(error)),
        };
        if renewal.seen.as_ref() != Some(&stored.grant) {
            // Somebody else has stored something: it goes before what we could not store.
            renewal.unsaved = None;
        }
        renewal.seen = Some(stored.grant.clone());
        Ok(renewal.unsaved.clone().unwrap_or(stored))
    }

    /// Stores what the service has given, then uses it.
    async fn keep(&self, renewal: &mut Renewal, locked: &Lock<'_>, held: Held) -> Outcome {
        let current = Current::of(&held).map_err(Trouble::Passing)?;
        let saved = self.origin.save(locked, &held).await;
        // The service has rotated the token already: where it is not stored, using it is all that is left.
        if matches!(saved, Ok(true)) {
            self.is_stored(renewal, held);
        } else {
            renewal.unsaved = Some(held);
        }
        self.adopt(current);
        match saved {
            Ok(_) => tracing::info!("the access token was renewed"),
            Err(error) => {
                tracing::error!(%error, "the renewed token could not be stored; the mount works until it ends");
            }
        }
        Ok(())
    }

    /// What is at the origin now is ours: no other login.
    fn is_stored(&self, renewal: &mut Renewal, held: Held) {
        (renewal.seen, renewal.unsaved) = (Some(held.grant), None);
        renewal.stamp = self.origin.stamp();
    }

    /// Stores what could not be stored when it came, unless somebody else has stored something since. Whether
    /// there is nothing left to store.
    pub async fn store_again(&self) -> bool {
        let mut renewal = self.renewal.lock().await;
        let rotates = |held: &Held| matches!(held.grant, Grant::Refresh { .. });
        if !renewal.unsaved.as_ref().is_some_and(rotates) {
            return true;
        }
        let Ok(locked) = self.origin.lock().await else { return false };
        if self.stored(&mut renewal).await.is_err() {
            return false;
        }
        let Some(held) = renewal.unsaved.clone() else { return true };
        match self.origin.save(&locked, &held).await {
            Ok(true) => {
                self.is_stored(&mut renewal, held);
                tracing::info!("the renewed token is stored now");
                true
            }
            Ok(false) => true,
            Err(error) => {
                tracing::debug!(%error, "the renewed token can still not be stored");
                false
            }
        }
    }

    /// Fails while the credential is dead. Looks for a new one, but not at every call.
    pub(super) async fn check_alive(&self) -> Outcome {
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
        let pause = renewal.revived.map_or(LOOK_INTERVAL, |(_, pause)| pause);
        if renewal.looked_at.is_some_and(|at| at.elapsed() < pause) {
            return;
        }
        renewal.looked_at = Some(Instant::now());
        let now = self.origin.stamp();
        if now != stamp {
            match self.reload_with(renewal).await {
                Ok(true) => {
                    tracing::info!("another credential was found");
                    renewal.is_revived();
                }
                Ok(false) => renewal.dead = Some((now, tried_at)),
                // It is looked at again: what stands in the way may go.
                Err(error) => renewal.tell(&error),
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
        let stamp = self.origin.stamp();
        let held = self.origin.load().await?;
        let fresh = Current::of(&held)?;
        renewal.stamp = stamp;
        let old = self.current().map(|current| current.authorization);
        let same = fresh.as_ref().map(|current| &current.authorization) == old.as_ref();
        // What could not be stored goes before what it has replaced.
        let is_ahead = renewal.unsaved.is_some();
        if (same || is_ahead) && renewal.seen.as_ref() == Some(&held.grant) {
            return Ok(false);
        }
        renewal.seen = Some(held.grant);
        (renewal.unsaved, renewal.dead, renewal.told) = (None, None, None);
        self.adopt(fresh);
        self.state.send_replace(AuthState::Fine);
        Ok(true)
    }

    /// The service refuses even what it has just given; nothing, where that was replaced meanwhile.
    pub async fn give_up(&self, refused: &Authorization, refusal: &Error) -> Outcome {
        let mut renewal = self.renewal.lock().await;
        if self.current().is_some_and(|current| current.authorization != *refused) {
            return Ok(());
        }
        let error = self.origin.dead("the service refuses a token that it has just given", refusal);
        self.die(&mut renewal, &error);
        Err(Trouble::Dead(error))
    }
}

/// Tries to store what could not be stored, for as long as there is something and somebody uses it.
async fn store_later(source: Arc<TokenSource>) {
    let mut is_done = source.renewal.lock().await.unsaved.is_none();
    let source = Arc::downgrade(&source);
    while !is_done {
        tokio::time::sleep(STORE_INTERVAL).await;
        let Some(source) = source.upgrade() else { return };
        is_done = source.store_again().await;
    }
}

/// Whether the same credential may be taken later.
fn may_recover(grant: &Grant) -> bool {
    matches!(grant, Grant::ServiceApp { .. } | Grant::AccessKey { .. })
}
