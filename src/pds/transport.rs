//! Getting an answer: sends one request, classifies what came back, repeats it where that is
//! allowed. The only file that imports reqwest.
//!
//! It is handed an authorization and knows nothing of its renewal, so `auth.rs` may use it without a cycle.
//! Metadata and bulk data use separate connection pools, so that a full pipe of parts never
//! delays a listing. Every body read is bounded; signed URLs are logged as host only.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::pds::endpoint;
use crate::pds::frame::{Frame, PartBody, stalled};
use crate::pds::reach::Reach;
use crate::pds::retry::{Failure, Idempotency, RetryPolicy, Sent};
use crate::pds::sign::{self, Authorization};
use crate::pds::types::PartUrl;

use failure::{lost, out_of_reach, protocol, stall, unreadable};
use refusal::{ERROR_BYTES_MAX, StoreError, refused};

mod failure;
mod refusal;

/// Largest JSON answer that is read, in bytes. A page of 100 entries with every field is below 1 MiB.
const JSON_BYTES_MAX: usize = 16 << 20;

/// How long what was sent may stay without any acknowledgement before the kernel gives a connection up. What counts
/// is progress, not speed: each acknowledged segment begins it anew. So it must be longer than the round trip over a
/// line whose queues an upload has filled, which takes seconds, and than a peer takes no more bytes while it is busy.
/// That nobody is there is found sooner by a knock ([`Reach::falls_silent`]); this ends connections that died alone,
/// when an address translation on the way has forgotten them.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);
/// Silence before the kernel asks whether the peer lives. It asks until [`UNACKNOWLEDGED_MAX`] of silence are over;
/// this finds dead connections on which only the peer has something to say.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);

/// How long to wait for what, in one attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// Until a connection stands.
    pub connect: Duration,
    /// A whole metadata call.
    pub call: Duration,
    /// Without a byte moving in a transfer.
    pub stall: Duration,
}

/// The connection pools and the timeouts of their attempts.
#[derive(Clone, Debug)]
pub struct Transport {
    /// A leaf lock.
    pools: Arc<RwLock<Pools>>,
    timeouts: Timeouts,
    is_loopback: bool,
    reach: Arc<Reach>,
}

/// Pools of connections.
#[derive(Clone, Debug)]
struct Pools {
    calls: Client,
    /// Calls that stay on this machine, whatever the rest does: a service elsewhere may have its logins here.
    near: Client,
    gets: Client,
    puts: Client,
    /// [`Reach::turns`] before the first connection.
    turn: u64,
}

/// One JSON call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Absolute.
    pub url: &'a Url,
    /// `None` for calls that need none.
    pub authorization: Option<&'a Authorization>,
    /// What a second attempt would do.
    pub idempotency: Idempotency,
    /// How long to go on.
    pub policy: RetryPolicy,
}

/// How the store answered the PUT of a part, as far as it is not a failure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PutAnswer {
    /// The bytes are there; CRC-64 of what the store has, where it says so.
    Stored {
        /// `x-oss-hash-crc64ecma`.
        stored_crc64: Option<u64>,
        /// Of what was sent.
        sent_crc64: u64,
    },
    /// The URL has expired: ask for a new one.
    Expired,
    /// Ordered mode: this part was stored by an earlier attempt.
    AlreadyStored,
    /// The upload session is gone: completed, aborted or swept.
    NoSuchUpload,
}

/// How the store answered a ranged GET, as far as it is not a failure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GetAnswer {
    /// Exactly the bytes asked for, and the size of the whole object where the store says so.
    Bytes(Bytes, Option<u64>),
    /// The URL has expired: ask for a new one.
    Expired,
}

impl Pools {
    /// No connection is made yet.
    fn open(timeouts: Timeouts, is_loopback: bool, turn: u64) -> Result<Self> {
        let client = |idle_max: usize, answer_max: Option<Duration>, is_direct: bool| {
            let builder = Client::builder()
                .user_agent(concat!("pdsfs/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(timeouts.connect)
                .tcp_user_timeout(UNACKNOWLEDGED_MAX)
                .tcp_keepalive(KEEPALIVE_AFTER)
                .tcp_keepalive_interval(KEEPALIVE_EVERY)
                .redirect(reqwest::redirect::Policy::none())
                .pool_max_idle_per_host(idle_max)
                .http1_only()
                .tcp_nodelay(true);
            let builder = if is_direct { builder.no_proxy() } else { builder };
            let builder = match answer_max {
                Some(limit) => builder.read_timeout(limit),
                None => builder,
            };
            builder.build().map_err(|e| Error::new(ErrorKind::Io, format!("cannot set up HTTP: {e}")))
        };
        let stall = Some(timeouts.stall);
        // A read timeout runs from the first byte sent, so a slow PUT must not have one: its progress
        // is watched instead.
        let (calls, near) = (client(16, stall, false)?, client(16, stall, true)?);
        let (gets, puts) = (client(64, stall, is_loopback)?, client(64, None, is_loopback)?);
        Ok(Self { calls, near, gets, puts, turn })
    }

    /// No proxy stands between a machine and itself.
    fn calls_to(&self, url: &Url) -> &Client {
        if endpoint::is_loopback(url) { &self.near } else { &self.calls }
    }
}

impl Transport {
    /// Opens the pools; no connection is made yet. Content goes around every proxy where the service is on this
    /// machine (`is_loopback`), calls where they go to this machine themselves.
    pub fn new(timeouts: Timeouts, is_loopback: bool) -> Result<Self> {
        // A provider installed earlier by somebody else serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let reach = Reach::new(is_loopback);
        let pools = Pools::open(timeouts, is_loopback, reach.turns())?;
        Ok(Self { pools: Arc::new(RwLock::new(pools)), timeouts, is_loopback, reach })
    }

    /// The pools. Idle connections from before an outage or another address are not used again: whether they still
    /// lead anywhere would be found out by waiting.
    fn pools(&self) -> Pools {
        let turn = self.reach.turns();
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner).clone();
        if pools.turn == turn {
            return pools;
        }
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        if pools.turn != turn {
            match Pools::open(self.timeouts, self.is_loopback, turn) {
                Ok(fresh) => *pools = fresh,
                Err(error) => tracing::debug!(%error, "old connections are kept"),
            }
        }
        pools.clone()
    }

    /// Whether the service can be reached, as far as is known.
    pub fn online(&self) -> watch::Receiver<bool> {
        self.reach.online()
    }

    /// Whether the service can be reached now, as far as is known.
    pub fn is_online(&self) -> bool {
        self.reach.is_online()
    }

    /// Bytes of parts that connections have taken, those of repeated attempts too.
    pub fn bytes_moved(&self) -> u64 {
        self.reach.bytes_moved()
    }

    /// Bytes of content that came, those of repeated attempts too.
    pub fn bytes_read(&self) -> u64 {
        self.reach.bytes_read()
    }

    /// Sends a request and takes note of whether anybody answered.
    async fn send(&self, what: &str, request: RequestBuilder) -> std::result::Result<Response, Failure> {
        let (client, request) = request.build_split();
        let request = request.map_err(|e| lost(what, &e))?;
        let url = request.url().clone();
        self.reach.listen(&url);
        match client.execute(request).await {
            Ok(response) => {
                self.reach.answered(&url);
                Ok(response)
            }
            Err(e) => {
                if e.is_connect() {
                    self.reach.missed(&url);
                }
                Err(lost(what, &e))
            }
        }
    }

    /// Gives an attempt up when a change of routes, or a return of the service, is followed by no movement for too long: its
    /// connection may have died with an address, which nobody would tell. Also when the service is out of reach, unless it
    /// `goes_on`.
    async fn unless_cut_off<T>(
        &self,
        (what, url): (&str, &Url),
        goes_on: bool,
        moved: &AtomicU64,
        attempt: impl Future<Output = std::result::Result<T, Failure>>,
    ) -> std::result::Result<T, Failure> {
        tokio::select! {
            outcome = attempt => outcome,
            () = self.reach.is_cut_off(|| moved.load(Ordering::Relaxed)) => Err(stall(what)),
            () = self.reach.falls_silent(url, goes_on) => Err(out_of_reach(what, Sent::Maybe)),
        }
    }

    /// Sends a JSON call and reads a JSON answer. An empty answer reads as `null`.
    pub async fn json<A: DeserializeOwned>(
        &self,
        call: Call<'_>,
        body: &impl Serialize,
    ) -> std::result::Result<A, Failure> {
        let body =
            Bytes::from(serde_json::to_vec(body).map_err(|e| protocol(format!("cannot encode: {e}")))?);
        self.post(call, (body, "application/json")).await
    }

    /// Sends a form and reads a JSON answer.
    pub async fn form<A: DeserializeOwned>(
        &self,
        call: Call<'_>,
        fields: &[(&str, &str)],
    ) -> std::result::Result<A, Failure> {
        let text = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.post(call, (Bytes::from(text), "application/x-www-form-urlencoded")).await
    }

    async fn post<A: DeserializeOwned>(
        &self,
        call: Call<'_>,
        body: (Bytes, &'static str),
    ) -> std::result::Result<A, Failure> {
        let what = call.url.path();
        let is_once = call.idempotency != Idempotency::Safe;
        // Until its answer is there, a call shows no movement.
        let moved = AtomicU64::new(0);
        // What may have been done is not given up: only its answer tells.
        let goes_on = is_once || call.policy.outage_max.is_none();
        let attempt = async || {
            // Nor is it begun in an outage: then it is surely not done.
            if is_once && !self.reach.lets_in(call.url).await {
                return Err(out_of_reach(what, Sent::No));
            }
            let attempt = self.post_once(call, body.clone());
            if call.idempotency == Idempotency::Spends {
                // Its answer may be there late, and there is no other: the time of a call bounds it.
                return attempt.await;
            }
            self.unless_cut_off((what, call.url), goes_on, &moved, attempt).await
        };
        call.policy.run(call.idempotency, &self.reach, &moved, attempt).await
    }

    async fn post_once<A: DeserializeOwned>(
        &self,
        call: Call<'_>,
        (body, content_type): (Bytes, &'static str),
    ) -> std::result::Result<A, Failure> {
        let mut request = self.pools().calls_to(call.url).post(call.url.clone()).timeout(self.timeouts.call);
        let headers = match call.authorization {
            Some(authorization) => sign::headers(authorization, call.url)
                .map_err(|error| Failure { error, ..protocol(String::new()) })?,
            None => vec![("content-type", content_type.to_owned())],
        };
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let path = call.url.path();
        let response = self.send(path, request.body(body)).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(path, response).await);
        }
        let text = read_body(path, response, JSON_BYTES_MAX).await?;
        let text = if text.is_empty() { Bytes::from_static(b"null") } else { text };
        serde_json::from_slice(&text).map_err(|e| unreadable(path, &e))
    }

    /// PUTs one part. Repeats on anything transient; a stall of [`Timeouts::stall`] is transient. Sets
    /// `throttled` where the store asked for fewer requests, whatever came of it.
    pub async fn put_part(
        &self,
        url: &PartUrl,
        body: &[Frame],
        policy: RetryPolicy,
        throttled: &AtomicBool,
    ) -> std::result::Result<PutAnswer, Failure> {
        let moved = AtomicU64::new(0);
        let attempt = async || {
            let answer = self.put_once(url, body, &moved).await;
            if answer.as_ref().is_err_and(|failure| failure.error.kind() == ErrorKind::Throttled) {
                throttled.store(true, Ordering::Relaxed);
            }
            answer
        };
        policy.run(Idempotency::Safe, &self.reach, &moved, attempt).await
    }

    /// Adds to `moved` what was taken of the body.
    async fn put_once(
        &self,
        url: &PartUrl,
        frames: &[Frame],
        moved: &AtomicU64,
    ) -> std::result::Result<PutAnswer, Failure> {
        let (body, sent) = PartBody::new(frames, self.reach.clone());
        let target = parse_signed(&url.upload_url)?;
        let silence = self.reach.falls_silent(&target, true);
        let mut request = self.pools().puts.put(target.clone()).header(CONTENT_LENGTH, body.bytes_left());
        if let Some(content_type) = url.content_type.as_deref().filter(|t| !t.is_empty()) {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let send = self.send("PUT of a part", request.body(reqwest::Body::wrap(body)));
        let response = tokio::select! {
            response = send => response,
            () = stalled(&sent, self.timeouts.stall) => Err(stall("PUT of a part")),
            () = self.reach.is_cut_off(|| sent.moved()) => Err(stall("PUT of a part")),
            () = silence => Err(out_of_reach("PUT of a part", Sent::Maybe)),
        };
        moved.fetch_add(sent.moved(), Ordering::Relaxed);
        let response = response?;
        let status = response.status();
        if status.is_success() {
            let stored_crc64 = header_number(response.headers(), "x-oss-hash-crc64ecma");
            // Reading the (empty) body to its end gives the connection back to the pool.
            let end = read_body("PUT of a part", response, ERROR_BYTES_MAX);
            tokio::time::timeout(self.timeouts.stall, end).await.map_err(|_| stall("PUT of a part"))??;
            return Ok(PutAnswer::Stored { stored_crc64, sent_crc64: sent.crc64() });
        }
        let error = StoreError::read("PUT of a part", response);
        let error =
            tokio::time::timeout(self.timeouts.stall, error).await.map_err(|_| stall("PUT of a part"))??;
        match error.code.as_str() {
            _ if error.is_expired() => Ok(PutAnswer::Expired),
            "PartAlreadyExist" => Ok(PutAnswer::AlreadyStored),
            "NoSuchUpload" => Ok(PutAnswer::NoSuchUpload),
            _ => Err(error.into_failure()),
        }
    }

    /// GETs bytes `start..end` of a signed URL: exactly those, or a failure.
    pub async fn get_range(
        &self,
        url: &Secret<String>,
        start: u64,
        end: u64,
        policy: RetryPolicy,
    ) -> std::result::Result<GetAnswer, Failure> {
        let target = parse_signed(url.expose())?;
        let (goes_on, moved) = (policy.outage_max.is_none(), AtomicU64::new(0));
        let attempt = async || {
            let attempt = self.get_once(&target, start, end, &moved);
            self.unless_cut_off(("GET of content", &target), goes_on, &moved, attempt).await
        };
        policy.run(Idempotency::Safe, &self.reach, &moved, attempt).await
    }

    async fn get_once(
        &self,
        url: &Url,
        start: u64,
        end: u64,
        moved: &AtomicU64,
    ) -> std::result::Result<GetAnswer, Failure> {
        const WHAT: &str = "GET of content";
        let request = self.pools().gets.get(url.clone()).header(RANGE, format!("bytes={start}-{}", end - 1));
        let response = tokio::time::timeout(self.timeouts.stall, self.send(WHAT, request))
            .await
            .map_err(|_| stall(WHAT))??;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let total = check_content_range(response.headers(), start, end)?;
                Ok(GetAnswer::Bytes(read_exact(response, 0..end - start, &self.reach, moved).await?, total))
            }
            // Some CDNs ignore Range and send everything: skip to the part that was asked for.
            StatusCode::OK => {
                let total = header_number(response.headers(), CONTENT_LENGTH.as_str());
                Ok(GetAnswer::Bytes(read_exact(response, start..end, &self.reach, moved).await?, total))
            }
            _ => {
                let error = StoreError::read(WHAT, response).await?;
                if error.is_expired() { Ok(GetAnswer::Expired) } else { Err(error.into_failure()) }
            }
        }
    }
}

fn parse_signed(url: &str) -> std::result::Result<Url, Failure> {
    Url::parse(url).map_err(|_| protocol("the service gave a URL that cannot be parsed".into()))
}

async fn read_body(
    what: &str,
    mut response: Response,
    bytes_max: usize,
) -> std::result::Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| lost(what, &e))? {
        if body.len() + chunk.len() > bytes_max {
            return Err(protocol(format!("{what}: the answer is larger than {bytes_max} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Reads this range of a body; more is not read, less is a failure. Adds to `moved` what came.
async fn read_exact(
    mut response: Response,
    range: Range<u64>,
    reach: &Reach,
    moved: &AtomicU64,
) -> std::result::Result<Bytes, Failure> {
    const WHAT: &str = "GET of content";
    let (mut skip, wanted) = (range.start, range.end - range.start);
    let mut body = BytesMut::with_capacity(wanted as usize);
    while let Some(mut chunk) = response.chunk().await.map_err(|e| lost(WHAT, &e))? {
        reach.came(chunk.len() as u64);
        moved.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        let skipped = skip.min(chunk.len() as u64);
        skip -= skipped;
        let chunk = chunk.split_off(skipped as usize);
        let room = wanted as usize - body.len();
        body.extend_from_slice(&chunk[..room.min(chunk.len())]);
        if body.len() as u64 == wanted && chunk.len() > room {
            break;
        }
    }
    if (body.len() as u64) < wanted {
        let detail = format!("{WHAT}: {} bytes came where {wanted} were asked for", body.len());
        return Err(Failure { sent: Sent::Maybe, ..protocol(detail) });
    }
    Ok(body.freeze())
}

/// Checks that `Content-Range: bytes a-b/total` is what was asked for and gives the total.
fn check_content_range(
    headers: &HeaderMap,
    start: u64,
    end: u64,
) -> std::result::Result<Option<u64>, Failure> {
    let text = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let wrong = || protocol(format!("GET of content: asked for bytes {start}-{}, got {text:?}", end - 1));
    let (range, total) = text.strip_prefix("bytes ").and_then(|r| r.split_once('/')).ok_or_else(wrong)?;
    if range != format!("{start}-{}", end - 1) {
        return Err(wrong());
    }
    Ok(total.parse().ok())
}

fn header_number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range_must_be_what_was_asked_for() {
        let headers = |text: &str| HeaderMap::from_iter([(CONTENT_RANGE, text.parse().unwrap())]);
        assert_eq!(check_content_range(&headers("bytes 0-9/100"), 0, 10).unwrap(), Some(100));
        assert_eq!(check_content_range(&headers("bytes 0-9/*"), 0, 10).unwrap(), None);
        for wrong in ["bytes 0-8/100", "bytes 1-9/100", "items 0-9/100", ""] {
            assert!(check_content_range(&headers(wrong), 0, 10).is_err(), "{wrong}");
        }
    }
}
