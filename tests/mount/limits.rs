//! Bounds of memory, descriptors and parts under heavy use.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::rig::{Mount, Rig, fresh_bytes};

const MIB: usize = 1 << 20;

#[test]
fn five_hundred_writers_stay_within_buffer_size() {
    let rig = Rig::new();
    let spill = tempfile::tempdir().unwrap();
    let spill_dir = spill.path().to_str().unwrap();
    let mount = rig.mount_with(&["--part-size", "1MiB", "--buffer-size", "32MiB", "--spill-dir", spill_dir]);
    let bytes = fresh_bytes(MIB + MIB / 2);
    // One thread writes to all files in turn: a write that waited for another file's part would never return.
    let mut files: Vec<_> = (0..500).map(|i| File::create(mount.at(format!("f{i:03}"))).unwrap()).collect();
    for (turn, piece) in bytes.chunks(128 << 10).enumerate() {
        for (i, file) in files.iter_mut().enumerate() {
            let mut piece = piece.to_vec();
            piece[0] = i as u8;
            piece[1] = turn as u8;
            piece[2] = (i >> 8) as u8;
            file.write_all(&piece).unwrap();
        }
    }
    files.into_iter().enumerate().for_each(|(i, file)| {
        file.sync_all().unwrap_or_else(|e| panic!("file {i}: {e}"));
    });
    // The buffer pool, the first 64 KiB of each file (kept for readers) and the daemon itself: far less
    // than the 750 MiB that were written.
    let peak = mount.peak_memory_bytes();
    assert!(peak < 128 << 20, "{} MiB", peak >> 20);
    assert_eq!(fs::read_dir(spill.path()).unwrap().count(), 0, "a spilled part has a name");
    assert_eq!(rig.client().names("").len(), 500);
    for i in [0, 255, 256, 499] {
        let mut expected = bytes.clone();
        for (turn, piece) in expected.chunks_mut(128 << 10).enumerate() {
            piece[0] = i as u8;
            piece[1] = turn as u8;
            piece[2] = (i >> 8) as u8;
        }
        assert_eq!(rig.client().read(&format!("f{i:03}")).unwrap(), expected, "file {i}");
    }
}

/// A shell sets a soft limit of 1,024 descriptors; this test sets a lower one, so fewer files reach it.
#[test]
fn staged_files_may_exceed_soft_descriptor_limit() {
    let rig = Rig::new();
    let command = command_with_descriptors(64, 2048);
    let mount = Mount::start_by(command, &rig.endpoint(), &[], tempfile::tempdir().unwrap());
    let files: Vec<_> = (0..100).map(|i| File::create(mount.at(format!("f{i}"))).unwrap()).collect();
    for file in &files {
        // Written out of order, so that each file is a staged file.
        file.write_all_at(b"end", 5 << 20).unwrap();
        file.write_all_at(b"beginning", 0).unwrap();
    }
    files.into_iter().enumerate().for_each(|(i, file)| {
        file.sync_all().unwrap_or_else(|e| panic!("file {i}: {e}"));
    });
    assert_eq!(mount.stop(), 0);
}

/// A command whose daemon can have this many descriptors.
fn command_with_descriptors(soft: u64, hard: u64) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    // SAFETY: the call is async-signal-safe, and its argument outlives it.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    command
}

#[test]
fn writers_beyond_the_descriptors_get_enfile() {
    exceed_descriptors(&[], 64);
    // One of several users gets half.
    exceed_descriptors(&["--allow-other"], 32);
}

/// Opens more staged files than a daemon with 640 descriptors can have: it keeps 512, and a file takes two.
fn exceed_descriptors(more: &[&str], files_max: usize) {
    let rig = Rig::new();
    let arguments = [&["--part-size", "64KiB", "--remove", "delete"][..], more].concat();
    let command = command_with_descriptors(640, 640);
    let mount = Mount::start_by(command, &rig.endpoint(), &arguments, tempfile::tempdir().unwrap());
    // Written out of order, so that each file is a staged file.
    let write = |n: usize| {
        let file = File::create(mount.at(format!("f{n}"))).unwrap();
        let written = file.write_all_at(b"end", 100_000);
        (file, written)
    };
    let files: Vec<_> = (0..200).map(write).collect();
    let (written, refused): (Vec<_>, Vec<_>) = files.into_iter().partition(|(_, written)| written.is_ok());
    assert_eq!((written.len(), refused.len()), (files_max, 200 - files_max), "{more:?}");
    for (_, refused) in refused {
        assert_eq!(crate::rig::errno(refused), libc::ENFILE);
    }
    // Everything else goes on.
    fs::write(mount.at("stream"), fresh_bytes(MIB)).unwrap();
    assert!(fs::metadata(mount.at("absent")).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound));
    let status = Command::new(env!("CARGO_BIN_EXE_pdsfs")).arg("status").arg(mount.path()).output().unwrap();
    assert!(status.status.success(), "{status:?}");
    drop(written);
    let (_file, written) = write(200);
    written.unwrap();
    assert!(rig.client().read("f0").unwrap().ends_with(b"\0end"));
    assert_eq!(mount.stop(), 0);
}

#[test]
fn spilled_parts_count_against_cache_size() {
    let rig = Rig::new();
    let sizes = ["--part-size", "1MiB", "--buffer-size", "2MiB", "--cache-size", "4MiB"];
    let mount = rig.mount_with(&sizes);
    let bytes = fresh_bytes(600 << 10);
    let write = |n: usize| {
        let mut file = File::create(mount.at(format!("f{n}"))).unwrap();
        let written = file.write_all(&bytes);
        (file, written)
    };
    let files: Vec<_> = (0..40).map(write).collect();
    let refused: Vec<_> = files.iter().filter_map(|(_, written)| written.as_ref().err()).collect();
    // 2 MiB are in memory and 4 MiB on the disk.
    assert!(refused.len() >= 29, "{} of 40 files were refused", refused.len());
    assert!(refused.iter().all(|e| e.raw_os_error() == Some(libc::ENOSPC)), "{refused:?}");
    let kept = files.iter().filter(|(_, written)| written.is_ok()).count();
    assert!(kept >= 6, "{kept}");
    drop(files);
    assert_eq!(rig.client().read("f0").unwrap(), bytes);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn file_over_10000_parts_returns_efbig() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64"]);
    let mut file = File::create(mount.at("f")).unwrap();
    let bytes = fresh_bytes(640_000);
    file.write_all(&bytes).unwrap();
    assert_eq!(crate::rig::errno(file.write(b"x")), libc::EFBIG);
    drop(file);
    assert_eq!(rig.client().read("f").unwrap(), bytes, "the bytes written before are not committed");
    mount.wait_for_log("--part-size");
}

#[test]
fn reads_stay_within_read_cache() {
    let rig = Rig::new();
    let bytes = fresh_bytes(200 * MIB);
    {
        let mount = rig.mount();
        fs::write(mount.at("f"), &bytes).unwrap();
    }
    let mount = rig.mount_with(&["--read-cache", "16MiB"]);
    assert!(fs::read(mount.at("f")).unwrap() == bytes);
    let peak = mount.peak_memory_bytes();
    assert!(peak < 160 << 20, "{} MiB", peak >> 20);
}
