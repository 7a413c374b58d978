//! The uploader: takes frozen parts in order and sends them to the drive, many at a time.
//!
//! It runs two loops. *Hashing* walks the parts in order. A part may be sent once the midstate before it is
//! known, while the part itself is still being hashed. *Sending* requests URLs (all waiting parts share one
//! call) and starts one PUT per part. In ordered mode it sends one part after the other.
//!
//! **Failure**: the first failure ends the upload and is stored in [`InFlightParts`], where the writer finds
//! it. **Cancellation**: dropping the future drops every PUT. The session stays on the drive, invisible,
//! until the service removes it: the API has no abort call.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::commit_target::CommitTarget;
use super::in_flight_parts::InFlightParts;
use super::part::{FrozenPart, HashedPart, hash_frames};
use super::part_upload::PartUpload;
use super::upload_context::UploadContext;
use super::upload_session::begin_session;
use crate::crc64;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{PartNumber, Sha1Hash};
use crate::pds::drive::UploadSession;
use crate::pds::retry_observer::observed;
use crate::pds::types::PartUrl;
use crate::rolling_sha1::{RollingSha1, Sha1Midstate};
use crate::status::Transfer;

/// Parts in one `get_upload_url` at most.
const URLS_PER_CALL_MAX: usize = 32;

/// A file whose parts are all on the drive, but not yet completed to a revision.
#[derive(Debug)]
pub(super) struct UploadedParts {
    pub(super) session: UploadSession,
    /// SHA-1 of the whole content.
    pub(super) sha1: Sha1Hash,
    /// CRC-64/XZ of the whole content.
    pub(super) crc64: u64,
    /// The target of the `create` call.
    pub(super) target: CommitTarget,
}

/// The task that uploads a stream. Dropping this stops the task.
#[derive(Debug)]
pub(super) struct Uploader {
    /// `None` once the last part was handed over.
    parts: Option<mpsc::UnboundedSender<FrozenPart>>,
    task: JoinHandle<Result<UploadedParts>>,
    in_flight: Arc<InFlightParts>,
}

impl Uploader {
    pub(super) fn spawn(
        context: &Arc<UploadContext>,
        target: CommitTarget,
        in_flight: Arc<InFlightParts>,
        transfer: Arc<Transfer>,
    ) -> Self {
        let (parts, queue) = mpsc::unbounded_channel();
        let upload = upload_stream(context.clone(), target, queue, in_flight.clone(), transfer.clone());
        let upload = observed(transfer, upload);
        Self { parts: Some(parts), task: context.runtime.spawn(upload), in_flight }
    }

    /// Hands a part over. After a failure the part is dropped; the failure is in [`InFlightParts`].
    pub(super) fn send(&self, part: FrozenPart) {
        if let Some(parts) = &self.parts {
            let _ = parts.send(part);
        }
    }

    /// Sends the last part and waits until the drive has all of them.
    pub(super) async fn finish(&mut self, last: Option<FrozenPart>) -> Result<UploadedParts> {
        // The task ends when its sender is dropped. If it has failed, it returns that failure below.
        if let (Some(parts), Some(last)) = (self.parts.take(), last) {
            let _ = parts.send(last);
        }
        let ended = (&mut self.task).await;
        ended.map_err(|e| Error::with_source(ErrorKind::Cancelled, "the upload was aborted", e))?
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.task.abort();
        // A writer that waits for room must not wait for parts of an upload that has ended.
        self.in_flight.wake_writers();
    }
}

/// Uploads all parts that come through `parts`, until its sender is dropped.
async fn upload_stream(
    context: Arc<UploadContext>,
    target: CommitTarget,
    parts: mpsc::UnboundedReceiver<FrozenPart>,
    in_flight: Arc<InFlightParts>,
    transfer: Arc<Transfer>,
) -> Result<UploadedParts> {
    let (hashed, queue) = mpsc::unbounded_channel();
    let sender = PartSender::new(context, in_flight.clone(), transfer);
    let upload = Box::pin(async {
        let (sha1, (session, crc64, target)) =
            tokio::try_join!(hash_stream(parts, hashed), sender.run(target, queue))?;
        Ok(UploadedParts { session, sha1, crc64, target })
    });
    fail_writer(&in_flight, upload).await
}

/// Runs an upload. Its writer gets its error, and learns of its panic.
async fn fail_writer<T>(in_flight: &InFlightParts, upload: impl Future<Output = Result<T>>) -> Result<T> {
    let guard = PanicGuard(in_flight);
    let outcome = upload.await;
    drop(guard);
    outcome.inspect_err(|error| in_flight.fail(error))
}

/// Dropped by a panic of the upload task, it fails the stream: else its writer would wait for acknowledgements
/// that never come.
struct PanicGuard<'a>(&'a InFlightParts);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(&Error::new(
                ErrorKind::Cancelled,
                "the upload task panicked; please report this as a bug",
            ));
        }
    }
}

/// Uploads hashed parts to a session whose first URLs are known. Returns the CRC-64 of the content.
pub(super) async fn upload_parts(
    context: Arc<UploadContext>,
    session: &UploadSession,
    first_urls: Vec<PartUrl>,
    parts: Vec<HashedPart>,
    in_flight: Arc<InFlightParts>,
    transfer: Arc<Transfer>,
) -> Result<u64> {
    let mut sender = PartSender::new(context, in_flight, transfer);
    let (mut urls, mut rest) = (first_urls, parts);
    loop {
        if urls.is_empty() {
            if rest.is_empty() {
                break;
            }
            // URLs age, so they are requested shortly before their use.
            while sender.puts.len() > URLS_PER_CALL_MAX
                && let Some(stored) = sender.puts.join_next().await
            {
                sender.record(stored)?;
            }
            let batch = &rest[..rest.len().min(URLS_PER_CALL_MAX)];
            urls = sender.context.drive.get_upload_urls(session, &url_requests(batch)).await?;
        }
        let later = rest.split_off(urls.len().min(rest.len()));
        for ((part, midstate), url) in rest.into_iter().zip(std::mem::take(&mut urls)) {
            sender.send(session, part, midstate, url).await?;
        }
        rest = later;
    }
    sender.wait_all_stored().await
}

/// The parts whose URLs the `create` call requests.
pub(super) fn first_url_requests(parts: &[HashedPart]) -> Vec<(PartNumber, Sha1Midstate)> {
    url_requests(&parts[..parts.len().min(URLS_PER_CALL_MAX)])
}

fn url_requests(batch: &[HashedPart]) -> Vec<(PartNumber, Sha1Midstate)> {
    batch.iter().map(|(part, midstate)| (part.number, *midstate)).collect()
}

/// Passes each part on with the midstate before it. Returns the SHA-1 of the content.
async fn hash_stream(
    mut parts: mpsc::UnboundedReceiver<FrozenPart>,
    hashed: mpsc::UnboundedSender<HashedPart>,
) -> Result<Sha1Hash> {
    let mut rolling = RollingSha1::default();
    while let Some(part) = parts.recv().await {
        // Part sizes are multiples of 64, so there is a midstate at every boundary.
        let midstate = rolling.midstate().ok_or_else(off_boundary)?;
        let frames = part.frames.clone();
        if hashed.send((part, midstate)).is_err() {
            // The sending loop has failed. Its error is more precise than one from here.
            return std::future::pending().await;
        }
        rolling = hash_frames(rolling, &frames, |_| {}).await?;
    }
    Ok(rolling.digest())
}

/// The error of a part that does not begin at a multiple of 64 bytes.
pub(super) fn off_boundary() -> Error {
    Error::new(ErrorKind::Io, "a part does not begin at a multiple of 64 bytes")
}

struct PartSender {
    context: Arc<UploadContext>,
    in_flight: Arc<InFlightParts>,
    transfer: Arc<Transfer>,
    puts: JoinSet<Result<(PartNumber, u64, u64)>>,
    /// CRC-64 and length of the stored parts.
    crcs: BTreeMap<PartNumber, (u64, u64)>,
}

impl PartSender {
    fn new(context: Arc<UploadContext>, in_flight: Arc<InFlightParts>, transfer: Arc<Transfer>) -> Self {
        Self { context, in_flight, transfer, puts: JoinSet::new(), crcs: BTreeMap::new() }
    }

    async fn run(
        mut self,
        mut target: CommitTarget,
        mut queue: mpsc::UnboundedReceiver<HashedPart>,
    ) -> Result<(UploadSession, u64, CommitTarget)> {
        let mut begun = None;
        while let Some(batch) = self.next_batch(&mut queue).await? {
            let (session, urls) = match begun.take() {
                Some(session) => {
                    let urls = self.context.drive.get_upload_urls(&session, &url_requests(&batch)).await?;
                    (session, urls)
                }
                None => begin_session(&self.context, &mut target, &url_requests(&batch)).await?,
            };
            for ((part, midstate), url) in batch.into_iter().zip(urls) {
                self.send(&session, part, midstate, url).await?;
            }
            begun = Some(session);
        }
        let session = begun.ok_or_else(|| Error::new(ErrorKind::Io, "an upload without parts"))?;
        Ok((session, self.wait_all_stored().await?, target))
    }

    /// Waits for the running PUTs. Returns the CRC-64 of the content.
    async fn wait_all_stored(mut self) -> Result<u64> {
        while let Some(stored) = self.puts.join_next().await {
            self.record(stored)?;
        }
        Ok(self.crcs.values().fold(0, |crc, (next, bytes)| crc64::combine(crc, *next, *bytes)))
    }

    /// Waits for parts and takes all that are queued, up to one call's worth; `None` at the end. Also records
    /// finished PUTs, so that a failure ends the upload at once.
    async fn next_batch(
        &mut self,
        queue: &mut mpsc::UnboundedReceiver<HashedPart>,
    ) -> Result<Option<Vec<HashedPart>>> {
        loop {
            tokio::select! {
                first = queue.recv() => {
                    let Some(first) = first else { return Ok(None) };
                    let mut batch = vec![first];
                    while batch.len() < URLS_PER_CALL_MAX && let Ok(next) = queue.try_recv() {
                        batch.push(next);
                    }
                    return Ok(Some(batch));
                }
                Some(stored) = self.puts.join_next() => self.record(stored)?,
            }
        }
    }

    fn record(
        &mut self,
        stored: std::result::Result<Result<(PartNumber, u64, u64)>, tokio::task::JoinError>,
    ) -> Result<()> {
        let (number, bytes, crc) =
            stored.map_err(|e| Error::with_source(ErrorKind::Io, "an upload task was aborted", e))??;
        self.crcs.insert(number, (crc, bytes));
        Ok(())
    }

    async fn send(
        &mut self,
        session: &UploadSession,
        part: FrozenPart,
        midstate: Sha1Midstate,
        url: PartUrl,
    ) -> Result<()> {
        if !session.parallel {
            // Ordered mode: the part before must be stored.
            while let Some(stored) = self.puts.join_next().await {
                self.record(stored)?;
            }
        }
        let (context, in_flight) = (self.context.clone(), self.in_flight.clone());
        let (transfer, session) = (self.transfer.clone(), session.clone());
        let upload = PartUpload::new(context, in_flight, transfer, session, (part, midstate));
        self.puts.spawn(observed(self.transfer.clone(), upload.run(url)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_of_the_upload_fails_its_stream() {
        let in_flight = Arc::new(InFlightParts::default());
        let (changed, upload) = (in_flight.changed(), in_flight.clone());
        let task = tokio::spawn(async move {
            fail_writer::<()>(&upload, async {
                tokio::task::yield_now().await;
                panic!("on purpose");
            })
            .await
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(in_flight.check().map_err(|error| error.kind()), Err(ErrorKind::Cancelled));
        tokio::select! {
            biased;
            () = changed => {}
            () = std::future::ready(()) => panic!("the writer still waits"),
        }
    }
}
