//! A server, a state directory for accounts, and an HTTP client in the role of a browser.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use pdsfs::server::{Secret, Server, ServerConfig};
use url::Url;

use crate::http::{Answer, send};

/// The app that the server knows.
pub const CLIENT: &str = "app";
/// The token of the owner.
pub const TOKEN: &str = "owner-token";

/// An embedded server with two drives, and a state directory.
pub struct Rig {
    pub runtime: tokio::runtime::Runtime,
    server: Option<Server>,
    dir: tempfile::TempDir,
    /// The cookie that the consent page has set.
    cookie: Mutex<String>,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(configure: impl FnOnce(&mut ServerConfig)) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut config = ServerConfig::new(dir.path().join("data"), Secret::new(TOKEN.to_owned()));
        config.drives = 2;
        config.logins.client_ids = vec![CLIENT.to_owned()];
        configure(&mut config);
        let server = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            Server::start(listener, config).await.unwrap()
        });
        Self { runtime, server: Some(server), dir, cookie: Mutex::default() }
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub fn addr(&self) -> SocketAddr {
        self.server().addr()
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The file of an account.
    pub fn account(&self, name: &str) -> PathBuf {
        self.path("state").join("accounts").join(format!("{name}.json"))
    }

    /// The binary, with the state directory of this rig and without a desktop session.
    pub fn pdsfs(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pdsfs"));
        command.args(args).env("STATE_DIRECTORY", self.path("state"));
        for variable in
            ["DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "PDSFS_ENDPOINT", "PDSFS_TOKEN", "PDSFS_ACCOUNT"]
        {
            command.env_remove(variable);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the binary with `stdin` as its input and returns its output.
    pub fn run(&self, args: &[&str], stdin: &str) -> Output {
        finish(self.pdsfs(args).spawn().unwrap(), stdin)
    }

    /// Runs `pdsfs login`, which must succeed.
    #[track_caller]
    pub fn login(&self, args: &[&str], stdin: &str) -> String {
        let output = self.run(&self.login_args(args), stdin);
        let printed = stderr(&output);
        assert!(output.status.success(), "{printed}");
        printed
    }

    /// Runs `pdsfs login`, which must fail, and returns its output. The output must not contain `stdin`.
    #[track_caller]
    pub fn refused(&self, args: &[&str], stdin: &str) -> String {
        let output = self.run(&self.login_args(args), stdin);
        let printed = stderr(&output);
        assert!(!output.status.success(), "{printed}");
        assert!(stdin.trim().is_empty() || !printed.contains(stdin.trim()), "{printed}");
        printed
    }

    pub fn login_args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let endpoint: &'a str = Box::leak(self.endpoint().into_boxed_str());
        [&["login", "--endpoint", endpoint][..], args].concat()
    }

    /// Starts `pdsfs login` for a browser and returns the printed URL.
    pub fn start_login(&self, args: &[&str]) -> (PendingLogin, Url) {
        let args = [&["--client-id", CLIENT, "--no-browser"], args].concat();
        Self::start(self.pdsfs(&self.login_args(&args)))
    }

    /// Starts a login and returns the printed URL.
    pub fn start(mut command: Command) -> (PendingLogin, Url) {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            assert!(lines.read_line(&mut line).unwrap() > 0, "no URL was printed: {printed}");
            printed.push_str(&line);
            if let Ok(url) = Url::parse(line.trim())
                && url.path() == "/v2/oauth/authorize"
            {
                return (PendingLogin { child, lines, printed }, url);
            }
        }
    }

    /// Opens the page and keeps its cookie.
    pub fn open(&self, page: &Url) -> Answer {
        let shown = visit(page);
        let cookie = shown.header("set-cookie").unwrap_or_default();
        cookie.split(';').next().unwrap().clone_into(&mut self.cookie.lock().unwrap());
        shown
    }

    /// Opens the page, presses a button, and returns the target of the redirect.
    pub fn press(&self, page: &Url, decision: &str) -> Url {
        let shown = self.open(page);
        assert_eq!(shown.status, 200, "{}", shown.text());
        let answer = self.post(&fields(&shown.text()), decision);
        assert_eq!(answer.status, 303, "{}", answer.text());
        answer.header("location").unwrap().parse().unwrap()
    }

    /// Sends the form of the page as the browser does, and returns the answer.
    pub fn post(&self, fields: &[(String, String)], decision: &str) -> Answer {
        let cookie = self.cookie.lock().unwrap().clone();
        self.post_with(fields, decision, &[("Origin", &self.endpoint()), ("Cookie", &cookie)])
    }

    /// Sends the form of the page with these headers.
    pub fn post_with(&self, fields: &[(String, String)], decision: &str, headers: &[(&str, &str)]) -> Answer {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .append_pair("decision", decision)
            .finish();
        let headers = headers.iter().chain(&[("Content-Type", "application/x-www-form-urlencoded")]);
        let headers: Vec<_> =
            headers.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        send(self.addr(), "POST", "/v2/oauth/authorize", &headers, body.as_bytes()).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.shutdown());
        }
    }
}

/// A login that waits for its browser.
pub struct PendingLogin {
    child: Child,
    lines: BufReader<std::process::ChildStderr>,
    printed: String,
}

impl PendingLogin {
    /// Sends a line to stdin.
    pub fn paste(&mut self, text: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{text}").unwrap();
    }

    /// Waits for the exit. Returns the success and all output.
    pub fn end(mut self) -> (bool, String) {
        drop(self.child.stdin.take());
        self.lines.read_to_string(&mut self.printed).unwrap();
        (self.child.wait().unwrap().success(), std::mem::take(&mut self.printed))
    }
}

impl Drop for PendingLogin {
    /// A test that fails leaves no process behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Requests a URL as a browser does.
pub fn visit(url: &Url) -> Answer {
    let addr = url.socket_addrs(|| None).unwrap()[0];
    let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    send(addr, "GET", &target, &[], b"").unwrap()
}

/// The uid and gid of a user without files.
pub const OTHER_USER: u32 = 65_534;

/// Requests a URL as a browser of `OTHER_USER` does. Needs root.
pub fn visit_as_other_user(url: &Url) -> Answer {
    std::thread::scope(|scope| scope.spawn(|| as_other_user(|| visit(url))).join().unwrap())
}

/// Acts as `OTHER_USER` until this thread ends. Needs root.
pub fn as_other_user<T>(act: impl FnOnce() -> T) -> T {
    // The C library would change all threads.
    // SAFETY: the calls take numbers only, and change this thread.
    let changed = unsafe {
        libc::syscall(libc::SYS_setresgid, OTHER_USER, OTHER_USER, OTHER_USER)
            + libc::syscall(libc::SYS_setresuid, OTHER_USER, OTHER_USER, OTHER_USER)
    };
    assert_eq!(changed, 0, "this test acts as two users, and only root can do that");
    act()
}

/// The hidden fields of a form.
pub fn fields(html: &str) -> Vec<(String, String)> {
    let attribute = |tag: &str, name: &str| {
        let rest = tag.split_once(&format!("{name}=\"")).unwrap().1;
        let value = rest.split_once('"').unwrap().0;
        value.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    };
    let tags = html.split("<input type=\"hidden\"").skip(1).map(|rest| rest.split_once('>').unwrap().0);
    tags.map(|tag| (attribute(tag, "name"), attribute(tag, "value"))).collect()
}

fn finish(mut child: Child, stdin: &str) -> Output {
    // A program that fails early does not read stdin.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Writes a file with this mode.
pub fn private_file(path: &Path, text: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
