//! Staying on this machine, and what happens when that ends.

use std::sync::Arc;

use super::{Content, OpenFile};
use crate::content::local::Local;
use crate::content::staged::Staged;
use crate::error::Result;

/// What a file that stayed here held when it was to go to the drive.
#[derive(Debug)]
pub struct Published(Arc<Staged>);

impl OpenFile {
    /// A file that was made just now stays on this machine.
    pub fn stay(&self) {
        let mut inner = self.lock();
        if matches!(inner.content, Content::New) {
            inner.content = Content::Local(Local::new(&self.env.local_space));
        }
    }

    /// Whether it stays on this machine: nothing of it is for the drive.
    pub fn is_local(&self) -> bool {
        matches!(self.lock().content, Content::Local(_))
    }

    /// It is an ordinary unsaved file from now on. Blocks for the local disk. `None`, and nothing has changed,
    /// where it is one already.
    pub fn publish(&self) -> Result<Option<Published>> {
        let mut inner = self.lock();
        let Content::Local(local) = &mut inner.content else { return Ok(None) };
        let copy = local.copy()?;
        // An empty file has no copy to be read from.
        inner.content = match copy.size() {
            0 => Content::New,
            _ => Content::Staged { copy: copy.clone(), base: None },
        };
        Ok(Some(Published(copy)))
    }

    /// The drive did not take it: it stays here after all, as it was. Not where it was written anew since.
    pub fn withdraw(&self, published: Published) {
        let mut inner = self.lock();
        if matches!(inner.content, Content::New | Content::Staged { .. } | Content::Failed { .. }) {
            inner.content = Content::Local(Local::Copy(published.0));
        }
        drop(inner);
        self.state_changed.notify_waiters();
    }
}
