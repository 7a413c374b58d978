//! Older versions and the recycle bin.

use super::{PART, ScratchFolder, fresh_bytes, sha1};
use crate::config::RemoveMode;
use crate::error::ErrorKind;
use crate::ids::FileId;
use crate::pds::types::FileType;
use crate::posix::Tags;

#[tokio::test]
async fn contract_revisions_are_listed_and_restored() {
    let scratch = ScratchFolder::new().await;
    let (old, new) = (fresh_bytes(PART + 5), fresh_bytes(7));
    let first = scratch.upload("f", None, &old).await;
    let second = scratch.upload("f", Some(&first.file_id), &new).await;
    let revisions = scratch.drive.revisions(&first.file_id).await.unwrap();
    let seen: Vec<_> = revisions.iter().map(|r| (Some(r.id.clone()), r.size, r.sha1, r.is_latest)).collect();
    assert_eq!(
        seen,
        [
            (second.revision, Some(7), Some(sha1(&new)), true),
            (first.revision.clone(), Some(old.len() as u64), Some(sha1(&old)), false),
        ]
    );
    let revision = first.revision.unwrap();
    // A repeated call, after a lost answer, does no harm.
    for _ in 0..2 {
        scratch.drive.restore_revision(&first.file_id, &revision).await.unwrap();
        assert_eq!(scratch.drive.get(&first.file_id).await.unwrap().sha1, Some(sha1(&old)));
    }
    let missing = scratch.drive.revisions(&FileId::new("0").unwrap()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    scratch.clean_up().await;
}

#[tokio::test]
async fn contract_recycled_objects_are_listed_and_restored() {
    let scratch = ScratchFolder::new().await;
    let sub = scratch.drive.create_folder(&scratch.folder, "sub", &Tags::new()).await.unwrap();
    let file = scratch.upload("f", None, &fresh_bytes(5)).await;
    for object in [&sub, &file] {
        scratch.drive.remove(&object.file_id, RemoveMode::Trash).await.unwrap();
    }
    let listed = async || {
        let all = scratch.drive.recycle_bin().await.unwrap();
        let own = all.into_iter().filter(|item| item.meta.parent_id.as_ref() == Some(&scratch.folder));
        own.map(|item| (item.meta.name, item.meta.kind, item.trashed_at.is_some())).collect::<Vec<_>>()
    };
    let (f, sub_dir) = (("f".to_owned(), FileType::File, true), ("sub".to_owned(), FileType::Folder, true));
    assert_eq!(listed().await, [f, sub_dir.clone()]);
    // A repeated call, after a lost answer, does no harm.
    for _ in 0..2 {
        assert_eq!(
            scratch.drive.restore(&file.file_id).await.unwrap().parent_id.as_ref(),
            Some(&scratch.folder)
        );
    }
    assert_eq!((listed().await, scratch.names(&scratch.folder).await), (vec![sub_dir], vec!["f".to_owned()]));
    scratch.drive.remove(&sub.file_id, RemoveMode::Delete).await.unwrap();
    assert_eq!(listed().await, []);
    assert_eq!(scratch.drive.restore(&sub.file_id).await.unwrap_err().kind(), ErrorKind::NotFound);
    scratch.clean_up().await;
}
