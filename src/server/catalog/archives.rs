//! Archives: the objects of a ZIP file that is made when it is downloaded.

use std::collections::HashMap;
use std::sync::Arc;

use super::records::Archive;
use super::{CatalogState, ServiceError, TASKS_MAX};
use crate::server::blobs::Blob;

/// Bound on the content of an archive.
const ARCHIVE_BYTES_MAX: u64 = 64 << 20;
/// Bound on its entries; the format has 16 bits.
const ENTRIES_MAX: usize = 10_000;

/// A file or, without content, a folder.
pub(in crate::server) struct ArchiveEntry {
    /// Relative, with slashes; that of a folder ends with one.
    pub(in crate::server) path: String,
    pub(in crate::server) blob: Option<Arc<Blob>>,
}

impl CatalogState {
    /// The entries of an archive. An error if an object does not exist or the archive is too large.
    pub(in crate::server) fn archive_entries(
        &self,
        archive: &Archive,
    ) -> Result<Vec<ArchiveEntry>, ServiceError> {
        let (mut entries, mut bytes) = (Vec::new(), 0u64);
        for top in &archive.files {
            let mut paths = HashMap::new();
            for id in self.below(&archive.drive, top) {
                let node = self.live(&archive.drive, &id)?;
                let above = paths.get(&node.parent).map_or("", String::as_str);
                let path = format!("{above}{}{}", node.name, if node.is_folder() { "/" } else { "" });
                bytes = bytes.saturating_add(node.size());
                if bytes > ARCHIVE_BYTES_MAX || entries.len() == ENTRIES_MAX {
                    return Err(ServiceError::invalid(
                        "files",
                        "They are more than 64 MiB or 10,000 objects.",
                    ));
                }
                let blob = node.newest().and_then(|_| self.blob_of(&archive.drive, &id, None));
                paths.insert(id, path.clone());
                entries.push(ArchiveEntry { path, blob });
            }
        }
        Ok(entries)
    }

    /// Adds the archive of a task.
    pub(in crate::server) fn accept_archive(&mut self, task: &str, archive: Archive) {
        if self.archives.len() >= TASKS_MAX {
            self.archives.clear();
        }
        self.archives.insert(task.to_owned(), archive);
    }

    pub(in crate::server) fn archive(&self, task: &str) -> Option<&Archive> {
        self.archives.get(task)
    }
}
