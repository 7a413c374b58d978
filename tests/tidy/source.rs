//! Reads Rust source well enough for the rules: comments, strings and test modules apart from code, and the
//! paths that the code names.

use std::path::Path;

/// A source file. Removed text becomes spaces, so lines keep their numbers.
#[derive(Debug)]
pub struct Source {
    /// Path below the root of the project, with `/`.
    pub path: String,
    /// The whole file.
    pub text: String,
    /// Without comments and without the insides of strings and characters.
    pub code: String,
    /// `code` without `#[cfg(test)]` modules.
    pub daemon_code: String,
}

/// A path such as `crate::pds::types::File` in code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// Counted from 1.
    pub line: usize,
    /// The parts after the root: `["pds", "types", "File"]`.
    pub parts: Vec<String>,
}

/// Whether a file has only tests: `src/tests/x.rs`, `src/tree/tests.rs`, `tests/x.rs`.
pub fn is_test_file(path: &str) -> bool {
    path.trim_end_matches(".rs").split('/').any(|part| part == "tests")
}

/// Whether the name of a file ends with this extension.
pub fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = blank(text, Blank::CommentsAndStrings);
        let daemon_code = without_test_modules(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, daemon_code }
    }

    /// The number of lines outside of test modules.
    pub fn daemon_lines(&self) -> usize {
        self.text.lines().count() - test_module_lines(&self.code)
    }

    /// Without the insides of strings, with comments.
    pub fn text_without_strings(&self) -> String {
        blank(&self.text, Blank::Strings)
    }

    /// The paragraphs of the comments, each with its first line. A list item is a paragraph.
    pub fn comments(&self) -> Vec<(usize, String)> {
        let mut out: Vec<(usize, String)> = Vec::new();
        // The line and the marker with which the last paragraph may go on.
        let mut next = (0, "");
        for piece in pieces(&self.text).into_iter().filter(|piece| !piece.is_string) {
            let marker = ["///", "//!", "/*"]
                .into_iter()
                .find(|marker| piece.text.starts_with(marker))
                .unwrap_or("//");
            let text = piece.text.trim_start_matches(['/', '*', '!']).trim_end_matches(['/', '*']).trim();
            let begins = text.is_empty() || text.starts_with(['*', '-', '#', '|']);
            if (piece.line, marker) == next
                && !begins
                && let Some(last) = out.last_mut()
            {
                last.1.push(' ');
                last.1.push_str(text);
            } else {
                out.push((piece.line, text.to_owned()));
            }
            next = if text.is_empty() || !piece.is_alone { (0, "") } else { (piece.line + 1, marker) };
        }
        out
    }

    /// The insides of the string literals, each with its first line.
    pub fn strings(&self) -> Vec<(usize, String)> {
        let strings = pieces(&self.text).into_iter().filter(|piece| piece.is_string);
        strings.map(|piece| (piece.line, piece.text.replace("\\\n", "\n"))).collect()
    }
}

/// A comment, or a string without its quotes.
struct Piece {
    line: usize,
    text: String,
    is_string: bool,
    /// Nothing but space is before it on its line.
    is_alone: bool,
}

fn pieces(text: &str) -> Vec<Piece> {
    let chars: Vec<char> = text.chars().collect();
    let (mut out, mut at, mut line, mut is_alone) = (Vec::new(), 0, 1, true);
    while at < chars.len() {
        let (end, inner, is_string) = match token_at(&chars, at) {
            Token::Comment(end) => (end, at..end, false),
            Token::Quoted { end, delimiter } => {
                (end, at + delimiter..end.saturating_sub(delimiter.max(2) - 1).max(at + delimiter), true)
            }
            Token::Code => {
                line += usize::from(chars[at] == '\n');
                is_alone = chars[at] == '\n' || (is_alone && chars[at].is_whitespace());
                at += 1;
                continue;
            }
        };
        out.push(Piece { line, text: chars[inner].iter().collect(), is_string, is_alone });
        line += chars[at..end].iter().filter(|c| **c == '\n').count();
        (at, is_alone) = (end, false);
    }
    out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Blank {
    CommentsAndStrings,
    Strings,
}

/// Replaces text that is not code by spaces, character by character; line ends stay.
fn blank(text: &str, what: Blank) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let (end, keep_ends) = match token_at(&chars, at) {
            Token::Comment(end) => {
                if what == Blank::Strings {
                    out.extend(&chars[at..end]);
                    at = end;
                    continue;
                }
                (end, 0)
            }
            Token::Quoted { end, delimiter } => (end, delimiter),
            Token::Code => {
                out.push(chars[at]);
                at += 1;
                continue;
            }
        };
        for (n, &c) in chars[at..end].iter().enumerate() {
            let is_end = n < keep_ends || n >= end - at - keep_ends.min(1);
            out.push(if c == '\n' || (keep_ends > 0 && is_end) { c } else { ' ' });
        }
        at = end;
    }
    out
}

enum Token {
    /// With the index after its last character.
    Comment(usize),
    /// A string or character that ends before `end`, with `delimiter` opening characters.
    Quoted { end: usize, delimiter: usize },
    /// One character of code.
    Code,
}

fn token_at(chars: &[char], at: usize) -> Token {
    let next = |n: usize| chars.get(at + n).copied().unwrap_or('\0');
    let after_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match (chars[at], next(1)) {
        ('/', '/') => Token::Comment(find(chars, at, |c| c == '\n')),
        ('/', '*') => Token::Comment(block_comment_end(chars, at)),
        ('"', _) => Token::Quoted { end: string_end(chars, at + 1), delimiter: 1 },
        ('r', '"' | '#') if !after_word || chars[at - 1] == 'b' => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if next(1 + hashes) == '"' {
                let end = raw_string_end(chars, at + 2 + hashes, hashes);
                Token::Quoted { end, delimiter: 2 + hashes }
            } else {
                Token::Code
            }
        }
        // A character, not a lifetime.
        ('\'', '\\') => {
            let end = find(chars, at + 3, |c| c == '\'');
            Token::Quoted { end: (end + 1).min(chars.len()), delimiter: 1 }
        }
        ('\'', _) if next(2) == '\'' => Token::Quoted { end: at + 3, delimiter: 1 },
        _ => Token::Code,
    }
}

fn find(chars: &[char], from: usize, wanted: impl Fn(char) -> bool) -> usize {
    (from..chars.len()).find(|&i| wanted(chars[i])).unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0, at);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], from: usize) -> usize {
    let mut i = from;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

fn raw_string_end(chars: &[char], from: usize, hashes: usize) -> usize {
    (from..chars.len())
        .find(|&i| {
            chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
        })
        .map_or(chars.len(), |i| i + 1 + hashes)
}

/// Byte ranges of `#[cfg(test)] mod x { ... }`, attributes included, also with `all(test, ...)`.
fn test_modules(code: &str) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = code[from..].find("#[cfg(").map(|n| n + from) {
        let Some(close) = code[at..].find(']').map(|n| n + at + 1) else { break };
        from = close;
        let is_test =
            !lines_with_word(&code[at..close], "test").is_empty() && !code[at..close].contains("not(test");
        let mut item = code[from..].trim_start();
        while let Some(end) = item.starts_with("#[").then(|| item.find(']')).flatten() {
            item = item[end + 1..].trim_start();
        }
        let item =
            item.strip_prefix("pub(").and_then(|rest| rest.split_once(") ")).map_or(item, |(_, item)| item);
        let (Some(open), Some(end)) = (item.find('{'), item.find(';').or(Some(item.len()))) else { continue };
        if !is_test || !item.starts_with("mod ") || end < open {
            continue;
        }
        let open = code.len() - item.len() + open;
        let mut depth = 0;
        let end = code[open..].char_indices().find_map(|(n, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(open + n + 1)
        });
        let end = end.unwrap_or(code.len());
        found.push(at..end);
        from = end;
    }
    found
}

fn without_test_modules(code: &str) -> String {
    let mut out = code.to_owned();
    for range in test_modules(code) {
        let blanks: String =
            code[range.clone()].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        // Ranges are sorted; a blank has one byte, a character may have more.
        let shift = code.len() - out.len();
        out.replace_range(range.start - shift..range.end - shift, &blanks);
    }
    out
}

fn test_module_lines(code: &str) -> usize {
    test_modules(code).into_iter().map(|range| code[range].lines().count()).sum()
}

/// Every path in `code` that begins with `root::`, with groups in braces expanded.
pub fn named(code: &str, root: &str) -> Vec<Named> {
    let mut out = Vec::new();
    let prefix = format!("{root}::");
    for (at, _) in code.match_indices(&prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let mut rest = code[at + prefix.len()..].chars().peekable();
        take_paths(&mut rest, line, &mut Vec::new(), &mut out);
    }
    out
}

/// Reads a path or group after `::` and returns the line at its end.
fn take_paths(
    rest: &mut std::iter::Peekable<std::str::Chars<'_>>,
    mut line: usize,
    before: &mut Vec<String>,
    out: &mut Vec<Named>,
) -> usize {
    let depth = before.len();
    line += skip_space(rest);
    if rest.next_if_eq(&'{').is_some() {
        loop {
            line += skip_space(rest);
            match rest.peek() {
                None => break,
                Some('}') => {
                    rest.next();
                    break;
                }
                Some(',') => {
                    rest.next();
                }
                Some(c) if c.is_alphanumeric() || matches!(c, '_' | '{' | '*') => {
                    line = take_paths(rest, line, before, out);
                }
                Some(_) => {
                    rest.next();
                }
            }
        }
        return line;
    }
    let mut word = String::new();
    while let Some(c) = rest.next_if(|c| c.is_alphanumeric() || *c == '_' || *c == '*') {
        word.push(c);
        if c == '*' {
            break;
        }
    }
    before.push(word);
    let mut ahead = rest.clone();
    if ahead.next() == Some(':') && ahead.next() == Some(':') && ahead.peek() != Some(&'<') {
        *rest = ahead;
        line = take_paths(rest, line, before, out);
    } else {
        out.push(Named { line, parts: before.clone() });
        skip_new_name(rest);
    }
    before.truncate(depth);
    line
}

/// Skips the new name after ` as `.
fn skip_new_name(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    let mut ahead = rest.clone();
    skip_space(&mut ahead);
    let is_as = ahead.next() == Some('a') && ahead.next() == Some('s');
    if is_as && ahead.peek().is_some_and(|c| c.is_whitespace()) {
        skip_space(&mut ahead);
        while ahead.next_if(|c| c.is_alphanumeric() || *c == '_').is_some() {}
        *rest = ahead;
    }
}

fn skip_space(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> usize {
    let mut lines = 0;
    while let Some(c) = rest.next_if(|c| c.is_whitespace()) {
        lines += usize::from(c == '\n');
    }
    lines
}

/// The lines of `text` that have `word` as a whole word.
pub fn lines_with_word(text: &str, word: &str) -> Vec<usize> {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    let stands_alone = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            !line[..at].chars().next_back().is_some_and(part_of_word)
                && !line[at + word.len()..].chars().next().is_some_and(part_of_word)
        })
    };
    text.lines().enumerate().filter(|(_, line)| stands_alone(line)).map(|(n, _)| n + 1).collect()
}

mod tests {
    use super::*;

    fn parts(code: &str, root: &str) -> Vec<String> {
        named(code, root).into_iter().map(|named| named.parts.join("::")).collect()
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        let text =
            "a // crate::x\n/* b /* c */ d */ e \"f \\\" g\" r#\"h \" i\"# 'j' '\\'' 'k: 'l, b\"m\" br\"n\"";
        let code = Source::new("x", text).code;
        for gone in ["crate", "b /", "d", "f", "g", "h", "i", "j'", "m\"", "n\""] {
            assert!(!code.contains(gone), "{gone} is in {code:?}");
        }
        assert!(code.contains("a ") && code.contains(" e ") && code.contains("'k: 'l"), "{code:?}");
        assert_eq!(code.lines().count(), text.lines().count());
        assert_eq!(code.chars().count(), text.chars().count());
        let with_comments = Source::new("x", text).text_without_strings();
        assert!(with_comments.contains("// crate::x") && !with_comments.contains("f \\"));
    }

    #[test]
    fn paths_are_found_in_groups_and_lines_are_right() {
        let code = "use crate::{\n    ids::{Ino, FileId},\n    pds::types,\n};\nlet x = crate::vfs::Vfs::new();\nmycrate::no();";
        assert_eq!(parts(code, "crate"), ["ids::Ino", "ids::FileId", "pds::types", "vfs::Vfs::new"]);
        let lines: Vec<usize> = named(code, "crate").iter().map(|named| named.line).collect();
        assert_eq!(lines, [2, 2, 3, 5]);
        assert_eq!(
            parts("use crate::tree::*; use crate::pds::{self, drive::Drive as D};", "crate"),
            ["tree::*", "pds::self", "pds::drive::Drive"]
        );
        assert_eq!(parts("let v = crate::ids::parse::<u8>(x);", "crate"), ["ids::parse"]);
    }

    #[test]
    fn test_modules_are_not_daemon_code() {
        let text = "use crate::ids;\n#[cfg(test)]\nconst X: u8 = 1;\n#[cfg(all(test, x))] #[allow(x)]\npub(in crate::a) mod tests {\n    fn é() { crate::server::x() }\n}\nfn after() { crate::vfs::y() }\n";
        let source = Source::new("x", text);
        assert_eq!(parts(&source.daemon_code, "crate"), ["ids", "vfs::y"]);
        assert_eq!(named(&source.daemon_code, "crate")[1].line, 8);
        assert_eq!(source.daemon_lines(), 4);
        assert!(source.daemon_code.contains("const X"));
    }

    #[test]
    fn comments_and_strings_keep_their_lines() {
        let text = "//! A\n//! b.\n//!\n//! * C\nlet a = \"x \\\n  y\"; // D\n// E\n// f\nr#\"z\"#";
        let source = Source::new("x", text);
        let found = |pieces: Vec<(usize, String)>| {
            pieces
                .into_iter()
                .filter(|(_, text)| !text.is_empty())
                .map(|(n, text)| format!("{n} {text}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(found(source.comments()), ["1 A b.", "4 * C", "6 D", "7 E f"]);
        assert_eq!(found(source.strings()), ["5 x \n  y", "9 z"]);
    }

    #[test]
    fn whole_words_are_found() {
        assert_eq!(lines_with_word("fuser\nfusers\nmy_fuser\nuse fuser::X;", "fuser"), [1, 4]);
    }
}
