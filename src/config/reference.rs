//! Texts generated from the table of settings: the example file, and the table of `doc/CONFIGURATION.md`.

use std::fmt::Write as _;

use super::settings::{DefaultText, all};

const EXAMPLE_HEAD: &str = "\
# Configuration of pdsfs: ~/.config/pdsfs/config.toml, or /etc/pdsfs/config.toml for the system.
# Environment variables (PDSFS_PART_SIZE ...) override it, flags (--part-size ...) override both.
# After a change: pdsfs config check

[drives.photos]                 # then: pdsfs mount photos
mountpoint = \"~/Photos\"
account = \"default\"            # created by: pdsfs login
drive_id = \"1\"                 # listed by: pdsfs drives

# Any setting may be here, for all drives, or in the table of one drive.
[defaults]
";

/// An example file with every setting, commented out. Uncommenting a default changes nothing.
pub fn example() -> String {
    let mut out = EXAMPLE_HEAD.to_owned();
    for setting in all() {
        let bounds =
            if setting.bounds.is_empty() { String::new() } else { format!(" Values: {}.", setting.bounds) };
        let (literal, note) = match &setting.default {
            DefaultText::Value(text) => (toml_literal(text), String::new()),
            DefaultText::Words(words) => ("\"\"".to_owned(), format!("\n# Default: {words}.")),
        };
        let (meaning, name) = (&setting.meaning, setting.name);
        // Writing to a string cannot fail.
        let _ = write!(out, "\n# {meaning}.{bounds}{note}\n#{name} = {literal}\n");
    }
    out
}

fn toml_literal(text: &str) -> String {
    let is_bool = matches!(text, "true" | "false");
    // TOML has no decimal numbers with leading zeros, and the umask is octal.
    let is_number = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    if is_bool || is_number { text.to_owned() } else { format!("\"{text}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/doc/CONFIGURATION.md");
    /// The last heading of the document. The table follows.
    const HEADING: &str = "## All settings\n";

    fn table() -> String {
        let mut out = String::from("| setting | default | values | meaning |\n|---|---|---|---|\n");
        for setting in all() {
            let cell = |text: &str| text.replace('|', "\\|").replace('*', "\\*");
            let default = match &setting.default {
                DefaultText::Value(text) => format!("`{text}`"),
                DefaultText::Words(words) => cell(words),
            };
            let (name, bounds, meaning) = (setting.name, cell(&setting.bounds), cell(&setting.meaning));
            writeln!(out, "| `{name}` | {default} | {bounds} | {meaning} |").unwrap();
        }
        out
    }

    #[test]
    fn document_lists_all_settings() {
        let text = std::fs::read_to_string(Path::new(DOCUMENT)).unwrap();
        let (head, _) = text.split_once(HEADING).expect("doc/CONFIGURATION.md has the heading of the table");
        let expected = format!("{head}{HEADING}\n{}", table());
        if std::env::var_os("PDSFS_BLESS").is_some() {
            std::fs::write(DOCUMENT, expected).unwrap();
            return;
        }
        assert!(
            text == expected,
            "doc/CONFIGURATION.md is out of date; update it with: PDSFS_BLESS=1 cargo test --lib document_lists_all"
        );
    }

    #[test]
    fn example_is_a_configuration() {
        let (file, problems) = crate::config::file::ConfigFile::parse(Path::new("example"), &example());
        assert_eq!(problems, []);
        assert!(file.drives["photos"].settings.account.is_some());
    }

    #[test]
    fn example_shows_valid_defaults() {
        let live = example().replace("\n#", "\n").replace("\n ", "\n# ");
        let settings = live.lines().filter(|line| line.contains(" = ") && !line.ends_with("\"\""));
        let settings: Vec<&str> = settings.filter(|line| !line.starts_with('#')).collect();
        let text = format!("[defaults]\n{}\n", settings[3..].join("\n"));
        let (_, problems) = crate::config::file::ConfigFile::parse(Path::new("example"), &text);
        assert!(settings.len() > 15 && problems.is_empty(), "{problems:?}\n{text}");
    }
}
