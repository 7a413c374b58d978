//! A local disk that hangs or is slow. Only requests for bytes on that disk wait for it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use pdsfs::server::{FaultAction, FaultRule};

use crate::monitoring::status;
use crate::rig::{Mount, PATIENCE, Rig, errno, fresh_bytes, is_mount, wait_until};
use crate::slow_disk::{Hanging, SlowDisk};

const PART: usize = 64 << 10;
/// Longest answer of `stat`, `ls` and `pdsfs status` while the disk hangs. Below the deadline of the hung requests.
const ANSWER_MAX: Duration = Duration::from_secs(1);

fn mount(rig: &Rig, disk: &SlowDisk) -> Mount {
    mount_with_timeout(rig, disk, "6s")
}

fn mount_with_timeout(rig: &Rig, disk: &SlowDisk, timeout: &str) -> Mount {
    rig.mount_with(&["--part-size", "64KiB", "--commit-timeout", timeout, "--spill-dir", disk.arg()])
}

/// Runs `work` on a thread of its own: it may hang.
fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(work()));
    receiver
}

/// The result of `work`, which must not hang.
fn within_patience<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    in_background(work).recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what} hangs"))
}

/// The quickest of several attempts: other tests use the machine too.
fn assert_quick(what: &str, work: impl Fn() + Clone + Send + 'static) {
    let quickest = (0..3).map(|_| {
        let work = work.clone();
        within_patience(what, move || {
            let start = Instant::now();
            work();
            start.elapsed()
        })
    });
    let quickest = quickest.min().unwrap();
    assert!(quickest <= ANSWER_MAX, "{what} took {quickest:?}");
}

fn assert_observable(mount: &Mount, files: &[&str]) {
    let root = mount.path().to_owned();
    for file in files {
        let path = mount.at(file);
        assert_quick("stat", move || _ = fs::metadata(&path).unwrap());
    }
    let dir = root.clone();
    assert_quick("ls -l", move || {
        for entry in fs::read_dir(&dir).unwrap() {
            entry.unwrap().metadata().unwrap();
        }
    });
    assert_quick("pdsfs status", move || {
        let output = Command::new(env!("CARGO_BIN_EXE_pdsfs")).args(["status", "--json"]).arg(&root).output();
        assert!(output.unwrap().status.success());
    });
}

/// New files, streams and reads of the drive do not need the local disk.
fn assert_other_files_work(rig: &Rig, mount: &Mount, tag: &str) {
    let (small, stream) = (fresh_bytes(100), fresh_bytes(20 * PART + 7));
    let (small_name, stream_name) = (format!("small-{tag}"), format!("stream-{tag}"));
    for (name, bytes) in [(&small_name, small), (&stream_name, stream)] {
        let (path, written) = (mount.at(name), bytes.clone());
        within_patience("a new file", move || fs::write(path, written)).unwrap();
        assert!(rig.client().read(name).unwrap() == bytes);
    }
    let path = mount.at(&small_name);
    assert_eq!(within_patience("a read of a saved file", move || fs::read(path)).unwrap().len(), 100);
}

fn edit(path: &Path, at: u64) -> std::io::Result<()> {
    File::options().write(true).open(path)?.write_all_at(b"edit", at)
}

/// `read(2)` past the page cache of the kernel.
fn read_directly(path: &Path, len: usize) -> std::io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).map(|()| bytes)
}

#[test]
fn hung_staged_write_delays_no_other_file() {
    let (rig, disk) = (Rig::new(), SlowDisk::new());
    let mount = mount(&rig, &disk);
    let mut bytes = fresh_bytes(5 * PART);
    fs::write(mount.at("f"), &bytes).unwrap();
    let file = File::options().read(true).write(true).open(mount.at("f")).unwrap();
    file.write_all_at(b"first", 10).unwrap();
    let hang = disk.hang(Hanging::All);
    let (writer, path) = (file.try_clone().unwrap(), mount.at("f"));
    let written = in_background(move || writer.write_all_at(b"second", 200_000));
    hang.wait_for(1);
    assert_observable(&mount, &["f", "."]);
    assert_eq!(status(&mount).transfers.len(), 1);
    assert_other_files_work(&rig, &mount, "a");
    let written = written.recv_timeout(PATIENCE).expect("the deadline of the write did not fire");
    assert_eq!(errno(written), libc::ETIMEDOUT);
    // A read of the same file and its truncation need the disk too.
    let read = within_patience("a staged read", move || read_directly(&path, PART));
    assert_eq!(errno(read), libc::ETIMEDOUT);
    drop(hang);
    wait_until("the disk is used again", || file.write_all_at(b"third", 200_000).ok());
    drop(file);
    bytes[10..15].copy_from_slice(b"first");
    let saved = rig.client().read("f").unwrap();
    // The write that timed out may be there or not, but never over a later one.
    bytes[200_000..200_006].copy_from_slice(&saved[200_000..200_006]);
    assert!(saved == bytes && &saved[200_000..200_005] == b"third");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn seek_back_into_hung_tee_times_out() {
    let (rig, disk) = (Rig::new(), SlowDisk::new());
    let mount = mount(&rig, &disk);
    let mut bytes = fresh_bytes(6 * PART + 100);
    let file = File::create(mount.at("f")).unwrap();
    let hang = disk.hang(Hanging::Data);
    let (writer, streamed) = (file.try_clone().unwrap(), bytes.clone());
    within_patience("a stream", move || writer.write_all_at(&streamed, 0)).unwrap();
    hang.wait_for(1);
    let writer = file.try_clone().unwrap();
    let written = in_background(move || writer.write_all_at(b"back", 0));
    assert_observable(&mount, &["f", "."]);
    assert_other_files_work(&rig, &mount, "b");
    let written = written.recv_timeout(PATIENCE).expect("the deadline of the write did not fire");
    assert_eq!(errno(written), libc::ETIMEDOUT);
    drop(hang);
    wait_until("the disk is used again", || file.write_all_at(b"back", 0).ok());
    drop(file);
    bytes[..4].copy_from_slice(b"back");
    assert!(rig.client().read("f").unwrap() == bytes);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn streams_go_on_while_disk_hangs() {
    let (rig, disk) = (Rig::new(), SlowDisk::new());
    let mount = mount(&rig, &disk);
    let hang = disk.hang(Hanging::All);
    assert_other_files_work(&rig, &mount, "a");
    // Longer than the queue of all tees.
    let (path, bytes) = (mount.at("long"), fresh_bytes(100 * PART + 3));
    let written = bytes.clone();
    within_patience("a stream", move || fs::write(path, written)).unwrap();
    assert!(rig.client().read("long").unwrap() == bytes);
    assert_observable(&mount, &["long", "."]);
    drop(hang);
    assert_eq!(mount.stop(), 0);
}

/// A stream goes on without its copy.
#[test]
fn slow_disk_slows_no_stream_down() {
    let (rig, disk) = (Rig::new(), SlowDisk::new());
    let mount = mount(&rig, &disk);
    // The copies of all files would take it 100 seconds.
    disk.limit(128 << 10);
    let files: Vec<_> = (0..5).map(|n| (mount.at(format!("f{n}")), fresh_bytes(40 * PART))).collect();
    let written = files.clone();
    within_patience("five streams", move || {
        for (path, bytes) in written {
            fs::write(path, bytes).unwrap();
        }
    });
    for (n, (_, bytes)) in files.iter().enumerate() {
        assert!(rig.client().read(&format!("f{n}")).unwrap() == *bytes);
    }
}

/// The deadline of the disk is not that of a whole part.
#[test]
fn regression_large_part_of_a_slow_disk_is_saved() {
    let (rig, disk) = (Rig::new(), SlowDisk::new());
    let arguments = ["--part-size", "16MiB", "--commit-timeout", "2s", "--spill-dir", disk.arg()];
    let mount = rig.mount_with(&arguments);
    fs::write(mount.at("f"), b"an edit makes a staged file").unwrap();
    let (file, bytes) = (File::options().write(true).open(mount.at("f")).unwrap(), fresh_bytes(12 << 20));
    file.write_all_at(&bytes, 2).unwrap();
    // Three seconds for all bytes.
    disk.limit(4 << 20);
    within_patience("a commit", move || file.sync_all()).unwrap();
    let saved = rig.client().read("f").unwrap();
    assert!(saved[..2] == *b"an" && saved[2..] == bytes);
}

#[test]
fn hung_cached_files_delay_no_other_request() {
    let (rig, disk) = (Rig::new(), SlowDisk::new());
    let mount = mount(&rig, &disk);
    let files: Vec<_> = (0..4).map(|n| (format!("cached-{n}"), fresh_bytes(2 * PART))).collect();
    for (name, bytes) in &files {
        fs::write(mount.at(name), bytes).unwrap();
        // An edit leaves a cached file in any case.
        edit(&mount.at(name), 5).unwrap();
    }
    let hang = disk.hang(Hanging::All);
    let reads: Vec<_> = files
        .iter()
        .map(|(name, _)| {
            let path = mount.at(name);
            in_background(move || read_directly(&path, PART))
        })
        .collect();
    hang.wait_for(reads.len());
    assert_observable(&mount, &[&files[0].0, "."]);
    assert_other_files_work(&rig, &mount, "c");
    // The removal of a cached file does not wait for its local copy.
    let removed = mount.at(&files[3].0);
    within_patience("rm", move || fs::remove_file(removed)).unwrap();
    for ((_, bytes), read) in files[..3].iter().zip(reads) {
        let read = read.recv_timeout(PATIENCE).expect("the deadline of the disk did not fire").unwrap();
        assert!(read[..5] == bytes[..5] && read[5..9] == *b"edit" && read[9..] == bytes[9..PART]);
    }
    let log = mount.wait_for_log("/cached-0: not read from the local disk");
    let warnings: Vec<_> = log.iter().filter(|line| line.contains("not read from the local disk")).collect();
    let is_complete = |line: &&String| line.contains(disk.arg()) && line.contains("--spill-dir");
    assert!(warnings.iter().all(is_complete), "{warnings:?}");
    drop(hang);
    assert_eq!(mount.stop(), 0);
}

/// Commits of staged files read the disk while they send.
#[test]
fn commits_that_hang_delay_no_other_request() {
    let (rig, disk) = (Rig::new(), SlowDisk::new());
    let mount = mount_with_timeout(&rig, &disk, "60s");
    let names = ["a", "b", "c", "d", "e", "f"];
    let files = names.map(|name| {
        let file = File::create(mount.at(name)).unwrap();
        file.write_all_at(&[7; 1000], 5000).unwrap();
        file.write_all_at(&[8; 1000], 0).unwrap();
        file
    });
    // The commits have computed their hashes, and send once the disk hangs.
    rig.server().faults().add(FaultRule::new("file/create", FaultAction::Stall));
    let closed = files.map(|file| in_background(move || drop(file)));
    rig.block_on(rig.server().faults().wait_for_hits(6));
    let hang = disk.hang(Hanging::Data);
    rig.server().faults().clear();
    hang.wait_for(2);
    assert_observable(&mount, &["a", "."]);
    assert_other_files_work(&rig, &mount, "d");
    drop(hang);
    for closed in closed {
        closed.recv_timeout(PATIENCE).unwrap();
    }
    for name in names {
        let saved = rig.client().read(name).unwrap();
        assert!(saved.len() == 6000 && saved[..1000] == [8; 1000] && saved[5000..] == [7; 1000]);
    }
    assert_eq!(mount.stop(), 0);
}

#[test]
fn stop_with_hung_disk_names_unsaved_file() {
    let (rig, disk) = (Rig::new(), SlowDisk::new());
    let mount = mount(&rig, &disk);
    fs::write(mount.at("f"), fresh_bytes(2 * PART)).unwrap();
    let file = File::options().read(true).write(true).open(mount.at("f")).unwrap();
    file.write_all_at(b"first", 10).unwrap();
    let hang = disk.hang(Hanging::All);
    let writer = file.try_clone().unwrap();
    let written = in_background(move || writer.write_all_at(b"second", 20));
    hang.wait_for(1);
    mount.signal(libc::SIGTERM);
    wait_until("the mount is gone", || (!is_mount(mount.path())).then_some(()));
    wait_until("the file is named", || {
        let named = |line: &String| line.to_lowercase().contains("not saved") && line.contains("f:");
        mount.log().iter().any(named).then_some(())
    });
    // The kernel ends a process only after its requests to the disk.
    drop(hang);
    drop(written.recv_timeout(PATIENCE));
    drop(file);
    let (code, log) = mount.ended();
    assert_eq!(code, 1, "{log:?}");
}
