//! What can be set about a mount: each thing once, for the command line, the environment and the
//! configuration file alike.
//!
//! A key of the file is the name of a flag with `_` for `-`, read by the flag's own parser, so the three
//! cannot disagree. Nothing has its default filled in before the three are laid over each other
//! ([`Settings::over`]); then [`Settings::resolve`] makes a [`MountConfig`] that needs no further check.

#![allow(clippy::doc_markdown, reason = "doc comments of arguments are help texts, shown as they are")]

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::Resettable;
use clap::{Args, Command, ValueEnum};
use url::Url;

use crate::account::{AccountName, DEFAULT_NAME, Store};
use crate::config::folder::FolderPath;
use crate::config::quantities::{bytes, bytes_within, duration_within, show_bytes};
use crate::config::{Credential, MountConfig, RemoveMode, dirs, file};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, FileId, PartSize, Secret};
use crate::name_patterns::NamePatterns;
use crate::pds::auth::TokenSource;
use crate::pds::endpoint;

const MIB: u64 = 1 << 20;
const DAY_S: u64 = 86_400;
/// One part is filled while another one is sent.
const BUFFERED_PARTS_MIN: u64 = 2;
/// Where the token is looked for when no file is named.
const TOKEN_VARIABLE: &str = "PDSFS_TOKEN";

/// What was said about a mount in one place; `None` where nothing was said.
#[derive(Clone, Debug, Default, Args)]
pub struct Settings {
    /// Base URL of the domain's API, such as https://bj1.api.aliyunpds.com; http only to this machine
    /// [default: that of the account]
    #[arg(long, env = "PDSFS_ENDPOINT", value_name = "URL", value_parser = endpoint::parse)]
    pub endpoint: Option<Url>,
    /// The drive [default: that of the account]
    #[arg(long, env = "PDSFS_DRIVE_ID", value_name = "ID")]
    pub drive_id: Option<DriveId>,
    /// The folder of the drive that is mounted, by its id [default: root]
    #[arg(long, env = "PDSFS_ROOT_ID", value_name = "FILE_ID")]
    pub root_id: Option<FileId>,
    /// The folder of the drive that is mounted, by its path, such as /Pictures/2024
    #[arg(long, env = "PDSFS_FOLDER", value_name = "PATH")]
    pub folder: Option<FolderPath>,
    /// An account that pdsfs login has made [default: that of the drive's name, else "default"]
    #[arg(long, env = "PDSFS_ACCOUNT", value_name = "NAME", conflicts_with = "token_file",
        value_parser = AccountName::new)]
    pub account: Option<AccountName>,
    /// A file with the access token, or with JSON {"access_token", "refresh_token", "app_id"};
    /// readable by its owner only
    #[arg(long, env = "PDSFS_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The access token itself; never on a command line, which everybody can read.
    #[arg(skip)]
    pub token: Option<Secret<String>>,
    /// Let other users in (ordinary users need user_allow_other in /etc/fuse.conf) [default: false]
    #[arg(long, env = "PDSFS_ALLOW_OTHER", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_other: Option<bool>,
    /// Refuse every change [default: false]
    #[arg(long, env = "PDSFS_READ_ONLY", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub read_only: Option<bool>,
    /// Let no program that lies on the drive run from there [default: false]
    #[arg(long, env = "PDSFS_NOEXEC", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub noexec: Option<bool>,
    /// Mount also over a folder that is not empty; what it holds is hidden meanwhile [default: false]
    #[arg(long, env = "PDSFS_ALLOW_NON_EMPTY", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_non_empty: Option<bool>,
    /// Size of the parts of an upload; a file has at most 10,000 of them. A multiple of 64 bytes, up
    /// to 1 GiB; real domains refuse less than 100 KiB [default: 8MiB]
    #[arg(long, env = "PDSFS_PART_SIZE", value_name = "SIZE", value_parser = part_size)]
    pub part_size: Option<PartSize>,
    /// Most parts of an upload that are sent at once, 1 to 256; adapts below that by itself
    /// [default: 32]
    #[arg(long, env = "PDSFS_PARTS_IN_FLIGHT", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub parts_in_flight: Option<u16>,
    /// All write buffers together, 1MiB to 1TiB and at least two parts [default: 256MiB]
    #[arg(long, env = "PDSFS_BUFFER_SIZE", value_name = "SIZE", value_parser = bytes_within(MIB, MIB << 20))]
    pub buffer_size: Option<u64>,
    /// Memory for what was read, 1MiB to 1TiB [default: 64MiB]
    #[arg(long, env = "PDSFS_READ_CACHE", value_name = "SIZE", value_parser = bytes_within(MIB, MIB << 20))]
    pub read_cache: Option<u64>,
    /// How long names and attributes are believed before the drive is asked again, 0s to 1d
    /// [default: 15s]
    #[arg(long, env = "PDSFS_METADATA_TTL", value_name = "DURATION", value_parser = duration_within(0, DAY_S))]
    pub metadata_ttl: Option<Duration>,
    /// How long closing a file waits for the drive while no byte moves, before it reports an error, 1s to 1d [default: 10m]
    #[arg(long, env = "PDSFS_COMMIT_TIMEOUT", value_name = "DURATION", value_parser = duration_within(1, DAY_S))]
    pub commit_timeout: Option<Duration>,
    /// How long one metadata call may take, in one attempt, 1s to 10m [default: 30s]
    #[arg(long, env = "PDSFS_CALL_TIMEOUT", value_name = "DURATION", value_parser = duration_within(1, 600))]
    pub call_timeout: Option<Duration>,
    /// How long a transfer may stand still before it is tried again, 1s to 1h [default: 60s]
    #[arg(long, env = "PDSFS_STALL_TIMEOUT", value_name = "DURATION", value_parser = duration_within(1, 3600))]
    pub stall_timeout: Option<Duration>,
    /// What removing does: to the drive's recycle bin, or for good [default: trash]
    #[arg(long, env = "PDSFS_REMOVE", value_enum)]
    pub remove: Option<Remove>,
    /// Whether modes, owners, links, special files and extended attributes are kept on the drive, as
    /// tags of its files [default: on]
    #[arg(long, env = "PDSFS_METADATA", value_enum)]
    pub metadata: Option<Metadata>,
    /// Owner of what has none on the drive [default: who mounts]
    #[arg(long, env = "PDSFS_UID", value_name = "UID")]
    pub uid: Option<u32>,
    /// Group of what has none on the drive [default: of who mounts]
    #[arg(long, env = "PDSFS_GID", value_name = "GID")]
    pub gid: Option<u32>,
    /// Permissions taken away from files (0666) and folders (0777), in octal, 0 to 777 [default: 022]
    #[arg(long, env = "PDSFS_UMASK", value_name = "OCTAL", value_parser = umask)]
    pub umask: Option<u16>,
    /// Local copies of files that are not written front to back, all together, 1MiB to 1PiB, or "off"
    /// [default: a tenth of the disk, at most 20GiB]
    #[arg(long, env = "PDSFS_CACHE_SIZE", value_name = "SIZE", value_parser = cache_size)]
    pub cache_size: Option<u64>,
    /// What those copies leave free on their disk, 0 to 1PiB [default: 512MiB]
    #[arg(long, env = "PDSFS_CACHE_MIN_FREE", value_name = "SIZE", value_parser = bytes_within(0, MIB << 30))]
    pub cache_min_free: Option<u64>,
    /// Where those copies lie, and parts that do not fit into memory [default: pdsfs in the user's cache folder]
    #[arg(long, env = "PDSFS_SPILL_DIR", value_name = "DIR")]
    pub spill_dir: Option<PathBuf>,
    /// Names of lock and junk files that live on this machine only, never uploaded and gone after the mount, with
    /// commas between; * and ? stand for any characters and for one; "off" for none
    /// [default: .~lock.*#,.DS_Store,._*,Thumbs.db,*.swp]
    #[arg(long, env = "PDSFS_LOCAL_ONLY", value_name = "PATTERNS", value_parser = local_only)]
    pub local_only: Option<NamePatterns>,
    /// Serve figures for Prometheus at http://ADDRESS:PORT/metrics; whoever reaches the address may read them
    #[arg(long, env = "PDSFS_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// Whether the desktop shows a notification when a file could not be saved [default: on]
    #[arg(long, env = "PDSFS_NOTIFY", value_enum)]
    pub notify: Option<Notify>,
}

/// Whether the desktop is told of what could not be saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Notify {
    /// Where there is a desktop
    On,
    /// Never
    Off,
}

/// Whether POSIX attributes are kept on the drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Metadata {
    /// Kept
    On,
    /// Accepted and forgotten; links and special files are refused
    Off,
}

/// What removing does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Remove {
    /// To the recycle bin
    Trash,
    /// For good
    Delete,
}

/// A command whose settings are what its flags say, and not what variables say: those lie below them.
pub fn without_variables(command: Command) -> Command {
    let settings = Settings::augment_args(Command::new("pdsfs"));
    let ids: Vec<_> = settings.get_arguments().map(|arg| arg.get_id().clone()).collect();
    command.mut_args(|arg| if ids.contains(arg.get_id()) { arg.env(Resettable::Reset) } else { arg })
}

impl Settings {
    /// What `self` does not say is taken from `lower`: a flag lies over a variable, and that over the file.
    ///
    /// Who we are is one thing said in two ways, and so is which folder is meant: a file is not asked
    /// for its half of what was said above it.
    #[must_use]
    pub fn over(self, mut lower: Self) -> Self {
        if self.account.is_some() || self.token_file.is_some() || self.token.is_some() {
            (lower.account, lower.token_file, lower.token) = (None, None, None);
        }
        if self.folder.is_some() || self.root_id.is_some() {
            (lower.folder, lower.root_id) = (None, None);
        }
        self.beside(lower)
    }

    /// The same of two that were said in one place.
    #[must_use]
    pub fn beside(self, lower: Self) -> Self {
        Self {
            endpoint: self.endpoint.or(lower.endpoint),
            drive_id: self.drive_id.or(lower.drive_id),
            root_id: self.root_id.or(lower.root_id),
            folder: self.folder.or(lower.folder),
            account: self.account.or(lower.account),
            token_file: self.token_file.or(lower.token_file),
            token: self.token.or(lower.token),
            allow_other: self.allow_other.or(lower.allow_other),
            read_only: self.read_only.or(lower.read_only),
            noexec: self.noexec.or(lower.noexec),
            allow_non_empty: self.allow_non_empty.or(lower.allow_non_empty),
            part_size: self.part_size.or(lower.part_size),
            parts_in_flight: self.parts_in_flight.or(lower.parts_in_flight),
            buffer_size: self.buffer_size.or(lower.buffer_size),
            read_cache: self.read_cache.or(lower.read_cache),
            metadata_ttl: self.metadata_ttl.or(lower.metadata_ttl),
            commit_timeout: self.commit_timeout.or(lower.commit_timeout),
            call_timeout: self.call_timeout.or(lower.call_timeout),
            stall_timeout: self.stall_timeout.or(lower.stall_timeout),
            remove: self.remove.or(lower.remove),
            metadata: self.metadata.or(lower.metadata),
            uid: self.uid.or(lower.uid),
            gid: self.gid.or(lower.gid),
            umask: self.umask.or(lower.umask),
            cache_size: self.cache_size.or(lower.cache_size),
            cache_min_free: self.cache_min_free.or(lower.cache_min_free),
            spill_dir: self.spill_dir.or(lower.spill_dir),
            local_only: self.local_only.or(lower.local_only),
            metrics_listen: self.metrics_listen.or(lower.metrics_listen),
            notify: self.notify.or(lower.notify),
        }
    }

    /// What the environment says. An empty variable says nothing, but for that of the token.
    pub fn of_environment() -> Result<Self> {
        Self::of_variables(|name| std::env::var_os(name))
    }

    fn of_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let flags = file::flags();
        let mut said = Self::default();
        for arg in Self::augment_args(Command::new("pdsfs")).get_arguments() {
            let Some(name) = arg.get_env().and_then(OsStr::to_str) else { continue };
            let Some(value) = variable(name).filter(|value| !value.is_empty()) else { continue };
            let one = file::flag(&flags, arg.get_id().as_str(), &value);
            said = one.map_err(|what| invalid(format!("{name}: {what}")))?.beside(said);
        }
        if said.token_file.is_none() && said.account.is_none() {
            said.token = variable(TOKEN_VARIABLE).and_then(|token| token.into_string().ok()).map(Secret::new);
        }
        Ok(said)
    }

    /// Fills in the defaults and checks what depends on each other; `name` is that of the drive in the
    /// configuration.
    pub fn resolve(self, name: Option<String>, mountpoint: PathBuf) -> Result<MountConfig> {
        self.check()?;
        let place = self.place(name.as_deref())?;
        let spill_dir = match &self.spill_dir {
            Some(dir) => {
                dir.canonicalize().map_err(|e| invalid(format!("spill-dir {}: {e}", dir.display())))?
            }
            None => dirs::cache()?,
        };
        if !spill_dir.is_dir() {
            return Err(invalid(format!("spill-dir {} is not a folder", spill_dir.display())));
        }
        // SAFETY: both calls only read the process's own ids and cannot fail.
        let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
        let default = MountConfig::new(place.endpoint, place.drive_id, place.credential);
        Ok(MountConfig {
            name,
            root_id: self.root_id.unwrap_or(default.root_id),
            folder: self.folder.unwrap_or(default.folder),
            mountpoint,
            allow_other: self.allow_other.unwrap_or(default.allow_other),
            read_only: self.read_only.unwrap_or(default.read_only),
            noexec: self.noexec.unwrap_or(default.noexec),
            allow_non_empty: self.allow_non_empty.unwrap_or(default.allow_non_empty),
            uid: self.uid.unwrap_or(uid),
            gid: self.gid.unwrap_or(gid),
            umask: self.umask.unwrap_or(default.umask),
            part_size: self.part_size.unwrap_or(default.part_size),
            parts_in_flight_max: self.parts_in_flight.map_or(default.parts_in_flight_max, usize::from),
            buffer_bytes_max: self.buffer_size.unwrap_or(default.buffer_bytes_max),
            read_cache_bytes_max: self.read_cache.unwrap_or(default.read_cache_bytes_max),
            metadata_ttl: self.metadata_ttl.unwrap_or(default.metadata_ttl),
            commit_timeout: self.commit_timeout.unwrap_or(default.commit_timeout),
            call_timeout: self.call_timeout.unwrap_or(default.call_timeout),
            stall_timeout: self.stall_timeout.unwrap_or(default.stall_timeout),
            remove: match self.remove {
                None => default.remove,
                Some(Remove::Trash) => RemoveMode::Trash,
                Some(Remove::Delete) => RemoveMode::Delete,
            },
            metadata: self.metadata.map_or(default.metadata, |kept| kept == Metadata::On),
            spill_dir,
            staged_bytes_max: self.cache_size,
            free_bytes_min: self.cache_min_free.unwrap_or(default.free_bytes_min),
            local_only: self.local_only.unwrap_or(default.local_only.clone()),
            metrics_listen: self.metrics_listen,
            notifies_desktop: self.notify.map_or(default.notifies_desktop, |notify| notify == Notify::On),
            ..default
        })
    }

    /// Which drive, where, and as whom. An account knows where it belongs; a token does not.
    pub fn place(&self, name: Option<&str>) -> Result<Place> {
        if self.token_file.is_some() || self.token.is_some() {
            return Ok(Place {
                endpoint: self.endpoint.clone().ok_or_else(|| missing("endpoint"))?,
                drive_id: self.drive_id.clone().ok_or_else(|| missing("drive-id"))?,
                credential: credential(self.token_file.as_deref(), self.token.as_ref())?,
            });
        }
        let store = Store::from_env()?;
        let handle = match (&self.account, name.and_then(|name| AccountName::new(name).ok())) {
            (Some(said), _) => store.account(said.clone()),
            (None, Some(same)) if store.account(same.clone()).stamp().is_some() => store.account(same),
            (None, _) => store.account(AccountName::new(DEFAULT_NAME)?),
        };
        if let Some(token) = handle.given_token()? {
            return Ok(Place {
                endpoint: self.endpoint.clone().ok_or_else(|| missing("endpoint"))?,
                drive_id: self.drive_id.clone().ok_or_else(|| missing("drive-id"))?,
                credential: Credential::Token(token),
            });
        }
        let outline = handle.outline().map_err(|e| match &self.account {
            Some(_) => e,
            None => {
                invalid(format!("nobody is logged in: {e}, or set {TOKEN_VARIABLE}, or name a --token-file"))
            }
        })?;
        let drive_id = self.drive_id.clone().or(outline.drive_id).ok_or_else(|| {
            let name = handle.name();
            invalid(format!(
                "account {name} has no drive yet: name one with --drive-id (pdsfs drives {name} lists them), or run \
                 pdsfs login {name} again"
            ))
        })?;
        Ok(Place {
            endpoint: self.endpoint.clone().unwrap_or(outline.endpoint),
            drive_id,
            credential: Credential::Account(handle),
        })
    }

    /// What no single setting can know.
    pub fn check(&self) -> Result<()> {
        if self.account.is_some() && self.token_file.is_some() {
            return Err(invalid("account and token-file both say who mounts; leave one of them out"));
        }
        let part_bytes = self.part_size.unwrap_or(PartSize::DEFAULT).get();
        let buffer_min = part_bytes * BUFFERED_PARTS_MIN;
        if self.buffer_size.unwrap_or(MountConfig::BUFFER_BYTES_MAX) < buffer_min {
            return Err(invalid(format!(
                "buffer-size must hold {BUFFERED_PARTS_MIN} parts: at least {} with this part-size",
                show_bytes(buffer_min)
            )));
        }
        Ok(())
    }
}

/// Which drive, where, and as whom.
#[derive(Debug)]
pub struct Place {
    /// Base URL of the domain's API.
    pub endpoint: Url,
    /// The drive.
    pub drive_id: DriveId,
    /// Who we are.
    pub credential: Credential,
}

impl Place {
    /// Whether the credential can be read.
    pub fn check(&self) -> Result<()> {
        TokenSource::new(self.credential.clone(), &self.endpoint).map(|_| ())
    }
}

/// What a token does not know and nobody has said.
fn missing(setting: &str) -> Error {
    invalid(format!("there is a token, but no {setting}: name it with --{setting}, or in the configuration"))
}

fn cache_size(text: &str) -> std::result::Result<u64, String> {
    if text == "off" { Ok(0) } else { bytes_within(MIB, MIB << 30)(text) }
}

fn invalid(detail: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::Invalid, detail)
}

/// Whether a file is private is checked where it is read.
fn credential(file: Option<&Path>, token: Option<&Secret<String>>) -> Result<Credential> {
    if let Some(file) = file {
        let absolute = file.canonicalize();
        let file = absolute.map_err(|e| invalid(format!("token-file {}: {e}", file.display())))?;
        return Ok(Credential::File(file));
    }
    match token.map(|token| token.expose().trim()) {
        Some("") => Err(invalid(format!("{TOKEN_VARIABLE} is empty"))),
        Some(token) => Ok(Credential::Token(Secret::new(token.to_owned()))),
        None => Err(invalid(format!("no access token: set {TOKEN_VARIABLE} or name a --token-file"))),
    }
}

fn part_size(text: &str) -> std::result::Result<PartSize, String> {
    PartSize::new(bytes(text)?).map_err(|e| e.to_string())
}

fn local_only(text: &str) -> std::result::Result<NamePatterns, String> {
    NamePatterns::new(text.split(',')).map_err(|e| e.to_string())
}

fn umask(text: &str) -> std::result::Result<u16, String> {
    let wrong = || format!("{text:?} is not an octal number from 0 to 777");
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    u16::from_str_radix(text, 8).ok().filter(|mask| *mask <= 0o777).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, FromArgMatches, Parser};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        settings: Settings,
    }

    fn parse(more: &[&str]) -> std::result::Result<Settings, String> {
        let least = ["pdsfs", "--endpoint", "https://bj1.api.aliyunpds.com", "--drive-id", "1"];
        let line = least.iter().chain(more).copied();
        Line::try_parse_from(line).map(|line| line.settings).map_err(|e| e.to_string())
    }

    fn config(more: &[&str]) -> std::result::Result<MountConfig, String> {
        let spill = tempfile::tempdir().unwrap();
        let dir = spill.path().to_str().unwrap();
        let mut settings = parse(&[more, &["--spill-dir", dir]].concat())?;
        settings.token = Some(Secret::new(" tok\n".to_owned()));
        settings.resolve(None, "/mnt".into()).map_err(|e| e.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_config() {
        let c = config(&[]).unwrap();
        assert_eq!(c.part_size, PartSize::DEFAULT);
        assert_eq!(c.parts_in_flight_max, MountConfig::PARTS_IN_FLIGHT_MAX);
        assert_eq!(c.buffer_bytes_max, MountConfig::BUFFER_BYTES_MAX);
        assert_eq!(c.read_cache_bytes_max, MountConfig::READ_CACHE_BYTES_MAX);
        assert_eq!(c.metadata_ttl, MountConfig::METADATA_TTL);
        assert_eq!(c.commit_timeout, MountConfig::COMMIT_TIMEOUT);
        assert_eq!(c.call_timeout, MountConfig::CALL_TIMEOUT);
        assert_eq!(c.stall_timeout, MountConfig::STALL_TIMEOUT);
        assert_eq!((c.umask, c.remove, c.root_id), (0o022, RemoveMode::Trash, FileId::root()));
        assert!(matches!(c.credential, Credential::Token(t) if t.expose() == "tok"));
    }

    #[test]
    fn every_bound_is_checked() {
        for (option, least, most, beyond) in [
            ("--part-size", "64", "1GiB", ["63", "2GiB"]),
            ("--parts-in-flight", "1", "256", ["0", "257"]),
            ("--read-cache", "1MiB", "1TiB", ["1023K", "1025G"]),
            ("--metadata-ttl", "0s", "1d", ["-1s", "25h"]),
            ("--commit-timeout", "1s", "1d", ["0", "25h"]),
            ("--call-timeout", "1s", "10m", ["0", "11m"]),
            ("--stall-timeout", "1s", "1h", ["999ms", "61m"]),
            ("--umask", "0", "777", ["1000", "8"]),
            ("--uid", "0", "4294967295", ["-1", "x"]),
        ] {
            for fine in [least, most] {
                assert!(parse(&[&format!("{option}={fine}")]).is_ok(), "{option}={fine}");
            }
            for wrong in beyond {
                assert!(parse(&[&format!("{option}={wrong}")]).is_err(), "{option}={wrong}");
            }
        }
    }

    #[test]
    fn two_parts_fit_into_the_buffers() {
        assert!(config(&["--part-size=128MiB", "--buffer-size=256MiB"]).is_ok());
        let error = config(&["--part-size=128MiB", "--buffer-size=255MiB"]).unwrap_err();
        assert!(error.contains("256 MiB"), "{error}");
        assert!(parse(&["--part-size=100"]).unwrap_err().contains("128"));
    }

    #[test]
    fn every_setting_has_its_flag_variable_and_key() {
        for arg in Line::command().get_arguments().filter(|arg| arg.get_id() != "help") {
            let id = arg.get_id().as_str();
            assert_eq!(arg.get_long(), Some(id.replace('_', "-").as_str()));
            let variable = arg.get_env().map(|v| v.to_string_lossy().into_owned());
            assert_eq!(variable, Some(format!("PDSFS_{}", id.to_uppercase())), "{id}");
        }
    }

    /// The texts of the defaults in the help, as arguments.
    fn defaults_of_the_help() -> Vec<String> {
        let command = Line::command();
        let told = command.get_arguments().filter_map(|arg| {
            let help = arg.get_help()?.to_string();
            let text = help.split_once("[default: ")?.1.strip_suffix(']')?.to_owned();
            let flag = arg.get_long()?;
            (!text.contains(' ')).then(|| format!("--{flag}={text}"))
        });
        told.collect()
    }

    #[test]
    fn the_help_tells_the_defaults_that_hold() {
        let told = defaults_of_the_help();
        assert!(told.len() >= 14, "{told:?}");
        let told: Vec<&str> = told.iter().map(String::as_str).collect();
        let spill = tempfile::tempdir().unwrap();
        let spill = ["--spill-dir", spill.path().to_str().unwrap()];
        let resolved = |more: &[&str]| {
            let mut settings = parse(&[more, &spill].concat()).unwrap();
            settings.token = Some(token("t"));
            format!("{:?}", settings.resolve(None, "/mnt".into()).unwrap())
        };
        assert_eq!(resolved(&told), resolved(&[]));
    }

    #[test]
    fn what_is_said_above_hides_what_is_said_below_also_in_other_words() {
        let say = |more: &[&str]| Line::try_parse_from([&["pdsfs"], more].concat()).unwrap().settings;
        let over = |upper: &[&str], lower: &[&str]| say(upper).over(say(lower));
        let both = over(&["--read-only=false"], &["--read-only", "--umask=077"]);
        assert_eq!((both.read_only, both.umask), (Some(false), Some(0o077)));
        let both = over(&["--folder=/b"], &["--root-id=x", "--folder=/a"]);
        assert_eq!((both.folder, both.root_id), ("/b".parse().ok(), None));
        let mut upper = say(&[]);
        upper.token = Some(token("t"));
        let both = upper.over(say(&["--token-file=/f"]));
        assert!(both.token.is_some() && both.token_file.is_none());
    }

    /// Three values of a setting: those of its flag, its variable and its key.
    fn values(id: &str) -> [&'static str; 3] {
        match id {
            "endpoint" => ["https://a.example", "https://b.example", "https://c.example"],
            "drive_id" | "root_id" | "account" => ["a", "b", "c"],
            "folder" | "token_file" | "spill_dir" => ["/a", "/b", "/c"],
            "allow_other" | "read_only" | "noexec" | "allow_non_empty" => ["false", "true", "false"],
            "metadata" | "notify" => ["on", "off", "on"],
            "remove" => ["trash", "delete", "trash"],
            "local_only" => ["a", "b", "off"],
            "metrics_listen" => ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"],
            "umask" => ["001", "002", "003"],
            "parts_in_flight" | "uid" | "gid" => ["1", "2", "3"],
            "part_size" => ["1MiB", "2MiB", "4MiB"],
            "metadata_ttl" | "commit_timeout" | "call_timeout" | "stall_timeout" => ["1s", "2s", "3s"],
            "buffer_size" | "read_cache" | "cache_size" | "cache_min_free" => ["64MiB", "65MiB", "66MiB"],
            other => panic!("{other} has no values here"),
        }
    }

    #[test]
    fn of_every_setting_the_flag_goes_over_the_variable_and_that_over_the_file() {
        let shown = |settings: Settings| format!("{settings:?}");
        let flags = file::flags();
        for arg in flags.get_arguments() {
            let id = arg.get_id().as_str();
            let [flag, variable, key] = values(id);
            let flag = parse_alone(&[&format!("--{}={flag}", id.replace('_', "-"))]);
            let name = format!("PDSFS_{}", id.to_uppercase());
            let variable = Settings::of_variables(|asked| (asked == name).then(|| variable.into())).unwrap();
            let key = file::setting(&flags, id, key).unwrap();
            let nothing = Settings::default;
            assert_ne!(shown(flag.clone()), shown(nothing()), "{id}");
            assert_ne!(shown(flag.clone()), shown(variable.clone()), "{id}");
            assert_ne!(shown(variable.clone()), shown(key.clone()), "{id}");
            let all = flag.clone().over(variable.clone()).over(key.clone());
            assert_eq!(shown(all), shown(flag), "{id}");
            assert_eq!(shown(nothing().over(variable.clone()).over(key.clone())), shown(variable), "{id}");
            assert_eq!(shown(nothing().over(nothing()).over(key.clone())), shown(key), "{id}");
        }
    }

    fn parse_alone(arguments: &[&str]) -> Settings {
        let command = without_variables(Line::command());
        let matches = command.try_get_matches_from([&["pdsfs"], arguments].concat()).unwrap();
        Settings::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn who_mounts_is_said_by_the_topmost_that_says_it() {
        let variables = |said: &'static [(&str, &str)]| {
            let value =
                |asked: &str| said.iter().find(|(name, _)| *name == asked).map(|(_, value)| value.into());
            Settings::of_variables(value)
        };
        let token = variables(&[(TOKEN_VARIABLE, "t")]).unwrap();
        assert_eq!(token.token.as_ref().map(|token| token.expose().as_str()), Some("t"));
        let all = parse_alone(&["--account=a"]).over(token.clone());
        assert!(all.account.is_some() && all.token.is_none());
        let all = parse_alone(&[]).over(token).over(parse_alone(&["--account=a"]));
        assert!(all.account.is_none() && all.token.is_some());
        // One that is named goes over one that is given.
        let named = variables(&[(TOKEN_VARIABLE, "t"), ("PDSFS_TOKEN_FILE", "/f")]).unwrap();
        assert!(named.token.is_none() && named.token_file.is_some());
        let both = variables(&[("PDSFS_ACCOUNT", "a"), ("PDSFS_TOKEN_FILE", "/f")]).unwrap();
        assert!(both.check().unwrap_err().to_string().contains("leave one of them out"));
        assert!(parse_alone(&["--account=a"]).over(both).check().is_ok());
        // In one place the way down may begin at a folder that is known by its id.
        let below = variables(&[("PDSFS_ROOT_ID", "r"), ("PDSFS_FOLDER", "/a")]).unwrap();
        assert!(below.root_id.is_some() && below.folder.is_some());
    }

    #[test]
    fn a_variable_that_makes_no_sense_is_named_and_an_empty_one_says_nothing() {
        let of = |name: &'static str, value: &'static str| {
            Settings::of_variables(move |asked| (asked == name).then(|| value.into()))
        };
        let error = of("PDSFS_PART_SIZE", "63").unwrap_err().to_string();
        assert!(error.starts_with("PDSFS_PART_SIZE: "), "{error}");
        assert!(of("PDSFS_READ_ONLY", "").unwrap().read_only.is_none());
    }

    fn token(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    #[test]
    fn without_a_token_nothing_starts() {
        assert!(credential(None, None).unwrap_err().to_string().contains(TOKEN_VARIABLE));
        assert!(credential(None, Some(&token(" \n"))).unwrap_err().to_string().contains("empty"));
        assert!(credential(Some("/nonexistent/token".as_ref()), Some(&token("t"))).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        let named = credential(Some(file.path()), Some(&token("t"))).unwrap();
        assert!(matches!(named, Credential::File(_)), "a named file goes first");
    }
}
