//! Attributes of several files in one call, and what happens if the service refuses it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use pdsfs::server::{FaultAction, FaultPlan, FaultRule};

use crate::monitoring::status;
use crate::rig::{Rig, wait_until};

/// Two calls of one object in one batch may be in each other's way, or the service refuses the form of a batch.
#[test]
fn refused_calls_of_a_batch_are_sent_alone() {
    let rig = Rig::new();
    let mount = rig.mount();
    for name in ["a", "b"] {
        fs::write(mount.at(name), name).unwrap();
    }
    for (status, code, perm) in [(409, "StateConflict", 0o600), (400, "InvalidParameter.Headers", 0o640)] {
        let refused = FaultAction::Status {
            status,
            code: code.into(),
            message: "not in a batch".into(),
            retry_after_s: None,
            x_retry_after_ms: None,
            empty_body: false,
        };
        rig.server()
            .faults()
            .set(FaultPlan { rules: vec![FaultRule::times("file/put_usertags", 2, refused)] });
        for name in ["a", "b"] {
            fs::set_permissions(mount.at(name), Permissions::from_mode(perm)).unwrap();
        }
        wait_until("both attributes are on the drive", || {
            let is_sent = |name| rig.client().find(name).unwrap().mode_tag() == Some(perm);
            (is_sent("a") && is_sent("b")).then_some(())
        });
        assert_eq!(rig.server().faults().hits(), [2]);
    }
    assert_eq!(status(&mount).failures.len(), 0);
    assert!(mount.log().iter().all(|line| !line.contains("they will be retried")));
    assert_eq!(mount.stop(), 0);
}

#[test]
fn attributes_are_sent_singly_without_batch() {
    let rig = Rig::new();
    let mount = rig.mount();
    for name in ["a", "b"] {
        fs::write(mount.at(name), name).unwrap();
    }
    // None of these answers concerns the files; the last one is a long page of a proxy.
    for (status, code, message) in [(403, "Forbidden", String::new()), (400, "", "x".repeat(100 << 10))] {
        let answer = FaultAction::Status {
            status,
            code: code.into(),
            message,
            retry_after_s: None,
            x_retry_after_ms: None,
            empty_body: false,
        };
        rig.server().faults().add(FaultRule::times("batch", 1, answer));
        let perm = 0o600 + u32::from(status & 7);
        for name in ["a", "b"] {
            fs::set_permissions(mount.at(name), Permissions::from_mode(perm)).unwrap();
        }
        wait_until("both attributes are on the drive", || {
            let is_sent = |name| rig.client().find(name).unwrap().mode_tag() == Some(perm);
            (is_sent("a") && is_sent("b")).then_some(())
        });
    }
    assert_eq!(rig.server().faults().hits(), [1, 1]);
    assert_eq!(mount.stop(), 0);
}
