//! Whether empty listings of subfolders are true, as far as the answers of the service have shown.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::ids::FileId;

/// Start of the markers of a search, which callers of a listing hold like its own markers.
pub(super) const SEARCH_MARKER: &str = "search:";

/// What the answers so far say about the listings of subfolders.
#[derive(Debug, Default)]
pub(super) struct SubfolderListings {
    /// A listing of a subfolder had entries: empty ones are true.
    are_true: AtomicBool,
    /// A search found entries that a listing lacked: empty ones are not true.
    are_wrong: AtomicBool,
}

impl SubfolderListings {
    pub(super) fn note_entries(&self, folder: &FileId) {
        if *folder != FileId::root() {
            self.are_true.store(true, Ordering::Relaxed);
        }
    }

    /// Records that a search found entries of a subfolder that was listed as empty.
    pub(super) fn note_missing_entries(&self) {
        self.are_wrong.store(true, Ordering::Relaxed);
    }

    /// Whether no listing has been wrong so far.
    pub(super) fn are_plausible(&self) -> bool {
        !self.are_wrong.load(Ordering::Relaxed)
    }

    /// Whether an empty listing of this folder needs a search.
    pub(super) fn is_doubtful(&self, folder: &FileId) -> bool {
        *folder != FileId::root()
            && !folder.as_str().contains(['"', '\\'])
            && !self.are_true.load(Ordering::Relaxed)
    }
}

/// The marker of the search that a marker of a listing contains.
pub(super) fn search_marker(marker: &str) -> Option<&str> {
    marker.strip_prefix(SEARCH_MARKER)
}
