//! The language of this process, and the rows of texts.

use std::ffi::OsString;
use std::sync::OnceLock;

/// A language of the texts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Language {
    English,
    /// Simplified Chinese.
    Chinese,
}

impl Language {
    /// The language of this process: the first of `LC_ALL`, `LC_MESSAGES` and `LANG` that is set. It is read
    /// once.
    pub fn current() -> Self {
        static CURRENT: OnceLock<Language> = OnceLock::new();
        #[cfg(test)]
        if let Some(language) = tests::OVERRIDE.get() {
            return language;
        }
        *CURRENT.get_or_init(|| Self::of(|name| std::env::var_os(name)))
    }

    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().filter_map(variable);
        let locale = set.map(|value| value.to_string_lossy().to_ascii_lowercase()).find(|v| !v.is_empty());
        let locale = locale.unwrap_or_default();
        let (name, charset) = locale.split_once('.').unwrap_or((&locale, "utf-8"));
        let charset = charset.split('@').next().unwrap_or_default();
        // Readers of Traditional Chinese get English.
        let is_simplified =
            matches!(name, "zh" | "zh_cn" | "zh_sg" | "zh_hans" | "zh_hans_cn" | "zh_hans_sg");
        if is_simplified && matches!(charset, "utf-8" | "utf8") { Self::Chinese } else { Self::English }
    }
}

/// Formats the text of a language. Both texts may capture variables.
macro_rules! pick {
    ($language:expr, $english:literal, $chinese:literal) => {
        match $language {
            $crate::messages::language::Language::English => format!($english),
            $crate::messages::language::Language::Chinese => format!($chinese),
        }
    };
}

/// Defines one function for each text: `name(arguments) { "English", "Chinese" }`.
macro_rules! messages {
    ($($(#[$meta:meta])* $name:ident($($argument:ident: $type:ty),*) { $english:literal, $chinese:literal })+) => {
        $(
            $(#[$meta])*
            pub fn $name($($argument: $type),*) -> String {
                $crate::messages::language::pick!($crate::messages::language::Language::current(), $english, $chinese)
            }
        )+

        /// Name, English text and Chinese text of each row.
        #[cfg(test)]
        pub(super) const ROWS: &[(&str, &str, &str)] = &[$((stringify!($name), $english, $chinese)),+];
    };
}
pub(super) use {messages, pick};

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        pub(super) static OVERRIDE: Cell<Option<Language>> = const { Cell::new(None) };
    }

    /// Runs `body` with Chinese texts. They are those of this thread only.
    pub fn in_chinese<T>(body: impl FnOnce() -> T) -> T {
        OVERRIDE.set(Some(Language::Chinese));
        let value = body();
        OVERRIDE.set(None);
        value
    }

    #[test]
    fn locale_selects_the_language() {
        let of = |variables: &[(&str, &str)]| {
            Language::of(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).into()))
        };
        for locale in ["zh_CN.UTF-8", "zh_CN.utf8", "zh", "zh_SG", "zh_Hans_CN.UTF-8", "zh_CN.UTF-8@x"] {
            assert_eq!(of(&[("LANG", locale)]), Language::Chinese, "{locale}");
        }
        for locale in ["", "C", "C.UTF-8", "en_US.UTF-8", "zh_TW.UTF-8", "zh_CN.GB18030", "zha_CN"] {
            assert_eq!(of(&[("LANG", locale)]), Language::English, "{locale}");
        }
        assert_eq!(of(&[]), Language::English);
        assert_eq!(of(&[("LANG", "zh_CN.UTF-8"), ("LC_MESSAGES", "C")]), Language::English);
        assert_eq!(of(&[("LANG", "C"), ("LC_MESSAGES", "zh_CN"), ("LC_ALL", "")]), Language::Chinese);
        assert_eq!(of(&[("LC_MESSAGES", "zh_CN"), ("LC_ALL", "C")]), Language::English);
    }
}
