//! Items of listings: the optional members that a request asks for.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::request::lenient;
use super::view::{FileView, category, download_url};
use crate::server::call::ApiCall;
use crate::server::catalog::records::Node;
use crate::server::errors::ServiceError;

/// Bound on the thumbnails of a request.
const THUMBNAILS_MAX: usize = 5;

static NO_TAGS: BTreeMap<String, String> = BTreeMap::new();

/// The members of a request that choose optional members of the items.
#[derive(Deserialize)]
pub(super) struct ItemParams {
    pub(super) fields: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    url_expire_sec: Option<u32>,
    thumbnail_processes: Option<BTreeMap<String, ThumbnailProcess>>,
}

/// How to make a thumbnail. The processes of videos and documents are ignored: the server makes no images of them.
#[derive(Deserialize)]
struct ThumbnailProcess {
    image_thumbnail_process: Option<String>,
}

impl ItemParams {
    pub(super) fn check(&self) -> Result<(), ServiceError> {
        if self.thumbnail_processes.as_ref().is_some_and(|all| all.len() > THUMBNAILS_MAX) {
            return Err(ServiceError::invalid("thumbnail_processes", "There are more than 5."));
        }
        Ok(())
    }

    /// Whether `fields` names this one.
    pub(super) fn names(&self, field: &str) -> bool {
        self.fields.as_deref().unwrap_or("").split(',').any(|asked| asked.trim() == field)
    }

    /// An item of a list. It has tags only if the request names them.
    pub(super) fn listed<'a>(&self, call: &ApiCall, node: &'a Node) -> FileView<'a> {
        let mut view = FileView::of(call, node);
        if !self.names("user_tags") {
            view.user_tags = &NO_TAGS;
        }
        self.add_urls(call, node, &mut view, self.names("url") || self.names("*"));
        view
    }

    /// Adds the thumbnails, and the download URL under both of its names if `has_url` is set.
    pub(super) fn add_urls(&self, call: &ApiCall, node: &Node, view: &mut FileView<'_>, has_url: bool) {
        let Some(newest) = node.newest() else { return };
        let ttl_s = self.url_expire_sec.unwrap_or(call.app.config.url_ttl_s);
        if has_url {
            let (url, _) = download_url(call, node, newest, ttl_s);
            view.url = Some(url.clone());
            view.download_url = Some(url);
        }
        if category(&node.name) != "image" {
            return;
        }
        let wanted = self.thumbnail_processes.iter().flatten();
        let urls = wanted.filter_map(|(key, process)| {
            let process = process.image_thumbnail_process.as_deref()?;
            let (url, _) = download_url(call, node, newest, ttl_s);
            let process: String = url::form_urlencoded::byte_serialize(process.as_bytes()).collect();
            Some((key.clone(), format!("{url}&x-oss-process={process}")))
        });
        view.thumbnail_urls = urls.collect();
    }
}
