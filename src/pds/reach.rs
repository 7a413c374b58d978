//! Whether the service can be reached, so that nobody waits longer than the network is gone.
//!
//! Every attempt says how it went. When connections cannot be made, one task knocks at the service
//! until somebody opens, and then everybody who pauses between attempts goes on at once. The kernel's
//! word that addresses or routes have changed (`routes.rs`) makes it knock now, and makes attempts
//! whose connection may have died with an address prove that they live.
//!
//! Where packets vanish, neither the kernel nor a connection says a word for long. So an attempt that waits in
//! silence knocks too: a connection of its own asks whether anybody is there. That ends no attempt whose answer
//! is merely late, as a short time-out would.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use url::Url;

use crate::pds::routes::Routes;

use place::{Place, Proxies};

mod place;

/// Connections in a row that cannot be made, before the service counts as out of reach.
const MISSES_MAX: u32 = 2;
/// Pause between two knocks; doubles with each return that proved false, up to so many times.
const KNOCK_EVERY: Duration = Duration::from_secs(1);
const FALSE_RETURNS_MAX: u32 = 4;
/// How long a knock may take.
const KNOCK_MAX: Duration = Duration::from_secs(3);
/// How long after the first change the rest of it is waited for: routes change in bursts.
const BURST: Duration = Duration::from_millis(200);
/// How long an attempt that was under way when routes changed may stand still.
const PROOF_MAX: Duration = Duration::from_secs(5);
/// The same when the service has come back: what was begun while it was away waits for nobody.
const RETURN_PROOF_MAX: Duration = Duration::from_secs(2);
/// How long nothing may be heard from anybody before an attempt that waits doubts that the network is there.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// How long a knock may take that alone decides it. Where an upload has filled the queues of a slow line, a round
/// trip takes seconds.
const DOUBT_MAX: Duration = Duration::from_secs(8);
/// How long the outcome of a knock serves others who doubt.
const OPENED_TTL: Duration = Duration::from_secs(4);
const SHUT_TTL: Duration = Duration::from_secs(1);

/// What is known of the way to the service.
#[derive(Debug)]
pub(super) struct Reach {
    this: Weak<Self>,
    /// Where no connection could be made the last time. A leaf lock.
    missed: Mutex<Option<Place>>,
    online: watch::Sender<bool>,
    /// When the service was lost, while it is. A leaf lock.
    lost_at: Mutex<Option<Instant>>,
    /// How often the service came back, or has another way; whoever pauses goes on when it grows.
    returns: watch::Sender<u64>,
    /// Connections that could not be made since the last answer.
    misses: AtomicU32,
    /// Returns since the last answer.
    false_returns: AtomicU32,
    is_knocking: AtomicBool,
    /// Routes have changed.
    changed: Notify,
    is_listening: AtomicBool,
    /// Bytes of bodies that connections have taken.
    moved: AtomicU64,
    /// Bytes of content that came.
    came: AtomicU64,
    /// The last sign that somebody is there, an answer or bytes that went or came: so long after `opened_at`, in
    /// milliseconds.
    heard_at_ms: AtomicU64,
    opened_at: Instant,
    /// The last knock of somebody who doubted, and whether somebody opened. Held while one knocks.
    doubt: tokio::sync::Mutex<Option<(Place, Instant, bool)>>,
    /// How often connections may have died that nobody uses at the moment.
    turns: AtomicU64,
    proxies: Proxies,
}

impl Reach {
    /// The way to a service and its stores; it counts as reachable until it is found not to be.
    /// `is_direct` where no proxy may stand in between.
    pub(super) fn new(is_direct: bool) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            missed: Mutex::new(None),
            online: watch::Sender::new(true),
            lost_at: Mutex::new(None),
            returns: watch::Sender::new(0),
            misses: AtomicU32::new(0),
            false_returns: AtomicU32::new(0),
            is_knocking: AtomicBool::new(false),
            changed: Notify::new(),
            is_listening: AtomicBool::new(false),
            moved: AtomicU64::new(0),
            came: AtomicU64::new(0),
            heard_at_ms: AtomicU64::new(0),
            opened_at: Instant::now(),
            doubt: tokio::sync::Mutex::new(None),
            turns: AtomicU64::new(0),
            proxies: if is_direct { Proxies::none() } else { Proxies::of_environment() },
        })
    }

    /// Whether the service can be reached.
    pub(super) fn online(&self) -> watch::Receiver<bool> {
        self.online.subscribe()
    }

    /// Whether it can be now.
    pub(super) fn is_online(&self) -> bool {
        *self.online.borrow()
    }

    /// Bytes of bodies that connections have taken.
    pub(super) fn bytes_moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// A connection has taken so many bytes of a body.
    pub(super) fn moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Relaxed);
        self.heard();
    }

    /// Bytes of content that came.
    pub(super) fn bytes_read(&self) -> u64 {
        self.came.load(Relaxed)
    }

    /// So many bytes of content have come.
    pub(super) fn came(&self, bytes: u64) {
        self.came.fetch_add(bytes, Relaxed);
        self.heard();
    }

    /// Somebody is there.
    pub(super) fn heard(&self) {
        self.heard_at_ms.store(self.opened_at.elapsed().as_millis() as u64, Relaxed);
    }

    fn heard_at(&self) -> Instant {
        self.opened_at + Duration::from_millis(self.heard_at_ms.load(Relaxed))
    }

    /// Since when the service is out of reach, where it is.
    pub(super) fn lost_at(&self) -> Option<Instant> {
        *self.lost_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows when connections that nobody uses may have died: none that is older should be used again.
    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Relaxed)
    }

    fn last_missed(&self) -> MutexGuard<'_, Option<Place>> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has answered, whatever it said. It says nothing of another host that cannot be reached.
    pub(super) fn answered(&self, url: &Url) {
        self.heard();
        if self.misses.load(Relaxed) == 0 {
            return;
        }
        let mut missed = self.last_missed();
        if missed.as_ref().is_some_and(|missed| *missed != self.proxies.place(url)) {
            return;
        }
        *missed = None;
        drop(missed);
        self.misses.store(0, Relaxed);
        self.false_returns.store(0, Relaxed);
        self.returned();
    }

    /// No connection could be made. Must be called on a runtime.
    pub(super) fn missed(&self, url: &Url) {
        let place = self.proxies.place(url);
        *self.last_missed() = Some(place.clone());
        if self.misses.fetch_add(1, Relaxed) + 1 >= MISSES_MAX {
            self.lost(&place, Instant::now());
        }
    }

    /// It is known by other signs that nothing gets through to a place.
    fn count_out(&self, place: &Place, since: Instant) {
        *self.last_missed() = Some(place.clone());
        self.misses.store(MISSES_MAX, Relaxed);
        self.lost(place, since);
    }

    /// The service is out of reach.
    fn lost(&self, place: &Place, since: Instant) {
        if self.online.send_if_modified(|online| std::mem::replace(online, false)) {
            *self.lost_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(since);
            tracing::warn!("{} cannot be reached: transfers wait until it can", place.host());
        }
        let Some(this) = self.this.upgrade() else { return };
        if !self.is_knocking.swap(true, Relaxed) {
            tokio::spawn(async move { this.knock().await });
        }
    }

    /// The state that [`Self::come_back`] starts from; taken before the attempt that may fail.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.returns.subscribe(), *self.returns.borrow())
    }

    /// Marks the service as reachable where it was not.
    fn returned(&self) {
        if self.online.send_if_modified(|online| !std::mem::replace(online, true)) {
            *self.lost_at.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.turns.fetch_add(1, Relaxed);
            tracing::info!("the service can be reached again");
            self.returns.send_modify(|returns| *returns += 1);
        }
    }

    /// Knocks until the service can be reached.
    async fn knock(self: Arc<Self>) {
        loop {
            let pause = KNOCK_EVERY * (1 << self.false_returns.load(Relaxed).min(FALSE_RETURNS_MAX));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.changed.notified() => {}
            }
            // Somebody may have got through meanwhile.
            let missed = self.last_missed().clone();
            let Some(missed) = missed.filter(|_| !*self.online.borrow()) else { break };
            if missed.opens(KNOCK_MAX).await {
                self.false_returns.fetch_add(1, Relaxed);
                break;
            }
        }
        self.is_knocking.store(false, Relaxed);
        self.returned();
    }

    /// Listens to what the kernel says of the way to the service, once. Must be called on a runtime.
    pub(super) fn listen(&self, service: &Url) {
        if self.is_listening.load(Relaxed) || self.is_listening.swap(true, Relaxed) {
            return;
        }
        let routes = match Routes::open() {
            Ok(routes) => routes,
            Err(e) => {
                tracing::debug!("changes of routes are not heard of: {e}");
                return;
            }
        };
        let (this, place) = (self.this.clone(), self.proxies.place(service));
        tokio::spawn(async move { follow(&routes, &place, &this).await });
    }

    /// Resolves when routes have changed, or the service has come back, and `moved` shows no movement
    /// for a while after that.
    pub(super) async fn is_cut_off(&self, moved: impl Fn() -> u64) {
        let proof_max = (PROOF_MAX, RETURN_PROOF_MAX);
        stands_still(&self.changed, self.returns.subscribe(), proof_max, moved).await;
    }

    /// For as long as an attempt waits: where nothing is heard from anybody, knocks, and counts the service as lost
    /// where nobody opens. Resolves then, unless the attempt `goes_on`.
    pub(super) async fn falls_silent(&self, url: &Url, goes_on: bool) {
        let place = self.proxies.place(url);
        let mut online = self.online();
        let mut silent_since = Instant::now();
        loop {
            silent_since = silent_since.max(self.heard_at());
            if *online.borrow_and_update() {
                tokio::select! {
                    () = tokio::time::sleep_until((silent_since + SILENCE_MAX).into()) => {}
                    _ = online.changed() => {}
                }
            }
            if self.heard_at() > silent_since {
                continue;
            }
            if self.opens(&place).await {
                // The answer is late, but its connection may be alive.
                tokio::time::sleep(KNOCK_EVERY).await;
            } else if self.heard_at() <= silent_since {
                self.count_out(&place, silent_since);
                if !goes_on {
                    return;
                }
                // The sender lives as long as we do.
                online.wait_for(|online| *online).await.ok();
                silent_since = Instant::now();
            }
        }
    }

    /// Whether a call to `url` should begin: not where the service is out of reach and nobody opens there.
    pub(super) async fn lets_in(&self, url: &Url) -> bool {
        self.is_online() || self.opens(&self.proxies.place(url)).await
    }

    /// Knocks, or takes the word of somebody who just did.
    async fn opens(&self, place: &Place) -> bool {
        let mut last = self.doubt.lock().await;
        if let Some((at, when, opened)) = &*last
            && at == place
            && when.elapsed() < if *opened { OPENED_TTL } else { SHUT_TTL }
        {
            return *opened;
        }
        let limit = if self.is_online() { DOUBT_MAX } else { KNOCK_MAX };
        let opened = place.opens(limit).await;
        if opened {
            self.heard();
        }
        *last = Some((place.clone(), Instant::now(), opened));
        opened
    }
}

/// The times are those after a change and after a return.
async fn stands_still(
    changed: &Notify,
    mut returns: watch::Receiver<u64>,
    proof_max: (Duration, Duration),
    moved: impl Fn() -> u64,
) {
    loop {
        let time = tokio::select! {
            biased;
            Ok(()) = returns.changed() => proof_max.1,
            () = changed.notified() => proof_max.0,
        };
        let before = moved();
        tokio::time::sleep(time).await;
        if moved() == before {
            return;
        }
    }
}

/// Tells of changes that concern the way to `place`. Machines with containers change others all the time.
async fn follow(routes: &Routes, place: &Place, reach: &Weak<Reach>) {
    let mut known = None;
    let mut source = place.source(&mut known).await;
    while routes.changed().await.is_ok() {
        tokio::time::sleep(BURST).await;
        let now = place.source(&mut known).await;
        let Some(reach) = reach.upgrade() else { return };
        if now == source {
            continue;
        }
        tracing::debug!(?source, ?now, "the way to the service has changed");
        reach.turns.fetch_add(1, Relaxed);
        if let (Some(old), Some(_)) = (source, now)
            && UdpSocket::bind((old, 0)).await.is_err()
        {
            // What came from an address that is gone gets no answer.
            reach.returns.send_modify(|returns| *returns += 1);
        }
        source = now;
        reach.changed.notify_waiters();
        if source.is_none() {
            reach.count_out(place, Instant::now());
        }
    }
}

/// A moment before an attempt.
#[derive(Debug)]
pub(super) struct Mark(watch::Receiver<u64>, u64);

impl Mark {
    /// Resolves when the service has come back since the mark was made.
    pub(super) async fn come_back(mut self) {
        let before = self.1;
        if self.0.wait_for(|returns| *returns != before).await.is_err() {
            // The drive is going away; whoever pauses is not hurried.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(port: u16) -> Url {
        Url::parse(&format!("http://127.0.0.1:{port}")).unwrap()
    }

    /// A port at which nobody listens now.
    async fn closed() -> Url {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        url(listener.local_addr().unwrap().port())
    }

    #[tokio::test]
    async fn one_miss_is_chance_and_two_are_an_outage_that_ends_with_a_knock() {
        let url = closed().await;
        let reach = Reach::new(true);
        let mut online = reach.online();
        reach.missed(&url);
        assert!(*online.borrow());
        let mark = reach.mark();
        reach.missed(&url);
        assert!(!*online.borrow_and_update());
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", url.port().unwrap())).await.unwrap();
        mark.come_back().await;
        assert!(*online.borrow());
        listener.accept().await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_ends_an_outage_at_once() {
        let url = closed().await;
        let reach = Reach::new(true);
        reach.missed(&url);
        reach.missed(&url);
        let mark = reach.mark();
        reach.answered(&url);
        mark.come_back().await;
        reach.missed(&url);
        assert!(*reach.online().borrow(), "misses are counted anew");
    }

    #[tokio::test]
    async fn who_waits_in_silence_asks_whether_anybody_is_there() {
        let gone = closed().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let busy = url(listener.local_addr().unwrap().port());
        // Nobody answers in either case; in one somebody is there.
        let (late, lost, told) = (Reach::new(true), Reach::new(true), Reach::new(true));
        let mut told_of = told.online();
        tokio::select! {
            () = late.falls_silent(&busy, false) => panic!("what is late is not lost"),
            () = told.falls_silent(&gone, true) => panic!("what goes on was given up"),
            () = async {
                tokio::join!(lost.falls_silent(&gone, false), told_of.wait_for(|online| !online)).1.unwrap();
            } => {}
        }
        assert!(late.is_online() && !lost.is_online() && lost.lost_at().is_some());
        let start = Instant::now();
        lost.falls_silent(&gone, false).await;
        assert!(!lost.lets_in(&gone).await && lost.lets_in(&busy).await);
        assert!(start.elapsed() < SILENCE_MAX, "an outage that is known is found again");
    }

    #[tokio::test]
    async fn signs_of_life_keep_doubts_away_and_a_return_is_a_turn() {
        let (gone, reach) = (closed().await, Reach::new(true));
        let before = reach.turns();
        tokio::select! {
            () = reach.falls_silent(&gone, false) => panic!("it was not silent"),
            () = async {
                for _ in 0..10 {
                    tokio::time::sleep(SILENCE_MAX / 8).await;
                    reach.moved(1);
                }
            } => {}
        }
        assert!(reach.is_online() && reach.turns() == before);
        reach.missed(&gone);
        reach.missed(&gone);
        reach.answered(&gone);
        assert!(reach.is_online() && reach.turns() > before && reach.lost_at().is_none());
    }

    #[tokio::test]
    async fn an_answer_from_elsewhere_does_not_end_an_outage() {
        let (store, api) = (closed().await, url(1));
        let reach = Reach::new(true);
        reach.missed(&store);
        reach.answered(&api);
        reach.missed(&store);
        reach.answered(&api);
        assert!(!*reach.online().borrow());
        reach.answered(&store);
        assert!(*reach.online().borrow());
    }

    #[tokio::test]
    async fn a_return_between_mark_and_wait_is_not_missed() {
        let url = closed().await;
        let reach = Reach::new(true);
        let mark = reach.mark();
        reach.missed(&url);
        reach.missed(&url);
        reach.answered(&url);
        mark.come_back().await;
    }

    #[tokio::test]
    async fn after_a_change_or_a_return_what_stands_still_is_cut_off() {
        let (changed, returns) = (Notify::new(), watch::Sender::new(0));
        let moving = AtomicU64::new(0);
        let short = Duration::from_millis(50);
        let (still, moves) = (|| 7, || moving.fetch_add(1, Relaxed));
        let (still, moves): (&dyn Fn() -> u64, &dyn Fn() -> u64) = (&still, &moves);
        let stand = |moved| stands_still(&changed, returns.subscribe(), (short, short / 2), moved);
        for change in [&(|| changed.notify_waiters()) as &dyn Fn(), &|| returns.send_modify(|n| *n += 1)] {
            let (still, moves) = (stand(still), stand(moves));
            tokio::pin!(still, moves);
            tokio::select! {
                () = &mut still => panic!("cut off without a change"),
                () = &mut moves => panic!("cut off without a change"),
                () = tokio::time::sleep(short * 3) => {}
            }
            change();
            tokio::select! {
                () = &mut moves => panic!("cut off while it moved"),
                () = &mut still => {}
            }
        }
    }
}
