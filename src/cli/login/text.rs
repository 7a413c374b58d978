//! The sentences of `pdsfs login` and of its page in the browser.

use std::fmt::Display;

pub(super) const PAGE_LANGUAGE: &str = "en";
pub(super) const PAGE_CLOSE: &str = "pdsfs continues in its terminal. You can close this window.";
pub(super) const PAGE_FAILED: &str = "The login failed";
pub(super) const PAGE_PENDING: &str = "The browser has done its part";
pub(super) const PAGE_REFUSED: &str = "This page is not the end of a login";
pub(super) const PAGE_SEE_TERMINAL: &str = "The terminal of pdsfs says more. You can close this window.";
pub(super) const PAGE_NOT_FOUND: &str = "Page not found.";
pub(super) const PAGE_WRONG_METHOD: &str = "Method not allowed.";
pub(super) const PAGE_OTHER_LOGIN: &str =
    "This page belongs to another login. Open the URL that pdsfs printed last.";
pub(super) const PAGE_OTHER_USER: &str =
    "This login belongs to another user of this machine, or the user of this browser is unknown.";

pub(super) fn page_logged_in(user: &str) -> String {
    if user.is_empty() { "You are logged in".to_owned() } else { format!("You are logged in as {user}") }
}

pub(super) const ASK_DOMAIN: &str = "domain: its id, such as bj1, or the URL of its API";
pub(super) const ASK_APP: &str = "app: its id (a native app)";
/// The click path of the public documents of the service.
pub(super) const WHERE_DOMAIN_AND_APP: &str = "pdsfs logs in to a domain of Alibaba Cloud PDS, through an app of that \
    domain. Both ids are in the PDS console: https://pds.console.aliyun.com > Domains > Details of the domain > \
    Applications. The app is one of type Native with the redirect URI http://127.0.0.1:9431/callback. If you are no \
    administrator of the domain, ask one for both.";

pub(super) const OPEN_ON_THIS_MACHINE: &str =
    "Log in and allow pdsfs in a browser on this machine, on this page:";
pub(super) const OPEN_ANYWHERE: &str = "Open this page in a browser, on any machine:";
pub(super) const PASTE: &str = "At the end the browser fails to open a URL that begins with http://127.0.0.1. Paste \
    the whole URL here:";
pub(super) const WAITING: &str = "waiting for the browser; Ctrl-C ends this";
pub(super) const BROWSER_STARTED: &str = "if no browser opens, open the page yourself; if this machine has none, \
    press Ctrl-C and add --paste";
pub(super) const NO_BROWSER_STARTED: &str = "no browser was started: open the page in one on this machine; if it has \
    none, press Ctrl-C and add --paste, which works with a browser on any machine";

pub(super) fn logged_in(account: impl Display, user: &str, endpoint: &str, drive: &str) -> String {
    let user = if user.is_empty() { String::new() } else { format!(" as {user}") };
    format!("account {account}: logged in{user} at {endpoint}, {drive}")
}

pub(super) fn drive(id: &str, name: &str) -> String {
    if name.is_empty() { format!("drive {id}") } else { format!("drive {id} ({name})") }
}

pub(super) fn next_step(account: impl Display, directory: &str) -> String {
    format!("mount it with: pdsfs mount {account} {directory}")
}
