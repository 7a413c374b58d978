//! Authentication: access tokens, refresh tokens and authorization codes.

use std::io::{BufRead as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use pdsfs::server::{Secret, ServerConfig};
use serde_json::{Value, json};

use super::http::{Answer, send};
use super::rig::{Rig, header, text};

fn drive_with(rig: &Rig, token: &str) -> Answer {
    let headers = [header("Authorization", &format!("Bearer {token}"))];
    send(rig.addr(), "POST", "/v2/drive/get", &headers, br#"{"drive_id":"1"}"#).unwrap()
}

fn refresh(rig: &Rig, token: &str) -> Answer {
    let body = json!({"app_id": "a", "grant_type": "refresh_token", "refresh_token": token}).to_string();
    send(rig.addr(), "POST", "/v2/account/token", &[], body.as_bytes()).unwrap()
}

fn with_refresh(config: &mut ServerConfig) {
    config.logins.refresh_token = Some(Secret::new("RT".to_owned()));
}

fn code(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["code"].as_str().unwrap_or("").to_owned())
}

#[test]
fn calls_without_token_are_refused() {
    let rig = Rig::new();
    for path in
        ["/v2/drive/get", "/v2/file/create", "/v2/file/list", "/v2/batch", "/v2/domain/get", "/_pdsfs/faults"]
    {
        for headers in [
            vec![],
            vec![header("Authorization", "Bearer wrong")],
            vec![header("Authorization", "Bearer ")],
            vec![header("Authorization", "AT")],
        ] {
            let answer = send(rig.addr(), "POST", path, &headers, b"{}").unwrap();
            assert_eq!(code(&answer), (401, "AccessTokenInvalid".into()), "{path} {headers:?}");
        }
    }
    assert_eq!(send(rig.addr(), "GET", "/data/1%2Froot%2Fx", &[], b"").unwrap().status, 403);
    assert_eq!(send(rig.addr(), "GET", "/", &[], b"").unwrap().status, 404);
    assert_eq!(code(&refresh(&rig, "RT")), (400, "InvalidParameter.RefreshToken".into()));
}

/// Sends the head of a call with a body that never comes. Returns the first line of the answer.
fn answer_before_the_body(rig: &Rig, path: &str, authorization: &str, body_bytes: u64) -> String {
    let mut stream = TcpStream::connect(rig.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: h\r\n{authorization}Content-Length: {body_bytes}\r\n\r\n")
        .unwrap();
    let chunk = vec![b'a'; 64 << 10];
    for _ in 0..=body_bytes / 2 / chunk.len() as u64 {
        // The server may have closed the connection.
        if stream.write_all(&chunk).is_err() {
            break;
        }
    }
    let mut line = String::new();
    std::io::BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn large_bodies_need_valid_credentials() {
    let rig = Rig::new();
    for (path, authorization, status) in [
        ("/v2/file/create", "", 401),
        ("/v2/file/create", "Authorization: Bearer wrong\r\n", 401),
        ("/v2/file/create", "Authorization: acs id:c2ln\r\n", 401),
        ("/v2/oauth/token", "", 413),
        ("/v2/oauth/authorize", "", 413),
        ("/_pdsfs/faults", "", 401),
        ("/v2/file/create", "Authorization: Bearer AT\r\n", 413),
    ] {
        let bytes = if authorization.contains("AT") { 17 << 20 } else { 1 << 20 };
        let line = answer_before_the_body(&rig, path, authorization, bytes);
        assert!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {authorization:?}: {line}");
    }
}

#[test]
fn unknown_paths_get_gateway_errors() {
    let rig = Rig::new();
    let answer = rig.try_call("file/no_such", &json!({})).unwrap();
    assert_eq!(
        (answer.status, answer.header("x-ca-error-code"), answer.body.len()),
        (404, Some("I404NF"), 0)
    );
    let get = send(rig.addr(), "GET", "/v2/drive/get", &[header("Authorization", "Bearer AT")], b"").unwrap();
    assert_eq!(get.status, 404);
    let (status, answer) = rig.call("file/get", json!({}));
    assert_eq!((status, text(&answer["code"])), (400, "InvalidParameterMissing.DriveId".into()));
    let headers = [header("Authorization", "Bearer AT")];
    let answer = send(rig.addr(), "POST", "/v2/file/get", &headers, b"{not json").unwrap();
    assert_eq!(code(&answer), (400, "InvalidRequestJSONFormat".into()));
}

#[test]
fn refresh_issues_and_rotates_tokens() {
    let mut rig = Rig::with(with_refresh);
    let first = refresh(&rig, "RT").json();
    assert_eq!((&first["token_type"], &first["expires_in"]), (&json!("Bearer"), &json!(7200)));
    assert_eq!(drive_with(&rig, &text(&first["access_token"])).status, 200);
    assert_eq!(code(&refresh(&rig, "RT")).0, 400, "a refresh token works twice");
    rig.kill_and_restart();
    assert_eq!(
        drive_with(&rig, &text(&first["access_token"])).status,
        200,
        "an access token is gone after a restart"
    );
    assert_eq!(code(&refresh(&rig, "RT")).0, 400, "a used refresh token works after a restart");
    let second = refresh(&rig, &text(&first["refresh_token"])).json();
    rig.runtime.block_on(rig.server().advance_clock(Duration::from_secs(7201)));
    let expired = drive_with(&rig, &text(&second["access_token"]));
    assert_eq!(code(&expired), (401, "AccessTokenExpired".into()));
    let form = format!("grant_type=refresh_token&refresh_token={}", text(&second["refresh_token"]));
    let third = send(rig.addr(), "POST", "/v2/oauth/token", &[], form.as_bytes()).unwrap();
    assert_eq!(drive_with(&rig, &text(&third.json()["access_token"])).status, 200);
}

#[test]
fn code_works_once_for_known_clients() {
    let rig = Rig::with(|config| {
        config.logins.codes = vec![Secret::new("C".to_owned())];
        config.logins.client_ids = vec!["app".to_owned()];
    });
    let ask = |client: &str, kind: &str| {
        let form = format!("client_id={client}&grant_type={kind}&code=C");
        send(rig.addr(), "POST", "/v2/oauth/token", &[], form.as_bytes()).unwrap()
    };
    assert_eq!(code(&ask("other", "authorization_code")), (403, "Forbidden".into()));
    assert_eq!(code(&ask("app", "password")), (400, "InvalidParameterNotSupported.GrantType".into()));
    assert_eq!(code(&ask("app", "")), (400, "InvalidParameterMissing.GrantType".into()));
    let granted = ask("app", "authorization_code").json();
    assert_eq!(drive_with(&rig, &text(&granted["access_token"])).status, 200);
    assert_eq!(code(&ask("app", "authorization_code")), (400, "InvalidParameter.Code".into()));
}

#[test]
fn drives_are_listed_in_pages() {
    let rig = Rig::with(|config| {
        config.drives = 3;
        config.quota_bytes = Some(100);
    });
    let page = |marker: Value| {
        let page = rig.ok("drive/list_my_drives", json!({"limit": 2, "marker": marker}));
        let ids: Vec<_> = page["items"].as_array().unwrap().iter().map(|d| text(&d["drive_id"])).collect();
        (ids, text(&page["next_marker"]))
    };
    assert_eq!(page(Value::Null), (vec!["1".into(), "2".into()], "2".into()));
    assert_eq!(page(json!("2")), (vec!["3".into()], String::new()));
    let default = rig.ok("drive/get_default_drive", json!({"user_id": "u"}));
    assert_eq!((&default["drive_id"], &default["owner_type"]), (&json!("1"), &json!("user")));
    rig.refused("drive/get", json!({"drive_id": "4"}), 404, "NotFound.Drive");
    let file = rig.save("root", "n", b"12345");
    rig.refused("file/get", json!({"drive_id": "2", "file_id": file["file_id"]}), 404, "NotFound.File");
    let quota = rig.ok("domain/get_quota", json!({}));
    assert_eq!((&quota["size_quota"], &quota["size_used"]), (&json!(300), &json!(5)));
    assert_eq!(rig.ok("drive/list_my_group_drive", json!({}))["items"], json!([]));
}
