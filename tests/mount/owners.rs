//! Owners and modes of files that other clients of the drive tagged.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use crate::rig::{Mount, Rig, errno};

/// The tags that another client has set.
const FORGED: [(&str, &str); 2] = [("pdsfs.owner", "1234:5678"), ("pdsfs.mode", "6755")];

/// A drive with the file `f` and the folder `d`, both with the tags of another client.
fn forged(is_of_group: bool) -> Rig {
    let rig = Rig::with(move |config| config.quirks.group_drives = is_of_group);
    let mount = rig.mount();
    fs::write(mount.at("f"), "x").unwrap();
    assert_eq!(mount.stop(), 0);
    let client = rig.client();
    client.put_tags(&client.find("f").unwrap().file_id, &FORGED);
    let folder = client.create_folder("root", "d");
    client.put_tags(&folder, &[("pdsfs.owner", "1234:5678"), ("pdsfs.mode", "3777")]);
    rig
}

/// Owner, group and mode of a file.
fn shown(path: &Path) -> String {
    let meta = fs::metadata(path).unwrap();
    format!("{}:{} {:o}", meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

fn ids(mount: &Mount) -> String {
    let meta = fs::metadata(mount.path()).unwrap();
    format!("{}:{}", meta.uid(), meta.gid())
}

#[test]
fn owners_of_a_group_drive_are_not_shown() {
    let rig = forged(true);
    let mount = rig.mount();
    let own = ids(&mount);
    assert_eq!(shown(&mount.at("f")), format!("{own} 755"));
    assert_eq!(shown(&mount.at("d")), format!("{own} 1777"));
    // A change of the owner is accepted and not kept.
    chown(mount.at("f"), Some(4321), Some(4321)).unwrap();
    assert_eq!(shown(&mount.at("f")), format!("{own} 755"));
    assert_eq!(mount.stop(), 0);
    assert_eq!(rig.client().find("f").unwrap().tags["pdsfs.owner"], "1234:5678", "a tag was changed");
    let mount = rig.mount_with(&["--owners", "drive"]);
    assert_eq!(shown(&mount.at("f")), "1234:5678 755");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn mount_of_root_for_all_users_shows_its_owner() {
    // SAFETY: geteuid has no arguments and cannot fail.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test mounts as root");
    let rig = forged(false);
    for (arguments, owner) in [
        (&["--allow-other"][..], "0:0"),
        (&["--allow-other", "--uid", "77", "--gid", "88"][..], "77:88"),
        (&["--allow-other", "--owners", "drive"][..], "1234:5678"),
        (&[][..], "1234:5678"),
        (&["--owners", "mounter"][..], "0:0"),
    ] {
        let mount = rig.mount_with(arguments);
        assert_eq!(shown(&mount.at("f")), format!("{owner} 755"), "{arguments:?}");
        assert_eq!(mount.stop(), 0);
    }
}

#[test]
fn set_id_bits_of_others_are_not_shown() {
    let rig = forged(false);
    let mount = rig.mount();
    assert_eq!(
        (shown(&mount.at("f")), shown(&mount.at("d"))),
        ("1234:5678 755".into(), "1234:5678 1777".into())
    );
    // Nor are those that a program sets.
    fs::write(mount.at("own"), "x").unwrap();
    for (name, mode, kept) in [("own", 0o7711, 0o711), ("d", 0o7711, 0o1711)] {
        fs::set_permissions(mount.at(name), Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(mount.at(name)).unwrap().mode() & 0o7777, kept, "{name}");
    }
    // Another attribute leaves the bits on the drive; a change of the mode removes them.
    let mut file = File::options().append(true).open(mount.at("f")).unwrap();
    file.write_all(b"y").unwrap();
    drop(file);
    assert_eq!(rig.client().find("f").unwrap().mode_tag(), Some(0o6755));
    fs::set_permissions(mount.at("f"), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(mount.stop(), 0);
    let modes = ["f", "d", "own"].map(|name| rig.client().find(name).unwrap().mode_tag());
    assert_eq!(modes, [Some(0o755), Some(0o1711), Some(0o711)]);
}

#[test]
fn special_bits_are_kept_where_asked_for() {
    let rig = forged(false);
    let arguments = ["--special-bits", "on"];
    let mount = rig.mount_with(&arguments);
    assert_eq!(
        (shown(&mount.at("f")), shown(&mount.at("d"))),
        ("1234:5678 6755".into(), "1234:5678 3777".into())
    );
    fs::write(mount.at("own"), "x").unwrap();
    fs::set_permissions(mount.at("own"), Permissions::from_mode(0o7711)).unwrap();
    assert_eq!(mount.stop(), 0);
    let mount = rig.mount_with(&arguments);
    assert_eq!(fs::metadata(mount.at("own")).unwrap().mode() & 0o7777, 0o7711);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn nosymfollow_mount_follows_no_links() {
    // SAFETY: geteuid has no arguments and cannot fail.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test mounts as root");
    let rig = Rig::new();
    for follows in [true, false] {
        let mount = rig.mount_with(if follows { &["--remove", "delete"] } else { &["--nosymfollow"] });
        fs::write(mount.at("target"), "x").unwrap();
        symlink("target", mount.at(format!("link{follows}"))).unwrap();
        let link = mount.at(format!("link{follows}"));
        assert_eq!(fs::read_link(&link).unwrap().to_str(), Some("target"));
        match fs::read(&link) {
            Ok(content) => assert!(follows && content == b"x"),
            refused => assert_eq!((errno(refused), follows), (libc::ELOOP, false)),
        }
        assert_eq!(mount.stop(), 0);
    }
}
