//! The login methods. Each ends with a grant that an account stores.

use std::io::IsTerminal as _;
use std::time::Duration;

use url::Url;

use super::arguments::{LoginArgs, RefreshCall, invalid};
use super::loopback::{Loopback, redirect_uri};
use super::open_browser::open_browser;
use super::page::Page;
use super::{secret, text};
use crate::auth::browser_login::BrowserLogin;
use crate::auth::sign::AccessKey;
use crate::auth::{
    AccessToken, AccountHandle, AccountSummary, Credential, Grant, IssuedToken, RefreshBy, SubjectKind,
    endpoint,
};
use crate::cli::output::print_message;
use crate::config::secret_variables::ACCESS_KEY_VARIABLE;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DriveId, Secret};
use crate::pds::tokens::{self, AuthorizationCode, TokenRequestGuard};
use crate::pds::transport::{Transport, TransportLimits, TrustedPeers};

/// For one attempt of a call while the user waits.
pub(in crate::cli) const TIMEOUTS: TransportLimits = TransportLimits {
    connect: Duration::from_secs(10),
    call: Duration::from_secs(30),
    idle: Duration::from_secs(30),
    calls_max: 8,
};

/// The service and the app of a login.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) endpoint: Url,
    pub(super) auth_endpoint: Url,
    client_id: Option<String>,
    client_secret: Option<Secret<String>>,
    /// The user of the account that the login replaces.
    user_before: Option<String>,
    pub(super) peers: TrustedPeers,
}

/// The result of a login method.
#[derive(Debug)]
pub(super) struct NewLogin {
    pub(super) grant: Grant,
    pub(super) access: Option<AccessToken>,
    pub(super) default_drive_id: Option<DriveId>,
    pub(super) user: String,
    /// Held until the token is stored: the service issues it once, so the program must not end before.
    pub(super) unstored_token: Option<TokenRequestGuard>,
}

impl Login {
    /// From the arguments, with defaults from the stored account.
    pub(super) async fn new(
        args: &LoginArgs,
        before: Option<&AccountSummary>,
        handle: &AccountHandle,
    ) -> Result<Self> {
        let endpoint = args.endpoint.clone().or_else(|| before.map(|before| before.endpoint.clone()));
        let endpoint = endpoint.ok_or_else(|| {
            invalid(
                "no endpoint: name the domain with --endpoint, such as https://bj1.api.aliyunpds.com, and \
                 for a browser login the app with --client-id",
            )
        })?;
        let user_before = before.map(|before| before.user.clone()).filter(|user| !user.is_empty());
        // Stored secrets are only sent to the endpoint that they were stored for.
        let before = before.filter(|before| before.endpoint == endpoint);
        let auth_endpoint = args.auth_endpoint.clone();
        let auth_endpoint = auth_endpoint
            .or_else(|| before.map(|before| before.auth_endpoint.clone()))
            .unwrap_or_else(|| endpoint.clone());
        let app = before.filter(|before| before.auth_endpoint == auth_endpoint);
        let old_id = app.and_then(|app| app.client_id.clone());
        let is_same_app = args.client_id.is_none() || args.client_id == old_id;
        let client_secret = match &args.client_secret_file {
            Some(path) => Some(secret::read_private_text(path, "--client-secret-file")?),
            // Without a stored app there is no secret, so the keyring is not opened.
            None if old_id.is_some() && is_same_app => old_secret(handle).await,
            None => None,
        };
        let (client_id, peers) = (args.client_id.clone().or(old_id), args.ca_file.read()?);
        Ok(Self { endpoint, auth_endpoint, client_id, client_secret, user_before, peers })
    }

    fn client_id(&self) -> Result<&str> {
        let advice = "no app: name it with --client-id (the PDS console shows the id)";
        self.client_id.as_deref().ok_or_else(|| invalid(advice))
    }

    fn replaces_user(&self, user: &str) -> bool {
        self.user_before.as_deref().is_some_and(|before| before != user)
    }

    fn transport(&self) -> Result<Transport> {
        Transport::new(TIMEOUTS, &self.auth_endpoint, self.peers.clone())
    }
}

/// The stored client secret of the account's app.
async fn old_secret(handle: &AccountHandle) -> Option<Secret<String>> {
    match handle.load().await.ok()?.grant {
        Grant::Refresh { client_secret, .. } => client_secret,
        _ => None,
    }
}

impl NewLogin {
    fn new(grant: Grant, granted: IssuedToken, guard: TokenRequestGuard) -> Self {
        let IssuedToken { access, default_drive_id, user, .. } = granted;
        Self { grant, access: Some(access), default_drive_id, user, unstored_token: Some(guard) }
    }

    fn without_request(grant: Grant, access: Option<AccessToken>, user: String) -> Self {
        Self { grant, access, default_drive_id: None, user, unstored_token: None }
    }

    /// For the calls that check the login.
    pub(super) fn credential(&self) -> Credential {
        match (&self.grant, &self.access) {
            (Grant::AccessKey { key, .. }, _) => Credential::Key(key.clone()),
            (_, Some(access)) => Credential::Token(access.token.clone()),
            // Not reached: every other method has an access token.
            (_, None) => Credential::Token(Secret::new(String::new())),
        }
    }
}

/// Runs the login method that the arguments select.
pub(super) async fn obtain(args: &LoginArgs, login: &Login) -> Result<NewLogin> {
    if args.token {
        let token = secret::prompt_hidden("access token").await?;
        crate::auth::check_token(token.expose())?;
        let access = AccessToken { token, expires_at_s: None };
        return Ok(NewLogin::without_request(Grant::Fixed, Some(access), String::new()));
    }
    if let Some(call) = args.refresh_token {
        return refresh(login, call).await;
    }
    if let Some(path) = &args.jwt_key {
        return service_app(args, login, path).await;
    }
    if let Some(id) = &args.access_key {
        let secret = secret::from_env_or_prompt(ACCESS_KEY_VARIABLE, "access key secret").await?;
        let security_token =
            if args.security_token { Some(secret::prompt_hidden("security token").await?) } else { None };
        let key = AccessKey { id: id.clone(), secret, security_token };
        let grant = Grant::AccessKey { key, user_id: args.user_id.clone() };
        return Ok(NewLogin::without_request(grant, None, format!("key {id}")));
    }
    browser(args, login).await
}

async fn refresh(login: &Login, call: RefreshCall) -> Result<NewLogin> {
    let client_id = login.client_id()?.to_owned();
    let refresh_token = secret::prompt_hidden("refresh token").await?;
    let by = match call {
        RefreshCall::Oauth => RefreshBy::Oauth,
        RefreshCall::Account => RefreshBy::Account,
    };
    let grant = Grant::Refresh { client_id, client_secret: login.client_secret.clone(), refresh_token, by };
    request_token(login, grant).await
}

async fn service_app(args: &LoginArgs, login: &Login, path: &std::path::Path) -> Result<NewLogin> {
    let key_pem = secret::read_private_text(path, "--jwt-key")?;
    crate::auth::jwt::check_key(key_pem.expose())
        .map_err(|e| e.context(format!("--jwt-key {}", path.display())))?;
    let domain_id = args.domain_id.as_deref().or_else(|| endpoint::domain_id(&login.endpoint));
    let domain_id =
        domain_id.ok_or_else(|| invalid("no domain: name the domain of the service app with --domain-id"))?;
    let (subject, subject_kind) = match &args.user_id {
        Some(user) => (user.clone(), SubjectKind::User),
        None => (domain_id.to_owned(), SubjectKind::Service),
    };
    let client_id = login.client_id()?.to_owned();
    let domain_id = domain_id.to_owned();
    request_token(login, Grant::ServiceApp { client_id, subject, subject_kind, domain_id, key_pem }).await
}

async fn request_token(login: &Login, mut grant: Grant) -> Result<NewLogin> {
    let guard = TokenRequestGuard::begin();
    let granted = tokens::request_token(&grant, Some(&login.auth_endpoint), &login.transport()?).await;
    let granted = granted.map_err(Error::from)?;
    let mut granted = granted.ok_or_else(|| invalid("this login method requests no token"))?;
    if let (Grant::Refresh { refresh_token, .. }, Some(rotated)) = (&mut grant, granted.refresh_token.take())
    {
        *refresh_token = rotated;
    }
    Ok(NewLogin::new(grant, granted, guard))
}

async fn browser(args: &LoginArgs, login: &Login) -> Result<NewLogin> {
    let client_id = login.client_id()?;
    let begin = |redirect_uri: &str| {
        BrowserLogin::new(&login.auth_endpoint, client_id, redirect_uri, &args.login_type)
    };
    let (attempt, code, waiting) = if args.paste {
        let attempt = begin(&redirect_uri(args.port))?;
        print_message(text::OPEN_ANYWHERE);
        print_message(format_args!("  {}", attempt.url));
        print_message(text::PASTE);
        let pasted = secret::prompt_visible("URL").await?;
        let code = attempt.code_from_paste(pasted.expose())?;
        (attempt, code, None)
    } else {
        let loopback = Loopback::open(args.port).await?;
        let attempt = begin(&loopback.redirect_uri())?;
        print_message(text::OPEN_ON_THIS_MACHINE);
        print_message(format_args!("  {}", attempt.url));
        let browser = if args.no_browser { None } else { open_browser(&attempt.url) };
        let hint = if browser.is_some() { text::BROWSER_STARTED } else { text::NO_BROWSER_STARTED };
        print_message(hint);
        print_message(text::WAITING);
        let (code, waiting) = loopback.wait(&attempt, args.wait).await?;
        drop(browser);
        (attempt, code, Some(waiting))
    };
    let answer = AuthorizationCode {
        client_id: client_id.to_owned(),
        client_secret: login.client_secret.clone(),
        code,
        redirect_uri: attempt.redirect_uri.clone(),
        verifier: attempt.verifier.clone(),
    };
    let guard = TokenRequestGuard::begin();
    let granted = tokens::redeem_code(&answer, &login.auth_endpoint, &login.transport()?).await;
    if let Some(browser) = waiting {
        let page = granted.as_ref().map_or(Page::Failed, |granted| Page::LoggedIn(granted.user.clone()));
        browser.show(page).await;
    }
    let mut granted = granted.map_err(|error| Error::from(error).context("the service refused the code"))?;
    let guard = if login.replaces_user(&granted.user) && !args.replace {
        // A login that is not wanted need not be stored.
        drop(guard);
        confirm_user(&args.name, login, &granted.user).await?;
        TokenRequestGuard::begin()
    } else {
        guard
    };
    let Some(refresh_token) = granted.refresh_token.take() else {
        print_message(
            "warning: the service issued no refresh token: log in again when the access token expires",
        );
        return Ok(NewLogin::new(Grant::Fixed, granted, guard));
    };
    let AuthorizationCode { client_id, client_secret, .. } = answer;
    let grant = Grant::Refresh { client_id, client_secret, refresh_token, by: RefreshBy::Oauth };
    Ok(NewLogin::new(grant, granted, guard))
}

/// A link or page that another person has prepared could log in that person. So the user agrees before the account of
/// one user becomes that of another.
async fn confirm_user(name: &str, login: &Login, user: &str) -> Result<()> {
    let before = login.user_before.as_deref().unwrap_or_default();
    let user = if user.is_empty() { "a user without a name" } else { user };
    let difference = format!("account {name} belongs to {before}, and this login is that of {user}");
    if std::io::stdin().is_terminal() {
        print_message(format_args!("{difference}. To replace the account, type yes:"));
        if secret::prompt_visible("answer").await?.expose() == "yes" {
            return Ok(());
        }
    }
    let detail = format!(
        "{difference}: nothing was stored (add --replace to replace the account, or name another account)"
    );
    Err(Error::new(ErrorKind::Denied, detail))
}
