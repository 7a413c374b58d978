//! Connections and the way of a request to those who know its meaning.
//!
//! Served with hyper directly: a fault must be able to end a connection in place of an answer,
//! and bodies of parts come in large pieces only with a large read buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::clock::http_date;
use super::errors::ApiError;
use super::faults::{FaultAction, Verdict};
use super::reply::{Answer, HungUp, ReplyBody, response};
use super::wire::{Link, Wire};
use super::{App, Stop, api, auth, control, oss};

/// Longest body of an API call: 10,000 parts with their states take about a megabyte.
const JSON_BYTES_MAX: usize = 16 << 20;

/// Read buffer of a connection, and so the largest piece of a part's body.
const READ_BUFFER_BYTES: usize = 256 << 10;

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 4096;

/// Pause after `accept` failed, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until the server stops, then waits for them.
pub(super) async fn accept(app: Arc<App>, listener: TcpListener, mut stop: watch::Receiver<Stop>) {
    let mut connections = JoinSet::new();
    loop {
        // The others wait in the queue of the listener.
        let has_room = connections.len() < CONNECTIONS_MAX;
        tokio::select! {
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(Arc::clone(&app), stream, stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = stop.changed() => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(app: Arc<App>, stream: TcpStream, mut stop: watch::Receiver<Stop>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection stays slow");
    }
    let link = Arc::new(Link::default());
    let wire = Wire::new(stream, Arc::clone(&link));
    let of_requests = Arc::clone(&link);
    let service = service_fn(move |request| handle(Arc::clone(&app), Arc::clone(&of_requests), request));
    let mut connection = hyper::server::conn::http1::Builder::new()
        .max_buf_size(READ_BUFFER_BYTES)
        .serve_connection(wire, service);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stop.changed() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
    if link.is_to_reset() {
        // A connection that lingers not at all is reset when it is closed.
        if let Err(error) = connection.into_parts().io.into_inner().set_zero_linger() {
            tracing::debug!(%error, "a connection is closed, not reset");
        }
    }
}

/// One request on its way.
pub(super) struct Call {
    pub(super) app: Arc<App>,
    pub(super) head: Parts,
    pub(super) request_id: String,
    /// What URLs begin with, such as `http://127.0.0.1:8080`.
    pub(super) base: String,
    pub(super) link: Arc<Link>,
}

impl Call {
    /// Ends the connection with a reset.
    pub(super) fn reset(&self) -> HungUp {
        self.link.reset();
        HungUp
    }
}

/// The answer, or the end of the connection.
pub(super) type Outcome = Result<Response<ReplyBody>, HungUp>;

async fn handle(app: Arc<App>, link: Arc<Link>, request: Request<Incoming>) -> Outcome {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    let (head, body) = request.into_parts();
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
    let request_id = format!("{:016X}{number:016X}", app.clock.now_ms());
    let base = base(&app, &head);
    let call = Call { app, head, request_id, base, link };
    let path = call.head.uri.path();
    if path.starts_with(super::sign::OBJECT_PREFIX) {
        return oss::handle(call, body).await;
    }
    let body = match Limited::new(body, JSON_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return refused(&call, &ApiError::new(413, "InvalidRequest", error.to_string()));
        }
    };
    match path.strip_prefix("/v2/") {
        Some(endpoint) => api_call(&call, endpoint, &body).await,
        None if path.starts_with("/_pdsfs/") => control::handle(&call, &body).await,
        None => refused(&call, &ApiError::no_route()),
    }
}

/// What URLs begin with: as the client reached us, so that a proxy before us is not bypassed.
fn base(app: &App, head: &Parts) -> String {
    if let Some(url) = &app.config.public_url {
        return url.as_str().trim_end_matches('/').to_owned();
    }
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok()).or(head.uri.host());
    let is_plain = |host: &&str| host.bytes().all(|c| c.is_ascii_alphanumeric() || b".:-_[]".contains(&c));
    match host.filter(|host| !host.is_empty()).filter(is_plain) {
        Some(host) => format!("http://{host}"),
        None => format!("http://{}", app.addr),
    }
}

async fn api_call(call: &Call, endpoint: &str, body: &Bytes) -> Outcome {
    let outcome = judged(call, endpoint, body).await;
    let status = outcome.as_ref().map_or(0, |response| response.status().as_u16());
    call.app.counters.count(endpoint, status);
    outcome
}

async fn judged(call: &Call, endpoint: &str, body: &Bytes) -> Outcome {
    let app = &call.app;
    if !api::is_open(endpoint)
        && let Err(error) = auth::check(app, &call.head, body)
    {
        return refused(call, &error);
    }
    let verdict = app.faults.judge(endpoint, None);
    app.faults.wait(&verdict).await;
    match &verdict.action {
        Some(FaultAction::Reset) => return Err(call.reset()),
        Some(FaultAction::Revoke) => {
            if let Some(token) = auth::bearer(&call.head) {
                app.faults.revoke(token);
            }
            return refused(call, &ApiError::new(401, "AccessTokenInvalid", "AccessToken is invalid."));
        }
        Some(status @ FaultAction::Status { .. }) => return faulty(call, status),
        _ => {}
    }
    if endpoint == api::CONSENT {
        return auth::consent::handle(call, body).await;
    }
    let answer = match call.head.method {
        Method::POST => api::dispatch(call, endpoint, body).await,
        Method::GET if endpoint == "file/download" => return api::download(call),
        _ => Err(ApiError::no_route()),
    };
    match (&verdict.action, answer) {
        (Some(FaultAction::CloseAfter), _) => Err(HungUp),
        (_, Ok(answer)) => answered(call, answer, &verdict),
        (_, Err(error)) => refused(call, &error),
    }
}

fn answered(call: &Call, answer: Answer, verdict: &Verdict) -> Outcome {
    let mut headers = vec![("x-ca-request-id", call.request_id.clone())];
    if !answer.body.is_empty() {
        headers.push(("content-type", "application/json; charset=UTF-8".to_owned()));
    }
    let body = match verdict.action {
        Some(FaultAction::Cut { bytes }) => {
            let declared = answer.body.len() as u64;
            let first = answer.body.slice(..usize::try_from(bytes.min(declared)).unwrap_or(0));
            ReplyBody::cut(first, declared, &call.link)
        }
        _ => ReplyBody::whole(answer.body),
    };
    response(answer.status, &headers, body)
}

/// An error as the service or the gateway sends it.
pub(super) fn refused(call: &Call, error: &ApiError) -> Outcome {
    let mut headers = vec![("x-ca-request-id", call.request_id.clone())];
    // By the server's own clock, which a test may have set.
    headers.extend(http_date(call.app.clock.now_ms()).map(|date| ("date", date)));
    if error.gateway {
        headers.push(("x-ca-error-code", error.code.clone()));
        headers.push(("x-ca-error-message", error.message.clone()));
        return response(error.status, &headers, ReplyBody::whole(""));
    }
    headers.push(("content-type", "application/json; charset=UTF-8".to_owned()));
    response(error.status, &headers, ReplyBody::whole(error.body()))
}

/// An error that the fault plan orders, in JSON.
fn faulty(call: &Call, action: &FaultAction) -> Outcome {
    let FaultAction::Status { status, code, message, empty_body, .. } = action else { return Err(HungUp) };
    let mut headers = vec![("x-ca-request-id", call.request_id.clone())];
    headers.extend(retry_headers(action));
    if *empty_body {
        return response(*status, &headers, ReplyBody::whole(""));
    }
    headers.push(("content-type", "application/json; charset=UTF-8".to_owned()));
    let body = ApiError::new(*status, code.clone(), message.clone()).body();
    response(*status, &headers, ReplyBody::whole(body))
}

/// The headers by which an ordered error says when to come again.
pub(super) fn retry_headers(action: &FaultAction) -> Vec<(&'static str, String)> {
    let FaultAction::Status { retry_after_s, x_retry_after_ms, .. } = action else { return Vec::new() };
    let seconds = retry_after_s.map(|s| ("retry-after", s.to_string()));
    let milliseconds = x_retry_after_ms.map(|ms| ("x-retry-after", ms.to_string()));
    seconds.into_iter().chain(milliseconds).collect()
}
