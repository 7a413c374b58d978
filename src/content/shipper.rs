//! The uploader: takes frozen parts in order and brings them to the drive, many at once.
//!
//! Two loops. *Hashing* walks the parts in order: a part may go as soon as the SHA-1 state before
//! it is known, that is while it is still being hashed itself. *Sending* asks for URLs (all parts
//! that wait share one call), and starts one PUT per part; in ordered mode one after the other.
//!
//! **Failure**: the first one ends everything and goes to the [`Flow`], where the writer meets it.
//! **Cancellation**: dropping the future drops every PUT. The session on the drive stays behind,
//! invisible, until the service sweeps it: the API has no abort call.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::budget::Budget;
use super::flow::Flow;
use super::in_flight::{Gate, Slot};
use super::part;
use super::reader::Reader;
use super::space::Space;
use crate::crc64;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{FileId, Ino, PartNumber, PartSize, Sha1Hash};
use crate::pds::drive::{Created, Drive, NewFile, PutOutcome, Upload};
use crate::pds::frame::Frame;
use crate::pds::types::{CheckNameMode, FileType, PartUrl};
use crate::posix::{self, Posix};
use crate::rolling_sha1::{RollingSha1, Sha1Ctx};
use crate::status::Transfer;

/// New URLs for one part, at most: a service that signs only expired ones must not be asked for ever.
const RESIGN_MAX: usize = 10;
/// How often a name may turn out to be another's before a file is given up.
const TAKEN_MAX: usize = 5;
/// Parts in one `get_upload_url`, at most.
const URLS_PER_CALL_MAX: usize = 32;

/// What a mount knows of names and objects. They change while content is sent, so it is asked at each step.
pub trait Places: fmt::Debug + Send + Sync {
    /// Where a file goes, by the names of now; `None` where it was deleted.
    fn destination(&self, ino: Ino) -> Option<Destination>;

    /// Whether a file is, by the names of now, where it was to go.
    fn is_at(&self, destination: &Destination) -> bool;

    /// Whether an object of the drive is that of another file here.
    fn is_anothers(&self, object: &FileId, ino: Ino) -> bool;
}

/// What every upload of a mount uses.
#[derive(Debug)]
pub struct Env {
    /// Names and objects.
    pub places: Weak<dyn Places>,
    /// The drive.
    pub drive: Drive,
    /// Memory.
    pub budget: Arc<Budget>,
    /// Parts in flight.
    pub gate: Arc<Gate>,
    /// Size of parts.
    pub part_size: PartSize,
    /// Where parts go that do not fit into memory.
    pub spill_dir: PathBuf,
    /// Room for staged copies.
    pub space: Arc<Space>,
    /// Room for files that stay on this machine: the same, where there may be staged copies.
    pub local_space: Arc<Space>,
    /// For what a staged copy does not have.
    pub reader: Arc<Reader>,
    /// Where tasks run: writes come from threads outside of it.
    pub runtime: tokio::runtime::Handle,
}

/// Where a file goes on the drive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Destination {
    /// The file.
    pub ino: Ino,
    /// The folder.
    pub parent: FileId,
    /// The name there.
    pub name: String,
    /// The file that gets a new revision.
    pub overwrite: Option<FileId>,
    /// The modification time to store with it.
    pub mtime: Option<SystemTime>,
    /// What POSIX knows of it.
    pub posix: Option<Arc<Posix>>,
    /// Another file of this mount has the name on the drive until its own commit takes it elsewhere.
    pub has_sibling: bool,
}

impl Destination {
    /// Makes it the place of now. An error where the file was deleted.
    pub fn aim(&mut self, env: &Env) -> Result<()> {
        let Some(places) = env.places.upgrade() else { return Ok(()) };
        let Some(now) = places.destination(self.ino) else {
            return Err(Error::new(ErrorKind::NotFound, "the file was deleted while it was being saved"));
        };
        *self = Self { mtime: self.mtime, ..now };
        Ok(())
    }

    /// Whether the file is to be elsewhere by now.
    pub fn is_left(&self, env: &Env) -> bool {
        env.places.upgrade().is_some_and(|places| !places.is_at(self))
    }

    /// A file of the drive has the name. It gets a new revision, but for one that is another file here, which is about to
    /// leave: that keeps its content.
    fn is_taken_by(&mut self, object: FileId, env: &Env) -> Result<()> {
        if self.is_left(env) {
            return self.aim(env);
        }
        let places = env.places.upgrade();
        if places.is_some_and(|places| places.is_anothers(&object, self.ino)) {
            self.has_sibling = true;
        } else {
            self.overwrite = Some(object);
        }
        Ok(())
    }
}

/// A part that takes no more bytes.
#[derive(Clone, Debug)]
pub struct FrozenPart {
    /// Its number.
    pub number: PartNumber,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// Its content.
    pub frames: Arc<[Frame]>,
}

/// A file whose parts are all on the drive, but not yet made a revision.
#[derive(Clone, Debug)]
pub struct Shipped {
    /// The session.
    pub upload: Upload,
    /// Of the whole content.
    pub sha1: Sha1Hash,
    /// CRC-64/XZ of the whole content.
    pub crc64: u64,
    /// The place that the session was begun for.
    pub destination: Destination,
}

/// Brings all parts that come through `parts` to the drive, until the sender is dropped.
pub async fn ship(
    env: Arc<Env>,
    destination: Destination,
    parts: mpsc::UnboundedReceiver<FrozenPart>,
    flow: Arc<Flow>,
    transfer: Arc<Transfer>,
) -> Result<Shipped> {
    let (ready, queue) = mpsc::unbounded_channel();
    let sender = Sender { env, flow: flow.clone(), transfer, puts: JoinSet::new(), crcs: BTreeMap::new() };
    let outcome = tokio::try_join!(hash(parts, ready), sender.run(destination, queue));
    match outcome {
        Ok((sha1, (upload, crc64, destination))) => Ok(Shipped { upload, sha1, crc64, destination }),
        Err(error) => {
            flow.fail(&error);
            Err(error)
        }
    }
}

/// A part, and the SHA-1 state before it.
pub type Ready = (FrozenPart, Sha1Ctx);

/// Brings parts that are all known to a session whose first URLs are known; CRC-64 of everything.
pub async fn ship_known(
    env: Arc<Env>,
    upload: &Upload,
    first_urls: Vec<PartUrl>,
    parts: Vec<Ready>,
    flow: Arc<Flow>,
    transfer: Arc<Transfer>,
) -> Result<u64> {
    let mut sender = Sender { env, flow, transfer, puts: JoinSet::new(), crcs: BTreeMap::new() };
    let (mut urls, mut rest) = (first_urls, parts);
    loop {
        if urls.is_empty() {
            if rest.is_empty() {
                break;
            }
            // URLs age: they are asked for when they will soon be used.
            while sender.puts.len() > URLS_PER_CALL_MAX
                && let Some(done) = sender.puts.join_next().await
            {
                sender.note(done)?;
            }
            let asked = &rest[..rest.len().min(URLS_PER_CALL_MAX)];
            urls = sender.env.drive.part_urls(upload, &numbers(asked)).await?;
        }
        let later = rest.split_off(urls.len().min(rest.len()));
        for ((part, ctx), url) in rest.into_iter().zip(std::mem::take(&mut urls)) {
            sender.send(upload, part, ctx, url).await?;
        }
        rest = later;
    }
    sender.all_stored().await
}

/// The numbers of parts whose URLs one call may ask for.
pub fn first_numbers(parts: &[Ready]) -> Vec<(PartNumber, Sha1Ctx)> {
    numbers(&parts[..parts.len().min(URLS_PER_CALL_MAX)])
}

/// Passes each part on with the SHA-1 state before it; the SHA-1 of everything in the end.
async fn hash(
    mut parts: mpsc::UnboundedReceiver<FrozenPart>,
    ready: mpsc::UnboundedSender<Ready>,
) -> Result<Sha1Hash> {
    let mut rolling = RollingSha1::default();
    while let Some(part) = parts.recv().await {
        // Part sizes are multiples of 64, so a state exists at every boundary.
        let ctx =
            rolling.ctx().ok_or_else(|| Error::new(ErrorKind::Io, "a part begins off the SHA-1 grid"))?;
        let frames = part.frames.clone();
        if ready.send((part, ctx)).is_err() {
            // The other loop has ended, with an error that tells more than this one could.
            return std::future::pending().await;
        }
        rolling = tokio::task::spawn_blocking(move || hash_frames(rolling, &frames))
            .await
            .map_err(|e| Error::new(ErrorKind::Io, format!("hashing stopped: {e}")))??;
    }
    Ok(rolling.digest())
}

/// Continues a SHA-1 over frames. Blocks.
pub fn hash_frames(mut rolling: RollingSha1, frames: &[Frame]) -> Result<RollingSha1> {
    for frame in frames {
        rolling.update(&frame.load()?);
    }
    Ok(rolling)
}

struct Sender {
    env: Arc<Env>,
    flow: Arc<Flow>,
    transfer: Arc<Transfer>,
    puts: JoinSet<Result<(PartNumber, u64, u64)>>,
    crcs: BTreeMap<PartNumber, (u64, u64)>,
}

impl Sender {
    async fn run(
        mut self,
        mut destination: Destination,
        mut queue: mpsc::UnboundedReceiver<Ready>,
    ) -> Result<(Upload, u64, Destination)> {
        let mut upload = None;
        while let Some(batch) = self.next_batch(&mut queue).await? {
            let (session, urls) = match upload.take() {
                Some(session) => {
                    let urls = self.env.drive.part_urls(&session, &numbers(&batch)).await?;
                    (session, urls)
                }
                None => begin(&self.env, &mut destination, &numbers(&batch)).await?,
            };
            for ((part, ctx), url) in batch.into_iter().zip(urls) {
                self.send(&session, part, ctx, url).await?;
            }
            upload = Some(session);
        }
        let upload = upload.ok_or_else(|| Error::new(ErrorKind::Io, "an upload without parts"))?;
        Ok((upload, self.all_stored().await?, destination))
    }

    /// Waits for the PUTs that are under way; CRC-64 of everything that was sent.
    async fn all_stored(mut self) -> Result<u64> {
        while let Some(done) = self.puts.join_next().await {
            self.note(done)?;
        }
        Ok(self.crcs.values().fold(0, |crc, (next, bytes)| crc64::append(crc, *next, *bytes)))
    }

    /// Everything that waits to be sent, as soon as there is something; `None` at the end. Notes
    /// finished PUTs meanwhile, so that a failure is met at once.
    async fn next_batch(&mut self, queue: &mut mpsc::UnboundedReceiver<Ready>) -> Result<Option<Vec<Ready>>> {
        loop {
            tokio::select! {
                first = queue.recv() => {
                    let Some(first) = first else { return Ok(None) };
                    let mut batch = vec![first];
                    while batch.len() < URLS_PER_CALL_MAX && let Ok(next) = queue.try_recv() {
                        batch.push(next);
                    }
                    return Ok(Some(batch));
                }
                Some(done) = self.puts.join_next() => self.note(done)?,
            }
        }
    }

    fn note(
        &mut self,
        done: std::result::Result<Result<(PartNumber, u64, u64)>, tokio::task::JoinError>,
    ) -> Result<()> {
        let (number, bytes, crc) =
            done.map_err(|e| Error::new(ErrorKind::Io, format!("an upload stopped: {e}")))??;
        self.crcs.insert(number, (crc, bytes));
        Ok(())
    }

    async fn send(&mut self, upload: &Upload, part: FrozenPart, ctx: Sha1Ctx, url: PartUrl) -> Result<()> {
        if !upload.parallel {
            // Ordered mode: the part before must be stored.
            while let Some(done) = self.puts.join_next().await {
                self.note(done)?;
            }
        }
        let put = Put {
            env: self.env.clone(),
            flow: self.flow.clone(),
            transfer: self.transfer.clone(),
            upload: upload.clone(),
            part,
            ctx,
        };
        self.puts.spawn(put.run(url));
        Ok(())
    }
}

fn numbers(batch: &[Ready]) -> Vec<(PartNumber, Sha1Ctx)> {
    batch.iter().map(|(part, ctx)| (part.number, *ctx)).collect()
}

/// Begins a session. A file of that name that somebody else made meanwhile gets a new revision.
async fn begin(
    env: &Env,
    destination: &mut Destination,
    parts: &[(PartNumber, Sha1Ctx)],
) -> Result<(Upload, Vec<PartUrl>)> {
    match create(env, destination, None, parts).await? {
        Created::Session(upload, urls) => Ok((upload, urls)),
        Created::Instant(_) | Created::Taken(..) => {
            Err(Error::new(ErrorKind::Protocol, "create: the service began no upload"))
        }
    }
}

/// `create` for a destination; where the name was taken meanwhile by a file, a new revision of it; where the file
/// that was to get a new revision is gone, a new file.
pub async fn create(
    env: &Env,
    destination: &mut Destination,
    content: Option<(u64, Sha1Hash)>,
    parts: &[(PartNumber, Sha1Ctx)],
) -> Result<Created> {
    for _ in 0..TAKEN_MAX {
        let file = NewFile {
            parent: &destination.parent,
            name: &destination.name,
            overwrite: destination.overwrite.as_ref(),
            mode: if destination.has_sibling { CheckNameMode::Ignore } else { CheckNameMode::Refuse },
            content,
            mtime: destination.mtime,
            tags: posix::tags(destination.posix.as_deref(), destination.mtime.unwrap_or(UNIX_EPOCH)),
            parts,
        };
        match env.drive.create_file(&file).await {
            Ok(Created::Taken(file_id, FileType::File)) => destination.is_taken_by(file_id, env)?,
            Ok(Created::Taken(_, FileType::Folder)) => {
                return Err(Error::new(ErrorKind::IsDirectory, "a folder of that name exists on the drive"));
            }
            // Somebody else has deleted it: what was written here is not lost by that.
            Err(error) if error.kind() == ErrorKind::NotFound && destination.overwrite.is_some() => {
                destination.overwrite = None;
            }
            created => return created,
        }
    }
    Err(Error::new(ErrorKind::Exists, "the name on the drive keeps changing hands"))
}

/// The way of one part to the drive.
pub(super) struct Put {
    pub(super) env: Arc<Env>,
    pub(super) flow: Arc<Flow>,
    pub(super) transfer: Arc<Transfer>,
    pub(super) upload: Upload,
    pub(super) part: FrozenPart,
    pub(super) ctx: Sha1Ctx,
}

impl Put {
    /// Sends the part, with a new URL where the given one has expired; number, length and CRC-64.
    pub(super) async fn run(self, url: PartUrl) -> Result<(PartNumber, u64, u64)> {
        let mut slot = self.env.gate.enter().await;
        self.transfer.part_started();
        let throttled = AtomicBool::new(false);
        let outcome = self.put(url, &mut slot, &throttled).await;
        self.transfer.part_done(self.part.bytes, outcome.is_ok());
        let crc = outcome?;
        slot.stored(self.part.bytes, throttled.into_inner());
        self.flow.acknowledge(self.part.offset, self.part.bytes);
        Ok((self.part.number, self.part.bytes, crc))
    }

    async fn put(&self, mut url: PartUrl, slot: &mut Slot, throttled: &AtomicBool) -> Result<u64> {
        for _ in 0..RESIGN_MAX {
            match self.env.drive.put_part(&url, &self.part.frames, throttled).await? {
                PutOutcome::Stored { crc64 } => return Ok(crc64),
                PutOutcome::StoredBefore => return part::crc64(&self.part.frames),
                PutOutcome::NoSuchUpload => {
                    return Err(Error::new(ErrorKind::Stale, "the service has dropped the upload session"));
                }
                PutOutcome::Expired => {
                    let asked = [(self.part.number, self.ctx)];
                    let mut urls = self.env.drive.part_urls(&self.upload, &asked).await?;
                    url = urls.pop().ok_or_else(|| Error::new(ErrorKind::Protocol, "no URL for a part"))?;
                    slot.restart();
                }
            }
        }
        Err(Error::new(ErrorKind::Protocol, "the service signs only URLs that have expired"))
    }
}
