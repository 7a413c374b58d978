//! What can be asked before a drive is chosen: which drives there are.

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::DriveId;
use crate::pds::retry::{Idempotency, RetryPolicy};
use crate::pds::session::Session;
use crate::pds::types::{DriveInfo, DriveList, DriveRequest};

/// Drives per page: the largest that the documents allow.
const PAGE_DRIVES: u32 = 100;
/// Pages that are read; nobody has more drives than that.
const PAGES_MAX: usize = 100;

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

/// Whose drives are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose<'a> {
    /// Of the user that the token belongs to.
    Mine,
    /// Of this user. Access keys belong to no user of the domain.
    User(&'a str),
    /// Of everybody, for who may see that.
    All,
}

/// The drive that is mounted unless another is named.
pub async fn default_drive(session: &Session, whose: Whose<'_>) -> Result<DriveInfo> {
    let user_id = match whose {
        Whose::User(id) => Some(id),
        Whose::Mine | Whose::All => None,
    };
    let body = DefaultDrive { user_id };
    let (path, policy) = ("/v2/drive/get_default_drive", RetryPolicy::INTERACTIVE);
    Ok(session.call(path, Idempotency::Safe, policy, &body).await?)
}

/// One drive, by its id.
pub async fn drive(session: &Session, drive_id: &DriveId) -> Result<DriveInfo> {
    let (path, body) = ("/v2/drive/get", DriveRequest { drive_id });
    Ok(session.call(path, Idempotency::Safe, RetryPolicy::INTERACTIVE, &body).await?)
}

/// All drives that can be mounted: one's own, and those of one's groups.
pub async fn drives(session: &Session, whose: Whose<'_>) -> Result<Vec<DriveInfo>> {
    let (path, owner) = match whose {
        Whose::Mine => ("/v2/drive/list_my_drives", None),
        Whose::User(id) => ("/v2/drive/list", Some(id)),
        Whose::All => ("/v2/drive/list", None),
    };
    let mut found = pages(session, path, owner).await?;
    if whose == Whose::Mine {
        match pages(session, "/v2/drive/list_my_group_drive", None).await {
            Ok(more) => found.extend(more),
            // Not every domain has groups, and not every app may ask.
            Err(error)
                if matches!(error.kind(), ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::NoDrive) =>
            {
                tracing::debug!(%error, "drives of groups cannot be listed");
            }
            Err(error) => return Err(error),
        }
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|drive| seen.insert(drive.drive_id.clone()));
    Ok(found)
}

async fn pages(session: &Session, path: &str, owner: Option<&str>) -> Result<Vec<DriveInfo>> {
    let (mut found, mut marker) = (Vec::new(), String::new());
    for _ in 0..PAGES_MAX {
        let body = ListDrives { limit: PAGE_DRIVES, marker: &marker, owner };
        let page: DriveList = session.call(path, Idempotency::Safe, RetryPolicy::INTERACTIVE, &body).await?;
        found.extend(page.root_group_drive);
        found.extend(page.items);
        if page.next_marker.is_empty() || page.next_marker == marker {
            return Ok(found);
        }
        marker = page.next_marker;
    }
    Err(Error::new(ErrorKind::Protocol, "the list of drives does not end"))
}
