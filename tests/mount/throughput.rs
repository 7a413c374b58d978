//! The speed of uploads on slow lines and connections, and what one slow file does to others.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pdsfs::server::{FaultAction, FaultRule};

use crate::rig::{Rig, errno, fresh_bytes, wait_until};

const SMALL_PART: usize = 128 << 10;

/// 64 parts in groups of 32 take 8 s, in groups of 2 128 s, one after the other 256 s. An idle machine needs at most
/// 15 s.
#[test]
fn slow_connections_are_used_in_parallel() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "128KiB"]);
    let throttle = FaultAction::Throttle { bytes_per_s: 32 << 10 };
    rig.server().faults().add(FaultRule::new("put_part", throttle));
    let bytes = fresh_bytes(64 * SMALL_PART);
    let start = Instant::now();
    fs::write(mount.at("f"), &bytes).unwrap();
    let took = start.elapsed();
    assert!(took <= Duration::from_secs(60), "{took:?}");
    let connections = rig.server().stats().connections_peak;
    assert!(connections >= 16, "{connections} connections at a time");
    rig.server().faults().clear();
    assert_eq!(rig.client().read("f").unwrap(), bytes);
}

/// Three seconds of a line of 10 MiB/s are 30 MiB, less than the 4 parts of 8 MiB at the beginning. The part that is
/// being filled is one of them.
#[test]
fn slow_line_keeps_the_writer_close() {
    const LEAD_BYTES_MAX: u64 = 32 << 20;
    let rig = Rig::new();
    let mount = rig.mount();
    let throttle = FaultAction::SharedThrottle { bytes_per_s: 10 << 20 };
    rig.server().faults().add(FaultRule::new("put_part", throttle));
    let bytes = fresh_bytes(80 << 20);
    let start = Instant::now();
    let mut file = File::create(mount.at("f")).unwrap();
    for (index, piece) in bytes.chunks(1 << 20).enumerate() {
        file.write_all(piece).unwrap();
        let written = ((index + 1) << 20) as u64;
        let lead = written - rig.server().stats().received_bytes;
        assert!(lead <= LEAD_BYTES_MAX, "{lead} bytes ahead after {written}");
    }
    drop(file);
    let took = start.elapsed();
    assert!(took <= Duration::from_secs(25), "{took:?}");
}

/// The pause that the store asks for is no reason to keep other files waiting.
#[test]
fn throttled_file_does_not_stop_other_files() {
    const RETRY_AFTER_S: u32 = 20;
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "128KiB", "--parts-in-flight", "4"]);
    let throttled = FaultAction::Status {
        status: 503,
        code: "SlowDown".into(),
        message: String::new(),
        retry_after_s: Some(RETRY_AFTER_S),
        x_retry_after_ms: None,
        empty_body: false,
    };
    rig.server().faults().add(FaultRule::times("put_part", 4, throttled));
    let mut slow = File::create(mount.at("slow")).unwrap();
    slow.write_all(&fresh_bytes(4 * SMALL_PART)).unwrap();
    rig.block_on(rig.server().faults().wait_for_hits(4));
    let (bytes, start) = (fresh_bytes(4 * SMALL_PART), Instant::now());
    fs::write(mount.at("other"), &bytes).unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(u64::from(RETRY_AFTER_S) / 2), "{took:?}");
    assert_eq!(rig.client().read("other").unwrap(), bytes);
    // Ends its upload.
    fs::remove_file(mount.at("slow")).unwrap();
}

/// Closes in a thread of its own. Returns the errno of the close, 0 without one.
fn close_in_thread(path: PathBuf, bytes: Vec<u8>) -> JoinHandle<i32> {
    std::thread::spawn(move || {
        let mut file = File::create(path).unwrap();
        file.write_all(&bytes).unwrap();
        file.sync_all().map_or_else(|error| errno::<()>(Err(error)), |()| 0)
    })
}

#[test]
fn stalled_commit_ends_while_other_files_move() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "128KiB", "--commit-timeout", "4s"]);
    let faults = rig.server().faults();
    faults.add(FaultRule::times("put_part", 1, FaultAction::Stall).part(2));
    let stuck = close_in_thread(mount.at("stuck"), fresh_bytes(2 * SMALL_PART));
    rig.block_on(faults.wait_for_hits(1));
    faults.add(FaultRule::new("put_part", FaultAction::Throttle { bytes_per_s: 128 << 10 }));
    let mut moving = File::create(mount.at("moving")).unwrap();
    let piece = fresh_bytes(SMALL_PART);
    let (start, mut pieces) = (Instant::now(), 0);
    while !stuck.is_finished() {
        moving.write_all(&piece).unwrap();
        pieces += 1;
        assert!(start.elapsed() < Duration::from_secs(20), "still not stalled after {pieces} parts");
    }
    assert_eq!(stuck.join().unwrap(), libc::ETIMEDOUT);
    wait_until("the log names the file", || {
        let names = |line: &String| line.contains("/stuck") && line.contains("no data of this file");
        mount.log().iter().any(names).then_some(())
    });
    faults.clear();
    drop(moving);
    assert_eq!(rig.client().find("moving").unwrap().size, (pieces * SMALL_PART) as u64);
}
