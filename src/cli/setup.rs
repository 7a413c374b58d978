//! `pdsfs setup`: from nothing to a mounted drive, with one question for each decision.
//!
//! Each question is also a flag, and each step is skipped if it is done already, so it can be run again. Without a
//! terminal the answers that are not given are the suggested ones.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use clap::{Args, ValueEnum};

use super::config::{ConfigArgs, Configuration, paths};
use super::login::questions::ask;
use super::login::{self, LoginArgs, LoginRequest, TIMEOUTS, drive_scope, suggested_mountpoint};
use super::named_drive;
use super::output::print_message;
use crate::auth::{AccountHandle, Credential};
use crate::config::dirs;
use crate::config::edit::{NewDrive, write_drive};
use crate::config::file::DriveEntry;
use crate::daemon;
use crate::error::{Error, ErrorKind, Result};
use crate::escape::escaped;
use crate::ids::DriveId;
use crate::pds::domain;
use crate::pds::session::Session;
use crate::pds::transport::TrustedPeers;
use crate::pds::types::DriveInfo;
use unit::Manager;

mod text;
mod unit;

#[derive(Debug, Args)]
#[command(
    after_help = "Without a terminal nothing is asked: what the flags leave open is the suggested answer, and \
    the drive is not mounted at login.\n\nIt is safe to run again: what is done already is kept."
)]
pub(super) struct SetupArgs {
    /// The directory to mount at; made if it is missing [default: ~/Drive, for root /mnt/NAME]
    #[arg(long, value_name = "DIR")]
    mountpoint: Option<PathBuf>,
    /// Mount the drive at each login, by the unit pdsfs@NAME of systemd [default: asked at a terminal, else no]
    #[arg(long, value_enum, value_name = "YES|NO")]
    at_login: Option<Answer>,
    /// Log in and write the configuration, but do not mount
    #[arg(long, conflicts_with = "at_login")]
    no_mount: bool,
    #[command(flatten)]
    login: LoginArgs,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Answer {
    Yes,
    No,
}

/// Checked arguments.
#[derive(Debug)]
pub(super) struct SetupRequest {
    mountpoint: Option<PathBuf>,
    at_login: Option<Answer>,
    no_mount: bool,
    login: LoginRequest,
    config: ConfigArgs,
}

impl SetupArgs {
    pub(super) fn check(self) -> Result<SetupRequest> {
        let Self { mountpoint, at_login, no_mount, login, config } = self;
        if at_login == Some(Answer::Yes) && config.config.is_some() {
            return Err(Error::invalid(text::AT_LOGIN_WITH_CONFIG));
        }
        Ok(SetupRequest { mountpoint, at_login, no_mount, login: login.check()?, config })
    }
}

pub(super) async fn run(request: SetupRequest) -> Result<ExitCode> {
    let account = request.login.account();
    let name = account.name().to_string();
    let chosen = request.login.drive_id().is_some();
    let file = written_file(&request.config)?;
    let configured = configured(&Configuration::read_existing(&request.config)?, &name, &file)?;
    let ca_file = request.login.ca_file().path()?;
    let (configured, login) = match configured {
        Some(entry) => (entry.mountpoint, request.login.with_default_ca_file(entry.settings.ca_file)),
        None => (None, request.login),
    };
    print_message(text::HEADING);
    let peers = login.ca_file().read()?;
    if needs_login(&login, &account, &peers).await {
        login::log_in(login).await?;
    } else {
        print_message(text::logged_in_already(&name));
    }
    if !chosen {
        choose_drive(&account, peers).await?;
    }
    let place = place(request.mountpoint, configured, &name).await?;
    if daemon::make_missing(&place)? {
        print_message(text::made(&place));
    }
    let drive = NewDrive { name: &name, account: &name, mountpoint: &place, ca_file: ca_file.as_deref() };
    if write_drive(&file, &drive)? {
        print_message(text::wrote(&file));
    }
    if request.no_mount {
        print_message(text::mount_later(&name));
        return Ok(ExitCode::SUCCESS);
    }
    let manager = Manager::find();
    let at_login = match request.at_login {
        Some(answer) => answer == Answer::Yes,
        None if request.config.config.is_some() => false,
        None => manager.is_some() && is_terminal() && ask(text::ASK_AT_LOGIN, parse_yes).await?,
    };
    let manager = match (at_login, manager) {
        (true, None) => return Err(Error::new(ErrorKind::Unsupported, text::NO_SYSTEMD)),
        (true, manager) => manager,
        (false, _) => None,
    };
    mount(&name, &place, manager, &request.config)?;
    print_message(text::end(&place, &name));
    Ok(ExitCode::SUCCESS)
}

fn is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Whether the arguments differ from the stored login, or the service does not accept it.
async fn needs_login(request: &LoginRequest, account: &AccountHandle, peers: &TrustedPeers) -> bool {
    let Ok(stored) = account.summary() else { return true };
    let is_elsewhere = request.endpoint().is_some_and(|endpoint| *endpoint != stored.endpoint);
    let other_drive = request.drive_id().is_some_and(|drive| Some(drive) != stored.drive_id.as_ref());
    is_elsewhere
        || other_drive
        || request.asks_for_login()
        || list_drives(account, peers.clone()).await.is_err_and(|e| e.kind() != ErrorKind::Denied)
}

async fn list_drives(account: &AccountHandle, peers: TrustedPeers) -> Result<Vec<DriveInfo>> {
    let stored = account.load().await?;
    let session = Session::new(&stored.endpoint, Credential::Account(account.clone()), TIMEOUTS, peers)?;
    domain::list_drives(&session, drive_scope(&stored.grant)).await
}

/// Asks which drive the account mounts, if there are several.
async fn choose_drive(account: &AccountHandle, peers: TrustedPeers) -> Result<()> {
    // Some apps may use drives without permission to list them.
    let drives = list_drives(account, peers).await.unwrap_or_default();
    if drives.len() < 2 || !is_terminal() {
        return Ok(());
    }
    let now = account.summary()?.drive_id;
    for (n, drive) in drives.iter().enumerate() {
        let star = if now.as_ref() == Some(&drive.drive_id) { "*" } else { " " };
        let (id, name) = (drive.drive_id.as_str(), escaped(&drive.drive_name));
        print_message(format_args!("{star}{:>3}  {name} (drive {id})", n + 1));
    }
    let chosen: DriveId = ask(text::ASK_DRIVE, |answer| {
        let number = answer.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
        let drive = number.and_then(|n| drives.get(n));
        drive
            .map(|drive| drive.drive_id.clone())
            .ok_or_else(|| Error::invalid(text::wrong_number(drives.len())))
    })
    .await?;
    let locked = account.lock().await?;
    let mut stored = locked.load().await?;
    if stored.drive_id.as_ref() != Some(&chosen) {
        stored.drive_id = Some(chosen);
        locked.save(&stored).await?;
    }
    Ok(())
}

/// The directory of the arguments, of the configuration, of a running mount of the whole drive, or of the answer.
async fn place(given: Option<PathBuf>, configured: Option<PathBuf>, name: &str) -> Result<PathBuf> {
    let whole = format!("{name}:/");
    let mounted = || named_drive::mounted(name).ok()?.into_iter().find(|mount| mount.source == whole);
    if let Some(place) = given {
        return expanded(&place.to_string_lossy());
    }
    if let Some(place) = configured.or_else(|| Some(mounted()?.path)) {
        return Ok(place);
    }
    let suggested = suggested_mountpoint(name);
    if !is_terminal() {
        return expanded(&suggested);
    }
    print_message(text::suggest(&suggested));
    ask(text::ASK_DIRECTORY, |answer| expanded(if answer == "." { &suggested } else { answer })).await
}

/// An absolute path; `~/` is the home directory.
fn expanded(text: &str) -> Result<PathBuf> {
    match dirs::absolute(text) {
        Ok(path) => Ok(path),
        Err(_) if !text.starts_with('~') => Ok(std::path::absolute(text)?),
        Err(why) => Err(Error::invalid(why)),
    }
}

/// The configuration file that gets the drive, so that its name is enough from now on.
fn written_file(config: &ConfigArgs) -> Result<PathBuf> {
    let path = paths(config)?.into_iter().next();
    path.ok_or_else(|| Error::invalid("no configuration file: set HOME, or use --config"))
}

/// The drive of that name in the file that is written. Fails if it is in another file, where the written one would
/// hide it, or has another account.
fn configured(configuration: &Configuration, name: &str, written: &Path) -> Result<Option<DriveEntry>> {
    let Some((file, entry)) = configuration.find(name) else { return Ok(None) };
    if file != written {
        return Err(Error::invalid(text::configured_elsewhere(name, file)));
    }
    match &entry.settings.account {
        Some(account) if account.as_str() != name => {
            Err(Error::invalid(text::other_account(name, account.as_str(), file)))
        }
        _ => Ok(Some(entry.clone())),
    }
}

fn parse_yes(answer: &str) -> Result<bool> {
    match answer.to_lowercase().as_str() {
        "y" | "yes" => Ok(true),
        "n" | "no" => Ok(false),
        _ => Err(Error::invalid(text::YES_OR_NO)),
    }
}

/// Mounts the drive, by a unit if there is one to start. A drive that is mounted there stays.
fn mount(name: &str, place: &Path, manager: Option<Manager>, config: &ConfigArgs) -> Result<()> {
    let is_mounted = named_drive::mounted(name)?.iter().any(|mount| mount.path == place);
    if let Some(manager) = manager {
        manager.enable(name, !is_mounted)?;
        print_message(text::at_login(&manager.unit(name)));
    } else if !is_mounted {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(["mount", name, "--background"]).stdin(Stdio::null());
        if let Some(path) = &config.config {
            command.arg("--config").arg(path);
        }
        if !command.status()?.success() {
            return Err(Error::new(ErrorKind::Io, text::not_mounted(name)));
        }
    }
    if is_mounted {
        print_message(text::mounted_already(place));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_yes_or_no() {
        assert!(parse_yes("Y").unwrap() && !parse_yes("no").unwrap());
        assert!(parse_yes("perhaps").unwrap_err().to_string().contains("yes or no"));
    }

    #[test]
    fn drive_of_another_file_or_account_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "[drives.a]\nread_only = true\n[drives.b]\naccount = \"x\"\n").unwrap();
        let configuration = Configuration::read(&ConfigArgs { config: Some(path.clone()) }).unwrap();
        let error = configured(&configuration, "a", Path::new("/user.toml")).unwrap_err().to_string();
        assert!(error.contains(&format!("a is configured in {}", path.display())), "{error}");
        assert!(error.contains("pdsfs mount a"), "{error}");
        let error = configured(&configuration, "b", &path).unwrap_err().to_string();
        assert!(error.contains("account x") && error.contains("account b"), "{error}");
        assert!(configured(&configuration, "a", &path).unwrap().is_some());
        assert!(configured(&configuration, "c", &path).unwrap().is_none());
    }

    #[test]
    fn answered_directory_is_absolute() {
        assert_eq!(expanded("/a/b").unwrap(), Path::new("/a/b"));
        assert!(expanded("a").unwrap().is_absolute());
        assert!(!expanded("~/a").is_ok_and(|path| path.starts_with("~")));
    }
}
