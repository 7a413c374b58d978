//! Listings: every entry once and in order, also if the folder changes between pages.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::rig::{Rig, text};

/// Reads one page of the root.
fn page(rig: &Rig, order: &str, direction: &str, limit: u64, marker: &str) -> (Vec<Value>, String) {
    let page = rig.ok(
        "file/list",
        json!({
            "drive_id": "1", "parent_file_id": "root", "order_by": order, "order_direction": direction,
            "limit": limit, "marker": marker,
        }),
    );
    (page["items"].as_array().unwrap().clone(), text(&page["next_marker"]))
}

fn all(rig: &Rig, order: &str, direction: &str, limit: u64) -> Vec<Value> {
    let (mut items, mut marker) = page(rig, order, direction, limit, "");
    while !marker.is_empty() {
        let (more, next) = page(rig, order, direction, limit, &marker);
        assert!(more.len() as u64 <= limit);
        items.extend(more);
        marker = next;
    }
    items
}

#[test]
fn large_folder_is_paged_in_every_order() {
    let rig = Rig::new();
    for number in 0..250 {
        rig.save("root", &format!("f{:03}", (number * 37) % 250), &vec![b'x'; number % 7]);
    }
    for (order, field) in
        [("name", "name"), ("size", "size"), ("created_at", "created_at"), ("updated_at", "updated_at")]
    {
        for direction in ["ASC", "DESC"] {
            let items = all(&rig, order, direction, 100);
            assert_eq!(items.len(), 250);
            let key = |item: &Value| match &item[field] {
                Value::String(text) => (0, text.clone()),
                number => (number.as_u64().unwrap(), String::new()),
            };
            let keys: Vec<_> = items.iter().map(key).collect();
            let sorted = if direction == "ASC" { keys.is_sorted() } else { keys.iter().rev().is_sorted() };
            assert!(sorted, "{order} {direction}");
        }
    }
}

#[test]
fn marker_is_bound_to_its_listing() {
    let rig = Rig::new();
    for name in ["a", "b", "c"] {
        rig.mkdir("root", name);
    }
    let (_, marker) = page(&rig, "name", "ASC", 1, "");
    let list = |order: &str, parent: &str, marker: &str| json!({"drive_id": "1", "parent_file_id": parent, "order_by": order, "limit": 1, "marker": marker});
    rig.ok("file/list", list("name", "root", &marker));
    let other = rig.mkdir("root", "other");
    for ask in [list("size", "root", &marker), list("name", &other, &marker), list("name", "root", "garbage")]
    {
        rig.refused("file/list", ask, 400, "InvalidParameter.Marker");
    }
    for ask in [json!({"limit": 201}), json!({"order_by": "colour"}), json!({"order_direction": "up"})] {
        let mut list = json!({"drive_id": "1", "parent_file_id": "root"});
        list.as_object_mut().unwrap().extend(ask.as_object().unwrap().clone());
        assert_eq!(rig.call("file/list", list).0, 400, "{ask}");
    }
}

#[test]
fn pages_can_be_empty_or_short() {
    let rig = Rig::with(|config| {
        config.quirks.list_empty_pages = true;
        config.quirks.list_page_max = 2;
    });
    for number in 0..5 {
        rig.mkdir("root", &format!("{number}"));
    }
    let (mut marker, mut sizes, mut names) = (String::new(), Vec::new(), Vec::new());
    loop {
        let (items, next) = page(&rig, "name", "ASC", 100, &marker);
        sizes.push(items.len());
        names.extend(items.iter().map(|item| text(&item["name"])));
        marker = next;
        if marker.is_empty() {
            break;
        }
    }
    assert_eq!(sizes, [0, 2, 0, 2, 0, 1]);
    assert_eq!(names, ["0", "1", "2", "3", "4"]);
}

#[test]
fn filters_and_fields_are_applied() {
    let rig = Rig::new();
    rig.mkdir("root", "folder");
    rig.save("root", "a.jpg", b"1");
    rig.save("root", "b.txt", b"2");
    let names = |ask: Value| -> Vec<String> {
        let mut list = json!({"drive_id": "1", "parent_file_id": "root", "order_by": "name"});
        list.as_object_mut().unwrap().extend(ask.as_object().unwrap().clone());
        rig.ok("file/list", list)["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| text(&item["name"]))
            .collect()
    };
    assert_eq!(names(json!({"type": "folder"})), ["folder"]);
    assert_eq!(names(json!({"type": "file"})), ["a.jpg", "b.txt"]);
    assert_eq!(names(json!({"category": "image"})), ["a.jpg"]);
    assert_eq!(names(json!({"status": "uploading"})), Vec::<String>::new());
    let list = json!({"drive_id": "1", "parent_file_id": "root", "fields": "url", "order_by": "name", "type": "file"});
    let listed = rig.ok("file/list", list);
    assert_eq!(rig.get(listed["items"][0]["download_url"].as_str().unwrap(), None).body, b"1");
    let sized = rig.ok(
        "file/get",
        json!({"drive_id": "1", "file_id": rig.mkdir("root", "folder"), "fields": "dir_size"}),
    );
    assert_eq!((&sized["size"], &sized["dir_size_info"]["file_count"]), (&json!(0), &json!(0)));
}

#[test]
fn search_and_scan_find_files() {
    let rig = Rig::new();
    let folder = rig.mkdir("root", "folder");
    for name in ["one.txt", "two.txt", "three.jpg"] {
        rig.save(&folder, name, name.as_bytes());
    }
    let search = |query: &str, order: &str| {
        let ask = json!({"drive_id": "1", "query": query, "order_by": order, "limit": 2, "return_total_count": true});
        let found = rig.ok("file/search", ask);
        let names: Vec<_> =
            found["items"].as_array().unwrap().iter().map(|item| text(&item["name"])).collect();
        (names, found["total_count"].as_u64().unwrap(), !text(&found["next_marker"]).is_empty())
    };
    let query = format!(r#"parent_file_id = "{folder}" and type = "file""#);
    assert_eq!(search(&query, "name DESC"), (vec!["two.txt".into(), "three.jpg".into()], 3, true));
    assert_eq!(search(r#"name match "ONE""#, ""), (vec!["one.txt".into()], 1, false));
    rig.refused("file/search", json!({"drive_id": "1", "query": "name"}), 400, "InvalidParameter.Query");
    let mut seen = Vec::new();
    let mut marker = String::new();
    loop {
        let scan = rig.ok("file/scan", json!({"drive_id": "1", "limit": 1, "marker": marker, "fields": "*"}));
        seen.extend(scan["items"].as_array().unwrap().iter().map(|item| text(&item["name"])));
        marker = text(&scan["next_marker"]);
        if marker.is_empty() {
            break;
        }
    }
    seen.sort();
    assert_eq!(seen, ["folder", "one.txt", "three.jpg", "two.txt"]);
}

/// A change between two pages.
#[derive(Clone, Debug)]
enum Change {
    Nothing,
    Add(u16),
    Remove(prop::sample::Index),
    Rename(prop::sample::Index, u16),
}

fn change_strategy() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(Change::Nothing),
        any::<u16>().prop_map(Change::Add),
        any::<prop::sample::Index>().prop_map(Change::Remove),
        (any::<prop::sample::Index>(), any::<u16>()).prop_map(|(index, name)| Change::Rename(index, name)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// With any changes between pages, the names come in order, none twice, and every entry that keeps its name
    /// is listed.
    #[test]
    fn unchanged_entries_are_listed_once(
        names in prop::collection::btree_set(any::<u16>(), 1..30),
        events in prop::collection::vec(change_strategy(), 40),
        limit in 1u64..6,
        is_descending in any::<bool>(),
    ) {
        let rig = Rig::new();
        let mut live: Vec<(String, String)> = names
            .iter()
            .map(|name| format!("{name:05}"))
            .map(|name| (rig.mkdir("root", &name), name))
            .collect();
        let mut steady: std::collections::BTreeSet<String> = live.iter().map(|(id, _)| id.clone()).collect();
        let direction = if is_descending { "DESC" } else { "ASC" };
        let (mut seen, mut marker) = (Vec::new(), String::new());
        for event in events {
            let (items, next) = page(&rig, "name", direction, limit, &marker);
            seen.extend(items.iter().map(|item| (text(&item["name"]), text(&item["file_id"]))));
            marker = next;
            if marker.is_empty() {
                break;
            }
            match event {
                Change::Add(name) => {
                    let name = format!("{name:05}");
                    if live.iter().all(|(_, taken)| *taken != name) {
                        live.push((rig.mkdir("root", &name), name));
                    }
                }
                Change::Remove(index) if !live.is_empty() => {
                    let (id, _) = live.swap_remove(index.index(live.len()));
                    rig.ok("file/delete", json!({"drive_id": "1", "file_id": id}));
                    steady.remove(&id);
                }
                Change::Rename(index, name) if !live.is_empty() => {
                    let (at, name) = (index.index(live.len()), format!("{name:05}"));
                    if live.iter().all(|(_, taken)| *taken != name) {
                        rig.ok("file/update", json!({"drive_id": "1", "file_id": live[at].0, "name": name}));
                        steady.remove(&live[at].0);
                        live[at].1 = name;
                    }
                }
                Change::Nothing | Change::Remove(_) | Change::Rename(..) => {}
            }
        }
        let in_order = if is_descending { seen.iter().rev().is_sorted() } else { seen.is_sorted() };
        prop_assert!(in_order, "{seen:?}");
        prop_assert!(seen.windows(2).all(|two| two[0] != two[1]));
        if marker.is_empty() {
            for id in &steady {
                prop_assert!(seen.iter().any(|(_, seen)| seen == id), "{id} is missing in {seen:?}");
            }
        }
    }
}
