//! The way of a browser to the service and back (authorization code flow with a proof key).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::pds::endpoint;
use crate::pds::sign::random_hex;

const PATH: &str = "/v2/oauth/authorize";

/// A login that waits for its browser.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Where the browser goes first. It holds nothing secret.
    pub url: Url,
    /// Where it comes back to.
    pub redirect_uri: String,
    /// What it must bring back, so that nobody slips us the code of somebody else.
    state: String,
    /// Proof that the code was asked for by us.
    pub verifier: Secret<String>,
}

impl Attempt {
    /// A fresh one.
    pub fn new(auth_endpoint: &Url, client_id: &str, redirect_uri: &str, login_type: &str) -> Result<Self> {
        let (state, verifier) = (random_hex(16)?, random_hex(32)?);
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
        let mut url = endpoint::at(auth_endpoint, PATH);
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

    /// Whether a query belongs to this login.
    pub fn is_ours(&self, query: &str) -> bool {
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.any(|(key, value)| key == "state" && value == self.state.as_str())
    }

    /// The code in the query that a browser came back with.
    pub fn code(&self, query: &str) -> Result<Secret<String>> {
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
                "the browser came back from another login (its state is not ours); run pdsfs login again and \
                 use the page that it opens"
                    .to_owned(),
            );
        }
        match (error.as_deref(), code.filter(|code| !code.is_empty())) {
            (Some("access_denied"), _) => {
                refused("access was denied in the browser; run pdsfs login again and choose Allow".to_owned())
            }
            (Some(error), _) => {
                // From the network: nothing in it may move the cursor of a terminal.
                let text = format!("{error} {description}").replace(char::is_control, " ");
                refused(format!("the service ended the login: {}", text.trim()))
            }
            (None, Some(code)) => Ok(Secret::new(code)),
            (None, None) => refused("the browser came back without a code; run pdsfs login again".to_owned()),
        }
    }

    /// The code in what somebody copied: the address that the browser came back to, or the code alone.
    pub fn pasted(&self, text: &str) -> Result<Secret<String>> {
        let text = text.trim();
        if let Ok(url) = Url::parse(text) {
            return self.code(url.query().unwrap_or_default());
        }
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            let detail = "that is neither a code nor the address that the browser came back to; copy the whole \
                address from its address bar";
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        Ok(Secret::new(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt() -> Attempt {
        let endpoint = Url::parse("https://bj1.api.aliyunpds.com").unwrap();
        Attempt::new(&endpoint, "app 1", "http://127.0.0.1:9/callback", "default").unwrap()
    }

    #[test]
    fn the_browser_is_sent_with_state_and_proof() {
        let attempt = attempt();
        let get = |key: &str| attempt.url.query_pairs().find(|(k, _)| k == key).map(|(_, v)| v.into_owned());
        assert_eq!(attempt.url.path(), "/v2/oauth/authorize");
        assert_eq!(get("client_id").as_deref(), Some("app 1"));
        assert_eq!(get("domain_id").as_deref(), Some("bj1"));
        assert_eq!(get("code_challenge_method").as_deref(), Some("S256"));
        assert_eq!(get("code_challenge").unwrap().len(), 43);
        assert!((43..=128).contains(&attempt.verifier.expose().len()));
        assert!(!attempt.url.as_str().contains(attempt.verifier.expose()));
    }

    #[test]
    fn only_our_own_browser_brings_a_code() {
        let attempt = attempt();
        let state = &attempt.state;
        assert_eq!(attempt.code(&format!("code=C%2B1&state={state}")).unwrap().expose(), "C+1");
        for (query, says) in [
            ("code=C".to_owned(), "another login"),
            ("code=C&state=x".to_owned(), "another login"),
            (format!("error=access_denied&state={state}"), "choose Allow"),
            (format!("error=server_error&error_description=a%1bb&state={state}"), "server_error a b"),
            (format!("state={state}"), "without a code"),
        ] {
            let error = attempt.code(&query).unwrap_err().to_string();
            assert!(error.contains(says), "{query}: {error}");
        }
        let pasted = format!(" http://127.0.0.1:9/callback?code=C&state={state}\n");
        assert_eq!(attempt.pasted(&pasted).unwrap().expose(), "C");
        assert_eq!(attempt.pasted("C\n").unwrap().expose(), "C");
        assert!(attempt.pasted("http://127.0.0.1:9/callback?code=C&state=x").is_err());
        assert!(attempt.pasted("a b").is_err() && attempt.pasted("").is_err());
    }
}
