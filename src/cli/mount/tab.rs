//! `mount -t fuse.pdsfs` and `/etc/fstab`: the program under the name `mount.pdsfs` or
//! `mount.fuse.pdsfs`, with the arguments that `mount(8)` gives to such programs.
//!
//! An option is a setting by its name in the configuration file, so that there is one list of them.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use super::background;
use crate::config::file;
use crate::error::{Error, ErrorKind, Result};

/// Words of `mount(8)` that say nothing to a file system of ours. `suid`, `dev` and their like are what
/// `defaults` means; a FUSE mount of an ordinary user never has them.
const OF_MOUNT: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "sync",
    "async",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "lazytime",
    "nolazytime",
    "silent",
    "loud",
];
/// What stands for a drive that only options describe.
const NO_NAME: &[&str] = &["none", "pdsfs"];

/// Mounts a drive and returns when it is mounted.
#[derive(Debug, Parser)]
#[command(
    name = "mount.pdsfs",
    version,
    after_help = "Run by mount(8), for lines of /etc/fstab such as:\n  \
    photos  /mnt/photos  fuse.pdsfs  noauto,_netdev,allow_other  0 0\nOptions are the settings of the configuration \
    file (see: pdsfs config example), and ro, rw, config=FILE."
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

/// Reads the arguments and mounts in the background.
pub(in crate::cli) fn run() -> Result<ExitCode> {
    let args = match TabArgs::try_parse() {
        Ok(args) => args,
        Err(e) => {
            e.print().ok();
            // mount(8): 1 is an incorrect invocation.
            return Ok(ExitCode::from(u8::from(e.use_stderr())));
        }
    };
    let arguments = args.arguments()?;
    if args.fake {
        return Ok(ExitCode::SUCCESS);
    }
    background::start(arguments)
}

impl TabArgs {
    /// The same as arguments of `pdsfs mount`, each of them checked.
    fn arguments(&self) -> Result<Vec<OsString>> {
        let mut out: Vec<OsString> = vec!["mount".into(), background::DETACHED.into()];
        let flags = file::flags();
        let options = self.options.iter().flat_map(|list| list.split(','));
        for option in options.map(str::trim).filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, "true"));
            match key {
                _ if OF_MOUNT.contains(&key) || key.starts_with("x-") || key == "comment" => {}
                "ro" => out.push("--read-only=true".into()),
                "rw" => out.push("--read-only=false".into()),
                "remount" => {
                    return Err(invalid(
                        "a mounted drive cannot be changed; unmount it, then mount it again",
                    ));
                }
                "config" => out.push(format!("--config={value}").into()),
                _ => match file::setting(&flags, key, value) {
                    Ok(_) => out.push(format!("--{}={value}", key.replace('_', "-")).into()),
                    Err(_)
                        if self.sloppy && flags.get_arguments().all(|arg| arg.get_id().as_str() != key) => {}
                    Err(what) => return Err(invalid(format!("option {key}: {what}"))),
                },
            }
        }
        // Nothing that comes now is a flag, whatever it begins with.
        out.push("--".into());
        if !NO_NAME.contains(&self.spec.as_str()) {
            out.push(self.spec.clone().into());
        }
        out.push(self.dir.clone());
        Ok(out)
    }
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
    fn the_name_of_the_program_decides() {
        assert!(is_meant("mount.pdsfs") && is_meant("mount.fuse.pdsfs") && !is_meant("pdsfs"));
    }
}
