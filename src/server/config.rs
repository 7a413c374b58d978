//! The configuration of a server: data folder, credentials, limits, and the behaviours in which deployments
//! of the service differ.
//!
//! Nothing is read from the environment.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::digest::HashName;
use super::faults::FaultPlan;
use super::service_app::ServiceApp;
use super::tls::ServerTls;
use crate::ids::Secret;

/// Whether the server verifies content hashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// Every part is hashed while it is received. The chain of midstates and the final hash are compared.
    #[default]
    Full,
    /// Declared midstates and hashes are trusted. For benchmarks only: a wrong client makes a file whose
    /// stored hash does not match its bytes.
    Off,
}

/// An access key that signs requests instead of a bearer token.
#[derive(Clone, Debug)]
pub struct AcceptedAccessKey {
    /// `AccessKeyId`.
    pub id: String,
    /// `AccessKeySecret`.
    pub secret: Secret<String>,
    /// Longest difference between the date of a signed request and the server's clock.
    pub date_skew_max: Duration,
}

impl AcceptedAccessKey {
    /// A key with an allowed difference of 15 minutes.
    pub fn new(id: &str, secret: Secret<String>) -> Self {
        Self { id: id.to_owned(), secret, date_skew_max: Duration::from_secs(900) }
    }
}

/// The settings of the token endpoints and the consent page.
#[derive(Clone, Debug)]
pub struct Logins {
    /// A refresh token that is valid from the start, once. Without it only issued refresh tokens are valid.
    pub refresh_token: Option<Secret<String>>,
    /// Accepted values of `client_id` and `app_id`. If empty, the token endpoints accept every client, and
    /// there is no consent page.
    pub client_ids: Vec<String>,
    /// The `client_secret` that token requests must contain.
    pub client_secret: Option<Secret<String>>,
    /// Redirect URIs that the consent page accepts in addition to loopback addresses.
    pub redirect_uris: Vec<String>,
    /// The password of the consent page.
    pub password: Option<Secret<String>>,
    /// Apps that log in with an RSA key.
    pub service_apps: Vec<ServiceApp>,
    /// Authorization codes that are valid from the start, each once.
    pub codes: Vec<Secret<String>>,
    /// Lifetime of issued access tokens. The default is 2 h.
    pub token_ttl: Duration,
}

impl Default for Logins {
    fn default() -> Self {
        Self {
            refresh_token: None,
            client_ids: Vec::new(),
            client_secret: None,
            redirect_uris: Vec::new(),
            password: None,
            service_apps: Vec::new(),
            codes: Vec::new(),
            token_ttl: Duration::from_secs(2 * 3600),
        }
    }
}

/// The configuration of a [`super::Server`].
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The folder of blobs and catalog. Made if it is missing. One server at a time can use it.
    pub data_dir: PathBuf,
    /// The access token of the owner. It does not expire; only [`super::FaultAction::Revoke`] revokes it.
    pub token: Secret<String>,
    /// Whether content hashes are verified.
    pub verify: Verify,
    /// Serves https instead of http.
    pub tls: Option<ServerTls>,
    /// Start of upload and download URLs. The default is the scheme of the server and the `Host` header of the
    /// request.
    pub public_url: Option<Url>,
    /// Behaviours in which deployments of the service differ.
    pub quirks: Quirks,
    /// The fault plan at the start.
    pub faults: FaultPlan,
    /// Lifetime of upload URLs, and default lifetime of download URLs, in seconds. The default is 900.
    pub url_ttl_s: u32,
    /// The token endpoints and the consent page.
    pub logins: Logins,
    /// A key that can sign requests.
    pub access_key: Option<AcceptedAccessKey>,
    /// Capacity of each drive. `None` is unlimited.
    pub quota_bytes: Option<u64>,
    /// Number of drives; their ids are 1, 2, ... Existing drives above the number are kept.
    pub drives: u32,
    /// Upload sessions older than this are discarded. The default is 10 days.
    pub upload_age_max: Duration,
    /// Syncs parts and catalog to the disk before a response, so that they survive a power cut. Without it,
    /// they survive only a crash of the process.
    pub fsync: bool,
}

impl ServerConfig {
    /// A server with one unlimited drive, full verification and no quirks.
    pub fn new(data_dir: impl Into<PathBuf>, token: Secret<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            token,
            verify: Verify::Full,
            tls: None,
            public_url: None,
            quirks: Quirks::default(),
            faults: FaultPlan::default(),
            url_ttl_s: 900,
            logins: Logins::default(),
            access_key: None,
            quota_bytes: None,
            drives: 1,
            upload_age_max: Duration::from_secs(10 * 24 * 3600),
            fsync: false,
        }
    }
}

/// The accepted forms of `parallel_sha1_ctx` for the first part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstPartCtx {
    /// `h: []`, the initial value of SHA-1, or no context.
    #[default]
    Any,
    /// Only `h: []`.
    Empty,
    /// Only the initial value of SHA-1.
    Initial,
    /// Only no context.
    Absent,
}

/// Behaviours of the service that are undocumented or differ between deployments.
///
/// The defaults are those that captures of real clients support. A client that works with the defaults, and
/// with each switch changed, works with every known deployment.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // Independent switches, not a state.
pub struct Quirks {
    /// The content hash of the domain.
    pub hash_name: HashName,
    /// `create` of a file without `size` is refused.
    pub require_size_at_create: bool,
    /// `complete` is refused if the size differs from that of `create`.
    pub size_must_match: bool,
    /// The accepted context of the first part.
    pub first_part_ctx: FirstPartCtx,
    /// Parallel uploads: a part without a context, in this or an earlier call, gets no URL.
    pub require_ctx: bool,
    /// Parallel uploads: all parts but the last must have the same size.
    pub equal_part_sizes: bool,
    /// Smallest size in bytes of every part but the last, checked by `complete`. OSS requires 102,400.
    pub part_bytes_min: u64,
    /// Part numbers can have gaps.
    pub part_gaps: bool,
    /// Parallel uploads: a part cannot be sent again (409 `PartAlreadyExist`).
    pub refuse_part_again: bool,
    /// `parallel_upload: true` is refused.
    pub parallel_refused: bool,
    /// The `Content-Type` that parts must have. The response with the part URLs contains it.
    pub part_content_type: Option<String>,
    /// The PUT of a part must have `Authorization: OSS` and this text. The response with the part URLs contains it as
    /// `signature_info`.
    pub part_authorization: Option<String>,
    /// `Content-Type` is not part of the signature of an upload URL.
    pub any_content_type: bool,
    /// Instant upload: `create` with the hash of existing content commits the file.
    pub instant_upload: bool,
    /// `create` of an empty file with its hash is an instant upload, also of the first one.
    pub empty_is_instant: bool,
    /// `pre_hash` is supported (409 `PreHashMatched`).
    pub pre_hash: bool,
    /// Overwritten content is kept as an older revision.
    pub revisions: bool,
    /// Number of kept revisions for each file.
    pub revisions_max: u32,
    /// `last_revision_id` of `create` is compared with the newest revision (409 `StateConflict`).
    pub last_revision_lock: bool,
    /// Every second page of a listing is empty and has a marker.
    pub list_empty_pages: bool,
    /// Bound on the entries of a page, even if the request allows more.
    pub list_page_max: u32,
    /// `check_folder_empty` of `trash` and `delete` is respected (409 `StateConflict`).
    pub check_folder_empty: bool,
    /// `new_name` of `move` is respected.
    pub move_new_name: bool,
    /// Names that differ only in case are equal.
    pub case_insensitive_names: bool,
    /// `get` accepts the id `root`.
    pub get_root: bool,
    /// Calls for objects in the recycle bin return 403 `ForbiddenFileInTheRecycleBin` instead of 404.
    pub trashed_is_forbidden: bool,
    /// Trash, delete, move and copy of folders return 202 with a task. That many polls of the task return
    /// `Running`. `null`: they return their result at once.
    pub async_polls: Option<u32>,
    /// Trash and delete are not permitted (403 `Forbidden`, `CheckRouterAccessFailed`).
    pub deletion_forbidden: bool,
    /// `copy` into the same folder is refused.
    pub refuse_copy_in_folder: bool,
    /// `put_usertags` replaces all tags instead of adding to them.
    pub replace_user_tags: bool,
    /// `update` to a taken name with `refuse` is refused (409 `AlreadyExist.File`). Otherwise it returns the
    /// object that has the name, as documented.
    pub update_conflict: bool,
    /// `update` changes `local_modified_at`.
    pub local_modified_at_updatable: bool,
    /// The endpoint `get_by_path` does not exist.
    pub no_get_by_path: bool,
    /// `list_delta` never returns changes.
    pub delta_always_empty: bool,
    /// An empty cursor of `list_delta` begins at the newest change instead of the oldest.
    pub delta_empty_cursor_is_now: bool,
    /// Downloads ignore `Range` and return 200.
    pub ignore_range: bool,
    /// Responses have no hash of the content: neither `content_hash` nor `crc64_hash`.
    pub no_hashes: bool,
    /// Download URLs are for the newest revision at the time of the download, and `get_download_url` returns
    /// neither a revision nor a hash.
    pub unversioned_urls: bool,
    /// `create` with `check_name_mode: refuse` refuses to overwrite too: it returns the file of `file_id` as
    /// existing, without an upload session.
    pub refuse_overwrite: bool,
    /// Each page of `list` also has items that contradict the documentation, see `api/odd_items.rs`.
    pub odd_list_items: bool,
    /// The last page of `list` has the marker of the first one, so the listing never ends.
    pub endless_list: bool,
    /// `list` of every folder but the root has no entries. `search` finds them.
    pub empty_subfolders: bool,
    /// For how many milliseconds listings and searches lack a new object.
    pub listing_lag_ms: u32,
    /// `batch` is not permitted (403 `Forbidden`).
    pub batch_forbidden: bool,
    /// A part that exceeds the quota is refused at its PUT, not only at `complete`.
    pub quota_at_put: bool,
    /// HTTP status of `QuotaExhausted.Drive`.
    pub quota_status: u16,
    /// A refresh issues a new refresh token and invalidates the old one.
    pub rotate_refresh_token: bool,
    /// The drives belong to a group, not to a user.
    pub group_drives: bool,
}

impl Quirks {
    /// A team drive of an enterprise domain as a client of one described it: listings of subfolders and the change
    /// feed are empty, new objects appear late, removal and `batch` are not permitted, and the CDN ignores `Range`.
    pub fn enterprise() -> Self {
        Self {
            empty_subfolders: true,
            listing_lag_ms: 500,
            batch_forbidden: true,
            deletion_forbidden: true,
            refuse_copy_in_folder: true,
            delta_always_empty: true,
            ignore_range: true,
            ..Self::default()
        }
    }
}

impl Default for Quirks {
    fn default() -> Self {
        Self {
            hash_name: HashName::Sha1,
            require_size_at_create: false,
            size_must_match: false,
            first_part_ctx: FirstPartCtx::Any,
            require_ctx: false,
            equal_part_sizes: false,
            part_bytes_min: 0,
            part_gaps: false,
            refuse_part_again: false,
            parallel_refused: false,
            part_content_type: None,
            part_authorization: None,
            any_content_type: false,
            instant_upload: true,
            empty_is_instant: true,
            pre_hash: true,
            revisions: true,
            revisions_max: 100,
            last_revision_lock: false,
            list_empty_pages: false,
            list_page_max: 200,
            check_folder_empty: true,
            move_new_name: false,
            case_insensitive_names: false,
            get_root: true,
            trashed_is_forbidden: false,
            async_polls: Some(0),
            deletion_forbidden: false,
            refuse_copy_in_folder: false,
            replace_user_tags: false,
            update_conflict: false,
            local_modified_at_updatable: true,
            no_get_by_path: false,
            delta_always_empty: false,
            delta_empty_cursor_is_now: false,
            ignore_range: false,
            no_hashes: false,
            unversioned_urls: false,
            refuse_overwrite: false,
            odd_list_items: false,
            endless_list: false,
            empty_subfolders: false,
            listing_lag_ms: 0,
            batch_forbidden: false,
            quota_at_put: false,
            quota_status: 409,
            rotate_refresh_token: true,
            group_drives: false,
        }
    }
}
