//! The rules of this project as tests: the direction of imports, size and names of files, plain words, and documents
//! that agree with the code. A breach is reported with its file and line.
//!
//! Each rule is a function on text. Tests beside it show on small texts that it can fail.

// This crate has only tests, so its helpers may panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::path::Path;

#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/files.rs"]
mod files;
#[path = "tidy/graph.rs"]
mod graph;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/layout.rs"]
mod layout;
#[path = "tidy/licences.rs"]
mod licences;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/words.rs"]
mod words;

use layout::Breach;
use source::Source;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn exists(path: &str) -> bool {
    root().join(path).exists()
}

/// Paths of all files below a directory whose name has this ending.
fn files_below(directory: &str, ending: &str) -> Vec<String> {
    let (mut out, mut todo) = (Vec::new(), vec![root().join(directory)]);
    while let Some(directory) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
            if path.is_dir() {
                todo.push(path);
            } else if name.ends_with(ending) {
                out.push(name.to_owned());
            }
        }
    }
    out.sort();
    out
}

/// Every Rust file of the project.
fn sources() -> Vec<Source> {
    let paths = ["src", "tests", "benches"].into_iter().flat_map(|directory| files_below(directory, ".rs"));
    let out: Vec<Source> = paths.map(|path| Source::new(&path, &read(&path))).collect();
    assert!(out.len() > 20, "only {} files were found", out.len());
    out
}

/// Every document at the top level and in `doc`, by its path.
fn documents() -> BTreeMap<String, String> {
    let top =
        std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let paths = top.filter(|name| source::has_extension(name, "md")).chain(files_below("doc", ".md"));
    let out: BTreeMap<String, String> = paths.map(|path| (path.clone(), read(&path))).collect();
    assert!(out.len() > 5, "only {} documents were found", out.len());
    out
}

fn assert_none(mut breaches: Vec<Breach>) {
    breaches.sort();
    let lines: Vec<String> = breaches.iter().map(|b| format!("  {}: {}", b.place, b.what)).collect();
    assert!(lines.is_empty(), "{} breaches\n{}\n", lines.len(), lines.join("\n"));
}

fn judge(rule: impl Fn(&Source) -> Vec<Breach>) {
    assert_none(sources().iter().flat_map(rule).collect());
}

fn judge_documents(rule: impl Fn(&str, &str) -> Vec<Breach>) {
    assert_none(documents().iter().flat_map(|(path, text)| rule(path, text)).collect());
}

#[test]
fn imports_follow_the_table() {
    judge(imports::table);
}

#[test]
fn modules_have_no_cycles() {
    assert_none(imports::cycles(&sources()));
}

#[test]
fn files_have_no_cycles() {
    assert_none(files::cycles(&sources()));
}

#[test]
fn packages_are_imported_in_one_place() {
    judge(imports::packages);
}

#[test]
fn only_demo_and_serve_name_the_server() {
    judge(imports::server_users);
}

#[test]
fn errno_constants_are_named_in_one_file() {
    judge(layout::errno_constants);
}

#[test]
fn files_are_short_and_well_named() {
    judge(layout::shape);
}

#[test]
fn files_have_docs_and_no_ignored_tests() {
    judge(layout::basics);
}

#[test]
fn sources_have_plain_words() {
    judge(words::source);
}

#[test]
fn functions_have_short_names_with_a_subject() {
    judge(words::names);
}

#[test]
fn documents_and_scripts_have_plain_words() {
    judge_documents(words::document);
    let scripts = [".sh", ".py"].into_iter().flat_map(|ending| files_below("tests", ending));
    let scripts: Vec<String> = scripts.chain([".ci/run".to_owned()]).collect();
    assert_none(scripts.iter().flat_map(|path| words::document(path, &read(path))).collect());
}

#[test]
fn readme_is_short_and_comments_are_visible() {
    judge_documents(documents::form);
}

#[test]
fn ci_runs_the_commands_of_the_readme() {
    assert_none(documents::commands(&read("README.md"), &read(".ci/run")));
}

#[test]
fn claims_have_tests_and_occur_in_documents() {
    assert_none(documents::claims(&read("tests/claims.toml"), &documents(), &sources()));
}

#[test]
fn architecture_names_every_top_module() {
    assert_none(documents::map(&read("ARCHITECTURE.md"), &sources()));
}

#[test]
fn paths_in_developer_documents_exist() {
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md", "doc/DEVELOPMENT.md"] {
        assert_none(documents::paths(document, &read(document), &sources()));
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let documents = documents();
    assert_none(documents.keys().flat_map(|path| documents::links(path, &documents, exists)).collect());
}

#[test]
fn licences_of_all_packages_are_allowed() {
    assert_none(licences::of_packages(root(), &read("deny.toml")));
}

/// Numbers of the service are added up in many places.
#[test]
fn release_builds_check_overflows() {
    let manifest = read("Cargo.toml");
    let (_, release) = manifest.split_once("\n[profile.release]\n").unwrap();
    let release = release.split("\n[").next().unwrap();
    assert!(release.lines().any(|line| line == "overflow-checks = true"), "{release}");
    assert!(!manifest.contains("overflow-checks = false"));
}

/// `cargo fuzz` builds with a lock file of its own, which no other build reads.
#[test]
fn lock_file_of_fuzz_has_all_dependencies() {
    let manifest = read("Cargo.toml");
    let (_, dependencies) = manifest.split_once("\n[dependencies]\n").unwrap();
    let dependencies = dependencies.split("\n[").next().unwrap();
    let names = dependencies.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
    let lock = read("fuzz/Cargo.lock");
    let (_, ours) = lock.split_once("name = \"pdsfs\"\n").unwrap();
    let ours = ours.split("\n\n").next().unwrap();
    // A name that occurs in several versions is followed by its version.
    let has = |name: &&str| ours.contains(&format!(" \"{name}\"")) || ours.contains(&format!(" \"{name} "));
    let missing: Vec<_> = names.filter(|name| !has(name)).collect();
    assert!(missing.is_empty(), "run cargo update --workspace in fuzz: {missing:?}");
}
