//! The way to a folder of a drive, as people write it.

use std::fmt;
use std::str::FromStr;

/// Names from the root of a drive down to one of its folders; none for the root itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FolderPath(Vec<String>);

impl FolderPath {
    /// The names, the outermost first. None is empty, `.` or `..`, and none has a slash.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl FromStr for FolderPath {
    type Err = &'static str;

    /// Slashes at the ends, and several in a row, mean nothing.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names: Vec<String> = text.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if names.iter().any(|name| name == "." || name == "..") {
            return Err("write the path from the root of the drive, without . and ..");
        }
        Ok(Self(names))
    }
}

impl fmt::Display for FolderPath {
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
    fn folders_are_paths_from_the_root() {
        let shown = |text: &str| text.parse().map(|path: FolderPath| path.to_string());
        assert_eq!(shown("a//b c/"), Ok("/a/b c".to_owned()));
        assert_eq!(shown("/"), Ok("/".to_owned()));
        assert_eq!("".parse(), Ok(FolderPath::default()));
        assert!(shown("/a/../b").is_err() && shown("./a").is_err());
        let path: FolderPath = "/a/b".parse().unwrap();
        assert_eq!(path.names().collect::<Vec<_>>(), ["a", "b"]);
    }
}
