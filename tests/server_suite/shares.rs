//! Share links, and calls through them without other credentials.

use std::time::Duration;

use serde_json::{Value, json};

use super::http::send;
use super::rig::{Rig, header, text};

/// A call with these headers only.
fn call_with(rig: &Rig, headers: &[(String, String)], endpoint: &str, body: &Value) -> (u16, Value) {
    let answer =
        send(rig.addr(), "POST", &format!("/v2/{endpoint}"), headers, body.to_string().as_bytes()).unwrap();
    (answer.status, answer.json())
}

fn anonymous(rig: &Rig, endpoint: &str, body: &Value) -> (u16, Value) {
    call_with(rig, &[], endpoint, body)
}

/// A visitor of a share: nothing but its token.
struct Visitor<'a> {
    rig: &'a Rig,
    share_id: String,
    token: String,
}

impl<'a> Visitor<'a> {
    fn of(rig: &'a Rig, settings: Value) -> Self {
        let mut create = json!({"drive_id": "1", "share_pwd": "s3cret"});
        create.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let share_id = text(&rig.ok("share_link/create", create)["share_id"]);
        let ask = json!({"share_id": share_id, "share_pwd": "s3cret"});
        let (status, answer) = anonymous(rig, "share_link/get_share_token", &ask);
        assert_eq!(status, 200, "{answer}");
        Self { rig, share_id, token: text(&answer["share_token"]) }
    }

    fn call(&self, endpoint: &str, more: Value) -> (u16, Value) {
        let mut body = json!({"share_id": self.share_id});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        call_with(self.rig, &[header("x-share-token", &self.token)], endpoint, &body)
    }

    fn ok(&self, endpoint: &str, more: Value) -> Value {
        let (status, answer) = self.call(endpoint, more.clone());
        assert!((200..300).contains(&status), "{endpoint} {more}: {status} {answer}");
        answer
    }

    fn refused(&self, endpoint: &str, more: Value) -> (u16, String) {
        let (status, answer) = self.call(endpoint, more);
        (status, answer["code"].as_str().unwrap_or("").to_owned())
    }
}

/// `/aa/bb/cc/file` and `/aa/secret`.
fn tree(rig: &Rig) -> [String; 5] {
    let aa = rig.mkdir("root", "aa");
    let bb = rig.mkdir(&aa, "bb");
    let cc = rig.mkdir(&bb, "cc");
    let file = text(&rig.save(&cc, "file", b"shared")["file_id"]);
    let secret = text(&rig.save(&aa, "secret", b"secret")["file_id"]);
    [aa, bb, cc, file, secret]
}

#[test]
fn visitor_sees_the_shared_objects_only() {
    let rig = Rig::new();
    let [aa, bb, cc, file, secret] = tree(&rig);
    let visitor = Visitor::of(&rig, json!({"file_id_list": [bb]}));
    let root = visitor.ok("file/list", json!({"parent_file_id": "root", "fields": "*"}));
    let item = &root["items"][0];
    assert_eq!((&item["file_id"], &item["share_id"]), (&json!(bb), &json!(visitor.share_id)));
    assert_eq!((&item["parent_file_id"], root["items"][1].is_null()), (&json!("root"), true));
    let inner = visitor.ok("file/get", json!({"file_id": cc}));
    assert_eq!((&inner["parent_file_id"], &inner["share_id"]), (&json!(bb), &json!(visitor.share_id)));
    let listed = visitor.ok("file/list", json!({"parent_file_id": cc}));
    assert_eq!(listed["items"][0]["file_id"], json!(file));
    let url = text(&visitor.ok("file/get_download_url", json!({"file_id": file}))["url"]);
    assert_eq!(rig.get(&url, None).body, b"shared");
    for (endpoint, ask) in [
        ("file/get", json!({"file_id": aa})),
        ("file/get", json!({"file_id": secret})),
        ("file/list", json!({"parent_file_id": aa})),
        ("file/get_download_url", json!({"file_id": secret, "drive_id": "1"})),
    ] {
        assert_eq!(visitor.refused(endpoint, ask.clone()), (404, "NotFound.File".into()), "{endpoint} {ask}");
    }
    for (endpoint, ask) in [
        ("file/delete", json!({"file_id": file})),
        ("file/update", json!({"file_id": file, "name": "x"})),
        ("file/search", json!({"query": ""})),
        ("file/copy", json!({"file_id": file, "to_parent_file_id": "root"})),
        ("file/create", json!({"parent_file_id": cc, "name": "x", "type": "folder"})),
    ] {
        assert_eq!(visitor.refused(endpoint, ask).0, 403, "{endpoint}");
    }
}

#[test]
fn share_token_is_no_other_credential() {
    let rig = Rig::new();
    let [_, bb, ..] = tree(&rig);
    let visitor = Visitor::of(&rig, json!({"file_id_list": [bb]}));
    let token = header("x-share-token", &visitor.token);
    for endpoint in ["drive/get", "file/get", "file/list", "share_link/list", "domain/get"] {
        let body = json!({"drive_id": "1", "file_id": bb, "parent_file_id": "root"});
        let (status, answer) = call_with(&rig, std::slice::from_ref(&token), endpoint, &body);
        assert_eq!((status, &answer["code"]), (401, &json!("AccessTokenInvalid")), "{endpoint}");
    }
    let sub = json!({"id": "1", "method": "POST", "url": "/file/delete",
        "headers": {"Content-Type": "application/json"}, "body": {"drive_id": "1", "file_id": bb}});
    let (status, answer) =
        call_with(&rig, std::slice::from_ref(&token), "batch", &json!({"requests": [sub]}));
    assert_eq!((status, &answer["responses"][0]["status"]), (200, &json!(401)), "{answer}");
    let path = format!("/v2/file/download?drive_id=1&file_id={bb}");
    assert_eq!(send(rig.addr(), "GET", &path, std::slice::from_ref(&token), b"").unwrap().status, 401);
    let other = Visitor::of(&rig, json!({"file_id_list": [bb]}));
    let foreign = Visitor { rig: &rig, share_id: other.share_id.clone(), token: visitor.token.clone() };
    let list = json!({"parent_file_id": "root"});
    assert_eq!(foreign.refused("file/list", list.clone()), (401, "ShareLinkTokenInvalid".into()));
    let forged = Visitor { token: visitor.token.replace('.', "0."), ..foreign };
    assert_eq!(forged.refused("file/list", list.clone()), (401, "ShareLinkTokenInvalid".into()));
    rig.runtime.block_on(rig.server().advance_clock(Duration::from_secs(7201)));
    assert_eq!(visitor.refused("file/list", list), (401, "ShareLinkTokenInvalid".into()));
}

#[test]
fn shares_end_and_have_passwords_and_limits() {
    let rig = Rig::new();
    let [_, bb, _, file, _] = tree(&rig);
    let visitor = Visitor::of(&rig, json!({"file_id_list": [bb], "download_limit": 1}));
    let ask = |password: &str| json!({"share_id": visitor.share_id, "share_pwd": password});
    let (status, answer) = anonymous(&rig, "share_link/get_share_token", &ask("wrong"));
    assert_eq!((status, &answer["code"]), (403, &json!("InvalidResource.SharePwd")));
    let (_, public) = anonymous(&rig, "share_link/get_by_anonymous", &json!({"share_id": visitor.share_id}));
    assert_eq!((&public["share_name"], &public["has_pwd"]), (&json!("bb"), &json!(true)));
    assert!(public.get("share_pwd").is_none(), "{public}");
    visitor.ok("file/get_download_url", json!({"file_id": file}));
    assert_eq!(visitor.refused("file/get_download_url", json!({"file_id": file})).0, 403);
    let update = json!({"share_id": visitor.share_id, "download_limit": 0, "disable_download": true});
    let updated = rig.ok("share_link/update", update);
    assert_eq!((&updated["download_count"], &updated["access_count"]), (&json!(1), &json!(1)));
    assert_eq!(visitor.refused("file/get_download_url", json!({"file_id": file})).0, 403);
    let bare = visitor.ok("file/get", json!({"file_id": file}));
    assert!(bare.get("url").is_none() && bare.get("download_url").is_none(), "{bare}");
    let expiring =
        Visitor::of(&rig, json!({"file_id_list": [bb], "expiration": "2999-01-01T00:00:00+08:00"}));
    let past = json!({"share_id": expiring.share_id, "expiration": "2020-01-01T00:00:00Z"});
    assert_eq!(rig.ok("share_link/update", past)["expired"], true);
    assert_eq!(expiring.refused("file/get", json!({"file_id": bb})), (403, "ShareLink.Expired".into()));
    let cancel = rig.try_call("share_link/cancel", &json!({"share_id": visitor.share_id})).unwrap();
    assert_eq!((cancel.status, cancel.body.len()), (204, 0));
    assert_eq!(visitor.refused("file/get", json!({"file_id": bb})), (403, "ShareLink.Cancelled".into()));
    assert_eq!(anonymous(&rig, "share_link/get_share_token", &ask("s3cret")).0, 403);
}

#[test]
fn shares_are_validated_listed_and_stored() {
    let mut rig = Rig::new();
    let [aa, bb, ..] = tree(&rig);
    for (settings, code) in [
        (json!({}), "InvalidParameter.FileIdList"),
        (json!({"file_id_list": [bb], "share_pwd": "with blank"}), "InvalidParameter.SharePwd"),
        (json!({"file_id_list": [bb], "share_name": "n".repeat(129)}), "InvalidParameter.ShareName"),
        (json!({"file_id_list": [bb], "expiration": "soon"}), "InvalidParameter.Expiration"),
        (json!({"file_id_list": [bb], "download_limit": -1}), "InvalidParameterWrongFormat"),
    ] {
        let mut create = json!({"drive_id": "1"});
        create.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        rig.refused("share_link/create", create, 400, code);
    }
    rig.refused("share_link/create", json!({"drive_id": "1", "file_id_list": ["x"]}), 404, "NotFound.File");
    let ids = [&aa, &bb].map(|file| {
        rig.runtime.block_on(rig.server().advance_clock(Duration::from_secs(1)));
        let share = rig.ok("share_link/create", json!({"drive_id": "1", "file_id": file, "access_count": 9}));
        assert_eq!((&share["access_count"], &share["file_id_list"]), (&json!(0), &json!([file])));
        share["share_id"].clone()
    });
    rig.try_call("share_link/cancel", &json!({"share_id": ids[0]})).unwrap();
    rig.kill_and_restart();
    let found = |endpoint: &str, ask: Value| {
        let page = rig.ok(endpoint, ask);
        page["items"].as_array().unwrap().iter().map(|share| share["share_id"].clone()).collect::<Vec<_>>()
    };
    let [first, second] = ids.clone();
    assert_eq!(found("share_link/list", json!({})), std::slice::from_ref(&second));
    let all = json!({"include_cancelled": true, "creator": "owner"});
    assert_eq!(found("share_link/list", all), [second.clone(), first.clone()]);
    assert_eq!(found("share_link/list", json!({"creator": "other"})), [Value::Null; 0]);
    assert_eq!(
        found("share_link/search", json!({"query": "status = 'disabled'"})),
        std::slice::from_ref(&first)
    );
    let fuzzy = json!({"query": "share_name_for_fuzzy match 'B'", "order_by": "share_name"});
    assert_eq!(found("share_link/search", fuzzy), [second]);
    let page = rig.ok("share_link/search", json!({"limit": 1, "return_total_count": true}));
    assert_eq!((&page["total_count"], &page["next_marker"]), (&json!(2), &json!("1")));
    let rest = json!({"limit": 1, "marker": page["next_marker"]});
    assert_eq!(found("share_link/search", rest), [first]);
}

#[test]
fn visitor_uploads_where_the_share_allows_it() {
    let rig = Rig::new();
    let [_, bb, cc, ..] = tree(&rig);
    let visitor =
        Visitor::of(&rig, json!({"file_id_list": [bb], "creatable": true, "creatable_file_id_list": [cc]}));
    let create = |parent: &str| json!({"parent_file_id": parent, "name": "new", "type": "file"});
    assert_eq!(visitor.refused("file/create", create(&bb)).0, 403);
    let begun = visitor.ok("file/create", create(&cc));
    assert_eq!(begun["share_id"], json!(visitor.share_id));
    let put = rig.put(begun["part_info_list"][0]["upload_url"].as_str().unwrap(), b"from a visitor");
    assert_eq!(put.status, 200);
    let done =
        visitor.ok("file/complete", json!({"file_id": begun["file_id"], "upload_id": begun["upload_id"]}));
    assert_eq!(rig.read(&text(&done["file_id"])), b"from a visitor");
    let own =
        rig.ok("file/create", json!({"drive_id": "1", "parent_file_id": bb, "name": "own", "type": "file"}));
    let foreign = json!({"file_id": own["file_id"], "upload_id": own["upload_id"]});
    assert_eq!(visitor.refused("file/complete", foreign).0, 403);
}

#[test]
fn member_saves_shared_objects_to_an_own_drive() {
    let rig = Rig::with(|config| config.drives = 2);
    let [_, bb, _, file, _] = tree(&rig);
    let visitor = Visitor::of(&rig, json!({"file_id_list": [bb], "save_limit": 1}));
    let headers = [header("x-share-token", &visitor.token), header("authorization", "Bearer AT")];
    let copy = json!({"share_id": visitor.share_id, "file_id": file, "to_drive_id": "2", "to_parent_file_id": "root"});
    let (status, answer) = call_with(&rig, &headers, "file/copy", &copy);
    assert_eq!(status, 201, "{answer}");
    assert_eq!(
        rig.ok("file/list", json!({"drive_id": "2", "parent_file_id": "root"}))["items"][0]["name"],
        "file"
    );
    assert_eq!(call_with(&rig, &headers, "file/copy", &copy).0, 403, "the limit is 1");
}

#[test]
fn shares_are_made_and_cancelled_in_a_batch() {
    let rig = Rig::new();
    let batch = |url: &str, body: Value| {
        let sub = json!({"id": "1", "method": "POST", "url": url,
            "headers": {"Content-Type": "application/json"}, "body": body});
        rig.ok("batch", json!({"resource": "share_link", "requests": [sub]}))["responses"][0].clone()
    };
    let folder = rig.mkdir("root", "shared");
    let made = batch("/share_link/create", json!({"drive_id": "1", "file_id_list": [folder]}));
    assert_eq!(made["status"], 201, "{made}");
    let share = json!({"share_id": made["body"]["share_id"]});
    assert_eq!(batch("/share_link/get", share.clone())["body"]["share_id"], share["share_id"]);
    assert_eq!(batch("/share_link/list", json!({}))["body"]["items"].as_array().unwrap().len(), 1);
    let cancelled = batch("/share_link/cancel", share);
    assert!(cancelled["status"].as_u64().unwrap() < 300, "{cancelled}");
    assert_eq!(rig.ok("share_link/list", json!({}))["items"], json!([]));
}
