//! How much more of the drive the unsaved content of a file needs.

use super::content::{Basis, Content};
use super::file::OpenFile;
use crate::content::write_plan::WriteAt;
use crate::error::Error;

impl OpenFile {
    /// Bytes by which the unsaved content is longer than its base revision. A commit whose bytes the drive has may have
    /// ended there already: it counts nothing.
    pub fn unsaved_growth(&self) -> u64 {
        let state = self.lock();
        let base = match &state.content {
            _ if self.is_unlinked() => return 0,
            Content::Streaming { basis, .. } | Content::Staged { basis, .. } => basis.base(),
            Content::Committing { base, bytes, transfer, .. } => {
                if transfer.snapshot().bytes_acked >= *bytes {
                    return 0;
                }
                base.as_ref()
            }
            Content::New | Content::Clean { .. } | Content::Failed { .. } | Content::Local(_) => return 0,
        };
        state.content.bytes().saturating_sub(base.map_or(0, |base| base.size))
    }

    /// Bytes by which a write makes the file longer.
    pub fn growth_by(&self, at: WriteAt, bytes: u64) -> u64 {
        let size = self.size();
        match at {
            WriteAt::End => bytes,
            WriteAt::Offset(offset) => offset.saturating_add(bytes).saturating_sub(size),
        }
    }

    /// Fails content that would be incomplete without a refused write: a new file that is streamed, or an overwrite.
    /// Edited and appended content stays as it is. Returns whether it has failed.
    pub fn fail_incomplete(&self, replaces: bool, error: &Error) -> bool {
        let is_incomplete = {
            let state = self.lock();
            let is_new = matches!(state.content, Content::Streaming { basis: Basis::None, .. });
            is_new || state.content.overwrites(replaces)
        };
        if is_incomplete {
            self.fail(error);
        }
        is_incomplete
    }
}
