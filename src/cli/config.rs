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
    /// Fails on any mistake in a file, or if the chosen file is missing.
    pub(super) fn read(args: &ConfigArgs) -> Result<Self> {
        let found = Self::read_existing(args)?;
        match &args.config {
            Some(path) if found.files.is_empty() => {
                let path = path.display();
                let detail = format!("{path} does not exist: check --config and PDSFS_CONFIG");
                Err(Error::new(ErrorKind::NotFound, detail))
            }
            _ => Ok(found),
        }
    }

    /// Fails on any mistake in a file.
    pub(super) fn read_existing(args: &ConfigArgs) -> Result<Self> {
        let searched = paths(args)?;
        let mut files = Vec::new();
        for path in &searched {
            let read = match ConfigFile::read(path) {
                Err(error) if args.config.is_none() && is_skipped(path, &error) => {
                    warn_of_untrusted(path, &error);
                    continue;
                }
                read => read?,
            };
            let Some((file, mistakes)) = read else { continue };
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

    /// The drive of that name in the first file that has it, and that file.
    pub(super) fn find(&self, name: &str) -> Option<(&Path, &DriveEntry)> {
        self.files.iter().find_map(|file| Some((file.path.as_path(), file.drives.get(name)?)))
    }

    /// The drive of that name in the first file that has it.
    pub(super) fn drive(&self, name: &str) -> Result<DriveEntry> {
        self.find(name).map(|(_, entry)| entry.clone()).ok_or_else(|| {
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

    /// Of the drives.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|file| file.drives.keys().map(String::as_str))
    }
}

/// Whether the file is the system's, and not readable or not trusted by this user, who cannot change that. It is
/// skipped, so that users can still mount their own drives.
fn is_skipped(path: &Path, error: &Error) -> bool {
    path == dirs::system_config_file()
        && error.kind() == ErrorKind::Denied
        && !rustix::process::geteuid().is_root()
}

/// An unreadable file is the choice of the administrator.
fn warn_of_untrusted(path: &Path, error: &Error) {
    let is_unreadable =
        std::fs::File::open(path).is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
    if is_unreadable {
        tracing::debug!("{error}");
    } else {
        tracing::warn!("the drives of {} are left out: {error}", path.display());
    }
}

/// The files that are searched, in order of precedence.
pub(super) fn paths(args: &ConfigArgs) -> Result<Vec<PathBuf>> {
    if let Some(path) = &args.config {
        return Ok(vec![path.clone()]);
    }
    if let Some(path) = dirs::unread_file_of_root() {
        let (path, system) = (path.display(), dirs::system_config_file());
        let detail = format!(
            "{path} is not read for root: move it to {}, or give it with --config (or PDSFS_CONFIG)",
            system.display()
        );
        return Err(Error::new(ErrorKind::Invalid, detail));
    }
    Ok(dirs::config_files())
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
    let searched = paths(args)?;
    for path in &searched {
        let display = path.display().to_string();
        let (file, mistakes) = match ConfigFile::read(path) {
            Ok(Some(read)) => read,
            Ok(None) => continue,
            Err(error) if args.config.is_none() && is_skipped(path, &error) => {
                print_message(format_args!("{error}; you cannot mount the drives of {display} by name"));
                continue;
            }
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
        let searched: Vec<_> = searched.iter().map(|path| path.display().to_string()).collect();
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
