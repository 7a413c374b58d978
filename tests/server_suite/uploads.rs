//! Uploads: ordered, parallel, overwriting, instant, refused.

use pdsfs::server::{FirstPartCtx, Verify};
use serde_json::{Value, json};

use super::http::send;
use super::rig::{Rig, bytes, chaining_value, header, of_upload, parallel_parts, sha1, text};

fn begin_parallel(rig: &Rig, name: &str, content: &[u8], part: usize) -> Value {
    rig.ok(
        "file/create",
        json!({
            "drive_id": 1, "parent_file_id": "root", "name": name, "type": "file", "parallel_upload": true,
            "part_info_list": parallel_parts(content, part), "unknown": {"field": [1]},
        }),
    )
}

fn put_part(rig: &Rig, begun: &Value, content: &[u8], part: usize, index: usize) {
    let url = begun["part_info_list"][index]["upload_url"].as_str().unwrap();
    let end = content.len().min((index + 1) * part);
    let answer = rig.put(url, &content[index * part..end]);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn parallel_upload_accepts_any_part_order() {
    for verify in [Verify::Full, Verify::Off] {
        let rig = Rig::with(|config| config.verify = verify);
        let content = bytes(1, 3 * 640 + 17);
        let begun = begin_parallel(&rig, "any order", &content, 640);
        assert_eq!(text(&begun["file_id"]).len(), 40);
        assert_eq!(text(&begun["upload_id"]).len(), 32);
        assert_eq!(begun["rapid_upload"], false);
        for index in [3, 1, 0, 2, 1] {
            put_part(&rig, &begun, &content, 640, index);
        }
        assert_eq!(rig.names("root"), Vec::<String>::new(), "an unfinished file is visible");
        rig.refused("file/get", json!({"drive_id": "1", "file_id": begun["file_id"]}), 404, "NotFound.File");
        let file = rig.ok("file/complete", of_upload(&begun));
        assert_eq!(text(&file["content_hash"]), sha1(&content));
        assert_eq!(file["size"], content.len());
        assert_eq!(file["status"], "available");
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &content);
        assert_eq!(text(&file["crc64_hash"]), crc.to_string());
        assert_eq!(rig.read(&text(&file["file_id"])), content);
        rig.refused("file/complete", of_upload(&begun), 404, "NotFound.UploadId");
        assert!(rig.server().stats().open_uploads.is_empty());
    }
}

#[test]
fn wrong_midstate_fails_the_upload() {
    let rig = Rig::new();
    let content = bytes(2, 640 * 3);
    let mut parts = parallel_parts(&content, 640);
    parts[2]["parallel_sha1_ctx"]["h"][4] = json!(1);
    let begun = rig.ok(
        "file/create",
        json!({
            "drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file",
            "parallel_upload": true, "part_info_list": parts,
        }),
    );
    for index in 0..3 {
        put_part(&rig, &begun, &content, 640, index);
    }
    rig.refused("file/complete", of_upload(&begun), 400, "InvalidParameter.ContentHash");
    rig.refused("file/complete", of_upload(&begun), 404, "NotFound.UploadId");
    rig.refused("file/get", json!({"drive_id": "1", "file_id": begun["file_id"]}), 404, "NotFound.File");
    assert_eq!(rig.data_entries("uploads"), 0);
}

#[test]
fn bytes_not_matching_midstate_fail_the_upload() {
    let rig = Rig::new();
    let content = bytes(3, 640 * 2);
    let begun = begin_parallel(&rig, "n", &content, 640);
    let mut wrong = content.clone();
    wrong[5] ^= 1;
    put_part(&rig, &begun, &wrong, 640, 0);
    put_part(&rig, &begun, &wrong, 640, 1);
    rig.refused("file/complete", of_upload(&begun), 400, "InvalidParameter.ContentHash");
}

#[test]
fn missing_part_is_named_and_can_be_sent() {
    let rig = Rig::new();
    let content = bytes(4, 640 * 3);
    let begun = begin_parallel(&rig, "n", &content, 640);
    put_part(&rig, &begun, &content, 640, 0);
    put_part(&rig, &begun, &content, 640, 2);
    let (status, answer) = rig.call("file/complete", of_upload(&begun));
    assert_eq!((status, answer["code"].as_str().unwrap()), (400, "InvalidParameter.PartInfoList"));
    assert!(text(&answer["message"]).contains("Part 2"), "{answer}");
    put_part(&rig, &begun, &content, 640, 1);
    rig.ok("file/complete", of_upload(&begun));
}

#[test]
fn declared_hash_and_crc_are_verified() {
    let rig = Rig::new();
    for (field, code) in
        [("content_hash", "InvalidParameter.ContentHash"), ("crc64_hash", "InvalidParameter.Crc64Hash")]
    {
        let mut create =
            json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file", "size": 3});
        if field == "content_hash" {
            create["content_hash"] = json!(sha1(b"xyz"));
        }
        let begun = rig.ok("file/create", create);
        rig.put(begun["part_info_list"][0]["upload_url"].as_str().unwrap(), b"abc");
        let mut complete = of_upload(&begun);
        complete["crc64_hash"] = json!("1");
        rig.refused("file/complete", complete.clone(), 400, code);
        rig.refused("file/complete", complete, 404, "NotFound.UploadId");
    }
    assert!(rig.names("root").is_empty());
}

#[test]
fn midstates_can_come_with_get_upload_url() {
    let rig = Rig::new();
    let content = bytes(5, 640 * 2 + 1);
    let begun = rig.ok(
        "file/create",
        json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file", "parallel_upload": true}),
    );
    assert_eq!(
        begun["part_info_list"].as_array().unwrap().len(),
        1,
        "a create without a part list must give one part"
    );
    for (index, part) in parallel_parts(&content, 640).into_iter().enumerate() {
        let mut ask = of_upload(&begun);
        ask["part_info_list"] = json!([part]);
        let urls = rig.ok("file/get_upload_url", ask);
        put_part(
            &rig,
            &json!({"part_info_list": vec![urls["part_info_list"][0].clone(); 3]}),
            &content,
            640,
            index,
        );
    }
    let file = rig.ok("file/complete", of_upload(&begun));
    assert_eq!(text(&file["content_hash"]), sha1(&content));
    let mut ask = of_upload(&begun);
    ask["part_info_list"] = json!([]);
    rig.refused("file/get_upload_url", ask, 400, "InvalidParameter.PartInfoList");
}

#[test]
fn parts_without_midstate_are_hashed_at_end() {
    let rig = Rig::new();
    let content = bytes(6, 640 * 3 + 9);
    let mut parts = parallel_parts(&content, 640);
    for part in &mut parts[1..3] {
        part.as_object_mut().unwrap().remove("parallel_sha1_ctx");
    }
    let begun = rig.ok(
        "file/create",
        json!({
            "drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file",
            "parallel_upload": true, "part_info_list": parts,
        }),
    );
    for index in (0..4).rev() {
        put_part(&rig, &begun, &content, 640, index);
    }
    assert_eq!(text(&rig.ok("file/complete", of_upload(&begun))["content_hash"]), sha1(&content));
}

#[test]
fn malformed_midstates_are_refused() {
    let rig = Rig::new();
    let h = json!([1, 2, 3, 4, 5]);
    for (number, ctx) in [
        (2, json!({"h": h, "part_offset": 65})),
        (2, json!({"h": [1, 2, 3, 4], "part_offset": 64})),
        (2, json!({"h": [1, 2, 3, 4, 4_294_967_296u64], "part_offset": 64})),
        (2, json!({"h": [], "part_offset": 64})),
        (2, json!({"h": h, "part_offset": 0})),
        (1, json!({"h": h, "part_offset": 64})),
    ] {
        let create = json!({
            "drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file", "parallel_upload": true,
            "part_info_list": [{"part_number": number, "parallel_sha1_ctx": ctx}],
        });
        rig.refused("file/create", create, 400, "InvalidParameter.ParallelSha1Ctx");
    }
    for number in [0, 10_001] {
        let create = json!({
            "drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file",
            "part_info_list": [{"part_number": number}],
        });
        rig.refused("file/create", create, 400, "InvalidParameter.PartInfoList");
    }
    let parts: Vec<_> = (1..=10_001).map(|_| json!({"part_number": 1})).collect();
    let create = json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file", "part_info_list": parts});
    rig.refused("file/create", create, 400, "InvalidParameter.PartInfoList");
}

#[test]
fn ordered_upload_requires_part_order() {
    let rig = Rig::new();
    let parts = json!([{"part_number": 1}, {"part_number": 2}]);
    let begun = rig.ok(
        "file/create",
        json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file", "part_info_list": parts}),
    );
    let url = |index: usize| text(&begun["part_info_list"][index]["upload_url"]);
    let early = rig.put(&url(1), b"second");
    assert_eq!(early.status, 400);
    assert!(
        early.text().starts_with("<?xml") && early.text().contains("PartNotSequential"),
        "{}",
        early.text()
    );
    assert!(early.text().contains("<PartNumber>2</PartNumber>"));
    let first = rig.put(&url(0), b"first ");
    assert_eq!(first.status, 200);
    let etag = first.header("etag").unwrap().to_owned();
    assert!(etag.starts_with('"') && etag.len() == 34, "{etag}");
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, b"first ");
    assert_eq!(first.header("x-oss-hash-crc64ecma").unwrap(), crc.to_string());
    let again = rig.put(&url(0), b"first ");
    assert_eq!(again.status, 409);
    assert!(again.text().contains("PartAlreadyExist") && again.text().contains(etag.trim_matches('"')));
    assert_eq!(rig.put(&url(1), b"second").status, 200);
    let mut complete = of_upload(&begun);
    complete["part_info_list"] = json!([{"part_number": 1, "etag": "\"0\""}, {"part_number": 2}]);
    rig.refused("file/complete", complete.clone(), 400, "InvalidParameter.PartInfoList");
    complete["part_info_list"] = json!([{"part_number": 1, "etag": etag}, {"part_number": 2}]);
    let file = rig.ok("file/complete", complete);
    assert_eq!(text(&file["content_hash"]), sha1(b"first second"));
}

#[test]
fn uploaded_parts_are_listed_in_pages() {
    let rig = Rig::new();
    let content = bytes(7, 640 * 5);
    let begun = begin_parallel(&rig, "n", &content, 640);
    for index in [4, 0, 2] {
        put_part(&rig, &begun, &content, 640, index);
    }
    let page = |marker: Value, limit: u32| {
        let mut ask = of_upload(&begun);
        ask["part_number_marker"] = marker;
        ask["limit"] = json!(limit);
        let page = rig.ok("file/list_uploaded_parts", ask);
        let parts = page["uploaded_parts"].as_array().unwrap();
        assert!(parts.iter().all(|part| part["part_size"] == 640));
        let numbers: Vec<_> = parts.iter().map(|part| part["part_number"].as_u64().unwrap()).collect();
        (numbers, text(&page["next_part_number_marker"]))
    };
    assert_eq!(page(json!(0), 2), (vec![1, 3], "3".into()));
    assert_eq!(page(json!("3"), 2), (vec![5], String::new()));
    assert_eq!(page(Value::Null, 1000), (vec![1, 3, 5], String::new()));
    let stats = rig.server().stats();
    let seen: Vec<_> = stats.open_uploads[0].parts.iter().map(|part| part.part_number).collect();
    assert_eq!(seen, [1, 3, 5], "the parts of an open upload");
}

#[test]
fn presigned_urls_expire_and_resist_tampering() {
    let rig = Rig::new();
    let begun = rig
        .ok("file/create", json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file"}));
    let url = text(&begun["part_info_list"][0]["upload_url"]);
    assert!(url.contains("Expires=") && url.contains("OSSAccessKeyId=") && url.contains("uploadId="));
    for (from, to) in
        [("partNumber=1", "partNumber=2"), ("Signature=", "Signature=0"), ("Expires=", "Expires=9")]
    {
        let answer = rig.put(&url.replace(from, to), b"x");
        assert_eq!(answer.status, 403, "{from}");
        assert!(answer.text().contains("SignatureDoesNotMatch"));
    }
    let typed = [header("Content-Type", "text/plain")];
    let answer = send(rig.addr(), "PUT", &rig.path_of(&url), &typed, b"x").unwrap();
    assert!(answer.status == 403 && answer.text().contains("SignatureDoesNotMatch"));
    rig.runtime.block_on(rig.server().advance_clock(std::time::Duration::from_secs(901)));
    let answer = rig.put(&url, b"x");
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("AccessDenied") && answer.text().contains("expired"), "{}", answer.text());
    let mut ask = of_upload(&begun);
    ask["part_info_list"] = json!([{"part_number": 1}]);
    let fresh = rig.ok("file/get_upload_url", ask);
    assert_eq!(rig.put(fresh["part_info_list"][0]["upload_url"].as_str().unwrap(), b"x").status, 200);
    rig.ok("file/complete", of_upload(&begun));
}

#[test]
fn announced_content_md5_is_verified() {
    let rig = Rig::new();
    let md5 = "kAFQmDzST7DWlj99KOF/cg=="; // of "abc"
    let begun = rig.ok(
        "file/create",
        json!({
            "drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file",
            "part_info_list": [{"part_number": 1, "content_md5": md5}],
        }),
    );
    let path = rig.path_of(begun["part_info_list"][0]["upload_url"].as_str().unwrap());
    let put = |body: &[u8]| send(rig.addr(), "PUT", &path, &[header("Content-MD5", md5)], body).unwrap();
    let wrong = put(b"abd");
    assert!(wrong.status == 400 && wrong.text().contains("InvalidDigest"), "{}", wrong.text());
    let right = put(b"abc");
    assert_eq!(right.status, 200);
    assert_eq!(right.header("etag").unwrap(), "\"900150983CD24FB0D6963F7D28E17F72\"");
    assert_eq!(right.header("content-md5").unwrap(), md5);
}

#[test]
fn known_content_needs_no_upload() {
    let rig = Rig::new();
    let content = bytes(8, 5000);
    rig.save("root", "one", &content);
    let ask = |name: &str| {
        json!({
            "drive_id": "1", "parent_file_id": "root", "name": name, "type": "file", "size": content.len(),
        })
    };
    let mut pre = ask("two");
    pre["pre_hash"] = json!(sha1(&content[..1024]).to_lowercase());
    let (status, answer) = rig.call("file/create", pre.clone());
    assert_eq!((status, answer["code"].as_str().unwrap()), (409, "PreHashMatched"));
    assert_eq!((&answer["file_name"], &answer["parent_file_id"]), (&json!("two"), &json!("root")));
    pre["size"] = json!(4999);
    assert_eq!(rig.call("file/create", pre).0, 201, "a different size must count as different content");
    let mut instant = ask("two");
    instant["content_hash"] = json!(sha1(&content).to_lowercase());
    instant["content_hash_name"] = json!("sha1");
    let made = rig.ok("file/create", instant.clone());
    assert_eq!((&made["rapid_upload"], &made["status"]), (&json!(true), &json!("available")));
    assert!(made["upload_id"].is_null() && made["revision_id"].is_string());
    assert_eq!(rig.read(&text(&made["file_id"])), content);
    instant["size"] = json!(4999);
    assert_eq!(rig.ok("file/create", instant)["rapid_upload"], false);
}

#[test]
fn overwrite_keeps_old_content_until_complete() {
    let rig = Rig::new();
    let file = rig.save("root", "n", b"old");
    let id = text(&file["file_id"]);
    let begun = rig.ok(
        "file/create",
        json!({
            "drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file",
            "check_name_mode": "refuse", "file_id": id,
        }),
    );
    assert_eq!(text(&begun["file_id"]), id);
    rig.put(begun["part_info_list"][0]["upload_url"].as_str().unwrap(), b"new!");
    assert_eq!(rig.read(&id), b"old");
    let new = rig.ok("file/complete", of_upload(&begun));
    assert_eq!(text(&new["file_id"]), id);
    assert_ne!(new["revision_id"], file["revision_id"]);
    assert_eq!((rig.read(&id), rig.names("root")), (b"new!".to_vec(), vec!["n".to_owned()]));
    let list = rig.ok("file/revision/list", json!({"drive_id": "1", "file_id": id}));
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    let url = json!({"drive_id": "1", "file_id": id, "revision_id": file["revision_id"]});
    let url = rig.ok("file/get_download_url", url);
    assert_eq!(rig.get(url["url"].as_str().unwrap(), None).body, b"old");
}

#[test]
fn revisions_off_keeps_only_newest_content() {
    let rig = Rig::with(|config| config.quirks.revisions = false);
    let file = rig.save("root", "n", b"old");
    let new = rig.overwrite(&text(&file["file_id"]), b"new");
    assert_eq!(new["revision_version"], 1);
    let old = json!({"drive_id": "1", "file_id": file["file_id"], "revision_id": file["revision_id"]});
    rig.refused("file/get_download_url", old, 404, "NotFound.Revision");
    assert_eq!(rig.data_entries("blobs"), 1, "unused content is not removed");
}

#[test]
fn quirks_are_configurable() {
    let rig = Rig::with(|config| {
        config.quirks.require_size_at_create = true;
        config.quirks.size_must_match = true;
        config.quirks.part_bytes_min = 100;
        config.quirks.equal_part_sizes = true;
        config.quirks.first_part_ctx = FirstPartCtx::Empty;
    });
    let create = json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file"});
    rig.refused("file/create", create, 400, "InvalidParameterMissing.Size");
    let begin = |size: usize, lens: &[usize]| {
        let content = bytes(9, lens.iter().sum());
        let mut offset = 0;
        let mut parts = Vec::new();
        for (index, len) in lens.iter().enumerate() {
            let h = if index == 0 { json!([]) } else { json!(chaining_value(&content[..offset])) };
            parts.push(
                json!({"part_number": index + 1, "parallel_sha1_ctx": {"h": h, "part_offset": offset}}),
            );
            offset += len;
        }
        let begun = rig.ok(
            "file/create",
            json!({
                "drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file", "size": size,
                "parallel_upload": true, "part_info_list": parts,
            }),
        );
        let mut offset = 0;
        for (index, len) in lens.iter().enumerate() {
            let url = begun["part_info_list"][index]["upload_url"].as_str().unwrap();
            assert_eq!(rig.put(url, &content[offset..offset + len]).status, 200);
            offset += len;
        }
        of_upload(&begun)
    };
    rig.refused("file/complete", begin(128, &[64, 64]), 400, "EntityTooSmall");
    rig.refused("file/complete", begin(384, &[128, 192, 64]), 400, "InvalidParameter.PartInfoList");
    rig.refused("file/complete", begin(300, &[128, 128, 1]), 400, "InvalidParameter.Size");
    rig.ok("file/complete", begin(257, &[128, 128, 1]));
    let create = json!({
        "drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file", "size": 1,
        "parallel_upload": true, "part_info_list": [{"part_number": 1}],
    });
    rig.refused("file/create", create, 400, "InvalidParameter.ParallelSha1Ctx");
    let refusing = Rig::with(|config| config.quirks.parallel_refused = true);
    let create = json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file", "parallel_upload": true});
    refusing.refused("file/create", create, 400, "InvalidParameterNotSupported.ParallelUpload");
}

#[test]
fn quota_is_enforced() {
    let rig = Rig::with(|config| config.quota_bytes = Some(10));
    let create = |size: Value| json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file", "size": size});
    rig.refused("file/create", create(json!(11)), 409, "QuotaExhausted.Drive");
    let begun = rig.ok("file/create", create(Value::Null));
    rig.put(begun["part_info_list"][0]["upload_url"].as_str().unwrap(), b"eleven byte");
    rig.refused("file/complete", of_upload(&begun), 409, "QuotaExhausted.Drive");
    let file = rig.save("root", "n", b"1234567890");
    let drive = rig.ok("drive/get", json!({"drive_id": "1"}));
    assert_eq!((&drive["total_size"], &drive["used_size"]), (&json!(10), &json!(10)));
    rig.ok("recyclebin/trash", json!({"drive_id": "1", "file_id": file["file_id"]}));
    rig.refused("file/create", create(json!(1)), 409, "QuotaExhausted.Drive");
    rig.ok("file/delete", json!({"drive_id": "1", "file_id": file["file_id"]}));
    rig.save("root", "n", b"0987654321");
}

#[test]
fn urls_use_the_public_or_request_host() {
    let rig = Rig::new();
    let body = json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file"}).to_string();
    let headers = [header("Authorization", "Bearer AT"), header("Host", "proxy.example:8443")];
    let answer = send(rig.addr(), "POST", "/v2/file/create", &headers, body.as_bytes()).unwrap();
    let url = text(&answer.json()["part_info_list"][0]["upload_url"]);
    assert!(url.starts_with("http://proxy.example:8443/data/"), "{url}");
    let public = Rig::with(|config| config.public_url = Some("https://drive.example/".parse().unwrap()));
    let begun = public
        .ok("file/create", json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file"}));
    let url = text(&begun["part_info_list"][0]["upload_url"]);
    assert!(url.starts_with("https://drive.example/data/"), "{url}");
}

#[test]
fn old_uploads_expire() {
    let rig = Rig::new();
    let begun = rig
        .ok("file/create", json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file"}));
    rig.put(begun["part_info_list"][0]["upload_url"].as_str().unwrap(), b"x");
    let listed =
        rig.ok("file/list", json!({"drive_id": "1", "parent_file_id": "root", "status": "uploading"}));
    assert_eq!(listed["items"][0]["status"], "uploading");
    rig.runtime.block_on(rig.server().advance_clock(std::time::Duration::from_secs(11 * 24 * 3600)));
    rig.refused("file/complete", of_upload(&begun), 404, "NotFound.UploadId");
    assert_eq!(rig.data_entries("uploads"), 0);
}

#[test]
fn invalid_names_are_refused() {
    let rig = Rig::new();
    for name in ["", "a/b", "a\\b", &"x".repeat(1025)] {
        let create = json!({"drive_id": "1", "parent_file_id": "root", "name": name, "type": "file"});
        rig.refused("file/create", create, 400, "InvalidParameter.Name");
    }
    for name in [" ", ".", "tab\tand\nline", "ü".repeat(512).as_str()] {
        rig.save("root", name, b"x");
    }
    let (status, _) = rig
        .call("file/create", json!({"drive_id": "9", "parent_file_id": "root", "name": "n", "type": "file"}));
    assert_eq!(status, 404);
    let create = json!({"drive_id": "1", "parent_file_id": "nope", "name": "n", "type": "file"});
    rig.refused("file/create", create, 404, "NotFound.File");
}
