//! A second client of the drive, which shares no code with pdsfs and builds its requests itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use url::Url;

use crate::http::{Answer, send};
use crate::rig::TOKEN;

const DRIVE: &str = "1";
/// The id of the root folder.
pub const ROOT: &str = "root";

#[derive(Clone)]
pub struct DriveClient {
    addr: SocketAddr,
}

/// A file or folder as the service describes it.
#[derive(Clone, PartialEq, Debug)]
pub struct RemoteFile {
    pub file_id: String,
    pub name: String,
    pub size: u64,
    pub revision: Option<String>,
    /// Upper-case hex.
    pub sha1: Option<String>,
    pub tags: BTreeMap<String, String>,
    /// RFC 3339.
    modified_at: String,
    created_at: String,
}

impl RemoteFile {
    fn new(file: &Value) -> Self {
        let text = |key: &str| file[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let tags = file["user_tags"].as_object().into_iter().flatten();
        Self {
            file_id: text("file_id").unwrap(),
            name: text("name").unwrap(),
            size: file["size"].as_u64().unwrap_or_default(),
            revision: text("revision_id"),
            sha1: text("content_hash"),
            tags: tags.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect(),
            modified_at: text("local_modified_at").or_else(|| text("updated_at")).unwrap(),
            created_at: text("created_at").unwrap(),
        }
    }

    /// The permission bits that its tags hold.
    pub fn mode_tag(&self) -> Option<u32> {
        self.tags.get("pdsfs.mode").map(|mode| u32::from_str_radix(mode, 8).unwrap())
    }

    /// The modification time of the tag (exact), else that of the client, else that of the service.
    pub fn mtime(&self) -> SystemTime {
        if let Some(tag) = self.tags.get("pdsfs.mtime") {
            let (seconds, nanos) = tag.split_once('.').unwrap_or((tag, "0"));
            let nanos: u32 = format!("{nanos:0<9}").parse().unwrap();
            return SystemTime::UNIX_EPOCH + Duration::new(seconds.parse().unwrap(), nanos);
        }
        let time: jiff::Timestamp = self.modified_at.parse().unwrap();
        time.into()
    }

    /// The creation time of the object.
    pub fn created_at(&self) -> SystemTime {
        let time: jiff::Timestamp = self.created_at.parse().unwrap();
        time.into()
    }
}

impl DriveClient {
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr }
    }

    fn send(&self, endpoint: &str, body: &Value) -> Answer {
        let headers = [
            ("Authorization".to_owned(), format!("Bearer {TOKEN}")),
            ("Content-Type".to_owned(), "application/json".to_owned()),
            ("Connection".to_owned(), "close".to_owned()),
        ];
        send(self.addr, "POST", &format!("/v2/{endpoint}"), &headers, body.to_string().as_bytes()).unwrap()
    }

    /// Calls an endpoint; panics unless the answer is a success.
    #[track_caller]
    pub fn call(&self, endpoint: &str, mut body: Value) -> Value {
        body["drive_id"] = DRIVE.into();
        let answer = self.send(endpoint, &body);
        assert!((200..300).contains(&answer.status), "{endpoint}: {} {}", answer.status, answer.text());
        answer.json()
    }

    /// All entries of a folder.
    pub fn list(&self, folder_id: &str) -> Vec<RemoteFile> {
        let mut entries = Vec::new();
        let mut request = json!({
            "parent_file_id": folder_id, "limit": 100, "fields": "*,user_tags", "order_by": "name", "order_direction": "ASC",
        });
        loop {
            let page = self.call("file/list", request.clone());
            // The items of the quirk `odd_list_items` have no such time.
            let items =
                page["items"].as_array().unwrap().iter().filter(|item| item["created_at"].is_string());
            entries.extend(items.map(RemoteFile::new));
            match page["next_marker"].as_str() {
                Some(marker) if !marker.is_empty() => request["marker"] = marker.into(),
                _ => return entries,
            }
        }
    }

    /// The object at a path below the root, `None` if it is missing.
    pub fn find(&self, path: &str) -> Option<RemoteFile> {
        let mut folder_id = ROOT.to_owned();
        let mut found = None;
        for name in path.split('/') {
            let entry = self.list(&folder_id).into_iter().find(|entry| entry.name == name)?;
            folder_id.clone_from(&entry.file_id);
            found = Some(entry);
        }
        found
    }

    /// The content of a file, read from the server.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let file = self.find(path)?;
        if file.size == 0 {
            return Some(Vec::new());
        }
        let answer = self.call("file/get_download_url", json!({"file_id": file.file_id}));
        let url: Url = answer["url"].as_str().unwrap().parse().unwrap();
        let target = format!("{}?{}", url.path(), url.query().unwrap_or_default());
        let download = send(url.socket_addrs(|| None).unwrap()[0], "GET", &target, &[], b"").unwrap();
        assert!(
            download.status == 200 && !download.is_cut,
            "{path}: {} {}",
            download.status,
            download.text()
        );
        Some(download.body)
    }

    /// The sorted names in a folder ("" is the root).
    pub fn names(&self, path: &str) -> Vec<String> {
        let folder_id = if path.is_empty() { ROOT.to_owned() } else { self.find(path).unwrap().file_id };
        let mut names: Vec<_> = self.list(&folder_id).into_iter().map(|entry| entry.name).collect();
        names.sort();
        names
    }

    /// Creates a folder; returns its id.
    pub fn create_folder(&self, parent_id: &str, name: &str) -> String {
        let request = json!({
            "parent_file_id": parent_id, "name": name, "type": "folder", "check_name_mode": "refuse",
        });
        self.call("file/create", request)["file_id"].as_str().unwrap().to_owned()
    }

    /// Moves an object to the recycle bin.
    pub fn trash(&self, file_id: &str) {
        self.call("recyclebin/trash", json!({"file_id": file_id}));
    }

    /// Renames an object, also to a name that another one in its folder has.
    pub fn rename(&self, file_id: &str, name: &str) {
        self.call("file/update", json!({"file_id": file_id, "name": name, "check_name_mode": "ignore"}));
    }

    /// Adds or replaces tags of a file.
    pub fn put_tags(&self, file_id: &str, tags: &[(&str, &str)]) {
        let tags: Vec<_> = tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        self.call("file/put_usertags", json!({"file_id": file_id, "user_tags": tags}));
    }
}
