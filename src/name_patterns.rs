//! Lists of file name patterns with `*` and `?`, as in shells.
//!
//! They select local-only files. A valid pattern can match a file name, and does not match every name.

use std::fmt;
use std::str::Chars;

use crate::error::{Error, ErrorKind, Result};

/// Most patterns in one list.
const PATTERNS_MAX: usize = 64;
/// Longest pattern, in bytes. No name is longer.
const PATTERN_BYTES_MAX: usize = 255;
/// The word for an empty list.
const NONE: &str = "off";

/// A name matches the list if it matches one of the patterns.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NamePatterns(Vec<Box<str>>);

impl NamePatterns {
    /// Lock and junk files of office suites and desktops.
    pub const JUNK: [&str; 5] = [".~lock.*#", ".DS_Store", "._*", "Thumbs.db", "*.swp"];

    /// The word `off` alone makes an empty list.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let patterns: Vec<&str> = patterns.into_iter().map(str::trim).collect();
        if patterns == [NONE] {
            return Ok(Self::default());
        }
        if patterns.len() > PATTERNS_MAX {
            let detail = format!("too many patterns: {} (at most {PATTERNS_MAX})", patterns.len());
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        patterns.iter().try_for_each(|pattern| check(pattern))?;
        Ok(Self(patterns.into_iter().map(Box::from).collect()))
    }

    pub fn junk() -> Self {
        Self(Self::JUNK.map(Box::from).into())
    }

    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| matches_pattern(pattern, name))
    }
}

impl fmt::Display for NamePatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str(NONE) } else { f.write_str(&self.0.join(",")) }
    }
}

fn check(pattern: &str) -> Result<()> {
    let invalid =
        |why: &str| Err(Error::new(ErrorKind::Invalid, format!("invalid pattern {pattern:?}: {why}")));
    if pattern == NONE {
        return invalid("the word means an empty list and must stand alone");
    }
    if pattern.is_empty() || pattern.len() > PATTERN_BYTES_MAX {
        return invalid("a pattern has 1 to 255 bytes");
    }
    if pattern.contains(['/', '\0']) {
        return invalid("patterns match file names, not paths, and cannot contain / or NUL");
    }
    if pattern.chars().all(|c| matches!(c, '*' | '?')) {
        return invalid("it would match every file; add at least one ordinary character");
    }
    Ok(())
}

/// Whether `name` matches `pattern`. The time is bounded by the product of their lengths: only the last star
/// is retried, because it can match everything that an earlier star could.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.chars(), name.chars());
    // After the last star: the rest of the pattern, and the rest of the name that it was tried with.
    let mut retry: Option<(Chars<'_>, Chars<'_>)> = None;
    loop {
        let rest = name.clone();
        match (pattern.next(), name.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                retry = Some((pattern.clone(), rest.clone()));
                name = rest;
            }
            (Some('?'), Some(_)) => {}
            (Some(wanted), Some(c)) if wanted == c => {}
            _ => {
                let Some((behind, longer)) = &mut retry else { return false };
                if longer.next().is_none() {
                    return false;
                }
                (pattern, name) = (behind.clone(), longer.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, for comparison.
    fn fits_by_definition(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => (0..=name.len()).any(|n| fits_by_definition(rest, &name[n..])),
            (Some(('?', rest)), Some((_, behind))) => fits_by_definition(rest, behind),
            (Some((wanted, rest)), Some((c, behind))) => wanted == c && fits_by_definition(rest, behind),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_definition(pattern in "[ab*?]{0,7}", name in "[ab\u{e9}]{0,8}") {
            let (p, n): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
            prop_assert_eq!(matches_pattern(&pattern, &name), fits_by_definition(&p, &n));
        }
    }

    #[test]
    fn junk_patterns_match_desktop_files() {
        let junk = NamePatterns::junk();
        for name in [".~lock.report.odt#", ".DS_Store", "._photo.jpg", "Thumbs.db", ".notes.txt.swp", "x.swp"]
        {
            assert!(junk.matches(name), "{name}");
        }
        for name in ["report.odt", "DS_Store", ".DS_Store2", "lock.odt#", ".bashrc", "swp", "a.swpx", "_x"] {
            assert!(!junk.matches(name), "{name}");
        }
        assert_eq!(NamePatterns::new(NamePatterns::JUNK).unwrap(), junk);
    }

    #[test]
    fn invalid_patterns_are_rejected() {
        assert!(!NamePatterns::new(["off"]).unwrap().matches(".DS_Store"));
        assert!(NamePatterns::new([" *.tmp "]).unwrap().matches("a.tmp"));
        for (wrong, word) in
            [(vec!["*"], "every"), (vec!["?*"], "every"), (vec!["a/b"], "paths"), (vec![""], "255")]
        {
            let error = NamePatterns::new(wrong).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(NamePatterns::new(["off", "x"]).is_err());
        assert!(NamePatterns::new(["x"; 65]).is_err());
    }
}
