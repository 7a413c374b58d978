//! The file for a bug report. It has no secret and no name that says whose it is.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::finding::Finding;
use super::machine;
use super::targets::Target;
use crate::cli::config::{ConfigArgs, paths};
use crate::config::settings::all;
use crate::daemon::resolve::drive_access;
use crate::error::{Error, Result};
use crate::escape::escaped;

/// Settings whose texts name people, places and hosts.
const PRIVATE_SETTINGS: [&str; 12] = [
    "endpoint",
    "drive_id",
    "root_id",
    "folder",
    "account",
    "token_file",
    "spill_dir",
    "ca_file",
    "content_hosts",
    "local_only",
    "metrics_listen",
    "mountpoint",
];
const MASKED: &str = "(masked)";
/// A shorter name occurs in other words, and names no one.
const PRIVATE_BYTES_MIN: usize = 3;

/// A new file that only this user can read. Fails if it exists.
pub(super) fn create(path: &Path) -> Result<File> {
    let new = File::options().write(true).create_new(true).mode(0o600).open(path);
    new.map_err(|e| Error::from(e).context(format!("cannot write --report {}", path.display())))
}

pub(super) fn write(
    mut file: File,
    findings: &[Finding],
    targets: &[Target],
    config: &ConfigArgs,
) -> Result<()> {
    let mut text = heading();
    for finding in findings {
        let state = format!("{:?}", finding.state);
        let drive = finding.drive.as_ref().map(|drive| format!("{drive}: ")).unwrap_or_default();
        let _ = writeln!(text, "{:<16} {state:<8} {drive}{}", finding.check, escaped(&finding.detail));
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "{:<26}{}", "", escaped(remedy));
        }
    }
    let mut text = masked(&text, &private_words(targets));
    for path in paths(config).unwrap_or_default() {
        if let Ok(file) = std::fs::read_to_string(&path) {
            let _ = write!(text, "\n{} configuration file:\n{}", owner_of(&path), masked_settings(&file));
        }
    }
    file.write_all(text.as_bytes())?;
    Ok(())
}

fn owner_of(path: &Path) -> &'static str {
    if path.starts_with("/etc") { "the system's" } else { "the user's" }
}

fn heading() -> String {
    let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    let (version, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let features = if cfg!(feature = "server") { "server" } else { "none" };
    let user = if rustix::process::geteuid().is_root() { "root" } else { "an ordinary user" };
    format!(
        "pdsfs {version}, features: {features}\n{}, {arch}, {}\nrun by {user}\n\n",
        machine::kernel(),
        system.trim_matches('"')
    )
}

/// Words that say whose report this is, and their places.
fn private_words(targets: &[Target]) -> Vec<(String, &'static str)> {
    let mut words = Vec::new();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    words.extend([(host, "HOST")]);
    let variable = |name: &str| std::env::var(name).ok();
    words.extend(variable("HOME").map(|home| (home.trim_end_matches('/').to_owned(), "~")));
    words.extend(variable("USER").map(|user| (user, "USER")));
    for target in targets {
        words.extend(target.name.clone().map(|name| (name, "DRIVE")));
        let Ok(access) = drive_access(&target.settings, target.name.as_deref()) else { continue };
        words.extend(access.endpoint.host_str().map(|host| (host.to_owned(), "ENDPOINT")));
        words.push((access.drive_id.to_string(), "ID"));
        if let crate::auth::Credential::Account(account) = &access.credential {
            words.extend(account.summary().ok().map(|summary| (summary.user, "USER")));
        }
    }
    words.retain(|(word, _)| word.len() >= PRIVATE_BYTES_MIN && word != "root" && word != "default");
    // A word may contain another.
    words.sort_by_key(|(word, _)| std::cmp::Reverse(word.len()));
    words
}

fn masked(text: &str, private: &[(String, &'static str)]) -> String {
    private.iter().fold(text.to_owned(), |text, (word, place)| text.replace(word, place))
}

/// The settings of a configuration file, without comments and without private texts.
fn masked_settings(file: &str) -> String {
    let known: Vec<&str> = all().iter().map(|setting| setting.name).collect();
    let (document, problems) = DeTable::parse_recoverable(file);
    let mut out = String::new();
    for problem in &problems {
        let _ = writeln!(out, "# {}", problem.message());
    }
    let mut number = 0;
    let mut table = |heading: &str, value: &DeValue<'_>| {
        let _ = writeln!(out, "[{heading}]");
        let DeValue::Table(settings) = value else { return };
        for (key, value) in settings {
            let key = key.get_ref().as_ref();
            let shown = match value.get_ref() {
                _ if !known.contains(&key) && key != "mountpoint" => continue,
                _ if PRIVATE_SETTINGS.contains(&key) => MASKED.to_owned(),
                DeValue::String(text) => format!("{text:?}"),
                DeValue::Boolean(value) => value.to_string(),
                DeValue::Integer(value) => value.as_str().to_owned(),
                _ => MASKED.to_owned(),
            };
            let _ = writeln!(out, "{key} = {shown}");
        }
    };
    for (key, value) in document.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("drives", DeValue::Table(drives)) => {
                for (_, drive) in drives {
                    number += 1;
                    table(&format!("drives.{number}"), drive.get_ref());
                }
            }
            ("defaults", defaults) => table("defaults", defaults),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_of_settings_has_no_private_text() {
        let file = "# my-secret\n[defaults]\npart_size = \"8MiB\"\ntoken = \"T0KEN\"\n[drives.alice]\n\
                    endpoint = \"https://alices.api.aliyunpds.com\"\nmountpoint = \"/home/alice/x\"\nuid = 7\n\
                    token_file = \"/home/alice/t\"\nread_only = true\n";
        let shown = masked_settings(file);
        assert!(!shown.contains("alice") && !shown.contains("T0KEN") && !shown.contains("secret"), "{shown}");
        for line in
            ["[drives.1]", "part_size = \"8MiB\"", "read_only = true", "endpoint = (masked)", "uid = 7"]
        {
            assert!(shown.contains(line), "{line}: {shown}");
        }
    }

    #[test]
    fn longer_private_words_are_masked_first() {
        let mut words = vec![("alice".to_owned(), "USER"), ("/home/alice".to_owned(), "~")];
        words.sort_by_key(|(word, _)| std::cmp::Reverse(word.len()));
        assert_eq!(masked("alice at /home/alice/x", &words), "USER at ~/x");
    }

    #[test]
    fn report_overwrites_no_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = create(file.path()).unwrap_err().to_string();
        assert!(error.contains("--report"), "{error}");
    }
}
