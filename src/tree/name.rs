//! Names at the border between Linux and the drive.
//!
//! The drive allows what Linux cannot show: two siblings of one name, names over 255 bytes, `.` and
//! `..`, slashes and NUL. What is decided here is decided once: [`shown`] makes any remote name
//! showable, [`numbered`] tells siblings apart. Nothing is hidden. A name that comes from the
//! kernel is a [`Name`] before anything else looks at it.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write;
use std::sync::Arc;

use sha1::{Digest, Sha1};

use crate::error::{Error, ErrorKind, Result};
use crate::pds::types::FileType;

/// Longest name that Linux can show, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest ending that counts as a file's extension, in bytes and with its dot.
const EXTENSION_BYTES_MAX: usize = 20;
/// What stands for a backslash on the drive.
const BACKSLASH_SHOWN: char = '\u{ff3c}';
/// Stands before a character that means itself.
const QUOTE: char = '\u{201b}';
/// Hash bytes in a shortened name; twice as many hex digits are shown.
const HASH_BYTES: usize = 6;

/// A name of the kernel's that an entry of a folder can have: UTF-8, 1 to 255 bytes, without
/// slash and NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name(Arc<str>);

impl Name {
    /// A checked name.
    pub fn new(name: &OsStr) -> Result<Self> {
        if name.len() > NAME_BYTES_MAX {
            let detail = format!("a name of {} bytes is too long; {NAME_BYTES_MAX} are allowed", name.len());
            return Err(Error::new(ErrorKind::NameTooLong, detail));
        }
        let Some(text) = name.to_str() else {
            let detail = format!("{} is not UTF-8; the drive takes no other names", name.display());
            return Err(Error::new(ErrorKind::InvalidName, detail));
        };
        if text.is_empty() || text == "." || text == ".." || text.contains(['/', '\0']) {
            let detail = format!("{text:?} cannot be the name of a file; choose another one");
            return Err(Error::new(ErrorKind::InvalidName, detail));
        }
        Ok(Self(text.into()))
    }

    /// What it is called on the drive, which refuses backslashes: they become look-alikes, and those are
    /// quoted. [`shown`] is the way back.
    pub fn remote(&self) -> Arc<str> {
        if !self.0.contains(['\\', BACKSLASH_SHOWN, QUOTE]) {
            return self.0.clone();
        }
        let mut remote = String::with_capacity(self.0.len() + 8);
        for c in self.0.chars() {
            match c {
                '\\' => remote.push(BACKSLASH_SHOWN),
                BACKSLASH_SHOWN | QUOTE => remote.extend([QUOTE, c]),
                c => remote.push(c),
            }
        }
        remote.into()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, shared.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a remote name is shown if no sibling wants the same: itself, wherever Linux can show it.
///
/// Characters that Linux has no room for become look-alikes; names that are too long keep their
/// beginning and extension around a hash of the whole.
pub fn shown(remote: &str, kind: FileType) -> Cow<'_, str> {
    let showable = match remote {
        "" => return Cow::Borrowed("\u{2400}"),
        "." => return Cow::Borrowed("\u{ff0e}"),
        ".." => return Cow::Borrowed("\u{ff0e}\u{ff0e}"),
        _ if remote.contains(['/', '\0']) => {
            Cow::Owned(remote.replace('/', "\u{ff0f}").replace('\0', "\u{2400}"))
        }
        _ => Cow::Borrowed(remote),
    };
    let showable = if showable.contains(BACKSLASH_SHOWN) || showable.contains(QUOTE) {
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

/// With the backslashes that [`Name::remote`] has taken out.
fn unquoted(remote: &str) -> String {
    let mut shown = String::with_capacity(remote.len());
    let mut rest = remote.chars().peekable();
    while let Some(c) = rest.next() {
        let quoted =
            if c == QUOTE { rest.next_if(|next| [QUOTE, BACKSLASH_SHOWN].contains(next)) } else { None };
        shown.push(match (c, quoted) {
            (_, Some(quoted)) => quoted,
            (BACKSLASH_SHOWN, None) => '\\',
            (c, None) => c,
        });
    }
    shown
}

/// How the `number`-th of siblings of one shown name is shown: `name (2).ext`.
pub fn numbered(shown: &str, number: u32, kind: FileType) -> String {
    with_middle(shown, &format!(" ({number})"), kind)
}

/// The number that makes `name` the [`numbered`] form of `shown`, if one does.
pub fn number_of(name: &str, shown: &str, kind: FileType) -> Option<u32> {
    let (_, extension) = split(shown, kind);
    let digits = name.strip_suffix(extension)?.strip_suffix(')')?.rsplit_once(" (")?.1;
    let number = digits.parse().ok()?;
    (number >= 2 && numbered(shown, number, kind) == name).then_some(number)
}

/// Puts `middle` before the extension and cuts the stem so that all of it is showable.
fn with_middle(name: &str, middle: &str, kind: FileType) -> String {
    let (stem, extension) = split(name, kind);
    let room = NAME_BYTES_MAX.saturating_sub(middle.len() + extension.len());
    let cut = (0..=room.min(stem.len())).rev().find(|&at| stem.is_char_boundary(at)).unwrap_or(0);
    let stem = &stem[..cut];
    format!("{stem}{middle}{extension}")
}

/// Stem and extension (with its dot). Folders and dot files have no extension.
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
    fn names_of_the_kernel_are_checked() {
        let kind = |bytes: &[u8]| Name::new(OsStr::from_bytes(bytes)).unwrap_err().kind();
        assert_eq!(kind(&[b'a'; 256]), ErrorKind::NameTooLong);
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", b"\xff\xfe"] {
            assert_eq!(kind(bad), ErrorKind::InvalidName, "{bad:?}");
        }
        assert_eq!(Name::new(OsStr::from_bytes(&[b'a'; 255])).unwrap().as_str().len(), 255);
    }

    #[test]
    fn a_backslash_has_a_look_alike_on_the_drive() {
        for (name, remote) in [
            (r"a\b", "a\u{ff3c}b"),
            ("a\u{ff3c}b", "a\u{201b}\u{ff3c}b"),
            ("\u{201b}\\", "\u{201b}\u{201b}\u{ff3c}"),
            ("plain", "plain"),
        ] {
            assert_eq!(&*Name::new(OsStr::new(name)).unwrap().remote(), remote);
            assert_eq!(shown(remote, FILE), name);
        }
        assert_eq!(shown("a \u{201b}90s song", FILE), "a \u{201b}90s song", "quotes that others wrote");
    }

    #[test]
    fn ordinary_names_are_shown_as_they_are() {
        for name in ["a.txt", " ", "...", "a\\b", "line\nbreak", "日本.txt"] {
            assert!(matches!(shown(name, FILE), Cow::Borrowed(s) if s == name), "{name:?}");
        }
    }

    #[test]
    fn names_that_linux_cannot_show_get_look_alikes() {
        assert_eq!(shown(".", FILE), "\u{ff0e}");
        assert_eq!(shown("..", FILE), "\u{ff0e}\u{ff0e}");
        assert_eq!(shown("a/b", FILE), "a\u{ff0f}b");
        assert_eq!(shown("a\0", FILE), "a\u{2400}");
    }

    #[test]
    fn a_long_name_keeps_its_extension() {
        let long = format!("{}.tar.gz", "é".repeat(300));
        let short = shown(&long, FILE);
        assert!(short.len() <= 255 && short.len() >= 253, "{}", short.len());
        assert!(short.starts_with("éééé") && short.ends_with(".gz") && short.contains('~'));
        let other = shown(&format!("{}.tar.gz", "é".repeat(301)), FILE).into_owned();
        assert_ne!(short, other, "the hash tells them apart");
        // What looks like an endless extension is none.
        assert_eq!(shown(&format!("a.{}", "b".repeat(300)), FILE).len(), 255);
    }

    #[test]
    fn numbers_go_before_the_extension_of_a_file() {
        assert_eq!(numbered("a.txt", 2, FILE), "a (2).txt");
        assert_eq!(numbered("a.txt", 3, FileType::Folder), "a.txt (3)");
        assert_eq!(numbered(".profile", 2, FILE), ".profile (2)");
        assert_eq!(numbered("a", 12, FILE), "a (12)");
        assert_eq!(numbered(&"x".repeat(255), 2, FILE).len(), 255);
    }

    #[test]
    fn numbers_are_read_back() {
        assert_eq!(number_of("a (12).txt", "a.txt", FILE), Some(12));
        assert_eq!(number_of("b (12).txt", "a.txt", FILE), None);
        assert_eq!(number_of("a (02).txt", "a.txt", FILE), None);
        assert_eq!(number_of("a (1).txt", "a.txt", FILE), None);
        assert_eq!(number_of("a.txt", "a.txt", FILE), None);
    }

    fn kinds() -> impl Strategy<Value = FileType> {
        prop_oneof![Just(FileType::File), Just(FileType::Folder)]
    }

    proptest! {
        #[test]
        fn what_is_made_is_found_again(text in "[a\u{ff3c}\u{201b}\\\\]{1,20}", kind in kinds()) {
            let name = Name::new(OsStr::new(&text)).unwrap();
            let remote = name.remote();
            prop_assert!(!remote.contains('\\'));
            prop_assert_eq!(shown(&remote, kind), text);
        }

        #[test]
        fn whatever_is_shown_is_a_name(remote in "(?s).{0,400}", kind in kinds(), number in 2_u32..100_000) {
            let name = shown(&remote, kind).into_owned();
            prop_assert!(Name::new(OsStr::new(&name)).is_ok(), "{name:?}");
            let other = numbered(&name, number, kind);
            prop_assert!(Name::new(OsStr::new(&other)).is_ok(), "{other:?}");
            prop_assert_ne!(&name, &other);
            prop_assert_eq!(number_of(&other, &name, kind), Some(number));
        }
    }
}
