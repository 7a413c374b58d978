//! Writes that are not front to back: the same bytes as in a local directory, through the mount, on the drive, and
//! through the next mount.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use pdsfs::server::{FaultAction, FaultRule};

use crate::rig::{Mount, Rig, errno, fresh_bytes, wait_until};

const PART: usize = 256;

fn small_parts(rig: &Rig) -> Mount {
    rig.mount_with(&["--part-size", "256"])
}

pub fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Applies `change` to a file of the mount and to a local one. Both, the drive and a fresh mount must have the same
/// bytes afterwards.
pub fn assert_same_as_local(before: Option<&[u8]>, change: impl Fn(&Path)) {
    let (rig, plain) = (Rig::new(), tempfile::tempdir().unwrap());
    let mount = small_parts(&rig);
    for path in [plain.path().join("f"), mount.at("f")] {
        if let Some(bytes) = before {
            fs::write(&path, bytes).unwrap();
        }
        change(&path);
    }
    let expected = fs::read(plain.path().join("f")).unwrap();
    assert_eq!(fs::read(mount.at("f")).unwrap(), expected, "through the same mount");
    assert_eq!(fs::metadata(mount.at("f")).unwrap().len(), expected.len() as u64);
    assert_eq!(rig.client().read("f").unwrap(), expected, "on the drive");
    assert_eq!(fs::read(small_parts(&rig).at("f")).unwrap(), expected, "through a fresh mount");
}

#[test]
fn header_can_be_written_last() {
    let bytes = fresh_bytes(20 * PART);
    assert_same_as_local(None, |path| {
        let mut file = File::create(path).unwrap();
        file.write_all(&[0; 100]).unwrap();
        file.write_all(&bytes).unwrap();
        file.seek(SeekFrom::Start(10)).unwrap();
        file.write_all(b"the header").unwrap();
    });
}

#[test]
fn altered_base_is_not_committed() {
    let rig = Rig::new();
    let base = fresh_bytes(300_000);
    let mount = rig.mount();
    fs::write(mount.at("f"), &base).unwrap();
    let mount = mount.restart(&rig.endpoint(), &[]);
    let append = || {
        let mut file = OpenOptions::new().append(true).open(mount.at("f"))?;
        file.write_all(b"more")?;
        file.sync_all()
    };
    rig.server().faults().add(FaultRule::times("get_object", 1, FaultAction::Corrupt));
    assert_eq!(errno(append()), libc::EIO);
    mount.wait_for_log("do not have the SHA-1");
    assert_eq!(rig.client().read("f").unwrap(), base);
    // The failed copy goes with its handle, and the kernel sends the RELEASE after the close has returned.
    wait_until("the failed copy is dropped", || append().ok());
    assert_eq!(rig.client().read("f").unwrap(), [&base[..], b"more"].concat());
}

#[test]
fn seek_back_costs_one_commit_and_no_download() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    let mut expected = fresh_bytes(2 << 20);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&expected).unwrap();
    file.write_all_at(b"the header", 40).unwrap();
    expected[40..50].copy_from_slice(b"the header");
    let mut seen = vec![0; expected.len()];
    assert_eq!(errno(file.read_at(&mut seen, 0)), libc::EBADF);
    assert_eq!(fs::read(mount.at("f")).unwrap(), expected, "before the close");
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), expected);
    let stats = rig.server().stats();
    assert_eq!(stats.count("file/complete"), 1, "{stats:?}");
    assert!(stats.received_bytes <= 2 * expected.len() as u64 + 4096, "{stats:?}");
}

#[test]
fn stream_without_tee_commits_before_seek_back() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB", "--cache-size", "2MiB"]);
    let mut expected = fresh_bytes(3 << 20);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&expected).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(b"the header", 40).unwrap();
    drop(file);
    expected.truncate(1 << 20);
    expected[40..50].copy_from_slice(b"the header");
    assert_eq!(rig.client().read("f").unwrap(), expected);
    assert_eq!(rig.server().stats().count("file/complete"), 2);
}

#[test]
fn fsync_in_stream_needs_no_download() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    let bytes = fresh_bytes(3 << 20);
    let mut file = File::create(mount.at("f")).unwrap();
    for piece in bytes.chunks(1 << 20) {
        file.write_all(piece).unwrap();
        file.sync_all().unwrap();
    }
    drop(file);
    assert_eq!(rig.server().stats().count("get_object"), 0);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
}

#[test]
fn stream_can_be_read_back_whole() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    let bytes = fresh_bytes(2 << 20);
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&bytes).unwrap();
    assert!(fs::read(mount.at("f")).unwrap() == bytes);
    assert_eq!(rig.server().stats().count("file/complete"), 0);
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
}

#[test]
fn unsent_bytes_change_within_the_stream() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    let mut expected = fresh_bytes(100_000);
    let file = File::create(mount.at("f")).unwrap();
    file.write_all_at(&expected[..80_000], 0).unwrap();
    // Into the part being filled, ahead of the frontier, and into that gap.
    file.write_all_at(&[1; 100], 70_000).unwrap();
    file.write_all_at(&expected[90_000..], 90_000).unwrap();
    file.write_all_at(&expected[80_000..90_000], 80_000).unwrap();
    expected[70_000..70_100].fill(1);
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), expected);
    let stats = rig.server().stats();
    assert_eq!((stats.count("file/complete"), stats.count("put_part")), (1, 2), "{stats:?}");
}

#[test]
fn committed_file_is_edited_in_place() {
    let bytes = fresh_bytes(10 * PART + 77);
    assert_same_as_local(Some(&bytes), |path| {
        let file = read_write(path);
        file.write_all_at(b"middle", 1000).unwrap();
        file.write_all_at(b"front", 0).unwrap();
        file.write_all_at(b"behind the end", bytes.len() as u64 + 300).unwrap();
    });
}

#[test]
fn append_extends_the_file() {
    let bytes = fresh_bytes(5 * PART + 1);
    assert_same_as_local(Some(&bytes), |path| {
        for line in ["one\n", "two\n"] {
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(line.as_bytes()).unwrap();
        }
    });
}

#[test]
fn two_appenders_keep_each_others_data() {
    assert_same_as_local(None, |path| {
        let open = || OpenOptions::new().append(true).create(true).open(path).unwrap();
        let (mut one, mut two) = (open(), open());
        for round in 0..50 {
            writeln!(one, "first {round}").unwrap();
            writeln!(two, "second {round}").unwrap();
        }
    });
}

#[test]
fn files_are_truncated_and_extended() {
    let bytes = fresh_bytes(8 * PART);
    for (first, second) in [(3 * PART, 6 * PART), (0, 5), (9 * PART, 10), (700, 700), (8 * PART + 1, 100)] {
        assert_same_as_local(Some(&bytes), |path| {
            let file = read_write(path);
            file.set_len(first as u64).unwrap();
            file.set_len(second as u64).unwrap();
        });
        assert_same_as_local(None, |path| {
            let mut file = File::create(path).unwrap();
            file.write_all(&bytes).unwrap();
            file.set_len(first as u64).unwrap();
            file.write_all(b"at the old place").unwrap();
            file.set_len(second as u64).unwrap();
        });
    }
}

#[test]
fn sparse_file_reads_zeros_in_holes() {
    assert_same_as_local(None, |path| {
        let file = File::create(path).unwrap();
        file.write_all_at(b"far", 40 * PART as u64).unwrap();
        file.write_all_at(b"near", 3).unwrap();
    });
}

#[test]
fn holes_are_punched_and_ranges_zeroed() {
    let bytes = fresh_bytes(9 * PART);
    let allocate = |file: &File, mode: i32, offset: usize, len: usize| {
        // SAFETY: the descriptor is open; no pointers are passed.
        let failed = unsafe {
            libc::fallocate(file.as_raw_fd(), mode, offset.cast_signed() as i64, len.cast_signed() as i64)
        };
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    };
    assert_same_as_local(Some(&bytes), |path| {
        let file = read_write(path);
        allocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 100, 900);
        allocate(&file, libc::FALLOC_FL_ZERO_RANGE, 8 * PART, 2 * PART);
        allocate(&file, 0, 0, 12 * PART);
        file.write_all_at(b"x", 500).unwrap();
    });
}

#[test]
fn written_bytes_are_readable_at_once() {
    let bytes = fresh_bytes(12 * PART);
    assert_same_as_local(Some(&bytes), |path| {
        let mut file = read_write(path);
        file.write_all_at(b"changed", 1500).unwrap();
        let mut seen = Vec::new();
        file.read_to_end(&mut seen).unwrap();
        let mut expected = bytes.clone();
        expected[1500..1507].copy_from_slice(b"changed");
        assert!(seen == expected);
        // A second handle reads the same, and so does a handle opened after the commit.
        assert!(fs::read(path).unwrap() == expected);
    });
}

#[test]
fn two_writers_share_one_content() {
    let bytes = fresh_bytes(6 * PART);
    assert_same_as_local(Some(&bytes), |path| {
        let (one, two) = (read_write(path), read_write(path));
        one.write_all_at(b"one", 10).unwrap();
        two.write_all_at(b"two", 12).unwrap();
        one.write_all_at(b"!", 6 * PART as u64).unwrap();
        drop(one);
        two.write_all_at(b"later", 700).unwrap();
    });
}

#[test]
fn shared_mapping_is_written_back() {
    let bytes = fresh_bytes(40_000);
    assert_same_as_local(Some(&bytes), |path| {
        let file = read_write(path);
        // SAFETY: the mapping is as long as the file and is unmapped before the file is closed.
        unsafe {
            let len = 40_000;
            let (protection, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            let at = libc::mmap(std::ptr::null_mut(), len, protection, shared, file.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            std::slice::from_raw_parts_mut(at.cast::<u8>(), len)[30_000..30_005].copy_from_slice(b"local");
            assert_eq!(libc::munmap(at, len), 0);
        }
    });
}

#[test]
fn every_open_mode_matches_local_file() {
    let (rig, plain) = (Rig::new(), tempfile::tempdir().unwrap());
    let mount = small_parts(&rig);
    let bytes = fresh_bytes(3 * PART);
    let flags = [libc::O_CREAT, libc::O_EXCL, libc::O_TRUNC, libc::O_APPEND];
    for access in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        for chosen in 0..1 << flags.len() {
            for exists in [false, true] {
                let extra = flags.iter().enumerate().filter(|(bit, _)| chosen >> bit & 1 == 1);
                let extra = extra.fold(0, |all, (_, flag)| all | flag);
                if extra & libc::O_EXCL != 0 && extra & libc::O_CREAT == 0 {
                    // Undefined by POSIX.
                    continue;
                }
                let run = |dir: &Path| {
                    let path = dir.join(format!("f-{access}-{chosen}-{exists}"));
                    if exists {
                        fs::write(&path, &bytes).unwrap();
                    }
                    // The raw call: the standard library refuses some combinations itself.
                    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
                    // SAFETY: the path is a valid string; the descriptor is owned by the file.
                    let opened = unsafe {
                        let fd = libc::open(name.as_ptr(), access | extra | libc::O_CLOEXEC, 0o644);
                        if fd < 0 {
                            Err(std::io::Error::last_os_error().raw_os_error())
                        } else {
                            Ok(<File as std::os::fd::FromRawFd>::from_raw_fd(fd))
                        }
                    };
                    let wrote = opened.map(|mut file| {
                        let wrote = file.write(b"new").map_err(|e| e.raw_os_error());
                        let mut seen = Vec::new();
                        let read = file.read_to_end(&mut seen).map_err(|e| e.raw_os_error());
                        (wrote, read, seen)
                    });
                    (wrote, fs::read(&path).map_err(|e| e.raw_os_error()))
                };
                assert_eq!(run(mount.path()), run(plain.path()), "{access:o} {extra:o} {exists}");
            }
        }
    }
}

#[test]
fn direct_io_is_accepted() {
    assert_same_as_local(None, |path| {
        #[repr(align(4096))]
        struct Aligned([u8; 8192]);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        file.write_all_at(&Aligned([7; 8192]).0, 0).unwrap();
        file.write_all_at(&Aligned([8; 8192]).0, 4096).unwrap();
    });
}

#[test]
fn declared_size_keeps_the_stream() {
    let rig = Rig::new();
    let mount = small_parts(&rig);
    let bytes = fresh_bytes(10 * PART);
    for (name, written) in [("whole", 10 * PART), ("less", 4 * PART + 3), ("nothing", 0)] {
        let mut file = File::create(mount.at(name)).unwrap();
        file.set_len(10 * PART as u64).unwrap();
        assert_eq!(fs::metadata(mount.at(name)).unwrap().len(), 10 * PART as u64);
        let before = rig.server().stats().count("put_part");
        file.write_all(&bytes[..written]).unwrap();
        if written > 2 * PART {
            wait_until("parts are sent while the file is open", || {
                (rig.server().stats().count("put_part") > before).then_some(())
            });
        }
        drop(file);
        let mut expected = bytes[..written].to_vec();
        expected.resize(10 * PART, 0);
        assert_eq!(rig.client().read(name).unwrap(), expected, "{name}");
    }
    assert_eq!(rig.server().stats().count("file/complete"), 3);
}

#[test]
fn rewrite_of_same_bytes_uploads_nothing() {
    let rig = Rig::new();
    let mount = small_parts(&rig);
    let bytes = fresh_bytes(7 * PART);
    fs::write(mount.at("f"), &bytes).unwrap();
    let before = rig.server().stats().count("put_part");
    let file = read_write(&mount.at("f"));
    file.write_all_at(&bytes[300..400], 300).unwrap();
    drop(file);
    assert_eq!(rig.server().stats().count("put_part"), before);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
}

#[test]
fn full_quota_fails_random_writer_not_stream() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB", "--cache-size", "1MiB"]);
    let bytes = fresh_bytes(3 << 20);
    fs::write(mount.at("f"), &bytes).unwrap();
    let file = read_write(&mount.at("f"));
    file.write_all_at(&[1; 1000], 5).unwrap();
    assert_eq!(errno(file.write_all_at(&bytes[..2 << 20], 100_000)), libc::ENOSPC);
    fs::write(mount.at("g"), &bytes).unwrap();
    assert_eq!(rig.client().read("g").unwrap(), bytes);
    // A commit of the first file would need all of the quota: it is refused, and the drive keeps its content.
    assert_eq!(errno(file.sync_all()), libc::ENOSPC);
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), bytes);
}

#[test]
fn unlinked_file_is_readable_and_writable() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB", "--read-cache", "1MiB"]);
    let mut expected = fresh_bytes(3 << 20);
    fs::write(mount.at("f"), &expected).unwrap();
    let (reader, file) = (File::open(mount.at("f")).unwrap(), read_write(&mount.at("f")));
    fs::remove_file(mount.at("f")).unwrap();
    assert!(fs::metadata(mount.at("f")).is_err());
    assert_eq!(rig.client().names(""), Vec::<String>::new());
    let mut seen = vec![0; expected.len()];
    reader.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == expected);
    file.write_all_at(b"unlinked", 1 << 20).unwrap();
    expected[1 << 20..(1 << 20) + 8].copy_from_slice(b"unlinked");
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == expected);
    drop((reader, file));
    assert_eq!(rig.client().names(""), Vec::<String>::new());
}

#[test]
fn failed_upload_stays_failed_after_seek_back() {
    let rig = Rig::new();
    let mount = small_parts(&rig);
    let failure = FaultAction::status(403, "QuotaExhausted.Drive");
    rig.server().faults().add(FaultRule::new("file/create", failure));
    let file = File::create(mount.at("f")).unwrap();
    let mut at = 0;
    let first = wait_until("the failure arrives", || {
        let wrote = file.write_all_at(&[1; 300], at);
        at += 300;
        wrote.err()
    });
    assert_eq!(errno(file.write_all_at(b"back", 0)), first.raw_os_error().unwrap());
    assert_eq!(errno(file.set_len(10)), first.raw_os_error().unwrap());
}

/// The removal of a file ends its upload on the drive but not the writer.
#[test]
fn stream_continues_after_unlink() {
    let rig = Rig::new();
    for cache in ["1MiB", "off"] {
        let mount = rig.mount_with(&["--part-size", "256", "--cache-size", cache]);
        fs::write(mount.at("f"), b"old").unwrap();
        let mut file = File::create(mount.at("f")).unwrap();
        file.write_all(&fresh_bytes(300)).unwrap();
        wait_until("the upload begins", || (!rig.server().stats().open_uploads.is_empty()).then_some(()));
        fs::remove_file(mount.at("f")).unwrap();
        for _ in 0..50 {
            file.write_all(&fresh_bytes(300)).unwrap();
        }
        drop(file);
        assert_eq!(rig.client().names(""), Vec::<String>::new());
    }
}
