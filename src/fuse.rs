//! The FUSE layer: the only module that imports fuser.
//!
//! `adapter` converts kernel requests to calls of [`Vfs`]. `dispatch` answers each request once and before
//! its deadline. `mountinfo`, `mount_root`, `remount` and `unmount` find, change and end mounts. [`KernelMount`]
//! is one mount, from start to unmount.
//!
//! Root mounts by a descriptor ([`MountDir`]), and fuser only gets the device. The `broker` does the same for a
//! daemon of the system that is not root. For other users fuser runs `fusermount3`, which makes its own checks.
//!
//! This module unmounts, not fuser: fuser 0.18.0 gives up when a file is open. It can also mistake an ended
//! mount for a live one, and unmount another mount that appeared at the same path. Therefore the session of a
//! mount is never dropped.

use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::config::MountConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::vfs::{OwnInspector, ProcessInspector, Vfs};
use adapter::FuseAdapter;
use broker::BrokerClient;
use mountinfo::Mount;

mod adapter;
pub mod broker;
mod capabilities;
mod convert;
mod dispatch;
mod mount_control;
mod mount_dir;
pub mod mount_root;
pub mod mountinfo;
pub mod remount;
pub mod unmount;

pub use mount_control::{MountControl, detach_if};
pub use mount_dir::{DetachedMount, MountDir};

/// Session threads only pass requests on. Two were fastest on two cores.
const SESSION_THREADS: usize = 2;

/// The directory to mount at.
#[derive(Debug)]
pub enum MountPlace {
    /// Opened by this process.
    Own(MountDir),
    /// Opened by the broker.
    OfBroker(Arc<BrokerClient>),
}

/// A mounted drive. Dropping it does not unmount.
#[derive(Debug)]
pub struct KernelMount {
    control: MountControl,
    ended: watch::Receiver<bool>,
    /// Closed when the session has ended and every request is answered.
    busy: mpsc::Receiver<()>,
    /// Its drop would unmount by path, even a mount of another program.
    _session: ManuallyDrop<BackgroundSession>,
}

impl KernelMount {
    /// Mounts at `place` and starts to serve requests. Nothing stays mounted after an error. Must be called on a
    /// runtime.
    pub async fn start(vfs: Arc<Vfs>, config: &Arc<MountConfig>, place: MountPlace) -> Result<Self> {
        let (ended, has_ended) = watch::channel(false);
        let (busy, is_busy) = mpsc::channel(1);
        let adapter =
            FuseAdapter::new(vfs.clone(), Handle::current(), config.options.commit_timeout, ended, busy);
        let config = config.clone();
        let mounted = tokio::task::spawn_blocking(move || {
            mount(adapter, place, &config)
                .map_err(|e| e.context(format!("cannot mount {}", config.mountpoint.display())))
        });
        let (session, control) = mounted
            .await
            .map_err(|e| Error::with_source(ErrorKind::Io, "the mount task was aborted", e))??;
        if let Some(inspector) = inspector(&control) {
            vfs.set_inspector(inspector);
        }
        Ok(Self { control, ended: has_ended, busy: is_busy, _session: session })
    }

    pub fn control(&self) -> &MountControl {
        &self.control
    }

    /// The path of the mount when it was made.
    pub fn path(&self) -> &Path {
        &self.control.mount().path
    }

    /// Resolves when the kernel has ended the mount: it was unmounted and no file of it is open any more.
    pub async fn wait(&self) {
        // An error means that the adapter is gone, which is the end too.
        self.ended.clone().wait_for(|ended| *ended).await.ok();
    }

    /// Unmounts lazily (`MNT_DETACH`), wherever the mount is now. Open files stay usable while this process
    /// lives. Other mounts at the same path are not touched.
    pub async fn detach(&self) -> Result<()> {
        if *self.ended.borrow() {
            return Ok(());
        }
        let control = self.control.clone();
        blocking(move || control.detach()).await
    }

    /// Unmounts if the kernel has aborted the connection: such a mount is dead but still visible, and
    /// [`Self::wait`] has returned. Returns whether it did.
    pub async fn detach_if_aborted(&self, is_dead: fn(&Mount) -> bool) -> Result<bool> {
        // Another mount may have this id and device number by now, but that one is not dead.
        let control = self.control.clone();
        blocking(move || control.detach_if_dead(is_dead)).await
    }

    /// Waits until every request is answered and every file is closed. `false` after `limit`.
    pub async fn finish(&mut self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.busy.recv()).await.is_ok()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::from_source(ErrorKind::Io, e))?
}

fn inspector(control: &MountControl) -> Option<Arc<dyn ProcessInspector>> {
    match control.broker() {
        Some(broker) => Some(broker.clone()),
        None => Some(Arc::new(OwnInspector::new(&control.mount().device)?)),
    }
}

type Mounted = (ManuallyDrop<BackgroundSession>, MountControl);

fn mount(adapter: FuseAdapter, place: MountPlace, config: &MountConfig) -> Result<Mounted> {
    match place {
        MountPlace::OfBroker(broker) => {
            let session = serve(adapter, broker.open()?, config)?;
            let mount = broker.attach()?;
            Ok((session, MountControl::by_broker(mount, broker)))
        }
        MountPlace::Own(dir) if rustix::process::geteuid().is_root() => {
            let detached = DetachedMount::new(&config.source, &config.options)?;
            let session = serve(adapter, detached.device, config)?;
            let mount = dir.attach(&detached.mount)?;
            Ok((session, MountControl::own(mount)))
        }
        MountPlace::Own(dir) => mount_by_fusermount(adapter, &dir, config),
    }
}

/// The session answers the first request of the kernel before any path leads to the mount.
fn serve(
    adapter: FuseAdapter,
    device: OwnedFd,
    config: &MountConfig,
) -> Result<ManuallyDrop<BackgroundSession>> {
    let session = Session::from_fd(adapter, device, acl(config), session_options(config))?;
    Ok(ManuallyDrop::new(session.spawn()?))
}

/// `fusermount3` resolves the path with the rights of the user.
fn mount_by_fusermount(adapter: FuseAdapter, dir: &MountDir, config: &MountConfig) -> Result<Mounted> {
    dir.check_in_place()?;
    let mut options = session_options(config);
    options.mount_options = fusermount_options(config);
    let session = Session::new(adapter, dir.path(), &options)?.spawn()?;
    match mountinfo::at(dir.path()) {
        Ok(Some(mount)) if mount.is_ours() => Ok((ManuallyDrop::new(session), MountControl::own(mount))),
        // The drop of the session unmounts by path, through fusermount3.
        Ok(_) => {
            let detail = "the new mount does not appear in /proc/self/mountinfo";
            Err(Error::new(ErrorKind::Io, detail))
        }
        Err(error) => Err(error.into()),
    }
}

fn acl(config: &MountConfig) -> SessionACL {
    match (config.options.allow_other, &config.broker) {
        (true, _) => SessionACL::All,
        // The kernel admits the user of the mount, which is root, and not the user of this process.
        (false, Some(_)) => SessionACL::RootAndOwner,
        (false, None) => SessionACL::Owner,
    }
}

fn session_options(config: &MountConfig) -> Config {
    let mut options = Config::default();
    options.acl = acl(config);
    options.n_threads = Some(SESSION_THREADS);
    options
}

/// The options that [`DetachedMount`] sets for root.
fn fusermount_options(config: &MountConfig) -> Vec<MountOption> {
    let mut options = vec![
        // fusermount3 parses a comma-separated list.
        MountOption::FSName(config.source.replace('\\', "\\\\").replace(',', "\\,")),
        MountOption::CUSTOM("subtype=pdsfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
    ];
    if config.options.read_only {
        options.push(MountOption::RO);
    }
    if config.options.noexec {
        options.push(MountOption::NoExec);
    }
    options
}
