//! `pdsfs login`: adds an account for mounts, or logs in to an existing account again.
//!
//! An account is stored after the service has accepted its login. One exception: a refresh token replaces a
//! code or token that is used up, so it is stored at once, even if a later step fails. Secrets never come
//! from arguments, because other users of the machine can see those.

use std::process::ExitCode;

use self::arguments::StoreChoice;
use self::methods::Login;
use super::output::print_message;
use crate::auth::{self, Account, AccountHandle, AccountName, DEFAULT_NAME, Grant, SecretStorage};
use crate::control::client;
use crate::control::socket_dirs::SocketUsers;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::DriveId;
use crate::pds::domain::{self, DriveScope};
use crate::pds::session::Session;
use crate::pds::types::DriveInfo;

mod arguments;
mod loopback;
mod methods;
mod open_browser;
mod page;
pub(super) mod questions;
mod secret;
mod text;

pub(super) use arguments::{CaFile, LoginArgs, LoginRequest};
pub(super) use methods::TIMEOUTS;
#[cfg(feature = "server")]
pub(super) use secret::read_private_text;

/// The step that fails if the service does not accept the login.
const LOGIN_CHECK: &str = "cannot use the login";

/// Logs in and stores the account, or forgets it.
pub(super) async fn run(request: LoginRequest) -> Result<ExitCode> {
    let handle = request.account();
    if request.args.forget {
        return forget(&handle).await;
    }
    log_in(request).await?;
    let name = handle.name();
    print_message(text::next_step(name, &suggested_mountpoint(name.as_str())));
    Ok(ExitCode::SUCCESS)
}

/// Logs in and stores the account.
pub(super) async fn log_in(request: LoginRequest) -> Result<()> {
    let LoginRequest { mut args, name, store } = request;
    let handle = store.account(name.clone());
    // The stored account provides defaults. An unreadable account is replaced.
    let before = handle.summary().ok();
    questions::fill_in(&mut args, before.as_ref()).await?;
    let storage = choose_storage(args.store, before.as_ref().map(|before| before.secret_storage)).await?;
    let login = Login::new(&args, before.as_ref(), &handle).await?;
    let obtained = methods::obtain(&args, &login).await?;
    let session = Session::new(&login.endpoint, obtained.credential(), TIMEOUTS, login.peers)?;
    let before = before.filter(|before| before.endpoint == login.endpoint);
    let choice = DriveChoice {
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
        secret_storage: storage,
    };
    // The code or the old refresh token is used up, so the new refresh token exists only here.
    let is_only_copy = matches!(account.grant, Grant::Refresh { .. });
    if is_only_copy {
        handle.lock().await?.save(&account).await?;
    }
    drop(obtained.unstored_token);
    let chosen = choice.resolve(&session, drive_scope(&account.grant)).await;
    let chosen = chosen.map_err(|e| if is_only_copy { with_stored_advice(e, &name) } else { e })?;
    account.drive_id = Some(chosen.id);
    let locked = handle.lock().await?;
    if is_only_copy && let Ok(now) = locked.load().await {
        // A mount that uses the account may have refreshed the token since.
        (account.grant, account.access) = (now.grant, now.access);
    }
    let storage = locked.save(&account).await?;
    drop(locked);
    print_account(&handle, &account, &chosen.name, storage);
    // Mounts that wait for a login check the account on their own. This makes the others use the new login at
    // once.
    for (daemon, status) in client::mounts(SocketUsers::Own).await.mounts {
        if let Err(error) = daemon.reload_credentials().await {
            tracing::debug!(%error, "the mount at {} did not reload its credentials", status.mountpoint);
        }
    }
    Ok(())
}

async fn forget(handle: &AccountHandle) -> Result<ExitCode> {
    // A damaged account can be removed too.
    if let Some(missing) = handle.summary().err().filter(|e| e.kind() == ErrorKind::NotFound) {
        return Err(missing);
    }
    handle.lock().await?.remove().await?;
    print_message(format_args!("removed account {} from this machine", handle.name()));
    Ok(ExitCode::SUCCESS)
}

fn with_stored_advice(error: Error, name: &AccountName) -> Error {
    let advice = format!(
        "the login is stored, but without a default drive (pdsfs drives {name} lists drives, pdsfs mount \
         --account {name} --drive-id ID mounts one)"
    );
    Error::with_source(error.kind(), advice, error)
}

fn print_account(handle: &AccountHandle, account: &Account, drive_name: &str, storage: SecretStorage) {
    let name = handle.name();
    let endpoint = account.endpoint.as_str().trim_end_matches('/');
    let drive = account.drive_id.as_ref().map_or("none", DriveId::as_str);
    print_message(text::logged_in(name, &account.user, endpoint, &text::drive(drive, drive_name)));
    match storage {
        SecretStorage::File => print_message(format_args!("its secrets are in {}", handle.path().display())),
        SecretStorage::Keyring => print_message("its secrets are in the keyring"),
    }
}

/// A directory that an ordinary user, or root, would mount at.
pub(super) fn suggested_mountpoint(account: &str) -> String {
    if rustix::process::geteuid().is_root() {
        return format!("/mnt/{account}");
    }
    if account == DEFAULT_NAME { "~/Drive".to_owned() } else { format!("~/{account}") }
}

async fn choose_storage(choice: Option<StoreChoice>, before: Option<SecretStorage>) -> Result<SecretStorage> {
    let choice = choice
        .or_else(|| before.filter(|storage| *storage == SecretStorage::File).map(|_| StoreChoice::File));
    match choice {
        Some(StoreChoice::File) => Ok(SecretStorage::File),
        Some(StoreChoice::Keyring) => {
            let advice = "cannot use the keyring (unlock it, or use --store file)";
            let reached = auth::check_keyring().await;
            reached.map_err(|e| Error::with_source(e.kind(), advice, e))?;
            Ok(SecretStorage::Keyring)
        }
        None => match auth::check_keyring().await {
            Ok(()) => Ok(SecretStorage::Keyring),
            Err(error) => {
                if before.is_some() {
                    tracing::warn!(%error, "no keyring: secrets are stored in a file");
                } else {
                    tracing::debug!(%error, "no keyring: secrets are stored in a file");
                }
                Ok(SecretStorage::File)
            }
        },
    }
}

/// The drives that an account can list.
pub(super) fn drive_scope(grant: &Grant) -> DriveScope<'_> {
    match grant {
        Grant::AccessKey { user_id: Some(user_id), .. } => DriveScope::User(user_id),
        Grant::AccessKey { user_id: None, .. } => DriveScope::All,
        _ => DriveScope::Mine,
    }
}

/// The drive of an account.
struct ChosenDrive {
    id: DriveId,
    /// Empty if the login may not ask for it.
    name: String,
}

impl From<&DriveInfo> for ChosenDrive {
    fn from(info: &DriveInfo) -> Self {
        Self { id: info.drive_id.clone(), name: info.drive_name.clone() }
    }
}

/// Candidates for the default drive of an account.
struct DriveChoice {
    /// From the arguments.
    named: Option<DriveId>,
    /// From the previous login.
    remembered: Option<DriveId>,
    /// From the token response.
    default: Option<DriveId>,
}

impl DriveChoice {
    fn likely(&self) -> Option<&DriveId> {
        self.named.as_ref().or(self.remembered.as_ref()).or(self.default.as_ref())
    }

    /// Always calls the service, so that a rejected login fails here.
    async fn resolve(&self, session: &Session, scope: DriveScope<'_>) -> Result<ChosenDrive> {
        if let Some(drive_id) = &self.named {
            return verify_drive(session, drive_id).await;
        }
        let listed = match domain::list_drives(session, scope).await {
            Ok(listed) => listed,
            // Some apps may use drives without permission to list them.
            Err(error) if error.kind() == ErrorKind::Denied => match self.likely() {
                Some(drive_id) => return verify_drive(session, drive_id).await,
                None => Vec::new(),
            },
            Err(error) => return Err(error.context(LOGIN_CHECK)),
        };
        let in_list = |id: &DriveId| listed.iter().find(|drive| drive.drive_id == *id).map(ChosenDrive::from);
        if let Some(remembered) = self.remembered.as_ref().and_then(in_list) {
            return Ok(remembered);
        }
        if let Some(id) = &self.default {
            return Ok(in_list(id).unwrap_or_else(|| ChosenDrive { id: id.clone(), name: String::new() }));
        }
        let default = match scope {
            DriveScope::All => Err(Error::new(ErrorKind::NotFound, "an access key has no default drive")),
            _ => domain::get_default_drive(session, scope).await,
        };
        match (default, listed.as_slice()) {
            (Ok(drive), _) => Ok(ChosenDrive::from(&drive)),
            (Err(_), [only]) => Ok(ChosenDrive::from(only)),
            (Err(error), _) => {
                let ids: Vec<_> = listed.iter().take(20).map(|drive| drive.drive_id.to_string()).collect();
                let choice =
                    if ids.is_empty() { "the service lists none".to_owned() } else { ids.join(", ") };
                Err(error.context(format!("name a drive with --drive-id ({choice})")))
            }
        }
    }
}

/// Checks the drive. A refusal is only a warning: some logins may use a drive without permission to query it.
async fn verify_drive(session: &Session, drive_id: &DriveId) -> Result<ChosenDrive> {
    match domain::get_drive(session, drive_id).await {
        Ok(info) => return Ok(ChosenDrive::from(&info)),
        Err(error)
            if matches!(error.kind(), ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::NoDrive) =>
        {
            print_message(format_args!("warning: cannot check drive {drive_id} with this login: {error}"));
        }
        Err(error) => return Err(error.context(LOGIN_CHECK)),
    }
    Ok(ChosenDrive { id: drive_id.clone(), name: String::new() })
}
