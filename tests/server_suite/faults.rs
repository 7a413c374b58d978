//! Every fault that a plan can have, and its effect on a client.

use std::time::{Duration, Instant};

use pdsfs::server::{FaultAction, FaultPlan, FaultRule};
use serde_json::{Value, json};

use super::http::send;
use super::rig::{Rig, bytes, header, of_upload, sha1, text};

fn status(status: u16, code: &str) -> FaultAction {
    FaultAction::Status {
        status,
        code: code.into(),
        message: "ordered".into(),
        retry_after_s: Some(7),
        x_retry_after_ms: Some(1500),
        empty_body: false,
    }
}

fn begin(rig: &Rig) -> (Value, String) {
    let begun = rig
        .ok("file/create", json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "file"}));
    let url = text(&begun["part_info_list"][0]["upload_url"]);
    (begun, url)
}

fn download_url(rig: &Rig, content: &[u8]) -> String {
    let file = rig.save("root", "n", content);
    text(&rig.ok("file/get_download_url", json!({"drive_id": "1", "file_id": file["file_id"]}))["url"])
}

const ROOT: &str = r#"{"drive_id": "1", "parent_file_id": "root"}"#;

fn list_root() -> Value {
    serde_json::from_str(ROOT).unwrap()
}

#[test]
fn errors_use_the_format_of_the_endpoint() {
    let rig = Rig::new();
    rig.faults().add(FaultRule::times("file/list", 1, status(429, "TooManyRequests")));
    let answer = rig.try_call("file/list", &list_root()).unwrap();
    assert_eq!((answer.status, answer.json()["code"].as_str().unwrap()), (429, "TooManyRequests"));
    assert_eq!((answer.header("retry-after"), answer.header("x-retry-after")), (Some("7"), Some("1500")));
    assert!(answer.header("x-ca-request-id").is_some());
    rig.ok("file/list", list_root());
    let empty = FaultAction::Status {
        status: 503,
        code: String::new(),
        message: String::new(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: true,
    };
    rig.faults().add(FaultRule::times("file/*", 1, empty));
    let answer = rig.try_call("file/list", &list_root()).unwrap();
    assert_eq!((answer.status, answer.body.len(), answer.header("retry-after")), (503, 0, None));
    let (begun, url) = begin(&rig);
    rig.faults().add(FaultRule::times("put_part", 1, status(503, "ServiceUnavailable")).part(1));
    let answer = rig.put(&url, &bytes(1, 300_000));
    assert_eq!(answer.status, 503);
    assert!(answer.text().starts_with("<?xml") && answer.text().contains("<Code>ServiceUnavailable</Code>"));
    assert_eq!(rig.put(&url, b"x").status, 200);
    rig.ok("file/complete", of_upload(&begun));
    assert_eq!(rig.faults().hits(), [1, 1, 1]);
}

#[test]
fn cut_part_leaves_previous_part_or_nothing() {
    let rig = Rig::new();
    let content = bytes(2, 3_000_000);
    let (begun, url) = begin(&rig);
    rig.faults().add(FaultRule::times("put_part", 1, FaultAction::Cut { bytes: 1_000_000 }));
    assert!(rig.try_put(&url, &content).is_err());
    let parts = |rig: &Rig| rig.ok("file/list_uploaded_parts", of_upload(&begun))["uploaded_parts"].clone();
    assert_eq!(parts(&rig), json!([]));
    assert_eq!(rig.put(&url, &content).status, 200);
    assert_eq!(parts(&rig)[0]["part_size"], 3_000_000);
    let file = rig.ok("file/complete", of_upload(&begun));
    assert_eq!(text(&file["content_hash"]), sha1(&content));
    let parallel = json!({
        "drive_id": "1", "parent_file_id": "root", "name": "p", "type": "file", "parallel_upload": true,
    });
    let begun = rig.ok("file/create", parallel);
    let url = text(&begun["part_info_list"][0]["upload_url"]);
    assert_eq!(rig.put(&url, b"before").status, 200);
    rig.faults().add(FaultRule::times("put_part", 1, FaultAction::Cut { bytes: 0 }));
    assert!(rig.try_put(&url, b"after!").is_err());
    let file = rig.ok("file/complete", of_upload(&begun));
    assert_eq!(rig.read(&text(&file["file_id"])), b"before");
}

#[test]
fn early_answer_discards_the_part() {
    let rig = Rig::new();
    let (begun, url) = begin(&rig);
    rig.faults().add(FaultRule::times("put_part", 1, FaultAction::AnswerEarly { bytes: 1000 }));
    let answer = rig.put(&url, &bytes(1, 300_000));
    assert_eq!((answer.status, answer.header("x-oss-hash-crc64ecma")), (200, None));
    assert_eq!(rig.ok("file/list_uploaded_parts", of_upload(&begun))["uploaded_parts"], json!([]));
    assert_eq!(rig.put(&url, b"x").status, 200);
    rig.ok("file/complete", of_upload(&begun));
}

#[test]
fn stats_count_connections_and_sent_bytes() {
    let rig = Rig::new();
    let content = bytes(1, 2_000_000);
    let url = download_url(&rig, &content);
    assert_eq!(rig.get(&url, Some("bytes=0-1499999")).body.len(), 1_500_000);
    let stats = rig.server().stats();
    assert_eq!((stats.sent_bytes, stats.connections_peak > 0), (1_500_000, true));
    rig.runtime.block_on(rig.server().wait_until(|stats| stats.connections == 0));
}

#[test]
fn answer_can_be_lost_after_the_work() {
    let rig = Rig::new();
    let (begun, url) = begin(&rig);
    rig.faults().add(FaultRule::times("put_part", 1, FaultAction::CloseAfter));
    assert!(rig.try_put(&url, b"bytes").is_err());
    rig.faults().add(FaultRule::times("file/complete", 1, FaultAction::CloseAfter));
    assert!(rig.try_call("file/complete", &of_upload(&begun)).is_err());
    let file = rig.ok("file/get", json!({"drive_id": "1", "file_id": begun["file_id"]}));
    assert_eq!(text(&file["content_hash"]), sha1(b"bytes"));
    rig.refused("file/complete", of_upload(&begun), 404, "NotFound.UploadId");
}

#[test]
fn reset_does_no_work() {
    let rig = Rig::new();
    rig.faults().add(FaultRule::times("file/create", 1, FaultAction::Reset));
    let create = json!({"drive_id": "1", "parent_file_id": "root", "name": "n", "type": "folder"});
    let error = rig.try_call("file/create", &create).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(rig.names("root").is_empty());
    assert_eq!(rig.server().stats().statuses["file/create 0"], 1);
}

#[test]
fn stalled_request_blocks_no_other() {
    let rig = Rig::new();
    rig.faults().add(FaultRule::new("file/list", FaultAction::Stall));
    std::thread::scope(|scope| {
        let stalled = scope.spawn(|| rig.try_call("file/list", &list_root()).unwrap().status);
        rig.runtime.block_on(rig.faults().wait_for_hits(1));
        rig.ok("drive/get", json!({"drive_id": "1"}));
        rig.save("root", "n", b"x");
        assert!(!stalled.is_finished());
        rig.faults().clear();
        assert_eq!(stalled.join().unwrap(), 200);
    });
}

#[test]
fn expired_url_fault_expires_the_url() {
    let rig = Rig::new();
    let (begun, url) = begin(&rig);
    rig.faults().add(FaultRule::times("put_part", 1, FaultAction::Expire));
    let answer = rig.put(&url, b"x");
    assert!(
        answer.status == 403 && answer.text().contains("AccessDenied") && answer.text().contains("expired")
    );
    assert_eq!(rig.put(&url, b"x").status, 200);
    rig.ok("file/complete", of_upload(&begun));
}

#[test]
fn downloads_can_be_truncated_and_corrupted() {
    let rig = Rig::new();
    for len in [1000, 2_000_000] {
        let content = bytes(3, len);
        let url = download_url(&rig, &content);
        rig.faults().add(FaultRule::times("get_object", 1, FaultAction::Cut { bytes: 500 }));
        let cut = rig.get(&url, None);
        assert!(cut.is_cut && cut.body == content[..500] && cut.status == 200, "{} bytes", cut.body.len());
        rig.faults().add(FaultRule::times("get_object", 1, FaultAction::Short { bytes: 400 }));
        let short = rig.get(&url, Some("bytes=100-899"));
        assert!(!short.is_cut && short.body == content[100..500] && short.status == 206);
        assert_eq!(short.header("content-range").unwrap(), format!("bytes 100-899/{len}"));
        rig.faults().add(FaultRule::times("get_object", 1, FaultAction::Corrupt));
        let corrupt = rig.get(&url, None);
        assert_eq!(corrupt.body.len(), len);
        let flipped: u32 = corrupt.body.iter().zip(&content).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(flipped, 1);
        assert!(rig.get(&url, None).body == content);
    }
}

#[test]
fn range_requests_return_the_range() {
    let rig = Rig::new();
    let content = bytes(4, 1_500_000);
    let url = download_url(&rig, &content);
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1-1499999", 1, 1_500_000),
        ("bytes=-5", 1_499_995, 1_500_000),
        ("bytes=700000-", 700_000, 1_500_000),
    ] {
        let answer = rig.get(&url, Some(range));
        assert!(answer.status == 206 && answer.body == content[from..to], "{range}");
        assert_eq!(answer.header("content-range").unwrap(), format!("bytes {from}-{}/1500000", to - 1));
    }
    let beyond = rig.get(&url, Some("bytes=1500000-"));
    assert!(beyond.status == 416 && beyond.text().contains("InvalidRange"));
    let head = send(rig.addr(), "HEAD", &rig.path_of(&url), &[], b"").unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("1500000")));
    rig.runtime.block_on(rig.server().advance_clock(Duration::from_secs(901)));
    let expired = rig.get(&url, None);
    assert!(expired.status == 403 && expired.text().contains("expired"));
    let whole = Rig::with(|config| config.quirks.ignore_range = true);
    let url = download_url(&whole, &content);
    let answer = whole.get(&url, Some("bytes=0-0"));
    assert!(answer.status == 200 && answer.body == content);
}

#[test]
fn bodies_are_throttled() {
    let rig = Rig::new();
    let content = bytes(5, 600_000);
    let url = download_url(&rig, &content);
    let (_, put_url) = begin(&rig);
    let throttle = FaultAction::Throttle { bytes_per_s: 3_000_000 };
    rig.faults().set(FaultPlan { rules: vec![FaultRule::new("*", throttle)] });
    for run in [0, 1] {
        let begun = Instant::now();
        let status = if run == 0 { rig.get(&url, None).status } else { rig.put(&put_url, &content).status };
        assert_eq!(status, 200);
        let elapsed_ms = begun.elapsed().as_millis();
        assert!(elapsed_ms >= 190, "600,000 bytes took {elapsed_ms} ms");
    }
    assert!(rig.faults().hits()[0] >= 2);
}

#[test]
fn delay_fault_delays_the_answer() {
    let rig = Rig::new();
    rig.faults().add(FaultRule::times("drive/get", 1, FaultAction::Delay { ms: 60 }));
    let begun = Instant::now();
    rig.ok("drive/get", json!({"drive_id": "1"}));
    assert!(begun.elapsed() >= Duration::from_millis(60));
}

#[test]
fn revoked_token_stays_until_plan_changes() {
    let rig = Rig::new();
    rig.faults().add(FaultRule::times("file/get", 1, FaultAction::Revoke));
    let get = json!({"drive_id": "1", "file_id": "root"});
    rig.refused("file/get", get.clone(), 401, "AccessTokenInvalid");
    rig.refused("drive/get", json!({"drive_id": "1"}), 401, "AccessTokenInvalid");
    rig.faults().clear();
    rig.ok("file/get", get);
}

#[test]
fn api_answers_can_be_truncated() {
    let rig = Rig::new();
    rig.faults().add(FaultRule::times("file/list", 1, FaultAction::Cut { bytes: 5 }));
    let cut = rig.try_call("file/list", &list_root()).unwrap();
    assert!(cut.is_cut && cut.body.len() == 5);
}

#[test]
fn faults_and_stats_are_served_over_http() {
    let rig = Rig::new();
    let owner = [header("Authorization", "Bearer AT")];
    let call = |method: &str, path: &str, body: &str| {
        send(rig.addr(), method, path, &owner, body.as_bytes()).unwrap()
    };
    let plan = r#"{"rules":[{"endpoint":"file/list","times":1,"action":{"status":{"status":500,"code":"InternalError"}}}]}"#;
    assert_eq!(call("POST", "/_pdsfs/faults", plan).status, 200);
    assert_eq!(rig.call("file/list", list_root()).0, 500);
    let shown = call("GET", "/_pdsfs/faults", "").json();
    assert_eq!((&shown["hits"], &shown["rules"][0]["endpoint"]), (&json!([1]), &json!("file/list")));
    assert_eq!(call("POST", "/_pdsfs/faults", r#"{"rulez":[]}"#).status, 400);
    let (_, url) = begin(&rig);
    rig.put(&url, b"four");
    let uploads = call("GET", "/_pdsfs/uploads", "").json();
    assert_eq!(uploads[0]["name"], "n");
    assert_eq!(uploads[0]["parts"], json!([{"part_number": 1, "part_size": 4}]));
    let stats = call("GET", "/_pdsfs/stats", "").json();
    assert_eq!((&stats["requests"]["put_part"], &stats["received_bytes"]), (&json!(1), &json!(4)));
    assert_eq!(call("POST", "/_pdsfs/clock", r#"{"advance_s":901}"#).status, 200);
    assert_eq!(rig.put(&url, b"four").status, 403);
    for headers in [vec![], vec![header("Authorization", "Bearer other")]] {
        assert_eq!(send(rig.addr(), "GET", "/_pdsfs/stats", &headers, b"").unwrap().status, 401);
    }
}

#[test]
fn fault_can_hit_one_call_of_a_batch() {
    let rig = Rig::new();
    rig.faults().add(FaultRule::times("file/update", 1, status(403, "ForbiddenNoPermission.File")).after(1));
    let ids: Vec<_> = ["a", "b", "c"].iter().map(|name| rig.mkdir("root", name)).collect();
    let requests: Vec<_> = ids
        .iter()
        .map(|id| {
            json!({"id": id, "method": "POST", "url": "/file/update",
                   "headers": {"Content-Type": "application/json"}, "body": {"drive_id": "1", "file_id": id, "hidden": true}})
        })
        .collect();
    let answer = rig.ok("batch", json!({"resource": "file", "requests": requests}));
    let statuses: Vec<_> =
        answer["responses"].as_array().unwrap().iter().map(|r| r["status"].clone()).collect();
    assert_eq!(statuses, [200, 403, 200]);
}

#[test]
fn stats_show_an_upload_in_progress() {
    let rig = Rig::new();
    let create = json!({"drive_id": "1", "parent_file_id": "root", "name": "live", "type": "file", "parallel_upload": true});
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let begun = rig.ok("file/create", create);
            rig.put(begun["part_info_list"][0]["upload_url"].as_str().unwrap(), &[0; 64]);
        });
        rig.runtime.block_on(rig.server().wait_until(|stats| {
            let live = stats.open_uploads.iter().find(|upload| upload.name.as_deref() == Some("live"));
            live.is_some_and(|live| {
                live.parts.iter().any(|part| part.part_number == 1 && part.part_size == 64)
            })
        }));
    });
    assert_eq!(rig.server().stats().count("put_part"), 1);
}
