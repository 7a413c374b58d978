//! The records of share links, in their stored form.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{DriveId, FileId};

/// The members of a share that its creator sets.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools)] // Named as on the wire.
pub(in crate::server) struct ShareSettings {
    pub(in crate::server) share_name: String,
    pub(in crate::server) share_pwd: String,
    pub(in crate::server) description: String,
    /// RFC 3339; empty if the share never expires.
    pub(in crate::server) expiration: String,
    pub(in crate::server) status: ShareStatus,
    pub(in crate::server) disable_preview: bool,
    pub(in crate::server) disable_save: bool,
    pub(in crate::server) disable_download: bool,
    pub(in crate::server) office_editable: bool,
    pub(in crate::server) require_login: bool,
    pub(in crate::server) creatable: bool,
    /// The folders into which a visitor can upload.
    pub(in crate::server) creatable_file_id_list: Vec<FileId>,
    /// Limits; 0 is no limit.
    pub(in crate::server) preview_limit: u64,
    pub(in crate::server) save_limit: u64,
    pub(in crate::server) download_limit: u64,
    pub(in crate::server) save_download_limit: u64,
    pub(in crate::server) access_count: u64,
    pub(in crate::server) preview_count: u64,
    pub(in crate::server) save_count: u64,
    pub(in crate::server) download_count: u64,
    pub(in crate::server) report_count: u64,
    pub(in crate::server) video_preview_count: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::server) enum ShareStatus {
    #[default]
    Enabled,
    /// Cancelled.
    Disabled,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::struct_field_names)] // Named as on the wire.
pub(in crate::server) struct Share {
    pub(in crate::server) share_id: String,
    pub(in crate::server) drive_id: DriveId,
    pub(in crate::server) share_all_files: bool,
    /// The shared objects, unless the whole drive is shared.
    pub(in crate::server) file_id_list: Vec<FileId>,
    pub(in crate::server) created_ms: i64,
    pub(in crate::server) updated_ms: i64,
    pub(in crate::server) settings: ShareSettings,
}

/// A use of a share that is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::server) enum ShareUse {
    Access,
    Download,
    Save,
}

impl Share {
    /// Whether a limit allows one more use.
    pub(super) fn allows(&self, usage: ShareUse) -> bool {
        let own = &self.settings;
        let both = own.save_count.saturating_add(own.download_count);
        let is_below = |count: u64, limit: u64| limit == 0 || count < limit;
        match usage {
            ShareUse::Access => true,
            ShareUse::Download => {
                is_below(own.download_count, own.download_limit) && is_below(both, own.save_download_limit)
            }
            ShareUse::Save => {
                is_below(own.save_count, own.save_limit) && is_below(both, own.save_download_limit)
            }
        }
    }
}

/// The share links by id.
pub(super) type Shares = BTreeMap<String, Share>;
