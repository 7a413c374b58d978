//! Logins without a browser: service apps, access keys, tokens, and their errors.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pdsfs::server::{AcceptedAccessKey, FaultAction, FaultRule, Secret, ServiceApp};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::rig::{CLIENT, Rig, TOKEN, private_file, stderr};

const KEY: &str = include_str!("../fixtures/service-app/key.pem");
const PUBLIC: &str = include_str!("../fixtures/service-app/public.pem");
/// A key that belongs to no app, in the older form (PKCS#1).
const OTHER: &str = include_str!("../fixtures/service-app/other.pem");
/// An EC key, which is not RSA.
const CURVE: &str = include_str!("../fixtures/service-app/ec.pem");

fn with_app() -> Rig {
    Rig::with(|config| config.logins.service_apps = vec![ServiceApp::new("svc", PUBLIC).unwrap()])
}

/// Login options of a service app, with a key file of this content and mode.
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
fn service_app_logs_in_with_assertion() {
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
    // The token expires, and the key signs a request for another one.
    let token_requests = || rig.server().stats().count("oauth/token");
    let before = token_requests();
    rig.runtime.block_on(rig.server().revoke_all_tokens()).unwrap();
    let listed = rig.run(&["drives", "svc"], "");
    assert!(listed.status.success(), "{}", stderr(&listed));
    assert_eq!(token_requests(), before + 1);
}

#[test]
fn service_app_errors_are_distinguished() {
    let rig = with_app();
    let printed = |pem: &str, mode: u32| rig.refused(&borrowed(&service_app(&rig, pem, mode)), "");
    for (pem, mode, parts) in [
        (OTHER, 0o600, ["refuses the key of the app", "key belongs to the app"]),
        (KEY, 0o604, ["is accessible to other users", "chmod 600"]),
        (CURVE, 0o600, ["RSA", "key.pem"]),
        ("hello", 0o600, ["PEM", "BEGIN PRIVATE KEY"]),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----", 0o600, ["password", "openssl pkey"]),
    ] {
        let printed = printed(pem, mode);
        for part in parts {
            assert!(printed.contains(part), "{part}: {printed}");
        }
        assert!(!printed.contains("MII"), "the key is shown: {printed}");
    }
    let missing = ["--client-id", "svc", "--domain-id", "bj1", "--jwt-key", "/nonexistent/key.pem"];
    assert!(rig.refused(&missing, "").contains("/nonexistent/key.pem"));
    let mut stranger = service_app(&rig, KEY, 0o600);
    stranger.extend(["--user-id".into(), "stranger".into()]);
    assert!(rig.refused(&borrowed(&stranger), "").contains("may act for that user or domain"));
    let mut unknown = service_app(&rig, KEY, 0o600);
    unknown[2] = "unknown".into();
    assert!(rig.refused(&borrowed(&unknown), "").contains("key belongs to the app"));
    // A clock that is one hour behind.
    rig.runtime.block_on(rig.server().advance_clock(Duration::from_secs(3600)));
    let late = rig.refused(&borrowed(&service_app(&rig, KEY, 0o600)), "");
    assert!(late.contains("behind the clock of the service"), "{late}");
}

#[test]
fn access_key_signs_every_call() {
    let rig = Rig::with(|config| {
        config.access_key = Some(AcceptedAccessKey::new("AKID", Secret::new("SECRET".to_owned())));
    });
    let login = |key: &str, secret: &str| {
        let endpoint = rig.endpoint();
        let mut command =
            rig.pdsfs(&["login", "key", "--endpoint", &endpoint, "--access-key", key, "--drive-id", "2"]);
        command.env("PDSFS_ACCESS_KEY_SECRET", secret).output().unwrap()
    };
    for (key, secret) in [("AKID", "WRONG"), ("OTHER", "SECRET")] {
        let output = login(key, secret);
        let printed = stderr(&output);
        assert!(
            !output.status.success() && printed.contains("access key") && !printed.contains(secret),
            "{printed}"
        );
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
    assert!(rest.starts_with("s behind the clock of the service"), "{late}");
    assert!((3600..3700).contains(&seconds.parse::<u32>().unwrap()), "{late}");
}

#[test]
fn refresh_token_may_stay_the_same() {
    let rig = Rig::with(|config| {
        config.quirks.rotate_refresh_token = false;
        config.logins.refresh_token = Some(Secret::new("RT-1".to_owned()));
    });
    rig.login(&["--client-id", CLIENT, "--refresh-token"], "RT-1\n");
    for _ in 0..2 {
        let before = rig.server().stats().count("oauth/token");
        rig.runtime.block_on(rig.server().advance_clock(Duration::from_secs(3 * 3600)));
        let listed = rig.run(&["drives"], "");
        assert!(listed.status.success(), "{}", stderr(&listed));
        assert_eq!(rig.server().stats().count("oauth/token"), before + 1);
    }
}

#[test]
fn rotated_token_is_kept_when_drive_list_fails() {
    let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".to_owned())));
    let stored = |name: &str| -> String {
        let account: Value = serde_json::from_slice(&std::fs::read(rig.account(name)).unwrap()).unwrap();
        account["secrets"]["refresh_token"].as_str().unwrap().to_owned()
    };
    let by_token = |name: &'static str| [name, "--client-id", CLIENT, "--refresh-token"];
    rig.server()
        .faults()
        .add(FaultRule::new("drive/list_my_drives", FaultAction::status(400, "InvalidParameter")));
    let printed = rig.refused(&by_token("failed"), "RT-1\n");
    assert!(printed.contains("the login is stored") && printed.contains("pdsfs drives failed"), "{printed}");
    let second = stored("failed");
    assert_ne!(second, "RT-1");
    // Another login is killed while it lists the drives.
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

/// The service rotates the token when it answers: an interrupted login waits for the answer and stores it.
#[test]
fn rotated_token_survives_interrupted_login() {
    let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".to_owned())));
    rig.login(&["mine", "--client-id", CLIENT, "--refresh-token"], "RT-1");
    let read = || -> Value { serde_json::from_slice(&std::fs::read(rig.account("mine")).unwrap()).unwrap() };
    let mut ended = read();
    ended["expires_at_s"] = 1.into();
    std::fs::write(rig.account("mine"), ended.to_string()).unwrap();
    let endpoint = rig.endpoint();
    let again = ["login", "mine", "--endpoint", &endpoint, "--client-id", CLIENT, "--refresh-token"];
    for (args, sends_token) in [(&["drives", "mine"][..], false), (&again, true)] {
        let before = read()["secrets"]["refresh_token"].as_str().unwrap().to_owned();
        rig.server().faults().add(FaultRule::times("oauth/token", 1, FaultAction::Stall));
        let mut child = rig.pdsfs(args).spawn().unwrap();
        if sends_token {
            writeln!(child.stdin.take().unwrap(), "{before}").unwrap();
        }
        rig.runtime.block_on(rig.server().faults().wait_for_hits(1));
        // SAFETY: kill takes no pointers, and the child is not reaped yet.
        assert_eq!(unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) }, 0);
        rig.server().faults().clear();
        child.wait().unwrap();
        assert_ne!(read()["secrets"]["refresh_token"], before, "{args:?}");
    }
    let listed = rig.run(&["drives", "mine"], "");
    assert!(listed.status.success(), "{}", stderr(&listed));
}

#[test]
fn login_to_one_drive_needs_no_list_permission() {
    let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".to_owned())));
    let faults = rig.server().faults();
    faults.add(FaultRule::new("drive/list_my_drives", FaultAction::status(403, "Forbidden")));
    let printed = rig.login(&["named", "--token", "--drive-id", "2"], TOKEN);
    assert!(printed.contains("drive 2") && !printed.contains("warning"), "{printed}");
    let printed = rig.login(&["given", "--client-id", CLIENT, "--refresh-token"], "RT-1");
    assert!(printed.contains("drive 1"), "{printed}");
    let printed = rig.login(&["asked", "--token"], TOKEN);
    assert!(printed.contains("drive 1"), "{printed}");
    let printed = rig.login(&["typo", "--token", "--drive-id", "22"], TOKEN);
    assert!(printed.contains("warning: cannot check drive 22"), "{printed}");
    faults.add(FaultRule::new("drive/get", FaultAction::status(403, "Forbidden")));
    let printed = rig.login(&["blind", "--token", "--drive-id", "2"], TOKEN);
    assert!(printed.contains("warning") && printed.contains("drive 2"), "{printed}");
    let printed = rig.refused(&["wrong", "--token", "--drive-id", "2"], "no-such-token\n");
    assert!(printed.contains("refuses the access token") && !rig.account("wrong").exists(), "{printed}");
}

#[test]
fn damaged_account_can_be_removed() {
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
fn tokens_are_read_from_stdin() {
    let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".to_owned())));
    rig.login(&["plain", "--token"], &format!("{TOKEN}\n"));
    let wrong = rig.refused(&["plain", "--token"], "no-such-token\n");
    assert!(wrong.contains("refuses the access token"), "{wrong}");
    assert!(rig.refused(&["plain", "--token"], "\n").contains("no access token"));
    rig.login(&["renewed", "--client-id", CLIENT, "--refresh-token"], "RT-1\n");
    let stored = std::fs::read_to_string(rig.account("renewed")).unwrap();
    assert!(!stored.contains("RT-1"), "the rotated token is not stored");
    let spent = rig.refused(&["renewed", "--client-id", CLIENT, "--refresh-token=account"], "RT-1\n");
    assert!(spent.contains("refuses the login"), "{spent}");
    assert_eq!(
        std::fs::read_to_string(rig.account("renewed")).unwrap(),
        stored,
        "a failed login replaced the old account"
    );
}

#[test]
fn secrets_are_refused_over_plain_http() {
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

#[test]
fn server_secrets_are_no_arguments() {
    let rig = Rig::new();
    let data = rig.path("data2");
    // An address of another machine, so that no server starts.
    let serve = ["serve", "--listen", "192.0.2.1:1", "--data", data.to_str().unwrap(), "--client-id", "app"];
    for flag in ["--token", "--client-secret", "--login-password", "--access-key-secret"] {
        let output = rig.run(&[&serve[..], &[flag, "hidden"]].concat(), "");
        let printed = stderr(&output);
        assert!(printed.contains(&format!("unexpected argument '{flag}'")), "{flag}: {printed}");
    }
    let file = rig.path("token");
    private_file(&file, "secret\n", 0o644);
    let serve = [&serve[..], &["--allow-remote", "--token-file", file.to_str().unwrap()]].concat();
    let printed = stderr(&rig.run(&serve, ""));
    assert!(printed.contains("accessible to other users"), "{printed}");
    private_file(&file, "secret\n", 0o600);
    let printed = stderr(&rig.run(&serve, ""));
    let advice = "set a password with PDSFS_SERVE_PASSWORD or --login-password-file";
    assert!(printed.contains(advice), "{printed}");
    // An address that is in use, so that no server starts.
    let listen = rig.addr().to_string();
    let serve = ["serve", "--listen", &listen, "--data", data.to_str().unwrap(), "--client-id", "app"];
    let serve = [&serve[..], &["--token-file", file.to_str().unwrap()]].concat();
    let proxied = [&serve[..], &["--public-url", "https://drive.example"]].concat();
    let printed = stderr(&rig.run(&proxied, ""));
    assert!(printed.contains(advice), "{printed}");
    let empty = rig.path("empty");
    private_file(&empty, " \n", 0o600);
    for flag in ["--client-secret-file", "--login-password-file"] {
        let printed = stderr(&rig.run(&[&serve[..], &[flag, empty.to_str().unwrap()]].concat(), ""));
        assert!(printed.contains(&format!("{flag} {} is empty", empty.display())), "{printed}");
    }
    for variable in ["PDSFS_SERVE_CLIENT_SECRET", "PDSFS_SERVE_PASSWORD"] {
        let mut command = rig.pdsfs(&serve);
        let output = command.env(variable, OsStr::from_bytes(b"caf\xe9")).output().unwrap();
        assert!(stderr(&output).contains(&format!("{variable} is not UTF-8")), "{}", stderr(&output));
    }
}

/// An assertion of the app, signed with `pem`, where `claims` replace the valid ones.
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
fn assertion_is_verified_and_accepted_once() {
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
        ("forever", assertion(KEY, "RS256", serde_json::json!({"exp": 9_999_999_999_u64})), "too long"),
        ("ended", assertion(KEY, "RS256", serde_json::json!({"exp": 1})), "expired"),
        (
            "unknown user",
            assertion(KEY, "RS256", serde_json::json!({"sub": "x", "sub_type": "user"})),
            "not a member",
        ),
        ("no number", assertion(KEY, "RS256", serde_json::json!({"jti": ""})), "jti"),
        ("no JWT", "a.b".to_owned(), "JWT"),
    ] {
        let (status, answer) = present(&text);
        assert!(status == 400 && answer.contains(says), "{what}: {status} {answer}");
    }
}

#[test]
fn assertion_of_a_service_can_be_refreshed() {
    let rig = Rig::with(|config| {
        config.logins.service_apps = vec![ServiceApp::new("svc", PUBLIC).unwrap()];
        config.logins.client_ids = vec![CLIENT.to_owned()];
        config.logins.client_secret = Some(Secret::new("of the other app".to_owned()));
    });
    let login = |claims: serde_json::Value| {
        let text = assertion(KEY, "RS256", claims);
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")
            .append_pair("client_id", "svc")
            .append_pair("assertion", &text)
            .finish();
        crate::http::send(rig.addr(), "POST", "/v2/oauth/token", &[], form.as_bytes()).unwrap().json()
    };
    let refresh = |reply: &serde_json::Value| {
        let body = serde_json::json!({
            "app_id": "svc", "grant_type": "refresh_token", "refresh_token": reply["refresh_token"],
        });
        crate::http::send(rig.addr(), "POST", "/v2/account/token", &[], body.to_string().as_bytes())
            .unwrap()
            .json()
    };
    let user = serde_json::json!({"sub": "owner", "sub_type": "user", "jti": "2"});
    for (claims, role) in [(serde_json::json!({}), "superadmin"), (user, "user")] {
        let reply = login(claims);
        let refreshed = refresh(&reply);
        assert_eq!((&reply["role"], &refreshed["role"]), (&role.into(), &role.into()), "{reply} {refreshed}");
        assert!(refreshed["access_token"].is_string() && refreshed["access_token"] != reply["access_token"]);
    }
}

#[test]
fn loopback_login_bypasses_proxy() {
    let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".to_owned())));
    // The drive is behind the proxy, which nothing serves; the login service is on this machine.
    let account = json!({
        "version": 1,
        "endpoint": "https://drive.example/",
        "auth_endpoint": rig.endpoint(),
        "drive_id": "1",
        "method": {"oauth": {"client_id": CLIENT}},
        "expires_at_s": 1,
        "secrets": {"access_token": "ended", "refresh_token": "RT-1"},
    });
    std::fs::create_dir_all(rig.account("split").parent().unwrap()).unwrap();
    private_file(&rig.account("split"), &account.to_string(), 0o600);
    let mut command = rig.pdsfs(&["drives", "split"]);
    for variable in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(variable, "http://127.0.0.1:1");
    }
    for variable in ["NO_PROXY", "no_proxy"] {
        command.env_remove(variable);
    }
    let mut child = command.spawn().unwrap();
    let refreshed = rig.server().wait_until(|stats| stats.count("oauth/token") == 1);
    rig.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), refreshed).await }).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}
