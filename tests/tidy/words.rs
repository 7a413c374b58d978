//! Plain words in comments, strings and documents, and short names of functions.
//!
//! The rejected words are put together from pieces, so that this file does not contain them.

use super::layout::{Breach, breach};
use super::source::{Source, has_extension};

/// Longest name of a function.
const NAME_LEN_MAX: usize = 50;

/// Words that hide the subject of a sentence.
fn rejected() -> Vec<String> {
    let pieces = [
        ["some", "body"],
        ["no", "body"],
        ["who", "ever"],
        ["what", "ever"],
        ["is ", "told"],
        ["are ", "told"],
    ];
    pieces.iter().map(|word| word.concat()).collect()
}

/// Beginnings of a sentence without a subject.
fn rejected_beginnings() -> Vec<String> {
    [["Wh", "o"], ["Who", "ever"], ["What", "ever"]].iter().map(|word| word.concat()).collect()
}

/// Comments and strings of a Rust file.
pub fn source(source: &Source) -> Vec<Breach> {
    let mut out = Vec::new();
    for (line, text) in source.comments() {
        out.extend(rejected_in(&text).map(|word| at(source, line, "a comment has the word", &word)));
        let begins =
            beginnings(&text).filter(|word| rejected_beginnings().iter().any(|rejected| rejected == word));
        out.extend(begins.map(|word| at(source, line, "a comment sentence begins with", word)));
    }
    for (line, text) in source.strings() {
        out.extend(rejected_in(&text).map(|word| at(source, line, "a string has the word", &word)));
    }
    out
}

fn at(source: &Source, line: usize, what: &str, word: &str) -> Breach {
    breach(&source.path, line, format!("{what} {word:?}"))
}

/// Names of functions.
pub fn names(source: &Source) -> Vec<Breach> {
    let mut out = Vec::new();
    for (n, line) in source.code.lines().enumerate() {
        for (at, _) in
            line.match_indices("fn ").filter(|(at, _)| !line[..*at].ends_with(|c: char| c.is_alphanumeric()))
        {
            let name: String =
                line[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if name.len() > NAME_LEN_MAX {
                let what = format!("{name} has {} characters; at most {NAME_LEN_MAX}", name.len());
                out.push(breach(&source.path, n + 1, what));
            }
            if ["who_", "what_"].iter().any(|start| name.starts_with(start)) {
                out.push(breach(&source.path, n + 1, format!("{name} does not begin with its subject")));
            }
        }
    }
    out
}

/// A document, or the comments of a script.
pub fn document(path: &str, text: &str) -> Vec<Breach> {
    let is_script = !has_extension(path, "md");
    let mut out = Vec::new();
    let mut before = "";
    for (n, line) in text.lines().enumerate() {
        if is_script && !line.trim_start().starts_with('#') {
            before = "";
            continue;
        }
        // A rejected phrase may go over a line end.
        let both = format!("{before} {}", line.trim());
        let count = |text: &str, word: &str| rejected_in(text).filter(|found| found == word).count();
        for word in rejected().into_iter().filter(|word| count(&both, word) > count(before, word)) {
            out.push(breach(path, n + 1, format!("a document has the word {word:?}")));
        }
        before = line.trim();
    }
    out
}

/// The rejected words of a text, once for each place.
fn rejected_in(text: &str) -> impl Iterator<Item = String> + use<> {
    let text = text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    rejected().into_iter().flat_map(move |word| {
        let stands_alone = |at: usize| {
            !text[..at].ends_with(|c: char| c.is_alphanumeric())
                && !text[at + word.len()..].starts_with(|c: char| c.is_alphanumeric())
        };
        let count = text.match_indices(word.as_str()).filter(|(at, _)| stands_alone(*at)).count();
        vec![word; count]
    })
}

/// The first word of each sentence of a comment.
fn beginnings(text: &str) -> impl Iterator<Item = &str> {
    let ends = [". ", ": ", "! ", "? ", "; "];
    let starts = ends.into_iter().flat_map(|end| text.match_indices(end)).map(|(at, end)| at + end.len());
    std::iter::once(0).chain(starts).map(|start| {
        let sentence = text[start..].trim_start_matches(|c: char| !c.is_alphanumeric());
        sentence.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()
    })
}

mod tests {
    use super::*;

    fn judge(rule: impl Fn(&Source) -> Vec<Breach>, text: &str) -> Vec<String> {
        rule(&Source::new("src/a.rs", text)).into_iter().map(|b| format!("{} {}", b.place, b.what)).collect()
    }

    #[test]
    fn rejected_words_are_found_in_comments_and_strings() {
        for word in rejected() {
            let halves = word.replace(' ', "\n    /// ");
            assert_eq!(judge(source, &format!("fn f() {{}}\n// A writer {word} here.")).len(), 1, "{word}");
            assert_eq!(
                judge(source, &format!("\n    /// A writer\n    /// {halves} here.")).len(),
                1,
                "{word}"
            );
            assert_eq!(judge(source, &format!("let a = \"{}'s\";", word.to_uppercase())).len(), 1, "{word}");
            let continued = word.replace(' ', " \\\n        ");
            assert_eq!(judge(source, &format!("let a = f(\n\"x {continued} y\");")).len(), 1, "{word}");
            assert_eq!(judge(source, &format!("let {} = 1; // x{word}x", word.replace(' ', "_"))), [""; 0]);
        }
        let text = format!("//! x\n// One.\n// Two {}.", rejected()[0]);
        assert_eq!(judge(source, &text), [format!("src/a.rs:2 a comment has the word {:?}", rejected()[0])]);
    }

    #[test]
    fn rejected_beginnings_are_found_in_comments() {
        for word in rejected_beginnings() {
            for text in
                [format!("// {word} reads waits."), format!("/// A: b.\n/// Then.\n/// {word} reads waits.")]
            {
                assert!(judge(source, &text).iter().any(|what| what.contains("begins")), "{text}");
            }
        }
        let asks = ["Wh", "o"].concat();
        assert_eq!(judge(source, &format!("// The caller {} waits.", asks.to_lowercase())), [""; 0]);
        assert_eq!(judge(source, &format!("let a = \"{asks} waits\"; // A {asks}le.")), [""; 0]);
        assert_eq!(judge(source, &format!("// A list:\n//\n// * {asks} waits.")).len(), 1);
    }

    #[test]
    fn long_names_and_names_without_subject_are_found() {
        let long = format!("async fn {}() {{}}", "x".repeat(NAME_LEN_MAX + 1));
        assert_eq!(judge(names, &long).len(), 1);
        assert_eq!(judge(names, &format!("fn {}() {{}}", "x".repeat(NAME_LEN_MAX))), [""; 0]);
        assert_eq!(
            judge(names, "\nfn who_waits() {}"),
            ["src/a.rs:2 who_waits does not begin with its subject"]
        );
        assert_eq!(judge(names, "fn what_is() {} // fn what_not() {}").len(), 1);
    }

    #[test]
    fn rejected_words_are_found_in_documents() {
        for word in rejected() {
            assert_eq!(document("README.md", &format!("# x\nA writer {word} here.")).len(), 1, "{word}");
            assert_eq!(document("README.md", &word.replace(' ', "\n")).len(), 1, "{word}");
            assert_eq!(document("a.sh", &format!("# {word}")).len(), 1, "{word}");
            assert_eq!(document("a.sh", &format!("id {word}")), [], "{word}");
        }
        assert_eq!(document("README.md", "A writer waits.\nThe writer told it."), []);
    }
}
