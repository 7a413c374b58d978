//! Where a browser comes back to: one page on 127.0.0.1, for as long as a login lasts.
//!
//! Whoever can reach the port can knock, so a visitor with another state than ours is told so and the wait goes
//! on: a stray page cannot end somebody's login. Browsers connect ahead and then say nothing for long; such
//! visitors stand in nobody's way.

use std::collections::VecDeque;
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
use tokio::task::{AbortHandle, JoinSet};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::pds::auth::oauth::Attempt;

/// Path of the redirect URI.
const PATH: &str = "/callback";
/// Visitors at a time; one more takes the place of the oldest.
const VISITORS_MAX: usize = 16;
/// How long a visitor may take to say what it wants.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes. A code and a state are some hundred.
const HEAD_BYTES_MAX: usize = 16 << 10;
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
        let mut by_age = VecDeque::with_capacity(VISITORS_MAX);
        let deadline = tokio::time::sleep(limit);
        tokio::pin!(deadline);
        let outcome = loop {
            tokio::select! {
                accepted = self.listener.accept() => {
                    if let Ok((stream, from)) = accepted {
                        by_age.retain(|visitor: &AbortHandle| !visitor.is_finished());
                        if by_age.len() == VISITORS_MAX && let Some(oldest) = by_age.pop_front() {
                            oldest.abort();
                        }
                        by_age.push_back(visitors.spawn(serve(door.clone(), stream, from)));
                    }
                }
                Some(_) = visitors.join_next() => {}
                Some(outcome) = outcome.recv() => break outcome,
                () = &mut deadline => {
                    let waited = crate::config::quantities::show_duration(limit);
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
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(io, service);
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    async fn ask(port: u16, target: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
        // Who refuses a head closes while the rest of it is on the way.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn who_says_nothing_or_too_much_stands_in_nobodys_way() {
        let loopback = Loopback::open(0).await.unwrap();
        let port = loopback.port;
        let endpoint = url::Url::parse("https://bj1.api.aliyunpds.com").unwrap();
        let attempt = Attempt::new(&endpoint, "app", &loopback.redirect_uri(), "default").unwrap();
        let state = attempt.url.query_pairs().find(|(key, _)| key == "state").unwrap().1.into_owned();
        let waiting = tokio::spawn(async move { loopback.wait(&attempt, Duration::from_secs(60)).await });
        let mut silent = Vec::new();
        for n in 0..VISITORS_MAX * 2 {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            if n % 2 == 0 {
                stream.write_all(b"GET /callback?code=").await.unwrap();
            }
            silent.push(stream);
        }
        let long = ask(port, &format!("/callback?state={state}&code={}", "x".repeat(HEAD_BYTES_MAX))).await;
        assert!(!long.starts_with("HTTP/1.1 200"), "{long}");
        let answer = ask(port, &format!("/callback?state={state}&code=C")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(waiting.await.unwrap().unwrap().expose(), "C");
        drop(silent);
    }
}
