//! The systemd units of drives, as `systemctl` lists them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::finding::Finding;
use super::text;

const CHECK: &str = "unit";
const ARGUMENTS: [&str; 5] = ["list-units", "--all", "--plain", "--no-legend", "pdsfs@*.service"];

/// Blocks until systemd answers.
pub(super) fn check() -> Vec<Finding> {
    let is_root = rustix::process::geteuid().is_root();
    let system = list(&[]).map(|listed| judge(&listed, "the system", "", "sudo "));
    let user = (!is_root).then(|| list(&["--user"])).flatten();
    let user = user.map(|listed| judge(&listed, "your user", "--user ", ""));
    if system.is_none() && user.is_none() {
        return vec![Finding::skipped(CHECK, text::NO_SYSTEMD)];
    }
    let found: Vec<_> = [system, user].into_iter().flatten().flatten().collect();
    if found.is_empty() { vec![Finding::skipped(CHECK, text::NO_UNITS)] } else { found }
}

/// `None` if there is no systemd.
fn list(flags: &[&str]) -> Option<String> {
    let output = Command::new(systemctl()).args(flags).args(ARGUMENTS).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Root runs no program that `$PATH` selects.
fn systemctl() -> PathBuf {
    let name = "systemctl";
    if rustix::process::geteuid().is_root() { PathBuf::from("/usr/bin").join(name) } else { name.into() }
}

/// Lines of `UNIT LOAD ACTIVE SUB DESCRIPTION`.
fn judge(listed: &str, manager: &str, flag: &str, sudo: &str) -> Vec<Finding> {
    let judge_line = |line: &str| {
        let mut words = line.split_whitespace();
        let (unit, _, active, sub) = (words.next()?, words.next()?, words.next()?, words.next()?);
        Some(match (active, sub) {
            ("active", _) => Finding::ok(CHECK, text::unit_active(unit, manager)),
            ("inactive", "dead") => Finding::skipped(CHECK, text::unit_failed(unit, manager, "stopped")),
            _ => {
                let detail = text::unit_failed(unit, manager, &format!("{active} ({sub})"));
                Finding::problem(CHECK, detail, text::unit_remedy(unit, flag, sudo))
            }
        })
    };
    listed.lines().filter_map(judge_line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn failed_unit_is_a_problem_with_its_command() {
        let listed = "pdsfs@photos.service loaded active running Alibaba Cloud PDS drive photos\n\
                      pdsfs@work.service loaded failed failed Alibaba Cloud PDS drive work\n\
                      pdsfs@old.service loaded activating auto-restart Alibaba Cloud PDS drive old\n\
                      pdsfs@off.service loaded inactive dead Alibaba Cloud PDS drive off\n";
        let found = judge(listed, "your user", "--user ", "");
        let states: Vec<_> = found.iter().map(|finding| finding.state).collect();
        assert_eq!(states, [State::Ok, State::Problem, State::Problem, State::Skipped]);
        let remedy = found[1].remedy.as_deref().unwrap();
        assert!(remedy.starts_with("systemctl --user restart pdsfs@work.service"), "{remedy}");
        assert!(judge("", "the system", "", "sudo ").is_empty());
    }
}
