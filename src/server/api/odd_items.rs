//! Items of a listing that contradict the documentation of the service.

use serde_json::{Value, json};

/// One item for each way in which an item can be wrong. All but the last are objects of the folder `parent`.
pub(super) fn odd_items(parent: &str) -> Vec<Value> {
    let plain = json!({
        "drive_id": "1", "domain_id": "bj1", "parent_file_id": parent, "file_id": "odd", "name": "odd",
        "type": "file", "size": 1, "status": "available", "updated_at": "2026-01-01T00:00:00.000Z",
    });
    let with = |field: &str, value: Value| {
        let mut item = plain.clone();
        item[field] = value;
        item
    };
    let without = |field: &str| {
        let mut item = plain.clone();
        if let Some(fields) = item.as_object_mut() {
            fields.remove(field);
        }
        item
    };
    let huge = serde_json::from_str("1e30").unwrap_or(Value::Null);
    vec![
        with("type", json!("shortcut")),
        with("type", json!("shortcut\u{1b}[2J")),
        with("file_id", json!("an id with blanks")),
        with("file_id", Value::Null),
        with("size", json!(-1)),
        with("size", json!(u64::MAX)),
        with("size", huge),
        with("name", json!("")),
        with("name", json!(7)),
        with("revision_id", json!("a revision with blanks")),
        with("user_tags", json!(["not", "a", "map"])),
        without("file_id"),
        without("type"),
        without("name"),
        without("size"),
        json!(null),
        json!("odd"),
    ]
}
