//! Progress of uploads through a mount: the figures of a slow line.

use std::fs;
use std::io::Write;

use pdsfs::control_api::{Status, TransferStage, TransferStatus};
use pdsfs::server::{FaultAction, FaultPlan, FaultRule};

use crate::monitoring::{Running, control_request, pdsfs, pdsfs_xattr, status, text};
use crate::rig::{Mount, Rig, errno, fresh_bytes, wait_until};

/// A part, with [`ARGUMENTS`].
const SMALL_PART: usize = 64 << 10;
const ARGUMENTS: [&str; 2] = ["--part-size", "64KiB"];
/// The default size of parts.
const PART: u64 = 8 << 20;

/// Adds a slow line.
fn slow_line(rig: &Rig, bytes_per_s: u64) {
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::SharedThrottle { bytes_per_s }));
}

/// The figures of the only transfer until `is_over`: sent bytes, without repetitions.
fn watch_sent(mount: &Mount, is_over: impl Fn(&TransferStatus) -> bool) -> (Vec<u64>, TransferStatus) {
    let mut sent = Vec::new();
    let last = wait_until("the upload goes on", || {
        let answer = control_request(mount, "GET /v1/status");
        let seen: Status = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        let file = seen.transfers.into_iter().next()?;
        sent.push(file.bytes_sent);
        is_over(&file).then_some(file)
    });
    sent.dedup();
    (sent, last)
}

#[test]
fn slow_line_moves_the_figures_within_a_part() {
    let rig = Rig::new();
    let mount = rig.mount_with(&[]);
    slow_line(&rig, 2 << 20);
    let mut file = fs::File::create(mount.at("f")).unwrap();
    file.write_all(&fresh_bytes(PART as usize + 1000)).unwrap();
    let (sent, stored) = watch_sent(&mount, |file| file.bytes_acked > 0);
    assert!(sent.is_sorted(), "a figure went back: {sent:?}");
    let within = sent.iter().filter(|sent| (1..PART).contains(*sent)).count();
    assert!(within >= 3, "the figures stood still while the first part was sent: {sent:?}");
    assert_eq!((stored.bytes_acked, stored.bytes_sent, stored.bytes_waiting), (PART, PART, 1000));
    assert_eq!((stored.size_known, stored.eta_ms), (false, None), "the program may still write");
    assert!(stored.rate_bytes_s > 0);
    let table = text(&pdsfs(&mount, &["status"]).stdout);
    assert!(table.contains("8.0 MiB sent, 1000 B waiting") && !table.contains('%'), "{table}");
    drop(file);
    assert_eq!(status(&mount).totals.bytes_sent, PART + 1000);
}

#[test]
fn repeated_part_counts_once() {
    let rig = Rig::new();
    let mount = rig.mount_with(&[]);
    slow_line(&rig, 4 << 20);
    let cut = FaultAction::Cut { bytes: PART / 2 };
    rig.server().faults().add(FaultRule::times("put_part", 1, cut));
    let mut file = fs::File::create(mount.at("f")).unwrap();
    // fallocate and ftruncate declare a size.
    file.set_len(2 * PART).unwrap();
    file.write_all(&fresh_bytes(PART as usize)).unwrap();
    let (sent, stored) = watch_sent(&mount, |file| file.bytes_acked > 0);
    let returned = sent.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert_eq!(returned, 1, "only the cut attempt takes bytes back: {sent:?}");
    assert_eq!((stored.bytes, stored.bytes_sent, stored.size_known), (2 * PART, PART, true));
    let table = text(&pdsfs(&mount, &["status"]).stdout);
    assert!(table.contains("50 % of 16 MiB"), "{table}");
    file.write_all(&fresh_bytes(PART as usize)).unwrap();
    drop(file);
    let seen = status(&mount);
    assert_eq!((seen.totals.bytes_sent, seen.totals.bytes_acked), (2 * PART, 2 * PART));
}

#[test]
fn status_shows_upload_and_wait_awaits_it() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let log = Running::start(&mount, &["log", "-f"]);
    let (path, bytes) = (mount.at("slow.bin"), fresh_bytes(6 * SMALL_PART));
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Stall).after(4));
    let writer = std::thread::spawn(move || fs::write(path, bytes));
    let seen = wait_until("four parts have arrived and the file is closed", || {
        let seen = status(&mount);
        let file = seen.transfers.first()?;
        let is_sent = file.bytes_acked == 4 * SMALL_PART as u64 && file.bytes_sent == 6 * SMALL_PART as u64;
        (is_sent && file.state == TransferStage::Committing).then_some(seen)
    });
    assert_eq!((seen.pid, seen.drive_id.as_str()), (mount.pid(), "1"));
    assert_eq!(seen.mountpoint, mount.path().to_str().unwrap());
    let file = &seen.transfers[0];
    assert_eq!((file.path.as_str(), file.bytes), ("/slow.bin", 6 * SMALL_PART as u64));
    assert!(file.parts_in_flight > 0 && file.age_ms > 0, "{file:?}");
    assert_eq!((seen.pending.files, seen.pending.files_open), (1, 0));
    assert_eq!(seen.pending.bytes, 2 * SMALL_PART as u64);
    assert_eq!(
        (seen.totals.bytes_written, seen.totals.bytes_acked),
        (6 * SMALL_PART as u64, 4 * SMALL_PART as u64)
    );
    assert_eq!(
        (seen.totals.bytes_sent, seen.pending.bytes_sent),
        (6 * SMALL_PART as u64, 6 * SMALL_PART as u64)
    );
    assert_eq!(pdsfs_xattr(&mount, "slow.bin", "state"), "committing");
    assert_eq!(pdsfs_xattr(&mount, "slow.bin", "progress_bytes"), (6 * SMALL_PART).to_string());

    let table = text(&pdsfs(&mount, &["status"]).stdout);
    assert!(
        table.contains("committing") && table.contains("/slow.bin") && table.contains("100 % of 384 KiB"),
        "{table}"
    );
    let late = pdsfs(&mount, &["wait", "--timeout", "100ms"]);
    assert_eq!(late.status.code(), Some(3));
    assert!(text(&late.stderr).contains("slow.bin: committing"), "{}", text(&late.stderr));
    let mut waiting = Running::start(&mount, &["wait"]);
    waiting.line("waiting for 1 file");
    rig.server().faults().clear();
    assert_eq!(waiting.code(), Some(0));
    writer.join().unwrap().unwrap();
    log.line("on the drive  /slow.bin  384 KiB");
    let seen = status(&mount);
    assert_eq!((seen.transfers.len(), seen.pending.files, seen.totals.files_uploaded), (0, 0, 1));
    let table = text(&pdsfs(&mount, &["status"]).stdout);
    assert!(table.contains("saved since the mount: 1 file, 384 KiB"), "{table}");
    assert_eq!(pdsfs_xattr(&mount, "slow.bin", "state"), "saved");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn retries_are_shown_until_they_succeed() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    let broken = FaultRule::new("put_part", FaultAction::status(500, "InternalError"));
    rig.server().faults().add(broken);
    let path = mount.at("f");
    let writer = std::thread::spawn(move || fs::write(path, fresh_bytes(SMALL_PART)));
    let retried = wait_until("the second retry is shown", || {
        status(&mount).transfers.pop().filter(|file| file.retries >= 2)
    });
    assert_eq!(retried.retry_reason.as_deref(), Some("the drive answers 500"));
    assert_eq!((retried.error, retried.bytes_acked), (None, 0));
    let table = text(&pdsfs(&mount, &["status"]).stdout);
    assert!(table.contains(" time): the drive answers 500"), "{table}");
    let refused = FaultRule::new("file/complete", FaultAction::status(503, "ServiceUnavailable"));
    rig.server().faults().set(FaultPlan { rules: vec![refused] });
    let retried = wait_until("the commit is repeated", || {
        let file = status(&mount).transfers.pop()?;
        (file.retry_reason.as_deref() == Some("the drive answers 503")).then_some(file)
    });
    assert_eq!(retried.bytes_acked, SMALL_PART as u64);
    rig.server().faults().clear();
    writer.join().unwrap().unwrap();
    assert_eq!(status(&mount).transfers.len(), 0);
}

/// Writes files that the drive refuses for good.
fn fail_to_write(rig: &Rig, mount: &Mount, names: &[&str]) {
    rig.server()
        .faults()
        .add(FaultRule::new("file/complete", FaultAction::status(403, "QuotaExhausted.Drive")));
    for name in names {
        let mut file = fs::File::create(mount.at(name)).unwrap();
        file.write_all(&fresh_bytes(1000)).unwrap();
        assert_eq!(errno(file.sync_all()), libc::ENOSPC);
    }
    rig.server().faults().clear();
}

fn failed(mount: &Mount) -> (u64, Vec<String>) {
    let seen = status(mount);
    let paths: Vec<_> = seen.failures.into_iter().filter_map(|entry| entry.path).collect();
    (seen.pending.files_failed, paths)
}

#[test]
fn failures_go_when_files_are_saved_or_removed() {
    let rig = Rig::new();
    let mount = rig.mount_with(&ARGUMENTS);
    for name in ["kept", "removed"] {
        fs::write(mount.at(name), b"old").unwrap();
    }
    for _ in 0..2 {
        fail_to_write(&rig, &mount, &["kept", "removed", "new"]);
    }
    let all = ["/kept", "/removed", "/new"].map(str::to_owned).to_vec();
    assert_eq!(failed(&mount), (3, all), "each file counts once");
    let table = text(&pdsfs(&mount, &["status"]).stdout);
    assert!(table.contains("nothing left to send; 3 files not saved"), "{table}");
    fs::write(mount.at("kept"), b"saved").unwrap();
    fs::remove_file(mount.at("removed")).unwrap();
    assert_eq!(failed(&mount), (1, vec!["/new".to_owned()]));
    fs::write(mount.at("new"), b"saved").unwrap();
    assert_eq!(failed(&mount), (0, Vec::new()));
    let table = text(&pdsfs(&mount, &["status"]).stdout);
    assert!(table.contains("everything is on the drive"), "{table}");
    fail_to_write(&rig, &mount, &["kept"]);
    let dismissed = text(&pdsfs(&mount, &["status", "--dismiss"]).stdout);
    assert!(dismissed.contains("everything is on the drive"), "{dismissed}");
    assert_eq!(failed(&mount), (0, Vec::new()));
}
