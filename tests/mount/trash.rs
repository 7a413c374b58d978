//! The trash of desktops: a trashed file is in the recycle bin of the drive, and nowhere else.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
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

/// Moves a file to the trash, with the system calls of GIO.
fn move_to_trash(mount: &Mount, path: &str) -> std::io::Result<()> {
    let name = Path::new(path).file_name().unwrap().to_str().unwrap();
    let trash = mount.at(trash_name());
    for dir in [trash.clone(), trash.join("info"), trash.join("files")] {
        if !dir.exists() {
            fs::DirBuilder::new().mode(0o700).create(&dir)?;
        }
    }
    // SAFETY: as above.
    assert_eq!(fs::metadata(&trash)?.uid(), unsafe { libc::getuid() });
    assert_eq!(fs::metadata(&trash)?.mode() & 0o777, 0o700);
    let note = trash.join(format!("info/{name}.trashinfo"));
    OpenOptions::new().write(true).create_new(true).open(&note)?;
    let draft = trash.join(format!("info/{name}.trashinfo.1A2B3C"));
    fs::write(&draft, format!("[Trash Info]\nPath={path}\nDeletionDate=2026-01-01T00:00:00\n"))?;
    fs::rename(&draft, &note)?;
    assert!(fs::read_to_string(&note)?.contains(path));
    fs::rename(mount.at(path), trash.join("files").join(name)).inspect_err(|_| {
        let _ = fs::remove_file(&note);
    })
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
        // The drive has no trash directory, and the trash directory has no trashed file.
        assert_eq!(rig.client().names(""), [""; 0]);
        assert_eq!(
            (count(&mount.at(trash_name()).join("files")), count(&mount.at(trash_name()).join("info"))),
            (0, 0)
        );
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
    fs::remove_dir_all(&trash).unwrap();
    assert!(!trash.exists());
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
