//! Mapping between names on Linux and names on the drive.
//!
//! The drive allows names that Linux cannot show: siblings with equal names, names over 255 bytes, `.` and
//! `..`, slashes and NUL. [`display_name`] maps every remote name to a valid one, and [`disambiguated`] makes
//! siblings unique. No entry is hidden. A name from the kernel becomes a [`Name`] before any other code uses
//! it.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write;
use std::sync::Arc;

use sha1::{Digest, Sha1};

use crate::error::{Error, ErrorKind, Result};
use crate::pds::types::FileType;

/// Longest name on Linux, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest file extension, in bytes with its dot.
const EXTENSION_BYTES_MAX: usize = 20;
/// Replaces a backslash on the drive.
const BACKSLASH_LOOK_ALIKE: char = '\u{ff3c}';
/// Escapes itself and [`BACKSLASH_LOOK_ALIKE`].
const QUOTE: char = '\u{201b}';
/// Hash bytes in a shortened name. Each is shown as two hex digits.
const HASH_BYTES: usize = 6;

/// A valid name of a directory entry: UTF-8, 1 to 255 bytes, without slash and NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name(Arc<str>);

impl Name {
    pub fn new(name: &OsStr) -> Result<Self> {
        if name.len() > NAME_BYTES_MAX {
            let detail = format!("file name has {} bytes; the limit is {NAME_BYTES_MAX}", name.len());
            return Err(Error::new(ErrorKind::NameTooLong, detail));
        }
        let Some(text) = name.to_str() else {
            let detail =
                format!("file name {} is not UTF-8; the drive accepts only UTF-8 names", name.display());
            return Err(Error::new(ErrorKind::InvalidName, detail));
        };
        if text.is_empty() || text == "." || text == ".." || text.contains(['/', '\0']) {
            let detail = format!("{text:?} is not a valid file name");
            return Err(Error::new(ErrorKind::InvalidName, detail));
        }
        Ok(Self(text.into()))
    }

    /// The name on the drive. The drive refuses backslashes: they become look-alikes, and existing
    /// look-alikes are quoted. [`display_name`] is the inverse.
    pub fn remote(&self) -> Arc<str> {
        if !self.0.contains(['\\', BACKSLASH_LOOK_ALIKE, QUOTE]) {
            return self.0.clone();
        }
        let mut remote = String::with_capacity(self.0.len() + 8);
        for c in self.0.chars() {
            match c {
                '\\' => remote.push(BACKSLASH_LOOK_ALIKE),
                BACKSLASH_LOOK_ALIKE | QUOTE => remote.extend([QUOTE, c]),
                c => remote.push(c),
            }
        }
        remote.into()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name that Linux sees for a remote name without equal siblings. Equal to `remote` if that is valid.
///
/// Invalid characters become look-alikes. A name that is too long is shortened: its beginning and its
/// extension stay, and a hash of the whole name stands between them.
pub fn display_name(remote: &str, kind: FileType) -> Cow<'_, str> {
    let showable = match remote {
        "" => return Cow::Borrowed("\u{2400}"),
        "." => return Cow::Borrowed("\u{ff0e}"),
        ".." => return Cow::Borrowed("\u{ff0e}\u{ff0e}"),
        _ if remote.contains(['/', '\0']) => {
            Cow::Owned(remote.replace('/', "\u{ff0f}").replace('\0', "\u{2400}"))
        }
        _ => Cow::Borrowed(remote),
    };
    let showable = if showable.contains(BACKSLASH_LOOK_ALIKE) || showable.contains(QUOTE) {
        Cow::Owned(unquoted(&showable))
    } else {
        showable
    };
    if showable.len() <= NAME_BYTES_MAX {
        return showable;
    }
    let mut middle = String::from("~");
    for byte in Sha1::digest(remote.as_bytes()).iter().take(HASH_BYTES) {
        // Writing to a string cannot fail.
        let _ = write!(middle, "{byte:02x}");
    }
    Cow::Owned(with_middle(&showable, &middle, kind))
}

/// The inverse of [`Name::remote`].
fn unquoted(remote: &str) -> String {
    let mut unquoted = String::with_capacity(remote.len());
    let mut rest = remote.chars().peekable();
    while let Some(c) = rest.next() {
        let quoted =
            if c == QUOTE { rest.next_if(|next| [QUOTE, BACKSLASH_LOOK_ALIKE].contains(next)) } else { None };
        unquoted.push(match (c, quoted) {
            (_, Some(quoted)) => quoted,
            (BACKSLASH_LOOK_ALIKE, None) => '\\',
            (c, None) => c,
        });
    }
    unquoted
}

/// The name of the `number`-th sibling with the same display name: `name (2).ext`.
pub fn disambiguated(plain: &str, number: u32, kind: FileType) -> String {
    with_middle(plain, &format!(" ({number})"), kind)
}

/// The inverse of [`disambiguated`]: the number in `name`, if `name` is a numbered form of `plain`.
pub fn disambiguation_number(name: &str, plain: &str, kind: FileType) -> Option<u32> {
    let (_, extension) = split(plain, kind);
    let digits = name.strip_suffix(extension)?.strip_suffix(')')?.rsplit_once(" (")?.1;
    let number = digits.parse().ok()?;
    (number >= 2 && disambiguated(plain, number, kind) == name).then_some(number)
}

/// Inserts `middle` before the extension and shortens the stem to fit [`NAME_BYTES_MAX`].
fn with_middle(name: &str, middle: &str, kind: FileType) -> String {
    let (stem, extension) = split(name, kind);
    let room = NAME_BYTES_MAX.saturating_sub(middle.len() + extension.len());
    let end = (0..=room.min(stem.len())).rev().find(|&at| stem.is_char_boundary(at)).unwrap_or(0);
    let stem = &stem[..end];
    format!("{stem}{middle}{extension}")
}

/// Stem and extension (with its dot). Directories and dot files have no extension.
fn split(name: &str, kind: FileType) -> (&str, &str) {
    let at = match kind {
        FileType::Folder => None,
        FileType::File => name.rfind('.'),
    };
    match at {
        Some(at) if at > 0 && name.len() - at <= EXTENSION_BYTES_MAX => name.split_at(at),
        _ => (name, ""),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    const FILE: FileType = FileType::File;

    #[test]
    fn kernel_names_are_validated() {
        let kind = |bytes: &[u8]| Name::new(OsStr::from_bytes(bytes)).unwrap_err().kind();
        assert_eq!(kind(&[b'a'; 256]), ErrorKind::NameTooLong);
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", b"\xff\xfe"] {
            assert_eq!(kind(bad), ErrorKind::InvalidName, "{bad:?}");
        }
        assert_eq!(Name::new(OsStr::from_bytes(&[b'a'; 255])).unwrap().as_str().len(), 255);
    }

    #[test]
    fn backslash_becomes_a_look_alike_on_the_drive() {
        for (name, remote) in [
            (r"a\b", "a\u{ff3c}b"),
            ("a\u{ff3c}b", "a\u{201b}\u{ff3c}b"),
            ("\u{201b}\\", "\u{201b}\u{201b}\u{ff3c}"),
            ("plain", "plain"),
        ] {
            assert_eq!(&*Name::new(OsStr::new(name)).unwrap().remote(), remote);
            assert_eq!(display_name(remote, FILE), name);
        }
        assert_eq!(
            display_name("a \u{201b}90s song", FILE),
            "a \u{201b}90s song",
            "quotes from other clients stay"
        );
    }

    #[test]
    fn ordinary_names_are_unchanged() {
        for name in ["a.txt", " ", "...", "a\\b", "line\nbreak", "日本.txt"] {
            assert!(matches!(display_name(name, FILE), Cow::Borrowed(s) if s == name), "{name:?}");
        }
    }

    #[test]
    fn invalid_names_become_look_alikes() {
        assert_eq!(display_name(".", FILE), "\u{ff0e}");
        assert_eq!(display_name("..", FILE), "\u{ff0e}\u{ff0e}");
        assert_eq!(display_name("a/b", FILE), "a\u{ff0f}b");
        assert_eq!(display_name("a\0", FILE), "a\u{2400}");
    }

    #[test]
    fn long_name_keeps_its_extension() {
        let long = format!("{}.tar.gz", "é".repeat(300));
        let short = display_name(&long, FILE);
        assert!(short.len() <= 255 && short.len() >= 253, "{}", short.len());
        assert!(short.starts_with("éééé") && short.ends_with(".gz") && short.contains('~'));
        let other = display_name(&format!("{}.tar.gz", "é".repeat(301)), FILE).into_owned();
        assert_ne!(short, other, "the hash differs");
        // An extension that is too long does not count as one.
        assert_eq!(display_name(&format!("a.{}", "b".repeat(300)), FILE).len(), 255);
    }

    #[test]
    fn number_goes_before_the_extension() {
        assert_eq!(disambiguated("a.txt", 2, FILE), "a (2).txt");
        assert_eq!(disambiguated("a.txt", 3, FileType::Folder), "a.txt (3)");
        assert_eq!(disambiguated(".profile", 2, FILE), ".profile (2)");
        assert_eq!(disambiguated("a", 12, FILE), "a (12)");
        assert_eq!(disambiguated(&"x".repeat(255), 2, FILE).len(), 255);
    }

    #[test]
    fn disambiguation_number_is_parsed_back() {
        assert_eq!(disambiguation_number("a (12).txt", "a.txt", FILE), Some(12));
        assert_eq!(disambiguation_number("b (12).txt", "a.txt", FILE), None);
        assert_eq!(disambiguation_number("a (02).txt", "a.txt", FILE), None);
        assert_eq!(disambiguation_number("a (1).txt", "a.txt", FILE), None);
        assert_eq!(disambiguation_number("a.txt", "a.txt", FILE), None);
    }

    fn kinds() -> impl Strategy<Value = FileType> {
        prop_oneof![Just(FileType::File), Just(FileType::Folder)]
    }

    proptest! {
        #[test]
        fn display_name_inverts_remote(text in "[a\u{ff3c}\u{201b}\\\\]{1,20}", kind in kinds()) {
            let name = Name::new(OsStr::new(&text)).unwrap();
            let remote = name.remote();
            prop_assert!(!remote.contains('\\'));
            prop_assert_eq!(display_name(&remote, kind), text);
        }

        #[test]
        fn display_names_are_valid_names(remote in "(?s).{0,400}", kind in kinds(), number in 2_u32..100_000) {
            let name = display_name(&remote, kind).into_owned();
            prop_assert!(Name::new(OsStr::new(&name)).is_ok(), "{name:?}");
            let other = disambiguated(&name, number, kind);
            prop_assert!(Name::new(OsStr::new(&other)).is_ok(), "{other:?}");
            prop_assert_ne!(&name, &other);
            prop_assert_eq!(disambiguation_number(&other, &name, kind), Some(number));
        }
    }
}
