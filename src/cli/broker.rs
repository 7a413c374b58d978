//! `pdsfs broker`: mounts for a daemon without rights. Started by `pdsfs-broker.socket` for each connection.

use std::os::fd::AsFd as _;
use std::process::ExitCode;

use clap::Args;
use rustix::net::{SocketType, sockopt};

use super::config::{ConfigArgs, Configuration};
use crate::daemon::broker::{self, ConfiguredMount};
use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, Args)]
pub(super) struct BrokerArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Serves the connection that is the standard input.
pub(super) fn run(args: &BrokerArgs) -> Result<ExitCode> {
    let input = std::io::stdin();
    if sockopt::socket_type(&input).ok() != Some(SocketType::SEQPACKET) {
        let detail = "the standard input is no connection of a daemon: systemd starts the broker (systemctl start \
                      pdsfs-broker.socket)";
        return Err(Error::new(ErrorKind::Invalid, detail));
    }
    let connection = input.as_fd().try_clone_to_owned()?;
    broker::serve(connection, |drive| configured(&args.config, drive))?;
    Ok(ExitCode::SUCCESS)
}

fn configured(config: &ConfigArgs, drive: &str) -> Result<ConfiguredMount> {
    let entry = Configuration::read(config)?.drive(drive)?;
    entry.settings.check()?;
    let mountpoint = entry.mountpoint.ok_or_else(|| {
        let detail = format!("no mountpoint for {drive}: set mountpoint = \"...\" in [drives.{drive}]");
        Error::new(ErrorKind::Invalid, detail)
    })?;
    let folder = entry.settings.folder.clone().unwrap_or_default();
    Ok(ConfiguredMount { mountpoint, source: format!("{drive}:{folder}"), options: entry.settings.options() })
}
