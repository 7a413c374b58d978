//! POSIX attributes for which the drive has no field, and their encoding in the `user_tags` of a file.
//!
//! Pure: no I/O and no clock. Every attribute is optional. A missing one is shown as the default of the
//! mount, so files of other clients and ordinary files need no tags. Foreign tags are preserved. An invalid
//! tag counts as missing, because other clients may write tags too.
//!
//! ```text
//! pdsfs.type    link | fifo | socket | char MAJOR:MINOR | block MAJOR:MINOR
//!                                      (a regular file on the drive; the content of a link is its target)
//! pdsfs.mode    permission bits, octal
//! pdsfs.owner   uid:gid
//! pdsfs.mtime   seconds.nanoseconds    (only if `local_modified_at` is too coarse, or not the time)
//! pdsfs.mtime_field  the value of `local_modified_at`, or `none`, beside which pdsfs.mtime is valid
//!                                      (only if the service did not take the time)
//! pdsfs.atime   seconds.nanoseconds    (only if a program has set it)
//! pdsfs.link    the target, escaped    (so that readlink needs no call)
//! pdsfs.x.NAME  the extended attribute user.NAME; both escaped
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

/// Keys and values of `user_tags`.
pub type Tags = BTreeMap<String, String>;

/// Most tags of one object (API page of `PutUserTags`).
const TAGS_MAX: usize = 1000;
/// Longest tag, key and value together, in bytes (same page).
const TAG_BYTES_MAX: usize = 2000;
/// Resolution of modification times on the drive.
const TIME_RESOLUTION: Duration = Duration::from_millis(1);
/// Characters that are escaped in tags: the API refuses `#`, and `%` starts an escape.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'#').add(b'%');

const TYPE: &str = "pdsfs.type";
const MODE: &str = "pdsfs.mode";
const OWNER: &str = "pdsfs.owner";
const MTIME: &str = "pdsfs.mtime";
const MTIME_FIELD: &str = "pdsfs.mtime_field";
/// The value of [`MTIME_FIELD`] for an object without the field.
const NO_FIELD: &str = "none";
const ATIME: &str = "pdsfs.atime";
const LINK: &str = "pdsfs.link";
const XATTR: &str = "pdsfs.x.";

/// File types other than regular files and directories.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    Link,
    Fifo,
    Socket,
    CharDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
}

/// The number of a device node. The kernel opens no device of a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl DeviceNumber {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl std::fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Special {
    fn text(self) -> String {
        match self {
            Self::Link => "link".to_owned(),
            Self::Fifo => "fifo".to_owned(),
            Self::Socket => "socket".to_owned(),
            Self::CharDevice(number) => format!("char {number}"),
            Self::BlockDevice(number) => format!("block {number}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.split_once(' ') {
            Some(("char", number)) => DeviceNumber::parse(number).map(Self::CharDevice),
            Some(("block", number)) => DeviceNumber::parse(number).map(Self::BlockDevice),
            Some(_) => None,
            None => [Self::Link, Self::Fifo, Self::Socket].into_iter().find(|special| special.text() == text),
        }
    }
}

/// Attributes for which the drive has no field.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Posix {
    /// `None` for regular files and directories.
    pub special: Option<Special>,
    /// Permission bits, 0 to 0o7777.
    pub perm: Option<u16>,
    /// User id and group id.
    pub owner: Option<(u32, u32)>,
    /// Access time set by a program.
    pub atime: Option<SystemTime>,
    /// Target of a symbolic link.
    pub link: Option<Vec<u8>>,
    /// Values of the extended attributes `user.NAME`, by NAME. A clone copies neither: attributes are cloned for
    /// each change, and a file may have megabytes of them.
    xattrs: BTreeMap<Arc<[u8]>, Arc<[u8]>>,
    /// Tags of other clients.
    foreign: Tags,
}

/// The decoded tags of an object.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ParsedTags {
    /// `None` if the tags contain no attributes.
    pub posix: Option<Arc<Posix>>,
    /// More precise than the drive's own field. Valid only if the two agree, or beside one value of the field.
    pub mtime: Option<SystemTime>,
    /// That value, as in its tag.
    pub mtime_field: Option<String>,
}

impl ParsedTags {
    pub fn parse(tags: Tags) -> Self {
        let mut parsed = Self::default();
        let mut posix = Posix::default();
        for (key, value) in tags {
            match key.as_str() {
                TYPE => posix.special = Special::parse(&value),
                MODE => posix.perm = u16::from_str_radix(&value, 8).ok().filter(|perm| *perm <= 0o7777),
                OWNER => posix.owner = parse_owner(&value),
                MTIME => parsed.mtime = parse_time(&value),
                MTIME_FIELD => parsed.mtime_field = Some(value).filter(|field| is_field(field)),
                ATIME => posix.atime = parse_time(&value),
                LINK => posix.link = Some(unescape(&value)).filter(|target| is_target(target)),
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        posix.xattrs.insert(unescape(name).into(), unescape(&value).into());
                    } else {
                        posix.foreign.insert(key, value);
                    }
                }
            }
        }
        parsed.posix = (posix != Posix::default()).then(|| Arc::new(posix));
        parsed
    }

    /// The modification time of an object whose own value on the drive is `field`.
    pub fn mtime(&self, field: Option<SystemTime>) -> Option<SystemTime> {
        let bound = self.mtime.filter(|_| self.mtime_field == Some(show_field(field)));
        bound.or_else(|| field.map(|field| self.mtime_of(field)))
    }

    /// The precise modification time for `field`, the drive's own value, which may be rounded down to
    /// milliseconds or seconds.
    fn mtime_of(&self, field: SystemTime) -> SystemTime {
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
    /// Encodes the attributes, including foreign tags, for an object with this `mtime`.
    pub fn tags(&self, mtime: SystemTime) -> Tags {
        let mut tags = self.foreign.clone();
        let mut tag = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                tags.insert(key.to_owned(), value);
            }
        };
        tag(TYPE, self.special.map(Special::text));
        tag(MODE, self.perm.map(|perm| format!("{perm:04o}")));
        tag(OWNER, self.owner.map(|(uid, gid)| format!("{uid}:{gid}")));
        tag(MTIME, needs_tag(mtime).then(|| show_time(mtime)));
        tag(ATIME, self.atime.map(show_time));
        tag(LINK, self.link_tag());
        for (name, value) in &self.xattrs {
            tag(&xattr_key(name), Some(escape(value)));
        }
        tags
    }

    /// Bytes of the target, the extended attributes and the tags of other clients.
    pub fn bytes(&self) -> usize {
        let xattrs = self.xattrs.iter().map(|(name, value)| name.len() + value.len());
        let foreign = self.foreign.iter().map(|(key, value)| key.len() + value.len());
        self.link.as_ref().map_or(0, Vec::len) + xattrs.chain(foreign).sum::<usize>()
    }

    /// Names of the extended attributes, without `user.`.
    pub fn xattr_names(&self) -> impl Iterator<Item = &[u8]> {
        self.xattrs.keys().map(|name| &**name)
    }

    pub fn xattr(&self, name: &[u8]) -> Option<&[u8]> {
        self.xattrs.get(name).map(|value| &**value)
    }

    /// Sets an extended attribute. Returns `false`, without a change, if it does not fit.
    #[must_use]
    pub fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> bool {
        let is_new = !self.xattrs.contains_key(name);
        let fits = xattr_key(name).len() + escape(value).len() <= TAG_BYTES_MAX;
        // Leaves room for the other tags.
        if !fits || (is_new && self.xattrs.len() + self.foreign.len() + 6 >= TAGS_MAX) {
            return false;
        }
        self.xattrs.insert(name.into(), value.into());
        true
    }

    /// A longer target is stored in the content only.
    fn link_tag(&self) -> Option<String> {
        self.link.as_deref().map(escape).filter(|target| LINK.len() + target.len() <= TAG_BYTES_MAX)
    }

    /// Keys of the tags for an object with this `mtime`, without extended attributes.
    fn plain_keys(&self, mtime: SystemTime) -> impl Iterator<Item = &str> {
        let own = [
            (TYPE, self.special.is_some()),
            (MODE, self.perm.is_some()),
            (OWNER, self.owner.is_some()),
            (MTIME, needs_tag(mtime)),
            (ATIME, self.atime.is_some()),
            (LINK, self.link_tag().is_some()),
        ];
        let own = own.into_iter().filter_map(|(key, is_set)| is_set.then_some(key));
        own.chain(self.foreign.keys().map(String::as_str))
    }

    /// Returns whether the attribute existed.
    pub fn remove_xattr(&mut self, name: &[u8]) -> bool {
        self.xattrs.remove(name).is_some()
    }

    /// Clears set-user-ID and set-group-ID as the kernel does for local file systems. Without permission of
    /// the group to execute, set-group-ID means mandatory locking: then `is_member`, a caller in the group of
    /// the file, keeps it.
    pub fn clear_setid_bits(&mut self, mode: u16, is_member: bool) {
        let clears_group = mode & 0o010 != 0 || !is_member;
        let kept = mode & !0o4000 & if clears_group { !0o2000 } else { !0 };
        if kept != mode {
            self.perm = Some(kept);
        }
    }
}

/// Like [`Posix::tags`]; without attributes, only the modification time is encoded.
pub fn tags(posix: Option<&Posix>, mtime: SystemTime) -> Tags {
    posix.map_or_else(|| Posix::default().tags(mtime), |posix| posix.tags(mtime))
}

/// The tags of a modification time that the drive does not take: its own value stays `field`.
pub fn bound_mtime(mtime: SystemTime, field: Option<SystemTime>) -> Tags {
    Tags::from([(MTIME.to_owned(), show_time(mtime)), (MTIME_FIELD.to_owned(), show_field(field))])
}

/// The same for an object without a value.
pub fn unbound_mtime(mtime: SystemTime) -> Tags {
    bound_mtime(mtime, None)
}

/// Attributes with the modification time that they are stored with.
pub type Stored<'a> = (Option<&'a Posix>, SystemTime);

/// Whether both have the same tags. Encodes nothing.
pub fn has_same_tags((old, old_mtime): Stored<'_>, (new, new_mtime): Stored<'_>) -> bool {
    let is_same_time = old_mtime == new_mtime || !needs_tag(old_mtime) && !needs_tag(new_mtime);
    is_same_time && old.unwrap_or(&NO_ATTRIBUTES) == new.unwrap_or(&NO_ATTRIBUTES)
}

/// Keys of tags of `old` that are missing in `new`, to be deleted after those of `new` were added.
pub fn stale_keys((old, old_mtime): Stored<'_>, (new, new_mtime): Stored<'_>) -> BTreeSet<String> {
    let (old, new) = (old.unwrap_or(&NO_ATTRIBUTES), new.unwrap_or(&NO_ATTRIBUTES));
    let plain: BTreeSet<_> = new.plain_keys(new_mtime).collect();
    let stale = old.plain_keys(old_mtime).filter(|key| !plain.contains(key)).map(str::to_owned);
    stale.chain(missing(&old.xattrs, &new.xattrs).map(|name| xattr_key(name))).collect()
}

/// Keys of `old` that are missing in `new`. Both are sorted.
fn missing<'a, K: Ord, V>(old: &'a BTreeMap<K, V>, new: &'a BTreeMap<K, V>) -> impl Iterator<Item = &'a K> {
    let mut new = new.keys().peekable();
    old.keys().filter(move |key| {
        while new.next_if(|other| other < key).is_some() {}
        new.peek() != Some(key)
    })
}

/// Whether the resolution of the drive is too coarse for a modification time.
fn needs_tag(mtime: SystemTime) -> bool {
    at_drive_resolution(mtime) != mtime
}

static NO_ATTRIBUTES: Posix = Posix {
    special: None,
    perm: None,
    owner: None,
    atime: None,
    link: None,
    xattrs: BTreeMap::new(),
    foreign: BTreeMap::new(),
};

/// Rounds down to the resolution of the drive.
pub fn at_drive_resolution(time: SystemTime) -> SystemTime {
    let resolution = TIME_RESOLUTION.as_nanos().cast_signed();
    from_epoch(since_epoch(time).div_euclid(resolution) * resolution).unwrap_or(time)
}

/// Nanoseconds since 1970, negative before.
fn since_epoch(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos().cast_signed(),
        Err(before) => -before.duration().as_nanos().cast_signed(),
    }
}

fn from_epoch(nanos: i128) -> Option<SystemTime> {
    let to_duration = |nanos: u128| {
        let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
        Some(Duration::new(seconds, (nanos % 1_000_000_000) as u32))
    };
    let distance = to_duration(nanos.unsigned_abs())?;
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

/// The value of [`MTIME_FIELD`] for a value of the drive's own field.
fn show_field(field: Option<SystemTime>) -> String {
    field.map_or_else(|| NO_FIELD.to_owned(), show_time)
}

fn is_field(text: &str) -> bool {
    text == NO_FIELD || parse_time(text).is_some()
}

fn parse_owner(text: &str) -> Option<(u32, u32)> {
    let (uid, gid) = text.split_once(':')?;
    // chown(2) treats the largest id as "no change".
    let id = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX);
    Some((id(uid)?, id(gid)?))
}

/// Whether the kernel accepts it as a link target.
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
        let device = DeviceNumber { major: 4095, minor: 1_048_575 };
        let kinds = [
            Special::Link,
            Special::Fifo,
            Special::Socket,
            Special::CharDevice(device),
            Special::BlockDevice(device),
        ];
        let special = prop::option::of(prop::sample::select(kinds.to_vec()));
        let perm = prop::option::of(0..=0o7777_u16);
        let owner = prop::option::of((0..u32::MAX, 0..u32::MAX));
        let atime = prop::option::of((-1_i128 << 60..1 << 62).prop_map(at));
        let link = prop::option::of(prop::collection::vec(1..=255_u8, 1..300));
        let bytes = || prop::collection::vec(any::<u8>(), 0..100);
        let shared = |bytes: Vec<u8>| Arc::<[u8]>::from(bytes);
        let name = prop::collection::vec(1..=255_u8, 1..60).prop_map(shared);
        let xattrs = prop::collection::btree_map(name, bytes().prop_map(shared), 0..4);
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
        fn tags_round_trip(posix in strategy(), nanos in -1_i128 << 60..1 << 62) {
            let (mtime, tags) = (at(nanos), posix.tags(at(nanos)));
            for (key, value) in &tags {
                prop_assert!(!key.contains('#') && !value.contains('#'), "{key}={value}");
                prop_assert!(key.len() + value.len() <= TAG_BYTES_MAX);
            }
            let parsed = ParsedTags::parse(tags);
            prop_assert_eq!(parsed.mtime_of(at_drive_resolution(mtime)), mtime);
            prop_assert_eq!(parsed.posix.as_deref().cloned().unwrap_or_default(), posix);
        }
    }

    proptest! {
        #[test]
        fn stale_keys_are_those_of_the_tags(
            old in strategy(),
            new in strategy(),
            keeps in any::<bool>(),
            nanos in -1_i128 << 60..1 << 62,
        ) {
            let mut new = new;
            if keeps {
                (new.xattrs, new.foreign) = (old.xattrs.clone(), old.foreign.clone());
            }
            let times = (at(nanos), at_drive_resolution(at(nanos)));
            let (old_tags, new_tags) = (old.tags(times.0), new.tags(times.1));
            let (old, new) = ((Some(&old), times.0), (Some(&new), times.1));
            let gone: BTreeSet<_> =
                old_tags.keys().filter(|key| !new_tags.contains_key(*key)).cloned().collect();
            prop_assert_eq!(stale_keys(old, new), gone);
            prop_assert_eq!(has_same_tags(old, new), old_tags == new_tags);
        }
    }

    #[test]
    fn ordinary_file_has_no_tags() {
        assert_eq!(Posix::default().tags(at(1_000_000)), Tags::new());
        assert_eq!(ParsedTags::parse(Tags::new()), ParsedTags::default());
        assert_eq!(Posix::default().tags(at(1_000_001)).keys().collect::<Vec<_>>(), [MTIME]);
    }

    #[test]
    fn mtime_tag_must_match_the_field() {
        let parsed = ParsedTags { mtime: Some(at(5_123_456_789)), ..ParsedTags::default() };
        assert_eq!(parsed.mtime_of(at(5_123_000_000)), at(5_123_456_789));
        assert_eq!(parsed.mtime_of(at(5_000_000_000)), at(5_123_456_789));
        assert_eq!(parsed.mtime_of(at(5_124_000_000)), at(5_124_000_000));
        assert_eq!(parsed.mtime_of(at(6_000_000_000)), at(6_000_000_000));
    }

    #[test]
    fn bound_mtime_is_valid_beside_its_field() {
        for field in [None, Some(at(7_000_000_000))] {
            let parsed = ParsedTags::parse(bound_mtime(at(-5_000_000_001), field));
            assert_eq!(parsed.mtime(field), Some(at(-5_000_000_001)));
            assert_eq!(parsed.mtime(Some(at(8_000_000_000))), Some(at(8_000_000_000)));
            assert_eq!(parsed.posix, None);
        }
    }

    #[test]
    fn invalid_tags_are_ignored() {
        for (key, value) in [
            (TYPE, "device"),
            (TYPE, "char"),
            (TYPE, "block 1"),
            (TYPE, "link 1:3"),
            (MODE, "17777"),
            (MODE, "rw"),
            (OWNER, "1"),
            (OWNER, "1:x"),
            (OWNER, "4294967295:0"),
            (MTIME, "1"),
            (MTIME_FIELD, "no"),
            (ATIME, "1.1000000000"),
            (ATIME, "99999999999999999999.0"),
            (LINK, ""),
            (LINK, "a%00b"),
        ] {
            let parsed = ParsedTags::parse(Tags::from([(key.to_owned(), value.to_owned())]));
            assert_eq!(parsed, ParsedTags::default(), "{key}={value}");
        }
    }

    #[test]
    fn xattr_sizes_and_counts_are_limited() {
        let mut posix = Posix::default();
        assert!(posix.set_xattr(b"a", &[b'x'; 1900]) && posix.set_xattr(b"b", &[b'#'; 600]));
        assert!(!posix.set_xattr(b"a", &[b'x'; 2000]) && !posix.set_xattr(b"b", &[b'#'; 700]));
        assert_eq!(posix.xattr(b"a").map(<[u8]>::len), Some(1900));
        for n in 0..2000 {
            let _ = posix.set_xattr(format!("n{n}").as_bytes(), b"");
        }
        assert!(posix.set_xattr(b"a", b"again"), "an existing attribute can be overwritten");
        posix = Posix { perm: Some(1), owner: Some((1, 1)), atime: Some(at(1)), ..posix };
        posix = Posix { special: Some(Special::Link), link: Some(b"t".to_vec()), ..posix };
        assert!(posix.tags(at(1)).len() <= TAGS_MAX, "{}", posix.tags(at(1)).len());
        assert!(posix.remove_xattr(b"a") && !posix.remove_xattr(b"a"));
    }

    #[test]
    fn setid_bits_are_cleared() {
        let dropped = |mode, is_member| {
            let mut posix = Posix::default();
            posix.clear_setid_bits(mode, is_member);
            posix.perm
        };
        for is_member in [false, true] {
            assert_eq!(dropped(0o4755, is_member), Some(0o755));
            assert_eq!(dropped(0o6755, is_member), Some(0o755));
            assert_eq!(dropped(0o755, is_member), None);
        }
        assert_eq!(dropped(0o2644, true), None, "without group execution the bit means mandatory locking");
        assert_eq!(dropped(0o2644, false), Some(0o644));
    }

    #[test]
    fn stale_keys_are_those_missing_in_new() {
        let posix = |keys: &[&str]| {
            let tags = keys.iter().map(|key| ((*key).to_owned(), "1".to_owned())).collect();
            ParsedTags::parse(tags).posix.unwrap()
        };
        let (old, new) = (posix(&["a", "b", "pdsfs.x.c", "pdsfs.x.d"]), posix(&["b", "c", "pdsfs.x.d"]));
        let stale = stale_keys((Some(&old), at(0)), (Some(&new), at(0)));
        assert_eq!(stale.into_iter().collect::<Vec<_>>(), ["a", "pdsfs.x.c"]);
    }
}
