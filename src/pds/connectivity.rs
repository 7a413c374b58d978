//! Whether the service is online or offline, so that no call waits longer than the outage lasts.
//!
//! Every attempt reports its outcome here. After [`CONNECT_FAILURES_MAX`] failed connections the service
//! counts as offline. One task then probes it until a connection succeeds, and every paused retry continues
//! at once. A change of addresses or routes ([`RouteMonitor`]) triggers a probe. It also ends attempts that
//! make no progress afterwards, because their connection may have died with an address.
//!
//! If packets are dropped silently, neither the kernel nor the connection reports anything for a long time.
//! So an attempt that has waited [`SILENCE_MAX`] for any byte opens a second connection as a probe. Unlike a
//! short timeout, this does not end an attempt whose answer is merely late.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use url::Url;

use crate::messages::Cause;
use crate::pds::route_monitor::RouteMonitor;
use crate::supervised;

pub(super) use target::Destination;
use target::{ProbeTarget, Proxies};

mod target;

/// Failed connections in a row before the service counts as offline.
const CONNECT_FAILURES_MAX: u32 = 2;
/// Pause between two probes. It doubles with each false recovery, up to [`FALSE_RECOVERIES_MAX`] times.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const FALSE_RECOVERIES_MAX: u32 = 4;
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of a probe that alone decides that the service is offline. A round trip takes seconds if an
/// upload has filled the queues of a slow line.
const SOLE_PROBE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the result of a probe is reused.
const PROBE_SUCCESS_TTL: Duration = Duration::from_secs(4);
const PROBE_FAILURE_TTL: Duration = Duration::from_secs(1);
/// Routes change in bursts: how long after the first event the rest is collected.
const CHANGE_BURST: Duration = Duration::from_millis(200);
/// How long a running attempt may be idle after routes have changed.
const IDLE_AFTER_CHANGE_MAX: Duration = Duration::from_secs(5);
/// How long a running attempt may be idle after the service has come back online.
const IDLE_AFTER_RECOVERY_MAX: Duration = Duration::from_secs(2);
/// How long no connection may receive or send a byte before a waiting attempt probes.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// The shared connection state of one service and its object stores.
#[derive(Debug)]
pub(super) struct Connectivity {
    this: Weak<Self>,
    /// Target of the last failed connection. A leaf lock.
    failed_target: Mutex<Option<ProbeTarget>>,
    /// Why the last connection could not be made. A leaf lock.
    cause: Mutex<Option<Cause>>,
    online: watch::Sender<bool>,
    /// A leaf lock.
    offline_since: Mutex<Option<Instant>>,
    /// Counts recoveries and changes of the local address. Paused retries continue when it grows.
    recoveries: watch::Sender<u64>,
    /// Failed connections since the last answer.
    connect_failures: AtomicU32,
    /// Recoveries since the last answer.
    false_recoveries: AtomicU32,
    is_probing: AtomicBool,
    routes_changed: Notify,
    is_monitoring_routes: AtomicBool,
    bytes_uploaded: AtomicU64,
    bytes_downloaded: AtomicU64,
    /// When an answer or a byte last came or went, in milliseconds after `created_at`.
    last_activity_ms: AtomicU64,
    created_at: Instant,
    /// Why the service is gone for good, once it is known to be.
    abandoned: watch::Sender<Option<Arc<str>>>,
    /// Held while a probe runs, so that there is one at a time.
    last_probe: tokio::sync::Mutex<Option<Probe>>,
    /// Grows when idle connections may have died.
    connection_generation: AtomicU64,
    proxies: Proxies,
}

/// The result of a probe.
#[derive(Debug)]
struct Probe {
    target: ProbeTarget,
    at: Instant,
    succeeded: bool,
}

impl Connectivity {
    /// Starts as online. `is_direct` ignores the proxies of the environment.
    pub(super) fn new(is_direct: bool) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            failed_target: Mutex::new(None),
            cause: Mutex::new(None),
            online: watch::Sender::new(true),
            offline_since: Mutex::new(None),
            recoveries: watch::Sender::new(0),
            connect_failures: AtomicU32::new(0),
            false_recoveries: AtomicU32::new(0),
            is_probing: AtomicBool::new(false),
            routes_changed: Notify::new(),
            is_monitoring_routes: AtomicBool::new(false),
            bytes_uploaded: AtomicU64::new(0),
            bytes_downloaded: AtomicU64::new(0),
            last_activity_ms: AtomicU64::new(0),
            created_at: Instant::now(),
            abandoned: watch::Sender::new(None),
            last_probe: tokio::sync::Mutex::new(None),
            connection_generation: AtomicU64::new(0),
            proxies: if is_direct { Proxies::none() } else { Proxies::from_environment() },
        })
    }

    pub(super) fn online(&self) -> watch::Receiver<bool> {
        self.online.subscribe()
    }

    pub(super) fn is_online(&self) -> bool {
        *self.online.borrow()
    }

    /// Fails all calls from now on: the service is gone for good.
    #[cfg(feature = "server")]
    pub(super) fn abandon(&self, why: &str) {
        self.abandoned.send_replace(Some(why.into()));
    }

    /// Resolves with the reason once the service is gone for good.
    pub(super) async fn abandoned(&self) -> Arc<str> {
        let mut abandoned = self.abandoned.subscribe();
        let why = abandoned.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            // Cannot happen: the sender lives as long as `self`.
            None => std::future::pending().await,
        }
    }

    /// `None` while the service is online.
    pub(super) fn offline_since(&self) -> Option<Instant> {
        *self.offline_since.lock()
    }

    /// Bytes of request bodies that connections have accepted, including repeated attempts.
    pub(super) fn bytes_uploaded(&self) -> u64 {
        self.bytes_uploaded.load(Relaxed)
    }

    pub(super) fn note_uploaded(&self, bytes: u64) {
        self.bytes_uploaded.fetch_add(bytes, Relaxed);
        self.note_activity();
    }

    /// Bytes of content that were received, including repeated attempts.
    pub(super) fn bytes_downloaded(&self) -> u64 {
        self.bytes_downloaded.load(Relaxed)
    }

    pub(super) fn note_downloaded(&self, bytes: u64) {
        self.bytes_downloaded.fetch_add(bytes, Relaxed);
        self.note_activity();
    }

    /// Records that the network is alive.
    pub(super) fn note_activity(&self) {
        self.last_activity_ms.store(self.created_at.elapsed().as_millis() as u64, Relaxed);
    }

    fn last_activity(&self) -> Instant {
        self.created_at + Duration::from_millis(self.last_activity_ms.load(Relaxed))
    }

    /// Grows when idle connections may have died. Connections of an older generation must not be reused.
    pub(super) fn connection_generation(&self) -> u64 {
        self.connection_generation.load(Relaxed)
    }

    /// Records an answer, including a refusal. It ends an outage only if it came from the target that failed.
    pub(super) fn note_answer<'a>(&self, to: impl Into<Destination<'a>>) {
        self.note_activity();
        if self.connect_failures.load(Relaxed) == 0 {
            return;
        }
        let mut failed = self.failed_target.lock();
        if failed.as_ref().is_some_and(|failed| *failed != self.proxies.target(to)) {
            return;
        }
        *failed = None;
        drop(failed);
        self.connect_failures.store(0, Relaxed);
        self.false_recoveries.store(0, Relaxed);
        self.go_online();
    }

    /// Records why a connection could not be made.
    pub(super) fn note_cause(&self, cause: Option<&Cause>) {
        *self.cause.lock() = cause.cloned();
    }

    /// Why the service cannot be reached, while it cannot.
    pub(super) fn outage(&self) -> Cause {
        self.cause.lock().clone().unwrap_or(Cause::Unreachable)
    }

    /// Records a connection that could not be made. Must be called on a runtime.
    pub(super) fn note_connect_failure<'a>(&self, to: impl Into<Destination<'a>>) {
        let target = self.proxies.target(to);
        *self.failed_target.lock() = Some(target.clone());
        if self.connect_failures.fetch_add(1, Relaxed) + 1 >= CONNECT_FAILURES_MAX {
            self.go_offline(&target, Instant::now());
        }
    }

    /// Marks the service offline without failed connections: a probe failed, or no route is left.
    fn mark_offline(&self, target: &ProbeTarget, since: Instant) {
        *self.failed_target.lock() = Some(target.clone());
        self.connect_failures.store(CONNECT_FAILURES_MAX, Relaxed);
        self.go_offline(target, since);
    }

    fn go_offline(&self, target: &ProbeTarget, since: Instant) {
        if self.abandoned.borrow().is_some() {
            return;
        }
        if self.online.send_if_modified(|online| std::mem::replace(online, false)) {
            *self.offline_since.lock() = Some(since);
            tracing::debug!("{} cannot be reached: {}", target.host(), self.outage());
        }
        let Some(this) = self.this.upgrade() else { return };
        if !self.is_probing.swap(true, Relaxed) {
            tokio::spawn(supervised::run("connectivity", move || this.clone().probe_until_online()));
        }
    }

    fn go_online(&self) {
        if self.online.send_if_modified(|online| !std::mem::replace(online, true)) {
            *self.offline_since.lock() = None;
            self.connection_generation.fetch_add(1, Relaxed);
            tracing::debug!("the service can be reached again");
            self.recoveries.send_modify(|recoveries| *recoveries += 1);
        }
    }

    /// Probes the failed target until it accepts a connection or another call has got an answer.
    async fn probe_until_online(self: Arc<Self>) {
        loop {
            let pause = PROBE_INTERVAL * (1 << self.false_recoveries.load(Relaxed).min(FALSE_RECOVERIES_MAX));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.routes_changed.notified() => {}
            }
            let failed = self.failed_target.lock().clone();
            let Some(failed) = failed.filter(|_| !*self.online.borrow()) else { break };
            if failed.is_reachable(PROBE_TIMEOUT).await {
                self.false_recoveries.fetch_add(1, Relaxed);
                break;
            }
        }
        self.is_probing.store(false, Relaxed);
        self.go_online();
    }

    /// Takes the state before an attempt, for [`RecoveryWaiter::recovered`].
    pub(super) fn recovery_waiter(&self) -> RecoveryWaiter {
        RecoveryWaiter { recoveries: self.recoveries.subscribe(), before: *self.recoveries.borrow() }
    }

    /// Starts to monitor the routes to the service, once. Must be called on a runtime.
    pub(super) fn monitor_routes(&self, service: &Url) {
        if self.is_monitoring_routes.load(Relaxed) || self.is_monitoring_routes.swap(true, Relaxed) {
            return;
        }
        let routes = match RouteMonitor::open() {
            Ok(routes) => routes,
            Err(e) => {
                tracing::debug!("cannot monitor routes: {e}");
                return;
            }
        };
        let (this, target, routes) = (self.this.clone(), self.proxies.target(service), Arc::new(routes));
        tokio::spawn(supervised::run("routes", move || {
            let (this, target, routes) = (this.clone(), target.clone(), routes.clone());
            async move { follow_routes(&routes, &target, &this).await }
        }));
    }

    /// Resolves when routes have changed or the service has come back, and `progress` did not change for a
    /// while after that.
    pub(super) async fn detect_stall_after_change(&self, progress: impl Fn() -> u64) {
        let idle_max = IdleLimits { change: IDLE_AFTER_CHANGE_MAX, recovery: IDLE_AFTER_RECOVERY_MAX };
        idle_after_event(&self.routes_changed, self.recoveries.subscribe(), idle_max, progress).await;
    }

    /// Runs beside an attempt. After [`SILENCE_MAX`] without activity it probes, and marks the service
    /// offline if the probe fails. Then it resolves, unless the attempt `keeps_waiting`.
    pub(super) async fn detect_silence<'a>(&self, to: impl Into<Destination<'a>>, keeps_waiting: bool) {
        let target = self.proxies.target(to);
        let mut online = self.online();
        let mut silent_since = Instant::now();
        loop {
            silent_since = silent_since.max(self.last_activity());
            if *online.borrow_and_update() {
                tokio::select! {
                    () = tokio::time::sleep_until((silent_since + SILENCE_MAX).into()) => {}
                    _ = online.changed() => {}
                }
            }
            if self.last_activity() > silent_since {
                continue;
            }
            if self.probe(&target).await {
                // The answer is late, but its connection may be alive.
                tokio::time::sleep(PROBE_INTERVAL).await;
            } else if self.last_activity() <= silent_since {
                self.note_cause(Some(&Cause::NoAnswer { host: target.host().to_owned() }));
                self.mark_offline(&target, silent_since);
                if !keeps_waiting {
                    return;
                }
                // The sender lives as long as `self`.
                online.wait_for(|online| *online).await.ok();
                silent_since = Instant::now();
            }
        }
    }

    /// The host that connections for `url` go to, and its addresses.
    pub(super) async fn lookup(&self, url: &Url) -> (String, io::Result<Vec<IpAddr>>) {
        let target = self.proxies.target(url);
        (target.host().to_owned(), target.addresses().await)
    }

    /// Whether a call to `url` may start: `false` while the service is offline and a probe fails.
    pub(super) async fn admit(&self, url: &Url) -> bool {
        self.is_online() || self.probe(&self.proxies.target(url)).await
    }

    /// Probes a target, or returns the result of a recent probe.
    async fn probe(&self, target: &ProbeTarget) -> bool {
        let mut last = self.last_probe.lock().await;
        if let Some(probe) = last.as_ref().filter(|probe| probe.is_fresh(target)) {
            return probe.succeeded;
        }
        let limit = if self.is_online() { SOLE_PROBE_TIMEOUT } else { PROBE_TIMEOUT };
        let succeeded = target.is_reachable(limit).await;
        if succeeded {
            self.note_activity();
        }
        *last = Some(Probe { target: target.clone(), at: Instant::now(), succeeded });
        succeeded
    }
}

impl Probe {
    fn is_fresh(&self, target: &ProbeTarget) -> bool {
        let ttl = if self.succeeded { PROBE_SUCCESS_TTL } else { PROBE_FAILURE_TTL };
        self.target == *target && self.at.elapsed() < ttl
    }
}

/// How long an attempt may be idle after each event.
#[derive(Clone, Copy)]
struct IdleLimits {
    change: Duration,
    recovery: Duration,
}

async fn idle_after_event(
    routes_changed: &Notify,
    mut recoveries: watch::Receiver<u64>,
    idle_max: IdleLimits,
    progress: impl Fn() -> u64,
) {
    loop {
        let limit = tokio::select! {
            biased;
            Ok(()) = recoveries.changed() => idle_max.recovery,
            () = routes_changed.notified() => idle_max.change,
        };
        let before = progress();
        tokio::time::sleep(limit).await;
        if progress() == before {
            return;
        }
    }
}

/// Reports route changes that alter the local address used for `target`. Other changes are ignored: machines
/// with containers change routes all the time.
async fn follow_routes(routes: &RouteMonitor, target: &ProbeTarget, connectivity: &Weak<Connectivity>) {
    let mut resolved = None;
    let mut source = target.local_address(&mut resolved).await;
    while routes.changed().await.is_ok() {
        tokio::time::sleep(CHANGE_BURST).await;
        let now = target.local_address(&mut resolved).await;
        let Some(connectivity) = connectivity.upgrade() else { return };
        if now == source {
            continue;
        }
        tracing::debug!(?source, ?now, "the route to the service has changed");
        connectivity.connection_generation.fetch_add(1, Relaxed);
        if let (Some(old), Some(_)) = (source, now)
            && UdpSocket::bind((old, 0)).await.is_err()
        {
            // Requests sent from an address that is gone get no answer.
            connectivity.recoveries.send_modify(|recoveries| *recoveries += 1);
        }
        source = now;
        connectivity.routes_changed.notify_waiters();
        if source.is_none() {
            connectivity.note_cause(Some(&Cause::NoRoute { host: target.host().to_owned() }));
            connectivity.mark_offline(target, Instant::now());
        }
    }
}

/// Waits for a recovery after the moment of its creation.
#[derive(Debug)]
pub(super) struct RecoveryWaiter {
    recoveries: watch::Receiver<u64>,
    before: u64,
}

impl RecoveryWaiter {
    /// Resolves when the service has come back since this was created, at once if it already has.
    pub(super) async fn recovered(mut self) {
        let before = self.before;
        if self.recoveries.wait_for(|recoveries| *recoveries != before).await.is_err() {
            // The connectivity is dropped, so no recovery will come.
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

    /// A URL whose port refuses connections.
    async fn closed() -> Url {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        url(listener.local_addr().unwrap().port())
    }

    #[tokio::test]
    async fn two_connect_failures_are_an_outage() {
        let url = closed().await;
        let connectivity = Connectivity::new(true);
        let mut online = connectivity.online();
        connectivity.note_connect_failure(&url);
        assert!(*online.borrow());
        let waiter = connectivity.recovery_waiter();
        connectivity.note_connect_failure(&url);
        assert!(!*online.borrow_and_update());
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", url.port().unwrap())).await.unwrap();
        waiter.recovered().await;
        assert!(*online.borrow(), "a probe ends the outage");
        listener.accept().await.unwrap();
    }

    #[tokio::test]
    async fn answer_ends_an_outage_at_once() {
        let url = closed().await;
        let connectivity = Connectivity::new(true);
        connectivity.note_connect_failure(&url);
        connectivity.note_connect_failure(&url);
        let waiter = connectivity.recovery_waiter();
        connectivity.note_answer(&url);
        waiter.recovered().await;
        connectivity.note_connect_failure(&url);
        assert!(*connectivity.online().borrow(), "failures are counted from zero again");
    }

    #[tokio::test]
    async fn silence_is_probed() {
        let gone = closed().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Accepts connections and never answers.
        let busy = url(listener.local_addr().unwrap().port());
        let [late, lost, waiting] = std::array::from_fn(|_| Connectivity::new(true));
        let mut online = waiting.online();
        tokio::select! {
            () = late.detect_silence(&busy, false) => panic!("a late answer counts as lost"),
            () = waiting.detect_silence(&gone, true) => panic!("an attempt that keeps waiting was ended"),
            () = async {
                tokio::join!(lost.detect_silence(&gone, false), online.wait_for(|online| !online)).1.unwrap();
            } => {}
        }
        assert!(late.is_online() && !lost.is_online() && lost.offline_since().is_some());
        let start = Instant::now();
        lost.detect_silence(&gone, false).await;
        assert!(!lost.admit(&gone).await && lost.admit(&busy).await);
        assert!(start.elapsed() < SILENCE_MAX, "a known outage is detected again from the start");
    }

    #[tokio::test]
    async fn activity_prevents_probes() {
        let (gone, connectivity) = (closed().await, Connectivity::new(true));
        let before = connectivity.connection_generation();
        tokio::select! {
            () = connectivity.detect_silence(&gone, false) => panic!("it was not silent"),
            () = async {
                for _ in 0..10 {
                    tokio::time::sleep(SILENCE_MAX / 8).await;
                    connectivity.note_uploaded(1);
                }
            } => {}
        }
        assert!(connectivity.is_online() && connectivity.connection_generation() == before);
    }

    #[tokio::test]
    async fn recovery_starts_a_new_connection_generation() {
        let (gone, connectivity) = (closed().await, Connectivity::new(true));
        let before = connectivity.connection_generation();
        connectivity.note_connect_failure(&gone);
        connectivity.note_connect_failure(&gone);
        connectivity.note_answer(&gone);
        assert!(connectivity.is_online() && connectivity.offline_since().is_none());
        assert!(connectivity.connection_generation() > before);
    }

    #[tokio::test]
    async fn answer_of_another_host_does_not_end_an_outage() {
        let (store, api) = (closed().await, url(1));
        let connectivity = Connectivity::new(true);
        connectivity.note_connect_failure(&store);
        connectivity.note_answer(&api);
        connectivity.note_connect_failure(&store);
        connectivity.note_answer(&api);
        assert!(!*connectivity.online().borrow());
        connectivity.note_answer(&store);
        assert!(*connectivity.online().borrow());
    }

    #[tokio::test]
    async fn recovery_before_the_wait_is_not_missed() {
        let url = closed().await;
        let connectivity = Connectivity::new(true);
        let waiter = connectivity.recovery_waiter();
        connectivity.note_connect_failure(&url);
        connectivity.note_connect_failure(&url);
        connectivity.note_answer(&url);
        waiter.recovered().await;
    }

    #[tokio::test]
    async fn idle_attempt_ends_after_a_change_or_recovery() {
        let (changed, recoveries) = (Notify::new(), watch::Sender::new(0));
        let counter = AtomicU64::new(0);
        let short = Duration::from_millis(50);
        let limits = IdleLimits { change: short, recovery: short / 2 };
        let (idle, moving) = (|| 7, || counter.fetch_add(1, Relaxed));
        let (idle, moving): (&dyn Fn() -> u64, &dyn Fn() -> u64) = (&idle, &moving);
        let detect = |progress| idle_after_event(&changed, recoveries.subscribe(), limits, progress);
        for event in [&(|| changed.notify_waiters()) as &dyn Fn(), &|| recoveries.send_modify(|n| *n += 1)] {
            let (idle, moving) = (detect(idle), detect(moving));
            tokio::pin!(idle, moving);
            tokio::select! {
                () = &mut idle => panic!("ended without an event"),
                () = &mut moving => panic!("ended without an event"),
                () = tokio::time::sleep(short * 3) => {}
            }
            event();
            tokio::select! {
                () = &mut moving => panic!("ended although it moved"),
                () = &mut idle => {}
            }
        }
    }
}
