//! The configuration file: named drives, and what holds for all of them.
//!
//! TOML. `[defaults]` has settings for every drive, `[drives.NAME]` those of one. Reading goes on after a
//! mistake, so that all of them are told at once, each with its line and what to do.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{Args, Command, FromArgMatches, ValueHint};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::dirs;
use crate::config::settings::{Settings, without_variables};
use crate::error::{Error, ErrorKind, Result};

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest name of a drive, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// How alike two words are before one is taken for a slip of the other.
const ALIKE_MIN: f64 = 0.8;
/// The key of a drive that is an argument on the command line, and no flag.
const MOUNTPOINT: &str = "mountpoint";

/// One thing in the file that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake {
    /// The file.
    pub path: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// What it is about, such as `drives.photos.part_size`; empty where the text is no TOML.
    pub key: String,
    /// What is wrong, and what to do.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.path.display(), self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// One drive of the file.
#[derive(Clone, Debug)]
pub struct DriveEntry {
    /// What is said about it, over what is said about all.
    pub settings: Settings,
    /// Where it is mounted unless somebody says otherwise.
    pub mountpoint: Option<PathBuf>,
    /// The line of its header, counted from 1.
    pub line: usize,
}

impl DriveEntry {
    /// What keeps it from being mounted as it stands here, each with what to do.
    pub fn gaps(&self, name: &str) -> Vec<String> {
        let mut out: Vec<String> = self
            .settings
            .place(Some(name))
            .and_then(|place| place.check())
            .err()
            .map(|e| e.to_string())
            .into_iter()
            .collect();
        if let Some(mountpoint) = &self.mountpoint
            && mountpoint.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        {
            let shown = mountpoint.display();
            out.push(format!("the mountpoint does not exist; make it with: mkdir -p '{shown}'"));
        }
        if let Some(dir) = self.settings.spill_dir.as_ref().filter(|dir| !dir.is_dir()) {
            let shown = dir.display();
            out.push(format!("spill-dir is no folder; make it with: mkdir -p '{shown}'"));
        }
        out
    }
}

/// A file that was read.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its drives.
    pub drives: BTreeMap<String, DriveEntry>,
}

impl ConfigFile {
    /// Reads a file; `None` where there is none. The outer error is that of reading.
    pub fn read(path: &Path) -> Result<Option<(Self, Vec<Mistake>)>> {
        let named = |e: std::io::Error| Error::from(e).context(path.display());
        let metadata = match path.metadata() {
            Ok(metadata) => metadata,
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(named(e)),
        };
        may_be_trusted(path, &metadata)?;
        let text = std::fs::read_to_string(path).map_err(named)?;
        Ok(Some(Self::parse(path, &text)))
    }

    /// What a text says, and every mistake in it.
    pub fn parse(path: &Path, text: &str) -> (Self, Vec<Mistake>) {
        let mut reading = Reading { path, text, flags: flags(), mistakes: Vec::new() };
        let drives = reading.document();
        // The parser goes by name; whoever mends them goes from top to bottom.
        reading.mistakes.sort_by_key(|mistake| mistake.line);
        (Self { path: path.to_owned(), drives }, reading.mistakes)
    }
}

/// Whoever can write the file can send the token to a place of their choice.
fn may_be_trusted(path: &Path, metadata: &std::fs::Metadata) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let shown = path.display();
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::Invalid, format!("{shown} is not a file")));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(Error::new(ErrorKind::Invalid, format!("{shown} is too large to be a configuration")));
    }
    if metadata.mode() & 0o002 != 0 {
        let detail = format!("{shown} can be changed by everybody; run: chmod o-w '{shown}'");
        return Err(Error::new(ErrorKind::Denied, detail));
    }
    Ok(())
}

/// Whether a word can name a drive: in a file name, a unit name and a command line.
pub fn check_name(name: &str) -> std::result::Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name.starts_with(['-', '.'])
        || !name.chars().all(fine)
    {
        return Err(format!(
            "{name:?} cannot name a drive; take up to {NAME_BYTES_MAX} letters, digits, and - _ . inside"
        ));
    }
    Ok(())
}

/// The settings as flags that nothing but the file speaks for.
pub fn flags() -> Command {
    let bare = Command::new("pdsfs").no_binary_name(true).disable_help_flag(true);
    without_variables(Settings::augment_args(bare))
}

/// Reads one setting by the parser of its flag. `key` is written with `_`.
pub fn setting(flags: &Command, key: &str, text: &str) -> std::result::Result<Settings, String> {
    let text = text_of(flags, key, text)?;
    flag(flags, key, text.as_ref())
}

/// What a setting of a file says to a flag: a path is whole there, whatever the working directory is.
pub fn text_of(flags: &Command, key: &str, text: &str) -> std::result::Result<String, String> {
    let found = flags.get_arguments().find(|arg| arg.get_id().as_str() == key);
    let Some(arg) = found else {
        let known = flags.get_arguments().map(|arg| arg.get_id().as_str());
        return Err(unknown("setting", key, known.chain([MOUNTPOINT])));
    };
    if matches!(arg.get_value_hint(), ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath) {
        return Ok(dirs::absolute(text)?.to_string_lossy().into_owned());
    }
    Ok(text.to_owned())
}

/// The same of a value that whoever runs the program says: a path may be relative.
pub fn flag(flags: &Command, key: &str, value: &OsStr) -> std::result::Result<Settings, String> {
    let mut argument = OsString::from(format!("--{}=", key.replace('_', "-")));
    argument.push(value);
    let matches = flags.clone().try_get_matches_from([argument]).map_err(|e| explain(&e))?;
    Settings::from_arg_matches(&matches).map_err(|e| explain(&e))
}

/// The sentence of a refusal, without the command line around it.
fn explain(error: &clap::Error) -> String {
    if let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue) {
        let value = error.get(ContextKind::InvalidValue).map(ToString::to_string).unwrap_or_default();
        if value.is_empty() {
            return format!("a value is missing; write one of: {}", valid.join(", "));
        }
        return unknown("value", &value, valid.iter().map(String::as_str))
            + "; there are: "
            + &valid.join(", ");
    }
    let source = std::error::Error::source(error).map(ToString::to_string);
    source.unwrap_or_else(|| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

/// That there is no such word, and which one may be meant.
pub fn unknown<'a>(what: &str, word: &str, known: impl Iterator<Item = &'a str>) -> String {
    let alike = known.map(|known| (strsim::jaro_winkler(word, known), known));
    let closest = alike.filter(|(alike, _)| *alike >= ALIKE_MIN).max_by(|a, b| a.0.total_cmp(&b.0));
    match closest {
        Some((_, meant)) => format!("there is no {what} {word:?}; do you mean {meant}?"),
        None => format!("there is no {what} {word:?}"),
    }
}

type Entry<'t> = (&'t Spanned<std::borrow::Cow<'t, str>>, &'t Spanned<DeValue<'t>>);

/// One pass over a file.
struct Reading<'t> {
    path: &'t Path,
    text: &'t str,
    flags: Command,
    mistakes: Vec<Mistake>,
}

impl Reading<'_> {
    fn document(&mut self) -> BTreeMap<String, DriveEntry> {
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            self.mistake(&error.span().unwrap_or(0..0), "", error.message());
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
                    self.mistake(&value.span(), "drives", "write a table for each: [drives.NAME]");
                }
                (other, _) => {
                    let what = unknown("table", other, ["defaults", "drives"].into_iter());
                    self.mistake(
                        &key.span(),
                        other,
                        &format!("{what}; settings belong below [defaults] or [drives.NAME]"),
                    );
                }
            }
        }
        drives
    }

    fn drive(&mut self, (name, value): Entry<'_>, defaults: &Settings) -> (String, DriveEntry) {
        let key = format!("drives.{}", name.get_ref());
        if let Err(what) = check_name(name.get_ref()) {
            self.mistake(&name.span(), &key, &what);
        }
        let mut entry = self.table(&key, value, true);
        entry.line = self.line(name.span().start);
        entry.settings = entry.settings.over(defaults.clone());
        if let Err(error) = entry.settings.check() {
            self.mistake(&name.span(), &key, &error.to_string());
        }
        (name.get_ref().to_string(), entry)
    }

    /// The settings of a table; those that are wrong are told and left out.
    fn table(&mut self, path: &str, value: &Spanned<DeValue<'_>>, of_drive: bool) -> DriveEntry {
        let mut out = DriveEntry { settings: Settings::default(), mountpoint: None, line: 0 };
        let DeValue::Table(table) = value.get_ref() else {
            self.mistake(&value.span(), path, &format!("write it as a table: [{path}]"));
            return out;
        };
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let full = format!("{path}.{name}");
            let text = match scalar(value.get_ref()) {
                Ok(text) => text,
                Err(what) => {
                    self.mistake(&value.span(), &full, &what);
                    continue;
                }
            };
            let read = match name {
                MOUNTPOINT if of_drive => dirs::absolute(&text).map(|path| out.mountpoint = Some(path)),
                MOUNTPOINT => Err("it belongs to one drive: below [drives.NAME]".to_owned()),
                _ => setting(&self.flags, name, &text).map(|one| {
                    out.settings = one.beside(std::mem::take(&mut out.settings));
                }),
            };
            if let Err(what) = read {
                self.mistake(&key.span(), &full, &what);
            }
        }
        out
    }

    fn line(&self, at: usize) -> usize {
        let before = self.text.get(..at).unwrap_or(self.text);
        before.bytes().filter(|b| *b == b'\n').count() + 1
    }

    fn mistake(&mut self, at: &Range<usize>, key: &str, what: &str) {
        let line = self.line(at.start);
        self.mistakes.push(Mistake {
            path: self.path.to_owned(),
            line,
            key: key.to_owned(),
            what: what.to_owned(),
        });
    }
}

/// A value as it would stand on a command line.
fn scalar(value: &DeValue<'_>) -> std::result::Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(yes) => Ok(yes.to_string()),
        // Octal is how people write permissions, and their flag reads them so.
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
