//! The arguments of `pdsfs mount`, and the way to a [`MountConfig`] that needs no further check.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use url::Url;

use crate::account::{AccountName, DEFAULT_NAME, Store};
use crate::cli::quantities::{bytes, bytes_within, duration_within, show_bytes};
use crate::config::{Credential, MountConfig, RemoveMode};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, FileId, PartSize, Secret};
use crate::pds::endpoint;

const MIB: u64 = 1 << 20;
const DAY_S: u64 = 86_400;
/// One part is filled while another one is sent.
const BUFFERED_PARTS_MIN: u64 = 2;
/// Where the token is looked for when no file is named.
const TOKEN_VARIABLE: &str = "PDSFS_TOKEN";

/// Arguments of `pdsfs mount`.
#[derive(Debug, Args)]
#[command(after_help = "Sizes are bytes, or numbers with KiB, MiB, GiB (8M means 8MiB). Durations are \
    seconds, or numbers with ms, s, m, h, d.\nThe access token is taken from $PDSFS_TOKEN unless a file is \
    named.\nOn SIGINT or SIGTERM open files are saved before the drive is unmounted; a second signal \
    gives up at once.")]
pub struct MountArgs {
    /// Base URL of the domain's API, such as https://bj1.api.aliyunpds.com; http only to this machine
    /// [default: that of the account]
    #[arg(long, env = "PDSFS_ENDPOINT", value_name = "URL", value_parser = endpoint::parse)]
    endpoint: Option<Url>,
    /// The drive [default: that of the account]
    #[arg(long, env = "PDSFS_DRIVE_ID", value_name = "ID")]
    drive_id: Option<DriveId>,
    /// An account that pdsfs login has made [default: "default", where there is no token]
    #[arg(long, env = "PDSFS_ACCOUNT", value_name = "NAME", conflicts_with = "token_file")]
    account: Option<String>,
    /// The folder of the drive that is mounted
    #[arg(long, value_name = "FILE_ID", default_value = "root")]
    root_id: FileId,
    /// A file with the access token, or with JSON {"access_token", "refresh_token", "app_id"};
    /// readable by its owner only
    #[arg(long, env = "PDSFS_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Let other users in (ordinary users need user_allow_other in /etc/fuse.conf)
    #[arg(long)]
    allow_other: bool,
    /// Refuse every change
    #[arg(long)]
    read_only: bool,
    /// Size of the parts of an upload; a file has at most 10,000 of them. A multiple of 64 bytes, up
    /// to 1 GiB; real domains refuse less than 100 KiB
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = part_size)]
    part_size: PartSize,
    /// Most parts of an upload that are sent at once, 1 to 256; adapts below that by itself
    #[arg(long, value_name = "N", default_value_t = MountConfig::PARTS_IN_FLIGHT_MAX as u64,
        value_parser = clap::value_parser!(u64).range(1..=256))]
    parts_in_flight: u64,
    /// All write buffers together, 1MiB to 1TiB and at least two parts
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = bytes_within(MIB, MIB << 20))]
    buffer_size: u64,
    /// Memory for what was read, 1MiB to 1TiB
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = bytes_within(MIB, MIB << 20))]
    read_cache: u64,
    /// How long names and attributes are believed before the drive is asked again, 0s to 1d
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration_within(0, DAY_S))]
    metadata_ttl: Duration,
    /// How long closing a file waits for the drive before it reports an error, 1s to 1d
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration_within(1, DAY_S))]
    commit_timeout: Duration,
    /// How long one metadata call may take, in one attempt, 1s to 10m
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration_within(1, 600))]
    call_timeout: Duration,
    /// How long a transfer may stand still before it is tried again, 1s to 1h
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration_within(1, 3600))]
    stall_timeout: Duration,
    /// What removing does: to the drive's recycle bin, or for good
    #[arg(long, value_enum, default_value_t = Remove::Trash)]
    remove: Remove,
    /// Whether modes, owners, links, special files and extended attributes are kept on the drive, as
    /// tags of its files
    #[arg(long, value_enum, default_value_t = Metadata::On)]
    metadata: Metadata,
    /// Owner of what has none on the drive [default: who mounts]
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Group of what has none on the drive [default: of who mounts]
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,
    /// Permissions taken away from files (0666) and folders (0777), in octal, 0 to 777
    #[arg(long, value_name = "OCTAL", default_value = "022", value_parser = umask)]
    umask: u16,
    /// Local copies of files that are not written front to back, all together, 1MiB to 1PiB, or "off"
    /// [default: a tenth of the disk, at most 20GiB]
    #[arg(long, value_name = "SIZE", value_parser = cache_size)]
    cache_size: Option<u64>,
    /// What those copies leave free on their disk, 0 to 1PiB
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = bytes_within(0, MIB << 30))]
    cache_min_free: u64,
    /// Where those copies lie, and parts that do not fit into memory [default: pdsfs in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    spill_dir: Option<PathBuf>,
    /// The folder to mount at
    mountpoint: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Metadata {
    /// Kept
    On,
    /// Accepted and forgotten; links and special files are refused
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Remove {
    /// To the recycle bin
    Trash,
    /// For good
    Delete,
}

impl MountArgs {
    /// Takes what is missing from the environment and checks what depends on each other.
    pub(in crate::cli) fn into_config(self) -> Result<MountConfig> {
        self.resolve(std::env::var(TOKEN_VARIABLE).ok().as_deref())
    }

    fn resolve(self, token: Option<&str>) -> Result<MountConfig> {
        let buffer_min = self.part_size.get() * BUFFERED_PARTS_MIN;
        if self.buffer_size < buffer_min {
            return Err(invalid(format!(
                "--buffer-size must hold {BUFFERED_PARTS_MIN} parts: at least {} with this --part-size",
                show_bytes(buffer_min)
            )));
        }
        let spill_dir = match self.spill_dir {
            Some(dir) => {
                dir.canonicalize().map_err(|e| invalid(format!("--spill-dir {}: {e}", dir.display())))?
            }
            None => default_spill_dir()?,
        };
        if !spill_dir.is_dir() {
            return Err(invalid(format!("--spill-dir {} is not a folder", spill_dir.display())));
        }
        // SAFETY: both calls only read the process's own ids and cannot fail.
        let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
        let place = place(self.endpoint, self.drive_id, self.account.as_deref(), self.token_file, token)?;
        Ok(MountConfig {
            endpoint: place.endpoint,
            drive_id: place.drive_id,
            root_id: self.root_id,
            credential: place.credential,
            mountpoint: self.mountpoint,
            allow_other: self.allow_other,
            read_only: self.read_only,
            uid: self.uid.unwrap_or(uid),
            gid: self.gid.unwrap_or(gid),
            umask: self.umask,
            part_size: self.part_size,
            parts_in_flight_max: usize::try_from(self.parts_in_flight).map_err(|e| invalid(e.to_string()))?,
            buffer_bytes_max: self.buffer_size,
            read_cache_bytes_max: self.read_cache,
            metadata_ttl: self.metadata_ttl,
            commit_timeout: self.commit_timeout,
            call_timeout: self.call_timeout,
            stall_timeout: self.stall_timeout,
            remove: match self.remove {
                Remove::Trash => RemoveMode::Trash,
                Remove::Delete => RemoveMode::Delete,
            },
            metadata: self.metadata == Metadata::On,
            spill_dir,
            staged_bytes_max: self.cache_size,
            free_bytes_min: self.cache_min_free,
        })
    }
}

fn cache_size(text: &str) -> std::result::Result<u64, String> {
    if text == "off" { Ok(0) } else { bytes_within(MIB, MIB << 30)(text) }
}

fn invalid(detail: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::Invalid, detail)
}

/// Which drive, where, and as whom.
struct Place {
    endpoint: Url,
    drive_id: DriveId,
    credential: Credential,
}

/// An account knows where it belongs; a token does not.
fn place(
    endpoint: Option<Url>,
    drive_id: Option<DriveId>,
    account: Option<&str>,
    token_file: Option<PathBuf>,
    token: Option<&str>,
) -> Result<Place> {
    let name = match account {
        Some(name) => name,
        None if token_file.is_none() && token.is_none() => DEFAULT_NAME,
        None => {
            return Ok(Place {
                endpoint: endpoint.ok_or_else(|| invalid("no endpoint: name it with --endpoint"))?,
                drive_id: drive_id.ok_or_else(|| invalid("no drive: name it with --drive-id"))?,
                credential: credential(token_file, token)?,
            });
        }
    };
    let handle = Store::from_env()?.account(AccountName::new(name)?);
    let outline = handle.outline().map_err(|e| match account {
        Some(_) => e,
        None => invalid(format!("no access token: {e}, or set {TOKEN_VARIABLE}, or name a --token-file")),
    })?;
    Ok(Place {
        endpoint: endpoint.unwrap_or(outline.endpoint),
        drive_id: drive_id.unwrap_or(outline.drive_id),
        credential: Credential::Account(handle),
    })
}

/// A named file goes before the environment. Whether it is private is checked where it is read.
fn credential(file: Option<PathBuf>, token: Option<&str>) -> Result<Credential> {
    if let Some(file) = file {
        let absolute = file.canonicalize();
        let file = absolute.map_err(|e| invalid(format!("--token-file {}: {e}", file.display())))?;
        return Ok(Credential::File(file));
    }
    match token.map(str::trim) {
        Some("") => Err(invalid(format!("{TOKEN_VARIABLE} is empty"))),
        Some(token) => Ok(Credential::Token(Secret::new(token.to_owned()))),
        None => Err(invalid(format!("no access token: set {TOKEN_VARIABLE} or name a --token-file"))),
    }
}

/// The cache folder of a systemd unit, else of the user; made if it is missing.
fn default_spill_dir() -> Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let user = || absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    let dir = absolute("CACHE_DIRECTORY").or_else(|| user().map(|cache| cache.join("pdsfs")));
    let dir = dir.ok_or_else(|| invalid("neither XDG_CACHE_HOME nor HOME is set: name a --spill-dir"))?;
    private_dir(&dir).and_then(|()| dir.canonicalize()).map_err(|e| {
        invalid(format!("cannot make {}: {e}; name another folder with --spill-dir", dir.display()))
    })
}

fn private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn part_size(text: &str) -> std::result::Result<PartSize, String> {
    PartSize::new(bytes(text)?).map_err(|e| e.to_string())
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
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: MountArgs,
    }

    fn parse(more: &[&str]) -> std::result::Result<MountArgs, String> {
        let least = ["pdsfs", "--endpoint", "https://bj1.api.aliyunpds.com", "--drive-id", "1", "/mnt"];
        let line = least.iter().chain(more).copied();
        Line::try_parse_from(line).map(|line| line.args).map_err(|e| e.to_string())
    }

    fn config(more: &[&str]) -> std::result::Result<MountConfig, String> {
        let spill = tempfile::tempdir().unwrap();
        let dir = spill.path().to_str().unwrap();
        let args = parse(&[more, &["--spill-dir", dir]].concat())?;
        args.resolve(Some(" tok\n")).map_err(|e| e.to_string())
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
    fn without_a_token_nothing_starts() {
        assert!(credential(None, None).unwrap_err().to_string().contains(TOKEN_VARIABLE));
        let url = Url::parse("http://127.0.0.1:1").unwrap();
        let nowhere = place(None, Some(DriveId::new("1").unwrap()), None, None, Some("t"));
        assert!(nowhere.err().unwrap().to_string().contains("--endpoint"));
        assert!(
            place(Some(url), None, None, None, Some("t")).err().unwrap().to_string().contains("--drive-id")
        );
        assert!(credential(None, Some(" \n")).unwrap_err().to_string().contains("empty"));
        assert!(credential(Some("/nonexistent/token".into()), Some("t")).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        let named = credential(Some(file.path().into()), Some("t")).unwrap();
        assert!(matches!(named, Credential::File(_)), "a named file goes first");
    }
}
