//! `pdsfs config`: the configuration, explained and checked; and how the other commands read it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{announce, say};
use crate::config::dirs;
use crate::config::file::{ConfigFile, DriveEntry, flags, unknown};
use crate::error::{Error, ErrorKind, Result};

/// Mistakes that are told at once when a drive shall be mounted; `config check` tells all.
const MISTAKES_TOLD_MAX: usize = 5;

/// Which configuration is meant.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// The configuration file [default: ~/.config/pdsfs/config.toml, then /etc/pdsfs/config.toml]
    #[arg(long, env = "PDSFS_CONFIG", value_name = "FILE", display_order = 890)]
    pub config: Option<PathBuf>,
}

/// Arguments of `pdsfs config`.
#[derive(Debug, Args)]
pub struct ConfigCommand {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Find every mistake in the configuration, each with its line and what to do
    Check,
    /// Print a configuration with every setting, explained
    Example,
}

/// The files that were found, in the order in which they are asked.
#[derive(Debug)]
pub struct Configuration {
    files: Vec<ConfigFile>,
    looked_at: Vec<PathBuf>,
}

impl Configuration {
    /// Reads the files; any mistake in them is an error here.
    pub fn read(args: &ConfigArgs) -> Result<Self> {
        let looked_at = paths(args);
        let mut files = Vec::new();
        for path in &looked_at {
            if args.config.is_none() && is_kept_from_us(path) {
                tracing::debug!("{} cannot be read", path.display());
                continue;
            }
            let Some((file, mistakes)) = ConfigFile::read(path)? else {
                if args.config.is_some() {
                    let detail = format!("{} does not exist", path.display());
                    return Err(Error::new(ErrorKind::NotFound, detail));
                }
                continue;
            };
            if !mistakes.is_empty() {
                let mut told: Vec<String> =
                    mistakes.iter().take(MISTAKES_TOLD_MAX).map(ToString::to_string).collect();
                if mistakes.len() > told.len() {
                    told.push(format!("and {} more: pdsfs config check", mistakes.len() - told.len()));
                }
                let detail = format!("the configuration has mistakes:\n  {}", told.join("\n  "));
                return Err(Error::new(ErrorKind::Invalid, detail));
            }
            files.push(file);
        }
        Ok(Self { files, looked_at })
    }

    /// A drive by its name; that of the first file that has it.
    pub fn drive(&self, name: &str) -> Result<DriveEntry> {
        let found = self.files.iter().find_map(|file| file.drives.get(name));
        found.cloned().ok_or_else(|| {
            let looked_at: Vec<_> = self.looked_at.iter().map(|path| path.display().to_string()).collect();
            let names: Vec<&str> = self.names().collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let detail = format!(
                "{}; there are: {known} (in {}). If a folder is meant, write ./{name}",
                unknown("drive", name, names.iter().copied()),
                looked_at.join(", ")
            );
            Error::new(ErrorKind::NotFound, detail)
        })
    }

    /// The names of all drives.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|file| file.drives.keys().map(String::as_str))
    }
}

/// Whether a file is there, or may be, and is for others: what the machine's administrator keeps from a user must not
/// keep the user's own drives from him.
fn is_kept_from_us(path: &Path) -> bool {
    path == dirs::system_config_file()
        && std::fs::File::open(path).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}

fn paths(args: &ConfigArgs) -> Vec<PathBuf> {
    args.config.clone().map_or_else(dirs::config_files, |path| vec![path])
}

/// Checks or explains.
pub fn run(args: &ConfigCommand) -> Result<ExitCode> {
    match args.what {
        What::Check => check(&args.config),
        What::Example => announce(example().trim_end()).map(|()| ExitCode::SUCCESS),
    }
}

fn check(args: &ConfigArgs) -> Result<ExitCode> {
    let mut found = 0;
    let mut wrong = 0;
    for path in paths(args) {
        let shown = path.display().to_string();
        if args.config.is_none() && is_kept_from_us(&path) {
            say(format_args!("{shown}: not for this user; its drives cannot be mounted by name"));
            continue;
        }
        let (file, mistakes) = match ConfigFile::read(&path) {
            Ok(Some(read)) => read,
            Ok(None) => continue,
            Err(error) => {
                say(error);
                (found, wrong) = (found + 1, wrong + 1);
                continue;
            }
        };
        found += 1;
        let gaps = file.drives.iter().flat_map(|(name, drive)| {
            let (gaps, shown) = (drive.gaps(name).into_iter(), &shown);
            gaps.map(move |what| format!("{shown}:{}: drives.{name}: {what}", drive.line))
        });
        let told: Vec<String> = mistakes.iter().map(ToString::to_string).chain(gaps).collect();
        for mistake in &told {
            say(mistake);
        }
        wrong += told.len();
        if told.is_empty() {
            let names: Vec<&str> = file.drives.keys().map(String::as_str).collect();
            announce(format_args!("{shown}: fine; drives: {}", names.join(", ")))?;
        }
    }
    if found == 0 {
        let looked_at: Vec<_> = paths(args).iter().map(|path| path.display().to_string()).collect();
        let detail = format!(
            "there is no configuration at {}; begin one with: pdsfs config example",
            looked_at.join(" or ")
        );
        return Err(Error::new(ErrorKind::NotFound, detail));
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A configuration with every setting, made of the help of the flags.
pub(super) fn example() -> String {
    let mut out = String::from(
        "# Configuration of pdsfs: ~/.config/pdsfs/config.toml, or /etc/pdsfs/config.toml for the system.\n\
         # Variables (PDSFS_PART_SIZE ...) override it, flags (--part-size ...) override both.\n\
         # After a change: pdsfs config check\n\n\
         [drives.photos]                 # then: pdsfs mount photos\n\
         mountpoint = \"~/Photos\"\n\
         account = \"default\"            # made by: pdsfs login\n\
         drive_id = \"1\"                 # those there are: pdsfs drives\n\n\
         # Every setting may stand here, for all drives, or below one drive.\n\
         [defaults]\n",
    );
    for arg in flags().get_arguments() {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let (text, default) = match help.split_once(" [default: ") {
            Some((text, default)) => (text, default.trim_end_matches(']')),
            None => (help.as_str(), ""),
        };
        let key = arg.get_id();
        let literal = match default {
            "true" | "false" => default.to_owned(),
            number
                if !number.is_empty()
                    && number.bytes().all(|b| b.is_ascii_digit())
                    && !number.starts_with('0') =>
            {
                number.to_owned()
            }
            // A sentence about what holds is no value.
            words => format!("\"{}\"", if words.contains(' ') { "" } else { words }),
        };
        let note = if default.contains(' ') { format!("\n# Default: {default}.") } else { String::new() };
        for line in ["\n# ", text, ".", &note, "\n#", key.as_str(), " = ", &literal, "\n"] {
            out.push_str(line);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_example_is_a_configuration() {
        let (file, mistakes) = ConfigFile::parse(Path::new("example"), &example());
        assert_eq!(mistakes, []);
        assert!(file.drives["photos"].settings.account.is_some());
    }

    #[test]
    fn every_default_of_the_example_is_a_value() {
        // What has a default is written out, so that removing the mark in front changes nothing.
        let live = example().replace("\n#", "\n").replace("\n ", "\n# ");
        let settings = live.lines().filter(|line| line.contains(" = ") && !line.ends_with("\"\""));
        let settings: Vec<&str> = settings.filter(|line| !line.starts_with('#')).collect();
        let text = format!("[defaults]\n{}\n", settings[3..].join("\n"));
        let (_, mistakes) = ConfigFile::parse(Path::new("example"), &text);
        assert!(settings.len() > 15 && mistakes.is_empty(), "{mistakes:?}\n{text}");
    }

    #[test]
    fn mistakes_are_told_from_top_to_bottom_and_the_rest_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "[drives.z]\nx = 1\ny = 1\n[drives.a]\nx = 1\ny = 1\nz = 1\nw = 1\n").unwrap();
        let error = Configuration::read(&ConfigArgs { config: Some(path) }).unwrap_err().to_string();
        let at = |line: &str| error.find(line).unwrap_or_else(|| panic!("{line}: {error}"));
        assert!(at("toml:2:") < at("toml:3:") && at("toml:3:") < at("toml:5:"), "{error}");
        assert!(error.ends_with("and 1 more: pdsfs config check"), "{error}");
    }

    #[test]
    fn an_unknown_drive_is_told_with_those_that_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "[drives.photos]\n[drives.work]\n").unwrap();
        let configuration = Configuration::read(&ConfigArgs { config: Some(path) }).unwrap();
        let error = configuration.drive("fotos").unwrap_err().to_string();
        assert!(error.contains("photos, work") && error.contains("./fotos"), "{error}");
        assert!(error.contains("do you mean photos?"), "{error}");
        assert!(configuration.drive("work").is_ok());
        let none = ConfigArgs { config: Some(dir.path().join("none")) };
        assert!(Configuration::read(&none).unwrap_err().to_string().contains("does not exist"));
    }
}
