//! `pdsfs drives`: what an account can mount.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::announce;
use super::login::{TIMEOUTS, whose};
use crate::account::{AccountName, DEFAULT_NAME, Store};
use crate::config::quantities::show_bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::pds::auth::Credential;
use crate::pds::domain;
use crate::pds::session::Session;
use crate::pds::types::DriveInfo;
use crate::printable::{escaped, escaped_json};

/// Arguments of `pdsfs drives`.
#[derive(Debug, Args)]
#[command(after_help = "The drive with the star is the one that pdsfs mount takes unless another is named.")]
pub struct DrivesArgs {
    /// Name of the account
    #[arg(default_value = DEFAULT_NAME)]
    name: String,
    /// Print JSON: a list of {drive_id, name, type, owner_type, status, used_bytes, total_bytes, default}
    #[arg(long)]
    json: bool,
}

/// Arguments that make sense.
#[derive(Debug)]
pub struct Checked {
    name: AccountName,
    store: Store,
    json: bool,
}

impl DrivesArgs {
    /// Checks the name.
    pub(super) fn check(self) -> Result<Checked> {
        Ok(Checked { name: AccountName::new(&self.name)?, store: Store::from_env()?, json: self.json })
    }
}

#[derive(Serialize)]
struct Row<'a> {
    drive_id: &'a str,
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    owner_type: &'a str,
    status: &'a str,
    used_bytes: u64,
    /// `None` is unlimited.
    total_bytes: Option<u64>,
    default: bool,
}

/// Lists the drives.
pub async fn run(checked: Checked) -> Result<ExitCode> {
    let handle = checked.store.account(checked.name);
    let account = handle.load().await?;
    let session = Session::new(&account.endpoint, Credential::Account(handle), TIMEOUTS)?;
    let drives = domain::drives(&session, whose(&account.grant)).await?;
    let rows: Vec<_> =
        drives.iter().map(|drive| row(drive, account.drive_id.as_ref() == Some(&drive.drive_id))).collect();
    if checked.json {
        let text =
            serde_json::to_string_pretty(&rows).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
        announce(escaped_json(&text))?;
    } else {
        table(&rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(drive: &DriveInfo, default: bool) -> Row<'_> {
    Row {
        drive_id: drive.drive_id.as_str(),
        name: &drive.drive_name,
        kind: &drive.drive_type,
        owner_type: &drive.owner_type,
        status: &drive.status,
        used_bytes: u64::try_from(drive.used_size).unwrap_or(0),
        total_bytes: u64::try_from(drive.total_size).ok(),
        default,
    }
}

fn table(rows: &[Row<'_>]) -> Result<()> {
    let head = ["", "DRIVE", "NAME", "TYPE", "USED", "TOTAL"].map(str::to_owned);
    let lines = rows.iter().map(|row| {
        // Names come from the network: nothing in them may move the cursor.
        let name = escaped(row.name);
        let kind = [row.owner_type, row.kind].into_iter().filter(|text| !text.is_empty());
        let kind = escaped(&kind.collect::<Vec<_>>().join("/"));
        let total = row.total_bytes.map_or_else(|| "unlimited".to_owned(), show_bytes);
        let star = if row.default { "*" } else { "" }.to_owned();
        [star, row.drive_id.to_owned(), name, kind, show_bytes(row.used_bytes), total]
    });
    let lines: Vec<_> = std::iter::once(head).chain(lines).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for line in &lines {
        let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        announce(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}
