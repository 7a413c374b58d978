//! Entries of a folder by search, for drives whose listings of subfolders are empty although there are entries.
//!
//! An empty listing of a subfolder is not believed until this mount has seen one with entries. The index of the
//! service lags, so each hit is confirmed by `get`.
//!
//! Where the service offers no search, empty listings are believed until a search has shown that one was wrong.
//! Refusals are not remembered: each empty listing is searched.

use serde::Serialize;
use tokio::task::JoinSet;

use super::Drive;
use super::listing::{ListingPage, PAGE_ENTRIES};
use super::subfolder_listings::SEARCH_MARKER;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, FileId};
use crate::pds::retry::{Delivery, RequestFailure};
use crate::pds::types::ListResponse;

/// `POST /v2/file/search`.
#[derive(Serialize)]
struct SearchRequest<'a> {
    drive_id: &'a DriveId,
    query: &'a str,
    recursive: bool,
    order_by: &'static str,
    limit: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    marker: &'a str,
}

impl Drive {
    /// One page of the entries of a folder that was listed as empty, by search. Empty too if the service offers no
    /// search and no listing has been wrong.
    pub(super) async fn search_folder(&self, folder: &FileId, marker: &str) -> Result<ListingPage> {
        let query = format!("parent_file_id = \"{folder}\"");
        let request = SearchRequest {
            drive_id: self.id(),
            query: &query,
            recursive: false,
            order_by: "name ASC",
            limit: PAGE_ENTRIES,
            marker,
        };
        let found: ListResponse = match self.call_safe("/v2/file/search", &request).await {
            Ok(found) => found,
            Err(failure)
                if marker.is_empty()
                    && is_unavailable(&failure)
                    && self.0.subfolder_listings.are_plausible() =>
            {
                tracing::debug!(error = %failure.error, "no search: the empty listing of a subfolder is believed");
                return Ok(ListingPage { items: Vec::new(), next_marker: None, urls: Vec::new() });
            }
            // `list` has just found the folder.
            Err(RequestFailure { error, .. }) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::from_source(ErrorKind::Io, error));
            }
            Err(failure) => return Err(failure.error),
        };
        let mut gets = JoinSet::new();
        for (index, hit) in found.items.0.into_iter().filter_map(|hit| self.meta(hit).ok()).enumerate() {
            let drive = self.clone();
            gets.spawn(async move { (index, drive.get(&hit.file_id).await) });
        }
        let mut confirmed = Vec::with_capacity(gets.len());
        while let Some(ended) = gets.join_next().await {
            let (index, got) = ended.map_err(|error| Error::new(ErrorKind::Io, error.to_string()))?;
            match got {
                Ok(meta) if meta.parent_id.as_ref() == Some(folder) => confirmed.push((index, meta)),
                // Moved or removed since the index was made.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if !confirmed.is_empty() {
            self.0.subfolder_listings.note_missing_entries();
        }
        confirmed.sort_by_key(|(index, _)| *index);
        let next = Some(found.next_marker).filter(|next| !next.is_empty());
        Ok(ListingPage {
            items: confirmed.into_iter().map(|(_, meta)| meta).collect(),
            next_marker: next.map(|next| format!("{SEARCH_MARKER}{next}")),
            urls: Vec::new(),
        })
    }
}

/// Whether the service offers no search. A refusal of the folder itself says nothing about searches.
fn is_unavailable(failure: &RequestFailure) -> bool {
    let is_of_folder = failure.code == "ForbiddenNoPermission.File";
    let is_other = matches!(failure.error.kind(), ErrorKind::NotFound | ErrorKind::Unauthenticated);
    failure.delivery == Delivery::Answered && !is_of_folder && !is_other
}
