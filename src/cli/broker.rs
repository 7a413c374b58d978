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
    /// Serve a drive only for a process of the systemd unit PREFIX + drive + .service
    #[arg(long, value_name = "PREFIX")]
    peer_unit: Option<String>,
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
    let peer = sockopt::socket_peercred(&connection).map_err(std::io::Error::from)?.pid;
    broker::serve(connection, |drive| {
        if let Some(prefix) = &args.peer_unit {
            let unit = format!("{prefix}{drive}.service");
            let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", peer.as_raw_nonzero()))?;
            if !is_of_unit(&cgroup, &unit) {
                let detail = format!("only a process of {unit} can have drive {drive} mounted");
                return Err(Error::new(ErrorKind::Denied, detail));
            }
        }
        configured(&args.config, drive)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a process is in the control group of a system unit itself. `cgroup` is its `/proc/PID/cgroup`.
fn is_of_unit(cgroup: &str, unit: &str) -> bool {
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths
        .map(|path| path.split('/'))
        .any(|mut names| names.clone().nth(1) == Some("system.slice") && names.next_back() == Some(unit))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_of_a_process_is_its_control_group() {
        let unit = "pdsfs@work.service";
        let is_of = |path: &str| is_of_unit(&format!("0::{path}\n"), unit);
        assert!(is_of("/system.slice/system-pdsfs.slice/pdsfs@work.service"));
        assert!(is_of_unit("3:cpu:/\n1:name=systemd:/system.slice/pdsfs@work.service\n", unit));
        assert!(!is_of("/system.slice/system-pdsfs.slice/pdsfs@other.service"));
        assert!(!is_of("/system.slice/pdsfs@work.service/inner"));
        assert!(!is_of("/user.slice/user-1000.slice/user@1000.service/app.slice/pdsfs@work.service"));
    }
}
