//! Random operations on a tree against a simple model: objects on the drive and unsaved files.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    /// Another client creates a file.
    RemoteAdd {
        name: usize,
    },
    /// Another client removes a file.
    RemoteRemove {
        which: usize,
    },
    /// Another client renames a file.
    RemoteRename {
        which: usize,
        name: usize,
    },
    List,
    /// Two pages with another operation between them.
    ListAround {
        cut: usize,
    },
    Wait {
        seconds: u64,
    },
    Create {
        name: usize,
    },
    Commit {
        which: usize,
    },
    Unlink {
        which: usize,
    },
    RenameUnsaved {
        which: usize,
        name: usize,
    },
    Rename {
        which: usize,
        name: usize,
    },
    Lookup {
        which: usize,
    },
    Forget {
        which: usize,
    },
    Pin {
        which: usize,
    },
    Unpin {
        which: usize,
    },
}

const NAMES: [&str; 6] = ["a", "a (2)", "b.txt", "b (2).txt", ".", "c/d"];

fn op() -> impl Strategy<Value = Op> {
    let which = 0_usize..1000;
    let name = 0_usize..1000;
    prop_oneof![
        3 => name.clone().prop_map(|name| Op::RemoteAdd { name }),
        1 => which.clone().prop_map(|which| Op::RemoteRemove { which }),
        1 => (which.clone(), name.clone()).prop_map(|(which, name)| Op::RemoteRename { which, name }),
        3 => Just(Op::List),
        1 => which.clone().prop_map(|cut| Op::ListAround { cut }),
        2 => (1_u64..40).prop_map(|seconds| Op::Wait { seconds }),
        2 => name.clone().prop_map(|name| Op::Create { name }),
        2 => which.clone().prop_map(|which| Op::Commit { which }),
        1 => which.clone().prop_map(|which| Op::Unlink { which }),
        1 => (which.clone(), name.clone()).prop_map(|(which, name)| Op::RenameUnsaved { which, name }),
        1 => (which.clone(), name).prop_map(|(which, name)| Op::Rename { which, name }),
        2 => which.clone().prop_map(|which| Op::Lookup { which }),
        1 => which.clone().prop_map(|which| Op::Forget { which }),
        1 => which.clone().prop_map(|which| Op::Pin { which }),
        1 => which.prop_map(|which| Op::Unpin { which }),
    ]
}

/// The expected state.
#[derive(Default)]
struct Facts {
    remote: BTreeMap<FileId, FileMeta>,
    unsaved: BTreeSet<Ino>,
    lookups: BTreeMap<Ino, u64>,
    pins: BTreeMap<Ino, u64>,
    made: u64,
    /// The object behind an inode while the kernel knew it.
    known: BTreeMap<Ino, FileId>,
}

struct Model {
    f: Fixture,
    facts: Facts,
}

impl Model {
    fn items(&self) -> Vec<FileMeta> {
        self.facts.remote.values().cloned().collect()
    }

    fn pick(&self, which: usize) -> Option<Ino> {
        let all = self.f.tree.snapshot(Ino::ROOT).unwrap();
        (!all.is_empty()).then(|| all[which % all.len()].ino)
    }

    fn local_name(n: usize) -> Name {
        name(NAMES[n % 4])
    }

    fn new_id(&mut self) -> FileId {
        self.facts.made += 1;
        id(&format!("id{}", self.facts.made))
    }

    fn remote_nth(&self, which: usize) -> Option<FileId> {
        let count = self.facts.remote.len();
        (count > 0).then(|| self.facts.remote.keys().nth(which % count).unwrap().clone())
    }

    fn apply(&mut self, op: &Op) {
        self.f.now += Duration::from_millis(1);
        match *op {
            Op::RemoteAdd { name } => {
                let file_id = self.new_id();
                let meta = file(file_id.as_str(), NAMES[name % NAMES.len()], self.facts.made / 2);
                self.facts.remote.insert(file_id, meta);
            }
            Op::RemoteRemove { which } => {
                if let Some(file_id) = self.remote_nth(which) {
                    self.facts.remote.remove(&file_id);
                }
            }
            Op::RemoteRename { which, name } => {
                if let Some(file_id) = self.remote_nth(which) {
                    NAMES[name % NAMES.len()]
                        .clone_into(&mut self.facts.remote.get_mut(&file_id).unwrap().name);
                }
            }
            Op::List => self.list(),
            Op::ListAround { cut } => self.list_around(cut),
            Op::Wait { seconds } => self.f.pass_time(seconds),
            Op::Create { name } => {
                let name = Self::local_name(name);
                if self.f.tree.child(Ino::ROOT, name.as_str()).is_none() {
                    self.facts.unsaved.insert(self.f.create(Ino::ROOT, name.as_str()));
                }
            }
            Op::Commit { which } => self.commit(which),
            Op::Unlink { which } => self.unlink(which),
            Op::RenameUnsaved { which, name } => self.rename_unsaved(which, &Self::local_name(name)),
            Op::Rename { which, name } => self.rename(which, &Self::local_name(name)),
            Op::Lookup { which } => {
                if let Some(ino) = self.pick(which) {
                    assert!(self.f.tree.count_lookup(ino));
                    *self.facts.lookups.entry(ino).or_default() += 1;
                }
            }
            Op::Forget { which } => {
                let count = self.facts.lookups.len().max(1);
                if let Some((&ino, &lookups)) = self.facts.lookups.iter().nth(which % count) {
                    self.facts.lookups.remove(&ino);
                    self.f.tree.forget(ino, lookups);
                }
            }
            Op::Pin { which } => {
                if let Some(ino) = self.pick(which) {
                    self.f.tree.pin(ino).unwrap();
                    *self.facts.pins.entry(ino).or_default() += 1;
                }
            }
            Op::Unpin { which } => {
                let count = self.facts.pins.len().max(1);
                if let Some((&ino, &pins)) = self.facts.pins.iter().nth(which % count) {
                    if pins == 1 {
                        self.facts.pins.remove(&ino);
                    } else {
                        self.facts.pins.insert(ino, pins - 1);
                    }
                    self.f.tree.unpin(ino);
                }
            }
        }
    }

    fn confirm(&mut self, unconfirmed: &[FileId]) {
        for file_id in unconfirmed {
            match self.facts.remote.get(file_id) {
                Some(meta) => self.f.tree.merge_object(meta.clone(), self.f.now),
                None => self.f.tree.removed_elsewhere(file_id),
            }
        }
    }

    fn list(&mut self) {
        let items = self.items();
        let unconfirmed = self.f.list(Ino::ROOT, &items);
        self.confirm(&unconfirmed);
    }

    fn list_around(&mut self, cut: usize) {
        let mut items = self.items();
        let listing = self.f.tree.begin_listing(Ino::ROOT, self.f.now).unwrap();
        let rest = items.split_off(cut % (items.len() + 1));
        let mut shown = self.f.tree.merge_page(&listing, items, self.f.now);
        self.unlink(cut);
        self.f.now += Duration::from_millis(1);
        shown.extend(self.f.tree.merge_page(&listing, rest, self.f.now));
        let merged = self.f.tree.end_listing(&listing, self.f.now).unwrap();
        shown.extend(merged.unlisted);
        // `readdir` skips entries that are gone by now.
        shown.retain(|listed| self.f.tree.child(Ino::ROOT, &listed.name) == Some(listed.ino));
        // No entry is shown twice, and every existing entry is shown.
        let names: BTreeSet<_> = shown.iter().map(|listed| listed.name.clone()).collect();
        assert_eq!(names.len(), shown.len(), "{shown:?}");
        for listed in self.f.tree.snapshot(Ino::ROOT).unwrap() {
            assert!(shown.contains(&listed), "{listed:?} was not shown: {shown:?}");
        }
        self.confirm(&merged.unconfirmed);
    }

    fn commit(&mut self, which: usize) {
        let count = self.facts.unsaved.len();
        let Some(&ino) = self.facts.unsaved.iter().nth(which % count.max(1)) else { return };
        self.facts.unsaved.remove(&ino);
        let location = self.f.tree.location(ino).unwrap();
        let file_id = match self.f.tree.replaces(ino) {
            Some(meta) => meta.file_id.clone(),
            None => match self.f.tree.identity(ino) {
                Some(Identity::Remote(file_id)) => file_id,
                _ => self.new_id(),
            },
        };
        let meta = file(file_id.as_str(), &location.name, self.facts.made);
        if let Some(Identity::Remote(old)) = self.f.tree.identity(ino) {
            self.facts.remote.remove(&old);
        }
        self.facts.remote.insert(file_id, meta.clone());
        self.f.tree.adopt(ino, meta, self.f.now).unwrap();
    }

    fn unlink(&mut self, which: usize) {
        let Some(ino) = self.pick(which) else { return };
        self.facts.unsaved.remove(&ino);
        if let Some(Identity::Remote(file_id)) = self.f.tree.identity(ino) {
            self.facts.remote.remove(&file_id);
        }
        if let Some(replaced) = self.f.tree.unlink(ino, self.f.now) {
            self.facts.remote.remove(&replaced.file_id);
        }
    }

    fn rename_unsaved(&mut self, which: usize, name: &Name) {
        let count = self.facts.unsaved.len();
        let Some(&ino) = self.facts.unsaved.iter().nth(which % count.max(1)) else { return };
        if let Some(target) = self.f.tree.child(Ino::ROOT, name.as_str())
            && target != ino
        {
            self.facts.unsaved.remove(&target);
        }
        for meta in self.f.tree.rename_unsaved(ino, Ino::ROOT, name, self.f.now).unwrap() {
            self.facts.remote.remove(&meta.file_id);
            self.f.tree.add_tombstone(meta.file_id, self.f.now);
        }
    }

    fn rename(&mut self, which: usize, name: &Name) {
        let Some(ino) = self.pick(which) else { return };
        let Some(Identity::Remote(file_id)) = self.f.tree.identity(ino) else { return };
        if self.f.tree.child(Ino::ROOT, name.as_str()).is_some() || self.facts.unsaved.contains(&ino) {
            return;
        }
        let Some(meta) = self.facts.remote.get_mut(&file_id) else { return };
        name.as_str().clone_into(&mut meta.name);
        self.f.tree.moved(ino, Ino::ROOT, name, meta.clone(), self.f.now).unwrap();
    }

    fn check_facts(&mut self) {
        check(&self.f.tree);
        for (&ino, &lookups) in &self.facts.lookups {
            assert_eq!(self.f.tree.inodes[&ino].lookups, lookups);
        }
        for (&ino, &pins) in &self.facts.pins {
            assert_eq!(self.f.tree.inodes[&ino].pins, pins);
        }
        for &ino in &self.facts.unsaved {
            assert!(self.f.tree.location(ino).is_some(), "{ino} is unsaved and has no location");
        }
        // An inode that the kernel knows keeps its object until this mount removes it.
        let known: Vec<_> = self.facts.lookups.keys().copied().collect();
        for ino in known {
            if let Some(Identity::Remote(file_id)) = self.f.tree.identity(ino) {
                self.facts.known.insert(ino, file_id.clone());
                assert_eq!(self.f.tree.ino_of(&file_id), Some(ino));
            }
        }
    }

    /// After a pause, a listing shows exactly the model.
    fn check_after_pause(&mut self) {
        self.f.pass_time(3600);
        self.list();
        self.f.pass_time(3600);
        self.list();
        check(&self.f.tree);
        let tree = &self.f.tree;
        let shown = tree.snapshot(Ino::ROOT).unwrap();
        let names: BTreeSet<_> = shown.iter().map(|l| &l.name).collect();
        assert_eq!(names.len(), shown.len());
        let mut objects: BTreeSet<FileId> = BTreeSet::new();
        for listed in &shown {
            if self.facts.unsaved.contains(&listed.ino) {
                continue;
            }
            let Some(Identity::Remote(file_id)) = tree.identity(listed.ino) else {
                panic!("{listed:?} has no object")
            };
            let meta = &self.facts.remote[&file_id];
            let plain = super::super::name::display_name(&meta.name, meta.kind);
            let is_plain = *plain == *listed.name;
            let is_numbered =
                super::super::name::disambiguation_number(&listed.name, &plain, meta.kind).is_some();
            assert!(is_plain || is_numbered, "{:?} is shown as {:?}", meta.name, listed.name);
            objects.insert(file_id);
        }
        for (file_id, meta) in &self.facts.remote {
            let plain = super::super::name::display_name(&meta.name, meta.kind);
            let is_represented = tree.replacing.contains_key(file_id)
                || self.facts.unsaved.iter().any(|&ino| {
                    tree.identity(ino) == Some(Identity::Remote(file_id.clone()))
                        || Some(ino) == tree.child(Ino::ROOT, &plain)
                });
            assert!(objects.contains(file_id) || is_represented, "{meta:?} is hidden");
        }
        for ino in &self.facts.unsaved {
            assert!(shown.iter().any(|l| l.ino == *ino), "unsaved {ino} is hidden");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn tree_agrees_with_the_model(ops in proptest::collection::vec(op(), 1..60)) {
        let mut model = Model { f: Fixture::new(), facts: Facts::default() };
        for op in &ops {
            model.apply(op);
            model.check_facts();
        }
        model.check_after_pause();
    }
}
