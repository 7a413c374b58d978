//! What an ordinary user sees of the mounts of others.

use crate::rig::Rig;
use crate::users::{NEEDS_ROOT, OrdinaryUser, is_root};

#[test]
fn mount_of_root_needs_all_for_a_user() {
    assert!(is_root(), "{NEEDS_ROOT}");
    let (rig, user) = (Rig::new(), OrdinaryUser::new());
    let mount = rig.mount();
    let path = mount.path().to_str().unwrap();
    let printed = |arguments: &[&str]| {
        let output = user.command(user.binary()).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for command in ["status", "wait", "log"] {
        assert!(!printed(&[command]).contains(path), "{command}");
        let all = printed(&[command, "--all"]);
        assert!(all.contains(&format!("{path} does not answer: it belongs to user 0")), "{command}: {all}");
    }
    assert_eq!(mount.stop(), 0);
}
