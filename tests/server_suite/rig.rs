//! A server in the test process, and short calls to it.

use std::io;
use std::net::SocketAddr;

use pdsfs::server::{FaultInjector, Secret, Server, ServerConfig};
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};

use super::http::{Answer, send};

/// A running server and its data directory.
pub(crate) struct Rig {
    pub(crate) runtime: tokio::runtime::Runtime,
    server: Option<Server>,
    pub(crate) config: ServerConfig,
    dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(tweak: impl FnOnce(&mut ServerConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ServerConfig::new(dir.path(), Secret::new("AT".to_owned()));
        tweak(&mut config);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut rig = Self { runtime, server: None, config, dir };
        rig.start();
        rig
    }

    pub(crate) fn start(&mut self) {
        let config = self.config.clone();
        let server = self.runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            Server::start(listener, config).await.unwrap()
        });
        self.server = Some(server);
    }

    /// Stops the server like a kill and starts it again on the same data.
    pub(crate) fn kill_and_restart(&mut self) {
        self.kill();
        self.start();
    }

    pub(crate) fn kill(&mut self) {
        let server = self.server.take().unwrap();
        self.runtime.block_on(server.kill());
    }

    pub(crate) fn shutdown(&mut self) {
        let server = self.server.take().unwrap();
        self.runtime.block_on(server.shutdown());
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub(crate) fn data_dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.server().addr()
    }

    pub(crate) fn faults(&self) -> &FaultInjector {
        self.server().faults()
    }

    /// A POST to `/v2/<endpoint>` with the token.
    pub(crate) fn try_call(&self, endpoint: &str, body: &Value) -> io::Result<Answer> {
        let headers = [header("Authorization", "Bearer AT"), header("Content-Type", "application/json")];
        send(self.addr(), "POST", &format!("/v2/{endpoint}"), &headers, body.to_string().as_bytes())
    }

    /// Like [`Self::try_call`], and panics without an answer.
    pub(crate) fn call(&self, endpoint: &str, body: Value) -> (u16, Value) {
        let answer = self.try_call(endpoint, &body).unwrap();
        (answer.status, answer.json())
    }

    /// Like [`Self::call`], and panics on an error.
    pub(crate) fn ok(&self, endpoint: &str, body: Value) -> Value {
        let (status, answer) = self.call(endpoint, body.clone());
        assert!((200..300).contains(&status), "{endpoint} {body}: {status} {answer}");
        answer
    }

    /// Like [`Self::call`], and panics unless the server refuses with this status and code.
    #[track_caller]
    pub(crate) fn refused(&self, endpoint: &str, body: Value, status: u16, code: &str) {
        let (got, answer) = self.call(endpoint, body.clone());
        assert_eq!(
            (got, answer["code"].as_str().unwrap_or("")),
            (status, code),
            "{endpoint} {body}: {answer}"
        );
    }

    pub(crate) fn put(&self, url: &str, bytes: &[u8]) -> Answer {
        self.try_put(url, bytes).unwrap()
    }

    pub(crate) fn try_put(&self, url: &str, bytes: &[u8]) -> io::Result<Answer> {
        send(self.addr(), "PUT", &self.path_of(url), &[], bytes)
    }

    pub(crate) fn get(&self, url: &str, range: Option<&str>) -> Answer {
        self.try_get(url, range).unwrap()
    }

    pub(crate) fn try_get(&self, url: &str, range: Option<&str>) -> io::Result<Answer> {
        let headers: Vec<_> = range.map(|range| header("Range", range)).into_iter().collect();
        send(self.addr(), "GET", &self.path_of(url), &headers, b"")
    }

    pub(crate) fn path_of(&self, url: &str) -> String {
        let base = format!("http://{}", self.addr());
        url.strip_prefix(&base).unwrap_or_else(|| panic!("{url} does not begin with {base}")).to_owned()
    }

    pub(crate) fn mkdir(&self, parent: &str, name: &str) -> String {
        let made = self.ok(
            "file/create",
            json!({"drive_id": "1", "parent_file_id": parent, "name": name, "type": "folder", "check_name_mode": "refuse"}),
        );
        text(&made["file_id"])
    }

    /// Uploads a new file and returns the object from `complete`.
    pub(crate) fn save(&self, parent: &str, name: &str, bytes: &[u8]) -> Value {
        self.write(json!({"drive_id": "1", "parent_file_id": parent, "name": name, "type": "file"}), bytes)
    }

    /// Uploads a new revision of a file.
    pub(crate) fn overwrite(&self, file: &str, bytes: &[u8]) -> Value {
        let create = json!({"drive_id": "1", "parent_file_id": "root", "name": "ignored", "type": "file", "file_id": file});
        self.write(create, bytes)
    }

    fn write(&self, create: Value, bytes: &[u8]) -> Value {
        let begun = self.ok("file/create", create);
        let put = self.put(begun["part_info_list"][0]["upload_url"].as_str().unwrap(), bytes);
        assert_eq!(put.status, 200, "{}", put.text());
        self.ok("file/complete", of_upload(&begun))
    }

    /// The content of a file.
    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        let url = self.ok("file/get_download_url", json!({"drive_id": "1", "file_id": file}));
        let answer = self.get(url["url"].as_str().unwrap(), None);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.body
    }

    /// The number of non-empty entries in a subdirectory of the data directory. Makes a change first: its
    /// response follows the removal of all content that earlier changes left unused.
    pub(crate) fn data_entries(&self, subdir: &str) -> usize {
        self.mkdir("root", "barrier");
        let entries = std::fs::read_dir(self.data_dir().join(subdir)).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.read_dir().unwrap().next().is_some())
            .count()
    }

    /// All names in a folder, in listing order.
    pub(crate) fn names(&self, parent: &str) -> Vec<String> {
        let mut names = Vec::new();
        let mut marker = String::new();
        loop {
            let page = self.ok(
                "file/list",
                json!({"drive_id": "1", "parent_file_id": parent, "order_by": "name", "limit": 100, "marker": marker}),
            );
            names.extend(page["items"].as_array().unwrap().iter().map(|item| text(&item["name"])));
            marker = text(&page["next_marker"]);
            if marker.is_empty() {
                return names;
            }
        }
    }
}

pub(crate) fn header(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}

/// The three ids of the upload that `create` returned.
pub(crate) fn of_upload(begun: &Value) -> Value {
    json!({"drive_id": begun["drive_id"], "file_id": begun["file_id"], "upload_id": begun["upload_id"]})
}

pub(crate) fn sha1(bytes: &[u8]) -> String {
    pdsfs::server::Sha1Hash(Sha1::digest(bytes).into()).to_string()
}

/// Pseudo-random bytes of a seed.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}

#[allow(clippy::many_single_char_names)] // The names of the standard.
/// The SHA-1 chaining value after a whole number of blocks, in a textbook implementation.
pub(crate) fn chaining_value(bytes: &[u8]) -> [u32; 5] {
    assert!(bytes.len().is_multiple_of(64));
    let mut h: [u32; 5] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0];
    for block in bytes.chunks_exact(64) {
        let mut w = [0u32; 80];
        for (word, four) in w.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes(four.try_into().unwrap());
        }
        for t in 16..80 {
            w[t] = (w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = h;
        for (t, word) in w.iter().enumerate() {
            let (f, k) = match t {
                0..20 => ((b & c) | (!b & d), 0x5A82_7999),
                20..40 => (b ^ c ^ d, 0x6ED9_EBA1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8F1B_BCDC),
                _ => (b ^ c ^ d, 0xCA62_C1D6u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, add) in h.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(add);
        }
    }
    h
}

/// `part_info_list` of a parallel upload with parts of `part` bytes.
pub(crate) fn parallel_parts(content: &[u8], part: usize) -> Vec<Value> {
    (0..content.len().div_ceil(part).max(1))
        .map(|index| {
            let offset = index * part;
            let h = if index == 0 { json!([]) } else { json!(chaining_value(&content[..offset])) };
            json!({"part_number": index + 1, "parallel_sha1_ctx": {"h": h, "part_offset": offset}})
        })
        .collect()
}
