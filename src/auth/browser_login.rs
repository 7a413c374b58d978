//! A login in the browser: OAuth authorization code flow with PKCE.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::endpoint;
use super::sign::random_hex;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

const PATH: &str = "/v2/oauth/authorize";

/// A login that waits for the redirect of the browser.
#[derive(Clone, Debug)]
pub struct BrowserLogin {
    /// The page that the browser opens. It contains no secret.
    pub url: Url,
    pub redirect_uri: String,
    /// The browser must return this value, so that an attacker cannot inject the code of another login.
    state: String,
    /// The PKCE verifier, sent with the code.
    pub verifier: Secret<String>,
}

impl BrowserLogin {
    pub fn new(auth_endpoint: &Url, client_id: &str, redirect_uri: &str, login_type: &str) -> Result<Self> {
        let (state, verifier) = (random_hex(16)?, random_hex(32)?);
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
        let mut url = endpoint::with_path(auth_endpoint, PATH);
        url.query_pairs_mut()
            .append_pair("client_id", client_id)
            .append_pair("redirect_uri", redirect_uri)
            .append_pair("response_type", "code")
            .append_pair("login_type", login_type)
            .append_pair("state", &state)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        if let Some(domain) = endpoint::domain_id(auth_endpoint) {
            url.query_pairs_mut().append_pair("domain_id", domain);
        }
        Ok(Self { url, redirect_uri: redirect_uri.to_owned(), state, verifier: Secret::new(verifier) })
    }

    /// Whether a redirect belongs to this login.
    pub fn matches_state(&self, query: &str) -> bool {
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.any(|(key, value)| key == "state" && value == self.state.as_str())
    }

    /// The code in the query of the redirect.
    pub fn code_from_query(&self, query: &str) -> Result<Secret<String>> {
        let (mut code, mut state, mut error, mut description) = (None, None, None, String::new());
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "code" => code = Some(value.into_owned()),
                "state" => state = Some(value.into_owned()),
                "error" => error = Some(value.into_owned()),
                "error_description" => description = value.into_owned(),
                _ => {}
            }
        }
        let refused = |detail: String| Err(Error::new(ErrorKind::Denied, detail));
        if state.as_deref() != Some(&self.state) {
            return refused(
                "the redirect belongs to another login (its state differs); run pdsfs login again and use \
                 the page that it opens"
                    .to_owned(),
            );
        }
        match (error.as_deref(), code.filter(|code| !code.is_empty())) {
            (Some("access_denied"), _) => {
                refused("access was denied in the browser; run pdsfs login again and choose Allow".to_owned())
            }
            (Some(error), _) => {
                // Control characters from the network could move the cursor of a terminal.
                let text = format!("{error} {description}").replace(char::is_control, " ");
                refused(format!("the service rejected the login: {}; run pdsfs login again", text.trim()))
            }
            (None, Some(code)) => Ok(Secret::new(code)),
            (None, None) => refused("the redirect has no code; run pdsfs login again".to_owned()),
        }
    }

    /// The code in pasted text: the redirect URL, or the code alone.
    pub fn code_from_paste(&self, text: &str) -> Result<Secret<String>> {
        let text = text.trim();
        if let Ok(url) = Url::parse(text) {
            return self.code_from_query(url.query().unwrap_or_default());
        }
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            let detail = "the input is neither a code nor the URL of the redirect; copy the whole URL from \
                the address bar of the browser";
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        Ok(Secret::new(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> BrowserLogin {
        let endpoint = Url::parse("https://bj1.api.aliyunpds.com").unwrap();
        BrowserLogin::new(&endpoint, "app 1", "http://127.0.0.1:9/callback", "default").unwrap()
    }

    #[test]
    fn login_url_has_state_and_challenge() {
        let login = login();
        let get = |key: &str| login.url.query_pairs().find(|(k, _)| k == key).map(|(_, v)| v.into_owned());
        assert_eq!(login.url.path(), "/v2/oauth/authorize");
        assert_eq!(get("client_id").as_deref(), Some("app 1"));
        assert_eq!(get("domain_id").as_deref(), Some("bj1"));
        assert_eq!(get("code_challenge_method").as_deref(), Some("S256"));
        assert_eq!(get("code_challenge").unwrap().len(), 43);
        assert!((43..=128).contains(&login.verifier.expose().len()));
        assert!(!login.url.as_str().contains(login.verifier.expose()));
    }

    #[test]
    fn code_is_accepted_only_with_our_state() {
        let login = login();
        let state = &login.state;
        assert_eq!(login.code_from_query(&format!("code=C%2B1&state={state}")).unwrap().expose(), "C+1");
        for (query, phrase) in [
            ("code=C".to_owned(), "another login"),
            ("code=C&state=x".to_owned(), "another login"),
            (format!("error=access_denied&state={state}"), "choose Allow"),
            (format!("error=server_error&error_description=a%1bb&state={state}"), "server_error a b"),
            (format!("state={state}"), "has no code"),
        ] {
            let error = login.code_from_query(&query).unwrap_err().to_string();
            assert!(error.contains(phrase), "{query}: {error}");
        }
        let code_from_paste = format!(" http://127.0.0.1:9/callback?code=C&state={state}\n");
        assert_eq!(login.code_from_paste(&code_from_paste).unwrap().expose(), "C");
        assert_eq!(login.code_from_paste("C\n").unwrap().expose(), "C");
        assert!(login.code_from_paste("http://127.0.0.1:9/callback?code=C&state=x").is_err());
        assert!(login.code_from_paste("a b").is_err() && login.code_from_paste("").is_err());
    }
}
