//! Reads Rust source well enough to judge it: comments, strings and test modules set aside, and the
//! paths that the code names.

/// What a checker looks at. Lines keep their numbers: whatever is set aside becomes spaces.
#[derive(Debug)]
pub struct Source {
    /// Path below the root of the project, with `/`.
    pub path: String,
    /// As written.
    pub text: String,
    /// Without comments and without the insides of strings and characters.
    pub code: String,
    /// `code` without `#[cfg(test)]` modules.
    pub daemon_code: String,
}

/// A path such as `crate::pds::types::File`, and where it is named (lines count from 1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// The line.
    pub line: usize,
    /// The parts after the root: `["pds", "types", "File"]`.
    pub parts: Vec<String>,
}

impl Source {
    /// Takes a file apart.
    pub fn new(path: &str, text: &str) -> Self {
        let code = blank(text, Blank::CommentsAndStrings);
        let daemon_code = without_test_modules(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, daemon_code }
    }

    /// Lines that are neither in a test module nor after the last line that is not.
    pub fn daemon_lines(&self) -> usize {
        // A test module is replaced by blank lines, which its text did not have: count what is left
        // of the text's lines.
        let inside = test_module_lines(&self.code);
        self.text.lines().count() - inside
    }

    /// Without the insides of strings, with comments.
    pub fn text_without_strings(&self) -> String {
        blank(&self.text, Blank::Strings)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Blank {
    CommentsAndStrings,
    Strings,
}

/// Replaces what is not code by spaces, character by character; line ends stay.
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
    /// Ends before the index.
    Comment(usize),
    /// A string or character that ends before `end`; its opening has `delimiter` characters.
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
        // A character, unless it is a lifetime.
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

/// Byte ranges of `#[cfg(test)] mod x { ... }`, attribute included.
fn test_modules(code: &str) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = code[from..].find("#[cfg(test)]").map(|n| n + from) {
        from = at + "#[cfg(test)]".len();
        let item = code[from..].trim_start();
        let item = item.strip_prefix("pub(crate) ").unwrap_or(item);
        let (Some(open), true) = (code[from..].find('{'), item.starts_with("mod ")) else { continue };
        let mut depth = 0;
        let end = code[from + open..].char_indices().find_map(|(n, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(from + open + n + 1)
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
        // Ranges are found from front to back; a blank has one byte, a character maybe more.
        let shift = code.len() - out.len();
        out.replace_range(range.start - shift..range.end - shift, &blanks);
    }
    out
}

fn test_module_lines(code: &str) -> usize {
    test_modules(code).into_iter().map(|range| code[range].lines().count()).sum()
}

/// Every path in `code` that begins with `root::`, groups in braces taken apart.
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

/// Reads one path or group after `::`; `line` moves with line ends.
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

/// After ` as `, the new name is not a path.
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

/// Whether `text` has `word` as a word of its own, and on which lines.
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
    fn comments_and_strings_are_set_aside() {
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
        let text = "use crate::ids;\n#[cfg(test)]\nconst X: u8 = 1;\n#[cfg(test)]\nmod tests {\n    fn é() { crate::server::x() }\n}\nfn after() { crate::vfs::y() }\n";
        let source = Source::new("x", text);
        assert_eq!(parts(&source.daemon_code, "crate"), ["ids", "vfs::y"]);
        assert_eq!(named(&source.daemon_code, "crate")[1].line, 8);
        assert_eq!(source.daemon_lines(), 4);
        assert!(source.daemon_code.contains("const X"));
    }

    #[test]
    fn words_stand_alone() {
        assert_eq!(lines_with_word("fuser\nfusers\nmy_fuser\nuse fuser::X;", "fuser"), [1, 4]);
    }
}
