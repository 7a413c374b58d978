//! The tree against what it promises; the listing rules have their own file.

mod listing;
mod model;

use super::*;

/// A tree and a clock.
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
        // Every listing takes time, and so does the drive to catch up with it.
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

/// A file of the root folder; created at second `age`.
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

fn folder(file_id: &str, name: &str) -> FileMeta {
    FileMeta { kind: FileType::Folder, ..file(file_id, name, 0) }
}

/// What must be true of every tree at any time.
fn check(tree: &Tree) {
    let mut live = 0;
    for (&ino, inode) in &tree.inodes {
        if let Object::Live(meta) = &inode.object {
            live += 1;
            assert_eq!(tree.by_file_id.get(&meta.file_id), Some(&ino), "{meta:?}");
        }
        if let Some(spot) = &inode.spot {
            let dentry = tree.folder(spot.parent).unwrap().children.get(&spot.name);
            assert_eq!(dentry.map(|d| d.ino), Some(ino), "{spot:?}");
        }
        if let Body::Folder(folder) = &inode.body {
            for (name, dentry) in &folder.children {
                let spot = tree.inodes[&dentry.ino].spot.as_ref().unwrap();
                assert_eq!((spot.parent, &spot.name), (ino, name));
                assert!(Name::new(std::ffi::OsStr::new(&**name)).is_ok(), "{name:?}");
            }
        }
        if let Body::File { replaces: Some(meta) } = &inode.body {
            assert_eq!(tree.replacing.get(&meta.file_id), Some(&ino));
        }
        let has_unsaved = match &inode.body {
            Body::Folder(folder) => folder.children.values().any(|d| tree.is_held(d)),
            Body::File { .. } => false,
        };
        let is_needed =
            ino == Ino::ROOT || inode.lookups > 0 || inode.pins > 0 || inode.spot.is_some() || has_unsaved;
        assert!(is_needed, "{ino} lives for nothing: {inode:?}");
    }
    assert_eq!(live, tree.by_file_id.len());
}

#[test]
fn the_root_needs_nobody() {
    let mut f = Fixture::new();
    assert_eq!(f.tree.stat(Ino::ROOT).unwrap().kind, Kind::Folder);
    assert_eq!(f.tree.identity(Ino::ROOT), Some(Identity::Remote(FileId::root())));
    assert_eq!(f.tree.place(Ino::ROOT), None);
    assert_eq!(f.tree.parent(Ino::ROOT), Some(Ino::ROOT));
    assert!(f.tree.count_lookup(Ino::ROOT));
    f.tree.forget(Ino::ROOT, 1);
    f.tree.vanished(&FileId::root());
    assert!(!f.tree.attrs_fresh_for(Ino::ROOT, f.now).is_zero());
    check(&f.tree);
}

#[test]
fn a_complete_listing_answers_for_absent_names_until_it_is_old() {
    let mut f = Fixture::new();
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), Found::Unknown);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    let a = f.child("a");
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), Found::Fresh(a));
    assert_eq!(f.tree.find(Ino::ROOT, "b", f.now).unwrap(), Found::Absent);
    f.pass_time(15);
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), Found::Stale(a));
    assert_eq!(f.tree.find(Ino::ROOT, "b", f.now).unwrap(), Found::Unknown);
    assert_eq!(f.tree.find(a, "b", f.now).unwrap_err().kind(), ErrorKind::NotDirectory);
    assert_eq!(f.tree.find(Ino(99), "b", f.now).unwrap_err().kind(), ErrorKind::Stale);
}

#[test]
fn an_inode_lives_while_the_kernel_or_a_handle_knows_it() {
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
    // The same object gets a new number.
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    assert_ne!(f.child("a"), a);
    check(&f.tree);
}

#[test]
fn a_created_file_becomes_the_object_that_was_committed() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[]);
    let a = f.create(Ino::ROOT, "a");
    assert_eq!(f.tree.identity(a), Some(Identity::Local));
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), Found::Fresh(a));
    let again = f.tree.create_local(Ino::ROOT, &name("a"), f.now, (SystemTime::UNIX_EPOCH, None));
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Exists);
    f.tree.adopt(a, file("1", "a", 5), f.now);
    assert_eq!(f.tree.identity(a), Some(Identity::Remote(id("1"))));
    assert_eq!(f.tree.stat(a).unwrap().size, 5);
    assert_eq!(f.tree.place(a).unwrap().parent_id, FileId::root());
    check(&f.tree);
}

#[test]
fn a_commit_under_the_old_name_leaves_the_file_unsaved_at_the_new_one() {
    let mut f = Fixture::new();
    let a = f.create(Ino::ROOT, "a");
    assert!(f.tree.rename_unsaved(a, Ino::ROOT, &name("b"), f.now).unwrap().is_empty());
    f.tree.adopt(a, file("1", "a", 5), f.now);
    f.pass_time(60);
    f.list(Ino::ROOT, &[file("1", "a", 5)]);
    assert_eq!(f.names(Ino::ROOT), ["b"]);
    assert_eq!(&*f.tree.place(a).unwrap().name, "b");
    f.tree.adopt(a, file("1", "b", 5), f.now);
    f.pass_time(60);
    f.list(Ino::ROOT, &[file("1", "b", 5)]);
    assert_eq!((f.names(Ino::ROOT), f.child("b")), (vec!["b".to_owned()], a));
    check(&f.tree);
}

#[test]
fn save_by_rename_of_an_unsaved_file_remembers_what_it_replaces() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("old", "doc", 1)]);
    let old = f.child("doc");
    f.tree.pin(old).unwrap();
    let new = f.create(Ino::ROOT, ".doc.tmp");
    f.tree.rename_unsaved(new, Ino::ROOT, &name("doc"), f.now).unwrap();
    assert_eq!(f.tree.replaces(new).unwrap().file_id, id("old"));
    assert_eq!(f.tree.identity(old), None);
    assert_eq!(f.tree.meta(old).unwrap().file_id, id("old"), "open handles go on with it");
    f.pass_time(60);
    f.list(Ino::ROOT, &[file("old", "doc", 1)]);
    assert_eq!(f.names(Ino::ROOT), ["doc"]);
    assert_eq!(f.child("doc"), new);
    f.tree.adopt(new, FileMeta { size: 7, ..file("old", "doc", 1) }, f.now);
    assert_eq!(f.tree.ino_of(&id("old")), Some(new));
    assert_eq!(f.tree.replaces(new), None);
    f.tree.unpin(old);
    check(&f.tree);
}

#[test]
fn what_an_unsaved_file_no_longer_replaces_is_handed_back() {
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
fn what_takes_the_place_of_an_unsaved_file_becomes_what_stands_there() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1), file("2", "b", 1)]);
    let edited = f.child("a");
    f.tree.mark_unsaved(edited);
    assert!(f.tree.rename_unsaved(edited, Ino::ROOT, &name("b"), f.now).unwrap().is_empty());
    let [here, elsewhere] = [file("2", "b", 1), file("1", "a", 1)].map(Some);
    assert_eq!(f.tree.objects(edited), Objects { here, elsewhere });
    let new = f.create(Ino::ROOT, "new");
    let superseded = f.tree.rename_unsaved(new, Ino::ROOT, &name("b"), f.now).unwrap();
    assert_eq!(superseded.iter().map(|m| m.file_id.as_str()).collect::<Vec<_>>(), ["1"]);
    assert_eq!(f.tree.objects(new), Objects { here: Some(file("2", "b", 1)), elsewhere: None });
    check(&f.tree);
}

#[test]
fn a_commit_that_is_given_up_brings_the_replaced_file_back() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    let new = f.create(Ino::ROOT, "tmp");
    f.tree.rename_unsaved(new, Ino::ROOT, &name("a"), f.now).unwrap();
    f.tree.discard(new, f.now);
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), Found::Unknown);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    assert_eq!(f.id_of("a"), "1");
    check(&f.tree);
}

#[test]
fn a_replaced_file_keeps_its_id_under_the_inode_of_its_source() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("src", "new", 9), file("dst", "doc", 1)]);
    let (source, target) = (f.child("new"), f.child("doc"));
    assert!(f.tree.count_lookup(target));
    f.tree.replaced(source, target, FileMeta { size: 9, ..file("dst", "doc", 1) }, f.now).unwrap();
    assert_eq!(f.names(Ino::ROOT), ["doc"]);
    assert_eq!(f.child("doc"), source);
    assert_eq!(f.tree.stat(source).unwrap().size, 9);
    assert_eq!(f.tree.stat(target).unwrap().nlink, 0);
    // A listing from before shows both as they were.
    f.list(Ino::ROOT, &[file("src", "new", 9), file("dst", "doc", 1)]);
    assert_eq!(f.names(Ino::ROOT), ["doc"]);
    assert_eq!(f.tree.stat(source).unwrap().size, 9);
    f.tree.forget(target, 1);
    check(&f.tree);
}

#[test]
fn a_folder_moves_with_everything_below_and_not_below_itself() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[folder("d", "d"), folder("e", "e")]);
    let (d, e) = (f.child("d"), f.child("e"));
    f.list(d, &[FileMeta { parent_id: Some(id("d")), ..file("1", "a", 1) }]);
    let a = f.tree.child(d, "a").unwrap();
    assert!(f.tree.is_below(a, d) && f.tree.is_below(d, d) && !f.tree.is_below(d, a));
    f.tree
        .moved(d, e, &name("d2"), FileMeta { parent_id: Some(id("e")), ..folder("d", "d2") }, f.now)
        .unwrap();
    assert_eq!(f.tree.display_path(a), "/e/d2/a");
    assert!(f.tree.is_below(a, e));
    check(&f.tree);
}

#[test]
fn a_folder_with_unsaved_files_outlives_its_name() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[folder("d", "d")]);
    let d = f.child("d");
    let a = f.create(d, "a");
    f.tree.pin(a).unwrap();
    f.list(Ino::ROOT, &[]);
    assert_eq!(f.names(Ino::ROOT), [""; 0]);
    assert_eq!(f.tree.place(a).unwrap().parent_id, id("d"));
    check(&f.tree);
    f.tree.discard(a, f.now);
    assert!(f.tree.stat(d).is_err());
    f.tree.unpin(a);
    assert!(f.tree.stat(a).is_err());
    check(&f.tree);
}

#[test]
fn a_removed_folder_takes_nothing_new_and_has_nothing() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[folder("d", "d")]);
    let d = f.child("d");
    assert!(f.tree.count_lookup(d));
    f.tree.unlink(d, f.now);
    assert_eq!(f.tree.find(d, "x", f.now).unwrap(), Found::Absent);
    let made = f.tree.create_local(d, &name("x"), f.now, (SystemTime::UNIX_EPOCH, None));
    assert_eq!(made.unwrap_err().kind(), ErrorKind::NotFound);
    f.tree.forget(d, 1);
    check(&f.tree);
}

#[test]
fn a_new_folder_is_known_to_be_empty() {
    let mut f = Fixture::new();
    let d = f.tree.insert(Ino::ROOT, &name("d"), folder("d", "d"), f.now).unwrap();
    assert_eq!(f.tree.find(d, "x", f.now).unwrap(), Found::Absent);
    check(&f.tree);
}

#[test]
fn what_the_drive_tells_of_one_object_moves_it() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[folder("d", "d"), file("1", "a", 1)]);
    let a = f.child("a");
    f.pass_time(20);
    assert!(f.tree.attrs_fresh_for(a, f.now).is_zero());
    f.tree.observe(FileMeta { size: 77, ..file("1", "a", 1) }, f.now);
    assert_eq!((f.tree.attrs_fresh_for(a, f.now), f.tree.stat(a).unwrap().size), (TTL, 77));
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), Found::Fresh(a));
    f.tree.observe(FileMeta { parent_id: Some(id("d")), ..file("1", "b", 1) }, f.now);
    assert_eq!(f.tree.display_path(a), "/d/b");
    f.tree.vanished(&id("1"));
    assert!(f.tree.stat(a).is_err());
    check(&f.tree);
}

#[test]
fn an_answer_that_was_asked_for_before_a_change_does_not_undo_it() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    let (a, asked_at) = (f.child("a"), f.now);
    f.pass_time(1);
    f.tree.adopt(a, FileMeta { size: 77, ..file("1", "a", 1) }, f.now);
    f.tree.observe(file("1", "a", 1), asked_at);
    assert_eq!(f.tree.stat(a).unwrap().size, 77);
    f.tree.observe(FileMeta { size: 78, ..file("1", "a", 1) }, f.now);
    assert_eq!(f.tree.stat(a).unwrap().size, 78);
    check(&f.tree);
}

#[test]
fn unused_inodes_are_given_up_when_there_are_too_many() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[folder("d", "d"), folder("e", "e")]);
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
    assert_eq!(f.tree.find(d, "f8", f.now).unwrap(), Found::Unknown);
    check(&f.tree);
}

#[test]
fn a_file_that_is_another_one_now_has_another_inode_at_its_place() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("a", "a", 1), file("b", "b", 1)]);
    let (old, other) = (f.child("a"), f.child("b"));
    assert!(f.tree.count_lookup(old));
    f.tree.pin(old).unwrap();
    let former = f.tree.meta(old).cloned().unwrap();
    f.tree.observe(FileMeta { size: 7, ..former.clone() }, f.now);
    assert!(f.tree.renew(old, former.clone()));
    let new = f.child("a");
    assert!(new != old && f.child("b") == other);
    assert_eq!((f.tree.meta(new).unwrap().size, f.tree.meta(old)), (7, Some(&former)));
    assert_eq!((f.tree.stat(new).unwrap().nlink, f.tree.stat(old).unwrap().nlink), (1, 0));
    // Listings go on with the new one, and the old one goes with who refers to it.
    f.list(Ino::ROOT, &[file("a", "a2", 1), file("b", "b", 1)]);
    assert_eq!(f.child("a2"), new);
    f.tree.unpin(old);
    f.tree.forget(old, 1);
    assert!(f.tree.stat(old).is_err());
    // What is not on the drive as it is here, or is no file, stays what it is.
    f.tree.mark_unsaved(new);
    assert!(!f.tree.renew(new, former.clone()) && !f.tree.renew(Ino::ROOT, former.clone()));
    let unsaved = f.create(Ino::ROOT, "c");
    assert!(!f.tree.renew(unsaved, former));
}
