//! The unit `pdsfs@NAME` of systemd: of the user, for root of the system.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, Result};

/// The unit file that the package installs.
const TEMPLATE: &str = "pdsfs@.service";

/// A systemd that has the unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Manager {
    User,
    System,
}

impl Manager {
    /// `None` if systemd does not answer, or has no such unit.
    pub(super) fn find() -> Option<Self> {
        let manager = if rustix::process::geteuid().is_root() { Self::System } else { Self::User };
        let mut command = manager.systemctl();
        command.args(["cat", TEMPLATE]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success()).then_some(manager)
    }

    /// Root runs no program that `$PATH` selects.
    fn systemctl(self) -> Command {
        let name = "systemctl";
        match self {
            Self::System => Command::new(PathBuf::from("/usr/bin").join(name)),
            Self::User => {
                let mut command = Command::new(name);
                command.arg("--user");
                command
            }
        }
    }

    pub(super) fn unit(self, name: &str) -> String {
        let user = if self == Self::User { "the user unit " } else { "the unit " };
        format!("{user}pdsfs@{name}")
    }

    /// Starts the unit at each login, and now.
    pub(super) fn enable(self, name: &str, now: bool) -> Result<()> {
        let mut command = self.systemctl();
        command.arg("enable").args(now.then_some("--now")).arg(format!("pdsfs@{name}.service"));
        let output = command.stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::new(ErrorKind::Io, format!("cannot start {}: {why}", self.unit(name))))
    }
}
