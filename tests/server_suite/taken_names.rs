//! Uploads to a taken name.

use serde_json::json;

use super::rig::{Rig, of_upload, text};

#[test]
fn taken_name_follows_check_name_mode() {
    let rig = Rig::new();
    let first = rig.save("root", "a.txt", b"1");
    let create = |mode: &str| json!({"drive_id": "1", "parent_file_id": "root", "name": "a.txt", "type": "file", "check_name_mode": mode});
    let refused = rig.ok("file/create", create("refuse"));
    assert_eq!((&refused["exist"], &refused["file_id"]), (&json!(true), &first["file_id"]));
    assert_eq!((&refused["status"], &refused["type"]), (&json!("available"), &json!("file")));
    let renamed = rig.ok("file/create", create("auto_rename"));
    let name = text(&renamed["file_name"]);
    assert!(
        name.starts_with("a_20") && name.contains(".txt") && name.len() == "a_20260908_115650.txt".len(),
        "{name}"
    );
    rig.save("root", "a.txt", b"2");
    assert_eq!(rig.names("root"), ["a.txt", "a.txt"]);
    rig.refused("file/create", create("overwrite"), 400, "InvalidParameter.CheckNameMode");
    // The name is taken during the upload.
    let ask = json!({"drive_id": "1", "parent_file_id": "root", "name": "b", "type": "file", "check_name_mode": "refuse"});
    let late = rig.ok("file/create", ask);
    rig.put(late["part_info_list"][0]["upload_url"].as_str().unwrap(), b"3");
    rig.save("root", "b", b"4");
    rig.refused("file/complete", of_upload(&late), 409, "AlreadyExist.File");
}
