//! Where a browser comes back to: one page on 127.0.0.1, for as long as a login lasts.
//!
//! Whoever can reach the port can knock, so a visitor with another state than ours is told so and the wait goes
//! on: a stray page cannot end somebody's login.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::pds::auth::oauth::Attempt;

/// Path of the redirect URI.
const PATH: &str = "/callback";
/// Visitors at a time.
const VISITORS_MAX: usize = 16;
/// How long the browser may take to fetch the last page.
const LAST_PAGE_MAX: Duration = Duration::from_secs(2);

/// A port that waits for a browser.
#[derive(Debug)]
pub(super) struct Loopback {
    listener: TcpListener,
    port: u16,
}

impl Loopback {
    /// Takes the port; 0 takes a free one.
    pub(super) async fn open(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|e| {
            let detail = format!(
                "cannot wait for the browser on 127.0.0.1:{port}: {e}; end the program that has the port, \
                 or choose another with --port and register http://127.0.0.1:PORT{PATH} as redirect URI of \
                 the app, or use --paste"
            );
            Error::new(ErrorKind::Io, detail)
        })?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener, port })
    }

    pub(super) fn redirect_uri(&self) -> String {
        redirect_uri(self.port)
    }

    /// Waits for the browser to come back from this attempt.
    pub(super) async fn wait(self, attempt: &Attempt, limit: Duration) -> Result<Secret<String>> {
        let (told, mut outcome) = mpsc::channel(1);
        let door = Arc::new(Door { attempt: attempt.clone(), told });
        let mut visitors = JoinSet::new();
        let deadline = tokio::time::sleep(limit);
        tokio::pin!(deadline);
        let outcome = loop {
            let has_room = visitors.len() < VISITORS_MAX;
            tokio::select! {
                accepted = self.listener.accept(), if has_room => {
                    if let Ok((stream, from)) = accepted {
                        visitors.spawn(serve(door.clone(), stream, from));
                    }
                }
                Some(_) = visitors.join_next() => {}
                Some(outcome) = outcome.recv() => break outcome,
                () = &mut deadline => {
                    let waited = crate::cli::quantities::show_duration(limit);
                    let detail = format!(
                        "no browser came back within {waited}; run pdsfs login again, with --wait for more \
                         time, or with --paste if the browser is on another machine"
                    );
                    return Err(Error::new(ErrorKind::Timeout, detail));
                }
            }
        };
        // The browser shows the last page before the port is gone. It may keep the connection open.
        let last = async { while visitors.join_next().await.is_some() {} };
        tokio::time::timeout(LAST_PAGE_MAX, last).await.ok();
        outcome
    }
}

/// The redirect URI of a port.
pub(super) fn redirect_uri(port: u16) -> String {
    format!("http://127.0.0.1:{port}{PATH}")
}

struct Door {
    attempt: Attempt,
    told: mpsc::Sender<Result<Secret<String>>>,
}

async fn serve(door: Arc<Door>, stream: tokio::net::TcpStream, from: SocketAddr) {
    let service = service_fn(move |request| {
        let answer = door.answer(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let io = hyper_util::rt::TokioIo::new(stream);
    let connection =
        hyper::server::conn::http1::Builder::new().keep_alive(false).serve_connection(io, service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, %from, "a visitor went away");
    }
}

impl Door {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return page(StatusCode::NOT_FOUND, "Nothing is here.");
        }
        if request.method() != Method::GET {
            return page(StatusCode::METHOD_NOT_ALLOWED, "Nothing can be sent here.");
        }
        let query = request.uri().query().unwrap_or_default();
        if !self.attempt.is_ours(query) {
            let text = "This is not the login that pdsfs waits for. Use the page that it has printed last.";
            return page(StatusCode::BAD_REQUEST, text);
        }
        let outcome = self.attempt.code(query);
        let text = match &outcome {
            Ok(_) => "pdsfs goes on in its terminal. This window can be closed.",
            Err(_) => "pdsfs is not logged in; its terminal says why. This window can be closed.",
        };
        // The first one counts: a page that is loaded again changes nothing.
        self.told.try_send(outcome).ok();
        page(StatusCode::OK, text)
    }
}

/// Nothing of the request is shown.
fn page(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>pdsfs</title>\
         <body style=\"font-family: sans-serif; margin: 3em\"><p id=\"outcome\">{text}</p></body></html>"
    );
    let mut response = Response::new(Full::new(Bytes::from(html)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ] {
        headers.insert(name, hyper::header::HeaderValue::from_static(value));
    }
    response
}
