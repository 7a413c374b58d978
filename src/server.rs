//! The embedded server: a PDS-compatible drive on this machine, for tests, benchmarks and the demo.
//!
//! It stores files on disk, checks what the service checks, and injects faults on request. It shares only the
//! ids, CRC-64, the wire enums and the look-up of local peers and hosts with the client; hashes and signatures are computed independently, so that
//! the two check each other. `doc/SERVER.md` describes its use, also from other languages.
//!
//! # Use
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use pdsfs::server::{FaultAction, FaultRule, Secret, Server, ServerConfig};
//!
//! # let runtime = tokio::runtime::Runtime::new()?;
//! # runtime.block_on(async {
//! let data = tempfile::tempdir()?;
//! let config = ServerConfig::new(data.path(), Secret::new("my token".to_owned()));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let server = Server::start(listener, config).await?;
//!
//! // The first two parts are answered with 503.
//! let error = FaultAction::status(503, "ServiceUnavailable");
//! server.faults().add(FaultRule::times("put_part", 2, error));
//!
//! let endpoint = format!("http://{}", server.addr());
//! // ... point the client under test at `endpoint`, with "my token" and drive "1" ...
//! # assert!(endpoint.starts_with("http://127.0.0.1:"));
//!
//! assert_eq!(server.stats().count("file/create"), 0);
//! server.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })
//! # }
//! ```
//!
//! # Layers
//!
//! `http` accepts connections and dispatches requests; `api` (JSON calls) and `oss` (object store) parse and
//! answer them; `catalog` holds the metadata and `blobs` the bytes. `faults` decides before each request.
//!
//! # Crash consistency
//!
//! Acknowledged work survives a kill at any point: bytes are on disk before the records that name them, and
//! records are in the catalog before the response. See `catalog::database`.

mod admin;
mod api;
mod app;
mod archive;
mod auth;
mod blobs;
mod body;
mod call;
mod catalog;
mod clock;
mod config;
mod connection;
mod digest;
mod disk;
mod errors;
mod faults;
#[cfg(any(test, fuzzing))]
pub mod fuzz_targets;
mod http;
mod oss;
mod password_gate;
mod reply;
mod service_app;
mod sign;
mod stats;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::config::{AcceptedAccessKey, FirstPartCtx, Logins, Quirks, ServerConfig, Verify};
pub use self::digest::HashName;
pub use self::faults::{FaultAction, FaultInjector, FaultPlan, FaultRule};
pub use self::service_app::ServiceApp;
pub use self::stats::{OpenUpload, ReceivedPart, Stats};
pub use self::tls::ServerTls;
pub use crate::ids::{DriveId, FileId, RevisionId, Secret, Sha1Hash, UploadId};

use self::app::App;
use self::http::RunState;
use self::password_gate::PasswordGate;

/// How long a shutdown waits for running requests.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// Guesses of share passwords that wait for another one.
const SHARE_GUESSES_WAITING_MAX: usize = 16;

/// Interval between two searches for expired uploads.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// A running server. Its drop acts like [`Server::kill`], and blocks until acknowledged changes are stored.
pub struct Server {
    app: Arc<App>,
    stop: watch::Sender<RunState>,
    tasks: JoinSet<()>,
    /// Writes the catalog.
    writer: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addr", &self.app.addr).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens or makes the data folder and serves `listener`.
    ///
    /// # Errors
    /// `ResourceBusy` if another server uses the folder; `InvalidData` if its catalog cannot be read; every
    /// error of the file system.
    pub async fn start(listener: TcpListener, config: ServerConfig) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let clock = clock::Clock::default();
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
            login_guesses: PasswordGate::new(0),
            share_guesses: PasswordGate::new(SHARE_GUESSES_WAITING_MAX),
            faults: FaultInjector::new(config.faults.clone()),
            clock,
            counters: stats::Counters::default(),
            config,
        });
        let stop = watch::Sender::new(RunState::Running);
        let mut tasks = JoinSet::new();
        tasks.spawn(http::accept(Arc::clone(&app), listener, stop.subscribe()));
        let sweeping = Arc::clone(&app);
        let mut stopped = stop.subscribe();
        tasks.spawn(async move {
            let mut interval = tokio::time::interval(SWEEP_INTERVAL);
            loop {
                tokio::select! {
                    _ = interval.tick() => sweeping.discard_expired_uploads().await,
                    _ = stopped.changed() => return,
                }
            }
        });
        Ok(Self { app, stop, tasks, writer: Some(opened.writer) })
    }

    /// The address of the listener.
    pub fn addr(&self) -> SocketAddr {
        self.app.addr
    }

    /// The fault plan. It can be changed at any time.
    pub fn faults(&self) -> &FaultInjector {
        &self.app.faults
    }

    /// Request counts since the start, and the open uploads.
    pub fn stats(&self) -> Stats {
        self.app.stats()
    }

    /// Waits until `condition` holds. It is checked after every request and after every received body. There
    /// is no timeout.
    pub async fn wait_until(&self, mut condition: impl FnMut(&Stats) -> bool) {
        let mut changes = self.app.counters.subscribe();
        while !condition(&self.app.stats()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Revokes every issued access token, refresh token and authorization code. [`ServerConfig::token`] stays
    /// valid.
    pub async fn revoke_all_tokens(&self) -> io::Result<()> {
        self.app.revoke_all_tokens().await.map_err(|error| io::Error::other(error.message))
    }

    /// Sets the server's clock forward. Presigned URLs, tokens and upload sessions expire accordingly.
    pub async fn advance_clock(&self, by: Duration) {
        self.app.clock.advance(by);
        self.app.discard_expired_uploads().await;
    }

    /// Clears the fault plan, completes running requests (for at most 10 s), and stops.
    pub async fn shutdown(mut self) {
        self.app.faults.clear();
        // Fails when all tasks have ended.
        let _ = self.stop.send(RunState::Draining);
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIME_MAX, drained).await.is_err() {
            let limit_s = DRAIN_TIME_MAX.as_secs();
            tracing::warn!(
                limit_s,
                "shutdown: requests did not complete in time; their connections are closed"
            );
        }
        self.tasks.shutdown().await;
        self.close().await;
    }

    /// Stops at once and closes every connection, as a crash of the process does. Acknowledged changes are
    /// stored.
    pub async fn kill(mut self) {
        self.tasks.shutdown().await;
        self.close().await;
    }

    async fn close(&mut self) {
        self.app.catalog.close();
        if let Some(writer) = self.writer.take() {
            // The closed queue ends the thread. A panic in it was already reported.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.app.catalog.close();
        if let Some(writer) = self.writer.take() {
            // Stores the queued changes and releases the lock of the data folder.
            let _ = writer.join();
        }
    }
}
