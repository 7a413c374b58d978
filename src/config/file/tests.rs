//! Mistakes of a configuration file, and what is made of a right one.

use super::*;

fn parse(text: &str) -> (ConfigFile, Vec<String>) {
    let (file, mistakes) = ConfigFile::parse(Path::new("c.toml"), text);
    (file, mistakes.iter().map(ToString::to_string).collect())
}

#[test]
fn a_drive_lies_over_the_defaults() {
    let (file, mistakes) = parse(
        "[defaults]\npart_size = \"4MiB\"\nread_only = true\numask = 0o077\n\n[drives.photos]\n\
         endpoint = \"https://bj1.api.aliyunpds.com\"\ndrive_id = \"7\"\nread_only = false\n\
         mountpoint = \"/mnt/photos\"\nparts_in_flight = 8\n[drives.work]\ndrive_id = 9\n",
    );
    assert_eq!(mistakes, Vec::<String>::new());
    let photos = &file.drives["photos"];
    assert_eq!(photos.settings.part_size.map(crate::ids::PartSize::get), Some(4 << 20));
    assert_eq!((photos.settings.read_only, photos.settings.umask), (Some(false), Some(0o077)));
    assert_eq!(photos.settings.parts_in_flight, Some(8));
    assert_eq!((photos.mountpoint.as_deref(), photos.line), (Some(Path::new("/mnt/photos")), 6));
    assert_eq!(file.drives["work"].settings.read_only, Some(true));
}

#[test]
fn every_mistake_is_told_with_its_line_and_a_remedy() {
    let table = [
        (
            "[drives.a]\npart_sise = 1",
            "c.toml:2: drives.a.part_sise: there is no setting \"part_sise\"; do you mean part_size?",
        ),
        ("[drives.a]\n\npart_size = 63", "c.toml:3: drives.a.part_size: "),
        ("[drives.a]\nremove = \"trsh\"", "do you mean trash?; there are: trash, delete"),
        ("[drives.a]\nread_only = \"yes\"", "c.toml:2: drives.a.read_only: "),
        ("[drives.a]\nmetadata_ttl = \"2 weeks\"", "write a number with ms, s, m, h or d"),
        ("[drives.a]\nmetadata_ttl = 1.5", "write text in quotes, a whole number, true or false"),
        ("[drives.a]\nendpoint = \"http://x.com\"", "use https"),
        ("[drives.a]\ntoken_file = \"t\"", "c.toml:2: drives.a.token_file: write the whole path"),
        ("[drive.a]\n", "there is no table \"drive\"; do you mean drives?"),
        ("part_size = 64\n", "settings belong below [defaults] or [drives.NAME]"),
        ("[defaults]\nmountpoint = \"/m\"", "c.toml:2: defaults.mountpoint: it belongs to one drive"),
        ("[drives.\"a b\"]\n", "cannot name a drive"),
        ("[drives.a]\n\nbuffer_size = \"1MiB\"", "c.toml:1: drives.a: buffer-size must hold 2 parts"),
        (
            "[drives.a]\naccount = \"a\"\ntoken_file = \"/t\"",
            "c.toml:1: drives.a: account and token-file both say who mounts",
        ),
        ("drives = 1", "c.toml:1: drives: write a table for each"),
        ("[drives.a]\nx", "c.toml:2: "),
    ];
    for (text, wanted) in table {
        let (_, mistakes) = parse(text);
        assert!(mistakes.iter().any(|told| told.contains(wanted)), "{text:?}: {mistakes:?}");
    }
}

#[test]
fn a_way_down_may_begin_at_a_folder_that_is_known_by_its_id() {
    let (file, mistakes) = parse("[drives.a]\nroot_id = \"r\"\nfolder = \"/a\"\n");
    let settings = &file.drives["a"].settings;
    assert!(mistakes.is_empty() && settings.root_id.is_some() && settings.folder.is_some(), "{mistakes:?}");
}

#[test]
fn reading_goes_on_after_a_mistake() {
    let (file, mistakes) = parse("[drives.a]\nx = 1\numask = \"9\"\n[drives.b]\ny = 2\ndrive_id = \"1\"\n");
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    assert!(file.drives["b"].settings.drive_id.is_some());
}

#[test]
fn values_of_the_environment_are_not_mistaken_for_those_of_the_file() {
    // Cargo sets HOME for its tests, and no setting of ours: so a variable is looked for in the command itself.
    assert!(flags().get_arguments().all(|arg| arg.get_env().is_none()));
}

#[test]
fn a_file_that_everybody_can_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    assert!(ConfigFile::read(&path).unwrap().is_none());
    std::fs::write(&path, "[drives.a]\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o646)).unwrap();
    assert!(ConfigFile::read(&path).unwrap_err().to_string().contains("chmod o-w"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (file, mistakes) = ConfigFile::read(&path).unwrap().unwrap();
    assert!(file.drives.contains_key("a") && mistakes.is_empty());
    assert!(ConfigFile::read(dir.path()).unwrap_err().to_string().contains("not a file"));
}
