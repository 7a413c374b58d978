//! Tests of the life of a transfer.

use std::time::Duration;

use super::*;

const MIB: u64 = 1 << 20;

fn only(progress: &Progress) -> TransferView {
    let mut views = progress.snapshot();
    assert_eq!(views.len(), 1);
    views.remove(0)
}

#[test]
fn transfer_is_listed_until_it_is_committed() {
    let progress = Progress::new();
    let mut events = progress.subscribe();
    let transfer = progress.begin(Ino(1), "a.bin");
    transfer.wrote(3 * MIB);
    let (sending, other) = (transfer.part_sending(), transfer.part_sending());
    transfer.part_stored(MIB, None);
    drop(other);
    let view = only(&progress);
    assert_eq!((&*view.name, view.state), ("a.bin", TransferState::Writing));
    assert_eq!((view.bytes_written, view.bytes_acked, view.parts_in_flight), (3 * MIB, MIB, 1));
    transfer.committing();
    assert_eq!(only(&progress).state, TransferState::Committing);
    transfer.part_stored(2 * MIB, None);
    drop(sending);
    transfer.committed(3 * MIB, CommitMethod::Uploaded);
    assert!(progress.snapshot().is_empty());
    let Ok(ProgressEvent::Committed { name, bytes, how, .. }) = events.try_recv() else {
        panic!("no commit was reported");
    };
    assert_eq!((&*name, bytes, how), ("a.bin", 3 * MIB, CommitMethod::Uploaded));
    let totals = progress.totals();
    assert_eq!((totals.files_uploaded, totals.bytes_committed), (1, 3 * MIB));
    assert_eq!((totals.bytes_written, totals.bytes_acked), (3 * MIB, 3 * MIB));
}

#[test]
fn withdrawn_transfer_is_not_abandoned() {
    let progress = Progress::new();
    let (withdrawn, dropped) = (progress.begin(Ino(1), "a"), progress.begin(Ino(1), "b"));
    withdrawn.withdrawn();
    drop((withdrawn, dropped));
    assert_eq!((progress.totals().files_abandoned, progress.snapshot().len()), (1, 0));
}

#[test]
fn waiting_part_is_not_in_flight() {
    let progress = Progress::new();
    let transfer = progress.begin(Ino(1), "a");
    assert!(!transfer.waits_for_others());
    let waiting = transfer.part_waiting();
    assert_eq!((only(&progress).parts_in_flight, transfer.waits_for_others()), (0, true));
    let sending = transfer.part_sending();
    assert_eq!((only(&progress).parts_in_flight, transfer.waits_for_others()), (1, false));
    drop((waiting, sending));
    assert_eq!((only(&progress).bytes_acked, only(&progress).parts_in_flight), (0, 0));
    assert!(!transfer.waits_for_others());
}

#[test]
fn only_the_first_end_counts() {
    let progress = Progress::new();
    let mut events = progress.subscribe();
    let transfer = progress.begin(Ino(1), "a");
    transfer.failed(&Error::new(ErrorKind::QuotaExceeded, "the drive is full"));
    transfer.committed(1, CommitMethod::Instant);
    drop(transfer);
    let totals = progress.totals();
    assert_eq!((totals.files_failed, totals.files_committed(), totals.files_abandoned), (1, 0, 0));
    let Ok(ProgressEvent::Failed { error, .. }) = events.try_recv() else {
        panic!("no failure was reported")
    };
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    assert!(events.try_recv().is_err());
}

#[test]
fn dropped_transfer_is_abandoned_and_unlisted() {
    let progress = Progress::new();
    let transfer = progress.begin(Ino(1), "a");
    let second = progress.begin(Ino(1), "b");
    drop(transfer);
    assert_eq!(&*only(&progress).name, "b");
    second.committed(0, CommitMethod::Unchanged);
    drop(second);
    let totals = progress.totals();
    assert_eq!((totals.files_abandoned, totals.files_unchanged), (1, 1));
    assert!(progress.snapshot().is_empty());
}

#[test]
fn idle_time_does_not_lower_the_rate() {
    let progress = Progress::new();
    progress.begin(Ino(1), "a").sent.add_at(Instant::now() + Duration::from_secs(60), MIB);
    assert!(progress.totals().rate_bytes_s > 0);
    let _next = progress.begin(Ino(1), "b");
    assert_eq!(progress.totals().rate_bytes_s, 0, "a new window starts");
}

#[test]
fn rename_shows_at_once_and_keeps_the_id() {
    let progress = Progress::new();
    let transfer = progress.begin(Ino(1), ".a.Xy12");
    let id = only(&progress).id;
    transfer.renamed("a");
    assert_eq!((only(&progress).id, &*only(&progress).name), (id, "a"));
}

#[test]
fn eta_follows_from_rate_and_remaining_bytes() {
    let progress = Progress::new();
    let transfer = progress.begin(Ino(1), "a");
    let began = transfer.began;
    transfer.wrote(20 * MIB);
    transfer.sent.add_at(began + Duration::from_secs(1), 4 * MIB);
    let view = || transfer.view(began + Duration::from_secs(1));
    let figures = view().figures;
    assert_eq!((figures.rate_bytes_s, figures.eta()), (4 * MIB, None), "the size is not known");
    assert_eq!((figures.sent, figures.waiting, figures.is_size_known), (4 * MIB, 16 * MIB, false));
    transfer.expect_bytes(84 * MIB);
    assert_eq!((view().figures.eta(), view().age), (Some(Duration::from_secs(20)), Duration::from_secs(1)));
    transfer.wrote(65 * MIB);
    assert_eq!(view().figures.eta(), None, "the program has written past the declared size");
    transfer.expect_bytes(85 * MIB);
    transfer.committing();
    assert_eq!(view().figures.percent(), Some(4));
}

#[test]
fn concurrent_snapshot_and_end_do_not_deadlock() {
    let progress = Progress::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..500 {
                    let transfer = progress.begin(Ino(1), "x");
                    transfer.wrote(1);
                    if n % 2 == 0 {
                        transfer.committed(1, CommitMethod::Uploaded);
                    }
                }
            });
        }
        scope.spawn(|| {
            while progress.totals().bytes_written < 2000 {
                progress.snapshot();
            }
        });
    });
    let totals = progress.totals();
    assert_eq!((totals.files_uploaded, totals.files_abandoned), (1000, 1000));
    assert!(progress.snapshot().is_empty());
}

#[test]
fn staged_file_is_measured_by_expected_size() {
    let progress = Progress::new();
    let staged = progress.begin(Ino(1), "a");
    staged.expect_bytes(1000);
    staged.committing();
    assert_eq!(staged.snapshot().figures.waiting, 1000);
    staged.part_stored(400, None);
    assert_eq!(staged.snapshot().figures.waiting, 600);
}

#[test]
fn failed_attempt_returns_its_bytes() {
    let progress = Progress::new();
    let transfer = progress.begin(Ino(1), "a");
    transfer.wrote(2 * MIB);
    let sent = || (transfer.snapshot().figures.sent, progress.totals().bytes_sent);
    let failed = transfer.begin_attempt();
    let meter = failed.meter().clone();
    meter.sent(MIB / 2);
    assert_eq!(sent(), (MIB / 2, MIB / 2), "bytes count before the part is stored");
    drop(failed);
    assert_eq!(sent(), (0, 0));
    meter.sent(5);
    assert_eq!(sent(), (0, 0), "a late byte of an ended attempt counts");
    assert_eq!(transfer.bytes_moved().load(Relaxed), MIB / 2 + 5, "they show that the line moves");
    let stored = transfer.begin_attempt();
    stored.meter().sent(MIB);
    transfer.part_stored(MIB, Some(&stored));
    drop(stored);
    assert_eq!((sent(), only(&progress).bytes_acked), ((MIB, MIB), MIB), "a stored part counts once");
    transfer.restarted();
    assert_eq!((sent(), progress.totals().bytes_acked), ((0, 0), MIB));
}
