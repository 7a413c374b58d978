//! The rules of the source, each as a function from files to breaches.

use super::source::{Source, lines_with_word, named};

/// Longest file, in lines without test modules.
pub const LINES_MAX: usize = 500;

/// Files that may be longer, each with its reason.
pub const LONG_FILES: &[(&str, &str)] = &[];

/// What each module may name of this crate. A module without a line here is a breach; `pds::types`
/// and `pds` are looked up by their longest name first. A module may always name itself.
pub const IMPORTS: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("crc64", &[]),
    ("rolling_sha1", &["ids"]),
    ("error", &["ids"]),
    ("posix", &[]),
    ("printable", &[]),
    ("name_patterns", &["error"]),
    ("config", &["account", "error", "ids", "name_patterns", "pds::auth", "pds::endpoint"]),
    ("pds::types", &["ids", "rolling_sha1"]),
    ("pds::endpoint", &["error"]),
    ("pds::sign", &["error", "ids"]),
    ("account", &["error", "ids", "pds::endpoint", "pds::sign"]),
    ("pds", &["account", "config", "crc64", "error", "ids", "posix", "rolling_sha1"]),
    ("status", &["error", "printable"]),
    ("desktop", &["error", "printable", "status"]),
    ("tree", &["config", "error", "ids", "pds", "posix"]),
    ("content", &["config", "crc64", "error", "ids", "pds", "posix", "rolling_sha1", "status"]),
    ("vfs", &["config", "content", "error", "ids", "pds", "posix", "rolling_sha1", "status", "tree"]),
    ("fuse", &["config", "error", "ids", "posix", "vfs"]),
    ("control", &["config", "error", "ids", "logging", "status", "vfs"]),
    ("logging", &["error", "printable"]),
    ("server", &["crc64", "ids", "pds::types"]),
    (
        "cli",
        &[
            "account",
            "config",
            "control",
            "desktop",
            "error",
            "fuse",
            "ids",
            "name_patterns",
            "pds",
            "printable",
            "server",
            "status",
            "logging",
            "vfs",
        ],
    ),
    ("main", &["cli"]),
];

/// Packages that exactly one place may import.
const PACKAGES: &[(&str, &[&str])] =
    &[("fuser", &["src/fuse.rs", "src/fuse/"]), ("reqwest", &["src/pds/transport.rs", "src/pds/transport/"])];

/// Words that say nothing in a file name.
const EMPTY_WORDS: &[&str] =
    &["manager", "helper", "helpers", "util", "utils", "data", "info", "misc", "common"];

/// One thing that is not as it should be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Breach {
    /// File, and line where there is one.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

pub fn breach(path: &str, line: usize, what: impl Into<String>) -> Breach {
    Breach { place: if line == 0 { path.to_owned() } else { format!("{path}:{line}") }, what: what.into() }
}

/// `src/pds/drive/upload.rs` is `pds::drive::upload`.
fn module_of(path: &str) -> Option<String> {
    let inner = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    Some(inner.replace('/', "::"))
}

fn within(name: &str, module: &str) -> bool {
    name == module || name.starts_with(&format!("{module}::"))
}

/// Modules name only what lies in their direction.
pub fn imports(source: &Source) -> Vec<Breach> {
    let Some(module) = module_of(&source.path).filter(|module| module != "lib") else { return Vec::new() };
    let line_of = |module: &str| {
        let fits = IMPORTS.iter().filter(|(name, _)| within(module, name));
        fits.max_by_key(|(name, _)| name.len())
    };
    let Some((own, allowed)) = line_of(&module) else {
        return vec![breach(&source.path, 0, format!("{module} has no line in the table of imports"))];
    };
    let roots = if module == "main" { ["pdsfs", "crate"] } else { ["crate", "pdsfs"] };
    let mut out = Vec::new();
    for used in roots.iter().flat_map(|root| named(&source.daemon_code, root)) {
        let mut name = used.parts.join("::");
        if ["Error", "ErrorKind", "Result"].contains(&used.parts[0].as_str()) {
            name = format!("error::{name}");
        }
        if !within(&name, own) && !allowed.iter().any(|allowed| within(&name, allowed)) {
            out.push(breach(&source.path, used.line, format!("{own} must not name {name}")));
        }
    }
    out.extend(climbs_to_the_root(source, &module));
    out
}

/// `super` that arrives at the crate's root would hide an import from the table.
fn climbs_to_the_root(source: &Source, module: &str) -> Vec<Breach> {
    let depth = module.split("::").count();
    let climbing = vec!["super"; depth].join("::") + "::";
    let lines = source.daemon_code.lines().enumerate();
    let found = lines.filter(|(_, line)| line.contains(&climbing));
    found
        .map(|(n, _)| breach(&source.path, n + 1, "write crate:: where super would climb to the root"))
        .collect()
}

/// Packages with one door.
pub fn packages(source: &Source) -> Vec<Breach> {
    let mut out = Vec::new();
    for (package, doors) in PACKAGES {
        if doors.iter().any(|door| source.path.starts_with(door)) {
            continue;
        }
        for line in lines_with_word(&source.code, package) {
            out.push(breach(&source.path, line, format!("only {} may use {package}", doors[0])));
        }
    }
    out
}

/// Only `error.rs` names errno constants.
pub fn errno_constants(source: &Source) -> Vec<Breach> {
    if source.path == "src/error.rs" {
        return Vec::new();
    }
    let is_errno = |name: &str| {
        name.len() > 2
            && name.starts_with('E')
            && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
    };
    let found = named(&source.daemon_code, "libc").into_iter().filter(|named| is_errno(&named.parts[0]));
    found
        .map(|n| breach(&source.path, n.line, format!("only src/error.rs may name libc::{}", n.parts[0])))
        .collect()
}

/// The embedded server is for `cli` and tests.
pub fn server_users(source: &Source) -> Vec<Breach> {
    let free = |path: &str| path.starts_with("src/cli") || path.starts_with("src/server");
    if !source.path.starts_with("src/") || free(&source.path) {
        return Vec::new();
    }
    let roots = ["crate", "pdsfs"].iter().flat_map(|root| named(&source.daemon_code, root));
    let found = roots.filter(|named| named.parts[0] == "server");
    found.map(|n| breach(&source.path, n.line, "only cli and tests may name the server")).collect()
}

/// Short files with names that say something.
pub fn shape(source: &Source) -> Vec<Breach> {
    let mut out = Vec::new();
    let lines = source.daemon_lines();
    let excused = LONG_FILES.iter().any(|(path, _)| *path == source.path);
    if lines > LINES_MAX && !excused {
        out.push(breach(&source.path, 0, format!("{lines} lines without tests; at most {LINES_MAX}")));
    }
    if lines <= LINES_MAX && excused {
        out.push(breach(&source.path, 0, "no longer too long: strike it off the list of long files"));
    }
    let file = source.path.rsplit('/').next().unwrap_or_default();
    if file == "mod.rs" {
        out.push(breach(&source.path, 0, "modules are name.rs beside name/, not mod.rs"));
    }
    for part in source.path.trim_end_matches(".rs").split('/') {
        if let Some(word) = part.split('_').find(|word| EMPTY_WORDS.contains(word)) {
            out.push(breach(&source.path, 0, format!("{word:?} in a name says nothing")));
        }
    }
    out
}

/// Every file says why it is there; nothing is switched off; the text is ASCII outside strings.
pub fn manners(source: &Source) -> Vec<Breach> {
    let mut out = Vec::new();
    if !source.text.trim_start().starts_with("//!") {
        out.push(breach(&source.path, 1, "the file does not say why it exists (//! at its top)"));
    }
    for (n, line) in source.code.lines().enumerate() {
        let squeezed: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        if squeezed.contains("#[ignore") || squeezed.contains(",ignore") {
            out.push(breach(&source.path, n + 1, "a test that is switched off"));
        }
    }
    for (n, line) in source.text_without_strings().lines().enumerate() {
        if let Some(c) = line.chars().find(|c| !c.is_ascii()) {
            out.push(breach(&source.path, n + 1, format!("{c:?} outside a string")));
        }
    }
    out
}

mod tests {
    use super::*;

    fn judge(rule: fn(&Source) -> Vec<Breach>, path: &str, text: &str) -> Vec<String> {
        rule(&Source::new(path, text)).into_iter().map(|b| format!("{} {}", b.place, b.what)).collect()
    }

    #[test]
    fn an_import_against_the_direction_is_a_breach() {
        let bad = [
            ("src/pds/drive.rs", "use crate::vfs::Vfs;"),
            ("src/pds/types.rs", "use crate::{ids::Ino, pds::drive::Drive};"),
            ("src/server/api.rs", "fn f() { crate::rolling_sha1::x() }"),
            ("src/server.rs", "use crate::Error;"),
            ("src/server.rs", "use crate::pds::drive::Drive;"),
            ("src/tree/dentry.rs", "use super::super::content::OpenFile;"),
            ("src/status.rs", "use super::vfs::Vfs;"),
            ("src/content.rs", "use pdsfs::vfs;"),
            ("src/unheard_of.rs", ""),
        ];
        for (path, text) in bad {
            assert_eq!(judge(imports, path, text).len(), 1, "{path}: {text}");
        }
        let good = [
            (
                "src/server/api.rs",
                "use crate::pds::types::{File, FileType}; use crate::server::blobs::B; use super::x;",
            ),
            ("src/vfs/files.rs", "use crate::{Error, ids::Ino, content::OpenFile}; // crate::server"),
            ("src/pds/drive.rs", "#[cfg(test)]\nmod tests { use crate::server::Server; }"),
            ("src/main.rs", "fn main() { pdsfs::cli::run() }"),
            ("src/lib.rs", "pub use error::Error;"),
            ("tests/mount.rs", "use pdsfs::server::Server;"),
        ];
        for (path, text) in good {
            assert_eq!(judge(imports, path, text), Vec::<String>::new(), "{path}: {text}");
        }
    }

    #[test]
    fn the_table_of_imports_has_no_cycle_through_the_server() {
        for (module, allowed) in IMPORTS {
            assert!(*module == "cli" || !allowed.contains(&"server"), "{module}");
        }
    }

    #[test]
    fn a_package_has_one_door() {
        assert_eq!(
            judge(packages, "src/vfs.rs", "use fuser::FileAttr;"),
            ["src/vfs.rs:1 only src/fuse.rs may use fuser"]
        );
        assert_eq!(judge(packages, "src/pds/drive.rs", "\nfn f(c: reqwest::Client) {}").len(), 1);
        assert!(judge(packages, "src/fuse/reply.rs", "use fuser::ReplyEntry;").is_empty());
        assert!(judge(packages, "src/vfs.rs", "// fuser says so\nlet x = \"reqwest\";").is_empty());
    }

    #[test]
    fn errno_constants_live_in_one_file() {
        let text = "use libc::{c_int, ENOENT};\nfn f() -> i32 { libc::EIO + libc::EXIT_FAILURE }";
        let found = judge(errno_constants, "src/vfs.rs", text);
        assert_eq!(
            found,
            [
                "src/vfs.rs:1 only src/error.rs may name libc::ENOENT",
                "src/vfs.rs:2 only src/error.rs may name libc::EIO"
            ]
        );
        assert!(judge(errno_constants, "src/error.rs", text).is_empty());
    }

    #[test]
    fn the_server_is_used_by_cli_and_tests_only() {
        let text = "use crate::{ids::Ino, server::Server};";
        assert_eq!(judge(server_users, "src/vfs.rs", text).len(), 1);
        for path in ["src/cli/serve.rs", "src/server/api.rs", "tests/mount.rs"] {
            assert!(judge(server_users, path, text).is_empty(), "{path}");
        }
    }

    #[test]
    fn long_files_and_empty_names_are_breaches() {
        let long = "//! x\n".repeat(LINES_MAX + 1);
        assert_eq!(judge(shape, "src/vfs.rs", &long).len(), 1);
        let tests = format!("//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn f() {}\n".repeat(LINES_MAX));
        assert!(judge(shape, "src/vfs.rs", &tests).is_empty());
        assert_eq!(judge(shape, "src/cli/mod.rs", "").len(), 1);
        assert_eq!(judge(shape, "src/file_helper.rs", "").len(), 1);
        assert!(judge(shape, "src/database.rs", "").is_empty());
    }

    #[test]
    fn manners_are_checked() {
        assert_eq!(judge(manners, "src/a.rs", "fn f() {}").len(), 1);
        assert_eq!(
            judge(manners, "src/a.rs", "//! x\n#[ignore]\nfn f() {}"),
            ["src/a.rs:2 a test that is switched off"]
        );
        assert_eq!(judge(manners, "src/a.rs", "//! x\n// caf\u{e9}\n").len(), 1);
        assert!(judge(manners, "src/a.rs", "//! x\nlet a = \"caf\u{e9}\"; // plain\n").is_empty());
    }
}
