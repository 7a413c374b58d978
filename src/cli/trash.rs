//! `pdsfs trash`: lists, restores and deletes what is in the recycle bin of a drive.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use tokio::task::JoinSet;

use super::columns::{aligned, beginning, short_id_len};
use super::format::{self, count, printable};
use super::mounts::one_mount;
use super::output::{EXIT_USAGE, print_error, print_line, print_message};
use crate::control::client::DaemonClient;
use crate::control::types::{Status, TrashedItem};
use crate::error::{Error, ErrorKind, Result};
use crate::escape::escaped_json;
use crate::units::Size;

/// Deletions at a time.
const DELETIONS_MAX: usize = 8;
/// Shortest beginning of an id that selects an item.
const ID_PREFIX_MIN: usize = 6;

#[derive(Debug, Args)]
#[command(
    after_help = "The recycle bin of the drive has what was deleted in this mount (unless with --remove delete) and by \
    other clients. It counts against the quota. A mount of a folder sees only what was in that folder."
)]
pub(super) struct TrashArgs {
    #[command(subcommand)]
    command: TrashCommand,
}

#[derive(Debug, Subcommand)]
enum TrashCommand {
    /// List the deleted files and directories, the last one first
    List(ListArgs),
    /// Put files or directories back to where they were
    Restore(RestoreArgs),
    /// Delete everything in the recycle bin for good
    Empty(EmptyArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// The mount, by mountpoint or name; needed if you have several
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: Option<String>,
    /// Print JSON: a list of {id, path, directory, bytes, at_ms}
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// Ids of the list (the first characters are enough), or paths where the files were
    #[arg(required = true, value_name = "ID|PATH")]
    items: Vec<String>,
    /// The mount, by mountpoint or name; needed if you have several
    #[arg(long, value_name = "MOUNTPOINT|NAME")]
    mount: Option<String>,
}

#[derive(Debug, Args)]
struct EmptyArgs {
    /// The mount, by mountpoint or name; needed if you have several
    #[arg(value_name = "MOUNTPOINT|NAME")]
    mount: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(args: TrashArgs) -> Result<ExitCode> {
    match args.command {
        TrashCommand::List(args) => list(&args).await,
        TrashCommand::Restore(args) => restore(&args).await,
        TrashCommand::Empty(args) => empty(&args).await,
    }
}

/// The one mount that is meant, with its recycle bin.
async fn open(mount: Option<&str>) -> Result<(DaemonClient, Status, Vec<TrashedItem>)> {
    let (daemon, status) = one_mount(mount).await?;
    let items = daemon.trash().await.map_err(|e| e.context("cannot read the recycle bin"))?.items;
    Ok((daemon, status, items))
}

/// The path where an item was.
fn place(status: &Status, item: &TrashedItem) -> String {
    format!("{}{}", status.mountpoint, item.path)
}

async fn list(args: &ListArgs) -> Result<ExitCode> {
    let (_, status, mut items) = open(args.mount.as_deref()).await?;
    if args.json {
        for item in &mut items {
            item.path = place(&status, item);
        }
        let text = serde_json::to_string_pretty(&items).map_err(|e| Error::from_source(ErrorKind::Io, e))?;
        print_line(escaped_json(&text))?;
        return Ok(ExitCode::SUCCESS);
    }
    if items.is_empty() {
        print_message(format_args!("the recycle bin has nothing of {}", printable(&status.mountpoint)));
        return Ok(ExitCode::SUCCESS);
    }
    let id_len = short_id_len(&items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>());
    let head = ["DELETED", "SIZE", "ID", "PATH"].map(str::to_owned);
    let rows = items.iter().map(|item| {
        let slash = if item.directory { "/" } else { "" };
        [
            item.at_ms.map_or_else(|| "-".to_owned(), format::local_time),
            if item.directory { "-".to_owned() } else { Size(item.bytes).to_string() },
            printable(beginning(&item.id, id_len)),
            format!("{}{slash}", printable(&place(&status, item))),
        ]
    });
    for line in aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>()) {
        print_line(line)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn restore(args: &RestoreArgs) -> Result<ExitCode> {
    let (daemon, status, items) = open(args.mount.as_deref()).await?;
    // All arguments must be right before anything changes.
    let wanted: Result<Vec<_>> = args.items.iter().map(|wanted| select(&items, wanted, &status)).collect();
    let mut code = ExitCode::SUCCESS;
    for item in wanted? {
        match daemon.restore_trashed(&item.id).await {
            Ok(restored) => {
                let path = format!("{}{}", status.mountpoint, restored.path);
                let shown = printable(&path);
                tokio::task::spawn_blocking(move || look_up_again(Path::new(&path))).await.ok();
                print_message(format_args!("restored {shown}"));
            }
            Err(error) => {
                print_error(&error.context(format!("cannot restore {}", printable(&place(&status, item)))));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Makes the kernel look a name up that it may know as missing. The call creates nothing: a directory cannot be linked.
fn look_up_again(path: &Path) {
    if let Some(dir) = path.parent() {
        std::fs::hard_link(dir, path).ok();
    }
}

/// The item that an argument selects: by the beginning of its id, or by the path where it was.
fn select<'i>(items: &'i [TrashedItem], wanted: &str, status: &Status) -> Result<&'i TrashedItem> {
    let path = std::path::absolute(wanted).unwrap_or_default();
    let is_wanted = |item: &&TrashedItem| {
        item.id == wanted
            || wanted.len() >= ID_PREFIX_MIN && item.id.starts_with(wanted)
            || Path::new(&place(status, item)) == path
    };
    let found: Vec<_> = items.iter().filter(is_wanted).collect();
    let shown = printable(wanted);
    match found[..] {
        [item] => Ok(item),
        [] => {
            let detail = format!("the recycle bin has no {shown} (pdsfs trash list lists it)");
            Err(Error::new(ErrorKind::NotFound, detail))
        }
        _ => {
            let detail = format!(
                "the recycle bin has {} of the name {shown}: use an id of pdsfs trash list",
                found.len()
            );
            Err(Error::new(ErrorKind::Invalid, detail))
        }
    }
}

async fn empty(args: &EmptyArgs) -> Result<ExitCode> {
    let (daemon, status, mut items) = open(args.mount.as_deref()).await?;
    let shown = printable(&status.mountpoint);
    if items.is_empty() {
        print_message(format_args!("the recycle bin has nothing of {shown}"));
        return Ok(ExitCode::SUCCESS);
    }
    let total = |items: &[TrashedItem]| {
        let bytes: u64 = items.iter().map(|item| item.bytes).sum();
        format!("{} of {shown}, {}", count(items.len() as u64, "item"), Size(bytes))
    };
    let what = total(&items);
    if !args.yes {
        if !std::io::stdin().is_terminal() {
            print_message(format_args!("pdsfs: this deletes {what} for good: add --yes"));
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        print_message(format_args!("Delete {what} for good? [y/N]"));
        let answer = tokio::task::spawn_blocking(read_answer).await.unwrap_or(false);
        if !answer {
            return Ok(ExitCode::FAILURE);
        }
        // Items may have been restored since the question.
        let now = daemon.trash().await.map_err(|e| e.context("cannot read the recycle bin"))?.items;
        items.retain(|item| now.iter().any(|still| still.id == item.id));
    }
    let what = total(&items);
    let failed = delete_all(&daemon, &status, items).await;
    if failed {
        return Ok(ExitCode::FAILURE);
    }
    print_message(format_args!("deleted {what}"));
    Ok(ExitCode::SUCCESS)
}

fn read_answer() -> bool {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).is_ok()
        && matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Deletes the items for good, and prints each failure. Returns whether one failed.
async fn delete_all(daemon: &DaemonClient, status: &Status, items: Vec<TrashedItem>) -> bool {
    let (mut running, mut has_failed) = (JoinSet::new(), false);
    let mut note = |ended: (String, Result<()>)| {
        if let (place, Err(error)) = ended {
            print_error(&error.context(format!("cannot delete {}", printable(&place))));
            has_failed = true;
        }
    };
    for item in items {
        if running.len() >= DELETIONS_MAX
            && let Some(Ok(ended)) = running.join_next().await
        {
            note(ended);
        }
        let (daemon, place) = (daemon.clone(), place(status, &item));
        running.spawn(async move { (place, daemon.delete_trashed(&item.id).await) });
    }
    running.join_all().await.into_iter().for_each(note);
    has_failed
}
