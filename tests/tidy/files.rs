//! The edges between the files of `src`: file A has an edge to file B if A names something of B.
//!
//! A name that a module only re-exports counts for the file that defines it. A module that declares and re-exports
//! its children, and does not use them, has no edge to them. Tests are left out.

use std::collections::BTreeMap;

use super::graph::Graph;
use super::layout::{Breach, breach};
use super::source::Source;

/// One `use` of a file: `use crate::a::B as C` binds C.
struct Binding {
    line: usize,
    name: String,
    parts: Vec<String>,
    is_public: bool,
}

/// A module with its own file.
struct Module<'a> {
    path: &'a str,
    /// `["pds", "drive"]`; empty for lib.rs.
    name: Vec<String>,
    children: Vec<String>,
    bindings: Vec<Binding>,
    /// The code without its `use` statements.
    code: String,
}

type Modules<'a> = BTreeMap<Vec<String>, Module<'a>>;

/// No cycle between files.
pub fn cycles(sources: &[Source]) -> Vec<Breach> {
    let edges = edges(sources);
    let mut graph = Graph::default();
    for edge in &edges {
        graph.add(&edge.from, &edge.to);
    }
    let mut out = Vec::new();
    for (n, cycle) in graph.cycles().into_iter().enumerate() {
        let place = format!("cycle {}", n + 1);
        let files = cycle.iter().cloned().collect::<Vec<_>>().join(", ");
        out.push(breach(&place, 0, format!("{} files: {files}", cycle.len())));
        let is_inside = |edge: &&Edge| cycle.contains(&edge.from) && cycle.contains(&edge.to);
        for edge in edges.iter().filter(|edge| edge.from != edge.to).filter(is_inside) {
            let Edge { from, line, name, to } = edge;
            out.push(breach(&place, 0, format!("  {from}:{line} names {name} of {to}")));
        }
    }
    out.sort();
    out.dedup();
    out
}

struct Edge {
    from: String,
    line: usize,
    name: String,
    to: String,
}

fn edges(sources: &[Source]) -> Vec<Edge> {
    let modules: Modules<'_> = sources.iter().filter_map(module).map(|m| (m.name.clone(), m)).collect();
    let mut out = Vec::new();
    for module in modules.values() {
        let mut add = |line: usize, parts: &[String]| {
            if let Some(to) = target(&modules, parts, 0) {
                let (from, to) = (module.path.to_owned(), to.path.to_owned());
                out.push(Edge { from, line, name: parts.join("::"), to });
            }
        };
        for binding in &module.bindings {
            let Some(parts) = absolute(module, &binding.parts) else { continue };
            if !binding.is_public || has_word(&module.code, &binding.name) {
                add(binding.line, &parts);
            }
        }
        for (line, parts) in paths(&module.code) {
            if let Some(parts) = absolute(module, &parts) {
                add(line, &parts);
            }
        }
    }
    out
}

/// `None` for tests and for files outside of the library.
fn module(source: &Source) -> Option<Module<'_>> {
    let inner = source.path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let mut name: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if inner == "main" || name.iter().any(|part| part == "tests") {
        return None;
    }
    if inner == "lib" {
        name.clear();
    }
    let (bindings, code) = take_uses(&source.daemon_code);
    let mut words = paths_and_words(&code).into_iter().map(|(_, parts)| parts).peekable();
    let mut children = Vec::new();
    while let Some(parts) = words.next() {
        if parts == ["mod"]
            && let Some(child) = words.peek()
        {
            children.push(child[0].clone());
        }
    }
    Some(Module { path: &source.path, name, children, bindings, code })
}

/// The path from the root of the crate; `None` for other crates and for items of the file itself.
fn absolute(module: &Module<'_>, parts: &[String]) -> Option<Vec<String>> {
    let supers = parts.iter().take_while(|part| *part == "super").count();
    let rest = &parts[supers..];
    let own = &module.name[..module.name.len().saturating_sub(supers)];
    let first = rest.first()?.as_str();
    if supers > 0 {
        return Some([own, rest].concat());
    }
    match first {
        "crate" => Some(rest[1..].to_vec()),
        "self" => Some([own, &rest[1..]].concat()),
        _ if module.children.iter().any(|child| child == first) => Some([own, rest].concat()),
        _ => {
            let binding = module.bindings.iter().find(|binding| binding.name == first)?;
            (rest.len() > 1 && binding.parts.first().is_some_and(|part| part != first))
                .then(|| absolute(module, &[&binding.parts[..], &rest[1..]].concat()))?
        }
    }
}

/// The module that defines the item at a path; `None` for a path of a module and of another crate.
fn target<'m, 'a>(modules: &'m Modules<'a>, parts: &[String], depth: usize) -> Option<&'m Module<'a>> {
    let len = (0..=parts.len()).rev().find(|len| modules.contains_key(&parts[..*len]))?;
    let (module, item) = (&modules[&parts[..len]], parts.get(len)?);
    let Some(binding) = module.bindings.iter().find(|binding| binding.name == *item) else {
        return Some(module);
    };
    let parts = absolute(module, &binding.parts)?;
    if depth > 8 { Some(module) } else { target(modules, &[&parts[..], &[]].concat(), depth + 1) }
}

/// The `use` statements of a file, and its code without them.
fn take_uses(code: &str) -> (Vec<Binding>, String) {
    let (mut bindings, mut rest, mut from) = (Vec::new(), code.to_owned(), 0);
    while let Some(at) = code[from..].find("use ").map(|n| n + from) {
        from = at + 4;
        let before = code[..at].trim_end();
        let before =
            before.strip_suffix("pub").or_else(|| before.strip_suffix(')')).map_or((before, false), |b| {
                (b.rfind("pub").filter(|_| !before.ends_with("pub")).map_or(b, |n| &b[..n]), true)
            });
        let (before, is_public) = (before.0.trim_end(), before.1);
        let begins = before.is_empty() || before.ends_with([';', '}', '{', ']']);
        let Some(end) = code[from..].find(';').map(|n| n + from).filter(|_| begins) else { continue };
        let line = code[..at].matches('\n').count() + 1;
        if !before.ends_with("#[cfg(test)]") {
            for (parts, name) in expand(&code[from..end], &[]) {
                bindings.push(Binding { line, name, parts, is_public });
            }
        }
        let blanks: String = code[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        let shift = code.len() - rest.len();
        rest.replace_range(at - shift..end - shift, &blanks);
        from = end;
    }
    (bindings, rest)
}

/// The paths of a `use` tree, each with the name that it binds.
fn expand(tree: &str, before: &[String]) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    if let Some((head, inner)) = tree.split_once('{') {
        let head = head.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned);
        let before: Vec<String> = before.iter().cloned().chain(head).collect();
        let (mut depth, mut item, mut out) = (0, String::new(), Vec::new());
        for c in inner.chars() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if (c == ',' && depth == 0) || depth < 0 {
                out.extend(expand(&item, &before));
                item.clear();
            } else {
                item.push(c);
            }
            if depth < 0 {
                break;
            }
        }
        return out;
    }
    if tree.is_empty() {
        return Vec::new();
    }
    let (path, alias) = tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias)));
    let own = path.split("::").map(|part| part.trim().to_owned());
    let mut parts: Vec<String> = before.iter().cloned().chain(own).collect();
    if parts.len() > 1 && parts.last().is_some_and(|last| last == "self") {
        parts.pop();
    }
    let name =
        alias.map_or_else(|| parts.last().cloned().unwrap_or_default(), |alias| alias.trim().to_owned());
    vec![(parts, name)]
}

/// Every path with `::` in code, with its line.
fn paths(code: &str) -> Vec<(usize, Vec<String>)> {
    paths_and_words(code).into_iter().filter(|(_, parts)| parts.len() > 1).collect()
}

fn has_word(code: &str, word: &str) -> bool {
    paths_and_words(code).iter().any(|(_, parts)| parts[0] == word)
}

/// Every word that does not continue a path, with its line and the words that continue it.
fn paths_and_words(code: &str) -> Vec<(usize, Vec<String>)> {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut out, mut line, mut at) = (Vec::new(), 1, 0);
    while let Some(c) = code[at..].chars().next() {
        line += usize::from(c == '\n');
        if !part_of_word(c) {
            at += c.len_utf8();
            continue;
        }
        let goes_on = code[..at].ends_with("::") || code[..at].ends_with('.');
        let mut parts = Vec::new();
        loop {
            let word: String = code[at..].chars().take_while(|c| part_of_word(*c)).collect();
            at += word.len();
            parts.push(word);
            let next = code[at..].strip_prefix("::").and_then(|rest| rest.chars().next());
            if !next.is_some_and(part_of_word) {
                break;
            }
            at += 2;
        }
        if !goes_on {
            out.push((line, parts));
        }
    }
    out
}

mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
        let mut edges: Vec<String> = edges(&sources)
            .into_iter()
            .filter(|edge| edge.from != edge.to)
            .map(|edge| format!("{}:{} {}", &edge.from[4..], edge.line, &edge.to[4..]))
            .collect();
        edges.sort();
        edges.dedup();
        edges
    }

    #[test]
    fn names_are_resolved_to_files() {
        let files = [
            ("src/lib.rs", "pub mod a;\nmod b;\npub use b::Item;"),
            ("src/a.rs", "mod x;\nmod y;\npub use x::Deep;\nfn f() { y::g() }"),
            ("src/a/x.rs", "pub struct Deep;\nuse crate::b::{self, other};\nfn f(i: b::Item) {}"),
            ("src/a/y.rs", "\nuse super::Deep;\nfn f(i: crate::Item) { self::g() }\nfn g() {}"),
            (
                "src/b.rs",
                "#[cfg(test)]\nmod tests { use crate::a::Deep; }\n// crate::a::Deep\npub struct Item;",
            ),
            ("src/a/tests.rs", "use crate::b::Item;"),
        ];
        assert_eq!(
            found(&files),
            ["a.rs:4 a/y.rs", "a/x.rs:2 b.rs", "a/x.rs:3 b.rs", "a/y.rs:2 a/x.rs", "a/y.rs:3 b.rs"]
        );
    }

    #[test]
    fn re_exports_alone_are_no_edges() {
        let parent = |more: &str| format!("mod x;\npub(crate) use x::{{Deep, Other as More}};\n{more}");
        let edges = |more: &str| {
            let text = parent(more);
            found(&[("src/a.rs", &text), ("src/a/x.rs", "pub struct Deep;\nfn f() { super::g() }")])
        };
        assert_eq!(edges("fn g() {}"), ["a/x.rs:2 a.rs"]);
        assert_eq!(edges("fn g(d: Deep) {}"), ["a.rs:2 a/x.rs", "a/x.rs:2 a.rs"]);
        assert_eq!(edges("fn g(d: &mut More) {}"), ["a.rs:2 a/x.rs", "a/x.rs:2 a.rs"]);
    }

    #[test]
    fn cycles_between_files_are_breaches() {
        let sources = [
            Source::new("src/a.rs", "use crate::b::B;\npub struct A;"),
            Source::new("src/b.rs", "\nfn f(a: crate::a::A) {}\npub struct B;"),
            Source::new("src/c.rs", "use crate::a::A;"),
        ];
        let found: Vec<String> =
            cycles(&sources).into_iter().map(|b| format!("{} {}", b.place, b.what)).collect();
        assert_eq!(
            found,
            [
                "cycle 1   src/a.rs:1 names b::B of src/b.rs",
                "cycle 1   src/b.rs:2 names a::A of src/a.rs",
                "cycle 1 2 files: src/a.rs, src/b.rs"
            ]
        );
        assert_eq!(cycles(&sources[1..]), []);
    }
}
