//! `pdsfs trash` on a real mount.

use std::ffi::OsStr;
use std::fs;

use pdsfs::control_api::TrashedItem;
use serde_json::json;

use crate::rig::{Mount, Rig, fresh_bytes};
use crate::versions::{fails, succeeds};

fn listed(mount: &Mount) -> Vec<TrashedItem> {
    let words = ["trash".as_ref(), "list".as_ref(), "--json".as_ref(), mount.path().as_ref()];
    serde_json::from_slice(&succeeds(&words)).unwrap()
}

fn paths(mount: &Mount) -> Vec<String> {
    listed(mount).into_iter().map(|item| item.path).collect()
}

fn restore(mount: &Mount, item: &OsStr) {
    succeeds(&["trash".as_ref(), "restore".as_ref(), "--mount".as_ref(), mount.path().as_ref(), item]);
}

#[test]
fn deleted_files_are_restored_to_their_place() {
    let rig = Rig::new();
    let mount = rig.mount();
    let bytes = fresh_bytes(70_000);
    fs::create_dir_all(mount.at("dir/sub")).unwrap();
    fs::write(mount.at("dir/sub/inner"), &bytes).unwrap();
    fs::write(mount.at("dir/file"), &bytes).unwrap();
    fs::remove_file(mount.at("dir/file")).unwrap();
    // Another client deletes too.
    rig.client().trash(&rig.client().find("dir/sub").unwrap().file_id);
    let (file, sub) = (mount.at("dir/file"), mount.at("dir/sub"));
    let expected = [sub.to_str().unwrap().to_owned(), file.to_str().unwrap().to_owned()];
    assert_eq!(paths(&mount), expected);
    let items = listed(&mount);
    assert!(items.iter().all(|item| item.at_ms.is_some()));
    assert_eq!(
        items.iter().map(|item| (item.directory, item.bytes)).collect::<Vec<_>>(),
        [(true, 0), (false, 70_000)]
    );
    // The kernel knows that the name does not exist.
    assert!(!file.exists());
    restore(&mount, file.as_ref());
    assert!(fs::read(&file).unwrap() == bytes, "not visible at once");
    restore(&mount, items[0].id[..12].as_ref());
    assert!(fs::read(sub.join("inner")).unwrap() == bytes);
    assert_eq!(paths(&mount), [""; 0]);
    // A directory that is deleted with a file from before.
    fs::remove_file(&file).unwrap();
    fs::remove_dir_all(mount.at("dir")).unwrap();
    assert_eq!(paths(&mount)[0], mount.at("dir").to_str().unwrap());
    assert!(paths(&mount).contains(&expected[1]));
    assert_eq!(mount.stop(), 0);
}

#[test]
fn emptied_recycle_bin_frees_its_space() {
    let rig = Rig::new();
    let mount = rig.mount();
    for n in 0..20 {
        fs::write(mount.at(format!("f{n}")), fresh_bytes(1000)).unwrap();
    }
    for n in 0..19 {
        fs::remove_file(mount.at(format!("f{n}"))).unwrap();
    }
    let used = || rig.client().call("drive/get", json!({}))["used_size"].as_u64().unwrap();
    assert_eq!((used(), listed(&mount).len()), (20_000, 19));
    let words: [&OsStr; 4] = ["trash".as_ref(), "empty".as_ref(), mount.path().as_ref(), "--yes".as_ref()];
    let printed = fails(2, &words[..3]);
    assert!(printed.contains("19 items") && printed.contains("add --yes"), "{printed}");
    assert_eq!(used(), 20_000, "deleted without a yes");
    succeeds(&words);
    assert_eq!((used(), paths(&mount)), (1000, Vec::new()));
    assert_eq!(rig.client().names(""), ["f19"]);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn mount_of_a_folder_has_its_own_recycle_bin() {
    let rig = Rig::new();
    let whole = rig.mount();
    fs::create_dir_all(whole.at("photos/deep")).unwrap();
    for name in ["outside", "photos/one", "photos/deep/two"] {
        fs::write(whole.at(name), name).unwrap();
        fs::remove_file(whole.at(name)).unwrap();
    }
    let part = rig.mount_with(&["--folder", "/photos"]);
    assert_eq!(
        paths(&part),
        [part.at("deep/two"), part.at("one")].map(|path| path.to_str().unwrap().to_owned())
    );
    succeeds(&["trash".as_ref(), "empty".as_ref(), part.path().as_ref(), "-y".as_ref()]);
    assert_eq!(paths(&whole), [whole.at("outside").to_str().unwrap()]);
    let refused = fails(
        1,
        &[
            "trash".as_ref(),
            "restore".as_ref(),
            "--mount".as_ref(),
            whole.path().as_ref(),
            "photos/one".as_ref(),
        ],
    );
    assert!(refused.contains("the recycle bin has no"), "{refused}");
    assert_eq!(whole.stop(), 0);
    assert_eq!(part.stop(), 0);
}

#[test]
fn read_only_mount_restores_nothing() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("file"), "x").unwrap();
    fs::remove_file(mount.at("file")).unwrap();
    let reader = rig.mount_with(&["--read-only"]);
    let id = listed(&reader)[0].id.clone();
    let words =
        ["trash".as_ref(), "restore".as_ref(), id.as_ref(), "--mount".as_ref(), reader.path().as_ref()];
    assert!(fails(1, &words).contains("the mount is read-only"));
    assert_eq!(rig.client().names(""), [""; 0]);
    assert_eq!(reader.stop(), 0);
    assert_eq!(mount.stop(), 0);
}
