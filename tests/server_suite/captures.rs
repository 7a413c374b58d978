//! The genuine requests of the two official SDKs, replayed byte for byte where they can be: only
//! ids, URLs and etags are those that our server gave, and the bytes of parts are made anew and
//! held against the recorded hashes.

use std::collections::HashMap;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use pdsfs::ids::Secret;
use pdsfs::server::{AccessKey, FaultAction, FaultRule, HashName, ServerConfig};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::http::{Answer, send};
use super::rig::{Rig, bytes, sha1, text};

/// The fixture of all recordings: 20 MiB of chained SHA-256.
fn f20m() -> Vec<u8> {
    let blocks = (0u32..).flat_map(|i| Sha256::digest(format!("pds-fixture-{i}")).to_vec());
    blocks.take(20_971_520).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from_digit(digit.into(), 16).unwrap())
        .collect()
}

/// Sees a request before it is sent: its number, target and body.
type Before<'a> = Box<dyn FnMut(&Rig, usize, &str, &[u8]) + 'a>;

struct Replay<'a> {
    rig: &'a Rig,
    content: &'a [u8],
    /// Recorded words and what they are here: ids and etags.
    words: HashMap<String, Value>,
    /// Recorded targets and what they are here.
    targets: HashMap<String, String>,
    /// Where each part begins.
    offsets: HashMap<u64, usize>,
    before: Before<'a>,
}

impl<'a> Replay<'a> {
    fn new(rig: &'a Rig, content: &'a [u8]) -> Self {
        Self {
            rig,
            content,
            words: HashMap::new(),
            targets: HashMap::new(),
            offsets: HashMap::new(),
            before: Box::new(|_, _, _, _| {}),
        }
    }

    /// Replays a recording. Statuses must be those recorded, but for `other`.
    fn run(&mut self, name: &str, other: &[(usize, u16)]) -> Vec<Answer> {
        let path = format!("{}/tests/fixtures/captures/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let entries: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut answers = Vec::new();
        for (number, entry) in entries.iter().enumerate() {
            let answer = self.step(number, entry);
            let recorded = entry["response"]["status"].as_u64().unwrap();
            let expected =
                other.iter().find(|(at, _)| *at == number).map_or(recorded, |(_, s)| u64::from(*s));
            assert_eq!(
                u64::from(answer.status),
                expected,
                "{name} #{number} {} {}: {}",
                entry["method"],
                entry["target"],
                answer.text()
            );
            self.learn(entry, &answer);
            answers.push(answer);
        }
        answers
    }

    fn step(&mut self, number: usize, entry: &Value) -> Answer {
        let (method, target) = (text(&entry["method"]), text(&entry["target"]));
        let target = self.targets.get(&target).cloned().unwrap_or(target);
        let body = self.body(&method, &target, &entry["body"]);
        let headers = Self::headers(&entry["headers"], &method, &target, &body);
        (self.before)(self.rig, number, &target, &body);
        send(self.rig.addr(), &method, &target, &headers, &body).unwrap()
    }

    fn body(&mut self, method: &str, target: &str, recorded: &Value) -> Vec<u8> {
        if method == "PUT" {
            let part =
                target.split("partNumber=").nth(1).unwrap().split('&').next().unwrap().parse().unwrap();
            let offset = self.offsets.get(&part).copied().unwrap_or(0);
            let len = usize::try_from(recorded["len"].as_u64().unwrap()).unwrap();
            let bytes = &self.content[offset..offset + len];
            assert_eq!(sha1(bytes), text(&recorded["sha1"]), "the fixture is not the recorded one");
            return bytes.to_vec();
        }
        if let Some(parts) = recorded["part_info_list"].as_array() {
            for part in parts {
                let at = [&part["from"], &part["parallel_sha1_ctx"]["part_offset"]]
                    .into_iter()
                    .find_map(Value::as_u64);
                if let Some(at) = at {
                    self.offsets.insert(part["part_number"].as_u64().unwrap(), usize::try_from(at).unwrap());
                }
            }
        }
        match recorded {
            Value::Null => Vec::new(),
            Value::String(form) => form.clone().into_bytes(),
            body => self.translate(body).to_string().into_bytes(),
        }
    }

    fn translate(&self, value: &Value) -> Value {
        match value {
            Value::String(word) => self.words.get(word).cloned().unwrap_or_else(|| value.clone()),
            Value::Array(items) => items.iter().map(|item| self.translate(item)).collect(),
            Value::Object(map) => map.iter().map(|(key, item)| (key.clone(), self.translate(item))).collect(),
            other => other.clone(),
        }
    }

    fn headers(recorded: &Value, method: &str, target: &str, body: &[u8]) -> Vec<(String, String)> {
        let mut headers: Vec<(String, String)> = serde_json::from_value(recorded.clone()).unwrap();
        headers.retain(|(name, _)| !["host", "content-length"].contains(&name.to_lowercase().as_str()));
        let get =
            |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
        // This scheme signs the body, and so the ids in it. Where those are ours, so is the
        // signature; where the body is the recorded one, it is genuine.
        if let Some(signed_hash) = get("x-acs-content-sha256") {
            let hash = hex(&Sha256::digest(body));
            if hash != signed_hash {
                let signature = acs4(
                    method,
                    target,
                    &hash,
                    &get("date").unwrap(),
                    &get("x-acs-action").unwrap(),
                    &get("x-acs-signature-nonce").unwrap(),
                );
                for (name, value) in &mut headers {
                    if name == "x-acs-content-sha256" {
                        value.clone_from(&hash);
                    } else if name == "Authorization" {
                        let start = value.find("Signature=").unwrap();
                        value.replace_range(start.., &format!("Signature={signature}"));
                    }
                }
            }
        }
        headers
    }

    /// Pairs what was answered then with what was answered now.
    fn learn(&mut self, entry: &Value, answer: &Answer) {
        if entry["method"] == "PUT" {
            if let (Some(then), Some(now)) =
                (entry["response"]["headers"]["ETag"].as_str(), answer.header("etag"))
            {
                self.words.insert(then.to_owned(), json!(now));
            }
            return;
        }
        if entry["method"] != "POST" {
            return;
        }
        let (then, now) = (&entry["response"]["body"], &answer.json());
        for id in ["file_id", "upload_id", "revision_id"] {
            if let (Some(then), Some(now)) = (then[id].as_str(), now[id].as_str()) {
                self.words.insert(then.to_owned(), json!(now));
            }
        }
        for part in then["uploaded_parts"].as_array().into_iter().flatten() {
            let ours = now["uploaded_parts"].as_array().into_iter().flatten();
            let ours = ours.into_iter().find(|ours| ours["part_number"] == part["part_number"]);
            self.words.insert(text(&part["etag"]), ours.unwrap()["etag"].clone());
        }
        let mut urls = vec![(then["url"].clone(), now["url"].clone())];
        for part in then["part_info_list"].as_array().into_iter().flatten() {
            let ours = now["part_info_list"].as_array().into_iter().flatten();
            let ours = ours.into_iter().find(|ours| ours["part_number"] == part["part_number"]);
            urls.push((
                part["upload_url"].clone(),
                ours.map_or(Value::Null, |ours| ours["upload_url"].clone()),
            ));
        }
        for (then, now) in urls {
            if let (Some(then), Some(now)) = (then.as_str(), now.as_str()) {
                let path = then.splitn(4, '/').nth(3).unwrap();
                self.targets.insert(format!("/{path}"), self.rig.path_of(now));
            }
        }
    }
}

/// The signature of the second scheme, for the key and the scope of the recordings.
fn acs4(method: &str, target: &str, body_hash: &str, date: &str, action: &str, nonce: &str) -> String {
    let hmac = |key: &[u8], text: &[u8]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(text);
        mac.finalize().into_bytes().to_vec()
    };
    let canonical = format!(
        "{method}\n{target}\napplication/json\n\napplication/json; charset=utf-8\n{date}\n\
         x-acs-action:{action}\nx-acs-content-sha256:{body_hash}\nx-acs-signature-nonce:{nonce}\n\
         x-acs-version:2022-03-01\n\nx-acs-action;x-acs-content-sha256;x-acs-signature-nonce;x-acs-version\n{body_hash}"
    );
    let text = format!("ACS4-HMAC-SHA256\n{}", hex(&Sha256::digest(canonical)));
    let mut key = b"aliyun_v4SECRET".to_vec();
    for step in ["Mon, 23 No", "center", "pds", "aliyun_v4_request"] {
        key = hmac(&key, step.as_bytes());
    }
    hex(&hmac(&key, text.as_bytes()))
}

const F20M_SHA1: &str = "257F8B21431BB4A0ADC8A6613CF4EDE3B906166C";

/// Replays a recording on a fresh server and checks that the last `complete` gave the fixture.
fn replay(name: &str, tweak: impl FnOnce(&mut ServerConfig), prepare: impl FnOnce(&Rig)) {
    let rig = Rig::with(tweak);
    prepare(&rig);
    let content = f20m();
    let answers = Replay::new(&rig, &content).run(name, &[]);
    is_fixture(answers.last().unwrap(), &content, &rig);
}

fn is_fixture(completed: &Answer, content: &[u8], rig: &Rig) {
    let file = completed.json();
    assert_eq!(text(&file["content_hash"]), F20M_SHA1);
    assert_eq!(text(&file["crc64_hash"]), "7348696088977073625");
    assert!(rig.read(&text(&file["file_id"])) == content);
}

#[test]
fn js_parallel() {
    for name in
        ["js_parallel_20m", "js_parallel_20m_4MiBparts", "js_parallel_20m_ignore_rapid", "js_parallel_resume"]
    {
        replay(name, |_| {}, |_| {});
    }
}

#[test]
fn js_parallel_where_a_url_expires() {
    replay(
        "js_parallel_20m_url_expired",
        |_| {},
        |rig| rig.faults().add(FaultRule::times("put_part", 1, FaultAction::Expire).part(2)),
    );
}

#[test]
fn js_parallel_where_the_server_is_busy() {
    let busy = FaultAction::Status {
        status: 429,
        code: "TooManyRequests".into(),
        message: String::new(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: false,
    };
    replay("js_parallel_429", |_| {}, |rig| rig.faults().add(FaultRule::times("file/create", 1, busy)));
}

#[test]
fn js_parallel_empty() {
    let rig = Rig::new();
    let answers = Replay::new(&rig, b"").run("js_parallel_empty", &[]);
    let file = answers.last().unwrap().json();
    assert_eq!((&file["size"], &file["crc64_hash"]), (&json!(0), &json!("0")));
    assert_eq!(text(&file["content_hash"]), "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709");
    assert_eq!(rig.read(&text(&file["file_id"])), b"");
}

#[test]
fn js_parallel_overwrite() {
    let rig = Rig::new();
    let old = rig.save("root", "f20m.bin", b"old");
    let content = f20m();
    // The stub answered 200 where the documents have 201.
    let answers = Replay::new(&rig, &content).run("js_parallel_overwrite", &[(0, 201)]);
    assert_eq!(answers[0].json()["exist"], true);
    let new = answers.last().unwrap().json();
    assert_eq!(new["file_id"], old["file_id"]);
    is_fixture(answers.last().unwrap(), &content, &rig);
    assert_eq!(rig.names("root"), ["f20m.bin"]);
}

#[test]
fn js_parallel_sha256() {
    let rig = Rig::with(|config| config.quirks.hash_name = HashName::Sha256);
    let content = f20m();
    let answers = Replay::new(&rig, &content).run("js_parallel_sha256", &[]);
    let file = answers.last().unwrap().json();
    assert_eq!(file["content_hash_name"], "sha256");
    assert_eq!(
        text(&file["content_hash"]),
        "CEC81B52E4842C6D415548F573630EA6CD95897CB5F3237E8C0AE4027EA4B57A"
    );
}

#[test]
fn js_serial() {
    replay("js_serial_20m", |_| {}, |_| {});
}

#[test]
fn js_serial_with_a_pre_hash() {
    replay(
        "js_serial_20m_prehash",
        |_| {},
        |rig| {
            // Other content that begins with the same KiB and has the same size.
            let mut other = bytes(1, 20_971_520);
            other[..1024].copy_from_slice(&f20m()[..1024]);
            rig.save("root", "other", &other);
        },
    );
}

#[test]
fn js_serial_where_an_answer_was_lost() {
    let rig = Rig::new();
    let content = f20m();
    let bad_request = FaultAction::Status {
        status: 400,
        code: "PartNotSequential".into(),
        message:
            "For sequential multipart upload, you must upload or complete parts with sequential part number."
                .into(),
        retry_after_s: None,
        x_retry_after_ms: None,
        empty_body: false,
    };
    rig.faults().add(FaultRule::times("put_part", 1, bad_request).part(2));
    let mut replay = Replay::new(&rig, &content);
    // Part 1 arrives, but its sender does not hear so and sends it again.
    replay.before = Box::new(|rig, number, target, body| {
        if number == 1 {
            assert_eq!(send(rig.addr(), "PUT", target, &[], body).unwrap().status, 200);
        }
    });
    // Its sender reads the etag from the refusal or the listing; both have it.
    let answers = replay.run("js_serial_20m_409_400", &[]);
    let listed = answers[2].json();
    let etag = text(&listed["uploaded_parts"][0]["etag"]);
    assert!(answers[1].text().contains(etag.trim_matches('"')));
    assert_eq!(listed["uploaded_parts"][0]["part_size"], 8_388_672);
    is_fixture(answers.last().unwrap(), &content, &rig);
}

#[test]
fn js_download() {
    let rig = Rig::new();
    let content = f20m();
    let answers = Replay::new(&rig, &content).run("js_download", &[]);
    let mut all = Vec::new();
    for answer in &answers[5..9] {
        assert_eq!(answer.header("x-oss-hash-crc64ecma").unwrap(), "7348696088977073625");
        let range = format!("bytes {}-{}/20971520", all.len(), all.len() + answer.body.len() - 1);
        assert_eq!(answer.header("content-range").unwrap(), range);
        all.extend_from_slice(&answer.body);
    }
    assert!(all == content);
    assert_eq!(text(&answers[9].json()["crc64_hash"]), "7348696088977073625");
}

#[test]
fn js_operations() {
    let rig = Rig::with(|config| {
        config.logins.refresh_token = Some(Secret::new("RT".to_owned()));
        config.logins.codes = vec![Secret::new("CODE".to_owned())];
        config.logins.client_ids = vec!["app1".to_owned()];
        // The recording uses one refresh token twice.
        config.quirks.rotate_refresh_token = false;
    });
    let target = rig.mkdir("root", "target");
    let mut replay = Replay::new(&rig, b"hello world");
    replay.words.insert("P".into(), json!(target));
    let other = [
        (9, 201),  // copy: the documents have 201
        (15, 404), // get_by_path of what is not there
        (16, 404), // revisions of what was deleted
        (23, 400), // an assertion, which needs a public key that nobody gave us
    ];
    let answers = replay.run("js_ops", &other);
    let json = |number: usize| answers[number].json();
    assert_eq!(json(4)["name"], "a.txt");
    assert_eq!(json(5)["items"].as_array().unwrap().len(), 3);
    assert_eq!((&json(6)["name"], &json(7)["hidden"]), (&json!("b.txt"), &json!(true)));
    assert_eq!(json(8)["async_task_id"], "");
    assert_eq!(rig.names(&target).len(), 1, "the copy; what was moved is deleted");
    assert_eq!(json(13)["responses"][0]["status"], 404);
    assert_eq!(json(14)["result_code"], "");
    assert_eq!(json(17)["items"][0]["drive_id"], "1");
    assert_eq!(json(18)["drive_id"], "1");
    for number in [20, 21, 22] {
        let token = json(number);
        assert!(token["expires_in"] == 7200 && token["token_type"] == "Bearer");
        assert!(text(&token["access_token"]).len() >= 32 && text(&token["refresh_token"]).len() >= 2);
    }
}

fn with_key(config: &mut ServerConfig) {
    let century = Duration::from_secs(100 * 365 * 24 * 3600);
    let key = AccessKey::new("AKID", Secret::new("SECRET".to_owned()));
    config.access_key = Some(AccessKey { date_skew_max: century, ..key });
}

#[test]
fn python_with_a_token_and_with_both_kinds_of_signature() {
    for name in ["py_parallel_20m_bearer", "py_parallel_20m_ak", "py_parallel_20m_ak4"] {
        let rig = Rig::with(with_key);
        let content = f20m();
        let mut replay = Replay::new(&rig, &content);
        let answers = replay.run(name, &[]);
        let file = answers[6].json();
        assert_eq!(text(&file["content_hash"]), F20M_SHA1);
        assert_eq!(file["user_tags"], json!({"k": "v"}));
        assert_eq!(file["local_modified_at"], "2026-01-02T03:04:05Z");
        assert_eq!(answers[8].json()["items"][0]["file_id"], file["file_id"]);
        assert!(answers[10].body.is_empty());
        assert_eq!(answers[11].json()["code"], "NotFound.File");
    }
}

#[test]
fn signatures_of_another_key_or_another_day_are_refused() {
    let wrong = Rig::with(|config| {
        with_key(config);
        config.access_key.as_mut().unwrap().secret = Secret::new("OTHER".to_owned());
    });
    let late = Rig::with(|config| {
        config.access_key = Some(AccessKey::new("AKID", Secret::new("SECRET".to_owned())));
    });
    late.runtime.block_on(late.server().advance_clock(Duration::from_secs(7 * 24 * 3600)));
    let none = Rig::new();
    for (rig, names) in [
        (&wrong, &["py_parallel_20m_ak", "py_parallel_20m_ak4"][..]),
        (&late, &["py_parallel_20m_ak"]),
        (&none, &["py_parallel_20m_ak4"]),
    ] {
        for name in names {
            let path = format!("{}/tests/fixtures/captures/{name}.json", env!("CARGO_MANIFEST_DIR"));
            let entries: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            let answer = Replay::new(rig, b"").step(0, &entries[0]);
            assert_eq!(
                (answer.status, text(&answer.json()["code"])),
                (401, "SignatureNotMatch".into()),
                "{name}"
            );
        }
    }
}
