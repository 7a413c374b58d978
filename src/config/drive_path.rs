//! Paths on the drive.

use std::fmt;
use std::str::FromStr;

/// The path of a drive folder: names from the root down. The root has none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DrivePath(Vec<String>);

impl DrivePath {
    /// The names, outermost first. No name is empty, `.` or `..`, or contains a slash.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl FromStr for DrivePath {
    type Err = &'static str;

    /// Ignores slashes at the ends, and repeated ones.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names: Vec<String> = text.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if names.iter().any(|name| name == "." || name == "..") {
            return Err(
                "not a path of a drive folder: write it from the root of the drive, without . and ..",
            );
        }
        Ok(Self(names))
    }
}

impl fmt::Display for DrivePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        self.0.iter().try_for_each(|name| write!(f, "/{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_parses_and_displays() {
        let shown = |text: &str| text.parse().map(|path: DrivePath| path.to_string());
        assert_eq!(shown("a//b c/"), Ok("/a/b c".to_owned()));
        assert_eq!(shown("/"), Ok("/".to_owned()));
        assert_eq!("".parse(), Ok(DrivePath::default()));
        assert!(shown("/a/../b").is_err() && shown("./a").is_err());
        let path: DrivePath = "/a/b".parse().unwrap();
        assert_eq!(path.names().collect::<Vec<_>>(), ["a", "b"]);
    }
}
