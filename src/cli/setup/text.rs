//! The sentences of `pdsfs setup`.

use std::path::Path;

pub(super) const HEADING: &str = "This logs in to a drive of Alibaba Cloud PDS and mounts it. Ctrl-C ends it; run it \
    again to continue.";
pub(super) const ASK_DRIVE: &str = "number of the drive";
pub(super) const ASK_DIRECTORY: &str = "directory for the files (. for the suggested one)";
pub(super) const ASK_AT_LOGIN: &str = "mount it at each login from now on? (yes or no)";
pub(super) const YES_OR_NO: &str = "answer yes or no";
pub(super) const NO_SYSTEMD: &str = "systemd does not answer here, or its unit pdsfs@.service is not installed: \
    without it the drive is not mounted at login (pdsfs setup --at-login no mounts it once)";

pub(super) const AT_LOGIN_WITH_CONFIG: &str = "--at-login yes needs the default configuration file, which the unit \
    reads: leave out --config and PDSFS_CONFIG, or use --at-login no";

pub(super) fn configured_elsewhere(name: &str, file: &Path) -> String {
    format!(
        "the drive {name} is configured in {}: mount it with pdsfs mount {name}, or choose another name",
        file.display()
    )
}

pub(super) fn other_account(name: &str, account: &str, file: &Path) -> String {
    format!(
        "the drive {name} has the account {account} in {}, and setup would write the account {name}: log in with \
         pdsfs login {account} and mount it with pdsfs mount {name}, or choose another name",
        file.display()
    )
}

pub(super) fn logged_in_already(account: &str) -> String {
    format!("account {account} is logged in already (pdsfs login {account} logs in again)")
}

pub(super) fn made(place: &Path) -> String {
    format!("made the directory {}", place.display())
}

pub(super) fn wrote(path: &Path) -> String {
    format!("wrote the drive to {}", path.display())
}

pub(super) fn suggest(place: &str) -> String {
    format!("The drive becomes a directory. Suggested: {place}")
}

pub(super) fn wrong_number(count: usize) -> String {
    format!("answer a number from 1 to {count}")
}

pub(super) fn mounted_already(place: &Path) -> String {
    format!("the drive is mounted at {} already", place.display())
}

pub(super) fn not_mounted(name: &str) -> String {
    format!("the drive is not mounted: pdsfs doctor {name} says what is wrong")
}

pub(super) fn mount_later(name: &str) -> String {
    format!("mount it with: pdsfs mount {name}")
}

pub(super) fn at_login(unit: &str) -> String {
    format!("{unit} mounts it at each login")
}

pub(super) fn end(place: &Path, name: &str) -> String {
    format!(
        "Done. Your files are in {}\n  pdsfs status          shows what is being uploaded\n  pdsfs umount {name:<8}  \
         saves everything and unmounts\n  pdsfs doctor          says what to do if something does not work",
        place.display()
    )
}
