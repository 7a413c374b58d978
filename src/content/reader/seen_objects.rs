//! Whether all ranges of a content come from one object of the store.
//!
//! A download URL may be for the newest revision at the time of the download. Another client that overwrites
//! a file would then mix two revisions in one read. So each answer is compared with the hash of the content,
//! or with the first answer if the service reports no hash.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

use super::target::ReadTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::pds::drive::ObjectInfo;

/// Contents whose first answer is remembered.
const OBJECTS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// The first answer of each content without a hash of its own.
#[derive(Debug)]
pub(super) struct SeenObjects(
    /// A leaf lock.
    Mutex<LruCache<ReadTarget, ObjectInfo>>,
);

impl SeenObjects {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(OBJECTS_MAX)))
    }

    /// `Stale` if an answer is not about the content of `target`.
    pub(super) fn check(&self, target: &ReadTarget, info: &ObjectInfo) -> Result<()> {
        if let Some(size) = info.size.filter(|size| *size != target.size) {
            return Err(changed(&format!("{size} bytes instead of {}", target.size)));
        }
        if let (Some(wanted), Some(found)) = (target.crc64, info.crc64) {
            return if wanted == found { Ok(()) } else { Err(changed("another CRC-64")) };
        }
        let mut objects = self.0.lock();
        let first = objects.get_or_insert_ref(target, || info.clone());
        if differs(first.crc64, info.crc64) {
            return Err(changed("another CRC-64 than at the first read"));
        }
        if differs(first.etag.as_ref(), info.etag.as_ref()) {
            return Err(changed("another ETag than at the first read"));
        }
        Ok(())
    }
}

/// Values that only one of two answers has are not compared.
fn differs<T: PartialEq>(first: Option<T>, now: Option<T>) -> bool {
    first.zip(now).is_some_and(|(first, now)| first != now)
}

fn changed(how: &str) -> Error {
    Error::new(ErrorKind::Stale, format!("the file was changed on the drive: {how}; open it again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::reader::tests::target;

    fn info(crc64: Option<u64>, etag: Option<&str>) -> ObjectInfo {
        ObjectInfo { size: Some(10), crc64, etag: etag.map(str::to_owned) }
    }

    #[test]
    fn hash_of_the_content_decides() {
        let (objects, plain) = (SeenObjects::new(), target("a", 10));
        let hashed = ReadTarget { crc64: Some(7), ..plain };
        objects.check(&hashed, &info(Some(7), Some("\"a\""))).unwrap();
        objects.check(&hashed, &info(Some(7), Some("\"b\""))).unwrap();
        assert_eq!(objects.check(&hashed, &info(Some(8), None)).unwrap_err().kind(), ErrorKind::Stale);
        let shorter = ObjectInfo { size: Some(9), ..info(Some(7), None) };
        assert_eq!(objects.check(&hashed, &shorter).unwrap_err().kind(), ErrorKind::Stale);
    }

    #[test]
    fn later_answers_equal_the_first() {
        let (objects, file) = (SeenObjects::new(), target("a", 10));
        let first = info(Some(1), Some("\"a\""));
        objects.check(&file, &first).unwrap();
        for equal in [&first, &info(None, None), &info(Some(1), None), &info(None, Some("\"a\""))] {
            objects.check(&file, equal).unwrap();
        }
        for other in [info(Some(2), None), info(None, Some("\"b\"")), info(Some(1), Some("\"b\""))] {
            assert_eq!(objects.check(&file, &other).unwrap_err().kind(), ErrorKind::Stale, "{other:?}");
        }
        objects.check(&target("b", 10), &info(Some(2), None)).unwrap();
    }
}
