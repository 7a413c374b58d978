//! The recycle bin of the drive, as far as its objects were below the root of the mount.

use std::collections::HashMap;
use std::time::Instant;

use super::Vfs;
use super::types::RecycledItem;
use crate::config::RemoveMode;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino};
use crate::pds::drive::{FileMeta, Recycled};
use crate::pds::types::FileType;
use crate::tree::display_name;

/// Longest chain of folders above an object.
const DEPTH_MAX: usize = 1000;

/// Where a folder is, as far as the mount is concerned.
#[derive(Clone, Debug)]
enum FolderPath {
    /// Below the mountpoint; empty for the root of the mount.
    Below(String),
    Elsewhere,
}

impl Vfs {
    /// The recycle bin, the last object that came first.
    pub async fn recycle_bin(&self) -> Result<Vec<RecycledItem>> {
        let all = self.drive.recycle_bin().await?;
        let recycled: HashMap<FileId, FileMeta> =
            all.iter().map(|item| (item.meta.file_id.clone(), item.meta.clone())).collect();
        let (mut known, mut items) = (HashMap::new(), Vec::with_capacity(all.len()));
        for Recycled { meta, trashed_at } in all {
            let folder = self.folder_path(meta.parent_id.as_ref(), &recycled, &mut known).await?;
            if let FolderPath::Below(folder) = folder {
                let path = format!("{folder}/{}", display_name(&meta.name, meta.kind));
                items.push(RecycledItem { meta, trashed_at, path });
            }
        }
        Ok(items)
    }

    /// The path of the folder that an object was in. The recycle bin may have that folder too.
    async fn folder_path(
        &self,
        folder: Option<&FileId>,
        recycled: &HashMap<FileId, FileMeta>,
        known: &mut HashMap<FileId, FolderPath>,
    ) -> Result<FolderPath> {
        // From the folder up to one whose path is known.
        let (mut chain, mut at) = (Vec::new(), folder.cloned());
        let mut path = loop {
            let Some(id) = at.take().filter(|_| chain.len() < DEPTH_MAX) else {
                // The service restores an object without a folder to the root of the drive.
                let is_whole_drive = self.config.root_id == FileId::root();
                break if is_whole_drive { FolderPath::Below(String::new()) } else { FolderPath::Elsewhere };
            };
            if let Some(path) = self.known_folder(&id).or_else(|| known.get(&id).cloned()) {
                break path;
            }
            if id == FileId::root() {
                break FolderPath::Elsewhere;
            }
            let meta = match recycled.get(&id) {
                Some(meta) => Some(meta.clone()),
                None => match self.drive.get(&id).await {
                    Ok(meta) => Some(meta),
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    Err(error) if error.kind() == ErrorKind::Denied => {
                        known.insert(id, FolderPath::Elsewhere);
                        break FolderPath::Elsewhere;
                    }
                    Err(error) => return Err(error),
                },
            };
            if let Some(meta) = meta {
                at = meta.parent_id;
                chain.push((id, display_name(&meta.name, FileType::Folder).into_owned()));
            }
        };
        for (id, name) in chain.into_iter().rev() {
            if let FolderPath::Below(above) = &path {
                path = FolderPath::Below(format!("{above}/{name}"));
            }
            known.insert(id, path.clone());
        }
        Ok(path)
    }

    fn known_folder(&self, id: &FileId) -> Option<FolderPath> {
        let tree = self.tree();
        let ino = tree.ino_of(id)?;
        if ino == Ino::ROOT {
            return Some(FolderPath::Below(String::new()));
        }
        Some(FolderPath::Below(tree.display_path(ino))).filter(|_| tree.is_below(ino, Ino::ROOT))
    }

    /// Takes an object out of the recycle bin, to where it was. Returns its path below the mountpoint.
    pub async fn restore_recycled(&self, id: &FileId) -> Result<String> {
        self.check_accepts_content()?;
        let meta = self.drive.restore(id).await?;
        let path = self.folder_path(meta.parent_id.as_ref(), &HashMap::new(), &mut HashMap::new()).await?;
        let name = display_name(&meta.name, meta.kind).into_owned();
        self.drop_trash_entry(id);
        self.tree().restored_elsewhere(meta, Instant::now());
        Ok(match path {
            FolderPath::Below(folder) => format!("{folder}/{name}"),
            FolderPath::Elsewhere => name,
        })
    }

    /// Deletes an object of the recycle bin for good.
    pub async fn delete_recycled(&self, id: &FileId) -> Result<()> {
        self.delete_from_bin(id).await?;
        self.drop_trash_entry(id);
        Ok(())
    }

    /// Deletes an object for good if it is still in the recycle bin: the service deletes other objects too.
    pub(super) async fn delete_from_bin(&self, id: &FileId) -> Result<()> {
        if let Some(meta) = self.drive.get_live(id).await? {
            self.drop_trash_entry(id);
            self.tree().restored_elsewhere(meta, Instant::now());
            return Err(Error::new(ErrorKind::NotPermitted, "it was restored: not deleted"));
        }
        self.drive.remove(id, RemoveMode::Delete).await
    }
}
