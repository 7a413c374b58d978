//! A mount as the control API shows it.

use std::sync::Arc;
use std::time::SystemTime;

use super::recent::{Recent, unix_ms};
use super::types::{Paused, Pending, Stage, Status, Transfer};
use crate::config::MountConfig;
use crate::status::Progress;
use crate::vfs::{SeenFile, Vfs};

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
        let mut pending = Pending { attributes: self.vfs.pending_attributes() as u64, ..Pending::default() };
        for (file, is_open) in seen.iter().map(|file| (transfer(file), file.is_open)) {
            if file.state == Stage::Failed {
                pending.files_failed_open += 1;
                continue;
            }
            pending.files += 1;
            pending.files_open += u64::from(is_open && file.state != Stage::Committing);
            pending.bytes += file.bytes.saturating_sub(file.bytes_acked);
            pending.oldest_ms = pending.oldest_ms.max(file.age_ms);
        }
        pending
    }
}

fn transfer(file: &SeenFile) -> Transfer {
    let view = file.sight.transfer.as_ref();
    let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
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
