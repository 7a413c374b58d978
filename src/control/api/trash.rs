//! Requests about the recycle bin.

use hyper::{Response, StatusCode};

use super::{Body, ControlApi, failure, json, refuse, text};
use crate::control::event_log::unix_ms;
use crate::control::types::{Restored, Trash, TrashedItem};
use crate::ids::FileId;
use crate::pds::types::FileType;
use crate::vfs::RecycledItem;

impl ControlApi {
    pub(super) async fn trash(&self) -> Response<Body> {
        match self.mount.vfs.recycle_bin().await {
            Ok(items) => {
                let items = items.into_iter().map(trashed).collect();
                json(StatusCode::OK, &Trash { items })
            }
            Err(error) => failure(&error),
        }
    }

    pub(super) async fn restore_trashed(&self, query: &str) -> Response<Body> {
        let id = match named(query) {
            Ok(id) => id,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        };
        let restored = match self.mount.check_writable() {
            Ok(()) => self.mount.vfs.restore_recycled(&id).await,
            Err(error) => Err(error),
        };
        match restored {
            Ok(path) => json(StatusCode::OK, &Restored { path }),
            Err(error) => failure(&error),
        }
    }

    pub(super) async fn delete_trashed(&self, query: &str) -> Response<Body> {
        let id = match named(query) {
            Ok(id) => id,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        };
        let deleted = match self.mount.check_writable() {
            Ok(()) => self.mount.vfs.delete_recycled(&id).await,
            Err(error) => Err(error),
        };
        match deleted {
            Ok(()) => json(StatusCode::OK, &serde_json::json!({})),
            Err(error) => failure(&error),
        }
    }
}

fn named(query: &str) -> Result<FileId, String> {
    FileId::new(&text(query, "id")?).map_err(|error| error.to_string())
}

fn trashed(item: RecycledItem) -> TrashedItem {
    TrashedItem {
        id: item.meta.file_id.to_string(),
        path: item.path,
        directory: item.meta.kind == FileType::Folder,
        bytes: item.meta.size,
        at_ms: item.trashed_at.map(unix_ms),
    }
}
