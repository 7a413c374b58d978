//! Faults of the drive: transient ones cost time, permanent ones reach the program with their errno,
//! and the old revision stays intact.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pdsfs::server::{FaultAction, FaultRule, Secret};

use crate::metadata::xattr;
use crate::rig::{Mount, Rig, errno, fresh_bytes, wait_until};

const PART: usize = 64 << 10;
const ARGUMENTS: [&str; 6] = ["--part-size", "64KiB", "--stall-timeout", "1s", "--commit-timeout", "60s"];

fn mount(rig: &Rig) -> Mount {
    rig.mount_with(&ARGUMENTS)
}

fn status(status: u16, code: &str) -> FaultAction {
    FaultAction::Status {
        status,
        code: code.into(),
        message: "on purpose".into(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: code.is_empty(),
    }
}

fn throttled(retry_after_s: Option<u32>, x_retry_after_ms: Option<u32>) -> FaultAction {
    FaultAction::Status {
        status: 429,
        code: String::new(),
        message: String::new(),
        retry_after_s,
        x_retry_after_ms,
        empty_body: true,
    }
}

/// With one fault rule at a time, a new file of several parts, an overwrite, a small file and an edit
/// in the middle must commit.
fn assert_commits_despite(rig: &Rig, mount: &Mount, rule: &FaultRule) {
    let what = format!("{rule:?}");
    for (name, size) in [("large", 5 * PART + 100), ("large", 4 * PART), ("small", 1000)] {
        rig.server().faults().clear();
        rig.server().faults().add(rule.clone());
        let bytes = fresh_bytes(size);
        fs::write(mount.at(name), &bytes).unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
        assert_eq!(rig.client().read(name).unwrap(), bytes, "{what}");
    }
    let mut bytes = rig.client().read("large").unwrap();
    rig.server().faults().add(rule.clone());
    let edited = File::options().write(true).open(mount.at("large")).and_then(|file| {
        let change = fresh_bytes(1000);
        bytes[PART..PART + 1000].copy_from_slice(&change);
        file.write_all_at(&change, PART as u64)?;
        file.sync_all()
    });
    edited.unwrap_or_else(|e| panic!("{what}: an edit: {e}"));
    assert_eq!(rig.client().read("large").unwrap(), bytes, "{what}: an edit");
    rig.server().faults().clear();
}

#[test]
fn transient_part_faults_cost_only_time() {
    let rig = Rig::new();
    let mount = mount(&rig);
    for action in [
        status(500, "InternalError"),
        status(503, "ServiceUnavailable"),
        throttled(None, None),
        throttled(Some(1), None),
        throttled(None, Some(300)),
        FaultAction::Reset,
        FaultAction::Cut { bytes: 1000 },
        FaultAction::CloseAfter,
        FaultAction::Expire,
        FaultAction::Stall,
    ] {
        assert_commits_despite(&rig, &mount, &FaultRule::times("put_part", 1, action.clone()).part(1));
        assert_commits_despite(&rig, &mount, &FaultRule::times("put_part", 3, action));
    }
}

#[test]
fn transient_call_faults_cost_only_time() {
    let rig = Rig::new();
    let mount = mount(&rig);
    for endpoint in ["file/create", "file/get_upload_url", "file/complete"] {
        for action in [
            status(500, "InternalError"),
            status(503, "ServiceUnavailable"),
            status(504, ""),
            throttled(None, Some(100)),
            FaultAction::Reset,
            FaultAction::CloseAfter,
        ] {
            assert_commits_despite(&rig, &mount, &FaultRule::times(endpoint, 1, action));
        }
    }
}

#[test]
fn retry_after_is_honoured() {
    let rig = Rig::new();
    let mount = mount(&rig);
    rig.server().faults().add(FaultRule::times("file/create", 1, throttled(Some(2), None)));
    let start = Instant::now();
    fs::write(mount.at("f"), b"x").unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2));
}

#[test]
fn lost_complete_answer_is_resolved_by_reading() {
    let rig = Rig::new();
    let mount = mount(&rig);
    let bytes = fresh_bytes(3 * PART);
    rig.server().faults().add(FaultRule::times("file/complete", 1, FaultAction::CloseAfter));
    fs::write(mount.at("f"), &bytes).unwrap();
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    assert_eq!(rig.client().names(""), ["f"]);
}

#[test]
fn expired_token_is_refreshed_during_write() {
    let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("refresh-1".into())));
    let token_file = tempfile::NamedTempFile::new().unwrap();
    let access_token = crate::rig::TOKEN;
    let text = format!(r#"{{"access_token":"{access_token}","refresh_token":"refresh-1","app_id":"app"}}"#);
    fs::write(token_file.path(), text).unwrap();
    let path = token_file.path().to_str().unwrap().to_owned();
    let mount = rig.mount_with(&["--token-file", &path, "--part-size", "64KiB"]);
    let bytes = fresh_bytes(10 * PART);
    let mut file = File::create(mount.at("f")).unwrap();
    let (first, second) = bytes.split_at(5 * PART);
    file.write_all(first).unwrap();
    rig.server().faults().add(FaultRule::times("file/get_upload_url", 1, FaultAction::Revoke));
    rig.server().faults().add(FaultRule::times("file/complete", 1, FaultAction::Revoke));
    file.write_all(second).unwrap();
    file.sync_all().unwrap();
    rig.server().faults().clear();
    assert_eq!(rig.client().read("f").unwrap(), bytes);
    let renewed = fs::read_to_string(token_file.path()).unwrap();
    assert!(!renewed.contains(access_token), "the token file still has the revoked token");
    assert_eq!(fs::metadata(token_file.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn revoked_token_returns_eacces() {
    let rig = Rig::new();
    let mount = mount(&rig);
    rig.server().faults().add(FaultRule::new("file/create", status(401, "AccessTokenInvalid")));
    assert_eq!(close_errno(&mount, "f", 10), libc::EACCES);
}

/// A permanent failure: the errno reaches the program, the old revision stays, and no new file appears.
fn assert_fails_with(rule: &FaultRule, expected: i32) {
    let rig = Rig::new();
    let mount = mount(&rig);
    let old = fresh_bytes(2 * PART);
    fs::write(mount.at("old"), &old).unwrap();
    rig.server().faults().add(rule.clone());
    for name in ["old", "new"] {
        for size in [10, 40 * PART] {
            let code = close_errno(&mount, name, size);
            assert_eq!(code, expected, "{rule:?} {name} {size}");
        }
    }
    rig.server().faults().clear();
    wait_until("the failed file has vanished from the mount", || (!mount.at("new").exists()).then_some(()));
    assert_eq!(rig.client().names(""), ["old"]);
    assert_eq!(rig.client().read("old").unwrap(), old);
    assert_eq!(fs::read(mount.at("old")).unwrap(), old);
    // After the fault, the same name works again.
    fs::write(mount.at("new"), b"fine").unwrap();
    assert_eq!(rig.client().read("new").unwrap(), b"fine");
}

/// Writes a file and returns the first errno of write or close, 0 without one.
fn close_errno(mount: &Mount, name: &str, size: usize) -> i32 {
    use std::os::fd::IntoRawFd;
    let mut file = File::create(mount.at(name)).unwrap();
    let written = file.write_all(&fresh_bytes(size));
    let fd = file.into_raw_fd();
    // SAFETY: this function owns the descriptor and does not use it afterwards.
    let closed = unsafe { libc::close(fd) };
    let close_error = std::io::Error::last_os_error();
    match written {
        Err(error) => error.raw_os_error().unwrap(),
        Ok(()) if closed != 0 => close_error.raw_os_error().unwrap(),
        Ok(()) => 0,
    }
}

#[test]
fn full_drive_returns_enospc() {
    assert_fails_with(&FaultRule::new("file/create", status(403, "QuotaExhausted.Drive")), libc::ENOSPC);
}

#[test]
fn missing_permission_returns_eacces() {
    assert_fails_with(
        &FaultRule::new("file/create", status(403, "ForbiddenNoPermission.File")),
        libc::EACCES,
    );
}

#[test]
fn refused_name_returns_einval() {
    assert_fails_with(&FaultRule::new("file/create", status(400, "InvalidParameter.Name")), libc::EINVAL);
}

#[test]
fn hash_mismatch_returns_eio() {
    assert_fails_with(
        &FaultRule::new("file/complete", status(400, "InvalidParameter.ContentHash")),
        libc::EIO,
    );
}

#[test]
fn refused_part_returns_eacces() {
    assert_fails_with(&FaultRule::new("put_part", status(403, "SignatureDoesNotMatch")), libc::EACCES);
}

#[test]
fn error_repeats_until_file_is_closed() {
    let rig = Rig::new();
    let mount = mount(&rig);
    rig.server().faults().add(FaultRule::new("put_part", status(403, "AccessDenied")));
    let mut file = File::create(mount.at("f")).unwrap();
    let first = wait_until("a write fails", || file.write_all(&fresh_bytes(PART)).err());
    assert_eq!(first.raw_os_error(), Some(libc::EACCES));
    for _ in 0..3 {
        assert_eq!(errno(file.write(b"x")), libc::EACCES);
        assert_eq!(errno(file.sync_all()), libc::EACCES);
    }
}

#[test]
fn refused_parallel_upload_becomes_ordered() {
    let rig = Rig::with(|config| config.quirks.parallel_refused = true);
    let mount = mount(&rig);
    for name in ["a", "b"] {
        let bytes = fresh_bytes(5 * PART + 1);
        fs::write(mount.at(name), &bytes).unwrap();
        assert_eq!(rig.client().read(name).unwrap(), bytes);
    }
}

#[test]
fn ignored_range_header_is_handled() {
    let rig = Rig::with(|config| config.quirks.ignore_range = true);
    let mount = mount(&rig);
    let bytes = fresh_bytes(24_000_000);
    fs::write(mount.at("f"), &bytes).unwrap();
    drop(mount);
    // A read cache that is larger than the file, and a smaller one.
    for cache in ["64MiB", "8MiB"] {
        let before = rig.server().stats();
        let mount = rig.mount_with(&["--read-cache", cache]);
        assert!(fs::read(mount.at("f")).unwrap() == bytes);
        drop(mount);
        let after = rig.server().stats();
        assert_eq!(after.count("get_object") - before.count("get_object"), 1, "read cache of {cache}");
        assert_eq!(after.sent_bytes - before.sent_bytes, bytes.len() as u64, "read cache of {cache}");
    }
}

#[test]
fn odd_items_leave_the_root_usable() {
    let rig = Rig::with(|config| config.quirks.odd_list_items = true);
    let mount = mount(&rig);
    fs::create_dir(mount.at("directory")).unwrap();
    fs::write(mount.at("file"), b"content").unwrap();
    let mount = mount.restart(&rig.endpoint(), &[]);
    let mut names: Vec<_> =
        fs::read_dir(mount.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["directory", "file"]);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"content");
    mount.wait_for_log("skipped an invalid entry");
}

#[test]
fn short_or_broken_downloads_are_repeated() {
    let rig = Rig::new();
    let bytes = fresh_bytes(3_000_000);
    {
        let mount = mount(&rig);
        fs::write(mount.at("f"), &bytes).unwrap();
    }
    for action in [
        FaultAction::Short { bytes: 1000 },
        FaultAction::Cut { bytes: 1000 },
        FaultAction::Reset,
        FaultAction::Expire,
        status(503, "ServiceUnavailable"),
        FaultAction::Stall,
    ] {
        let mount = mount(&rig);
        rig.server().faults().clear();
        rig.server().faults().add(FaultRule::times("get_object", 2, action.clone()));
        assert_eq!(fs::read(mount.at("f")).unwrap(), bytes, "{action:?}");
    }
}

#[test]
fn stalled_server_blocks_only_the_writer() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB", "--buffer-size", "4MiB"]);
    fs::write(mount.at("known"), b"x").unwrap();
    rig.server().faults().add(FaultRule::new("put_part", FaultAction::Stall));
    let bytes = fresh_bytes(32 << 20);
    let (path, copy) = (mount.at("big"), bytes.clone());
    let (progress, seen) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        let mut file = File::create(path).unwrap();
        for piece in copy.chunks(PART) {
            file.write_all(piece).unwrap();
            progress.send(piece.len()).unwrap();
        }
    });
    rig.block_on(rig.server().faults().wait_for_hits(1));
    // The writer must block at the buffer size.
    let mut taken = 0;
    while let Ok(bytes) = seen.recv_timeout(Duration::from_secs(2)) {
        taken += bytes;
    }
    assert!(taken <= 4 << 20, "{taken} bytes were accepted while the drive accepted none");
    let start = Instant::now();
    assert_eq!(fs::metadata(mount.at("known")).unwrap().len(), 1);
    assert!(fs::read_dir(mount.path()).unwrap().count() >= 2);
    assert!(fs::metadata(mount.at("big")).unwrap().len() > 0);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(mount.peak_memory_bytes() < 128 << 20);
    rig.server().faults().clear();
    writer.join().unwrap();
    assert_eq!(rig.client().read("big").unwrap(), bytes);
}

/// Starts a program, signals it after `waits` returns, and checks that the signal ends it while the drive is silent.
fn kill_while_waiting(mut command: Command, signal: i32, waits: impl FnOnce()) {
    let mut program = command.spawn().unwrap();
    waits();
    // SAFETY: kill takes no pointers; the pid belongs to our child, which is not reaped yet.
    assert_eq!(unsafe { libc::kill(program.id().cast_signed(), signal) }, 0);
    let ended = wait_until(&format!("{command:?} is dead"), || program.try_wait().unwrap());
    assert_eq!(ended.signal(), Some(signal));
}

#[test]
fn killed_program_exits_while_drive_is_silent() {
    let rig = Rig::new();
    let old = fresh_bytes(4 << 20);
    let other = rig.mount();
    fs::write(other.at("old"), &old).unwrap();
    assert_eq!(other.stop(), 0);
    let mount = rig.mount_with(&["--part-size", "64KiB", "--buffer-size", "4MiB"]);
    let faults = rig.server().faults();
    faults.add(FaultRule::new("put_part", FaultAction::Stall));
    // Killed in a write, and in the implicit close at exit.
    let mut writes = Command::new("cp");
    writes.arg("/dev/zero").arg(mount.at("big"));
    kill_while_waiting(writes, libc::SIGKILL, || {
        rig.block_on(faults.wait_for_hits(1));
        let mut last = (0, Instant::now());
        wait_until("the writer is blocked", || {
            let size = fs::metadata(mount.at("big")).unwrap().len();
            if size != last.0 {
                last = (size, Instant::now());
            }
            (last.1.elapsed() > Duration::from_millis(500)).then_some(())
        });
    });
    // Killed in an explicit close. (SIGTERM, because a shell may ignore SIGINT for background tests.)
    let source = tempfile::NamedTempFile::new().unwrap();
    let small = 2 * PART - 1;
    fs::write(source.path(), fresh_bytes(small)).unwrap();
    let mut closes = Command::new("cp");
    closes.arg(source.path()).arg(mount.at("small"));
    kill_while_waiting(closes, libc::SIGTERM, || {
        wait_until("the program closes its file", || {
            (xattr(&mount.at("small"), "user.pdsfs.state").ok()? == b"committing").then_some(())
        });
    });
    faults.clear();
    wait_until("the written bytes are on the drive", || {
        let size = |name| rig.client().find(name).map_or(0, |meta| meta.size);
        (size("big") > 0 && size("small") == small as u64).then_some(())
    });
    // Killed in a read.
    faults.add(FaultRule::new("get_object", FaultAction::Stall));
    let mut reads = Command::new("cat");
    reads.arg(mount.at("old")).stdout(Stdio::null());
    kill_while_waiting(reads, libc::SIGTERM, || rig.block_on(faults.wait_for_hits(1)));
    faults.clear();
    assert_eq!(fs::read(mount.at("old")).unwrap(), old);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn first_part_arrives_before_fifth_is_written() {
    let rig = Rig::new();
    let mount = mount(&rig);
    let bytes = fresh_bytes(10 * PART);
    let mut file = File::create(mount.at("f")).unwrap();
    for (number, piece) in bytes.chunks(PART).enumerate() {
        if number == 4 {
            wait_until("the server has part 1", || {
                rig.server()
                    .stats()
                    .open_uploads
                    .iter()
                    .any(|u| u.parts.iter().any(|p| p.part_number == 1))
                    .then_some(())
            });
            assert!(rig.client().find("f").is_none());
        }
        file.write_all(piece).unwrap();
    }
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
}

#[test]
fn unrelated_404_deletes_no_file() {
    let rig = Rig::new();
    let mount = mount(&rig);
    fs::write(mount.at("f"), b"kept").unwrap();
    // A front end without this path, and a removed drive.
    for answer in [status(404, ""), status(404, "NotFound.Drive")] {
        rig.server().faults().add(FaultRule::times("recyclebin/trash", 1, answer));
        assert_eq!(errno(fs::remove_file(mount.at("f"))), libc::EIO);
        assert_eq!(fs::read(mount.at("f")).unwrap(), b"kept");
    }
    fs::remove_file(mount.at("f")).unwrap();
    assert_eq!(rig.client().find("f"), None);
    assert_eq!(mount.stop(), 0);
}

/// A hostile service could have the answers of this machine's own services uploaded.
#[test]
fn content_of_a_strange_host_is_refused_at_once() {
    let rig = Rig::with(|config| config.public_url = Some("http://0.0.0.0:9".parse().unwrap()));
    let mount = rig.mount();
    let started = Instant::now();
    assert_eq!(close_errno(&mount, "f", 1), libc::EIO);
    assert!(started.elapsed() < Duration::from_secs(30), "the refused upload was repeated");
    mount.wait_for_log("its host is an address of no host");
    assert_eq!(rig.server().stats().count("put_part"), 0);
}
