//! `pdsfs login`: makes an account that mounts use, or gives an old one a new login.
//!
//! Nothing is stored before the service has taken it; and what the service gave in return for something that is good
//! once is stored at once, whatever comes after. Secrets never come from arguments, which other users of the machine
//! can see.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use url::Url;

use self::methods::Login;
use super::say;
use crate::account::{self, Account, AccountName, DEFAULT_NAME, Grant, Handle, Keep, Store};
use crate::config::quantities::duration_within;
use crate::control::client;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::DriveId;
use crate::pds::domain::{self, Whose};
use crate::pds::endpoint;
use crate::pds::session::Session;
use crate::pds::transport::Timeouts;

mod loopback;
mod methods;
mod secret;

/// Port of the redirect URI. It has to be one that the app is registered with, so it does not change.
const PORT: u16 = 9431;
/// What is wrong where the service does not take what it was shown.
const NO_LOGIN: &str = "the login does not work";
/// One attempt of a call that somebody at a terminal waits for.
pub(super) const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(10),
    call: Duration::from_secs(30),
    stall: Duration::from_secs(30),
};

/// Arguments of `pdsfs login`.
#[derive(Debug, Args)]
#[command(after_help = "Without --token, --refresh-token, --jwt-key or --access-key a browser asks for \
    consent; register http://127.0.0.1:9431/callback as redirect URI of the app (a native app with its client id).\n\
    Tokens and keys are read from the terminal without echo, or from stdin where that is no terminal.\n\
    A mount whose login has ended goes on when the same account is logged in again.")]
#[allow(clippy::struct_excessive_bools, reason = "independent switches, not a state")]
pub struct LoginArgs {
    /// Name of the account
    #[arg(default_value = DEFAULT_NAME)]
    name: String,
    /// Base URL of the domain's API, such as https://bj1.api.aliyunpds.com; http only to this machine
    /// [default: that of the account, when it is logged in again]
    #[arg(long, env = "PDSFS_ENDPOINT", value_name = "URL", value_parser = endpoint::parse)]
    endpoint: Option<Url>,
    /// Base URL of the login page and the token calls, where it is another one
    #[arg(long, value_name = "URL", value_parser = endpoint::parse)]
    auth_endpoint: Option<Url>,
    /// Client id (app id) of the app
    #[arg(long, env = "PDSFS_CLIENT_ID", value_name = "ID")]
    client_id: Option<String>,
    /// A file with the client secret, for apps that have one; readable by its owner only
    #[arg(long, value_name = "FILE")]
    client_secret_file: Option<std::path::PathBuf>,
    /// For a machine without a browser: open the printed page elsewhere and paste the address that the
    /// browser ends at
    #[arg(long, group = "method")]
    paste: bool,
    /// Do not start a browser; only print the address of the page
    #[arg(long)]
    no_browser: bool,
    /// Port on 127.0.0.1 that the browser comes back to; the app must be registered with it
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    port: u16,
    /// Which login the page shows, as the service names it (default, ding, ram, wechat and others)
    #[arg(long, value_name = "TYPE", default_value = "default")]
    login_type: String,
    /// How long the browser is waited for, 10s to 1h
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration_within(10, 3600))]
    wait: Duration,
    /// Log in as a service app with this RSA private key (PEM), readable by its owner only
    #[arg(long, value_name = "FILE", group = "method", requires = "client_id")]
    jwt_key: Option<std::path::PathBuf>,
    /// The domain that a service app belongs to [default: from the endpoint]
    #[arg(long, value_name = "ID")]
    domain_id: Option<String>,
    /// The user that a service app or an access key acts for [default: the domain]
    #[arg(long, value_name = "ID")]
    user_id: Option<String>,
    /// Sign every call with the access key of this id; its secret is asked for, or in
    /// PDSFS_ACCESS_KEY_SECRET
    #[arg(long, value_name = "KEY_ID", group = "method")]
    access_key: Option<String>,
    /// With --access-key: the key is a temporary one (STS), and its token is asked for as well
    #[arg(long, requires = "access_key")]
    security_token: bool,
    /// Take an access token as it is; it cannot be renewed when it ends
    #[arg(long, group = "method")]
    token: bool,
    /// Take a refresh token of the app, and which call renews it
    #[arg(long, value_name = "CALL", group = "method", value_enum, num_args = 0..=1,
        default_missing_value = "oauth", require_equals = true, requires = "client_id")]
    refresh_token: Option<RefreshCall>,
    /// The drive that is mounted unless another is named [default: the user's default drive]
    #[arg(long, value_name = "ID")]
    drive_id: Option<DriveId>,
    /// Where the secrets are kept [default: where those of the account were, else the keyring of the desktop
    /// session, else the file]
    #[arg(long, value_enum)]
    store: Option<StoreChoice>,
    /// Forget the account instead
    #[arg(long, conflicts_with = "method")]
    forget: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum RefreshCall {
    /// oauth/token
    Oauth,
    /// account/token, for apps with a login of their own
    Account,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum StoreChoice {
    /// A file that only its owner can read
    File,
    /// The keyring of the desktop session
    Keyring,
}

/// Arguments that make sense.
#[derive(Debug)]
pub struct Checked {
    args: LoginArgs,
    name: AccountName,
    store: Store,
}

impl LoginArgs {
    /// Checks what can be checked before anybody is asked.
    pub(super) fn check(self) -> Result<Checked> {
        let name = AccountName::new(&self.name)?;
        if self.client_secret_file.is_some() && self.client_id.is_none() {
            return Err(invalid("a client secret belongs to a --client-id"));
        }
        Ok(Checked { name, store: Store::from_env()?, args: self })
    }
}

fn invalid(detail: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::Invalid, detail)
}

/// Logs in and stores the account.
pub async fn run(checked: Checked) -> Result<ExitCode> {
    let Checked { args, name, store } = checked;
    let handle = store.account(name.clone());
    if args.forget {
        return forget(&handle).await;
    }
    // What was stored saves typing; what cannot be read is replaced.
    let before = handle.outline().ok();
    let keep = where_to_keep(args.store, before.as_ref().map(|before| before.keep)).await?;
    let login = Login::new(&args, before.as_ref(), &handle).await?;
    let obtained = methods::obtain(&args, &login).await?;
    let session = Session::new(&login.endpoint, obtained.credential(), TIMEOUTS)?;
    let before = before.filter(|before| before.endpoint == login.endpoint);
    let choice = Choice {
        named: args.drive_id.clone(),
        remembered: before.and_then(|before| before.drive_id),
        default: obtained.default_drive_id,
    };
    let mut account = Account {
        endpoint: login.endpoint,
        auth_endpoint: login.auth_endpoint,
        drive_id: choice.likely().cloned(),
        user: obtained.user,
        grant: obtained.grant,
        access: obtained.access,
        keep,
    };
    // What was shown for it is spent: this is the only way to the next token.
    let is_only_copy = matches!(account.grant, Grant::Refresh { .. });
    if is_only_copy {
        handle.lock().await?.save(&account).await?;
    }
    drop(obtained.not_yet_stored);
    let chosen = choice.make(&session, whose(&account.grant)).await;
    account.drive_id =
        Some(chosen.map_err(|e| if is_only_copy { stored_all_the_same(&e, &name) } else { e })?);
    let locked = handle.lock().await?;
    if is_only_copy && let Ok(now) = locked.load().await {
        // A mount that uses the account may have renewed it already.
        (account.grant, account.access) = (now.grant, now.access);
    }
    let kept = locked.save(&account).await?;
    drop(locked);
    tell(&handle, &account, kept);
    // A mount whose login has ended looks by itself; one that still works takes the new one at once.
    for (daemon, status) in client::mounts().await.mounts {
        if let Err(error) = daemon.reload_credentials().await {
            tracing::debug!(%error, "the mount at {} has not taken the login", status.mountpoint);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn forget(handle: &Handle) -> Result<ExitCode> {
    // Of a damaged account only the name counts.
    if let Some(missing) = handle.outline().err().filter(|e| e.kind() == ErrorKind::NotFound) {
        return Err(missing);
    }
    handle.lock().await?.remove().await?;
    say(format_args!("account {} is forgotten on this machine", handle.name()));
    Ok(ExitCode::SUCCESS)
}

fn stored_all_the_same(error: &Error, name: &AccountName) -> Error {
    let advice = format!(
        "the login itself is stored: pdsfs drives {name} lists what it can mount, and \
         pdsfs mount --account {name} --drive-id ID mounts it"
    );
    Error::new(error.kind(), format!("{error}; {advice}"))
}

fn tell(handle: &Handle, account: &Account, kept: Keep) {
    let name = handle.name();
    let user = if account.user.is_empty() { String::new() } else { format!(" as {}", account.user) };
    let endpoint = account.endpoint.as_str().trim_end_matches('/');
    let drive = account.drive_id.as_ref().map_or("none", DriveId::as_str);
    say(format_args!("account {name}: logged in{user} at {endpoint}, drive {drive}"));
    match kept {
        Keep::File => say(format_args!("its secrets are in {}", handle.path().display())),
        Keep::Keyring => say("its secrets are in the keyring"),
    }
}

async fn where_to_keep(choice: Option<StoreChoice>, before: Option<Keep>) -> Result<Keep> {
    let choice = choice.or_else(|| before.filter(|keep| *keep == Keep::File).map(|_| StoreChoice::File));
    match choice {
        Some(StoreChoice::File) => Ok(Keep::File),
        Some(StoreChoice::Keyring) => {
            let advice = "unlock it, or use --store file";
            let reached = account::keyring_is_there().await;
            reached.map_err(|e| Error::new(e.kind(), format!("{e}; {advice}")))?;
            Ok(Keep::Keyring)
        }
        None => match account::keyring_is_there().await {
            Ok(()) => Ok(Keep::Keyring),
            Err(error) => {
                if before.is_some() {
                    tracing::warn!(%error, "the secrets go to a file instead of the keyring");
                } else {
                    tracing::debug!(%error, "the secrets go to a file");
                }
                Ok(Keep::File)
            }
        },
    }
}

/// Whose drives an account means.
pub(super) fn whose(grant: &Grant) -> Whose<'_> {
    match grant {
        Grant::AccessKey { user_id: Some(user_id), .. } => Whose::User(user_id),
        Grant::AccessKey { user_id: None, .. } => Whose::All,
        _ => Whose::Mine,
    }
}

/// The drives that may be meant.
struct Choice {
    /// By the arguments.
    named: Option<DriveId>,
    /// By the login before this one.
    remembered: Option<DriveId>,
    /// By the service, when it gave a token.
    default: Option<DriveId>,
}

impl Choice {
    fn likely(&self) -> Option<&DriveId> {
        self.named.as_ref().or(self.remembered.as_ref()).or(self.default.as_ref())
    }

    /// Asks the service in any case: a login that it does not take is not taken for one.
    async fn make(&self, session: &Session, whose: Whose<'_>) -> Result<DriveId> {
        if let Some(drive_id) = &self.named {
            return looked_at(session, drive_id).await;
        }
        let listed = match domain::drives(session, whose).await {
            Ok(listed) => listed,
            // Some apps may use a drive and not ask which there are.
            Err(error) if error.kind() == ErrorKind::Denied => match self.likely() {
                Some(drive_id) => return looked_at(session, drive_id).await,
                None => Vec::new(),
            },
            Err(error) => return Err(error.context(NO_LOGIN)),
        };
        let is_listed = |id: &&DriveId| listed.iter().any(|drive| drive.drive_id == **id);
        if let Some(drive_id) = self.remembered.as_ref().filter(is_listed).or(self.default.as_ref()) {
            return Ok(drive_id.clone());
        }
        let default = match whose {
            Whose::All => Err(Error::new(ErrorKind::NotFound, "an access key has no default drive")),
            _ => domain::default_drive(session, whose).await,
        };
        match (default, listed.as_slice()) {
            (Ok(drive), _) => Ok(drive.drive_id),
            (Err(_), [only]) => Ok(only.drive_id.clone()),
            (Err(error), _) => {
                let ids: Vec<_> = listed.iter().take(20).map(|drive| drive.drive_id.to_string()).collect();
                let choice = if ids.is_empty() { "the login lists none".to_owned() } else { ids.join(", ") };
                Err(error.context(format!("name a drive with --drive-id ({choice})")))
            }
        }
    }
}

/// The drive, whether or not the service shows it: who may use a drive may not always ask about it.
async fn looked_at(session: &Session, drive_id: &DriveId) -> Result<DriveId> {
    match domain::drive(session, drive_id).await {
        Ok(_) => {}
        Err(error)
            if matches!(error.kind(), ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::NoDrive) =>
        {
            say(format_args!("warning: the service does not show drive {drive_id} to this login: {error}"));
        }
        Err(error) => return Err(error.context(NO_LOGIN)),
    }
    Ok(drive_id.clone())
}
