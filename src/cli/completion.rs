//! Completion of commands, flags, drives, accounts, mounts and paths.
//!
//! The script of a shell calls this program with the variable `PDSFS_COMPLETE` for each answer. So the answer never needs
//! the network: it comes from the configuration, the accounts and the mount table.

use std::ffi::OsStr;
use std::path::Path;

use clap::Command;
use clap_complete::engine::ValueCompleter as _;
use clap_complete::env::Shells;
use clap_complete::{ArgValueCandidates, ArgValueCompleter, CompleteEnv, CompletionCandidate, PathCompleter};

use super::config::{ConfigArgs, Configuration};
use super::named_drive;
use crate::error::{Error, Result};
use crate::fuse::mountinfo;

/// The variable that asks for an answer.
const VARIABLE: &str = "PDSFS_COMPLETE";
const PROGRAM: &str = "pdsfs";
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
    let drives = || ArgValueCompleter::new(drives_or_directories);
    let mounted = || ArgValueCompleter::new(mounts);
    let account = || ArgValueCandidates::new(accounts);
    let directories = || ArgValueCompleter::new(PathCompleter::dir());
    let with = |command: Command, id: &str, completer: ArgValueCompleter| {
        command.mut_arg(id, |arg| arg.add(completer))
    };
    let program = program.mut_subcommand("mount", |mount| {
        let mount = with(with(mount, "drive", drives()), "mountpoint", directories());
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

fn candidate(value: &str, what: &str) -> CompletionCandidate {
    CompletionCandidate::new(value).help(Some(what.to_owned().into()))
}

fn accounts() -> Vec<CompletionCandidate> {
    named_drive::accounts().iter().map(|name| candidate(name, "account")).collect()
}

/// The drives of the configuration, and the accounts without one of the same name.
fn drives() -> Vec<CompletionCandidate> {
    let configuration =
        Configuration::read(&ConfigArgs { config: std::env::var_os("PDSFS_CONFIG").map(Into::into) });
    let names: Vec<String> = configuration.iter().flat_map(Configuration::names).map(str::to_owned).collect();
    let accounts = named_drive::accounts().into_iter().filter(|account| !names.contains(account));
    let accounts: Vec<_> = accounts.map(|name| candidate(&name, "account")).collect();
    names.iter().map(|name| candidate(name, "drive")).chain(accounts).collect()
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
    if is_path(typed) { PathCompleter::dir().complete(typed) } else { matching(drives(), typed) }
}

/// The names and the mountpoints of this user's mounts; root sees all.
fn mounts(typed: &OsStr) -> Vec<CompletionCandidate> {
    let uid = rustix::process::geteuid();
    let is_seen = |owner: Option<u32>| uid.is_root() || owner == Some(uid.as_raw());
    let table = mountinfo::ours().unwrap_or_default().into_iter().filter(|mount| is_seen(mount.owner));
    let found = table.flat_map(|mount| {
        let name = mount.source.split_once(":/").map(|(name, _)| candidate(name, &shown(&mount.path)));
        name.into_iter().chain([candidate(&mount.path.to_string_lossy(), &mount.source)])
    });
    matching(found.collect(), typed)
}

fn shown(path: &Path) -> String {
    format!("mounted at {}", path.display())
}

/// A mount, or else a directory.
fn unmountable(typed: &OsStr) -> Vec<CompletionCandidate> {
    let mounts = mounts(typed);
    if mounts.is_empty() && is_path(typed) { PathCompleter::dir().complete(typed) } else { mounts }
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
    fn scripts_call_the_program() {
        for shell in ["bash", "zsh", "fish"] {
            let script = script(shell).unwrap();
            assert!(script.contains(VARIABLE) && script.contains("pdsfs"), "{shell}: {script}");
        }
        assert!(script("sh").is_err());
    }
}
