//! Accepts connections and dispatches requests.
//!
//! Uses hyper directly, for two reasons: a fault must be able to close a connection instead of a response,
//! and part bodies arrive in large pieces only with a large read buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::HOST;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::app::App;
use super::body::{drain, read_body};
use super::call::{ApiCall, HttpResult, error_response, retry_headers};
use super::connection::{Connection, ConnectionControl};
use super::errors::ServiceError;
use super::faults::{FaultAction, FaultDecision};
use super::reply::{ApiResponse, Disconnect, ReplyBody, response};
use super::tls::Stream;
use super::{admin, api, auth, oss};

/// Longest body of an API call. 10,000 parts with midstates take about 1 MB.
const JSON_BYTES_MAX: usize = 16 << 20;

/// Longest body of a call that needs no token: a form.
const FORM_BYTES_MAX: usize = 64 << 10;

/// How long a client may take to send the head of a request. An idle connection is closed after it too, as object
/// stores do.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Read buffer of a connection: the largest piece of a part body.
const READ_BUFFER_BYTES: usize = 256 << 10;

/// Bound on open connections.
const CONNECTIONS_MAX: usize = 4096;

/// Pause after a failed `accept`. The usual cause is the limit of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until the server drains, then waits for the open ones.
pub(super) async fn accept(app: Arc<App>, listener: TcpListener, mut stop: watch::Receiver<RunState>) {
    let mut connections = JoinSet::new();
    loop {
        // Further connections wait in the listener's backlog.
        let has_room = connections.len() < CONNECTIONS_MAX;
        tokio::select! {
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(Arc::clone(&app), stream, stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
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

/// Counts a connection while it is open.
struct CountedConnection(Arc<App>);

impl CountedConnection {
    fn new(app: Arc<App>) -> Self {
        app.counters.connected();
        Self(app)
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.counters.disconnected();
    }
}

async fn serve(app: Arc<App>, stream: TcpStream, mut stop: watch::Receiver<RunState>) {
    let _counted = CountedConnection::new(Arc::clone(&app));
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let control = Arc::new(ConnectionControl::new(&stream));
    let opened = tokio::select! {
        opened = tokio::time::timeout(HEAD_TIMEOUT, Stream::accept(stream, app.config.tls.as_ref())) => opened,
        _ = stop.changed() => return,
    };
    let stream = match opened.map_err(std::io::Error::from).flatten() {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "no TLS handshake");
            return;
        }
    };
    let wire = Connection::new(stream, Arc::clone(&control));
    let request_control = Arc::clone(&control);
    let service = service_fn(move |request| handle(Arc::clone(&app), Arc::clone(&request_control), request));
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
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
        tracing::debug!(%error, "a connection ended with an error");
    }
    if control.should_reset() {
        // With SO_LINGER 0, close sends a reset.
        if let Err(error) = connection.into_parts().io.set_zero_linger() {
            tracing::debug!(%error, "cannot set SO_LINGER: the connection is closed, not reset");
        }
    }
}

async fn handle(app: Arc<App>, control: Arc<ConnectionControl>, request: Request<Incoming>) -> HttpResult {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    let (head, mut body) = request.into_parts();
    let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
    let request_id = format!("{:016X}{number:016X}", app.clock.now_ms());
    let base = base_url(&app, &head);
    let call = ApiCall { app, head, request_id, base, control };
    let path = call.head.uri.path();
    if path.starts_with(super::sign::OBJECT_PREFIX) {
        return oss::handle(call, body).await;
    }
    let outcome = match path.strip_prefix("/v2/") {
        Some(endpoint) => api_call(&call, endpoint, &mut body).await,
        None if path.starts_with("/_pdsfs/") => admin::handle(&call, &mut body).await,
        None => error_response(&call, &ServiceError::no_route()),
    };
    if !body.is_end_stream() {
        // A dropped body would close the connection before the client has read the answer.
        tokio::spawn(async move { drain(&mut body, JSON_BYTES_MAX as u64).await });
    }
    outcome
}

/// Start of presigned URLs. Without `public_url` it follows the `Host` header, so a proxy stays in the path.
fn base_url(app: &App, head: &Parts) -> String {
    if let Some(url) = &app.config.public_url {
        return url.as_str().trim_end_matches('/').to_owned();
    }
    let scheme = if app.config.tls.is_some() { "https" } else { "http" };
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok()).or(head.uri.host());
    let is_plain = |host: &&str| host.bytes().all(|c| c.is_ascii_alphanumeric() || b".:-_[]".contains(&c));
    match host.filter(|host| !host.is_empty()).filter(is_plain) {
        Some(host) => format!("{scheme}://{host}"),
        None => format!("{scheme}://{}", app.addr),
    }
}

async fn api_call(call: &ApiCall, endpoint: &str, body: &mut Incoming) -> HttpResult {
    let outcome = respond(call, endpoint, body).await;
    let status = outcome.as_ref().map_or(0, |response| response.status().as_u16());
    call.app.counters.count(endpoint, status);
    outcome
}

/// Reads the body of a call. Without valid credentials in its head, at most that of a form is read.
async fn admit(call: &ApiCall, endpoint: &str, body: &mut Incoming) -> Result<Bytes, ServiceError> {
    if api::needs_no_token(endpoint) {
        return read_body(body, FORM_BYTES_MAX).await;
    }
    // The call itself is checked against the share.
    if call.head.method == Method::POST && api::is_visitor(call)? {
        return read_body(body, JSON_BYTES_MAX).await;
    }
    let admitted = auth::authenticate(&call.app, &call.head);
    let body = read_body(body, if admitted.is_ok() { JSON_BYTES_MAX } else { FORM_BYTES_MAX }).await;
    admitted?.check_body(body?)
}

async fn respond(call: &ApiCall, endpoint: &str, body: &mut Incoming) -> HttpResult {
    let app = &call.app;
    if !api::is_route(&call.head.method, endpoint) {
        return error_response(call, &ServiceError::no_route());
    }
    let body = &match admit(call, endpoint, body).await {
        Ok(body) => body,
        Err(error) => return error_response(call, &error),
    };
    let decision = app.faults.decide(endpoint, None);
    app.faults.wait(&decision).await;
    match &decision.action {
        Some(FaultAction::Reset) => return Err(call.reset()),
        Some(FaultAction::Revoke) => {
            if let Some(token) = auth::bearer(&call.head) {
                app.faults.revoke(token);
            }
            return error_response(
                call,
                &ServiceError::new(401, "AccessTokenInvalid", "AccessToken is invalid."),
            );
        }
        Some(status @ FaultAction::Status { .. }) => return injected_response(call, status),
        _ => {}
    }
    if endpoint == api::CONSENT {
        return auth::consent::handle(call, body).await;
    }
    let answer = match call.head.method {
        Method::POST => api::dispatch(call, endpoint, body).await,
        Method::GET if endpoint == "file/download" => return api::download(call),
        _ => Err(ServiceError::no_route()),
    };
    match (&decision.action, answer) {
        (Some(FaultAction::CloseAfter), _) => Err(Disconnect),
        (_, Ok(answer)) => success_response(call, answer, &decision),
        (_, Err(error)) => error_response(call, &error),
    }
}

fn success_response(call: &ApiCall, answer: ApiResponse, decision: &FaultDecision) -> HttpResult {
    let mut headers = vec![("x-ca-request-id", call.request_id.clone())];
    if !answer.body.is_empty() {
        headers.push(("content-type", "application/json; charset=UTF-8".to_owned()));
    }
    let body = match decision.action {
        Some(FaultAction::Cut { bytes }) => {
            let declared = answer.body.len() as u64;
            let first = answer.body.slice(..usize::try_from(bytes.min(declared)).unwrap_or(0));
            ReplyBody::cut(first, declared, &call.control)
        }
        _ => ReplyBody::whole(answer.body),
    };
    response(answer.status, &headers, body)
}

/// The JSON error of a fault.
fn injected_response(call: &ApiCall, action: &FaultAction) -> HttpResult {
    let FaultAction::Status { status, code, message, empty_body, .. } = action else {
        return Err(Disconnect);
    };
    let mut headers = vec![("x-ca-request-id", call.request_id.clone())];
    headers.extend(retry_headers(action));
    if *empty_body {
        return response(*status, &headers, ReplyBody::whole(""));
    }
    headers.push(("content-type", "application/json; charset=UTF-8".to_owned()));
    let body = ServiceError::new(*status, code.clone(), message.clone()).body();
    response(*status, &headers, ReplyBody::whole(body))
}

/// Whether connections serve further requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RunState {
    Running,
    /// Complete the running requests, then close.
    Draining,
}
