//! Sends requests, classifies the answers, and repeats requests where the retry policy allows it. Only this
//! file and `transport/` import reqwest.
//!
//! The caller passes the authorization. The transport knows nothing of its refresh, so `tokens.rs` can use it
//! without a cycle. Calls, downloads and uploads use separate connection pools, so that part uploads never
//! delay a listing. Every body read is bounded. Error texts and logs never contain presigned URLs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use reqwest::header::CONTENT_LENGTH;
use reqwest::{Client, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::auth::endpoint;
use crate::auth::sign::{Authorization, authorization_headers};
use crate::config::HostPatterns;
use crate::error::{Error, ErrorKind, Result};
use crate::messages::Cause;
use crate::pds::call_limiter::CallLimiter;
use crate::pds::connectivity::{Connectivity, Destination};
use crate::pds::content_hosts::ContentHosts;
use crate::pds::part_body::{Frame, PartBody, upload_stalled, wait_for_disk};
use crate::pds::put_control::{PutControl, PutEnd, PutMeter};
use crate::pds::retry::{Delivery, Idempotency, RequestFailure, RetryPolicy};
use crate::pds::types::PartUrl;

use answer::{LargeAnswers, too_large};
use content_resolver::{ContentResolver, host_failure, refused_host};
use failure::{
    HttpError, connection_lost, disk_timeout, idle_timeout, offline, protocol_error, unreadable_answer,
};
use part_headers::part_headers;
use refusal::{ERROR_BYTES_MAX, StoreError, api_refusal, header_number};

pub use crate::pds::call_limiter::CallPriority;
pub use download::{GetAnswer, ObjectInfo, OpenBody, RangeBytes, RangeRequest};
pub use tls::ExtraRoots;

mod answer;
mod content_resolver;
mod download;
mod endpoint_check;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzz_targets;
mod part_headers;
mod refusal;
mod tls;

/// How long sent data may stay unacknowledged before the kernel closes the connection (`TCP_USER_TIMEOUT`).
/// Each acknowledged segment restarts it, so it limits progress and not speed. It must be longer than a round
/// trip over a line whose queues an upload has filled (seconds), and longer than a busy peer accepts no
/// bytes. An unreachable service is detected sooner by a probe ([`Connectivity::detect_silence`]). This limit
/// ends single dead connections, for example after a NAT router has dropped its entry.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);
/// Idle time before the kernel sends keepalive probes, until [`UNACKNOWLEDGED_MAX`] has passed. They find
/// dead connections on which the client waits for the peer.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
/// How long an idle connection is kept. Object stores close it after 60 s.
const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(50);

/// Limits of attempts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransportLimits {
    pub connect: Duration,
    /// Whole duration of a metadata call.
    pub call: Duration,
    /// Longest time without a byte in a transfer.
    pub idle: Duration,
    /// API calls at a time.
    pub calls_max: usize,
}

/// Peers that are accepted beyond the default rules. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct TrustedPeers {
    pub roots: ExtraRoots,
    pub content_hosts: HostPatterns,
}

/// The connection pools of one service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Transport {
    /// A leaf lock.
    pools: Arc<RwLock<Pools>>,
    calls: Arc<CallLimiter>,
    answers: LargeAnswers,
    limits: TransportLimits,
    /// Of content.
    hosts: Arc<ContentHosts>,
    roots: ExtraRoots,
    is_loopback: bool,
    connectivity: Arc<Connectivity>,
}

#[derive(Clone, Debug)]
struct Pools {
    calls: Client,
    /// Calls to this machine, which never use a proxy. The token endpoint may be local while the API is
    /// remote.
    loopback: Client,
    gets: Client,
    puts: Client,
    /// [`Connectivity::connection_generation`] when the pools were created.
    generation: u64,
}

/// One JSON call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub url: &'a Url,
    /// `None` for calls without authorization, such as token requests.
    pub authorization: Option<&'a Authorization>,
    /// Secrets in the body. They and those of the authorization are masked in error texts of the service.
    pub secrets: &'a [&'a str],
    pub idempotency: Idempotency,
    pub policy: RetryPolicy,
    pub priority: CallPriority,
}

/// The object store's answer to the PUT of a part. Failures are errors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PutAnswer {
    Stored {
        /// CRC-64 of the stored bytes (`x-oss-hash-crc64ecma`), if the store reports it.
        stored_crc64: Option<u64>,
        sent_crc64: u64,
    },
    /// The presigned URL has expired and must be signed again.
    Expired,
    /// Ordered mode: an earlier attempt has stored this part.
    AlreadyStored,
    /// The upload session was completed, aborted or expired.
    NoSuchUpload,
}

impl Pools {
    /// Makes no connection yet.
    fn open(
        limits: TransportLimits,
        hosts: &Arc<ContentHosts>,
        roots: &ExtraRoots,
        is_loopback: bool,
        generation: u64,
    ) -> Result<Self> {
        let tls = tls::client_config(roots)?;
        let client = |idle_max: usize, answer_max: Option<Duration>, is_direct: bool, is_content: bool| {
            let builder = Client::builder()
                .user_agent(concat!("pdsfs/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(limits.connect)
                .tcp_user_timeout(UNACKNOWLEDGED_MAX)
                .tcp_keepalive(KEEPALIVE_AFTER)
                .tcp_keepalive_interval(KEEPALIVE_EVERY)
                .redirect(reqwest::redirect::Policy::none())
                .pool_max_idle_per_host(idle_max)
                .pool_idle_timeout(IDLE_CONNECTION_MAX)
                .http1_only()
                .tls_backend_preconfigured(tls.clone())
                .tcp_nodelay(true);
            let builder = if is_direct { builder.no_proxy() } else { builder };
            let builder = if is_content {
                builder.dns_resolver(Arc::new(ContentResolver(hosts.clone())))
            } else {
                builder
            };
            let builder = match answer_max {
                Some(limit) => builder.read_timeout(limit),
                None => builder,
            };
            let failed =
                |e| Error::with_source(ErrorKind::Io, "cannot create the HTTP client", HttpError::new(e));
            builder.build().map_err(failed)
        };
        let idle = Some(limits.idle);
        // A read timeout starts with the first byte sent, so a slow PUT must not have one. Its progress is
        // monitored instead.
        let calls_max = limits.calls_max;
        let (calls, loopback) =
            (client(calls_max, idle, false, false)?, client(calls_max, idle, true, false)?);
        let (gets, puts) = (client(64, idle, is_loopback, true)?, client(64, None, is_loopback, true)?);
        Ok(Self { calls, loopback, gets, puts, generation })
    }

    fn calls_to(&self, url: &Url) -> &Client {
        if endpoint::is_loopback(url) { &self.loopback } else { &self.calls }
    }
}

impl Transport {
    /// Makes no connection yet. Content bypasses every proxy if the endpoint is on this machine. Calls bypass it
    /// if their own URL is.
    pub fn new(limits: TransportLimits, service: &Url, peers: TrustedPeers) -> Result<Self> {
        let TrustedPeers { roots, content_hosts } = peers;
        let (hosts, is_loopback) =
            (ContentHosts::new(service, content_hosts), endpoint::is_loopback(service));
        let connectivity = Connectivity::new(is_loopback);
        let generation = connectivity.connection_generation();
        let pools = Pools::open(limits, &hosts, &roots, is_loopback, generation)?;
        let (pools, calls) = (Arc::new(RwLock::new(pools)), CallLimiter::new(limits.calls_max));
        let answers = LargeAnswers::new(limits.call);
        Ok(Self { pools, calls, answers, limits, hosts, roots, is_loopback, connectivity })
    }

    /// Returns the current pools. After an outage or a change of the local address they are replaced, because
    /// a dead idle connection is only detected by a timeout.
    fn pools(&self) -> Pools {
        let generation = self.connectivity.connection_generation();
        let pools = self.pools.read().clone();
        if pools.generation == generation {
            return pools;
        }
        let mut pools = self.pools.write();
        if pools.generation != generation {
            match Pools::open(self.limits, &self.hosts, &self.roots, self.is_loopback, generation) {
                Ok(fresh) => *pools = fresh,
                Err(error) => tracing::debug!(%error, "cannot replace the connection pools"),
            }
        }
        pools.clone()
    }

    pub fn online(&self) -> watch::Receiver<bool> {
        self.connectivity.online()
    }

    /// Why the service cannot be reached, while it cannot.
    pub fn outage(&self) -> Cause {
        self.connectivity.outage()
    }

    pub fn is_online(&self) -> bool {
        self.connectivity.is_online()
    }

    /// Fails all calls from now on: the service is gone for good.
    #[cfg(feature = "server")]
    pub fn abandon(&self, why: &str) {
        self.connectivity.abandon(why);
    }

    /// Bytes of parts that connections have accepted, including repeated attempts.
    pub fn bytes_uploaded(&self) -> u64 {
        self.connectivity.bytes_uploaded()
    }

    /// Bytes of content that were received, including repeated attempts.
    pub fn bytes_downloaded(&self) -> u64 {
        self.connectivity.bytes_downloaded()
    }

    /// Sends a request and records in [`Connectivity`] whether it was answered.
    async fn send(
        &self,
        (what, to): (&str, Destination<'_>),
        request: RequestBuilder,
    ) -> std::result::Result<Response, RequestFailure> {
        self.connectivity.monitor_routes(to.url);
        match request.send().await {
            Ok(response) => {
                self.connectivity.note_answer(to);
                if let (None, Some(peer)) = (to.content, response.remote_addr()) {
                    self.hosts.note_peer(to.url, peer);
                }
                Ok(response)
            }
            Err(e) => {
                if let Some(refused) = refused_host(&e) {
                    return Err(refused);
                }
                let is_connect = e.is_connect();
                let failure = connection_lost(what, e);
                if is_connect && failure.delivery != Delivery::Untrusted {
                    self.connectivity.note_cause(failure.error.cause());
                    self.connectivity.note_connect_failure(to);
                }
                Err(failure)
            }
        }
    }

    /// Ends an attempt that makes no progress after a route change or a recovery: its connection may have
    /// died with a local address, and no error would report that. Also ends it when the service goes offline,
    /// unless the attempt `keeps_waiting`.
    async fn with_liveness_checks<T>(
        &self,
        (what, to): (&str, Destination<'_>),
        keeps_waiting: bool,
        progress: &AtomicU64,
        attempt: impl Future<Output = std::result::Result<T, RequestFailure>>,
    ) -> std::result::Result<T, RequestFailure> {
        let stall = self.connectivity.detect_stall_after_change(|| progress.load(Ordering::Relaxed));
        let silence = self.connectivity.detect_silence(to, keeps_waiting);
        tokio::select! {
            outcome = attempt => outcome,
            () = stall => Err(idle_timeout(what)),
            () = silence => Err(offline(what, self.outage(), Delivery::Unknown)),
        }
    }

    /// Sends a JSON call and reads a JSON answer. An empty answer reads as `null`.
    pub async fn json<A: DeserializeOwned>(
        &self,
        call: Call<'_>,
        body: &impl Serialize,
    ) -> std::result::Result<A, RequestFailure> {
        let body = Bytes::from(
            serde_json::to_vec(body)
                .map_err(|e| protocol_error(format!("cannot encode the request: {e}")))?,
        );
        self.post(call, (body, "application/json")).await
    }

    /// Sends a form and reads a JSON answer.
    pub async fn form<A: DeserializeOwned>(
        &self,
        call: Call<'_>,
        fields: &[(&str, &str)],
    ) -> std::result::Result<A, RequestFailure> {
        let text = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.post(call, (Bytes::from(text), "application/x-www-form-urlencoded")).await
    }

    async fn post<A: DeserializeOwned>(
        &self,
        call: Call<'_>,
        body: (Bytes, &'static str),
    ) -> std::result::Result<A, RequestFailure> {
        let what = call.url.path();
        let is_once = call.idempotency != Idempotency::Safe;
        // A call makes no visible progress before its answer.
        let progress = AtomicU64::new(0);
        // A request that may have been carried out is not abandoned: only its answer shows the outcome.
        let keeps_waiting = is_once || call.policy.outage_max.is_none();
        let admit = || self.calls.acquire(call.priority);
        let attempt = async |_permit| {
            // Such a request does not start during an outage either, so it was certainly not carried out.
            if is_once && !self.connectivity.admit(call.url).await {
                return Err(offline(what, self.outage(), Delivery::NotSent));
            }
            let attempt = self.post_once(call, body.clone());
            if call.idempotency == Idempotency::NonReplayable {
                // Its answer cannot be obtained again, so only the timeout of the call bounds it.
                return attempt.await;
            }
            self.with_liveness_checks((what, call.url.into()), keeps_waiting, &progress, attempt).await
        };
        call.policy.run_admitted(call.idempotency, &self.connectivity, &progress, admit, attempt).await
    }

    async fn post_once<A: DeserializeOwned>(
        &self,
        call: Call<'_>,
        (body, content_type): (Bytes, &'static str),
    ) -> std::result::Result<A, RequestFailure> {
        let mut request = self.pools().calls_to(call.url).post(call.url.clone()).timeout(self.limits.call);
        let headers = match call.authorization {
            Some(authorization) => authorization_headers(authorization, call.url)
                .map_err(|error| RequestFailure { error, ..protocol_error(String::new()) })?,
            None => vec![("content-type", content_type.to_owned())],
        };
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let path = call.url.path();
        let response = self.send((path, call.url.into()), request.body(body)).await?;
        let status = response.status();
        if !status.is_success() {
            let authorization = call.authorization.map(Authorization::secrets).unwrap_or_default();
            let secrets = [call.secrets, &authorization].concat();
            return Err(api_refusal(path, response, &secrets).await);
        }
        let answer = self.answers.read(path, response).await?;
        let text: &[u8] = if answer.bytes.is_empty() { b"null" } else { &answer.bytes };
        serde_json::from_slice(text).map_err(|e| unreadable_answer(path, &e))
    }

    /// A URL for content that is checked.
    fn content<'a>(&'a self, url: &'a Url) -> Destination<'a> {
        Destination { url, content: Some(&self.hosts) }
    }

    /// PUTs one part to its presigned URL and retries transient failures, including an idle timeout.
    pub async fn put_part<C: PutControl>(
        &self,
        url: &PartUrl,
        body: &[Frame],
        policy: RetryPolicy,
        control: &C,
    ) -> std::result::Result<PutAnswer, RequestFailure> {
        let progress = AtomicU64::new(0);
        // The stored frame that the last attempt has waited for; at first the first one.
        let stuck = Mutex::new(body.iter().find(|frame| frame.is_stored()).cloned());
        let attempt = async |permit| {
            let answer = self.put_once(url, body, &progress, control.meter(&permit), &stuck).await;
            let end = match &answer {
                Ok(PutAnswer::Stored { .. }) => PutEnd::Stored,
                Err(failure) if failure.error.kind() == ErrorKind::Throttled => PutEnd::Throttled,
                _ => PutEnd::Failed,
            };
            control.ended(permit, end);
            answer
        };
        let admit = async || {
            // Without a permit: other parts need no local disk, or another one.
            let frame = stuck.lock().clone();
            wait_for_disk(frame).await;
            control.admit().await
        };
        policy.run_admitted(Idempotency::Safe, &self.connectivity, &progress, admit, attempt).await
    }

    async fn put_once(
        &self,
        url: &PartUrl,
        frames: &[Frame],
        progress: &AtomicU64,
        meter: Arc<dyn PutMeter>,
        stuck: &Mutex<Option<Frame>>,
    ) -> std::result::Result<PutAnswer, RequestFailure> {
        const WHAT: &str = "part upload";
        let (body, sent) = PartBody::new(frames, self.connectivity.clone(), meter);
        let target = self.hosts.parse(&url.upload_url).await.map_err(|e| host_failure(&e))?;
        let (to, length) = (self.content(&target), body.bytes_left());
        let silence = self.connectivity.detect_silence(to, true);
        let mut request = self.pools().puts.put(target.clone()).header(CONTENT_LENGTH, length);
        for (name, value) in part_headers(url)? {
            request = request.header(name, value);
        }
        let send = self.send((WHAT, to), request.body(reqwest::Body::wrap(body)));
        let response = tokio::select! {
            response = send => response,
            frame = sent.disk_stalled() => {
                *stuck.lock() = Some(frame);
                Err(disk_timeout())
            }
            () = upload_stalled(&sent, self.limits.idle) => Err(idle_timeout(WHAT)),
            () = self.connectivity.detect_stall_after_change(|| sent.bytes()) => Err(idle_timeout(WHAT)),
            () = silence => Err(offline(WHAT, self.outage(), Delivery::Unknown)),
        };
        progress.fetch_add(sent.bytes(), Ordering::Relaxed);
        let response = response.map_err(|failure| match sent.disk_error() {
            Some(error) => RequestFailure { error, delivery: Delivery::Answered, ..failure },
            None => failure,
        })?;
        let status = response.status();
        if status.is_success() && sent.bytes() < length {
            // The store cannot have the part yet.
            let detail = format!("{WHAT}: {status} after {} of {length} bytes", sent.bytes());
            return Err(RequestFailure { delivery: Delivery::Unknown, ..protocol_error(detail) });
        }
        if status.is_success() {
            let stored_crc64 = header_number(response.headers(), "x-oss-hash-crc64ecma");
            // Reading the (empty) body to its end returns the connection to the pool.
            let end = read_to_end(WHAT, response);
            tokio::time::timeout(self.limits.idle, end).await.map_err(|_| idle_timeout(WHAT))??;
            return Ok(PutAnswer::Stored { stored_crc64, sent_crc64: sent.crc64() });
        }
        let error = StoreError::read(WHAT, response, self.limits.idle).await?;
        match error.code.as_str() {
            _ if error.is_expired() => Ok(PutAnswer::Expired),
            "PartAlreadyExist" => Ok(PutAnswer::AlreadyStored),
            "NoSuchUpload" => Ok(PutAnswer::NoSuchUpload),
            _ => Err(error.into_failure()),
        }
    }
}

/// Reads the body of a success without content.
async fn read_to_end(what: &str, mut response: Response) -> std::result::Result<(), RequestFailure> {
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await.map_err(|e| connection_lost(what, e))? {
        bytes += chunk.len();
        if bytes > ERROR_BYTES_MAX {
            return Err(too_large(what, ERROR_BYTES_MAX));
        }
    }
    Ok(())
}
