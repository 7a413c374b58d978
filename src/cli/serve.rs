//! `pdsfs serve`: the embedded drive as a process, for tests in any language and for trying pdsfs out.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::net::TcpListener;
use url::Url;

use super::output::{print_line, print_message};
use crate::auth::read_private;
use crate::config::secret_variables::TOKEN_VARIABLE;
use crate::daemon::signals::Signals;
use crate::error::{Error, ErrorKind, Result};
use crate::server::{FaultPlan, Quirks, Server, ServerConfig, ServerTls, Verify};
use crate::units::{duration_within, exact_size, parse_size};

mod logins;
mod text;

/// Largest size of the files of `--faults`, `--quirks` and `--tls-cert`.
const INPUT_BYTES_MAX: u64 = 1 << 20;
/// Permissions of others, which a private key must not have.
const OTHERS_MODE: u32 = 0o077;

/// Arguments of `pdsfs serve`.
#[derive(Debug, Args)]
#[command(after_help = "Prints one line when it is ready: listening on http://ADDRESS:PORT (or https)")]
pub struct ServeArgs {
    /// Address and port to listen on; port 0 selects a free port
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9430")]
    listen: SocketAddr,
    /// Allow an address that other machines can reach. Without --tls-cert the server speaks plain HTTP, so the
    /// token crosses the network unencrypted
    #[arg(long)]
    allow_remote: bool,
    /// Serve https with this certificate: a PEM file with the certificate of the server first, then those of
    /// its issuers
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of that certificate, a PEM file that only its owner can read
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Directory for the files of the drive; made if it is missing
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// File with the access token that clients must send, readable by its owner only [default: the token in
    /// PDSFS_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Whether uploaded bytes are hashed and compared with the hashes that clients declare
    #[arg(long, value_enum, default_value_t = VerifyChoice::Full)]
    verify: VerifyChoice,
    /// Start of all upload and download URLs [default: the scheme of the server and the Host header of
    /// the request]
    #[arg(long, value_name = "URL")]
    public_url: Option<Url>,
    /// Capacity of each drive, in bytes or with KiB, MiB, GiB, TiB [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    quota: Option<u64>,
    /// Lifetime of upload and download URLs, 1s to 1d [default: 15m, as the service]
    #[arg(long, value_name = "DURATION", value_parser = duration_within(1, 86_400))]
    url_ttl: Option<Duration>,
    /// JSON file with the faults to inject
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// JSON file with switches for behaviours in which deployments of the service differ, or `enterprise`: a team
    /// drive that restricts much
    #[arg(long, value_name = "FILE|enterprise")]
    quirks: Option<PathBuf>,
    /// Number of drives; their ids are 1, 2, ...
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    drives: u32,
    #[command(flatten)]
    logins: logins::LoginOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum VerifyChoice {
    /// Hash every part and compare
    Full,
    /// Trust the client; for benchmarks only
    Off,
}

/// Validated arguments.
#[derive(Debug)]
pub struct ServeOptions {
    listen: SocketAddr,
    config: ServerConfig,
}

impl ServeArgs {
    /// Reads the JSON and key files and checks the combination of the arguments.
    pub(super) fn check(self) -> Result<ServeOptions> {
        if !self.listen.ip().is_loopback() && !self.allow_remote {
            let detail =
                format!("cannot listen on {}: other machines can reach it (add --allow-remote)", self.listen);
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        let token = logins::secret(self.token_file.as_deref(), "--token-file", TOKEN_VARIABLE)?;
        let token = token.ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "no token: set PDSFS_TOKEN, or give --token-file")
        })?;
        let mut config = ServerConfig::new(self.data, token);
        config.verify = match self.verify {
            VerifyChoice::Full => Verify::Full,
            VerifyChoice::Off => Verify::Off,
        };
        if let (Some(chain), Some(key)) = (&self.tls_cert, &self.tls_key) {
            config.tls = Some(tls(chain, key)?);
        }
        config.public_url = self.public_url;
        config.drives = self.drives;
        // A proxy in front of the server makes it public.
        let is_remote = !self.listen.ip().is_loopback() || config.public_url.is_some();
        self.logins.apply(&mut config, is_remote)?;
        config.quota_bytes = self.quota;
        if let Some(ttl) = self.url_ttl {
            config.url_ttl_s = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        }
        if let Some(path) = self.faults {
            config.faults = read_json::<FaultPlan>(&path)?;
        }
        if let Some(path) = self.quirks {
            config.quirks = match path.to_str() {
                Some("enterprise") => Quirks::enterprise(),
                _ => read_json::<Quirks>(&path)?,
            };
        }
        Ok(ServeOptions { listen: self.listen, config })
    }
}

fn tls(chain: &Path, key: &Path) -> Result<ServerTls> {
    let key_text = read_private(key, OTHERS_MODE)?;
    ServerTls::from_pem(&read(chain)?, &key_text).map_err(|e| {
        let what = format!("cannot serve https with {} and {}", chain.display(), key.display());
        Error::with_source(ErrorKind::Invalid, what, e)
    })
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?).map_err(|e| invalid(path, e.to_string()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path).map_err(|e| invalid(path, e.to_string()))?.len();
    if size > INPUT_BYTES_MAX {
        return Err(invalid(path, format!("larger than {}", exact_size(INPUT_BYTES_MAX))));
    }
    std::fs::read(path).map_err(|e| invalid(path, e.to_string()))
}

fn invalid(path: &Path, why: String) -> Error {
    Error::with_source(ErrorKind::Invalid, format!("{}", path.display()), why)
}

/// Serves until a signal.
pub async fn run(options: ServeOptions) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|e| Error::from(e).context(format!("cannot listen on {}", options.listen)))?;
    let is_https = options.config.tls.is_some();
    let client_id = options.config.logins.client_ids.first().cloned();
    let server = Server::start(listener, options.config).await?;
    let scheme = if is_https { "https" } else { "http" };
    print_line(format_args!("listening on {scheme}://{}", server.addr()))?;
    print_message(text::next_steps(&format!("{scheme}://{}", server.addr()), client_id.as_deref()));
    if !server.addr().ip().is_loopback() && !is_https {
        print_message("warning: other machines can reach this server, and it speaks plain HTTP");
    }
    tracing::info!("{}: stopping", signals.next().await);
    server.shutdown().await;
    Ok(ExitCode::SUCCESS)
}
