//! Files with holes: zeros that no program wrote are uploaded only up to `zero_fill_max`.

use std::fs::{self, File};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::monitoring;
use crate::rig::{Mount, Rig, errno, fresh_bytes, wait_until};

const MIB: u64 = 1 << 20;
/// Larger than every server of this module accepts in time.
const HUGE: u64 = 75 << 30;

fn small_bound(rig: &Rig, arguments: &[&str]) -> Mount {
    rig.mount_with(&[&["--zero-fill-max", "4MiB"], arguments].concat())
}

fn create(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Closes a file and returns the error of close(2).
fn close(file: File) -> std::io::Result<()> {
    // SAFETY: the descriptor is owned and not used afterwards.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn allocate(file: &File, offset: u64, len: u64, mode: i32) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open.
    let outcome = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset.cast_signed(), len.cast_signed()) };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn truncate(path: &Path, size: u64) -> std::io::Result<()> {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path outlives the call.
    let outcome = unsafe { libc::truncate(path.as_ptr(), size.cast_signed()) };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn parts_sent(rig: &Rig) -> u64 {
    rig.server().stats().count("put_part")
}

#[test]
fn large_extension_is_refused_at_the_call() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("f"), b"content").unwrap();
    assert_eq!(errno(truncate(&mount.at("f"), HUGE)), libc::EFBIG);
    let file = create(&mount.at("f"));
    assert_eq!(errno(file.set_len(HUGE)), libc::EFBIG);
    assert_eq!(file.metadata().unwrap().len(), 7);
    close(file).unwrap();
    // `truncate -s 75G new` leaves an empty file.
    let file = create(&mount.at("new"));
    assert_eq!(errno(file.set_len(HUGE)), libc::EFBIG);
    close(file).unwrap();
    assert_eq!(rig.client().read("f").unwrap(), b"content");
    assert_eq!(rig.client().read("new").unwrap(), b"");
    assert!(parts_sent(&rig) <= 2, "more than the content of two files was sent");
    mount.wait_for_log("zero_fill_max");
}

#[test]
fn extension_within_the_bound_sends_zeros() {
    let rig = Rig::new();
    let mount = small_bound(&rig, &[]);
    fs::write(mount.at("f"), b"content").unwrap();
    truncate(&mount.at("f"), 7 + 4 * MIB).unwrap();
    let mut expected = b"content".to_vec();
    expected.resize(7 + 4 * MIB as usize, 0);
    assert!(rig.client().read("f").unwrap() == expected);
    assert_eq!(errno(truncate(&mount.at("f"), 8 + 8 * MIB)), libc::EFBIG);
}

#[test]
fn preallocated_file_that_is_filled_is_saved() {
    let rig = Rig::new();
    let bytes = fresh_bytes(10 * MIB as usize);
    for arguments in [&[][..], &["--part-size", "1MiB"], &["--part-size", "1MiB", "--cache-size", "off"]] {
        let mount = small_bound(&rig, arguments);
        // In order, as a download does.
        let file = create(&mount.at("download"));
        allocate(&file, 0, bytes.len() as u64, 0).unwrap();
        for (index, piece) in bytes.chunks(MIB as usize).enumerate() {
            file.write_all_at(piece, index as u64 * MIB).unwrap();
        }
        close(file).unwrap();
        assert!(rig.client().read("download").unwrap() == bytes, "{arguments:?}");
        if arguments.contains(&"off") {
            continue;
        }
        // In reverse order, with an fsync in the middle, as a torrent client does.
        let file = create(&mount.at("torrent"));
        allocate(&file, 0, bytes.len() as u64, 0).unwrap();
        for (index, piece) in bytes.chunks(MIB as usize).enumerate().rev() {
            file.write_all_at(piece, index as u64 * MIB).unwrap();
            if index == 8 {
                assert_eq!(errno(file.sync_all()), libc::EFBIG);
            }
        }
        file.sync_all().unwrap();
        close(file).unwrap();
        assert!(rig.client().read("torrent").unwrap() == bytes, "{arguments:?}");
        for name in ["download", "torrent"] {
            fs::remove_file(mount.at(name)).unwrap();
        }
    }
}

#[test]
fn holes_that_remain_fail_the_close() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("old"), b"old").unwrap();
    let sent = parts_sent(&rig);
    // Allocated and never written.
    let file = create(&mount.at("allocated"));
    allocate(&file, 0, HUGE, 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), HUGE);
    assert_eq!(errno(close(file)), libc::EFBIG);
    // One byte far from the others.
    let file = create(&mount.at("far"));
    file.write_all_at(b"x", 5).unwrap();
    file.write_all_at(b"y", HUGE).unwrap();
    assert_eq!(errno(close(file)), libc::EFBIG);
    // A new end of a file that the drive has.
    let file = create(&mount.at("old"));
    file.write_all_at(b"y", HUGE).unwrap();
    assert_eq!(errno(close(file)), libc::EFBIG);
    assert_eq!(rig.client().names(""), ["old"]);
    assert_eq!(rig.client().read("old").unwrap(), b"old");
    assert_eq!(parts_sent(&rig), sent);
    let failure =
        wait_until("the failure is in the status", || monitoring::status(&mount).failures.into_iter().next());
    assert!(failure.text.contains("zero_fill_max"), "{}", failure.text);
}

#[test]
fn hole_can_be_filled_after_a_refused_sync() {
    let rig = Rig::new();
    let mount = small_bound(&rig, &[]);
    let file = create(&mount.at("f"));
    file.write_all_at(b"end", 10 * MIB).unwrap();
    assert_eq!(errno(file.sync_all()), libc::EFBIG);
    let bytes = fresh_bytes(7 * MIB as usize);
    file.write_all_at(&bytes, 0).unwrap();
    close(file).unwrap();
    let mut expected = bytes;
    expected.resize(10 * MIB as usize, 0);
    expected.extend_from_slice(b"end");
    assert!(rig.client().read("f").unwrap() == expected);
    // The same by a truncation.
    let file = create(&mount.at("g"));
    file.write_all_at(b"end", 10 * MIB).unwrap();
    assert_eq!(errno(file.sync_all()), libc::EFBIG);
    file.set_len(3).unwrap();
    close(file).unwrap();
    assert_eq!(rig.client().read("g").unwrap(), [0; 3]);
}

#[test]
fn stream_sends_bounded_zeros() {
    let rig = Rig::new();
    // A stream without a staged file sends the zeros of a gap at once.
    let mount = small_bound(&rig, &["--part-size", "64KiB", "--cache-size", "off"]);
    let file = create(&mount.at("f"));
    file.write_all_at(b"x", 0).unwrap();
    assert_eq!(errno(file.write_at(b"y", 5 * MIB)), libc::EFBIG);
    file.write_all_at(b"y", MIB).unwrap();
    close(file).unwrap();
    assert_eq!(rig.client().find("f").unwrap().size, MIB + 1);
    // Many gaps, each below a part.
    let mount = small_bound(&rig, &["--part-size", "64KiB"]);
    let file = create(&mount.at("g"));
    for index in 0..200 {
        file.write_all_at(b"x", index * 60_000).unwrap();
    }
    assert_eq!(errno(close(file)), libc::EFBIG);
    assert!(rig.client().find("g").is_none());
    assert!(parts_sent(&rig) < 100, "more zeros than the bound were sent");
    // Gaps that the program fills soon do not count.
    let bytes = fresh_bytes(16 * MIB as usize);
    let mount = small_bound(&rig, &["--part-size", "1MiB"]);
    let file = create(&mount.at("h"));
    for (index, block) in bytes.chunks(32 << 10).enumerate() {
        let at = index as u64 * (32 << 10);
        // The last block of a part completes it.
        let first = if index % 32 == 31 { 0 } else { 16 << 10 };
        file.write_all_at(&block[first..], at + first as u64).unwrap();
        file.write_all_at(&block[..first], at).unwrap();
    }
    close(file).unwrap();
    assert!(rig.client().read("h").unwrap() == bytes);
}

#[test]
fn local_only_file_may_be_sparse() {
    let rig = Rig::new();
    let mount = small_bound(&rig, &["--local-only", "*.swp"]);
    let file = create(&mount.at("a.swp"));
    file.set_len(HUGE).unwrap();
    assert_eq!(file.metadata().unwrap().len(), HUGE);
    close(file).unwrap();
}

#[test]
fn allocation_beyond_free_space_is_refused() {
    let rig = Rig::with(|config| config.quota_bytes = Some(100 * MIB));
    let mount = rig.mount();
    let file = create(&mount.at("f"));
    assert_eq!(errno(allocate(&file, 0, 101 * MIB, 0)), libc::ENOSPC);
    assert_eq!(file.metadata().unwrap().len(), 0);
    allocate(&file, 0, 60 * MIB, 0).unwrap();
    // Within the size, nothing more is needed.
    allocate(&file, 50 * MIB, MIB, 0).unwrap();
    file.set_len(10).unwrap();
    close(file).unwrap();
    assert_eq!(rig.client().find("f").unwrap().size, 10);
}
