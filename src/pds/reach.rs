//! Whether the service can be reached, so that nobody waits longer than the network is gone.
//!
//! Every attempt says how it went. When connections cannot be made, one task knocks at the service
//! until somebody opens, and then everybody who pauses between attempts goes on at once. The kernel's
//! word that addresses or routes have changed (`routes.rs`) makes it knock now, and makes attempts
//! whose connection may have died with an address prove that they live.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::sync::{Notify, watch};
use url::Url;

use crate::pds::routes::Routes;

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

/// A host and a port.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Place(String, u16);

impl Place {
    fn of(url: &Url) -> Self {
        // A literal IPv6 address has brackets in a URL and none in a lookup.
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        Self(host, url.port_or_known_default().unwrap_or(443))
    }

    /// The address that this machine would speak from to it; `None` where no route leads there. Sends
    /// nothing. The name is looked up once.
    async fn source(&self, known: &mut Option<SocketAddr>) -> Option<IpAddr> {
        if known.is_none() {
            let found = tokio::time::timeout(KNOCK_MAX, lookup_host((self.0.as_str(), self.1))).await;
            *known = found.ok()?.ok()?.next();
        }
        let to = (*known)?;
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await.ok()?;
        socket.connect(to).await.ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    }

    async fn opens(&self) -> bool {
        let address = (self.0.as_str(), self.1);
        matches!(tokio::time::timeout(KNOCK_MAX, TcpStream::connect(address)).await, Ok(Ok(_)))
    }
}

/// What is known of the way to the service.
#[derive(Debug)]
pub(super) struct Reach {
    this: Weak<Self>,
    /// Where no connection could be made the last time. A leaf lock.
    missed: Mutex<Option<Place>>,
    online: watch::Sender<bool>,
    /// How often the service came back, or may have; whoever pauses goes on when it grows.
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
}

impl Reach {
    /// The way to a service and its stores; it counts as reachable until it is found not to be.
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            missed: Mutex::new(None),
            online: watch::Sender::new(true),
            returns: watch::Sender::new(0),
            misses: AtomicU32::new(0),
            false_returns: AtomicU32::new(0),
            is_knocking: AtomicBool::new(false),
            changed: Notify::new(),
            is_listening: AtomicBool::new(false),
            moved: AtomicU64::new(0),
        })
    }

    /// Whether the service can be reached.
    pub(super) fn online(&self) -> watch::Receiver<bool> {
        self.online.subscribe()
    }

    /// Bytes of bodies that connections have taken.
    pub(super) fn bytes_moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// A connection has taken so many bytes of a body.
    pub(super) fn moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Relaxed);
    }

    fn last_missed(&self) -> MutexGuard<'_, Option<Place>> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has answered, whatever it said. It says nothing of another host that cannot be reached.
    pub(super) fn answered(&self, url: &Url) {
        if self.misses.load(Relaxed) == 0 {
            return;
        }
        let mut missed = self.last_missed();
        if missed.as_ref().is_some_and(|missed| *missed != Place::of(url)) {
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
        let place = Place::of(url);
        *self.last_missed() = Some(place.clone());
        if self.misses.fetch_add(1, Relaxed) + 1 >= MISSES_MAX {
            self.lost(&place);
        }
    }

    /// The service is out of reach.
    fn lost(&self, place: &Place) {
        if self.online.send_if_modified(|online| std::mem::replace(online, false)) {
            tracing::warn!("{} cannot be reached: transfers wait until it can", place.0);
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
            if missed.opens().await {
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
        let (this, place) = (self.this.clone(), Place::of(service));
        tokio::spawn(async move { follow(&routes, &place, &this).await });
    }

    /// Resolves when routes have changed, or the service has come back, and `moved` shows no movement
    /// for a while after that.
    pub(super) async fn is_cut_off(&self, moved: impl Fn() -> u64) {
        let proof_max = (PROOF_MAX, RETURN_PROOF_MAX);
        stands_still(&self.changed, self.returns.subscribe(), proof_max, moved).await;
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
            () = changed.notified() => proof_max.0,
            Ok(()) = returns.changed() => proof_max.1,
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
        source = now;
        reach.changed.notify_waiters();
        if source.is_none() {
            *reach.last_missed() = Some(place.clone());
            reach.misses.store(MISSES_MAX, Relaxed);
            reach.lost(place);
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
        let reach = Reach::new();
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
        let reach = Reach::new();
        reach.missed(&url);
        reach.missed(&url);
        let mark = reach.mark();
        reach.answered(&url);
        mark.come_back().await;
        reach.missed(&url);
        assert!(*reach.online().borrow(), "misses are counted anew");
    }

    #[tokio::test]
    async fn an_answer_from_elsewhere_does_not_end_an_outage() {
        let (store, api) = (closed().await, url(1));
        let reach = Reach::new();
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
        let reach = Reach::new();
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

    #[tokio::test]
    async fn the_own_address_on_the_way_is_found_without_sending() {
        let (place, mut known) = (Place::of(&url(9)), None);
        assert_eq!(place.source(&mut known).await, Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(known, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9))));
        // Nothing is ever routed to this address.
        known = Some(SocketAddr::from((Ipv4Addr::BROADCAST, 9)));
        assert_eq!(place.source(&mut known).await, None);
    }

    #[test]
    fn hosts_are_looked_up_without_brackets() {
        let place = |text: &str| Place::of(&Url::parse(text).unwrap());
        assert_eq!(place("http://[::1]:9"), Place("::1".into(), 9));
        assert_eq!(place("https://x.example/a?b"), Place("x.example".into(), 443));
    }
}
