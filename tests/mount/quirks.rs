//! Domains that deviate from the documentation: every switch of the embedded server under a mount.

use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use pdsfs::server::{FaultAction, FaultRule, Quirks};
use serde_json::{Value, json};

use crate::drive_client::ROOT;
use crate::rig::{Mount, Rig, errno, fresh_bytes};

const PART: usize = 128 << 10;
const ARGUMENTS: [&str; 2] = ["--part-size", "128KiB"];

fn set_mtime(path: &Path, time: SystemTime) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
}

fn mtime(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

/// Creates or overwrites a file, which must reach the drive.
fn save(switch: &str, path: &Path, content: &[u8]) {
    let saved =
        File::create(path).and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    saved.unwrap_or_else(|e| panic!("{switch}: {}: {e}", path.display()));
}

fn assert_content(switch: &str, path: &Path, expected: &[u8]) {
    let content = fs::read(path).unwrap_or_else(|e| panic!("{switch}: {}: {e}", path.display()));
    assert!(content == expected, "{switch}: {} has other content", path.display());
}

/// Writes, overwrites, replaces, changes and removes files, and compares what this mount, another client and a
/// later mount see.
fn cycle(switch: &str, quirks: &Quirks) {
    let quirks = quirks.clone();
    let can_remove = !quirks.deletion_forbidden;
    let rig = Rig::with(move |config| config.quirks = quirks.clone());
    let mount = rig.mount_with(&ARGUMENTS);
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567_890_123);
    fs::create_dir(mount.at("d")).unwrap();
    // A part is stored and sent again, and its URL is signed again.
    for action in [FaultAction::CloseAfter, FaultAction::Expire] {
        rig.server().faults().add(FaultRule::times("put_part", 1, action));
    }
    let mut expected = Vec::new();
    for (name, size) in [("empty", 0), ("small", 100), ("d/large", 3 * PART + 5)] {
        let (old, new) = (fresh_bytes(size / 2 + 1), fresh_bytes(size));
        save(switch, &mount.at(name), &old);
        assert_content(switch, &mount.at(name), &old);
        save(switch, &mount.at(name), &new);
        let replacement = fresh_bytes(size + 1);
        let temporary = mount.at(format!("{name}.tmp"));
        save(switch, &temporary, &replacement);
        fs::rename(&temporary, mount.at(name)).unwrap_or_else(|e| panic!("{switch}: {name}: rename: {e}"));
        assert_content(switch, &mount.at(name), &replacement);
        set_mtime(&mount.at(name), time);
        expected.push((name, replacement));
    }
    let edited = File::options().write(true).open(mount.at("d/large")).unwrap();
    edited.write_all_at(b"edited", 7).unwrap();
    edited.set_len(2 * PART as u64 + 3).unwrap();
    edited.set_times(FileTimes::new().set_modified(time)).unwrap();
    edited.sync_all().unwrap_or_else(|e| panic!("{switch}: edited: {e}"));
    drop(edited);
    let large = &mut expected[2].1;
    large[7..13].copy_from_slice(b"edited");
    large.truncate(2 * PART + 3);
    remote_changes(switch, &rig, &mount, can_remove);
    save(switch, &mount.at("gone"), b"gone");
    let removed = fs::remove_file(mount.at("gone"));
    assert_eq!(removed.is_ok(), can_remove, "{switch}");
    let mount = remounted(switch, &rig, mount);
    for (name, content) in &expected {
        assert_content(switch, &mount.at(name), content);
        assert!(rig.client().read(name).unwrap() == *content, "{switch}: {name} on the drive");
        assert_eq!(mtime(&mount.at(name)), time, "{switch}: {name}");
    }
    if can_remove {
        fs::remove_file(mount.at("d/large")).unwrap();
        fs::remove_dir(mount.at("d")).unwrap();
        assert_eq!(rig.client().names(""), ["empty", "full", "small", "trashed"], "{switch}");
    } else {
        assert_eq!(errno(fs::remove_file(mount.at("d/large"))), libc::EACCES, "{switch}");
    }
    assert_eq!(mount.stop(), 0, "{switch}");
}

/// Changes by another client that the mount has not seen.
fn remote_changes(switch: &str, rig: &Rig, mount: &Mount, can_remove: bool) {
    let client = rig.client();
    fs::create_dir(mount.at("full")).unwrap();
    client.create_folder(&client.find("full").unwrap().file_id, "inner");
    assert_eq!(errno(fs::remove_dir(mount.at("full"))), libc::ENOTEMPTY, "{switch}");
    if can_remove {
        save(switch, &mount.at("trashed"), b"old");
        client.trash(&client.find("trashed").unwrap().file_id);
        save(switch, &mount.at("trashed"), b"new");
        assert_eq!(client.read("trashed").as_deref(), Some(&b"new"[..]), "{switch}");
    }
}

fn remounted(switch: &str, rig: &Rig, mount: Mount) -> Mount {
    assert_eq!(mount.stop(), 0, "{switch}");
    rig.mount_with(&ARGUMENTS)
}

fn cycle_each(switches: &[(&str, Value)]) {
    for (switch, value) in switches {
        let quirks = serde_json::from_value(json!({ *switch: value })).unwrap();
        cycle(&format!("{switch}: {value}"), &quirks);
    }
}

#[test]
fn upload_quirks_are_worked_around() {
    cycle_each(&[
        ("hash_name", json!("sha256")),
        ("require_size_at_create", json!(true)),
        ("size_must_match", json!(true)),
        ("first_part_ctx", json!("empty")),
        ("first_part_ctx", json!("initial")),
        ("first_part_ctx", json!("absent")),
        ("require_ctx", json!(true)),
        ("equal_part_sizes", json!(true)),
        ("part_bytes_min", json!(102_400)),
        ("part_gaps", json!(true)),
        ("refuse_part_again", json!(true)),
        ("parallel_refused", json!(true)),
        ("part_content_type", json!("application/octet-stream")),
        ("part_authorization", json!("id:signature")),
        ("any_content_type", json!(true)),
    ]);
}

#[test]
fn revision_quirks_are_worked_around() {
    cycle_each(&[
        ("instant_upload", json!(false)),
        ("empty_is_instant", json!(false)),
        ("pre_hash", json!(false)),
        ("revisions", json!(false)),
        ("revisions_max", json!(1)),
        ("last_revision_lock", json!(true)),
        ("ignore_range", json!(true)),
        ("no_hashes", json!(true)),
        ("unversioned_urls", json!(true)),
        ("replace_user_tags", json!(true)),
        ("local_modified_at_updatable", json!(false)),
    ]);
}

#[test]
fn namespace_quirks_are_worked_around() {
    cycle_each(&[
        ("list_empty_pages", json!(true)),
        ("list_page_max", json!(1)),
        ("check_folder_empty", json!(false)),
        ("move_new_name", json!(true)),
        ("case_insensitive_names", json!(true)),
        ("get_root", json!(false)),
        ("trashed_is_forbidden", json!(true)),
        ("async_polls", json!(1)),
        ("async_polls", json!(null)),
        ("deletion_forbidden", json!(true)),
        ("refuse_copy_in_folder", json!(true)),
        ("no_get_by_path", json!(true)),
        ("delta_always_empty", json!(true)),
        ("delta_empty_cursor_is_now", json!(true)),
        ("odd_list_items", json!(true)),
        ("batch_forbidden", json!(true)),
        ("update_conflict", json!(true)),
    ]);
}

#[test]
fn exceeded_quota_is_enospc_in_each_form() {
    for quirks in [json!({}), json!({ "quota_at_put": true }), json!({ "quota_status": 403 })] {
        let switched: Quirks = serde_json::from_value(quirks.clone()).unwrap();
        let rig = Rig::with(move |config| {
            config.quirks = switched.clone();
            config.quota_bytes = Some(2 * PART as u64);
        });
        let mount = rig.mount_with(&ARGUMENTS);
        let mut file = File::create(mount.at("f")).unwrap();
        let outcome = file.write_all(&fresh_bytes(4 * PART)).and_then(|()| file.sync_all());
        assert_eq!(errno(outcome), libc::ENOSPC, "{quirks}");
        drop(file);
        fs::write(mount.at("small"), b"small").unwrap();
        assert_eq!(rig.client().names(""), ["small"], "{quirks}");
    }
}

#[test]
fn deviations_combine() {
    for switches in [
        json!({ "require_size_at_create": true, "parallel_refused": true, "hash_name": "sha256" }),
        json!({ "deletion_forbidden": true, "instant_upload": false }),
        json!({ "first_part_ctx": "absent", "hash_name": "sha256", "local_modified_at_updatable": false }),
    ] {
        cycle(&switches.to_string(), &serde_json::from_value(switches.clone()).unwrap());
    }
}

/// A time that the service does not take.
#[test]
fn refused_mtime_does_not_refuse_the_file() {
    let refused = FaultAction::Status {
        status: 400,
        code: "InvalidParameter.LocalModifiedAt".into(),
        message: "The input parameter local_modified_at is not valid.".into(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: false,
    };
    let rig = Rig::new();
    let mount = rig.mount();
    let (dir, time) = (tempfile::tempdir().unwrap(), SystemTime::UNIX_EPOCH - Duration::from_secs(86_400));
    fs::write(dir.path().join("f"), b"of 1969").unwrap();
    set_mtime(&dir.path().join("f"), time);
    rig.server().faults().add(FaultRule::times("file/create", 1, refused.clone()));
    let copied =
        std::process::Command::new("cp").arg("-p").arg(dir.path().join("f")).arg(mount.at("f")).status();
    assert!(copied.unwrap().success());
    let mount = mount.restart(&rig.endpoint(), &[]);
    assert_eq!(rig.client().read("f").unwrap(), b"of 1969");
    assert_eq!(mtime(&mount.at("f")), time);
    assert_eq!((rig.server().faults().hits()[0], rig.server().stats().count("file/update")), (1, 0));
    // A later change of the time.
    rig.server().faults().add(FaultRule::new("file/update", refused));
    set_mtime(&mount.at("f"), time - Duration::from_secs(1));
    let mount = mount.restart(&rig.endpoint(), &[]);
    assert_eq!(mtime(&mount.at("f")), time - Duration::from_secs(1));
    assert_eq!(mount.stop(), 0);
}

#[test]
fn size_is_demanded_without_a_local_copy() {
    let rig = Rig::with(|config| config.quirks.require_size_at_create = true);
    let mount = rig.mount_with(&["--part-size", "128KiB", "--cache-size", "off"]);
    fs::write(mount.at("small"), b"small").unwrap();
    let mut large = File::create(mount.at("large")).unwrap();
    let outcome = large.write_all(&fresh_bytes(3 * PART)).and_then(|()| large.sync_all());
    assert_eq!(errno(outcome), libc::EIO);
    drop(large);
    mount.wait_for_log("demands the size of a file");
    assert_eq!(rig.client().names(""), ["small"]);
}

#[test]
fn fallbacks_are_tried_once() {
    // The hash is named in listings.
    for (quirks, calls_after_listing) in
        [(json!({ "first_part_ctx": "absent" }), 3), (json!({ "hash_name": "sha256" }), 1)]
    {
        let switched: Quirks = serde_json::from_value(quirks.clone()).unwrap();
        let rig = Rig::with(move |config| config.quirks = switched.clone());
        let mount = rig.mount();
        fs::write(mount.at("first"), b"first").unwrap();
        let before = rig.server().stats().count("file/create");
        for name in ["f0", "f1", "f2"] {
            let content = fresh_bytes(100);
            fs::write(mount.at(name), &content).unwrap();
            assert_eq!(rig.client().read(name), Some(content), "{quirks}: {name}");
        }
        assert_eq!(rig.server().stats().count("file/create") - before, 3, "{quirks}");
        let mount = mount.restart(&rig.endpoint(), &[]);
        assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 4);
        let before = rig.server().stats().count("file/create");
        fs::write(mount.at("f3"), fresh_bytes(100)).unwrap();
        assert_eq!(rig.server().stats().count("file/create") - before, calls_after_listing, "{quirks}");
        assert_eq!(mount.stop(), 0);
    }
}

/// The listings become endless while the drive is mounted: a directory that was not listed yet cannot be any more.
#[test]
fn endless_listing_fails_and_loses_nothing() {
    let is_endless = Arc::new(AtomicBool::new(false));
    let switch = is_endless.clone();
    let mut rig = Rig::with(move |config| {
        config.quirks.endless_list = switch.load(Relaxed);
        config.quirks.list_page_max = 1;
    });
    for (folder, names) in [("known", &["a"][..]), ("unknown", &["a", "b", "c"]), ("empty", &[])] {
        let folder = rig.client().create_folder(ROOT, folder);
        for name in names {
            rig.client().create_folder(&folder, name);
        }
    }
    let mount = rig.mount_with(&["--metadata-ttl", "1h"]);
    assert_eq!((entries(mount.path()), entries(&mount.at("known"))), (3, 1));
    let mut open = File::create(mount.at("open")).unwrap();
    open.write_all(b"bytes").unwrap();
    is_endless.store(true, Relaxed);
    rig.stop();
    rig.resume();
    let lists = rig.server().stats().count("file/list");
    let listed: std::io::Result<Vec<_>> = fs::read_dir(mount.at("unknown")).and_then(Iterator::collect);
    assert_eq!(errno(listed), libc::EIO);
    assert_eq!(errno(fs::metadata(mount.at("unknown/missing"))), libc::EIO, "it is not known to be missing");
    assert_eq!(errno(fs::remove_dir(mount.at("empty"))), libc::EIO, "it is not known to be empty");
    assert_eq!(errno(fs::remove_dir(mount.at("unknown"))), libc::ENOTEMPTY);
    let lists = rig.server().stats().count("file/list") - lists;
    assert!(lists < 30, "{lists} pages were read");
    // Other directories and open files are not affected.
    drop(open);
    fs::write(mount.at("known/f"), b"new").unwrap();
    fs::rename(mount.at("known/f"), mount.at("known/g")).unwrap();
    assert_eq!(fs::read(mount.at("known/g")).unwrap(), b"new");
    mount.wait_for_log("has the marker of an earlier page");
    is_endless.store(false, Relaxed);
    rig.stop();
    rig.resume();
    assert_eq!((entries(&mount.at("unknown")), entries(&mount.at("empty"))), (3, 0));
    assert_eq!(rig.client().names(""), ["empty", "known", "open", "unknown"]);
    assert_eq!(rig.client().read("open").unwrap(), b"bytes");
    assert_eq!(rig.client().read("known/g").unwrap(), b"new");
    fs::remove_dir(mount.at("empty")).unwrap();
    assert_eq!(mount.stop(), 0);
}

/// The number of entries of a directory.
fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().map(Result::unwrap).count()
}

/// The content can still be saved under another name, and by a rename over the file.
#[test]
fn refused_overwrite_keeps_the_old_content() {
    for (no_hashes, size) in [(false, 100), (true, 100), (false, 3 * PART + 5), (true, 3 * PART + 5)] {
        let switch = format!("refuse_overwrite, no_hashes {no_hashes}, {size} bytes");
        let rig = Rig::with(move |config| {
            config.quirks.refuse_overwrite = true;
            config.quirks.no_hashes = no_hashes;
        });
        let mount = rig.mount_with(&ARGUMENTS);
        let (old, new) = (fresh_bytes(size), fresh_bytes(size));
        save(&switch, &mount.at("f"), &old);
        let mut file = File::create(mount.at("f")).unwrap();
        let outcome = file.write_all(&new).and_then(|()| file.sync_all());
        assert_eq!(errno(outcome), libc::EEXIST, "{switch}");
        drop(file);
        mount.wait_for_log("/f: not saved: create: the service did not overwrite \"f\"");
        assert_content(&switch, &mount.at("f"), &old);
        assert!(rig.client().read("f").unwrap() == old, "{switch}");
        save(&switch, &mount.at("g"), &new);
        fs::rename(mount.at("g"), mount.at("f")).unwrap_or_else(|e| panic!("{switch}: rename: {e}"));
        let mount = remounted(&switch, &rig, mount);
        assert_content(&switch, &mount.at("f"), &new);
        assert!(rig.client().read("f").unwrap() == new, "{switch}");
        assert_eq!(rig.client().names(""), ["f"], "{switch}");
        assert_eq!(mount.stop(), 0, "{switch}");
    }
}
