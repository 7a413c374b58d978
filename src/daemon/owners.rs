//! The default of the setting `owners`: whether others decide what the tags of the drive say.

use crate::config::{MountConfig, Owners};
use crate::error::Result;
use crate::pds::drive::Drive;

/// The setting, or its default. Asks the drive only if the default depends on it.
pub(super) async fn in_effect(config: &MountConfig, drive: &Drive) -> Result<Owners> {
    let options = &config.options;
    if let Some(owners) = options.owners {
        return Ok(owners);
    }
    if !options.metadata {
        return Ok(Owners::Drive);
    }
    if options.allow_other && config.is_by_root() {
        return Ok(Owners::Mounter);
    }
    match drive.is_of_group().await {
        Ok(true) => Ok(Owners::Mounter),
        Ok(false) => Ok(Owners::Drive),
        Err(error) if error.is_outage() => Err(error),
        Err(error) => {
            tracing::warn!(
                %error,
                "cannot find out whether the drive belongs to a group: owners are not read from it (set owners = \
                 \"drive\" to read them)"
            );
            Ok(Owners::Mounter)
        }
    }
}
