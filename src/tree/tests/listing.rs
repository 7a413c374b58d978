//! Listings against changes by this mount, and siblings with equal names.

use super::*;

#[test]
fn object_keeps_its_inode_across_listings() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1), file("2", "b", 1)]);
    let (a, b) = (f.child("a"), f.child("b"));
    f.list(Ino::ROOT, &[file("1", "b", 1), file("2", "a", 1)]);
    assert_eq!((f.child("b"), f.child("a")), (a, b));
    check(&f.tree);
}

#[test]
fn newest_sibling_keeps_the_plain_name() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("x", "a.txt", 1), file("y", "a.txt", 3), file("z", "a.txt", 2)]);
    assert_eq!(f.names(Ino::ROOT), ["a (2).txt", "a (3).txt", "a.txt"]);
    assert_eq!([f.id_of("a.txt"), f.id_of("a (2).txt"), f.id_of("a (3).txt")], ["y", "x", "z"]);
    let y = f.child("a.txt");
    // A newer sibling takes the plain name. Only the former holder is renamed.
    let four = [file("x", "a.txt", 1), file("y", "a.txt", 3), file("z", "a.txt", 2), file("new", "a.txt", 9)];
    f.list(Ino::ROOT, &four);
    assert_eq!(f.id_of("a.txt"), "new");
    assert_eq!([f.id_of("a (2).txt"), f.id_of("a (3).txt"), f.id_of("a (4).txt")], ["x", "z", "y"]);
    assert_eq!(f.child("a (4).txt"), y);
    // Numbers stay when other siblings go.
    f.list(Ino::ROOT, &four[1..]);
    assert_eq!(f.names(Ino::ROOT), ["a (3).txt", "a (4).txt", "a.txt"]);
    // The drive gets the remote name.
    assert_eq!(&*f.tree.location(y).unwrap().name, "a.txt");
    check(&f.tree);
}

#[test]
fn listing_order_does_not_affect_sibling_names() {
    let items = [file("x", "a", 1), file("y", "a", 1), file("z", "a", 2)];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut f = Fixture::new();
        f.list(Ino::ROOT, &order.map(|n| items[n].clone()));
        assert_eq!([f.id_of("a"), f.id_of("a (2)"), f.id_of("a (3)")], ["z", "x", "y"], "{order:?}");
    }
}

/// The lookups of numbered names in a listing with these pages.
fn number_lookups(f: &mut Fixture, pages: impl Iterator<Item = Vec<FileMeta>>) -> u64 {
    let before = f.tree.number_lookups;
    let listing = f.tree.begin_listing(Ino::ROOT, f.now).unwrap();
    for page in pages {
        f.tree.merge_page(&listing, page, f.now);
    }
    f.tree.end_listing(&listing, f.now).unwrap();
    f.pass_time(100);
    f.tree.number_lookups - before
}

#[test]
fn regression_many_siblings_need_few_lookups() {
    let mut f = Fixture::new();
    let sibling = |n: u64| file(&format!("id{n}"), "a", n);
    let pages = |count: u64| (0..count).map(move |page| (page * 10..page * 10 + 10).map(sibling).collect());
    let lookups = number_lookups(&mut f, pages(200));
    assert!(lookups <= 2000, "{lookups} lookups for 2,000 siblings");
    assert_eq!(f.tree.entry_count(Ino::ROOT), 2000);
    // The next listing numbers only what is new.
    let lookups = number_lookups(&mut f, pages(201));
    assert!(lookups <= 2020, "{lookups} lookups for 10 new siblings");
    // Names that are shortened to the same one share the search.
    let mut f = Fixture::new();
    let long = |n: u64| {
        let name = format!("{}{n:04}", "x".repeat(251));
        vec![file(&format!("a{n}"), &name, 1), file(&format!("b{n}"), &name, 2)]
    };
    let lookups = number_lookups(&mut f, (0..1000).map(long));
    assert!(lookups <= 1000, "{lookups} lookups for 1,000 pairs of siblings");
    check(&f.tree);
}

#[test]
fn freed_number_is_used_by_a_later_listing() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("x", "a", 1), file("y", "a", 2), file("z", "a", 3)]);
    f.pass_time(100);
    f.list(Ino::ROOT, &[file("y", "a", 2), file("z", "a", 3)]);
    assert_eq!(f.names(Ino::ROOT), ["a", "a (3)"]);
    f.pass_time(100);
    f.list(Ino::ROOT, &[file("w", "a", 0), file("y", "a", 2), file("z", "a", 3)]);
    assert_eq!([f.id_of("a (2)"), f.id_of("a (3)")], ["w", "y"]);
}

#[test]
fn literal_number_stays_with_its_file() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("l", "a (2).txt", 1), file("x", "a.txt", 1), file("y", "a.txt", 2)]);
    assert_eq!(f.id_of("a (2).txt"), "l");
    assert_eq!(f.id_of("a (3).txt"), "x");
    check(&f.tree);
}

#[test]
fn later_page_does_not_rename_siblings() {
    let mut f = Fixture::new();
    let listing = f.tree.begin_listing(Ino::ROOT, f.now).unwrap();
    let first = f.tree.merge_page(&listing, vec![file("old", "a", 1)], f.now);
    let second = f.tree.merge_page(&listing, vec![file("new", "a", 2)], f.now);
    f.tree.end_listing(&listing, f.now).unwrap();
    assert_eq!((&*first[0].name, &*second[0].name), ("a", "a (2)"));
    assert_eq!(f.names(Ino::ROOT), ["a", "a (2)"]);
    check(&f.tree);
}

#[test]
fn overlapping_pages_show_an_entry_once() {
    let mut f = Fixture::new();
    let listing = f.tree.begin_listing(Ino::ROOT, f.now).unwrap();
    let pages = [
        vec![file("1", "a", 1), file("1", "a", 1), file("2", "a", 2)],
        vec![file("2", "a", 2), file("1", "a", 1), file("3", "b", 1)],
    ];
    let shown: Vec<_> = pages.into_iter().flat_map(|page| f.tree.merge_page(&listing, page, f.now)).collect();
    f.tree.end_listing(&listing, f.now).unwrap();
    assert_eq!(shown.iter().map(|l| &*l.name).collect::<Vec<_>>(), ["a", "a (2)", "b"]);
    assert_eq!(f.names(Ino::ROOT), ["a", "a (2)", "b"]);
    check(&f.tree);
}

#[test]
fn new_object_takes_the_name_of_a_removed_one() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("old", "a", 1)]);
    let listing = f.tree.begin_listing(Ino::ROOT, f.now).unwrap();
    let listed = f.tree.merge_page(&listing, vec![file("new", "a", 2)], f.now);
    assert_eq!(&*listed[0].name, "a");
    f.tree.end_listing(&listing, f.now).unwrap();
    assert_eq!((f.names(Ino::ROOT), f.id_of("a")), (vec!["a".to_owned()], "new".to_owned()));
    check(&f.tree);
}

#[test]
fn lagging_listing_does_not_restore_removed_file() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    f.tree.unlink(f.child("a"), f.now);
    assert!(f.tree.is_removed(Ino::ROOT, &file("1", "a", 1), f.now));
    f.pass_time(5);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), NameState::Absent);
    // A listing that shows it much later means that it was restored.
    f.pass_time(60);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    assert_eq!(f.id_of("a"), "1");
}

#[test]
fn lagging_listing_does_not_move_file_back() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[directory("d", "d"), file("1", "a", 1)]);
    let (d, a) = (f.child("d"), f.child("a"));
    let moved = FileMeta { parent_id: Some(id("d")), ..file("1", "a", 1) };
    f.tree.moved(a, d, &name("a"), moved.clone(), f.now).unwrap();
    f.list(Ino::ROOT, &[directory("d", "d"), file("1", "a", 1)]);
    f.list(d, &[]);
    assert_eq!((f.names(Ino::ROOT), f.names(d)), (vec!["d".to_owned()], vec!["a".to_owned()]));
    assert!(f.tree.is_removed(Ino::ROOT, &moved, f.now) && !f.tree.is_removed(d, &moved, f.now));
    f.pass_time(60);
    f.list(Ino::ROOT, &[directory("d", "d"), file("1", "a", 1)]);
    assert_eq!(f.tree.parent(a), Some(Ino::ROOT), "another client moved it back");
    check(&f.tree);
}

#[test]
fn listing_begun_before_a_change_is_ignored() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    f.pass_time(100);
    let listing = f.tree.begin_listing(Ino::ROOT, f.now).unwrap();
    // The listing takes longer than the listing lag.
    f.pass_time(1);
    let a = f.child("a");
    f.tree.moved(a, Ino::ROOT, &name("b"), file("1", "b", 1), f.now).unwrap();
    f.pass_time(60);
    let listed = f.tree.merge_page(&listing, vec![file("1", "a", 1)], f.now);
    f.tree.end_listing(&listing, f.now).unwrap();
    assert_eq!((f.names(Ino::ROOT), &*listed[0].name), (vec!["b".to_owned()], "b"));
    check(&f.tree);
}

#[test]
fn later_of_two_conflicting_listings_wins() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[directory("d", "d"), file("1", "a", 1)]);
    let d = f.child("d");
    let old = f.tree.begin_listing(Ino::ROOT, f.now).unwrap();
    f.pass_time(1);
    f.list(d, &[FileMeta { parent_id: Some(id("d")), ..file("1", "a", 1) }]);
    f.tree.merge_page(&old, vec![directory("d", "d"), file("1", "a", 1)], f.now);
    f.tree.end_listing(&old, f.now).unwrap();
    assert_eq!((f.names(Ino::ROOT), f.names(d)), (vec!["d".to_owned()], vec!["a".to_owned()]));
    check(&f.tree);
}

#[test]
fn created_file_stays_until_absence_is_confirmed() {
    let mut f = Fixture::new();
    let a = f.create(Ino::ROOT, "a");
    f.tree.adopt(a, file("1", "a", 1), f.now).unwrap();
    assert!(f.list(Ino::ROOT, &[]).is_empty(), "too early for a query");
    assert_eq!(f.names(Ino::ROOT), ["a"]);
    f.pass_time(11);
    assert_eq!(f.list(Ino::ROOT, &[]), [id("1")]);
    assert_eq!(f.names(Ino::ROOT), ["a"]);
    // It exists, so the drive is slow: the next query comes later.
    f.tree.merge_object(file("1", "a", 1), f.now);
    assert!(f.list(Ino::ROOT, &[]).is_empty());
    f.pass_time(20);
    assert_eq!(f.list(Ino::ROOT, &[]), [id("1")]);
    f.tree.removed_elsewhere(&id("1"));
    assert_eq!(f.names(Ino::ROOT), [""; 0]);
    check(&f.tree);
}

#[test]
fn listed_entry_goes_when_a_listing_lacks_it() {
    let mut f = Fixture::new();
    let a = f.create(Ino::ROOT, "a");
    f.tree.adopt(a, file("1", "a", 1), f.now).unwrap();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    f.pass_time(11);
    assert!(f.list(Ino::ROOT, &[]).is_empty());
    assert_eq!(f.names(Ino::ROOT), [""; 0]);
}

#[test]
fn unsaved_file_hides_object_of_its_name() {
    let mut f = Fixture::new();
    let mine = f.create(Ino::ROOT, "a");
    f.list(Ino::ROOT, &[file("1", "a", 1), file("2", "b", 1)]);
    assert_eq!((f.names(Ino::ROOT), f.child("a")), (vec!["a".to_owned(), "b".to_owned()], mine));
    f.pass_time(100);
    f.list(Ino::ROOT, &[]);
    assert_eq!(f.names(Ino::ROOT), ["a"]);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    // Without it the directory is listed again and shows the hidden object.
    f.tree.unlink(mine, f.now);
    assert_eq!(f.tree.find(Ino::ROOT, "a", f.now).unwrap(), NameState::Unknown);
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    assert_eq!(f.id_of("a"), "1");
    check(&f.tree);
}

#[test]
fn unsaved_file_survives_remote_removal() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    let a = f.child("a");
    f.tree.mark_unsaved(a);
    f.pass_time(60);
    f.list(Ino::ROOT, &[]);
    f.tree.removed_elsewhere(&id("1"));
    assert_eq!(f.child("a"), a);
    check(&f.tree);
}

#[test]
fn listing_does_not_change_a_moving_inode() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[file("1", "a", 1)]);
    let a = f.child("a");
    f.pass_time(60);
    f.tree.begin_move(a);
    f.list(Ino::ROOT, &[file("1", ".private", 1)]);
    f.list(Ino::ROOT, &[]);
    assert_eq!(f.names(Ino::ROOT), ["a"]);
    f.tree.end_move(a);
    f.list(Ino::ROOT, &[file("1", "b", 1)]);
    assert_eq!(f.names(Ino::ROOT), ["b"]);
}

#[test]
fn directory_below_itself_is_not_shown() {
    let mut f = Fixture::new();
    f.list(Ino::ROOT, &[directory("d", "d")]);
    let d = f.child("d");
    f.list(d, &[directory("d", "again"), directory("root", "root"), directory("e", "e")]);
    assert_eq!(f.names(d), ["e"]);
    check(&f.tree);
}

#[test]
fn large_directories_stay_fresh_longer() {
    for (count, elapsed, fresh_for) in [(10, 6, 15), (1000, 1, 15), (1000, 5, 50), (1000, 100, 60)] {
        let mut f = Fixture::new();
        let items = (0..count).map(|n| file(&format!("f{n}"), &format!("f{n}"), 1)).collect();
        let listing = f.tree.begin_listing(Ino::ROOT, f.now).unwrap();
        let begun = f.now;
        f.tree.merge_page(&listing, items, f.now);
        f.tree.end_listing(&listing, f.now + Duration::from_secs(elapsed)).unwrap();
        assert!(f.tree.is_listing_fresh(Ino::ROOT, begun + Duration::from_secs(fresh_for - 1)));
        assert!(!f.tree.is_listing_fresh(Ino::ROOT, begun + Duration::from_secs(fresh_for)));
    }
}

#[test]
fn invalidation_outweighs_a_running_listing() {
    let mut f = Fixture::new();
    let listing = f.tree.begin_listing(Ino::ROOT, f.now).unwrap();
    f.pass_time(1);
    f.tree.invalidate(Ino::ROOT, f.now);
    f.tree.end_listing(&listing, f.now).unwrap();
    assert!(!f.tree.is_listing_fresh(Ino::ROOT, f.now));
    f.list(Ino::ROOT, &[]);
    assert!(f.tree.is_listing_fresh(Ino::ROOT, f.now));
}

#[test]
fn merging_ten_thousand_entries_is_fast() {
    let mut f = Fixture::new();
    let items: Vec<_> =
        (0..10_000).map(|n| file(&format!("{n:040}"), &format!("IMG_{n:06}.jpg"), n)).collect();
    let same: Vec<_> = (0..10_000).map(|n| file(&format!("x{n:039}"), "same.jpg", n)).collect();
    let begun = Instant::now();
    f.list(Ino::ROOT, &items);
    f.list(Ino::ROOT, &items);
    f.list(Ino::ROOT, &same);
    assert_eq!(f.tree.entry_count(Ino::ROOT), 10_000);
    // Far above the real time, far below quadratic behaviour.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    check(&f.tree);
}
