//! The consent page (`oauth/authorize`), on which the owner of the drive allows an app to log in.
//!
//! Every visitor of the page can press its button. Therefore the page exists only for configured client ids,
//! and asks for the password if one is set. Codes are sent only to loopback addresses and to configured
//! redirect URIs.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use hyper::Method;
use url::{Host, Url};

use crate::server::app::App;
use crate::server::call::{ApiCall, HttpResult};
use crate::server::catalog::records::Token;
use crate::server::clock::random_hex;
use crate::server::errors::ServiceError;
use crate::server::reply::{ReplyBody, response};

/// Lifetime of an authorization code.
const CODE_TTL: Duration = Duration::from_secs(600);

/// Pause before the answer to a wrong password.
const WRONG_PASSWORD_PAUSE: Duration = Duration::from_secs(1);
/// How long the form of a page can be submitted.
const PAGE_TTL: Duration = Duration::from_secs(3600);
/// Longest form field.
const FIELD_BYTES_MAX: usize = 2048;
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
    match call.head.method {
        Method::GET => show_form(call, &fields(query), None),
        Method::POST => submit_form(call, &fields(body)).await,
        _ => html_page(405, "<p>This page accepts GET and POST.</p>"),
    }
}

fn get<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).map_or("", String::as_str)
}

/// Validates client and redirect URI. An invalid request never causes a redirect. The error is a sentence for
/// the page.
fn parse_request(app: &App, fields: &Fields) -> Result<ConsentRequest, String> {
    let logins = &app.config.logins;
    if let Some((name, _)) = fields.iter().find(|(_, value)| value.len() > FIELD_BYTES_MAX) {
        return Err(format!("{name} is too long."));
    }
    let client_id = get(fields, "client_id");
    if !logins.client_ids.iter().any(|id| app.signer.constant_time_eq(client_id, id)) {
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

/// Signs the fields of a form. Only a form of this server can be submitted (CSRF protection).
fn sign_form(app: &App, fields: &Fields, expires_ms: &str) -> String {
    let request: Vec<_> = FIELDS.iter().map(|name| get(fields, name)).collect();
    app.signer.fingerprint(&format!("consent {expires_ms} {request:?}"))
}

fn show_form(call: &ApiCall, fields: &Fields, complaint: Option<&str>) -> HttpResult {
    let app = &call.app;
    if let Err(reason) = parse_request(app, fields) {
        return html_page(400, &format!("<p id=\"complaint\">{}</p>", escape(&reason)));
    }
    let ttl_ms = i64::try_from(PAGE_TTL.as_millis()).unwrap_or(0);
    let expires_ms = app.clock.now_ms().saturating_add(ttl_ms).to_string();
    let ticket = sign_form(app, fields, &expires_ms);
    let kept = FIELDS.iter().chain(&["code_challenge_method"]).map(|name| (*name, get(fields, name)));
    let mut hidden = String::new();
    for (name, value) in kept.chain([("expires_ms", expires_ms.as_str()), ("ticket", ticket.as_str())]) {
        // Writing to a String does not fail.
        let _ = write!(hidden, "<input type=\"hidden\" name=\"{name}\" value=\"{}\">", escape(value));
    }
    let password = if app.config.logins.password.is_some() {
        "<p><label>Password of this drive <input type=\"password\" name=\"password\" required></label></p>"
    } else {
        ""
    };
    let complaint =
        complaint.map(|text| format!("<p id=\"complaint\">{}</p>", escape(text))).unwrap_or_default();
    let client_id = escape(get(fields, "client_id"));
    let redirect_uri = escape(get(fields, "redirect_uri"));
    let html = format!(
        "<h1>Allow this app?</h1>{complaint}<p>The app <b id=\"client\">{client_id}</b> wants to read and \
         change every file of this drive.</p><p>Afterwards the browser goes to <code>{redirect_uri}</code>.</p>\
         <form method=\"post\" action=\"/v2/oauth/authorize\">{hidden}{password}\
         <button id=\"allow\" name=\"decision\" value=\"allow\">Allow</button> \
         <button id=\"deny\" name=\"decision\" value=\"deny\" formnovalidate>Deny</button></form>"
    );
    html_page(if complaint.is_empty() { 200 } else { 403 }, &html)
}

async fn submit_form(call: &ApiCall, fields: &Fields) -> HttpResult {
    let app = &call.app;
    let request = match parse_request(app, fields) {
        Ok(request) => request,
        Err(reason) => return html_page(400, &format!("<p id=\"complaint\">{}</p>", escape(&reason))),
    };
    let site = call.head.headers.get("sec-fetch-site").and_then(|site| site.to_str().ok());
    let expires_ms = get(fields, "expires_ms");
    let fresh = expires_ms.parse::<i64>().is_ok_and(|end| end > app.clock.now_ms());
    let ours = app.signer.constant_time_eq(get(fields, "ticket"), &sign_form(app, fields, expires_ms));
    if !fresh || !ours || site.is_some_and(|site| site != "same-origin") {
        let text = "This page has expired. Start the login again from the app.";
        return html_page(403, &format!("<p id=\"complaint\">{text}</p>"));
    }
    if get(fields, "decision") != "allow" {
        return redirect_back(
            request,
            &[("error", "access_denied"), ("error_description", "The owner denied access.")],
        );
    }
    if let Some(password) = &app.config.logins.password
        && !app.signer.constant_time_eq(get(fields, "password"), password.expose())
    {
        // One wrong password at a time, so more connections allow no more guesses.
        let Ok(_turn) = app.wrong_passwords.try_lock() else {
            return html_page(429, "<p id=\"complaint\">Too many logins at once. Try again.</p>");
        };
        tracing::warn!("a login with a wrong password");
        tokio::time::sleep(WRONG_PASSWORD_PAUSE).await;
        return show_form(call, fields, Some("Wrong password."));
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

fn html_page(status: u16, content: &str) -> HttpResult {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>pdsfs drive</title>\
         <body style=\"font-family: sans-serif; margin: 3em; max-width: 40em\">{content}</body></html>"
    );
    let headers = [
        ("content-type", "text/html; charset=utf-8".to_owned()),
        ("cache-control", "no-store".to_owned()),
        ("referrer-policy", "no-referrer".to_owned()),
        ("x-frame-options", "DENY".to_owned()),
        (
            "content-security-policy",
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
                .to_owned(),
        ),
    ];
    response(status, &headers, ReplyBody::whole(html))
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
