//! The waits of writers: for memory, and until the next part may begin.

use std::sync::Arc;

use tokio::sync::futures::Notified;

use super::Vfs;
use super::types::Fh;
use crate::content::in_flight_parts::InFlightParts;
use crate::content::open_file::OpenFile;
use crate::content::streaming::Wait;
use crate::error::Result;
use crate::status::Transfer;

impl Vfs {
    /// Waits until the next part of the file may begin, at most until no data has moved for `commit_timeout`.
    /// The bytes that were written are accepted, also if the upload fails meanwhile.
    pub async fn wait_for_room(&self, fh: Fh) -> Result<()> {
        let handle = self.handles.get(fh)?;
        self.wait_for_room_in(&handle.file).await;
        Ok(())
    }

    pub(super) async fn wait_for_room_in(&self, file: &OpenFile) {
        loop {
            let upload = file.upload();
            let changes = self.changes(file, upload.as_ref());
            let Some(wait) = file.wait_for_room().filter(|_| !self.stop.is_set()) else { return };
            tokio::select! {
                () = changes.wait(wait) => {}
                () = self.writer_idle(wait, upload.as_ref()) => return,
            }
        }
    }

    /// The events that a writer may have to wait for, from now on.
    pub(super) fn changes<'a>(&'a self, file: &'a OpenFile, upload: Option<&'a Upload>) -> Changes<'a> {
        Changes {
            part_acknowledged: upload.map(|(in_flight, _)| in_flight.changed()),
            memory_returned: self.upload_context.buffer_pool.changed(),
            state_changed: file.state_changed(),
            stop_begun: self.stop.was_set(),
        }
    }

    /// Resolves when a writer has waited for `commit_timeout` without progress: of its own file, if it waits
    /// for the drive, else of any file, because any file may return memory.
    pub(super) async fn writer_idle(&self, wait: Wait, upload: Option<&Upload>) {
        let limit = self.config.options.commit_timeout;
        match upload.filter(|_| wait == Wait::Drive) {
            Some((_, transfer)) => self.transfer_idle(transfer, limit).await,
            None => self.upload_idle(limit).await,
        }
    }
}

/// The parts in flight and the transfer of a stream.
pub(super) type Upload = (Arc<InFlightParts>, Arc<Transfer>);

/// The events that a writer may have to wait for.
pub(super) struct Changes<'a> {
    part_acknowledged: Option<Notified<'a>>,
    memory_returned: Notified<'a>,
    state_changed: Notified<'a>,
    stop_begun: Notified<'a>,
}

impl Changes<'_> {
    /// Resolves when the reason to wait may have ended.
    pub(super) async fn wait(self, wait: Wait) {
        let Self { part_acknowledged, memory_returned, state_changed, stop_begun } = self;
        let change = async move {
            match wait {
                // Without an upload there is nothing to wait for.
                Wait::Drive => {
                    if let Some(acknowledged) = part_acknowledged {
                        acknowledged.await;
                    }
                }
                Wait::Memory => memory_returned.await,
                Wait::Commit => state_changed.await,
                // The next step goes to the local disk.
                Wait::Spill => {}
            }
        };
        tokio::select! {
            () = change => {}
            () = stop_begun => {}
        }
    }
}
