//! Clones of files of the drive: staged files without bytes of their own.

use std::sync::Arc;

use super::content::{Content, Writer};
use super::file::OpenFile;
use crate::content::reader::ReadTarget;
use crate::content::staged_file::StagedFile;
use crate::error::Result;
use crate::pds::drive::FileMeta;

impl OpenFile {
    /// Extends a clone of the first `from` bytes of `source` to `to` bytes. An empty file is a clone of no
    /// bytes. Returns `false` and changes nothing if the content is anything else, or if the handle of `writer` is
    /// not open any more when the change begins.
    pub async fn clone_range(
        self: &Arc<Self>,
        source: &FileMeta,
        (from, to): (u64, u64),
        writer: Writer,
        is_open: impl FnOnce() -> bool,
    ) -> Result<bool> {
        if self.context.quota.is_disabled() {
            // If the drive refused the instant upload, there would be no space to fetch the bytes.
            return Ok(false);
        }
        let (turn, source) = (self.disk_turn().await?, ReadTarget::of(source));
        let is_ready = |content: &Content| match content {
            Content::Staged { staged, .. } if from > 0 => {
                staged.clone_source() == Some((source.clone(), from))
            }
            Content::Committing { .. } | Content::Failed { .. } | Content::Local(_) => false,
            content => from == 0 && content.bytes() == 0,
        };
        if !is_open() || !is_ready(&self.lock().content) {
            return Ok(false);
        }
        let (quota, base, user) = (self.context.quota.clone(), source.clone(), self.user());
        let new = move || {
            let staged = StagedFile::new(&quota, Some(base), user)?;
            staged.truncate(to)?;
            Ok(staged)
        };
        let staged = turn.run(self.context.disk.clone(), new).await?;
        let mut state = self.lock();
        if !is_ready(&state.content) || self.check_has_committer(&state.content).is_err() {
            return Ok(false);
        }
        self.set_cloned_from(source.file_id.clone());
        let basis = state.content.take_basis();
        state.content = Content::Staged { staged, basis };
        state.note_change(writer);
        Ok(true)
    }
}
