//! Several processes, one account.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pdsfs::account::{AccessToken, Account, AccountName, Grant, Handle, Keep, RefreshBy, Store};
use pdsfs::ids::{DriveId, Secret};
use pdsfs::pds::auth::{AuthState, Credential, LOOK_INTERVAL, TokenSource};
use pdsfs::pds::domain::{Whose, default_drive, drives};
use pdsfs::pds::session::Session;
use pdsfs::pds::sign::Authorization;
use pdsfs::pds::transport::{Timeouts, Transport};
use pdsfs::server::{FaultAction, FaultRule};
use url::Url;

use crate::rig::{CLIENT, Rig, TOKEN, private_file, refusal};

const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(5),
    call: Duration::from_secs(30),
    stall: Duration::from_secs(30),
};

fn rig() -> Rig {
    Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".to_owned())))
}

fn handle(folder: &Path) -> Handle {
    Store::at(folder, None).account(AccountName::new("shared").unwrap())
}

fn endpoint(rig: &Rig) -> Url {
    rig.endpoint().parse().unwrap()
}

/// An account of this place with these tokens.
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
        keep: Keep::File,
    }
}

async fn store(rig: &Rig, endpoint: Url, refresh: &str, access: AccessToken) -> Handle {
    let handle = handle(&rig.path("accounts"));
    handle.lock().await.unwrap().save(&account(endpoint, refresh, access)).await.unwrap();
    handle
}

fn ended() -> AccessToken {
    AccessToken { token: Secret::new("ended".into()), expires_at_s: Some(1) }
}

/// The owner's own token.
fn valid() -> AccessToken {
    AccessToken { token: Secret::new(TOKEN.into()), expires_at_s: None }
}

/// An account whose access token has ended.
async fn store_ended(rig: &Rig, refresh: &str) -> Handle {
    store(rig, endpoint(rig), refresh, ended()).await
}

async fn stored_refresh_token(handle: &Handle) -> String {
    match handle.load().await.unwrap().grant {
        Grant::Refresh { refresh_token, .. } => refresh_token.expose().clone(),
        other => panic!("{other:?}"),
    }
}

fn renewals(rig: &Rig) -> u64 {
    rig.server().stats().count("oauth/token")
}

fn session(rig: &Rig, handle: &Handle) -> Session {
    Session::new(&endpoint(rig), Credential::Account(handle.clone()), TIMEOUTS).unwrap()
}

#[test]
fn a_refresh_token_is_spent_once_by_all_mounts_together() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_ended(&rig, "RT-1").await;
        // Each is what one mount has; they share the file and nothing else.
        let sessions = [(); 3].map(|()| session(&rig, &handle));
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..30 {
            let session = sessions[n % sessions.len()].clone();
            calls.spawn(async move { drives(&session, Whose::Mine).await.map(|found| found.len()) });
        }
        while let Some(done) = calls.join_next().await {
            assert_eq!(done.unwrap().unwrap(), 2);
        }
        assert_eq!(rig.server().stats().count("oauth/token"), 1, "one renewal for everybody");
        for session in &sessions {
            assert_eq!(*session.auth_state().borrow(), AuthState::Fine);
        }
    });
}

#[test]
fn a_dead_login_is_told_and_another_one_is_found() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_ended(&rig, "never-given").await;
        let session = session(&rig, &handle);
        let error = drives(&session, Whose::Mine).await.unwrap_err().to_string();
        assert!(error.contains("run pdsfs login shared"), "{error}");
        let mut state = session.auth_state();
        assert!(matches!(&*state.borrow(), AuthState::Dead { reason, .. } if *reason == error));
        let asked = rig.server().stats().count("oauth/token");
        drives(&session, Whose::Mine).await.unwrap_err();
        assert_eq!(
            rig.server().stats().count("oauth/token"),
            asked,
            "the dead are not asked again and again"
        );
        store_ended(&rig, "RT-1").await;
        let patience = Duration::from_secs(30);
        let found = state.wait_for(|state| *state == AuthState::Fine);
        tokio::time::timeout(patience, found).await.expect("the new login was not found").unwrap();
        drives(&session, Whose::Mine).await.unwrap();
    });
}

#[test]
fn a_rotated_token_is_on_disk_before_it_is_used() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_ended(&rig, "RT-1").await;
        // The first call with the new token arrives, and is not answered yet.
        let faults = rig.server().faults();
        faults.add(FaultRule::times("drive/get_default_drive", 1, FaultAction::Stall));
        let session = session(&rig, &handle);
        let call = tokio::spawn(async move { default_drive(&session, Whose::Mine).await });
        faults.wait_for_hits(1).await;
        assert_ne!(stored_refresh_token(&handle).await, "RT-1");
        let stored = handle.load().await.unwrap().access.unwrap();
        assert!(stored.token.expose() != "ended" && stored.expires_at_s.unwrap() > 1);
        faults.clear();
        call.await.unwrap().unwrap();
        // A process that knows only the disk goes on from there.
        drives(&self::session(&rig, &handle), Whose::Mine).await.unwrap();
        assert_eq!(renewals(&rig), 1);
    });
}

#[test]
fn a_token_that_nobody_waits_for_any_more_is_kept() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_ended(&rig, "RT-1").await;
        let session = session(&rig, &handle);
        let faults = rig.server().faults();
        faults.add(FaultRule::times("oauth/token", 1, FaultAction::Stall));
        let caller = tokio::spawn({
            let session = session.clone();
            async move { drives(&session, Whose::Mine).await.map(drop) }
        });
        faults.wait_for_hits(1).await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        faults.clear();
        // Comes after the renewal that is under way.
        session.reload_credentials().await.unwrap();
        assert_ne!(stored_refresh_token(&handle).await, "RT-1", "the rotated token is lost");
        drives(&session, Whose::Mine).await.unwrap();
        assert_eq!(renewals(&rig), 1);
    });
}

/// A login of which the service gives tokens and takes none: each renewal stores something, and that is no new login.
#[test]
fn a_login_whose_new_tokens_are_refused_stays_dead() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_ended(&rig, "RT-1").await;
        let refused = refusal(401, "AccessTokenInvalid");
        rig.server().faults().add(FaultRule::new("drive/list_my_drives", refused));
        let session = session(&rig, &handle);
        drives(&session, Whose::Mine).await.unwrap_err();
        let mut state = session.auth_state();
        assert_ne!(*state.borrow(), AuthState::Fine);
        let (asked, several_looks) = (renewals(&rig), 3 * LOOK_INTERVAL);
        let came_back =
            tokio::time::timeout(several_looks, state.wait_for(|state| *state == AuthState::Fine));
        assert!(came_back.await.is_err(), "its own renewal is taken for a new login");
        assert_eq!(renewals(&rig), asked);
        // Somebody else's is one.
        rig.server().faults().clear();
        let (_, second) = (store(&rig, endpoint(&rig), "other", valid()).await, Duration::from_secs(30));
        tokio::time::timeout(second, state.wait_for(|state| *state == AuthState::Fine))
            .await
            .unwrap()
            .unwrap();
        drives(&session, Whose::Mine).await.unwrap();
    });
}

#[test]
fn what_could_not_be_stored_is_stored_when_the_disk_takes_it() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_ended(&rig, "RT-1").await;
        let session = session(&rig, &handle);
        let faults = rig.server().faults();
        faults.add(FaultRule::times("oauth/token", 1, FaultAction::Stall));
        let asking = tokio::spawn({
            let session = session.clone();
            async move { drives(&session, Whose::Mine).await.map(drop) }
        });
        faults.wait_for_hits(1).await;
        let [folder, away] = ["accounts", "away"].map(|name| rig.path(name));
        std::fs::rename(&folder, &away).unwrap();
        faults.clear();
        asking.await.unwrap().unwrap();
        std::fs::rename(&away, &folder).unwrap();
        assert_eq!(stored_refresh_token(&handle).await, "RT-1");
        session.store_credentials().await;
        assert_ne!(stored_refresh_token(&handle).await, "RT-1");
        assert_eq!(renewals(&rig), 1);
        drives(&self::session(&rig, &handle), Whose::Mine).await.unwrap();
    });
}

#[test]
fn everybody_who_waits_for_a_renewal_shares_its_failure() {
    let rig = rig();
    rig.runtime.block_on(async {
        let session = session(&rig, &store_ended(&rig, "RT-1").await);
        let failed = FaultAction::Status {
            status: 500,
            code: "InternalError".to_owned(),
            message: String::new(),
            retry_after_s: None,
            x_retry_after_ms: None,
            empty_body: false,
        };
        // Long enough for all of them to come.
        rig.server().faults().add(FaultRule::new("oauth/token", FaultAction::Delay { ms: 1000 }));
        rig.server().faults().add(FaultRule::new("oauth/token", failed));
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let session = session.clone();
            calls.spawn(async move { default_drive(&session, Whose::Mine).await });
        }
        while let Some(done) = calls.join_next().await {
            assert!(done.unwrap().unwrap_err().to_string().contains("InternalError"));
        }
        assert_eq!(renewals(&rig), 1);
        rig.server().faults().clear();
        drives(&session, Whose::Mine).await.unwrap();
    });
}

#[test]
fn a_renewal_that_is_refused_ahead_of_time_leaves_the_token_in_use() {
    let rig = rig();
    rig.runtime.block_on(async {
        let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let access = AccessToken { token: Secret::new(TOKEN.to_owned()), expires_at_s: Some(now_s + 3600) };
        let token = Authorization::Bearer(access.token.clone());
        let handle = store(&rig, endpoint(&rig), "never-given", access).await;
        let source = TokenSource::new(Credential::Account(handle), &endpoint(&rig)).unwrap();
        let (source, transport) = (Arc::new(source), Transport::new(TIMEOUTS, true).unwrap());
        assert_eq!(source.authorization(&transport).await.unwrap(), token);
        source.renew_ahead(&transport).await;
        assert_eq!(renewals(&rig), 1, "it was asked for");
        assert_eq!(*source.state().borrow(), AuthState::Fine);
        assert_eq!(source.authorization(&transport).await.unwrap(), token);
        // Where the drive refuses it too, the login has ended.
        source.renew(Some(&token), "the service refuses it", &transport).await.unwrap_err();
        assert!(source.is_dead());
        assert_eq!(renewals(&rig), 2);
    });
}

#[test]
fn what_was_answered_before_a_login_ended_does_not_bring_it_back() {
    let rig = rig();
    rig.runtime.block_on(async {
        let handle = store_ended(&rig, "RT-1").await;
        drives(&session(&rig, &handle), Whose::Mine).await.unwrap();
        let access = handle.load().await.unwrap().access.unwrap();
        let session = session(&rig, &store(&rig, endpoint(&rig), "never-given", access).await);
        rig.server().faults().add(FaultRule::new("drive/get_default_drive", FaultAction::Stall));
        let early = tokio::spawn({
            let session = session.clone();
            async move { default_drive(&session, Whose::Mine).await }
        });
        rig.server().faults().wait_for_hits(1).await;
        rig.server().revoke_all_tokens().await.unwrap();
        drives(&session, Whose::Mine).await.unwrap_err();
        assert!(matches!(*session.auth_state().borrow(), AuthState::Dead { .. }));
        rig.server().faults().clear();
        early.await.unwrap().unwrap();
        assert!(matches!(*session.auth_state().borrow(), AuthState::Dead { .. }), "it is said to work");
    });
}

#[test]
fn a_token_that_somebody_stores_while_ours_is_refused_is_taken() {
    let rig = rig();
    rig.runtime.block_on(async {
        let path = rig.path("token.json");
        let text = |refresh: &str| {
            format!(r#"{{"access_token":"ended","refresh_token":"{refresh}","app_id":"{CLIENT}"}}"#)
        };
        private_file(&path, &text("spent"), 0o600);
        let session = Session::new(&endpoint(&rig), Credential::File(path.clone()), TIMEOUTS).unwrap();
        rig.server().faults().add(FaultRule::times("account/token", 1, FaultAction::Stall));
        let call = tokio::spawn(async move { drives(&session, Whose::Mine).await.map(drop) });
        rig.server().faults().wait_for_hits(1).await;
        // A script that knows nothing of our lock.
        private_file(&path, &text("RT-1"), 0o600);
        rig.server().faults().clear();
        call.await.unwrap().unwrap();
        let stored = std::fs::read_to_string(&path).unwrap();
        assert!(!stored.contains("RT-1") && !stored.contains("spent"), "what it gave is not stored");
    });
}

#[test]
fn a_token_of_another_endpoint_is_not_sent_here() {
    let rig = rig();
    rig.runtime.block_on(async {
        let session = session(&rig, &store_ended(&rig, "RT-1").await);
        // Somebody logs in elsewhere, under the same name.
        let elsewhere: Url = "http://127.0.0.1:9".parse().unwrap();
        store(&rig, elsewhere.clone(), "RT-1", ended()).await;
        let error = drives(&session, Whose::Mine).await.unwrap_err().to_string();
        for part in [elsewhere.as_str(), "pdsfs login shared", &rig.endpoint()] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(renewals(&rig), 0, "its refresh token was sent here");
        store_ended(&rig, "RT-1").await;
        let mut state = session.auth_state();
        let found = state.wait_for(|state| *state == AuthState::Fine);
        tokio::time::timeout(Duration::from_secs(30), found).await.unwrap().unwrap();
        drives(&session, Whose::Mine).await.unwrap();
    });
}

#[test]
fn a_proxy_does_not_stand_before_a_login_on_this_machine() {
    let rig = rig();
    let (far, near): (Url, Url) = ("https://drive.example".parse().unwrap(), endpoint(&rig));
    rig.runtime.block_on(async {
        let state = Store::at(rig.path("state").join("accounts"), None);
        let handle = state.account(AccountName::new("split").unwrap());
        let account = Account { auth_endpoint: near, ..account(far, "RT-1", ended()) };
        handle.lock().await.unwrap().save(&account).await.unwrap();
    });
    let mut command = rig.pdsfs(&["drives", "split"]);
    for variable in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(variable, "http://127.0.0.1:1");
    }
    for variable in ["NO_PROXY", "no_proxy"] {
        command.env_remove(variable);
    }
    // The drive itself is behind the proxy, where nobody is.
    let mut child = command.spawn().unwrap();
    let renewed = rig.server().wait_until(|stats| stats.count("oauth/token") == 1);
    rig.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), renewed).await }).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}
