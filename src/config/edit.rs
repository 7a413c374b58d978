//! Changes of the configuration file that keep its comments and its order.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item, Table, value};

use crate::error::{Error, Result};

/// The settings of one drive that `pdsfs setup` writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewDrive<'a> {
    pub name: &'a str,
    pub account: &'a str,
    pub mountpoint: &'a Path,
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
    let mountpoint = drive.mountpoint.to_str();
    let mountpoint =
        mountpoint.ok_or_else(|| Error::invalid("the mountpoint is not UTF-8: choose another"))?;
    let drives = document.entry("drives").or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    let not_a_table = || Error::invalid("write one table for each drive: [drives.NAME]");
    let drives = drives.as_table_like_mut().ok_or_else(not_a_table)?;
    let entry = drives.entry(drive.name).or_insert_with(toml_edit::table);
    let entry = entry.as_table_like_mut().ok_or_else(not_a_table)?;
    for (key, text) in [("account", drive.account), ("mountpoint", mountpoint)] {
        if entry.get(key).and_then(Item::as_str) != Some(text) {
            entry.insert(key, value(text));
        }
    }
    Ok(document.to_string())
}

/// Replaces the file, or that which a link leads to, in one step.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let dir = target.parent().map_or_else(|| PathBuf::from("."), Path::to_owned);
    make_private(&dir)?;
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

fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(mountpoint: &str) -> NewDrive<'_> {
        NewDrive { name: "photos", account: "home", mountpoint: Path::new(mountpoint) }
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
