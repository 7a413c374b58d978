//! Several processes, one account.

use std::path::Path;
use std::time::Duration;

use pdsfs::account::{AccessToken, Account, AccountName, Grant, Handle, Keep, RefreshBy, Store};
use pdsfs::ids::{DriveId, Secret};
use pdsfs::pds::auth::{AuthState, Credential};
use pdsfs::pds::domain::{Whose, drives};
use pdsfs::pds::session::Session;
use pdsfs::pds::transport::Timeouts;

use crate::rig::{CLIENT, Rig};

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

/// An account whose access token has ended.
async fn store_ended(rig: &Rig, refresh: &str) -> Handle {
    let endpoint: url::Url = rig.endpoint().parse().unwrap();
    let handle = handle(&rig.path("accounts"));
    let account = Account {
        endpoint: endpoint.clone(),
        auth_endpoint: endpoint,
        drive_id: DriveId::new("1").unwrap(),
        user: String::new(),
        grant: Grant::Refresh {
            client_id: CLIENT.into(),
            client_secret: None,
            refresh_token: Secret::new(refresh.into()),
            by: RefreshBy::Oauth,
        },
        access: Some(AccessToken { token: Secret::new("ended".into()), expires_at_s: Some(1) }),
        keep: Keep::File,
    };
    handle.lock().await.unwrap().save(&account).await.unwrap();
    handle
}

fn session(rig: &Rig, handle: &Handle) -> Session {
    let endpoint = rig.endpoint().parse().unwrap();
    Session::new(&endpoint, Credential::Account(handle.clone()), TIMEOUTS).unwrap()
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
        drives(&session(&rig, &handle), Whose::Mine).await.unwrap();
        let stored = handle.load().await.unwrap();
        let Grant::Refresh { refresh_token, .. } = &stored.grant else { panic!("{stored:?}") };
        assert_ne!(refresh_token.expose(), "RT-1");
        assert!(stored.access.unwrap().expires_at_s.unwrap() > 1);
        // A process that knows only the disk goes on from there.
        rig.server().faults().clear();
        drives(&session(&rig, &handle), Whose::Mine).await.unwrap();
        assert_eq!(rig.server().stats().count("oauth/token"), 1);
    });
}
