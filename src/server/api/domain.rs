//! The domain: its settings and its quota.

use serde::Deserialize;

use super::request::lenient;
use crate::server::app::DOMAIN_ID;
use crate::server::call::ApiCall;
use crate::server::catalog::CatalogState;
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;

#[derive(Deserialize)]
pub(super) struct DomainRequest {
    #[serde(default, deserialize_with = "lenient")]
    domain_id: Option<String>,
    get_quota_used: Option<bool>,
}

/// Quota and used bytes over all drives. A quota of 0 is unlimited.
fn quota(state: &CatalogState) -> (i64, i64) {
    let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let drives = u64::try_from(state.drives().count()).unwrap_or(u64::MAX);
    let used = state.drives().map(|drive| drive.used_bytes).sum();
    (state.quota_bytes().map_or(0, |bytes| signed(bytes.saturating_mul(drives))), signed(used))
}

/// `domain/get`. The JS SDK sends no `domain_id`.
pub(super) fn get(call: &ApiCall, request: &DomainRequest) -> Result<ApiResponse, ServiceError> {
    if request.domain_id.as_deref().is_some_and(|id| id != DOMAIN_ID) {
        return Err(ServiceError::not_found("Domain"));
    }
    let quirks = &call.app.config.quirks;
    call.app.catalog.read(|state| {
        let (quota, used) = quota(state);
        let mut body = serde_json::json!({
            "domain_id": DOMAIN_ID,
            "domain_name": "pdsfs",
            "description": "",
            "status": 1,
            "data_hash_name": quirks.hash_name.as_str(),
            "sharable": true,
            "init_drive_enable": true,
            "init_drive_size": state.quota_bytes().map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            "size_quota": quota,
            "used_size": used,
            "user_count_quota": 1,
            "recycle_bin_config": {
                "auto_delete_enabled": false,
                "auto_delete_keep_second": 0,
                "delete_trash_normal_file_disabled": quirks.deletion_forbidden,
            },
        });
        if request.get_quota_used == Some(true) && quota > 0 {
            body["size_quota_used"] = used.into();
        }
        ApiResponse::json(200, &body)
    })
}

/// `domain/get_quota`.
pub(super) fn get_quota(call: &ApiCall) -> Result<ApiResponse, ServiceError> {
    call.app.catalog.read(|state| {
        let (quota, used) = quota(state);
        let body = serde_json::json!({
            "size_quota": quota,
            "size_used": used,
            "user_count_quota": 1,
            "user_count_used": 1,
        });
        ApiResponse::json(200, &body)
    })
}
