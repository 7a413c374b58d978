//! Escaping of external text, such as file names, for output. Escaped text cannot control a terminal, break a
//! line or change the text direction.

use std::fmt::{self, Write as _};

/// Control characters, line separators, and characters that change the text direction.
pub fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub fn write_escaped(to: &mut dyn fmt::Write, text: &str) -> fmt::Result {
    text.chars()
        .try_for_each(|c| if is_active(c) { write!(to, "{}", c.escape_default()) } else { to.write_char(c) })
}

/// Escapes active characters, including line breaks.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // Writing to a string cannot fail.
    let _ = write_escaped(&mut out, text);
    out
}

/// Escapes active characters except line breaks and tabs.
pub fn escaped_lines(text: &str) -> String {
    text.split_inclusive(['\n', '\t']).fold(String::with_capacity(text.len()), |mut out, piece| {
        let plain = piece.trim_end_matches(['\n', '\t']);
        out.push_str(&escaped(plain));
        out.push_str(&piece[plain.len()..]);
        out
    })
}

/// The text in quotes, as one word of a command for a shell.
pub fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Escapes active characters in the strings of a JSON text. Its meaning does not change; line breaks between
/// tokens stay.
pub fn escaped_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_active(c) && c != '\n' {
            // Active characters have at most four hex digits.
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
    fn only_active_characters_are_escaped() {
        for out in [escaped(NAME), escaped_lines(&NAME.replace('\n', ""))] {
            assert!(!out.contains(is_active), "{out:?}");
        }
        assert_eq!(escaped("a\n\u{202e}b"), "a\\n\\u{202e}b");
        let usual = "\u{e9}t\u{e9} \u{6587}\u{4ef6} \u{1f469}\u{200d}\u{1f680} \\n";
        assert_eq!(escaped(usual), usual);
        assert_eq!(escaped_lines("a\x1b\n\tb\n"), "a\\u{1b}\n\tb\n");
    }

    #[test]
    fn escaped_json_keeps_its_meaning() {
        let json = serde_json::to_string(NAME).unwrap();
        let out = escaped_json(&json);
        assert!(!out.contains(is_active), "{out}");
        assert_eq!(serde_json::from_str::<String>(&out).unwrap(), NAME);
    }
}
