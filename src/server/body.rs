//! Bounded reads of request bodies.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use super::errors::ServiceError;

/// How long a client may send nothing in the middle of a body.
pub(super) const BODY_IDLE_MAX: Duration = Duration::from_secs(60);

/// How long the rest of a refused body is read and dropped.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(60);

/// Reads the body of a call.
pub(super) async fn read_body(body: &mut Incoming, bytes_max: usize) -> Result<Bytes, ServiceError> {
    let too_large =
        || ServiceError::new(413, "InvalidRequest", format!("The body exceeds {bytes_max} bytes."));
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    let mut all = BytesMut::new();
    loop {
        let frame = match tokio::time::timeout(BODY_IDLE_MAX, body.frame()).await {
            Ok(None) => return Ok(all.freeze()),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(ServiceError::new(400, "InvalidRequest", error.to_string())),
            Err(_) => return Err(ServiceError::new(408, "RequestTimeout", "The body stopped to arrive.")),
        };
        let Some(piece) = frame.data_ref() else { continue };
        if all.len() + piece.len() > bytes_max {
            return Err(too_large());
        }
        all.extend_from_slice(piece);
    }
}

/// Reads and drops the rest of a body: a client that still sends might not read the response otherwise.
pub(super) async fn drain(body: &mut Incoming, bytes_max: u64) {
    let rest = async {
        let mut bytes = 0;
        while bytes < bytes_max
            && let Some(Ok(frame)) = body.frame().await
        {
            bytes += frame.data_ref().map_or(0, |piece| piece.len() as u64);
        }
    };
    if tokio::time::timeout(DRAIN_TIME_MAX, rest).await.is_err() {
        tracing::debug!("the rest of a refused body did not arrive in time");
    }
}
