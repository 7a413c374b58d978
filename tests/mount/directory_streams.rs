//! Directory streams of libc: rewinds and positions while the directory changes.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::rig::Rig;

/// A `DIR *`.
struct Stream(*mut libc::DIR);

impl Stream {
    fn open(path: &Path) -> Self {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path outlives the call.
        let stream = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!stream.is_null(), "{}", std::io::Error::last_os_error());
        Self(stream)
    }

    fn rewind(&mut self) {
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(self.0) };
    }

    fn position(&mut self) -> libc::c_long {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0) }
    }

    fn seek(&mut self, position: libc::c_long) {
        // SAFETY: the stream is open, and the position is one of its own.
        unsafe { libc::seekdir(self.0, position) };
    }

    fn next(&mut self) -> Option<String> {
        // SAFETY: the stream is open; the entry is valid until the next call.
        unsafe {
            let entry = libc::readdir(self.0);
            let name = (!entry.is_null()).then(|| CStr::from_ptr((*entry).d_name.as_ptr()));
            name.map(|name| name.to_str().unwrap().to_owned())
        }
    }

    /// The names from here to the end, without `.` and `..`.
    fn names(&mut self) -> BTreeSet<String> {
        let names = std::iter::from_fn(|| self.next());
        names.filter(|name| name != "." && name != "..").collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is open and not used any more.
        unsafe { libc::closedir(self.0) };
    }
}

fn names(numbers: std::ops::Range<usize>) -> BTreeSet<String> {
    numbers.map(|number| format!("f{number}")).collect()
}

#[test]
fn rewind_shows_names_added_since_the_open() {
    let rig = Rig::new();
    let mount = rig.mount();
    for is_listed in [false, true] {
        let dir = mount.at(format!("d-{is_listed}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("f0"), "").unwrap();
        if is_listed {
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        }
        let mut stream = Stream::open(&dir);
        fs::write(dir.join("f1"), "").unwrap();
        fs::write(dir.join("f2"), "").unwrap();
        stream.rewind();
        assert_eq!(stream.names(), names(0..3), "rewound before the first read");
        fs::remove_file(dir.join("f0")).unwrap();
        fs::write(dir.join("f3"), "").unwrap();
        stream.rewind();
        assert_eq!(stream.names(), names(1..4), "rewound at the end");
        fs::write(dir.join("f4"), "").unwrap();
        stream.rewind();
        assert_eq!(stream.next().as_deref(), Some("."));
        stream.rewind();
        assert_eq!(stream.names(), names(1..5), "rewound after the first name");
    }
}

#[test]
fn positions_stay_valid_until_a_rewind() {
    const COUNT: usize = 150;
    let rig = Rig::new();
    let mount = rig.mount();
    for number in 0..COUNT {
        rig.client().create_folder("root", &format!("f{number}"));
    }
    let mut stream = Stream::open(mount.path());
    let mut entries = Vec::new();
    loop {
        let position = stream.position();
        let Some(name) = stream.next() else { break };
        entries.push((position, name));
    }
    assert_eq!(entries.len(), COUNT + 2);
    // Changes before, at and behind the positions.
    for (_, name) in [&entries[4], &entries[50], &entries[90]] {
        fs::remove_dir(mount.at(name)).unwrap();
    }
    fs::create_dir(mount.at("a new name")).unwrap();
    fs::create_dir(mount.at("z new name")).unwrap();
    for at in [51, 3, 120, 2, 91] {
        stream.seek(entries[at].0);
        assert_eq!(stream.next().as_ref(), Some(&entries[at].1), "{at}");
        let expected = entries.iter().skip(at + 1).map(|(_, name)| name);
        let expected: BTreeSet<_> = expected.filter(|name| mount.at(name).exists()).cloned().collect();
        assert_eq!(stream.names(), expected, "{at}");
    }
}
