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
    /// The service does not offer or permit searches.
    is_search_refused: AtomicBool,
}

impl SubfolderListings {
    pub(super) fn note_entries(&self, folder: &FileId) {
        if *folder != FileId::root() {
            self.are_true.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn note_refused_search(&self) {
        self.is_search_refused.store(true, Ordering::Relaxed);
    }

    /// Whether an empty listing of this folder needs a search.
    pub(super) fn is_doubtful(&self, folder: &FileId) -> bool {
        *folder != FileId::root()
            && !folder.as_str().contains(['"', '\\'])
            && !self.are_true.load(Ordering::Relaxed)
            && !self.is_search_refused.load(Ordering::Relaxed)
    }
}

/// The marker of the search that a marker of a listing contains.
pub(super) fn search_marker(marker: &str) -> Option<&str> {
    marker.strip_prefix(SEARCH_MARKER)
}
