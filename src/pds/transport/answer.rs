//! Reads the bodies of JSON answers. Few large ones are in memory at a time. Only `transport.rs` and its submodules
//! import reqwest.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::failure::{connection_lost, idle_timeout, protocol_error};
use crate::pds::retry::RequestFailure;

/// Largest JSON answer that is read, in bytes. A page of 100 entries with every field is below 1 MiB.
const JSON_BYTES_MAX: usize = 16 << 20;
/// An answer beyond this size is large, in bytes.
const SMALL_BYTES_MAX: usize = 1 << 20;
/// Most large answers in memory at a time. Further ones wait, with their connections.
const LARGE_ANSWERS_MAX: usize = 4;

/// The large answers of one service. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct LargeAnswers {
    permits: Arc<Semaphore>,
    /// Longest wait for a permit.
    wait_max: Duration,
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) bytes: Bytes,
    /// Of a large answer, until it is dropped.
    _permit: Option<OwnedSemaphorePermit>,
}

impl LargeAnswers {
    pub(super) fn new(wait_max: Duration) -> Self {
        Self { permits: Arc::new(Semaphore::new(LARGE_ANSWERS_MAX)), wait_max }
    }

    pub(super) async fn read(&self, what: &str, mut response: Response) -> Result<Answer, RequestFailure> {
        let (mut body, mut permit) = (BytesMut::new(), None);
        while let Some(chunk) = response.chunk().await.map_err(|e| connection_lost(what, e))? {
            let bytes = body.len() + chunk.len();
            if bytes > JSON_BYTES_MAX {
                return Err(too_large(what, JSON_BYTES_MAX));
            }
            if bytes > SMALL_BYTES_MAX && permit.is_none() {
                // The second error does not occur: the semaphore is not closed.
                let turn = tokio::time::timeout(self.wait_max, self.permits.clone().acquire_owned()).await;
                permit = Some(turn.map_err(|_| idle_timeout(what))?.map_err(|_| idle_timeout(what))?);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { bytes: body.freeze(), _permit: permit })
    }
}

pub(super) fn too_large(what: &str, bytes_max: usize) -> RequestFailure {
    protocol_error(format!("{what}: the answer is larger than {bytes_max} bytes"))
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;
    use crate::error::ErrorKind;

    const WAIT: Duration = Duration::from_secs(20);

    fn response(bytes: usize) -> Response {
        hyper::Response::new(reqwest::Body::wrap(Full::new(Bytes::from(vec![b' '; bytes])))).into()
    }

    #[tokio::test]
    async fn few_large_answers_are_in_memory_at_a_time() {
        let answers = LargeAnswers::new(WAIT);
        let mut held = Vec::new();
        for _ in 0..LARGE_ANSWERS_MAX {
            held.push(answers.read("list", response(SMALL_BYTES_MAX + 1)).await.unwrap());
        }
        let small = tokio::time::timeout(WAIT, answers.read("list", response(SMALL_BYTES_MAX))).await;
        assert_eq!(small.expect("a small answer waits").unwrap().bytes.len(), SMALL_BYTES_MAX);
        let impatient = LargeAnswers { wait_max: Duration::ZERO, ..answers.clone() };
        let failure = impatient.read("list", response(SMALL_BYTES_MAX + 1)).await;
        assert_eq!(failure.expect_err("one too many is read").error.kind(), ErrorKind::Timeout);
        held.pop();
        impatient.read("list", response(SMALL_BYTES_MAX + 1)).await.unwrap();
    }

    #[tokio::test]
    async fn size_of_an_answer_is_bounded() {
        let answers = LargeAnswers::new(WAIT);
        assert_eq!(answers.read("list", response(JSON_BYTES_MAX)).await.unwrap().bytes.len(), JSON_BYTES_MAX);
        let failure = answers.read("list", response(JSON_BYTES_MAX + 1)).await.unwrap_err();
        assert_eq!(failure.error.kind(), ErrorKind::Protocol);
    }
}
