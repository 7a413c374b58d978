//! The bounds of one listing. They end a listing that would not end by itself, or not fit into memory.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use crate::error::{Error, Result};
use crate::units::exact_size;

/// Most pages of one listing. A page has 100 entries.
const PAGES_MAX: usize = 10_000;
/// Most entries of one listing. A service may send larger pages than it was asked for.
const ENTRIES_MAX: usize = PAGES_MAX * 100;
/// Most bytes of names, ids and tags of one listing.
const BYTES_MAX: u64 = 512 << 20;

/// The pages so far.
#[derive(Debug, Default)]
pub struct ListingBounds {
    /// Hashes of the markers, which may be long. The key is random, so no two markers have the same hash by intent.
    markers: HashSet<u64>,
    key: RandomState,
    entries: usize,
    bytes: u64,
}

impl ListingBounds {
    /// Counts a page with the sizes of its entries, and returns the marker of the next page; `None` is the end.
    /// `Protocol` at a bound, or if an earlier page had the same marker.
    pub fn check(
        &mut self,
        entry_bytes: impl IntoIterator<Item = u64>,
        next: Option<String>,
    ) -> Result<Option<String>> {
        for bytes in entry_bytes {
            self.entries += 1;
            self.bytes = self.bytes.saturating_add(bytes);
        }
        if self.entries > ENTRIES_MAX {
            return Err(too_large(&format!("{ENTRIES_MAX} entries")));
        }
        if self.bytes > BYTES_MAX {
            return Err(too_large(&format!("{} of names and tags", exact_size(BYTES_MAX))));
        }
        let Some(next) = next else { return Ok(None) };
        if self.markers.len() >= PAGES_MAX {
            return Err(too_large(&format!("{PAGES_MAX} pages")));
        }
        if !self.markers.insert(self.key.hash_one(&next)) {
            let page = self.markers.len() + 1;
            return Err(Error::protocol(format!(
                "invalid listing: page {page} has the marker of an earlier page, so the listing has no end"
            )));
        }
        Ok(Some(next))
    }
}

fn too_large(bound: &str) -> Error {
    Error::protocol(format!(
        "listing too large: it has more than {bound}; move some entries into other directories"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn next(bounds: &mut ListingBounds, marker: &str) -> Result<Option<String>> {
        bounds.check([], Some(marker.to_owned()))
    }

    #[test]
    fn repeated_marker_is_an_error() {
        let mut bounds = ListingBounds::default();
        for marker in ["a", "b"] {
            assert_eq!(next(&mut bounds, marker).unwrap().as_deref(), Some(marker));
        }
        assert_eq!(next(&mut bounds, "a").unwrap_err().kind(), ErrorKind::Protocol);
        assert_eq!(bounds.check([], None).unwrap(), None);
    }

    #[test]
    fn pages_of_a_listing_are_bounded() {
        let mut bounds = ListingBounds::default();
        for page in 0..PAGES_MAX {
            next(&mut bounds, &page.to_string()).unwrap();
        }
        assert_eq!(next(&mut bounds, "x").unwrap_err().kind(), ErrorKind::Protocol);
    }

    #[test]
    fn entries_of_a_listing_are_bounded() {
        let mut bounds = ListingBounds::default();
        for page in 0..10 {
            bounds.check(std::iter::repeat_n(0, ENTRIES_MAX / 10), Some(page.to_string())).unwrap();
        }
        let error = bounds.check([0], None).unwrap_err();
        assert!(error.to_string().contains("more than 1000000 entries"), "{error}");
    }

    #[test]
    fn bytes_of_a_listing_are_bounded() {
        let mut bounds = ListingBounds::default();
        bounds.check([BYTES_MAX], Some("a".to_owned())).unwrap();
        let error = bounds.check([1], None).unwrap_err();
        assert!(error.to_string().contains("more than 512MiB of names and tags"), "{error}");
        let mut bounds = ListingBounds::default();
        assert!(bounds.check([u64::MAX, 1], None).is_err());
    }

    #[test]
    fn markers_of_any_length_take_the_same_memory() {
        let mut bounds = ListingBounds::default();
        next(&mut bounds, &"x".repeat(1 << 20)).unwrap();
        assert_eq!(std::mem::size_of_val(bounds.markers.iter().next().unwrap()), 8);
    }
}
