//! Operations of a program on a directory, and the outcomes that it sees.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

const MODES: [u32; 4] = [0o644, 0o600, 0o755, 0o440];
const LINKS: [&str; 4] = ["a", "b/c", "../d", "nowhere"];

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
pub enum Op {
    Write {
        path: usize,
        len: usize,
        pieces: usize,
    },
    Read {
        path: usize,
    },
    Remove {
        path: usize,
    },
    MakeDir {
        path: usize,
    },
    RemoveDir {
        path: usize,
    },
    Rename {
        from: usize,
        to: usize,
    },
    List {
        path: usize,
    },
    Truncate {
        path: usize,
    },
    RenameWhileWriting {
        path: usize,
        to: usize,
        len: usize,
    },
    RemoveWhileWriting {
        path: usize,
        len: usize,
    },
    SetTime {
        path: usize,
        seconds: u32,
    },
    Edit {
        path: usize,
        at: usize,
        len: usize,
    },
    Append {
        path: usize,
        len: usize,
    },
    SetLen {
        path: usize,
        size: usize,
    },
    EditWhileRenaming {
        path: usize,
        to: usize,
        at: usize,
        len: usize,
    },
    EditRemoved {
        path: usize,
        at: usize,
        len: usize,
    },
    Chmod {
        path: usize,
        mode: usize,
    },
    Link {
        path: usize,
        to: usize,
    },
    Copy {
        from: usize,
        to: usize,
    },
    /// A shell appends to the file.
    ByProcess {
        path: usize,
        len: usize,
    },
    /// The handle stays open until another handle takes its slot.
    Open {
        slot: usize,
        path: usize,
    },
    WriteHandle {
        slot: usize,
        at: usize,
        len: usize,
    },
    TruncateHandle {
        slot: usize,
        size: usize,
    },
    ReadHandle {
        slot: usize,
        at: usize,
    },
    SyncHandle {
        slot: usize,
    },
    /// Closes all handles and mounts again.
    Remount,
}

/// A directory and the open handles below it.
pub struct World {
    base: PathBuf,
    open: [Option<File>; 3],
}

impl World {
    pub fn new(base: &Path) -> Self {
        Self { base: base.to_owned(), open: [None, None, None] }
    }

    fn handle(&self, slot: usize) -> std::io::Result<&File> {
        self.open[slot % 3].as_ref().ok_or_else(|| std::io::Error::from_raw_os_error(libc::EBADF))
    }
}

/// The path of a number: every number is valid, with depth 0 to 2 and four names.
fn path(base: &Path, number: usize) -> PathBuf {
    let mut path = base.join(NAMES[number % 4]);
    let mut rest = number / 4;
    for _ in 0..(rest % 3) {
        rest /= 3;
        path.push(NAMES[rest % 4]);
    }
    path
}

pub fn op() -> impl Strategy<Value = Op> {
    let path = || 0..200usize;
    let len = || prop_oneof![Just(0usize), 1..300usize, Just(256usize), 256..5000usize];
    prop_oneof![
        5 => (path(), len(), 1..6usize).prop_map(|(path, len, pieces)| Op::Write { path, len, pieces }),
        2 => path().prop_map(|path| Op::Read { path }),
        2 => path().prop_map(|path| Op::Remove { path }),
        3 => path().prop_map(|path| Op::MakeDir { path }),
        1 => path().prop_map(|path| Op::RemoveDir { path }),
        4 => (path(), path()).prop_map(|(from, to)| Op::Rename { from, to }),
        1 => path().prop_map(|path| Op::List { path }),
        1 => path().prop_map(|path| Op::Truncate { path }),
        2 => (path(), path(), len()).prop_map(|(path, to, len)| Op::RenameWhileWriting { path, to, len }),
        1 => (path(), len()).prop_map(|(path, len)| Op::RemoveWhileWriting { path, len }),
        3 => (path(), len(), len()).prop_map(|(path, at, len)| Op::Edit { path, at, len }),
        2 => (path(), len()).prop_map(|(path, len)| Op::Append { path, len }),
        2 => (path(), len()).prop_map(|(path, size)| Op::SetLen { path, size }),
        2 => (path(), path(), len(), len())
            .prop_map(|(path, to, at, len)| Op::EditWhileRenaming { path, to, at, len }),
        1 => (path(), len(), len()).prop_map(|(path, at, len)| Op::EditRemoved { path, at, len }),
        1 => (path(), 1..2_000_000_000u32).prop_map(|(path, seconds)| Op::SetTime { path, seconds }),
        10 => more(),
    ]
}

fn more() -> impl Strategy<Value = Op> {
    let path = || 0..200usize;
    let len = || prop_oneof![Just(0usize), 1..300usize, Just(256usize), 256..5000usize];
    let slot = || 0..3usize;
    prop_oneof![
        2 => (path(), 0..4usize).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        2 => (path(), 0..4usize).prop_map(|(path, to)| Op::Link { path, to }),
        3 => (path(), path()).prop_map(|(from, to)| Op::Copy { from, to }),
        1 => (path(), len()).prop_map(|(path, len)| Op::ByProcess { path, len }),
        4 => (slot(), path()).prop_map(|(slot, path)| Op::Open { slot, path }),
        5 => (slot(), len(), len()).prop_map(|(slot, at, len)| Op::WriteHandle { slot, at, len }),
        2 => (slot(), len()).prop_map(|(slot, size)| Op::TruncateHandle { slot, size }),
        3 => (slot(), len()).prop_map(|(slot, at)| Op::ReadHandle { slot, at }),
        1 => slot().prop_map(|slot| Op::SyncHandle { slot }),
        1 => Just(Op::Remount),
    ]
}

/// Few names and many handles, so that renames often meet open, unsaved files.
pub fn crowded_op() -> impl Strategy<Value = Op> {
    let path = || 0..NAMES.len();
    let len = || prop_oneof![Just(0usize), 1..300usize, Just(256usize), 256..2000usize];
    let slot = || 0..3usize;
    prop_oneof![
        3 => (path(), len(), 1..4usize).prop_map(|(path, len, pieces)| Op::Write { path, len, pieces }),
        4 => (slot(), path()).prop_map(|(slot, path)| Op::Open { slot, path }),
        6 => (slot(), len(), len()).prop_map(|(slot, at, len)| Op::WriteHandle { slot, at, len }),
        2 => (slot(), len()).prop_map(|(slot, size)| Op::TruncateHandle { slot, size }),
        2 => (slot(), len()).prop_map(|(slot, at)| Op::ReadHandle { slot, at }),
        1 => slot().prop_map(|slot| Op::SyncHandle { slot }),
        8 => (path(), path()).prop_map(|(from, to)| Op::Rename { from, to }),
        2 => (path(), path(), len()).prop_map(|(path, to, len)| Op::RenameWhileWriting { path, to, len }),
        2 => (path(), path(), len(), len())
            .prop_map(|(path, to, at, len)| Op::EditWhileRenaming { path, to, at, len }),
        2 => path().prop_map(|path| Op::Remove { path }),
        1 => (path(), path()).prop_map(|(from, to)| Op::Copy { from, to }),
        1 => (path(), len()).prop_map(|(path, size)| Op::SetLen { path, size }),
        1 => (path(), 0..4usize).prop_map(|(path, mode)| Op::Chmod { path, mode }),
    ]
}

/// Opens an existing file for reading and writing.
fn existing(path: &Path) -> std::io::Result<File> {
    fs::OpenOptions::new().read(true).write(true).open(path)
}

/// The outcome of an operation as text.
pub fn apply(world: &mut World, op: &Op, bytes: &[u8]) -> Result<String, Option<i32>> {
    let base = &world.base.clone();
    let outcome = match op {
        Op::Write { path: p, len, pieces } => File::create(path(base, *p)).and_then(|mut file| {
            bytes[..*len].chunks((len / pieces).max(1)).try_for_each(|piece| file.write_all(piece))?;
            file.sync_all()?;
            Ok(String::new())
        }),
        Op::Read { path: p } => fs::read(path(base, *p)).map(|bytes| show(&bytes)),
        Op::Remove { path: p } => fs::remove_file(path(base, *p)).map(|()| String::new()),
        Op::MakeDir { path: p } => fs::create_dir(path(base, *p)).map(|()| String::new()),
        Op::RemoveDir { path: p } => fs::remove_dir(path(base, *p)).map(|()| String::new()),
        Op::Rename { from, to } => fs::rename(path(base, *from), path(base, *to)).map(|()| String::new()),
        Op::List { path: p } => fs::read_dir(path(base, *p)).map(|entries| {
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            format!("{names:?}")
        }),
        Op::Truncate { path: p } => {
            fs::OpenOptions::new().write(true).truncate(true).open(path(base, *p)).map(|_| String::new())
        }
        Op::RenameWhileWriting { path: p, to, len } => File::create(path(base, *p)).and_then(|mut file| {
            file.write_all(&bytes[..len / 2])?;
            let renamed = fs::rename(path(base, *p), path(base, *to)).map_err(|e| e.raw_os_error());
            file.write_all(&bytes[len / 2..*len])?;
            Ok(format!("{renamed:?}"))
        }),
        Op::RemoveWhileWriting { path: p, len } => File::create(path(base, *p)).and_then(|mut file| {
            file.write_all(&bytes[..len / 2])?;
            fs::remove_file(path(base, *p))?;
            file.write_all(&bytes[len / 2..*len])?;
            Ok(String::new())
        }),
        Op::Edit { path: p, at, len } => existing(&path(base, *p)).and_then(|file| {
            file.write_all_at(&bytes[..*len], *at as u64)?;
            let mut seen = vec![0; 600];
            let count = file.read_at(&mut seen, at.saturating_sub(300) as u64)?;
            Ok(show(&seen[..count]))
        }),
        Op::Append { path: p, len } => {
            let file = fs::OpenOptions::new().append(true).create(true).open(path(base, *p));
            file.and_then(|mut file| file.write_all(&bytes[..*len])).map(|()| String::new())
        }
        Op::SetLen { path: p, size } => {
            existing(&path(base, *p)).and_then(|file| file.set_len(*size as u64)).map(|()| String::new())
        }
        Op::EditWhileRenaming { path: p, to, at, len } => existing(&path(base, *p)).and_then(|file| {
            file.write_all_at(&bytes[..len / 2], *at as u64)?;
            let renamed = fs::rename(path(base, *p), path(base, *to)).map_err(|e| e.raw_os_error());
            file.write_all_at(&bytes[len / 2..*len], (at / 2) as u64)?;
            Ok(format!("{renamed:?}"))
        }),
        Op::EditRemoved { path: p, at, len } => existing(&path(base, *p)).and_then(|file| {
            fs::remove_file(path(base, *p))?;
            file.write_all_at(&bytes[..*len], *at as u64)?;
            let mut seen = vec![0; 12_000];
            let count = file.read_at(&mut seen, 0)?;
            Ok(show(&seen[..count]))
        }),
        Op::SetTime { path: p, seconds } => File::open(path(base, *p)).and_then(|file| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs((*seconds).into());
            if file.metadata()?.is_file() {
                file.set_times(fs::FileTimes::new().set_modified(time))?;
                return Ok(format!("{:?}", file.metadata()?.modified()?));
            }
            Ok(String::new())
        }),
        op => apply_more(world, op, bytes),
    };
    outcome.map_err(|error| error.raw_os_error())
}

fn apply_more(world: &mut World, op: &Op, bytes: &[u8]) -> std::io::Result<String> {
    let base = &world.base.clone();
    let done = |()| String::new();
    match op {
        Op::Chmod { path: p, mode } => {
            // Modes of directories are left out: the outcome of a create in them may depend on them.
            let (path, permissions) = (path(base, *p), Permissions::from_mode(MODES[*mode]));
            let is_file = fs::metadata(&path)?.is_file();
            if is_file { fs::set_permissions(path, permissions).map(done) } else { Ok(String::new()) }
        }
        Op::Link { path: p, to } => symlink(LINKS[*to], path(base, *p)).map(done),
        Op::Copy { from, to } => fs::copy(path(base, *from), path(base, *to)).map(|count| count.to_string()),
        Op::ByProcess { path: p, len } => {
            let mut shell = Command::new("sh");
            shell.args(["-c", "cat >> \"$1\"", "sh"]).arg(path(base, *p));
            let mut child = shell.stdin(Stdio::piped()).stderr(Stdio::null()).spawn()?;
            // A shell that cannot open the file reads nothing.
            let _ = child.stdin.take().map(|mut stdin| stdin.write_all(&bytes[..*len]));
            child.wait().map(|status| status.to_string())
        }
        Op::Open { slot, path: p } => {
            world.open[slot % 3] = None;
            let mut options = fs::OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(path(base, *p))?;
            let size = file.metadata()?.len();
            world.open[slot % 3] = Some(file);
            Ok(size.to_string())
        }
        Op::WriteHandle { slot, at, len } => {
            world.handle(*slot)?.write_all_at(&bytes[..*len], *at as u64).map(done)
        }
        Op::TruncateHandle { slot, size } => world.handle(*slot)?.set_len(*size as u64).map(done),
        Op::ReadHandle { slot, at } => {
            let mut seen = vec![0; 2000];
            let count = world.handle(*slot)?.read_at(&mut seen, *at as u64)?;
            Ok(format!("{} of {}", show(&seen[..count]), world.handle(*slot)?.metadata()?.len()))
        }
        Op::SyncHandle { slot } => world.handle(*slot)?.sync_all().map(done),
        Op::Remount => {
            world.open = [None, None, None];
            Ok(String::new())
        }
        op => panic!("{op:?} is not handled here"),
    }
}

/// A short text for bytes; different bytes have different texts.
pub fn show(bytes: &[u8]) -> String {
    format!("{} bytes {:?}", bytes.len(), &Sha256::digest(bytes)[..6])
}
