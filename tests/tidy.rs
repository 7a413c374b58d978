//! The rules of this project as tests: the direction of imports, the size and names of files, and
//! that the documents say what is there. A breach is named with its file and line.
//!
//! Each checker is a function on text, tested on small texts beside it, so that it is known to fail.

// A whole file of tests: helpers may fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

use std::path::Path;

#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/licences.rs"]
mod licences;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use rules::Breach;
use source::Source;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Every Rust file below these folders.
fn sources() -> Vec<Source> {
    let mut out = Vec::new();
    let mut todo: Vec<_> = ["src", "tests", "benches"].map(|folder| root().join(folder)).into();
    while let Some(folder) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                out.push(Source::new(&name, &std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(out.len() > 20, "only {} files were found", out.len());
    out
}

fn assert_none(mut breaches: Vec<Breach>) {
    breaches.sort();
    let lines: Vec<String> = breaches.iter().map(|b| format!("  {}: {}", b.place, b.what)).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

fn judge(rule: impl Fn(&Source) -> Vec<Breach>) {
    assert_none(sources().iter().flat_map(rule).collect());
}

#[test]
fn imports_go_in_one_direction() {
    judge(rules::imports);
}

#[test]
fn packages_have_one_door() {
    judge(|source| if source.path.starts_with("src/") { rules::packages(source) } else { Vec::new() });
}

#[test]
fn errno_constants_are_named_in_one_file() {
    judge(|source| if source.path.starts_with("src/") { rules::errno_constants(source) } else { Vec::new() });
}

#[test]
fn only_cli_and_tests_know_the_server() {
    judge(rules::server_users);
}

#[test]
fn files_are_short_and_well_named() {
    judge(rules::shape);
    let paths: Vec<String> = sources().into_iter().map(|source| source.path).collect();
    for (path, reason) in rules::LONG_FILES {
        assert!(paths.iter().any(|there| there == path), "{path} is excused, but not there");
        assert!(reason.len() > 20, "{path} is excused without a reason");
    }
}

#[test]
fn files_have_manners() {
    judge(rules::manners);
}

#[test]
fn the_readme_has_the_commands_that_ci_runs() {
    assert_none(documents::commands(&read("README.md"), &read(".ci/run")));
}

#[test]
fn every_promise_of_the_readme_names_its_test() {
    assert_none(documents::semantics(&read("README.md"), &sources()));
}

#[test]
fn the_architecture_names_every_module() {
    assert_none(documents::map(&read("src/ARCHITECTURE.md"), &sources()));
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in ["README.md", "CHANGELOG.md", "src/ARCHITECTURE.md"] {
        let folder = root().join(document).parent().unwrap().to_owned();
        assert_none(documents::links(document, &read(document), |file| folder.join(file).exists()));
    }
}

#[test]
fn licences_of_all_packages_are_allowed() {
    assert_none(licences::of_packages(root(), &read("deny.toml")));
}
