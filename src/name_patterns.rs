//! Which names are meant: a list of patterns with `*` and `?`, as shells have them.
//!
//! Used for files that live on this machine only. A pattern is valid by construction: it can be the
//! name of something, and it does not mean every name.

use std::str::Chars;

use crate::error::{Error, ErrorKind, Result};

/// Patterns in one list, at most.
const PATTERNS_MAX: usize = 64;
/// Longest pattern, in bytes: no name is longer.
const PATTERN_BYTES_MAX: usize = 255;
/// What stands for no pattern at all.
const NONE: &str = "off";

/// A list of patterns. A name fits where it fits one of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NamePatterns(Vec<Box<str>>);

impl NamePatterns {
    /// Lock and junk files of office suites and desktops.
    pub const JUNK: [&str; 5] = [".~lock.*#", ".DS_Store", "._*", "Thumbs.db", "*.swp"];

    /// A list of patterns; the word `off` alone is an empty one.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let patterns: Vec<&str> = patterns.into_iter().map(str::trim).collect();
        if patterns == [NONE] {
            return Ok(Self::default());
        }
        if patterns.len() > PATTERNS_MAX {
            let detail = format!("{} patterns are too many; {PATTERNS_MAX} are allowed", patterns.len());
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        patterns.iter().try_for_each(|pattern| check(pattern))?;
        Ok(Self(patterns.into_iter().map(Box::from).collect()))
    }

    /// [`Self::JUNK`].
    pub fn junk() -> Self {
        Self(Self::JUNK.map(Box::from).into())
    }

    /// Whether a name is meant.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| fits(pattern, name))
    }
}

fn check(pattern: &str) -> Result<()> {
    let refused = |why: &str| Err(Error::new(ErrorKind::Invalid, format!("the pattern {pattern:?} {why}")));
    if pattern == NONE {
        return refused("stands alone or not at all: it means that there are no patterns");
    }
    if pattern.is_empty() || pattern.len() > PATTERN_BYTES_MAX {
        return refused("cannot be a name; a pattern has 1 to 255 bytes");
    }
    if pattern.contains(['/', '\0']) {
        return refused("has a character that no name has; patterns are for names, not for paths");
    }
    if pattern.chars().all(|c| matches!(c, '*' | '?')) {
        return refused("would mean every file; at least one ordinary character is needed");
    }
    Ok(())
}

/// Whether a name fits a pattern. Takes at most the product of their lengths: only the last star is tried
/// again, because whatever an earlier one could take, the last one can too.
fn fits(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.chars(), name.chars());
    // Behind the last star, and the rest of the name that it was tried with.
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

    /// The definition.
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
        fn a_pattern_means_what_it_says(pattern in "[ab*?]{0,7}", name in "[ab\u{e9}]{0,8}") {
            let (p, n): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
            prop_assert_eq!(fits(&pattern, &name), fits_by_definition(&p, &n));
        }
    }

    #[test]
    fn junk_is_what_desktops_leave_behind() {
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
    fn what_no_list_can_be_is_told() {
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
