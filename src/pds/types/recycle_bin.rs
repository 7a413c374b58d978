//! The bodies of the calls about the recycle bin.

use serde::Serialize;

use crate::ids::DriveId;

/// `POST /v2/recyclebin/list`. The answer is a [`super::ListResponse`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RecycleBinRequest<'a> {
    pub drive_id: &'a DriveId,
    /// 1 to 200.
    pub limit: u32,
    /// The `next_marker` of the previous page; empty for the first page.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub marker: &'a str,
    /// `*`: with the tags.
    pub fields: &'static str,
}
