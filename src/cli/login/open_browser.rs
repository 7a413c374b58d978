//! Starts the browser of the user on the login page.
//!
//! All users of the machine can read arguments, and the URL is enough to answer the login. So the browser gets a
//! private file that redirects to the page.

use std::io::Write as _;
use std::process::Stdio;

use url::Url;

use crate::control::socket_dirs::SocketDirs;
use crate::error::{Error, Result};

/// Variables with this prefix may contain secrets.
const OWN_VARIABLES: &str = "PDSFS_";

/// A browser that was started on the login page.
#[derive(Debug)]
pub(super) struct StartedBrowser {
    /// Must exist until the login ends.
    _page: RedirectPage,
}

/// A file that redirects to the login page. It is removed on drop.
#[derive(Debug)]
struct RedirectPage(tempfile::TempPath);

impl RedirectPage {
    /// In a directory that only this user can enter.
    fn create(url: &Url) -> Result<Self> {
        let dir = SocketDirs::of_this_process().prepare()?;
        let file = tempfile::Builder::new().prefix("login-").suffix(".html").tempfile_in(&dir);
        let mut file = file.map_err(|e| Error::from(e).context(dir.display()))?;
        let url = escape(url.as_str());
        let html = format!(
            "<!doctype html><meta charset=\"utf-8\"><title>pdsfs login</title><meta name=\"referrer\" \
             content=\"no-referrer\"><meta http-equiv=\"refresh\" content=\"0; url={url}\"><p><a \
             href=\"{url}\">Continue to the login page</a></p>\n"
        );
        file.write_all(html.as_bytes())?;
        Ok(Self(file.into_temp_path()))
    }
}

/// Starts a browser on the page; `None` if there is none here. A browser that runs as root is a risk, so root gets none.
pub(super) fn open_browser(url: &Url) -> Option<StartedBrowser> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    let page = match RedirectPage::create(url) {
        Ok(page) => page,
        Err(error) => {
            tracing::debug!(%error, "cannot write the page for the browser");
            return None;
        }
    };
    let mut command = tokio::process::Command::new("xdg-open");
    command.arg(&page.0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(OWN_VARIABLES.as_bytes()) {
            command.env_remove(name);
        }
    }
    match command.spawn() {
        Ok(mut child) => {
            // Reaps the process when it exits.
            tokio::spawn(async move { child.wait().await });
            Some(StartedBrowser { _page: page })
        }
        Err(error) => {
            tracing::debug!(%error, "cannot start xdg-open");
            None
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;")
}
