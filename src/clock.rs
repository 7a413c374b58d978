//! The clock for times that are stored on the drive.

use std::time::SystemTime;

use crate::posix;

/// The current time at the resolution of the drive, so that the drive later returns exactly this time.
pub fn now() -> SystemTime {
    posix::at_drive_resolution(SystemTime::now())
}
