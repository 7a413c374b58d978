//! The configuration file: named drives, and defaults for all of them.
//!
//! TOML. `[defaults]` has settings for every drive, `[drives.NAME]` has those of one drive. Parsing continues
//! after a problem, so one check reports them all, each with its line and a remedy.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::parse::{MOUNTPOINT, SettingParser, unknown};
use super::settings::Settings;
use super::{dirs, trusted_file};
use crate::error::{Error, Result};

/// Largest accepted file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest name of a drive, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// One problem in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigProblem {
    pub path: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// The key, such as `drives.photos.part_size`; empty for a syntax error.
    pub key: String,
    /// The problem and its remedy.
    pub message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.path.display(), self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// One drive of the file.
#[derive(Clone, Debug)]
pub struct DriveEntry {
    /// The settings of the drive, merged with `[defaults]`.
    pub settings: Settings,
    /// The default mountpoint.
    pub mountpoint: Option<PathBuf>,
    /// The line of its header, counted from 1.
    pub line: usize,
}

/// A parsed file.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    pub path: PathBuf,
    pub drives: BTreeMap<String, DriveEntry>,
}

impl ConfigFile {
    /// Reads a file; `None` if it does not exist. Fails if the file cannot be read, or if another user can write
    /// it and could so send the token to another host.
    pub fn read(path: &Path) -> Result<Option<(Self, Vec<ConfigProblem>)>> {
        let Some(bytes) = trusted_file::read(path, FILE_BYTES_MAX)? else { return Ok(None) };
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| Error::invalid(format!("{} is not UTF-8", path.display())))?;
        Ok(Some(Self::parse(path, &text)))
    }

    /// Parses a text and collects all problems.
    pub fn parse(path: &Path, text: &str) -> (Self, Vec<ConfigProblem>) {
        let mut parser = FileParser { path, text, settings: SettingParser::default(), problems: Vec::new() };
        let drives = parser.document();
        // Tables come in the order of their names.
        parser.problems.sort_by_key(|problem| problem.line);
        (Self { path: path.to_owned(), drives }, parser.problems)
    }
}

/// Checks a name of a drive: it must be usable in file names, unit names and command lines.
pub fn check_name(name: &str) -> std::result::Result<(), String> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name.starts_with(['-', '.'])
        || !name.chars().all(is_valid)
    {
        return Err(format!(
            "{name:?} is not a valid drive name; use up to {NAME_BYTES_MAX} letters, digits, - _ and ., and do \
             not begin with - or ."
        ));
    }
    Ok(())
}

type TomlEntry<'t> = (&'t Spanned<std::borrow::Cow<'t, str>>, &'t Spanned<DeValue<'t>>);

/// One pass over a file.
struct FileParser<'t> {
    path: &'t Path,
    text: &'t str,
    settings: SettingParser,
    problems: Vec<ConfigProblem>,
}

impl FileParser<'_> {
    fn document(&mut self) -> BTreeMap<String, DriveEntry> {
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            self.report(&error.span().unwrap_or(0..0), "", error.message());
        }
        let mut drives = BTreeMap::new();
        let defaults = document.get_ref().iter().find(|(key, _)| key.get_ref() == "defaults");
        let defaults = defaults.map(|(_, value)| self.table("defaults", value, false).settings);
        let defaults = defaults.unwrap_or_default();
        for (key, value) in document.get_ref() {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("defaults", _) => {}
                ("drives", DeValue::Table(tables)) => {
                    for drive in tables {
                        let (name, entry) = self.drive(drive, &defaults);
                        drives.insert(name, entry);
                    }
                }
                ("drives", _) => {
                    self.report(&value.span(), "drives", "write one table for each drive: [drives.NAME]");
                }
                (other, _) => {
                    let message = unknown("table", other, ["defaults", "drives"].into_iter());
                    let message = format!("{message}; settings belong in [defaults] or [drives.NAME]");
                    self.report(&key.span(), other, &message);
                }
            }
        }
        drives
    }

    fn drive(&mut self, (name, value): TomlEntry<'_>, defaults: &Settings) -> (String, DriveEntry) {
        let key = format!("drives.{}", name.get_ref());
        if let Err(message) = check_name(name.get_ref()) {
            self.report(&name.span(), &key, &message);
        }
        let mut entry = self.table(&key, value, true);
        entry.line = self.line(name.span().start);
        entry.settings = entry.settings.layered_over(defaults.clone());
        if let Err(error) = entry.settings.check() {
            self.report(&name.span(), &key, &error.to_string());
        }
        (name.get_ref().to_string(), entry)
    }

    /// The settings of a table. Invalid ones are reported and left out.
    fn table(&mut self, path: &str, value: &Spanned<DeValue<'_>>, of_drive: bool) -> DriveEntry {
        let mut out = DriveEntry { settings: Settings::default(), mountpoint: None, line: 0 };
        let DeValue::Table(table) = value.get_ref() else {
            self.report(&value.span(), path, &format!("write it as a table: [{path}]"));
            return out;
        };
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let full = format!("{path}.{name}");
            let text = match scalar(value.get_ref()) {
                Ok(text) => text,
                Err(message) => {
                    self.report(&value.span(), &full, &message);
                    continue;
                }
            };
            let parsed = match name {
                MOUNTPOINT if of_drive => dirs::absolute(&text).map(|path| out.mountpoint = Some(path)),
                MOUNTPOINT => Err("a mountpoint belongs to one drive: write it in [drives.NAME]".to_owned()),
                _ => self.settings.parse_file_value(name, &text).map(|one| {
                    out.settings = one.or(std::mem::take(&mut out.settings));
                }),
            };
            if let Err(message) = parsed {
                self.report(&key.span(), &full, &message);
            }
        }
        out
    }

    fn line(&self, offset: usize) -> usize {
        let before = self.text.get(..offset).unwrap_or(self.text);
        before.bytes().filter(|b| *b == b'\n').count() + 1
    }

    fn report(&mut self, span: &Range<usize>, key: &str, message: &str) {
        let line = self.line(span.start);
        self.problems.push(ConfigProblem {
            path: self.path.to_owned(),
            line,
            key: key.to_owned(),
            message: message.to_owned(),
        });
    }
}

/// A value in the form of the command line.
fn scalar(value: &DeValue<'_>) -> std::result::Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        // Octal digits pass unchanged, because the flag for permissions reads octal.
        DeValue::Integer(number) if matches!(number.radix(), 8 | 10) => Ok(number.as_str().to_owned()),
        DeValue::Array(items) => {
            let texts: std::result::Result<Vec<_>, _> =
                items.iter().map(|item| scalar(item.get_ref())).collect();
            Ok(texts?.join(","))
        }
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => {
            Err("write text in quotes, a whole number, true or false".to_owned())
        }
    }
}

#[cfg(test)]
mod tests;
