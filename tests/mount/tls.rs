//! Drives behind https.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pdsfs::server::ServerTls;

use crate::certificates::Authority;
use crate::rig::{Mount, Rig, TOKEN, fresh_bytes, refused_mount};

/// The host of every test server.
const HOST: &str = "127.0.0.1";
/// A year in which tests do not run any more.
const FAR: i32 = 2100;

fn https(tls: ServerTls) -> (Rig, String) {
    let rig = Rig::with(move |config| config.tls = Some(tls.clone()));
    let endpoint = rig.endpoint().replace("http:", "https:");
    (rig, endpoint)
}

fn command(variables: &[(&str, &Path)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
    command.envs(variables.iter().copied()).env("PDSFS_TOKEN", TOKEN).stdin(Stdio::null());
    command
}

/// What a mount prints that must fail.
fn refused(mut command: Command, endpoint: &str, arguments: &[&str]) -> String {
    let mountpoint = tempfile::tempdir().unwrap();
    command.args(["mount", "--endpoint", endpoint, "--drive-id", "1"]).args(arguments).arg(mountpoint.path());
    let printed = refused_mount(command, mountpoint.path());
    assert!(!printed.contains(TOKEN), "{printed}");
    printed
}

#[test]
fn https_drive_is_written_and_read() {
    let authority = Authority::new("own");
    let (rig, endpoint) = https(authority.serve(HOST, FAR));
    let ca_file = authority.file();
    let arguments = ["--part-size", "64KiB", "--ca-file", ca_file.to_str().unwrap()];
    let mount = Mount::start(&endpoint, &arguments, tempfile::tempdir().unwrap());
    let bytes = fresh_bytes(10 * (64 << 10) + 1);
    fs::write(mount.at("f"), &bytes).unwrap();
    let mount = mount.restart(&endpoint, &arguments);
    assert_eq!(fs::read(mount.at("f")).unwrap(), bytes);
    let stats = rig.server().stats();
    assert!(stats.count("put_part") >= 11 && stats.count("get_object") >= 1, "{stats:?}");
    assert_eq!(mount.stop(), 0);
}

/// In a mount namespace with another `/etc/hosts`. The service has answered from this machine, so content may be here.
#[test]
fn named_endpoint_on_this_machine_has_local_content() {
    let authority = Authority::new("own");
    let (_rig, endpoint) = https(authority.serve("drive.test", FAR));
    let (dir, mountpoint) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hosts = dir.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 drive.test\n").unwrap();
    let script = "mount --bind \"$4\" /etc/hosts || exit 10
        for act in 'echo hello >\"$3/f\"' 'cat \"$3/f\"'; do
        \"$0\" mount --background --endpoint \"$1\" --drive-id 1 --ca-file \"$2\" \"$3\" || exit 11
        eval \"$act\" || failed=12
        \"$0\" umount --drain \"$3\" || exit 13
        done; exit $failed";
    let mut inner = Command::new("unshare");
    inner.args(["--mount", "--propagation", "private", "sh", "-c", script, env!("CARGO_BIN_EXE_pdsfs")]);
    inner.arg(endpoint.replace(HOST, "drive.test")).arg(authority.file()).arg(mountpoint.path()).arg(&hosts);
    let output = inner.env("PDSFS_TOKEN", TOKEN).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "this test needs root: {output:?}");
    assert!(output.stdout.ends_with(b"hello\n"), "{output:?}");
}

#[test]
fn refused_certificates_are_explained() {
    let (authority, stranger) = (Authority::new("own"), Authority::new("stranger"));
    for (tls, phrases) in [
        (stranger.serve(HOST, FAR), ["UnknownIssuer", "with ca_file"]),
        (authority.serve("other.example", FAR), ["not valid for name \"127.0.0.1\"", "check the host name"]),
        (authority.serve(HOST, 2020), ["certificate expired", "check the clock"]),
    ] {
        let (_rig, endpoint) = https(tls);
        let ca_file = authority.file();
        let printed = refused(command(&[]), &endpoint, &["--ca-file", ca_file.to_str().unwrap()]);
        for phrase in phrases {
            assert!(printed.contains(phrase), "{phrase}: {printed}");
        }
    }
}

#[test]
fn only_https_needs_root_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent");
    let bare: [(&str, &Path); 2] = [("SSL_CERT_FILE", &absent), ("SSL_CERT_DIR", dir.path())];
    let rig = Rig::new();
    let mount = Mount::start_by(command(&bare), &rig.endpoint(), &[], tempfile::tempdir().unwrap());
    fs::write(mount.at("f"), b"text").unwrap();
    assert_eq!(mount.stop(), 0);
    let authority = Authority::new("own");
    let (_rig, endpoint) = https(authority.serve(HOST, FAR));
    let printed = refused(command(&bare), &endpoint, &[]);
    assert!(printed.contains("no root certificates") && printed.contains("ca-certificates"), "{printed}");
    // Those of `ca_file` are enough.
    let ca_file = authority.file();
    let arguments = ["--ca-file", ca_file.to_str().unwrap()];
    let mount = Mount::start_by(command(&bare), &endpoint, &arguments, tempfile::tempdir().unwrap());
    assert_eq!(mount.stop(), 0);
}

#[test]
fn unusable_ca_file_fails_the_mount() {
    let rig = Rig::new();
    let empty = tempfile::NamedTempFile::new().unwrap();
    let printed = refused(command(&[]), &rig.endpoint(), &["--ca-file", empty.path().to_str().unwrap()]);
    assert!(printed.contains("it holds no certificate"), "{printed}");
    assert_eq!(rig.server().stats().count("file/list"), 0);
}

#[test]
fn cut_handshakes_are_repeated() {
    let authority = Authority::new("own");
    let (rig, _) = https(authority.serve(HOST, FAR));
    let front = TcpListener::bind((HOST, 0)).unwrap();
    let endpoint = format!("https://{}", front.local_addr().unwrap());
    let (server, cut) = (rig.server().addr(), Arc::new(AtomicUsize::new(0)));
    let count = cut.clone();
    std::thread::spawn(move || {
        for client in front.incoming().map_while(Result::ok) {
            if count.fetch_add(1, Ordering::SeqCst) < 3 {
                cut_handshake(client);
            } else {
                join(client, TcpStream::connect(server).unwrap());
            }
        }
    });
    let ca_file = authority.file();
    let arguments = ["--ca-file", ca_file.to_str().unwrap()];
    let mount = Mount::start(&endpoint, &arguments, tempfile::tempdir().unwrap());
    assert!(cut.load(Ordering::SeqCst) > 3);
    assert_eq!(mount.stop(), 0);
}

/// Reads the client's first message and closes the connection.
fn cut_handshake(mut client: TcpStream) {
    let _received = client.read(&mut [0; 4096]).unwrap_or(0);
}

/// Moves bytes both ways.
fn join(client: TcpStream, server: TcpStream) {
    for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

#[test]
fn redirect_is_not_followed() {
    let [front, other] = [(); 2].map(|()| TcpListener::bind((HOST, 0)).unwrap());
    let [front_addr, other_addr] = [&front, &other].map(|listener| listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut client in front.incoming().map_while(Result::ok) {
            let _received = client.read(&mut [0; 4096]).unwrap_or(0);
            let answer = format!(
                "HTTP/1.1 302 Found\r\nlocation: http://{other_addr}/v2/file/list\r\ncontent-length: 0\r\n\
                 connection: close\r\n\r\n"
            );
            let _ = client.write_all(answer.as_bytes());
        }
    });
    let printed = refused(command(&[]), &format!("http://{front_addr}"), &[]);
    assert!(printed.contains("302"), "{printed}");
    other.set_nonblocking(true).unwrap();
    let visitor = other.accept().map(drop).unwrap_err();
    assert_eq!(visitor.kind(), std::io::ErrorKind::WouldBlock, "the client followed the redirect");
}
