//! The OAuth authorization code flow.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::send;
use crate::rig::{CLIENT, OTHER_USER, Rig, fields, private_file, stderr, visit, visit_as_other_user};

#[test]
fn browser_login_creates_a_usable_account() {
    let rig = Rig::new();
    let (waiting, page) = rig.start_login(&["work", "--port", "0"]);
    let shown = visit(&page);
    for part in ["id=\"allow\"", "id=\"deny\"", CLIENT] {
        assert!(shown.text().contains(part), "{part}: {}", shown.text());
    }
    assert_eq!(shown.header("x-frame-options"), Some("DENY"));
    let back = rig.press(&page, "allow");
    // Another connection arrives first; the login continues.
    let mut stray = back.clone();
    stray.set_query(Some("code=stolen&state=guessed"));
    assert_eq!(visit(&stray).status, 400);
    stray.set_path("/favicon.ico");
    assert_eq!(visit(&stray).status, 404);
    let last = visit(&back);
    assert_eq!((last.status, last.text().contains("You are logged in as owner")), (200, true));
    let (success, printed) = waiting.end();
    assert!(success && printed.contains("account work: logged in as owner"), "{printed}");
    let file = rig.account("work");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!std::fs::read_to_string(&file).unwrap().contains(back.as_str()));

    let listed = rig.run(&["drives", "work", "--json"], "");
    let drives: Vec<Value> =
        serde_json::from_slice(&listed.stdout).unwrap_or_else(|_| panic!("{}", stderr(&listed)));
    let ids: Vec<_> = drives.iter().map(|drive| (&drive["drive_id"], &drive["default"])).collect();
    assert_eq!(ids, [(&"1".into(), &true.into()), (&"2".into(), &false.into())]);
    let table = rig.run(&["drives", "work"], "");
    assert!(String::from_utf8(table.stdout).unwrap().contains("unlimited"));
    // The code works only once.
    let code = back.query_pairs().find(|(key, _)| key == "code").unwrap().1.into_owned();
    let again = rig.refused(&["again", "--client-id", CLIENT, "--paste"], &code);
    assert!(again.contains("refuses the login: run pdsfs login again"), "{again}");
    assert!(!rig.account("again").exists());
}

#[test]
fn relogin_needs_no_options_and_forget_removes() {
    let rig = Rig::new();
    let (waiting, page) = rig.start_login(&["--port", "0", "--drive-id", "2"]);
    visit(&rig.press(&page, "allow"));
    assert!(waiting.end().0);
    let first = std::fs::read_to_string(rig.account("default")).unwrap();
    let (waiting, page) = rig.start_login(&["--port", "0"]);
    visit(&rig.press(&page, "allow"));
    let (success, printed) = waiting.end();
    assert!(success && printed.contains("drive 2"), "{printed}");
    assert_ne!(std::fs::read_to_string(rig.account("default")).unwrap(), first);
    assert!(rig.run(&["login", "--forget"], "").status.success());
    assert!(!rig.account("default").exists());
    let gone = rig.run(&["drives"], "");
    assert!(stderr(&gone).contains("run pdsfs login default"), "{}", stderr(&gone));
}

#[test]
fn denied_consent_is_reported() {
    let rig = Rig::new();
    let (waiting, page) = rig.start_login(&["--port", "0"]);
    assert!(visit(&rig.press(&page, "deny")).text().contains("login failed"));
    let (success, printed) = waiting.end();
    assert!(!success && printed.contains("denied") && printed.contains("choose Allow"), "{printed}");
    assert!(!rig.account("default").exists());
}

#[test]
fn paste_login_works_without_browser() {
    let rig = Rig::new();
    let (mut waiting, page) = rig.start_login(&["--paste"]);
    waiting.paste(rig.press(&page, "allow").as_str());
    let (success, printed) = waiting.end();
    assert!(success, "{printed}");
    // An expired code.
    let (mut waiting, page) = rig.start_login(&["late", "--paste"]);
    let back = rig.press(&page, "allow");
    rig.runtime.block_on(rig.server().advance_clock(Duration::from_secs(601)));
    waiting.paste(back.as_str());
    let (success, printed) = waiting.end();
    assert!(!success && printed.contains("behind the clock of the service: correct it"), "{printed}");
    // The redirect URL of another login.
    let (mut waiting, page) = rig.start_login(&["late", "--paste"]);
    rig.press(&page, "allow");
    waiting.paste(back.as_str());
    let (success, printed) = waiting.end();
    assert!(!success && printed.contains("another login"), "{printed}");
}

#[test]
fn busy_callback_port_is_reported_with_remedy() {
    let rig = Rig::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let printed = rig.refused(&["--client-id", CLIENT, "--no-browser", "--port", &port], "");
    for part in [port.as_str(), "--port", "--paste", "redirect URI"] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
}

#[test]
fn consent_page_refuses_unknown_apps() {
    let rig = Rig::new();
    let (waiting, page) = rig.start_login(&["--port", "0"]);
    let with = |key: &str, value: &str| {
        let mut url = page.clone();
        let pairs: Vec<_> = page.query_pairs().into_owned().filter(|(k, _)| k != key).collect();
        url.query_pairs_mut().clear().extend_pairs(pairs).append_pair(key, value);
        url
    };
    for (key, value) in [
        ("client_id", "other"),
        ("redirect_uri", "http://example.com/callback"),
        ("redirect_uri", "https://127.0.0.1.example.com/"),
        ("redirect_uri", "javascript:alert(1)"),
        ("response_type", "token"),
        ("code_challenge_method", "plain"),
        ("code_challenge", ""),
        ("state", &"x".repeat(3000)),
    ] {
        let answer = visit(&with(key, value));
        assert_eq!((answer.status, answer.header("location")), (400, None), "{key}={value}");
        assert!(!answer.text().contains("id=\"allow\""), "{key}={value}");
    }
    let scripted = visit(&with("state", "\"><script>alert(1)</script>"));
    assert!(!scripted.text().contains("<script>"), "{}", scripted.text());
    // A form with a changed redirect URI.
    let mut form = fields(&rig.open(&page).text());
    let at = form.iter().position(|(key, _)| key == "redirect_uri").unwrap();
    form[at].1 = "http://127.0.0.1:1/elsewhere".to_owned();
    assert_eq!(rig.post(&form, "allow").status, 403);
    visit(&rig.press(&page, "deny"));
    assert!(!waiting.end().0);
    // A wrong client id, which the token call refuses.
    let printed = rig.refused(&["--client-id", "other", "--paste"], "somecode");
    assert!(printed.contains("refuses the login") && printed.contains("client id"), "{printed}");
}

#[test]
fn consent_page_requires_its_password() {
    let rig = Rig::with(|config| {
        config.logins.password = Some(pdsfs::server::Secret::new("open sesame".into()));
        config.logins.client_secret = Some(pdsfs::server::Secret::new("app secret".into()));
    });
    let secret = rig.path("client-secret");
    crate::rig::private_file(&secret, "app secret\n", 0o600);
    let (waiting, page) = rig.start_login(&["--port", "0", "--client-secret-file", secret.to_str().unwrap()]);
    let form = fields(&rig.open(&page).text());
    let with = |password: &str| [&form[..], &[("password".to_owned(), password.to_owned())]].concat();
    assert_eq!(rig.post(&form, "allow").status, 403);
    // One guess at a time.
    let guesses = std::thread::scope(|scope| {
        let guess = || rig.post(&with("guess"), "allow");
        let all = [scope.spawn(guess), scope.spawn(guess)];
        all.map(|guess| guess.join().unwrap())
    });
    let mut statuses = guesses.each_ref().map(|answer| answer.status);
    statuses.sort_unstable();
    assert_eq!(statuses, [403, 429]);
    assert!(guesses.iter().any(|answer| answer.text().contains("Wrong password")));
    let back = rig.post(&with("open sesame"), "allow");
    visit(&back.header("location").unwrap().parse().unwrap());
    let (success, printed) = waiting.end();
    assert!(success, "{printed}");
    // The app without its secret.
    let (mut waiting, page) = rig.start_login(&["other", "--paste"]);
    let form = fields(&rig.open(&page).text());
    let form = [&form[..], &[("password".to_owned(), "open sesame".to_owned())]].concat();
    waiting.paste(rig.post(&form, "allow").header("location").unwrap());
    let (success, printed) = waiting.end();
    assert!(!success && printed.contains("client secret"), "{printed}");
}

#[test]
fn other_user_cannot_answer_the_login() {
    let rig = Rig::new();
    let (waiting, page) = rig.start_login(&["--port", "0"]);
    let back = rig.press(&page, "allow");
    let answer = visit_as_other_user(&back);
    assert_eq!(answer.status, 403, "{}", answer.text());
    assert_eq!(visit(&back).status, 200);
    let (success, printed) = waiting.end();
    assert!(success && printed.contains("from uid 65534"), "{printed}");
}

#[test]
fn account_of_another_user_needs_replace() {
    let rig = Rig::new();
    let login = |more: &[&str]| {
        let (waiting, page) = rig.start_login(&[&["--port", "0"], more].concat());
        visit(&rig.press(&page, "allow"));
        waiting.end()
    };
    assert!(login(&[]).0);
    let stored = std::fs::read_to_string(rig.account("default")).unwrap();
    let of_alice = stored.replace("\"owner\"", "\"alice\"");
    assert_ne!(of_alice, stored);
    private_file(&rig.account("default"), &of_alice, 0o600);
    let (success, printed) = login(&[]);
    assert!(!success && printed.contains("belongs to alice, and this login is that of owner"), "{printed}");
    assert_eq!(std::fs::read_to_string(rig.account("default")).unwrap(), of_alice);
    let (success, printed) = login(&["--replace"]);
    assert!(success && printed.contains("logged in as owner"), "{printed}");
}

/// A directory with an `xdg-open` that writes its arguments, its file and its environment to `seen`.
fn browser_in(dir: &Path) -> String {
    let program = dir.join("xdg-open");
    let script = "#!/bin/sh\n{ echo \"arguments: $*\"; stat -c 'mode: %a' \"$1\"; cat \"$1\"; env; } >\"${0%/*}/new\"\n\
                  mv \"${0%/*}/new\" \"${0%/*}/seen\"\n";
    private_file(&program, script, 0o755);
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap())
}

#[test]
fn browser_gets_the_url_in_a_private_file() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for made in [dir.path(), &at("state"), &at("run")] {
        std::fs::create_dir_all(made).unwrap();
        std::fs::set_permissions(made, std::fs::Permissions::from_mode(0o700)).unwrap();
        chown(made, Some(OTHER_USER), Some(OTHER_USER)).expect("only root can run a program as another user");
    }
    // By another process: a child that is forked during a copy of ours holds the file open for writing.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_pdsfs")).arg(at("pdsfs")).status().unwrap();
    assert!(copied.success(), "{copied}");
    let mut command = Command::new(at("pdsfs"));
    command.args(rig.login_args(&["--client-id", CLIENT, "--port", "0", "--store", "file"]));
    command
        .env("PATH", browser_in(dir.path()))
        .env("STATE_DIRECTORY", at("state"))
        .env("XDG_RUNTIME_DIR", at("run"));
    command
        .env_remove("DBUS_SESSION_BUS_ADDRESS")
        .env("PDSFS_ACCESS_KEY_SECRET", "hidden")
        .env("PDSFS_CLIENT_ID", CLIENT);
    command.current_dir("/");
    command.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let (waiting, page) = Rig::start({
        command.uid(OTHER_USER).gid(OTHER_USER);
        command
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    // The browser is a process of its own, which sends no event.
    while !at("seen").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let seen = std::fs::read_to_string(at("seen")).unwrap();
    let arguments = seen.lines().next().unwrap();
    let state = page.query_pairs().find(|(key, _)| key == "state").unwrap().1.into_owned();
    let is_page = std::path::Path::new(&arguments).extension().is_some_and(|extension| extension == "html");
    assert!(!arguments.contains(&state) && is_page, "{arguments}");
    assert!(seen.contains("mode: 600\n"), "{seen}");
    assert!(seen.contains(&page.as_str().replace('&', "&amp;")), "{seen}");
    assert!(!seen.contains("PDSFS_") && !seen.contains("hidden"), "{seen}");
    let answer = visit_as_other_user(&rig.press(&page, "allow"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let (success, printed) = waiting.end();
    assert!(success, "{printed}");
    let file = Path::new(arguments.strip_prefix("arguments: ").unwrap());
    assert!(!file.exists(), "{} remains", file.display());
}

#[test]
fn root_starts_no_browser() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let mut command = rig.pdsfs(&rig.login_args(&["--client-id", CLIENT, "--port", "0"]));
    command.env("PATH", browser_in(dir.path()));
    let (waiting, page) = Rig::start(command);
    visit(&rig.press(&page, "allow"));
    let (success, printed) = waiting.end();
    assert!(success, "{printed}");
    let seen = ["new", "seen"].map(|name| dir.path().join(name).exists());
    assert_eq!(seen, [false, false], "a browser was started as root");
}

#[test]
fn consent_form_needs_its_browser_and_origin() {
    let rig = Rig::new();
    let (waiting, page) = rig.start_login(&["--port", "0"]);
    let shown = rig.open(&page);
    let cookie = shown.header("set-cookie").unwrap_or_default().to_owned();
    assert!(cookie.contains("HttpOnly; SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    let other = format!("pdsfs_consent={}", "0".repeat(32));
    let (form, own) = (fields(&shown.text()), rig.endpoint());
    for headers in [
        vec![("Origin", own.as_str())],
        vec![("Origin", own.as_str()), ("Cookie", other.as_str())],
        vec![("Cookie", cookie)],
        vec![("Cookie", cookie), ("Origin", "null")],
        vec![("Cookie", cookie), ("Origin", "http://evil.example")],
        vec![("Cookie", cookie), ("Origin", "http://evil.example:80"), ("Host", "evil.example:80")],
    ] {
        let answer = rig.post_with(&form, "allow", &headers);
        assert_eq!((answer.status, answer.header("location")), (403, None), "{headers:?}");
    }
    // A name that another site has made resolve to this machine.
    let target = format!("{}?{}", page.path(), page.query().unwrap());
    let host = [("Host".to_owned(), format!("evil.example:{}", rig.addr().port()))];
    let answer = send(rig.addr(), "GET", &target, &host, b"").unwrap();
    assert_eq!((answer.status, answer.text().contains("id=\"allow\"")), (403, false));
    // A second page of the same browser works as well.
    visit(&rig.press(&page, "allow"));
    assert!(waiting.end().0);
}

/// The proxy of a public URL may run as the user of the server, and anyone can reach it.
#[test]
fn consent_behind_a_proxy_needs_a_password() {
    let rig = Rig::with(|config| config.public_url = Some("https://drive.example".parse().unwrap()));
    let (waiting, page) = rig.start_login(&["--port", "0"]);
    let answer = visit(&page);
    assert_eq!((answer.status, answer.text().contains("id=\"allow\"")), (403, false), "{}", answer.text());
    assert!(answer.text().contains("PDSFS_SERVE_PASSWORD"), "{}", answer.text());
    drop(waiting);
}

#[test]
fn consent_without_password_is_for_one_user() {
    let rig = Rig::new();
    let (waiting, page) = rig.start_login(&["--port", "0"]);
    let answer = visit_as_other_user(&page);
    assert_eq!((answer.status, answer.text().contains("id=\"allow\"")), (403, false), "{}", answer.text());
    assert!(answer.text().contains("PDSFS_SERVE_PASSWORD"), "{}", answer.text());
    visit(&rig.press(&page, "deny"));
    assert!(!waiting.end().0);
    let open = Rig::with(|config| {
        config.logins.password = Some(pdsfs::server::Secret::new("open sesame".into()));
    });
    let (waiting, page) = open.start_login(&["--port", "0"]);
    assert_eq!(visit_as_other_user(&page).status, 200);
    visit(&open.press(&page, "deny"));
    assert!(!waiting.end().0);
}
