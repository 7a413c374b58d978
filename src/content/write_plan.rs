//! The plan of a write: its next action in the current state of the content. Pure.

/// The place of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteAt {
    Offset(u64),
    /// The end of the file at the moment of the write, as with `O_APPEND`.
    End,
}

impl WriteAt {
    /// The place of the rest of a write, after its first `bytes`.
    pub fn after(self, bytes: usize) -> Self {
        match self {
            Self::Offset(offset) => Self::Offset(offset + bytes as u64),
            Self::End => Self::End,
        }
    }
}

/// The state of a content, as far as a write depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ContentState {
    /// Created here, nothing written.
    New,
    /// Equal to the drive.
    Clean {
        /// In bytes.
        size: u64,
        /// The whole content is in memory, so a write at its end can resume the stream.
        resumable: bool,
    },
    /// Written front to back, and uploaded while it is written.
    Streaming {
        /// Offset of the filling part: bytes from here on were not sent.
        patchable_from: u64,
        /// Offset of the next append.
        frontier: u64,
        /// Largest gap that is filled with zeros rather than staged, in bytes.
        zero_fill_max: u64,
    },
    Staged,
    /// A commit is running.
    Committing,
    Failed,
}

/// The next action of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WritePlan {
    StartStream,
    Append,
    /// Starts a stream with the retained content; then the write is planned again.
    ResumeStream,
    /// Overwrites bytes of the filling part.
    PatchTail,
    /// Appends zeros up to the offset; then the write is planned again. A program that fills the gap soon can
    /// still patch it.
    ZeroFill,
    /// Stages the content; then the write is planned again.
    Stage,
    WriteStaged,
    /// Waits until the running commit has ended.
    AwaitCommit,
    /// Returns the sticky failure.
    ReportFailure,
}

impl WritePlan {
    /// The plan where no stream is possible.
    pub(super) fn staged(self) -> Self {
        match self {
            Self::StartStream | Self::Append | Self::ResumeStream | Self::PatchTail | Self::ZeroFill => {
                Self::Stage
            }
            plan => plan,
        }
    }
}

/// Plans a write of at least one byte at `offset`.
pub(super) fn plan_write(state: ContentState, offset: u64) -> WritePlan {
    match state {
        ContentState::New | ContentState::Clean { size: 0, .. } if offset == 0 => WritePlan::StartStream,
        ContentState::Clean { size, resumable: true } if offset == size => WritePlan::ResumeStream,
        ContentState::Streaming { frontier, .. } if offset == frontier => WritePlan::Append,
        ContentState::Streaming { patchable_from, frontier, .. }
            if (patchable_from..frontier).contains(&offset) =>
        {
            WritePlan::PatchTail
        }
        ContentState::Streaming { frontier, zero_fill_max, .. }
            if offset > frontier && offset - frontier <= zero_fill_max =>
        {
            WritePlan::ZeroFill
        }
        ContentState::New | ContentState::Clean { .. } | ContentState::Streaming { .. } => WritePlan::Stage,
        ContentState::Staged => WritePlan::WriteStaged,
        ContentState::Committing => WritePlan::AwaitCommit,
        ContentState::Failed => WritePlan::ReportFailure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_and_offset_has_its_plan() {
        let clean = |size, resumable| ContentState::Clean { size, resumable };
        let streaming = |patchable_from, frontier| ContentState::Streaming {
            patchable_from,
            frontier,
            zero_fill_max: 10,
        };
        let table = [
            (ContentState::New, 0, WritePlan::StartStream),
            (ContentState::New, 1, WritePlan::Stage),
            (clean(0, false), 0, WritePlan::StartStream),
            (clean(0, true), 0, WritePlan::StartStream),
            (clean(0, false), 1, WritePlan::Stage),
            (clean(9, false), 0, WritePlan::Stage),
            (clean(9, false), 9, WritePlan::Stage),
            (clean(9, true), 9, WritePlan::ResumeStream),
            (clean(9, true), 8, WritePlan::Stage),
            (clean(9, true), 10, WritePlan::Stage),
            (streaming(0, 0), 0, WritePlan::Append),
            (streaming(5, 5), 5, WritePlan::Append),
            (streaming(5, 5), 4, WritePlan::Stage),
            (streaming(3, 5), 4, WritePlan::PatchTail),
            (streaming(3, 5), 3, WritePlan::PatchTail),
            (streaming(3, 5), 2, WritePlan::Stage),
            (streaming(5, 5), 6, WritePlan::ZeroFill),
            (streaming(5, 5), 15, WritePlan::ZeroFill),
            (streaming(5, 5), 16, WritePlan::Stage),
            (ContentState::Staged, 0, WritePlan::WriteStaged),
            (ContentState::Staged, 9, WritePlan::WriteStaged),
            (ContentState::Committing, 0, WritePlan::AwaitCommit),
            (ContentState::Committing, 5, WritePlan::AwaitCommit),
            (ContentState::Failed, 0, WritePlan::ReportFailure),
        ];
        for (state, offset, plan) in table {
            assert_eq!(plan_write(state, offset), plan, "{state:?} at {offset}");
        }
    }
}
