//! Fuzz targets for options of `mount(8)` and for answers of daemons.

#![allow(clippy::missing_panics_doc, reason = "a target panics if an invariant does not hold")]

use crate::control::types::{ApiError, Drained, LogEntry, Status};

use super::{format, mount, status};

/// The option list of a line of `/etc/fstab`.
pub fn mount_options(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        mount::fstab::check_options(text);
    }
}

/// Answers of the control socket, which may belong to another user, as the commands print them.
pub fn control_answers(data: &[u8]) {
    let mut lines = Vec::new();
    if let Ok(status) = serde_json::from_slice::<Status>(data) {
        lines.extend(status::lines(&status, Some(80)));
    }
    if let Ok(entry) = serde_json::from_slice::<LogEntry>(data) {
        lines.push(format::event(&entry, Some(80)));
    }
    for line in lines {
        assert!(!line.contains(char::is_control), "control characters in {line:?}");
    }
    drop(serde_json::from_slice::<Drained>(data));
    drop(serde_json::from_slice::<ApiError>(data));
}
