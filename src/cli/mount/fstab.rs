//! The mount helper for `mount -t fuse.pdsfs` and `/etc/fstab`: the program under the name `mount.pdsfs` or
//! `mount.fuse.pdsfs`, with the arguments of `mount(8)`.
//!
//! Options are the settings of the configuration file, under the same names.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};

use super::arguments::MountArgs;
use crate::cli::output::print_error;
use crate::config::dirs;
use crate::config::parse::SettingParser;
use crate::config::settings::{Settings, without_variables};
use crate::daemon::{self, background};
use crate::error::{Error, Result};
use crate::fuse::remount::{self, FlagChange};

/// Options for `mount(8)` and other readers of `/etc/fstab`; ignored.
const MOUNT_OPTIONS: &[&str] = &[
    "defaults", "auto", "noauto", "user", "users", "nouser", "owner", "group", "_netdev", "nofail", "silent",
    "loud", "comment", "uhelper", "helper",
];
/// Options that are always in effect: the kernel checks modes and ignores set-user-ID bits and devices, and
/// reads do not change access times.
const ALWAYS_TRUE: &[&str] = &[
    "default_permissions",
    "nosuid",
    "nodev",
    "async",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
];
/// Options that are refused, each with the reason.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("suid", "set-user-ID bits are ignored; remove the option"),
    ("dev", "device nodes cannot be opened; remove the option"),
    ("sync", "a file is committed when it is closed or synced, not after each write; remove the option"),
    ("dirsync", "a new file is committed when it is closed, not before; remove the option"),
    ("strictatime", "reads do not change access times; remove the option"),
];
/// The settings that a remount changes.
const READ_ONLY: &str = "read_only";
const NOEXEC: &str = "noexec";
/// Options of `mount(8)` and FUSE with the settings they mean.
const ALIASES: &[(&str, (&str, &str))] = &[
    ("ro", (READ_ONLY, "true")),
    ("rw", (READ_ONLY, "false")),
    ("exec", (NOEXEC, "false")),
    ("symfollow", ("nosymfollow", "false")),
    ("nonempty", ("allow_non_empty", "true")),
];
/// Exit codes of `mount(8)`: a wrong line, and a mount that failed.
const EXIT_INVOCATION: u8 = 1;
const EXIT_FAILED: u8 = 32;
/// Placeholders in the first field if options describe the drive.
const PLACEHOLDERS: &[&str] = &["none", "pdsfs"];

/// Mount a drive and return when it is mounted
#[derive(Debug, Parser)]
#[command(
    name = "mount.pdsfs",
    version,
    after_help = "mount(8) runs this program for lines of /etc/fstab such as:\n\n  photos  /mnt/photos  \
        fuse.pdsfs  noauto,_netdev,allow_other  0 0\n\nOptions are the settings of the configuration file \
        (see: pdsfs config example), and ro, rw, exec, noexec, nonempty, config=FILE. \
        remount changes ro, rw and noexec of a mounted drive. Put a value with \
        commas in quotes: local_only=\"*.tmp,*.swp\". Exit codes: 1 wrong line, 32 the mount failed."
)]
struct FstabArgs {
    /// A drive of the configuration, as NAME or NAME:/FOLDER; "none" if options describe the drive
    spec: String,
    /// The directory to mount at
    dir: OsString,
    /// Options, comma-separated
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Ignore unknown options
    #[arg(short = 's')]
    sloppy: bool,
    /// Check everything, but do not mount
    #[arg(short = 'f')]
    fake: bool,
    /// Accepted for mount(8) and ignored: pdsfs writes no /etc/mtab
    #[arg(short = 'n', action = clap::ArgAction::Count)]
    no_mtab: u8,
    /// Accepted for mount(8) and ignored: errors are always printed
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    verbose: u8,
    /// The file system type, such as fuse.pdsfs
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<String>,
}

/// Whether `mount(8)` started the program, by the name of the program.
pub(in crate::cli) fn is_mount_helper(program: &str) -> bool {
    matches!(program, "mount.pdsfs" | "mount.fuse.pdsfs")
}

/// The arguments, for the man page.
pub(in crate::cli) fn command() -> clap::Command {
    FstabArgs::command()
}

/// The arguments of `pdsfs mount`, to check the translated ones.
#[derive(Debug, Parser)]
struct MountCommand {
    #[command(flatten)]
    mount: MountArgs,
}

/// Reads the arguments and mounts in the background.
pub(in crate::cli) fn run() -> ExitCode {
    let args = match FstabArgs::try_parse() {
        Ok(args) => args,
        Err(e) => {
            e.print().ok();
            return ExitCode::from(if e.use_stderr() { EXIT_INVOCATION } else { 0 });
        }
    };
    let fail = |error: Error, code| {
        print_error(&error);
        ExitCode::from(code)
    };
    match args.flag_change() {
        Ok(None) => {}
        Ok(Some(_)) if args.fake => return ExitCode::SUCCESS,
        Ok(Some(change)) => {
            let remounted = remount_at(args.dir.as_ref(), change);
            return remounted.map_or_else(|error| fail(error, EXIT_FAILED), |()| ExitCode::SUCCESS);
        }
        Err(error) => return fail(error, EXIT_INVOCATION),
    }
    let arguments = match args.checked_arguments() {
        Ok(arguments) => arguments,
        Err(error) => return fail(error, EXIT_INVOCATION),
    };
    if args.fake {
        return ExitCode::SUCCESS;
    }
    match background::start(arguments) {
        Ok(code) if code == ExitCode::SUCCESS => code,
        Ok(_) => ExitCode::from(EXIT_FAILED),
        Err(error) => fail(error, EXIT_FAILED),
    }
}

fn remount_at(path: &Path, change: FlagChange) -> Result<()> {
    let dir = daemon::resolve(path)
        .map_err(|e| Error::from(e).context(format!("cannot remount {}", path.display())))?;
    remount::remount(&dir, change)
}

impl FstabArgs {
    /// [`Self::arguments`], after a check of the drive and the settings.
    fn checked_arguments(&self) -> Result<Vec<OsString>> {
        let arguments = self.arguments()?;
        let matches = without_variables(MountCommand::command()).try_get_matches_from(&arguments);
        let line = matches.and_then(|matches| MountCommand::from_arg_matches(&matches));
        let line = line.map_err(|e| Error::invalid(e.to_string().trim_end()))?;
        line.mount.into_config()?;
        Ok(arguments)
    }

    /// The arguments of `pdsfs mount`.
    fn arguments(&self) -> Result<Vec<OsString>> {
        let mut out: Vec<OsString> = vec!["mount".into(), background::DETACHED.into(), "--quiet".into()];
        // mount(8) finds its line in the mount table by the source.
        out.push(format!("--source={}", self.spec).into());
        out.extend(self.settings()?.into_iter().map(|(key, value)| format!("--{key}={value}").into()));
        // No flag follows, even if a name begins with a hyphen.
        out.push("--".into());
        if !PLACEHOLDERS.contains(&self.spec.as_str()) {
            out.push(self.spec.clone().into());
        }
        out.push(self.dir.clone());
        Ok(out)
    }

    /// The options in the order in which they count. `mount(8)` moves `ro` before the other options, but
    /// it is always a request of the user. `rw` stays there: it comes also unrequested.
    fn split_options(&self) -> Result<Vec<String>> {
        let mut out = Vec::new();
        for list in &self.options {
            out.extend(split(list).map_err(Error::invalid)?);
        }
        let last = out.iter().rfind(|option| matches!(option.as_str(), "ro" | "rw"));
        if let Some(read_only) = last.filter(|option| *option == "ro").cloned() {
            out.push(read_only);
        }
        Ok(out)
    }

    /// The change that `remount` asks for. Other options than these flags are those of the mount and of its line,
    /// which `mount(8)` adds.
    fn flag_change(&self) -> Result<Option<FlagChange>> {
        let options = self.split_options()?;
        if !options.iter().any(|option| option == "remount") {
            return Ok(None);
        }
        let (parser, mut settings) = (SettingParser::default(), Settings::default());
        for option in &options {
            let (key, value) = setting(option);
            if [READ_ONLY, NOEXEC].contains(&key) {
                let new = parser.parse(key, value.as_ref());
                settings = new.map_err(|reason| wrong_value(key, &reason))?.or(settings);
            } else {
                check_supported(key)?;
            }
        }
        Ok(Some(FlagChange { read_only: settings.read_only, noexec: settings.noexec }))
    }

    /// Settings and values. The last of several equal settings counts. `rw` leaves the choice to the
    /// configuration.
    fn settings(&self) -> Result<Vec<(String, String)>> {
        let mut out: Vec<(String, String)> = Vec::new();
        let parser = SettingParser::default();
        for option in self.split_options()? {
            let (key, value) = setting(&option);
            if MOUNT_OPTIONS.contains(&key)
                || ALWAYS_TRUE.contains(&key)
                || key.starts_with("x-")
                || key.starts_with("X-")
            {
                continue;
            }
            check_supported(key)?;
            if option == "rw" {
                out.retain(|(earlier, _)| earlier != "read-only");
                continue;
            }
            let checked = if key == "config" {
                dirs::absolute(value).map(|path| path.to_string_lossy().into_owned())
            } else {
                parser
                    .absolute_text(key, value)
                    .and_then(|text| parser.parse(key, text.as_ref()).map(|_| text))
            };
            match checked {
                Ok(text) => {
                    let key = key.replace('_', "-");
                    out.retain(|(earlier, _)| *earlier != key);
                    out.push((key, text));
                }
                Err(_) if self.sloppy && !parser.knows(key) => {}
                Err(reason) => return Err(wrong_value(key, &reason)),
            }
        }
        if ["account", "token-file"].iter().all(|name| out.iter().any(|(key, _)| key == name)) {
            return Err(Error::invalid(
                "options account and token_file are mutually exclusive: remove one of them",
            ));
        }
        Ok(out)
    }
}

/// The setting and the value that an option means.
fn setting(option: &str) -> (&str, &str) {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == option).map(|(_, setting)| *setting);
    alias.unwrap_or_else(|| option.split_once('=').unwrap_or((option, "true")))
}

fn wrong_value(key: &str, reason: &str) -> Error {
    Error::invalid(format!("option {key}: {reason}"))
}

fn check_supported(option: &str) -> Result<()> {
    match UNSUPPORTED.iter().find(|(other, _)| *other == option) {
        Some((_, why)) => Err(Error::invalid(format!("option {option}: {why}"))),
        None => Ok(()),
    }
}

/// Splits an option list at commas, except in quotes (as `mount(8)` writes them) and after a backslash (as
/// FUSE does).
fn split(list: &str) -> std::result::Result<Vec<String>, String> {
    let (mut out, mut option, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut rest = list.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' => is_quoted = !is_quoted,
            '\\' => option.push(rest.next_if(|next| matches!(next, ',' | '\\' | '"')).unwrap_or('\\')),
            ',' if !is_quoted => out.push(std::mem::take(&mut option)),
            other => option.push(other),
        }
    }
    if is_quoted {
        return Err(format!("missing closing quote: {list}"));
    }
    out.push(option);
    let trimmed = out.iter().map(|option| option.trim().to_owned());
    Ok(trimmed.filter(|option| !option.is_empty()).collect())
}

/// Fuzz target: options become flags that the parser of `pdsfs mount` accepts, and nothing else.
#[cfg(any(test, fuzzing))]
pub(in crate::cli) fn check_options(text: &str) {
    let args = FstabArgs {
        spec: "photos".to_owned(),
        dir: "/mnt".into(),
        options: vec![text.to_owned()],
        sloppy: text.len() % 2 == 1,
        fake: true,
        no_mtab: 0,
        verbose: 0,
        fs_type: None,
    };
    drop(args.flag_change());
    let (Ok(settings), Ok(arguments)) = (args.settings(), args.arguments()) else { return };
    for (key, _) in &settings {
        assert!(key.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-'), "{key:?}");
    }
    let parsed = without_variables(MountCommand::command()).try_get_matches_from(&arguments);
    assert!(parsed.is_ok(), "{arguments:?}: {parsed:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &[&str]) -> std::result::Result<Vec<String>, String> {
        let args = FstabArgs::try_parse_from([&["mount.pdsfs"], line].concat()).map_err(|e| e.to_string())?;
        let texts = args.arguments().map_err(|e| e.to_string())?;
        Ok(texts.into_iter().map(|text| text.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn options_become_flags() {
        assert_eq!(
            arguments(&[
                "photos:/a",
                "/mnt",
                "-n",
                "-o",
                "rw,noauto,x-systemd.automount,allow_other,umask=077",
                "-t",
                "fuse.pdsfs"
            ]),
            Ok([
                "mount",
                "--detached",
                "--quiet",
                "--source=photos:/a",
                "--allow-other=true",
                "--umask=077",
                "--",
                "photos:/a",
                "/mnt"
            ]
            .map(str::to_owned)
            .to_vec())
        );
        let described = arguments(&["none", "/mnt", "-o", "ro,endpoint=https://a.b,drive_id=1"]).unwrap();
        if let Some(home) = std::env::home_dir().filter(|home| home.is_absolute()) {
            let at_home = arguments(&["a", "/mnt", "-o", "config=~/x.toml,token_file=~/t"]).unwrap();
            let whole = |flag: &str, file: &str| format!("--{flag}={}", home.join(file).display());
            assert_eq!(at_home[4..6], [whole("config", "x.toml"), whole("token-file", "t")]);
        }
        assert_eq!(described.last().map(String::as_str), Some("/mnt"));
        assert!(!described.contains(&"none".to_owned()));
    }

    #[test]
    fn last_option_about_links_counts() {
        let follows = |options| arguments(&["a", "/mnt", "-o", options]).unwrap()[4].clone();
        assert_eq!(follows("symfollow,nosymfollow"), "--nosymfollow=true");
        assert_eq!(follows("nosymfollow,symfollow"), "--nosymfollow=false");
    }

    #[test]
    fn unknown_option_needs_sloppy_flag() {
        let error = arguments(&["a", "/mnt", "-o", "alow_other"]).unwrap_err();
        assert!(error.contains("did you mean allow_other?"), "{error}");
        assert!(arguments(&["a", "/mnt", "-s", "-o", "alow_other"]).is_ok());
        assert!(arguments(&["a", "/mnt", "-s", "-o", "umask=9"]).unwrap_err().contains("octal"));
    }

    #[test]
    fn last_flags_of_a_remount_count() {
        let change = |options: &str| {
            let args = FstabArgs::try_parse_from(["mount.pdsfs", "a", "/mnt", "-o", options]).unwrap();
            args.flag_change().map_err(|e| e.to_string())
        };
        let flags = |read_only, noexec| Ok(Some(FlagChange { read_only, noexec }));
        assert_eq!(change("rw,noexec"), Ok(None));
        assert_eq!(change("rw,nosuid,noexec,user_id=0,umask=022,remount,ro"), flags(Some(true), Some(true)));
        assert_eq!(change("remount,ro,rw,exec"), flags(Some(false), Some(false)));
        assert_eq!(change("remount"), flags(None, None));
        // As mount(8) passes them: ro or rw first, rw also unrequested, and the options of the line last.
        assert_eq!(change("rw,remount,noexec,read_only,umask=022"), flags(Some(true), Some(true)));
        assert_eq!(change("ro,remount,read_only=false,noexec=false"), flags(Some(true), Some(false)));
        assert_eq!(change("rw,noexec,remount,read_only=false"), flags(Some(false), Some(true)));
        assert!(change("remount,noexec=maybe").unwrap_err().contains("option noexec: "));
        assert!(change("remount,suid").unwrap_err().contains("set-user-ID"));
    }

    #[test]
    fn remount_of_a_missing_path_names_it() {
        let error = remount_at(Path::new("/proc/missing"), FlagChange::default()).unwrap_err();
        assert!(error.to_string().starts_with("cannot remount /proc/missing: "), "{error}");
    }

    #[test]
    fn unsupported_options_fail_and_implied_ones_pass() {
        let flags = |options: &str| {
            let all = arguments(&["a", "/mnt", "-o", options])?;
            Ok::<_, String>(all[4..all.len() - 3].join(" "))
        };
        // As mount(8) passes the line of a user.
        assert_eq!(
            flags("rw,noatime,noexec,nosuid,nodev,umask=022,_netdev,user,nofail").unwrap(),
            "--noexec=true --umask=022"
        );
        assert_eq!(flags("noexec,ro,exec,rw,default_permissions").unwrap(), "--noexec=false");
        assert_eq!(flags("ro,umask=022,read_only=false").unwrap(), "--umask=022 --read-only=true");
        assert_eq!(flags("rw,read_only=false").unwrap(), "--read-only=false");
        assert_eq!(flags("nonempty").unwrap(), "--allow-non-empty=true");
        for (option, reason) in UNSUPPORTED {
            assert!(flags(option).unwrap_err().contains(reason), "{option}");
        }
        assert!(flags("sync").unwrap_err().contains("when it is closed"));
    }

    #[test]
    fn quoted_commas_belong_to_values() {
        let own = |list: &str| split(list).unwrap();
        assert_eq!(own("rw,local_only=\"*.a,*.b\",ro"), ["rw", "local_only=*.a,*.b", "ro"]);
        assert_eq!(own(r"folder=/a\,b,folder=\\x\y"), ["folder=/a,b", r"folder=\x\y"]);
        assert_eq!(own(" a , ,b,"), ["a", "b"]);
        assert!(split("a=\"b,c").unwrap_err().contains("closing quote"));
        let flags = arguments(&["a", "/mnt", "-o", "local_only=\"*.a,*.b\""]).unwrap();
        assert!(flags.contains(&"--local-only=*.a,*.b".to_owned()), "{flags:?}");
    }

    #[test]
    fn mount_helper_is_known_by_program_name() {
        assert!(
            is_mount_helper("mount.pdsfs")
                && is_mount_helper("mount.fuse.pdsfs")
                && !is_mount_helper("pdsfs")
        );
    }
}
