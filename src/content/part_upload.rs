//! The upload of one part: a permit, the PUT, and a new URL if the given one has expired.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::in_flight_parts::InFlightParts;
use super::part::{self, FrozenPart};
use super::upload_context::UploadContext;
use super::upload_limiter::UploadPermit;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::PartNumber;
use crate::pds::drive::{PutOutcome, UploadSession};
use crate::pds::types::PartUrl;
use crate::rolling_sha1::Sha1Midstate;
use crate::status::Transfer;

/// PUTs of one part, each after the first with a new URL. Bounds the loop with a service that returns only
/// expired URLs.
const ATTEMPTS_MAX: usize = 10;

/// One part on its way to the drive.
pub(super) struct PartUpload {
    pub(super) context: Arc<UploadContext>,
    pub(super) in_flight: Arc<InFlightParts>,
    pub(super) transfer: Arc<Transfer>,
    pub(super) session: UploadSession,
    pub(super) part: FrozenPart,
    pub(super) midstate: Sha1Midstate,
}

impl PartUpload {
    /// Sends the part. Returns its number, length and CRC-64.
    pub(super) async fn run(self, url: PartUrl) -> Result<(PartNumber, u64, u64)> {
        let mut permit = self.context.upload_limiter.acquire().await;
        self.transfer.part_started();
        let throttled = AtomicBool::new(false);
        let outcome = self.put(url, &mut permit, &throttled).await;
        self.transfer.part_done(self.part.bytes, outcome.is_ok());
        let crc = outcome?;
        permit.record_stored(self.part.bytes, throttled.into_inner());
        self.in_flight.acknowledge(self.part.offset, self.part.bytes);
        Ok((self.part.number, self.part.bytes, crc))
    }

    async fn put(&self, mut url: PartUrl, permit: &mut UploadPermit, throttled: &AtomicBool) -> Result<u64> {
        for _ in 0..ATTEMPTS_MAX {
            match self.context.drive.put_part(&url, &self.part.frames, throttled).await? {
                PutOutcome::Stored { crc64 } => return Ok(crc64),
                PutOutcome::StoredBefore => return part::crc64(&self.part.frames),
                PutOutcome::NoSuchUpload => {
                    return Err(Error::new(ErrorKind::Stale, "the service dropped the upload session"));
                }
                PutOutcome::Expired => {
                    url = self.resign_expired_url().await?;
                    permit.restart_clock();
                }
            }
        }
        let detail = format!("{ATTEMPTS_MAX} upload URLs in a row were expired; check the system clock");
        Err(Error::new(ErrorKind::Protocol, detail))
    }

    /// Requests a new URL for the part. The upload session stays the same.
    async fn resign_expired_url(&self) -> Result<PartUrl> {
        let wanted = [(self.part.number, self.midstate)];
        let mut urls = self.context.drive.get_upload_urls(&self.session, &wanted).await?;
        urls.pop().ok_or_else(|| Error::new(ErrorKind::Protocol, "the service returned no URL for a part"))
    }
}
