//! Reads one setting by the parser of its flag, wherever its text comes from.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Args, Command, FromArgMatches, ValueHint};

use super::dirs;
use super::secret_variables::{self, TOKEN_VARIABLE};
use super::settings::{Settings, all, without_variables};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// The key of a drive's mountpoint. It is not in the table of settings: the command line has an argument for
/// it.
pub const MOUNTPOINT: &str = "mountpoint";
/// Similarity of two words (Jaro-Winkler) from which one is suggested for the other.
const SIMILARITY_MIN: f64 = 0.8;

/// Parses single settings. Errors are sentences for the user.
#[derive(Clone, Debug)]
pub struct SettingParser(Command);

impl Default for SettingParser {
    fn default() -> Self {
        let bare = Command::new("pdsfs").no_binary_name(true).disable_help_flag(true);
        Self(without_variables(Settings::augment_args(bare)))
    }
}

impl SettingParser {
    pub fn knows(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    fn find(&self, key: &str) -> Option<&Arg> {
        self.0.get_arguments().find(|arg| arg.get_id().as_str() == key)
    }

    /// Parses a value of the configuration file.
    pub fn parse_file_value(&self, key: &str, text: &str) -> std::result::Result<Settings, String> {
        let text = self.absolute_text(key, text)?;
        self.parse(key, text.as_ref())
    }

    /// The text of a value, with paths made absolute: `~/` is expanded, a relative path is an error.
    pub fn absolute_text(&self, key: &str, text: &str) -> std::result::Result<String, String> {
        let Some(arg) = self.find(key) else {
            let known = self.0.get_arguments().map(|arg| arg.get_id().as_str());
            return Err(unknown("setting", key, known.chain([MOUNTPOINT])));
        };
        if matches!(arg.get_value_hint(), ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath) {
            return Ok(dirs::absolute(text)?.to_string_lossy().into_owned());
        }
        Ok(text.to_owned())
    }

    /// Parses a value of the command line or the environment. Paths may be relative.
    pub fn parse(&self, key: &str, value: &OsStr) -> std::result::Result<Settings, String> {
        let mut argument = OsString::from(format!("--{}=", key.replace('_', "-")));
        argument.push(value);
        let matches = self.0.clone().try_get_matches_from([argument]).map_err(|e| explain(&e))?;
        Settings::from_arg_matches(&matches).map_err(|e| explain(&e))
    }
}

impl Settings {
    /// Settings from the environment. An empty variable counts as unset, except for the token.
    pub fn from_environment() -> Result<Self> {
        Self::from_variables(secret_variables::get)
    }

    pub(super) fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let parser = SettingParser::default();
        let mut settings = Self::default();
        for setting in all() {
            let name = setting.variable();
            let Some(value) = variable(&name).filter(|value| !value.is_empty()) else { continue };
            let one = parser.parse(setting.name, &value);
            let one = one.map_err(|what| Error::new(ErrorKind::Invalid, format!("{name}: {what}")))?;
            settings = one.or(settings);
        }
        if settings.token_file.is_none() && settings.account.is_none() {
            let token = variable(TOKEN_VARIABLE).and_then(|token| token.into_string().ok());
            settings.token = token.map(Secret::new);
        }
        Ok(settings)
    }
}

/// The cause of a clap error, without the command line around it.
fn explain(error: &clap::Error) -> String {
    if let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue) {
        let value = error.get(ContextKind::InvalidValue).map(ToString::to_string).unwrap_or_default();
        if value.is_empty() {
            return format!("the value is missing; accepted are: {}", valid.join(", "));
        }
        return unknown("value", &value, valid.iter().map(String::as_str))
            + "; accepted are: "
            + &valid.join(", ");
    }
    let source = std::error::Error::source(error).map(ToString::to_string);
    source.unwrap_or_else(|| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

/// The error for an unknown word, with the most similar known one.
pub fn unknown<'a>(what: &str, word: &str, known: impl Iterator<Item = &'a str>) -> String {
    let similar = known.map(|known| (strsim::jaro_winkler(word, known), known));
    let closest =
        similar.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN).max_by(|a, b| a.0.total_cmp(&b.0));
    match closest {
        Some((_, meant)) => format!("unknown {what} {word:?}; did you mean {meant}?"),
        None => format!("unknown {what} {word:?}"),
    }
}
