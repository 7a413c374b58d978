//! The `create` call: an upload session, or an instant upload if the drive has the content.

use std::time::UNIX_EPOCH;

use super::commit_target::CommitTarget;
use super::upload_context::UploadContext;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{PartNumber, Sha1Hash};
use crate::pds::drive::{CreateOutcome, NewFile, UploadSession};
use crate::pds::types::{CheckNameMode, FileType, PartUrl};
use crate::posix;
use crate::rolling_sha1::Sha1Midstate;

/// How often `create` adapts to another object of the name before it fails.
const NAME_TRIES_MAX: usize = 5;

/// Begins a session for content whose hash is not known yet.
pub(super) async fn begin_session(
    context: &UploadContext,
    target: &mut CommitTarget,
    parts: &[(PartNumber, Sha1Midstate)],
) -> Result<(UploadSession, Vec<PartUrl>)> {
    match create(context, target, None, parts).await? {
        CreateOutcome::Session(session, urls) => Ok((session, urls)),
        CreateOutcome::InstantUpload(_) | CreateOutcome::NameTaken(..) => {
            Err(Error::new(ErrorKind::Protocol, "create: the service opened no upload session"))
        }
    }
}

/// Calls `create` for a target. An existing file of the name gets a new revision. If the file to overwrite is
/// gone, a new file is created.
pub(super) async fn create(
    context: &UploadContext,
    target: &mut CommitTarget,
    content: Option<(u64, Sha1Hash)>,
    parts: &[(PartNumber, Sha1Midstate)],
) -> Result<CreateOutcome> {
    for _ in 0..NAME_TRIES_MAX {
        let file = NewFile {
            parent: &target.parent,
            name: &target.name,
            overwrite: target.overwrite.as_ref(),
            mode: if target.is_name_shared { CheckNameMode::Ignore } else { CheckNameMode::Refuse },
            content,
            mtime: target.mtime,
            tags: posix::tags(target.posix.as_deref(), target.mtime.unwrap_or(UNIX_EPOCH)),
            parts,
        };
        match context.drive.create_file(&file).await {
            Ok(CreateOutcome::NameTaken(file_id, FileType::File)) => {
                target.on_name_taken(file_id, &context.resolver)?;
            }
            Ok(CreateOutcome::NameTaken(_, FileType::Folder)) => {
                let detail = "the drive has a directory of that name; rename one of the two";
                return Err(Error::new(ErrorKind::IsDirectory, detail));
            }
            // Another client deleted the file. The content that was written here becomes a new file.
            Err(error) if error.kind() == ErrorKind::NotFound && target.overwrite.is_some() => {
                target.overwrite = None;
            }
            created => return created,
        }
    }
    let detail = format!("other clients took the name on the drive {NAME_TRIES_MAX} times in a row");
    Err(Error::new(ErrorKind::Exists, detail))
}
