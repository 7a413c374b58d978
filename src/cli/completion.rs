//! Completion of commands, flags, drives, accounts, mounts and paths.
//!
//! The script of a shell calls this program with the variable `PDSFS_COMPLETE` for each answer. So the answer never needs
//! the network: it comes from the configuration, the accounts and the mount table.
//!
//! The script for bash puts an answer on the command line without quotes, and other users choose the names of
//! directories and mounts. So no shell is offered a value that a shell could read as more than one plain word: a value
//! has ASCII letters and digits, letters and digits of other scripts, and [`PLAIN`]; it does not begin with `-`. A mount
//! is offered only if it belongs to this user or root, and its name only if it is valid in a configuration.

use std::ffi::OsStr;
use std::path::Path;

use clap::{Arg, Command, ValueHint};
use clap_complete::engine::ValueCompleter as _;
use clap_complete::env::Shells;
use clap_complete::{ArgValueCandidates, ArgValueCompleter, CompleteEnv, CompletionCandidate, PathCompleter};

use super::config::{ConfigArgs, Configuration};
use super::{mounts as mounts_of_users, named_drive};
use crate::error::{Error, Result};
use crate::escape::escaped;
use crate::fuse::mountinfo::{self, Mount};

/// The variable that asks for an answer.
const VARIABLE: &str = "PDSFS_COMPLETE";
const PROGRAM: &str = "pdsfs";
/// Characters without a meaning in a word of a shell, besides letters and digits.
const PLAIN: &str = "/._~:@%+,=-";
/// An autoloaded zsh function must also give the first answer.
const ZSH_FIRST_ANSWER: &str =
    "[[ \"${funcstack[1]-}\" == _pdsfs ]] && _clap_dynamic_completer_pdsfs \"$@\"\n";

/// Answers a shell; `false` if this process was not asked.
pub(super) fn answer(program: fn() -> Command) -> bool {
    let here = std::env::current_dir().ok();
    let env =
        CompleteEnv::with_factory(|| with_values(program())).var(VARIABLE).bin(PROGRAM).completer(PROGRAM);
    env.try_complete(std::env::args_os(), here.as_deref()).unwrap_or_else(|error| error.exit())
}

/// The script that a shell reads once.
pub(super) fn script(shell: &str) -> Result<String> {
    let mut text = Vec::new();
    let shells = Shells::builtins();
    let completer =
        shells.completer(shell).ok_or_else(|| Error::invalid(format!("{shell} has no completion")))?;
    completer.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut text)?;
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if shell == "zsh" {
        text.push_str(ZSH_FIRST_ANSWER);
    }
    Ok(text)
}

/// The program, with completers for the values that only this machine knows.
fn with_values(program: Command) -> Command {
    let program = with_paths(program);
    let drives = || ArgValueCompleter::new(drives_or_directories);
    let mounted = || ArgValueCompleter::new(mounts);
    let account = || ArgValueCandidates::new(accounts);
    let with = |command: Command, id: &str, completer: ArgValueCompleter| {
        command.mut_arg(id, |arg| arg.add(completer))
    };
    let program = program.mut_subcommand("mount", |mount| {
        let mount = with(with(mount, "drive", drives()), "mountpoint", ArgValueCompleter::new(directories));
        mount.mut_arg("account", |arg| arg.add(account()))
    });
    let program = program
        .mut_subcommand("umount", |umount| with(umount, "target", ArgValueCompleter::new(unmountable)));
    let program = ["status", "wait", "log"].into_iter().fold(program, |program, name| {
        program.mut_subcommand(name, |command| with(command, "mount", mounted()))
    });
    let program = program.mut_subcommand("doctor", |doctor| with(doctor, "name", drives()));
    ["login", "drives", "setup"].into_iter().fold(program, |program, name| {
        program.mut_subcommand(name, |command| command.mut_arg("name", |arg| arg.add(account())))
    })
}

/// clap's own completer of paths offers every name.
fn with_paths(command: Command) -> Command {
    let with = |arg: Arg| match arg.get_value_hint() {
        ValueHint::DirPath => arg.add(ArgValueCompleter::new(directories)),
        ValueHint::AnyPath | ValueHint::FilePath => arg.add(ArgValueCompleter::new(paths)),
        _ => arg,
    };
    command.mut_args(with).mut_subcommands(with_paths)
}

/// Whether a shell reads the value as one word without a meaning.
fn is_plain(value: &OsStr) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || PLAIN.contains(c);
    value.to_str().is_some_and(|value| !value.starts_with('-') && value.chars().all(is_plain))
}

fn plain(mut all: Vec<CompletionCandidate>) -> Vec<CompletionCandidate> {
    all.retain(|one| is_plain(one.get_value()));
    all
}

fn directories(typed: &OsStr) -> Vec<CompletionCandidate> {
    plain(PathCompleter::dir().complete(typed))
}

fn paths(typed: &OsStr) -> Vec<CompletionCandidate> {
    plain(PathCompleter::any().complete(typed))
}

fn candidate(value: &str, what: &str) -> CompletionCandidate {
    CompletionCandidate::new(value).help(Some(escaped(what).into()))
}

fn accounts() -> Vec<CompletionCandidate> {
    plain(named_drive::accounts().iter().map(|name| candidate(name, "account")).collect())
}

/// The drives of the configuration, and the accounts without one of the same name.
fn drives() -> Vec<CompletionCandidate> {
    let configuration =
        Configuration::read(&ConfigArgs { config: std::env::var_os("PDSFS_CONFIG").map(Into::into) });
    let names: Vec<String> = configuration.iter().flat_map(Configuration::names).map(str::to_owned).collect();
    let accounts = named_drive::accounts().into_iter().filter(|account| !names.contains(account));
    let accounts: Vec<_> = accounts.map(|name| candidate(&name, "account")).collect();
    plain(names.iter().map(|name| candidate(name, "drive")).chain(accounts).collect())
}

/// Those that begin with what was typed.
fn matching(all: Vec<CompletionCandidate>, typed: &OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.as_encoded_bytes();
    all.into_iter().filter(|one| one.get_value().as_encoded_bytes().starts_with(typed)).collect()
}

fn is_path(typed: &OsStr) -> bool {
    typed.to_str().is_none_or(|typed| named_drive::is_path(typed) || typed.starts_with(['.', '~']))
}

fn drives_or_directories(typed: &OsStr) -> Vec<CompletionCandidate> {
    if is_path(typed) { directories(typed) } else { matching(drives(), typed) }
}

/// The names and the mountpoints of the mounts of this user and of root.
fn mounts(typed: &OsStr) -> Vec<CompletionCandidate> {
    let uid = rustix::process::geteuid().as_raw();
    matching(offered_mounts(&mountinfo::ours().unwrap_or_default(), uid), typed)
}

fn offered_mounts(table: &[Mount], uid: u32) -> Vec<CompletionCandidate> {
    let trusted =
        table.iter().filter(|mount| mount.owner.is_some_and(|owner| mounts_of_users::is_trusted(owner, uid)));
    let found = trusted.flat_map(|mount| {
        let name = named_drive::mount_name(mount).map(|name| candidate(name, &shown(&mount.path)));
        let path = mount.path.to_str().map(|path| candidate(path, &mount.source));
        name.into_iter().chain(path)
    });
    plain(found.collect())
}

fn shown(path: &Path) -> String {
    format!("mounted at {}", path.display())
}

/// A mount, or else a directory.
fn unmountable(typed: &OsStr) -> Vec<CompletionCandidate> {
    let mounts = mounts(typed);
    if mounts.is_empty() && is_path(typed) { directories(typed) } else { mounts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap_complete::engine::complete;

    /// What the shell offers after these words.
    fn offered(words: &[&str]) -> Vec<String> {
        let args: Vec<_> = std::iter::once("pdsfs").chain(words.iter().copied()).map(Into::into).collect();
        let last = args.len() - 1;
        let found = complete(&mut with_values(super::super::program()), args, last, None).unwrap();
        found.iter().map(|one| one.get_value().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn commands_flags_and_values_are_offered() {
        assert!(offered(&["um"]).contains(&"umount".to_owned()));
        assert!(offered(&["mount", "--part"]).contains(&"--part-size".to_owned()));
        assert_eq!(offered(&["mount", "--remove", "tr"]), ["trash"]);
        assert!(!offered(&["mount", "--"]).contains(&"--detached".to_owned()), "hidden");
    }

    #[test]
    fn paths_are_offered_where_they_are_meant() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("Drive")).unwrap();
        std::fs::write(dir.path().join("Draft"), b"").unwrap();
        let typed = format!("{}/Dr", dir.path().display());
        for words in [["mount", typed.as_str()], ["umount", &typed]] {
            assert_eq!(offered(&words), [format!("{}/Drive/", dir.path().display())], "{words:?}");
        }
    }

    #[test]
    fn names_with_a_meaning_to_a_shell_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["zz$(x)", "zz`x`", "a b", "a;b", "a\nb", "Bilder ü", "Bücher"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let typed = format!("{}/", dir.path().display());
        let plain = [format!("{typed}Bücher/")];
        let commands: [&[&str]; 4] = [&["mount"], &["mount", "x"], &["umount"], &["mount", "--token-file"]];
        for words in commands {
            assert_eq!(offered(&[words, &[&typed]].concat()), plain, "{words:?}");
        }
        assert!(!is_plain(OsStr::new("--token")) && !is_plain(OsStr::new("~/a!")));
    }

    #[test]
    fn mounts_of_other_users_are_not_offered() {
        let mount = |source: &str, path: &str, owner| Mount {
            id: 1,
            device: String::new(),
            path: path.into(),
            fs_type: mountinfo::FS_TYPE.into(),
            source: source.into(),
            options: String::new(),
            owner,
        };
        let table = [
            mount("own:/", "/m/own", Some(7)),
            mount("root:/", "/m/root", Some(0)),
            mount("other:/", "/m/other", Some(8)),
            mount("unknown:/", "/m/unknown", None),
            mount("$(x):/", "/m/$(x)", Some(7)),
            mount("~name:/", "/m/plain", Some(7)),
        ];
        let offered = offered_mounts(&table, 7);
        let values: Vec<_> = offered.iter().filter_map(|one| one.get_value().to_str()).collect();
        assert_eq!(values, ["own", "/m/own", "root", "/m/root", "/m/plain"]);
    }

    #[test]
    fn scripts_call_the_program() {
        for shell in ["bash", "zsh", "fish"] {
            let script = script(shell).unwrap();
            assert!(script.contains(VARIABLE) && script.contains("pdsfs"), "{shell}: {script}");
        }
        assert!(script("sh").is_err());
    }
}
