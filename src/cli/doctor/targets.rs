//! The drives whose services are checked.

use super::finding::Finding;
use super::text;
use crate::cli::config::{ConfigArgs, Configuration};
use crate::cli::named_drive;
use crate::config::settings::Settings;
use crate::error::Result;

const CHECK: &str = "configuration";

/// A drive, as a mount by this name would use it.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// `None` without a drive of the configuration and without an account: the variables alone describe it.
    pub(super) name: Option<String>,
    pub(super) settings: Settings,
}

impl Target {
    /// The account that a new login would replace.
    pub(super) fn account_name(&self) -> Option<String> {
        let account = self.settings.account.as_ref().map(ToString::to_string);
        account.or_else(|| self.name.clone().filter(|name| named_drive::accounts().contains(name)))
    }
}

/// The drive `wanted`, or all drives and accounts; and whether the configuration can be read.
pub(super) fn find(wanted: Option<&str>, config: &ConfigArgs) -> (Finding, Vec<Target>) {
    let read = Configuration::read(config);
    let variables = match Settings::from_environment() {
        Ok(variables) => variables,
        Err(error) => return (Finding::error(CHECK, &error), Vec::new()),
    };
    let named = |name: &str| -> Result<Target> {
        let entry = named_drive::find(name, config)?;
        let settings = variables.clone().layered_over(entry.settings);
        Ok(Target { name: Some(name.to_owned()), settings })
    };
    if let Some(name) = wanted {
        return match named(name) {
            Ok(target) => (summary(&read), vec![target]),
            Err(error) => (Finding::error(CHECK, &error), Vec::new()),
        };
    }
    let drives: Vec<String> = read.iter().flat_map(Configuration::names).map(str::to_owned).collect();
    let mut targets: Vec<Target> = drives.iter().filter_map(|name| named(name).ok()).collect();
    for account in named_drive::accounts() {
        let is_used = targets.iter().any(|target| {
            target.name.as_ref() == Some(&account)
                || target.settings.account.as_ref().is_some_and(|name| name.as_str() == account)
        });
        if !is_used && let Ok(Some(entry)) = named_drive::account_as_drive(&account) {
            let settings = variables.clone().layered_over(entry.settings);
            targets.push(Target { name: Some(account), settings });
        }
    }
    if targets.is_empty() {
        targets.push(Target { name: None, settings: variables });
    }
    (summary(&read), targets)
}

fn summary(read: &Result<Configuration>) -> Finding {
    match read {
        Err(error) => Finding::error(CHECK, error),
        Ok(configuration) => match (configuration.names().count(), named_drive::accounts().len()) {
            (0, 0) => Finding::ok(CHECK, text::NO_CONFIGURATION),
            (drives, accounts) => Finding::ok(CHECK, text::configuration(drives, accounts)),
        },
    }
}
