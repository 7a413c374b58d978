//! The FUSE layer: the only module that imports fuser.
//!
//! `adapter` converts kernel requests to calls of [`Vfs`]. `dispatch` answers each request once and before
//! its deadline. `mountinfo`, `mount_root`, `remount` and `unmount` find, change and end mounts. [`KernelMount`]
//! is one mount, from start to unmount.
//!
//! Root mounts by a descriptor ([`MountDir`]), and fuser only gets the device. For other users fuser runs
//! `fusermount3`, which makes its own checks.
//!
//! This module unmounts, not fuser: fuser 0.18.0 gives up when a file is open. It can also mistake an ended
//! mount for a live one, and unmount another mount that appeared at the same path. Therefore the session of a
//! mount is never dropped.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::config::MountConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::vfs::Vfs;
use adapter::FuseAdapter;
use mountinfo::Mount;

mod adapter;
mod capabilities;
mod convert;
mod dispatch;
mod mount_dir;
pub mod mount_root;
pub mod mountinfo;
pub mod remount;
pub mod unmount;

pub use mount_dir::MountDir;

/// Session threads only pass requests on. Two were fastest on two cores.
const SESSION_THREADS: usize = 2;

/// A mounted drive. Dropping it does not unmount.
#[derive(Debug)]
pub struct KernelMount {
    mount: Mount,
    ended: watch::Receiver<bool>,
    /// Closed when the session has ended and every request is answered.
    busy: mpsc::Receiver<()>,
    /// Its drop would unmount by path, even a mount of another program.
    _session: ManuallyDrop<BackgroundSession>,
}

impl KernelMount {
    /// Mounts at `dir` and starts to serve requests. Nothing stays mounted after an error. Must be called on a
    /// runtime.
    pub async fn start(vfs: Arc<Vfs>, config: &Arc<MountConfig>, dir: MountDir) -> Result<Self> {
        let (ended, has_ended) = watch::channel(false);
        let (busy, is_busy) = mpsc::channel(1);
        let adapter =
            FuseAdapter::new(vfs.clone(), Handle::current(), config.options.commit_timeout, ended, busy);
        let config = config.clone();
        let mounted = tokio::task::spawn_blocking(move || {
            let mounted = if rustix::process::geteuid().is_root() {
                mount_directly(adapter, &dir, &config)
            } else {
                mount_by_fusermount(adapter, &dir, &config)
            };
            mounted.map_err(|e| e.context(format!("cannot mount {}", dir.path().display())))
        });
        let (session, mount) = mounted
            .await
            .map_err(|e| Error::with_source(ErrorKind::Io, "the mount task was aborted", e))??;
        vfs.set_device(&mount.device);
        Ok(Self { mount, ended: has_ended, busy: is_busy, _session: session })
    }

    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// The path of the mount when it was made.
    pub fn path(&self) -> &Path {
        &self.mount.path
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
        self.unmount_if(|_| true).await.map(drop)
    }

    /// Unmounts if the kernel has aborted the connection: such a mount is dead but still visible, and
    /// [`Self::wait`] has returned. Returns whether it did.
    pub async fn detach_if_aborted(&self, is_dead: fn(&Mount) -> bool) -> Result<bool> {
        // Another mount may have this id and device number by now, but that one is not dead.
        self.unmount_if(is_dead).await
    }

    async fn unmount_if(&self, is_meant: fn(&Mount) -> bool) -> Result<bool> {
        let mount = self.mount.clone();
        let unmounted = tokio::task::spawn_blocking(move || match mountinfo::current(&mount)? {
            Some(now) if is_meant(&now) => match unmount::lazily(&now) {
                Err(error) if error.kind() == ErrorKind::Busy => {
                    tracing::warn!("{error}");
                    Ok(true)
                }
                unmounted => unmounted.map(|()| true),
            },
            _ => Ok(false),
        });
        unmounted.await.map_err(|e| Error::from_source(ErrorKind::Io, e))?
    }

    /// Waits until every request is answered and every file is closed. `false` after `limit`.
    pub async fn finish(&mut self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.busy.recv()).await.is_ok()
    }
}

type Mounted = (ManuallyDrop<BackgroundSession>, Mount);

/// The session answers the first request of the kernel before any path leads to the mount.
fn mount_directly(adapter: FuseAdapter, dir: &MountDir, config: &MountConfig) -> Result<Mounted> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let root = mount_dir::detached_mount(&device, &config.source, &config.options)?;
    let session = Session::from_fd(adapter, device.into(), acl(config), session_options(config))?.spawn()?;
    let mount = dir.attach(&root)?;
    Ok((ManuallyDrop::new(session), mount))
}

/// `fusermount3` resolves the path with the rights of the user.
fn mount_by_fusermount(adapter: FuseAdapter, dir: &MountDir, config: &MountConfig) -> Result<Mounted> {
    dir.check_in_place()?;
    let mut options = session_options(config);
    options.mount_options = fusermount_options(config);
    let session = Session::new(adapter, dir.path(), &options)?.spawn()?;
    match mountinfo::at(dir.path()) {
        Ok(Some(mount)) if mount.is_ours() => Ok((ManuallyDrop::new(session), mount)),
        // The drop of the session unmounts by path, through fusermount3.
        Ok(_) => {
            let detail = "the new mount does not appear in /proc/self/mountinfo";
            Err(Error::new(ErrorKind::Io, detail))
        }
        Err(error) => Err(error.into()),
    }
}

fn acl(config: &MountConfig) -> SessionACL {
    if config.options.allow_other { SessionACL::All } else { SessionACL::Owner }
}

fn session_options(config: &MountConfig) -> Config {
    let mut options = Config::default();
    options.acl = acl(config);
    options.n_threads = Some(SESSION_THREADS);
    options
}

/// The options that [`mount_dir::detached_mount`] sets for root.
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
