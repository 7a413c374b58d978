//! Logins to a domain behind https.

use crate::certificates::Authority;
use crate::rig::{Rig, TOKEN, private_file, stderr};

const HOST: &str = "127.0.0.1";

#[test]
fn login_accepts_the_authority_of_ca_file() {
    let authority = Authority::new("own");
    let rig = Rig::with(|config| config.tls = Some(authority.serve(HOST, 2100)));
    let endpoint = format!("https://{}", rig.addr());
    let login = ["login", "--endpoint", &endpoint, "--token", "--store", "file"];
    let stranger = Authority::new("stranger").file();
    let ca_file = authority.file();
    let with = |arguments: &[&str], ca_file: &std::path::Path, stdin: &str| {
        rig.run(&[arguments, &["--ca-file", ca_file.to_str().unwrap()]].concat(), stdin)
    };
    let refused = with(&login, &ca_file.with_file_name("absent"), TOKEN);
    assert!(stderr(&refused).contains("cannot use ca_file"), "{}", stderr(&refused));
    let refused = with(&login, &stranger, TOKEN);
    assert!(!refused.status.success() && !stderr(&refused).contains(TOKEN), "{}", stderr(&refused));
    let accepted = with(&login, &ca_file, TOKEN);
    assert!(accepted.status.success(), "{}", stderr(&accepted));
    let listed = with(&["drives"], &ca_file, "");
    assert!(listed.status.success(), "{}", stderr(&listed));
    let refused = rig.run(&["drives"], "");
    assert!(stderr(&refused).contains("no connection"), "{}", stderr(&refused));
}

#[test]
fn server_speaks_https_with_its_certificate() {
    use std::io::BufRead as _;
    let authority = Authority::new("own");
    let rig = Rig::new();
    let (certificate, key) = authority.issue(HOST, 2100);
    let (chain_file, key_file) = (rig.path("cert.pem"), rig.path("key.pem"));
    std::fs::write(&chain_file, certificate).unwrap();
    private_file(&key_file, &key, 0o644);
    let data = rig.path("https");
    let [chain, key, data] = [&chain_file, &key_file, &data].map(|path| path.to_str().unwrap());
    let arguments =
        ["serve", "--listen", "127.0.0.1:0", "--data", data, "--tls-cert", chain, "--tls-key", key];
    let serve = || {
        let mut server = rig.pdsfs(&arguments).env("PDSFS_TOKEN", TOKEN).spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (server, line)
    };
    let (mut server, line) = serve();
    if !line.is_empty() {
        server.kill().unwrap();
    }
    let refused = server.wait_with_output().unwrap();
    assert!(line.is_empty(), "a key that others can read was accepted");
    assert!(stderr(&refused).contains("key.pem"), "{}", stderr(&refused));
    private_file(&key_file, &std::fs::read_to_string(&key_file).unwrap(), 0o600);
    let (mut server, line) = serve();
    let endpoint = line.trim().strip_prefix("listening on ").unwrap_or_default().to_owned();
    let ca_file = authority.file();
    let login = rig.run(
        &[
            "login",
            "--endpoint",
            &endpoint,
            "--token",
            "--store",
            "file",
            "--ca-file",
            ca_file.to_str().unwrap(),
        ],
        TOKEN,
    );
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(endpoint.starts_with("https://"), "{line}");
    assert!(login.status.success(), "{}", stderr(&login));
}
