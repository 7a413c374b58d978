//! A mount as the control API shows it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::recent::{Recent, unix_ms};
use super::types::{Paused, Pending, Status, Transfer};
use crate::config::MountConfig;
use crate::status::Progress;
use crate::vfs::{SeenFile, Vfs, sum_up};

/// Files that a status lists.
const TRANSFERS_MAX: usize = 1000;

/// What is known of the mount that is served here.
#[derive(Debug)]
pub struct Served {
    /// The file system.
    pub vfs: Arc<Vfs>,
    /// How it is configured.
    pub config: Arc<MountConfig>,
    /// Its transfers.
    pub progress: Arc<Progress>,
    /// What happened to it.
    pub recent: Arc<Recent>,
    /// When it was mounted.
    pub mounted_at: SystemTime,
}

impl Served {
    /// Everything at this moment.
    pub fn status(&self) -> Status {
        let seen = self.vfs.seen_files();
        let left_out = seen.len().saturating_sub(TRANSFERS_MAX);
        let paused = self.progress.pauses().into_iter().next();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            name: self.config.name.clone(),
            drive_id: self.config.drive_id.to_string(),
            mountpoint: self.config.mountpoint.to_string_lossy().into_owned(),
            read_only: self.config.read_only,
            mounted_at_ms: unix_ms(self.mounted_at),
            last_seq: self.recent.last_seq(),
            paused: paused.map(|pause| Paused {
                reason: pause.reason,
                detail: pause.detail.to_string(),
                since_ms: unix_ms(pause.since),
            }),
            pending: self.pending(&seen),
            totals: self.progress.totals(),
            transfers: seen.iter().take(TRANSFERS_MAX).map(transfer).collect(),
            transfers_left_out: left_out as u64,
            failures: self.recent.failures(),
        }
    }

    fn pending(&self, seen: &[SeenFile]) -> Pending {
        let sum = sum_up(seen);
        Pending {
            files: sum.files,
            files_open: sum.open,
            files_failed_open: sum.failed_open,
            bytes: sum.bytes,
            attributes: self.vfs.pending_attributes() as u64,
            attributes_refused: self.vfs.refused_attributes() as u64,
            oldest_ms: ms(sum.oldest),
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn transfer(file: &SeenFile) -> Transfer {
    let view = file.sight.transfer.as_ref();
    Transfer {
        path: file.path.clone(),
        state: file.sight.stage,
        bytes: file.sight.bytes,
        bytes_acked: view.map_or(0, |view| view.bytes_acked),
        parts_in_flight: view.map_or(0, |view| view.parts_in_flight),
        rate_bytes_s: view.map_or(0, |view| view.rate_bytes_s),
        eta_ms: view.and_then(|view| view.eta).map(ms),
        age_ms: view.map_or(0, |view| ms(view.age)),
        error: file.sight.error.as_ref().map(ToString::to_string),
    }
}
