//! Parsing of requests, and the validation that several endpoints share.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};

use crate::pds::types::{CheckNameMode, UserTag};
use crate::server::clock::is_timestamp;
use crate::server::errors::ServiceError;

/// Longest name in UTF-8.
const NAME_BYTES_MAX: usize = 1024;
const DESCRIPTION_CHARS_MAX: usize = 1024;
/// Bound on the tags of an object.
pub(super) const USER_TAGS_MAX: usize = 1000;
/// Bound on key and value of a tag together.
const USER_TAG_BYTES_MAX: usize = 2000;
/// Bound on the labels of an object.
const LABELS_MAX: usize = 100;

/// Parses a body. An empty body is an empty object.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ServiceError> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        let code = if error.is_data() { "InvalidParameterWrongFormat" } else { "InvalidRequestJSONFormat" };
        ServiceError::new(400, code, error.to_string())
    })
}

/// A required parameter.
pub(super) fn require<T>(value: Option<T>, name: &str) -> Result<T, ServiceError> {
    value.ok_or_else(|| ServiceError::missing(name))
}

/// Deserializes a string or an integer; `null` and `""` are `None`.
pub(super) fn lenient<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    struct Lenient<T>(PhantomData<T>);
    impl<T> Visitor<'_> for Lenient<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        type Value = Option<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string, an integer or null")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(E::custom) }
        }
        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
            self.visit_str(&number.to_string())
        }
        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
            self.visit_str(&number.to_string())
        }
        fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Self::Value, E> {
            self.visit_str(if value { "true" } else { "false" })
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(Lenient(PhantomData))
}

/// Deserializes a list; `null` is an empty list.
pub(super) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

pub(super) fn check_name(name: &str) -> Result<(), ServiceError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(ServiceError::invalid("name", "It must have 1 to 1024 bytes."));
    }
    if name.contains(['/', '\\']) {
        return Err(ServiceError::invalid("name", "It must not contain / or \\."));
    }
    Ok(())
}

pub(super) fn check_description(text: Option<&String>) -> Result<(), ServiceError> {
    match text {
        Some(text) if text.chars().count() > DESCRIPTION_CHARS_MAX => {
            Err(ServiceError::invalid("description", "It has more than 1024 characters."))
        }
        _ => Ok(()),
    }
}

pub(super) fn check_labels(labels: &[String]) -> Result<(), ServiceError> {
    if labels.len() > LABELS_MAX {
        return Err(ServiceError::invalid("labels", "There are more than 100."));
    }
    Ok(())
}

pub(super) fn check_time(text: Option<&String>, name: &str) -> Result<(), ServiceError> {
    match text {
        Some(text) if !is_timestamp(text) => Err(ServiceError::invalid(name, "It is not a time.")),
        _ => Ok(()),
    }
}

/// Validates tags. The last of several values of one key is kept.
pub(super) fn check_tags(tags: Vec<UserTag>) -> Result<BTreeMap<String, String>, ServiceError> {
    if tags.len() > USER_TAGS_MAX {
        return Err(ServiceError::invalid("user_tags", "There are more than 1000."));
    }
    for tag in &tags {
        if tag.key.is_empty() || tag.key.contains('#') || tag.value.contains('#') {
            return Err(ServiceError::invalid(
                "user_tags",
                "A key is empty, or there is a # in a key or value.",
            ));
        }
        if tag.key.len() + tag.value.len() > USER_TAG_BYTES_MAX {
            return Err(ServiceError::invalid("user_tags", "A key and its value have more than 2000 bytes."));
        }
    }
    Ok(tags.into_iter().map(|tag| (tag.key, tag.value)).collect())
}

/// `check_name_mode`, or `auto_rename` of older clients.
pub(super) fn mode(text: Option<&str>, auto_rename: Option<bool>) -> Result<CheckNameMode, ServiceError> {
    match text {
        None | Some("") if auto_rename == Some(true) => Ok(CheckNameMode::AutoRename),
        None | Some("" | "ignore") => Ok(CheckNameMode::Ignore),
        Some("auto_rename") => Ok(CheckNameMode::AutoRename),
        Some("refuse") => Ok(CheckNameMode::Refuse),
        Some(_) => Err(ServiceError::invalid("check_name_mode", "It is ignore, auto_rename or refuse.")),
    }
}

/// `limit`; 0 and an absent value mean the default.
pub(super) fn limit(limit: Option<u32>, default: u32, max: u32) -> Result<usize, ServiceError> {
    match limit {
        None | Some(0) => Ok(default as usize),
        Some(limit) if limit <= max => Ok(limit as usize),
        Some(_) => Err(ServiceError::invalid("limit", &format!("It is more than {max}."))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::FileId;

    #[derive(Debug, Deserialize)]
    struct Probe {
        #[serde(default, deserialize_with = "lenient")]
        id: Option<FileId>,
        #[serde(default, deserialize_with = "list")]
        items: Vec<u32>,
    }

    #[test]
    fn absent_values_have_several_forms() {
        for body in ["", "{}", r#"{"id":null,"items":null}"#, r#"{"id":"","other":{"a":[]}}"#] {
            let probe: Probe = parse(body.as_bytes()).unwrap();
            assert!(probe.id.is_none() && probe.items.is_empty());
        }
        assert_eq!(parse::<Probe>(br#"{"id":7}"#).unwrap().id.unwrap().as_str(), "7");
        assert_eq!(parse::<Probe>(b"{").unwrap_err().code, "InvalidRequestJSONFormat");
        assert_eq!(parse::<Probe>(br#"{"id":"a b"}"#).unwrap_err().code, "InvalidParameterWrongFormat");
    }

    #[test]
    fn names_and_tags_have_limits() {
        assert!(check_name(&"ä".repeat(512)).is_ok());
        for name in [String::new(), "a/b".into(), "a\\b".into(), "a".repeat(1025)] {
            assert_eq!(check_name(&name).unwrap_err().code, "InvalidParameter.Name");
        }
        let tag = |key: &str, value: &str| UserTag { key: key.into(), value: value.into() };
        assert_eq!(check_tags(vec![tag("a", "b")]).unwrap()["a"], "b");
        for bad in [tag("", "v"), tag("a#", "v"), tag("a", "#"), tag("a", &"v".repeat(2000))] {
            assert!(check_tags(vec![bad]).is_err());
        }
        assert!(check_tags(vec![tag("a", "b"); 1001]).is_err());
    }

    #[test]
    fn limits_and_modes_are_validated() {
        assert_eq!(limit(None, 50, 200).unwrap(), 50);
        assert_eq!(limit(Some(200), 50, 200).unwrap(), 200);
        assert!(limit(Some(201), 50, 200).is_err());
        assert_eq!(mode(None, Some(true)).unwrap(), CheckNameMode::AutoRename);
        assert_eq!(mode(Some("refuse"), None).unwrap(), CheckNameMode::Refuse);
        assert!(mode(Some("overwrite"), None).is_err());
    }
}
