//! The consent page (`oauth/authorize`), on which the owner of the drive allows an app to log in.
//!
//! Every visitor of the page can press its button. Therefore the page exists only for configured client ids. It asks
//! for the password, and without one it is only for the user of the server. A server with a public URL always asks,
//! because its proxy may run as that user. Codes are sent only to loopback addresses and to configured redirect URIs.
//!
//! Another web page must not press the button. The form needs the cookie of the browser that it was shown to, and the
//! `Origin` of this server; names that others can make resolve to this server are refused.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use hyper::header::{COOKIE, ORIGIN};
use hyper::http::HeaderMap;
use sha2::{Digest as _, Sha256};
use url::{Host, Url};

use crate::host_header;
use crate::server::app::App;
use crate::server::call::{ApiCall, HttpResult, error_response};
use crate::server::catalog::records::Token;
use crate::server::clock::random_hex;
use crate::server::config::Logins;
use crate::server::errors::ServiceError;
use crate::server::password_gate::Guess;
use crate::server::reply::{ReplyBody, response};
use crate::server::sign::Signer;

/// Lifetime of an authorization code.
const CODE_TTL: Duration = Duration::from_secs(600);
/// How long the form of a page can be submitted.
const PAGE_TTL: Duration = Duration::from_secs(3600);
/// Longest form field.
const FIELD_BYTES_MAX: usize = 2048;
/// The cookie that ties a form to a browser.
const COOKIE_NAME: &str = "pdsfs_consent";
/// Length of its value, in hexadecimal digits.
const COOKIE_DIGITS: usize = 32;
/// The fields of an authorization request that the form signs.
const FIELDS: [&str; 5] = ["client_id", "redirect_uri", "state", "code_challenge", "scope"];

type Fields = HashMap<String, String>;

/// A valid authorization request.
struct ConsentRequest {
    client_id: String,
    redirect: Url,
    /// As the app wrote it: the token request must repeat it exactly.
    redirect_uri: String,
    state: String,
    challenge: Option<String>,
}

/// Shows the page, or handles its form.
pub(in crate::server) async fn handle(call: &ApiCall, body: &[u8]) -> HttpResult {
    let query = call.head.uri.query().unwrap_or_default().as_bytes();
    let fields = |text: &[u8]| url::form_urlencoded::parse(text).into_owned().collect::<Fields>();
    if let Err(reason) = admit(call).await {
        return complaint_page(403, reason);
    }
    match call.head.method {
        Method::GET => show_form(call, &fields(query), None),
        Method::POST => submit_form(call, &fields(body)).await,
        _ => complaint_page(405, "This page accepts GET and POST."),
    }
}

/// Refuses visitors that the page is not for. The error is a sentence for the page.
async fn admit(call: &ApiCall) -> Result<(), &'static str> {
    if !has_own_host(call) {
        return Err(
            "This name is not that of the drive: use its address, or start the drive with --public-url.",
        );
    }
    if call.head.method == Method::POST && !has_own_origin(call) {
        return Err("This form was not sent by the page of the drive.");
    }
    if call.app.config.logins.password.is_none() {
        if call.app.config.public_url.is_some() {
            return Err("With --public-url, this page needs a password. Set one with PDSFS_SERVE_PASSWORD.");
        }
        let ours = rustix::process::geteuid().as_raw();
        let uid = call.control.client_uid().await;
        if uid != Some(ours) && uid != Some(0) {
            return Err(
                "Without a password, this page is only for the user who runs the drive. Set one with \
                        PDSFS_SERVE_PASSWORD.",
            );
        }
    }
    Ok(())
}

fn has_own_host(call: &ApiCall) -> bool {
    let public = call.app.config.public_url.as_ref();
    host_header::authority(&call.head.headers).is_some_and(|host| {
        host_header::is_literal(&host) || public.is_some_and(|url| url.host_str() == Some(host.host()))
    })
}

/// Browsers send the header with each form.
fn has_own_origin(call: &ApiCall) -> bool {
    let headers = &call.head.headers;
    let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok()).unwrap_or_default();
    let host = host_header::authority(headers).map(|host| host.to_string());
    let is_of_host = origin.split_once("://").is_some_and(|(_, named)| Some(named) == host.as_deref());
    let public = call.app.config.public_url.as_ref().map(|url| url.origin().ascii_serialization());
    is_of_host || public.as_deref() == Some(origin)
}

/// The value of the cookie, if it has the form of ours.
fn browser_cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == COOKIE_NAME)?;
    let is_ours = value.len() == COOKIE_DIGITS && value.bytes().all(|c| c.is_ascii_hexdigit());
    is_ours.then_some(value)
}

fn get<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).map_or("", String::as_str)
}

/// Validates client and redirect URI. An invalid request never causes a redirect. The error is a sentence for
/// the page.
fn parse_request(logins: &Logins, signer: &Signer, fields: &Fields) -> Result<ConsentRequest, String> {
    if let Some((name, _)) = fields.iter().find(|(_, value)| value.len() > FIELD_BYTES_MAX) {
        return Err(format!("{name} is too long."));
    }
    let client_id = get(fields, "client_id");
    if !logins.client_ids.iter().any(|id| signer.constant_time_eq(client_id, id)) {
        return Err(
            "The client id is not known to this drive. Start the app and the drive with the same one."
                .to_owned(),
        );
    }
    let redirect_uri = get(fields, "redirect_uri");
    let redirect = Url::parse(redirect_uri).map_err(|_| "The redirect URI is not a URL.".to_owned())?;
    let loopback = match redirect.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        _ => false,
    };
    let plain_loopback = loopback && redirect.scheme() == "http" && redirect.fragment().is_none();
    if !plain_loopback && !logins.redirect_uris.iter().any(|uri| uri == redirect_uri) {
        return Err("The redirect URI is not one of the app's.".to_owned());
    }
    if !matches!(get(fields, "response_type"), "code" | "") {
        return Err("The response type must be code.".to_owned());
    }
    let challenge = Some(get(fields, "code_challenge")).filter(|text| !text.is_empty());
    if challenge.is_none() && logins.client_secret.is_none() {
        return Err("The app must send a code challenge (PKCE), because it has no client secret.".to_owned());
    }
    if challenge.is_some() && get(fields, "code_challenge_method") != "S256" {
        return Err("The code challenge method must be S256.".to_owned());
    }
    Ok(ConsentRequest {
        client_id: client_id.to_owned(),
        redirect,
        redirect_uri: redirect_uri.to_owned(),
        state: get(fields, "state").to_owned(),
        challenge: challenge.map(str::to_owned),
    })
}

/// Signs the fields of a form for one browser. Only a form of this server can be submitted, and only by the browser
/// that it was shown to (CSRF protection).
fn sign_form(app: &App, fields: &Fields, expires_ms: &str, cookie: &str) -> String {
    let request: Vec<_> = FIELDS.iter().map(|name| get(fields, name)).collect();
    app.signer.fingerprint(&format!("consent {expires_ms} {cookie} {request:?}"))
}

fn show_form(call: &ApiCall, fields: &Fields, complaint: Option<&str>) -> HttpResult {
    let app = &call.app;
    if let Err(reason) = parse_request(&app.config.logins, &app.signer, fields) {
        return complaint_page(400, &reason);
    }
    // Several pages of one browser share a cookie.
    let cookie = match browser_cookie(&call.head.headers).map(str::to_owned) {
        Some(cookie) => Ok(cookie),
        None => random_hex(COOKIE_DIGITS / 2),
    };
    let cookie = match cookie {
        Ok(cookie) => cookie,
        Err(error) => return error_response(call, &error.into()),
    };
    let ttl_ms = i64::try_from(PAGE_TTL.as_millis()).unwrap_or(0);
    let expires_ms = app.clock.now_ms().saturating_add(ttl_ms).to_string();
    let ticket = sign_form(app, fields, &expires_ms, &cookie);
    let kept = FIELDS.iter().chain(&["code_challenge_method"]).map(|name| (*name, get(fields, name)));
    let mut hidden = String::new();
    for (name, value) in kept.chain([("expires_ms", expires_ms.as_str()), ("ticket", ticket.as_str())]) {
        // Writing to a String does not fail.
        let _ = write!(hidden, "<input type=\"hidden\" name=\"{name}\" value=\"{}\">", escape(value));
    }
    let password = if app.config.logins.password.is_some() {
        "<p><label>Password of this drive <input type=\"password\" name=\"password\" required autofocus \
         autocomplete=\"current-password\"></label></p>"
    } else {
        ""
    };
    let complaint = complaint
        .map(|text| format!("<p id=\"complaint\" role=\"alert\">{}</p>", escape(text)))
        .unwrap_or_default();
    let client_id = escape(get(fields, "client_id"));
    let redirect_uri = escape(get(fields, "redirect_uri"));
    let html = format!(
        "<h1>Allow this app?</h1>{complaint}<p>The app <b id=\"client\">{client_id}</b> wants to read and \
         change every file of this drive.</p><p>Afterwards the browser goes to <code>{redirect_uri}</code>.</p>\
         <form method=\"post\" action=\"/v2/oauth/authorize\">{hidden}{password}\
         <button id=\"allow\" name=\"decision\" value=\"allow\">Allow</button> \
         <button id=\"deny\" name=\"decision\" value=\"deny\" formnovalidate>Deny</button></form>"
    );
    let secure = if call.base.starts_with("https:") { "; Secure" } else { "" };
    let cookie = format!(
        "{COOKIE_NAME}={cookie}; Path=/v2/oauth/authorize; Max-Age={}; HttpOnly; SameSite=Strict{secure}",
        PAGE_TTL.as_secs()
    );
    html_page(if complaint.is_empty() { 200 } else { 403 }, &html, &[("set-cookie", cookie)])
}

async fn submit_form(call: &ApiCall, fields: &Fields) -> HttpResult {
    let app = &call.app;
    let request = match parse_request(&app.config.logins, &app.signer, fields) {
        Ok(request) => request,
        Err(reason) => return complaint_page(400, &reason),
    };
    let cookie = browser_cookie(&call.head.headers).unwrap_or_default();
    let expires_ms = get(fields, "expires_ms");
    let fresh = expires_ms.parse::<i64>().is_ok_and(|end| end > app.clock.now_ms());
    let ticket = sign_form(app, fields, expires_ms, cookie);
    let ours = !cookie.is_empty() && app.signer.constant_time_eq(get(fields, "ticket"), &ticket);
    if !fresh || !ours {
        let text =
            "This page has expired, or the browser keeps no cookies. Start the login again from the app.";
        return complaint_page(403, text);
    }
    if get(fields, "decision") != "allow" {
        return redirect_back(
            request,
            &[("error", "access_denied"), ("error_description", "The owner denied access.")],
        );
    }
    if let Some(password) = &app.config.logins.password {
        let is_right = || app.signer.constant_time_eq(get(fields, "password"), password.expose());
        match app.login_guesses.check(is_right).await {
            Guess::Right => {}
            Guess::Busy => return complaint_page(429, "Too many logins at once. Try again."),
            Guess::Wrong => {
                tracing::warn!("a login with a wrong password");
                return show_form(call, fields, Some("Wrong password."));
            }
        }
    }
    match new_code(app, &request).await {
        Ok(code) => redirect_back(request, &[("code", &code)]),
        Err(error) => {
            tracing::warn!(message = error.message, "cannot store an authorization code");
            redirect_back(request, &[("error", "server_error")])
        }
    }
}

async fn new_code(app: &App, request: &ConsentRequest) -> Result<String, ServiceError> {
    let code = random_hex(24)?;
    let ttl_ms = i64::try_from(CODE_TTL.as_millis()).unwrap_or(0);
    let now_ms = app.clock.now_ms();
    let record = Token::Code {
        client_id: request.client_id.clone(),
        redirect_uri: request.redirect_uri.clone(),
        challenge: request.challenge.clone(),
        expires_ms: now_ms.saturating_add(ttl_ms),
    };
    let key = app.signer.fingerprint(&code);
    app.catalog
        .change(|state| {
            state.drop_expired_tokens(now_ms);
            state.put_token(&key, record)
        })
        .await?;
    Ok(code)
}

/// Redirects the browser to the app.
fn redirect_back(request: ConsentRequest, answer: &[(&str, &str)]) -> HttpResult {
    let mut url = request.redirect;
    url.query_pairs_mut().extend_pairs(answer);
    if !request.state.is_empty() {
        url.query_pairs_mut().append_pair("state", &request.state);
    }
    let headers = [
        ("location", url.to_string()),
        ("cache-control", "no-store".to_owned()),
        ("referrer-policy", "no-referrer".to_owned()),
    ];
    response(303, &headers, ReplyBody::whole(""))
}

/// The style of the pages; the policy allows it by its hash. Readable in light and dark, on a screen of any width.
const STYLE: &str = ":root{color-scheme:light dark}body{font:1.05rem/1.6 system-ui,sans-serif;margin:0;display:grid;\
    min-height:100vh;place-items:center}main{max-width:34rem;margin:1.5rem;padding:1.5rem 2rem;border:1px solid \
    #8886;border-radius:.8rem;overflow-wrap:anywhere}h1{font-size:1.4rem;margin:.2rem 0}input,button{font:inherit;\
    padding:.4rem .9rem;border-radius:.4rem;border:1px solid #888}label input{display:block;width:100%;\
    box-sizing:border-box}#allow{background:#1a7f37;color:#fff;border-color:#1a7f37}#complaint{color:#cf222e;\
    font-weight:600}:focus-visible{outline:.2rem solid #0969da}@media(prefers-color-scheme:dark){#complaint{\
    color:#f85149}}";

fn complaint_page(status: u16, text: &str) -> HttpResult {
    html_page(status, &format!("<h1>Login</h1><p id=\"complaint\" role=\"alert\">{}</p>", escape(text)), &[])
}

fn html_page(status: u16, content: &str, more: &[(&'static str, String)]) -> HttpResult {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>pdsfs drive</title><style>{STYLE}</style><main>{content}</main></html>"
    );
    let headers = [
        ("content-type", "text/html; charset=utf-8".to_owned()),
        ("cache-control", "no-store".to_owned()),
        // With no-referrer, browsers send the form without its origin.
        ("referrer-policy", "same-origin".to_owned()),
        ("x-frame-options", "DENY".to_owned()),
        (
            "content-security-policy",
            format!(
                "default-src 'none'; style-src 'sha256-{}'; frame-ancestors 'none'; base-uri 'none'",
                STANDARD.encode(Sha256::digest(STYLE))
            ),
        ),
    ];
    response(status, &[&headers[..], more].concat(), ReplyBody::whole(html))
}

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
        out
    })
}

/// Fuzz target: the fields of a form. A redirect goes to this machine or to a configured URI.
#[cfg(any(test, fuzzing))]
pub(in crate::server) fn check_form(data: &[u8], logins: &Logins, signer: &Signer) {
    let fields: Fields = url::form_urlencoded::parse(data).into_owned().collect();
    for value in fields.values() {
        assert!(!escape(value).contains(['<', '>', '"', '\'']), "{value:?}");
    }
    let Ok(request) = parse_request(logins, signer, &fields) else { return };
    let own = logins.redirect_uris.contains(&request.redirect_uri);
    let host = request.redirect.host_str().unwrap_or_default();
    assert!(own || host.starts_with("127.") || host == "[::1]", "{}", request.redirect_uri);
    let answer = redirect_back(request, &[("code", "c")]);
    assert!(answer.is_ok_and(|answer| answer.status() == 303), "the redirect cannot be sent");
}
