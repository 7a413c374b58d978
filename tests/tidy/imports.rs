//! The direction of imports between the top modules of `src`.

use super::graph::Graph;
use super::layout::{Breach, breach};
use super::source::{Source, is_test_file, lines_with_word, named};

/// The modules that each module may name. A module without a row is a breach. The table has no cycle.
const IMPORTS: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("crc64", &[]),
    ("posix", &[]),
    ("escape", &[]),
    ("clock", &["posix"]),
    ("rolling_sha1", &["ids"]),
    ("error", &["ids", "messages"]),
    ("units", &[]),
    ("messages", &["units"]),
    ("supervised", &[]),
    ("tcp_peer", &[]),
    ("host_header", &[]),
    ("name_patterns", &["error"]),
    ("local_disk", &["error", "units"]),
    ("logging", &["error", "escape", "messages"]),
    ("auth", &["error", "ids", "messages", "units"]),
    ("config", &["auth", "error", "ids", "name_patterns", "units"]),
    (
        "pds",
        &[
            "auth",
            "clock",
            "config",
            "crc64",
            "error",
            "ids",
            "local_disk",
            "messages",
            "posix",
            "rolling_sha1",
            "supervised",
            "units",
        ],
    ),
    ("status", &["error", "escape", "ids", "messages", "units"]),
    ("desktop", &["escape", "messages", "units"]),
    ("tree", &["error", "ids", "pds", "posix"]),
    (
        "content",
        &["clock", "crc64", "error", "ids", "local_disk", "pds", "posix", "rolling_sha1", "status", "units"],
    ),
    (
        "vfs",
        &[
            "clock",
            "config",
            "content",
            "error",
            "ids",
            "local_disk",
            "messages",
            "pds",
            "posix",
            "rolling_sha1",
            "status",
            "supervised",
            "tree",
            "units",
        ],
    ),
    ("fuse", &["clock", "config", "error", "ids", "posix", "units", "vfs"]),
    (
        "control",
        &[
            "config",
            "error",
            "host_header",
            "ids",
            "logging",
            "messages",
            "pds",
            "status",
            "supervised",
            "units",
            "vfs",
        ],
    ),
    ("server", &["crc64", "host_header", "ids", "pds::types", "tcp_peer"]),
    (
        "daemon",
        &[
            "auth",
            "config",
            "control",
            "desktop",
            "error",
            "fuse",
            "ids",
            "logging",
            "messages",
            "pds",
            "status",
            "supervised",
            "units",
            "vfs",
        ],
    ),
    (
        "cli",
        &[
            "auth",
            "config",
            "control",
            "daemon",
            "error",
            "escape",
            "fuse",
            "ids",
            "local_disk",
            "logging",
            "messages",
            "pds",
            "server",
            "status",
            "tcp_peer",
            "units",
        ],
    ),
    ("main", &["cli"]),
    (
        "fuzz_targets",
        &["auth", "cli", "config", "control", "fuse", "ids", "pds", "posix", "server", "tree", "vfs"],
    ),
];

/// Packages that only one module may import.
const PACKAGES: &[(&str, &[&str])] =
    &[("fuser", &["src/fuse.rs", "src/fuse/"]), ("reqwest", &["src/pds/transport.rs", "src/pds/transport/"])];

/// The files that may name the embedded server: commands of the cargo feature `server`.
const SERVER_USERS: &[&str] =
    &["src/lib.rs", "src/server", "src/cli/demo", "src/cli/serve", "src/fuzz_targets.rs"];

/// `src/pds/drive/upload.rs` is `pds::drive::upload`; tests and lib.rs are left out.
fn module_of(source: &Source) -> Option<String> {
    let inner = source.path.strip_prefix("src/")?.strip_suffix(".rs")?;
    (inner != "lib" && !is_test_file(&source.path)).then(|| inner.replace('/', "::"))
}

fn within(name: &str, module: &str) -> bool {
    name == module || name.starts_with(&format!("{module}::"))
}

fn top(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

/// The paths of this crate that a file names, with their lines. `crate::Error` counts for `error`.
fn used(source: &Source) -> Vec<(usize, String)> {
    let found = ["crate", "pdsfs"].into_iter().flat_map(|root| named(&source.daemon_code, root));
    let path = |parts: &[String]| match parts[0].as_str() {
        "Error" | "ErrorKind" | "Result" => format!("error::{}", parts.join("::")),
        _ => parts.join("::"),
    };
    found.map(|named| (named.line, path(&named.parts))).collect()
}

/// A module names only the modules of its row.
pub fn table(source: &Source) -> Vec<Breach> {
    let Some(module) = module_of(source) else { return Vec::new() };
    let own = top(&module);
    let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == own) else {
        return vec![breach(&source.path, 0, format!("{own} has no row in the table of imports"))];
    };
    let is_allowed = |name: &str| within(name, own) || allowed.iter().any(|allowed| within(name, allowed));
    let bad = used(source).into_iter().filter(|(_, name)| !is_allowed(name));
    let mut out: Vec<_> =
        bad.map(|(line, name)| breach(&source.path, line, format!("{own} must not name {name}"))).collect();
    out.extend(climbs_to_the_root(source, &module));
    out
}

/// `super` up to the root of the crate would hide an import from the table.
fn climbs_to_the_root(source: &Source, module: &str) -> Vec<Breach> {
    let depth = module.split("::").count();
    let climbing = vec!["super"; depth].join("::") + "::";
    let lines = source.daemon_code.lines().enumerate().filter(|(_, line)| line.contains(&climbing));
    lines
        .map(|(n, _)| breach(&source.path, n + 1, "write crate:: instead of super:: up to the root"))
        .collect()
}

/// The table and the actual imports have no cycle between top modules.
pub fn cycles(sources: &[Source]) -> Vec<Breach> {
    let (mut rows, mut actual) = (Graph::default(), Graph::default());
    for (module, allowed) in IMPORTS {
        for other in *allowed {
            rows.add(module, top(other));
        }
    }
    for source in sources {
        let Some(module) = module_of(source) else { continue };
        for (_, name) in used(source) {
            actual.add(top(&module), top(&name));
        }
    }
    let graphs = [("tests/tidy/imports.rs", rows), ("src", actual)];
    let cycles =
        graphs.into_iter().flat_map(|(place, graph)| graph.cycles().into_iter().map(move |c| (place, c)));
    cycles
        .map(|(place, cycle)| {
            let names = cycle.into_iter().collect::<Vec<_>>().join(", ");
            breach(place, 0, format!("a cycle of modules: {names}"))
        })
        .collect()
}

/// A package has one importing module.
pub fn packages(source: &Source) -> Vec<Breach> {
    if !source.path.starts_with("src/") {
        return Vec::new();
    }
    let mut out = Vec::new();
    for (package, places) in PACKAGES {
        if places.iter().any(|place| source.path.starts_with(place)) {
            continue;
        }
        for line in lines_with_word(&source.code, package) {
            out.push(breach(&source.path, line, format!("only {} may use {package}", places[0])));
        }
    }
    out
}

/// Only the commands with the server, and tests, name the embedded server.
pub fn server_users(source: &Source) -> Vec<Breach> {
    let is_free = SERVER_USERS.iter().any(|place| source.path.starts_with(place));
    if module_of(source).is_none() || is_free {
        return Vec::new();
    }
    let found = used(source).into_iter().filter(|(_, name)| within(name, "server"));
    found
        .map(|(line, _)| breach(&source.path, line, "only demo, serve and tests may name the server"))
        .collect()
}

mod tests {
    use super::*;

    fn judge(rule: fn(&Source) -> Vec<Breach>, path: &str, text: &str) -> Vec<String> {
        rule(&Source::new(path, text)).into_iter().map(|b| format!("{} {}", b.place, b.what)).collect()
    }

    #[test]
    fn imports_outside_the_table_are_breaches() {
        let bad = [
            ("src/pds/drive.rs", "use crate::vfs::Vfs;"),
            ("src/server/api.rs", "use crate::{ids::Ino, pds::drive::Drive};"),
            ("src/server/api.rs", "fn f() { crate::rolling_sha1::x() }"),
            ("src/server.rs", "use crate::Error;"),
            ("src/daemon/signals.rs", "use crate::cli::output;"),
            ("src/tree/dentry.rs", "use super::super::content::OpenFile;"),
            ("src/status.rs", "use super::vfs::Vfs;"),
            ("src/content.rs", "use pdsfs::vfs;"),
            ("src/unheard_of.rs", ""),
        ];
        for (path, text) in bad {
            assert_eq!(judge(table, path, text).len(), 1, "{path}: {text}");
        }
        let good = [
            (
                "src/server/api.rs",
                "use crate::pds::types::{File, FileType}; use crate::server::blobs::B; use super::x;",
            ),
            ("src/vfs/files.rs", "use crate::{Error, ids::Ino, content::OpenFile}; // crate::server"),
            ("src/pds/drive.rs", "#[cfg(test)]\nmod tests { use crate::server::Server; }"),
            ("src/tests/vfs.rs", "use crate::server::Server;"),
            ("src/main.rs", "fn main() { pdsfs::cli::run() }"),
            ("src/lib.rs", "pub use error::Error;"),
            ("tests/mount.rs", "use pdsfs::server::Server;"),
        ];
        for (path, text) in good {
            assert_eq!(judge(table, path, text), Vec::<String>::new(), "{path}: {text}");
        }
    }

    #[test]
    fn cycles_between_modules_are_breaches() {
        let good = [Source::new("src/a.rs", "use crate::b::B;"), Source::new("src/b.rs", "")];
        assert_eq!(cycles(&good), [], "the table has no cycle");
        let bad =
            [Source::new("src/a/x.rs", "use crate::b::B;"), Source::new("src/b.rs", "use crate::a::A;")];
        assert_eq!(cycles(&bad), [breach("src", 0, "a cycle of modules: a, b")]);
    }

    #[test]
    fn package_imports_elsewhere_are_breaches() {
        assert_eq!(
            judge(packages, "src/vfs.rs", "use fuser::FileAttr;"),
            ["src/vfs.rs:1 only src/fuse.rs may use fuser"]
        );
        assert_eq!(judge(packages, "src/pds/drive.rs", "\nfn f(c: reqwest::Client) {}").len(), 1);
        assert!(judge(packages, "src/fuse/reply.rs", "use fuser::ReplyEntry;").is_empty());
        assert!(judge(packages, "src/vfs.rs", "// fuser says so\nlet x = \"reqwest\";").is_empty());
    }

    #[test]
    fn only_named_files_may_name_the_server() {
        let text = "use crate::{ids::Ino, server::Server};";
        for path in ["src/vfs.rs", "src/cli.rs", "src/cli/mount.rs", "src/daemon/background.rs"] {
            assert_eq!(judge(server_users, path, text).len(), 1, "{path}");
        }
        for path in ["src/cli/serve.rs", "src/cli/demo/once.rs", "src/server/api.rs", "tests/mount.rs"] {
            assert!(judge(server_users, path, text).is_empty(), "{path}");
        }
    }
}
