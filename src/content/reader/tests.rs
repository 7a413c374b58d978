//! Download URLs of a read: renewal, and URLs of content other than the opened one.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::*;
use crate::ids::{RevisionId, Secret};

/// A content of `size` bytes of the file `name`.
pub(super) fn target(name: &str, size: u64) -> ReadTarget {
    let (file_id, revision) = (FileId::new(name).unwrap(), RevisionId::new("r1").ok());
    ReadTarget { file_id, revision, size, sha1: None, crc64: None, changed_at: None }
}

fn url(revision: Option<&str>, size: Option<u64>) -> DownloadUrl {
    DownloadUrl {
        url: Secret::new("http://127.0.0.1/".to_owned()),
        expires_at: Instant::now() + Duration::from_secs(900),
        revision: revision.map(|r| RevisionId::new(r).unwrap()),
        size,
    }
}

/// Compiles only if a read can move between threads.
#[allow(dead_code)]
fn read_future_is_send(reader: Arc<Reader>, target: ReadTarget, cursor: Arc<ReadCursor>) {
    tokio::spawn(async move { reader.read(&target, &cursor, 0, 1).await });
}

#[test]
fn url_of_other_content_is_refused() {
    let unversioned = ReadTarget { revision: None, ..target("a", 10) };
    let wanted = target("a", 10);
    let gone = || Err(Error::new(ErrorKind::NotFound, "no such file"));
    let table = [
        (&wanted, Ok(url(Some("r1"), Some(10))), None),
        (&wanted, Ok(url(Some("r1"), None)), None),
        (&wanted, Ok(url(None, None)), None),
        (&wanted, Ok(url(Some("r2"), Some(10))), Some(ErrorKind::Stale)),
        (&wanted, Ok(url(Some("r1"), Some(11))), Some(ErrorKind::Integrity)),
        (&wanted, Ok(url(None, Some(9))), Some(ErrorKind::Stale)),
        (&wanted, gone(), Some(ErrorKind::Stale)),
        (&wanted, Err(Error::new(ErrorKind::Denied, "no")), Some(ErrorKind::Denied)),
        (&unversioned, Ok(url(Some("r2"), Some(10))), None),
        (&unversioned, Ok(url(Some("r2"), Some(11))), Some(ErrorKind::Stale)),
    ];
    for (target, answer, expected) in table {
        let case = format!("{answer:?}");
        match check_url(target, answer) {
            Ok(_) => assert_eq!(expected, None, "{case}"),
            Err(error) => assert_eq!(Some(error.kind()), expected, "{case}"),
        }
    }
}

/// Reads one range from a store that refuses the first `expired` URLs. Returns the outcome and the number of
/// requested URLs.
async fn fetch_after(expired: u32) -> (Result<Bytes>, u32) {
    let (urls, file, requested, refused) = (UrlCache::new(), target("a", 1), Cell::new(0), Cell::new(0));
    let request_url = || {
        requested.set(requested.get() + 1);
        async { Ok(url(Some("r1"), Some(1))) }
    };
    let get = |_| {
        refused.set(refused.get() + 1);
        let expired = refused.get() <= expired;
        async move { if expired { Err(RangeError::Expired) } else { Ok(Bytes::from_static(b"x")) } }
    };
    let outcome = fetch_range(&urls, &file, request_url, get).await;
    (outcome, requested.get())
}

#[tokio::test]
async fn expired_url_is_renewed_a_few_times() {
    for expired in 0..EXPIRED_MAX {
        let (outcome, requested) = fetch_after(expired).await;
        assert_eq!((outcome.unwrap().as_ref(), requested), (&b"x"[..], expired + 1));
    }
    let (outcome, requested) = fetch_after(EXPIRED_MAX).await;
    assert_eq!((outcome.unwrap_err().kind(), requested), (ErrorKind::Protocol, EXPIRED_MAX));
}

#[tokio::test]
async fn other_failures_are_not_retried() {
    let (urls, file, sent) = (UrlCache::new(), target("a", 1), Cell::new(0));
    let get = |_| {
        sent.set(sent.get() + 1);
        async { Err::<Bytes, _>(RangeError::Failed(Error::new(ErrorKind::Unreachable, "no network"))) }
    };
    let outcome = fetch_range(&urls, &file, || async { Ok(url(None, None)) }, get).await;
    assert_eq!((outcome.unwrap_err().kind(), sent.get()), (ErrorKind::Unreachable, 1));
}
