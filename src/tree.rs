//! Inodes and names: the mount's view of the drive's directory tree, including its own changes.
//!
//! The tree is pure and synchronous: it does no I/O, and time is an argument. It stores no paths: ids on the
//! drive are stable, so a rename changes one dentry.
//!
//! # Freshness
//!
//! A directory listing carries all attributes of the entries, so freshness is a property of a listing. While
//! a complete listing is fresh, a name that it lacks is absent. The drive's listings lag behind changes.
//! Therefore a change made by this mount wins against a listing that began less than `LISTING_LAG` after
//! the change: entries created or moved here stay, and entries removed here stay removed.
//!
//! # Life of an inode
//!
//! An inode lives while the kernel refers to it (lookups), a handle is open (pins) or a dentry points to it.
//! Inode numbers are never reused. An inode has at most one dentry, because the drive has no hard links. The
//! object behind an inode may change: a file that was saved by rename takes over the id of the file that it
//! replaced.

mod change;
mod inodes;
#[cfg(any(test, fuzzing))]
mod invariants;
mod leftovers;
mod lifetime;
mod merge;
pub mod name;
mod objects;
mod recycled;
mod stat;
mod tombstones;

#[cfg(test)]
mod tests;

pub use inodes::{Identity, NameState, RemoteLocation, Tree};
pub use leftovers::Removal;
pub use merge::{ListedEntry, ListingMerge};
pub use name::{Name, display_name};
pub use objects::Objects;
pub use stat::FileKind;
