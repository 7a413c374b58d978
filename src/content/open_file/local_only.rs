//! Local-only files, and their change to ordinary files.

use std::sync::Arc;

use super::content::{Basis, Content};
use super::file::OpenFile;
use crate::content::local_content::LocalContent;
use crate::content::staged_file::StagedFile;
use crate::error::Result;

/// The content of a file at its promotion, for [`OpenFile::demote`].
#[derive(Debug)]
pub struct Promoted(Arc<StagedFile>);

impl OpenFile {
    /// Makes a new empty file local-only.
    pub fn make_local(&self) {
        let mut state = self.lock();
        if matches!(state.content, Content::New) {
            state.content = Content::Local(LocalContent::new(&self.context.local_quota));
        }
    }

    pub fn is_local(&self) -> bool {
        matches!(self.lock().content, Content::Local(_))
    }

    /// Makes a local-only file an ordinary unsaved file. `None` if it is one already.
    pub async fn promote(self: &Arc<Self>) -> Result<Option<Promoted>> {
        if !self.is_local() {
            return Ok(None);
        }
        let Some((turn, staged)) = self.stage_local().await? else { return Ok(None) };
        let mut state = self.lock();
        let is_same =
            matches!(&state.content, Content::Local(LocalContent::Staged(now)) if Arc::ptr_eq(now, &staged));
        if is_same {
            // An empty file has nothing to read from a staged file.
            state.content = match staged.size() {
                0 => Content::New,
                _ => Content::Staged { staged: staged.clone(), basis: Basis::None },
            };
        }
        drop(state);
        drop(turn);
        Ok(is_same.then_some(Promoted(staged)))
    }

    /// Makes a promoted file local-only again, with its content at the promotion, because the drive refused
    /// it. No effect if it was streamed since.
    pub fn demote(&self, promoted: Promoted) {
        let mut state = self.lock();
        if matches!(state.content, Content::New | Content::Staged { .. } | Content::Failed { .. }) {
            state.content = Content::Local(LocalContent::Staged(promoted.0));
        }
        drop(state);
        self.state_changed.notify_waiters();
    }
}
