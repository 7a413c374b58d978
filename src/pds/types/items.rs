//! The items of a page. Each is read by itself, so an odd one does not fail the others.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The items of a page that could be read, in order. An item that could not be read is logged and left out.
#[derive(Clone, Debug)]
pub struct Items<T>(pub Vec<T>);

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Items<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        // Some services send an empty list as `null`.
        let raw = Option::<Vec<&RawValue>>::deserialize(d)?.unwrap_or_default();
        let mut items = Vec::with_capacity(raw.len());
        for item in raw {
            match serde_json::from_str(item.get()) {
                Ok(item) => items.push(item),
                Err(error) => {
                    tracing::warn!(name = name_of(item), %error, "skipped an invalid entry of a listing");
                }
            }
        }
        Ok(Self(items))
    }
}

/// The name in an invalid item, or nothing.
fn name_of(item: &RawValue) -> String {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    serde_json::from_str::<Named>(item.get()).map_or_else(|_| String::new(), |named| named.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> serde_json::Result<Vec<u8>> {
        serde_json::from_slice::<Items<u8>>(text.as_bytes()).map(|items| items.0)
    }

    #[test]
    fn odd_items_are_left_out() {
        assert_eq!(read(r#"[1, -1, 2, {"name": "x"}, null, [3], "4", 256, 5]"#).unwrap(), [1, 2, 5]);
        assert!(read("null").unwrap().is_empty());
        assert!(read("[]").unwrap().is_empty());
    }

    #[test]
    fn broken_json_is_an_error() {
        for text in ["[1, 2", "[1, }]", "{}", "1"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
