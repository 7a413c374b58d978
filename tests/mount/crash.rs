//! Killed daemons and servers: no committed byte is lost, and no partial file is visible.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use pdsfs::server::{FaultAction, FaultRule};

use crate::rig::{Mount, Rig, fresh_bytes, is_mount};

const PART: usize = 64 << 10;

/// A delay of up to a quarter of a second, spread over the rounds and different in each run.
fn moment(round: u64) -> Duration {
    Duration::from_micros(round * 20_000 + u64::from(std::process::id()) * 31 % 20_000)
}

#[test]
fn kill_9_in_overwrite_keeps_old_or_new_revision() {
    kill_during(|path, bytes| {
        let mut file = File::create(path)?;
        bytes.chunks(PART).try_for_each(|piece| file.write_all(piece))?;
        file.sync_all()
    });
}

#[test]
fn kill_9_in_edit_keeps_old_or_new_revision() {
    kill_during(|path, bytes| {
        let file = File::options().write(true).open(path)?;
        // From back to front, so nothing can be streamed.
        for (index, piece) in bytes.chunks(PART).enumerate().rev() {
            file.write_all_at(piece, (index * PART) as u64)?;
        }
        file.set_len(bytes.len() as u64)?;
        file.sync_all()
    });
}

/// Kills the daemon while `change` replaces the content of the file.
fn kill_during(change: fn(&Path, &[u8]) -> std::io::Result<()>) {
    let rig = Rig::new();
    // Slow enough that kills hit before, during and after the commit.
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Delay { ms: 20 }));
    let mut dir = tempfile::tempdir().unwrap();
    let mut current = fresh_bytes(20 * PART);
    let mut outcomes = [0, 0];
    for round in 0..12 {
        let mount = Mount::start(&rig.endpoint(), &["--part-size", "64KiB"], dir);
        if round == 0 {
            fs::write(mount.at("f"), &current).unwrap();
        }
        let next = fresh_bytes(30 * PART + round as usize);
        let (path, bytes) = (mount.at("f"), next.clone());
        let writer = std::thread::spawn(move || {
            // Fails when the mount dies; the result does not matter.
            let _ = change(&path, &bytes);
        });
        // The kill must come at an arbitrary moment.
        std::thread::sleep(moment(round));
        let dead = mount.kill();
        writer.join().unwrap();
        let found = rig.client().read("f").unwrap();
        assert!(found == current || found == next, "round {round}: neither revision: {} bytes", found.len());
        assert_eq!(rig.client().names(""), ["f"], "round {round}");
        outcomes[usize::from(found == next)] += 1;
        current = found;
        dir = dead.into_dir();
        assert!(is_mount(dir.path()), "there is no dead mount for the next start to remove");
    }
    let mount = Mount::start(&rig.endpoint(), &[], dir);
    assert_eq!(fs::read(mount.at("f")).unwrap(), current);
    assert!(outcomes[0] > 0, "every kill came after the commit: {outcomes:?}");
}

#[test]
fn kill_9_leaves_no_partial_file() {
    let rig = Rig::new();
    for round in 0..4 {
        let mount = rig.mount_with(&["--part-size", "64KiB"]);
        let mut file = File::create(mount.at("f")).unwrap();
        file.write_all(&fresh_bytes(3 * PART + round)).unwrap();
        let dead = mount.kill();
        drop(file);
        drop(dead);
        assert_eq!(rig.client().names(""), Vec::<String>::new());
    }
}

#[test]
fn sigterm_commits_open_files() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    let bytes = fresh_bytes(3 * PART + 17);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&bytes).unwrap();
    assert_eq!(mount.stop(), 0);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
}

#[test]
fn writer_waits_for_server_restart() {
    let mut rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB", "--commit-timeout", "60s"]);
    let bytes = fresh_bytes(20 * PART);
    let mut file = File::create(mount.at("f")).unwrap();
    let (first, second) = bytes.split_at(5 * PART);
    file.write_all(first).unwrap();
    rig.stop();
    let rest = second.to_vec();
    let writer = std::thread::spawn(move || {
        file.write_all(&rest).unwrap();
        file.sync_all().unwrap();
    });
    // The outage must last for a while; no event marks its length.
    std::thread::sleep(Duration::from_millis(500));
    rig.resume();
    writer.join().unwrap();
    assert_eq!(rig.client().read("f").unwrap(), bytes);
}
