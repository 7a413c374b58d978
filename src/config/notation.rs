//! How the values of a setting are written: parser, bounds and text form in one value.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{
    BoolValueParser, EnumValueParser, PathBufValueParser, PossibleValuesParser, TypedValueParser as _,
    ValueParser,
};
use clap::{Arg, ValueEnum, ValueHint};

use crate::units::{duration_within, exact_duration, exact_size, size_within};

/// The notation of one setting, whose values are of type `T`.
#[derive(Clone, Debug)]
pub struct Notation<T> {
    value_name: &'static str,
    parser: ValueParser,
    show: fn(&T) -> String,
    bounds: String,
    form: Form,
}

/// The form of the argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Text,
    Path(ValueHint),
    /// `true` or `false`. A flag without a value means `true`.
    Switch,
    /// A list of words, which clap prints in the help.
    Choice,
}

impl<T: Clone + Send + Sync + 'static> Notation<T> {
    /// A notation with its own parser. `bounds` describes the accepted values; it is empty if every text is
    /// one.
    pub fn new<E: Display>(
        value_name: &'static str,
        bounds: impl Into<String>,
        parse: impl Fn(&str) -> Result<T, E> + Clone + Send + Sync + 'static,
        show: fn(&T) -> String,
    ) -> Self {
        let parse = move |text: &str| parse(text).map_err(|e| e.to_string());
        Self { value_name, parser: ValueParser::new(parse), show, bounds: bounds.into(), form: Form::Text }
    }

    /// The text of a value. The parser reads it back.
    pub fn text_of(&self, value: &T) -> String {
        (self.show)(value)
    }

    pub fn bounds(&self) -> &str {
        &self.bounds
    }

    /// Adds the notation to an argument.
    pub fn apply(&self, arg: Arg) -> Arg {
        let arg = arg.value_name(self.value_name).value_parser(self.parser.clone());
        match self.form {
            Form::Text | Form::Choice => arg,
            Form::Path(hint) => arg.value_hint(hint),
            Form::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        }
    }

    /// The bounds, where clap does not add them to the help by itself.
    pub fn help_bounds(&self) -> Option<&str> {
        let is_listed = matches!(self.form, Form::Switch | Form::Choice);
        Some(self.bounds.as_str()).filter(|bounds| !is_listed && !bounds.is_empty())
    }
}

impl<T: FromStr<Err: Display> + Display + Clone + Send + Sync + 'static> Notation<T> {
    /// The notation of the type itself.
    pub fn plain(value_name: &'static str) -> Self {
        Self::new(value_name, "", T::from_str, T::to_string)
    }
}

impl<T: TryFrom<u64> + Display + Clone + Send + Sync + 'static> Notation<T> {
    /// A whole number from `min` to `max`.
    pub fn count(value_name: &'static str, min: u64, max: u64) -> Self {
        let parse = move |text: &str| {
            let number = text.parse::<u64>().ok().filter(|number| (min..=max).contains(number));
            let number = number.and_then(|number| T::try_from(number).ok());
            number.ok_or_else(|| format!("{text:?} is not a whole number from {min} to {max}"))
        };
        Self::new(value_name, format!("{min} to {max}"), parse, T::to_string)
    }
}

impl<T: ValueEnum + Clone + Send + Sync + 'static> Notation<T> {
    /// One of the words of an enum.
    pub fn choice(value_name: &'static str) -> Self {
        let name = |value: &T| {
            value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        let words: Vec<String> = T::value_variants().iter().map(name).collect();
        let parser = ValueParser::new(EnumValueParser::<T>::new());
        Self { value_name, parser, show: name, bounds: words.join(", "), form: Form::Choice }
    }
}

impl Notation<u64> {
    /// A number of bytes from `min` to `max`.
    pub fn size(min: u64, max: u64) -> Self {
        let bounds = format!("{} to {}", exact_size(min), exact_size(max));
        Self::new("SIZE", bounds, size_within(min, max), |bytes| exact_size(*bytes))
    }

    /// As [`Self::size`]. The word `off` stands for 0.
    pub fn size_or_off(min: u64, max: u64) -> Self {
        let bounds = format!("{} to {}, or off", exact_size(min), exact_size(max));
        let size = size_within(min, max);
        let parse = move |text: &str| if text == "off" { Ok(0) } else { size(text) };
        Self::new("SIZE", bounds, parse, |bytes| if *bytes == 0 { "off".into() } else { exact_size(*bytes) })
    }
}

impl Notation<Duration> {
    /// A duration from `min_s` to `max_s` seconds.
    pub fn duration(min_s: u64, max_s: u64) -> Self {
        let shown = |s| exact_duration(Duration::from_secs(s));
        let bounds = format!("{} to {}", shown(min_s), shown(max_s));
        Self::new("DURATION", bounds, duration_within(min_s, max_s), |value| exact_duration(*value))
    }
}

impl Notation<bool> {
    /// `true` or `false`.
    pub fn switch() -> Self {
        let parser = ValueParser::new(BoolValueParser::new());
        Self {
            value_name: "BOOL",
            parser,
            show: bool::to_string,
            bounds: "true, false".into(),
            form: Form::Switch,
        }
    }

    /// `on` or `off`.
    pub fn on_off() -> Self {
        let parser = PossibleValuesParser::new(["on", "off"]).map(|word| word == "on");
        let show = |value: &bool| if *value { "on" } else { "off" }.to_owned();
        let parser = ValueParser::new(parser);
        Self { value_name: "ON|OFF", parser, show, bounds: "on, off".into(), form: Form::Choice }
    }
}

impl Notation<PathBuf> {
    /// A path. In the configuration file it is absolute or begins with `~/`.
    pub fn path(value_name: &'static str, hint: ValueHint) -> Self {
        let parser = ValueParser::new(PathBufValueParser::new());
        let show = |path: &PathBuf| path.display().to_string();
        Self { value_name, parser, show, bounds: String::new(), form: Form::Path(hint) }
    }
}
