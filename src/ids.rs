//! Identifiers and validated values.
//!
//! A string or number is checked once, at the border, and gets one of these types. No I/O, no policy. The
//! client and the embedded server share these types.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroize;

/// An inode number of this mount. Never reused during a mount. 1 is the root.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ino(pub u64);

impl Ino {
    pub const ROOT: Self = Self(1);
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The reason for which a value was rejected.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(pub String);

/// Longest id accepted from a server, in bytes. The IDL allows 50; some deployments use 64.
pub const ID_BYTES_MAX: usize = 128;

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Accepts 1 to `ID_BYTES_MAX` bytes without control characters, slashes or spaces.
            pub fn new(id: &str) -> Result<Self, InvalidValue> {
                let bad = |c: char| c.is_control() || c.is_whitespace() || c == '/';
                if id.is_empty() || id.len() > ID_BYTES_MAX || id.contains(bad) {
                    return Err(InvalidValue(format!(
                        concat!("invalid ", stringify!($name), " {:?} (1 to {} characters without spaces or slashes)"),
                        id.chars().take(64).collect::<String>(), ID_BYTES_MAX,
                    )));
                }
                Ok(Self(id.into()))
            }

            /// The id as sent to the service.
            #[cfg_attr(not(feature = "server"), allow(dead_code))] // The server uses it for every kind of id.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidValue;
            fn from_str(id: &str) -> Result<Self, InvalidValue> {
                Self::new(id)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let id = lenient_string(d)?;
                Self::new(&id).map_err(serde::de::Error::custom)
            }
        }
    };
}

string_id!(
    /// A file or folder of a drive: 40 lowercase hex characters, or `root`.
    FileId
);
string_id!(
    /// A drive: decimal digits as a string. Some documented answers have a number; both are accepted.
    DriveId
);
string_id!(
    /// One upload session: 32 uppercase hex characters.
    UploadId
);
string_id!(
    /// One committed content of a file. Every overwrite creates a new one.
    RevisionId
);

impl FileId {
    /// The root folder of every drive.
    pub fn root() -> Self {
        Self("root".into())
    }
}

/// Parses a JSON string, or a JSON integer as its decimal digits. PDS documents both for ids.
pub(crate) fn lenient_string<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    struct Visitor;
    impl serde::de::Visitor<'_> for Visitor {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or an integer")
        }
        fn visit_str<E>(self, v: &str) -> Result<String, E> {
            Ok(v.to_owned())
        }
        fn visit_u64<E>(self, v: u64) -> Result<String, E> {
            Ok(v.to_string())
        }
        fn visit_i64<E>(self, v: i64) -> Result<String, E> {
            Ok(v.to_string())
        }
    }
    d.deserialize_any(Visitor)
}

/// Part number of an upload, 1 to [`PartNumber::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PartNumber(u32);

impl PartNumber {
    /// Largest part number (API page of `CreateFile`: at most 10,000 parts).
    pub const MAX: u32 = 10_000;
    pub const FIRST: Self = Self(1);

    pub fn new(number: u32) -> Result<Self, InvalidValue> {
        if (1..=Self::MAX).contains(&number) {
            Ok(Self(number))
        } else {
            Err(InvalidValue(format!("part number {number} is not from 1 to {}", Self::MAX)))
        }
    }

    pub fn get(self) -> u32 {
        self.0
    }

    /// `None` after [`PartNumber::MAX`].
    pub fn next(self) -> Option<Self> {
        Self::new(self.0 + 1).ok()
    }
}

impl TryFrom<u32> for PartNumber {
    type Error = InvalidValue;
    fn try_from(number: u32) -> Result<Self, InvalidValue> {
        Self::new(number)
    }
}

impl From<PartNumber> for u32 {
    fn from(number: PartNumber) -> u32 {
        number.0
    }
}

impl fmt::Display for PartNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Size of every part of an upload except the last, in bytes.
///
/// A multiple of 64, because `part_offset` must be one (API page `UploadPartInfo`). 64 is the SHA-1 block
/// size, so the midstate at each part boundary costs nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PartSize(u64);

impl PartSize {
    /// Smallest accepted size in bytes. Real domains refuse parts below 100 KiB when an upload is completed.
    /// Smaller parts are for tests with many boundaries.
    pub const MIN: u64 = 64;
    /// Largest accepted size in bytes. The store allows 5 GiB, but a part is held in memory.
    pub const MAX: u64 = 1 << 30;
    /// 8 MiB.
    pub const DEFAULT: Self = Self(8 << 20);

    pub fn new(bytes: u64) -> Result<Self, InvalidValue> {
        if !(Self::MIN..=Self::MAX).contains(&bytes) {
            return Err(InvalidValue(format!(
                "part size {bytes} is not from {} to {} bytes",
                Self::MIN,
                Self::MAX
            )));
        }
        if !bytes.is_multiple_of(64) {
            return Err(InvalidValue(format!(
                "part size {bytes} is not a multiple of 64 (try {})",
                bytes.next_multiple_of(64)
            )));
        }
        Ok(Self(bytes))
    }

    pub fn get(self) -> u64 {
        self.0
    }
}

/// SHA-1 of a whole file. Printed in upper case, as by the service. Parsed in any case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha1Hash(pub [u8; 20]);

impl Sha1Hash {
    /// Parses 40 hex digits of any case.
    pub fn parse(hex: &str) -> Result<Self, InvalidValue> {
        let bad = || {
            InvalidValue(format!(
                "{:?} is not a SHA-1 (40 hex digits)",
                hex.chars().take(64).collect::<String>()
            ))
        };
        let digits = hex.as_bytes();
        if digits.len() != 40 {
            return Err(bad());
        }
        let nibble = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let mut out = [0; 20];
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0]).ok_or_else(bad)? << 4 | nibble(pair[1]).ok_or_else(bad)?;
        }
        Ok(Self(out))
    }
}

impl fmt::Display for Sha1Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl fmt::Debug for Sha1Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sha1Hash {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha1Hash {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let hex = String::deserialize(d)?;
        Self::parse(&hex).map_err(serde::de::Error::custom)
    }
}

/// A value that must never be printed: a token, a presigned URL, a key. `Debug` prints `***`. It implements
/// neither `Display` nor serde traits. Its memory is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes ownership of a value that no log line may contain.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, for the one place that sends it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_ids_are_rejected() {
        assert!(FileId::new("").is_err());
        assert!(FileId::new("a/b").is_err());
        assert!(FileId::new("a b").is_err());
        assert!(FileId::new(&"x".repeat(ID_BYTES_MAX + 1)).is_err());
        assert_eq!(FileId::new("root").unwrap(), FileId::root());
    }

    #[test]
    fn drive_id_parses_from_string_or_number() {
        assert_eq!(serde_json::from_str::<DriveId>("1").unwrap().as_str(), "1");
        assert_eq!(serde_json::from_str::<DriveId>("\"1\"").unwrap().as_str(), "1");
    }

    #[test]
    fn part_size_is_a_multiple_of_64() {
        assert!(PartSize::new(100).unwrap_err().to_string().contains("128"));
        assert!(PartSize::new(0).is_err());
        assert!(PartSize::new(PartSize::MAX + 64).is_err());
        assert_eq!(PartSize::new(128).unwrap().get(), 128);
    }

    #[test]
    fn part_number_is_bounded() {
        assert!(PartNumber::new(0).is_err());
        assert_eq!(PartNumber::new(10_000).unwrap().next(), None);
        assert!(serde_json::from_str::<PartNumber>("10001").is_err());
    }

    #[test]
    fn sha1_parses_any_case_and_prints_upper() {
        let hex = "257F8B21431BB4A0ADC8A6613CF4EDE3B906166C";
        assert_eq!(Sha1Hash::parse(&hex.to_lowercase()).unwrap().to_string(), hex);
        assert!(Sha1Hash::parse("xyz").is_err());
        assert!(Sha1Hash::parse(&"é".repeat(20)).is_err());
    }

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(format!("{:?}", Secret::new("token".to_owned())), "***");
    }
}
