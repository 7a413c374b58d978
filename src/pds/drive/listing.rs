//! Listings of folders.

use std::time::Instant;

use super::subfolder_listings::search_marker;
use super::{DownloadUrl, Drive, FileMeta};
use crate::error::Result;
use crate::ids::FileId;
use crate::pds::types::{ListRequest, ListResponse, ListedUrl};

/// Entries per listing page: the documented maximum.
pub(super) const PAGE_ENTRIES: u32 = 100;

/// One page of the listing of a folder.
#[derive(Clone, Debug)]
pub struct ListingPage {
    /// Ordered by name.
    pub items: Vec<FileMeta>,
    /// `None` at the end.
    pub next_marker: Option<String>,
    /// Download URLs of some of the items.
    pub urls: Vec<ListedDownload>,
}

/// The download URL of an item of a listing.
#[derive(Clone, Debug)]
pub struct ListedDownload {
    /// Of [`ListingPage::items`].
    pub index: usize,
    pub url: DownloadUrl,
}

impl Drive {
    /// One page of the listing of a folder, ordered by name. `marker` is empty for the first page.
    /// Some services list no entries of subfolders; these are searched.
    pub async fn list_page(&self, parent: &FileId, marker: &str) -> Result<ListingPage> {
        if let Some(marker) = search_marker(marker) {
            return self.search_folder(parent, marker).await;
        }
        let request = ListRequest {
            drive_id: self.id(),
            parent_file_id: parent,
            limit: PAGE_ENTRIES,
            marker,
            order_by: "name",
            order_direction: "ASC",
            fields: "*,user_tags",
        };
        let requested_at = Instant::now();
        let page: ListResponse = self.call_safe("/v2/file/list", &request).await?;
        let (mut items, mut urls) = (Vec::with_capacity(page.items.0.len()), Vec::new());
        for mut file in page.items.0 {
            let url = file.download_url.take().filter(|url| !url.0.is_empty());
            match self.meta(file) {
                Ok(meta) => {
                    urls.extend(url.map(|ListedUrl(url)| ListedDownload {
                        index: items.len(),
                        url: DownloadUrl::listed(url, &meta, requested_at),
                    }));
                    items.push(meta);
                }
                Err(error) => tracing::warn!(%error, "skipped an invalid entry of a listing"),
            }
        }
        let next_marker = Some(page.next_marker).filter(|m| !m.is_empty());
        let listings = &self.0.subfolder_listings;
        if !items.is_empty() {
            listings.note_entries(parent);
        } else if marker.is_empty() && next_marker.is_none() && listings.is_doubtful(parent) {
            return self.search_folder(parent, "").await;
        }
        Ok(ListingPage { items, next_marker, urls })
    }
}
