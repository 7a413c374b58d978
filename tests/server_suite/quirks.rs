//! Switches for behaviours that contradict the documentation.

use serde_json::{Value, json};

use super::rig::{Rig, bytes, text};

fn create(more: Value) -> Value {
    let mut create = json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file"});
    create.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    create
}

#[test]
fn hashes_can_be_missing() {
    let rig = Rig::with(|config| config.quirks.no_hashes = true);
    let saved = rig.save("root", "n", b"content");
    let of_file = json!({"drive_id": "1", "file_id": saved["file_id"]});
    let list = json!({"drive_id": "1", "parent_file_id": "root"});
    for answer in [
        saved,
        rig.ok("file/get", of_file.clone()),
        rig.ok("file/get_download_url", of_file.clone()),
        rig.ok("file/list", list)["items"][0].clone(),
        rig.ok("file/revision/list", of_file)["items"][0].clone(),
    ] {
        assert_eq!(answer["size"], 7);
        for field in ["content_hash", "content_hash_name", "crc64_hash"] {
            assert!(answer.get(field).is_none(), "{answer}");
        }
    }
}

#[test]
fn overwrite_can_be_refused_as_existing() {
    let rig = Rig::with(|config| config.quirks.refuse_overwrite = true);
    let file = text(&rig.save("root", "n", b"old")["file_id"]);
    let refused = rig.ok("file/create", create(json!({"file_id": file, "check_name_mode": "refuse"})));
    assert_eq!((&refused["exist"], &refused["status"]), (&json!(true), &json!("available")));
    assert_eq!((text(&refused["file_id"]), refused.get("upload_id")), (file.clone(), None));
    let begun = rig.ok("file/create", create(json!({"file_id": file, "check_name_mode": "ignore"})));
    assert!(begun["upload_id"].is_string());
    assert_eq!(rig.read(&file), b"old");
}

#[test]
fn download_urls_can_follow_the_file() {
    let rig = Rig::with(|config| config.quirks.unversioned_urls = true);
    let (old, new) = (bytes(1, 1000), bytes(2, 1000));
    let file = text(&rig.save("root", "n", &old)["file_id"]);
    let answer = rig.ok("file/get_download_url", json!({"drive_id": "1", "file_id": file}));
    assert!(answer.get("revision_id").is_none() && answer.get("content_hash").is_none(), "{answer}");
    let url = text(&answer["url"]);
    let before = rig.get(&url, None);
    rig.overwrite(&file, &new);
    let after = rig.get(&url, Some("bytes=500-"));
    assert!(before.body == old && after.body == new[500..]);
    for header in ["etag", "x-oss-hash-crc64ecma"] {
        assert_ne!(before.header(header).unwrap(), after.header(header).unwrap());
    }
}

#[test]
fn listings_can_have_odd_items() {
    let rig = Rig::with(|config| config.quirks.odd_list_items = true);
    rig.mkdir("root", "folder");
    let page = rig.ok("file/list", json!({"drive_id": "1", "parent_file_id": "root"}));
    let items = page["items"].as_array().unwrap();
    assert_eq!(items.iter().filter(|item| item["name"] == "folder").count(), 1);
    for odd in [json!("shortcut"), json!(-1), json!(u64::MAX), json!("an id with blanks")] {
        let has = |item: &Value| [&item["type"], &item["size"], &item["file_id"]].contains(&&odd);
        assert!(items.iter().any(has), "{odd}");
    }
    assert!(items.iter().any(Value::is_null));
}

#[test]
fn listings_can_be_endless() {
    let rig = Rig::with(|config| {
        config.quirks.endless_list = true;
        config.quirks.list_page_max = 1;
    });
    for name in ["a", "b"] {
        rig.mkdir("root", name);
    }
    let (mut marker, mut markers, mut names) = (String::new(), Vec::new(), Vec::new());
    for _ in 0..6 {
        let list = json!({"drive_id": "1", "parent_file_id": "root", "order_by": "name", "marker": marker});
        let page = rig.ok("file/list", list);
        names.push(text(&page["items"][0]["name"]));
        marker = text(&page["next_marker"]);
        markers.push(marker.clone());
    }
    assert_eq!(names, ["a", "b", "a", "b", "a", "b"]);
    assert!(markers[0] != markers[1] && markers[0] == markers[2], "{markers:?}");
}

#[test]
fn enterprise_drive_has_search_but_few_rights() {
    let rig = Rig::with(|config| config.quirks = pdsfs::server::Quirks::enterprise());
    let folder = rig.mkdir("root", "folder");
    let file = text(&rig.save(&folder, "f", b"content")["file_id"]);
    assert!(rig.names("root").is_empty(), "a new object is listed at once");
    rig.runtime.block_on(rig.server().advance_clock(std::time::Duration::from_secs(1)));
    assert_eq!((rig.names("root"), rig.names(&folder)), (vec!["folder".to_owned()], vec![]));
    let query = format!("parent_file_id = '{folder}'");
    let found = rig.ok("file/search", json!({"drive_id": "1", "query": query, "recursive": false}));
    assert_eq!(found["items"][0]["file_id"], json!(file));
    let of_file = json!({"drive_id": "1", "file_id": file});
    for endpoint in ["recyclebin/trash", "file/delete", "recyclebin/clear_all", "batch"] {
        rig.refused(endpoint, of_file.clone(), 403, "Forbidden");
    }
    let url = text(&rig.ok("file/get_download_url", of_file)["url"]);
    let answer = rig.get(&url, Some("bytes=1-2"));
    assert_eq!((answer.status, answer.body), (200, b"content".to_vec()));
}
