//! What the documents promise, against what is there.

use super::rules::{Breach, breach};
use super::source::{Source, lines_with_word};

/// The commands of the README that the CI script must run, and how the script may extend them.
const COMMANDS: &[(&str, &str)] = &[("cargo run --release -- demo", " --once"), ("cargo test", "")];

/// The text below a heading, up to the next of the same or a higher level, with its first line number.
fn section<'a>(text: &'a str, heading: &str) -> Option<(usize, Vec<&'a str>)> {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.iter().position(|line| *line == heading)?;
    let level = heading.chars().take_while(|c| *c == '#').count();
    let ends = |line: &str| (1..=level).any(|n| line.starts_with(&format!("{} ", "#".repeat(n))));
    let body: Vec<&str> = lines[start + 1..].iter().take_while(|line| !ends(line)).copied().collect();
    Some((start + 2, body))
}

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

/// The README's commands are what CI runs.
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

/// One point of a list: its line, its text, and the tests that its `<!-- test: a, b -->` names.
fn points(first_line: usize, body: &[&str]) -> Vec<(usize, String, Vec<String>)> {
    let mut out: Vec<(usize, String, Vec<String>)> = Vec::new();
    for (n, line) in body.iter().enumerate() {
        if line.starts_with("* ") || line.starts_with("- ") {
            out.push((first_line + n, (*line).to_owned(), Vec::new()));
        } else if let (true, Some(point)) = (line.starts_with("  "), out.last_mut()) {
            point.1.push(' ');
            point.1.push_str(line.trim());
        }
    }
    for (_, text, tests) in &mut out {
        for tag in text.split("<!-- test:").skip(1) {
            let names = tag.split("-->").next().unwrap_or_default();
            tests.extend(names.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()));
        }
    }
    out
}

/// Every point of the README's semantics names a test that exists.
pub fn semantics(readme: &str, sources: &[Source]) -> Vec<Breach> {
    let Some((first_line, body)) = section(readme, "## Semantics") else {
        return vec![breach("README.md", 0, "no section `## Semantics`")];
    };
    let points = points(first_line, &body);
    let mut out = Vec::new();
    if points.is_empty() {
        out.push(breach("README.md", first_line, "the semantics have no points"));
    }
    for (line, text, tests) in points {
        if tests.is_empty() {
            let start: String = text.chars().take(50).collect();
            out.push(breach("README.md", line, format!("no test is named for {start:?}")));
        }
        for test in tests.iter().filter(|test| !sources.iter().any(|source| has_test(source, test))) {
            out.push(breach("README.md", line, format!("there is no test named {test}")));
        }
    }
    out
}

/// Whether a file has a function of this name under a test attribute.
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

/// Every module at the top of `src` has its place in the map.
pub fn map(architecture: &str, sources: &[Source]) -> Vec<Breach> {
    let tops = sources.iter().filter_map(|source| {
        let name = source.path.strip_prefix("src/")?;
        (!name.contains('/')).then(|| name.to_owned())
    });
    let missing = tops.filter(|name| !architecture.contains(&format!("`{name}`")));
    missing.map(|name| breach("src/ARCHITECTURE.md", 0, format!("says nothing about `{name}`"))).collect()
}

/// Links to files of the project lead somewhere.
pub fn links(document: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Breach> {
    let mut out = Vec::new();
    for (n, line) in text.lines().enumerate() {
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let elsewhere = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
            if !elsewhere && !exists(file) {
                out.push(breach(document, n + 1, format!("links to {file}, which is not there")));
            }
        }
    }
    out
}

mod tests {
    use super::*;

    const README: &str = "# x\n```sh\ncargo run --release -- demo\n```\n```sh\ncargo test\n```\n";
    const CI: &str = "stage test\ncargo test\nstage demo\ntimeout 600 cargo run --release -- demo --once\n";

    #[test]
    fn commands_must_be_in_both_places() {
        assert_eq!(commands(README, CI), []);
        assert_eq!(commands(README, "# cargo test\ncargo run --release -- demo --once").len(), 1);
        assert_eq!(commands(README, &CI.replace(" --once", "")).len(), 1);
        assert_eq!(commands("cargo test\ncargo run --release -- demo", CI).len(), 2, "not in a block");
        assert_eq!(commands(README, &CI.replace("cargo test", "cargo test --lib")).len(), 1);
    }

    #[test]
    fn semantics_must_name_tests_that_exist() {
        let tests = [Source::new(
            "tests/x.rs",
            "#[test]\nfn real() {}\nfn plain() {}\n#[tokio::test(flavor = \"multi_thread\")]\nasync fn slow() {}\n",
        )];
        let judge = |points: &str| {
            let readme = format!("# x\n## Semantics\nWords.\n{points}\n## Next\n* free\n");
            semantics(&readme, &tests).into_iter().map(|b| b.what).collect::<Vec<_>>()
        };
        assert_eq!(
            judge("* A. <!-- test: real -->\n* B\n  goes on. <!-- test: slow, real -->"),
            Vec::<String>::new()
        );
        assert_eq!(judge("* A."), ["no test is named for \"* A.\""]);
        assert_eq!(judge("* A. <!-- test: real, gone -->"), ["there is no test named gone"]);
        assert_eq!(judge("* A. <!-- test: plain -->"), ["there is no test named plain"]);
        assert_eq!(judge(""), ["the semantics have no points"]);
        assert_eq!(semantics("# x", &tests).len(), 1);
    }

    #[test]
    fn the_map_names_every_top_module() {
        let sources = [Source::new("src/vfs.rs", ""), Source::new("src/vfs/files.rs", "")];
        assert_eq!(map("`vfs.rs` is ...", &sources), []);
        assert_eq!(map("vfs", &sources).len(), 1);
    }

    #[test]
    fn links_must_lead_somewhere() {
        let text = "[a](src/a.md) [b](https://x.example/y) [c](#d)\n[e](gone.md#f)";
        let found = links("README.md", text, |file| file == "src/a.md");
        assert_eq!(found, [breach("README.md", 2, "links to gone.md, which is not there")]);
    }
}
