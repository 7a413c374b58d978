//! Man pages and shell completions for packages, generated from the help texts.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use super::completion;
use super::mount::fstab;
use super::output::{print_line, print_message};
use crate::error::{Error, Result};

mod notes;
mod page;

#[derive(Debug, Args)]
#[command(after_help = "The package installs the scripts. Without it, for one user:\n\n  \
    bash: pdsfs completions bash > ~/.local/share/bash-completion/completions/pdsfs\n  \
    zsh:  pdsfs completions zsh > a directory of $fpath, as _pdsfs\n  \
    fish: pdsfs completions fish > ~/.config/fish/completions/pdsfs.fish\n\nA script asks pdsfs for each answer, \
    without the network: names come from the configuration, the accounts and the mount table.")]
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
pub(super) fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    print_line(completion::script(&args.shell.to_string())?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Writes all man pages.
pub(super) fn man(args: &ManArgs, program: Command) -> Result<ExitCode> {
    let named = |e: io::Error| Error::from(e).context(args.dir.display());
    std::fs::create_dir_all(&args.dir).map_err(named)?;
    let pages = write(&args.dir, &pages(program)).map_err(named)?;
    print_message(format_args!("wrote {pages} man pages to {}", args.dir.display()));
    Ok(ExitCode::SUCCESS)
}

/// File name and content.
type ManPage = (String, String);

fn pages(mut program: Command) -> Vec<ManPage> {
    program.build();
    let mut found = Vec::new();
    commands(&program, "pdsfs", &mut found);
    let names: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
    let mut pages: Vec<ManPage> = found
        .iter()
        .map(|(name, command)| (format!("{name}.1"), page::command(command, name, "1", &names)))
        .collect();
    let helper = page::command(&fstab::command(), "mount.pdsfs", "8", &names);
    pages.push(("mount.pdsfs.8".to_owned(), helper));
    pages.push(("pdsfs.toml.5".to_owned(), page::configuration()));
    pages
}

/// The command and those below it, each with the name of its page.
fn commands<'c>(command: &'c Command, name: &str, found: &mut Vec<(String, &'c Command)>) {
    found.push((name.to_owned(), command));
    let visible =
        command.get_subcommands().filter(|child| !child.is_hide_set() && child.get_name() != "help");
    visible.for_each(|child| commands(child, &format!("{name}-{}", child.get_name()), found));
}

fn write(dir: &Path, pages: &[ManPage]) -> io::Result<usize> {
    pages.iter().try_for_each(|(name, text)| std::fs::write(dir.join(name), text))?;
    Ok(pages.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    /// The pages as they are read: roff escapes hyphens.
    fn read() -> Vec<ManPage> {
        let pages = pages(super::super::Cli::command());
        pages.into_iter().map(|(name, text)| (name, text.replace("\\-", "-"))).collect()
    }

    fn text(name: &str) -> String {
        read().into_iter().find(|(page, _)| page == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    #[test]
    fn every_command_has_a_man_page_with_its_flags() {
        assert!(text("pdsfs-mount.1").contains("--part-size"));
        assert!(text("pdsfs-config-check.1").contains("mistake"));
        assert!(text("mount.pdsfs.8").contains("OPTIONS"));
        assert!(text("pdsfs.toml.5").contains("metadata_ttl"));
        assert!(text("pdsfs.1").contains("pdsfs-umount"));
    }

    #[test]
    fn every_man_page_has_all_sections() {
        for (name, text) in read() {
            assert!(!text.contains("EXTRA"), "{name}");
            let wanted: &[&str] = if name.ends_with(".5") {
                &["NAME", "FILES", "SETTINGS", "ENVIRONMENT", "SEE ALSO"]
            } else {
                &[
                    "NAME",
                    "SYNOPSIS",
                    "DESCRIPTION",
                    "EXAMPLES",
                    "FILES",
                    "ENVIRONMENT",
                    "EXIT STATUS",
                    "SEE ALSO",
                ]
            };
            for section in wanted {
                let heading = format!("\n.SH {section}\n").replace(".SH SEE ALSO", ".SH \"SEE ALSO\"");
                let heading = heading.replace(".SH EXIT STATUS", ".SH \"EXIT STATUS\"");
                assert!(text.contains(&heading), "{name} has no {section}");
            }
        }
    }

    #[test]
    fn synopsis_names_the_values() {
        let mount = text("pdsfs-mount.1");
        let synopsis = mount.split(".SH SYNOPSIS").nth(1).unwrap().split(".SH").next().unwrap();
        assert!(synopsis.contains("--part-size") && synopsis.contains("\\fISIZE\\fR"), "{synopsis}");
        assert!(synopsis.contains("\\fIMOUNTPOINT\\fR"), "{synopsis}");
        assert!(!synopsis.contains("--detached"), "hidden: {synopsis}");
    }

    #[test]
    fn line_of_fstab_is_a_block() {
        let page = text("mount.pdsfs.8");
        let line = page.lines().position(|line| line.contains("fuse.pdsfs  noauto")).unwrap();
        let lines: Vec<&str> = page.lines().collect();
        assert!(lines[..line].iter().rev().take(3).any(|line| *line == ".nf"), "{page}");
    }

    #[test]
    fn examples_are_valid_command_lines() {
        for (name, _) in read().iter().filter(|(name, _)| name.ends_with(".1")) {
            for example in notes::of(name.trim_end_matches(".1")).examples {
                let is_of_shell = |word: &&str| matches!(*word, "|" | ">" | "&&");
                let words = example.1.split_whitespace().skip_while(|word| *word != "pdsfs");
                let words = words.take_while(|word| !is_of_shell(word));
                let parsed = super::super::Cli::command().try_get_matches_from(words);
                assert!(parsed.is_ok(), "{}: {}", example.1, parsed.unwrap_err());
            }
        }
    }
}
