//! How many bytes lie in the recycle bin. The service has no call for the sum.

use serde::{Deserialize, Serialize};

use super::Drive;
use crate::error::Result;
use crate::ids::DriveId;

/// Entries of one page, the most that the service returns.
const PAGE_ENTRIES: u32 = 200;
/// Pages that are read for one sum.
const PAGES_MAX: usize = 5;

/// Bytes in the recycle bin of a drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BinUsage {
    /// Bytes of the newest entries. Folders in the bin count nothing.
    pub bytes: u64,
    /// Whether these are all entries.
    pub is_complete: bool,
}

#[derive(Serialize)]
struct BinRequest<'a> {
    drive_id: &'a DriveId,
    limit: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    marker: &'a str,
}

#[derive(Deserialize)]
struct BinPage {
    #[serde(default)]
    items: Vec<BinEntry>,
    #[serde(default)]
    next_marker: String,
}

#[derive(Deserialize)]
struct BinEntry {
    #[serde(default)]
    size: Option<u64>,
}

impl Drive {
    /// Reads at most 1,000 entries of the recycle bin.
    pub async fn bin_usage(&self) -> Result<BinUsage> {
        let (mut bytes, mut marker) = (0_u64, String::new());
        for _ in 0..PAGES_MAX {
            let request = BinRequest { drive_id: self.id(), limit: PAGE_ENTRIES, marker: &marker };
            let page: BinPage = self.call_safe("/v2/recyclebin/list", &request).await?;
            bytes = page.items.iter().filter_map(|item| item.size).fold(bytes, u64::saturating_add);
            marker = page.next_marker;
            if marker.is_empty() {
                return Ok(BinUsage { bytes, is_complete: true });
            }
        }
        Ok(BinUsage { bytes, is_complete: false })
    }
}
