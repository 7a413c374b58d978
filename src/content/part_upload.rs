//! The upload of one part: attempts with a permit each, and a new URL if the given one has expired.
//!
//! A permit is held only while the part is being sent. A part that waits to be sent again, for a new URL or
//! for a login lets other parts go first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::in_flight_parts::InFlightParts;
use super::part::{self, FrozenPart, HashedPart};
use super::upload_context::UploadContext;
use super::upload_limiter::UploadPermit;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::PartNumber;
use crate::pds::drive::{PutOutcome, UploadSession};
use crate::pds::put_control::{PutControl, PutEnd, PutMeter};
use crate::pds::retry_observer::RetryObserver;
use crate::pds::types::PartUrl;
use crate::rolling_sha1::Sha1Midstate;
use crate::status::{AttemptMeter, PartAttempt, PartCount, Transfer};

/// PUTs of one part, each after the first with a new URL, that may find their URL expired soon after it was
/// signed. Bounds the loop with a service that returns only expired URLs.
const EXPIRED_MAX: usize = 10;
/// A URL may well expire if its part waits longer than this for a permit.
const FRESH_URL_AGE: Duration = Duration::from_secs(60);

/// One part on its way to the drive.
pub(super) struct PartUpload {
    pub(super) context: Arc<UploadContext>,
    pub(super) in_flight: Arc<InFlightParts>,
    pub(super) transfer: Arc<Transfer>,
    pub(super) session: UploadSession,
    pub(super) part: FrozenPart,
    pub(super) midstate: Sha1Midstate,
    /// It failed, and is to be sent again.
    is_paused: AtomicBool,
    /// The attempt that has stored the part. A leaf lock.
    stored: Mutex<Option<PartAttempt>>,
}

/// A part that is being sent.
pub(super) struct SendingPart {
    permit: UploadPermit,
    attempt: PartAttempt,
    _count: PartCount,
}

impl RetryObserver for Transfer {
    fn retrying(&self, times: u32, reason: &str) {
        Self::retrying(self, times, reason);
    }

    fn recovered(&self) {
        Self::recovered(self);
    }
}

impl PutMeter for AttemptMeter {
    fn sent(&self, bytes: u64) {
        Self::sent(self, bytes);
    }
}

impl PutControl for PartUpload {
    type Permit = SendingPart;

    async fn admit(&self) -> SendingPart {
        if self.is_paused.swap(false, Ordering::Relaxed) {
            self.in_flight.count_ahead(self.context.upload_limiter.count_ahead());
        }
        // Its bytes were altered on the way, so they are sent again.
        self.stored.lock().take();
        let waiting = self.transfer.part_waiting();
        let permit = self.context.upload_limiter.acquire().await;
        drop(waiting);
        let (attempt, count) = (self.transfer.begin_attempt(), self.transfer.part_sending());
        SendingPart { permit, attempt, _count: count }
    }

    fn ended(&self, sending: SendingPart, end: PutEnd) {
        sending.permit.end(end, self.part.bytes);
        if end == PutEnd::Stored {
            *self.stored.lock() = Some(sending.attempt);
        } else {
            self.is_paused.store(true, Ordering::Relaxed);
            self.in_flight.pause_part();
        }
    }

    fn meter(&self, sending: &SendingPart) -> Arc<dyn PutMeter> {
        sending.attempt.meter().clone()
    }
}

impl PartUpload {
    pub(super) fn new(
        context: Arc<UploadContext>,
        in_flight: Arc<InFlightParts>,
        transfer: Arc<Transfer>,
        session: UploadSession,
        (part, midstate): HashedPart,
    ) -> Self {
        let (is_paused, stored) = (AtomicBool::new(false), Mutex::new(None));
        Self { context, in_flight, transfer, session, part, midstate, is_paused, stored }
    }

    /// Sends the part. Returns its number, length and CRC-64.
    pub(super) async fn run(self, url: PartUrl) -> Result<(PartNumber, u64, u64)> {
        let crc = self.put(url).await?;
        self.transfer.part_stored(self.part.bytes, self.stored.lock().as_ref());
        self.in_flight.acknowledge(self.part.offset, self.part.bytes);
        Ok((self.part.number, self.part.bytes, crc))
    }

    async fn put(&self, mut url: PartUrl) -> Result<u64> {
        let (mut signed, mut expired) = (Instant::now(), 0);
        while expired < EXPIRED_MAX {
            match self.context.drive.put_part(&url, &self.part.frames, self).await? {
                PutOutcome::Stored { crc64 } => return Ok(crc64),
                PutOutcome::StoredBefore => return part::crc64(&self.part.frames).await,
                PutOutcome::NoSuchUpload => {
                    return Err(Error::new(ErrorKind::Stale, "the service dropped the upload session"));
                }
                PutOutcome::Expired => {
                    expired += usize::from(signed.elapsed() < FRESH_URL_AGE);
                    url = self.resign_expired_url().await?;
                    signed = Instant::now();
                }
            }
        }
        let detail = format!("{EXPIRED_MAX} upload URLs in a row were expired; check the system clock");
        Err(Error::new(ErrorKind::Protocol, detail))
    }

    /// Requests a new URL for the part. The upload session stays the same.
    async fn resign_expired_url(&self) -> Result<PartUrl> {
        let wanted = [(self.part.number, self.midstate)];
        let mut urls = self.context.drive.get_upload_urls(&self.session, &wanted).await?;
        urls.pop().ok_or_else(|| Error::new(ErrorKind::Protocol, "the service returned no URL for a part"))
    }
}
