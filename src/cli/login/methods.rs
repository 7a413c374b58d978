//! The ways to a login, each up to the grant that an account keeps.

use std::process::Stdio;

use url::Url;

use super::loopback::{Loopback, redirect_uri};
use super::{LoginArgs, RefreshCall, TIMEOUTS, invalid, secret};
use crate::account::{AccessToken, Grant, Handle, Outline, RefreshBy, SubjectKind};
use crate::cli::say;
use crate::error::{Error, Result};
use crate::ids::{DriveId, Secret};
use crate::pds::auth::oauth::Attempt;
use crate::pds::auth::{self, CodeAnswer, Credential, Granted, UnderWay};
use crate::pds::endpoint;
use crate::pds::sign::AccessKey;
use crate::pds::transport::Transport;

/// Where the secret of an access key may be.
const SECRET_VARIABLE: &str = "PDSFS_ACCESS_KEY_SECRET";

/// Where and as which app.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) endpoint: Url,
    pub(super) auth_endpoint: Url,
    client_id: Option<String>,
    client_secret: Option<Secret<String>>,
}

/// What a way has led to.
#[derive(Debug)]
pub(super) struct Obtained {
    pub(super) grant: Grant,
    pub(super) access: Option<AccessToken>,
    pub(super) default_drive_id: Option<DriveId>,
    pub(super) user: String,
    /// What the service gives once was asked for: until it is stored, the program must not end.
    pub(super) not_yet_stored: Option<UnderWay>,
}

impl Login {
    /// From the arguments, and from what the account was before.
    pub(super) async fn new(args: &LoginArgs, before: Option<&Outline>, handle: &Handle) -> Result<Self> {
        let endpoint = args.endpoint.clone().or_else(|| before.map(|before| before.endpoint.clone()));
        let endpoint = endpoint.ok_or_else(|| {
            invalid("name the domain with --endpoint, such as https://bj1.api.aliyunpds.com")
        })?;
        // Secrets of an app go where they were given to, and nowhere else.
        let before = before.filter(|before| before.endpoint == endpoint);
        let auth_endpoint = args.auth_endpoint.clone();
        let auth_endpoint = auth_endpoint
            .or_else(|| before.map(|before| before.auth_endpoint.clone()))
            .unwrap_or_else(|| endpoint.clone());
        let app = before.filter(|before| before.auth_endpoint == auth_endpoint);
        let old_id = app.and_then(|app| app.client_id.clone());
        let is_same_app = args.client_id.is_none() || args.client_id == old_id;
        let client_secret = match &args.client_secret_file {
            Some(path) => Some(secret::in_file(path, "--client-secret-file")?),
            // The keyring need not be asked where it has no such secret.
            None if old_id.is_some() && is_same_app => old_secret(handle).await,
            None => None,
        };
        Ok(Self { endpoint, auth_endpoint, client_id: args.client_id.clone().or(old_id), client_secret })
    }

    fn client_id(&self) -> Result<&str> {
        let advice = "name the app with --client-id: its id is in the console of the service";
        self.client_id.as_deref().ok_or_else(|| invalid(advice))
    }

    fn transport(&self) -> Result<Transport> {
        Transport::new(TIMEOUTS, endpoint::is_loopback(&self.auth_endpoint))
    }
}

/// The secret of the app that the account is of.
async fn old_secret(handle: &Handle) -> Option<Secret<String>> {
    match handle.load().await.ok()?.grant {
        Grant::Refresh { client_secret, .. } => client_secret,
        _ => None,
    }
}

impl Obtained {
    fn new(grant: Grant, granted: Granted, asked: UnderWay) -> Self {
        let Granted { access, default_drive_id, user, .. } = granted;
        Self { grant, access: Some(access), default_drive_id, user, not_yet_stored: Some(asked) }
    }

    fn without_asking(grant: Grant, access: Option<AccessToken>, user: String) -> Self {
        Self { grant, access, default_drive_id: None, user, not_yet_stored: None }
    }

    /// For the calls that try it out.
    pub(super) fn credential(&self) -> Credential {
        match (&self.grant, &self.access) {
            (Grant::AccessKey { key, .. }, _) => Credential::Key(key.clone()),
            (_, Some(access)) => Credential::Token(access.token.clone()),
            // Every other way has asked for a token already.
            (_, None) => Credential::Token(Secret::new(String::new())),
        }
    }
}

/// Goes the way that the arguments name.
pub(super) async fn obtain(args: &LoginArgs, login: &Login) -> Result<Obtained> {
    if args.token {
        let token = secret::ask("access token").await?;
        auth::check_token(token.expose())?;
        let access = AccessToken { token, expires_at_s: None };
        return Ok(Obtained::without_asking(Grant::Fixed, Some(access), String::new()));
    }
    if let Some(call) = args.refresh_token {
        return refresh(login, call).await;
    }
    if let Some(path) = &args.jwt_key {
        return service_app(args, login, path).await;
    }
    if let Some(id) = &args.access_key {
        let secret = secret::ask_unless_set(SECRET_VARIABLE, "access key secret").await?;
        let security_token =
            if args.security_token { Some(secret::ask("security token").await?) } else { None };
        let key = AccessKey { id: id.clone(), secret, security_token };
        let grant = Grant::AccessKey { key, user_id: args.user_id.clone() };
        return Ok(Obtained::without_asking(grant, None, format!("key {id}")));
    }
    browser(args, login).await
}

async fn refresh(login: &Login, call: RefreshCall) -> Result<Obtained> {
    let client_id = login.client_id()?.to_owned();
    let refresh_token = secret::ask("refresh token").await?;
    let by = match call {
        RefreshCall::Oauth => RefreshBy::Oauth,
        RefreshCall::Account => RefreshBy::Account,
    };
    let grant = Grant::Refresh { client_id, client_secret: login.client_secret.clone(), refresh_token, by };
    by_grant(login, grant).await
}

async fn service_app(args: &LoginArgs, login: &Login, path: &std::path::Path) -> Result<Obtained> {
    let key_pem = secret::in_file(path, "--jwt-key")?;
    auth::check_key(key_pem.expose()).map_err(|e| e.context(format!("--jwt-key {}", path.display())))?;
    let domain_id = args.domain_id.as_deref().or_else(|| endpoint::domain_id(&login.endpoint));
    let domain_id =
        domain_id.ok_or_else(|| invalid("name the domain of the service app with --domain-id"))?;
    let (subject, subject_kind) = match &args.user_id {
        Some(user) => (user.clone(), SubjectKind::User),
        None => (domain_id.to_owned(), SubjectKind::Service),
    };
    let client_id = login.client_id()?.to_owned();
    let domain_id = domain_id.to_owned();
    by_grant(login, Grant::ServiceApp { client_id, subject, subject_kind, domain_id, key_pem }).await
}

async fn by_grant(login: &Login, mut grant: Grant) -> Result<Obtained> {
    let asked = UnderWay::begin();
    let granted = auth::by_grant(&grant, Some(&login.auth_endpoint), &login.transport()?).await;
    let granted = granted.map_err(Error::from)?;
    let mut granted = granted.ok_or_else(|| invalid("this way gives no token"))?;
    if let (Grant::Refresh { refresh_token, .. }, Some(rotated)) = (&mut grant, granted.refresh_token.take())
    {
        *refresh_token = rotated;
    }
    Ok(Obtained::new(grant, granted, asked))
}

async fn browser(args: &LoginArgs, login: &Login) -> Result<Obtained> {
    let client_id = login.client_id()?;
    let begin =
        |redirect_uri: &str| Attempt::new(&login.auth_endpoint, client_id, redirect_uri, &args.login_type);
    let (attempt, code) = if args.paste {
        let attempt = begin(&redirect_uri(args.port))?;
        say("Open this page in a browser, on any machine:");
        say(format_args!("  {}", attempt.url));
        say("Afterwards the browser shows an address that it cannot reach. Copy it whole and paste it here:");
        let pasted = secret::ask_plainly("address").await?;
        let code = attempt.pasted(pasted.expose())?;
        (attempt, code)
    } else {
        let loopback = Loopback::open(args.port).await?;
        let attempt = begin(&loopback.redirect_uri())?;
        say("Allow pdsfs in a browser on this machine; the page is:");
        say(format_args!("  {}", attempt.url));
        if !args.no_browser {
            open_browser(&attempt.url);
        }
        let code = loopback.wait(&attempt, args.wait).await?;
        (attempt, code)
    };
    let answer = CodeAnswer {
        client_id: client_id.to_owned(),
        client_secret: login.client_secret.clone(),
        code,
        redirect_uri: attempt.redirect_uri.clone(),
        verifier: attempt.verifier.clone(),
    };
    let asked = UnderWay::begin();
    let granted = auth::by_code(&answer, &login.auth_endpoint, &login.transport()?).await;
    let mut granted = granted.map_err(|trouble| Error::from(trouble).context("the code was not taken"))?;
    let Some(refresh_token) = granted.refresh_token.take() else {
        say("warning: the service gave no refresh token; log in again when the access token ends");
        return Ok(Obtained::new(Grant::Fixed, granted, asked));
    };
    let CodeAnswer { client_id, client_secret, .. } = answer;
    let grant = Grant::Refresh { client_id, client_secret, refresh_token, by: RefreshBy::Oauth };
    Ok(Obtained::new(grant, granted, asked))
}

/// Where there is no browser to start, the printed address does as well.
fn open_browser(url: &Url) {
    let mut command = tokio::process::Command::new("xdg-open");
    command.arg(url.as_str()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        Ok(mut child) => {
            // It ends by itself; somebody has to ask how.
            tokio::spawn(async move { child.wait().await });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::debug!(%error, "xdg-open cannot be started"),
    }
}
