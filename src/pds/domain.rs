//! Calls before a drive is chosen: which drives exist.

use serde::Serialize;

use crate::error::{ErrorKind, Result};
use crate::ids::DriveId;
use crate::pds::listing_bounds::ListingBounds;
use crate::pds::retry::{Idempotency, RetryPolicy};
use crate::pds::session::Session;
use crate::pds::transport::CallPriority;
use crate::pds::types::{DriveInfo, DriveList, DriveRequest};

/// Drives per page: the documented maximum.
const PAGE_DRIVES: u32 = 100;

#[derive(Serialize)]
struct ListDrives<'a> {
    limit: u32,
    marker: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
}

#[derive(Serialize)]
struct DefaultDrive<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
}

/// The owner of the drives to list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriveScope<'a> {
    /// The drives of the user of the token.
    Mine,
    /// The drives of this user. An access key has no user of its own.
    User(&'a str),
    /// The drives of all users, if the credential permits that.
    All,
}

/// The default drive of the user.
pub async fn get_default_drive(session: &Session, scope: DriveScope<'_>) -> Result<DriveInfo> {
    let user_id = match scope {
        DriveScope::User(id) => Some(id),
        DriveScope::Mine | DriveScope::All => None,
    };
    let body = DefaultDrive { user_id };
    let (call, policy) = (("/v2/drive/get_default_drive", CallPriority::Lookup), RetryPolicy::INTERACTIVE);
    Ok(session.call(call, Idempotency::Safe, policy, &body).await?)
}

pub async fn get_drive(session: &Session, drive_id: &DriveId) -> Result<DriveInfo> {
    let (call, body) = (("/v2/drive/get", CallPriority::Lookup), DriveRequest { drive_id });
    Ok(session.call(call, Idempotency::Safe, RetryPolicy::INTERACTIVE, &body).await?)
}

/// All drives that can be mounted, including those of the user's groups.
pub async fn list_drives(session: &Session, scope: DriveScope<'_>) -> Result<Vec<DriveInfo>> {
    let (path, owner) = match scope {
        DriveScope::Mine => ("/v2/drive/list_my_drives", None),
        DriveScope::User(id) => ("/v2/drive/list", Some(id)),
        DriveScope::All => ("/v2/drive/list", None),
    };
    let mut found = list_pages(session, path, owner).await?;
    if scope == DriveScope::Mine {
        match list_pages(session, "/v2/drive/list_my_group_drive", None).await {
            Ok(more) => found.extend(more),
            // Not every domain has groups, and not every app may list them.
            Err(error)
                if matches!(error.kind(), ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::NoDrive) =>
            {
                tracing::debug!(%error, "cannot list the drives of groups");
            }
            Err(error) => return Err(error),
        }
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|drive| seen.insert(drive.drive_id.clone()));
    Ok(found)
}

async fn list_pages(session: &Session, path: &str, owner: Option<&str>) -> Result<Vec<DriveInfo>> {
    let (mut found, mut bounds, mut marker) = (Vec::new(), ListingBounds::default(), String::new());
    loop {
        let body = ListDrives { limit: PAGE_DRIVES, marker: &marker, owner };
        let call = (path, CallPriority::Lookup);
        let page: DriveList = session.call(call, Idempotency::Safe, RetryPolicy::INTERACTIVE, &body).await?;
        let drives = page.items.0.iter().map(DriveInfo::bytes);
        let next = bounds.check(drives, Some(page.next_marker).filter(|marker| !marker.is_empty()))?;
        found.extend(page.root_group_drive);
        found.extend(page.items.0);
        match next {
            Some(next) => marker = next,
            None => return Ok(found),
        }
    }
}
