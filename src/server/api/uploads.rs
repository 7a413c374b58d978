//! `create`, `get_upload_url`, `list_uploaded_parts`, `complete`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::parts::{PartHeaders, PartParams, SignedPartUrl, read_parts, sign_parts};
use super::request::{
    check_description, check_labels, check_name, check_tags, check_time, lenient, limit, list, mode, require,
};
use super::view::FileView;
use crate::ids::{DriveId, FileId, RevisionId, UploadId};
use crate::pds::types::{CheckNameMode, UserTag};
use crate::server::app::DOMAIN_ID;
use crate::server::call::ApiCall;
use crate::server::catalog::records::{ClientAttrs, Midstates};
use crate::server::catalog::{CreateResult, NewUpload};
use crate::server::clock::rfc3339;
use crate::server::config::Quirks;
use crate::server::digest::HashName;
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;
use crate::server::sign::ObjectKey;

#[derive(Deserialize)]
pub(super) struct CreateParams {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    parent_file_id: Option<FileId>,
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
    name: Option<String>,
    #[serde(rename = "type")]
    file_type: Option<String>,
    check_name_mode: Option<String>,
    auto_rename: Option<bool>,
    #[serde(default, deserialize_with = "lenient")]
    size: Option<u64>,
    parallel_upload: Option<bool>,
    #[serde(default, deserialize_with = "list")]
    part_info_list: Vec<PartParams>,
    #[serde(default, deserialize_with = "lenient")]
    content_hash: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    content_hash_name: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    pre_hash: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    last_revision_id: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    content_type: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    local_created_at: Option<String>,
    #[serde(default, deserialize_with = "lenient")]
    local_modified_at: Option<String>,
    hidden: Option<bool>,
    starred: Option<bool>,
    description: Option<String>,
    user_meta: Option<String>,
    #[serde(default, deserialize_with = "list")]
    labels: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    user_tags: Vec<UserTag>,
}

#[derive(Serialize)]
struct CreateReply<'a> {
    domain_id: &'static str,
    drive_id: &'a DriveId,
    file_id: &'a FileId,
    file_name: &'a str,
    parent_file_id: &'a FileId,
    #[serde(rename = "type")]
    file_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    exist: bool,
    rapid_upload: bool,
    encrypt_mode: &'static str,
    location: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    upload_id: Option<&'a UploadId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision_id: Option<&'a RevisionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part_info_list: Option<Vec<SignedPartUrl>>,
}

impl CreateParams {
    fn attrs(&mut self) -> Result<ClientAttrs, ServiceError> {
        check_description(self.description.as_ref())?;
        check_labels(&self.labels)?;
        check_time(self.local_created_at.as_ref(), "local_created_at")?;
        check_time(self.local_modified_at.as_ref(), "local_modified_at")?;
        Ok(ClientAttrs {
            content_type: self.content_type.take(),
            local_created_at: self.local_created_at.take(),
            local_modified_at: self.local_modified_at.take(),
            hidden: self.hidden.unwrap_or(false),
            starred: self.starred.unwrap_or(false),
            description: self.description.take(),
            labels: std::mem::take(&mut self.labels),
            user_meta: self.user_meta.take(),
            user_tags: check_tags(std::mem::take(&mut self.user_tags))?,
            custom_index_key: None,
        })
    }

    /// Returns an error for a request that the quirks exclude.
    fn check(&self, quirks: &Quirks) -> Result<(), ServiceError> {
        if quirks.parallel_refused && self.parallel_upload == Some(true) {
            return Err(ServiceError::new(
                400,
                "InvalidParameterNotSupported.ParallelUpload",
                "The input parameter parallel_upload is not supported.",
            ));
        }
        if quirks.require_size_at_create && self.size.is_none() {
            return Err(ServiceError::missing("size"));
        }
        Ok(())
    }

    fn hashes(&mut self, name: HashName) -> Result<(Option<String>, Option<String>), ServiceError> {
        let content_hash = match self.content_hash.take() {
            None => None,
            Some(_) if self.content_hash_name.as_deref().is_some_and(|given| given != name.as_str()) => {
                return Err(ServiceError::invalid("content_hash_name", "The domain has another hash."));
            }
            Some(hash) => Some(
                name.parse_hash(&hash)
                    .ok_or_else(|| ServiceError::invalid("content_hash", "It is not a hash."))?,
            ),
        };
        let pre_hash = match self.pre_hash.take() {
            None => None,
            Some(hash) => Some(
                HashName::Sha1
                    .parse_hash(&hash)
                    .ok_or_else(|| ServiceError::invalid("pre_hash", "It is not a SHA-1."))?,
            ),
        };
        Ok((content_hash, pre_hash))
    }
}

/// `file/create`.
pub(super) async fn create(call: &ApiCall, mut request: CreateParams) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id.take(), "drive_id")?;
    let parent = require(request.parent_file_id.take(), "parent_file_id")?;
    let name = require(request.name.take(), "name")?;
    check_name(&name)?;
    let mode = mode(request.check_name_mode.as_deref(), request.auto_rename)?;
    let attrs = request.attrs()?;
    match require(request.file_type.as_deref(), "type")? {
        "folder" => create_folder(call, &drive, &parent, &name, mode, attrs).await,
        "file" => create_file(call, request, drive, parent, name, mode, attrs).await,
        _ => Err(ServiceError::invalid("type", "It is file or folder.")),
    }
}

async fn create_folder(
    call: &ApiCall,
    drive: &DriveId,
    parent: &FileId,
    name: &str,
    mode: CheckNameMode,
    attrs: ClientAttrs,
) -> Result<ApiResponse, ServiceError> {
    let app = &call.app;
    let now_ms = app.clock.now_ms();
    let made =
        app.catalog.change(|state| state.make_folder(drive, parent, name, mode, attrs, now_ms)).await?;
    match made {
        Ok(file_id) => existing_response(call, drive, &file_id, false, None),
        Err(sibling) => existing_response(call, drive, &sibling, true, None),
    }
}

/// The response for an object that exists: a new folder, an instant upload, or a sibling with the name.
fn existing_response(
    call: &ApiCall,
    drive: &DriveId,
    file: &FileId,
    exist: bool,
    instant: Option<&RevisionId>,
) -> Result<ApiResponse, ServiceError> {
    call.app.catalog.read(|state| {
        let node = state.live(drive, file)?;
        let created = CreateReply {
            domain_id: DOMAIN_ID,
            drive_id: drive,
            file_id: file,
            file_name: &node.name,
            parent_file_id: &node.parent,
            file_type: if node.is_folder() { "folder" } else { "file" },
            status: (exist || instant.is_some()).then_some("available"),
            exist,
            rapid_upload: instant.is_some(),
            encrypt_mode: "none",
            location: "local",
            upload_id: None,
            revision_id: instant,
            part_info_list: None,
        };
        ApiResponse::json(201, &created)
    })
}

async fn create_file(
    call: &ApiCall,
    mut request: CreateParams,
    drive: DriveId,
    parent: FileId,
    name: String,
    mode: CheckNameMode,
    attrs: ClientAttrs,
) -> Result<ApiResponse, ServiceError> {
    let app = &call.app;
    let parallel = request.parallel_upload == Some(true);
    request.check(&app.config.quirks)?;
    let (content_hash, pre_hash) = request.hashes(app.config.quirks.hash_name)?;
    let parts = if request.part_info_list.is_empty() {
        vec![(1, None, PartHeaders::default())]
    } else {
        read_parts(call, request.part_info_list, parallel)?
    };
    let midstates: Midstates =
        parts.iter().filter_map(|(number, state, _)| Some((*number, state.clone()?))).collect();
    let new = NewUpload {
        drive_id: drive.clone(),
        parent,
        name,
        mode,
        overwrite: request.file_id,
        last_revision: request.last_revision_id,
        parallel,
        size: request.size,
        content_hash,
        pre_hash,
        attrs,
        midstates,
    };
    let now_ms = app.clock.now_ms();
    // Only an instant upload commits a file, so only it must be stored before the response.
    let is_file = |begun: &CreateResult| matches!(begun, CreateResult::Instant { .. });
    let begin = app.catalog.change_and_wait_if(|state| state.create_file(new, &app.store, now_ms), is_file);
    match begin.await? {
        CreateResult::NameExists(sibling) => existing_response(call, &drive, &sibling, true, None),
        CreateResult::Instant { file_id, revision_id } => {
            existing_response(call, &drive, &file_id, false, Some(&revision_id))
        }
        CreateResult::Started { file_id, revision_id, upload_id, name, parent } => {
            let object =
                ObjectKey { drive: drive.clone(), file: file_id.clone(), revision: revision_id.clone() };
            let created = CreateReply {
                domain_id: DOMAIN_ID,
                drive_id: &drive,
                file_id: &file_id,
                file_name: &name,
                parent_file_id: &parent,
                file_type: "file",
                status: None,
                exist: false,
                rapid_upload: false,
                encrypt_mode: "none",
                location: "local",
                upload_id: Some(&upload_id),
                revision_id: Some(&revision_id),
                part_info_list: Some(sign_parts(call, &object, &upload_id, parts)),
            };
            ApiResponse::json(201, &created)
        }
    }
}

/// The request of the calls for an upload session.
#[derive(Deserialize)]
pub(super) struct UploadRequest {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    file_id: Option<FileId>,
    #[serde(default, deserialize_with = "lenient")]
    upload_id: Option<UploadId>,
    #[serde(default, deserialize_with = "list")]
    part_info_list: Vec<PartParams>,
    #[serde(default, deserialize_with = "lenient")]
    part_number_marker: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    limit: Option<u32>,
    #[serde(default, deserialize_with = "lenient")]
    crc64_hash: Option<String>,
}

#[derive(Serialize)]
struct UploadUrls<'a> {
    domain_id: &'static str,
    drive_id: &'a DriveId,
    file_id: &'a FileId,
    upload_id: &'a UploadId,
    create_at: String,
    part_info_list: Vec<SignedPartUrl>,
}

/// `file/get_upload_url`.
pub(super) fn get_upload_url(call: &ApiCall, request: UploadRequest) -> Result<ApiResponse, ServiceError> {
    let app = &call.app;
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    let upload = require(request.upload_id, "upload_id")?;
    if request.part_info_list.is_empty() {
        return Err(ServiceError::invalid("part_info_list", "part_info_list is required"));
    }
    let (revision, created_ms, parallel) = app.catalog.read(|state| {
        let found = state.upload(&drive, &file, &upload)?;
        Ok::<_, ServiceError>((found.revision_id.clone(), found.created_ms, found.parallel))
    })?;
    let mut parts = read_parts(call, request.part_info_list, parallel)?;
    if parallel {
        let declared = parts.iter().map(|(number, state, _)| (*number, state.clone()));
        let states = app.catalog.change_in_memory(|state| state.declare_midstates(&upload, declared));
        for (part, state) in parts.iter_mut().zip(states) {
            if state.is_none() && part.0 > 1 && app.config.quirks.require_ctx {
                return Err(ServiceError::missing("parallel_sha1_ctx"));
            }
            part.1 = state;
        }
    }
    let object = ObjectKey { drive: drive.clone(), file: file.clone(), revision };
    let urls = UploadUrls {
        domain_id: DOMAIN_ID,
        drive_id: &drive,
        file_id: &file,
        upload_id: &upload,
        create_at: rfc3339(created_ms),
        part_info_list: sign_parts(call, &object, &upload, parts),
    };
    ApiResponse::json(200, &urls)
}

#[derive(Serialize)]
struct UploadedPart {
    part_number: u32,
    part_size: u64,
    etag: String,
}

#[derive(Serialize)]
#[allow(clippy::struct_field_names)] // Named as on the wire.
struct PartsReply<'a> {
    file_id: &'a FileId,
    upload_id: &'a UploadId,
    parallel_upload: bool,
    uploaded_parts: Vec<UploadedPart>,
    next_part_number_marker: String,
}

/// `file/list_uploaded_parts`.
pub(super) fn list_uploaded_parts(
    call: &ApiCall,
    request: &UploadRequest,
) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id.as_ref(), "drive_id")?;
    let file = require(request.file_id.as_ref(), "file_id")?;
    let upload = require(request.upload_id.as_ref(), "upload_id")?;
    let limit = limit(request.limit, 100, 1000)?;
    let after = request.part_number_marker.unwrap_or(0);
    call.app.catalog.read(|state| {
        let found = state.upload(drive, file, upload)?;
        let mut rest = found.parts.range(after.saturating_add(1)..);
        let uploaded_parts: Vec<_> = rest
            .by_ref()
            .take(limit)
            .map(|(number, part)| UploadedPart {
                part_number: *number,
                part_size: part.len,
                etag: format!("\"{}\"", part.etag),
            })
            .collect();
        let last = uploaded_parts.last().map(|part| part.part_number);
        let next = rest.next().and(last).map_or_else(String::new, |last| last.to_string());
        ApiResponse::json(
            200,
            &PartsReply {
                file_id: file,
                upload_id: upload,
                parallel_upload: found.parallel,
                uploaded_parts,
                next_part_number_marker: next,
            },
        )
    })
}

/// `file/complete`.
pub(super) async fn complete(call: &ApiCall, request: UploadRequest) -> Result<ApiResponse, ServiceError> {
    let app = &call.app;
    let drive = require(request.drive_id, "drive_id")?;
    let file = require(request.file_id, "file_id")?;
    let upload = require(request.upload_id, "upload_id")?;
    let mut listed = Vec::with_capacity(request.part_info_list.len());
    for part in request.part_info_list {
        listed.push((require(part.part_number, "part_number")?, part.etag.filter(|etag| !etag.is_empty())));
    }
    let plan = app.catalog.lock_for_complete(&drive, &file, &upload, &listed, app.config.verify).await?;
    // The upload is locked now. It must be committed, discarded or unlocked even if the client disconnects,
    // so a task of its own does this.
    let app = Arc::clone(app);
    let (crc64, task_upload) = (request.crc64_hash, upload);
    let committed = tokio::spawn(async move {
        let outcome = finish(&app, plan, crc64.as_deref()).await;
        app.catalog.unlock(&task_upload);
        outcome
    });
    let file = committed.await.map_err(|error| ServiceError::internal(error.to_string()))??;
    call.app.catalog.read(|state| ApiResponse::json(200, &FileView::of(call, state.node(&drive, &file)?)))
}

/// Verifies the content, and publishes the file or discards the upload.
async fn finish(
    app: &Arc<crate::server::app::App>,
    plan: crate::server::catalog::PendingComplete,
    crc64: Option<&str>,
) -> Result<FileId, ServiceError> {
    let upload = plan.upload_id.clone();
    let declared_size = plan.declared_size;
    let assembled = if plan.needs_io() {
        let app = Arc::clone(app);
        tokio::task::spawn_blocking(move || plan.assemble(&app.store))
            .await
            .map_err(|error| ServiceError::internal(error.to_string()))?
    } else {
        plan.assemble(&app.store)
    };
    let checked = assembled.and_then(|assembled| {
        if crc64.is_some_and(|crc64| crc64 != assembled.crc64.to_string()) {
            return Err(ServiceError::invalid("crc64_hash", "The CRC-64 of the content differs."));
        }
        if app.config.quirks.size_must_match && declared_size.is_some_and(|size| size != assembled.size) {
            return Err(ServiceError::invalid(
                "size",
                "The size of the content differs from that of create.",
            ));
        }
        Ok(assembled)
    });
    match checked {
        Ok(assembled) => {
            let now_ms = app.clock.now_ms();
            app.catalog.change(|state| state.commit(&upload, assembled, &app.store, now_ms)).await
        }
        Err(error) if error.status >= 500 => Err(error),
        Err(error) => {
            let discarded = app.catalog.change(|state| {
                state.discard_upload(&upload, &app.store);
                Ok(())
            });
            discarded.await?;
            Err(error)
        }
    }
}

#[derive(Deserialize)]
pub(super) struct PreCreateCheckRequest {
    #[serde(default, deserialize_with = "lenient")]
    drive_id: Option<DriveId>,
    #[serde(default, deserialize_with = "lenient")]
    parent_file_id: Option<FileId>,
    name: Option<String>,
}

/// `file/pre_create_check`.
pub(super) fn pre_create_check(
    call: &ApiCall,
    request: PreCreateCheckRequest,
) -> Result<ApiResponse, ServiceError> {
    let drive = require(request.drive_id, "drive_id")?;
    let parent = require(request.parent_file_id, "parent_file_id")?;
    let name = require(request.name, "name")?;
    check_name(&name)?;
    call.app.catalog.read(|state| {
        state.check_folder(&drive, &parent)?;
        let body = match state.sibling(&drive, &parent, &name, None) {
            None => serde_json::json!({ "result_code": "success" }),
            Some(node) => serde_json::json!({
                "result_code": "NameCheckFailed.ExistSameNameFile",
                "name_check_result": {
                    "exist_file_id": node.file_id.as_str(),
                    "exist_file_type": if node.is_folder() { "folder" } else { "file" },
                },
            }),
        };
        ApiResponse::json(200, &body)
    })
}
