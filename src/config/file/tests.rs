//! Tests of the configuration file: problems, and valid files.

use super::*;

fn parse(text: &str) -> (ConfigFile, Vec<String>) {
    let (file, problems) = ConfigFile::parse(Path::new("c.toml"), text);
    (file, problems.iter().map(ToString::to_string).collect())
}

#[test]
fn drive_overrides_defaults() {
    let (file, problems) = parse(
        "[defaults]\npart_size = \"4MiB\"\nread_only = true\numask = 0o077\n\n[drives.photos]\n\
         endpoint = \"https://bj1.api.aliyunpds.com\"\ndrive_id = \"7\"\nread_only = false\n\
         mountpoint = \"/mnt/photos\"\nparts_in_flight = 8\n[drives.work]\ndrive_id = 9\n",
    );
    assert_eq!(problems, Vec::<String>::new());
    let photos = &file.drives["photos"];
    assert_eq!(photos.settings.part_size.map(crate::ids::PartSize::get), Some(4 << 20));
    assert_eq!((photos.settings.read_only, photos.settings.umask), (Some(false), Some(0o077)));
    assert_eq!(photos.settings.parts_in_flight, Some(8));
    assert_eq!((photos.mountpoint.as_deref(), photos.line), (Some(Path::new("/mnt/photos")), 6));
    assert_eq!(file.drives["work"].settings.read_only, Some(true));
}

#[test]
fn every_problem_has_its_line_and_a_remedy() {
    let table = [
        (
            "[drives.a]\npart_sise = 1",
            "c.toml:2: drives.a.part_sise: unknown setting \"part_sise\"; did you mean part_size?",
        ),
        ("[drives.a]\n\npart_size = 63", "c.toml:3: drives.a.part_size: "),
        ("[drives.a]\nremove = \"trsh\"", "did you mean trash?; accepted are: trash, delete"),
        ("[drives.a]\nread_only = \"yes\"", "c.toml:2: drives.a.read_only: "),
        ("[drives.a]\nmetadata_ttl = \"2 weeks\"", "write a number with ms, s, m, h or d"),
        ("[drives.a]\nmetadata_ttl = 1.5", "write text in quotes, a whole number, true or false"),
        ("[drives.a]\nendpoint = \"http://x.com\"", "use https"),
        ("[drives.a]\ntoken_file = \"t\"", "c.toml:2: drives.a.token_file: write an absolute path"),
        ("[drive.a]\n", "unknown table \"drive\"; did you mean drives?"),
        ("part_size = 64\n", "settings belong in [defaults] or [drives.NAME]"),
        (
            "[defaults]\nmountpoint = \"/m\"",
            "c.toml:2: defaults.mountpoint: a mountpoint belongs to one drive",
        ),
        ("[drives.\"a b\"]\n", "not a valid drive name"),
        ("[drives.a]\n\nbuffer_size = \"1MiB\"", "c.toml:1: drives.a: buffer-size must hold 2 parts"),
        (
            "[drives.a]\naccount = \"a\"\ntoken_file = \"/t\"",
            "c.toml:1: drives.a: account and token-file are mutually exclusive",
        ),
        ("drives = 1", "c.toml:1: drives: write one table for each"),
        ("[drives.a]\nx", "c.toml:2: "),
    ];
    for (text, expected) in table {
        let (_, problems) = parse(text);
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{text:?}: {problems:?}");
    }
}

#[test]
fn drive_may_set_root_id_and_folder() {
    let (file, problems) = parse("[drives.a]\nroot_id = \"r\"\nfolder = \"/a\"\n");
    let settings = &file.drives["a"].settings;
    assert!(problems.is_empty() && settings.root_id.is_some() && settings.folder.is_some(), "{problems:?}");
}

#[test]
fn parsing_continues_after_a_problem() {
    let (file, problems) = parse("[drives.a]\nx = 1\numask = \"9\"\n[drives.b]\ny = 2\ndrive_id = \"1\"\n");
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(file.drives["b"].settings.drive_id.is_some());
}

#[test]
fn world_writable_file_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    assert!(ConfigFile::read(&path).unwrap().is_none());
    std::fs::write(&path, "[drives.a]\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o646)).unwrap();
    assert!(ConfigFile::read(&path).unwrap_err().to_string().contains("chmod o-w"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (file, problems) = ConfigFile::read(&path).unwrap().unwrap();
    assert!(file.drives.contains_key("a") && problems.is_empty());
    assert!(ConfigFile::read(dir.path()).unwrap_err().to_string().contains("not a file"));
}
