//! Logins without a browser: service apps, access keys, tokens; and mistakes in them.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pdsfs::ids::Secret;
use pdsfs::server::{AccessKey, ServiceApp};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::rig::{CLIENT, Rig, TOKEN, private_file, stderr};

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
    let user = [&borrowed(&args)[..], &["--user-id", "owner"]].concat();
    rig.login(&user, "");
    // The token ends, and the key makes another.
    rig.runtime.block_on(rig.server().revoke_all_tokens()).unwrap();
    let listed = rig.run(&["drives", "svc"], "");
    assert!(listed.status.success(), "{}", stderr(&listed));
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
    let late = rig.run(&["drives", "key"], "");
    assert!(
        stderr(&late).contains("3600 s behind") || stderr(&late).contains("s behind that"),
        "{}",
        stderr(&late)
    );
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
