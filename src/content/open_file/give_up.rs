//! Giving up an unfinished overwrite: the file has the content of its revision on the drive again.

use super::content::{Basis, Content};
use super::file::OpenFile;
use crate::error::Error;

impl OpenFile {
    /// Bytes of unsaved content, unless it is being committed.
    pub fn unsaved_bytes(&self) -> Option<u64> {
        let state = self.lock();
        matches!(state.content, Content::New | Content::Streaming { .. } | Content::Staged { .. })
            .then(|| state.content.bytes())
    }

    /// Bytes of unsaved content that overwrites a complete revision. `replaces`: a commit of a new file
    /// replaces another file.
    pub fn overwriting_bytes(&self, replaces: bool) -> Option<u64> {
        let state = self.lock();
        state.content.overwrites(replaces).then(|| state.content.bytes())
    }

    /// Gives up unsaved content that overwrites a complete revision, and its upload session, if `decide` returns
    /// an error for its number of bytes. `decide` runs under the lock of the content: no write comes between.
    /// Returns that error, which writers get from now on; `None` if nothing has changed.
    pub fn give_up_overwrite(
        &self,
        replaces: bool,
        decide: impl FnOnce(u64) -> Option<Error>,
    ) -> Option<Error> {
        let mut state = self.lock();
        if !state.content.overwrites(replaces) {
            return None;
        }
        let error = decide(state.content.bytes())?;
        let transfer = match &state.content {
            Content::Streaming { stream, .. } => stream.transfer().clone(),
            // A staged file has a transfer only while it is committed.
            _ => self.progress.begin(&state.name),
        };
        transfer.failed(&error);
        let base = state.content.take_basis().into_base();
        if let Some(base) = &base {
            state.mtime = base.mtime;
        }
        state.content = Content::Failed { error: error.clone(), base };
        state.changed_by.clear();
        drop(state);
        self.state_changed.notify_waiters();
        Some(error)
    }
}

impl Content {
    /// Whether a commit now would replace a complete revision by content that may be incomplete.
    fn overwrites(&self, replaces: bool) -> bool {
        match self {
            Self::Streaming { basis, .. } | Self::Staged { basis, .. } => match basis {
                Basis::Overwritten(_) => true,
                Basis::None => replaces,
                Basis::Edited(_) => false,
            },
            Self::New => replaces,
            Self::Clean { .. } | Self::Committing { .. } | Self::Failed { .. } | Self::Local(_) => false,
        }
    }
}
