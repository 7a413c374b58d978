//! What a package carries beside the program: man pages and shell completions, made of the same
//! definitions as the help.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::mount::tab;
use super::{config, say};
use crate::error::{Error, Result};

/// Arguments of `pdsfs completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `pdsfs man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder to write them into; made if it is missing
    dir: PathBuf,
}

/// Prints what a shell needs to complete our commands.
pub fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "pdsfs", &mut text);
    super::announce(String::from_utf8_lossy(&text).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes all man pages.
pub fn man(args: &ManArgs) -> Result<ExitCode> {
    let named = |e: io::Error| Error::from(e).context(args.dir.display());
    std::fs::create_dir_all(&args.dir).map_err(named)?;
    let pages = pages().and_then(|pages| write(&args.dir, &pages)).map_err(named)?;
    say(format_args!("{pages} man pages in {}", args.dir.display()));
    Ok(ExitCode::SUCCESS)
}

/// A page by its file name.
type Page = (String, Vec<u8>);

fn pages() -> io::Result<Vec<Page>> {
    let mut program = super::Cli::command();
    program.build();
    let mut pages = Vec::new();
    pages.push(page(&program, "pdsfs", "1")?);
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        collect(command, "pdsfs", &mut pages)?;
    }
    pages.push(page(&tab::command(), "mount.pdsfs", "8")?);
    pages.push(("pdsfs.toml.5".to_owned(), configuration()));
    Ok(pages)
}

fn collect(command: &Command, above: &str, pages: &mut Vec<Page>) -> io::Result<()> {
    if command.get_name() == "help" {
        return Ok(());
    }
    let name = format!("{above}-{}", command.get_name());
    pages.push(page(command, &name, "1")?);
    command.get_subcommands().try_for_each(|below| collect(below, &name, pages))
}

fn page(command: &Command, name: &str, section: &'static str) -> io::Result<Page> {
    let mut text = Vec::new();
    let named = command.clone().name(leaked(name)).version(env!("CARGO_PKG_VERSION"));
    Man::new(named).section(section).manual("pdsfs").render(&mut text)?;
    Ok((format!("{name}.{section}"), text))
}

/// The parser wants names that live as long as the program; there are a dozen, and it ends after them.
fn leaked(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

/// The page of the configuration file: its example.
fn configuration() -> Vec<u8> {
    let mut page = Roff::new();
    page.control("TH", ["pdsfs.toml", "5", "", concat!("pdsfs ", env!("CARGO_PKG_VERSION")), "pdsfs"]);
    page.control("SH", ["NAME"]);
    page.text([roman("pdsfs.toml - configuration of pdsfs")]);
    page.control("SH", ["FILES"]);
    page.text([roman("~/.config/pdsfs/config.toml, then /etc/pdsfs/config.toml")]);
    page.control("SH", ["SETTINGS"]);
    page.control("nf", []);
    for line in config::example().lines() {
        page.text([roman(line)]);
    }
    page.control("fi", []);
    page.control("SH", ["SEE ALSO"]);
    page.text([roman("pdsfs-mount(1), pdsfs-config(1), mount.pdsfs(8)")]);
    page.to_roff().into_bytes()
}

fn write(dir: &Path, pages: &[Page]) -> io::Result<usize> {
    pages.iter().try_for_each(|(name, text)| std::fs::write(dir.join(name), text))?;
    Ok(pages.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_that_names_its_flags() {
        let pages = pages().unwrap();
        let text = |name: &str| {
            let page = pages.iter().find(|(page, _)| page == name).unwrap_or_else(|| panic!("no {name}"));
            String::from_utf8(page.1.clone()).unwrap().replace("\\-", "-")
        };
        assert!(text("pdsfs-mount.1").contains("--part-size"));
        assert!(text("pdsfs-config-check.1").contains("mistake"));
        assert!(text("mount.pdsfs.8").contains("OPTIONS"));
        assert!(text("pdsfs.toml.5").contains("metadata_ttl"));
        assert!(text("pdsfs.1").contains("pdsfs-umount(1)"));
    }

    #[test]
    fn every_shell_gets_its_completions() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut super::super::Cli::command(), "pdsfs", &mut text);
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("part-size") && text.contains("umount"), "{shell}");
        }
    }
}
