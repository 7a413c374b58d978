//! Facts about calling processes from `/proc`: which process closes a descriptor, and whether it is being
//! killed.
//!
//! FUSE passes the id of a thread. A FLUSH commits if it comes from the process that opened the file, and if
//! that process has no other descriptor of the file. Functions return `None` if `/proc` is not readable
//! (processes of other users).
//!
//! A thread that waits for a FUSE request does not die before the answer, and fuser does not report
//! interruptions. So the threads of long requests are polled.

use std::ffi::CStr;
use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, StatxFlags};
use rustix::process::{Pid, PidfdFlags};

use super::types::Caller;
use crate::ids::Ino;

/// Longest text read from a file in `/proc`, in bytes. A status begins with the groups of the thread: this has
/// room for 5,000 of them.
const PROC_TEXT_BYTES: usize = 64 << 10;

/// The process (thread group) of a thread.
pub fn thread_group(tid: u32) -> Option<u32> {
    if leads_its_group(tid) {
        return Some(tid);
    }
    parse_thread_group(&read_proc(&format!("/proc/{tid}/status"))?)
}

/// Whether a thread is the main thread of its process. Only these have a pidfd. Most callers are main
/// threads, and this check costs a tenth of reading the status text.
fn leads_its_group(tid: u32) -> bool {
    let pid = i32::try_from(tid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).is_ok())
}

/// SIGKILL in a signal mask. The kernel turns every fatal signal into SIGKILL for all threads of the process.
const KILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
/// Kernel flags of a task: it is exiting; a signal ended it.
const PF_EXITING: u64 = 0x4;
const PF_SIGNALED: u64 = 0x400;

/// Answers about processes that need rights this process may lack. They block.
pub trait ProcessInspector: std::fmt::Debug + Send + Sync {
    /// Whether the process of a thread that exits dies of a signal.
    fn dies_of_signal(&self, tid: u32) -> Option<bool>;

    /// Whether a process has a file of this mount open for writing. The descriptor that is being closed does not
    /// count: the kernel has removed it already. A process that exits has none.
    fn holds_open(&self, tgid: u32, ino: Ino) -> Option<bool>;
}

/// The answers that this process can read itself.
#[derive(Clone, Copy, Debug)]
pub struct OwnInspector {
    device: Device,
}

impl OwnInspector {
    /// For a mount with this device number (`major:minor`).
    pub fn new(device: &str) -> Option<Self> {
        Device::parse(device).map(|device| Self { device })
    }
}

impl ProcessInspector for OwnInspector {
    fn dies_of_signal(&self, tid: u32) -> Option<bool> {
        death_by_signal(tid)
    }

    fn holds_open(&self, tgid: u32, ino: Ino) -> Option<bool> {
        holds_open(tgid, ino, self.device)
    }
}

/// Whether a thread is being killed by a fatal signal. It does not see an answer any more.
pub fn is_killed(tid: u32, inspector: Option<&dyn ProcessInspector>) -> bool {
    tid != 0
        && (read_proc(&format!("/proc/{tid}/status")).is_some_and(|status| has_kill_pending(&status))
            || dies_of_signal(tid, inspector))
}

/// Whether the process of a thread that closes its files at exit is dying of a signal. `inspector` is asked if
/// this process may not read the exit code.
pub fn dies_of_signal(tid: u32, inspector: Option<&dyn ProcessInspector>) -> bool {
    let death = death_by_signal(tid).or_else(|| inspector?.dies_of_signal(tid));
    death.unwrap_or_else(|| is_signaled_with_its_first(tid))
}

/// As [`dies_of_signal`]; `None` if the exit code is not readable.
///
/// The exit code decides. [`PF_SIGNALED`] alone does not: the other threads of a process that exits by itself
/// are ended by a signal too, and one of them may be the last to close the files.
fn death_by_signal(tid: u32) -> Option<bool> {
    // A thread that exits has given its memory back. The text of `stat` waits for a running `execve`, which may
    // wait for the answer to a close.
    if read_proc(&format!("/proc/{tid}/status"))?.contains("\nVmSize:") {
        return Some(false);
    }
    let Some(end) = ThreadEnd::of(tid) else { return Some(false) };
    if end.exit_code != 0 {
        return Some(end.exit_code & 0x7f != 0);
    }
    // The code was 0, or this process may not read it. The same right is needed for the link.
    fs::read_link(format!("/proc/{tid}/cwd")).is_ok().then_some(false)
}

/// The best guess without the exit code. The thread that ends its process by itself is not signalled. It is almost
/// always the first one.
fn is_signaled_with_its_first(tid: u32) -> bool {
    let is_signaled = |tid| ThreadEnd::of(tid).is_some_and(|end| end.is_signaled);
    is_signaled(tid) && thread_group(tid).is_some_and(is_signaled)
}

/// How a thread ends.
#[derive(Debug, PartialEq, Eq)]
struct ThreadEnd {
    is_signaled: bool,
    /// As in wait(2). 0 if it is not readable.
    exit_code: u64,
}

impl ThreadEnd {
    /// `None` unless the thread is exiting.
    fn of(tid: u32) -> Option<Self> {
        Self::parse(&read_proc(&format!("/proc/{tid}/stat"))?)
    }

    /// Field 9 has the flags. Field 52 has the exit code. Field 2 is a name in parentheses.
    fn parse(stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3)?.parse::<u64>().ok();
        let flags = field(9).filter(|flags| flags & PF_EXITING != 0)?;
        Some(Self { is_signaled: flags & PF_SIGNALED != 0, exit_code: field(52)? })
    }
}

/// Whether a thread is in the part of `execve` that closes descriptors: its process has the memory of the new
/// program, and the program is not loaded yet.
pub fn is_in_execve(tid: u32) -> bool {
    read_proc(&format!("/proc/{tid}/status")).is_some_and(|status| has_no_program(&status))
}

fn has_no_program(status: &str) -> bool {
    let code = status.lines().find_map(|line| line.strip_prefix("VmExe:"));
    code.is_some_and(|code| code.trim() == "0 kB")
}

fn has_kill_pending(status: &str) -> bool {
    let pending = status.lines().filter_map(|line| {
        let hex = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(hex.trim(), 16).ok()
    });
    pending.fold(0, |all, signals| all | signals) & KILL_BIT != 0
}

/// The rights of a thread that decide whether its change of a file clears set-ID bits.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct SetIdRights {
    /// `CAP_FSETID`: its writes clear nothing.
    pub keeps_bits: bool,
    /// All groups, in the order of `/proc`.
    groups: Vec<u32>,
}

impl SetIdRights {
    /// Read from `/proc`; derived from user and group if that is not readable.
    pub fn of(caller: Caller) -> Self {
        let known = read_proc(&format!("/proc/{}/status", caller.tid)).and_then(|text| Self::parse(&text));
        let mut rights = known.unwrap_or(Self { keeps_bits: caller.uid == 0, groups: Vec::new() });
        rights.groups.push(caller.gid);
        rights
    }

    pub fn is_member(&self, group: u32) -> bool {
        self.keeps_bits || self.groups.contains(&group)
    }

    fn parse(status: &str) -> Option<Self> {
        /// `CAP_FSETID` in a capability mask.
        const FSETID_BIT: u64 = 1 << 4;
        let field = |key| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let effective = u64::from_str_radix(field("CapEff:")?, 16).ok()?;
        let groups = field("Groups:")?.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect();
        Some(Self { keeps_bits: effective & FSETID_BIT != 0, groups })
    }
}

/// The beginning of a file in `/proc`, in one read: the kernel generates the text for each read.
fn read_proc(path: &str) -> Option<String> {
    let mut text = vec![0; PROC_TEXT_BYTES];
    let bytes = fs::File::open(path).ok()?.read(&mut text).ok()?;
    text.truncate(bytes);
    // A process name may be invalid UTF-8.
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn parse_thread_group(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// A device number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    /// Parses `major:minor`.
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// Looks at every descriptor of the process, about 3 us each.
fn holds_open(tgid: u32, ino: Ino, device: Device) -> Option<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let links = rustix::fs::open(format!("/proc/{tgid}/fd"), flags, Mode::empty()).ok()?;
    for entry in Dir::read_from(&links).ok()? {
        let Ok(entry) = entry else { return None };
        let name = entry.file_name();
        // A descriptor may be closed between the steps. `.` and `..` are on another device.
        let is_same = identity_of(&links, name).is_some_and(|found| found == (ino, device));
        if is_same && can_write(&links, name) {
            return Some(true);
        }
    }
    Some(false)
}

/// The inode and device of an open file, from kernel data only: a normal stat would send a request to this
/// file system. The text in `/proc/PID/fdinfo` has the inode since Linux 5.14 only, and costs twice as much.
fn identity_of(links: &OwnedFd, name: &CStr) -> Option<(Ino, Device)> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(links, name, flags, StatxFlags::INO).ok()?;
    Some((Ino(stat.stx_ino), Device { major: stat.stx_dev_major, minor: stat.stx_dev_minor }))
}

/// Whether a descriptor was opened for writing: the kernel shows it in the mode of the link.
fn can_write(links: &OwnedFd, name: &CStr) -> bool {
    let link = rustix::fs::statat(links, name, AtFlags::SYMLINK_NOFOLLOW);
    link.is_ok_and(|link| Mode::from_raw_mode(link.st_mode).contains(Mode::WUSR))
}

/// Fuzz target: texts of `/proc`. Users choose the name of a process.
#[cfg(any(test, fuzzing))]
pub fn check_proc_texts(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let end = ThreadEnd::parse(&text);
    // A name with parentheses and fields changes nothing.
    let name = text.replace('\n', " ");
    let running = format!("7 ({name}) S 1 7 7 0 -1 0 {}", "0 ".repeat(45));
    assert!(ThreadEnd::parse(&running).is_none(), "{end:?} {running}");
    drop(SetIdRights::parse(&text));
    let _ = (parse_thread_group(&text), has_no_program(&text), has_kill_pending(&text), Device::parse(&text));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn thread_group_is_found_for_any_thread() {
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
    fn holds_open_matches_inode_device_and_access() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let facts = file.as_file().metadata().unwrap();
        let ino = Ino(facts.ino());
        let device = Device { major: libc::major(facts.dev()), minor: libc::minor(facts.dev()) };
        let other = Device { minor: device.minor + 1, ..device };
        let own = std::process::id();
        assert_eq!(holds_open(own, ino, device), Some(true));
        assert_eq!(holds_open(own, ino, other), Some(false));
        assert_eq!(holds_open(own, Ino(u64::MAX), device), Some(false));
        let path = file.into_temp_path();
        assert_eq!(holds_open(own, ino, device), Some(false), "closed");
        let only_path = rustix::fs::open(&*path, OFlags::PATH, Mode::empty()).unwrap();
        let reader = fs::File::open(&path).unwrap();
        assert_eq!(holds_open(own, ino, device), Some(false), "no descriptor can write");
        drop((reader, only_path));
        let appender = fs::File::options().append(true).open(&path).unwrap();
        assert_eq!(holds_open(own, ino, device), Some(true));
        drop(appender);
        assert_eq!(holds_open(u32::MAX, ino, device), None);
    }

    /// Hides the texts of all descriptors of this process from this thread. Returns whether it may.
    fn hide_fdinfo() -> bool {
        let fdinfo = std::ffi::CString::new(format!("/proc/{}/fdinfo", std::process::id())).unwrap();
        let (none, root, tmpfs) = (std::ptr::null(), c"/".as_ptr(), c"tmpfs".as_ptr());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: the strings end with NUL. The thread gets a mount namespace of its own before it mounts.
        unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(none, root, none, private, none.cast()) == 0
                && libc::mount(tmpfs, fdinfo.as_ptr(), tmpfs, 0, none.cast()) == 0
        }
    }

    /// Kernels before 5.14 show no inodes there.
    #[test]
    fn regression_holds_open_needs_no_fdinfo() {
        let file = tempfile::tempfile().unwrap();
        let facts = file.metadata().unwrap();
        let device = Device { major: libc::major(facts.dev()), minor: libc::minor(facts.dev()) };
        let (own, ino) = (std::process::id(), Ino(facts.ino()));
        let looked = std::thread::spawn(move || hide_fdinfo().then(|| holds_open(own, ino, device)));
        // Only root may mount.
        let Some(held) = looked.join().unwrap() else { return };
        assert_eq!(held, Some(true));
    }

    #[test]
    fn killed_threads_are_detected() {
        assert!(!is_killed(std::process::id(), None) && !is_killed(0, None) && !is_killed(u32::MAX, None));
        assert!(has_kill_pending("State:\tD\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(!has_kill_pending("State:\tD\nSigPnd:\t0000000000000002\nShdPnd:\t0000000000004000\n"));
        // Checks the field numbers against the running kernel.
        let own = read_proc("/proc/self/stat").unwrap();
        assert_eq!(own.rsplit_once(')').unwrap().1.split_ascii_whitespace().count(), 50);
        assert!(ThreadEnd::parse(&own).is_none() && !dies_of_signal(std::process::id(), None));
    }

    #[test]
    fn end_of_a_thread_is_parsed() {
        let stat = |flags: u64, code: u64| {
            let between = "0 ".repeat(42);
            ThreadEnd::parse(&format!("7 (a) b) D 1 1 1 0 -1 {flags} {between}{code}\n"))
        };
        assert_eq!(stat(0x40_050c, 9), Some(ThreadEnd { is_signaled: true, exit_code: 9 }));
        assert_eq!(stat(0x40_010c, 0x100), Some(ThreadEnd { is_signaled: false, exit_code: 0x100 }));
        assert_eq!(stat(0x40_0500, 5), None, "stopped by a debugger");
        assert_eq!(ThreadEnd::parse(""), None);
    }

    #[test]
    fn zombie_of_a_killed_process_died_of_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let tid = child.id();
        assert!(!dies_of_signal(tid, None));
        child.kill().unwrap();
        // A zombie keeps its facts until it is reaped.
        let waited = rustix::process::waitid(
            rustix::process::WaitId::Pid(Pid::from_raw(tid.cast_signed()).unwrap()),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        );
        assert!(waited.unwrap().unwrap().killed());
        assert!(dies_of_signal(tid, None));
        child.wait().unwrap();
        assert!(!dies_of_signal(tid, None));
    }

    #[test]
    fn set_id_rights_come_from_proc() {
        let status = "Uid:\t7\nGroups:\t4 24 \nNoNewPrivs:\t0\nCapEff:\t0000000000000010\n";
        let rights = SetIdRights::parse(status).unwrap();
        assert_eq!(rights, SetIdRights { keeps_bits: true, groups: vec![4, 24] });
        assert_eq!(SetIdRights::parse("Groups:\t4\n"), None);
        let unknown = |uid| SetIdRights::of(Caller { uid, gid: 9, tid: u32::MAX });
        assert_eq!((unknown(0).keeps_bits, unknown(7).keeps_bits), (true, false));
        assert!(unknown(7).is_member(9) && !unknown(7).is_member(4));
        // Checks the field names against the running kernel.
        assert!(SetIdRights::parse(&read_proc("/proc/self/status").unwrap()).is_some());
    }

    #[test]
    fn all_of_many_groups_are_read() {
        let rights = std::thread::spawn(|| {
            let groups: Vec<libc::gid_t> = (1_000_000_000..1_000_002_000).collect();
            // SAFETY: the pointer and the length are those of the vector. The call changes this thread only.
            let set = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
            let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
            (set == 0).then(|| SetIdRights::of(Caller { uid: 7, gid: 9, tid }))
        });
        // Only root may set groups.
        let Some(rights) = rights.join().unwrap() else { return };
        assert!(rights.groups.contains(&1_000_001_999) && rights.keeps_bits);
    }

    #[test]
    fn proc_texts_are_parsed() {
        assert!(has_no_program("VmStk:\t     132 kB\nVmExe:\t       0 kB\n"));
        assert!(!has_no_program("State:\tZ (zombie)\n"));
        // Checks the field name against the running kernel.
        assert!(read_proc("/proc/self/status").unwrap().contains("\nVmExe:"));
        assert!(!is_in_execve(std::process::id()));
        assert_eq!(parse_thread_group("Name:\tcp\nTgid:\t42\nPid:\t43\n"), Some(42));
        assert_eq!(Device::parse("0:52"), Some(Device { major: 0, minor: 52 }));
        assert_eq!(Device::parse("52"), None);
    }
}
