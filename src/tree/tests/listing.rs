//! Listings against own changes, and siblings of one name.

use super::*;

#[test]
fn an_object_keeps_its_inode_through_listings_and_renames() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1), file("2", "b", 1)]);
    let (a, b) = (f.child("a"), f.child("b"));
    f.list(Ino::ROOT, &[file("1", "b", 1), file("2", "a", 1)]);
    assert_eq!((f.child("b"), f.child("a")), (a, b));
    check(&f.tree);
}

#[test]
fn the_newest_of_siblings_keeps_the_plain_name() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("x", "a.txt", 1), file("y", "a.txt", 3), file("z", "a.txt", 2)]);
    assert_eq!(f.names(Ino::ROOT), ["a (2).txt", "a (3).txt", "a.txt"]);
    assert_eq!([f.id_of("a.txt"), f.id_of("a (2).txt"), f.id_of("a (3).txt")], ["y", "x", "z"]);
    let y = f.child("a.txt");
    // A newer one takes the plain name and nobody but its holder changes.
    let four = [file("x", "a.txt", 1), file("y", "a.txt", 3), file("z", "a.txt", 2), file("new", "a.txt", 9)];
    f.list(Ino::ROOT, &four);
    assert_eq!(f.id_of("a.txt"), "new");
    assert_eq!([f.id_of("a (2).txt"), f.id_of("a (3).txt"), f.id_of("a (4).txt")], ["x", "z", "y"]);
    assert_eq!(f.child("a (4).txt"), y);
    // Numbers stay when others go.
    f.list(Ino::ROOT, &four[1..]);
    assert_eq!(f.names(Ino::ROOT), ["a (3).txt", "a (4).txt", "a.txt"]);
    // The true name is what the drive is told.
    assert_eq!(&*f.tree.place(y).unwrap().name, "a.txt");
    check(&f.tree);
}

#[test]
fn the_order_of_a_listing_does_not_name_siblings() {
    let items = [file("x", "a", 1), file("y", "a", 1), file("z", "a", 2)];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut f = Fixture::new();
        f.list(Ino::ROOT, &order.map(|n| items[n].clone()));
        assert_eq!([f.id_of("a"), f.id_of("a (2)"), f.id_of("a (3)")], ["z", "x", "y"], "{order:?}");
    }
}

#[test]
fn a_literal_number_is_not_taken_from_its_owner() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("l", "a (2).txt", 1), file("x", "a.txt", 1), file("y", "a.txt", 2)]);
    assert_eq!(f.id_of("a (2).txt"), "l");
    assert_eq!(f.id_of("a (3).txt"), "x");
    check(&f.tree);
}

#[test]
fn siblings_over_pages_keep_what_the_first_page_showed() {
    let mut f = Fixture::new();
    let pass = f.tree.begin_pass(Ino::ROOT, f.now).unwrap();
    let first = f.tree.merge_page(&pass, vec![file("old", "a", 1)], f.now);
    let second = f.tree.merge_page(&pass, vec![file("new", "a", 2)], f.now);
    f.tree.end_pass(&pass, f.now).unwrap();
    assert_eq!((&*first[0].name, &*second[0].name), ("a", "a (2)"));
    assert_eq!(f.names(Ino::ROOT), ["a", "a (2)"]);
    check(&f.tree);
}

#[test]
fn overlapping_pages_show_an_entry_once() {
    let mut f = Fixture::new();
    let pass = f.tree.begin_pass(Ino::ROOT, f.now).unwrap();
    let pages = [
        vec![file("1", "a", 1), file("1", "a", 1), file("2", "a", 2)],
        vec![file("2", "a", 2), file("1", "a", 1), file("3", "b", 1)],
    ];
    let shown: Vec<_> = pages.into_iter().flat_map(|page| f.tree.merge_page(&pass, page, f.now)).collect();
    f.tree.end_pass(&pass, f.now).unwrap();
    assert_eq!(shown.iter().map(|l| &*l.name).collect::<Vec<_>>(), ["a", "a (2)", "b"]);
    assert_eq!(f.names(Ino::ROOT), ["a", "a (2)", "b"]);
    check(&f.tree);
}

#[test]
fn a_new_object_under_the_name_of_one_that_is_gone_takes_the_name() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("old", "a", 1)]);
    let pass = f.tree.begin_pass(Ino::ROOT, f.now).unwrap();
    let listed = f.tree.merge_page(&pass, vec![file("new", "a", 2)], f.now);
    assert_eq!(&*listed[0].name, "a");
    f.tree.end_pass(&pass, f.now).unwrap();
    assert_eq!((f.names(Ino::ROOT), f.id_of("a")), (vec!["a".to_owned()], "new".to_owned()));
    check(&f.tree);
}

#[test]
fn what_was_removed_here_does_not_come_back_from_an_old_listing() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    f.tree.unlink(f.child("a"), f.now);
    assert!(f.tree.is_removed(Ino::ROOT, &id("1"), f.now));
    f.pass_time(5);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), Found::Absent);
    // Whoever shows it much later has restored it.
    f.pass_time(60);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    assert_eq!(f.id_of("a"), "1");
}

#[test]
fn what_was_moved_away_here_does_not_come_back_either() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[folder("d", "d"), file("1", "a", 1)]);
    let (d, a) = (f.child("d"), f.child("a"));
    let moved = FileMeta { parent_id: Some(id("d")), ..file("1", "a", 1) };
    f.tree.moved(a, d, &name("a"), moved.clone(), f.now).unwrap();
    f.list(Ino::ROOT, &[folder("d", "d"), file("1", "a", 1)]);
    f.list(d, &[]);
    assert_eq!((f.names(Ino::ROOT), f.names(d)), (vec!["d".to_owned()], vec!["a".to_owned()]));
    assert!(f.tree.is_removed(Ino::ROOT, &id("1"), f.now) && !f.tree.is_removed(d, &id("1"), f.now));
    f.pass_time(60);
    f.list(Ino::ROOT, &[folder("d", "d"), file("1", "a", 1)]);
    assert_eq!(f.tree.parent(a), Some(Ino::ROOT), "somebody moved it back");
    check(&f.tree);
}

#[test]
fn a_listing_that_began_before_a_change_does_not_undo_it() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    f.pass_time(100);
    let pass = f.tree.begin_pass(Ino::ROOT, f.now).unwrap();
    // The listing takes longer than the grace.
    f.pass_time(1);
    let a = f.child("a");
    f.tree.moved(a, Ino::ROOT, &name("b"), file("1", "b", 1), f.now).unwrap();
    f.pass_time(60);
    let listed = f.tree.merge_page(&pass, vec![file("1", "a", 1)], f.now);
    f.tree.end_pass(&pass, f.now).unwrap();
    assert_eq!((f.names(Ino::ROOT), &*listed[0].name), (vec!["b".to_owned()], "b"));
    check(&f.tree);
}

#[test]
fn of_two_listings_that_disagree_the_later_is_right() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[folder("d", "d"), file("1", "a", 1)]);
    let d = f.child("d");
    let old = f.tree.begin_pass(Ino::ROOT, f.now).unwrap();
    f.pass_time(1);
    f.list(d, &[FileMeta { parent_id: Some(id("d")), ..file("1", "a", 1) }]);
    f.tree.merge_page(&old, vec![folder("d", "d"), file("1", "a", 1)], f.now);
    f.tree.end_pass(&old, f.now).unwrap();
    assert_eq!((f.names(Ino::ROOT), f.names(d)), (vec!["d".to_owned()], vec!["a".to_owned()]));
    check(&f.tree);
}

#[test]
fn what_was_made_here_stays_until_its_absence_is_confirmed() {
    let mut f = Fixture::new();
    let a = f.create(Ino::ROOT, "a");
    f.tree.adopt(a, file("1", "a", 1), f.now);
    assert!(f.list(Ino::ROOT, &[]).is_empty(), "too early to ask");
    assert_eq!(f.names(Ino::ROOT), ["a"]);
    f.pass_time(11);
    assert_eq!(f.list(Ino::ROOT, &[]), [id("1")]);
    assert_eq!(f.names(Ino::ROOT), ["a"]);
    // It exists: the drive is slow, so the next question comes later.
    f.tree.observe(file("1", "a", 1), f.now);
    assert!(f.list(Ino::ROOT, &[]).is_empty());
    f.pass_time(20);
    assert_eq!(f.list(Ino::ROOT, &[]), [id("1")]);
    f.tree.vanished(&id("1"));
    assert_eq!(f.names(Ino::ROOT), [""; 0]);
    check(&f.tree);
}

#[test]
fn what_a_listing_has_shown_once_goes_when_it_is_no_longer_shown() {
    let mut f = Fixture::new();
    let a = f.create(Ino::ROOT, "a");
    f.tree.adopt(a, file("1", "a", 1), f.now);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    f.pass_time(11);
    assert!(f.list(Ino::ROOT, &[]).is_empty());
    assert_eq!(f.names(Ino::ROOT), [""; 0]);
}

#[test]
fn unsaved_files_stand_before_objects_of_their_name() {
    let mut f = Fixture::new();
    let mine = f.create(Ino::ROOT, "a");
    f.list(Ino::ROOT, &[file("1", "a", 1), file("2", "b", 1)]);
    assert_eq!((f.names(Ino::ROOT), f.child("a")), (vec!["a".to_owned(), "b".to_owned()], mine));
    f.pass_time(100);
    f.list(Ino::ROOT, &[]);
    assert_eq!(f.names(Ino::ROOT), ["a"]);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    // Without it the folder has to be asked again, and shows what stood behind.
    f.tree.unlink(mine, f.now);
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), Found::Unknown);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    assert_eq!(f.id_of("a"), "1");
    check(&f.tree);
}

#[test]
fn an_existing_file_with_unsaved_content_outlives_its_removal_elsewhere() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    let a = f.child("a");
    f.tree.mark_unsaved(a);
    f.pass_time(60);
    f.list(Ino::ROOT, &[]);
    f.tree.vanished(&id("1"));
    assert_eq!(f.child("a"), a);
    check(&f.tree);
}

#[test]
fn what_is_being_moved_is_left_alone() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    let a = f.child("a");
    f.pass_time(60);
    f.tree.hold(a);
    f.list(Ino::ROOT, &[file("1", ".private", 1)]);
    f.list(Ino::ROOT, &[]);
    assert_eq!(f.names(Ino::ROOT), ["a"]);
    f.tree.release(a);
    f.list(Ino::ROOT, &[file("1", "b", 1)]);
    assert_eq!(f.names(Ino::ROOT), ["b"]);
}

#[test]
fn a_folder_below_itself_is_not_shown() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[folder("d", "d")]);
    let d = f.child("d");
    f.list(d, &[folder("d", "again"), folder("root", "root"), folder("e", "e")]);
    assert_eq!(f.names(d), ["e"]);
    check(&f.tree);
}

#[test]
fn large_folders_are_believed_longer() {
    for (count, elapsed, fresh_for) in [(10, 6, 15), (1000, 1, 15), (1000, 5, 50), (1000, 100, 60)] {
        let mut f = Fixture::new();
        let items = (0..count).map(|n| file(&format!("f{n}"), &format!("f{n}"), 1)).collect();
        let pass = f.tree.begin_pass(Ino::ROOT, f.now).unwrap();
        let begun = f.now;
        f.tree.merge_page(&pass, items, f.now);
        f.tree.end_pass(&pass, f.now + Duration::from_secs(elapsed)).unwrap();
        assert!(f.tree.is_listing_fresh(Ino::ROOT, begun + Duration::from_secs(fresh_for - 1)));
        assert!(!f.tree.is_listing_fresh(Ino::ROOT, begun + Duration::from_secs(fresh_for)));
    }
}

#[test]
fn distrust_outweighs_a_listing_that_is_under_way() {
    let mut f = Fixture::new();
    let pass = f.tree.begin_pass(Ino::ROOT, f.now).unwrap();
    f.pass_time(1);
    f.tree.distrust(Ino::ROOT, f.now);
    f.tree.end_pass(&pass, f.now).unwrap();
    assert!(!f.tree.is_listing_fresh(Ino::ROOT, f.now));
    f.list(Ino::ROOT, &[]);
    assert!(f.tree.is_listing_fresh(Ino::ROOT, f.now));
}

#[test]
fn ten_thousand_entries_cost_little() {
    let mut f = Fixture::new();
    let items: Vec<_> =
        (0..10_000).map(|n| file(&format!("{n:040}"), &format!("IMG_{n:06}.jpg"), n)).collect();
    let same: Vec<_> = (0..10_000).map(|n| file(&format!("x{n:039}"), "same.jpg", n)).collect();
    let begun = Instant::now();
    f.list(Ino::ROOT, &items);
    f.list(Ino::ROOT, &items);
    f.list(Ino::ROOT, &same);
    assert_eq!(f.tree.entry_count(Ino::ROOT), 10_000);
    // Far above what it takes, far below what anything quadratic takes.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    check(&f.tree);
}
