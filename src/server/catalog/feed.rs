//! The change feed: a bounded list of numbered changes.

use super::database::Table;
use super::records::{CatalogOp, Delta, Node};
use super::{CatalogState, DriveId, FileId, ServiceError};

/// Number of kept changes. An older cursor is refused.
const DELTAS_MAX: usize = 100_000;

/// A change with its object; `None` if the object was deleted or is in the recycle bin.
pub(in crate::server) type Changed<'a> = (&'a Delta, Option<&'a Node>);

impl CatalogState {
    /// Adds a change of an object to the feed.
    pub(super) fn record_delta(
        &mut self,
        drive: &DriveId,
        file: &FileId,
        op: CatalogOp,
        parents: Vec<FileId>,
    ) -> Result<(), ServiceError> {
        let (drive_id, file_id) = (drive.clone(), file.clone());
        let delta = Delta { seq: self.next_seq, drive_id, file_id, op, parents };
        self.put_record(Table::Deltas, &delta.seq.to_be_bytes(), &delta)?;
        self.next_seq += 1;
        self.deltas.push_back(delta);
        if self.deltas.len() > DELTAS_MAX
            && let Some(oldest) = self.deltas.pop_front()
        {
            self.delete_record(Table::Deltas, &oldest.seq.to_be_bytes());
        }
        Ok(())
    }

    /// The cursor after the newest change.
    pub(in crate::server) fn last_cursor(&self) -> u64 {
        self.next_seq
    }

    /// The cursor before the oldest kept change.
    pub(in crate::server) fn first_cursor(&self) -> u64 {
        self.deltas.front().map_or(self.next_seq, |delta| delta.seq)
    }

    /// Whether a change is of `root` or of an object that is or was below it.
    fn is_below(&self, delta: &Delta, root: &FileId) -> bool {
        let mut at = vec![&delta.file_id];
        at.extend(&delta.parents);
        while let Some(id) = at.pop() {
            if id == root {
                return true;
            }
            // The objects of the change name their folders; folders name theirs.
            at.extend(self.nodes.get(id).map(|node| &node.parent));
        }
        false
    }

    /// Up to `limit` changes of a drive after `cursor`, or only those at and below `sync_root`; then the next
    /// cursor, and whether there are more changes.
    pub(in crate::server) fn deltas(
        &self,
        drive: &DriveId,
        sync_root: Option<&FileId>,
        cursor: u64,
        limit: usize,
    ) -> Result<(Vec<Changed<'_>>, u64, bool), ServiceError> {
        self.drive(drive)?;
        if cursor < self.first_cursor() || cursor > self.next_seq {
            return Err(ServiceError::invalid("cursor", "It is too old, or the server did not issue it."));
        }
        let from = usize::try_from(cursor - self.first_cursor()).unwrap_or(usize::MAX);
        let mut items = Vec::new();
        let mut next = cursor;
        for delta in self.deltas.range(from.min(self.deltas.len())..) {
            if delta.drive_id == *drive && sync_root.is_none_or(|root| self.is_below(delta, root)) {
                if items.len() == limit {
                    return Ok((items, next, true));
                }
                items.push((delta, self.live(drive, &delta.file_id).ok()));
            }
            next = delta.seq + 1;
        }
        Ok((items, next, false))
    }
}
