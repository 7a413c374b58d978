//! Modification times that arrive after the commit.
//!
//! Every file manager sets times after it has closed what it copied. Such changes are gathered for
//! about a second and sent together; until the drive has them, they are shown from here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::FileId;
use crate::pds::drive::{BATCH_MAX, Drive};

/// How long changes are gathered.
const GATHER: Duration = Duration::from_secs(1);

/// Until the next try, after all the retries of the calls themselves.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Changes that the drive does not have yet.
#[derive(Debug, Default)]
pub struct PendingTimes {
    /// A leaf lock.
    changes: Mutex<HashMap<FileId, SystemTime>>,
    arrived: Notify,
    /// Held while changes are being sent, so that a flush waits for what is under way.
    sending: tokio::sync::Mutex<()>,
}

impl PendingTimes {
    fn lock(&self) -> MutexGuard<'_, HashMap<FileId, SystemTime>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a change; the last one for a file wins.
    pub fn set(&self, file: FileId, mtime: SystemTime) {
        self.lock().insert(file, mtime);
        self.arrived.notify_one();
    }

    /// The modification time of a file that the drive does not have yet.
    pub fn get(&self, file: &FileId) -> Option<SystemTime> {
        self.lock().get(file).copied()
    }

    /// The file is gone, or its content is a new one with a time of its own.
    pub fn forget(&self, file: &FileId) {
        self.lock().remove(file);
    }

    /// Sends what has gathered, every now and then, for ever.
    pub async fn run(&self, drive: &Drive) {
        loop {
            self.arrived.notified().await;
            tokio::time::sleep(GATHER).await;
            if let Err(error) = self.flush(drive).await {
                tracing::warn!(%error, "modification times could not be stored; they will be tried again");
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                self.arrived.notify_one();
            }
        }
    }

    /// Sends the change of one file now, if there is one.
    pub async fn flush_file(&self, drive: &Drive, file: &FileId) -> Result<()> {
        let _one_at_a_time = self.sending.lock().await;
        let Some(mtime) = self.get(file) else { return Ok(()) };
        let outcome = drive.set_mtime(file, mtime).await.map(|_| ());
        self.settle(file, mtime, outcome)
    }

    /// Sends everything now. What could not be sent stays; the first failure of it.
    pub async fn flush(&self, drive: &Drive) -> Result<()> {
        let _one_at_a_time = self.sending.lock().await;
        let changes: Vec<_> = self.lock().iter().map(|(file, mtime)| (file.clone(), *mtime)).collect();
        let mut first_failure = Ok(());
        for batch in changes.chunks(BATCH_MAX) {
            let outcomes = match batch {
                [(file, mtime)] => vec![drive.set_mtime(file, *mtime).await.map(|_| ())],
                batch => match drive.set_mtimes(batch).await {
                    Ok(outcomes) => outcomes,
                    Err(error) => vec![Err(error); batch.len()],
                },
            };
            for ((file, mtime), outcome) in batch.iter().zip(outcomes) {
                first_failure = first_failure.and(self.settle(file, *mtime, outcome));
            }
        }
        first_failure
    }

    /// Forgets a change that the drive took, or that it will never take.
    fn settle(&self, file: &FileId, mtime: SystemTime, outcome: Result<()>) -> Result<()> {
        if let Err(error) = outcome {
            if !is_final(&error) {
                return Err(error);
            }
            tracing::warn!(%file, %error, "the drive keeps no modification time for this file");
        }
        let mut changes = self.lock();
        // A later change for the file stays for the next round.
        if changes.get(file) == Some(&mtime) {
            changes.remove(file);
        }
        Ok(())
    }
}

fn is_final(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Denied | ErrorKind::Invalid | ErrorKind::Protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_change_is_shown_until_it_is_forgotten() {
        let pending = PendingTimes::default();
        let file = FileId::new("f").unwrap();
        let time = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        pending.set(file.clone(), time(1));
        pending.set(file.clone(), time(2));
        assert_eq!(pending.get(&file), Some(time(2)));
        pending.forget(&file);
        assert_eq!(pending.get(&file), None);
    }
}
