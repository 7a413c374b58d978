//! Every combination of open flags on every kind of name, compared with a local directory.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use crate::rig::{Rig, fresh_bytes};

const FLAGS: [(i32, &str); 8] = [
    (libc::O_CREAT, "CREAT"),
    (libc::O_EXCL, "EXCL"),
    (libc::O_TRUNC, "TRUNC"),
    (libc::O_APPEND, "APPEND"),
    (libc::O_NOFOLLOW, "NOFOLLOW"),
    (libc::O_DIRECTORY, "DIRECTORY"),
    (libc::O_SYNC, "SYNC"),
    (libc::O_NONBLOCK, "NONBLOCK"),
];

const ACCESS: [(i32, &str); 3] =
    [(libc::O_RDONLY, "RDONLY"), (libc::O_WRONLY, "WRONLY"), (libc::O_RDWR, "RDWR")];

/// The object under the name before the open.
const BEFORE: [&str; 7] = ["absent", "empty", "file", "large", "directory", "link", "dangling"];

fn prepare(path: &Path, before: &str) {
    let beside = path.with_extension("target");
    match before {
        "absent" => {}
        "empty" => fs::write(path, b"").unwrap(),
        "file" => fs::write(path, b"0123456789").unwrap(),
        "large" => fs::write(path, [b'x'; 1000]).unwrap(),
        "directory" => fs::create_dir(path).unwrap(),
        "link" => {
            fs::write(&beside, b"abcdefghij").unwrap();
            symlink(beside.file_name().unwrap(), path).unwrap();
        }
        "dangling" => symlink(beside.file_name().unwrap(), path).unwrap(),
        other => panic!("{other}"),
    }
}

fn show<T: std::fmt::Debug>(outcome: std::io::Result<T>) -> String {
    match outcome {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("errno {:?}", error.raw_os_error()),
    }
}

fn open(path: &Path, flags: i32) -> std::io::Result<File> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path outlives the call; the descriptor is new and has no other owner.
    unsafe {
        match libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o644) {
            -1 => Err(std::io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

/// Opens `path` with `flags` and returns every outcome that a program sees, as text.
fn run(path: &Path, before: &str, flags: i32) -> String {
    prepare(path, before);
    let mut seen = String::new();
    match open(path, flags) {
        Err(error) => write!(seen, "open errno {:?}", error.raw_os_error()).unwrap(),
        Ok(file) if file.metadata().unwrap().is_dir() => seen.push_str("directory"),
        Ok(mut file) => {
            let mut text = String::new();
            let size = file.metadata().map(|meta| meta.len());
            let wrote = file.write(b"AB");
            let again = file.write_at(b"C", 4);
            let at = file.stream_position();
            let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
            let truncated = file.set_len(7);
            let synced = file.sync_all();
            let outcomes =
                [show(size), show(wrote), show(again), show(at), show(read), show(truncated), show(synced)];
            write!(seen, "{outcomes:?} {text:?}").unwrap();
        }
    }
    let kind = fs::symlink_metadata(path).map(|meta| (meta.is_dir(), meta.is_symlink()));
    let content = fs::read(path);
    let target = fs::read(path.with_extension("target"));
    write!(seen, " then {} {} {}", show(kind), show(content), show(target)).unwrap();
    seen
}

#[test]
fn open_flags_match_local_file_system() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64"]);
    let local = tempfile::tempdir().unwrap();
    let mut different = Vec::new();
    for set in 0..1 << FLAGS.len() {
        let chosen = FLAGS.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, flag)| flag);
        let (more, names) =
            chosen.fold((0, String::new()), |(all, names), (flag, name)| (all | flag, names + "|" + name));
        for (access, name) in ACCESS {
            for before in BEFORE {
                // Two flags do not concern content; two kinds of names are enough for them.
                let is_rare = more & (libc::O_SYNC | libc::O_NONBLOCK) != 0;
                if is_rare && !["absent", "file"].contains(&before) {
                    continue;
                }
                let file = format!("{set}-{access}-{before}");
                let seen = run(&mount.at(&file), before, access | more);
                let expected = run(&local.path().join(&file), before, access | more);
                if seen != expected {
                    different.push(format!(
                        "{name}{names} on {before}:\n  seen     {seen}\n  expected {expected}"
                    ));
                }
            }
        }
    }
    assert!(
        different.is_empty(),
        "{} differ, such as\n{}",
        different.len(),
        different[..different.len().min(5)].join("\n")
    );
    let mut on_drive = rig.client().names("");
    let mut on_disk: Vec<_> =
        fs::read_dir(local.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    on_drive.sort();
    on_disk.sort();
    assert_eq!(on_drive, on_disk);
}

/// `flock` creates its lock file this way.
#[test]
fn regression_read_only_create_reaches_the_drive() {
    let rig = Rig::new();
    let mount = rig.mount();
    let file = open(&mount.at("lock"), libc::O_RDONLY | libc::O_CREAT).unwrap();
    assert_eq!(rig.client().names(""), Vec::<String>::new());
    drop(file);
    assert_eq!(rig.client().names(""), ["lock"]);
    assert_eq!(rig.client().read("lock").unwrap(), b"");
}

/// With `O_DIRECT`, the kernel requires no alignment from FUSE, and neither does the daemon.
#[test]
fn o_direct_reads_and_writes_work() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    let bytes = fresh_bytes(300_000);
    let file = open(&mount.at("f"), libc::O_RDWR | libc::O_CREAT | libc::O_DIRECT).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    file.write_all_at(&bytes[..5000], 4096).unwrap();
    let mut expected = bytes.clone();
    expected[4096..9096].copy_from_slice(&bytes[..5000]);
    let mut seen = vec![0; bytes.len()];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == expected);
    drop(file);
    assert!(rig.client().read("f").unwrap() == expected);
    let file = open(&mount.at("f"), libc::O_RDONLY | libc::O_DIRECT).unwrap();
    file.read_exact_at(&mut seen[..70_000], 100_000).unwrap();
    assert!(seen[..70_000] == expected[100_000..170_000]);
}
