//! Facts about calling processes from `/proc`: who closes a descriptor, and who is being killed.
//!
//! FUSE gives the id of a thread. Whether its process is the one that opened a file, and whether
//! it still has the file open through another descriptor, decides whether a FLUSH is the close that
//! commits. Where `/proc` does not tell (another user's process), the answer is `None`.
//!
//! A thread that waits for a request which has been read does not even die before its answer, and of an interruption
//! `fuser` tells nothing. So whoever waits long is looked at.

use std::ffi::CString;
use std::fs;
use std::io::Read as _;
use std::os::fd::{FromRawFd as _, OwnedFd};

use crate::ids::Ino;

/// Longest text that is read of a file in `/proc`: what is looked for stands at its beginning.
const PROC_TEXT_BYTES: usize = 4096;

/// The thread group (process) of a thread.
pub fn thread_group(tid: u32) -> Option<u32> {
    if leads_its_group(tid) {
        return Some(tid);
    }
    parse_thread_group(&read_proc(&format!("/proc/{tid}/status"))?)
}

/// Whether a thread is the first of its process: a descriptor exists for processes only. Most callers
/// are, and asking costs a tenth of what the text costs.
fn leads_its_group(tid: u32) -> bool {
    // SAFETY: no pointers are passed, and the descriptor is ours to close.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(tid), 0 as libc::c_long);
        let Ok(fd @ 0..) = i32::try_from(fd) else { return false };
        drop(OwnedFd::from_raw_fd(fd));
    }
    true
}

/// SIGKILL among the signals of a thread; every signal that ends a process becomes one for all its threads.
const KILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
/// The kernel's flag of a task that is exiting.
const PF_EXITING: u64 = 4;

/// Whether a thread is being killed, by `kill -9` or another signal that ends it: it hears no answer any more.
pub fn is_killed(tid: u32) -> bool {
    tid != 0
        && (read_proc(&format!("/proc/{tid}/status")).is_some_and(|status| has_kill_pending(&status))
            || read_proc(&format!("/proc/{tid}/stat")).is_some_and(|stat| dies_of_signal(&stat)))
}

fn has_kill_pending(status: &str) -> bool {
    let pending = status.lines().filter_map(|line| {
        let hex = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(hex.trim(), 16).ok()
    });
    pending.fold(0, |all, signals| all | signals) & KILL_BIT != 0
}

/// Field 9 has the flags, field 52 the exit code, where one may see it; field 2 is a name in parentheses.
fn dies_of_signal(stat: &str) -> bool {
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3)?.parse::<u64>().ok();
    let is_exiting = field(9).is_some_and(|flags| flags & PF_EXITING != 0);
    is_exiting && field(52).is_some_and(|code| code & 0x7f != 0)
}

/// The beginning of a file in `/proc`, in one read: those texts are made anew for each.
fn read_proc(path: &str) -> Option<String> {
    let mut text = vec![0; PROC_TEXT_BYTES];
    let bytes = fs::File::open(path).ok()?.read(&mut text).ok()?;
    text.truncate(bytes);
    // The name of a process may be anything.
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn parse_thread_group(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// A device as the kernel numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    /// Reads `major:minor`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// Whether a process has an inode of a device open for writing (the descriptor that is being closed is no
/// longer among its descriptors).
pub fn holds_open(tgid: u32, ino: Ino, device: Device) -> Option<bool> {
    for entry in fs::read_dir(format!("/proc/{tgid}/fdinfo")).ok()? {
        // A descriptor may be closed between the steps.
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        let Some(text) = read_proc(&format!("/proc/{tgid}/fdinfo/{}", name.display())) else { continue };
        if parse_ino(&text) != Some(ino.0) || !can_write(&text) {
            continue;
        }
        // Other file systems have an inode of this number too.
        let link = format!("/proc/{tgid}/fd/{}", name.display());
        if device_of(&link).is_none_or(|other| other == device) {
            return Some(true);
        }
    }
    Some(false)
}

/// The device of an open file, from what the kernel knows of it: asking the file system behind it
/// would be asking ourselves.
fn device_of(link: &str) -> Option<Device> {
    let path = CString::new(link).ok()?;
    let flags = libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    // SAFETY: zeroed is a valid statx; path and buffer outlive the call.
    let (failed, facts) = unsafe {
        let mut facts: libc::statx = std::mem::zeroed();
        let failed = libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_TYPE, &raw mut facts);
        (failed, facts)
    };
    (failed == 0).then_some(Device { major: facts.stx_dev_major, minor: facts.stx_dev_minor })
}

/// Whether a descriptor was opened for writing; one that does not tell may have been.
fn can_write(fdinfo: &str) -> bool {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok())
        .is_none_or(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

fn parse_ino(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("ino:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn our_own_threads_are_in_our_group() {
        let own = Some(std::process::id());
        let (tid, group) = std::thread::spawn(|| {
            let link = fs::read_link("/proc/thread-self").unwrap();
            let tid = link.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap();
            (Some(tid), thread_group(tid))
        })
        .join()
        .unwrap();
        assert_ne!(tid, own);
        assert_eq!((group, thread_group(std::process::id())), (own, own));
        assert_eq!(thread_group(u32::MAX), None);
    }

    #[test]
    fn an_open_file_is_seen_on_its_device_only() {
        let file = tempfile::tempfile().unwrap();
        let facts = file.metadata().unwrap();
        let ino = Ino(facts.ino());
        let device = Device { major: libc::major(facts.dev()), minor: libc::minor(facts.dev()) };
        let other = Device { minor: device.minor + 1, ..device };
        assert_eq!(holds_open(std::process::id(), ino, device), Some(true));
        assert_eq!(holds_open(std::process::id(), ino, other), Some(false));
        drop(file);
        assert_eq!(holds_open(u32::MAX, ino, device), None);
    }

    #[test]
    fn who_is_killed_is_told_from_who_goes_on_or_exits() {
        assert!(!is_killed(std::process::id()) && !is_killed(0) && !is_killed(u32::MAX));
        assert!(has_kill_pending("State:\tD\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(!has_kill_pending("State:\tD\nSigPnd:\t0000000000000002\nShdPnd:\t0000000000004000\n"));
        let stat = |flags: u64, code: u64| {
            let between = "0 ".repeat(42);
            format!("7 (a) b) D 1 1 1 0 -1 {flags} {between}{code}\n")
        };
        assert!(dies_of_signal(&stat(0x40_0104, 9)) && dies_of_signal(&stat(0x4, 2)));
        assert!(!dies_of_signal(&stat(0x4, 0x100)), "exits with 1");
        assert!(!dies_of_signal(&stat(0x40_0100, 5)), "is stopped by a debugger");
        assert!(!dies_of_signal(""));
        // What the fields are, by the kernel itself.
        let own = read_proc("/proc/self/stat").unwrap();
        assert_eq!(own.rsplit_once(')').unwrap().1.split_ascii_whitespace().count(), 50);
        assert!(!dies_of_signal(&own));
    }

    #[test]
    fn kernel_texts_are_read() {
        assert_eq!(parse_thread_group("Name:\tcp\nTgid:\t42\nPid:\t43\n"), Some(42));
        assert_eq!(parse_ino("pos:\t0\nflags:\t02\nmnt_id:\t1\nino:\t7\n"), Some(7));
        assert_eq!(parse_ino("pos:\t0\n"), None);
        assert!(can_write("flags:\t0100001\n") && can_write("flags:\t02\n") && can_write(""));
        assert!(!can_write("flags:\t0100000\n"));
        assert_eq!(Device::parse("0:52"), Some(Device { major: 0, minor: 52 }));
        assert_eq!(Device::parse("52"), None);
    }
}
