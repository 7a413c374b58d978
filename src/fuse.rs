//! The FUSE layer: the only module that imports fuser.
//!
//! `adapter` converts kernel requests to calls of [`Vfs`]. `dispatch` answers each request once and before
//! its deadline. `mountinfo`, `remount` and `unmount` inspect, change and end mounts. [`KernelMount`] is one
//! mount, from start to unmount.
//!
//! This module unmounts, not fuser: fuser 0.18.0 gives up when a file is open. It can also mistake an ended
//! mount for a live one, and unmount another mount that appeared at the same path. Therefore its session is
//! never dropped.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::config::MountConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::vfs::Vfs;
use adapter::FuseAdapter;

mod adapter;
mod capabilities;
mod convert;
mod dispatch;
pub mod mountinfo;
pub mod remount;
pub mod unmount;

/// Session threads only pass requests on. Two were fastest on two cores.
const SESSION_THREADS: usize = 2;

/// A mounted drive. Dropping it does not unmount.
#[derive(Debug)]
pub struct KernelMount {
    path: PathBuf,
    device: String,
    ended: watch::Receiver<bool>,
    /// Closed when the session has ended and every request is answered.
    busy: mpsc::Receiver<()>,
    /// Its drop would unmount by path, even a mount of another program.
    _session: ManuallyDrop<BackgroundSession>,
}

impl KernelMount {
    /// Mounts at `config.mountpoint`, an absolute path without symbolic links, and starts to serve requests.
    /// Must be called on a runtime.
    pub async fn start(vfs: Arc<Vfs>, config: &MountConfig) -> Result<Self> {
        let (ended, has_ended) = watch::channel(false);
        let (busy, is_busy) = mpsc::channel(1);
        let adapter =
            FuseAdapter::new(vfs.clone(), Handle::current(), config.options.commit_timeout, ended, busy);
        let (options, path) = (session_options(config), config.mountpoint.clone());
        let session = tokio::task::spawn_blocking(move || -> std::io::Result<_> {
            let session = Session::new(adapter, &path, &options)?.spawn()?;
            Ok(ManuallyDrop::new(session))
        })
        .await
        .map_err(|e| Error::with_source(ErrorKind::Io, "the mount task was aborted", e))?
        .map_err(|e| Error::from(e).context(format!("cannot mount {}", config.mountpoint.display())))?;
        let found = match mountinfo::at(&config.mountpoint) {
            Ok(found) => found.filter(mountinfo::Mount::is_ours),
            Err(error) => {
                // Without mountinfo, the unmount of fuser is the only way left.
                tokio::task::spawn_blocking(move || drop(ManuallyDrop::into_inner(session))).await.ok();
                return Err(error.into());
            }
        };
        let mount = found.ok_or_else(|| {
            let path = config.mountpoint.display();
            Error::new(
                ErrorKind::Io,
                format!("cannot mount {path}: the new mount does not appear in /proc/self/mountinfo"),
            )
        })?;
        vfs.set_device(&mount.device);
        Ok(Self {
            path: config.mountpoint.clone(),
            device: mount.device,
            ended: has_ended,
            busy: is_busy,
            _session: session,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    /// Resolves when the kernel has ended the mount: it was unmounted and no file of it is open any more.
    pub async fn wait(&self) {
        // An error means that the adapter is gone, which is the end too.
        self.ended.clone().wait_for(|ended| *ended).await.ok();
    }

    /// Unmounts lazily (`MNT_DETACH`). Open files stay usable while this process lives. Other mounts at the
    /// same path are not touched.
    pub async fn detach(&self) -> Result<()> {
        if *self.ended.borrow() {
            return Ok(());
        }
        let (path, device) = (self.path.clone(), self.device.clone());
        let detached = tokio::task::spawn_blocking(move || match mountinfo::at(&path)? {
            Some(mount) if mount.is_ours() && mount.device == device => unmount::lazily(&path),
            _ => Ok(()),
        });
        detached.await.map_err(|e| Error::from_source(ErrorKind::Io, e))?
    }

    /// Unmounts if the kernel has aborted the connection: such a mount is dead but still visible, and
    /// [`Self::wait`] has returned. Returns whether it did.
    pub async fn detach_if_aborted(&self, is_dead: fn(&Path) -> bool) -> Result<bool> {
        let (path, device) = (self.path.clone(), self.device.clone());
        let detached = tokio::task::spawn_blocking(move || match mountinfo::at(&path)? {
            // Another mount may have this device number by now, but that one is not dead.
            Some(mount) if mount.is_ours() && mount.device == device && is_dead(&path) => {
                unmount::lazily(&path).map(|()| true)
            }
            _ => Ok(false),
        });
        detached.await.map_err(|e| Error::from_source(ErrorKind::Io, e))?
    }

    /// Waits until every request is answered and every file is closed. `false` after `limit`.
    pub async fn finish(&mut self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.busy.recv()).await.is_ok()
    }
}

fn session_options(config: &MountConfig) -> Config {
    let mut options = Config::default();
    options.mount_options = vec![
        MountOption::FSName(source(config)),
        // As a custom option, so that it reaches the kernel without fusermount3 too.
        MountOption::CUSTOM("subtype=pdsfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
    ];
    if config.options.read_only {
        options.mount_options.push(MountOption::RO);
    }
    if config.options.noexec {
        options.mount_options.push(MountOption::NoExec);
    }
    options.acl = if config.options.allow_other { SessionACL::All } else { SessionACL::Owner };
    options.n_threads = Some(SESSION_THREADS);
    options
}

/// The kernel accepts any source from root. fusermount3 parses a comma-separated list, so it needs escapes.
fn source(config: &MountConfig) -> String {
    if rustix::process::geteuid().is_root() {
        return config.source.clone();
    }
    config.source.replace('\\', "\\\\").replace(',', "\\,")
}
