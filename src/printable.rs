//! Text that comes from elsewhere, such as the names of files, as it may be shown: nothing in it is obeyed by a
//! terminal, ends a line, or turns the text around it.

use std::fmt::{self, Write as _};

/// Whether a character does something in place of being seen: control characters, line separators, and what
/// changes the direction of text.
pub fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Writes `text` with active characters escaped.
pub fn write_escaped(to: &mut dyn fmt::Write, text: &str) -> fmt::Result {
    text.chars()
        .try_for_each(|c| if is_active(c) { write!(to, "{}", c.escape_default()) } else { to.write_char(c) })
}

/// `text` in one line, with active characters escaped.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // Writing to a string cannot fail.
    let _ = write_escaped(&mut out, text);
    out
}

/// The same for text whose own lines and tabs are meant.
pub fn escaped_lines(text: &str) -> String {
    text.split_inclusive(['\n', '\t']).fold(String::with_capacity(text.len()), |mut out, piece| {
        let plain = piece.trim_end_matches(['\n', '\t']);
        out.push_str(&escaped(plain));
        out.push_str(&piece[plain.len()..]);
        out
    })
}

/// JSON that means the same, with active characters escaped as JSON does. Line breaks of it lie between its words.
pub fn escaped_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_active(c) && c != '\n' {
            // All of them have four digits at most.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "a\n\x1b[2Jb\u{9b}31m\u{202e}gpj.exe\u{2066}\u{7f}\u{2028}";

    #[test]
    fn nothing_active_is_left_and_everything_else_stays() {
        for out in [escaped(NAME), escaped_lines(&NAME.replace('\n', ""))] {
            assert!(!out.contains(is_active), "{out:?}");
        }
        assert_eq!(escaped("a\n\u{202e}b"), "a\\n\\u{202e}b");
        let usual = "\u{e9}t\u{e9} \u{6587}\u{4ef6} \u{1f469}\u{200d}\u{1f680} \\n";
        assert_eq!(escaped(usual), usual);
        assert_eq!(escaped_lines("a\x1b\n\tb\n"), "a\\u{1b}\n\tb\n");
    }

    #[test]
    fn escaped_json_means_the_same() {
        let json = serde_json::to_string(NAME).unwrap();
        let out = escaped_json(&json);
        assert!(!out.contains(is_active), "{out}");
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), NAME);
    }
}
