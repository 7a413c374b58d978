//! The bytes of files: what state a file's content is in, and what a write means in it.
//!
//! State lives per file, not per handle: one [`open_file::OpenFile`] per inode with open handles.
//!
//! ```text
//!        create                         O_TRUNC, truncate(0)
//!          |                                    |
//!          v    write near the beginning        v
//!         New ------------------------> Streaming <------ write at the end of Clean that was
//!          |                                |  |  ^       written through this very handle and
//!          | settle (an empty file)         |  |  |       is still held (shell loops)
//!          |                         settle |  |  +--- write at the frontier, into what has not
//!          |                                |  |       left yet, or a little ahead
//!          |                                |  |
//!          |          any other write: once |  | all of it is here
//!          |          it is settled, Clean  |  v
//!          |                                | Staged <--- any other write or cut of Clean
//!          |                                |  |    <--- write, cut
//!          +---------------> Committing <---+--+ settle
//!                             |      |
//!         the drive has it    v      v   anything else, also a task that dies
//!                          Clean    Failed -- truncate(0) --> Streaming
//! ```
//!
//! A file that stays on this machine is `Local` from its creation on, takes any write, and has nothing to
//! settle. Renamed to an ordinary name it is `Staged`, as if it had been written in any order; where the
//! drive does not take it, it is `Local` again.

pub mod budget;
mod direct;
pub mod finish;
pub mod flow;
pub mod in_flight;
pub mod kept;
pub mod local;
pub mod open_file;
pub mod open_files;
pub mod part;
pub mod ranges;
pub mod reader;
pub mod shipper;
pub mod space;
pub mod staged;
pub mod streaming;
pub mod tee;

/// The state of a content, as far as a write needs to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Created here; nothing was written yet.
    New,
    /// As on the drive.
    Clean {
        /// Bytes.
        size: u64,
        /// The whole content is still here and can be written on.
        resumable: bool,
    },
    /// Being written front to back.
    Streaming {
        /// From where on nothing has left yet.
        here_from: u64,
        /// Bytes so far.
        frontier: u64,
        /// The largest gap that is filled with zeros rather than left.
        pad_max: u64,
    },
    /// In a staged copy.
    Staged,
    /// On its way to become a revision.
    Committing,
    /// Lost.
    Failed,
}

/// What a write does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Begins a live upload.
    Start,
    /// Goes on with the live upload.
    Append,
    /// Begins a live upload with what is still here, and goes on with it.
    Resume,
    /// Changes what the live upload has not sent yet.
    Patch,
    /// Runs over a small gap with zeros: whoever fills it soon finds it still there.
    Pad,
    /// Needs a staged copy.
    Stage,
    /// Goes to the staged copy.
    Copy,
    /// The commit under way must end first.
    Wait,
    /// The failure is reported again.
    Refuse,
}

/// What a write of at least one byte at `offset` does. Some plans prepare the content only; it is planned
/// again then.
pub fn plan_write(shape: Shape, offset: u64) -> Plan {
    match shape {
        Shape::New | Shape::Clean { size: 0, .. } if offset == 0 => Plan::Start,
        Shape::Clean { size, resumable: true } if offset == size => Plan::Resume,
        Shape::Streaming { frontier, .. } if offset == frontier => Plan::Append,
        Shape::Streaming { here_from, frontier, .. } if (here_from..frontier).contains(&offset) => {
            Plan::Patch
        }
        Shape::Streaming { frontier, pad_max, .. } if offset > frontier && offset - frontier <= pad_max => {
            Plan::Pad
        }
        Shape::New | Shape::Clean { .. } | Shape::Streaming { .. } => Plan::Stage,
        Shape::Staged => Plan::Copy,
        Shape::Committing => Plan::Wait,
        Shape::Failed => Plan::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_has_a_plan() {
        let clean = |size, resumable| Shape::Clean { size, resumable };
        let streaming = |here_from, frontier| Shape::Streaming { here_from, frontier, pad_max: 10 };
        let table = [
            (Shape::New, 0, Plan::Start),
            (Shape::New, 1, Plan::Stage),
            (clean(0, false), 0, Plan::Start),
            (clean(0, true), 0, Plan::Start),
            (clean(0, false), 1, Plan::Stage),
            (clean(9, false), 0, Plan::Stage),
            (clean(9, false), 9, Plan::Stage),
            (clean(9, true), 9, Plan::Resume),
            (clean(9, true), 8, Plan::Stage),
            (clean(9, true), 10, Plan::Stage),
            (streaming(0, 0), 0, Plan::Append),
            (streaming(5, 5), 5, Plan::Append),
            (streaming(5, 5), 4, Plan::Stage),
            (streaming(3, 5), 4, Plan::Patch),
            (streaming(3, 5), 3, Plan::Patch),
            (streaming(3, 5), 2, Plan::Stage),
            (streaming(5, 5), 6, Plan::Pad),
            (streaming(5, 5), 15, Plan::Pad),
            (streaming(5, 5), 16, Plan::Stage),
            (Shape::Staged, 0, Plan::Copy),
            (Shape::Staged, 9, Plan::Copy),
            (Shape::Committing, 0, Plan::Wait),
            (Shape::Committing, 5, Plan::Wait),
            (Shape::Failed, 0, Plan::Refuse),
        ];
        for (shape, offset, plan) in table {
            assert_eq!(plan_write(shape, offset), plan, "{shape:?} at {offset}");
        }
    }
}
