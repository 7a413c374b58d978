//! What POSIX knows of a file and a drive has no field for, and its form in the file's `user_tags`.
//!
//! Pure. Everything is optional: what is absent is shown as the mount's own default, so that files
//! that others made, and files of the usual kind, need no tags at all. Tags that are not ours are kept
//! as they are. A tag that makes no sense is treated as absent: others may write tags too.
//!
//! ```text
//! pdsfs.type    link | fifo | socket   (the object is an ordinary file; of a link, its content is the target)
//! pdsfs.mode    permission bits, octal
//! pdsfs.owner   uid:gid
//! pdsfs.mtime   seconds.nanoseconds    (only where `local_modified_at` is too coarse)
//! pdsfs.atime   seconds.nanoseconds    (only where a program has set it)
//! pdsfs.link    the target, escaped    (so that reading it costs no call)
//! pdsfs.x.NAME  the extended attribute user.NAME; both escaped
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

/// Name to text: the form of `user_tags`.
pub type Tags = BTreeMap<String, String>;

/// Tags of one object, at most (API page of `PutUserTags`).
const TAGS_MAX: usize = 1000;
/// Key and value of one tag, in bytes (the same page).
const TAG_BYTES_MAX: usize = 2000;
/// The drive keeps modification times in this unit.
const TIME_GRAIN: Duration = Duration::from_millis(1);
/// What a tag must not hold as it is: `#` is refused by the API, and `%` begins an escape.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'#').add(b'%');

const TYPE: &str = "pdsfs.type";
const MODE: &str = "pdsfs.mode";
const OWNER: &str = "pdsfs.owner";
const MTIME: &str = "pdsfs.mtime";
const ATIME: &str = "pdsfs.atime";
const LINK: &str = "pdsfs.link";
const XATTR: &str = "pdsfs.x.";

/// What a file is beside a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    /// A symbolic link.
    Link,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

impl Special {
    fn text(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Link, Self::Fifo, Self::Socket].into_iter().find(|special| special.text() == text)
    }
}

/// What is known beyond the drive's own fields.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Posix {
    /// `None` for an ordinary file, and for folders.
    pub special: Option<Special>,
    /// Permission bits, 0 to 0o7777.
    pub perm: Option<u16>,
    /// User and group.
    pub owner: Option<(u32, u32)>,
    /// Last access, where a program has set it.
    pub atime: Option<SystemTime>,
    /// Where a link leads.
    pub link: Option<Vec<u8>>,
    /// Values of the extended attributes `user.NAME`, by NAME.
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Tags of others.
    foreign: Tags,
}

/// The tags of an object as the drive told them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Told {
    /// `None` where there is nothing to know.
    pub posix: Option<Arc<Posix>>,
    /// The modification time, finer than the drive's own field; true only where the two agree.
    pub mtime: Option<SystemTime>,
}

impl Told {
    /// Understands the tags of an object.
    pub fn parse(tags: Tags) -> Self {
        let mut told = Self::default();
        let mut posix = Posix::default();
        for (key, value) in tags {
            match key.as_str() {
                TYPE => posix.special = Special::parse(&value),
                MODE => posix.perm = u16::from_str_radix(&value, 8).ok().filter(|perm| *perm <= 0o7777),
                OWNER => posix.owner = parse_owner(&value),
                MTIME => told.mtime = parse_time(&value),
                ATIME => posix.atime = parse_time(&value),
                LINK => posix.link = Some(unescape(&value)).filter(|target| is_target(target)),
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        posix.xattrs.insert(unescape(name), unescape(&value));
                    } else {
                        posix.foreign.insert(key, value);
                    }
                }
            }
        }
        told.posix = (posix != Posix::default()).then(|| Arc::new(posix));
        told
    }

    /// The modification time behind one that the drive has in its own field, which may be cut to
    /// milliseconds or to seconds.
    pub fn mtime_of(&self, field: SystemTime) -> SystemTime {
        let is_of = |exact: &SystemTime| {
            let field = since_epoch(field);
            let exact = since_epoch(*exact);
            exact.div_euclid(1_000_000) * 1_000_000 == field
                || exact.div_euclid(1_000_000_000) * 1_000_000_000 == field
        };
        self.mtime.filter(is_of).unwrap_or(field)
    }
}

impl Posix {
    /// Its tags, with those of others, for an object that was changed at `mtime`.
    pub fn tags(&self, mtime: SystemTime) -> Tags {
        let mut tags = self.foreign.clone();
        let mut tag = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                tags.insert(key.to_owned(), value);
            }
        };
        tag(TYPE, self.special.map(|special| special.text().to_owned()));
        tag(MODE, self.perm.map(|perm| format!("{perm:04o}")));
        tag(OWNER, self.owner.map(|(uid, gid)| format!("{uid}:{gid}")));
        tag(MTIME, (in_grain(mtime) != mtime).then(|| show_time(mtime)));
        tag(ATIME, self.atime.map(show_time));
        // A longer target is in the content only.
        tag(
            LINK,
            self.link.as_deref().map(escape).filter(|target| LINK.len() + target.len() <= TAG_BYTES_MAX),
        );
        for (name, value) in &self.xattrs {
            tag(&xattr_key(name), Some(escape(value)));
        }
        tags
    }

    /// Names of the extended attributes, without `user.`.
    pub fn xattr_names(&self) -> impl Iterator<Item = &[u8]> {
        self.xattrs.keys().map(Vec::as_slice)
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, name: &[u8]) -> Option<&[u8]> {
        self.xattrs.get(name).map(Vec::as_slice)
    }

    /// Sets an extended attribute; `false`, and nothing has changed, where it does not fit.
    #[must_use]
    pub fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> bool {
        let is_new = !self.xattrs.contains_key(name);
        let fits = xattr_key(name).len() + escape(value).len() <= TAG_BYTES_MAX;
        // Room for the tags that are not extended attributes.
        if !fits || (is_new && self.xattrs.len() + self.foreign.len() + 6 >= TAGS_MAX) {
            return false;
        }
        self.xattrs.insert(name.to_vec(), value.to_vec());
        true
    }

    /// Removes an extended attribute; whether there was one.
    pub fn remove_xattr(&mut self, name: &[u8]) -> bool {
        self.xattrs.remove(name).is_some()
    }

    /// A program that may not keep them has changed the file: it runs as nobody else any more.
    pub fn drop_set_ids(&mut self, shown: u16) {
        let group_runs = shown & 0o010 != 0;
        let kept = shown & !0o4000 & if group_runs { !0o2000 } else { !0 };
        if kept != shown {
            self.perm = Some(kept);
        }
    }
}

/// The tags of an object of which that much is known.
pub fn tags(posix: Option<&Posix>, mtime: SystemTime) -> Tags {
    posix.map_or_else(|| Posix::default().tags(mtime), |posix| posix.tags(mtime))
}

/// Keys of `old` that `new` lacks: what has to be deleted when `new` was added to `old`.
pub fn stale_keys(old: &Tags, new: &Tags) -> BTreeSet<String> {
    old.keys().filter(|key| !new.contains_key(*key)).cloned().collect()
}

/// The present, as exactly as the drive keeps it: what it tells later is the same time.
pub fn now() -> SystemTime {
    in_grain(SystemTime::now())
}

fn in_grain(time: SystemTime) -> SystemTime {
    let grain = TIME_GRAIN.as_nanos().cast_signed();
    from_epoch(since_epoch(time).div_euclid(grain) * grain).unwrap_or(time)
}

/// Nanoseconds since 1970; fewer than none before.
fn since_epoch(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos().cast_signed(),
        Err(before) => -before.duration().as_nanos().cast_signed(),
    }
}

fn from_epoch(nanos: i128) -> Option<SystemTime> {
    let apart = |nanos: u128| {
        let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
        Some(Duration::new(seconds, (nanos % 1_000_000_000) as u32))
    };
    let distance = apart(nanos.unsigned_abs())?;
    if nanos < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
}

fn show_time(time: SystemTime) -> String {
    let nanos = since_epoch(time);
    format!("{}.{:09}", nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000))
}

fn parse_time(text: &str) -> Option<SystemTime> {
    let (seconds, nanos) = text.split_once('.')?;
    let (seconds, nanos) = (seconds.parse::<i64>().ok()?, nanos.parse::<u32>().ok()?);
    if nanos >= 1_000_000_000 {
        return None;
    }
    from_epoch(i128::from(seconds) * 1_000_000_000 + i128::from(nanos))
}

fn parse_owner(text: &str) -> Option<(u32, u32)> {
    let (uid, gid) = text.split_once(':')?;
    // The last number means "nobody in particular" to chown(2).
    let id = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX);
    Some((id(uid)?, id(gid)?))
}

/// Whether the kernel would take it as the target of a link.
fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && target.len() < libc::PATH_MAX as usize && !target.contains(&0)
}

fn xattr_key(name: &[u8]) -> String {
    format!("{XATTR}{}", escape(name))
}

fn escape(bytes: &[u8]) -> String {
    percent_encode(bytes, ESCAPED).to_string()
}

fn unescape(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(nanos: i128) -> SystemTime {
        from_epoch(nanos).unwrap()
    }

    fn strategy() -> impl Strategy<Value = Posix> {
        let special =
            prop::sample::select(vec![None, Some(Special::Link), Some(Special::Fifo), Some(Special::Socket)]);
        let perm = prop::option::of(0..=0o7777_u16);
        let owner = prop::option::of((0..u32::MAX, 0..u32::MAX));
        let atime = prop::option::of((-1_i128 << 60..1 << 62).prop_map(at));
        let link = prop::option::of(prop::collection::vec(1..=255_u8, 1..300));
        let bytes = || prop::collection::vec(any::<u8>(), 0..100);
        let xattrs = prop::collection::btree_map(prop::collection::vec(1..=255_u8, 1..60), bytes(), 0..4);
        let foreign = prop::collection::btree_map("[a-z]{1,5}", "[^#]{0,9}", 0..3);
        (special, perm, owner, atime, link, xattrs, foreign).prop_map(
            |(special, perm, owner, atime, link, xattrs, foreign)| Posix {
                special,
                perm,
                owner,
                atime,
                link,
                xattrs,
                foreign,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_stored_is_read_back(posix in strategy(), nanos in -1_i128 << 60..1 << 62) {
            let (mtime, tags) = (at(nanos), posix.tags(at(nanos)));
            for (key, value) in &tags {
                prop_assert!(!key.contains('#') && !value.contains('#'), "{key}={value}");
                prop_assert!(key.len() + value.len() <= TAG_BYTES_MAX);
            }
            let told = Told::parse(tags);
            prop_assert_eq!(told.mtime_of(in_grain(mtime)), mtime);
            prop_assert_eq!(told.posix.as_deref().cloned().unwrap_or_default(), posix);
        }
    }

    #[test]
    fn an_ordinary_file_has_no_tags() {
        assert_eq!(Posix::default().tags(now()), Tags::new());
        assert_eq!(Told::parse(Tags::new()), Told::default());
        assert_eq!(Posix::default().tags(at(1_000_001)).keys().collect::<Vec<_>>(), [MTIME]);
    }

    #[test]
    fn a_time_that_is_not_of_the_field_is_not_believed() {
        let told = Told { mtime: Some(at(5_123_456_789)), ..Told::default() };
        assert_eq!(told.mtime_of(at(5_123_000_000)), at(5_123_456_789));
        assert_eq!(told.mtime_of(at(5_000_000_000)), at(5_123_456_789));
        assert_eq!(told.mtime_of(at(5_124_000_000)), at(5_124_000_000));
        assert_eq!(told.mtime_of(at(6_000_000_000)), at(6_000_000_000));
    }

    #[test]
    fn nonsense_is_absent() {
        for (key, value) in [
            (TYPE, "device"),
            (MODE, "17777"),
            (MODE, "rw"),
            (OWNER, "1"),
            (OWNER, "1:x"),
            (OWNER, "4294967295:0"),
            (MTIME, "1"),
            (ATIME, "1.1000000000"),
            (ATIME, "99999999999999999999.0"),
            (LINK, ""),
            (LINK, "a%00b"),
        ] {
            let told = Told::parse(Tags::from([(key.to_owned(), value.to_owned())]));
            assert_eq!(told, Told::default(), "{key}={value}");
        }
    }

    #[test]
    fn extended_attributes_have_bounds() {
        let mut posix = Posix::default();
        assert!(posix.set_xattr(b"a", &[b'x'; 1900]) && posix.set_xattr(b"b", &[b'#'; 600]));
        assert!(!posix.set_xattr(b"a", &[b'x'; 2000]) && !posix.set_xattr(b"b", &[b'#'; 700]));
        assert_eq!(posix.xattr(b"a").map(<[u8]>::len), Some(1900));
        for n in 0..2000 {
            let _ = posix.set_xattr(format!("n{n}").as_bytes(), b"");
        }
        assert!(posix.set_xattr(b"a", b"again"), "an old name takes a new value");
        posix = Posix { perm: Some(1), owner: Some((1, 1)), atime: Some(at(1)), ..posix };
        posix = Posix { special: Some(Special::Link), link: Some(b"t".to_vec()), ..posix };
        assert!(posix.tags(at(1)).len() <= TAGS_MAX, "{}", posix.tags(at(1)).len());
        assert!(posix.remove_xattr(b"a") && !posix.remove_xattr(b"a"));
    }

    #[test]
    fn set_ids_go_where_they_mean_something() {
        let dropped = |shown| {
            let mut posix = Posix::default();
            posix.drop_set_ids(shown);
            posix.perm
        };
        assert_eq!(dropped(0o4755), Some(0o755));
        assert_eq!(dropped(0o6755), Some(0o755));
        assert_eq!(dropped(0o2644), None, "mandatory locking, not a group to run as");
        assert_eq!(dropped(0o755), None);
    }

    #[test]
    fn only_what_is_gone_is_deleted() {
        let tags =
            |keys: &[&str]| keys.iter().map(|key| ((*key).to_owned(), String::new())).collect::<Tags>();
        assert_eq!(stale_keys(&tags(&["a", "b"]), &tags(&["b", "c"])).into_iter().collect::<Vec<_>>(), ["a"]);
    }
}
