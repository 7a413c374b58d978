//! The markers of one listing. They end a listing that would not end by itself.

use std::collections::HashSet;

use crate::error::{Error, Result};

/// Most pages of one listing. A page has 100 entries.
const PAGES_MAX: usize = 10_000;

/// The markers of the pages so far.
#[derive(Debug, Default)]
pub struct PageMarkers(HashSet<String>);

impl PageMarkers {
    /// Checks the marker of the next page; `None` is the end. `Protocol` if a page had it before, or after
    /// [`PAGES_MAX`] pages.
    pub fn check(&mut self, next: Option<String>) -> Result<Option<String>> {
        let Some(next) = next else { return Ok(None) };
        if self.0.len() >= PAGES_MAX {
            return Err(Error::protocol(format!(
                "listing too large: it has more than {PAGES_MAX} pages; move some entries into other directories"
            )));
        }
        if !self.0.insert(next.clone()) {
            let page = self.0.len() + 1;
            return Err(Error::protocol(format!(
                "invalid listing: page {page} has the marker of an earlier page, so the listing has no end"
            )));
        }
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn repeated_marker_is_an_error() {
        let mut markers = PageMarkers::default();
        for marker in ["a", "b"] {
            assert_eq!(markers.check(Some(marker.into())).unwrap().as_deref(), Some(marker));
        }
        assert_eq!(markers.check(Some("a".into())).unwrap_err().kind(), ErrorKind::Protocol);
        assert_eq!(markers.check(None).unwrap(), None);
    }

    #[test]
    fn pages_of_a_listing_are_bounded() {
        let mut markers = PageMarkers::default();
        for page in 0..PAGES_MAX {
            markers.check(Some(page.to_string())).unwrap();
        }
        assert_eq!(markers.check(Some("x".into())).unwrap_err().kind(), ErrorKind::Protocol);
    }
}
