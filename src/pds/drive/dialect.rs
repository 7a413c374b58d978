//! How the service of a drive deviates from the documentation, as far as its answers have shown. Known for the life
//! of the process.
//!
//! A deviation shows when a call is refused. The call is sent again in another form, and the form that succeeded is
//! used from then on.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::error::ErrorKind;
use crate::ids::{FileId, PartNumber, Sha1Hash};
use crate::pds::retry::{Delivery, RequestFailure};
use crate::pds::types::{PartRequest, WireSha1Ctx};
use crate::rolling_sha1::Sha1Midstate;

/// Contents, or files, that together show that the service has another hash than SHA-1. One may be an exception.
const EXCEPTIONS_MAX: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Dialect {
    /// A leaf lock.
    form: Mutex<KnownForm>,
    needs_size: AtomicBool,
    /// The service has returned a file without a hash.
    lacks_hashes: AtomicBool,
    /// The warning that the service reports no hashes is logged once.
    warned_no_hash: AtomicBool,
}

#[derive(Debug, Default)]
struct KnownForm {
    form: CreateForm,
    /// Contents whose hash the service refused, since it last accepted one.
    refused_hashes: HashSet<Sha1Hash>,
    /// Files with another hash, since the service last returned one with SHA-1.
    other_hashes: HashSet<FileId>,
}

impl KnownForm {
    fn give_up_sha1(&mut self) {
        if std::mem::replace(&mut self.form.hash, HashField::Unsupported) == HashField::Sent {
            tracing::info!("the domain does not accept SHA-1 hashes; there is no instant upload");
        }
    }
}

/// The form of the context of the first part, in parallel mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FirstContext {
    /// `h: []`, as the official client sends it.
    Empty,
    /// The initial value of SHA-1.
    Initial,
    Absent,
}

/// Whether the hash of known content is sent, for instant upload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum HashField {
    Sent,
    /// The service refused the hash of this content.
    Refused,
    /// The service has another hash than SHA-1.
    Unsupported,
}

/// The form of a `create` call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CreateForm {
    /// Parts may be sent in any order.
    pub(super) parallel: bool,
    first_context: FirstContext,
    hash: HashField,
    /// Depends on the time. So it is not remembered.
    pub(super) sends_mtime: bool,
}

impl Default for CreateForm {
    fn default() -> Self {
        Self { parallel: true, first_context: FirstContext::Empty, hash: HashField::Sent, sends_mtime: true }
    }
}

/// A field that a refusal names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RefusedField {
    ParallelUpload,
    Context,
    ContentHash,
    ContentHashName,
    ModifiedAt,
    Size,
    Unknown,
}

impl RefusedField {
    /// `None` if no other form of the call would be accepted.
    fn of(failure: &RequestFailure) -> Option<Self> {
        let is_refusal =
            failure.delivery == Delivery::Answered && failure.code.starts_with("InvalidParameter");
        if !is_refusal || failure.error.kind() == ErrorKind::InvalidName {
            return None;
        }
        let message = failure.error.detail().unwrap_or_default();
        let mut text = format!("{} {message}", failure.code).to_ascii_lowercase();
        text.retain(|c| c != '_');
        let fields = [
            ("parallelupload", Self::ParallelUpload),
            ("contenthashname", Self::ContentHashName),
            ("contenthash", Self::ContentHash),
            ("localmodifiedat", Self::ModifiedAt),
            ("sha1ctx", Self::Context),
            ("sha256ctx", Self::Context),
            (".size", Self::Size),
        ];
        let named = fields.into_iter().find(|(name, _)| text.contains(name));
        Some(named.map_or(Self::Unknown, |(_, field)| field))
    }
}

impl CreateForm {
    pub(super) fn sends_sha1(self) -> bool {
        self.hash == HashField::Sent
    }

    /// The form to try after a refusal of this one. Each step gives something up, so the trials end.
    pub(super) fn after(self, failure: &RequestFailure, has_content: bool, has_mtime: bool) -> Option<Self> {
        let without_parallel = self.parallel.then_some(Self { parallel: false, ..self });
        let next_context = match self.first_context {
            FirstContext::Empty => Some(FirstContext::Initial),
            FirstContext::Initial => Some(FirstContext::Absent),
            FirstContext::Absent => None,
        };
        let next_context =
            next_context.filter(|_| self.parallel).map(|first_context| Self { first_context, ..self });
        let with_hash = |hash| (self.sends_sha1() && has_content).then_some(Self { hash, ..self });
        let without_mtime = (self.sends_mtime && has_mtime).then_some(Self { sends_mtime: false, ..self });
        match RefusedField::of(failure)? {
            RefusedField::ParallelUpload => without_parallel,
            RefusedField::Context => next_context,
            RefusedField::ContentHash => with_hash(HashField::Refused),
            RefusedField::ContentHashName => with_hash(HashField::Unsupported),
            RefusedField::ModifiedAt => without_mtime,
            RefusedField::Size => None,
            RefusedField::Unknown => without_mtime.or(next_context),
        }
    }

    /// The parts of a request, with their contexts in parallel mode.
    pub(super) fn part_requests(self, parts: &[(PartNumber, Sha1Midstate)]) -> Vec<PartRequest> {
        let context = |&(part_number, midstate): &(PartNumber, Sha1Midstate)| match self.first_context {
            FirstContext::Initial if part_number == PartNumber::FIRST => Some(WireSha1Ctx::initial()),
            FirstContext::Absent if part_number == PartNumber::FIRST => None,
            _ => Some(WireSha1Ctx::from(midstate)),
        };
        let request = |part: &(PartNumber, Sha1Midstate)| PartRequest {
            part_number: part.0,
            parallel_sha1_ctx: context(part).filter(|_| self.parallel),
        };
        parts.iter().map(request).collect()
    }
}

impl Dialect {
    pub(super) fn create_form(&self) -> CreateForm {
        self.form.lock().form
    }

    /// Records a form that the service has accepted for a file with this hash.
    pub(super) fn learn(&self, accepted: CreateForm, sha1: Option<Sha1Hash>) {
        let mut known = self.form.lock();
        match accepted.hash {
            HashField::Sent if sha1.is_some() => known.refused_hashes.clear(),
            HashField::Refused => known.refused_hashes.extend(sha1),
            HashField::Sent | HashField::Unsupported => {}
        }
        if accepted.hash == HashField::Unsupported || known.refused_hashes.len() >= EXCEPTIONS_MAX {
            known.give_up_sha1();
        }
        let form = &mut known.form;
        // Several calls show whether the hash is accepted.
        let accepted = CreateForm { hash: form.hash, sends_mtime: true, ..accepted };
        if form.parallel && !accepted.parallel {
            tracing::info!("the domain does not support parallel uploads; parts are sent one at a time");
        }
        if form.first_context != accepted.first_context {
            tracing::info!(context = ?accepted.first_context, "the domain accepts another context of the first part");
        }
        *form = accepted;
    }

    /// Records that the service begins no upload without a size, if the refusal of a call without one says so.
    pub(super) fn learn_needs_size(&self, failure: &RequestFailure) -> bool {
        let needs_size = RefusedField::of(failure) == Some(RefusedField::Size);
        if needs_size && !self.needs_size.swap(true, Ordering::Relaxed) {
            tracing::info!("the domain demands the size of a file at its beginning");
        }
        needs_size
    }

    pub(super) fn needs_size(&self) -> bool {
        self.needs_size.load(Ordering::Relaxed)
    }

    /// Records what the service returned for a file: any hash, and the name of its content hash.
    pub(super) fn note_hash(&self, file: &FileId, has_hash: bool, name: Option<&str>) {
        if !has_hash {
            self.lacks_hashes.store(true, Ordering::Relaxed);
        }
        let Some(name) = name else { return };
        let mut known = self.form.lock();
        if name.eq_ignore_ascii_case("sha1") {
            known.other_hashes.clear();
        } else if known.form.sends_sha1() {
            known.other_hashes.insert(file.clone());
            if known.other_hashes.len() >= EXCEPTIONS_MAX {
                known.give_up_sha1();
            }
        }
    }

    pub(super) fn lacks_hashes(&self) -> bool {
        self.lacks_hashes.load(Ordering::Relaxed)
    }

    /// Whether this is the first upload that no hash verifies.
    pub(super) fn is_first_without_hash(&self) -> bool {
        !self.warned_no_hash.swap(true, Ordering::Relaxed)
    }

    /// The parts of a request for the URLs of a session.
    pub(super) fn part_requests(
        &self,
        parts: &[(PartNumber, Sha1Midstate)],
        parallel: bool,
    ) -> Vec<PartRequest> {
        CreateForm { parallel, ..self.create_form() }.part_requests(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::messages::Cause;

    fn refusal(code: &str, message: &str) -> RequestFailure {
        RequestFailure {
            status: None,
            error: Error::from_cause(ErrorKind::Protocol, Cause::Refused { status: 400 }, message),
            code: code.to_owned(),
            delivery: Delivery::Answered,
            retry_after: None,
        }
    }

    #[test]
    fn refused_field_decides_the_next_form() {
        let form = CreateForm::default();
        let without_mtime = CreateForm { sends_mtime: false, ..form };
        let initial = CreateForm { first_context: FirstContext::Initial, ..form };
        let table = [
            ("InvalidParameterNotSupported.ParallelUpload", "", Some(CreateForm { parallel: false, ..form })),
            ("InvalidParameter.LocalModifiedAt", "", Some(without_mtime)),
            ("InvalidParameter", "local_modified_at is not valid", Some(without_mtime)),
            (
                "InvalidParameter.ContentHashName",
                "",
                Some(CreateForm { hash: HashField::Unsupported, ..form }),
            ),
            ("InvalidParameter.ParallelSha1Ctx", "", Some(initial)),
            ("InvalidParameter.PartInfoList", "parallel_sha1_ctx is not valid", Some(initial)),
            ("InvalidParameter", "no", Some(without_mtime)),
            ("InvalidParameterMissing.Size", "", None),
            ("NotFound.File", "local_modified_at", None),
        ];
        for (code, message, next) in table {
            assert_eq!(form.after(&refusal(code, message), true, true), next, "{code} {message}");
        }
        assert_eq!(form.after(&refusal("InvalidParameter.ContentHash", ""), false, true), None);
    }

    #[test]
    fn trials_of_forms_end() {
        for code in ["InvalidParameter", "InvalidParameter.ParallelSha1Ctx", "InvalidParameter.ContentHash"] {
            let (mut form, mut trials) = (CreateForm::default(), 0);
            while let Some(next) = form.after(&refusal(code, ""), true, true) {
                (form, trials) = (next, trials + 1);
            }
            assert!((1..=3).contains(&trials), "{code}: {trials}");
        }
    }

    #[test]
    fn time_is_sent_again_with_the_next_file() {
        let dialect = Dialect::default();
        dialect.learn(CreateForm { sends_mtime: false, parallel: false, ..CreateForm::default() }, None);
        assert_eq!(dialect.create_form(), CreateForm { parallel: false, ..CreateForm::default() });
    }

    #[test]
    fn refused_hash_of_one_content_is_an_exception() {
        let (dialect, form) = (Dialect::default(), CreateForm::default());
        let refused = form.after(&refusal("InvalidParameter.ContentHash", ""), true, true).unwrap();
        for n in [1, 1, 1, 2] {
            dialect.learn(refused, Some(Sha1Hash([n; 20])));
            assert!(dialect.create_form().sends_sha1(), "{n}");
        }
        // A hash that is accepted shows that the others were exceptions.
        dialect.learn(form, Some(Sha1Hash([3; 20])));
        for (n, sends_sha1) in [(4, true), (5, true), (6, false)] {
            dialect.learn(refused, Some(Sha1Hash([n; 20])));
            assert_eq!(dialect.create_form().sends_sha1(), sends_sha1, "{n}");
        }
        let dialect = Dialect::default();
        let refused = form.after(&refusal("InvalidParameter.ContentHashName", ""), true, true).unwrap();
        dialect.learn(refused, Some(Sha1Hash([1; 20])));
        assert_eq!(dialect.create_form(), CreateForm { hash: HashField::Unsupported, ..form });
    }

    #[test]
    fn other_hash_of_one_file_is_an_exception() {
        let (dialect, form) = (Dialect::default(), CreateForm::default());
        let note = |file, name| dialect.note_hash(&FileId::new(file).unwrap(), true, Some(name));
        for _ in 0..4 {
            note("a", "sha256");
        }
        note("b", "sha256");
        assert!(dialect.create_form().sends_sha1());
        note("c", "SHA1");
        note("d", "sha256");
        note("e", "sha256");
        assert!(dialect.create_form().sends_sha1());
        note("f", "sha256");
        assert!(!dialect.create_form().sends_sha1());
        // Of a call that began before.
        dialect.learn(form, None);
        assert!(!dialect.create_form().sends_sha1());
    }
}
