//! Files that could not be saved and were not saved since.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::Error;
use crate::ids::{FileId, Ino};

/// Failed files that are remembered, the newest.
const FAILED_MAX: usize = 1000;

/// What failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FailedObject {
    /// The content of a file.
    Content(Ino),
    /// The attributes of an object.
    Attributes(FileId),
}

impl FailedObject {
    pub fn is_content(&self) -> bool {
        matches!(self, Self::Content(_))
    }
}

#[derive(Clone, Debug)]
pub struct FailedFile {
    pub object: FailedObject,
    /// The path when it failed.
    pub name: Arc<str>,
    pub error: Error,
    pub at: SystemTime,
}

/// Each file once, the last failure last.
#[derive(Debug, Default)]
pub(super) struct FailedFiles(VecDeque<FailedFile>);

impl FailedFiles {
    pub(super) fn add(&mut self, object: FailedObject, name: Arc<str>, error: Error) {
        self.clear(&object, Some(&name));
        if self.0.len() >= FAILED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(FailedFile { object, name, error, at: SystemTime::now() });
    }

    /// Removes a file. Programs often save a file again as a new one of the same name.
    pub(super) fn clear(&mut self, object: &FailedObject, name: Option<&str>) {
        let is_it = |file: &FailedFile| {
            let has_name = name == Some(&*file.name) && file.object.is_content() == object.is_content();
            file.object == *object || has_name
        };
        self.0.retain(|file| !is_it(file));
    }

    pub(super) fn clear_all(&mut self) {
        self.0.clear();
    }

    pub(super) fn all(&self) -> Vec<FailedFile> {
        self.0.iter().cloned().collect()
    }

    pub(super) fn count_content(&self) -> u64 {
        self.0.iter().filter(|file| file.object.is_content()).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn file_counts_once_until_it_is_saved() {
        let mut failed = FailedFiles::default();
        let error = |text: &str| Error::new(ErrorKind::Io, text);
        let content = |ino| FailedObject::Content(Ino(ino));
        failed.add(content(1), "/a".into(), error("first"));
        failed.add(content(2), "/b".into(), error("other"));
        failed.add(content(1), "/renamed".into(), error("second"));
        let texts: Vec<_> = failed.all().iter().map(|file| file.error.to_string()).collect();
        assert_eq!((texts, failed.count_content()), (vec!["other".to_owned(), "second".to_owned()], 2));
        failed.clear(&content(9), Some("/b"));
        assert_eq!(failed.count_content(), 1, "a new file of the name was saved");
        let attributes = FailedObject::Attributes(FileId::root());
        failed.add(attributes.clone(), "/renamed".into(), error("tags"));
        failed.clear(&content(1), Some("/renamed"));
        assert_eq!((failed.count_content(), failed.all().len()), (0, 1), "saved content saves no attributes");
        failed.clear(&attributes, None);
        assert!(failed.all().is_empty());
    }

    #[test]
    fn number_of_files_is_bounded() {
        let mut failed = FailedFiles::default();
        for ino in 0..FAILED_MAX as u64 + 5 {
            let error = Error::new(ErrorKind::Io, "x");
            failed.add(FailedObject::Content(Ino(ino)), format!("/{ino}").into(), error);
        }
        assert_eq!((failed.all().len(), &*failed.all()[0].name), (FAILED_MAX, "/5"));
    }
}
