//! A close by a process that was killed while it overwrote a file.

use std::process::{Child, Command};
use std::sync::mpsc;

use super::*;

/// A process that a signal has ended. `/proc` shows how until it is reaped.
pub(super) struct Zombie(Child);

impl Zombie {
    pub(super) fn new() -> Self {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        child.kill().unwrap();
        let ended = rustix::process::waitid(
            rustix::process::WaitId::Pid(rustix::process::Pid::from_child(&child)),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        );
        assert!(ended.unwrap().unwrap().killed());
        Self(child)
    }

    pub(super) fn caller(&self) -> Caller {
        Caller { tid: self.0.id(), ..caller() }
    }
}

impl Drop for Zombie {
    fn drop(&mut self) {
        self.0.wait().unwrap();
    }
}

/// The daemon is so busy that a look into `/proc` begins late. Its only thread for such work is taken.
#[test]
fn late_look_finds_the_death_of_a_writer() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let rig = Rig::new().await;
        let old = [1; 500];
        let (_, fh) = rig.create(ROOT, "f").await;
        rig.vfs.write(fh, WriteAt::Offset(0), old.to_vec().into()).await.unwrap();
        rig.vfs.release(fh).await.unwrap();

        let zombie = Zombie::new();
        let killed = zombie.caller();
        let ino = rig.lookup(ROOT, "f").await.unwrap();
        let opened = rig.vfs.open(ino, libc::O_WRONLY | libc::O_TRUNC, killed).await.unwrap();
        rig.vfs.write(opened.fh, WriteAt::Offset(0), vec![2; 200].into()).await.unwrap();

        let (release, released) = mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || released.recv());
        let mut flush = std::pin::pin!(rig.vfs.flush(opened.fh, killed));
        let early = tokio::time::timeout(Duration::from_millis(500), &mut flush).await;
        assert!(early.is_err(), "the close ended without the look: {early:?}");
        release.send(()).unwrap();
        busy.await.unwrap().unwrap();
        flush.await.unwrap();
        rig.vfs.release(opened.fh).await.unwrap();
        let entries = rig.remote_entries(&FileId::root()).await;
        let file = entries.iter().find(|entry| entry.name == "f").unwrap();
        assert_eq!(file.size, old.len() as u64);
    });
}
