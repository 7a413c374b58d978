//! The page on which the owner lets an app in: `oauth/authorize`.
//!
//! Whoever can open the page can press its button, so it is there only for apps that the server was started with,
//! and asks for a password where one is set. Codes go to addresses on the owner's own machine or to those that
//! are configured, and to nobody else.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use hyper::Method;
use url::{Host, Url};

use crate::server::App;
use crate::server::catalog::records::Token;
use crate::server::clock::random_hex;
use crate::server::errors::ApiError;
use crate::server::http::{Call, Outcome};
use crate::server::reply::{ReplyBody, response};

/// How long a code is good.
const CODE_TTL: Duration = Duration::from_secs(600);
/// How long a page may lie open before its buttons are pressed.
const PAGE_TTL: Duration = Duration::from_secs(3600);
/// Longest field that is taken, in bytes.
const FIELD_BYTES_MAX: usize = 2048;
/// What an app says of the login that it wants.
const FIELDS: [&str; 5] = ["client_id", "redirect_uri", "state", "code_challenge", "scope"];

type Fields = HashMap<String, String>;

/// A question that may be answered.
struct Asked {
    client_id: String,
    redirect: Url,
    /// As the app wrote it: that is what it shows again.
    redirect_uri: String,
    state: String,
    challenge: Option<String>,
}

/// Shows the page, or takes its answer.
pub(in crate::server) async fn handle(call: &Call, body: &[u8]) -> Outcome {
    let query = call.head.uri.query().unwrap_or_default().as_bytes();
    let fields = |text: &[u8]| url::form_urlencoded::parse(text).into_owned().collect::<Fields>();
    match call.head.method {
        Method::GET => show(call, &fields(query), None),
        Method::POST => answer(call, &fields(body)).await,
        _ => page(405, "<p>This page is looked at and answered, nothing else.</p>"),
    }
}

fn get<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).map_or("", String::as_str)
}

/// Whether the app may be spoken of at all. Before that is known, no browser is sent anywhere.
fn asked(app: &App, fields: &Fields) -> Result<Asked, String> {
    let logins = &app.config.logins;
    if let Some((name, _)) = fields.iter().find(|(_, value)| value.len() > FIELD_BYTES_MAX) {
        return Err(format!("{name} is too long."));
    }
    let client_id = get(fields, "client_id");
    if !logins.client_ids.iter().any(|id| app.signer.same(client_id, id)) {
        return Err("The client id is not known to this drive. The app and the drive must be started with \
            the same one."
            .to_owned());
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
    Ok(Asked {
        client_id: client_id.to_owned(),
        redirect,
        redirect_uri: redirect_uri.to_owned(),
        state: get(fields, "state").to_owned(),
        challenge: challenge.map(str::to_owned),
    })
}

/// Signs what the page asked, so that only a page of ours can answer it.
fn ticket(app: &App, fields: &Fields, expires_ms: &str) -> String {
    let asked: Vec<_> = FIELDS.iter().map(|name| get(fields, name)).collect();
    app.signer.fingerprint(&format!("consent {expires_ms} {asked:?}"))
}

fn show(call: &Call, fields: &Fields, complaint: Option<&str>) -> Outcome {
    let app = &call.app;
    if let Err(wrong) = asked(app, fields) {
        return page(400, &format!("<p id=\"complaint\">{}</p>", escape(&wrong)));
    }
    let ttl_ms = i64::try_from(PAGE_TTL.as_millis()).unwrap_or(0);
    let expires_ms = app.clock.now_ms().saturating_add(ttl_ms).to_string();
    let ticket = ticket(app, fields, &expires_ms);
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
        "<h1>Let this app in?</h1>{complaint}<p>The app <b id=\"client\">{client_id}</b> wants to read and \
         change every file of this drive.</p><p>Afterwards the browser goes to <code>{redirect_uri}</code>.</p>\
         <form method=\"post\" action=\"/v2/oauth/authorize\">{hidden}{password}\
         <button id=\"allow\" name=\"decision\" value=\"allow\">Allow</button> \
         <button id=\"deny\" name=\"decision\" value=\"deny\" formnovalidate>Deny</button></form>"
    );
    page(if complaint.is_empty() { 200 } else { 403 }, &html)
}

async fn answer(call: &Call, fields: &Fields) -> Outcome {
    let app = &call.app;
    let asked = match asked(app, fields) {
        Ok(asked) => asked,
        Err(wrong) => return page(400, &format!("<p id=\"complaint\">{}</p>", escape(&wrong))),
    };
    let site = call.head.headers.get("sec-fetch-site").and_then(|site| site.to_str().ok());
    let expires_ms = get(fields, "expires_ms");
    let fresh = expires_ms.parse::<i64>().is_ok_and(|end| end > app.clock.now_ms());
    let ours = app.signer.same(get(fields, "ticket"), &ticket(app, fields, expires_ms));
    if !fresh || !ours || site.is_some_and(|site| site != "same-origin") {
        return page(403, "<p id=\"complaint\">This page is too old. Begin again from the app.</p>");
    }
    if get(fields, "decision") != "allow" {
        return back(asked, &[("error", "access_denied"), ("error_description", "The owner said no.")]);
    }
    if let Some(password) = &app.config.logins.password
        && !app.signer.same(get(fields, "password"), password.expose())
    {
        return show(call, fields, Some("That is not the password."));
    }
    match new_code(app, &asked).await {
        Ok(code) => back(asked, &[("code", &code)]),
        Err(error) => {
            tracing::warn!(message = error.message, "a code cannot be stored");
            back(asked, &[("error", "server_error")])
        }
    }
}

async fn new_code(app: &App, asked: &Asked) -> Result<String, ApiError> {
    let code = random_hex(24)?;
    let ttl_ms = i64::try_from(CODE_TTL.as_millis()).unwrap_or(0);
    let now_ms = app.clock.now_ms();
    let record = Token::Code {
        client_id: asked.client_id.clone(),
        redirect_uri: asked.redirect_uri.clone(),
        challenge: asked.challenge.clone(),
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

/// Sends the browser back to the app.
fn back(asked: Asked, answer: &[(&str, &str)]) -> Outcome {
    let mut url = asked.redirect;
    url.query_pairs_mut().extend_pairs(answer);
    if !asked.state.is_empty() {
        url.query_pairs_mut().append_pair("state", &asked.state);
    }
    let headers = [
        ("location", url.to_string()),
        ("cache-control", "no-store".to_owned()),
        ("referrer-policy", "no-referrer".to_owned()),
    ];
    response(303, &headers, ReplyBody::whole(""))
}

fn page(status: u16, content: &str) -> Outcome {
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
