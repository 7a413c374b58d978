//! Changes of the configuration file that keep its comments and its order.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item, Table, TableLike, Value, value};

use super::dirs;
use crate::error::{Error, Result};

/// The settings of one drive that `pdsfs setup` writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewDrive<'a> {
    pub name: &'a str,
    pub account: &'a str,
    pub mountpoint: &'a Path,
    /// Absolute.
    pub ca_file: Option<&'a Path>,
}

/// Writes the drive into the file, which is made if it is missing. Returns whether the file had to change.
pub fn write_drive(path: &Path, drive: &NewDrive<'_>) -> Result<bool> {
    let named = |e: std::io::Error| Error::from(e).context(format!("cannot write {}", path.display()));
    let before = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.map_err(named)?,
    };
    let after = with_drive(&before, drive).map_err(|e| e.context(path.display()))?;
    if after == before {
        return Ok(false);
    }
    replace(path, &after).map_err(named)?;
    Ok(true)
}

/// The text with the drive. Other settings of the drive stay.
fn with_drive(text: &str, drive: &NewDrive<'_>) -> Result<String> {
    let mut document: DocumentMut =
        text.parse().map_err(|e: toml_edit::TomlError| Error::invalid(e.message()))?;
    let drives = document.entry("drives").or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    let not_a_table = || Error::invalid("write one table for each drive: [drives.NAME]");
    let drives = drives.as_table_like_mut().ok_or_else(not_a_table)?;
    let entry = drives.entry(drive.name).or_insert_with(toml_edit::table);
    let entry = entry.as_table_like_mut().ok_or_else(not_a_table)?;
    if entry.get("account").and_then(Item::as_str) != Some(drive.account) {
        set(entry, "account", drive.account);
    }
    let paths = [("mountpoint", Some(drive.mountpoint)), ("ca_file", drive.ca_file)];
    for (key, path) in paths.into_iter().filter_map(|(key, path)| Some((key, path?))) {
        let before = entry.get(key).and_then(Item::as_str).and_then(|text| dirs::absolute(text).ok());
        if before.as_deref() != Some(path) {
            let text =
                path.to_str().ok_or_else(|| Error::invalid(format!("{key} is not UTF-8: choose another")));
            set(entry, key, text?);
        }
    }
    Ok(document.to_string())
}

/// Sets a key in its place. The comments above it and behind it stay.
fn set(entry: &mut dyn TableLike, key: &str, text: &str) {
    if let Some(before) = entry.get_mut(key).and_then(Item::as_value_mut) {
        let mut after = Value::from(text);
        after.decor_mut().clone_from(before.decor());
        *before = after;
    } else {
        entry.insert(key, value(text));
    }
}

/// Replaces the file, or that which a link leads to, in one step.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let dir = target.parent().filter(|dir| *dir != Path::new(""));
    let dir = dir.map_or_else(|| PathBuf::from("."), Path::to_owned);
    make_directory(&dir, directory_mode(&target))?;
    let mut file = tempfile::Builder::new().prefix(".config-").tempfile_in(&dir)?;
    file.write_all(text.as_bytes())?;
    if let Ok(metadata) = target.metadata() {
        file.as_file().set_permissions(metadata.permissions())?;
        let (uid, gid) = owner(&metadata);
        std::os::unix::fs::fchown(file.as_file(), Some(uid), Some(gid))?;
    } else {
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(readable)?;
    }
    file.as_file().sync_all()?;
    file.persist(&target).map_err(|e| e.error)?;
    Ok(())
}

fn owner(metadata: &std::fs::Metadata) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt as _;
    (metadata.uid(), metadata.gid())
}

/// The mode of the directory of a configuration file. The user of the service reads that of the system.
fn directory_mode(file: &Path) -> u32 {
    if file == dirs::system_config_file() { 0o755 } else { 0o700 }
}

/// Makes a missing directory, with this mode under any umask.
fn make_directory(dir: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(mountpoint: &str) -> NewDrive<'_> {
        NewDrive { name: "photos", account: "home", mountpoint: Path::new(mountpoint), ca_file: None }
    }

    #[test]
    fn drive_is_added_and_comments_stay() {
        let before =
            "# mine\n[defaults]\npart_size = \"8MiB\" # small\n\n[drives.work]\naccount = \"work\"\n";
        let after = with_drive(before, &drive("/m")).unwrap();
        assert!(after.starts_with(before), "{after}");
        assert!(after.ends_with("[drives.photos]\naccount = \"home\"\nmountpoint = \"/m\"\n"), "{after}");
        assert_eq!(with_drive(&after, &drive("/m")).unwrap(), after, "a second run changes nothing");
        let moved = with_drive(&after, &drive("/n")).unwrap();
        assert_eq!(moved, after.replace("\"/m\"", "\"/n\""));
    }

    #[test]
    fn other_settings_of_the_drive_stay() {
        let before = "[drives.photos]\nread_only = true # never write\naccount = \"home\"\n";
        let after = with_drive(before, &drive("/m")).unwrap();
        assert_eq!(after, format!("{before}mountpoint = \"/m\"\n"));
        assert!(with_drive("drives = 1\n", &drive("/m")).is_err());
        assert!(with_drive("[drives", &drive("/m")).is_err());
    }

    #[test]
    fn comments_of_changed_keys_stay() {
        let before = "[drives.photos]\n# the login\naccount = \"old\" # of mine\n# the disk\nmountpoint = \"/old\" # SSD\n";
        let after = with_drive(before, &drive("/m")).unwrap();
        assert_eq!(after, before.replace("\"old\"", "\"home\"").replace("/old", "/m"));
    }

    #[test]
    fn same_place_in_another_form_stays() {
        let before = "[drives.photos]\naccount = \"home\"\nmountpoint = \"~/Drive\"  # on the SSD\n";
        let place = dirs::absolute("~/Drive").unwrap();
        let drive = NewDrive { mountpoint: &place, ..drive("/") };
        assert_eq!(with_drive(before, &drive).unwrap(), before);
    }

    #[test]
    fn ca_file_is_written_if_given() {
        let drive = NewDrive { ca_file: Some(Path::new("/ca.pem")), ..drive("/m") };
        let after = with_drive("", &drive).unwrap();
        assert!(after.ends_with("mountpoint = \"/m\"\nca_file = \"/ca.pem\"\n"), "{after}");
        assert_eq!(with_drive(&after, &self::drive("/m")).unwrap(), after, "it stays");
    }

    #[test]
    fn directory_of_the_system_is_readable_by_all() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        for (file, mode) in [(dirs::system_config_file(), 0o755), (dir.path().join("config.toml"), 0o700)] {
            assert_eq!(directory_mode(&file), mode, "{}", file.display());
            let made = dir.path().join(format!("{mode:o}"));
            make_directory(&made, mode).unwrap();
            assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn file_and_directory_are_made_and_a_link_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/config.toml");
        assert!(write_drive(&path, &drive("/m")).unwrap());
        assert!(!write_drive(&path, &drive("/m")).unwrap());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(write_drive(&link, &drive("/n")).unwrap());
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert!(std::fs::read_to_string(&path).unwrap().contains("/n"));
    }
}
