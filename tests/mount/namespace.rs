//! Names and directories: create, list, rename, remove, look up, as in a local directory.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::drive_client::ROOT;
use crate::rig::{Rig, errno, fresh_bytes, wait_until};

fn calls(rig: &Rig) -> u64 {
    rig.server().stats().requests.values().sum()
}

fn listed(path: &Path) -> BTreeSet<String> {
    fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn directories_are_created_and_removed() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::create_dir(mount.at("d")).unwrap();
    assert_eq!(errno(fs::create_dir(mount.at("d"))), libc::EEXIST);
    fs::write(mount.at("d/f"), b"x").unwrap();
    assert_eq!(errno(fs::remove_dir(mount.at("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_file(mount.at("d"))), libc::EISDIR);
    assert_eq!(errno(fs::remove_dir(mount.at("d/f"))), libc::ENOTDIR);
    fs::remove_file(mount.at("d/f")).unwrap();
    fs::remove_dir(mount.at("d")).unwrap();
    assert_eq!(rig.client().names(""), Vec::<String>::new());
}

/// The service answers such calls with a task, and the task with `state` and `status`.
#[test]
fn tasks_of_directories_are_awaited() {
    let rig = Rig::with(|config| config.quirks.async_polls = Some(2));
    let mount = rig.mount();
    for name in ["d", "to"] {
        fs::create_dir(mount.at(name)).unwrap();
    }
    fs::write(mount.at("d/f"), b"x").unwrap();
    fs::rename(mount.at("d"), mount.at("to/d")).unwrap();
    assert_eq!(rig.client().names("to/d"), ["f"]);
    fs::remove_file(mount.at("to/d/f")).unwrap();
    fs::remove_dir(mount.at("to/d")).unwrap();
    assert_eq!(rig.client().names("to"), Vec::<String>::new());
    assert!(listed(&mount.at("to")).is_empty());
    // Two tasks of two polls each that return `Running`.
    assert_eq!(rig.server().stats().count("async_task/get"), 6);
}

#[test]
fn remotely_filled_directory_is_not_removed() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::create_dir(mount.at("d")).unwrap();
    assert_eq!(listed(&mount.at("d")).len(), 0);
    let folder = rig.client().find("d").unwrap().file_id;
    rig.client().create_folder(&folder, "theirs");
    assert_eq!(errno(fs::remove_dir(mount.at("d"))), libc::ENOTEMPTY);
    assert!(rig.client().find("d/theirs").is_some());
}

#[test]
fn ten_thousand_entries_are_listed_once_each() {
    let rig = Rig::new();
    let client = rig.client();
    let folder = client.create_folder(ROOT, "many");
    std::thread::scope(|scope| {
        for worker in 0..20 {
            let (client, folder) = (&client, &folder);
            scope.spawn(move || {
                for i in 0..500 {
                    client.create_folder(folder, &format!("entry-{:05}", worker * 500 + i));
                }
            });
        }
    });
    let mount = rig.mount();
    let names = listed(&mount.at("many"));
    assert_eq!(names.len(), 10_000);
    assert_eq!(names.first().unwrap(), "entry-00000");
    assert_eq!(names.last().unwrap(), "entry-09999");
    assert_eq!(listed(&mount.at("many")), names);
}

#[test]
fn renames_work_within_and_across_directories() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::create_dir_all(mount.at("a/deep")).unwrap();
    fs::create_dir(mount.at("b")).unwrap();
    fs::write(mount.at("a/f"), b"content").unwrap();
    let id = rig.client().find("a/f").unwrap().file_id;
    fs::rename(mount.at("a/f"), mount.at("a/g")).unwrap();
    fs::rename(mount.at("a/g"), mount.at("b/h")).unwrap();
    assert_eq!(rig.client().find("b/h").unwrap().file_id, id);
    assert_eq!(rig.client().names("a"), ["deep"]);
    fs::rename(mount.at("a"), mount.at("b/a2")).unwrap();
    assert_eq!(rig.client().names(""), ["b"]);
    assert_eq!(rig.client().names("b"), ["a2", "h"]);
    assert!(mount.at("b/a2/deep").is_dir());
    assert_eq!(errno(fs::rename(mount.at("b"), mount.at("b/a2/x"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(mount.at("nothing"), mount.at("x"))), libc::ENOENT);
    assert_eq!(errno(fs::rename(mount.at("b/h"), mount.at("b/a2"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(mount.at("b/a2"), mount.at("b/h"))), libc::ENOTDIR);
}

#[test]
fn rename_target_is_never_missing() {
    let rig = Rig::new();
    let mount = rig.mount();
    let mut current = fresh_bytes(1000);
    fs::write(mount.at("target"), &current).unwrap();
    let id = rig.client().find("target").unwrap().file_id;
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (client, mut looks) = (rig.client(), 0);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(client.find("target").is_some(), "the target was missing for another client");
                looks += 1;
            }
            looks
        });
        for i in 0..20 {
            current = fresh_bytes(1000 + i);
            fs::write(mount.at("source"), &current).unwrap();
            fs::rename(mount.at("source"), mount.at("target")).unwrap();
            assert_eq!(fs::read(mount.at("target")).unwrap(), current);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(watcher.join().unwrap() > 0);
    });
    assert_eq!(rig.client().names(""), ["target"]);
    assert_eq!(rig.client().read("target").unwrap(), current);
    assert_eq!(rig.client().find("target").unwrap().file_id, id);
}

#[test]
fn rename_over_file_works_without_instant_upload() {
    let rig = Rig::with(|config| config.quirks.instant_upload = false);
    let mount = rig.mount();
    fs::create_dir(mount.at("d")).unwrap();
    for (source, target) in [("s", "t"), ("d/s", "t"), ("s", "d/t")] {
        fs::write(mount.at(target), b"old").unwrap();
        fs::write(mount.at(source), b"new").unwrap();
        fs::rename(mount.at(source), mount.at(target)).unwrap();
        assert_eq!(fs::read(mount.at(target)).unwrap(), b"new", "{source} {target}");
        assert_eq!(rig.client().read(target).unwrap(), b"new", "{source} {target}");
        assert!(rig.client().find(source).is_none(), "{source} {target}");
    }
    assert_eq!(rig.client().names(""), ["d", "t"]);
    assert_eq!(rig.client().names("d"), ["t"]);
}

#[test]
fn rename_during_upload_commits_new_name() {
    use std::io::Write;
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    fs::create_dir(mount.at("d")).unwrap();
    for size in [100, 300_000] {
        let bytes = fresh_bytes(size);
        let mut file = fs::File::create(mount.at("before")).unwrap();
        file.write_all(&bytes[..size / 2]).unwrap();
        fs::rename(mount.at("before"), mount.at("d/after")).unwrap();
        file.write_all(&bytes[size / 2..]).unwrap();
        drop(file);
        assert_eq!(rig.client().names(""), ["d"], "{size}");
        assert_eq!(rig.client().names("d"), ["after"], "{size}");
        assert_eq!(rig.client().read("d/after").unwrap(), bytes, "{size}");
        assert_eq!(fs::read(mount.at("d/after")).unwrap(), bytes, "{size}");
    }
}

#[test]
fn deleted_files_are_in_the_recycle_bin() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("f"), b"x").unwrap();
    let id = rig.client().find("f").unwrap().file_id;
    fs::remove_file(mount.at("f")).unwrap();
    assert_eq!(errno(fs::metadata(mount.at("f"))), libc::ENOENT);
    assert_eq!(rig.client().names(""), Vec::<String>::new());
    assert!(rig.server().stats().count("recyclebin/trash") >= 1, "{id} was deleted for good");
    assert_eq!(rig.server().stats().count("file/delete"), 0);
    assert_eq!(mount.stop(), 0);
    let mount = rig.mount_with(&["--remove", "delete"]);
    fs::write(mount.at("g"), b"y").unwrap();
    fs::remove_file(mount.at("g")).unwrap();
    assert_eq!(rig.client().names(""), Vec::<String>::new());
    assert!(rig.server().stats().count("file/delete") >= 1, "the file is in the recycle bin");
}

#[test]
fn delete_during_write_leaves_nothing() {
    use std::io::Write;
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    for size in [0, 100, 300_000] {
        let mut file = fs::File::create(mount.at("f")).unwrap();
        file.write_all(&fresh_bytes(size)).unwrap();
        fs::remove_file(mount.at("f")).unwrap();
        drop(file);
    }
    assert_eq!(mount.stop(), 0);
    assert_eq!(rig.client().names(""), Vec::<String>::new());
}

#[test]
fn invalid_linux_names_are_refused() {
    let rig = Rig::new();
    let mount = rig.mount();
    assert_eq!(errno(fs::write(mount.at("x".repeat(256)), b"")), libc::ENAMETOOLONG);
    let not_utf8: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"caf\xe9");
    assert_eq!(errno(fs::create_dir(mount.at(not_utf8))), libc::EINVAL);
    let long = "y".repeat(255);
    fs::write(mount.at(&long), b"long").unwrap();
    assert_eq!(rig.client().read(&long).unwrap(), b"long");
    for name in [" spaces ", "\u{65e5}\u{672c}", "new\nline", "quote\"'", "%2F", "-rf", "..."] {
        fs::write(mount.at(name), name).unwrap();
        assert_eq!(rig.client().read(name).unwrap(), name.as_bytes());
    }
}

#[test]
fn over_long_remote_names_are_listed_and_work() {
    let rig = Rig::new();
    let long = "\u{65e5}".repeat(200);
    rig.client().create_folder(ROOT, &long);
    let mount = rig.mount();
    let names = listed(mount.path());
    assert_eq!(names.len(), 1);
    let shown = names.first().unwrap();
    assert!(shown.len() <= 255, "{shown}");
    fs::write(mount.at(shown).join("inside"), b"x").unwrap();
    fs::rename(mount.at(shown), mount.at("short")).unwrap();
    assert_eq!(rig.client().names(""), ["short"]);
}

#[test]
fn remote_changes_are_seen_after_ttl() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--metadata-ttl", "1s"]);
    assert_eq!(errno(fs::metadata(mount.at("theirs"))), libc::ENOENT);
    rig.client().create_folder(ROOT, "theirs");
    wait_until("the remote folder is visible", || mount.at("theirs").is_dir().then_some(()));
    let id = rig.client().find("theirs").unwrap().file_id;
    rig.client().trash(&id);
    wait_until("its removal is visible", || (!mount.at("theirs").exists()).then_some(()));
}

#[test]
fn root_answers_while_server_does_not() {
    let mut rig = Rig::new();
    let mount = rig.mount();
    rig.stop();
    let start = Instant::now();
    assert!(fs::metadata(mount.path()).unwrap().is_dir());
    // A call would wait as in a short outage, for 10 s.
    assert!(start.elapsed() < Duration::from_secs(8));
    rig.resume();
}

#[test]
fn negative_entries_save_calls() {
    let rig = Rig::new();
    let mount = rig.mount();
    assert_eq!(errno(fs::metadata(mount.at(".Trash"))), libc::ENOENT);
    let before = calls(&rig);
    for _ in 0..50 {
        for name in [".Trash", ".Trash-4711", ".hidden", ".directory"] {
            assert_eq!(errno(fs::metadata(mount.at(name))), libc::ENOENT);
        }
    }
    assert_eq!(calls(&rig), before);
}

#[test]
fn duplicate_names_are_numbered_and_distinct() {
    let rig = Rig::new();
    {
        let mount = rig.mount();
        fs::write(mount.at("a.txt"), b"first").unwrap();
        fs::write(mount.at("b.txt"), b"second").unwrap();
    }
    let other = rig.client().find("b.txt").unwrap().file_id;
    rig.client().rename(&other, "a.txt");
    assert_eq!(rig.client().names(""), ["a.txt", "a.txt"]);
    let mount = rig.mount();
    assert_eq!(listed(mount.path()), BTreeSet::from(["a (2).txt".to_owned(), "a.txt".to_owned()]));
    let mut contents = [fs::read(mount.at("a.txt")).unwrap(), fs::read(mount.at("a (2).txt")).unwrap()];
    contents.sort();
    assert_eq!(contents, [b"first".to_vec(), b"second".to_vec()]);
    fs::remove_file(mount.at("a (2).txt")).unwrap();
    assert_eq!(rig.client().names(""), ["a.txt"]);
}

#[test]
fn statfs_reports_drive_quota() {
    const QUOTA_BYTES: u64 = 100 << 20;
    let rig = Rig::with(|config| config.quota_bytes = Some(QUOTA_BYTES));
    {
        let mount = rig.mount();
        fs::write(mount.at("f"), fresh_bytes(1 << 20)).unwrap();
    }
    let mount = rig.mount();
    let output = std::process::Command::new("stat").args(["-f", "-c", "%s %b %f"]).arg(mount.path()).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let numbers: Vec<u64> = output.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers[0] * numbers[1], QUOTA_BYTES);
    assert_eq!(numbers[0] * numbers[2], QUOTA_BYTES - (1 << 20));
}

fn rename_with(from: &Path, to: &Path, flags: u32) -> std::io::Result<()> {
    let c = |path: &Path| std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let (from, to) = (c(from), c(to));
    // SAFETY: both paths outlive the call.
    let outcome =
        unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn rename_flags_are_honoured_or_refused() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("a"), b"a").unwrap();
    fs::write(mount.at("b"), b"b").unwrap();
    let (a, b) = (mount.at("a"), mount.at("b"));
    assert_eq!(errno(rename_with(&a, &b, libc::RENAME_NOREPLACE)), libc::EEXIST);
    assert_eq!(errno(rename_with(&a, &b, libc::RENAME_EXCHANGE)), libc::EINVAL);
    assert_eq!(errno(rename_with(&a, &b, libc::RENAME_WHITEOUT)), libc::EINVAL);
    assert_eq!(
        (rig.client().read("a").unwrap(), rig.client().read("b").unwrap()),
        (b"a".to_vec(), b"b".to_vec())
    );
    rename_with(&a, &mount.at("c"), libc::RENAME_NOREPLACE).unwrap();
    assert_eq!(rig.client().names(""), ["b", "c"]);
}

#[test]
fn directory_rename_keeps_open_files() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--part-size", "64KiB"]);
    fs::create_dir_all(mount.at("old/deep")).unwrap();
    fs::write(mount.at("old/deep/edited"), fresh_bytes(100_000)).unwrap();
    let bytes = fresh_bytes(300_000);
    let mut streamed = fs::File::create(mount.at("old/deep/streamed")).unwrap();
    let edited = fs::File::options().read(true).write(true).open(mount.at("old/deep/edited")).unwrap();
    std::io::Write::write_all(&mut streamed, &bytes[..200_000]).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&edited, b"edit", 50_000).unwrap();
    fs::rename(mount.at("old"), mount.at("new")).unwrap();
    std::io::Write::write_all(&mut streamed, &bytes[200_000..]).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&edited, b"more", 60_000).unwrap();
    drop((streamed, edited));
    assert_eq!(rig.client().names(""), ["new"]);
    assert!(rig.client().read("new/deep/streamed").unwrap() == bytes);
    let changed = rig.client().read("new/deep/edited").unwrap();
    assert_eq!((&changed[50_000..50_004], &changed[60_000..60_004]), (&b"edit"[..], &b"more"[..]));
}

/// Another file has the old name in the new directory.
#[test]
fn regression_unsaved_file_moves_beside_old_name() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::create_dir(mount.at("a")).unwrap();
    fs::create_dir(mount.at("b")).unwrap();
    fs::write(mount.at("a/x"), b"old").unwrap();
    fs::write(mount.at("b/x"), b"other").unwrap();
    let file = fs::File::create(mount.at("a/x")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"new", 0).unwrap();
    fs::rename(mount.at("a/x"), mount.at("b/y")).unwrap();
    drop(file);
    assert_eq!(rig.client().names("a"), Vec::<String>::new());
    assert_eq!(rig.client().names("b"), ["x", "y"]);
    assert_eq!(
        (rig.client().read("b/x").unwrap(), rig.client().read("b/y").unwrap()),
        (b"other".to_vec(), b"new".to_vec())
    );
}
