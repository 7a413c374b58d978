//! What `pdsfs login` and `pdsfs setup` ask at a terminal.

use std::io::{IsTerminal as _, Write as _};

use url::Url;

use super::arguments::LoginArgs;
use super::{secret, text};
use crate::auth::{AccountSummary, endpoint};
use crate::cli::output::print_message;
use crate::error::{Error, ErrorKind, Result};

/// Wrong answers before the program gives up.
const ANSWERS_MAX: usize = 3;

/// Asks for the domain and the app, if the arguments and the account do not name them. Without a terminal the login
/// fails and names the flags.
pub(super) async fn fill_in(args: &mut LoginArgs, before: Option<&AccountSummary>) -> Result<()> {
    let needs_domain = args.endpoint.is_none() && before.is_none();
    let same_app = before.filter(|before| args.endpoint.as_ref().is_none_or(|url| *url == before.endpoint));
    let uses_app = !args.token && args.access_key.is_none();
    let needs_app =
        uses_app && args.client_id.is_none() && same_app.is_none_or(|app| app.client_id.is_none());
    if !(needs_domain || needs_app) || !std::io::stdin().is_terminal() {
        return Ok(());
    }
    print_message(text::WHERE_DOMAIN_AND_APP);
    if needs_domain {
        args.endpoint = Some(ask(text::ASK_DOMAIN, parse_domain).await?);
    }
    if needs_app {
        args.client_id = Some(ask(text::ASK_APP, |answer| Ok(answer.to_owned())).await?);
    }
    Ok(())
}

/// Asks until an answer is valid. Needs a terminal.
pub(in crate::cli) async fn ask<T>(question: &'static str, parse: impl Fn(&str) -> Result<T>) -> Result<T> {
    let mut wrong = Error::new(ErrorKind::Invalid, question);
    for _ in 0..ANSWERS_MAX {
        let mut terminal = std::io::stderr().lock();
        write!(terminal, "{question}: ").and_then(|()| terminal.flush()).ok();
        drop(terminal);
        match secret::prompt_visible("answer").await.and_then(|answer| parse(answer.expose())) {
            Ok(answer) => return Ok(answer),
            Err(error) if error.kind() == ErrorKind::Invalid => {
                print_message(&error);
                wrong = error;
            }
            Err(error) => return Err(error),
        }
    }
    Err(wrong)
}

/// The id of a domain, its host, or the URL of its API.
pub(in crate::cli) fn parse_domain(text: &str) -> Result<Url> {
    let text = text.trim().trim_end_matches('/');
    if text.contains("://") {
        return endpoint::parse(text);
    }
    if text.contains('.') || text.contains(':') {
        return endpoint::parse(&format!("https://{text}"));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        let detail = format!("{text:?} is no domain: its id has letters and digits, such as bj1");
        return Err(Error::new(ErrorKind::Invalid, detail));
    }
    endpoint::parse(&format!("https://{text}.api.aliyunpds.com"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_is_an_id_a_host_or_a_url() {
        for (text, url) in [
            ("bj1", "https://bj1.api.aliyunpds.com/"),
            (" bj1.api.aliyunpds.com/ ", "https://bj1.api.aliyunpds.com/"),
            ("https://pds.example.com", "https://pds.example.com/"),
            ("http://127.0.0.1:9430", "http://127.0.0.1:9430/"),
        ] {
            assert_eq!(parse_domain(text).unwrap().as_str(), url, "{text}");
        }
        for wrong in ["", "a b", "http://bj1.api.aliyunpds.com", "https://x/y"] {
            assert_eq!(parse_domain(wrong).unwrap_err().kind(), ErrorKind::Invalid, "{wrong}");
        }
    }
}
