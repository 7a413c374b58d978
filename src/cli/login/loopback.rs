//! The redirect URI of a browser login: one page on 127.0.0.1 for the duration of a login.
//!
//! Any local program can connect to the port. A request with a wrong state, or from another user, gets an error page
//! and the login continues: another user could answer the login page with an account of their own, and the files
//! of this user would go there. Browsers open connections ahead and leave them idle, so idle connections must not block others.

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
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::page::Page;
use super::text;
use crate::auth::browser_login::BrowserLogin;
use crate::cli::output::print_message;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::tcp_peer;

/// Path of the redirect URI.
const PATH: &str = "/callback";
/// Concurrent connections; one more closes the oldest.
const CONNECTIONS_MAX: usize = 16;
/// Limit on reading a request head.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// Longest request head, in bytes. A code and a state take a few hundred.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long the browser may take to fetch the final page.
const LAST_PAGE_MAX: Duration = Duration::from_secs(2);
/// How long the browser waits for the tokens, before its page says that the terminal shows the end.
const PAGE_WAIT_MAX: Duration = Duration::from_secs(60);

/// A port that waits for the redirected browser.
#[derive(Debug)]
pub(super) struct Loopback {
    listener: TcpListener,
    port: u16,
    /// The users whose browsers are accepted.
    users: Vec<u32>,
}

impl Loopback {
    /// Port 0 chooses a free port.
    pub(super) async fn open(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(|e| {
            let detail = format!(
                "cannot listen for the browser on 127.0.0.1:{port}: {e}; stop the program that uses the \
                 port, or choose another with --port and register http://127.0.0.1:PORT{PATH} as redirect \
                 URI of the app, or use --paste"
            );
            Error::new(ErrorKind::Io, detail)
        })?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener, port, users: login_users() })
    }

    pub(super) fn redirect_uri(&self) -> String {
        redirect_uri(self.port)
    }

    /// Waits for the redirect of this login and returns its code, with the browser that waits for a page.
    pub(super) async fn wait(
        self,
        attempt: &BrowserLogin,
        limit: Duration,
    ) -> Result<(Secret<String>, WaitingBrowser)> {
        let (outcome_tx, mut outcome) = mpsc::channel(1);
        let (page_tx, page) = watch::channel(None);
        let (attempt, users) = (attempt.clone(), self.users.clone());
        let handler = CallbackHandler { attempt, users, outcome_tx, page };
        let handler = Arc::new(handler);
        let mut connections = JoinSet::new();
        let mut by_age = VecDeque::with_capacity(CONNECTIONS_MAX);
        let deadline = tokio::time::sleep(limit);
        tokio::pin!(deadline);
        let outcome = loop {
            tokio::select! {
                accepted = self.listener.accept() => {
                    if let Ok((stream, from)) = accepted {
                        by_age.retain(|connection: &AbortHandle| !connection.is_finished());
                        if by_age.len() == CONNECTIONS_MAX && let Some(oldest) = by_age.pop_front() {
                            oldest.abort();
                        }
                        by_age.push_back(connections.spawn(serve(handler.clone(), stream, from)));
                    }
                }
                Some(_) = connections.join_next() => {}
                Some(outcome) = outcome.recv() => break outcome,
                () = &mut deadline => {
                    let waited = crate::units::exact_duration(limit);
                    let detail = format!(
                        "no login in the browser within {waited}: run pdsfs login again, with --wait for \
                         more time, or with --paste if the browser is on another machine"
                    );
                    return Err(Error::new(ErrorKind::Timeout, detail));
                }
            }
        };
        let browser = WaitingBrowser { page_tx, connections };
        match outcome {
            Ok(code) => Ok((code, browser)),
            Err(error) => {
                browser.show(Page::Failed).await;
                Err(error)
            }
        }
    }
}

/// A browser that has brought the code and waits for its last page.
#[derive(Debug)]
pub(super) struct WaitingBrowser {
    page_tx: watch::Sender<Option<Page>>,
    connections: JoinSet<()>,
}

impl WaitingBrowser {
    /// Returns once the browser has the page. It may keep the connection open.
    pub(super) async fn show(mut self, page: Page) {
        self.page_tx.send_replace(Some(page));
        let fetched = async { while self.connections.join_next().await.is_some() {} };
        tokio::time::timeout(LAST_PAGE_MAX, fetched).await.ok();
    }
}

/// This user, and for root the user who called sudo or pkexec: that user has the browser.
fn login_users() -> Vec<u32> {
    let uid = rustix::process::geteuid();
    let callers: &[&str] = if uid.is_root() { &["SUDO_UID", "PKEXEC_UID"] } else { &[] };
    let callers = callers.iter().filter_map(|name| std::env::var(name).ok()?.parse().ok());
    std::iter::once(uid.as_raw()).chain(callers).collect()
}

pub(super) fn redirect_uri(port: u16) -> String {
    format!("http://127.0.0.1:{port}{PATH}")
}

struct CallbackHandler {
    attempt: BrowserLogin,
    users: Vec<u32>,
    outcome_tx: mpsc::Sender<Result<Secret<String>>>,
    /// The last page, once it is known.
    page: watch::Receiver<Option<Page>>,
}

async fn serve(handler: Arc<CallbackHandler>, stream: tokio::net::TcpStream, from: SocketAddr) {
    let to = stream.local_addr().ok();
    let service = service_fn(move |request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(handler.answer(&request, from, to).await) }
    });
    let io = hyper_util::rt::TokioIo::new(stream);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(io, service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, %from, "a connection failed");
    }
}

impl CallbackHandler {
    async fn answer(
        &self,
        request: &Request<Incoming>,
        from: SocketAddr,
        to: Option<SocketAddr>,
    ) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return Page::Refused(StatusCode::NOT_FOUND, text::PAGE_NOT_FOUND).response();
        }
        if request.method() != Method::GET {
            return Page::Refused(StatusCode::METHOD_NOT_ALLOWED, text::PAGE_WRONG_METHOD).response();
        }
        let query = request.uri().query().unwrap_or_default();
        if !self.attempt.matches_state(query) {
            return Page::Refused(StatusCode::BAD_REQUEST, text::PAGE_OTHER_LOGIN).response();
        }
        if !self.is_from_our_user(from, to).await {
            return Page::Refused(StatusCode::FORBIDDEN, text::PAGE_OTHER_USER).response();
        }
        // The first outcome counts; a reload of the page changes nothing.
        self.outcome_tx.try_send(self.attempt.code_from_query(query)).ok();
        self.last_page().await.response()
    }

    /// The page of the outcome. It comes after the tokens.
    async fn last_page(&self) -> Page {
        let mut page = self.page.clone();
        let shown = async { page.wait_for(Option::is_some).await.ok().and_then(|page| page.clone()) };
        tokio::time::timeout(PAGE_WAIT_MAX, shown).await.ok().flatten().unwrap_or(Page::Pending)
    }

    async fn is_from_our_user(&self, from: SocketAddr, to: Option<SocketAddr>) -> bool {
        let uid = match to {
            Some(to) => tcp_peer::uid(from, to).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot read the connection table");
                None
            }),
            None => None,
        };
        if uid.is_some_and(|uid| self.users.contains(&uid)) {
            return true;
        }
        let whose =
            uid.map_or_else(|| "a user whom the kernel does not tell".to_owned(), |uid| format!("uid {uid}"));
        print_message(format_args!(
            "ignored an answer to this login from {whose}; if that is your browser, use --paste"
        ));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn answer_of_another_user_is_ignored() {
        let mut loopback = Loopback::open(0).await.unwrap();
        let port = loopback.port;
        let users = std::mem::replace(&mut loopback.users, vec![4_000_000_000]);
        let (attempt, state) = attempt(&loopback);
        let waiting = loopback.wait(&attempt, Duration::from_millis(500));
        let query = format!("/callback?state={state}&code=C");
        let (outcome, answer) = tokio::join!(waiting, ask(port, &query));
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Timeout);
        assert_eq!(users[0], rustix::process::geteuid().as_raw());
    }

    fn attempt(loopback: &Loopback) -> (BrowserLogin, String) {
        let endpoint = url::Url::parse("https://bj1.api.aliyunpds.com").unwrap();
        let attempt = BrowserLogin::new(&endpoint, "app", &loopback.redirect_uri(), "default").unwrap();
        let state = attempt.url.query_pairs().find(|(key, _)| key == "state").unwrap().1.into_owned();
        (attempt, state)
    }

    async fn ask(port: u16, target: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
        // The server may refuse the head and close before all of it was sent.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn idle_and_oversized_requests_do_not_block_login() {
        let loopback = Loopback::open(0).await.unwrap();
        let port = loopback.port;
        let (attempt, state) = attempt(&loopback);
        let waiting = tokio::spawn(async move { loopback.wait(&attempt, Duration::from_secs(60)).await });
        let mut silent = Vec::new();
        for n in 0..CONNECTIONS_MAX * 2 {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            if n % 2 == 0 {
                stream.write_all(b"GET /callback?code=").await.unwrap();
            }
            silent.push(stream);
        }
        let long = ask(port, &format!("/callback?state={state}&code={}", "x".repeat(HEAD_BYTES_MAX))).await;
        assert!(!long.starts_with("HTTP/1.1 200"), "{long}");
        let query = format!("/callback?state={state}&code=C");
        let shown = async {
            let (code, browser) = waiting.await.unwrap().unwrap();
            browser.show(Page::LoggedIn("alice".into())).await;
            code
        };
        let (code, answer) = tokio::join!(shown, ask(port, &query));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("logged in as alice"), "{answer}");
        assert_eq!(code.expose(), "C");
        drop(silent);
    }
}
