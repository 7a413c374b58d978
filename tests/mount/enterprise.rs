//! A team drive of an enterprise domain: it lists no entries of subfolders, lags, and permits neither removal nor
//! batches.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use pdsfs::server::Quirks;

use crate::rig::{Rig, errno, fresh_bytes, wait_until};

fn rig() -> Rig {
    Rig::with(|config| config.quirks = Quirks::enterprise())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn folders_without_listing_are_searched() {
    let rig = rig();
    let content = fresh_bytes(300_000);
    let mount = rig.mount();
    fs::create_dir_all(mount.at("a/b")).unwrap();
    fs::create_dir(mount.at("a/empty")).unwrap();
    fs::write(mount.at("a/b/f"), &content).unwrap();
    fs::write(mount.at("a/g"), "g").unwrap();
    fs::set_permissions(mount.at("a/g"), Permissions::from_mode(0o711)).unwrap();
    // What this mount has made is seen at once; the listings lag.
    assert_eq!(
        (names(&mount.at("a")), names(&mount.at("a/b"))),
        (vec!["b".into(), "empty".into(), "g".into()], vec!["f".to_owned()])
    );
    assert_eq!(mount.stop(), 0);
    rig.block_on(rig.server().advance_clock(Duration::from_secs(60)));
    let mount = rig.mount();
    assert_eq!(names(&mount.at("a")), ["b", "empty", "g"]);
    assert_eq!(names(&mount.at("a/empty")), [""; 0]);
    assert_eq!(fs::metadata(mount.at("a/g")).unwrap().mode() & 0o777, 0o711);
    let mut middle = vec![0; 1000];
    fs::File::open(mount.at("a/b/f")).unwrap().read_exact_at(&mut middle, 200_000).unwrap();
    assert!(middle == content[200_000..201_000] && fs::read(mount.at("a/b/f")).unwrap() == content);
    fs::rename(mount.at("a/b/f"), mount.at("a/moved")).unwrap();
    assert_eq!(
        (names(&mount.at("a")), names(&mount.at("a/b"))),
        (vec!["b".into(), "empty".into(), "g".into(), "moved".into()], vec![])
    );
    let searches = rig.server().stats().count("file/search");
    assert!(searches > 0);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn removal_without_right_fails_and_changes_nothing() {
    let rig = rig();
    let mount = rig.mount();
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/f"), "kept").unwrap();
    fs::create_dir(mount.at("dir/sub")).unwrap();
    assert_eq!(errno(fs::remove_file(mount.at("dir/f"))), libc::EACCES);
    assert_eq!(errno(fs::remove_dir(mount.at("dir/sub"))), libc::EACCES);
    assert_eq!(
        (names(&mount.at("dir")), fs::read(mount.at("dir/f")).unwrap()),
        (vec!["f".into(), "sub".into()], b"kept".to_vec())
    );
    mount.wait_for_log("the account has no permission for it");
    // Attributes of several files are sent one by one where batches are refused.
    for name in ["dir/f", "dir/sub"] {
        fs::set_permissions(mount.at(name), Permissions::from_mode(0o700)).unwrap();
    }
    wait_until("both attributes are on the drive", || {
        (rig.server().stats().count("file/put_usertags") >= 2).then_some(())
    });
    assert_eq!(mount.stop(), 0);
}

#[test]
fn true_listings_are_not_searched() {
    let rig = Rig::new();
    let mount = rig.mount();
    for dir in ["full", "empty", "empty2"] {
        fs::create_dir(mount.at(dir)).unwrap();
    }
    fs::write(mount.at("full/f"), "f").unwrap();
    assert_eq!(mount.stop(), 0);
    let before = rig.server().stats().count("file/search");
    let mount = rig.mount();
    assert_eq!(names(&mount.at("full")), ["f"]);
    for dir in ["empty", "empty2"] {
        assert_eq!(names(&mount.at(dir)), [""; 0]);
    }
    assert_eq!(rig.server().stats().count("file/search"), before);
    assert_eq!(mount.stop(), 0);
}
