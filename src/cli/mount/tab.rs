//! `mount -t fuse.pdsfs` and `/etc/fstab`: the program under the name `mount.pdsfs` or
//! `mount.fuse.pdsfs`, with the arguments that `mount(8)` gives to such programs.
//!
//! An option is a setting by its name in the configuration file, so that there is one list of them.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};

use super::background;
use crate::cli::say;
use crate::config::settings::without_variables;
use crate::config::{dirs, file};
use crate::error::{Error, ErrorKind, Result};

/// Words of `mount(8)` for itself and for whoever reads the same file.
const OF_MOUNT: &[&str] = &[
    "defaults", "auto", "noauto", "user", "users", "nouser", "owner", "group", "_netdev", "nofail", "silent",
    "loud", "comment", "uhelper", "helper",
];
/// What is so by nature: the kernel checks modes, honours neither set-user-id bits nor devices, and no time of
/// the last access is kept.
const BY_NATURE: &[&str] = &[
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
/// What cannot be, and why.
const NEVER: &[(&str, &str)] = &[
    ("suid", "set-user-id bits are never honoured; leave it out"),
    ("dev", "there are no devices on a drive; leave it out"),
    ("sync", "a file is on the drive when it is closed or synced, and not after each write; leave it out"),
    ("dirsync", "a new file is on the drive when it is closed, and not before; leave it out"),
    ("strictatime", "no time of the last access is kept; leave it out"),
    ("nosymfollow", "links are followed; use metadata=off, which refuses to make them"),
    ("remount", "a mounted drive cannot be changed; unmount it, then mount it again"),
];
/// Words of `mount(8)` and of FUSE for settings.
const SETTINGS: &[(&str, (&str, &str))] = &[
    ("ro", ("read_only", "true")),
    ("rw", ("read_only", "false")),
    ("noexec", ("noexec", "true")),
    ("exec", ("noexec", "false")),
    ("nonempty", ("allow_non_empty", "true")),
];
/// Exit codes of `mount(8)`, by which its caller tells a line that is wrong from a mount that failed.
const EXIT_INVOCATION: u8 = 1;
const EXIT_FAILED: u8 = 32;
/// What stands for a drive that only options describe.
const NO_NAME: &[&str] = &["none", "pdsfs"];

/// Mounts a drive and returns when it is mounted.
#[derive(Debug, Parser)]
#[command(
    name = "mount.pdsfs",
    version,
    after_help = "Run by mount(8), for lines of /etc/fstab such as:\n  \
    photos  /mnt/photos  fuse.pdsfs  noauto,_netdev,allow_other  0 0\nOptions are the settings of the configuration \
    file (see: pdsfs config example), and ro, rw, exec, noexec, nonempty, config=FILE. A value with commas stands in \
    quotes: local_only=\"*.tmp,*.swp\". Exit codes: 1 the line is wrong, 32 the drive could not be mounted."
)]
struct TabArgs {
    /// A drive of the configuration, NAME or NAME:/FOLDER; "none" where options say everything
    spec: String,
    /// The folder to mount at
    dir: OsString,
    /// Options with commas between them
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Leave out options that are not known
    #[arg(short = 's')]
    sloppy: bool,
    /// Do everything but mount
    #[arg(short = 'f')]
    fake: bool,
    /// Taken and not needed: there is no /etc/mtab to leave alone
    #[arg(short = 'n', action = clap::ArgAction::Count)]
    no_mtab: u8,
    /// Taken and not needed: what goes wrong is always told
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    verbose: u8,
    /// The type, as in fuse.pdsfs
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<String>,
}

/// Whether the program was called by `mount(8)`.
pub(in crate::cli) fn is_meant(program: &str) -> bool {
    matches!(program, "mount.pdsfs" | "mount.fuse.pdsfs")
}

/// The arguments, for the man page.
pub(in crate::cli) fn command() -> clap::Command {
    TabArgs::command()
}

/// The arguments of `pdsfs mount` that come of it.
#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    mount: super::MountArgs,
}

/// Reads the arguments and mounts in the background.
pub(in crate::cli) fn run() -> ExitCode {
    let args = match TabArgs::try_parse() {
        Ok(args) => args,
        Err(e) => {
            e.print().ok();
            return ExitCode::from(if e.use_stderr() { EXIT_INVOCATION } else { 0 });
        }
    };
    let told = |error: Error, code| {
        say(format_args!("pdsfs: {error}"));
        ExitCode::from(code)
    };
    let arguments = match args.checked() {
        Ok(arguments) => arguments,
        Err(mistake) => return told(mistake, EXIT_INVOCATION),
    };
    if args.fake {
        return ExitCode::SUCCESS;
    }
    match background::start(arguments) {
        Ok(code) if code == ExitCode::SUCCESS => code,
        Ok(_) => ExitCode::from(EXIT_FAILED),
        Err(error) => told(error, EXIT_FAILED),
    }
}

impl TabArgs {
    /// The arguments of `pdsfs mount`; a drive that is not known and a setting that makes no sense are told here.
    fn checked(&self) -> Result<Vec<OsString>> {
        let arguments = self.arguments()?;
        let matches = without_variables(Line::command()).try_get_matches_from(&arguments);
        let line = matches.and_then(|matches| Line::from_arg_matches(&matches));
        let line = line.map_err(|e| invalid(e.to_string().trim_end()))?;
        line.mount.into_config()?;
        Ok(arguments)
    }

    /// The same as arguments of `pdsfs mount`, each of them checked.
    fn arguments(&self) -> Result<Vec<OsString>> {
        let mut out: Vec<OsString> = vec!["mount".into(), background::DETACHED.into()];
        // By this mount(8) knows its own line again.
        out.push(format!("--source={}", self.spec).into());
        out.extend(self.settings()?.into_iter().map(|(key, value)| format!("--{key}={value}").into()));
        // Nothing that comes now is a flag, whatever it begins with.
        out.push("--".into());
        if !NO_NAME.contains(&self.spec.as_str()) {
            out.push(self.spec.clone().into());
        }
        out.push(self.dir.clone());
        Ok(out)
    }

    /// Flags without their hyphens, and values. Of several that say the same thing the last one counts.
    fn settings(&self) -> Result<Vec<(String, String)>> {
        let mut out: Vec<(String, String)> = Vec::new();
        let flags = file::flags();
        for list in &self.options {
            for option in split(list).map_err(invalid)? {
                let (key, value) = option.split_once('=').unwrap_or((option.as_str(), "true"));
                if OF_MOUNT.contains(&key)
                    || BY_NATURE.contains(&key)
                    || key.starts_with("x-")
                    || key.starts_with("X-")
                {
                    continue;
                }
                if let Some((_, why)) = NEVER.iter().find(|(never, _)| *never == key) {
                    return Err(invalid(format!("option {key}: {why}")));
                }
                let meant = SETTINGS.iter().find(|(word, _)| *word == option).map(|(_, meant)| *meant);
                let (key, value) = meant.unwrap_or((key, value));
                let checked = if key == "config" {
                    dirs::absolute(value).map(|path| path.to_string_lossy().into_owned())
                } else {
                    file::text_of(&flags, key, value)
                        .and_then(|text| file::flag(&flags, key, text.as_ref()).map(|_| text))
                };
                match checked {
                    Ok(text) => {
                        let key = key.replace('_', "-");
                        out.retain(|(earlier, _)| *earlier != key);
                        out.push((key, text));
                    }
                    Err(_)
                        if self.sloppy && flags.get_arguments().all(|arg| arg.get_id().as_str() != key) => {}
                    Err(what) => return Err(invalid(format!("option {key}: {what}"))),
                }
            }
        }
        Ok(out)
    }
}

/// The options of a list: commas part them, but for those in quotes (as `mount(8)` writes them) and those after
/// a backslash (as FUSE does).
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
        return Err(format!("a quote has no end: {list}"));
    }
    out.push(option);
    let trimmed = out.iter().map(|option| option.trim().to_owned());
    Ok(trimmed.filter(|option| !option.is_empty()).collect())
}

fn invalid(detail: impl AsRef<str>) -> Error {
    Error::new(ErrorKind::Invalid, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &[&str]) -> std::result::Result<Vec<String>, String> {
        let args = TabArgs::try_parse_from([&["mount.pdsfs"], line].concat()).map_err(|e| e.to_string())?;
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
                "--source=photos:/a",
                "--read-only=false",
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
            assert_eq!(at_home[3..5], [whole("config", "x.toml"), whole("token-file", "t")]);
        }
        assert_eq!(described.last().map(String::as_str), Some("/mnt"));
        assert!(!described.contains(&"none".to_owned()));
    }

    #[test]
    fn unknown_options_are_refused_unless_mount_is_told_to_be_sloppy() {
        let error = arguments(&["a", "/mnt", "-o", "alow_other"]).unwrap_err();
        assert!(error.contains("do you mean allow_other?"), "{error}");
        assert!(arguments(&["a", "/mnt", "-s", "-o", "alow_other"]).is_ok());
        assert!(arguments(&["a", "/mnt", "-s", "-o", "umask=9"]).unwrap_err().contains("octal"));
        assert!(arguments(&["a", "/mnt", "-o", "remount,ro"]).unwrap_err().contains("unmount it"));
    }

    #[test]
    fn what_cannot_be_is_refused_and_what_is_so_is_taken() {
        let flags = |options: &str| {
            let all = arguments(&["a", "/mnt", "-o", options])?;
            Ok::<_, String>(all[3..all.len() - 3].join(" "))
        };
        // As mount(8) writes the line of a user.
        assert_eq!(
            flags("rw,noatime,noexec,nosuid,nodev,umask=022,_netdev,user,nofail").unwrap(),
            "--read-only=false --noexec=true --umask=022"
        );
        assert_eq!(
            flags("noexec,ro,exec,rw,default_permissions").unwrap(),
            "--noexec=false --read-only=false"
        );
        assert_eq!(flags("nonempty").unwrap(), "--allow-non-empty=true");
        for (word, why) in NEVER {
            assert!(flags(word).unwrap_err().contains(why), "{word}");
        }
        assert!(flags("sync").unwrap_err().contains("when it is closed"));
    }

    #[test]
    fn a_comma_may_be_part_of_a_value() {
        let own = |list: &str| split(list).unwrap();
        assert_eq!(own("rw,local_only=\"*.a,*.b\",ro"), ["rw", "local_only=*.a,*.b", "ro"]);
        assert_eq!(own(r"folder=/a\,b,folder=\\x\y"), ["folder=/a,b", r"folder=\x\y"]);
        assert_eq!(own(" a , ,b,"), ["a", "b"]);
        assert!(split("a=\"b,c").unwrap_err().contains("no end"));
        let flags = arguments(&["a", "/mnt", "-o", "local_only=\"*.a,*.b\""]).unwrap();
        assert!(flags.contains(&"--local-only=*.a,*.b".to_owned()), "{flags:?}");
    }

    #[test]
    fn the_name_of_the_program_decides() {
        assert!(is_meant("mount.pdsfs") && is_meant("mount.fuse.pdsfs") && !is_meant("pdsfs"));
    }
}
