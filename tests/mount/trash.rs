//! The trash of desktops: what is moved there is in the drive's recycle bin, and nowhere else.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use pdsfs::ids::FileId;
use serde_json::{Value, json};

use crate::rig::{Mount, Rig, TOKEN, errno, fresh_bytes, wait_until};

/// The trash of whoever runs the tests.
fn trash_name() -> String {
    // SAFETY: it only reads the process's own id and cannot fail.
    format!(".Trash-{}", unsafe { libc::getuid() })
}

/// A call that the mount itself never makes.
fn call(rig: &Rig, endpoint: &str, body: &Value) -> Value {
    let mut stream = TcpStream::connect(rig.endpoint().trim_start_matches("http://")).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST /v2/{endpoint} HTTP/1.1\r\nHost: drive\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 2"), "{endpoint}: {answer}");
    if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() }
}

/// Names in the recycle bin, with their ids.
fn bin(rig: &Rig) -> Vec<(String, String)> {
    let listed = call(rig, "recyclebin/list", &json!({"drive_id": "1", "limit": 100}));
    let text = |item: &Value, key: &str| item[key].as_str().unwrap().to_owned();
    let items = listed["items"].as_array().unwrap().iter();
    let mut found: Vec<_> = items.map(|item| (text(item, "name"), text(item, "file_id"))).collect();
    found.sort();
    found
}

fn restore(rig: &Rig, file_id: &str) {
    call(rig, "recyclebin/restore", &json!({"drive_id": "1", "file_id": file_id}));
}

/// What GIO does to move something to the trash.
fn throw(mount: &Mount, path: &str) -> std::io::Result<()> {
    let name = Path::new(path).file_name().unwrap().to_str().unwrap();
    let trash = mount.at(trash_name());
    for folder in [trash.clone(), trash.join("info"), trash.join("files")] {
        if !folder.exists() {
            fs::DirBuilder::new().mode(0o700).create(&folder)?;
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

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn what_is_thrown_away_is_in_the_recycle_bin_and_comes_back_from_it() {
    let rig = Rig::new();
    // Throwing away is not removing for good, whatever that means here.
    for remove in ["trash", "delete"] {
        let mount = rig.mount_with(&["--remove", remove, "--metadata-ttl", "1s"]);
        let bytes = fresh_bytes(100_000);
        fs::create_dir_all(mount.at("dir/below")).unwrap();
        fs::write(mount.at("dir/below/inner"), &bytes).unwrap();
        fs::write(mount.at("dir/file"), &bytes).unwrap();
        fs::write(mount.at("top"), &bytes).unwrap();
        let id = rig.client().find("dir/file").unwrap().file_id;
        throw(&mount, "dir/file").unwrap();
        throw(&mount, "top").unwrap();
        assert_eq!(rig.client().names("dir"), ["below"]);
        throw(&mount, "dir").unwrap();
        assert!(!mount.at("dir").exists() && !mount.at("top").exists());
        // The drive has nothing of the trash, and the trash nothing of what was thrown away.
        assert_eq!(rig.client().names(""), [""; 0]);
        assert_eq!(
            (count(&mount.at(trash_name()).join("files")), count(&mount.at(trash_name()).join("info"))),
            (0, 0)
        );
        let found = bin(&rig);
        assert_eq!(found.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>(), ["dir", "file", "top"]);
        assert_eq!(found[1].1, id.as_str(), "another object than the one that was thrown away");
        for (_, id) in &found {
            restore(&rig, id);
        }
        assert_eq!(rig.client().read("dir/below/inner").unwrap(), bytes);
        // It is there again, also where it was thrown away.
        wait_until("the file is back", || fs::read(mount.at("dir/file")).ok().filter(|seen| *seen == bytes));
        wait_until("the other one is back", || mount.at("top").exists().then_some(()));
        assert_eq!(bin(&rig), []);
        fs::remove_dir_all(mount.at("dir")).unwrap();
        fs::remove_file(mount.at("top")).unwrap();
        call(&rig, "recyclebin/clear", &json!({"drive_id": "1"}));
        assert_eq!(mount.stop(), 0);
    }
}

#[test]
fn names_in_the_trash_are_free_again_at_once() {
    let rig = Rig::new();
    let mount = rig.mount();
    for n in 0..3 {
        if n == 1 {
            fs::create_dir(mount.at("same")).unwrap();
        } else {
            fs::write(mount.at("same"), b"x").unwrap();
        }
        throw(&mount, "same").unwrap();
        assert!(!mount.at("same").exists());
    }
    assert_eq!(bin(&rig).len(), 3);
}

#[test]
fn what_was_not_on_the_drive_yet_is_in_the_recycle_bin_too() {
    let rig = Rig::new();
    let mount = rig.mount();
    let bytes = fresh_bytes(50_000);
    let mut file = File::create(mount.at("open")).unwrap();
    file.write_all(&bytes).unwrap();
    throw(&mount, "open").unwrap();
    // Whoever has it open goes on; nothing of that comes to the drive.
    file.write_all(b"more").unwrap();
    drop(file);
    assert_eq!(rig.client().names(""), [""; 0]);
    let found = bin(&rig);
    assert_eq!(found.len(), 1, "{found:?}");
    restore(&rig, &found[0].1);
    assert_eq!(rig.client().read("open").unwrap(), bytes);
    // Lock and junk files are nothing for it.
    fs::write(mount.at(".DS_Store"), b"junk").unwrap();
    throw(&mount, ".DS_Store").unwrap();
    assert!(!mount.at(".DS_Store").exists());
    assert_eq!(bin(&rig), []);
}

#[test]
fn the_trash_is_for_throwing_away_only() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("file"), b"x").unwrap();
    throw(&mount, "file").unwrap();
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
    // It is only a trash in the root, and only under such a name.
    fs::create_dir_all(mount.at("dir/.Trash-0/files")).unwrap();
    fs::create_dir_all(mount.at(".Trash/files")).unwrap();
    fs::rename(mount.at("file"), mount.at("dir/.Trash-0/files/file")).unwrap();
    fs::rename(mount.at("dir/.Trash-0/files/file"), mount.at(".Trash/files/file")).unwrap();
    assert_eq!(rig.client().read(".Trash/files/file").unwrap(), b"y");
    assert_eq!(mount.stop(), 0);
}

/// One that another program has made on the drive is shown as it is, and used as any other.
#[test]
fn a_trash_that_the_drive_has_gets_nothing_new() {
    let rig = Rig::new();
    let id = rig.block_on(async {
        let client = rig.client();
        let tags = BTreeMap::default();
        let trash = client.drive.create_folder(&FileId::root(), &trash_name(), &tags).await.unwrap();
        for name in ["files", "info"] {
            client.drive.create_folder(&trash.file_id, name, &tags).await.unwrap();
        }
        trash.file_id
    });
    let mount = rig.mount_with(&["--umask", "077"]);
    fs::write(mount.at(trash_name()).join("files/old"), b"old").unwrap();
    fs::write(mount.at("file"), b"x").unwrap();
    throw(&mount, "file").unwrap();
    assert_eq!(bin(&rig).len(), 1);
    assert_eq!(fs::read(mount.at(trash_name()).join("files/old")).unwrap(), b"old");
    assert_eq!(rig.client().names(&format!("{}/files", trash_name())), ["old"]);
    assert_eq!(rig.client().names(&format!("{}/info", trash_name())), [""; 0]);
    // What is in it can be taken out again.
    fs::rename(mount.at(trash_name()).join("files/old"), mount.at("old")).unwrap();
    assert_eq!(rig.client().read("old").unwrap(), b"old");
    assert_eq!(rig.client().find(&trash_name()).unwrap().file_id, id);
    assert_eq!(mount.stop(), 0);
}
