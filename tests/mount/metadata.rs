//! POSIX attributes for which the drive has no field: kept across mounts, without extra calls, and invisible
//! to other clients.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, SystemTime};

use pdsfs::control_api::EventKind;
use pdsfs::server::{FaultAction, FaultRule};

use crate::monitoring;
use crate::rig::{Mount, Rig, errno, fresh_bytes, wait_until};

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn check(outcome: libc::ssize_t) -> std::io::Result<usize> {
    usize::try_from(outcome).map_err(|_| std::io::Error::last_os_error())
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> std::io::Result<()> {
    let (path, name) = (c_path(path), CString::new(name).unwrap());
    // SAFETY: all pointers belong to values that outlive the call, with their lengths.
    let outcome =
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    check(outcome as libc::ssize_t).map(|_| ())
}

pub fn xattr(path: &Path, name: &str) -> std::io::Result<Vec<u8>> {
    let (path, name, mut value) = (c_path(path), CString::new(name).unwrap(), vec![0; 4096]);
    // SAFETY: as above.
    let outcome =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(check(outcome)?);
    Ok(value)
}

pub fn xattrs(path: &Path) -> Vec<String> {
    let (path, mut names) = (c_path(path), vec![0_u8; 4096]);
    // SAFETY: as above.
    let outcome = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(check(outcome).unwrap());
    String::from_utf8(names).unwrap().split_terminator('\0').map(str::to_owned).collect()
}

pub fn remove_xattr(path: &Path, name: &str) -> std::io::Result<()> {
    let (path, name) = (c_path(path), CString::new(name).unwrap());
    // SAFETY: as above.
    check(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) } as libc::ssize_t).map(|_| ())
}

fn make_node(path: &Path, mode: u32) -> std::io::Result<()> {
    make_device(path, mode, 0)
}

pub fn make_device(path: &Path, mode: u32, device: u64) -> std::io::Result<()> {
    let path = c_path(path);
    // SAFETY: as above.
    check(unsafe { libc::mknod(path.as_ptr(), mode, device) } as libc::ssize_t).map(|_| ())
}

/// Stops the mount, which sends pending attributes, and mounts again with an empty cache.
pub fn remount(rig: &Rig, mount: Mount) -> Mount {
    assert_eq!(mount.stop(), 0);
    rig.mount()
}

fn perm(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The whole seconds of the times that a test sets.
const SET_SECONDS: i64 = 1_700_000_000;

/// All attributes that must survive a remount, as text. An access time that was not set is not one of them.
fn attributes_text(path: &Path) -> String {
    let meta = fs::symlink_metadata(path).unwrap();
    let is_file = meta.is_file();
    let attributes = if is_file { xattrs(path) } else { Vec::new() };
    let values: Vec<_> = attributes.iter().map(|name| xattr(path, name).unwrap()).collect();
    format!(
        "{:o} {}:{} mtime {}.{:09} atime {:?} size {} link {:?} {attributes:?} {values:?}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec(),
        (meta.atime() == SET_SECONDS).then_some(meta.atime_nsec()),
        if meta.is_dir() { 0 } else { meta.len() },
        fs::read_link(path).ok(),
    )
}

#[test]
fn posix_attributes_survive_remount() {
    let rig = Rig::new();
    let mount = rig.mount();
    let time = |nanos| SystemTime::UNIX_EPOCH + Duration::new(SET_SECONDS.cast_unsigned(), nanos);
    fs::create_dir(mount.at("d")).unwrap();
    fs::set_permissions(mount.at("d"), Permissions::from_mode(0o1770)).unwrap();
    let file = File::create(mount.at("d/run")).unwrap();
    (&file).write_all(b"#!/bin/sh\n").unwrap();
    file.set_permissions(Permissions::from_mode(0o750)).unwrap();
    drop(file);
    let file = File::options().append(true).open(mount.at("d/run")).unwrap();
    file.set_times(FileTimes::new().set_modified(time(123_456_789)).set_accessed(time(987_654_321))).unwrap();
    drop(file);
    chown(mount.at("d/run"), Some(1234), Some(5678)).unwrap();
    set_xattr(&mount.at("d/run"), "user.mime_type", b"text/x-shellscript", 0).unwrap();
    set_xattr(&mount.at("d/run"), "user.odd #%", &[0, 1, 2, 255, b'#'], 0).unwrap();
    symlink("run", mount.at("d/link")).unwrap();
    symlink("../no/such \u{65e5}#file", mount.at("d/dangling")).unwrap();
    lchown(mount.at("d/link"), Some(7), Some(8)).unwrap();
    fs::write(mount.at("d/plain"), b"x").unwrap();
    let names = ["d", "d/run", "d/link", "d/dangling", "d/plain"];
    let before: Vec<_> = names.iter().map(|name| attributes_text(&mount.at(name))).collect();
    assert!(before[1].starts_with("100750 1234:5678 mtime 1700000000.123456789 atime Some(987654321)"));
    let mount = remount(&rig, mount);
    let calls = |rig: &Rig| rig.server().stats().requests.into_values().sum::<u64>();
    let calls_before = calls(&rig);
    let after: Vec<_> = names.iter().map(|name| attributes_text(&mount.at(name))).collect();
    assert_eq!(after[1..], before[1..]);
    assert_eq!(
        after[0].split(' ').take(2).collect::<Vec<_>>(),
        before[0].split(' ').take(2).collect::<Vec<_>>()
    );
    assert!(calls(&rig) - calls_before <= 2, "more calls than the listings of two directories");
    assert_eq!(fs::read(mount.at("d/link")).unwrap(), b"#!/bin/sh\n");
    // Other clients see ordinary files.
    let others = rig.client();
    assert_eq!(others.names("d"), ["dangling", "link", "plain", "run"]);
    assert_eq!(others.read("d/link").unwrap(), b"run");
    assert_eq!(
        others.find("d/plain").unwrap().tags,
        BTreeMap::new(),
        "a file with default attributes has tags"
    );
}

#[test]
fn new_file_gets_mode_from_open() {
    let rig = Rig::new();
    let mount = rig.mount();
    let open = |name, mode| {
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        options.write(true).create_new(true).open(mount.at(name)).unwrap()
    };
    for (name, mode) in [("private", 0o600), ("program", 0o755), ("usual", 0o644)] {
        open(name, mode).write_all(b"x").unwrap();
        assert_eq!(perm(&mount.at(name)), mode);
    }
    let builder = |name, mode| {
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, mode);
        builder.create(mount.at(name)).unwrap();
    };
    builder("secret", 0o700);
    // The create call carries the attributes; no second call follows.
    assert_eq!(rig.server().stats().count("file/put_usertags"), 0);
    assert_eq!(rig.server().stats().count("batch"), 0);
    let mount = remount(&rig, mount);
    let modes = ["private", "program", "usual", "secret"].map(|name| perm(&mount.at(name)));
    assert_eq!(modes, [0o600, 0o755, 0o644, 0o700]);
}

#[test]
fn save_by_rename_keeps_source_attributes() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("doc"), b"old").unwrap();
    set_xattr(&mount.at("doc"), "user.old", b"1", 0).unwrap();
    fs::set_permissions(mount.at("doc"), Permissions::from_mode(0o600)).unwrap();
    let mount = remount(&rig, mount);
    let id = rig.client().find("doc").unwrap().file_id;
    fs::write(mount.at("tmp"), b"new").unwrap();
    fs::set_permissions(mount.at("tmp"), Permissions::from_mode(0o664)).unwrap();
    fs::rename(mount.at("tmp"), mount.at("doc")).unwrap();
    let check = |mount: &Mount, mode| {
        assert_eq!((perm(&mount.at("doc")), xattrs(&mount.at("doc"))), (mode, Vec::new()));
    };
    check(&mount, 0o664);
    let mount = remount(&rig, mount);
    check(&mount, 0o664);
    // The same with new content that is not on the drive yet.
    let mut file = File::create(mount.at("tmp")).unwrap();
    file.write_all(b"newer").unwrap();
    fs::rename(mount.at("tmp"), mount.at("doc")).unwrap();
    file.set_permissions(Permissions::from_mode(0o640)).unwrap();
    drop(file);
    check(&mount, 0o640);
    let mount = remount(&rig, mount);
    check(&mount, 0o640);
    assert_eq!(rig.client().find("doc").unwrap().file_id, id);
    // Overwriting a file keeps its attributes.
    set_xattr(&mount.at("doc"), "user.kept", b"2", 0).unwrap();
    fs::write(mount.at("doc"), fresh_bytes(100)).unwrap();
    let mount = remount(&rig, mount);
    assert_eq!((perm(&mount.at("doc")), xattrs(&mount.at("doc"))), (0o640, vec!["user.kept".to_owned()]));
}

#[test]
fn xattr_errors_match_linux() {
    let rig = Rig::new();
    let mount = rig.mount();
    let path = mount.at("f");
    fs::write(&path, b"x").unwrap();
    assert_eq!(errno(xattr(&path, "user.a")), libc::ENODATA);
    assert_eq!(errno(set_xattr(&path, "user.a", b"1", libc::XATTR_REPLACE)), libc::ENODATA);
    set_xattr(&path, "user.a", b"1", libc::XATTR_CREATE).unwrap();
    assert_eq!(errno(set_xattr(&path, "user.a", b"2", libc::XATTR_CREATE)), libc::EEXIST);
    set_xattr(&path, "user.a", b"2", libc::XATTR_REPLACE).unwrap();
    set_xattr(&path, "user.empty", b"", 0).unwrap();
    assert_eq!(
        (xattr(&path, "user.a").unwrap(), xattr(&path, "user.empty").unwrap()),
        (b"2".to_vec(), Vec::new())
    );
    assert_eq!(xattrs(&path), ["user.a", "user.empty"]);
    assert_eq!(errno(set_xattr(&path, "user.large", &[b'x'; 2000], 0)), libc::ENOSPC);
    assert_eq!(errno(set_xattr(&path, "security.x", b"1", 0)), libc::EOPNOTSUPP);
    remove_xattr(&path, "user.a").unwrap();
    assert_eq!(errno(remove_xattr(&path, "user.a")), libc::ENODATA);
    let mount = remount(&rig, mount);
    assert_eq!(xattrs(&mount.at("f")), ["user.empty"]);
}

#[test]
fn foreign_tags_are_kept() {
    for replaces in [false, true] {
        let rig = Rig::with(move |config| config.quirks.replace_user_tags = replaces);
        let mount = rig.mount();
        fs::write(mount.at("f"), b"x").unwrap();
        assert_eq!(mount.stop(), 0);
        let client = rig.client();
        let file = client.find("f").unwrap().file_id;
        client.put_tags(&file, &[("project", "alpha"), ("pdsfs.mode", "nonsense")]);
        let mount = rig.mount();
        assert_eq!(perm(&mount.at("f")), 0o644);
        fs::set_permissions(mount.at("f"), Permissions::from_mode(0o600)).unwrap();
        set_xattr(&mount.at("f"), "user.a", b"1", 0).unwrap();
        remove_xattr(&mount.at("f"), "user.a").unwrap();
        assert_eq!(mount.stop(), 0);
        let tags = client.find("f").unwrap().tags;
        assert_eq!(
            tags.into_iter().collect::<Vec<_>>(),
            [("pdsfs.mode".to_owned(), "0600".to_owned()), ("project".to_owned(), "alpha".to_owned())]
        );
    }
}

#[test]
fn symlink_target_follows_remote_content() {
    let rig = Rig::new();
    let mount = rig.mount();
    symlink("old", mount.at("link")).unwrap();
    let long = "d/".repeat(1200);
    symlink(&long, mount.at("long")).unwrap();
    let mount = remount(&rig, mount);
    let downloads = |rig: &Rig| rig.server().stats().count("get_object");
    assert_eq!(fs::read_link(mount.at("link")).unwrap(), Path::new("old"));
    assert_eq!(downloads(&rig), 0);
    assert_eq!(fs::read_link(mount.at("long")).unwrap(), Path::new(&long));
    assert_eq!(downloads(&rig), 1, "only the target that is too long for a tag is downloaded");
    assert_eq!(mount.stop(), 0);
    // Another client overwrites the file that stores the link.
    let plain = rig.mount_with(&["--metadata", "off"]);
    fs::write(plain.at("link"), b"elsewhere").unwrap();
    assert_eq!(plain.stop(), 0);
    let mount = rig.mount();
    assert_eq!(fs::read_link(mount.at("link")).unwrap(), Path::new("elsewhere"));
}

#[test]
fn pipes_and_sockets_survive_remount() {
    let rig = Rig::new();
    let mount = rig.mount();
    make_node(&mount.at("pipe"), libc::S_IFIFO | 0o600).unwrap();
    let listener = UnixListener::bind(mount.at("socket")).unwrap();
    let talk = |mount: &Mount| {
        let pipe = mount.at("pipe");
        let writer = std::thread::spawn(move || fs::write(pipe, b"through the pipe").unwrap());
        assert_eq!(fs::read(mount.at("pipe")).unwrap(), b"through the pipe");
        writer.join().unwrap();
    };
    talk(&mount);
    let path = mount.at("socket");
    let client = std::thread::spawn(move || UnixStream::connect(path).unwrap().write_all(b"hello").unwrap());
    let mut received = String::new();
    listener.accept().unwrap().0.read_to_string(&mut received).unwrap();
    client.join().unwrap();
    assert_eq!(received, "hello");
    let mount = remount(&rig, mount);
    assert!(fs::symlink_metadata(mount.at("socket")).unwrap().file_type().is_socket());
    assert!(fs::symlink_metadata(mount.at("pipe")).unwrap().file_type().is_fifo());
    assert_eq!(perm(&mount.at("pipe")), 0o600);
    talk(&mount);
    let kinds: Vec<_> =
        fs::read_dir(mount.path()).unwrap().map(|e| e.unwrap().file_type().unwrap()).collect();
    assert!(kinds.iter().all(|kind| kind.is_fifo() || kind.is_socket()));
}

#[test]
fn hard_links_are_refused() {
    let rig = Rig::new();
    let mount = rig.mount();
    fs::write(mount.at("f"), b"x").unwrap();
    assert_eq!(errno(fs::hard_link(mount.at("f"), mount.at("g"))), libc::EPERM);
    assert_eq!(rig.client().names(""), ["f"]);
}

#[test]
fn metadata_off_accepts_and_drops_changes() {
    let rig = Rig::new();
    let with = rig.mount();
    symlink("f", with.at("link")).unwrap();
    fs::write(with.at("kept"), b"x").unwrap();
    fs::set_permissions(with.at("kept"), Permissions::from_mode(0o600)).unwrap();
    assert_eq!(with.stop(), 0);
    let mount = rig.mount_with(&["--metadata", "off"]);
    fs::write(mount.at("f"), b"x").unwrap();
    fs::set_permissions(mount.at("f"), Permissions::from_mode(0o755)).unwrap();
    chown(mount.at("f"), Some(5), Some(6)).unwrap();
    assert_eq!((perm(&mount.at("f")), fs::metadata(mount.at("f")).unwrap().uid()), (0o755, 5));
    assert_eq!(errno(set_xattr(&mount.at("f"), "user.a", b"1", 0)), libc::EOPNOTSUPP);
    assert_eq!(errno(symlink("f", mount.at("another"))), libc::EPERM);
    for kind in [libc::S_IFIFO, libc::S_IFCHR] {
        assert_eq!(errno(make_node(&mount.at("node"), kind | 0o600)), libc::EPERM);
    }
    assert!(fs::symlink_metadata(mount.at("link")).unwrap().is_file(), "the link is not shown as a file");
    assert_eq!(perm(&mount.at("kept")), 0o644);
    fs::write(mount.at("kept"), b"y").unwrap();
    assert_eq!(mount.stop(), 0);
    assert_eq!(rig.client().find("f").unwrap().tags, BTreeMap::new());
    assert_eq!(rig.client().find("kept").unwrap().mode_tag(), Some(0o600), "the tags were changed");
    let mount = rig.mount();
    assert_eq!(perm(&mount.at("f")), 0o644);
}

#[test]
fn backslash_names_work() {
    let rig = Rig::new();
    let mount = rig.mount();
    let names = ["back\\slash", "full\u{ff3c}width", "quote\u{201b}\\"];
    for name in names {
        fs::write(mount.at(name), name).unwrap();
    }
    fs::create_dir(mount.at("d\\e")).unwrap();
    fs::rename(mount.at(names[0]), mount.at("d\\e/moved\\too")).unwrap();
    let mount = remount(&rig, mount);
    assert_eq!(fs::read_to_string(mount.at("d\\e/moved\\too")).unwrap(), names[0]);
    for name in &names[1..] {
        assert_eq!(fs::read_to_string(mount.at(name)).unwrap(), *name);
    }
    assert_eq!(rig.client().names("d\u{ff3c}e"), ["moved\u{ff3c}too"]);
    let listed: std::collections::BTreeSet<_> =
        fs::read_dir(mount.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(listed, [names[1], names[2], "d\\e"].map(str::to_owned).into());
}

/// The sequence of `rsync`. The answer to the rename is older than the attributes set before it.
#[test]
fn regression_attrs_set_before_rename_are_kept() {
    let rig = Rig::new();
    let mount = rig.mount();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    fs::write(mount.at(".f.tmp"), b"x").unwrap();
    fs::set_permissions(mount.at(".f.tmp"), Permissions::from_mode(0o640)).unwrap();
    File::open(mount.at(".f.tmp")).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
    fs::rename(mount.at(".f.tmp"), mount.at("f")).unwrap();
    wait_until("the attributes are on the drive", || {
        rig.client()
            .find("f")
            .is_some_and(|file| file.mtime() == time && file.mode_tag().is_some())
            .then_some(())
    });
    let meta = fs::metadata(mount.at("f")).unwrap();
    assert_eq!((meta.modified().unwrap(), perm(&mount.at("f"))), (time, 0o640));
}

/// Between the change and the commit, the mount reads the attributes from before the change.
#[test]
fn regression_attrs_set_before_commit_are_kept() {
    let rig = Rig::new();
    let mount = rig.mount_with(&["--metadata-ttl", "0s"]);
    fs::write(mount.at("f"), b"x").unwrap();
    fs::set_permissions(mount.at("f"), Permissions::from_mode(0o600)).unwrap();
    assert_eq!(perm(&mount.at("f")), 0o600);
    fs::write(mount.at("f"), b"longer").unwrap();
    assert_eq!(mount.stop(), 0);
    assert_eq!(rig.client().find("f").unwrap().mode_tag(), Some(0o600));
}

#[test]
fn refused_attributes_are_reported_as_failure() {
    let rig = Rig::new();
    let mount = rig.mount();
    let path = mount.at("f");
    fs::write(&path, b"x").unwrap();
    let refused = FaultAction::Status {
        status: 403,
        code: "ForbiddenNoPermission.File".into(),
        message: "no tags here".into(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: false,
    };
    rig.server().faults().add(FaultRule::new("file/put_usertags", refused));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let seen = wait_until("the refusal is in the status", || {
        Some(monitoring::status(&mount))
            .filter(|seen| !seen.failures.is_empty() && seen.pending.attributes_refused > 0)
    });
    assert_eq!((seen.pending.attributes, seen.totals.files_failed, seen.failures.len()), (0, 0, 1));
    let failure = &seen.failures[0];
    assert_eq!((failure.what, failure.path.as_deref()), (EventKind::AttributesRefused, Some("/f")));
    assert!(failure.text.starts_with("the drive refused its attributes: "), "{}", failure.text);
    assert_eq!(monitoring::pdsfs_xattr(&mount, "f", "error"), failure.text);
    assert_eq!(monitoring::pdsfs_xattr(&mount, "f", "state"), "saved", "the content is not on the drive");
    let log = mount.wait_for_log(&failure.text);
    let lines = log.iter().filter(|line| line.contains(&failure.text)).count();
    assert_eq!(lines, 1, "one failure is one line");
    // A new value is sent again.
    rig.server().faults().clear();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    wait_until("the drive has the new value", || {
        let pending = monitoring::status(&mount).pending;
        (pending.attributes == 0 && pending.attributes_refused == 0).then_some(())
    });
    assert_eq!(errno(xattr(&path, "user.pdsfs.error")), libc::ENODATA);
}
