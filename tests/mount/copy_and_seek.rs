//! `copy_file_range` inside the mount, and `lseek` for data and holes.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::rig::{Rig, fresh_bytes};

/// `cp` inside the mount uses `copy_file_range`.
#[test]
fn copy_file_range_moves_no_bytes() {
    for instant in [true, false] {
        let rig = Rig::with(move |config| config.quirks.instant_upload = instant);
        let mount = rig.mount_with(&["--part-size", "64KiB", "--cache-size", "4MiB"]);
        let bytes = fresh_bytes(300_000);
        fs::write(mount.at("source"), &bytes).unwrap();
        fs::write(mount.at("over"), b"something else").unwrap();
        assert_eq!(mount.stop(), 0);
        // The new mount has no cached bytes.
        let mount = rig.mount_with(&["--part-size", "64KiB", "--cache-size", "4MiB"]);
        let moved = || (rig.server().stats().received_bytes, rig.server().stats().sent_bytes);
        for name in ["copy", "over"] {
            let before = moved();
            assert_eq!(fs::copy(mount.at("source"), mount.at(name)).unwrap(), 300_000);
            if instant {
                assert_eq!(moved(), before, "a copy moved bytes");
            }
            assert!(rig.client().read(name).unwrap() == bytes);
        }
        // A write to a copy leaves the source alone, and the copy survives the source.
        let (from, to) =
            (File::open(mount.at("source")).unwrap(), File::create(mount.at("changed")).unwrap());
        // SAFETY: both descriptors are open; a null offset means the position of the descriptor.
        let copied = unsafe {
            libc::copy_file_range(
                from.as_raw_fd(),
                std::ptr::null_mut(),
                to.as_raw_fd(),
                std::ptr::null_mut(),
                1 << 30,
                0,
            )
        };
        assert_eq!(copied, 300_000);
        fs::remove_file(mount.at("source")).unwrap();
        to.write_all_at(b"changed", 100_000).unwrap();
        drop(to);
        let mut expected = bytes.clone();
        expected[100_000..100_007].copy_from_slice(b"changed");
        assert!(rig.client().read("changed").unwrap() == expected);
    }
}

#[test]
fn seek_data_and_seek_hole_work() {
    let rig = Rig::new();
    let mount = rig.mount();
    let file = File::create(mount.at("f")).unwrap();
    file.write_all_at(&[1; 5000], 100_000).unwrap();
    // SAFETY: the descriptor is open.
    let seek = |offset, whence| unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    let data = seek(0, libc::SEEK_DATA);
    assert!((0..=100_000).contains(&data), "data is reported at {data}");
    assert_eq!(seek(100_000, libc::SEEK_DATA), 100_000);
    assert_eq!(seek(100_000, libc::SEEK_HOLE), 105_000);
    assert_eq!(seek(105_000, libc::SEEK_DATA), -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENXIO));
}
