//! Logins without a browser: service apps, access keys, tokens; and mistakes in them.

use std::io::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pdsfs::ids::Secret;
use pdsfs::server::{AccessKey, FaultAction, FaultRule, ServiceApp};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;

use crate::rig::{CLIENT, Rig, TOKEN, private_file, refusal, stderr};

const KEY: &str = include_str!("../fixtures/service-app/key.pem");
const PUBLIC: &str = include_str!("../fixtures/service-app/public.pem");
/// In the older form (PKCS#1), of nobody.
const OTHER: &str = include_str!("../fixtures/service-app/other.pem");
/// Not RSA.
const CURVE: &str = include_str!("../fixtures/service-app/ec.pem");

fn with_app() -> Rig {
    Rig::with(|config| config.logins.service_apps = vec![ServiceApp::new("svc", PUBLIC).unwrap()])
}

/// Options of a service app with a key file of this content and mode.
fn service_app(rig: &Rig, pem: &str, mode: u32) -> Vec<String> {
    let path = rig.path("key.pem");
    private_file(&path, pem, mode);
    let path = path.to_str().unwrap();
    ["svc", "--client-id", "svc", "--domain-id", "bj1", "--jwt-key", path].map(str::to_owned).to_vec()
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn a_service_app_signs_its_way_in() {
    let rig = with_app();
    let args = service_app(&rig, KEY, 0o600);
    rig.login(&borrowed(&args), "");
    let subject = || {
        let stored: Value = serde_json::from_slice(&std::fs::read(rig.account("svc")).unwrap()).unwrap();
        let app = &stored["method"]["service_app"];
        ["subject", "subject_kind"].map(|key| app[key].as_str().unwrap().to_owned())
    };
    assert_eq!(subject(), ["bj1", "service"]);
    let user = [&borrowed(&args)[..], &["--user-id", "owner"]].concat();
    rig.login(&user, "");
    assert_eq!(subject(), ["owner", "user"]);
    // The token ends, and the key makes another.
    let given = || rig.server().stats().count("oauth/token");
    let before = given();
    rig.runtime.block_on(rig.server().revoke_all_tokens()).unwrap();
    let listed = rig.run(&["drives", "svc"], "");
    assert!(listed.status.success(), "{}", stderr(&listed));
    assert_eq!(given(), before + 1);
}

#[test]
fn mistakes_of_a_service_app_are_told_apart() {
    let rig = with_app();
    let said = |pem: &str, mode: u32| rig.refused(&borrowed(&service_app(&rig, pem, mode)), "");
    for (pem, mode, parts) in [
        (OTHER, 0o600, ["signature is not that of the app's key", "key belongs to the app"]),
        (KEY, 0o640, ["can be read by others", "chmod 600"]),
        (CURVE, 0o600, ["RSA", "key.pem"]),
        ("hello", 0o600, ["PEM", "BEGIN PRIVATE KEY"]),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----", 0o600, ["password", "openssl pkey"]),
    ] {
        let said = said(pem, mode);
        for part in parts {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("MII"), "the key is shown: {said}");
    }
    let missing = ["--client-id", "svc", "--domain-id", "bj1", "--jwt-key", "/nonexistent/key.pem"];
    assert!(rig.refused(&missing, "").contains("/nonexistent/key.pem"));
    let mut nobody = service_app(&rig, KEY, 0o600);
    nobody.extend(["--user-id".into(), "stranger".into()]);
    assert!(rig.refused(&borrowed(&nobody), "").contains("nobody of the domain"));
    let mut unknown = service_app(&rig, KEY, 0o600);
    unknown[2] = "unknown".into();
    assert!(rig.refused(&borrowed(&unknown), "").contains("client is not known"));
    // A clock that is an hour behind.
    rig.runtime.block_on(rig.server().advance_clock(Duration::from_secs(3600)));
    let late = rig.refused(&borrowed(&service_app(&rig, KEY, 0o600)), "");
    assert!(late.contains("expired") && late.contains("behind that of the service: set it"), "{late}");
}

#[test]
fn an_access_key_signs_every_call() {
    let rig = Rig::with(|config| {
        config.access_key = Some(AccessKey::new("AKID", Secret::new("SECRET".to_owned())));
    });
    let login = |key: &str, secret: &str| {
        let endpoint = rig.endpoint();
        let mut command =
            rig.pdsfs(&["login", "key", "--endpoint", &endpoint, "--access-key", key, "--drive-id", "2"]);
        command.env("PDSFS_ACCESS_KEY_SECRET", secret).output().unwrap()
    };
    for (key, secret) in [("AKID", "WRONG"), ("OTHER", "SECRET")] {
        let output = login(key, secret);
        let said = stderr(&output);
        assert!(!output.status.success() && said.contains("access key") && !said.contains(secret), "{said}");
    }
    let output = login("AKID", "SECRET");
    assert!(output.status.success(), "{}", stderr(&output));
    let listed = rig.run(&["drives", "key"], "");
    let table = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(table.contains("*  2"), "{table}{}", stderr(&listed));
    rig.runtime.block_on(rig.server().advance_clock(Duration::from_secs(3600)));
    let late = stderr(&rig.run(&["drives", "key"], ""));
    let (_, behind) = late.split_once("the clock of this machine is ").unwrap_or_else(|| panic!("{late}"));
    let (seconds, rest) = behind.split_once(' ').unwrap();
    assert!(rest.starts_with("s behind that of the service"), "{late}");
    assert!((3600..3700).contains(&seconds.parse::<u32>().unwrap()), "{late}");
}

#[test]
fn what_the_service_has_rotated_is_kept_when_no_drive_is_chosen() {
    let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".to_owned())));
    let stored = |name: &str| -> String {
        let account: Value = serde_json::from_slice(&std::fs::read(rig.account(name)).unwrap()).unwrap();
        account["secrets"]["refresh_token"].as_str().unwrap().to_owned()
    };
    let by_token = |name: &'static str| [name, "--client-id", CLIENT, "--refresh-token"];
    rig.server().faults().add(FaultRule::new("drive/list_my_drives", refusal(400, "InvalidParameter")));
    let said = rig.refused(&by_token("failed"), "RT-1\n");
    assert!(said.contains("login itself is stored") && said.contains("pdsfs drives failed"), "{said}");
    let second = stored("failed");
    assert_ne!(second, "RT-1");
    // Another login is killed while it asks for drives.
    rig.server().faults().clear();
    rig.server().faults().add(FaultRule::new("drive/list_my_drives", FaultAction::Stall));
    let endpoint = rig.endpoint();
    let args = [&["login", "--endpoint", &endpoint][..], &by_token("killed")].concat();
    let mut child = rig.pdsfs(&args).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{second}").unwrap();
    rig.runtime.block_on(rig.server().faults().wait_for_hits(1));
    child.kill().unwrap();
    child.wait().unwrap();
    rig.server().faults().clear();
    assert_ne!(stored("killed"), second);
    let listed = rig.run(&["drives", "killed"], "");
    assert!(listed.status.success(), "{}", stderr(&listed));
}

/// The service rotates when it answers: who is told to stop meanwhile waits for the answer and stores it.
#[test]
fn what_the_service_is_asked_for_is_kept_by_who_is_interrupted() {
    let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".to_owned())));
    rig.login(&["mine", "--client-id", CLIENT, "--refresh-token"], "RT-1");
    let read = || -> Value { serde_json::from_slice(&std::fs::read(rig.account("mine")).unwrap()).unwrap() };
    let mut ended = read();
    ended["expires_at_s"] = 1.into();
    std::fs::write(rig.account("mine"), ended.to_string()).unwrap();
    let endpoint = rig.endpoint();
    let again = ["login", "mine", "--endpoint", &endpoint, "--client-id", CLIENT, "--refresh-token"];
    for (args, shows_token) in [(&["drives", "mine"][..], false), (&again, true)] {
        let before = read()["secrets"]["refresh_token"].as_str().unwrap().to_owned();
        rig.server().faults().add(FaultRule::times("oauth/token", 1, FaultAction::Stall));
        let mut child = rig.pdsfs(args).spawn().unwrap();
        if shows_token {
            writeln!(child.stdin.take().unwrap(), "{before}").unwrap();
        }
        rig.runtime.block_on(rig.server().faults().wait_for_hits(1));
        // SAFETY: the call has no memory, and the child is not awaited yet.
        assert_eq!(unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) }, 0);
        rig.server().faults().clear();
        child.wait().unwrap();
        assert_ne!(read()["secrets"]["refresh_token"], before, "{args:?}");
    }
    let listed = rig.run(&["drives", "mine"], "");
    assert!(listed.status.success(), "{}", stderr(&listed));
}

#[test]
fn who_may_not_list_drives_can_log_in_to_one() {
    let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".to_owned())));
    let faults = rig.server().faults();
    faults.add(FaultRule::new("drive/list_my_drives", refusal(403, "Forbidden")));
    let said = rig.login(&["named", "--token", "--drive-id", "2"], TOKEN);
    assert!(said.contains("drive 2") && !said.contains("warning"), "{said}");
    let said = rig.login(&["given", "--client-id", CLIENT, "--refresh-token"], "RT-1");
    assert!(said.contains("drive 1"), "{said}");
    let said = rig.login(&["asked", "--token"], TOKEN);
    assert!(said.contains("drive 1"), "{said}");
    let said = rig.login(&["typo", "--token", "--drive-id", "22"], TOKEN);
    assert!(said.contains("warning: the service does not show drive 22"), "{said}");
    faults.add(FaultRule::new("drive/get", refusal(403, "Forbidden")));
    let said = rig.login(&["blind", "--token", "--drive-id", "2"], TOKEN);
    assert!(said.contains("warning") && said.contains("drive 2"), "{said}");
    let said = rig.refused(&["wrong", "--token", "--drive-id", "2"], "no-such-token\n");
    assert!(said.contains("refuses the access token") && !rig.account("wrong").exists(), "{said}");
}

#[test]
fn a_damaged_account_can_be_forgotten() {
    let rig = Rig::new();
    let damaged = |text: &str, mode: u32| {
        rig.login(&["broken", "--token"], TOKEN);
        private_file(&rig.account("broken"), text, mode);
        private_file(&rig.account("broken").with_file_name(".broken.json.a1B2c3.unfinished"), "torn", 0o600);
        let forgotten = rig.run(&["login", "broken", "--forget"], "");
        assert!(forgotten.status.success(), "{}", stderr(&forgotten));
        let left = std::fs::read_dir(rig.account("broken").parent().unwrap()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [".broken.lock"]);
    };
    damaged("{\"version\": 1, \"secr", 0o600);
    damaged("{}", 0o644);
    let again = rig.run(&["login", "broken", "--forget"], "");
    assert!(!again.status.success() && stderr(&again).contains("no account broken"), "{}", stderr(&again));
}

#[test]
fn tokens_come_through_stdin() {
    let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".to_owned())));
    rig.login(&["plain", "--token"], &format!("{TOKEN}\n"));
    let wrong = rig.refused(&["plain", "--token"], "no-such-token\n");
    assert!(wrong.contains("refuses the access token"), "{wrong}");
    assert!(rig.refused(&["plain", "--token"], "\n").contains("nothing was given"));
    rig.login(&["renewed", "--client-id", CLIENT, "--refresh-token"], "RT-1\n");
    let stored = std::fs::read_to_string(rig.account("renewed")).unwrap();
    assert!(!stored.contains("RT-1"), "the rotated token was not stored");
    let spent = rig.refused(&["renewed", "--client-id", CLIENT, "--refresh-token=account"], "RT-1\n");
    assert!(spent.contains("used before"), "{spent}");
    assert_eq!(
        std::fs::read_to_string(rig.account("renewed")).unwrap(),
        stored,
        "a failed login keeps the old"
    );
}

#[test]
fn secrets_never_cross_the_network_in_the_clear() {
    let rig = Rig::new();
    for args in [
        ["login", "--token", "--endpoint", "http://drive.example.com"],
        ["login", "--token", "--auth-endpoint", "http://drive.example.com"],
    ] {
        let output = rig.run(&args, "t\n");
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("https"), "{}", stderr(&output));
    }
    let output = rig.run(&["login", "../x", "--token"], "t\n");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

/// An assertion of the app, signed by `pem`, with these claims in place of good ones.
fn assertion(pem: &str, alg: &str, claims: serde_json::Value) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut all = serde_json::json!({
        "iss": "svc", "sub": "bj1", "sub_type": "service", "aud": "bj1", "jti": "once",
        "iat": now - 300, "exp": now + 300,
    });
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(all.to_string()));
    let key = match PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap() {
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap(),
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).unwrap(),
        _ => panic!("not an RSA key"),
    };
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn the_server_takes_an_assertion_once_and_believes_only_the_key() {
    let rig = with_app();
    let present = |assertion: &str| {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
            .append_pair("client_id", "svc")
            .append_pair("assertion", assertion)
            .finish();
        let answer = crate::http::send(rig.addr(), "POST", "/v2/oauth/token", &[], form.as_bytes()).unwrap();
        (answer.status, answer.text())
    };
    let none = serde_json::json!({});
    let good = assertion(KEY, "RS256", none.clone());
    assert_eq!(present(&good).0, 200);
    for (what, text, says) in [
        ("used again", good.clone(), "used before"),
        ("another key", assertion(OTHER, "RS256", none.clone()), "signature"),
        ("no signature", format!("{}.", good.rsplit_once('.').unwrap().0), "signature"),
        ("another method", assertion(KEY, "none", none), "RS256"),
        ("another domain", assertion(KEY, "RS256", serde_json::json!({"aud": "bj2"})), "aud"),
        ("another app", assertion(KEY, "RS256", serde_json::json!({"iss": "app"})), "iss"),
        ("from the future", assertion(KEY, "RS256", serde_json::json!({"iat": 9_999_999_999_u64})), "iat"),
        ("for ever", assertion(KEY, "RS256", serde_json::json!({"exp": 9_999_999_999_u64})), "too long"),
        ("ended", assertion(KEY, "RS256", serde_json::json!({"exp": 1})), "expired"),
        ("nobody", assertion(KEY, "RS256", serde_json::json!({"sub": "x", "sub_type": "user"})), "nobody"),
        ("no number", assertion(KEY, "RS256", serde_json::json!({"jti": ""})), "jti"),
        ("no JWT", "a.b".to_owned(), "JWT"),
    ] {
        let (status, answer) = present(&text);
        assert!(status == 400 && answer.contains(says), "{what}: {status} {answer}");
    }
}
