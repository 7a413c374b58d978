//! Tests of the table and of the layers.

use std::ffi::OsString;

use clap::{CommandFactory, Parser};

use super::*;
use crate::config::parse::SettingParser;
use crate::config::secret_variables::TOKEN_VARIABLE;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    settings: Settings,
}

/// The settings of these flags, without variables.
fn flags(arguments: &[&str]) -> std::result::Result<Settings, String> {
    let command = without_variables(Line::command());
    let matches =
        command.try_get_matches_from([&["pdsfs"], arguments].concat()).map_err(|e| e.to_string())?;
    Ok(Settings::from_arg_matches(&matches).unwrap())
}

fn variables(values: &[(&str, &str)]) -> Result<Settings> {
    let find =
        |asked: &str| values.iter().find(|(name, _)| *name == asked).map(|(_, value)| OsString::from(value));
    Settings::from_variables(find)
}

fn debug(settings: &Settings) -> String {
    format!("{settings:?}")
}

#[test]
fn all_bounds_are_checked() {
    for (option, min, max, outside) in [
        ("--part-size", "64", "1GiB", ["63", "2GiB"]),
        ("--parts-in-flight", "1", "256", ["0", "257"]),
        ("--read-cache", "1MiB", "1TiB", ["1023K", "1025G"]),
        ("--metadata-ttl", "0s", "1d", ["-1s", "25h"]),
        ("--commit-timeout", "1s", "1d", ["0", "25h"]),
        ("--call-timeout", "1s", "10m", ["0", "11m"]),
        ("--stall-timeout", "1s", "1h", ["999ms", "61m"]),
        ("--cache-size", "off", "1PiB", ["1023K", "1025T"]),
        ("--umask", "0", "777", ["1000", "8"]),
        ("--uid", "0", "4294967295", ["-1", "x"]),
    ] {
        for valid in [min, max] {
            assert!(flags(&[&format!("{option}={valid}")]).is_ok(), "{option}={valid}");
        }
        for invalid in outside {
            assert!(flags(&[&format!("{option}={invalid}")]).is_err(), "{option}={invalid}");
        }
    }
}

#[test]
fn buffers_hold_two_parts() {
    assert!(flags(&["--part-size=128MiB", "--buffer-size=256MiB"]).unwrap().check().is_ok());
    let error =
        flags(&["--part-size=128MiB", "--buffer-size=255MiB"]).unwrap().check().unwrap_err().to_string();
    assert!(error.contains("256MiB"), "{error}");
    assert!(flags(&["--part-size=100"]).unwrap_err().contains("128"));
}

#[test]
fn defaults_are_within_bounds() {
    let parser = SettingParser::default();
    let mut from_text = Settings::default();
    for setting in all() {
        if let DefaultText::Value(text) = &setting.default {
            from_text = parser.parse(setting.name, text.as_ref()).unwrap().or(from_text);
        }
    }
    assert_eq!(format!("{:?}", from_text.options()), format!("{:?}", MountOptions::default()));
}

#[test]
fn upper_source_overrides_lower_source() {
    let over = |upper: &[&str], lower: &[&str]| flags(upper).unwrap().layered_over(flags(lower).unwrap());
    let both = over(&["--read-only=false"], &["--read-only", "--umask=077"]);
    assert_eq!((both.read_only, both.umask), (Some(false), Some(0o077)));
    let both = over(&["--folder=/b"], &["--root-id=x", "--folder=/a"]);
    assert_eq!((both.folder, both.root_id), ("/b".parse().ok(), None));
    let upper = Settings { token: Some(Secret::new("t".to_owned())), ..Settings::default() };
    let both = upper.layered_over(flags(&["--token-file=/f"]).unwrap());
    assert!(both.token.is_some() && both.token_file.is_none());
}

/// Three values for each kind of setting, by the name of the value in the help.
fn samples(value_name: &str) -> [&'static str; 3] {
    match value_name {
        "URL" => ["https://a.example", "https://b.example", "https://c.example"],
        "ID" | "FILE_ID" | "NAME" | "PATTERNS" | "HOSTS" => ["a", "b", "c"],
        "PATH" | "FILE" | "DIR" => ["/a", "/b", "/c"],
        "BOOL" => ["false", "true", "false"],
        "ON|OFF" => ["on", "off", "on"],
        "MODE" => ["trash", "delete", "trash"],
        "WHOSE" => ["drive", "mounter", "drive"],
        "ADDRESS:PORT" => ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"],
        "OCTAL" => ["001", "002", "003"],
        "N" | "UID" | "GID" => ["1", "2", "3"],
        "DURATION" => ["1s", "2s", "3s"],
        "SIZE" => ["64MiB", "65MiB", "66MiB"],
        other => panic!("add three values for {other}"),
    }
}

#[test]
fn precedence_is_flag_then_variable_then_file() {
    let parser = SettingParser::default();
    for setting in all() {
        let name = setting.name;
        let [flag, variable, value] = samples(setting.arg.get_value_names().unwrap()[0].as_str());
        let flag = flags(&[&format!("--{}={flag}", name.replace('_', "-"))]).unwrap();
        let variable = variables(&[(&setting.variable(), variable)]).unwrap();
        let file = parser.parse_file_value(name, value).unwrap();
        let unset = Settings::default;
        assert_ne!(debug(&flag), debug(&unset()), "{name}");
        assert_ne!(debug(&flag), debug(&variable), "{name}");
        assert_ne!(debug(&variable), debug(&file), "{name}");
        let all = flag.clone().layered_over(variable.clone()).layered_over(file.clone());
        assert_eq!(debug(&all), debug(&flag), "{name}");
        let lower = unset().layered_over(variable.clone()).layered_over(file.clone());
        assert_eq!(debug(&lower), debug(&variable), "{name}");
        let lowest = unset().layered_over(unset()).layered_over(file.clone());
        assert_eq!(debug(&lowest), debug(&file), "{name}");
    }
}

#[test]
fn topmost_credential_wins() {
    let token = variables(&[(TOKEN_VARIABLE, "t")]).unwrap();
    assert_eq!(token.token.as_ref().map(|token| token.expose().as_str()), Some("t"));
    let account = flags(&["--account=a"]).unwrap();
    let all = account.clone().layered_over(token.clone());
    assert!(all.account.is_some() && all.token.is_none());
    let all = Settings::default().layered_over(token).layered_over(account.clone());
    assert!(all.account.is_none() && all.token.is_some());
    // In the environment, a token file overrides the token.
    let file = variables(&[(TOKEN_VARIABLE, "t"), ("PDSFS_TOKEN_FILE", "/f")]).unwrap();
    assert!(file.token.is_none() && file.token_file.is_some());
    let both = variables(&[("PDSFS_ACCOUNT", "a"), ("PDSFS_TOKEN_FILE", "/f")]).unwrap();
    assert!(both.check().unwrap_err().to_string().contains("mutually exclusive"));
    assert!(flags(&["--account=a", "--token-file=/f"]).unwrap_err().contains("cannot be used with"));
    assert!(account.layered_over(both).check().is_ok());
}

#[test]
fn one_source_may_set_root_id_and_folder() {
    let below = variables(&[("PDSFS_ROOT_ID", "r"), ("PDSFS_FOLDER", "/a")]).unwrap();
    assert!(below.root_id.is_some() && below.folder.is_some());
}

#[test]
fn invalid_variable_is_named_in_the_error() {
    let error = variables(&[("PDSFS_PART_SIZE", "63")]).unwrap_err().to_string();
    assert!(error.starts_with("PDSFS_PART_SIZE: "), "{error}");
}

#[test]
fn empty_variable_counts_as_unset() {
    assert!(variables(&[("PDSFS_READ_ONLY", "")]).unwrap().read_only.is_none());
}

#[test]
fn parser_ignores_the_environment() {
    let command = without_variables(Line::command());
    assert!(command.get_arguments().all(|arg| arg.get_env().is_none()));
}
