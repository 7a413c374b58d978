//! Device nodes, which are kept and cannot be opened.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;

use crate::metadata::{make_device, remount};
use crate::rig::{Mount, Rig, errno};

#[test]
fn device_nodes_survive_remount_unopenable() {
    let rig = Rig::new();
    let mount = rig.mount();
    let nodes = [
        ("null", libc::S_IFCHR | 0o644, libc::makedev(1, 3)),
        ("disk", libc::S_IFBLK | 0o640, libc::makedev(8, 17)),
        ("large", libc::S_IFCHR | 0o600, libc::makedev(4095, 1_048_575)),
        ("whiteout", libc::S_IFCHR | 0o600, 0),
    ];
    let check = |mount: &Mount| {
        for (name, mode, device) in nodes {
            let meta = fs::symlink_metadata(mount.at(name)).unwrap();
            assert_eq!((meta.mode(), meta.rdev(), meta.size()), (mode, device, 0), "{name}");
            assert_eq!(errno(File::open(mount.at(name))), libc::EACCES, "the mount is nodev");
        }
    };
    for (name, mode, device) in nodes {
        make_device(&mount.at(name), mode, device).unwrap();
        assert_eq!(errno(make_device(&mount.at(name), mode, device)), libc::EEXIST);
    }
    check(&mount);
    fs::rename(mount.at("disk"), mount.at("moved")).unwrap();
    fs::rename(mount.at("moved"), mount.at("disk")).unwrap();
    let mount = remount(&rig, mount);
    check(&mount);
    let kinds: BTreeMap<_, _> = fs::read_dir(mount.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.file_type().unwrap()))
        .collect();
    assert!(kinds["disk"].is_block_device() && kinds["null"].is_char_device());
    // Other clients see empty files.
    assert_eq!(rig.client().read("null").unwrap(), b"");
    // `cp -a` copies a node of the mount as a node.
    let copied = Command::new("cp").arg("-a").args([mount.at("disk"), mount.at("copy")]).status();
    assert!(copied.unwrap().success());
    assert_eq!(fs::symlink_metadata(mount.at("copy")).unwrap().rdev(), libc::makedev(8, 17));
}
