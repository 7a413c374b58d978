//! `pdsfs doctor`: each line of a service once right and once wrong.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use pdsfs::server::Secret;
use serde_json::Value;

use crate::rig::{CLIENT, Rig, TOKEN, stderr};

/// Longest run against a service that hangs.
const HUNG_MAX: Duration = Duration::from_secs(30);

/// `pdsfs doctor --json` with these variables.
fn doctor(rig: &Rig, variables: &[(&str, &str)]) -> Command {
    let mut command = rig.pdsfs(&["doctor", "--json"]);
    command.env("XDG_CACHE_HOME", rig.path("cache")).envs(variables.iter().copied());
    command
}

/// The exit code and the result.
fn diagnosis(mut command: Command) -> (Option<i32>, Value) {
    let output = command.output().unwrap();
    let json = serde_json::from_slice(&output.stdout);
    (output.status.code(), json.unwrap_or_else(|e| panic!("{e}: {}", stderr(&output))))
}

/// State and text of a check.
fn line(result: &Value, check: &str) -> (String, String) {
    let found = result["checks"].as_array().unwrap().iter().find(|line| line["check"] == check);
    let found = found.unwrap_or_else(|| panic!("no {check}: {result}"));
    let text =
        format!("{} {}", found["detail"].as_str().unwrap(), found["remedy"].as_str().unwrap_or_default());
    (found["state"].as_str().unwrap().to_owned(), text)
}

#[track_caller]
fn assert_problem(result: &Value, check: &str, text: &str) {
    let (state, found) = line(result, check);
    assert!(state == "problem" && found.contains(text), "{check}: {state} {found}");
}

/// A token of the owner, without an account.
fn with_token(endpoint: &str) -> [(&'static str, &str); 3] {
    [("PDSFS_TOKEN", TOKEN), ("PDSFS_ENDPOINT", endpoint), ("PDSFS_DRIVE_ID", "1")]
}

#[test]
fn doctor_finds_nothing_wrong_with_a_good_login() {
    let rig = Rig::new();
    rig.login(&["--token", "--drive-id", "2"], TOKEN);
    let (_, result) = diagnosis(doctor(&rig, &[]));
    for check in ["dns", "endpoint", "clock", "login", "drive", "quota", "staging-disk", "configuration"] {
        let (state, text) = line(&result, check);
        assert_eq!(state, "ok", "{check}: {text}");
    }
    let drives: Vec<_> =
        result["checks"].as_array().unwrap().iter().filter_map(|c| c["drive"].as_str()).collect();
    assert_eq!(drives, ["default"; 6]);
}

#[test]
fn doctor_exit_code_is_that_of_its_lines() {
    let rig = Rig::with(|config| config.logins.refresh_token = Some(Secret::new("RT-1".into())));
    rig.login(&["--client-id", CLIENT, "--refresh-token"], "RT-1");
    let (code, result) = diagnosis(doctor(&rig, &[]));
    let is_ok = result["checks"].as_array().unwrap().iter().all(|line| line["state"] != "problem");
    assert_eq!((code, result["ok"].as_bool()), (Some(i32::from(!is_ok)), Some(is_ok)), "{result}");
    rig.runtime.block_on(rig.server().revoke_all_tokens()).unwrap();
    let (code, result) = diagnosis(doctor(&rig, &[]));
    assert_eq!((code, result["ok"].as_bool()), (Some(1), Some(false)));
    assert_problem(&result, "login", "pdsfs login default");
    assert_eq!(line(&result, "quota").0, "skipped");
}

#[test]
fn doctor_names_the_command_of_a_first_login() {
    let rig = Rig::new();
    assert_problem(&diagnosis(doctor(&rig, &[])).1, "login", "run pdsfs login");
}

#[test]
fn doctor_names_a_missing_or_full_drive() {
    let rig = Rig::with(|config| config.quota_bytes = Some(0));
    let endpoint = rig.endpoint();
    let mut variables = with_token(&endpoint);
    assert_problem(&diagnosis(doctor(&rig, &variables)).1, "quota", "recycle bin");
    variables[2].1 = "99";
    let (_, result) = diagnosis(doctor(&rig, &variables));
    assert_problem(&result, "drive", "pdsfs drives");
    assert_eq!(line(&result, "login").0, "ok");
}

#[test]
fn doctor_ends_although_the_endpoint_hangs() {
    let rig = Rig::new();
    // The kernel accepts connections, and nothing answers.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let began = Instant::now();
    let (code, result) = diagnosis(doctor(&rig, &with_token(&endpoint)));
    assert!(began.elapsed() < HUNG_MAX, "{:?}", began.elapsed());
    assert_eq!(code, Some(1));
    assert_problem(&result, "endpoint", "curl -sv");
    assert_eq!(line(&result, "login").0, "skipped");
}

#[test]
fn doctor_names_an_unknown_host() {
    let rig = Rig::new();
    let (_, result) = diagnosis(doctor(&rig, &with_token("https://no-such-host.invalid")));
    assert_problem(&result, "dns", "getent hosts no-such-host.invalid");
}

#[test]
fn doctor_compares_the_clock_with_the_service() {
    let rig = Rig::new();
    let old = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint = format!("http://{}", old.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = old.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        let answer = "HTTP/1.1 404 Not Found\r\nDate: Mon, 23 Nov 2020 17:56:33 GMT\r\nContent-Length: 0\r\n\
                      Connection: close\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let (_, result) = diagnosis(doctor(&rig, &with_token(&endpoint)));
    server.join().unwrap();
    assert_problem(&result, "clock", "timedatectl set-ntp true");
    assert_eq!(line(&result, "endpoint").0, "ok");
}

#[test]
fn doctor_names_problems_of_this_machine() {
    let rig = Rig::new();
    let config = rig.path("config.toml");
    std::fs::write(&config, "[drives.photos]\npart_sice = 1\n").unwrap();
    let variables = [
        ("PDSFS_CONFIG", config.to_str().unwrap()),
        ("PDSFS_SPILL_DIR", "/no/such/directory"),
        ("SSL_CERT_FILE", "/dev/null"),
        ("SSL_CERT_DIR", "/no/such/directory"),
    ];
    let (_, result) = diagnosis(doctor(&rig, &variables));
    assert_problem(&result, "configuration", "part_size");
    assert_problem(&result, "staging-disk", "/no/such/directory");
    assert_problem(&result, "ca-roots", "ca-certificates");
}

#[test]
fn doctor_report_has_no_secret_and_no_name() {
    let rig = Rig::new();
    let endpoint = rig.endpoint();
    let config = rig.path("config.toml");
    let text = format!(
        "[defaults]\npart_size = \"1MiB\"\n[drives.holiday]\nendpoint = \"{endpoint}\"\ndrive_id = \"1\"\n\
         mountpoint = \"/home/alice/Holiday\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let report = rig.path("report.txt");
    let run = || {
        let mut command = rig.pdsfs(&[
            "doctor",
            "--config",
            config.to_str().unwrap(),
            "--report",
            report.to_str().unwrap(),
        ]);
        command.env("PDSFS_TOKEN", TOKEN).env("XDG_CACHE_HOME", rig.path("cache")).output().unwrap()
    };
    let output = run();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("holiday: "), "{printed}");
    let written = std::fs::read_to_string(&report).unwrap();
    assert_eq!(std::fs::metadata(&report).unwrap().permissions().mode() & 0o777, 0o600);
    for expected in ["pdsfs 0.", "Linux ", "login", "part_size = \"1MiB\"", "[drives.1]"] {
        assert!(written.contains(expected), "{expected}: {written}");
    }
    for private in [TOKEN, "holiday", "alice", "127.0.0.1"] {
        assert!(!written.contains(private), "{private}: {written}");
    }
    let again = run();
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("--report"), "{}", stderr(&again));
}
