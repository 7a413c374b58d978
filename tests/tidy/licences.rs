//! The licences of all linked packages, checked with the list in `deny.toml`.
//!
//! `cargo deny` reads the same list and checks more; this test needs only cargo.

use std::path::Path;
use std::process::Command;

use super::layout::{Breach, breach};

/// Packages whose licence expression cannot be satisfied from the allowed list.
pub fn of_packages(root: &Path, deny: &str) -> Vec<Breach> {
    let allowed = allowed(deny);
    assert!(!allowed.is_empty(), "deny.toml allows no licence at all");
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked", "--filter-platform", &platform])
        .current_dir(root)
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("JSON from cargo metadata");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    assert!(packages.len() > 10, "cargo metadata lists {} packages", packages.len());
    let mut out = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or("?");
        match package["license"].as_str() {
            None => out.push(breach("Cargo.lock", 0, format!("{name} states no licence"))),
            Some(licence) if !satisfied(licence, &allowed) => {
                out.push(breach(
                    "Cargo.lock",
                    0,
                    format!("{name} is under {licence}, which deny.toml does not allow"),
                ));
            }
            Some(_) => {}
        }
    }
    out
}

/// The strings of `allow = [ ... ]` below `[licenses]`.
fn allowed(deny: &str) -> Vec<String> {
    let Some((_, licenses)) = deny.split_once("[licenses]") else { return Vec::new() };
    let Some((_, list)) = licenses.split_once("allow = [") else { return Vec::new() };
    let list = list.split(']').next().unwrap_or_default();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether an SPDX expression can be satisfied; `/` is the old way to write OR.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let verdict = any(&words, &mut at, allowed);
    verdict && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut verdict = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        verdict |= all(words, at, allowed);
    }
    verdict
}

fn all(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut verdict = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        verdict &= one(words, at, allowed);
    }
    verdict
}

fn one(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let Some(&word) = words.get(*at) else { return false };
    *at += 1;
    if word == "(" {
        let verdict = any(words, at, allowed);
        *at += 1;
        return verdict;
    }
    let mut licence = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{word} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    allowed.contains(&licence)
}

mod tests {
    use super::*;

    #[test]
    fn expressions_are_judged_by_their_structure() {
        let allowed = ["MIT", "ISC"].map(str::to_owned);
        for good in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "MIT AND ISC", "(GPL-3.0 OR MIT) AND ISC"] {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "GPL-3.0 OR (MIT AND Zlib)", "MIT WITH X", "", "MIT MIT"] {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn allow_list_is_read_from_licenses_table() {
        let text =
            "[advisories]\nallow = [\"no\"]\n[licenses]\n# words\nallow = [\n \"MIT\", # why\n \"ISC\",\n]\n";
        assert_eq!(allowed(text), ["MIT", "ISC"]);
    }
}
