//! `pdsfs drives`: lists the drives of an account.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::login::{CaFile, TIMEOUTS, drive_scope};
use super::output::{print_line, print_table};
use crate::auth::{AccountName, AccountStore, Credential, DEFAULT_NAME};
use crate::error::{Error, ErrorKind, Result};
use crate::escape::{escaped, escaped_json};
use crate::pds::domain;
use crate::pds::session::Session;
use crate::pds::transport::TrustedPeers;
use crate::pds::types::DriveInfo;
use crate::units::Size;

#[derive(Debug, Args)]
#[command(after_help = "The star marks the drive that pdsfs mount uses by default.")]
pub(super) struct DrivesArgs {
    /// Name of the account
    #[arg(default_value = DEFAULT_NAME)]
    name: String,
    /// Print JSON: a list of {drive_id, name, type, owner_type, status, used_bytes, total_bytes, default}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ca_file: CaFile,
}

#[derive(Debug)]
pub(super) struct DrivesRequest {
    name: AccountName,
    store: AccountStore,
    json: bool,
    peers: TrustedPeers,
}

impl DrivesArgs {
    pub(super) fn check(self) -> Result<DrivesRequest> {
        Ok(DrivesRequest {
            name: AccountName::new(&self.name)?,
            store: AccountStore::from_env()?,
            json: self.json,
            peers: self.ca_file.read()?,
        })
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
    /// `None`: unlimited.
    total_bytes: Option<u64>,
    default: bool,
}

pub(super) async fn run(request: DrivesRequest) -> Result<ExitCode> {
    let handle = request.store.account(request.name);
    let account = handle.load().await?;
    let session = Session::new(&account.endpoint, Credential::Account(handle), TIMEOUTS, request.peers)?;
    let drives = domain::list_drives(&session, drive_scope(&account.grant)).await;
    let drives = drives.map_err(|e| e.context("cannot list the drives"))?;
    let rows: Vec<_> =
        drives.iter().map(|drive| row(drive, account.drive_id.as_ref() == Some(&drive.drive_id))).collect();
    if request.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| Error::from_source(ErrorKind::Io, e))?;
        print_line(escaped_json(&text))?;
    } else {
        print_table(&table(&rows))?;
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

fn table(rows: &[Row<'_>]) -> Vec<[String; 6]> {
    let head = ["", "DRIVE", "NAME", "TYPE", "USED", "TOTAL"].map(str::to_owned);
    let lines = rows.iter().map(|row| {
        // Names come from the network and may contain control characters.
        let name = escaped(row.name);
        let kind = [row.owner_type, row.kind].into_iter().filter(|text| !text.is_empty());
        let kind = escaped(&kind.collect::<Vec<_>>().join("/"));
        let total = row.total_bytes.map_or_else(|| "unlimited".to_owned(), |bytes| Size(bytes).to_string());
        let star = if row.default { "*" } else { "" }.to_owned();
        [star, row.drive_id.to_owned(), name, kind, Size(row.used_bytes).to_string(), total]
    });
    std::iter::once(head).chain(lines).collect()
}
