//! The last page of a browser login. It has a style and no script, and nothing from the request.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use sha2::{Digest as _, Sha256};

use super::text;

/// Readable in light and dark, on a screen of any width.
const STYLE: &str = ":root{color-scheme:light dark}body{font:1.05rem/1.6 system-ui,sans-serif;margin:0;display:grid;\
    min-height:100vh;place-items:center}main{max-width:30rem;margin:1.5rem;padding:1.5rem 2rem;border:1px solid \
    #8886;border-radius:.8rem;border-top:.4rem solid #888}h1{font-size:1.4rem;margin:.2rem 0}main.success{\
    border-top-color:#1a7f37}main.success h1{color:#1a7f37}main.failure{border-top-color:#cf222e}main.failure h1{\
    color:#cf222e}@media(prefers-color-scheme:dark){main.success h1{color:#3fb950}main.failure h1{color:#f85149}}";

/// The policy allows this style by its hash, and nothing else.
static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    );
    HeaderValue::try_from(policy).ok()
});

/// What the page shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Page {
    /// The service has issued the tokens, to this user; empty if the service does not name one.
    LoggedIn(String),
    /// The terminal says why.
    Failed,
    /// The terminal says how it ends.
    Pending,
    /// The request is not the end of this login.
    Refused(StatusCode, &'static str),
}

impl Page {
    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let (status, class, heading, rest) = match self {
            Self::LoggedIn(user) => (StatusCode::OK, "success", text::page_logged_in(user), text::PAGE_CLOSE),
            Self::Failed => {
                (StatusCode::OK, "failure", text::PAGE_FAILED.to_owned(), text::PAGE_SEE_TERMINAL)
            }
            Self::Pending => (StatusCode::OK, "", text::PAGE_PENDING.to_owned(), text::PAGE_SEE_TERMINAL),
            Self::Refused(status, why) => (*status, "failure", text::PAGE_REFUSED.to_owned(), *why),
        };
        let heading = escaped(&heading);
        let html = format!(
            "<!doctype html><html lang=\"{}\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width\"><title>pdsfs: {heading}</title><style>{STYLE}</style><main \
             class=\"{class}\"><h1 id=\"outcome\">{heading}</h1><p>{}</p></main></html>",
            text::PAGE_LANGUAGE,
            escaped(rest)
        );
        let mut response = Response::new(Full::new(Bytes::from(html)));
        *response.status_mut() = status;
        let fixed = [
            ("content-type", "text/html; charset=utf-8"),
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
        ];
        let headers = response.headers_mut();
        for (name, value) in fixed {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers.extend(POLICY.clone().map(|policy| (hyper::header::CONTENT_SECURITY_POLICY, policy)));
        response
    }
}

/// The service chooses the name of the user.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    async fn html(page: &Page) -> String {
        let body = page.response().into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn page_names_the_user_and_runs_nothing() {
        let page = Page::LoggedIn("<script>alert(1)</script>".into());
        let text = html(&page).await;
        assert!(text.contains("class=\"success\"") && text.contains("as &lt;script&gt;"), "{text}");
        assert!(!text.contains("<script"), "{text}");
        let headers = page.response().headers().clone();
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert!(html(&Page::Failed).await.contains("class=\"failure\""));
    }
}
