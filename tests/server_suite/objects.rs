//! Objects: rename, move, copy, tags, recycle bin, revisions, and the change feed.

use serde_json::{Value, json};

use super::rig::{Rig, text};

fn of(id: &str) -> Value {
    json!({"drive_id": "1", "file_id": id})
}

fn with(id: &str, more: Value) -> Value {
    let mut ask = of(id);
    ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ask
}

#[test]
fn rename_keeps_id_and_obeys_name_mode() {
    let rig = Rig::with(|config| config.quirks.update_conflict = true);
    let a = text(&rig.save("root", "a", b"1")["file_id"]);
    rig.save("root", "b", b"2");
    rig.refused(
        "file/update",
        with(&a, json!({"name": "b", "check_name_mode": "refuse"})),
        409,
        "AlreadyExist.File",
    );
    let renamed = rig.ok("file/update", with(&a, json!({"name": "c", "check_name_mode": "refuse"})));
    assert_eq!((&renamed["name"], text(&renamed["file_id"])), (&json!("c"), a.clone()));
    let same = rig.ok("file/update", with(&a, json!({"name": "c", "check_name_mode": "refuse"})));
    assert_eq!(same["name"], "c", "the object's own name counts as taken");
    let twin = rig.ok("file/update", with(&a, json!({"name": "b"})));
    assert_eq!(twin["name"], "b");
    assert_eq!(rig.names("root"), ["b", "b"]);
    rig.refused("file/update", with(&a, json!({"name": "x/y"})), 400, "InvalidParameter.Name");
    rig.refused("file/update", with("nope", json!({"name": "x"})), 404, "NotFound.File");
}

#[test]
fn client_attributes_are_stored_and_checked() {
    let rig = Rig::new();
    let id = text(&rig.save("root", "a", b"1")["file_id"]);
    let facts = json!({
        "local_modified_at": "2020-01-02T03:04:05.678Z", "hidden": true, "starred": true,
        "description": "d", "labels": ["l"], "user_meta": "m",
    });
    let updated = rig.ok("file/update", with(&id, facts.clone()));
    for (key, value) in facts.as_object().unwrap() {
        assert_eq!(&updated[key], value);
    }
    let again = rig.ok("file/update", with(&id, json!({"starred": false})));
    assert_eq!(
        (&again["hidden"], &again["starred"], &again["description"]),
        (&json!(true), &json!(false), &json!("d"))
    );
    rig.refused(
        "file/update",
        with(&id, json!({"local_modified_at": "noon"})),
        400,
        "InvalidParameter.LocalModifiedAt",
    );
    let long = "d".repeat(1025);
    rig.refused("file/update", with(&id, json!({"description": long})), 400, "InvalidParameter.Description");
    rig.refused("file/update", with(&id, json!({"labels": vec!["l"; 101]})), 400, "InvalidParameter.Labels");
}

#[test]
fn user_tags_are_added_and_removed() {
    let rig = Rig::new();
    let id = text(&rig.save("root", "a", b"1")["file_id"]);
    let put = |tags: Value| rig.ok("file/put_usertags", with(&id, json!({"user_tags": tags})));
    assert_eq!(put(json!([{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]))["file_id"], id);
    put(json!([{"key": "b", "value": "3"}]));
    assert_eq!(rig.ok("file/get", of(&id))["user_tags"], json!({"a": "1", "b": "3"}));
    let answer = rig.try_call("file/delete_usertags", &with(&id, json!({"key_list": ["a", "z"]}))).unwrap();
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(rig.ok("file/get", of(&id))["user_tags"], json!({"b": "3"}));
    rig.refused(
        "file/put_usertags",
        with(&id, json!({"user_tags": [{"key": "#", "value": ""}]})),
        400,
        "InvalidParameter.UserTags",
    );
    let many: Vec<_> = (0..1000).map(|n| json!({"key": n.to_string(), "value": ""})).collect();
    rig.refused("file/put_usertags", with(&id, json!({"user_tags": many})), 400, "InvalidParameter.UserTags");
    let replacing = Rig::with(|config| config.quirks.replace_user_tags = true);
    let id = text(&replacing.save("root", "a", b"1")["file_id"]);
    for tags in [json!([{"key": "a"}]), json!([{"key": "b"}])] {
        replacing.ok("file/put_usertags", with(&id, json!({"user_tags": tags})));
    }
    assert_eq!(replacing.ok("file/get", of(&id))["user_tags"], json!({"b": ""}));
}

#[test]
fn moves_refuse_taken_names_and_loops() {
    let rig = Rig::new();
    let (outer, file) = (rig.mkdir("root", "outer"), text(&rig.save("root", "f", b"1")["file_id"]));
    let inner = rig.mkdir(&outer, "inner");
    let taken = text(&rig.save(&inner, "f", b"2")["file_id"]);
    let to = |id: &str, parent: &str, mode: &str| {
        with(id, json!({"to_parent_file_id": parent, "check_name_mode": mode, "new_name": "ignored"}))
    };
    let refused = rig.ok("file/move", to(&file, &inner, "refuse"));
    assert_eq!((&refused["exist"], text(&refused["file_id"])), (&json!(true), taken));
    assert_eq!(rig.names("root"), ["f", "outer"]);
    let moved = rig.ok("file/move", to(&file, &outer, "refuse"));
    assert_eq!((&moved["async_task_id"], &moved["file_name"]), (&json!(""), &json!("f")));
    assert_eq!(
        (rig.names("root"), rig.names(&outer)),
        (vec!["outer".into()], vec!["f".into(), "inner".into()])
    );
    for target in [&outer, &inner] {
        rig.refused("file/move", to(&outer, target, "ignore"), 400, "InvalidParameter.ToParentFileId");
    }
    rig.refused("file/move", to(&file, "nope", "ignore"), 404, "NotFound.File");
    rig.refused("file/move", to(&inner, &file, "ignore"), 400, "InvalidParameter.ParentFileId");
    assert_eq!(
        rig.ok("file/get_by_path", json!({"drive_id": "1", "file_path": "/outer/inner/f"}))["name"],
        "f"
    );
    let naming = Rig::with(|config| config.quirks.move_new_name = true);
    let file = text(&naming.save("root", "f", b"1")["file_id"]);
    naming.ok("file/move", with(&file, json!({"to_parent_file_id": "root", "new_name": "g"})));
    assert_eq!(naming.names("root"), ["g"]);
}

#[test]
fn copies_share_their_content() {
    let rig = Rig::with(|config| config.drives = 2);
    let folder = rig.mkdir("root", "folder");
    let sub = rig.mkdir(&folder, "sub");
    let file = rig.save(&sub, "f", b"content");
    let ask = with(&folder, json!({"to_parent_file_id": "root", "auto_rename": true}));
    let (status, copied) = rig.call("file/copy", ask);
    assert_eq!(status, 202);
    assert_eq!(rig.names("root").len(), 2);
    let copy = text(&copied["file_id"]);
    let path =
        |id: &str| rig.ok("file/list", json!({"drive_id": "1", "parent_file_id": id}))["items"][0].clone();
    let inner = path(&text(&path(&copy)["file_id"]));
    assert_eq!((&inner["name"], &inner["content_hash"]), (&json!("f"), &file["content_hash"]));
    assert_ne!(inner["file_id"], file["file_id"]);
    rig.ok("file/delete", of(&folder));
    assert_eq!(rig.read(&text(&inner["file_id"])), b"content", "shared content is gone with the original");
    let other = rig.ok("file/copy", with(&copy, json!({"to_parent_file_id": "root", "to_drive_id": "2"})));
    assert_eq!(other["drive_id"], "2");
    let used = rig.ok("drive/get", json!({"drive_id": "2"}))["used_size"].clone();
    assert_eq!(used, 7);
    rig.refused(
        "file/copy",
        with(&copy, json!({"to_parent_file_id": copy})),
        400,
        "InvalidParameter.ToParentFileId",
    );
}

#[test]
fn recycle_bin_restores_files() {
    let rig = Rig::new();
    let folder = rig.mkdir("root", "folder");
    let file = text(&rig.save(&folder, "f", b"1")["file_id"]);
    let answer = rig.try_call("recyclebin/trash", &of(&file)).unwrap();
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    rig.refused("file/get", of(&file), 404, "NotFound.File");
    rig.refused("recyclebin/trash", of(&file), 404, "NotFound.File");
    rig.ok("recyclebin/trash", of(&folder));
    let bin = rig.ok("recyclebin/list", json!({"drive_id": "1", "limit": 1}));
    assert_eq!(bin["items"][0]["name"], "folder");
    assert!(bin["items"][0]["trashed_at"].is_string());
    let rest = rig.ok("recyclebin/list", json!({"drive_id": "1", "marker": bin["next_marker"]}));
    assert_eq!((&rest["items"][0]["name"], &rest["next_marker"]), (&json!("f"), &json!("")));
    // The folder is in the recycle bin: the restore creates a folder of that name.
    rig.ok("recyclebin/restore", of(&file));
    assert_eq!(
        rig.ok("file/get_by_path", json!({"drive_id": "1", "file_path": "folder/f"}))["file_id"],
        file
    );
    rig.ok("recyclebin/restore", of(&folder));
    assert_eq!(rig.names("root"), ["folder", "folder"]);
    rig.refused("recyclebin/restore", of(&folder), 404, "NotFound.File");
    // The folder is deleted: the file is restored to the root.
    let lone = text(&rig.save(&folder, "lone", b"2")["file_id"]);
    rig.ok("recyclebin/trash", of(&lone));
    rig.ok("file/delete", of(&folder));
    rig.ok("recyclebin/restore", of(&lone));
    assert_eq!(rig.names("root"), ["folder", "lone"]);
    rig.ok("recyclebin/trash", of(&lone));
    let (status, cleared) = rig.call("recyclebin/clear", json!({"drive_id": "1"}));
    assert_eq!(status, 202);
    let task = rig.ok("async_task/get", json!({"async_task_id": cleared["async_task_id"]}));
    assert_eq!(task["state"], "Succeed");
    assert_eq!(rig.ok("recyclebin/list", json!({"drive_id": "1"}))["items"], json!([]));
    let forbidding = Rig::with(|config| config.quirks.trashed_is_forbidden = true);
    let file = text(&forbidding.save("root", "f", b"1")["file_id"]);
    forbidding.ok("recyclebin/trash", of(&file));
    forbidding.refused("file/get", of(&file), 403, "ForbiddenFileInTheRecycleBin");
}

#[test]
fn nonempty_folder_delete_can_be_refused() {
    let rig = Rig::new();
    let folder = rig.mkdir("root", "folder");
    let file = text(&rig.save(&folder, "f", b"1")["file_id"]);
    for endpoint in ["recyclebin/trash", "file/delete"] {
        rig.refused(endpoint, with(&folder, json!({"check_folder_empty": true})), 409, "StateConflict");
    }
    rig.ok("recyclebin/trash", of(&file));
    rig.ok("file/delete", with(&folder, json!({"check_folder_empty": true})));
    let guarded = Rig::with(|config| config.quirks.deletion_forbidden = true);
    let folder = guarded.mkdir("root", "folder");
    guarded.refused("file/delete", of(&folder), 403, "Forbidden");
}

#[test]
fn folder_tasks_can_be_asynchronous() {
    let rig = Rig::with(|config| config.quirks.async_polls = Some(2));
    let folder = rig.mkdir("root", "folder");
    let file = text(&rig.save(&folder, "f", b"1")["file_id"]);
    assert_eq!(rig.call("recyclebin/trash", of(&file)).0, 204, "a file was not trashed at once");
    let (status, accepted) = rig.call("recyclebin/trash", of(&folder));
    assert_eq!(status, 202);
    let task = json!({"async_task_id": accepted["async_task_id"]});
    let states: Vec<_> = (0..3).map(|_| rig.ok("async_task/get", task.clone())["state"].clone()).collect();
    assert_eq!(states, ["Running", "Running", "Succeed"]);
    rig.refused("async_task/get", json!({"async_task_id": "nope"}), 404, "NotFound.AsyncTask");
}

#[test]
fn revisions_are_listed_kept_restored_and_removed() {
    let rig = Rig::with(|config| config.quirks.revisions_max = 3);
    let first = rig.save("root", "f", b"1");
    let id = text(&first["file_id"]);
    let revision = |file: &Value| text(&file["revision_id"]);
    rig.ok(
        "file/revision/update",
        with(
            &id,
            json!({"revision_id": revision(&first), "keep_forever": true, "revision_description": "d"}),
        ),
    );
    let second = rig.overwrite(&id, b"2");
    for content in [b"3", b"4"] {
        rig.overwrite(&id, content);
    }
    let list = || -> Vec<u64> {
        let list = rig.ok("file/revision/list", of(&id));
        list["items"].as_array().unwrap().iter().map(|r| r["revision_version"].as_u64().unwrap()).collect()
    };
    assert_eq!(list(), [4, 3, 1], "the oldest revision must go, but not one that is kept forever");
    rig.refused(
        "file/revision/get",
        with(&id, json!({"revision_id": revision(&second)})),
        404,
        "NotFound.Revision",
    );
    let kept = rig.ok("file/revision/get", with(&id, json!({"revision_id": revision(&first)})));
    assert_eq!((&kept["keep_forever"], &kept["revision_description"]), (&json!(true), &json!("d")));
    let restored = rig.ok("file/revision/restore", with(&id, json!({"revision_id": revision(&first)})));
    assert_eq!((rig.read(&id), &restored["revision_version"]), (b"1".to_vec(), &json!(5)));
    let latest = with(&id, json!({"revision_id": revision(&restored)}));
    rig.refused("file/revision/delete", latest.clone(), 400, "FileLatestRevisionCannotBeRestore");
    rig.refused("file/revision/restore", latest, 400, "FileLatestRevisionCannotBeRestore");
    rig.ok("file/revision/delete", with(&id, json!({"revision_id": revision(&first)})));
    assert_eq!(list(), [5, 4]);
    let page = rig.ok("file/revision/list", with(&id, json!({"limit": 1})));
    let next = rig.ok("file/revision/list", with(&id, json!({"limit": 1, "marker": page["next_marker"]})));
    assert_eq!((&next["items"][0]["revision_version"], &next["next_marker"]), (&json!(4), &json!("")));
    let (plain, all) = (
        rig.ok("file/revision/list", of(&id)),
        rig.ok("file/revision/list", with(&id, json!({"fields": "*"}))),
    );
    let names =
        |list: &Value| (list["items"][0]["creator_name"].clone(), list["items"][0]["download_url"].clone());
    assert_eq!((names(&plain), names(&all)), ((Value::Null, Value::Null), (json!("owner"), Value::Null)));
    assert_eq!(rig.ok("drive/get", json!({"drive_id": "1"}))["used_size"], 2);
}

#[test]
fn change_feed_lists_events() {
    let rig = Rig::with(|config| config.drives = 2);
    let cursor = rig.ok("file/get_last_cursor", json!({"drive_id": "1"}))["cursor"].clone();
    let folder = rig.mkdir("root", "folder");
    let file = text(&rig.save("root", "f", b"1")["file_id"]);
    rig.ok("file/create", json!({"drive_id": "2", "parent_file_id": "root", "name": "x", "type": "folder"}));
    rig.overwrite(&file, b"2");
    rig.ok("file/update", with(&file, json!({"name": "g"})));
    rig.ok("file/update", with(&file, json!({"hidden": true})));
    rig.ok("file/move", with(&file, json!({"to_parent_file_id": folder})));
    rig.ok("recyclebin/trash", of(&file));
    rig.ok("recyclebin/restore", of(&file));
    rig.ok("file/delete", of(&file));
    let (mut ops, mut cursor) = (Vec::new(), cursor);
    loop {
        let page = rig.ok("file/list_delta", json!({"drive_id": "1", "cursor": cursor, "limit": 2}));
        for item in page["items"].as_array().unwrap() {
            ops.push(text(&item["op"]));
            assert_eq!(
                item["file"].is_null(),
                item["file_id"] == file,
                "a deleted file must come as an id only"
            );
        }
        cursor = page["cursor"].clone();
        if page["has_more"] == false {
            break;
        }
    }
    assert_eq!(
        ops,
        ["create", "create", "overwrite", "rename", "update", "move", "trash", "restore", "delete"]
    );
    let nothing = rig.ok("file/list_delta", json!({"drive_id": "1", "cursor": cursor}));
    assert_eq!((&nothing["items"], &nothing["has_more"]), (&json!([]), &json!(false)));
    let all = rig.ok("file/list_delta", json!({"drive_id": "1"}));
    assert_eq!(
        all["items"].as_array().unwrap().len(),
        ops.len(),
        "a call without a cursor must start at the beginning"
    );
    for cursor in ["x", "999999", "ZGVsdGE6OTk5OTk5"] {
        rig.refused(
            "file/list_delta",
            json!({"drive_id": "1", "cursor": cursor}),
            400,
            "InvalidParameter.Cursor",
        );
    }
    let mute = Rig::with(|config| config.quirks.delta_always_empty = true);
    mute.mkdir("root", "folder");
    assert_eq!(mute.ok("file/list_delta", json!({"drive_id": "1"}))["items"], json!([]));
}

#[test]
fn batch_runs_its_calls_in_order() {
    let rig = Rig::new();
    let id = rig.mkdir("root", "a");
    let sub = |number: u32, url: &str, body: Value| json!({"id": number.to_string(), "method": "POST", "url": url, "headers": {"Content-Type": "application/json"}, "body": body});
    let answer = rig.ok(
        "batch",
        json!({"resource": "file", "requests": [
            sub(1, "/file/update", with(&id, json!({"name": "b"}))),
            sub(2, "/file/get", of(&id)),
            sub(3, "/file/get", of("nope")),
            sub(4, "/recyclebin/trash", of(&id)),
            sub(5, "/file/create", json!({})),
            sub(6, "/file/get", of(&id)),
        ]}),
    );
    let responses = answer["responses"].as_array().unwrap();
    let seen: Vec<_> = responses.iter().map(|r| (text(&r["id"]), r["status"].as_u64().unwrap())).collect();
    let expected = [("1", 200), ("2", 200), ("3", 404), ("4", 202), ("5", 400), ("6", 404)];
    assert_eq!(seen, expected.map(|(id, status)| (id.to_owned(), status)));
    assert_eq!(
        (&responses[1]["body"]["name"], &responses[2]["body"]["code"]),
        (&json!("b"), &json!("NotFound.File"))
    );
    rig.refused("batch", json!({"requests": []}), 400, "InvalidParameter.Requests");
    let many: Vec<_> = (0..101).map(|n| sub(n, "/file/get", of(&id))).collect();
    rig.refused("batch", json!({"requests": many}), 400, "InvalidParameter.Requests");
    let twice = json!({"requests": [sub(1, "/file/get", of(&id)), sub(1, "/file/get", of(&id))]});
    rig.refused("batch", twice, 400, "InvalidParameter.Requests.id");
    let mut bare = sub(1, "/file/get", of(&id));
    bare.as_object_mut().unwrap().remove("headers");
    let answer = rig.ok("batch", json!({"requests": [bare]}));
    assert_eq!(answer["responses"][0]["status"], json!(400));
}

#[test]
fn listing_has_tags_only_on_request() {
    let rig = Rig::new();
    let id = text(&rig.save("root", "f", b"1")["file_id"]);
    rig.ok("file/put_usertags", with(&id, json!({"user_tags": [{"key": "k", "value": "v"}]})));
    for (fields, tags) in [("*", Value::Null), ("url, user_tags", json!({"k": "v"}))] {
        let request = json!({"drive_id": "1", "parent_file_id": "root", "fields": fields});
        assert_eq!(rig.ok("file/list", request)["items"][0]["user_tags"], tags, "{fields}");
    }
}

#[test]
fn root_is_an_object_and_case_folding_works() {
    let rig = Rig::new();
    let root = rig.ok("file/get", of("root"));
    assert_eq!((&root["type"], &root["parent_file_id"]), (&json!("folder"), &json!("")));
    rig.refused("file/update", with("root", json!({"name": "x"})), 404, "NotFound.File");
    rig.refused("file/delete", of("root"), 404, "NotFound.File");
    let check = |rig: &Rig, name: &str| {
        let ask = json!({"drive_id": "1", "parent_file_id": "root", "name": name, "type": "file"});
        rig.ok("file/pre_create_check", ask)["result_code"].clone()
    };
    rig.mkdir("root", "Name");
    assert_eq!(
        (check(&rig, "name"), check(&rig, "Name")),
        (json!("success"), json!("NameCheckFailed.ExistSameNameFile"))
    );
    let folding = Rig::with(|config| {
        config.quirks.case_insensitive_names = true;
        config.quirks.get_root = false;
        config.quirks.no_get_by_path = true;
    });
    folding.mkdir("root", "Name");
    assert_eq!(check(&folding, "nAME"), json!("NameCheckFailed.ExistSameNameFile"));
    folding.refused("file/get", of("root"), 404, "NotFound.File");
    assert_eq!(folding.call("file/get_by_path", json!({"drive_id": "1", "file_path": "/Name"})).0, 404);
}

#[test]
fn downloads_redirect_and_urls_are_limited() {
    let rig = Rig::new();
    let id = text(&rig.save("root", "f", b"bytes")["file_id"]);
    let headers = [super::rig::header("Authorization", "Bearer AT")];
    let path = format!("/v2/file/download?drive_id=1&file_id={id}");
    let answer = super::http::send(rig.addr(), "GET", &path, &headers, b"").unwrap();
    assert_eq!(answer.status, 302);
    assert_eq!(rig.get(answer.header("location").unwrap(), None).body, b"bytes");
    for seconds in [0, 115_201] {
        rig.refused(
            "file/get_download_url",
            with(&id, json!({"expire_sec": seconds})),
            400,
            "InvalidParameter.ExpireSec",
        );
    }
    let folder = rig.mkdir("root", "folder");
    rig.refused("file/get_download_url", of(&folder), 400, "InvalidParameter.FileId");
    let url = text(&rig.ok("file/get_download_url", of(&id))["url"]);
    rig.ok("file/delete", of(&id));
    let gone = rig.get(&url, None);
    assert!(gone.status == 404 && gone.text().contains("NoSuchKey"));
}
