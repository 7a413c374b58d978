//! The table of endpoints, without `batch` and the token calls.

use super::{
    archives, delta, domain, drives, files, listing, removal, request, revisions, search, shares, uploads,
};
use crate::server::call::ApiCall;
use crate::server::errors::ServiceError;
use crate::server::reply::ApiResponse;

/// The endpoint of the consent page.
pub(in crate::server) const CONSENT: &str = "oauth/authorize";

/// Whether an endpoint needs no token.
pub(in crate::server) fn needs_no_token(endpoint: &str) -> bool {
    matches!(
        endpoint,
        "oauth/token"
            | "account/token"
            | "share_link/get_by_anonymous"
            | "share_link/get_share_token"
            | CONSENT
    )
}

/// Makes the two functions of the table from its rows.
macro_rules! endpoints {
    ($call:ident, $body:ident; $($name:literal $(| $other:literal)* => $answer:expr,)*) => {
        pub(super) fn is_known(endpoint: &str) -> bool {
            matches!(endpoint, $($name $(| $other)*)|*)
        }

        /// Answers a call that may be part of a batch.
        pub(super) async fn dispatch_one(
            $call: &ApiCall,
            endpoint: &str,
            $body: &[u8],
        ) -> Result<ApiResponse, ServiceError> {
            match endpoint {
                $($name $(| $other)* => $answer,)*
                _ => Err(ServiceError::no_route()),
            }
        }
    };
}

endpoints! { call, body;
    "file/create" => uploads::create(call, request::parse(body)?).await,
    "file/get_upload_url" => uploads::get_upload_url(call, request::parse(body)?),
    "file/list_uploaded_parts" => uploads::list_uploaded_parts(call, &request::parse(body)?),
    "file/complete" => uploads::complete(call, request::parse(body)?).await,
    "file/pre_create_check" => uploads::pre_create_check(call, request::parse(body)?),
    "file/get" => files::get(call, request::parse(body)?),
    "file/get_by_path" => files::get_by_path(call, request::parse(body)?),
    "file/update" => files::update(call, request::parse(body)?).await,
    "file/move" => files::move_file(call, request::parse(body)?).await,
    "file/copy" => files::copy(call, request::parse(body)?).await,
    "file/put_usertags" => files::put_usertags(call, request::parse(body)?).await,
    "file/delete_usertags" => files::delete_usertags(call, request::parse(body)?).await,
    "file/get_download_url" => files::get_download_url(call, request::parse(body)?),
    "file/list" => listing::list(call, &request::parse(body)?),
    "file/scan" | "file/walk" => listing::scan(call, &request::parse(body)?),
    "file/search" => search::search(call, &request::parse(body)?),
    "file/list_delta" => delta::list_delta(call, request::parse(body)?),
    "file/get_last_cursor" => delta::get_last_cursor(call, request::parse(body)?),
    "recyclebin/list" => listing::bin(call, &request::parse(body)?),
    "recyclebin/trash" => removal::trash(call, request::parse(body)?).await,
    "file/delete" => removal::delete(call, request::parse(body)?).await,
    "recyclebin/restore" => removal::restore(call, request::parse(body)?).await,
    "recyclebin/clear" => removal::clear(call, request::parse(body)?).await,
    "recyclebin/clear_all" => removal::clear_all(call).await,
    "recyclebin/search_all" => search::search_bins(call, &request::parse(body)?),
    "async_task/get" => removal::task(call, request::parse(body)?),
    "file/revision/list" => revisions::list(call, request::parse(body)?),
    "file/revision/get" => revisions::get(call, request::parse(body)?),
    "file/revision/update" => revisions::update(call, request::parse(body)?).await,
    "file/revision/restore" => revisions::restore(call, request::parse(body)?).await,
    "file/revision/delete" => revisions::delete(call, request::parse(body)?).await,
    "drive/get" => drives::get(call, request::parse(body)?),
    "drive/get_default_drive" => drives::get_default(call),
    "drive/list_my_drives" => drives::list_mine(call, request::parse(body)?),
    "drive/list" | "drive/search" => drives::list(call, &request::parse(body)?),
    "drive/list_my_group_drive" => drives::list_group(call, request::parse(body)?),
    "domain/get_quota" => domain::get_quota(call),
    "share_link/create" => shares::create(call, request::parse(body)?).await,
    "share_link/get" => shares::get(call, request::parse(body)?),
    "share_link/list" => shares::list_shares(call, &request::parse(body)?),
    "share_link/search" => shares::search(call, &request::parse(body)?),
    "share_link/update" => shares::update(call, request::parse(body)?).await,
    "share_link/cancel" => shares::cancel(call, request::parse(body)?).await,
    "share_link/get_by_anonymous" => shares::get_by_anonymous(call, request::parse(body)?),
    "share_link/get_share_token" => shares::get_token(call, request::parse(body)?).await,
    "file/archive_files" => archives::archive_files(call, request::parse(body)?),
    "domain/get" => domain::get(call, &request::parse(body)?),
    "file/list_by_custom_index_key" => search::list_by_key(call, &request::parse(body)?),
}
