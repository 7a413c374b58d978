//! `pdsfs serve`: the embedded drive as a program.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::net::TcpListener;
use url::Url;

use super::signals::Signals;
use super::{announce, say};
use crate::config::quantities::{bytes, duration_within};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::server::{FaultPlan, Quirks, Server, ServerConfig, Verify};

mod logins;

/// Largest fault plan or list of quirks that is read, in bytes.
const PLAN_BYTES_MAX: u64 = 1 << 20;

/// Arguments of `pdsfs serve`.
#[derive(Debug, Args)]
#[command(after_help = "Prints one line when it is ready: listening on http://ADDRESS:PORT")]
pub struct ServeArgs {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9430")]
    listen: SocketAddr,
    /// Listen on an address that other machines reach. The token then crosses the network in the
    /// clear unless a TLS proxy stands in front
    #[arg(long)]
    allow_remote: bool,
    /// Where the drive keeps its files; made if it is missing
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The access token that clients must show. Other users of this machine see arguments but not
    /// the environment
    #[arg(long, env = "PDSFS_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: String,
    /// Whether the SHA-1 chain of every upload is computed again from the stored bytes
    #[arg(long, value_enum, default_value_t = VerifyChoice::Full)]
    verify: VerifyChoice,
    /// How clients reach this server, if not by the address that it listens on; upload and download
    /// URLs begin with it
    #[arg(long, value_name = "URL")]
    public_url: Option<Url>,
    /// Space on the drive, in bytes or with KiB, MiB, GiB, TiB [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    quota: Option<u64>,
    /// How long upload and download URLs are good, 1s to 1d [default: that of the service, 15m]
    #[arg(long, value_name = "DURATION", value_parser = duration_within(1, 86_400))]
    url_ttl: Option<Duration>,
    /// A JSON file with faults to inject
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// A JSON file that decides what is not known of the real service
    #[arg(long, value_name = "FILE")]
    quirks: Option<PathBuf>,
    /// Number of drives
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    drives: u32,
    #[command(flatten)]
    logins: logins::LoginOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum VerifyChoice {
    /// Compute and compare
    Full,
    /// Believe the client
    Off,
}

/// Arguments that make sense.
#[derive(Debug)]
pub struct Checked {
    listen: SocketAddr,
    config: ServerConfig,
}

impl ServeArgs {
    /// Reads the named files and checks what depends on each other.
    pub(super) fn check(self) -> Result<Checked> {
        if !self.listen.ip().is_loopback() && !self.allow_remote {
            let detail = format!("{} can be reached by other machines: add --allow-remote", self.listen);
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        if self.token.trim().is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "the token is empty"));
        }
        let mut config = ServerConfig::new(self.data, Secret::new(self.token.trim().to_owned()));
        config.verify = match self.verify {
            VerifyChoice::Full => Verify::Full,
            VerifyChoice::Off => Verify::Off,
        };
        config.public_url = self.public_url;
        config.drives = self.drives;
        self.logins.apply(&mut config, !self.listen.ip().is_loopback())?;
        config.quota_bytes = self.quota;
        if let Some(ttl) = self.url_ttl {
            config.url_ttl_s = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        }
        if let Some(path) = self.faults {
            config.faults = read_json::<FaultPlan>(&path)?;
        }
        if let Some(path) = self.quirks {
            config.quirks = read_json::<Quirks>(&path)?;
        }
        Ok(Checked { listen: self.listen, config })
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Result<T> {
    let wrong = |e: String| Error::new(ErrorKind::Invalid, format!("{}: {e}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
    if size > PLAN_BYTES_MAX {
        return Err(wrong("too large".to_owned()));
    }
    let text = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))
}

/// Serves until a signal comes.
pub async fn run(checked: Checked) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let listener = TcpListener::bind(checked.listen)
        .await
        .map_err(|e| Error::from(e).context(format!("cannot listen on {}", checked.listen)))?;
    let server = Server::start(listener, checked.config).await?;
    announce(format_args!("listening on http://{}", server.addr()))?;
    if !server.addr().ip().is_loopback() {
        say("warning: other machines can reach this server, and it speaks plain http");
    }
    tracing::info!("stopping at {}", signals.next().await);
    server.shutdown().await;
    Ok(ExitCode::SUCCESS)
}
