//! Giving up an unfinished overwrite: the file has the content of its revision on the drive again.

use super::content::{Basis, Content, Locked, Writer};
use super::file::OpenFile;
use crate::error::Error;

/// The writers of content that is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Writers {
    /// They must get the error at their next write, fsync or close.
    Remain,
    Ended,
}

impl OpenFile {
    /// Bytes of unsaved content, unless it is being committed.
    pub fn unsaved_bytes(&self) -> Option<u64> {
        let state = self.lock();
        matches!(state.content, Content::New | Content::Streaming { .. } | Content::Staged { .. })
            .then(|| state.content.bytes())
    }

    /// Gives up unsaved content that overwrites a complete revision, and its upload session. Its writers get the
    /// error that `reason` returns for the number of bytes. Returns it; `None` if nothing has changed. `replaces`:
    /// a commit of a new file replaces another file.
    ///
    /// `reason` runs under the lock of the content: no write comes between.
    pub fn give_up_overwrite(&self, replaces: bool, reason: impl FnOnce(u64) -> Error) -> Option<Error> {
        self.give_up(self.lock(), replaces, Writers::Remain, reason)
    }

    /// The same after the death of a writer, if no other writer of the content is left.
    pub fn give_up_overwrite_of(
        &self,
        killed: Writer,
        replaces: bool,
        reason: impl FnOnce(u64) -> Error,
    ) -> Option<Error> {
        let mut state = self.lock();
        state.changed_by.retain(|writer| *writer != killed);
        if state.changed_by.is_empty() { self.give_up(state, replaces, Writers::Ended, reason) } else { None }
    }

    fn give_up(
        &self,
        mut state: Locked<'_>,
        replaces: bool,
        writers: Writers,
        reason: impl FnOnce(u64) -> Error,
    ) -> Option<Error> {
        if !state.content.overwrites(replaces) {
            return None;
        }
        let error = reason(state.content.bytes());
        let transfer = match &state.content {
            Content::Streaming { stream, .. } => stream.transfer().clone(),
            // A staged file has a transfer only while it is committed.
            _ => self.progress.begin(self.ino(), &state.name),
        };
        transfer.failed(&error);
        let base = state.content.take_basis().into_base();
        if let Some(base) = &base {
            state.mtime = base.mtime;
        }
        state.content = match (writers, base) {
            (Writers::Ended, Some(base)) => Content::Clean { base, retained: None },
            (_, base) => Content::Failed { error: error.clone(), base },
        };
        state.changed_by.clear();
        drop(state);
        self.state_changed.notify_waiters();
        Some(error)
    }
}

impl Content {
    /// Whether a commit now would replace a complete revision by content that may be incomplete.
    pub(super) fn overwrites(&self, replaces: bool) -> bool {
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
