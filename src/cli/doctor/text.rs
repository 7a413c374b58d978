//! The sentences of `pdsfs doctor`.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use crate::escape::shell_word;
use crate::units::{Elapsed, Size, exact_duration};

pub(super) const STATE_OK: &str = "OK";
pub(super) const STATE_PROBLEM: &str = "PROBLEM";
pub(super) const STATE_SKIPPED: &str = "-";

pub(super) const END_WITH_PROBLEMS: &str =
    "pdsfs doctor --report FILE writes these lines to a file for a bug report, without secrets";
pub(super) const HANGS_REMEDY: &str =
    "find the disk or mount that hangs: sudo dmesg | tail, and cat /proc/mounts";
pub(super) const NO_CONFIGURATION: &str =
    "there is none, and none is needed (pdsfs config example prints one)";
pub(super) const FUSERMOUNT_NOT_NEEDED: &str = "root mounts without it";
pub(super) const NO_ROOTS: &str = "this machine has no root certificates, so no https service can be checked";
pub(super) const NO_ROOTS_REMEDY: &str =
    "sudo apt install ca-certificates (or the package of that name of your system), or set ca_file";
pub(super) const NO_REQUEST_TIMEOUT: &str = "the kernel lets requests take as long as they need";
pub(super) const REQUEST_TIMEOUT_REMEDY: &str =
    "sudo sysctl -w fs.fuse.max_request_timeout=0 fs.fuse.default_request_timeout=0";
pub(super) const NO_SYSTEMD: &str = "systemd does not answer here";
pub(super) const NO_UNITS: &str =
    "no unit pdsfs@NAME is loaded (systemctl --user enable --now pdsfs@NAME starts one)";
pub(super) const NO_MOUNTS: &str = "no drive is mounted";
pub(super) const NO_FREE_SPACE_KNOWN: &str = "the free space is not known";
pub(super) const NEEDS_ENDPOINT: &str = "not checked: the endpoint does not answer";
pub(super) const NEEDS_LOGIN: &str = "not checked: it needs a login";
pub(super) const NEEDS_DRIVE: &str = "not checked: it needs the drive";
pub(super) const NO_DATE: &str = "not checked: the service sends no time";
pub(super) const CLOCK_REMEDY: &str = "sudo timedatectl set-ntp true";
pub(super) const QUOTA_REMEDY: &str = "delete files and empty the recycle bin of the drive, or ask the administrator of the domain for more space";
pub(super) const STAGING_REMEDY: &str = "free space there, or name another disk with --spill-dir";

pub(super) fn no_answer(limit: Duration) -> String {
    format!("no answer within {}", exact_duration(limit))
}

pub(super) fn report_written(path: &Path) -> String {
    format!("wrote {}: read it before you send it", path.display())
}

pub(super) fn configuration(drives: usize, accounts: usize) -> String {
    format!("no mistakes; drives: {drives}, accounts: {accounts}")
}

pub(super) fn device(kernel: &str) -> String {
    format!("/dev/fuse can be opened; {kernel}")
}

pub(super) fn fusermount(path: &Path) -> String {
    format!("{} can mount", path.display())
}

pub(super) fn roots(count: usize) -> String {
    format!("{count} root certificates")
}

pub(super) fn staging(dir: &Path, free: u64) -> String {
    format!("{} has {} free", dir.display(), Size(free))
}

pub(super) fn staging_full(dir: &Path, free: u64, least: u64) -> String {
    let (dir, free, least) = (dir.display(), Size(free), Size(least));
    format!(
        "{dir} has {free} free; with less than {least}, only files that are written front to back can be saved"
    )
}

pub(super) fn request_timeout(limit: Duration) -> String {
    format!("the kernel gives up a request after {}, and no request takes that long", Elapsed(limit))
}

pub(super) fn request_timeout_short(limit: Duration, commit: Duration) -> String {
    format!(
        "the kernel ends the mount if a request takes longer than {}, and a close may wait {} for the drive",
        Elapsed(limit),
        Elapsed(commit)
    )
}

pub(super) fn unit_active(unit: &str, manager: &str) -> String {
    format!("{unit} of {manager} runs")
}

pub(super) fn unit_failed(unit: &str, manager: &str, state: &str) -> String {
    format!("{unit} of {manager} does not run: {state}")
}

pub(super) fn unit_remedy(unit: &str, flag: &str, sudo: &str) -> String {
    format!("{sudo}systemctl {flag}restart {unit} (journalctl {flag}-u {unit} -n 20 says why it ended)")
}

pub(super) fn mounts_alive(count: usize) -> String {
    if count == 1 { "1 mount answers".to_owned() } else { format!("{count} mounts answer") }
}

pub(super) fn mount_died(path: &Path) -> String {
    format!("the program behind {} has died", path.display())
}

pub(super) fn mount_hangs(path: &Path) -> String {
    format!("the program behind {} does not answer", path.display())
}

pub(super) fn mount_hangs_remedy(path: &Path) -> String {
    format!(
        "pdsfs umount --lazy {} removes the mount; end its program before you mount again",
        shell_path(path)
    )
}

pub(super) fn mount_died_remedy(path: &Path, name: &str) -> String {
    format!("pdsfs mount {name} mounts it again; pdsfs umount --dead {} removes it", shell_path(path))
}

pub(super) fn unnamed_mount_died_remedy(path: &Path) -> String {
    format!("pdsfs umount --dead {}", shell_path(path))
}

fn shell_path(path: &Path) -> String {
    shell_word(&path.to_string_lossy())
}

pub(super) fn resolved(host: &str, addresses: &str) -> String {
    format!("{host} is {addresses}")
}

pub(super) fn dns_remedy(host: &str) -> String {
    format!("check the network and the name: getent hosts {host}")
}

pub(super) fn endpoint(url: impl Display, took: Duration) -> String {
    format!("{url} answers after {} ms", took.as_millis())
}

pub(super) fn endpoint_remedy(url: impl Display) -> String {
    format!("check the network, a proxy and the endpoint: curl -sv {url}")
}

pub(super) fn clock(apart_s: u64) -> String {
    format!("{apart_s} s from the time of the service")
}

pub(super) fn clock_wrong(apart_s: i64) -> String {
    let (apart, side) =
        (Elapsed(Duration::from_secs(apart_s.unsigned_abs())), if apart_s > 0 { "ahead" } else { "behind" });
    format!("the clock of this machine is {apart} {side}; signatures and certificates fail by that")
}

pub(super) fn logged_in(user: &str, storage: &str) -> String {
    let user = if user.is_empty() { String::new() } else { format!(" as {user}") };
    format!("logged in{user}{storage}")
}

pub(super) fn secrets_in(storage: impl Display) -> String {
    format!("; the secrets are in the {storage}")
}

pub(super) fn drive(name: &str, id: &str) -> String {
    if name.is_empty() { format!("drive {id}") } else { format!("drive {id}, {name}") }
}

pub(super) fn drive_disabled(id: &str, status: &str) -> String {
    format!("drive {id} is {status}")
}

pub(super) const DRIVE_DISABLED_REMEDY: &str = "ask the administrator of the domain to enable it";

pub(super) fn drives_remedy(account: &str) -> String {
    format!("pdsfs drives {account} lists the drives; pdsfs login {account} --drive-id ID chooses one")
}

pub(super) fn quota(free: u64, total: u64) -> String {
    format!("{} of {} are free", Size(free), Size(total))
}

pub(super) fn quota_unlimited(used: u64) -> String {
    format!("{} are used; there is no limit", Size(used))
}

pub(super) fn quota_full(total: u64) -> String {
    format!("the drive is full: all of its {} are used", Size(total))
}
