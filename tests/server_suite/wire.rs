//! Answers that the official SDKs and the documents of the service expect. The functional tests of the JS SDK have
//! most of them as an assertion.

use hmac::{Hmac, KeyInit as _, Mac as _};
use pdsfs::server::{AcceptedAccessKey, HashName, Secret};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::http::{Answer, send};
use super::rig::{Rig, header, sha1, text};

fn names(answer: &Value) -> Vec<String> {
    answer["items"].as_array().unwrap().iter().map(|item| text(&item["name"])).collect()
}

fn with_fields(mut body: Value, (name, value): (&str, Value)) -> Value {
    body[name] = value;
    body
}

fn search(rig: &Rig, query: &str, more: Value) -> Value {
    let mut ask = json!({"drive_id": "1", "query": query, "order_by": "name ASC"});
    ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    rig.ok("file/search", ask)
}

#[test]
fn name_checks_work_alone_and_in_a_batch() {
    let rig = Rig::new();
    let taken = rig.mkdir("root", "taken");
    let check = |name: &str| json!({"drive_id": "1", "parent_file_id": "root", "name": name, "type": "file"});
    assert_eq!(rig.ok("file/pre_create_check", check("free"))["result_code"], "success");
    let sub = |id: &str, name: &str| {
        json!({"id": id, "method": "POST", "url": "/file/pre_create_check",
            "headers": {"Content-Type": "application/json"}, "body": check(name)})
    };
    let answer = rig.ok("batch", json!({"requests": [sub("1", "free"), sub("2", "taken")]}));
    let body = |index: usize| &answer["responses"][index]["body"];
    assert_eq!(body(0)["result_code"], "success", "{answer}");
    assert_eq!(body(1)["result_code"], "NameCheckFailed.ExistSameNameFile");
    assert_eq!(body(1)["name_check_result"]["exist_file_id"], json!(taken));
}

#[test]
fn all_recycle_bins_are_cleared_at_once() {
    let rig = Rig::with(|config| config.drives = 2);
    let ids = ["1", "2"].map(|drive| {
        let create = json!({"drive_id": drive, "parent_file_id": "root", "name": "x", "type": "folder"});
        let id = rig.ok("file/create", create)["file_id"].clone();
        rig.call("recyclebin/trash", json!({"drive_id": drive, "file_id": id}));
        id
    });
    let found = rig.ok("recyclebin/search_all", json!({"query": "", "order_by": "type ASC,updated_at DESC"}));
    assert_eq!(found["items"].as_array().unwrap().len(), 2);
    let one = rig.ok("recyclebin/search_all", json!({"drive_id": "2", "query": "name = 'x'"}));
    assert_eq!((&one["items"][0]["file_id"], one["items"][1].is_null()), (&ids[1], true));
    let cleared = rig.ok("recyclebin/clear_all", json!({}));
    let drives: Vec<_> =
        cleared["items"].as_array().unwrap().iter().map(|item| text(&item["drive_id"])).collect();
    assert_eq!(drives, ["1", "2"]);
    let task = rig.ok("async_task/get", json!({"async_task_id": cleared["items"][0]["async_task_id"]}));
    assert_eq!(task["state"], "Succeed");
    assert_eq!(rig.ok("recyclebin/list", json!({"drive_id": "2"}))["items"], json!([]));
}

#[test]
fn unknown_routes_are_refused_before_the_token() {
    let rig = Rig::new();
    for (method, path) in [("POST", "/v2/no/such"), ("GET", "/v2/drive/list"), ("PUT", "/v2/file/list")] {
        let answer = send(rig.addr(), method, path, &[], b"{}").unwrap();
        assert_eq!(
            (answer.status, answer.header("x-ca-error-code"), answer.body.len()),
            (404, Some("I404NF"), 0),
            "{method} {path}"
        );
    }
    for (method, path) in [("POST", "/v2/drive/list"), ("GET", "/v2/file/download"), ("POST", "/v2/batch")] {
        assert_eq!(send(rig.addr(), method, path, &[], b"{}").unwrap().status, 401, "{method} {path}");
    }
}

#[test]
fn first_empty_file_is_an_instant_upload() {
    let mut rig = Rig::new();
    let create = |name: &str, hash: &str| {
        json!({"drive_id": "1", "parent_file_id": "root", "name": name, "type": "file", "size": 0,
            "content_hash": hash, "content_hash_name": "sha1"})
    };
    let made = rig.ok("file/create", create("a", &sha1(b"")));
    assert_eq!(made["rapid_upload"], true);
    assert_eq!(rig.read(&text(&made["file_id"])), b"");
    let other = rig.ok("file/create", create("b", &sha1(b"x")));
    assert_eq!((&other["rapid_upload"], other["upload_id"].is_string()), (&json!(false), true));
    rig.kill_and_restart();
    assert_eq!(rig.read(&text(&made["file_id"])), b"");
    let without = Rig::with(|config| config.quirks.empty_is_instant = false);
    assert_eq!(without.ok("file/create", create("a", &sha1(b"")))["rapid_upload"], false);
}

#[test]
fn listing_without_order_has_the_newest_first() {
    let rig = Rig::new();
    for name in ["b", "a", "c"] {
        rig.mkdir("root", name);
        rig.runtime.block_on(rig.server().advance_clock(std::time::Duration::from_secs(1)));
    }
    let list = |more: Value| {
        let mut ask = json!({"drive_id": "1", "parent_file_id": "root"});
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        names(&rig.ok("file/list", ask))
    };
    assert_eq!(list(json!({})), ["c", "a", "b"]);
    assert_eq!(list(json!({"order_by": "created_at"})), ["b", "a", "c"]);
    assert_eq!(list(json!({"order_by": "name"})), ["a", "b", "c"]);
}

#[test]
fn search_has_the_documented_language() {
    let rig = Rig::new();
    let folder = rig.mkdir("root", "she");
    for name in ["k1.txt", "jk.jpg", "yt.txt"] {
        rig.save(&folder, name, name.as_bytes());
    }
    let query = format!(
        r#"(name="k" or name match "k" or description match "k") and parent_file_id="{folder}" and not type = folder"#
    );
    assert_eq!(names(&search(&rig, &query, json!({}))), ["jk.jpg", "k1.txt"]);
    for (query, found) in [
        ("name = 'yt.txt'", vec!["yt.txt"]),
        ("file_extension prefix 't'", vec!["k1.txt", "yt.txt"]),
        ("file_extension in ['jpg', \"txt\"] and name match 'k'", vec!["jk.jpg", "k1.txt"]),
        ("created_at > '2020-01-01T00:00:00' and size <= 5", vec!["she"]),
    ] {
        assert_eq!(names(&search(&rig, query, json!({}))), found, "{query}");
    }
    for query in ["name prefix 'k'", "type != 'folder'", "(name = 'a'", "colour = 'red'"] {
        rig.refused("file/search", json!({"drive_id": "1", "query": query}), 400, "InvalidParameter.Query");
    }
}

#[test]
fn search_looks_below_a_folder_if_recursive() {
    let rig = Rig::with(|config| config.drives = 2);
    let outer = rig.mkdir("root", "outer");
    let inner = rig.mkdir(&outer, "inner");
    rig.mkdir(&inner, "leaf");
    let query = format!("parent_file_id = '{outer}'");
    assert_eq!(names(&search(&rig, &query, json!({"recursive": false}))), ["inner"]);
    assert_eq!(names(&search(&rig, &query, json!({"recursive": true}))), ["inner", "leaf"]);
    rig.ok(
        "file/create",
        json!({"drive_id": "2", "parent_file_id": "root", "name": "two", "type": "folder"}),
    );
    let everywhere = json!({"drive_id_list": ["1", "2"], "query": "", "order_by": "name"});
    assert_eq!(names(&rig.ok("file/search", everywhere)), ["inner", "leaf", "outer", "two"]);
    rig.refused("file/search", json!({"query": ""}), 400, "InvalidParameterMissing.DriveId");
}

#[test]
fn search_has_50_results_and_markers_with_its_query() {
    let rig = Rig::new();
    for number in 0..60 {
        rig.mkdir("root", &format!("{number:02}"));
    }
    let first = search(&rig, "", json!({}));
    assert_eq!(first["items"].as_array().unwrap().len(), 50);
    // With a marker the other parameters are ignored.
    let next = search(&rig, "name = 'x'", json!({"marker": first["next_marker"]}));
    assert_eq!((names(&next).len(), names(&next)[0].as_str(), &next["next_marker"]), (10, "50", &json!("")));
    let foreign = json!({"drive_id": "1", "query": "", "marker": "2"});
    rig.refused("file/search", foreign, 400, "InvalidParameter.Marker");
}

#[test]
fn domain_has_hash_name_and_quota() {
    let rig = Rig::with(|config| {
        config.quirks.hash_name = HashName::Sha256;
        config.quirks.deletion_forbidden = true;
    });
    assert_eq!(rig.ok("domain/get_quota", json!({}))["size_quota"], 0);
    let domain = rig.ok("domain/get", json!({}));
    assert_eq!((&domain["data_hash_name"], &domain["size_quota"]), (&json!("sha256"), &json!(0)));
    assert_eq!(domain["recycle_bin_config"]["delete_trash_normal_file_disabled"], true);
    let same = rig.ok("domain/get", json!({"domain_id": domain["domain_id"]}));
    assert_eq!(same, domain);
    rig.refused("domain/get", json!({"domain_id": "other"}), 404, "NotFound.Domain");
    let limited = Rig::with(|config| config.quota_bytes = Some(100));
    limited.save("root", "f", b"12345");
    let domain = limited.ok("domain/get", json!({"get_quota_used": true}));
    assert_eq!((&domain["size_quota"], &domain["size_quota_used"]), (&json!(100), &json!(5)));
}

#[test]
fn items_have_their_url_under_both_names() {
    let rig = Rig::new();
    let id = text(&rig.save("root", "f", b"content")["file_id"]);
    let list = rig.ok("file/list", json!({"drive_id": "1", "parent_file_id": "root", "fields": "url"}));
    for item in [&list["items"][0], &rig.ok("file/get", json!({"drive_id": "1", "file_id": id}))] {
        assert_eq!(item["url"], item["download_url"]);
        assert_eq!(rig.get(&text(&item["url"]), None).body, b"content");
    }
    let bare = rig.ok("file/get", json!({"drive_id": "1", "file_id": id, "fields": "dir_size"}));
    assert!(bare.get("url").is_none() && bare.get("download_url").is_none(), "{bare}");
}

#[test]
fn update_to_a_taken_name_returns_its_object() {
    let update = |rig: &Rig| {
        let (a, b) = (rig.mkdir("root", "a"), rig.mkdir("root", "b"));
        let ask =
            json!({"drive_id": "1", "file_id": a, "name": "b", "check_name_mode": "refuse", "hidden": true});
        (rig.call("file/update", ask), a, b)
    };
    let rig = Rig::new();
    let ((status, answer), a, b) = update(&rig);
    assert_eq!((status, &answer["file_id"]), (200, &json!(b)), "{answer}");
    let unchanged = rig.ok("file/get", json!({"drive_id": "1", "file_id": a}));
    assert_eq!((&unchanged["name"], &unchanged["hidden"]), (&json!("a"), &json!(false)));
    let strict = Rig::with(|config| config.quirks.update_conflict = true);
    let ((status, answer), ..) = update(&strict);
    assert_eq!((status, &answer["code"]), (409, &json!("AlreadyExist.File")));
}

#[test]
fn feed_has_opaque_cursors_and_partial_updates() {
    let rig = Rig::new();
    let start = text(&rig.ok("file/get_last_cursor", json!({"drive_id": "1"}))["cursor"]);
    assert!(start.parse::<u64>().is_err(), "{start}");
    let id = rig.mkdir("root", "a");
    rig.ok("file/update", json!({"drive_id": "1", "file_id": id, "hidden": true}));
    for limit in [200, 1000] {
        let page = rig.ok("file/list_delta", json!({"drive_id": "1", "cursor": start, "limit": limit}));
        let (created, updated) = (&page["items"][0]["file"], &page["items"][1]["file"]);
        assert_eq!((&created["name"], &created["type"]), (&json!("a"), &json!("folder")));
        assert_eq!((updated["hidden"].as_bool(), &updated["file_id"]), (Some(true), &json!(id)));
        for member in ["name", "type", "size"] {
            assert!(updated.get(member).is_none(), "{updated}");
        }
    }
    let ask = json!({"drive_id": "1", "limit": 1001});
    rig.refused("file/list_delta", ask, 400, "InvalidParameter.Limit");
}

#[test]
fn feed_can_be_that_of_a_folder() {
    let rig = Rig::new();
    let (synced, other) = (rig.mkdir("root", "synced"), rig.mkdir("root", "other"));
    let sub = rig.mkdir(&synced, "sub");
    let start = rig.ok("file/get_last_cursor", json!({"drive_id": "1"}))["cursor"].clone();
    let file = text(&rig.save(&sub, "f", b"1")["file_id"]);
    rig.save(&other, "unseen", b"2");
    rig.ok("file/move", json!({"drive_id": "1", "file_id": file, "to_parent_file_id": other}));
    rig.ok("file/delete", json!({"drive_id": "1", "file_id": file}));
    rig.call("recyclebin/trash", json!({"drive_id": "1", "file_id": sub}));
    let ops = |root: Value| {
        let ask = json!({"drive_id": "1", "cursor": start, "sync_root_id": root});
        let page = rig.ok("file/list_delta", ask);
        let items = page["items"].as_array().unwrap().clone();
        items.iter().map(|item| text(&item["op"])).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ops(json!(synced)), "create move trash");
    assert_eq!(ops(json!(other)), "create move delete");
    assert_eq!(ops(Value::Null), "create create move delete trash");
    assert_eq!(ops(json!("root")), "create create move delete trash");
}

#[test]
fn scan_returns_the_documented_members() {
    let rig = Rig::new();
    rig.save("root", "f.txt", b"1");
    let scan = |fields: Value| {
        let page = rig.ok("file/scan", json!({"drive_id": "1", "fields": fields}));
        page["items"][0].as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
    };
    let documented = "category created_at drive_id file_extension file_id parent_file_id size starred status type updated_at";
    assert_eq!(scan(Value::Null), documented);
    assert_eq!(scan(json!("name,file_id")), "file_id name");
    let all = scan(json!("*"));
    assert!(all.contains("content_hash ") && all.contains(" name "), "{all}");
}

#[test]
fn images_have_the_requested_thumbnails() {
    let rig = Rig::new();
    let image = rig.save("root", "i.PNG", b"\x89PNG")["file_id"].clone();
    rig.save("root", "t.txt", b"text");
    let process = json!({"image_thumbnail_process": "image/resize,w_160"});
    let processes = json!({"small": process, "video": {"video_thumbnail_process": "video/snapshot"}});
    let list = rig.ok(
        "file/list",
        json!({"drive_id": "1", "parent_file_id": "root", "order_by": "name",
        "thumbnail_processes": processes}),
    );
    let get =
        rig.ok("file/get", json!({"drive_id": "1", "file_id": image, "thumbnail_processes": processes}));
    for item in [&list["items"][0], &get] {
        let urls = item["thumbnail_urls"].as_object().unwrap_or_else(|| panic!("{item}"));
        assert_eq!(urls.keys().collect::<Vec<_>>(), ["small"]);
        let answer = rig.get(&text(&urls["small"]), None);
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/png")));
        assert_eq!(answer.body, b"\x89PNG");
    }
    assert!(list["items"][1].get("thumbnail_urls").is_none());
    let many: serde_json::Map<_, _> = (0..6).map(|n| (n.to_string(), process.clone())).collect();
    let ask = json!({"drive_id": "1", "parent_file_id": "root", "thumbnail_processes": many});
    rig.refused("file/list", ask, 400, "InvalidParameter.ThumbnailProcesses");
}

#[test]
fn starred_objects_are_found_by_their_key() {
    let rig = Rig::new();
    let ids = ["a", "b"].map(|name| rig.mkdir("root", name));
    let star = |id: &str, key: &str| {
        rig.ok(
            "file/update",
            json!({"drive_id": "1", "file_id": id, "starred": !key.is_empty(), "custom_index_key": key}),
        )
    };
    let starred = || {
        let ask = json!({"drive_id": "1", "custom_index_key": "starred_yes"});
        let mut names = names(&rig.ok("file/list_by_custom_index_key", ask));
        names.sort();
        names.concat()
    };
    for id in &ids {
        star(id, "starred_yes");
    }
    assert_eq!(starred(), "ab");
    star(&ids[0], "");
    assert_eq!(starred(), "b");
}

#[test]
fn archive_of_a_folder_is_a_zip_file() {
    let rig = Rig::new();
    let folder = rig.mkdir("root", "folder");
    rig.mkdir(&folder, "empty");
    rig.save(&folder, "f.txt", b"content of f");
    // The JS SDK and the Python SDK name the files in forms of their own.
    let archive = |named: (&str, Value)| {
        let ask = with_fields(json!({"drive_id": "1", "name": "pack"}), named);
        let (status, task) = rig.call("file/archive_files", ask);
        assert_eq!(status, 202, "{task}");
        let done = rig.ok("async_task/get", json!({"async_task_id": task["async_task_id"]}));
        assert_eq!(done["state"], "Succeed");
        rig.get(&text(&done["url"]), None)
    };
    let zip = archive(("files", json!([{"file_id": folder}])));
    assert_eq!(archive(("file_ids", json!([folder]))).body.len(), zip.body.len());
    assert_eq!((zip.status, zip.header("content-type")), (200, Some("application/zip")));
    let path = rig.data_dir().join("pack.zip");
    std::fs::write(&path, &zip.body).unwrap();
    let check = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; \
        print(sorted(z.namelist()), z.read('folder/f.txt'))";
    let read = std::process::Command::new("python3").args(["-c", check]).arg(&path).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&read.stdout).trim(),
        "['folder/', 'folder/empty/', 'folder/f.txt'] b'content of f'",
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );
    let missing = json!({"drive_id": "1", "name": "pack", "files": [{"file_id": "nope"}]});
    rig.refused("file/archive_files", missing, 404, "NotFound.File");
}

#[test]
fn drives_are_those_of_the_user_or_the_group() {
    let rig = Rig::with(|config| config.drives = 2);
    let found = |ask: Value| rig.ok("drive/search", ask)["items"].as_array().unwrap().len();
    assert_eq!((found(json!({})), found(json!({"owner_type": "group"}))), (2, 0));
    let listed = |rig: &Rig, endpoint: &str| rig.ok(endpoint, json!({}))["items"].as_array().unwrap().len();
    let endpoints = ["drive/list_my_drives", "drive/list_my_group_drive"];
    assert_eq!(endpoints.map(|endpoint| listed(&rig, endpoint)), [2, 0]);
    let of_group = Rig::with(|config| {
        config.drives = 2;
        config.quirks.group_drives = true;
    });
    assert_eq!(endpoints.map(|endpoint| listed(&of_group, endpoint)), [0, 2]);
    assert_eq!((found(json!({"owner": "owner"})), found(json!({"owner": "other"}))), (2, 0));
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from_digit(digit.into(), 16).unwrap()).collect()
}

/// A call signed by the second scheme. `scope` is the date in the scope, `dates` are the headers with the time.
fn signed_call(rig: &Rig, scope: &str, dates: &[(String, String)]) -> Answer {
    let hmac = |key: &[u8], text: &str| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().to_vec()
    };
    let body = br#"{"drive_id":"1"}"#;
    let body_hash = hex(&Sha256::digest(body));
    let mut headers = dates.to_vec();
    headers.push(header("x-acs-content-sha256", &body_hash));
    headers.sort();
    let value = |name: &str| dates.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value);
    let acs = || headers.iter().filter(|(name, _)| name.starts_with("x-acs-"));
    let lines: String = acs().flat_map(|(name, value)| [name, ":", value, "\n"]).collect();
    let names = acs().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
    let canonical = format!(
        "POST\n/v2/drive/get\napplication/json\n\napplication/json\n{}\n{lines}\n{names}\n{body_hash}",
        value("date")
    );
    let text = format!("ACS4-HMAC-SHA256\n{}", hex(&Sha256::digest(canonical)));
    let steps = [scope, "center", "pds", "aliyun_v4_request"];
    let key = steps.iter().fold(b"aliyun_v4SECRET".to_vec(), |key, step| hmac(&key, step));
    let signature = hex(&hmac(&key, &text));
    let authorization = format!(
        "ACS4-HMAC-SHA256 Credential=AKID/{},SignedHeaders={names},Signature={signature}",
        steps.join("/")
    );
    let fixed = [("accept", "application/json"), ("content-type", "application/json")];
    headers.extend(fixed.map(|(name, value)| header(name, value)));
    headers.push(header("authorization", &authorization));
    send(rig.addr(), "POST", "/v2/drive/get", &headers, body).unwrap()
}

#[test]
fn both_dates_of_the_second_signature_work() {
    let rig = Rig::with(|config| {
        let key = AcceptedAccessKey::new("AKID", Secret::new("SECRET".to_owned()));
        config.access_key = Some(key);
    });
    let now = jiff::Timestamp::now();
    let (iso, day) = (now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), now.strftime("%Y%m%d").to_string());
    let http = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let (acs_date, date) = (header("x-acs-date", &iso), header("date", &http));
    for (scope, dates, status) in [
        (day.as_str(), vec![acs_date.clone()], 200),
        (day.as_str(), vec![date.clone(), acs_date.clone()], 200),
        (&http[..10], vec![date.clone()], 200),
        // The newer gateway tests that the scope is no slice of `Date`.
        (&http[..10], vec![date.clone(), acs_date], 401),
        (day.as_str(), vec![date], 401),
        (day.as_str(), vec![header("x-acs-date", "2020-01-01T00:00:00Z")], 401),
    ] {
        let answer = signed_call(&rig, scope, &dates);
        assert_eq!(answer.status, status, "{scope} {dates:?}: {}", answer.text());
    }
}
