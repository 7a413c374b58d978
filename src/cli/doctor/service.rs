//! Checks of the service of one drive, from its name to its free space. Each needs the one before it.

use std::time::{Duration, Instant};

use url::Url;

use super::finding::{Finding, PrivateWord};
use super::targets::Target;
use super::text;
use crate::auth::{AccountSummary, Credential, unix_now_s};
use crate::daemon::resolve::{DriveAccess, drive_access};
use crate::error::{Error, ErrorKind, Result};
use crate::pds::domain;
use crate::pds::session::Session;
use crate::pds::transport::{ExtraRoots, Transport, TransportLimits, TrustedPeers};
use crate::pds::types::DriveInfo;

/// Limit on one check.
const STEP_MAX: Duration = Duration::from_secs(8);
const LIMITS: TransportLimits = TransportLimits {
    connect: Duration::from_secs(5),
    call: Duration::from_secs(7),
    idle: Duration::from_secs(7),
    calls_max: 4,
};
/// Signatures and tokens allow for minutes.
const CLOCK_APART_MAX_S: u64 = 60;
/// The checks after the endpoint.
const AFTER_ENDPOINT: [&str; 4] = ["clock", "login", "drive", "quota"];

/// All checks of the service of this drive.
pub(super) async fn check(target: Target) -> Vec<Finding> {
    let read = target.clone();
    let found = match bounded(blocking(move || read_access(&read))).await {
        Ok(found) => {
            let private = found.private_words();
            let findings = check_access(found).await;
            findings.into_iter().map(|finding| finding.with_private(private.clone())).collect()
        }
        Err(error) => vec![Finding::error("login", &error)],
    };
    match &target.name {
        Some(name) => found.into_iter().map(|finding| finding.at(name)).collect(),
        None => found,
    }
}

/// What the checks read from the disk of this machine.
struct FoundAccess {
    access: DriveAccess,
    peers: TrustedPeers,
    /// `None` for a token.
    summary: Option<AccountSummary>,
    /// The account that a new login would replace, else empty.
    account: String,
}

impl FoundAccess {
    fn private_words(&self) -> Vec<PrivateWord> {
        let host = self.access.endpoint.host_str().map(|host| (host.to_owned(), "ENDPOINT"));
        let user = self.summary.as_ref().map(|summary| (summary.user.clone(), "USER"));
        [(self.access.drive_id.to_string(), "ID")].into_iter().chain(host).chain(user).collect()
    }
}

/// Blocks: a disk may hang.
fn read_access(target: &Target) -> Result<FoundAccess> {
    let access = drive_access(&target.settings, target.name.as_deref())?;
    let roots = ExtraRoots::read(target.settings.ca_file.as_deref())?;
    let peers = TrustedPeers { roots, ..TrustedPeers::default() };
    let summary = match &access.credential {
        Credential::Account(account) => account.summary().ok(),
        _ => None,
    };
    let account = summary.as_ref().and_then(|_| target.account_name()).unwrap_or_default();
    Ok(FoundAccess { access, peers, summary, account })
}

/// A thread that hangs is left behind.
async fn blocking<T: Send + 'static>(step: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(step).await.map_err(|e| Error::from_source(ErrorKind::Io, e))?
}

async fn check_access(read: FoundAccess) -> Vec<Finding> {
    let (access, peers) = (&read.access, &read.peers);
    let transport = match Transport::new(LIMITS, &access.endpoint, peers.clone()) {
        Ok(transport) => transport,
        Err(error) => return vec![Finding::error("endpoint", &error)],
    };
    let mut found = vec![dns(&transport, &access.endpoint).await];
    let (endpoint, unix_s) = endpoint(&transport, &access.endpoint).await;
    let Some(unix_s) = unix_s else {
        found.push(endpoint);
        found.extend(AFTER_ENDPOINT.map(|check| Finding::skipped(check, text::NEEDS_ENDPOINT)));
        return found;
    };
    found.extend([endpoint, clock(unix_s)]);
    found.extend(drive(read).await);
    found
}

/// Bounds a check by [`STEP_MAX`].
async fn bounded<T>(step: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || Error::new(ErrorKind::Timeout, text::no_answer(STEP_MAX));
    tokio::time::timeout(STEP_MAX, step).await.unwrap_or_else(|_| Err(late()))
}

async fn dns(transport: &Transport, url: &Url) -> Finding {
    match bounded(transport.resolve(url)).await {
        Ok(found) => {
            let addresses: Vec<_> = found.addresses.iter().take(3).map(ToString::to_string).collect();
            Finding::ok("dns", text::resolved(&found.host, &addresses.join(", ")))
        }
        Err(error) => {
            let host = url.host_str().unwrap_or_default();
            Finding::problem("dns", error.to_string(), text::dns_remedy(host))
        }
    }
}

/// The time of the service is `None` if there is no answer; the answer may have none.
async fn endpoint(transport: &Transport, url: &Url) -> (Finding, Option<Option<i64>>) {
    let (check, began) = ("endpoint", Instant::now());
    let display = url.as_str().trim_end_matches('/');
    match bounded(transport.check_endpoint(url)).await {
        Ok(answer) => (Finding::ok(check, text::endpoint(display, began.elapsed())), Some(answer.unix_s)),
        Err(error) => {
            let detail = format!("{display}: {error}");
            (Finding::problem(check, detail, text::endpoint_remedy(display)), None)
        }
    }
}

fn clock(service_unix_s: Option<i64>) -> Finding {
    let now = i64::try_from(unix_now_s()).unwrap_or(i64::MAX);
    match service_unix_s.map(|service| now.saturating_sub(service)) {
        None => Finding::skipped("clock", text::NO_DATE),
        Some(apart) if apart.unsigned_abs() > CLOCK_APART_MAX_S => {
            Finding::problem("clock", text::clock_wrong(apart), text::CLOCK_REMEDY)
        }
        Some(apart) => Finding::ok("clock", text::clock(apart.unsigned_abs())),
    }
}

/// The login, the drive and its free space: one call shows them all.
async fn drive(read: FoundAccess) -> [Finding; 3] {
    let FoundAccess { access, peers, summary, account } = read;
    // A refresh of the token that the limit cuts off goes on: its result must be stored.
    let asked = access.clone();
    let answer = tokio::spawn(async move {
        let session = Session::new(&asked.endpoint, asked.credential, LIMITS, peers)?;
        domain::get_drive(&session, &asked.drive_id).await
    });
    let answer = async { answer.await.map_err(|e| Error::from_source(ErrorKind::Io, e))? };
    judge_drive(bounded(answer).await, &access, summary.as_ref(), &account)
}

fn judge_drive(
    answer: Result<DriveInfo>,
    access: &DriveAccess,
    summary: Option<&AccountSummary>,
    account: &str,
) -> [Finding; 3] {
    let needs = |check, why| Finding::skipped(check, why);
    let storage = summary.map(|summary| text::secrets_in(summary.secret_storage)).unwrap_or_default();
    let user = summary.map(|summary| summary.user.as_str()).unwrap_or_default();
    let login = Finding::ok("login", text::logged_in(user, &storage));
    let info = match answer {
        Ok(info) => info,
        Err(error)
            if matches!(error.kind(), ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::NoDrive) =>
        {
            let drive = Finding::problem("drive", error.to_string(), text::drives_remedy(account));
            return [login, drive, needs("quota", text::NEEDS_DRIVE)];
        }
        Err(error) => {
            let login = Finding::error("login", &error);
            return [login, needs("drive", text::NEEDS_LOGIN), needs("quota", text::NEEDS_LOGIN)];
        }
    };
    let id = access.drive_id.as_str();
    let drive = match info.status.as_str() {
        "" | "enabled" => Finding::ok("drive", text::drive(&info.drive_name, id))
            .with_private([(info.drive_name.clone(), "DRIVE")]),
        other => Finding::problem("drive", text::drive_disabled(id, other), text::DRIVE_DISABLED_REMEDY),
    };
    [login, drive, quota(&info)]
}

fn quota(info: &DriveInfo) -> Finding {
    let used = u64::try_from(info.used_size).unwrap_or(0);
    match u64::try_from(info.total_size) {
        Err(_) => Finding::ok("quota", text::quota_unlimited(used)),
        Ok(total) if used >= total => Finding::problem("quota", text::quota_full(total), text::QUOTA_REMEDY),
        Ok(total) => Finding::ok("quota", text::quota(total - used, total)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn wrong_clock_is_a_problem() {
        let now = i64::try_from(unix_now_s()).unwrap();
        assert_eq!(clock(Some(now - 2)).state, State::Ok);
        assert_eq!(clock(None).state, State::Skipped);
        for (service, side) in [(now - 3600, "ahead"), (now + 3600, "behind")] {
            let found = clock(Some(service));
            assert!(found.state == State::Problem && found.detail.contains(side), "{found:?}");
        }
    }

    #[test]
    fn full_drive_is_a_problem() {
        let info = |used, total| {
            let text = format!(r#"{{"drive_id": "1", "used_size": {used}, "total_size": {total}}}"#);
            quota(&serde_json::from_str(&text).unwrap())
        };
        assert_eq!(info(10, -1).state, State::Ok);
        assert_eq!(info(10, 11).state, State::Ok);
        let full = info(11, 11);
        assert!(
            full.state == State::Problem && full.remedy.unwrap().contains("recycle bin"),
            "{}",
            full.detail
        );
    }
}
