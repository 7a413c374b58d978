//! One man page, from the definition of a command and its notes.

use clap::{Arg, ArgAction, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use super::notes::{self, Notes};
use crate::config::reference;

const VERSION: &str = concat!("pdsfs ", env!("CARGO_PKG_VERSION"));
const MANUAL: &str = "pdsfs";

/// The page of a command. `names` are those of all pages of section 1.
pub(super) fn command(command: &Command, name: &str, section: &'static str, names: &[String]) -> String {
    let Notes { examples, files, variables, exit } = notes::of(name);
    let mut page = Roff::new();
    head(&mut page, name, section, &about(command));
    page.control("SH", ["SYNOPSIS"]);
    synopsis(&mut page, command, name);
    page.control("SH", ["DESCRIPTION"]);
    page.text([roman(about(command))]);
    let mut text = page.render();
    if command.get_arguments().any(|arg| !arg.is_hide_set()) {
        text += &options(command);
    }
    let mut page = Roff::new();
    subcommands(&mut page, command, name);
    if let Some(after) = command.get_after_help() {
        page.control("SH", ["NOTES"]);
        paragraphs(&mut page, &after.to_string());
    }
    page.control("SH", ["EXAMPLES"]);
    for (what, line) in examples {
        page.text([roman(format!("{what}:"))]);
        block(&mut page, line.lines());
    }
    list(&mut page, "FILES", files.iter().map(|(file, what)| (*file, (*what).to_owned())));
    page.control("SH", ["ENVIRONMENT"]);
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        if let (Some(variable), Some(long)) = (arg.get_env(), arg.get_long()) {
            entry(
                &mut page,
                &variable.to_string_lossy(),
                &format!("The value of --{long}; the flag overrides it."),
            );
        }
    }
    for (variable, what) in variables {
        entry(&mut page, variable, what);
    }
    list(&mut page, "EXIT STATUS", exit.iter().map(|(code, what)| (*code, (*what).to_owned())));
    see_also(&mut page, name, names);
    text + &page.render()
}

/// The page about the configuration file, around its example.
pub(super) fn configuration() -> String {
    let mut page = Roff::new();
    head(&mut page, "pdsfs.toml", "5", "configuration file of pdsfs");
    list(
        &mut page,
        "FILES",
        notes::CONFIGURATION_FILES.iter().map(|(file, what)| (*file, (*what).to_owned())),
    );
    page.control("SH", ["SETTINGS"]);
    block(&mut page, reference::example().lines());
    page.control("SH", ["ENVIRONMENT"]);
    entry(&mut page, "PDSFS_CONFIG", "Another file; no other one is then read.");
    entry(&mut page, "PDSFS_NAME", "The setting NAME, such as PDSFS_PART_SIZE; it overrides the file.");
    page.control("SH", ["SEE ALSO"]);
    page.text([roman("pdsfs(1), pdsfs-mount(1), pdsfs-config(1), mount.pdsfs(8)")]);
    page.render()
}

fn head(page: &mut Roff, name: &str, section: &'static str, about: &str) {
    page.control("TH", [name, section, "", VERSION, MANUAL]);
    page.control("SH", ["NAME"]);
    page.text([roman(format!("{name} - {about}"))]);
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

/// The options as clap_mangen renders them, without the title of the page.
fn options(command: &Command) -> String {
    let mut text = Vec::new();
    // Writing to memory does not fail.
    Man::new(command.clone()).render_options_section(&mut text).ok();
    let text = String::from_utf8_lossy(&text).into_owned();
    let from = text.find(".SH OPTIONS").unwrap_or_default();
    text[from..].to_owned()
}

/// Every flag with the name of its value.
fn synopsis(page: &mut Roff, command: &Command, name: &str) {
    let spoken = name.replace('-', " ");
    let mut line = vec![bold(if name.contains('.') { name.to_owned() } else { spoken })];
    let visible = || command.get_arguments().filter(|arg| !arg.is_hide_set());
    for arg in visible().filter(|arg| !arg.is_positional()) {
        line.push(roman(if arg.is_required_set() { " " } else { " [" }));
        line.extend(flag(arg));
        line.extend((!arg.is_required_set()).then(|| roman("]")));
    }
    for arg in visible().filter(|arg| arg.is_positional()) {
        let (open, close) = if arg.is_required_set() { (" ", "") } else { (" [", "]") };
        line.extend([roman(open), italic(value_names(arg)), roman(close)]);
    }
    if command.get_subcommands().any(|child| !child.is_hide_set()) {
        line.extend([roman(" "), italic("COMMAND")]);
    }
    page.text(line);
}

fn flag(arg: &Arg) -> Vec<Inline> {
    let name = match (arg.get_long(), arg.get_short()) {
        (Some(long), _) => format!("--{long}"),
        (None, Some(short)) => format!("-{short}"),
        (None, None) => return Vec::new(),
    };
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    if !takes_value {
        return vec![bold(name)];
    }
    let is_optional = arg.get_num_args().is_some_and(|count| count.min_values() == 0);
    if is_optional {
        return vec![bold(name), roman("[="), italic(value_names(arg)), roman("]")];
    }
    vec![bold(name), roman(" "), italic(value_names(arg))]
}

fn value_names(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    if names.is_empty() {
        return arg.get_id().as_str().to_uppercase();
    }
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn subcommands(page: &mut Roff, command: &Command, name: &str) {
    let mut children = command
        .get_subcommands()
        .filter(|child| !child.is_hide_set() && child.get_name() != "help")
        .peekable();
    if children.peek().is_none() {
        return;
    }
    page.control("SH", ["COMMANDS"]);
    for child in children {
        entry(page, &format!("{name}-{}(1)", child.get_name()), &about(child));
    }
}

/// Paragraphs of the help text. One whose lines begin with two spaces is a block.
fn paragraphs(page: &mut Roff, text: &str) {
    for paragraph in text.split("\n\n") {
        if paragraph.starts_with("  ") {
            block(page, paragraph.lines().map(str::trim_start));
        } else {
            page.control("PP", []);
            page.text([roman(paragraph)]);
        }
    }
}

/// Lines as they are, indented.
fn block<'a>(page: &mut Roff, lines: impl Iterator<Item = &'a str>) {
    page.control("PP", []);
    page.control("RS", ["4"]);
    page.control("nf", []);
    for line in lines {
        page.text([roman(line)]);
    }
    page.control("fi", []);
    page.control("RE", []);
    page.control("PP", []);
}

fn list<'a>(page: &mut Roff, heading: &str, entries: impl Iterator<Item = (&'a str, String)>) {
    page.control("SH", [heading]);
    entries.for_each(|(name, what)| entry(page, name, &what));
}

fn entry(page: &mut Roff, name: &str, what: &str) {
    page.control("TP", []);
    page.text([bold(name)]);
    page.text([roman(what)]);
}

/// The page of the program, those beside it, and those that its notes name.
fn see_also(page: &mut Roff, name: &str, names: &[String]) {
    let parent = name.rsplit_once('-').map_or("pdsfs", |(parent, _)| parent);
    let is_beside = |other: &&String| {
        *other != name
            && (other.as_str() == parent
                || other.rsplit_once('-').is_some_and(|(of, _)| of == parent || of == name))
    };
    let beside = names.iter().filter(is_beside).map(|other| format!("{other}(1)"));
    let others = ["pdsfs.toml(5)", "mount.pdsfs(8)", "fusermount3(1)"].map(str::to_owned);
    let others = others.into_iter().filter(|other| !other.starts_with(name));
    page.control("SH", ["SEE ALSO"]);
    page.text([roman(beside.chain(others).collect::<Vec<_>>().join(", "))]);
}
