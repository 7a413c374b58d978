//! Rules for each file: size, name, module docs, errno constants.

use super::source::{Source, named};

/// Longest file, in lines without test modules.
pub const LINES_MAX: usize = 500;

/// Words without meaning in a file name.
const EMPTY_WORDS: &[&str] =
    &["manager", "helper", "helpers", "util", "utils", "data", "info", "misc", "common"];

/// A place that breaks a rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Breach {
    /// The file, with a line if there is one.
    pub place: String,
    pub what: String,
}

/// A breach at a line, or of a whole file with line 0.
pub fn breach(path: &str, line: usize, what: impl Into<String>) -> Breach {
    Breach { place: if line == 0 { path.to_owned() } else { format!("{path}:{line}") }, what: what.into() }
}

/// Only `error.rs` names errno constants.
pub fn errno_constants(source: &Source) -> Vec<Breach> {
    if source.path == "src/error.rs" || !source.path.starts_with("src/") {
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

/// Files are short and have meaningful names.
pub fn shape(source: &Source) -> Vec<Breach> {
    let mut out = Vec::new();
    let lines = source.daemon_lines();
    if lines > LINES_MAX {
        out.push(breach(&source.path, 0, format!("{lines} lines without tests; at most {LINES_MAX}")));
    }
    let file = source.path.rsplit('/').next().unwrap_or_default();
    if file == "mod.rs" {
        out.push(breach(&source.path, 0, "modules are name.rs beside name/, not mod.rs"));
    }
    for part in source.path.trim_end_matches(".rs").split('/') {
        if let Some(word) = part.split('_').find(|word| EMPTY_WORDS.contains(word)) {
            out.push(breach(&source.path, 0, format!("{word:?} in a file name has no meaning")));
        }
    }
    out
}

/// Every file has module docs; no test is ignored; the text is ASCII outside strings.
pub fn basics(source: &Source) -> Vec<Breach> {
    let mut out = Vec::new();
    if !source.text.trim_start().starts_with("//!") {
        out.push(breach(&source.path, 1, "the file has no module docs (//! at its top)"));
    }
    for (n, line) in source.code.lines().enumerate() {
        let squeezed: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        if squeezed.contains("#[ignore") || (squeezed.contains("#[") && squeezed.contains(",ignore")) {
            out.push(breach(&source.path, n + 1, "a test is switched off"));
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
    fn errno_constants_elsewhere_are_breaches() {
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
    fn missing_docs_and_ignored_tests_are_breaches() {
        assert_eq!(judge(basics, "src/a.rs", "fn f() {}").len(), 1);
        assert_eq!(
            judge(basics, "src/a.rs", "//! x\n#[ignore]\nfn f() {}"),
            ["src/a.rs:2 a test is switched off"]
        );
        assert_eq!(judge(basics, "src/a.rs", "//! x\n// caf\u{e9}\n").len(), 1);
        assert!(judge(basics, "src/a.rs", "//! x\nlet a = \"caf\u{e9}\"; // plain\n").is_empty());
    }
}
