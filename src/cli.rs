//! The command line: arguments to one function per command, and nothing else.
//!
//! Only here and below does anything print. Exit codes: 0, everything was done and everything
//! written is on the drive; 1, something failed, and the last lines on stderr say what; 2, the
//! arguments make no sense, or the folder cannot be mounted at until a person has changed something; 3, the time that
//! was given was up.

#![allow(clippy::doc_markdown, reason = "doc comments of arguments are help texts, shown as they are")]

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::settings::without_variables;
use crate::error::{Error, ErrorKind, Result};
use crate::logging;
use crate::pds::auth::none_under_way;
use crate::printable::escaped_lines;
use crate::status::notify::Notifier;
use signals::Signals;

pub mod config;
pub mod demo;
pub mod drives;
pub mod log;
pub mod login;
pub mod manual;
pub mod mount;
mod reach;
pub mod serve;
mod shown;
mod signals;
pub mod status;
pub mod umount;
pub mod wait;

/// How long background work may take to notice that the program ends.
const RUNTIME_END_MAX: Duration = Duration::from_secs(2);
/// How long a renewal of a token that is under way may take when the program is done: what the service has given
/// is stored first.
const RENEWAL_END_MAX: Duration = Duration::from_secs(5);
/// What is logged unless somebody says otherwise.
const LOG_DEFAULT: &str = "warn,pdsfs=info";
/// Exit code of arguments that make no sense, and of a mount that cannot be until a person has changed something;
/// clap uses the same.
const EXIT_USAGE: u8 = 2;
/// Exit code when the time was up.
const EXIT_TIMEOUT: u8 = 3;

/// An Alibaba Cloud PDS drive as a Linux directory whose files are uploaded while they are written.
#[derive(Debug, Parser)]
#[command(
    name = "pdsfs",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done and everything \
    written is on the drive, 1 something failed (stderr says what), 2 wrong arguments or a folder that cannot be mounted \
    at, 3 the time was up."
)]
struct Cli {
    /// What to log, as level or target=level, comma-separated: error, warn, info, debug or trace
    /// [default: $PDSFS_LOG, else $RUST_LOG, else warn,pdsfs=info]
    #[arg(long, global = true, value_name = "FILTER", display_order = 900)]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a drive and serve it until it is unmounted or the program is told to stop
    Mount(Box<mount::MountArgs>),
    /// Log in to a domain; mounts use the account, and go on when a login that had ended is made again
    Login(Box<login::LoginArgs>),
    /// List the drives that an account can mount
    Drives(drives::DrivesArgs),
    /// Unmount a drive
    #[command(alias = "unmount")]
    Umount(umount::UmountArgs),
    /// Check the configuration, or print one with every setting explained
    Config(config::ConfigCommand),
    /// Show what is on its way to the drive, and what could not be saved
    Status(status::StatusArgs),
    /// Return when everything that was written is on the drive
    Wait(wait::WaitArgs),
    /// Show what happened on a mount lately
    Log(log::LogArgs),
    /// Be a PDS-compatible drive on this machine
    Serve(Box<serve::ServeArgs>),
    /// Show it all on this machine: an embedded drive, mounted, with the uploads on the screen
    Demo(demo::DemoArgs),
    /// Print what a shell needs to complete the commands of pdsfs
    Completions(manual::CompletionsArgs),
    /// Write the man pages into a folder
    Man(manual::ManArgs),
}

/// Reads the arguments, runs the command, and says what went wrong if it did.
pub fn run() -> ExitCode {
    if mount::tab::is_meant(&program_name()) {
        return mount::tab::run();
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
        let notifier = unsafe { Notifier::from_environment() };
        dispatch(cli.command, notifier)
    });
    outcome.unwrap_or_else(|mistake| {
        say(format_args!("pdsfs: {mistake}"));
        ExitCode::from(EXIT_USAGE)
    })
}

/// The arguments. What variables say of a mount is no flag: it is laid under them, and only explained here.
fn arguments() -> std::result::Result<Cli, clap::Error> {
    let mut flags = Cli::command().mut_subcommand("mount", without_variables);
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

/// The name that the program was called by.
fn program_name() -> String {
    let called = std::env::args_os().next().map(std::path::PathBuf::from).unwrap_or_default();
    called.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// An error from here is a mistake in the arguments.
fn dispatch(command: Command, notifier: Notifier) -> Result<ExitCode> {
    Ok(tell(match command {
        Command::Mount(args) => mount::start(*args, notifier)?,
        Command::Login(args) => on_runtime(until_signal(login::run(args.check()?))),
        Command::Drives(args) => unless_unread(on_runtime(until_signal(drives::run(args.check()?)))),
        Command::Umount(args) => umount::run(&args),
        Command::Config(args) => unless_unread(config::run(&args)),
        Command::Status(args) => unless_unread(on_runtime(status::run(args))),
        Command::Wait(args) => on_runtime(wait::run(args)),
        Command::Log(args) => unless_unread(on_runtime(log::run(args))),
        Command::Serve(args) => on_runtime(serve::run(args.check()?)),
        Command::Demo(args) => on_runtime(demo::run(args)),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }))
}

/// Who has read enough of what a command shows (`| head`) is told no more, and nothing has failed.
fn unless_unread(outcome: Result<ExitCode>) -> Result<ExitCode> {
    if IS_UNREAD.load(Ordering::Relaxed) { Ok(ExitCode::SUCCESS) } else { outcome }
}

/// Says what a command failed of.
fn tell(outcome: Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        say(format_args!("pdsfs: {error}"));
        ExitCode::FAILURE
    })
}

/// Runs a command up to a signal, and beyond it only for what the service gives once and nobody has stored yet.
async fn until_signal(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let mut command = std::pin::pin!(command);
    let signal = tokio::select! {
        outcome = &mut command => return outcome,
        signal = signals.next() => signal,
    };
    tokio::select! {
        biased;
        () = none_under_way(RENEWAL_END_MAX) => Err(Error::new(ErrorKind::Cancelled, format!("given up at {signal}"))),
        outcome = &mut command => outcome,
    }
}

/// Runs a command on a runtime with a worker for each core, and at least two.
fn on_runtime(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .map_err(|e| Error::from(e).context("cannot start"))?;
    let outcome = runtime.block_on(command);
    runtime.block_on(none_under_way(RENEWAL_END_MAX));
    runtime.shutdown_timeout(RUNTIME_END_MAX);
    outcome
}

fn start_log(filter: Option<&str>) -> Result<()> {
    let env = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
    let filter = filter.map(str::to_owned).or_else(|| env("PDSFS_LOG")).or_else(|| env("RUST_LOG"));
    logging::start(filter.as_deref().unwrap_or(LOG_DEFAULT))
}

/// One line on stderr, for people; whatever is in it, a terminal obeys nothing of it. If nobody can read it, nobody can be told.
fn say(line: impl Display) {
    writeln!(std::io::stderr().lock(), "{}", escaped_lines(&line.to_string())).ok();
}

/// Whether nobody reads stdout any more.
static IS_UNREAD: AtomicBool = AtomicBool::new(false);

/// One line on stdout, for programs that wait for it.
fn announce(line: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let line = escaped_lines(&line.to_string());
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| {
        IS_UNREAD.fetch_or(e.kind() == std::io::ErrorKind::BrokenPipe, Ordering::Relaxed);
        Error::from(e).context("stdout")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_argument_is_explained() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }
}
