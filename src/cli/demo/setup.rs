//! Starts the server of the demo and configures the mount of its drive.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::dirs;
use super::server_process::{DriveLimits, ServerProcess};
use crate::config::{Credential, MountConfig};
use crate::error::Result;
use crate::ids::{DriveId, Secret};

/// The first drive of the embedded server.
const DRIVE_ID: &str = "1";
/// Short, because the server is on this machine: a server that is silent for this long is dead.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a server on `data_dir` and returns it with the configuration of a mount of its drive.
pub(super) async fn start_server(
    data_dir: &Path,
    mountpoint: &Path,
    limits: DriveLimits,
) -> Result<(ServerProcess, MountConfig)> {
    dirs::create_private(data_dir)?;
    let spill_dir = data_dir.join("spill");
    dirs::create_private(&spill_dir)?;
    let token = dirs::token(data_dir)?;
    let server = ServerProcess::start(data_dir, &token, limits).await?;
    let config = mount_config(&server, token, mountpoint, spill_dir)?;
    Ok((server, config))
}

fn mount_config(
    server: &ServerProcess,
    token: Secret<String>,
    mountpoint: &Path,
    spill_dir: PathBuf,
) -> Result<MountConfig> {
    let mut config = MountConfig {
        mountpoint: mountpoint.to_owned(),
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        spill_dir,
        ..MountConfig::new(server.url().clone(), DriveId::new(DRIVE_ID)?, Credential::Token(token))
    };
    config.options.commit_timeout = COMMIT_TIMEOUT;
    Ok(config)
}
