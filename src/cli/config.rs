//! `pdsfs config`: checks the configuration or prints an example. Other commands read the configuration
//! through this module.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output::{print_line, print_message};
use crate::config::dirs;
use crate::config::file::{ConfigFile, DriveEntry};
use crate::config::parse::unknown;
use crate::config::reference::example;
use crate::daemon::resolve::mount_problems;
use crate::error::{Error, ErrorKind, Result};

/// Mistakes listed by commands other than `config check`.
const LISTED_MISTAKES_MAX: usize = 5;

/// The choice of the configuration file.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ConfigArgs {
    /// The configuration file [default: ~/.config/pdsfs/config.toml (not for root),
    /// then /etc/pdsfs/config.toml]
    #[arg(long, env = "PDSFS_CONFIG", value_name = "FILE", display_order = 890)]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List every mistake in the configuration, with its line and remedy
    Check,
    /// Print an example configuration that explains every setting
    Example,
}

/// The files that exist, in order of precedence.
#[derive(Debug)]
pub(super) struct Configuration {
    files: Vec<ConfigFile>,
    searched: Vec<PathBuf>,
}

impl Configuration {
    /// Fails on any mistake in a file.
    pub(super) fn read(args: &ConfigArgs) -> Result<Self> {
        let searched = paths(args);
        let mut files = Vec::new();
        for path in &searched {
            if args.config.is_none() && is_unreadable_system_file(path) {
                tracing::debug!("{} cannot be read", path.display());
                continue;
            }
            let Some((file, mistakes)) = ConfigFile::read(path)? else {
                if args.config.is_some() {
                    let path = path.display();
                    let detail = format!("{path} does not exist: check --config and PDSFS_CONFIG");
                    return Err(Error::new(ErrorKind::NotFound, detail));
                }
                continue;
            };
            if !mistakes.is_empty() {
                let mut listed: Vec<String> =
                    mistakes.iter().take(LISTED_MISTAKES_MAX).map(ToString::to_string).collect();
                if mistakes.len() > listed.len() {
                    listed
                        .push(format!("and {} more (see pdsfs config check)", mistakes.len() - listed.len()));
                }
                let detail = format!("the configuration has mistakes:\n  {}", listed.join("\n  "));
                return Err(Error::new(ErrorKind::Invalid, detail));
            }
            files.push(file);
        }
        Ok(Self { files, searched })
    }

    /// The drive of that name in the first file that has it.
    pub(super) fn drive(&self, name: &str) -> Result<DriveEntry> {
        let found = self.files.iter().find_map(|file| file.drives.get(name));
        found.cloned().ok_or_else(|| {
            let searched: Vec<_> = self.searched.iter().map(|path| path.display().to_string()).collect();
            let names: Vec<&str> = self.names().collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let detail = format!(
                "{}; known drives: {known} (in {}). For a directory, write ./{name}",
                unknown("drive", name, names.iter().copied()),
                searched.join(", ")
            );
            Error::new(ErrorKind::NotFound, detail)
        })
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|file| file.drives.keys().map(String::as_str))
    }
}

/// Whether the file is the system's and not readable for this user. It is skipped, so that users can still
/// mount their own drives.
fn is_unreadable_system_file(path: &Path) -> bool {
    path == dirs::system_config_file()
        && std::fs::File::open(path).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}

fn paths(args: &ConfigArgs) -> Vec<PathBuf> {
    args.config.clone().map_or_else(dirs::config_files, |path| vec![path])
}

pub(super) fn run(args: &ConfigCommand) -> Result<ExitCode> {
    match args.action {
        Action::Check => check(&args.config),
        Action::Example => print_line(example().trim_end()).map(|()| ExitCode::SUCCESS),
    }
}

fn check(args: &ConfigArgs) -> Result<ExitCode> {
    let mut found = 0;
    let mut wrong = 0;
    for path in paths(args) {
        let display = path.display().to_string();
        if args.config.is_none() && is_unreadable_system_file(&path) {
            print_message(format_args!(
                "{display}: not readable for you; you cannot mount its drives by name"
            ));
            continue;
        }
        let (file, mistakes) = match ConfigFile::read(&path) {
            Ok(Some(read)) => read,
            Ok(None) => continue,
            Err(error) => {
                print_message(error);
                (found, wrong) = (found + 1, wrong + 1);
                continue;
            }
        };
        found += 1;
        let incomplete = file.drives.iter().flat_map(|(name, drive)| {
            let (problems, display) = (mount_problems(drive, name).into_iter(), &display);
            problems.map(move |problem| format!("{display}:{}: drives.{name}: {problem}", drive.line))
        });
        let problems: Vec<String> = mistakes.iter().map(ToString::to_string).chain(incomplete).collect();
        for problem in &problems {
            print_message(problem);
        }
        wrong += problems.len();
        if problems.is_empty() {
            let names: Vec<&str> = file.drives.keys().map(String::as_str).collect();
            let drives = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            print_line(format_args!("{display}: no mistakes; drives: {drives}"))?;
        }
    }
    if found == 0 {
        let searched: Vec<_> = paths(args).iter().map(|path| path.display().to_string()).collect();
        let detail = format!(
            "no configuration at {}: pdsfs config example prints one to start from",
            searched.join(" or ")
        );
        return Err(Error::new(ErrorKind::NotFound, detail));
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn example_is_a_valid_configuration() {
        let (file, mistakes) = ConfigFile::parse(Path::new("example"), &example());
        assert_eq!(mistakes, []);
        assert!(file.drives["photos"].settings.account.is_some());
    }

    #[test]
    fn mistakes_are_listed_in_order_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "[drives.z]\nx = 1\ny = 1\n[drives.a]\nx = 1\ny = 1\nz = 1\nw = 1\n").unwrap();
        let error = Configuration::read(&ConfigArgs { config: Some(path) }).unwrap_err().to_string();
        let at = |line: &str| error.find(line).unwrap_or_else(|| panic!("{line}: {error}"));
        assert!(at("toml:2:") < at("toml:3:") && at("toml:3:") < at("toml:5:"), "{error}");
        assert!(error.ends_with("and 1 more (see pdsfs config check)"), "{error}");
    }

    #[test]
    fn unknown_drive_error_lists_known_drives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "[drives.photos]\n[drives.work]\n").unwrap();
        let configuration = Configuration::read(&ConfigArgs { config: Some(path) }).unwrap();
        let error = configuration.drive("fotos").unwrap_err().to_string();
        assert!(error.contains("photos, work") && error.contains("./fotos"), "{error}");
        assert!(error.contains("did you mean photos?"), "{error}");
        assert!(configuration.drive("work").is_ok());
        let none = ConfigArgs { config: Some(dir.path().join("none")) };
        assert!(Configuration::read(&none).unwrap_err().to_string().contains("does not exist"));
    }
}
