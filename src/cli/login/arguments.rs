//! The arguments of `pdsfs login`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use url::Url;

use crate::auth::{AccountHandle, AccountName, AccountStore, DEFAULT_NAME, endpoint};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::DriveId;
use crate::pds::transport::{ExtraRoots, TrustedPeers};
use crate::units::duration_within;

/// Port of the redirect URI. Fixed, because the redirect URI is registered with the app.
const PORT: u16 = 9431;

#[derive(Debug, Args)]
#[command(after_help = "Without --token, --refresh-token, --jwt-key or --access-key, a browser is used: \
    register http://127.0.0.1:9431/callback as redirect URI of the app (a native app with its client id).\n\n\
    Tokens and keys are read from the terminal without echo, or from stdin.\n\n\
    A mount whose login has ended resumes after a new login to the same account.")]
#[allow(clippy::struct_excessive_bools, reason = "independent switches, not a state")]
#[allow(rustdoc::bare_urls, reason = "doc comments of arguments are help texts, shown as they are")]
pub(in crate::cli) struct LoginArgs {
    /// Name of the account
    #[arg(default_value = DEFAULT_NAME)]
    pub(super) name: String,
    /// Base URL of the domain's API, such as https://bj1.api.aliyunpds.com; http only to this machine
    /// [default: the endpoint of the account, for a new login]
    #[arg(long, env = "PDSFS_ENDPOINT", value_name = "URL", value_parser = endpoint::parse)]
    pub(super) endpoint: Option<Url>,
    /// Base URL of the login page and the token calls [default: the endpoint]
    #[arg(long, value_name = "URL", value_parser = endpoint::parse)]
    pub(super) auth_endpoint: Option<Url>,
    #[command(flatten)]
    pub(super) ca_file: CaFile,
    /// Client id (app id) of the app
    #[arg(long, env = "PDSFS_CLIENT_ID", value_name = "ID")]
    pub(super) client_id: Option<String>,
    /// File with the client secret, for apps that have one; readable by its owner only
    #[arg(long, value_name = "FILE")]
    pub(super) client_secret_file: Option<PathBuf>,
    /// For a machine without a browser: open the printed URL elsewhere and paste the final URL of the
    /// browser
    #[arg(long, group = "method")]
    pub(super) paste: bool,
    /// Print the URL of the login page without starting a browser
    #[arg(long)]
    pub(super) no_browser: bool,
    /// Port on 127.0.0.1 that the browser is redirected to; it must be in the registered redirect URI
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    pub(super) port: u16,
    /// Kind of login on the page, as the service names it (default, ding, ram, wechat and others)
    #[arg(long, value_name = "TYPE", default_value = "default")]
    pub(super) login_type: String,
    /// How long to wait for the browser, 10s to 1h
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration_within(10, 3600))]
    pub(super) wait: Duration,
    /// Log in as a service app with this RSA private key (PEM), readable by its owner only
    #[arg(long, value_name = "FILE", group = "method", requires = "client_id")]
    pub(super) jwt_key: Option<PathBuf>,
    /// Domain of the service app [default: from the endpoint]
    #[arg(long, value_name = "ID")]
    pub(super) domain_id: Option<String>,
    /// User that the service app or access key acts for [default: the domain]
    #[arg(long, value_name = "ID")]
    pub(super) user_id: Option<String>,
    /// Sign calls with the access key of this id; its secret comes from PDSFS_ACCESS_KEY_SECRET or a
    /// prompt
    #[arg(long, value_name = "KEY_ID", group = "method")]
    pub(super) access_key: Option<String>,
    /// With --access-key: the key is temporary (STS); prompt for its token too
    #[arg(long, requires = "access_key")]
    pub(super) security_token: bool,
    /// Use an access token; it cannot be refreshed when it expires
    #[arg(long, group = "method")]
    pub(super) token: bool,
    /// Use a refresh token of the app, refreshed by this call
    #[arg(long, value_name = "CALL", group = "method", value_enum, num_args = 0..=1,
        default_missing_value = "oauth", require_equals = true, requires = "client_id")]
    pub(super) refresh_token: Option<RefreshCall>,
    /// Drive to mount by default [default: the user's default drive]
    #[arg(long, value_name = "ID")]
    pub(super) drive_id: Option<DriveId>,
    /// Store of the secrets [default: as before for this account, else the keyring of the desktop session,
    /// else a file]
    #[arg(long, value_enum)]
    pub(super) store: Option<StoreChoice>,
    /// Replace the account also if the browser login is that of another user
    #[arg(long)]
    pub(super) replace: bool,
    /// Remove the account from this machine instead
    #[arg(long, conflicts_with = "method")]
    pub(super) forget: bool,
}

/// The setting `ca_file` of commands that read no configuration.
#[derive(Debug, Args)]
pub(in crate::cli) struct CaFile {
    /// PEM file with root certificates that are accepted in addition to those of the system
    #[arg(long, env = "PDSFS_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl CaFile {
    /// Absolute.
    pub(in crate::cli) fn path(&self) -> Result<Option<PathBuf>> {
        Ok(self.ca_file.as_deref().map(std::path::absolute).transpose()?)
    }

    pub(in crate::cli) fn read(&self) -> Result<TrustedPeers> {
        let roots = ExtraRoots::read(self.ca_file.as_deref())?;
        Ok(TrustedPeers { roots, ..TrustedPeers::default() })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum RefreshCall {
    /// oauth/token
    Oauth,
    /// account/token, for apps with their own login
    Account,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum StoreChoice {
    /// A file that only its owner can read
    File,
    /// The keyring of the desktop session
    Keyring,
}

/// Checked arguments.
#[derive(Debug)]
pub(in crate::cli) struct LoginRequest {
    pub(super) args: LoginArgs,
    pub(super) name: AccountName,
    pub(super) store: AccountStore,
}

impl LoginRequest {
    pub(in crate::cli) fn account(&self) -> AccountHandle {
        self.store.account(self.name.clone())
    }

    pub(in crate::cli) fn drive_id(&self) -> Option<&DriveId> {
        self.args.drive_id.as_ref()
    }

    pub(in crate::cli) fn ca_file(&self) -> &CaFile {
        &self.args.ca_file
    }

    pub(in crate::cli) fn with_default_ca_file(self, ca_file: Option<PathBuf>) -> Self {
        let ca_file = CaFile { ca_file: self.args.ca_file.ca_file.or(ca_file) };
        Self { args: LoginArgs { ca_file, ..self.args }, ..self }
    }

    /// Whether the arguments ask for a new login also if there is one.
    pub(in crate::cli) fn asks_for_login(&self) -> bool {
        let LoginArgs { token, paste, refresh_token, jwt_key, access_key, .. } = &self.args;
        *token || *paste || refresh_token.is_some() || jwt_key.is_some() || access_key.is_some()
    }

    /// The drive of a stored account, if the arguments name one.
    pub(in crate::cli) fn endpoint(&self) -> Option<&Url> {
        self.args.endpoint.as_ref()
    }
}

impl LoginArgs {
    /// Checks the arguments before any prompt or call.
    pub(in crate::cli) fn check(self) -> Result<LoginRequest> {
        let name = AccountName::new(&self.name)?;
        if self.client_secret_file.is_some() && self.client_id.is_none() {
            return Err(invalid("--client-secret-file needs --client-id"));
        }
        Ok(LoginRequest { name, store: AccountStore::from_env()?, args: self })
    }
}

pub(super) fn invalid(detail: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::Invalid, detail)
}
