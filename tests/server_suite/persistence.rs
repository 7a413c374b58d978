//! Durability of the server: a clean stop, a kill, and kill -9 at any point.

use std::collections::HashMap;
use std::fs::Permissions;
use std::io::BufRead as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use pdsfs::server::Server;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::http::send;
use super::rig::{Rig, bytes, header, of_upload, parallel_parts, sha1, text};

/// The paths below a directory that other users can access.
fn shared_paths(dir: &Path) -> Vec<PathBuf> {
    let mut shared = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            shared.extend(shared_paths(&path));
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            shared.push(path);
        }
    }
    shared
}

#[test]
fn data_folder_is_private() {
    let mut rig = Rig::new();
    rig.save("root", "file", &bytes(1, 1000));
    assert_eq!(shared_paths(rig.data_dir()), Vec::<PathBuf>::new());
    rig.shutdown();
    // As an older version has left it.
    for name in ["uploads", "blobs", "catalog.redb"] {
        std::fs::set_permissions(rig.data_dir().join(name), Permissions::from_mode(0o755)).unwrap();
    }
    rig.start();
    assert_eq!(shared_paths(rig.data_dir()), Vec::<PathBuf>::new());
    rig.shutdown();
    std::fs::set_permissions(rig.data_dir(), Permissions::from_mode(0o770)).unwrap();
    let config = rig.config.clone();
    let refused = rig.runtime.block_on(async {
        Server::start(TcpListener::bind("127.0.0.1:0").await.unwrap(), config).await.map(drop).unwrap_err()
    });
    assert!(refused.to_string().contains("chmod 700"), "{refused}");
}

#[test]
fn all_state_survives_a_restart() {
    for is_clean in [true, false] {
        let mut rig = Rig::new();
        let folder = rig.mkdir("root", "folder");
        let file = rig.save(&folder, "file", b"first");
        let id = text(&file["file_id"]);
        rig.overwrite(&id, b"second");
        let trashed = rig.save("root", "trashed", b"bin");
        rig.ok("recyclebin/trash", json!({"drive_id": "1", "file_id": trashed["file_id"]}));
        rig.ok(
            "file/put_usertags",
            json!({"drive_id": "1", "file_id": id, "user_tags": [{"key": "k", "value": "v"}]}),
        );
        let content = bytes(1, 640 * 2);
        let begun = rig.ok(
            "file/create",
            json!({
                "drive_id": "1", "parent_file_id": folder, "name": "half", "type": "file",
                "parallel_upload": true, "part_info_list": parallel_parts(&content, 640),
            }),
        );
        rig.put(begun["part_info_list"][0]["upload_url"].as_str().unwrap(), &content[..640]);
        let before = rig.ok("file/get", json!({"drive_id": "1", "file_id": id, "fields": "name"}));
        let delta = rig.ok("file/list_delta", json!({"drive_id": "1"}));
        if is_clean {
            rig.shutdown();
        } else {
            rig.kill();
        }
        rig.start();
        assert_eq!(rig.ok("file/get", json!({"drive_id": "1", "file_id": id, "fields": "name"})), before);
        assert_eq!(rig.read(&id), b"second");
        assert_eq!(rig.names(&folder), ["file"]);
        assert_eq!(rig.ok("recyclebin/list", json!({"drive_id": "1"}))["items"][0]["name"], "trashed");
        let revisions = rig.ok("file/revision/list", json!({"drive_id": "1", "file_id": id}));
        assert_eq!(revisions["items"].as_array().unwrap().len(), 2);
        let drive = rig.ok("drive/get", json!({"drive_id": "1"}));
        assert_eq!(drive["used_size"], 5 + 6 + 3);
        let after = rig.ok("file/list_delta", json!({"drive_id": "1"}));
        assert_eq!(after["items"].as_array().unwrap().len(), delta["items"].as_array().unwrap().len());
        // The upload continues, with the midstates that create declared.
        let mut ask = of_upload(&begun);
        ask["part_info_list"] = json!([{"part_number": 2}]);
        let urls = rig.ok("file/get_upload_url", ask);
        rig.put(urls["part_info_list"][0]["upload_url"].as_str().unwrap(), &content[640..]);
        let half = rig.ok("file/complete", of_upload(&begun));
        assert_eq!(text(&half["content_hash"]), sha1(&content));
    }
}

#[test]
fn presigned_urls_survive_a_restart() {
    let mut rig = Rig::new();
    let file = rig.save("root", "n", b"bytes");
    let url = rig.ok("file/get_download_url", json!({"drive_id": "1", "file_id": file["file_id"]}));
    let path = rig.path_of(url["url"].as_str().unwrap());
    rig.kill_and_restart();
    assert_eq!(send(rig.addr(), "GET", &path, &[], b"").unwrap().body, b"bytes");
}

#[test]
fn data_directory_is_locked() {
    let rig = Rig::new();
    let second = rig.runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Server::start(listener, rig.config.clone()).await
    });
    assert_eq!(second.unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
    rig.ok("drive/get", json!({"drive_id": "1"}));
}

#[test]
fn fsync_mode_keeps_data_across_a_kill() {
    let mut rig = Rig::with(|config| config.fsync = true);
    let file = rig.save("root", "n", &bytes(2, 400_000));
    rig.kill_and_restart();
    assert!(rig.read(&text(&file["file_id"])) == bytes(2, 400_000));
}

/// A server in a separate process, so that the test can kill it.
struct Killable {
    child: Child,
    addr: SocketAddr,
}

impl Killable {
    fn start(data: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pdsfs"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data.join("data"))
            .env("PDSFS_TOKEN", "AT")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = lines.map_while(Result::ok).find_map(|line| line.strip_prefix(READY)?.parse().ok());
        let Some(addr) = addr else {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the server does not start");
        };
        Self { child, addr }
    }

    /// SIGKILL.
    fn kill(self) {
        drop(self);
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

const READY: &str = "listening on http://";

fn call(addr: SocketAddr, endpoint: &str, body: &Value) -> Option<Value> {
    let headers = [header("Authorization", "Bearer AT")];
    let answer =
        send(addr, "POST", &format!("/v2/{endpoint}"), &headers, body.to_string().as_bytes()).ok()?;
    assert!(answer.is_cut || answer.status < 300, "{endpoint}: {}", answer.text());
    if answer.is_cut { None } else { Some(answer.json()) }
}

/// Uploads one file after another until the server dies, and returns the acknowledged ones.
fn write_until_gone(
    addr: SocketAddr,
    worker: u64,
    round: u64,
    acknowledged: &Mutex<HashMap<String, String>>,
) {
    for number in 0.. {
        let seed = round * 1_000_000 + worker * 10_000 + number;
        let content = bytes(seed, usize::try_from(640 * 3 + seed % 5000).unwrap());
        let create = json!({
            "drive_id": "1", "parent_file_id": "root", "name": format!("{seed}"), "type": "file",
            "parallel_upload": true, "part_info_list": parallel_parts(&content, 640),
        });
        let Some(begun) = call(addr, "file/create", &create) else { return };
        for (part, chunk) in begun["part_info_list"].as_array().unwrap().iter().zip(content.chunks(640)) {
            let url = text(&part["upload_url"]);
            let path = url.strip_prefix(&format!("http://{addr}")).unwrap();
            if send(addr, "PUT", path, &[], chunk).is_err() {
                return;
            }
        }
        let Some(file) = call(addr, "file/complete", &of_upload(&begun)) else { return };
        assert_eq!(text(&file["content_hash"]), sha1(&content));
        acknowledged.lock().unwrap().insert(text(&file["file_id"]), text(&file["content_hash"]));
    }
}

#[test]
fn kill_9_loses_no_completed_file() {
    let dir = tempfile::tempdir().unwrap();
    let acknowledged = Mutex::new(HashMap::new());
    for round in 0..6 {
        let server = Killable::start(dir.path());
        let addr = server.addr;
        let at_least = acknowledged.lock().unwrap().len() + 10 + usize::try_from(round).unwrap() * 7;
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let acknowledged = &acknowledged;
                scope.spawn(move || write_until_gone(addr, worker, round, acknowledged));
            }
            while acknowledged.lock().unwrap().len() < at_least {
                std::thread::yield_now();
            }
            server.kill();
        });
    }
    let server = Killable::start(dir.path());
    let acknowledged = acknowledged.into_inner().unwrap();
    assert!(acknowledged.len() > 100, "{} files are too few for this test", acknowledged.len());
    for (file, hash) in &acknowledged {
        let url =
            call(server.addr, "file/get_download_url", &json!({"drive_id": "1", "file_id": file})).unwrap();
        let url = text(&url["url"]);
        let path = url.strip_prefix(&format!("http://{}", server.addr)).unwrap();
        let answer = send(server.addr, "GET", path, &[], b"").unwrap();
        assert_eq!(sha1(&answer.body), *hash, "{file}");
    }
    // The disk has only content that the catalog names: the kills leave no orphaned content.
    let blobs: usize = std::fs::read_dir(dir.path().join("data/blobs"))
        .unwrap()
        .map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap().count())
        .sum();
    let mut visible = 0;
    let mut marker = String::new();
    loop {
        let page = call(server.addr, "file/scan", &json!({"drive_id": "1", "marker": marker})).unwrap();
        visible += page["items"].as_array().unwrap().len();
        marker = text(&page["next_marker"]);
        if marker.is_empty() {
            break;
        }
    }
    assert!(visible >= acknowledged.len() && blobs == visible, "{blobs} blobs of {visible} files");
    server.kill();
}
