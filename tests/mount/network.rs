//! The network goes down and comes back: nothing is lost, no call hangs, and no wait is longer than the outage.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use crate::rig::{Mount, Rig, errno, fresh_bytes, wait_until};

const PART: usize = 64 << 10;
/// Long enough that the pauses between attempts grow to many seconds.
const OUTAGE: Duration = Duration::from_secs(15);
/// How long calls for metadata, and reads, wait for the end of an outage.
const METADATA_OUTAGE_MAX: Duration = Duration::from_secs(10);
const READ_OUTAGE_MAX: Duration = Duration::from_secs(30);
/// How long a call tries at least in a longer outage.
const TRY_MIN: Duration = Duration::from_secs(3);
/// Added to these times, on a busy machine.
const MARGIN: Duration = Duration::from_secs(5);
/// Longest time from the return of the network to the end of the upload. There is one probe a second.
const RETURN_MAX: Duration = Duration::from_secs(8);

fn mount(rig: &Rig, more: &[&str]) -> Mount {
    let arguments = ["--part-size", "64KiB", "--stall-timeout", "1s", "--commit-timeout", "120s"];
    rig.mount_with(&[&arguments[..], more].concat())
}

#[test]
fn upload_resumes_when_network_returns() {
    let mut rig = Rig::new();
    let mount = mount(&rig, &[]);
    let bytes = fresh_bytes(40 * PART);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&bytes[..4 * PART]).unwrap();
    rig.stop();
    let gone_at = Instant::now();
    let rest = bytes[4 * PART..].to_vec();
    let closing = std::thread::spawn(move || {
        // A write blocks too when too many bytes are in flight.
        let saved = file.write_all(&rest).and_then(|()| file.sync_all());
        drop(file);
        (saved, Instant::now())
    });
    mount.wait_for_log("cannot be reached");
    // The pauses must grow first; no event marks that.
    std::thread::sleep(OUTAGE.saturating_sub(gone_at.elapsed()));
    assert!(!closing.is_finished(), "close did not wait for the network");
    rig.resume();
    let back_at = Instant::now();
    let (saved, closed_at) = closing.join().unwrap();
    saved.unwrap();
    assert!(closed_at - back_at < RETURN_MAX, "{:?} after the return", closed_at - back_at);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    mount.wait_for_log("can be reached again");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn offline_serves_known_data_and_fails_in_time() {
    let mut rig = Rig::new();
    let mount = mount(&rig, &["--metadata-ttl", "1s", "--read-cache", "1MiB"]);
    let bytes = fresh_bytes(PART);
    fs::write(mount.at("known"), &bytes).unwrap();
    fs::create_dir(mount.at("dir")).unwrap();
    let remote = fresh_bytes(64 * PART);
    fs::write(mount.at("remote"), &remote).unwrap();
    let mount = mount.restart(&rig.endpoint(), &["--metadata-ttl", "1s", "--stall-timeout", "1s"]);
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 3);
    let mut known = Vec::new();
    File::open(mount.at("known")).unwrap().read_to_end(&mut known).unwrap();
    // Past the page cache: the kernel repeats a failed read-ahead.
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(mount.at("remote")).unwrap();
    let gone_at = Instant::now();
    rig.stop();
    // The entries of the kernel and of the mount are stale then.
    std::thread::sleep(Duration::from_millis(1100));
    let offline_at = Instant::now();
    assert_eq!(fs::metadata(mount.at("known")).unwrap().len(), PART as u64);
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 3);
    let took = offline_at.elapsed();
    assert!(took < METADATA_OUTAGE_MAX, "known metadata took {took:?}");
    // The outage begins between the two instants.
    let assert_time = |what: &str, expected: Duration| {
        let (longest, shortest) = (gone_at.elapsed(), offline_at.elapsed());
        assert!(
            longest >= expected && shortest <= expected + MARGIN,
            "{what} took {shortest:?} to {longest:?} instead of {expected:?}"
        );
    };
    assert_eq!(errno(fs::metadata(mount.at("new"))), libc::EHOSTUNREACH);
    assert_time("an unknown name", METADATA_OUTAGE_MAX);
    let start = Instant::now();
    assert_eq!(errno(fs::metadata(mount.at("another"))), libc::EHOSTUNREACH);
    assert!(start.elapsed() <= TRY_MIN + MARGIN, "a later name took {:?}", start.elapsed());
    let mut piece = vec![0; 1000];
    assert_eq!(errno(file.read_at(&mut piece, 32 * PART as u64)), libc::EHOSTUNREACH);
    assert_time("a read", READ_OUTAGE_MAX);
    rig.resume();
    let start = Instant::now();
    wait_until("reads work again", || file.read_at(&mut piece, 32 * PART as u64).ok());
    assert!(start.elapsed() < RETURN_MAX, "reading again took {:?}", start.elapsed());
    assert_eq!(piece, remote[32 * PART..32 * PART + 1000]);
    assert_eq!(mount.stop(), 0);
}
