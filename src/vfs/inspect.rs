//! The status of one file or of all files. These functions change nothing and never wait.

use std::collections::HashSet;

use super::Vfs;
use super::attributes::no_attribute;
use super::unsaved_status::{FileStatus, ResourceUsage, Stage, UnsavedFileStatus, summarize};
use crate::error::Result;
use crate::ids::Ino;
use crate::pds::types::FileType;
use crate::status::UnsavedSummary;

impl Vfs {
    /// All files with unsaved content, including failed ones that are open.
    pub fn unsaved_files(&self) -> Vec<UnsavedFileStatus> {
        let open: Vec<_> = self.files.all().iter().map(|file| (file.ino(), file.status())).collect();
        let id = |status: &FileStatus| status.transfer.as_ref().map(|view| view.id);
        let known: HashSet<u64> = open.iter().filter_map(|(_, status)| id(status)).collect();
        // A commit continues after close if the closing caller was interrupted.
        let closed = self.progress.snapshot().into_iter().filter(|view| !known.contains(&view.id));
        let closed = closed.map(|view| UnsavedFileStatus {
            path: view.name.to_string(),
            status: FileStatus::of_transfer(view),
            is_open: false,
        });
        let open = open.into_iter().filter(|(_, status)| status.stage.is_unsaved());
        let open = open.map(|(ino, status)| {
            let path = self.present_path(ino);
            let is_open = self.files.has_writers(ino);
            UnsavedFileStatus { path: path.unwrap_or_else(|| status.name.clone()), status, is_open }
        });
        let mut unsaved: Vec<_> = open.chain(closed).collect();
        unsaved.sort_by_key(|file| id(&file.status).unwrap_or(u64::MAX));
        unsaved
    }

    /// The path of an inode, if it is in the tree.
    pub fn present_path(&self, ino: Ino) -> Option<String> {
        Some(self.path_of(ino)).filter(|path| path.starts_with('/'))
    }

    /// The total over [`Self::unsaved_files`].
    pub fn unsaved_sum(&self) -> UnsavedSummary {
        summarize(&self.unsaved_files(), self.progress.totals().rate_bytes_s)
    }

    /// The value of `user.pdsfs.NAME`.
    pub(super) fn status_attribute(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let (meta, kind) = {
            let tree = self.tree();
            (tree.meta(ino).cloned(), tree.kind(ino)?)
        };
        let status = self.files.get(ino).map(|file| file.status());
        let failure = self.failures.get(ino);
        let is_file = kind == FileType::File;
        let value = match name {
            b"state" if is_file => {
                let stage = status.map_or(Stage::Saved, |status| status.stage);
                let failed = failure.filter(|_| stage == Stage::Saved).map(|_| Stage::Failed);
                Some(failed.unwrap_or(stage).name().to_owned())
            }
            b"progress_bytes" if is_file => {
                let saved = meta.map_or(0, |meta| meta.size);
                let unsaved = status.filter(|status| status.stage != Stage::Saved);
                Some(unsaved.map_or(saved, |status| status.figures().sent).to_string())
            }
            b"error" => {
                let refused = || self.pending.refusal(&meta.as_ref()?.file_id);
                let error = status.and_then(|status| status.error).or(failure).or_else(refused);
                error.map(|error| error.to_string())
            }
            b"file_id" => meta.map(|meta| meta.file_id.to_string()),
            b"revision" => meta.and_then(|meta| meta.revision).map(|revision| revision.to_string()),
            b"sha1" => meta.and_then(|meta| meta.sha1).map(|sha1| sha1.to_string()),
            _ => None,
        };
        value.map(String::into_bytes).ok_or_else(no_attribute)
    }

    #[cfg(all(test, feature = "server"))]
    pub fn local_files_of(&self, user: u32) -> usize {
        self.upload_context.disk.files_of(user)
    }

    #[cfg(all(test, feature = "server"))]
    pub fn open_file_of(&self, ino: Ino) -> Option<std::sync::Arc<crate::content::open_file::OpenFile>> {
        self.files.get(ino)
    }

    #[cfg(all(test, feature = "server"))]
    pub fn pending_attr_bytes(&self) -> usize {
        self.pending.bytes()
    }

    /// Number of objects whose attributes or location are not on the drive yet.
    pub fn unsaved_attr_count(&self) -> usize {
        self.pending.count() + self.late_renames.count()
    }

    /// Number of objects whose attributes the drive has refused. Bounded: only the newest count.
    pub fn refused_attr_count(&self) -> usize {
        self.pending.refused_count()
    }

    pub fn resource_usage(&self) -> ResourceUsage {
        ResourceUsage {
            buffer_bytes: self.upload_context.buffer_pool.bytes_in_use(),
            copy_bytes: self.upload_context.quota.reserved_bytes(),
            parts_in_flight_max: self.upload_context.upload_limiter.limit(),
        }
    }
}
