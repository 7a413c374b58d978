//! The recycle bin of the drive.

use std::time::SystemTime;

use super::meta::parse_time;
use super::{Drive, FileMeta};
use crate::error::{ErrorKind, Result};
use crate::ids::FileId;
use crate::pds::listing_bounds::ListingBounds;
use crate::pds::types::{AsyncResponse, FileRequest, ListResponse, RecycleBinRequest};

/// Entries per page.
const PAGE_ENTRIES: u32 = 100;

/// An object in the recycle bin.
#[derive(Clone, PartialEq, Debug)]
pub struct Recycled {
    /// Name and parent are those from before.
    pub meta: FileMeta,
    pub trashed_at: Option<SystemTime>,
}

impl Drive {
    /// The objects in the recycle bin, the last one that came first. Objects that went with their folder are left out.
    pub async fn recycle_bin(&self) -> Result<Vec<Recycled>> {
        let (mut all, mut bounds, mut marker) = (Vec::new(), ListingBounds::default(), String::new());
        loop {
            let request =
                RecycleBinRequest { drive_id: self.id(), limit: PAGE_ENTRIES, marker: &marker, fields: "*" };
            let page: ListResponse = self.call_safe("/v2/recyclebin/list", &request).await?;
            let before = all.len();
            for file in page.items.0 {
                let trashed_at = parse_time(file.trashed_at.as_deref());
                match self.meta(file) {
                    Ok(meta) => all.push(Recycled { meta, trashed_at }),
                    Err(error) => tracing::warn!(%error, "skipped an invalid entry of the recycle bin"),
                }
            }
            let next = Some(page.next_marker).filter(|next| !next.is_empty());
            match bounds.check(all[before..].iter().map(|item| item.meta.bytes()), next)? {
                Some(next) => marker = next,
                None => return Ok(all),
            }
        }
    }

    /// Takes an object out of the recycle bin, to the folder where it was. If that is gone, the service chooses another
    /// one.
    pub async fn restore(&self, file: &FileId) -> Result<FileMeta> {
        let request = FileRequest { drive_id: self.id(), file_id: file };
        match self.call_safe::<Option<AsyncResponse>>("/v2/recyclebin/restore", &request).await {
            Ok(answer) => self.finish_task(answer).await?,
            // A repeated call finds that the first one has restored it.
            Err(failure) if failure.error.kind() == ErrorKind::NotFound => {}
            Err(failure) => return Err(failure.error),
        }
        self.get(file).await
    }
}
