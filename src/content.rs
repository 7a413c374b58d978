//! The bytes of files: what state a file's content is in, and what a write means in it.
//!
//! State lives per file, not per handle: one [`open_file::OpenFile`] per inode with open handles.
//!
//! ```text
//!        create                         O_TRUNC, truncate(0)
//!          |                                    |
//!          v    write at 0                      v
//!         New ------------------------> Streaming <------ write at the end of Clean that was
//!          |                                |  ^          written through this very handle and
//!          | settle (an empty file)         |  |          is still held (shell loops)
//!          |                         settle |  +--- write at the frontier
//!          +---------------> Committing <---+
//!                             |      |
//!         the drive has it    v      v   anything else, also a task that dies
//!                          Clean    Failed -- truncate(0) --> Streaming
//! ```
//!
//! A write that is not front to back has no arrow yet: [`Plan::Stage`] is where the staged copy
//! comes in. Until then such a write is refused and changes nothing.

pub mod budget;
pub mod flow;
pub mod in_flight;
pub mod open_file;
pub mod open_files;
pub mod part;
pub mod reader;
pub mod shipper;
pub mod streaming;

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
        /// Bytes so far.
        frontier: u64,
    },
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
    /// Needs a local copy.
    Stage,
    /// The commit under way must end first.
    Wait,
    /// The failure is reported again.
    Refuse,
}

/// What a write of at least one byte at `offset` does.
pub fn plan_write(shape: Shape, offset: u64) -> Plan {
    match shape {
        Shape::New | Shape::Clean { size: 0, .. } if offset == 0 => Plan::Start,
        Shape::Clean { size, resumable: true } if offset == size => Plan::Resume,
        Shape::Streaming { frontier } if offset == frontier => Plan::Append,
        Shape::New | Shape::Clean { .. } | Shape::Streaming { .. } => Plan::Stage,
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
            (Shape::Streaming { frontier: 0 }, 0, Plan::Append),
            (Shape::Streaming { frontier: 5 }, 5, Plan::Append),
            (Shape::Streaming { frontier: 5 }, 4, Plan::Stage),
            (Shape::Streaming { frontier: 5 }, 6, Plan::Stage),
            (Shape::Committing, 0, Plan::Wait),
            (Shape::Committing, 5, Plan::Wait),
            (Shape::Failed, 0, Plan::Refuse),
        ];
        for (shape, offset, plan) in table {
            assert_eq!(plan_write(shape, offset), plan, "{shape:?} at {offset}");
        }
    }
}
