//! `pdsfs mount`: mounts a drive in this process, or starts a process that does.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use super::format;
use super::output::{EXIT_USAGE, print_error, print_message};
use super::runtime::on_runtime;
use crate::config::MountConfig;
use crate::daemon::{self, MountEnd, Notice, WaitingFile, background};
use crate::error::Result;
use crate::messages::Language;
use crate::status::systemd::SystemdNotifier;
use arguments::ServeMode;

pub use arguments::MountArgs;

mod arguments;
pub(super) mod fstab;
mod names;

/// Files that a waiting stop names at a time.
const WAITING_MAX: usize = 10;

/// Mounts the drive of the arguments. The outer error is a mistake in the arguments.
pub(super) fn start(args: MountArgs, notifier: SystemdNotifier) -> Result<Result<ExitCode>> {
    if args.is_listing() {
        return Ok(names::list(args.config_args()));
    }
    let (mode, is_quiet) = (args.mode(), args.is_quiet());
    let config = args.into_config()?;
    // mount(8) makes no directories either.
    if mode != ServeMode::Detached && !is_quiet && config.broker.is_none() {
        match daemon::make_missing(&config.mountpoint) {
            Ok(true) => {
                print_message(format_args!("made the directory {}", config.mountpoint.display()));
            }
            Ok(false) => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(match mode {
        ServeMode::Background => {
            let detached =
                |argument| if argument == "--background" { background::DETACHED.into() } else { argument };
            background::start(std::env::args_os().skip(1).map(detached))
        }
        ServeMode::Foreground => on_runtime(serve(config, (false, is_quiet), notifier)),
        ServeMode::Detached => on_runtime(serve(config, (true, is_quiet), notifier)),
    })
}

/// Serves the mount until it ends. A quiet one prints only what is not saved.
async fn serve(
    config: MountConfig,
    (is_detached, is_quiet): (bool, bool),
    notifier: SystemdNotifier,
) -> Result<ExitCode> {
    let report = |notice: Notice<'_>| {
        if !is_quiet || matches!(notice, Notice::NotSaved { .. }) {
            print_notice(notice, is_detached);
        }
    };
    Ok(match Box::pin(daemon::run(config, is_detached, notifier, report)).await? {
        MountEnd::Saved => ExitCode::SUCCESS,
        MountEnd::Unsaved => ExitCode::FAILURE,
        MountEnd::NotMountable(error) => {
            print_error(&error);
            ExitCode::from(EXIT_USAGE)
        }
    })
}

fn print_notice(notice: Notice<'_>, is_detached: bool) {
    match notice {
        Notice::Mounted { drive_id, path } => {
            let is_interactive = !is_detached && std::io::stderr().is_terminal();
            let hint = if is_interactive { " (Ctrl-C unmounts)" } else { "" };
            print_message(format_args!("mounted drive {drive_id} at {}{hint}", path.display()));
        }
        Notice::NotSaved { path, error } => {
            print_message(format::not_saved(path, &error.text(Language::current())));
        }
        Notice::PartlySaved { path, bytes } => print_message(format::partly_saved(path, bytes)),
        Notice::Waiting { files } => print_waiting(files),
        Notice::Unmounted { path } => print_message(format_args!("unmounted {}", path.display())),
    }
}

/// Prints what a stop waits for.
fn print_waiting(files: &[WaitingFile]) {
    for file in files.iter().take(WAITING_MAX) {
        let path = format::printable(&file.path);
        print_message(format_args!("waiting for {path} ({})", file.figures));
    }
    if files.len() > WAITING_MAX {
        print_message(format_args!("waiting for {} more files", files.len() - WAITING_MAX));
    }
    if files.is_empty() {
        print_message("waiting for the last requests of programs that use the mount");
    }
    print_message("a second Ctrl-C or SIGTERM gives up: files that are not on the drive are then not saved");
}
