//! The documents compared with the repository: claims, commands, paths, links and size.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::{DeTable, DeValue};

use super::layout::{Breach, breach};
use super::source::{Source, has_extension, lines_with_word};

/// The commands of the README that the CI script must run, each with the extension that the script may add.
const COMMANDS: &[(&str, &str)] = &[("cargo run --release -- demo", " --once"), ("cargo test", "")];

/// Longest README.md, in bytes.
const README_BYTES_MAX: usize = 7 << 10;

/// The document of a claim that names none.
const SEMANTICS: &str = "doc/SEMANTICS.md";

const CLAIMS: &str = "tests/claims.toml";

/// Lines of fenced blocks.
fn fenced(text: &str) -> Vec<&str> {
    let mut inside = false;
    let mut out = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            out.push(line.trim());
        }
    }
    out
}

/// CI runs the commands of the README.
pub fn commands(readme: &str, ci: &str) -> Vec<Breach> {
    let mut out = Vec::new();
    for (command, extension) in COMMANDS {
        if !fenced(readme).contains(command) {
            out.push(breach("README.md", 0, format!("no block has the command `{command}`")));
        }
        let run = format!("{command}{extension}");
        let is_run = |line: &str| {
            let line = line.trim();
            !line.starts_with('#') && (line == run || line.ends_with(&format!(" {run}")))
        };
        if !ci.lines().any(is_run) {
            out.push(breach(".ci/run", 0, format!("does not run `{run}`")));
        }
    }
    out
}

/// The README is short, and no document has an HTML comment.
pub fn form(path: &str, text: &str) -> Vec<Breach> {
    let mut out = Vec::new();
    if path == "README.md" && text.len() > README_BYTES_MAX {
        out.push(breach(path, 0, format!("{} bytes; at most {README_BYTES_MAX}", text.len())));
    }
    let comments = text.lines().enumerate().filter(|(_, line)| line.contains("<!--"));
    out.extend(comments.map(|(n, _)| breach(path, n + 1, "an HTML comment")));
    out
}

/// An entry of `tests/claims.toml`.
struct Claim {
    id: String,
    says: String,
    document: String,
    tests: Vec<String>,
}

fn parse_claims(text: &str) -> Result<Vec<Claim>, String> {
    let table = DeTable::parse(text).map_err(|error| error.to_string())?;
    let entries = table.get_ref().get("claim").and_then(|value| value.get_ref().as_array());
    let string = |entry: &DeTable<'_>, key: &str| {
        entry.get(key).and_then(|value| value.get_ref().as_str()).map(str::to_owned)
    };
    let claim = |entry: &DeValue<'_>| {
        let entry = entry.as_table()?;
        let tests = entry.get("tests").and_then(|tests| tests.get_ref().as_array());
        let tests = tests.into_iter().flatten().filter_map(|test| test.get_ref().as_str());
        Some(Claim {
            id: string(entry, "id")?,
            says: string(entry, "says")?,
            document: string(entry, "document").unwrap_or_else(|| SEMANTICS.to_owned()),
            tests: tests.map(str::to_owned).collect(),
        })
    };
    let claims = entries.into_iter().flatten().map(|entry| claim(entry.get_ref()));
    claims.map(|claim| claim.ok_or_else(|| "a claim has no id or no `says`".to_owned())).collect()
}

/// Every claim has existing tests and occurs in its document; every id in the semantics is a claim.
pub fn claims(text: &str, documents: &BTreeMap<String, String>, sources: &[Source]) -> Vec<Breach> {
    let claims = match parse_claims(text) {
        Ok(claims) if !claims.is_empty() => claims,
        Ok(_) => return vec![breach(CLAIMS, 0, "there is no claim")],
        Err(error) => return vec![breach(CLAIMS, 0, error)],
    };
    let (mut out, mut ids) = (Vec::new(), BTreeSet::new());
    for claim in &claims {
        let mut add = |what: String| out.push(breach(CLAIMS, 0, format!("{}: {what}", claim.id)));
        if !ids.insert(claim.id.as_str()) {
            add("the id is not unique".to_owned());
        }
        if claim.says.trim().is_empty() || claim.tests.is_empty() {
            add("no sentence or no test".to_owned());
        }
        for test in claim.tests.iter().filter(|test| !sources.iter().any(|source| has_test(source, test))) {
            add(format!("there is no test {test}"));
        }
        match documents.get(&claim.document) {
            None => add(format!("there is no {}", claim.document)),
            Some(text) if !marks(text).iter().any(|(_, mark)| *mark == claim.id) => {
                add(format!("the id is not in {}", claim.document));
            }
            Some(_) => {}
        }
    }
    let semantics = documents.get(SEMANTICS).map_or("", String::as_str);
    for (line, mark) in marks(semantics).into_iter().filter(|(_, mark)| mark.contains('-')) {
        if !ids.contains(mark) {
            out.push(breach(SEMANTICS, line, format!("{mark} is not in {CLAIMS}")));
        }
    }
    out
}

/// Words in kebab case in brackets or as code, with their lines; the text of a link does not count.
fn marks(text: &str) -> Vec<(usize, &str)> {
    let is_mark = |word: &str| {
        let letters =
            |part: &str| !part.is_empty() && part.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9'));
        word.split('-').all(letters)
    };
    let mut out = Vec::new();
    for (n, line) in text.lines().enumerate() {
        for (open, close) in [('[', ']'), ('`', '`')] {
            for (at, _) in line.match_indices(open) {
                let Some((word, rest)) = line[at + 1..].split_once(close) else { continue };
                if is_mark(word) && !rest.starts_with('(') {
                    out.push((n + 1, word));
                }
            }
        }
    }
    out
}

/// Whether a file has a function of this name with a test attribute.
fn has_test(source: &Source, name: &str) -> bool {
    let head = format!("fn {name}(");
    source.code.match_indices(&head).any(|(at, _)| {
        let before = source.code[..at].trim_end();
        let mut before = before.strip_suffix("async").unwrap_or(before).trim_end();
        while let Some(start) = before.ends_with(']').then(|| before.rfind("#[")).flatten() {
            if !lines_with_word(&before[start..], "test").is_empty() {
                return true;
            }
            before = before[..start].trim_end();
        }
        false
    })
}

/// The architecture names every top module of `src`, as `x`, `x.rs` or `x/`.
pub fn map(architecture: &str, sources: &[Source]) -> Vec<Breach> {
    let tops = sources.iter().filter_map(|source| {
        let name = source.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        (!name.contains('/')).then_some(name)
    });
    let is_named =
        |name: &str| ["", ".rs", "/"].iter().any(|end| architecture.contains(&format!("`{name}{end}`")));
    let missing = tops.filter(|name| !is_named(name));
    missing.map(|name| breach("ARCHITECTURE.md", 0, format!("does not name `{name}`"))).collect()
}

/// Paths of Rust files in code spans exist. A path may leave out the directories above it.
pub fn paths(document: &str, text: &str, sources: &[Source]) -> Vec<Breach> {
    let exists = |path: &str| {
        sources.iter().any(|source| source.path == path || source.path.ends_with(&format!("/{path}")))
    };
    let mut out = Vec::new();
    for (n, line) in text.lines().enumerate() {
        for path in line.split('`').skip(1).step_by(2) {
            let is_part = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '/' | '_' | '.');
            if has_extension(path, "rs") && path.chars().all(is_part) && !exists(path) {
                out.push(breach(document, n + 1, format!("names {path}, which does not exist")));
            }
        }
    }
    out
}

/// Links lead to files of the project, and to their headings. `documents` has every document by its path.
pub fn links(
    document: &str,
    documents: &BTreeMap<String, String>,
    exists: impl Fn(&str) -> bool,
) -> Vec<Breach> {
    let dir = document.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut out = Vec::new();
    for (n, line) in documents[document].lines().enumerate() {
        for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, anchor) =
                link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            if file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            let target = if file.is_empty() { document.to_owned() } else { join(dir, file) };
            if !file.is_empty() && !exists(&target) {
                out.push(breach(document, n + 1, format!("links to {file}, which does not exist")));
            } else if let (Some(anchor), Some(text)) = (anchor, documents.get(&target))
                && !anchors(text).contains(anchor)
            {
                out.push(breach(document, n + 1, format!("links to {link}, and there is no such heading")));
            }
        }
    }
    out
}

/// A relative path from a directory, with `..` resolved.
fn join(dir: &str, path: &str) -> String {
    let mut parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The anchors of the headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

mod tests {
    use super::*;

    const README: &str = "# x\n```sh\ncargo run --release -- demo\n```\n```sh\ncargo test\n```\n";
    const CI: &str = "stage test\ncargo test\nstage demo\ntimeout 600 cargo run --release -- demo --once\n";

    fn what(breaches: Vec<Breach>) -> Vec<String> {
        breaches.into_iter().map(|b| format!("{} {}", b.place, b.what)).collect()
    }

    #[test]
    fn commands_must_be_in_both_places() {
        assert_eq!(commands(README, CI), []);
        assert_eq!(commands(README, "# cargo test\ncargo run --release -- demo --once").len(), 1);
        assert_eq!(commands(README, &CI.replace(" --once", "")).len(), 1);
        assert_eq!(commands("cargo test\ncargo run --release -- demo", CI).len(), 2, "not in a block");
        assert_eq!(commands(README, &CI.replace("cargo test", "cargo test --lib")).len(), 1);
    }

    #[test]
    fn long_readme_and_html_comments_are_breaches() {
        let long = "x".repeat(README_BYTES_MAX + 1);
        assert_eq!(what(form("README.md", &long)), ["README.md 7169 bytes; at most 7168"]);
        assert_eq!(form("doc/X.md", &long), []);
        assert_eq!(what(form("doc/X.md", "a\nb <!-- c -->")), ["doc/X.md:2 an HTML comment"]);
    }

    #[test]
    fn claims_must_have_tests_and_a_place() {
        let tests = [Source::new(
            "tests/x.rs",
            "#[test]\nfn real() {}\nfn plain() {}\n#[tokio::test(flavor = \"multi_thread\")]\nasync fn slow() {}\n",
        )];
        let judge = |claims_text: &str, semantics: &str, login: &str| {
            let documents = [("doc/SEMANTICS.md", semantics), ("doc/LOGIN.md", login)];
            let documents = documents.map(|(path, text)| (path.to_owned(), text.to_owned()));
            what(claims(claims_text, &BTreeMap::from(documents), &tests))
        };
        let entry = |id: &str, more: &str| format!("[[claim]]\nid = \"{id}\"\nsays = \"x\"\n{more}\n");
        let good = entry("a-b", "tests = [\"real\", \"slow\"]")
            + &entry("c", "document = \"doc/LOGIN.md\"\ntests = [\"slow\"]");
        assert_eq!(judge(&good, "A. [a-b] | `a-b`\n[no-claim](x) `rename_flags` `close`", "`c`"), [""; 0]);
        assert_eq!(judge(&good, "a-b", "[c]"), ["tests/claims.toml a-b: the id is not in doc/SEMANTICS.md"]);
        assert_eq!(
            judge(&good, "[a-b]\n`c-d`", "[c]"),
            ["doc/SEMANTICS.md:2 c-d is not in tests/claims.toml"]
        );
        let one = |more: &str| judge(&entry("a-b", more), "[a-b]", "");
        assert_eq!(one("tests = []"), ["tests/claims.toml a-b: no sentence or no test"]);
        assert_eq!(one("tests = [\"gone\"]"), ["tests/claims.toml a-b: there is no test gone"]);
        assert_eq!(one("tests = [\"plain\"]"), ["tests/claims.toml a-b: there is no test plain"]);
        assert_eq!(
            one("document = \"doc/X.md\"\ntests = [\"real\"]"),
            ["tests/claims.toml a-b: there is no doc/X.md"]
        );
        assert_eq!(judge(&good.replace("\"c\"", "\"a-b\""), "[a-b]", "[a-b]").len(), 1, "not unique");
        assert_eq!(judge("", "", ""), ["tests/claims.toml there is no claim"]);
        assert_eq!(judge("[[claim]]\nid = \"a\"", "", "").len(), 1);
        assert_eq!(judge("[[claim", "", "").len(), 1);
    }

    #[test]
    fn architecture_must_name_every_top_module() {
        let sources = [Source::new("src/vfs.rs", ""), Source::new("src/vfs/files.rs", "")];
        for good in ["`vfs.rs` is ...", "`vfs` is", "in `vfs/`"] {
            assert_eq!(map(good, &sources), [], "{good}");
        }
        assert_eq!(what(map("vfs", &sources)), ["ARCHITECTURE.md does not name `vfs`"]);
    }

    #[test]
    fn paths_in_code_spans_must_exist() {
        let sources = ["src/vfs/files.rs", "tests/x.rs"].map(|path| Source::new(path, ""));
        let text = "`vfs/files.rs` `files.rs` `tests/x.rs` gone.rs `*.rs` `vfs/NAME.rs`\n`vfs/gone.rs`";
        assert_eq!(what(paths("A.md", text, &sources)), ["A.md:2 names vfs/gone.rs, which does not exist"]);
    }

    #[test]
    fn links_must_lead_to_files_and_headings() {
        let readme = "[a](src/a.md) [b](https://x.example/y#z) [c](#a-heading) [d](doc/D.md#in-d)\n[e](gone.md#f)\n[g](#h)";
        let texts = [
            ("README.md", format!("# A `heading`!\n{readme}")),
            ("doc/D.md", "## In D\n[r](../README.md#no)".into()),
        ];
        let documents = BTreeMap::from(texts.map(|(path, text)| (path.to_owned(), text)));
        let judge = |path: &str| what(links(path, &documents, |file| !file.contains("gone")));
        assert_eq!(
            judge("README.md"),
            [
                "README.md:3 links to gone.md, which does not exist",
                "README.md:4 links to #h, and there is no such heading"
            ]
        );
        assert_eq!(judge("doc/D.md"), ["doc/D.md:2 links to ../README.md#no, and there is no such heading"]);
    }
}
