//! Tests of the tree. The listing rules have their own file.

mod listing;
mod model;

use std::time::{Duration, Instant, SystemTime};

use super::inodes::*;
use super::*;
use crate::error::ErrorKind;
use crate::ids::{FileId, Ino, RevisionId, Sha1Hash};
use crate::pds::drive::FileMeta;
use crate::pds::types::FileType;

struct Fixture {
    tree: Tree,
    now: Instant,
}

const TTL: Duration = Duration::from_secs(15);

impl Fixture {
    fn new() -> Self {
        Self { tree: Tree::new(&FileId::root(), TTL, SystemTime::UNIX_EPOCH), now: Instant::now() }
    }

    fn pass_time(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn list(&mut self, dir: Ino, items: &[FileMeta]) -> Vec<FileId> {
        // A listing takes time, and the drive catches up in that time.
        self.now += Duration::from_millis(1);
        self.tree.merge_listing(dir, items.to_vec(), self.now).unwrap()
    }

    fn create(&mut self, dir: Ino, text: &str) -> Ino {
        self.tree.create_local(dir, &name(text), self.now, (SystemTime::UNIX_EPOCH, None)).unwrap()
    }

    fn names(&self, dir: Ino) -> Vec<String> {
        self.tree.snapshot(dir).unwrap().iter().map(|listed| listed.name.to_string()).collect()
    }

    fn child(&self, name: &str) -> Ino {
        self.tree.child(Ino::ROOT, name).unwrap_or_else(|| panic!("{name} is not there"))
    }

    fn id_of(&self, name: &str) -> String {
        self.tree.meta(self.child(name)).unwrap().file_id.to_string()
    }
}

fn name(text: &str) -> Name {
    Name::new(std::ffi::OsStr::new(text)).unwrap()
}

fn id(text: &str) -> FileId {
    FileId::new(text).unwrap()
}

/// A file in the root directory, created at second `age`.
fn file(file_id: &str, name: &str, age: u64) -> FileMeta {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(age);
    FileMeta {
        file_id: id(file_id),
        parent_id: Some(FileId::root()),
        name: name.to_owned(),
        kind: FileType::File,
        size: age,
        mtime: at,
        changed_at: at,
        created_at: at,
        revision: None,
        sha1: None,
        crc64: None,
        posix: None,
    }
}

fn directory(file_id: &str, name: &str) -> FileMeta {
    FileMeta { kind: FileType::Folder, ..file(file_id, name, 0) }
}

fn check(tree: &Tree) {
    tree.check_invariants();
}

#[test]
fn root_is_known_without_the_drive() {
    let mut f = Fixture::new();
    assert_eq!(f.tree.stat(Ino::ROOT).unwrap().kind, FileKind::Directory);
    assert_eq!(f.tree.identity(Ino::ROOT), Some(Identity::Remote(FileId::root())));
    assert_eq!(f.tree.location(Ino::ROOT), None);
    assert_eq!(f.tree.parent(Ino::ROOT), Some(Ino::ROOT));
    assert!(f.tree.count_lookup(Ino::ROOT));
    f.tree.forget(Ino::ROOT, 1);
    f.tree.removed_elsewhere(&FileId::root());
    assert!(!f.tree.attrs_fresh_for(Ino::ROOT, f.now).is_zero());
    check(&f.tree);
}

#[test]
fn fresh_listing_proves_absent_names() {
    let mut f = Fixture::new();
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), NameState::Unknown);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    let a = f.child("a");
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), NameState::Fresh(a));
    assert_eq!(f.tree.find(Ino::ROOT, "b", f.now).unwrap(), NameState::Absent);
    f.pass_time(15);
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), NameState::Stale(a));
    assert_eq!(f.tree.find(Ino::ROOT, "b", f.now).unwrap(), NameState::Unknown);
    assert_eq!(f.tree.find(a, "b", f.now).unwrap_err().kind(), ErrorKind::NotDirectory);
    assert_eq!(f.tree.find(Ino(99), "b", f.now).unwrap_err().kind(), ErrorKind::Stale);
}

#[test]
fn inode_lives_while_referenced() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    let a = f.child("a");
    assert!(f.tree.count_lookup(a) && f.tree.count_lookup(a));
    f.tree.pin(a).unwrap();
    f.list(Ino::ROOT, &[]);
    assert_eq!(f.tree.child(Ino::ROOT, "a"), None);
    f.tree.forget(a, 1);
    f.tree.forget(a, 1);
    assert!(f.tree.stat(a).is_ok_and(|stat| stat.nlink == 0));
    f.tree.unpin(a);
    assert!(f.tree.stat(a).is_err());
    assert!(!f.tree.count_lookup(a));
    // The same object gets a new inode number.
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    assert_ne!(f.child("a"), a);
    check(&f.tree);
}

#[test]
fn commit_gives_a_created_file_its_object() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[]);
    let a = f.create(Ino::ROOT, "a");
    assert_eq!(f.tree.identity(a), Some(Identity::Local));
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), NameState::Fresh(a));
    let again = f.tree.create_local(Ino::ROOT, &name("a"), f.now, (SystemTime::UNIX_EPOCH, None));
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Exists);
    f.tree.adopt(a, file("1", "a", 5), f.now).unwrap();
    assert_eq!(f.tree.identity(a), Some(Identity::Remote(id("1"))));
    assert_eq!(f.tree.stat(a).unwrap().size, 5);
    assert_eq!(f.tree.location(a).unwrap().parent_id, FileId::root());
    check(&f.tree);
}

#[test]
fn commit_under_the_old_name_keeps_file_unsaved() {
    let mut f = Fixture::new();
    let a = f.create(Ino::ROOT, "a");
    assert!(f.tree.rename_unsaved(a, Ino::ROOT, &name("b"), f.now).unwrap().is_empty());
    f.tree.adopt(a, file("1", "a", 5), f.now).unwrap();
    f.pass_time(60);
    f.list(Ino::ROOT, &[file("1", "a", 5)]);
    assert_eq!(f.names(Ino::ROOT), ["b"]);
    assert_eq!(&*f.tree.location(a).unwrap().name, "b");
    f.tree.adopt(a, file("1", "b", 5), f.now).unwrap();
    f.pass_time(60);
    f.list(Ino::ROOT, &[file("1", "b", 5)]);
    assert_eq!((f.names(Ino::ROOT), f.child("b")), (vec!["b".to_owned()], a));
    check(&f.tree);
}

#[test]
fn rename_of_unsaved_file_records_replaced_object() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("old", "doc", 1)]);
    let old = f.child("doc");
    f.tree.pin(old).unwrap();
    let new = f.create(Ino::ROOT, ".doc.tmp");
    f.tree.rename_unsaved(new, Ino::ROOT, &name("doc"), f.now).unwrap();
    assert_eq!(f.tree.replaces(new).unwrap().file_id, id("old"));
    assert_eq!(f.tree.identity(old), None);
    assert_eq!(f.tree.meta(old).unwrap().file_id, id("old"), "open handles still see it");
    f.pass_time(60);
    f.list(Ino::ROOT, &[file("old", "doc", 1)]);
    assert_eq!(f.names(Ino::ROOT), ["doc"]);
    assert_eq!(f.child("doc"), new);
    f.tree.adopt(new, FileMeta { size: 7, ..file("old", "doc", 1) }, f.now).unwrap();
    assert_eq!(f.tree.ino_of(&id("old")), Some(new));
    assert_eq!(f.tree.replaces(new), None);
    f.tree.unpin(old);
    check(&f.tree);
}

#[test]
fn obsolete_replacement_is_returned() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1), file("2", "b", 1)]);
    let new = f.create(Ino::ROOT, "tmp");
    assert!(f.tree.rename_unsaved(new, Ino::ROOT, &name("a"), f.now).unwrap().is_empty());
    let superseded = f.tree.rename_unsaved(new, Ino::ROOT, &name("b"), f.now).unwrap();
    assert_eq!(superseded.iter().map(|m| m.file_id.as_str()).collect::<Vec<_>>(), ["1"]);
    assert_eq!(f.tree.replaces(new).unwrap().file_id, id("2"));
    // Another unsaved file inherits it.
    let other = f.create(Ino::ROOT, "other");
    assert!(f.tree.rename_unsaved(other, Ino::ROOT, &name("b"), f.now).unwrap().is_empty());
    assert_eq!(f.tree.replaces(other).unwrap().file_id, id("2"));
    assert_eq!(f.tree.unlink(other, f.now).unwrap().file_id, id("2"));
    check(&f.tree);
}

#[test]
fn rename_over_unsaved_file_inherits_its_object() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1), file("2", "b", 1)]);
    let edited = f.child("a");
    f.tree.mark_unsaved(edited);
    assert!(f.tree.rename_unsaved(edited, Ino::ROOT, &name("b"), f.now).unwrap().is_empty());
    let [here, elsewhere] = [file("2", "b", 1), file("1", "a", 1)].map(Some);
    assert_eq!(f.tree.objects(edited), Objects { in_place: here, elsewhere });
    let new = f.create(Ino::ROOT, "new");
    let superseded = f.tree.rename_unsaved(new, Ino::ROOT, &name("b"), f.now).unwrap();
    assert_eq!(superseded.iter().map(|m| m.file_id.as_str()).collect::<Vec<_>>(), ["1"]);
    assert_eq!(f.tree.objects(new), Objects { in_place: Some(file("2", "b", 1)), elsewhere: None });
    check(&f.tree);
}

#[test]
fn abandoned_commit_restores_replaced_file() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    let new = f.create(Ino::ROOT, "tmp");
    f.tree.rename_unsaved(new, Ino::ROOT, &name("a"), f.now).unwrap();
    f.tree.discard(new, f.now);
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), NameState::Unknown);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    assert_eq!(f.id_of("a"), "1");
    check(&f.tree);
}

#[test]
fn replace_moves_the_id_to_the_source_inode() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("src", "new", 9), file("dst", "doc", 1)]);
    let (source, target) = (f.child("new"), f.child("doc"));
    assert!(f.tree.count_lookup(target));
    f.tree.replaced(source, target, FileMeta { size: 9, ..file("dst", "doc", 1) }, f.now).unwrap();
    assert_eq!(f.names(Ino::ROOT), ["doc"]);
    assert_eq!(f.child("doc"), source);
    assert_eq!(f.tree.stat(source).unwrap().size, 9);
    assert_eq!(f.tree.stat(target).unwrap().nlink, 0);
    // A listing from before the replace contains both as they were.
    f.list(Ino::ROOT, &[file("src", "new", 9), file("dst", "doc", 1)]);
    assert_eq!(f.names(Ino::ROOT), ["doc"]);
    assert_eq!(f.tree.stat(source).unwrap().size, 9);
    f.tree.forget(target, 1);
    check(&f.tree);
}

#[test]
fn directory_moves_with_its_contents_not_below_itself() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[directory("d", "d"), directory("e", "e")]);
    let (d, e) = (f.child("d"), f.child("e"));
    f.list(d, &[FileMeta { parent_id: Some(id("d")), ..file("1", "a", 1) }]);
    let a = f.tree.child(d, "a").unwrap();
    assert!(f.tree.is_below(a, d) && f.tree.is_below(d, d) && !f.tree.is_below(d, a));
    f.tree
        .moved(d, e, &name("d2"), FileMeta { parent_id: Some(id("e")), ..directory("d", "d2") }, f.now)
        .unwrap();
    assert_eq!(f.tree.display_path(a), "/e/d2/a");
    assert!(f.tree.is_below(a, e));
    check(&f.tree);
}

#[test]
fn directory_with_unsaved_files_outlives_its_dentry() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[directory("d", "d")]);
    let d = f.child("d");
    let a = f.create(d, "a");
    f.tree.pin(a).unwrap();
    f.list(Ino::ROOT, &[]);
    assert_eq!(f.names(Ino::ROOT), [""; 0]);
    assert_eq!(f.tree.location(a).unwrap().parent_id, id("d"));
    check(&f.tree);
    f.tree.discard(a, f.now);
    assert!(f.tree.stat(d).is_err());
    f.tree.unpin(a);
    assert!(f.tree.stat(a).is_err());
    check(&f.tree);
}

#[test]
fn removed_directory_is_empty_and_takes_no_entries() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[directory("d", "d")]);
    let d = f.child("d");
    assert!(f.tree.count_lookup(d));
    f.tree.unlink(d, f.now);
    assert_eq!(f.tree.find(d, "x", f.now).unwrap(), NameState::Absent);
    let made = f.tree.create_local(d, &name("x"), f.now, (SystemTime::UNIX_EPOCH, None));
    assert_eq!(made.unwrap_err().kind(), ErrorKind::NotFound);
    f.tree.forget(d, 1);
    check(&f.tree);
}

#[test]
fn new_directory_is_known_to_be_empty() {
    let mut f = Fixture::new();
    let d = f.tree.insert(Ino::ROOT, &name("d"), directory("d", "d"), f.now).unwrap();
    assert_eq!(f.tree.find(d, "x", f.now).unwrap(), NameState::Absent);
    check(&f.tree);
}

#[test]
fn single_object_answer_moves_its_dentry() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[directory("d", "d"), file("1", "a", 1)]);
    let a = f.child("a");
    f.pass_time(20);
    assert!(f.tree.attrs_fresh_for(a, f.now).is_zero());
    f.tree.merge_object(FileMeta { size: 77, ..file("1", "a", 1) }, f.now);
    assert_eq!((f.tree.attrs_fresh_for(a, f.now), f.tree.stat(a).unwrap().size), (TTL, 77));
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), NameState::Fresh(a));
    f.tree.merge_object(FileMeta { parent_id: Some(id("d")), ..file("1", "b", 1) }, f.now);
    assert_eq!(f.tree.display_path(a), "/d/b");
    f.tree.removed_elsewhere(&id("1"));
    assert!(f.tree.stat(a).is_err());
    check(&f.tree);
}

#[test]
fn answer_requested_before_a_change_is_ignored() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    let (a, requested_at) = (f.child("a"), f.now);
    f.pass_time(1);
    f.tree.adopt(a, FileMeta { size: 77, ..file("1", "a", 1) }, f.now).unwrap();
    f.tree.merge_object(file("1", "a", 1), requested_at);
    assert_eq!(f.tree.stat(a).unwrap().size, 77);
    f.tree.merge_object(FileMeta { size: 78, ..file("1", "a", 1) }, f.now);
    assert_eq!(f.tree.stat(a).unwrap().size, 78);
    check(&f.tree);
}

#[test]
fn unused_inodes_are_evicted_above_the_limit() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[directory("d", "d"), directory("e", "e")]);
    let (d, e) = (f.child("d"), f.child("e"));
    let items: Vec<_> = (0..50).map(|n| file(&format!("f{n}"), &format!("f{n}"), 1)).collect();
    f.list(d, &items);
    let kept = f.tree.child(d, "f7").unwrap();
    assert!(f.tree.count_lookup(kept));
    let unsaved = f.create(d, "unsaved");
    f.pass_time(60);
    f.tree.evict_at = 10;
    f.list(e, &[]);
    assert_eq!(f.names(d), ["f7", "unsaved"]);
    assert_eq!(f.tree.child(d, "unsaved"), Some(unsaved));
    assert_eq!(f.tree.find(d, "f8", f.now).unwrap(), NameState::Unknown);
    check(&f.tree);
}

#[test]
fn reallocated_inode_takes_over_the_dentry() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("a", "a", 1), file("b", "b", 1)]);
    let (old, other) = (f.child("a"), f.child("b"));
    assert!(f.tree.count_lookup(old));
    f.tree.pin(old).unwrap();
    let former = f.tree.meta(old).cloned().unwrap();
    f.tree.merge_object(FileMeta { size: 7, ..former.clone() }, f.now);
    let version = f.tree.version(Ino::ROOT).unwrap();
    assert!(f.tree.reallocate_inode(old, former.clone()));
    assert_ne!(f.tree.version(Ino::ROOT).unwrap(), version, "handles share entries with the old inode");
    let new = f.child("a");
    assert!(new != old && f.child("b") == other);
    assert_eq!((f.tree.meta(new).unwrap().size, f.tree.meta(old)), (7, Some(&former)));
    assert_eq!((f.tree.stat(new).unwrap().nlink, f.tree.stat(old).unwrap().nlink), (1, 0));
    // Later listings change the new inode. The old inode lives while it is referenced.
    f.list(Ino::ROOT, &[file("a", "a2", 1), file("b", "b", 1)]);
    assert_eq!(f.child("a2"), new);
    f.tree.unpin(old);
    f.tree.forget(old, 1);
    assert!(f.tree.stat(old).is_err());
    // Unsaved files and directories keep their inode.
    f.tree.mark_unsaved(new);
    assert!(
        !f.tree.reallocate_inode(new, former.clone()) && !f.tree.reallocate_inode(Ino::ROOT, former.clone())
    );
    let unsaved = f.create(Ino::ROOT, "c");
    assert!(!f.tree.reallocate_inode(unsaved, former));
}

/// `file` with a revision.
fn revised(file_id: &str, name: &str, age: u64) -> FileMeta {
    FileMeta { revision: Some(RevisionId::new("r1").unwrap()), ..file(file_id, name, age) }
}

#[test]
fn leftover_is_hidden_until_it_changes() {
    let mut f = Fixture::new();
    let left = revised("f1", "left", 1);
    f.list(Ino::ROOT, &[left.clone(), file("f2", "other", 2)]);
    let ino = f.child("left");
    f.tree.unlink(ino, f.now);
    f.tree.supersede(left.clone());
    f.pass_time(3600);
    f.list(Ino::ROOT, &[left.clone(), file("f2", "other", 2)]);
    assert_eq!(f.names(Ino::ROOT), ["other"]);
    assert_eq!(f.tree.leftover_at(&FileId::root(), "left"), Some(&left));
    let renamed = FileMeta { name: "theirs".to_owned(), ..left };
    f.list(Ino::ROOT, &[renamed.clone(), file("f2", "other", 2)]);
    assert_eq!(f.names(Ino::ROOT), ["other", "theirs"]);
    assert_eq!(f.tree.leftover_at(&FileId::root(), "left"), None);
}

#[test]
fn claim_ends_with_its_file() {
    for is_replaced in [false, true] {
        let mut f = Fixture::new();
        let left = revised("f1", "left", 1);
        f.list(Ino::ROOT, &[file("f2", "a", 2), file("f3", "b", 3)]);
        f.tree.supersede(left.clone());
        f.tree.set_removal(&left.file_id, Removal::Refused);
        let (a, b) = (f.child("a"), f.child("b"));
        assert!(f.tree.claim(&left.file_id, a));
        assert!(!f.tree.claim(&left.file_id, b));
        if is_replaced {
            f.tree.moved(b, Ino::ROOT, &name("a"), file("f3", "a", 3), f.now).unwrap();
        } else {
            f.tree.unlink(a, f.now);
        }
        assert!(!f.tree.is_referenced(&left.file_id));
        assert!(f.tree.claim(&left.file_id, b));
        assert!(f.tree.is_referenced(&left.file_id));
    }
}

#[test]
fn leftover_is_known_by_its_content() {
    let left = revised("f1", "left", 1);
    let hashed = FileMeta { revision: None, sha1: Some(Sha1Hash([1; 20])), ..left.clone() };
    let summed = FileMeta { sha1: None, crc64: Some(1), ..hashed.clone() };
    let later = hashed.changed_at + Duration::from_secs(1);
    for (left, listed, is_hidden) in [
        (&left, left.clone(), true),
        // The time changes with the attributes too.
        (&left, FileMeta { changed_at: later, ..left.clone() }, true),
        (&left, FileMeta { revision: Some(RevisionId::new("r2").unwrap()), ..left.clone() }, false),
        (&hashed, hashed.clone(), true),
        (&hashed, FileMeta { sha1: Some(Sha1Hash([2; 20])), ..hashed.clone() }, false),
        (&hashed, FileMeta { changed_at: later, ..hashed.clone() }, false),
        (&hashed, summed.clone(), false),
        (&summed, summed.clone(), true),
        (&summed, FileMeta { crc64: Some(2), ..summed.clone() }, false),
        // Nothing shows that it is the same content.
        (&summed, FileMeta { crc64: None, ..summed.clone() }, false),
    ] {
        let mut f = Fixture::new();
        f.tree.supersede(left.clone());
        assert_eq!(f.tree.hides_leftover(&listed), is_hidden, "{listed:?}");
    }
}
