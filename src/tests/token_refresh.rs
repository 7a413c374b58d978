//! Token refreshes of one account by several processes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::auth::sign::Authorization;
use crate::auth::{
    AccessToken, Account, AccountHandle, AccountName, AccountStore, Credential, Grant, RefreshBy,
    SecretStorage,
};
use crate::ids::{DriveId, Secret};
use crate::pds::domain::{DriveScope, get_default_drive, list_drives};
use crate::pds::session::Session;
use crate::pds::tokens::{AuthState, RECHECK_INTERVAL, TokenRefresher};
use crate::pds::transport::{Transport, TransportLimits, TrustedPeers};
use crate::server::{FaultAction, FaultRule, Server, ServerConfig};
use url::Url;

const TIMEOUTS: TransportLimits = TransportLimits {
    connect: Duration::from_secs(5),
    call: Duration::from_secs(30),
    idle: Duration::from_secs(30),
    calls_max: 8,
};

/// The app that the server knows.
const CLIENT: &str = "app";
/// The owner's token, which does not expire.
const TOKEN: &str = "owner-token";

/// An embedded server, and a directory for accounts.
struct Rig {
    runtime: tokio::runtime::Runtime,
    server: Option<Server>,
    dir: tempfile::TempDir,
}

impl Rig {
    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.server().addr())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.shutdown());
        }
    }
}

fn rig() -> Rig {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = ServerConfig::new(dir.path().join("data"), Secret::new(TOKEN.to_owned()));
    config.drives = 2;
    config.logins.client_ids = vec![CLIENT.to_owned()];
    config.logins.refresh_token = Some(Secret::new("RT-1".to_owned()));
    let server = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Server::start(listener, config).await.unwrap()
    });
    Rig { runtime, server: Some(server), dir }
}

/// Writes a file that only its owner can read.
fn private_file(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn handle(dir: &Path) -> AccountHandle {
    AccountStore::at(dir, None).account(AccountName::new("shared").unwrap())
}

fn endpoint(rig: &Rig) -> Url {
    rig.endpoint().parse().unwrap()
}

/// An account of this server with these tokens.
fn account(endpoint: Url, refresh: &str, access: AccessToken) -> Account {
    Account {
        endpoint: endpoint.clone(),
        auth_endpoint: endpoint,
        drive_id: Some(DriveId::new("1").unwrap()),
        user: String::new(),
        grant: Grant::Refresh {
            client_id: CLIENT.into(),
            client_secret: None,
            refresh_token: Secret::new(refresh.into()),
            by: RefreshBy::Oauth,
        },
        access: Some(access),
        secret_storage: SecretStorage::File,
    }
}

async fn store(rig: &Rig, endpoint: Url, refresh: &str, access: AccessToken) -> AccountHandle {
    let handle = handle(&rig.path("accounts"));
    handle.lock().await.unwrap().save(&account(endpoint, refresh, access)).await.unwrap();
    handle
}

fn expired() -> AccessToken {
    AccessToken { token: Secret::new("expired".into()), expires_at_s: Some(1) }
}

/// The token of the owner, which does not expire.
fn valid() -> AccessToken {
    AccessToken { token: Secret::new(TOKEN.into()), expires_at_s: None }
}

/// Stores an account whose access token has expired.
async fn store_expired(rig: &Rig, refresh: &str) -> AccountHandle {
    store(rig, endpoint(rig), refresh, expired()).await
}

async fn stored_refresh_token(handle: &AccountHandle) -> String {
    match handle.load().await.unwrap().grant {
        Grant::Refresh { refresh_token, .. } => refresh_token.expose().clone(),
        other => panic!("{other:?}"),
    }
}

fn token_refreshes(rig: &Rig) -> u64 {
    rig.server().stats().count("oauth/token")
}

fn session(rig: &Rig, handle: &AccountHandle) -> Session {
    Session::new(&endpoint(rig), Credential::Account(handle.clone()), TIMEOUTS, TrustedPeers::default())
        .unwrap()
}

#[test]
fn mounts_share_one_token_refresh() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_expired(&rig, "RT-1").await;
        // Each session stands for a mount; they share only the account file.
        let sessions = [(); 3].map(|()| session(&rig, &handle));
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..30 {
            let session = sessions[n % sessions.len()].clone();
            calls
                .spawn(async move { list_drives(&session, DriveScope::Mine).await.map(|found| found.len()) });
        }
        while let Some(done) = calls.join_next().await {
            assert_eq!(done.unwrap().unwrap(), 2);
        }
        assert_eq!(rig.server().stats().count("oauth/token"), 1, "more than one token refresh");
        for session in &sessions {
            assert_eq!(*session.auth_state().borrow(), AuthState::Valid);
        }
    });
}

#[test]
fn revoked_login_is_reported_and_new_one_found() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_expired(&rig, "never-issued").await;
        let session = session(&rig, &handle);
        let error = list_drives(&session, DriveScope::Mine).await.unwrap_err().to_string();
        assert!(error.contains("run pdsfs login shared"), "{error}");
        let mut state = session.auth_state();
        assert!(matches!(&*state.borrow(), AuthState::Revoked { reason, .. } if *reason == error));
        let asked = rig.server().stats().count("oauth/token");
        list_drives(&session, DriveScope::Mine).await.unwrap_err();
        assert_eq!(rig.server().stats().count("oauth/token"), asked, "a revoked login is refreshed again");
        store_expired(&rig, "RT-1").await;
        let patience = Duration::from_secs(30);
        let found = state.wait_for(|state| *state == AuthState::Valid);
        tokio::time::timeout(patience, found).await.expect("the new login was not found").unwrap();
        list_drives(&session, DriveScope::Mine).await.unwrap();
    });
}

#[test]
fn rotated_token_is_stored_before_use() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_expired(&rig, "RT-1").await;
        // The first call with the new token arrives and is not answered yet.
        let faults = rig.server().faults();
        faults.add(FaultRule::times("drive/get_default_drive", 1, FaultAction::Stall));
        let session = session(&rig, &handle);
        let call = tokio::spawn(async move { get_default_drive(&session, DriveScope::Mine).await });
        faults.wait_for_hits(1).await;
        assert_ne!(stored_refresh_token(&handle).await, "RT-1");
        let stored = handle.load().await.unwrap().access.unwrap();
        assert!(stored.token.expose() != "expired" && stored.expires_at_s.unwrap() > 1);
        faults.clear();
        call.await.unwrap().unwrap();
        // Another process continues with the stored token.
        list_drives(&self::session(&rig, &handle), DriveScope::Mine).await.unwrap();
        assert_eq!(token_refreshes(&rig), 1);
    });
}

#[test]
fn token_of_cancelled_caller_is_stored() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_expired(&rig, "RT-1").await;
        let session = session(&rig, &handle);
        let faults = rig.server().faults();
        faults.add(FaultRule::times("oauth/token", 1, FaultAction::Stall));
        let caller = tokio::spawn({
            let session = session.clone();
            async move { list_drives(&session, DriveScope::Mine).await.map(drop) }
        });
        faults.wait_for_hits(1).await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        faults.clear();
        // This call runs after the refresh in progress.
        session.reload_credentials().await.unwrap();
        assert_ne!(stored_refresh_token(&handle).await, "RT-1", "the rotated token is lost");
        list_drives(&session, DriveScope::Mine).await.unwrap();
        assert_eq!(token_refreshes(&rig), 1);
    });
}

/// The service issues tokens and accepts none: each refresh stores a token, and that is not a new login.
#[test]
fn login_with_refused_new_tokens_stays_revoked() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_expired(&rig, "RT-1").await;
        let refused = FaultAction::status(401, "AccessTokenInvalid");
        rig.server().faults().add(FaultRule::new("drive/list_my_drives", refused));
        let session = session(&rig, &handle);
        list_drives(&session, DriveScope::Mine).await.unwrap_err();
        let mut state = session.auth_state();
        assert_ne!(*state.borrow(), AuthState::Valid);
        let (asked, several_checks) = (token_refreshes(&rig), 3 * RECHECK_INTERVAL);
        let came_back =
            tokio::time::timeout(several_checks, state.wait_for(|state| *state == AuthState::Valid));
        assert!(came_back.await.is_err(), "its own refresh counts as a new login");
        assert_eq!(token_refreshes(&rig), asked);
        // A token stored by another process is a new login.
        rig.server().faults().clear();
        store(&rig, endpoint(&rig), "other", valid()).await;
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, state.wait_for(|state| *state == AuthState::Valid))
            .await
            .unwrap()
            .unwrap();
        list_drives(&session, DriveScope::Mine).await.unwrap();
    });
}

#[test]
fn failed_token_store_is_retried() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_expired(&rig, "RT-1").await;
        let session = session(&rig, &handle);
        let faults = rig.server().faults();
        faults.add(FaultRule::times("oauth/token", 1, FaultAction::Stall));
        let asking = tokio::spawn({
            let session = session.clone();
            async move { list_drives(&session, DriveScope::Mine).await.map(drop) }
        });
        faults.wait_for_hits(1).await;
        let [dir, away] = ["accounts", "away"].map(|name| rig.path(name));
        std::fs::rename(&dir, &away).unwrap();
        faults.clear();
        asking.await.unwrap().unwrap();
        std::fs::rename(&away, &dir).unwrap();
        assert_eq!(stored_refresh_token(&handle).await, "RT-1");
        session.store_credentials().await;
        assert_ne!(stored_refresh_token(&handle).await, "RT-1");
        assert_eq!(token_refreshes(&rig), 1);
        list_drives(&self::session(&rig, &handle), DriveScope::Mine).await.unwrap();
    });
}

#[test]
fn waiters_share_a_refresh_failure() {
    let rig = rig();
    rig.runtime.block_on(async {
        let session = session(&rig, &store_expired(&rig, "RT-1").await);
        let failed = FaultAction::status(500, "InternalError");
        // Long enough for all calls to arrive.
        rig.server().faults().add(FaultRule::new("oauth/token", FaultAction::Delay { ms: 1000 }));
        rig.server().faults().add(FaultRule::new("oauth/token", failed));
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let session = session.clone();
            calls.spawn(async move { get_default_drive(&session, DriveScope::Mine).await });
        }
        while let Some(done) = calls.join_next().await {
            let error = done.unwrap().unwrap_err();
            assert_eq!(error.to_string(), "cannot get an access token: the drive answers 500");
            assert!(error.detail().unwrap().contains("500 InternalError"), "{error:?}");
        }
        assert_eq!(token_refreshes(&rig), 1);
        rig.server().faults().clear();
        list_drives(&session, DriveScope::Mine).await.unwrap();
    });
}

#[test]
fn early_refused_refresh_keeps_the_token() {
    let rig = rig();
    rig.runtime.block_on(async {
        let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let access = AccessToken { token: Secret::new(TOKEN.to_owned()), expires_at_s: Some(now_s + 3600) };
        let token = Authorization::Bearer(access.token.clone());
        let handle = store(&rig, endpoint(&rig), "never-issued", access).await;
        let source = TokenRefresher::new(Credential::Account(handle), &endpoint(&rig)).unwrap();
        let (source, transport) =
            (Arc::new(source), Transport::new(TIMEOUTS, &endpoint(&rig), TrustedPeers::default()).unwrap());
        assert_eq!(source.authorization(&transport).await.unwrap(), token);
        source.refresh_early(&transport).await;
        assert_eq!(token_refreshes(&rig), 1, "one refresh is due");
        assert_eq!(*source.state().borrow(), AuthState::Valid);
        assert_eq!(source.authorization(&transport).await.unwrap(), token);
        // If the drive refuses the token too, the login has ended.
        source.refresh(Some(&token), "the service rejects it", &transport).await.unwrap_err();
        assert!(source.is_revoked());
        assert_eq!(token_refreshes(&rig), 2);
    });
}

#[test]
fn stale_answer_does_not_revive_revoked_login() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_expired(&rig, "RT-1").await;
        list_drives(&session(&rig, &handle), DriveScope::Mine).await.unwrap();
        let access = handle.load().await.unwrap().access.unwrap();
        let session = session(&rig, &store(&rig, endpoint(&rig), "never-issued", access).await);
        rig.server().faults().add(FaultRule::new("drive/get_default_drive", FaultAction::Stall));
        let early = tokio::spawn({
            let session = session.clone();
            async move { get_default_drive(&session, DriveScope::Mine).await }
        });
        rig.server().faults().wait_for_hits(1).await;
        rig.server().revoke_all_tokens().await.unwrap();
        list_drives(&session, DriveScope::Mine).await.unwrap_err();
        assert!(matches!(*session.auth_state().borrow(), AuthState::Revoked { .. }));
        rig.server().faults().clear();
        early.await.unwrap().unwrap();
        assert!(
            matches!(*session.auth_state().borrow(), AuthState::Revoked { .. }),
            "a stale answer revived the login"
        );
    });
}

#[test]
fn newer_stored_token_is_used_after_refusal() {
    let rig = rig();
    rig.runtime.block_on(async {
        let path = rig.path("token.json");
        let text = |refresh: &str| {
            format!(r#"{{"access_token":"expired","refresh_token":"{refresh}","app_id":"{CLIENT}"}}"#)
        };
        private_file(&path, &text("spent"));
        let session =
            Session::new(&endpoint(&rig), Credential::File(path.clone()), TIMEOUTS, TrustedPeers::default())
                .unwrap();
        rig.server().faults().add(FaultRule::times("account/token", 1, FaultAction::Stall));
        let call = tokio::spawn(async move { list_drives(&session, DriveScope::Mine).await.map(drop) });
        rig.server().faults().wait_for_hits(1).await;
        // A script replaces the file without taking our lock.
        private_file(&path, &text("RT-1"));
        rig.server().faults().clear();
        call.await.unwrap().unwrap();
        let stored = std::fs::read_to_string(&path).unwrap();
        assert!(!stored.contains("RT-1") && !stored.contains("spent"), "the new tokens are not stored");
    });
}

/// Any user who can read a directory can lock it.
#[test]
fn locked_directory_delays_no_token_refresh() {
    let rig = rig();
    rig.runtime.block_on(async {
        let path = rig.path("token.json");
        private_file(
            &path,
            &format!(r#"{{"access_token":"expired","refresh_token":"RT-1","app_id":"{CLIENT}"}}"#),
        );
        let directory = std::fs::File::open(path.parent().unwrap()).unwrap();
        directory.try_lock().unwrap();
        let session =
            Session::new(&endpoint(&rig), Credential::File(path.clone()), TIMEOUTS, TrustedPeers::default())
                .unwrap();
        list_drives(&session, DriveScope::Mine).await.unwrap();
        let lock = path.with_file_name(".token.json.lock");
        assert_eq!(std::fs::metadata(lock).unwrap().permissions().mode() & 0o777, 0o600);
    });
}

#[test]
fn token_stays_with_its_endpoint() {
    let rig = rig();
    rig.runtime.block_on(async {
        let session = session(&rig, &store_expired(&rig, "RT-1").await);
        // A login to another endpoint, under the same name.
        let elsewhere: Url = "http://127.0.0.1:9".parse().unwrap();
        store(&rig, elsewhere.clone(), "RT-1", expired()).await;
        let error = list_drives(&session, DriveScope::Mine).await.unwrap_err().to_string();
        for part in [elsewhere.as_str(), "pdsfs login shared", &rig.endpoint()] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(token_refreshes(&rig), 0, "the refresh token was sent to the wrong endpoint");
        store_expired(&rig, "RT-1").await;
        let mut state = session.auth_state();
        let found = state.wait_for(|state| *state == AuthState::Valid);
        tokio::time::timeout(Duration::from_secs(30), found).await.unwrap().unwrap();
        list_drives(&session, DriveScope::Mine).await.unwrap();
    });
}
