//! `pdsfs versions` on a real mount.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use pdsfs::control_api::Version;
use pdsfs::server::{FaultAction, FaultRule};

use crate::rig::{Mount, Rig, fresh_bytes};

/// `pdsfs WORDS`, in the directory `dir`.
pub fn pdsfs_in(dir: &Path, words: &[&OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pdsfs"))
        .args(words)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// `pdsfs WORDS`, which must succeed. Returns stdout.
#[track_caller]
pub fn succeeds(words: &[&OsStr]) -> Vec<u8> {
    let output = pdsfs_in(Path::new("/"), words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// `pdsfs WORDS`, which must fail with `code`. Returns stderr.
#[track_caller]
pub fn fails(code: i32, words: &[&OsStr]) -> String {
    let output = pdsfs_in(Path::new("/"), words);
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {printed}");
    printed
}

fn versions(path: &Path) -> Vec<Version> {
    serde_json::from_slice(&succeeds(&["versions".as_ref(), path.as_ref(), "--json".as_ref()])).unwrap()
}

/// A mount with a file of three versions, and their contents, the oldest first.
fn three_versions(rig: &Rig) -> (Mount, [Vec<u8>; 3]) {
    let mount = rig.mount();
    let contents = [fresh_bytes(3_000_000), fresh_bytes(10), fresh_bytes(700)];
    for content in &contents {
        fs::write(mount.at("file.bin"), content).unwrap();
    }
    (mount, contents)
}

#[test]
fn versions_are_listed_and_read() {
    let rig = Rig::new();
    let (mount, contents) = three_versions(&rig);
    let file = mount.at("file.bin");
    let listed = versions(&file);
    let sizes: Vec<_> =
        listed.iter().map(|version| (version.number, version.bytes, version.latest)).collect();
    let expected =
        [(Some(3), Some(700), true), (Some(2), Some(10), false), (Some(1), Some(3_000_000), false)];
    assert_eq!(sizes, expected);
    assert!(
        listed.iter().all(|version| version.author.as_deref() == Some("owner") && version.at_ms.is_some())
    );
    let table = String::from_utf8(succeeds(&["versions".as_ref(), file.as_ref()])).unwrap();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(
        table.starts_with("VERSION  TIME") && table.contains("latest") && table.contains("owner"),
        "{table}"
    );

    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::write(&out, "is replaced").unwrap();
    let get = |wanted: &OsStr, out: &OsStr| {
        succeeds(&["versions".as_ref(), "get".as_ref(), "-o".as_ref(), out, file.as_ref(), wanted])
    };
    get("1".as_ref(), out.as_ref());
    assert!(fs::read(&out).unwrap() == contents[0]);
    assert_eq!(get(listed[1].id.as_ref(), "-".as_ref()), contents[1]);
    // Without a name, the file gets one in the working directory, and nothing is replaced.
    let get = ["versions".as_ref(), "get".as_ref(), file.as_ref(), "2".as_ref()];
    assert!(pdsfs_in(dir.path(), &get).status.success());
    assert_eq!(fs::read(dir.path().join("file (version 2).bin")).unwrap(), contents[1]);
    assert_eq!(pdsfs_in(dir.path(), &get).status.code(), Some(1));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a temporary file was left");
    assert_eq!(mount.stop(), 0);
}

#[test]
fn restored_version_is_visible_at_once() {
    let rig = Rig::new();
    let (mount, contents) = three_versions(&rig);
    let file = mount.at("file.bin");
    for (number, before, content) in [("1", &contents[2], &contents[0]), ("2", &contents[0], &contents[1])] {
        // The kernel has the content and the attributes.
        assert!(fs::read(&file).unwrap() == *before);
        assert_eq!(fs::metadata(&file).unwrap().len(), before.len() as u64);
        succeeds(&["versions".as_ref(), "restore".as_ref(), file.as_ref(), number.as_ref()]);
        assert_eq!(fs::metadata(&file).unwrap().len(), content.len() as u64);
        assert!(fs::read(&file).unwrap() == *content, "not version {number}");
        assert!(rig.client().read("file.bin").unwrap() == *content);
    }
    // A restore is a version too, and the content before it stays.
    let sizes: Vec<_> = versions(&file).into_iter().map(|version| version.bytes.unwrap()).collect();
    assert_eq!(sizes, [10, 3_000_000, 700, 10, 3_000_000]);
    // The file can be written as before.
    fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b"more").unwrap();
    assert_eq!(rig.client().read("file.bin").unwrap(), [&contents[1][..], b"more"].concat());
    assert_eq!(mount.stop(), 0);
}

#[test]
fn unsaved_content_is_not_replaced_by_a_version() {
    let rig = Rig::new();
    let (mount, contents) = three_versions(&rig);
    let file = mount.at("file.bin");
    let restore = ["versions".as_ref(), "restore".as_ref(), file.as_ref(), "1".as_ref()];
    let mut writer = fs::OpenOptions::new().append(true).open(&file).unwrap();
    writer.write_all(b"unsaved").unwrap();
    let printed = fails(1, &restore);
    assert!(printed.contains("a program is writing the file"), "{printed}");
    drop(writer);
    assert_eq!(rig.client().read("file.bin").unwrap(), [&contents[2][..], b"unsaved"].concat());
    succeeds(&restore);
    assert!(fs::read(&file).unwrap() == contents[0]);
    assert_eq!(mount.stop(), 0);
}

#[test]
fn missing_versions_have_clear_messages() {
    let rig = Rig::with(|config| config.quirks.revisions = false);
    let mount = rig.mount();
    fs::create_dir(mount.at("dir")).unwrap();
    for content in ["old", "new"] {
        fs::write(mount.at("file"), content).unwrap();
    }
    let list = |name: &str| pdsfs_in(Path::new("/"), &["versions".as_ref(), mount.at(name).as_ref()]);
    let output = list("file");
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && printed.contains("the drive keeps no older version of"), "{printed}");
    let file = mount.at("file");
    let (dir, gone) = (mount.at("dir"), mount.at("gone"));
    let refusals: [(Vec<&OsStr>, &str); 5] = [
        (vec!["versions".as_ref(), dir.as_ref()], "a directory has no versions"),
        (vec!["versions".as_ref(), gone.as_ref()], "gone: No such file or directory"),
        (vec!["versions".as_ref(), "/proc/self/stat".as_ref()], "not in a mounted drive"),
        (vec!["versions".as_ref(), "get".as_ref(), file.as_ref(), "77".as_ref()], "has no version 77"),
        (
            vec!["versions".as_ref(), "restore".as_ref(), file.as_ref(), "1".as_ref()],
            "it is the latest version",
        ),
    ];
    for (words, text) in refusals {
        let printed = fails(1, &words);
        assert!(printed.contains(text), "{words:?}: {printed}");
    }
    fails(2, &["versions".as_ref()]);
    let unknown = FaultAction::Status {
        status: 404,
        code: String::new(),
        message: String::new(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: true,
    };
    rig.server().faults().add(FaultRule::new("file/revision/list", unknown));
    let printed = fails(1, &["versions".as_ref(), file.as_ref()]);
    assert!(printed.contains("this domain keeps no versions of files"), "{printed}");
    assert_eq!(mount.stop(), 0);
}
