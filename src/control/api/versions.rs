//! Requests about the versions of a file.

use bytes::Bytes;
use http_body_util::channel::Channel;
use hyper::{Response, StatusCode};

use super::{BATCHES_AHEAD, Body, ControlApi, failure, ino, json, refuse, stream, text};
use crate::control::event_log::unix_ms;
use crate::control::types::{Version, Versions};
use crate::ids::{Ino, RevisionId};
use crate::pds::drive::Revision;

impl ControlApi {
    pub(super) async fn versions(&self, query: &str) -> Response<Body> {
        let ino = match ino(query) {
            Ok(ino) => ino,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        };
        match self.mount.vfs.revisions(ino).await {
            Ok(revisions) => {
                let versions = revisions.into_iter().map(version).collect();
                json(StatusCode::OK, &Versions { versions })
            }
            Err(error) => failure(&error),
        }
    }

    /// The content is a stream of bytes. After a failure it is too short.
    pub(super) async fn version_content(&self, query: &str) -> Response<Body> {
        let (ino, id) = match named(query) {
            Ok(named) => named,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        };
        let vfs = self.mount.vfs.clone();
        let opened = async {
            let mut reader = vfs.open_revision(ino, &id).await?;
            Ok((vfs.read_revision(&mut reader).await?, reader))
        };
        let (mut bytes, mut reader) = match opened.await {
            Ok(opened) => opened,
            Err(error) => return failure(&error),
        };
        let (mut sender, body) = Channel::<Bytes>::new(BATCHES_AHEAD);
        tokio::spawn(async move {
            // A client that is gone needs no more.
            while !bytes.is_empty() && sender.send_data(bytes).await.is_ok() {
                bytes = match vfs.read_revision(&mut reader).await {
                    Ok(bytes) => bytes,
                    Err(error) => return tracing::warn!(%ino, %error, "cannot read version {id} to its end"),
                };
            }
        });
        stream(body, "application/octet-stream")
    }

    pub(super) async fn restore_version(&self, query: &str) -> Response<Body> {
        let (ino, id) = match named(query) {
            Ok(named) => named,
            Err(message) => return refuse(StatusCode::BAD_REQUEST, message),
        };
        let restored = match self.mount.check_writable() {
            Ok(()) => self.mount.vfs.restore_revision(ino, &id).await,
            Err(error) => Err(error),
        };
        match restored {
            Ok(()) => json(StatusCode::OK, &serde_json::json!({})),
            Err(error) => failure(&error),
        }
    }
}

/// The file and the version in a query.
fn named(query: &str) -> Result<(Ino, RevisionId), String> {
    let id = RevisionId::new(&text(query, "id")?).map_err(|error| error.to_string())?;
    Ok((ino(query)?, id))
}

fn version(revision: Revision) -> Version {
    let known = |text: String| Some(text).filter(|text| !text.is_empty());
    Version {
        id: revision.id.to_string(),
        number: revision.number,
        at_ms: revision.created_at.map(unix_ms),
        bytes: revision.size,
        author: known(revision.author),
        sha1: revision.sha1.map(|sha1| sha1.to_string()),
        description: known(revision.description),
        latest: revision.is_latest,
        keep_forever: revision.is_kept_forever,
    }
}
