//! Texts for people, in English and in Simplified Chinese.
//!
//! Each text is one row with both languages, so the compiler refuses a text without a translation. The rows of
//! a module are functions, such as [`status::everything_saved`], and use the language of this process. A
//! [`Cause`] is a failure that travels between processes as a word, and becomes a text where a person reads
//! it. JSON, metrics and log lines of the daemon are English in every language.

mod cause;
mod language;
pub mod log;
pub mod notification;
pub mod status;

pub use cause::{Cause, Remedy, Room};
pub use language::Language;
#[cfg(test)]
pub use language::tests::in_chinese;

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in braces of a text, sorted.
    fn placeholders(text: &str) -> Vec<&str> {
        let mut names: Vec<_> =
            text.split('{').skip(1).filter_map(|rest| rest.split(['}', ':']).next()).collect();
        names.sort_unstable();
        names
    }

    fn is_chinese(text: &str) -> bool {
        text.contains(|c: char| ('\u{4e00}'..='\u{9fff}').contains(&c))
    }

    #[test]
    fn each_text_is_translated() {
        for (name, english, chinese) in [log::ROWS, notification::ROWS, status::ROWS].concat() {
            assert!(!is_chinese(english) && is_chinese(chinese), "{name}: {chinese}");
            assert_eq!(placeholders(english), placeholders(chinese), "{name}");
        }
        for cause in cause::tests::examples() {
            let (english, chinese) = (cause.text(Language::English), cause.text(Language::Chinese));
            assert!(!is_chinese(&english) && is_chinese(&chinese), "{chinese}");
        }
    }
}
