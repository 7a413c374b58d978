//! Fuzz targets: functions that are passed bytes as others may send them. Each panics if an invariant does not hold.
//!
//! `fuzz/` runs them with random inputs; the test below runs them with the inputs in `fuzz/corpus`. If a function
//! has several kinds of input, the first byte chooses one.

#![allow(clippy::missing_panics_doc, reason = "a target panics if an invariant does not hold")]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::auth::browser_login::BrowserLogin;
use crate::auth::endpoint;
use crate::cli::fuzz_targets as cli;
use crate::config::file::ConfigFile;
use crate::control::check_query;
use crate::fuse::mountinfo;
use crate::ids::{FileId, Ino};
use crate::pds::drive::FileMeta;
use crate::pds::tokens;
use crate::pds::transport::fuzz_targets as transport;
use crate::pds::types::{
    AsyncResponse, AsyncTask, BatchResponse, CreateResponse, DownloadUrlResponse, DriveInfo, DriveList, File,
    FileType, ListResponse, UploadUrlResponse,
};
use crate::posix::{self, ParsedTags};
#[cfg(feature = "server")]
use crate::server::fuzz_targets as server_targets;
use crate::tree::name::{disambiguated, disambiguation_number};
use crate::tree::{ListedEntry, ListingMerge, Name, Tree, display_name};
use crate::vfs;

/// Longest run of `listing`, in lines.
const LINES_MAX: usize = 64;

/// The name of a corpus, and the function that takes one of its files.
pub type Target = (&'static str, fn(&[u8]));

/// All targets by the names of their corpora.
pub const TARGETS: &[Target] = &[
    ("answers", answers),
    ("attributes", attributes),
    ("config", config),
    ("control", control),
    ("listing", listing),
    ("mount_options", mount_options),
    #[cfg(feature = "server")]
    ("server", server),
    ("urls", urls),
];

/// The first byte as a digit, and the rest.
fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (first.wrapping_sub(b'0'), rest))
}

/// Answers of the API and of the object store, except listings.
pub fn answers(data: &[u8]) {
    let (kind, data) = choice(data);
    match kind {
        0 => transport::api_refusals(data),
        1 => transport::store_refusals(data),
        2 => transport::content_ranges(data),
        3 => tokens::check_token_answer(data),
        4 => {
            if let Ok(Ok(meta)) = serde_json::from_slice::<File>(data).map(FileMeta::try_from) {
                check_meta(&meta);
            }
        }
        5 => {
            if let Ok(answer) = serde_json::from_slice::<DownloadUrlResponse>(data) {
                assert!(answer.url.len() < 8 || !format!("{answer:?}").contains(&answer.url));
            }
        }
        6 => drop(serde_json::from_slice::<CreateResponse>(data)),
        7 => drop(serde_json::from_slice::<UploadUrlResponse>(data)),
        8 => drop(serde_json::from_slice::<BatchResponse>(data)),
        _ => {
            drop(serde_json::from_slice::<AsyncResponse>(data));
            drop(serde_json::from_slice::<AsyncTask>(data));
            drop(serde_json::from_slice::<DriveInfo>(data));
            drop(serde_json::from_slice::<DriveList>(data));
        }
    }
}

fn check_meta(meta: &FileMeta) {
    assert!(i64::try_from(meta.size).is_ok(), "a size of {}", meta.size);
    if let Some(posix) = &meta.posix {
        assert!(posix.perm.is_none_or(|perm| perm <= 0o7777), "{posix:?}");
        assert!(posix.link.as_ref().is_none_or(|link| !link.is_empty() && !link.contains(&0)), "{posix:?}");
    }
    // What is read is sent again, and read again.
    let again = ParsedTags::parse(meta.tags()).posix;
    let link = |posix: &posix::Posix| posix.link.as_ref().map_or(0, Vec::len);
    if meta.posix.as_deref().map_or(0, link) < 600 {
        assert_eq!(again, meta.posix);
    }
}

/// A name of the drive on the first line, then tags.
pub fn attributes(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.split('\n');
    let remote = lines.next().unwrap_or_default();
    for kind in [FileType::File, FileType::Folder] {
        let shown = display_name(remote, kind);
        assert!(Name::new(OsStr::new(&*shown)).is_ok(), "{remote:?} is shown as {shown:?}");
        let number = u32::try_from(data.len()).unwrap_or(0) + 2;
        let other = disambiguated(&shown, number, kind);
        assert!(Name::new(OsStr::new(&other)).is_ok(), "{other:?}");
        assert_eq!(disambiguation_number(&other, &shown, kind), Some(number), "{shown:?}");
        if let Ok(name) = Name::new(OsStr::new(remote)) {
            assert_eq!(display_name(&name.remote(), kind), remote);
        }
    }
    let tags = lines.filter_map(|line| line.split_once('='));
    let tags = tags.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let json = serde_json::json!({"file_id": "f", "type": "file", "name": "n", "size": 1, "user_tags": tags_of(tags)});
    if let Ok(Ok(meta)) = serde_json::from_value::<File>(json).map(FileMeta::try_from) {
        check_meta(&meta);
    }
}

fn tags_of(tags: posix::Tags) -> serde_json::Value {
    tags.into_iter().map(|(key, value)| (key, value.into())).collect::<serde_json::Map<_, _>>().into()
}

/// The configuration file.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (_, problems) = ConfigFile::parse(Path::new("/etc/pdsfs/config.toml"), text);
    let lines = text.split('\n').count();
    for problem in problems {
        assert!((1..=lines).contains(&problem.line), "{problem:?} of {lines} lines");
        assert!(!problem.message.is_empty(), "{problem:?}");
    }
}

/// Requests to the control socket, and its answers.
pub fn control(data: &[u8]) {
    match choice(data) {
        (0, data) => check_query(data),
        (_, data) => cli::control_answers(data),
    }
}

/// Options of a mount, the mount table, and texts of `/proc`.
pub fn mount_options(data: &[u8]) {
    match choice(data) {
        (0, data) => cli::mount_options(data),
        (1, data) => mountinfo::check_mountinfo(data),
        (_, data) => vfs::check_proc_texts(data),
    }
}

/// Requests to the embedded server.
#[cfg(feature = "server")]
pub fn server(data: &[u8]) {
    match choice(data) {
        (0, data) => server_targets::ranges(data),
        (1, data) => server_targets::queries(data),
        (2, data) => server_targets::assertions(data),
        (3, data) => server_targets::forms(data),
        (_, data) => server_targets::object_urls(data),
    }
}

/// URLs of endpoints, of content, and of the redirect of a login.
pub fn urls(data: &[u8]) {
    let (kind, data) = choice(data);
    let text = String::from_utf8_lossy(data);
    match kind {
        0 => transport::content_urls(data),
        1 => {
            let Ok(url) = endpoint::parse(&text) else { return };
            assert!(url.scheme() == "https" || endpoint::is_loopback(&url), "{url}");
            assert!(url.path() == "/" && url.username().is_empty() && url.password().is_none(), "{url}");
            assert_eq!(endpoint::parse(url.as_str()).ok().as_ref(), Some(&url));
            assert!(endpoint::domain_id(&url).is_none_or(|id| !id.is_empty() && url.as_str().contains(id)));
        }
        _ => check_redirect(&text),
    }
}

/// The code of another login is refused. `STATE` stands for the state of the login.
fn check_redirect(text: &str) {
    let Ok(own) = endpoint::parse("https://bj1.api.aliyunpds.com") else { return };
    let Ok(login) = BrowserLogin::new(&own, "app", "http://127.0.0.1:1/", "default") else { return };
    let state = login.url.query_pairs().find(|(key, _)| key == "state").map(|(_, state)| state.into_owned());
    assert!(!login.matches_state(text), "a state was guessed");
    assert!(login.code_from_query(text).is_err(), "a state was guessed");
    if let Ok(code) = login.code_from_paste(text) {
        assert!(!code.expose().is_empty() && !code.expose().contains(char::is_control));
    }
    let redirect = text.replace("STATE", &state.unwrap_or_default());
    for code in [login.code_from_query(&redirect), login.code_from_paste(&redirect)] {
        match code {
            Ok(code) => assert!(!code.expose().is_empty()),
            Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
        }
    }
}

/// Listings of a hostile service, page by page, with changes in between. Each line is a page (JSON) or a letter with a
/// number, a name or an object:
///
/// ```text
/// e  end the listing        a  abandon it             t  time passes      dN  list the Nth directory from now on
/// l  the kernel looks up    f  it forgets             uN unlink           rN  the Nth entry is gone
/// cNAME  create a file      wN write the Nth file     nNAME  rename       x   drop what was written
/// k{...} commit it as this object                     g{...} make a directory, with this object as the answer
/// mNAME  move the first entry to the root             o{...} the object was read alone
/// ```
///
/// `n`, `x` and `k` are about the file that was created or written last.
pub fn listing(data: &[u8]) {
    let (root, ttl, at) = (FileId::root(), Duration::from_secs(15), SystemTime::UNIX_EPOCH);
    let mut run = ListingRun {
        tree: Tree::new(&root, ttl, at),
        now: Instant::now(),
        dir: Ino::ROOT,
        merge: None,
        shown: Vec::new(),
        lookups: HashMap::new(),
        written: Vec::new(),
        is_disturbed: false,
    };
    for line in data.split(|byte| *byte == b'\n').take(LINES_MAX) {
        run.now += Duration::from_millis(1);
        run.step(line);
        run.tree.check_invariants();
    }
}

fn object(json: &[u8]) -> Option<FileMeta> {
    serde_json::from_slice::<File>(json).ok()?.try_into().ok()
}

struct ListingRun {
    tree: Tree,
    now: Instant,
    dir: Ino,
    merge: Option<ListingMerge>,
    /// What a reader of the directory has seen.
    shown: Vec<ListedEntry>,
    lookups: HashMap<Ino, u64>,
    /// Open files with unsaved content, pinned.
    written: Vec<Ino>,
    /// An object was read alone during the listing, and may have taken a name of a page.
    is_disturbed: bool,
}

impl ListingRun {
    fn step(&mut self, line: &[u8]) {
        let Some((&letter, rest)) = line.split_first() else { return };
        let text = String::from_utf8_lossy(rest);
        let nth = self.nth(text.trim().parse().unwrap_or(0));
        match letter {
            b'{' => self.page(line),
            b'e' => self.end(),
            b'a' => {
                if let Some(merge) = self.merge.take() {
                    self.tree.abandon_listing(&merge);
                }
            }
            b't' => self.now += Duration::from_secs(20),
            b'd' if self.merge.is_none() => self.dir = nth.map_or(Ino::ROOT, |entry| entry.ino),
            b'l' => {
                for entry in self.tree.snapshot(self.dir).unwrap_or_default() {
                    assert!(self.tree.count_lookup(entry.ino), "{entry:?} cannot be looked up");
                    *self.lookups.entry(entry.ino).or_default() += 1;
                }
            }
            b'f' => {
                for (ino, lookups) in self.lookups.drain() {
                    self.tree.forget(ino, lookups);
                }
            }
            b'u' => {
                if let Some(entry) = nth {
                    self.tree.unlink(entry.ino, self.now);
                }
            }
            b'c' => self.create(&text),
            b'w' => self.write(nth),
            b'n' => self.rename(&text),
            b'x' => self.discard(),
            b'k' => self.commit(rest),
            b'g' => self.make_dir(rest),
            b'm' => self.move_first(&text),
            b'r' => {
                if let Some(id) = nth.and_then(|entry| Some(self.tree.meta(entry.ino)?.file_id.clone())) {
                    self.tree.removed_elsewhere(&id);
                }
            }
            b'o' => {
                if let Some(meta) = object(rest) {
                    self.tree.merge_object(meta, self.now);
                    self.is_disturbed = true;
                }
            }
            _ => {}
        }
    }

    fn nth(&self, n: usize) -> Option<ListedEntry> {
        let mut all = self.tree.snapshot(self.dir).unwrap_or_default();
        (!all.is_empty()).then(|| all.swap_remove(n % all.len()))
    }

    fn create(&mut self, text: &str) {
        if let Ok(name) = Name::new(OsStr::new(text))
            && self.tree.child(self.dir, name.as_str()).is_none()
        {
            let created = self.tree.create_local(self.dir, &name, self.now, (SystemTime::UNIX_EPOCH, None));
            if let Ok(ino) = created {
                assert_eq!(self.tree.child(self.dir, text), Some(ino));
                self.written.extend(self.tree.pin(ino).map(|()| ino));
            }
        }
    }

    fn write(&mut self, nth: Option<ListedEntry>) {
        if let Some(entry) = nth
            && self.tree.kind(entry.ino).is_ok_and(|kind| kind == FileType::File)
            && !self.written.contains(&entry.ino)
            && self.tree.pin(entry.ino).is_ok()
        {
            self.tree.mark_unsaved(entry.ino);
            self.written.push(entry.ino);
        }
    }

    fn rename(&mut self, text: &str) {
        let Some(&ino) = self.written.last().filter(|ino| self.tree.parent(**ino).is_some()) else { return };
        if let Ok(name) = Name::new(OsStr::new(text)) {
            let renamed = self.tree.rename_unsaved(ino, self.dir, &name, self.now);
            assert!(renamed.is_err() || self.tree.child(self.dir, text) == Some(ino));
            self.is_disturbed = true;
        }
    }

    fn discard(&mut self) {
        if let Some(ino) = self.written.pop() {
            self.tree.discard(ino, self.now);
            self.tree.unpin(ino);
            self.is_disturbed = true;
        }
    }

    fn commit(&mut self, answer: &[u8]) {
        let (Some(meta), Some(ino)) = (object(answer), self.written.pop()) else { return };
        if self.tree.parent(ino).is_some() {
            // A wrong object changes nothing.
            let _ = self.tree.adopt(ino, meta, self.now);
            self.is_disturbed = true;
        }
        // A file that is elsewhere on the drive stays unsaved.
        if self.tree.parent(ino).is_some() && !self.tree.is_at_location(ino) {
            self.written.push(ino);
        } else {
            self.tree.unpin(ino);
        }
    }

    fn make_dir(&mut self, answer: &[u8]) {
        let Some(meta) = object(answer).map(|meta| FileMeta { kind: FileType::Folder, ..meta }) else {
            return;
        };
        if let Ok(name) = Name::new(OsStr::new(&*display_name(&meta.name, meta.kind)))
            && self.tree.child(self.dir, name.as_str()).is_none()
            && let Ok(ino) = self.tree.insert(self.dir, &name, meta, self.now)
        {
            assert_eq!(self.tree.child(self.dir, name.as_str()), Some(ino));
            self.is_disturbed = true;
        }
    }

    fn move_first(&mut self, text: &str) {
        let Some(entry) = self.nth(0).filter(|entry| !self.written.contains(&entry.ino)) else { return };
        let (Ok(name), Some(meta)) = (Name::new(OsStr::new(text)), self.tree.meta(entry.ino).cloned()) else {
            return;
        };
        if self.tree.child(Ino::ROOT, text).is_none() {
            self.tree.begin_move(entry.ino);
            let meta = FileMeta { name: name.remote().to_string(), parent_id: Some(FileId::root()), ..meta };
            let moved = self.tree.moved(entry.ino, Ino::ROOT, &name, meta, self.now);
            self.tree.end_move(entry.ino);
            assert!(moved.is_err() || self.tree.child(Ino::ROOT, text) == Some(entry.ino));
            self.is_disturbed = true;
        }
    }

    fn page(&mut self, line: &[u8]) {
        let Ok(page) = serde_json::from_slice::<ListResponse>(line) else { return };
        if self.merge.is_none() {
            self.shown.clear();
            self.is_disturbed = false;
            self.merge = self.tree.begin_listing(self.dir, self.now).ok();
        }
        let Some(merge) = &self.merge else {
            self.dir = Ino::ROOT;
            return;
        };
        let items = page.items.0.into_iter().filter_map(|file| FileMeta::try_from(file).ok()).collect();
        self.shown.extend(self.tree.merge_page(merge, items, self.now));
    }

    /// A reader has seen each entry, and none twice.
    fn end(&mut self) {
        let Some(merge) = self.merge.take() else { return };
        let Ok(outcome) = self.tree.end_listing(&merge, self.now) else { return };
        self.shown.extend(outcome.unlisted);
        let (tree, dir) = (&self.tree, self.dir);
        self.shown.retain(|entry| tree.child(dir, &entry.name) == Some(entry.ino));
        let mut names: Vec<_> = self.shown.iter().map(|entry| entry.name.clone()).collect();
        names.sort();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "shown twice: {names:?}");
        for entry in tree.snapshot(dir).unwrap_or_default() {
            let is_shown = names.binary_search(&entry.name).is_ok();
            assert!(is_shown || self.is_disturbed, "{entry:?} was not shown: {names:?}");
        }
        for id in outcome.unconfirmed {
            self.tree.removed_elsewhere(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The inputs of a target, by their names.
    fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.map(|path| (path.display().to_string(), std::fs::read(&path).unwrap())).collect()
    }

    #[test]
    fn invariants_hold_for_the_fuzz_corpus() {
        let mut broken = Vec::new();
        for (name, target) in TARGETS {
            let inputs = corpus(name);
            assert!(!inputs.is_empty(), "{name} has no corpus");
            let breaks = |data: &[u8]| std::panic::catch_unwind(|| target(data)).is_err();
            broken.extend(inputs.into_iter().filter(|(_, data)| breaks(data)).map(|(path, _)| path));
        }
        assert!(broken.is_empty(), "invariants are broken by {broken:#?}");
    }

    #[test]
    fn every_fuzz_target_has_a_program() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
        for (name, _) in TARGETS {
            let text = std::fs::read_to_string(root.join(format!("{name}.rs"))).unwrap();
            assert!(text.contains(&format!("fuzz_targets::{name}(")), "{text}");
        }
    }
}
