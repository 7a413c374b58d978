//! The trash of desktops is the recycle bin of the drive: it shows it, restores from it and deletes in it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::{Value, json};

use crate::drive_client::ROOT;
use crate::rig::{Mount, Rig, errno, fresh_bytes, wait_until};

/// The trash directory of the user that runs the tests.
fn trash_name() -> String {
    // SAFETY: getuid has no arguments and cannot fail.
    format!(".Trash-{}", unsafe { libc::getuid() })
}

/// The names in the recycle bin, with their ids.
fn recycle_bin(rig: &Rig) -> Vec<(String, String)> {
    let listed = rig.client().call("recyclebin/list", json!({"limit": 100}));
    let text = |item: &Value, key: &str| item[key].as_str().unwrap().to_owned();
    let items = listed["items"].as_array().unwrap().iter();
    let mut found: Vec<_> = items.map(|item| (text(item, "name"), text(item, "file_id"))).collect();
    found.sort();
    found
}

fn restore(rig: &Rig, file_id: &str) {
    rig.client().call("recyclebin/restore", json!({"file_id": file_id}));
}

/// Moves a file to the trash, with the system calls of GIO. Returns its name in the trash.
fn move_to_trash(mount: &Mount, path: &str) -> std::io::Result<String> {
    let plain = Path::new(path).file_name().unwrap().to_str().unwrap();
    let trash = mount.at(trash_name());
    for dir in [trash.clone(), trash.join("info"), trash.join("files")] {
        if !dir.exists() {
            fs::DirBuilder::new().mode(0o700).create(&dir)?;
        }
    }
    // SAFETY: as above.
    assert_eq!(fs::metadata(&trash)?.uid(), unsafe { libc::getuid() });
    assert_eq!(fs::metadata(&trash)?.mode() & 0o777, 0o700);
    let note_of = |name: &str| trash.join(format!("info/{name}.trashinfo"));
    let create = |name: &str| OpenOptions::new().write(true).create_new(true).open(note_of(name));
    let mut name = plain.to_owned();
    let mut created = create(&name);
    for n in 2..100 {
        if created.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists) {
            name = format!("{plain}.{n}");
            created = create(&name);
        }
    }
    created?;
    let (note, draft) = (note_of(&name), trash.join(format!("info/{name}.trashinfo.1A2B3C")));
    fs::write(&draft, format!("[Trash Info]\nPath={path}\nDeletionDate=2026-01-01T00:00:00\n"))?;
    fs::rename(&draft, &note)?;
    assert!(fs::read_to_string(&note)?.contains(path));
    fs::rename(mount.at(path), trash.join("files").join(&name)).inspect_err(|_| {
        let _ = fs::remove_file(&note);
    })?;
    Ok(name)
}

/// Restores a file of the trash to the path in its note, with the system calls of GIO.
fn restore_by_note(mount: &Mount, name: &str) -> std::io::Result<()> {
    let trash = mount.at(trash_name());
    let note = trash.join(format!("info/{name}.trashinfo"));
    let text = fs::read_to_string(&note)?;
    let path = text.lines().find_map(|line| line.strip_prefix("Path=")).unwrap();
    let path = percent_encoding::percent_decode_str(path).decode_utf8().unwrap().into_owned();
    // The mount believes a removal by another client a little later.
    wait_until("the place is free", || fs::symlink_metadata(mount.at(&path)).is_err().then_some(()));
    fs::rename(trash.join("files").join(name), mount.at(path))?;
    fs::remove_file(note)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn trashed_file_is_restored_from_recycle_bin() {
    let rig = Rig::new();
    // Trashing never deletes for good, even with `remove = "delete"`.
    for remove in ["trash", "delete"] {
        let mount = rig.mount_with(&["--remove", remove, "--metadata-ttl", "1s"]);
        let bytes = fresh_bytes(100_000);
        fs::create_dir_all(mount.at("dir/below")).unwrap();
        fs::write(mount.at("dir/below/inner"), &bytes).unwrap();
        fs::write(mount.at("dir/file"), &bytes).unwrap();
        fs::write(mount.at("top"), &bytes).unwrap();
        let id = rig.client().find("dir/file").unwrap().file_id;
        move_to_trash(&mount, "dir/file").unwrap();
        move_to_trash(&mount, "top").unwrap();
        assert_eq!(rig.client().names("dir"), ["below"]);
        move_to_trash(&mount, "dir").unwrap();
        assert!(!mount.at("dir").exists() && !mount.at("top").exists());
        // The drive has no trash directory.
        assert_eq!(rig.client().names(""), [""; 0]);
        let trash = mount.at(trash_name());
        assert_eq!(names(&trash.join("files")), ["dir", "file", "top"]);
        assert_eq!(names(&trash.join("info")), ["dir.trashinfo", "file.trashinfo", "top.trashinfo"]);
        let found = recycle_bin(&rig);
        assert_eq!(found.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>(), ["dir", "file", "top"]);
        assert_eq!(found[1].1, id.as_str(), "not the trashed object");
        for (_, id) in &found {
            restore(&rig, id);
        }
        assert_eq!(rig.client().read("dir/below/inner").unwrap(), bytes);
        // The restored file is visible at its old place, also in the mount.
        wait_until("the file is back", || fs::read(mount.at("dir/file")).ok().filter(|seen| *seen == bytes));
        wait_until("the other file is back", || mount.at("top").exists().then_some(()));
        assert_eq!(recycle_bin(&rig), []);
        fs::remove_dir_all(mount.at("dir")).unwrap();
        fs::remove_file(mount.at("top")).unwrap();
        rig.client().call("recyclebin/clear", json!({}));
        assert_eq!(mount.stop(), 0);
    }
}

#[test]
fn trashed_names_are_reusable_at_once() {
    let rig = Rig::new();
    let mount = rig.mount();
    for n in 0..3 {
        if n == 1 {
            fs::create_dir(mount.at("same")).unwrap();
        } else {
            fs::write(mount.at("same"), b"x").unwrap();
        }
        move_to_trash(&mount, "same").unwrap();
        assert!(!mount.at("same").exists());
    }
    assert_eq!(recycle_bin(&rig).len(), 3);
}

#[test]
fn trashed_unsaved_file_is_in_recycle_bin() {
    let rig = Rig::new();
    let mount = rig.mount();
    let bytes = fresh_bytes(50_000);
    let mut file = File::create(mount.at("open")).unwrap();
    file.write_all(&bytes).unwrap();
    move_to_trash(&mount, "open").unwrap();
    // An open descriptor stays usable; its writes do not reach the drive.
    file.write_all(b"more").unwrap();
    drop(file);
    assert_eq!(rig.client().names(""), [""; 0]);
    let found = recycle_bin(&rig);
    assert_eq!(found.len(), 1, "{found:?}");
    restore(&rig, &found[0].1);
    assert_eq!(rig.client().read("open").unwrap(), bytes);
    // Local-only files are not for the recycle bin.
    fs::write(mount.at(".DS_Store"), b"junk").unwrap();
    move_to_trash(&mount, ".DS_Store").unwrap();
    assert!(!mount.at(".DS_Store").exists());
    assert_eq!(recycle_bin(&rig), []);
}

#[test]
fn trash_accepts_only_trashed_files() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("file"), b"x").unwrap();
    move_to_trash(&mount, "file").unwrap();
    let trash = mount.at(trash_name());
    fs::write(mount.at("file"), b"y").unwrap();
    fs::create_dir(mount.at("dir")).unwrap();
    for (from, to) in [("file", "info/file"), ("file", "file"), ("dir", "info/dir")] {
        assert_eq!(errno(fs::rename(mount.at(from), trash.join(to))), libc::EPERM, "{from} to {to}");
    }
    assert_eq!(errno(fs::rename(&trash, mount.at("kept"))), libc::EPERM);
    assert_eq!(errno(fs::remove_dir(&trash)), libc::ENOTEMPTY);
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"y");
    assert_eq!(recycle_bin(&rig).len(), 1);
    fs::remove_dir_all(&trash).unwrap();
    assert_eq!((recycle_bin(&rig), count(&trash.join("files"))), (vec![], 0));
    // Only `.Trash-UID` in the root is a trash directory.
    fs::create_dir_all(mount.at("dir/.Trash-0/files")).unwrap();
    fs::create_dir_all(mount.at(".Trash/files")).unwrap();
    fs::rename(mount.at("file"), mount.at("dir/.Trash-0/files/file")).unwrap();
    fs::rename(mount.at("dir/.Trash-0/files/file"), mount.at(".Trash/files/file")).unwrap();
    assert_eq!(rig.client().read(".Trash/files/file").unwrap(), b"y");
    assert_eq!(mount.stop(), 0);
}

/// A trash directory that another client made on the drive is an ordinary directory.
#[test]
fn remote_trash_directory_gets_nothing_new() {
    let rig = Rig::new();
    let id = rig.client().create_folder(ROOT, &trash_name());
    for name in ["files", "info"] {
        rig.client().create_folder(&id, name);
    }
    let mount = rig.mount_with(&["--umask", "077"]);
    fs::write(mount.at(trash_name()).join("files/old"), b"old").unwrap();
    fs::write(mount.at("file"), b"x").unwrap();
    move_to_trash(&mount, "file").unwrap();
    assert_eq!(recycle_bin(&rig).len(), 1);
    assert_eq!(fs::read(mount.at(trash_name()).join("files/old")).unwrap(), b"old");
    assert_eq!(rig.client().names(&format!("{}/files", trash_name())), ["old"]);
    assert_eq!(rig.client().names(&format!("{}/info", trash_name())), [""; 0]);
    // Its files can be moved out again.
    fs::rename(mount.at(trash_name()).join("files/old"), mount.at("old")).unwrap();
    assert_eq!(rig.client().read("old").unwrap(), b"old");
    assert_eq!(rig.client().find(&trash_name()).unwrap().file_id, id);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn trashed_objects_are_restored_by_rename() {
    let rig = Rig::new();
    let mount = rig.mount();
    let bytes = fresh_bytes(100_000);
    fs::create_dir_all(mount.at("dir/below")).unwrap();
    fs::write(mount.at("dir/below/inner"), &bytes).unwrap();
    fs::write(mount.at("dir/file"), &bytes).unwrap();
    let id = rig.client().find("dir/file").unwrap().file_id;
    // The desktop undoes at once, when the kernel still has all entries.
    assert!(fs::read(mount.at("dir/below/inner")).unwrap() == bytes);
    let name = move_to_trash(&mount, "dir/file").unwrap();
    let entry = mount.at(trash_name()).join("files").join(&name);
    assert_eq!(fs::metadata(&entry).unwrap().len(), 100_000);
    assert_eq!(rig.client().names("dir"), ["below"]);
    restore_by_note(&mount, &name).unwrap();
    assert!(fs::read(mount.at("dir/file")).unwrap() == bytes);
    assert_eq!(rig.client().find("dir/file").unwrap().file_id, id, "another object");
    assert!(!entry.exists());
    let name = move_to_trash(&mount, "dir").unwrap();
    assert_eq!(
        names(&mount.at(trash_name()).join("files").join(&name)),
        [""; 0],
        "entries of a deleted directory"
    );
    restore_by_note(&mount, &name).unwrap();
    assert_eq!(names(&mount.at("dir")), ["below", "file"]);
    assert!(fs::read(mount.at("dir/below/inner")).unwrap() == bytes);
    assert_eq!((recycle_bin(&rig), names(&mount.at(trash_name()).join("info"))), (vec![], vec![]));
    // To another place too, and the file can be changed there.
    let name = move_to_trash(&mount, "dir/file").unwrap();
    fs::rename(mount.at(trash_name()).join("files").join(&name), mount.at("moved")).unwrap();
    OpenOptions::new().append(true).open(mount.at("moved")).unwrap().write_all(b"more").unwrap();
    assert_eq!(rig.client().read("moved").unwrap(), [&bytes[..], b"more"].concat());
    assert_eq!(rig.client().names(""), ["dir", "moved"]);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn trash_shows_the_recycle_bin() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--metadata-ttl", "0s"]);
    fs::create_dir_all(mount.at("a dir/é")).unwrap();
    for name in ["a dir/é/50% file.txt", "same", "a dir/same"] {
        fs::write(mount.at(name), name).unwrap();
    }
    fs::remove_file(mount.at("a dir/é/50% file.txt")).unwrap();
    for name in ["same", "a dir/same"] {
        rig.client().trash(&rig.client().find(name).unwrap().file_id);
    }
    let trash = mount.at(trash_name());
    assert_eq!(names(&trash.join("files")), ["50% file.txt", "same", "same (2)"]);
    for name in names(&trash.join("files")) {
        restore_by_note(&mount, &name).unwrap();
    }
    for name in ["a dir/é/50% file.txt", "same", "a dir/same"] {
        assert_eq!(fs::read_to_string(mount.at(name)).unwrap(), name);
        assert_eq!(rig.client().read(name).unwrap(), name.as_bytes());
    }
    assert_eq!((names(&trash.join("files")), names(&trash.join("info"))), (vec![], vec![]));
    // Programs that copy or delete everything do not meet it.
    assert_eq!(names(mount.path()), ["a dir", "same"]);
    assert_eq!(rig.client().names(""), ["a dir", "same"]);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn removal_from_trash_is_final() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::create_dir(mount.at("dir")).unwrap();
    for name in ["dir/inner", "one", "two"] {
        fs::write(mount.at(name), "content").unwrap();
    }
    for name in ["dir", "one", "two"] {
        move_to_trash(&mount, name).unwrap();
    }
    let trash = mount.at(trash_name());
    assert_eq!(recycle_bin(&rig).len(), 3);
    fs::remove_file(trash.join("files/one")).unwrap();
    fs::remove_dir(trash.join("files/dir")).unwrap();
    assert_eq!(recycle_bin(&rig).len(), 1);
    // The trash daemon of GNOME moves to a directory of its own, and empties that.
    fs::create_dir(trash.join("expunged")).unwrap();
    fs::rename(trash.join("files/two"), trash.join("expunged/1234")).unwrap();
    assert_eq!((recycle_bin(&rig), names(&trash.join("expunged"))), (vec![], vec![]));
    fs::remove_dir(trash.join("expunged")).unwrap();
    assert_eq!(rig.client().call("drive/get", json!({}))["used_size"], 0);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn trash_entry_can_only_be_restored_or_deleted() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("file"), "old").unwrap();
    for name in ["dir", "file"] {
        move_to_trash(&mount, name).unwrap();
    }
    fs::write(mount.at("file"), "new").unwrap();
    let files = mount.at(trash_name()).join("files");
    let entry = files.join("file");
    for flags in [OpenOptions::new().read(true), OpenOptions::new().write(true)] {
        assert_eq!(errno(flags.open(&entry)), libc::EPERM);
    }
    assert_eq!(errno(fs::set_permissions(&entry, fs::Permissions::from_mode(0o600))), libc::EPERM);
    assert_eq!(errno(fs::write(files.join("dir/new"), "x")), libc::EPERM);
    assert_eq!(errno(fs::create_dir(files.join("dir/new"))), libc::EPERM);
    fs::create_dir(mount.at(trash_name()).join("kept")).unwrap();
    for place in ["files/other", "kept/file", "info/file", "file"] {
        assert_eq!(errno(fs::rename(&entry, mount.at(trash_name()).join(place))), libc::EPERM, "{place}");
    }
    assert_eq!(errno(fs::rename(&entry, mount.at("file"))), libc::EEXIST);
    assert_eq!((rig.client().read("file").unwrap(), recycle_bin(&rig).len()), (b"new".to_vec(), 2));
    assert_eq!(mount.stop(), 0);
}
