//! The file for a bug report. It has no secret and no name that says whose it is.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use url::Url;

use super::finding::{Finding, PrivateWord};
use super::machine;
use super::targets::Target;
use crate::cli::config::{ConfigArgs, paths};
use crate::cli::named_drive;
use crate::config::settings::all;
use crate::error::{Error, Result};
use crate::escape::{escaped, shell_word};

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
/// Values that name no one.
const ORDINARY: [&str; 4] = ["root", "default", "none", "off"];
const UNIT: (&str, &str) = ("pdsfs@", ".service");

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
    let files: Vec<_> = paths(config).unwrap_or_default();
    let files =
        files.into_iter().filter_map(|path| Some((owner_of(&path), std::fs::read_to_string(path).ok()?)));
    let files: Vec<_> = files.collect();
    let mut private = private_words(targets);
    private.extend(findings.iter().flat_map(|finding| finding.private.clone()));
    private.extend(files.iter().flat_map(|(_, file)| configured_words(file)));
    let mut text = heading();
    for finding in findings {
        let state = format!("{:?}", finding.state);
        let drive = finding.drive.as_ref().map(|drive| format!("{drive}: ")).unwrap_or_default();
        let _ = writeln!(text, "{:<16} {state:<8} {drive}{}", finding.check, escaped(&finding.detail));
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "{:<26}{}", "", escaped(remedy));
        }
    }
    let mut text = masked(&masked_units(&text), private);
    for (owner, file) in &files {
        let _ = write!(text, "\n{owner} configuration file:\n{}", masked_settings(file));
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

/// Words that say whose report this is, also if no check of the service ran.
fn private_words(targets: &[Target]) -> Vec<PrivateWord> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut words = vec![(host, "HOST")];
    let variable = |name: &str| std::env::var(name).ok();
    words.extend(variable("HOME").map(|home| (home.trim_end_matches('/').to_owned(), "~")));
    words.extend(variable("USER").map(|user| (user, "USER")));
    words.extend(named_drive::accounts().into_iter().map(|account| (account, "ACCOUNT")));
    for target in targets {
        let settings = &target.settings;
        words.extend(target.name.clone().map(|name| (name, "DRIVE")));
        words.extend(settings.account.as_ref().map(|account| (account.to_string(), "ACCOUNT")));
        words.extend(settings.drive_id.as_ref().map(|id| (id.to_string(), "ID")));
        let host = settings.endpoint.as_ref().and_then(Url::host_str);
        words.extend(host.map(|host| (host.to_owned(), "ENDPOINT")));
    }
    words
}

/// The names of drives in a configuration file, which may have mistakes, and the values of private settings.
fn configured_words(file: &str) -> Vec<PrivateWord> {
    let (document, _) = DeTable::parse_recoverable(file);
    let mut words = Vec::new();
    let mut tables = Vec::new();
    for (key, value) in document.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("drives", DeValue::Table(drives)) => {
                words.extend(drives.iter().map(|(name, _)| (name.get_ref().to_string(), "DRIVE")));
                tables.extend(drives.iter().map(|(_, drive)| drive.get_ref()));
            }
            ("defaults", defaults) => tables.push(defaults),
            _ => {}
        }
    }
    let settings = tables.iter().filter_map(|table| table.as_table()).flatten();
    for (key, value) in settings {
        let is_private = PRIVATE_SETTINGS.contains(&key.get_ref().as_ref());
        if let (true, Some(value)) = (is_private, value.get_ref().as_str()) {
            let host = Url::parse(value).ok().and_then(|url| url.host_str().map(str::to_owned));
            words.push((host.unwrap_or_else(|| value.to_owned()), MASKED));
        }
    }
    words
}

/// The names of units are those of drives, also of drives without a configuration.
fn masked_units(text: &str) -> String {
    let (begin, end) = UNIT;
    let mut pieces = text.split(begin);
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |out, piece| {
        let name = piece.split(char::is_whitespace).next().unwrap_or_default();
        match name.find(end) {
            Some(at) => format!("{out}{begin}DRIVE{}", &piece[at..]),
            None => format!("{out}{begin}{piece}"),
        }
    })
}

/// The text is escaped, and so are the words in it; a command for a shell escapes quotes too.
fn masked(text: &str, private: Vec<PrivateWord>) -> String {
    let mut words: Vec<_> = private
        .into_iter()
        .filter(|(word, _)| word.len() >= PRIVATE_BYTES_MIN && !ORDINARY.contains(&word.as_str()))
        .map(|(word, place)| (escaped(&word), place))
        .flat_map(|(word, place)| [(shell_word(&word).trim_matches('\'').to_owned(), place), (word, place)])
        .collect();
    // A word may contain another.
    words.sort_by_key(|(word, _)| std::cmp::Reverse(word.len()));
    words.iter().fold(text.to_owned(), |text, (word, place)| text.replace(word, place))
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
        let words = vec![("alice".to_owned(), "USER"), ("/home/alice".to_owned(), "~")];
        assert_eq!(masked("alice at /home/alice/x", words), "USER at ~/x");
    }

    #[test]
    fn report_masks_names_in_findings() {
        let config = tempfile::NamedTempFile::new().unwrap();
        let text = "[defaults]\nspil_dir = 1\n[drives.holiday]\naccount = \"bob-work\"\n\
                    mountpoint = \"/srv/Ferien\"\nendpoint = \"https://secret-company.example\"\n";
        std::fs::write(config.path(), text).unwrap();
        let findings = [
            Finding::error("login", &Error::invalid("account bob-work of alicia has no drive; see prod77")),
            Finding::problem("unit", "pdsfs@foto.service fails", "systemctl restart pdsfs@foto.service (x)"),
            Finding::ok("drive", "drive x, Anna's\u{7}").with_private([("Anna's\u{7}".into(), "DRIVE")]),
            Finding::ok("dns", "secret-company.example for holiday at /srv/Ferien, other.example"),
        ];
        let settings = crate::config::settings::Settings {
            account: crate::auth::AccountName::new("alicia").ok(),
            drive_id: serde_json::from_str(r#""prod77""#).ok(),
            endpoint: Url::parse("https://other.example").ok(),
            ..Default::default()
        };
        let targets = [Target { name: None, settings }];
        let (file, config) =
            (tempfile::NamedTempFile::new().unwrap(), ConfigArgs { config: Some(config.path().into()) });
        write(file.reopen().unwrap(), &findings, &targets, &config).unwrap();
        let written = std::fs::read_to_string(file.path()).unwrap();
        assert!(written.contains("restart pdsfs@DRIVE.service (x)"), "{written}");
        for private in [
            "foto",
            "Anna",
            "bob",
            "alicia",
            "prod77",
            "holiday",
            "Ferien",
            "secret-company",
            "other.example",
        ] {
            assert!(!written.contains(private), "{private}: {written}");
        }
    }

    #[test]
    fn report_overwrites_no_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = create(file.path()).unwrap_err().to_string();
        assert!(error.contains("--report"), "{error}");
    }
}
