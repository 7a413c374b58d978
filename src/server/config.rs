//! What a server may be told: where it keeps its bytes, who may use it, and which of the undecided
//! behaviours of the real service it shows.
//!
//! A [`ServerConfig`] is complete when it is made; nothing in it is read from the environment. Every
//! switch of [`Quirks`] has the default that the evidence favours, so a client that works with the
//! defaults and with each switch thrown works with every deployment that is known.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::auth::ServiceApp;
use super::digest::HashName;
use super::faults::FaultPlan;
use crate::ids::Secret;

/// Whether the server hashes what it is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// Every part is hashed as it arrives; the chain of midstates and the final hash are checked.
    #[default]
    Full,
    /// Midstates and declared hashes are believed. For benchmarks only: a client that lies, or that
    /// is wrong, makes a file whose hash is not that of its bytes.
    Off,
}

/// An access key that may sign requests instead of carrying a token.
#[derive(Clone, Debug)]
pub struct AccessKey {
    /// The public half.
    pub id: String,
    /// The secret half.
    pub secret: Secret<String>,
    /// Longest difference between the date of a signed request and now.
    pub date_skew_max: Duration,
}

impl AccessKey {
    /// A key whose requests must be at most a quarter of an hour old.
    pub fn new(id: &str, secret: Secret<String>) -> Self {
        Self { id: id.to_owned(), secret, date_skew_max: Duration::from_secs(900) }
    }
}

/// Who may ask for tokens, and how long those live.
#[derive(Clone, Debug)]
pub struct Logins {
    /// The refresh token that is valid before any was handed out; none refuses every refresh.
    pub refresh_token: Option<Secret<String>>,
    /// Accepted `client_id` and `app_id` values; empty accepts every one for tokens, and shows no page of consent.
    pub client_ids: Vec<String>,
    /// What clients must show when they ask for tokens.
    pub client_secret: Option<Secret<String>>,
    /// Where the page of consent may send a browser, besides any port of its own machine.
    pub redirect_uris: Vec<String>,
    /// What the page of consent asks for.
    pub password: Option<Secret<String>>,
    /// Apps that log in with a key.
    pub service_apps: Vec<ServiceApp>,
    /// Codes that `grant_type=authorization_code` takes, each once.
    pub codes: Vec<Secret<String>>,
    /// How long an access token that was handed out is valid.
    pub token_ttl: Duration,
}

/// Everything that a [`super::Server`] is started with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where blobs and catalog live. Made if absent; one server at a time.
    pub data_dir: PathBuf,
    /// The access token of the owner; always valid unless a fault revoked it.
    pub token: Secret<String>,
    /// Whether content is hashed.
    pub verify: Verify,
    /// What upload and download URLs begin with; by default `http://` and the request's `Host`.
    pub public_url: Option<Url>,
    /// Undecided behaviours.
    pub quirks: Quirks,
    /// Faults from the start.
    pub faults: FaultPlan,
    /// How long an upload URL is valid, in seconds; also the default of download URLs.
    pub url_ttl_s: u32,
    /// Token endpoints.
    pub logins: Logins,
    /// A key that may sign requests.
    pub access_key: Option<AccessKey>,
    /// Bytes of each drive; none is unlimited.
    pub quota_bytes: Option<u64>,
    /// Drives, with ids from 1. Drives that exist already stay, also above this count.
    pub drives: u32,
    /// Uploads that were not completed for so long are dropped.
    pub upload_age_max: Duration,
    /// Also survive a power cut: parts and catalog are synced to the disk before they are
    /// answered. Without it a kill of the process loses nothing, a kill of the machine may.
    pub fsync: bool,
}

impl ServerConfig {
    /// A server with one unlimited drive, full verification and no quirks.
    pub fn new(data_dir: impl Into<PathBuf>, token: Secret<String>) -> Self {
        Self {
            data_dir: data_dir.into(),
            token,
            verify: Verify::Full,
            public_url: None,
            quirks: Quirks::default(),
            faults: FaultPlan::default(),
            url_ttl_s: 900,
            logins: Logins {
                refresh_token: None,
                client_ids: Vec::new(),
                client_secret: None,
                redirect_uris: Vec::new(),
                password: None,
                service_apps: Vec::new(),
                codes: Vec::new(),
                token_ttl: Duration::from_secs(2 * 3600),
            },
            access_key: None,
            quota_bytes: None,
            drives: 1,
            upload_age_max: Duration::from_secs(10 * 24 * 3600),
            fsync: false,
        }
    }
}

/// Which forms of `parallel_sha1_ctx` the first part may carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstPartCtx {
    /// `h: []`, the initial value, or none.
    #[default]
    Any,
    /// Only `h: []`.
    Empty,
    /// Only the five words of the initial value.
    Initial,
    /// Only none at all.
    Absent,
}

/// The behaviours of the real service that no document decides. All switchable, all defaulted.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // Independent switches, not a state.
pub struct Quirks {
    /// The hash of the domain.
    pub hash_name: HashName,
    /// `create` of a file without `size` is refused.
    pub require_size_at_create: bool,
    /// `complete` is refused when the bytes are not as many as `create` said.
    pub size_must_match: bool,
    /// What the first part may declare.
    pub first_part_ctx: FirstPartCtx,
    /// Parallel uploads: a part URL is only given with a context (now or before).
    pub require_ctx: bool,
    /// Parallel uploads: all parts but the last must have one size.
    pub equal_part_sizes: bool,
    /// Smallest part but the last, in bytes; checked by `complete` (the real store: 102,400).
    pub part_bytes_min: u64,
    /// Part numbers may have gaps.
    pub part_gaps: bool,
    /// Parallel uploads: a part cannot be sent twice (409 `PartAlreadyExist`).
    pub refuse_part_again: bool,
    /// `parallel_upload: true` is refused.
    pub parallel_refused: bool,
    /// Parts must be sent with this `Content-Type`, which their answer names.
    pub part_content_type: Option<String>,
    /// `Content-Type` is not part of the signature of an upload URL.
    pub any_content_type: bool,
    /// Content that the domain has needs no upload.
    pub instant_upload: bool,
    /// `pre_hash` is looked up.
    pub pre_hash: bool,
    /// Overwritten content stays as an older revision.
    pub revisions: bool,
    /// Older revisions kept for each file.
    pub revisions_max: u32,
    /// `last_revision_id` of `create` and `complete` is compared (409 `StateConflict`).
    pub last_revision_lock: bool,
    /// Every second page of a listing is empty and has a marker.
    pub list_empty_pages: bool,
    /// Most entries of a page, whatever the request says.
    pub list_page_max: u32,
    /// `check_folder_empty` of `trash` and `delete` is honoured (409 `StateConflict`).
    pub check_folder_empty: bool,
    /// `new_name` of `move` is honoured.
    pub move_new_name: bool,
    /// Names that differ in case only are the same.
    pub case_insensitive_names: bool,
    /// `get` answers for `root`.
    pub get_root: bool,
    /// Objects in the recycle bin answer 403 `ForbiddenFileInTheRecycleBin` and not 404.
    pub trashed_is_forbidden: bool,
    /// Trash, delete, move and copy of folders answer 202, and the task says `Running` so often.
    pub async_polls: Option<u32>,
    /// Trash and delete are not granted (403 `Forbidden`, `CheckRouterAccessFailed`).
    pub deletion_forbidden: bool,
    /// `copy` into the same folder is refused.
    pub refuse_copy_in_folder: bool,
    /// `put_usertags` replaces all tags instead of adding to them.
    pub replace_user_tags: bool,
    /// `update` takes `local_modified_at`.
    pub local_modified_at_updatable: bool,
    /// There is no `get_by_path`.
    pub no_get_by_path: bool,
    /// `list_delta` never has anything to say.
    pub delta_always_empty: bool,
    /// An empty cursor of `list_delta` means now, not the beginning.
    pub delta_empty_cursor_is_now: bool,
    /// Download URLs ignore `Range` and answer 200.
    pub ignore_range: bool,
    /// Parts beyond the quota are refused when they are sent, not only at `complete`.
    pub quota_at_put: bool,
    /// HTTP status of `QuotaExhausted.Drive`.
    pub quota_status: u16,
    /// A refresh hands out a new refresh token and ends the old one.
    pub rotate_refresh_token: bool,
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
            any_content_type: false,
            instant_upload: true,
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
            async_polls: None,
            deletion_forbidden: false,
            refuse_copy_in_folder: false,
            replace_user_tags: false,
            local_modified_at_updatable: true,
            no_get_by_path: false,
            delta_always_empty: false,
            delta_empty_cursor_is_now: false,
            ignore_range: false,
            quota_at_put: false,
            quota_status: 409,
            rotate_refresh_token: true,
        }
    }
}
