//! Scripts of the Debian package. `tests/suites/package.sh` runs them with dpkg.

// This crate has only tests, so its helpers may panic.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::Command;

/// Makes `files` in an empty `/etc` of a mount namespace and shares the configuration as an installation does. Returns
/// what that prints, then mode, owner, group (4242 is pdsfs) and path of everything in `/etc/pdsfs`.
fn shared(files: &str) -> Vec<String> {
    let script = format!(
        "mount -t tmpfs -o mode=755 none /etc && cd /etc || exit 99
         printf 'root:x:0:0::/:\\npdsfs:x:4242:4242::/:\\n' >passwd && printf 'root:x:0:\\npdsfs:x:4242:\\n' >group
         mkdir pdsfs && cd pdsfs && umask 077 || exit 99
         {files}
         # Without arguments it only defines functions.
         . \"$0\"
         share_configuration 2>&1
         find /etc/pdsfs -printf '%#m %U:%G %p\\n' | sort -k 3"
    );
    let postinst = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/debian/postinst");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, postinst]);
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && errors.is_empty(),
        "this test needs root: {}: {errors}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn installation_shares_configuration_and_its_files() {
    let files = r#"
        chmod 700 .; echo secret >token; echo secret >quoted; echo authority >ca.pem; echo other >other.pem
        echo 'token_file = "/etc/pdsfs/token"
[drives.work]
  ca_file="/etc/pdsfs/ca.pem"
drive = { ca_file = "/etc/pdsfs/other.pem", token_file = '"'/etc/pdsfs/quoted'"' } # both' >config.toml"#;
    assert_eq!(
        shared(files),
        [
            "0750 0:4242 /etc/pdsfs",
            "0640 0:4242 /etc/pdsfs/ca.pem",
            "0640 0:4242 /etc/pdsfs/config.toml",
            "0640 0:4242 /etc/pdsfs/other.pem",
            "0640 0:4242 /etc/pdsfs/quoted",
            "0640 0:4242 /etc/pdsfs/token",
        ]
    );
}

#[test]
fn installation_leaves_readable_files_alone() {
    let files = r#"
        chmod 755 .; echo 'ca_file = "/etc/pdsfs/ca.pem"' >config.toml; echo authority >ca.pem
        chmod 644 config.toml ca.pem"#;
    assert_eq!(
        shared(files),
        ["0755 0:0 /etc/pdsfs", "0644 0:0 /etc/pdsfs/ca.pem", "0644 0:0 /etc/pdsfs/config.toml"]
    );
}

/// What the service must not read, or could not use.
#[test]
fn installation_leaves_other_files_private() {
    let files = r#"
        chmod 700 .; echo secret >unnamed; echo secret >disabled; echo secret >target; ln -s target link
        echo secret >foreign; chown 7001:7001 foreign; echo secret >grouped; chgrp 7001 grouped
        echo '{"refresh_token": "secret"}' >renewed
        for name in link foreign grouped renewed missing; do
            printf '[drives.%s]\ntoken_file = "/etc/pdsfs/%s"\n' $name $name
        done >config.toml
        echo ' # token_file = "/etc/pdsfs/disabled"' >>config.toml"#;
    let unreadable = |name: &str| {
        format!("pdsfs: the user pdsfs, who serves the mounts of the system, cannot read /etc/pdsfs/{name}")
    };
    let printed = [
        "pdsfs: the mounts of the system cannot renew the token in /etc/pdsfs/renewed: run pdsfs login instead"
            .to_owned(),
        unreadable("link"),
        unreadable("foreign"),
        unreadable("grouped"),
        unreadable("renewed"),
        unreadable("missing"),
    ];
    let found = [
        "0750 0:4242 /etc/pdsfs",
        "0640 0:4242 /etc/pdsfs/config.toml",
        "0600 0:0 /etc/pdsfs/disabled",
        "0600 7001:7001 /etc/pdsfs/foreign",
        "0600 0:7001 /etc/pdsfs/grouped",
        "0777 0:0 /etc/pdsfs/link",
        "0600 0:0 /etc/pdsfs/renewed",
        "0600 0:0 /etc/pdsfs/target",
        "0600 0:0 /etc/pdsfs/unnamed",
    ];
    assert_eq!(shared(files), [printed.as_slice(), &found.map(str::to_owned)].concat());
}

#[test]
fn installation_without_configuration_is_silent() {
    assert_eq!(shared("chmod 700 ."), ["0750 0:4242 /etc/pdsfs"]);
}
