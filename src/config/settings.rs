//! The table of all settings. Each row makes a flag, an environment variable, a key of the configuration
//! file, a line of `doc/CONFIGURATION.md` and a field.
//!
//! Setting `part_size` is the flag `--part-size`, the variable `PDSFS_PART_SIZE` and the key `part_size`. All
//! three use the parser of the row. [`Settings`] holds the settings of one source; [`Settings::layered_over`]
//! merges the sources. Defaults apply after that, in [`Settings::options`]. The settings under `resolved`
//! depend on the account and the machine; `daemon::resolve` completes them.

#![allow(
    clippy::doc_markdown,
    rustdoc::bare_urls,
    reason = "doc comments of settings are help texts, shown as they are"
)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::Resettable;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueEnum, ValueHint};
use url::Url;

use super::drive_path::DrivePath;
use super::host_patterns::HostPatterns;
use super::notation::Notation;
use crate::auth::{AccountName, endpoint};
use crate::error::{Error, Result};
use crate::ids::{DriveId, FileId, PartSize, Secret};
use crate::name_patterns::NamePatterns;
use crate::units::{GIB, MIB, PIB, TIB, exact_size, parse_size};

const DAY_S: u64 = 86_400;
/// One part is filled while another one is sent.
const BUFFERED_PARTS_MIN: u64 = 2;

/// The destination of deleted files and directories.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum RemoveMode {
    /// To the recycle bin of the drive
    #[default]
    Trash,
    /// Deleted for good
    Delete,
}

/// The owners that files of the drive are shown with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Owners {
    /// Those that the drive records
    Drive,
    /// The user and group of the mount
    Mounter,
}

/// The description of one setting, for help texts and documents.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The key in the configuration file.
    pub name: &'static str,
    pub meaning: String,
    /// The accepted values; empty if every text is one.
    pub bounds: String,
    pub default: DefaultText,
    pub(super) arg: Arg,
}

/// The default of a setting, as text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DefaultText {
    /// A value that the parser accepts.
    Value(String),
    /// A description, where the default depends on something else.
    Words(&'static str),
}

impl DefaultText {
    pub fn text(&self) -> &str {
        match self {
            Self::Value(text) => text,
            Self::Words(words) => words,
        }
    }
}

impl Setting {
    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("PDSFS_{}", self.name.to_uppercase())
    }

    fn new<T>(name: &'static str, doc: &[&str], notation: &Notation<T>, default: DefaultText) -> Self
    where
        T: Clone + Send + Sync + 'static,
    {
        let meaning = doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        let bounds = notation.help_bounds().map(|bounds| format!("; {bounds}")).unwrap_or_default();
        let arg = Arg::new(name)
            .long(name.replace('_', "-"))
            .env(format!("PDSFS_{}", name.to_uppercase()))
            .help(format!("{meaning}{bounds} [default: {}]", default.text()))
            .action(ArgAction::Set);
        Self { name, meaning, bounds: notation.bounds().to_owned(), default, arg: notation.apply(arg) }
    }
}

/// The type of a field of [`MountOptions`]: optional without a default.
macro_rules! option_type {
    ([$type:ty]) => { Option<$type> };
    ([$type:ty] [$default:expr]) => { $type };
}

macro_rules! option_value {
    ([$value:expr]) => {
        $value
    };
    ([$value:expr] [$default:expr]) => {
        $value.unwrap_or_else(|| $default)
    };
}

macro_rules! default_text {
    ($notation:ident, value $default:expr) => {
        DefaultText::Value($notation.text_of(&$default))
    };
    ($notation:ident, words $words:literal) => {
        DefaultText::Words($words)
    };
}

/// A row is `name: Type = notation => default;`, or `name: Type = notation, words "default in words";`. The
/// doc comment is the meaning, in help texts and documents too.
macro_rules! settings {
    (
        resolved { $(
            $(#[doc = $rdoc:literal])+
            $rname:ident: $rtype:ty = $rnotation:expr, words $rwords:literal;
        )+ }
        options { $(
            $(#[doc = $doc:literal])+
            $name:ident: $type:ty = $notation:expr $(=> $default:expr)? $(, words $words:literal)?;
        )+ }
    ) => {
        /// The settings of one source; `None` for each setting that the source leaves out.
        #[derive(Clone, Debug, Default)]
        pub struct Settings {
            $( $(#[doc = $rdoc])+ pub $rname: Option<$rtype>, )+
            $( $(#[doc = $doc])+ pub $name: Option<$type>, )+
            /// The access token itself, from `PDSFS_TOKEN`. It has no flag: other users can read command
            /// lines.
            pub token: Option<Secret<String>>,
        }

        /// The options of one mount, with defaults filled in.
        #[allow(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
        #[derive(Clone, Debug)]
        pub struct MountOptions {
            $( $(#[doc = $doc])+ pub $name: option_type!([$type] $([$default])?), )+
        }

        impl Settings {
            /// Fills in the defaults.
            pub fn options(&self) -> MountOptions {
                MountOptions { $( $name: option_value!([self.$name.clone()] $([$default])?), )+ }
            }

            /// Takes the settings from `other` that `self` does not set.
            #[must_use]
            pub fn or(self, other: Self) -> Self {
                Self {
                    $( $rname: self.$rname.or(other.$rname), )+
                    $( $name: self.$name.or(other.$name), )+
                    token: self.token.or(other.token),
                }
            }
        }

        impl FromArgMatches for Settings {
            fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
                Ok(Self {
                    $( $rname: matches.get_one::<$rtype>(stringify!($rname)).cloned(), )+
                    $( $name: matches.get_one::<$type>(stringify!($name)).cloned(), )+
                    token: None,
                })
            }

            fn update_from_arg_matches(
                &mut self,
                matches: &ArgMatches,
            ) -> std::result::Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?.or(std::mem::take(self));
                Ok(())
            }
        }

        /// All settings, in the order of the table.
        pub fn all() -> Vec<Setting> {
            vec![
                $( {
                    let notation: Notation<$rtype> = $rnotation;
                    Setting::new(stringify!($rname), &[$($rdoc),+], &notation, DefaultText::Words($rwords))
                }, )+
                $( {
                    let notation: Notation<$type> = $notation;
                    let default = default_text!(notation, $(value $default)? $(words $words)?);
                    Setting::new(stringify!($name), &[$($doc),+], &notation, default)
                }, )+
            ]
        }
    };
}

settings! {
    resolved {
        /// Base URL of the domain's API, such as https://bj1.api.aliyunpds.com; http is accepted for this
        /// machine only
        endpoint: Url = Notation::new("URL", "", endpoint::parse, Url::to_string), words "from the account";

        /// Id of the drive
        drive_id: DriveId = Notation::plain("ID"), words "from the account";

        /// Id of the drive folder that becomes the root of the mount
        root_id: FileId = Notation::plain("FILE_ID"), words "the root of the drive";

        /// Path of the drive folder that becomes the root of the mount, such as /Pictures/2024; relative to
        /// root_id if both are set
        folder: DrivePath = Notation::plain("PATH"), words "none";

        /// The account to use, from pdsfs login; not together with token_file
        account: AccountName = Notation::new("NAME", "", AccountName::new, AccountName::to_string),
            words "the account with the name of the drive, else \"default\"";

        /// A file with the access token, or with JSON {"access_token", "refresh_token", "app_id"}; only its
        /// owner may read it
        token_file: PathBuf = Notation::path("FILE", ValueHint::FilePath), words "none";

        /// Owner of files whose owner the drive does not record, and of all files with owners=mounter
        uid: u32 = Notation::count("UID", 0, u32::MAX.into()), words "the user who mounts";

        /// Group of files whose group the drive does not record, and of all files with owners=mounter
        gid: u32 = Notation::count("GID", 0, u32::MAX.into()), words "the group of the user who mounts";

        /// Directory for staged files, cached files and upload parts that exceed the buffers
        spill_dir: PathBuf = Notation::path("DIR", ValueHint::DirPath),
            words "pdsfs in the user's cache directory, for root /var/cache/pdsfs";
    }
    options {
        /// Let other users access the mount; ordinary users need user_allow_other in /etc/fuse.conf
        allow_other: bool = Notation::switch() => false;

        /// Refuse every change
        read_only: bool = Notation::switch() => false;

        /// Refuse to execute programs on the mount
        noexec: bool = Notation::switch() => false;

        /// Follow no symbolic links of the mount; needs root and Linux 5.14
        nosymfollow: bool = Notation::switch() => false;

        /// Allow a mountpoint that is not empty; the mount hides its contents
        allow_non_empty: bool = Notation::switch() => false;

        /// As root, mount also where another user can replace a directory on the way, if the mountpoint belongs
        /// to that user; the path is resolved with the rights of that user
        allow_user_mountpoint: bool = Notation::switch() => false;

        /// PEM file with root certificates of https services that are accepted in addition to those of the
        /// system, such as that of your own authority
        ca_file: PathBuf = Notation::path("FILE", ValueHint::FilePath), words "none";

        /// Hosts that content may be on although their addresses are private or of this machine: name patterns
        /// separated by commas, such as *.internal.example, and with http:// before them also without TLS;
        /// link-local addresses stay refused; off for none
        content_hosts: HostPatterns = Notation::new("HOSTS", "", HostPatterns::parse, HostPatterns::to_string)
            => HostPatterns::default();

        /// Size of upload parts; a file has at most 10,000 parts, and real domains refuse parts below 100 KiB
        part_size: PartSize = part_size() => PartSize::DEFAULT;

        /// Maximum number of parts of one upload in flight; pdsfs adapts the number within this limit
        parts_in_flight: usize = Notation::count("N", 1, 256) => 32;

        /// Maximum number of API calls at a time; commits go first, then part URLs, then lookups and listings
        concurrent_calls: usize = Notation::count("N", 1, 1024) => 64;

        /// Memory for all write buffers together, at least two parts
        buffer_size: u64 = Notation::size(MIB, TIB) => 256 * MIB;

        /// Memory for blocks that were read
        read_cache: u64 = Notation::size(MIB, TIB) => 64 * MIB;

        /// How long names and attributes stay fresh before they are read from the drive again
        metadata_ttl: Duration = Notation::duration(0, DAY_S) => Duration::from_secs(15);

        /// How long close waits without upload progress before it returns an error
        commit_timeout: Duration = Notation::duration(1, DAY_S) => Duration::from_secs(600);

        /// Time limit of one attempt of a metadata call
        call_timeout: Duration = Notation::duration(1, 600) => Duration::from_secs(30);

        /// How long a transfer may be idle before it is tried again
        stall_timeout: Duration = Notation::duration(1, 3600) => Duration::from_secs(60);

        /// Destination of deleted files and directories: trash moves them to the drive's recycle bin, delete
        /// removes them for good
        remove: RemoveMode = Notation::choice("MODE") => RemoveMode::Trash;

        /// Store modes, owners, links, special files and extended attributes on the drive, as tags of its
        /// files; when off, attributes are accepted and forgotten, and links and special files are refused
        metadata: bool = Notation::on_off() => true;

        /// Owners of files: drive shows and stores those of the drive's tags, mounter shows uid and gid, and
        /// changes of the owner are accepted and not kept
        owners: Owners = Notation::choice("WHOSE"),
            words "mounter for drives of a group and for mounts by root with allow_other, else drive";

        /// Show and store set-user-ID and set-group-ID bits, and the sticky bit of files; when off, such bits are
        /// neither believed nor kept
        special_bits: bool = Notation::on_off() => false;

        /// Permissions removed from files (0666) and directories (0777), in octal
        umask: u16 = Notation::new("OCTAL", "0 to 777", parse_umask, |mask| format!("{mask:03o}")) => 0o022;

        /// Disk space for all staged and cached files together
        cache_size: u64 = Notation::size_or_off(MIB, PIB), words "a tenth of the disk, at most 20GiB";

        /// Disk space that staged and cached files leave free
        cache_min_free: u64 = Notation::size(0, PIB) => 512 * MIB;

        /// Most bytes of a file that no program wrote (holes) and that are uploaded as zeros; truncate beyond it,
        /// and close with more of them, fail with EFBIG
        zero_fill_max: u64 = Notation::size(0, PIB) => 4 * GIB;

        /// Name patterns of lock and junk files that are never uploaded and end with the mount, separated by
        /// commas; * matches any characters, ? matches one; off for none
        local_only: NamePatterns = Notation::new("PATTERNS", "", parse_patterns, NamePatterns::to_string)
            => NamePatterns::junk();

        /// Serve Prometheus metrics at http://ADDRESS:PORT/metrics, without authentication
        metrics_listen: SocketAddr = Notation::plain("ADDRESS:PORT"), words "none";

        /// Show a desktop notification when a file cannot be saved
        notify: bool = Notation::on_off() => true;
    }
}

impl Default for MountOptions {
    fn default() -> Self {
        Settings::default().options()
    }
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        let command = all().into_iter().fold(command, |command, setting| command.arg(setting.arg));
        command.mut_arg("account", |account| account.conflicts_with("token_file"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl Settings {
    /// Merges two sources: `self` overrides `lower`.
    ///
    /// `account`, `token_file` and the token are one choice, and so are `folder` and `root_id`: a source that
    /// sets one of them hides the others of the lower source.
    #[must_use]
    pub fn layered_over(self, mut lower: Self) -> Self {
        if self.account.is_some() || self.token_file.is_some() || self.token.is_some() {
            (lower.account, lower.token_file, lower.token) = (None, None, None);
        }
        if self.folder.is_some() || self.root_id.is_some() {
            (lower.folder, lower.root_id) = (None, None);
        }
        self.or(lower)
    }

    /// Checks that involve more than one setting.
    pub fn check(&self) -> Result<()> {
        if self.account.is_some() && self.token_file.is_some() {
            return Err(Error::invalid("account and token-file are mutually exclusive: remove one of them"));
        }
        let MountOptions { part_size, buffer_size, .. } = self.options();
        let buffer_min = part_size.get() * BUFFERED_PARTS_MIN;
        if buffer_size < buffer_min {
            return Err(Error::invalid(format!(
                "buffer-size must hold {BUFFERED_PARTS_MIN} parts: at least {} with this part-size",
                exact_size(buffer_min)
            )));
        }
        Ok(())
    }
}

/// Removes the environment variables of settings from a command: variables are a layer below the flags.
pub fn without_variables(command: Command) -> Command {
    let names: Vec<&str> = all().iter().map(|setting| setting.name).collect();
    command.mut_args(
        |arg| {
            if names.contains(&arg.get_id().as_str()) { arg.env(Resettable::Reset) } else { arg }
        },
    )
}

fn part_size() -> Notation<PartSize> {
    let parse = |text: &str| PartSize::new(parse_size(text)?).map_err(|e| e.to_string());
    let bounds = format!("{} to {}, a multiple of 64B", exact_size(PartSize::MIN), exact_size(PartSize::MAX));
    Notation::new("SIZE", bounds, parse, |size| exact_size(size.get()))
}

fn parse_umask(text: &str) -> std::result::Result<u16, String> {
    let invalid = || format!("{text:?} is not an octal number from 0 to 777");
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid());
    }
    u16::from_str_radix(text, 8).ok().filter(|mask| *mask <= 0o777).ok_or_else(invalid)
}

fn parse_patterns(text: &str) -> Result<NamePatterns> {
    NamePatterns::new(text.split(','))
}

#[cfg(test)]
mod tests;
