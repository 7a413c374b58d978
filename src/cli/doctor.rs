//! `pdsfs doctor`: checks everything that a mount needs, and names the command that mends what is wrong.
//!
//! No check is a second implementation: each calls the function that the mount, the login or the unmount uses. All
//! run at the same time, and each has a limit, so a service or a disk that hangs costs one line and not the answer.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::finding::{Finding, State};
use self::targets::Target;
use super::config::ConfigArgs;
use super::output::{print_line, print_message};
use crate::error::{Error, ErrorKind, Result};
use crate::escape::escaped_json;

mod finding;
mod machine;
mod mounts;
mod report;
mod service;
mod targets;
mod text;
mod units;

/// Limit on one group of checks of this machine.
const MACHINE_MAX: Duration = Duration::from_secs(10);
/// Limit on all checks, longer than the steps of a service together.
const ALL_MAX: Duration = Duration::from_secs(40);

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 no problem was found, 1 at least one line says PROBLEM, 2 wrong arguments."
)]
pub(super) struct DoctorArgs {
    /// Check the service of this drive or account only [default: all drives of the configuration, and all
    /// accounts]
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print JSON: {version, kernel, ok, checks: [{check, drive, state, detail, remedy}]}; state is ok, problem or
    /// skipped
    #[arg(long)]
    json: bool,
    /// Also write a new file for a bug report: versions, these lines and the settings, without secrets, names of
    /// drives, users and hosts
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Probe one mount, and exit with 3 if its daemon is gone, 4 if it hangs (for doctor itself)
    #[arg(long, hide = true, value_name = "DIR", exclusive = true)]
    probe: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// The result, for `--json`.
#[derive(Serialize)]
struct Diagnosis<'a> {
    version: &'static str,
    kernel: String,
    ok: bool,
    checks: &'a [Finding],
}

/// Findings that are still being made.
struct Pending {
    /// The check that a group without an answer is reported by.
    name: &'static str,
    drive: Option<String>,
    group: JoinHandle<Vec<Finding>>,
}

impl Pending {
    fn new(name: &'static str, group: impl Future<Output = Vec<Finding>> + Send + 'static) -> Self {
        Self { name, drive: None, group: tokio::spawn(group) }
    }

    /// Ends at `end`, also if the task keeps its thread.
    async fn found(self, end: Instant) -> Vec<Finding> {
        let found = match tokio::time::timeout_at(end, self.group).await {
            Ok(Ok(found)) => return found,
            Ok(Err(e)) => Finding::error(self.name, &Error::with_source(ErrorKind::Io, "a check stopped", e)),
            Err(_) => Finding::problem(self.name, text::no_answer(ALL_MAX), text::HANGS_REMEDY),
        };
        vec![Finding { drive: self.drive, ..found }]
    }
}

pub(super) async fn run(args: DoctorArgs) -> Result<ExitCode> {
    if let Some(path) = &args.probe {
        return mounts::probe(path);
    }
    let report = args.report.as_deref().map(report::create).transpose()?;
    let (configuration, targets) = targets::find(args.name.as_deref(), &args.config);
    let mut findings = vec![configuration];
    let (pending, end) = (start(&targets), Instant::now() + ALL_MAX);
    let show = |found: &[Finding]| if args.json { Ok(()) } else { found.iter().try_for_each(print) };
    show(&findings)?;
    for group in pending {
        let found = group.found(end).await;
        show(&found)?;
        findings.extend(found);
    }
    let is_ok = findings.iter().all(|finding| finding.state != State::Problem);
    if args.json {
        let (version, kernel) = (env!("CARGO_PKG_VERSION"), machine::kernel());
        let diagnosis = Diagnosis { version, kernel, ok: is_ok, checks: &findings };
        let json = serde_json::to_string_pretty(&diagnosis);
        print_line(escaped_json(&json.map_err(|e| Error::from_source(ErrorKind::Io, e))?))?;
    } else if !is_ok {
        print_message(text::END_WITH_PROBLEMS);
    }
    if let (Some(file), Some(path)) = (report, &args.report) {
        report::write(file, &findings, &targets, &args.config)?;
        print_message(text::report_written(path));
    }
    Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts all checks; they come in the order of the lines.
fn start(targets: &[Target]) -> Vec<Pending> {
    let machine = machine::groups(targets).into_iter().map(|(name, group)| {
        Pending::new(name, async move {
            // A thread that hangs is left behind.
            let group = tokio::task::spawn_blocking(group);
            match tokio::time::timeout(MACHINE_MAX, group).await {
                Ok(Ok(found)) => found,
                Ok(Err(e)) => vec![Finding::error(name, &Error::from_source(ErrorKind::Io, e))],
                Err(_) => vec![Finding::problem(name, text::no_answer(MACHINE_MAX), text::HANGS_REMEDY)],
            }
        })
    });
    let services = targets.iter().map(|target| Pending {
        drive: target.name.clone(),
        ..Pending::new("login", service::check(target.clone()))
    });
    machine.chain([Pending::new("mounts", mounts::check())]).chain(services).collect()
}

fn print(finding: &Finding) -> Result<()> {
    let state = match finding.state {
        State::Ok => text::STATE_OK,
        State::Problem => text::STATE_PROBLEM,
        State::Skipped => text::STATE_SKIPPED,
    };
    let drive = finding.drive.as_ref().map(|drive| format!("{drive}: ")).unwrap_or_default();
    print_line(format_args!("{:<16} {state:<8} {drive}{}", finding.check, finding.detail))?;
    finding.remedy.iter().try_for_each(|remedy| print_line(format_args!("{:<26}{remedy}", "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn check_that_keeps_its_thread_is_reported() {
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let group = Pending::new("login", async move {
            hung.recv().unwrap_err();
            Vec::new()
        });
        let found = group.found(Instant::now() + Duration::from_millis(10)).await;
        drop(release);
        assert!(found.len() == 1 && found[0].state == State::Problem, "{found:?}");
        assert!(found[0].check == "login" && found[0].detail.contains("no answer within"), "{found:?}");
    }
}
