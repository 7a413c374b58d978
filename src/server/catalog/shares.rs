//! Share links: access to some objects of a drive for holders of the link.

use super::database::Table;
use super::records::Node;
use super::share_records::{Share, ShareUse};
use super::{CatalogState, DriveId, FileId, ServiceError};

impl CatalogState {
    pub(in crate::server) fn share(&self, share_id: &str) -> Result<&Share, ServiceError> {
        self.shares.get(share_id).ok_or_else(|| ServiceError::not_found("ShareLink"))
    }

    pub(in crate::server) fn shares(&self) -> impl Iterator<Item = &Share> {
        self.shares.values()
    }

    pub(in crate::server) fn put_share(&mut self, share: Share) -> Result<(), ServiceError> {
        self.put_record(Table::Shares, share.share_id.as_bytes(), &share)?;
        self.shares.insert(share.share_id.clone(), share);
        Ok(())
    }

    /// Counts a use, or returns 403 if a limit does not allow it.
    pub(in crate::server) fn use_share(
        &mut self,
        share_id: &str,
        usage: ShareUse,
    ) -> Result<(), ServiceError> {
        let mut share = self.share(share_id)?.clone();
        if !share.allows(usage) {
            return Err(ServiceError::share_refused("The share has reached its limit."));
        }
        let own = &mut share.settings;
        let count = match usage {
            ShareUse::Access => &mut own.access_count,
            ShareUse::Download => &mut own.download_count,
            ShareUse::Save => &mut own.save_count,
        };
        *count = count.saturating_add(1);
        self.put_share(share)
    }

    /// The shared objects that still exist.
    pub(in crate::server) fn shared_nodes<'a>(&'a self, share: &'a Share) -> impl Iterator<Item = &'a Node> {
        share.file_id_list.iter().filter_map(|file| self.live(&share.drive_id, file).ok())
    }

    /// Whether an object is one of `tops` or below one of them.
    pub(in crate::server) fn is_below_any(&self, drive: &DriveId, file: &FileId, tops: &[FileId]) -> bool {
        let mut at = file;
        loop {
            if tops.contains(at) {
                return true;
            }
            match self.node(drive, at) {
                Ok(node) => at = &node.parent,
                Err(_) => return false,
            }
        }
    }
}
