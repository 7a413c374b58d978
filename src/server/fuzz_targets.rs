//! Fuzz targets for requests to the embedded server.

#![allow(clippy::missing_panics_doc, reason = "a target panics if an invariant does not hold")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::auth;
use super::catalog::records::{ClientAttrs, Node, NodeKind};
use super::config::Logins;
use super::sign::{Signer, check_object_url};
use super::{api, oss};
use crate::ids::{DriveId, FileId};

/// A moment in 2019.
const NOW_S: i64 = 1_566_283_887;

fn text(data: &[u8]) -> Option<(&str, &str)> {
    let text = str::from_utf8(data).ok()?;
    Some(text.split_once('\n').unwrap_or((text, "")))
}

/// `Range`, with the size of the object on the second line.
pub fn ranges(data: &[u8]) {
    let Some((range, size)) = text(data) else { return };
    let size = size.parse().unwrap_or(10);
    if let Some(Ok((from, to))) = oss::parse_range(range, size) {
        assert!(from < to && to <= size, "{range}: {from}..{to} of {size}");
    }
}

/// A query, with the name of an object on the second line.
pub fn queries(data: &[u8]) {
    let (Some((query, name)), Ok(drive_id)) = (text(data), DriveId::new("1")) else { return };
    let node = Node {
        file_id: FileId::root(),
        drive_id,
        parent: FileId::root(),
        name: name.to_owned(),
        kind: NodeKind::Folder,
        created_ms: NOW_S * 1000,
        updated_ms: 0,
        trashed_ms: None,
        attrs: ClientAttrs::default(),
    };
    api::check_query(query, &node);
}

/// An assertion on one line; or its header and its claims on two lines, as JSON.
pub fn assertions(data: &[u8]) {
    match text(data) {
        Some((assertion, "")) => auth::check_claims(assertion, NOW_S),
        Some((header, claims)) => {
            let [header, claims] = [header, claims].map(|json| URL_SAFE_NO_PAD.encode(json));
            auth::check_claims(&format!("{header}.{claims}"), NOW_S);
        }
        None => {}
    }
}

/// The form of the consent page, and of the token endpoint.
pub fn forms(data: &[u8]) {
    let logins = Logins {
        client_ids: vec!["app".to_owned()],
        redirect_uris: vec!["https://app.example/back".to_owned()],
        ..Logins::default()
    };
    auth::consent::check_form(data, &logins, &Signer::new(b"key".to_vec()));
    drop(api::token_form(data));
}

/// Path and query of an object, or the token of a share, one a line.
pub fn object_urls(data: &[u8]) {
    if let Some((path, query)) = text(data) {
        check_object_url(&Signer::new(b"key".to_vec()), path, query, NOW_S);
    }
}
