//! The served mount, and its status in the JSON of the API.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::event_log::{EventLog, unix_ms};
use super::types::{EventKind, LogEntry, Paused, PendingTotals, Status, TransferStatus};
use crate::config::MountConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::status::{FailedFile, FailedObject, Progress};
use crate::vfs::{UnsavedFileStatus, Vfs, summarize};

/// Unsaved files that a status lists.
const TRANSFERS_MAX: usize = 1000;
/// Failed files that a status lists.
const FAILURES_MAX: usize = 50;
/// Longest text of a failure, in characters.
const TEXT_CHARS_MAX: usize = 1000;

/// Everything that the control API and the metrics read.
#[derive(Debug)]
pub struct MountHandle {
    pub vfs: Arc<Vfs>,
    pub config: Arc<MountConfig>,
    pub progress: Arc<Progress>,
    pub event_log: Arc<EventLog>,
    pub mounted_at: SystemTime,
    pub mount_lookup: MountLookup,
}

/// What the kernel shows of the mount.
#[derive(Clone, Debug)]
pub struct KernelView {
    pub path: PathBuf,
    pub is_read_only: bool,
}

/// Reads the mount table; `None` once the mount has ended.
pub struct MountLookup(pub Box<dyn Fn() -> Option<KernelView> + Send + Sync>);

impl fmt::Debug for MountLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MountLookup")
    }
}

impl MountHandle {
    /// Refuses a change of the drive by a request if the mount is read-only.
    pub fn check_writable(&self) -> Result<()> {
        if (self.mount_lookup.0)().is_some_and(|view| view.is_read_only) {
            return Err(Error::new(ErrorKind::Denied, "the mount is read-only"));
        }
        Ok(())
    }

    pub fn status(&self) -> Status {
        let (files, totals) = (self.vfs.unsaved_files(), self.progress.totals());
        let left_out = files.len().saturating_sub(TRANSFERS_MAX);
        let paused = self.progress.pauses().into_iter().next();
        let view = (self.mount_lookup.0)();
        let mountpoint = view.as_ref().map_or(&self.config.mountpoint, |view| &view.path);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            name: self.config.name.clone(),
            drive_id: self.config.drive_id.to_string(),
            mountpoint: mountpoint.to_string_lossy().into_owned(),
            read_only: view.is_some_and(|view| view.is_read_only),
            mounted_at_ms: unix_ms(self.mounted_at),
            last_seq: self.event_log.last_seq(),
            paused: paused.map(|pause| Paused {
                reason: pause.reason.into(),
                detail: pause.detail.to_string(),
                cause: pause.cause,
                since_ms: unix_ms(pause.since),
            }),
            pending: self.pending(&files, totals.rate_bytes_s),
            totals: totals.into(),
            transfers: files.iter().take(TRANSFERS_MAX).map(transfer).collect(),
            transfers_left_out: left_out as u64,
            failures: self.failures(),
        }
    }

    /// The newest failed files under their present names.
    fn failures(&self) -> Vec<LogEntry> {
        let failed = self.progress.failed_files();
        let newest = failed.len().saturating_sub(FAILURES_MAX);
        failed.into_iter().skip(newest).map(|file| self.failure(&file)).collect()
    }

    fn failure(&self, file: &FailedFile) -> LogEntry {
        let (what, path) = match &file.object {
            FailedObject::Content(ino) => (EventKind::Failed, self.vfs.present_path(*ino)),
            FailedObject::Attributes(_) => (EventKind::AttributesRefused, None),
        };
        LogEntry {
            seq: 0,
            at_ms: unix_ms(file.at),
            what,
            path: Some(path.unwrap_or_else(|| file.name.to_string())),
            bytes: None,
            elapsed_ms: None,
            text: file.error.to_string().chars().take(TEXT_CHARS_MAX).collect(),
            cause: file.error.cause().cloned(),
            detail: file.error.detail().map(|detail| detail.chars().take(TEXT_CHARS_MAX).collect()),
        }
    }

    fn pending(&self, files: &[UnsavedFileStatus], rate_bytes_s: u64) -> PendingTotals {
        let sum = summarize(files, rate_bytes_s);
        PendingTotals {
            files: sum.files,
            files_open: sum.open,
            files_failed: self.progress.failed_file_count(),
            files_failed_open: sum.failed_open,
            bytes: sum.bytes,
            bytes_sent: sum.figures.sent,
            bytes_waiting: sum.figures.waiting,
            size_known: sum.figures.is_size_known,
            eta_ms: sum.figures.eta().map(ms),
            attributes: self.vfs.unsaved_attr_count() as u64,
            attributes_refused: self.vfs.refused_attr_count() as u64,
            oldest_ms: ms(sum.oldest),
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn transfer(file: &UnsavedFileStatus) -> TransferStatus {
    let (view, figures) = (file.status.transfer.as_ref(), file.status.figures());
    TransferStatus {
        path: file.path.clone(),
        state: file.status.stage.into(),
        bytes: figures.size(),
        bytes_acked: view.map_or(0, |view| view.bytes_acked),
        bytes_sent: figures.sent,
        bytes_waiting: figures.waiting,
        size_known: figures.is_size_known,
        parts_in_flight: view.map_or(0, |view| view.parts_in_flight),
        rate_bytes_s: figures.rate_bytes_s,
        eta_ms: figures.eta().map(ms),
        age_ms: view.map_or(0, |view| ms(view.age)),
        error: file.status.error.as_ref().map(ToString::to_string),
        cause: file.status.error.as_ref().and_then(|error| error.cause().cloned()),
        retries: view.and_then(|view| view.retry.as_ref()).map_or(0, |retry| retry.times),
        retry_reason: view.and_then(|view| Some(view.retry.as_ref()?.reason.to_string())),
    }
}
