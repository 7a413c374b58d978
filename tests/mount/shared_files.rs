//! Several handles and several processes on one file: appends, mappings, and which close commits.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::rig::{Mount, PATIENCE, Rig, fresh_bytes, wait_until};
use crate::staged_files::{assert_same_as_local, read_write};

const PART: usize = 64 << 10;

fn mount(rig: &Rig) -> Mount {
    rig.mount_with(&["--part-size", "64KiB"])
}

/// Runs a shell script with `$1` = `path`. It must succeed.
fn shell(script: &str, path: &Path) {
    let status = Command::new("sh").args(["-c", script, "sh"]).arg(path).status().unwrap();
    assert!(status.success(), "{script}: {status}");
}

fn set_append(file: &File, append: bool) {
    // SAFETY: the descriptor is open; no pointers are passed.
    unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        let flags = if append { flags | libc::O_APPEND } else { flags & !libc::O_APPEND };
        assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags), 0);
    }
}

/// Changes the bytes from `at` on through a shared mapping of the first `len` bytes.
fn write_mapped(file: &File, len: usize, at: usize, bytes: &[u8]) {
    // SAFETY: the mapping is as long as the file and is unmapped before this returns.
    unsafe {
        let (protection, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let start = libc::mmap(std::ptr::null_mut(), len, protection, shared, file.as_raw_fd(), 0);
        assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        std::slice::from_raw_parts_mut(start.cast::<u8>(), len)[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(libc::msync(start, len, libc::MS_SYNC), 0, "{}", std::io::Error::last_os_error());
        assert_eq!(libc::munmap(start, len), 0);
    }
}

#[test]
fn mapping_of_append_handle_writes_in_place() {
    let bytes = fresh_bytes(8192);
    assert_same_as_local(Some(&bytes), |path| {
        let mut file = OpenOptions::new().read(true).append(true).open(path).unwrap();
        write_mapped(&file, bytes.len(), 0, b"HELLO");
        file.write_all(b"at the end").unwrap();
        write_mapped(&file, bytes.len(), 5000, b"again");
    });
}

#[test]
fn append_flag_can_change_on_an_open_file() {
    let bytes = fresh_bytes(3000);
    for append in [true, false] {
        assert_same_as_local(Some(&bytes), |path| {
            let open = if append { libc::O_APPEND } else { 0 };
            let file = OpenOptions::new().read(true).write(true).custom_flags(open).open(path).unwrap();
            // Linux ignores the offset of `pwrite` while the flag is set.
            file.write_all_at(b"first", 10).unwrap();
            set_append(&file, !append);
            file.write_all_at(b"second", 20).unwrap();
            set_append(&file, append);
            file.write_all_at(b"third", 30).unwrap();
        });
    }
}

#[test]
fn concurrent_appends_of_processes_lose_no_line() {
    let rig = Rig::new();
    let mount = mount(&rig);
    let scripts = [
        "for i in $(seq 300); do echo a $i; done >> \"$1\"",
        "for i in $(seq 30); do echo b $i >> \"$1\"; done",
        "for i in $(seq 30); do echo c $i >> \"$1\"; done",
    ];
    let path = mount.at("log");
    fs::write(&path, "d 1\n").unwrap();
    std::thread::scope(|scope| {
        for script in scripts {
            scope.spawn(|| shell(script, &path));
        }
    });
    let mut expected = vec!["d 1".to_owned()];
    for (name, count) in [("a", 300), ("b", 30), ("c", 30)] {
        expected.extend((1..=count).map(|line| format!("{name} {line}")));
    }
    let text = String::from_utf8(rig.client().read("log").unwrap()).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    expected.sort_unstable();
    assert_eq!(lines, expected);
}

/// A process that has the file open for reading and writing. Closes it when its input ends.
struct Prober(std::process::Child);

impl Prober {
    fn open(path: &Path, script: &str) -> Self {
        let script = format!("exec 3<> \"$1\"; {script}; echo opened; read line; exec 3>&-; echo closed");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut answer = [0; 7];
        child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"opened\n");
        Self(child)
    }

    fn close(mut self) {
        drop(self.0.stdin.take());
        let mut answer = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "closed\n");
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        // The script ends with its input.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn commits(rig: &Rig) -> u64 {
    rig.server().stats().count("file/complete")
}

#[test]
fn close_without_write_keeps_a_stream_open() {
    let rig = Rig::new();
    let mount = mount(&rig);
    let bytes = fresh_bytes(6 * PART);
    for old in [None, Some(fresh_bytes(2 * PART))] {
        let name = if old.is_some() { "overwritten" } else { "new" };
        if let Some(old) = &old {
            fs::write(mount.at(name), old).unwrap();
        }
        let before = commits(&rig);
        let mut file = File::create(mount.at(name)).unwrap();
        file.write_all(&bytes[..3 * PART]).unwrap();
        shell("touch \"$1\"", &mount.at(name));
        shell("exec 3<> \"$1\"", &mount.at(name));
        Prober::open(&mount.at(name), "read -r line <&3").close();
        assert_eq!((commits(&rig), rig.client().read(name)), (before, old), "{name}");
        file.write_all(&bytes[3 * PART..]).unwrap();
        drop(file);
        assert_eq!(commits(&rig), before + 1, "{name}");
        assert!(rig.client().read(name).unwrap() == bytes, "{name}");
    }
}

/// A handle whose writes were committed has nothing of its own to commit.
#[test]
fn committed_writer_does_not_commit_for_others() {
    let rig = Rig::new();
    let mount = mount(&rig);
    fs::write(mount.at("f"), b"0123456789").unwrap();
    let mut file = read_write(&mount.at("f"));
    file.write_all(b"AB").unwrap();
    file.sync_all().unwrap();
    assert_eq!(rig.client().read("f").unwrap(), b"AB23456789");
    let other = Prober::open(&mount.at("f"), "exec 4>> \"$1\"; printf half >&4");
    let before = commits(&rig);
    drop(file);
    assert_eq!(commits(&rig), before);
    other.close();
    assert_eq!(rig.client().read("f").unwrap(), b"AB23456789half");
}

#[test]
fn last_close_of_a_process_commits_its_bytes() {
    let rig = Rig::new();
    let mount = mount(&rig);
    // Another process has the file open for writing all the time.
    fs::write(mount.at("f"), b"old").unwrap();
    let other = Prober::open(&mount.at("f"), ":");
    // The handle that is closed last is not the one that wrote.
    let open = || read_write(&mount.at("f"));
    let (one, two) = (open(), open());
    one.write_all_at(b"new", 0).unwrap();
    drop(one);
    assert_eq!(rig.client().read("f").unwrap(), b"old");
    drop(two);
    assert_eq!(rig.client().read("f").unwrap(), b"new");
    // Truncation and creation count as writing.
    open().set_len(1).unwrap();
    assert_eq!(rig.client().read("f").unwrap(), b"n");
    drop(File::create(mount.at("f")).unwrap());
    assert_eq!(rig.client().read("f").unwrap(), b"");
    let made = OpenOptions::new().write(true).create_new(true).open(mount.at("made")).unwrap();
    let reads_made = Prober::open(&mount.at("made"), ":");
    drop(made);
    assert_eq!(rig.client().read("made").unwrap(), b"");
    reads_made.close();
    other.close();
}

/// The writer ends without a close that commits; the bytes are committed by the last handle.
#[test]
fn last_writer_commits_the_bytes_of_others() {
    let rig = Rig::new();
    let mount = mount(&rig);
    // The shell opens the file. Its child writes and outlives it.
    let script = "exec 3> \"$1\"; { read line; echo child >&3; } < \"$1.go\" & echo parent >&3";
    let go = mount.path().parent().unwrap();
    let go = tempfile::tempdir_in(go).unwrap();
    let link = go.path().join("f");
    std::os::unix::fs::symlink(mount.at("f"), &link).unwrap();
    let fifo = std::ffi::CString::new(go.path().join("f.go").to_str().unwrap()).unwrap();
    // SAFETY: the path outlives the call.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let mut parent = Command::new("sh").args(["-c", script, "sh"]).arg(&link).spawn().unwrap();
    let mut start = OpenOptions::new().write(true).open(go.path().join("f.go")).unwrap();
    assert!(parent.wait().unwrap().success());
    assert_eq!(rig.client().read("f").unwrap(), b"parent\n");
    let prober = Prober::open(&mount.at("f"), ":");
    start.write_all(b"\n").unwrap();
    wait_until("the child has written", || (fs::metadata(mount.at("f")).unwrap().len() == 13).then_some(()));
    prober.close();
    wait_until("the last handle commits", || {
        (rig.client().read("f").unwrap() == b"parent\nchild\n").then_some(())
    });
}

/// During `execve` the kernel closes descriptors under a lock that readers of `/proc/PID` wait for.
#[test]
fn close_by_exec_commits() {
    let rig = Rig::new();
    let mount = mount(&rig);
    let path = CString::new(mount.at("f").as_os_str().as_bytes()).unwrap();
    let mut command = Command::new("true");
    // SAFETY: open and write are async-signal-safe; the path was made before the fork.
    unsafe {
        command.pre_exec(move || {
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_CLOEXEC;
            let fd = libc::open(path.as_ptr(), flags, 0o644);
            if fd < 0 || libc::write(fd, b"bytes".as_ptr().cast(), 5) != 5 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let (ended, status) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(command.status().unwrap()));
    assert!(status.recv_timeout(PATIENCE).expect("execve waits for its close").success());
    assert_eq!(rig.client().read("f").unwrap(), b"bytes");
}

/// The outcome of `sync PATH`, which opens the file for reading.
fn sync_by_other_process(path: &Path) -> std::process::Output {
    Command::new("sync").arg(path).env("LC_ALL", "C").output().unwrap()
}

#[test]
fn fsync_of_a_reader_commits_new_and_edited_files() {
    let rig = Rig::new();
    let mount = mount(&rig);
    fs::write(mount.at("edited"), b"0123456789").unwrap();
    let bytes = fresh_bytes(PART + 100);
    let mut new = File::create(mount.at("new")).unwrap();
    new.write_all(&bytes[..1000]).unwrap();
    let edited = read_write(&mount.at("edited"));
    edited.write_all_at(b"ABC", 4).unwrap();
    for name in ["new", "edited"] {
        let synced = sync_by_other_process(&mount.at(name));
        assert!(synced.status.success(), "{name}: {synced:?}");
    }
    assert!(rig.client().read("new").unwrap() == bytes[..1000]);
    assert_eq!(rig.client().read("edited").unwrap(), b"0123ABC789");
    new.write_all(&bytes[1000..]).unwrap();
    // A reader of the same process.
    File::open(mount.at("new")).unwrap().sync_all().unwrap();
    assert!(rig.client().read("new").unwrap() == bytes);
}

#[test]
fn fsync_of_a_reader_keeps_an_overwritten_file() {
    let rig = Rig::new();
    let mount = mount(&rig);
    let (old, new) = (fresh_bytes(2 * PART), fresh_bytes(3 * PART));
    fs::write(mount.at("f"), &old).unwrap();
    let mut file = File::create(mount.at("f")).unwrap();
    file.write_all(&new[..PART + 7]).unwrap();
    let synced = sync_by_other_process(&mount.at("f"));
    assert!(!synced.status.success(), "{synced:?}");
    assert!(String::from_utf8_lossy(&synced.stderr).contains("Device or resource busy"), "{synced:?}");
    assert!(rig.client().read("f").unwrap() == old);
    // The writer itself asks for it, through a descriptor that cannot write.
    File::open(mount.at("f")).unwrap().sync_all().unwrap();
    assert!(rig.client().read("f").unwrap() == new[..PART + 7]);
    file.write_all(&new[PART + 7..]).unwrap();
    drop(file);
    assert!(rig.client().read("f").unwrap() == new);
    assert!(sync_by_other_process(&mount.at("f")).status.success());
}
