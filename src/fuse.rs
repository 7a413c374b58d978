//! The fuser adaptor: the only module that imports fuser.
//!
//! `adaptor` turns the kernel's requests into calls of [`Vfs`], `dispatch` answers each of them
//! once and within a deadline, `mountinfo` and `unmount` know what is mounted and how to end it.
//! [`KernelMount`] is one mount from its beginning to its end.
//!
//! Unmounting is done here and not by fuser: 0.18.0 gives up when a file is open, and takes a
//! mount that is gone for one that is still there, so that it could unmount whatever came after it
//! at the same path. Its handle is therefore never dropped.

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
use adaptor::Adaptor;

mod adaptor;
mod capabilities;
mod convert;
mod dispatch;
pub mod mountinfo;
pub mod unmount;

/// Two threads are best on two cores; they only hand requests on.
const SESSION_THREADS: usize = 2;

/// A drive that is mounted. Dropping this does not unmount it.
#[derive(Debug)]
pub struct KernelMount {
    path: PathBuf,
    device: String,
    ended: watch::Receiver<bool>,
    /// Closed when the session is over and every request is answered.
    busy: mpsc::Receiver<()>,
    /// Dropping it would unmount by path, whatever is there by then.
    _session: ManuallyDrop<BackgroundSession>,
}

impl KernelMount {
    /// Mounts at `config.mountpoint`, which is absolute and without links. The kernel's requests
    /// are served from now on. Must be called on a runtime.
    pub async fn start(vfs: Arc<Vfs>, config: &MountConfig) -> Result<Self> {
        let (ended, has_ended) = watch::channel(false);
        let (busy, is_busy) = mpsc::channel(1);
        let adaptor = Adaptor::new(vfs.clone(), Handle::current(), config.commit_timeout, ended, busy);
        let (options, path) = (session_options(config), config.mountpoint.clone());
        let session = tokio::task::spawn_blocking(move || -> std::io::Result<_> {
            let session = Session::new(adaptor, &path, &options)?.spawn()?;
            Ok(ManuallyDrop::new(session))
        })
        .await
        .map_err(|e| Error::new(ErrorKind::Io, format!("mounting was given up: {e}")))?
        .map_err(|e| Error::from(e).context(format!("cannot mount at {}", config.mountpoint.display())))?;
        let seen = match mountinfo::at(&config.mountpoint) {
            Ok(seen) => seen.filter(mountinfo::Mount::is_ours),
            Err(error) => {
                // Without the list of mounts, fuser's way to end one is better than none.
                tokio::task::spawn_blocking(move || drop(ManuallyDrop::into_inner(session))).await.ok();
                return Err(error.into());
            }
        };
        let mount = seen.ok_or_else(|| {
            let path = config.mountpoint.display();
            Error::new(ErrorKind::Io, format!("the new mount is not seen at {path}"))
        })?;
        vfs.mounted_on(&mount.device);
        Ok(Self {
            path: config.mountpoint.clone(),
            device: mount.device,
            ended: has_ended,
            busy: is_busy,
            _session: session,
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when the kernel has let go of the mount: somebody unmounted it and no file of it is
    /// open any more.
    pub async fn wait(&self) {
        // An error means that the adaptor is gone, which is the end too.
        self.ended.clone().wait_for(|ended| *ended).await.ok();
    }

    /// Takes the mount out of the name space, also while files of it are open: those stay usable
    /// for as long as this process lives. Nothing else that may be mounted there is touched.
    pub async fn detach(&self) -> Result<()> {
        if *self.ended.borrow() {
            return Ok(());
        }
        let (path, device) = (self.path.clone(), self.device.clone());
        let detached = tokio::task::spawn_blocking(move || match mountinfo::at(&path)? {
            Some(mount) if mount.is_ours() && mount.device == device => unmount::lazily(&path),
            _ => Ok(()),
        });
        detached.await.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?
    }

    /// Takes the mount out of the name space when the kernel has cut its connection: then it is there, and dead, and so is
    /// [`Self::wait`] over. Whether it was.
    pub async fn detach_cut_off(&self, is_dead: fn(&Path) -> bool) -> Result<bool> {
        let (path, device) = (self.path.clone(), self.device.clone());
        let detached = tokio::task::spawn_blocking(move || match mountinfo::at(&path)? {
            // The number may be another mount's by now, but that one lives.
            Some(mount) if mount.is_ours() && mount.device == device && is_dead(&path) => {
                unmount::lazily(&path).map(|()| true)
            }
            _ => Ok(false),
        });
        detached.await.map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?
    }

    /// Waits until every request that came is answered, and programs have closed what was open;
    /// `false` if that is not so within `limit`.
    pub async fn finish(&mut self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.busy.recv()).await.is_ok()
    }
}

fn session_options(config: &MountConfig) -> Config {
    let mut options = Config::default();
    options.mount_options = vec![
        MountOption::FSName(source(config)),
        // As a custom option, so that it reaches the kernel also without fusermount3.
        MountOption::CUSTOM("subtype=pdsfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    if config.read_only {
        options.mount_options.push(MountOption::RO);
    }
    if config.noexec {
        options.mount_options.push(MountOption::NoExec);
    }
    options.acl = if config.allow_other { SessionACL::All } else { SessionACL::Owner };
    options.n_threads = Some(SESSION_THREADS);
    options
}

/// As root it goes to the kernel as it is; fusermount3 takes a list with commas.
fn source(config: &MountConfig) -> String {
    // SAFETY: the call only reads the process's own id and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return config.source.clone();
    }
    config.source.replace('\\', "\\\\").replace(',', "\\,")
}
