//! The embedded server: a PDS-compatible drive on this machine.
//!
//! It is the far end of every test and of the benchmarks, the default drive of the demonstration,
//! and a place where every fault can be had on purpose. It keeps the bytes of a drive on disk and
//! checks what the real service checks, by its own route: it shares with the client the shapes of
//! the wire and the ids, and nothing else.
//!
//! # Layers
//!
//! `http` knows connections, `api` and `oss` know requests, `catalog` knows what they mean,
//! `blobs` keeps the bytes. `faults` stands between the first two.
//!
//! # Crash consistency
//!
//! What was answered survives a kill at any point: bytes are in place before the records that
//! name them, records are in the catalog before the answer. See `catalog::journal`.

mod api;
mod auth;
mod blobs;
mod catalog;
mod clock;
mod config;
mod control;
mod digest;
mod errors;
mod faults;
mod http;
mod oss;
mod reply;
mod sign;
mod stats;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::auth::ServiceApp;
pub use self::clock::Clock;
pub use self::config::{AccessKey, FirstPartCtx, Logins, Quirks, ServerConfig, Verify};
pub use self::digest::HashName;
pub use self::faults::{FaultAction, FaultPlan, FaultRule, Faults};
pub use self::stats::{OpenUpload, ReceivedPart, Stats};

/// The domain that every answer names.
const DOMAIN_ID: &str = "bj1";

/// How long a stop waits for requests that are being answered.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// How often old uploads are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Everything that requests share.
struct App {
    config: ServerConfig,
    addr: SocketAddr,
    catalog: catalog::Catalog,
    store: blobs::Store,
    signer: sign::Signer,
    faults: Faults,
    clock: Clock,
    counters: stats::Counters,
}

/// A running server. Dropped, it stops at once, as if it were killed.
pub struct Server {
    app: Arc<App>,
    stop: watch::Sender<Stop>,
    tasks: JoinSet<()>,
    journal: Option<JoinHandle<()>>,
}

/// What the connections shall do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    Run,
    /// Answer what was asked, then end.
    Drain,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addr", &self.app.addr).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the data and serves `listener`. Fails where the data cannot be opened, or is in use
    /// by another server.
    pub async fn start(listener: TcpListener, config: ServerConfig) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let clock = Clock::default();
        let now_ms = clock.now_ms();
        let for_open = config.clone();
        let opened = tokio::task::spawn_blocking(move || catalog::open(&for_open, now_ms))
            .await
            .map_err(io::Error::other)??;
        let key = opened.catalog.read(|state| state.meta("key").map(<[u8]>::to_vec)).unwrap_or_default();
        let app = Arc::new(App {
            addr,
            catalog: opened.catalog,
            store: opened.store,
            signer: sign::Signer::new(key),
            faults: Faults::new(config.faults.clone()),
            clock,
            counters: stats::Counters::default(),
            config,
        });
        let stop = watch::Sender::new(Stop::Run);
        let mut tasks = JoinSet::new();
        tasks.spawn(http::accept(Arc::clone(&app), listener, stop.subscribe()));
        let sweeping = Arc::clone(&app);
        let mut stopped = stop.subscribe();
        tasks.spawn(async move {
            let mut interval = tokio::time::interval(SWEEP_INTERVAL);
            loop {
                tokio::select! {
                    _ = interval.tick() => sweeping.sweep_uploads().await,
                    _ = stopped.changed() => return,
                }
            }
        });
        Ok(Self { app, stop, tasks, journal: Some(opened.journal) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.app.addr
    }

    /// The faults, to be changed at any time.
    pub fn faults(&self) -> &Faults {
        &self.app.faults
    }

    /// What was asked, and what is being uploaded.
    pub fn stats(&self) -> Stats {
        self.app.stats()
    }

    /// Waits until a look at the statistics says so.
    pub async fn wait_until(&self, mut seen: impl FnMut(&Stats) -> bool) {
        let mut changes = self.app.counters.subscribe();
        while !seen(&self.app.stats()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends every login: no token that was handed out is taken any more. The owner's own token stays.
    pub async fn revoke_all_tokens(&self) -> io::Result<()> {
        self.app.revoke_all_tokens().await.map_err(|error| io::Error::other(error.message))
    }

    /// Sets the server's clock forward: URLs, tokens and uploads grow older.
    pub async fn advance_clock(&self, by: Duration) {
        self.app.clock.advance(by);
        self.app.sweep_uploads().await;
    }

    /// Answers what was asked, stores everything and ends. Stalled requests are released.
    pub async fn shutdown(mut self) {
        self.app.faults.clear();
        // An error means that all tasks have ended.
        let _ = self.stop.send(Stop::Drain);
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIME_MAX, drained).await.is_err() {
            tracing::warn!("some requests did not end in time");
        }
        self.tasks.shutdown().await;
        self.close().await;
    }

    /// Ends at once: connections are cut wherever they are. What was answered is stored.
    pub async fn kill(mut self) {
        self.tasks.shutdown().await;
        self.close().await;
    }

    async fn close(&mut self) {
        self.app.catalog.close();
        if let Some(journal) = self.journal.take() {
            // The thread ends because its queue has; a panic in it was reported already.
            let _ = tokio::task::spawn_blocking(move || journal.join()).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.app.catalog.close();
        if let Some(journal) = self.journal.take() {
            // It only stores what is queued; then the data can be opened again.
            let _ = journal.join();
        }
    }
}

impl App {
    async fn revoke_all_tokens(&self) -> Result<(), errors::ApiError> {
        self.catalog
            .change(|state| {
                state.drop_all_tokens();
                Ok(())
            })
            .await
    }

    async fn sweep_uploads(&self) {
        let age_ms = i64::try_from(self.config.upload_age_max.as_millis()).unwrap_or(i64::MAX);
        let before_ms = self.clock.now_ms().saturating_sub(age_ms);
        let swept = self
            .catalog
            .change(|state| {
                state.burn_old(before_ms, &self.store);
                Ok(())
            })
            .await;
        if let Err(error) = swept {
            tracing::warn!(message = error.message, "old uploads cannot be dropped");
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = self.counters.snapshot();
        stats.open_uploads = self.catalog.read(|state| state.uploads().map(OpenUpload::from).collect());
        stats.open_uploads.sort_by(|a, b| a.created_at.cmp(&b.created_at));
        stats
    }
}
