//! Man pages and shell completions for packages, generated from the help texts.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::mount::fstab;
use super::output::{print_line, print_message};
use crate::config::reference;
use crate::error::{Error, Result};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell to complete for
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Directory for the man pages; created if missing
    dir: PathBuf,
}

/// Prints the completion script of a shell.
pub(super) fn completions(args: &CompletionsArgs, mut program: Command) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut program, "pdsfs", &mut text);
    print_line(String::from_utf8_lossy(&text).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes all man pages.
pub(super) fn man(args: &ManArgs, program: Command) -> Result<ExitCode> {
    let named = |e: io::Error| Error::from(e).context(args.dir.display());
    std::fs::create_dir_all(&args.dir).map_err(named)?;
    let pages = pages(program).and_then(|pages| write(&args.dir, &pages)).map_err(named)?;
    print_message(format_args!("wrote {pages} man pages to {}", args.dir.display()));
    Ok(ExitCode::SUCCESS)
}

/// File name and content.
type ManPage = (String, Vec<u8>);

fn pages(mut program: Command) -> io::Result<Vec<ManPage>> {
    program.build();
    let mut pages = Vec::new();
    pages.push(page(&program, "pdsfs", "1")?);
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        add_pages(command, "pdsfs", &mut pages)?;
    }
    pages.push(page(&fstab::command(), "mount.pdsfs", "8")?);
    pages.push(("pdsfs.toml.5".to_owned(), configuration()));
    Ok(pages)
}

fn add_pages(command: &Command, parent: &str, pages: &mut Vec<ManPage>) -> io::Result<()> {
    if command.get_name() == "help" {
        return Ok(());
    }
    let name = format!("{parent}-{}", command.get_name());
    pages.push(page(command, &name, "1")?);
    command.get_subcommands().try_for_each(|child| add_pages(child, &name, pages))
}

fn page(command: &Command, name: &str, section: &'static str) -> io::Result<ManPage> {
    let mut text = Vec::new();
    let named = command.clone().name(leaked(name)).version(env!("CARGO_PKG_VERSION"));
    Man::new(named).section(section).manual("pdsfs").render(&mut text)?;
    // clap_mangen titles the text after the options EXTRA.
    let text = String::from_utf8_lossy(&text).replace("\n.SH EXTRA\n", "\n.SH NOTES\n");
    Ok((format!("{name}.{section}"), text.into_bytes()))
}

/// clap requires names with a static lifetime; there are about twenty, and the program ends after them.
fn leaked(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

/// The page about the configuration file, around its example.
fn configuration() -> Vec<u8> {
    let mut page = Roff::new();
    page.control("TH", ["pdsfs.toml", "5", "", concat!("pdsfs ", env!("CARGO_PKG_VERSION")), "pdsfs"]);
    page.control("SH", ["NAME"]);
    page.text([roman("pdsfs.toml - configuration file of pdsfs")]);
    page.control("SH", ["FILES"]);
    page.text([roman("~/.config/pdsfs/config.toml (not for root), then /etc/pdsfs/config.toml")]);
    page.control("SH", ["SETTINGS"]);
    page.control("nf", []);
    for line in reference::example().lines() {
        page.text([roman(line)]);
    }
    page.control("fi", []);
    page.control("SH", ["SEE ALSO"]);
    page.text([roman("pdsfs-mount(1), pdsfs-config(1), mount.pdsfs(8)")]);
    page.to_roff().into_bytes()
}

fn write(dir: &Path, pages: &[ManPage]) -> io::Result<usize> {
    pages.iter().try_for_each(|(name, text)| std::fs::write(dir.join(name), text))?;
    Ok(pages.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn every_command_has_a_man_page_with_its_flags() {
        let pages = pages(super::super::Cli::command()).unwrap();
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
    fn completions_exist_for_every_shell() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut super::super::Cli::command(), "pdsfs", &mut text);
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("part-size") && text.contains("umount"), "{shell}");
        }
    }
}
