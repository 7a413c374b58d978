//! Extended attributes beyond the bound of those that wait for the drive.

use super::*;
use crate::vfs::SetAttr;

const FILES: usize = 12;
const PER_FILE: usize = 900;
/// How long an attribute that needs no flush may take on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn attributes_beyond_the_bound_wait_for_a_flush() {
    let mut rig = Rig::new().await;
    let mut config = (*rig.config).clone();
    config.options.call_timeout = Duration::from_secs(5);
    rig.vfs = mount(&Arc::new(config));
    let mut files = Vec::new();
    for n in 0..FILES {
        files.push(rig.write(ROOT, &format!("f{n}"), b"x").await);
    }
    for endpoint in ["batch", "file/put_usertags"] {
        rig.fault(endpoint, FaultAction::Stall);
    }
    let (vfs, value) = (rig.vfs.clone(), vec![b'x'; 1900]);
    let set = async |ino: Ino, n: usize| {
        let name = format!("user.a{n}");
        tokio::time::timeout(ANSWER_MAX, vfs.setxattr(ino, OsStr::new(&name), &value, 0)).await
    };
    let mut answered = 0;
    let waiting = 'all: {
        for ino in &files {
            for n in 0..PER_FILE {
                match set(*ino, n).await {
                    Ok(Ok(())) => answered += 1,
                    // It waits, or the drive did not take the others in time.
                    Ok(Err(_)) | Err(_) => break 'all Some((*ino, n)),
                }
            }
        }
        None
    };
    let (ino, n) = waiting.unwrap_or_else(|| panic!("{answered} attributes wait, and no program"));
    let bytes = vfs.pending_attr_bytes();
    assert!((16 << 20..17 << 20).contains(&bytes), "{bytes}");
    // Other operations go on.
    assert_eq!(rig.write(ROOT, "other", b"content").await, rig.lookup(ROOT, "other").await.unwrap());
    assert_eq!(vfs.getxattr(files[0], OsStr::new("user.a0")).unwrap(), value);
    let emptied = SetAttr { size: Some(0), ..SetAttr::default() };
    let truncated = vfs.setattr(rig.lookup(ROOT, "other").await.unwrap(), None, emptied, caller());
    let truncated = tokio::time::timeout(ANSWER_MAX, truncated).await.expect("truncate waits for attributes");
    assert_eq!(truncated.unwrap().attr.size, 0);
    rig.server.faults().clear();
    let retried = tokio::time::timeout(Duration::from_secs(120), async {
        vfs.setxattr(ino, OsStr::new(&format!("user.a{n}")), &value, 0).await
    });
    retried.await.unwrap().unwrap();
    assert!(vfs.drain().await.unsaved.is_empty());
    let names = rig.remote_entries(&FileId::root()).await;
    let first = names.iter().find(|meta| meta.name == "f0").unwrap();
    assert_eq!(first.posix.as_ref().unwrap().xattr_names().count(), PER_FILE);
}
