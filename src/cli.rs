//! The command line: parses the arguments, calls one function per command and prints its result.
//!
//! Nothing outside this module prints. Exit codes: 0, done and everything written is on the drive; 1, failed,
//! and the last lines of stderr say why; 2, wrong arguments, or a mount that cannot succeed until a person
//! changes something; 3, timed out.

#![allow(clippy::doc_markdown, reason = "doc comments of arguments are help texts, shown as they are")]

use std::process::ExitCode;

use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::secret_variables;
use crate::config::settings::without_variables;
use crate::error::Result;
use crate::logging;
use crate::status::systemd::SystemdNotifier;
use output::{EXIT_USAGE, ignore_closed_stdout, print_error};
use runtime::{on_runtime, until_signal};

mod broker;
mod columns;
mod completion;
mod config;
#[cfg(feature = "server")]
mod demo;
mod doctor;
mod drives;
mod format;
#[cfg(any(test, fuzzing))]
pub mod fuzz_targets;
mod log;
mod login;
mod manual;
mod mount;
mod mounted_file;
mod mounts;
mod named_drive;
mod output;
mod runtime;
#[cfg(feature = "server")]
mod serve;
mod setup;
mod status;
mod trash;
mod umount;
mod versions;
mod wait;

/// An Alibaba Cloud PDS drive as a Linux directory whose files are uploaded while they are written.
#[derive(Debug, Parser)]
#[command(
    name = "pdsfs",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done and everything written is on the drive, 1 failed (stderr says why), 2 \
        wrong arguments or unusable mountpoint, 3 timed out."
)]
struct Cli {
    /// Log filter: levels (error, warn, info, debug, trace) or target=level, comma-separated
    /// [default: $PDSFS_LOG, else $RUST_LOG, else warn,pdsfs=info; a terminal then gets plain sentences]
    #[arg(long, global = true, value_name = "FILTER", display_order = 900)]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a drive and serve it until an unmount or a signal
    Mount(Box<mount::MountArgs>),
    /// Log in to a domain; mounts use the account and resume after a new login
    Login(Box<login::LoginArgs>),
    /// Log in, choose a drive and a directory, and mount it: asks for what no flag says
    Setup(Box<setup::SetupArgs>),
    /// List the drives of an account
    Drives(drives::DrivesArgs),
    /// Unmount a drive
    #[command(alias = "unmount")]
    Umount(umount::UmountArgs),
    /// Mount for a daemon without rights (for pdsfs-broker.socket)
    #[command(hide = true)]
    Broker(broker::BrokerArgs),
    /// Check the configuration, or print an example that explains every setting
    Config(config::ConfigCommand),
    /// Show uploads, unsaved files and failures
    Status(status::StatusArgs),
    /// Wait until everything is on the drive
    Wait(wait::WaitArgs),
    /// Show recent events of the mounts
    Log(log::LogArgs),
    /// List, restore or delete for good what is in the recycle bin
    Trash(trash::TrashArgs),
    /// List the versions of a file, write one to a file, or restore one
    Versions(versions::VersionsArgs),
    /// Check everything that a mount needs, and say how to mend what is wrong
    Doctor(doctor::DoctorArgs),
    /// Serve a PDS-compatible drive from this machine, for tests and trials
    #[cfg(feature = "server")]
    Serve(Box<serve::ServeArgs>),
    /// Try pdsfs without an account: mount an embedded drive and show its uploads
    #[cfg(feature = "server")]
    Demo(demo::DemoArgs),
    /// Print the completion script of a shell
    Completions(manual::CompletionsArgs),
    /// Write the man pages to a directory
    Man(manual::ManArgs),
}

/// Runs the command of the arguments and prints its error.
pub fn run() -> ExitCode {
    if mount::fstab::is_mount_helper(&program_name()) {
        // SAFETY: no thread has been started yet.
        unsafe { secret_variables::take() };
        return mount::fstab::run();
    }
    if completion::answer(program) {
        return ExitCode::SUCCESS;
    }
    let cli = match arguments() {
        Ok(cli) => cli,
        Err(e) => {
            // Help goes to stdout with code 0, mistakes to stderr with code 2.
            e.print().ok();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(EXIT_USAGE));
        }
    };
    let outcome = start_log(cli.log.as_deref()).and_then(|()| {
        // SAFETY: no thread has been started yet.
        let notifier = unsafe {
            secret_variables::take();
            SystemdNotifier::from_environment()
        };
        dispatch(cli.command, notifier)
    });
    outcome.unwrap_or_else(|error| {
        print_error(&error);
        ExitCode::from(EXIT_USAGE)
    })
}

/// Parses the arguments. clap does not read the environment variables of `mount`: they have a lower
/// precedence than flags and are merged later. The help text still lists them.
fn arguments() -> std::result::Result<Cli, clap::Error> {
    let mut flags = program().mut_subcommand("mount", without_variables);
    let matches = flags.try_get_matches_from_mut(std::env::args_os());
    let parsed =
        matches.and_then(|matches| Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut flags)));
    match parsed {
        Err(e) if matches!(e.kind(), DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand) => {
            Cli::try_parse()
        }
        parsed => parsed,
    }
}

/// The definition of all commands.
fn program() -> clap::Command {
    Cli::command()
}

/// The file name in the first argument.
fn program_name() -> String {
    let called = std::env::args_os().next().map(std::path::PathBuf::from).unwrap_or_default();
    called.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The error is about the arguments.
fn dispatch(command: Command, notifier: SystemdNotifier) -> Result<ExitCode> {
    Ok(report(match command {
        Command::Mount(args) => mount::start(*args, notifier)?,
        Command::Login(args) => on_runtime(until_signal(login::run(args.check()?))),
        Command::Setup(args) => on_runtime(until_signal(setup::run(args.check()?))),
        Command::Drives(args) => ignore_closed_stdout(on_runtime(until_signal(drives::run(args.check()?)))),
        Command::Umount(args) => umount::run(&args),
        Command::Broker(args) => broker::run(&args),
        Command::Config(args) => ignore_closed_stdout(config::run(&args)),
        Command::Status(args) => ignore_closed_stdout(on_runtime(status::run(args))),
        Command::Wait(args) => on_runtime(wait::run(args)),
        Command::Log(args) => ignore_closed_stdout(on_runtime(log::run(args))),
        Command::Trash(args) => ignore_closed_stdout(on_runtime(until_signal(trash::run(args)))),
        Command::Versions(args) => ignore_closed_stdout(on_runtime(until_signal(versions::run(args)))),
        Command::Doctor(args) => ignore_closed_stdout(on_runtime(until_signal(doctor::run(args)))),
        #[cfg(feature = "server")]
        Command::Serve(args) => on_runtime(serve::run(args.check()?)),
        #[cfg(feature = "server")]
        Command::Demo(args) => on_runtime(demo::run(args)),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args, program()),
    }))
}

/// Prints why a command failed.
fn report(outcome: Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        print_error(&error);
        ExitCode::FAILURE
    })
}

fn start_log(filter: Option<&str>) -> Result<()> {
    let env = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
    let filter = filter.map(str::to_owned).or_else(|| env("PDSFS_LOG")).or_else(|| env("RUST_LOG"));
    logging::start(filter.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_argument_has_help() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }
}
