//! Requests of the client, compared with genuine ones of the official SDKs (`tests/fixtures/captures`).
//!
//! This pins the wire format to that of real clients, so that the client and the embedded server cannot
//! share a mistake.

use crate::ids::{DriveId, FileId, PartNumber, RevisionId, UploadId};
use crate::pds::types::{
    CheckNameMode, CompleteRequest, CreateRequest, DownloadUrlRequest, FileRequest, FileType, ListRequest,
    MoveRequest, PartRequest, RecycleBinRequest, RevisionListRequest, RevisionRequest, UpdateRequest,
    UploadUrlRequest, UserTag, WireSha1Ctx,
};
use crate::rolling_sha1::RollingSha1;
use serde_json::Value;
use sha2::Digest;

/// The 20 MiB file that the captures upload.
fn recorded_file() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20_971_552);
    for i in 0.. {
        if bytes.len() >= 20_971_520 {
            break;
        }
        bytes.extend_from_slice(&sha2::Sha256::digest(format!("pds-fixture-{i}")));
    }
    bytes.truncate(20_971_520);
    bytes
}

/// The bodies that a capture sends to an endpoint, in order.
fn captured(file: &str, target: &str) -> Vec<Value> {
    let path = format!("{}/tests/fixtures/captures/{file}", env!("CARGO_MANIFEST_DIR"));
    let entries: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let bodies: Vec<_> =
        entries.iter().filter(|e| e["target"] == target).map(|e| e["body"].clone()).collect();
    assert!(!bodies.is_empty(), "{file} has no {target}");
    bodies
}

/// The parts of a capture with the hashes of our own code.
fn our_parts(captured_parts: &Value) -> Vec<PartRequest> {
    let fixture = recorded_file();
    let mut rolling = RollingSha1::default();
    let mut parts = Vec::new();
    for part in captured_parts.as_array().unwrap() {
        let offset = part["parallel_sha1_ctx"]["part_offset"].as_u64().unwrap();
        rolling.update(&fixture[rolling.bytes() as usize..offset as usize]);
        parts.push(PartRequest {
            part_number: PartNumber::new(part["part_number"].as_u64().unwrap() as u32).unwrap(),
            parallel_sha1_ctx: Some(WireSha1Ctx::from(rolling.midstate().unwrap())),
        });
    }
    parts
}

/// Every field of `ours` must be in `theirs` with the same value, except the named ones.
fn assert_within(ours: &Value, theirs: &Value, except: &[&str]) {
    for (key, value) in ours.as_object().unwrap() {
        if except.contains(&key.as_str()) {
            continue;
        }
        let genuine = theirs.get(key).unwrap_or_else(|| panic!("no genuine request has {key}"));
        match (value, genuine) {
            (Value::Array(ours), Value::Array(theirs)) if ours.iter().all(Value::is_object) => {
                assert_eq!(ours.len(), theirs.len(), "{key}");
                for (ours, theirs) in ours.iter().zip(theirs) {
                    assert_within(ours, theirs, except);
                }
            }
            _ => assert_eq!(value, genuine, "{key}"),
        }
    }
}

fn json(request: &impl serde::Serialize) -> Value {
    serde_json::to_value(request).unwrap()
}

fn drive() -> DriveId {
    DriveId::new("1").unwrap()
}

fn file() -> FileId {
    FileId::new("F1").unwrap()
}

#[test]
fn golden_create_matches_captures() {
    for capture in ["js_parallel_20m_4MiBparts.json", "js_parallel_20m.json", "js_parallel_overwrite.json"] {
        let genuine = captured(capture, "/v2/file/create").pop().unwrap();
        let hash = genuine["content_hash"].as_str().map(str::to_owned);
        let overwrite = genuine["file_id"].as_str().map(|id| FileId::new(id).unwrap());
        let (drive_id, root) = (drive(), FileId::root());
        let ours = CreateRequest {
            drive_id: &drive_id,
            parent_file_id: &root,
            name: "f20m.bin",
            file_type: FileType::File,
            check_name_mode: CheckNameMode::Refuse,
            file_id: overwrite.as_ref(),
            size: Some(20_971_520),
            parallel_upload: Some(true),
            part_info_list: our_parts(&genuine["part_info_list"]),
            content_hash: hash,
            content_hash_name: Some("sha1"),
            local_modified_at: None,
            user_tags: Vec::new(),
        };
        assert_within(&json(&ours), &genuine, &["check_name_mode"]);
    }
}

#[test]
fn golden_get_upload_url_matches_captures() {
    for genuine in captured("js_parallel_20m_url_expired.json", "/v2/file/get_upload_url") {
        let (drive_id, file_id, upload_id) = (drive(), file(), UploadId::new("UP1").unwrap());
        let ours = UploadUrlRequest {
            drive_id: &drive_id,
            file_id: &file_id,
            upload_id: &upload_id,
            part_info_list: our_parts(&genuine["part_info_list"]),
        };
        assert_within(&json(&ours), &genuine, &[]);
    }
}

#[test]
fn golden_complete_matches_capture() {
    let genuine = captured("js_serial_20m.json", "/v2/file/complete").pop().unwrap();
    let (drive_id, file_id, upload_id) = (drive(), file(), UploadId::new("UP1").unwrap());
    let mut crc64 = crate::crc64::digest();
    crc64.update(&recorded_file());
    let ours = CompleteRequest {
        drive_id: &drive_id,
        file_id: &file_id,
        upload_id: &upload_id,
        crc64_hash: Some(crc64.finalize().to_string()),
    };
    assert_within(&json(&ours), &genuine, &[]);
}

#[test]
fn golden_metadata_calls_match_captures() {
    let (drive_id, file_id, root) = (drive(), file(), FileId::root());
    let python = "py_parallel_20m_bearer.json";
    let get = FileRequest { drive_id: &drive_id, file_id: &file_id };
    assert_within(&json(&get), &captured(python, "/v2/file/get")[0], &[]);
    assert_within(&json(&get), &captured(python, "/v2/recyclebin/trash")[0], &[]);
    let list = ListRequest {
        drive_id: &drive_id,
        parent_file_id: &root,
        limit: 100,
        marker: "",
        order_by: "name",
        order_direction: "ASC",
        fields: "*,user_tags",
    };
    // The capture has only the default fields; the format of `fields` is documented for `list`.
    assert_within(&json(&list), &captured(python, "/v2/file/list")[0], &["fields"]);
    let tags = captured(python, "/v2/file/create").pop().unwrap()["user_tags"].clone();
    let ours = [UserTag { key: "k".into(), value: "v".into() }];
    assert_eq!(json(&ours), tags);
    let url =
        DownloadUrlRequest { drive_id: &drive_id, file_id: &file_id, revision_id: None, expire_sec: 900 };
    assert_within(&json(&url), &captured(python, "/v2/file/get_download_url")[0], &[]);
}

#[test]
fn golden_rename_and_move_match_captures() {
    let drive_id = drive();
    let genuine = captured("js_ops.json", "/v2/file/update").remove(0);
    let file_id = FileId::new(genuine["file_id"].as_str().unwrap()).unwrap();
    let rename = UpdateRequest {
        drive_id: &drive_id,
        file_id: &file_id,
        name: genuine["name"].as_str(),
        check_name_mode: Some(CheckNameMode::Refuse),
        local_modified_at: None,
    };
    assert_within(&json(&rename), &genuine, &["check_name_mode"]);
    let genuine = captured("js_ops.json", "/v2/file/move").remove(0);
    let file_id = FileId::new(genuine["file_id"].as_str().unwrap()).unwrap();
    let to = FileId::new(genuine["to_parent_file_id"].as_str().unwrap()).unwrap();
    let move_to = MoveRequest {
        drive_id: &drive_id,
        file_id: &file_id,
        to_parent_file_id: &to,
        check_name_mode: CheckNameMode::Refuse,
    };
    assert_within(&json(&move_to), &genuine, &["check_name_mode"]);
}

#[test]
fn comparison_detects_a_difference() {
    let outcome = std::panic::catch_unwind(|| {
        assert_within(&serde_json::json!({"a": 1}), &serde_json::json!({"b": 1}), &[]);
    });
    assert!(outcome.is_err());
}

#[test]
fn golden_revision_calls_match_captures() {
    let capture = "py_versions_trash_search_shares.json";
    let (drive_id, file_id, revision_id) = (drive(), file(), RevisionId::new("R1").unwrap());
    let ours =
        RevisionListRequest { drive_id: &drive_id, file_id: &file_id, limit: 100, marker: "M1", fields: "*" };
    assert_within(&json(&ours), &captured(capture, "/v2/file/revision/list")[0], &[]);
    assert_within(&captured("js_ops.json", "/v2/file/revision/list")[0], &json(&ours), &["file_id"]);
    let ours = RevisionRequest { drive_id: &drive_id, file_id: &file_id, revision_id: &revision_id };
    assert_within(&json(&ours), &captured(capture, "/v2/file/revision/restore")[0], &[]);
}

#[test]
fn golden_recycle_bin_calls_match_captures() {
    let capture = "py_versions_trash_search_shares.json";
    let (drive_id, file_id) = (drive(), file());
    let ours = RecycleBinRequest { drive_id: &drive_id, limit: 100, marker: "M1", fields: "*" };
    assert_within(&json(&ours), &captured(capture, "/v2/recyclebin/list")[0], &[]);
    let ours = FileRequest { drive_id: &drive_id, file_id: &file_id };
    assert_within(&json(&ours), &captured(capture, "/v2/recyclebin/restore")[0], &[]);
    assert_within(&json(&ours), &captured(capture, "/v2/file/delete")[0], &[]);
}
