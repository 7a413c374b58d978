//! `pdsfs mount` without a name: the names that it takes.

use std::process::ExitCode;

use crate::cli::config::{ConfigArgs, Configuration};

use crate::cli::named_drive;
use crate::cli::output::{EXIT_USAGE, print_message, print_table};
use crate::error::Result;

/// Prints all drives of the configuration and all accounts. Nothing is mounted, so a script must not continue.
pub(super) fn list(config: &ConfigArgs) -> Result<ExitCode> {
    let configuration = Configuration::read(config)?;
    let mut rows = Vec::new();
    for name in configuration.names() {
        let mountpoint = configuration.drive(name)?.mountpoint;
        let mountpoint = mountpoint.map(|path| path.display().to_string()).unwrap_or_default();
        rows.push(row(name, "drive", mountpoint)?);
    }
    for account in named_drive::accounts() {
        if !configuration.names().any(|name| name == account) {
            rows.push(row(&account, "account", String::new())?);
        }
    }
    if rows.is_empty() {
        print_message("there is no drive and no account: pdsfs login adds an account, pdsfs demo needs none");
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    rows.insert(0, ["NAME", "KIND", "MOUNTPOINT", "MOUNTED AT"].map(str::to_owned));
    print_table(&rows)?;
    print_message("pdsfs mount NAME DIRECTORY mounts one");
    Ok(ExitCode::from(EXIT_USAGE))
}

fn row(name: &str, kind: &str, mountpoint: String) -> Result<[String; 4]> {
    let mounted: Vec<_> =
        named_drive::mounted(name)?.iter().map(|mount| mount.path.display().to_string()).collect();
    Ok([name.to_owned(), kind.to_owned(), mountpoint, mounted.join(", ")])
}
