//! What the help texts do not say: examples, files, variables and exit codes of each page.

/// Pairs of a name and its meaning.
type Entries = &'static [(&'static str, &'static str)];

/// The sections of one page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Notes {
    /// What a command line does, and the command line.
    pub(super) examples: Entries,
    pub(super) files: Entries,
    /// In addition to those of the flags.
    pub(super) variables: Entries,
    pub(super) exit: Entries,
}

pub(super) const CONFIGURATION_FILES: Entries = &[
    (
        "~/.config/pdsfs/config.toml",
        "The drives of a user; not read for root. $XDG_CONFIG_HOME replaces ~/.config.",
    ),
    ("/etc/pdsfs/config.toml", "The drives of the system."),
];
const ACCOUNT_FILES: Entries = &[
    (
        "~/.local/state/pdsfs/accounts/NAME.json",
        "An account, for its owner only; its secrets are in it or in the keyring. $XDG_STATE_HOME replaces ~/.local/state.",
    ),
    ("/var/lib/pdsfs/accounts/NAME.json", "An account of root."),
];
const MOUNT_FILES: Entries = &[
    ("~/.config/pdsfs/config.toml, /etc/pdsfs/config.toml", "The configuration; see pdsfs.toml(5)."),
    ("~/.local/state/pdsfs/accounts, /var/lib/pdsfs/accounts", "The accounts of pdsfs-login(1)."),
    (
        "~/.cache/pdsfs, /var/cache/pdsfs",
        "Staged and cached files; they have no names and end with the mount.",
    ),
    ("/etc/fuse.conf", "user_allow_other lets ordinary users use --allow-other."),
];
const SOCKET_FILES: Entries =
    &[("$XDG_RUNTIME_DIR/pdsfs, /run/pdsfs", "The control sockets of the running mounts.")];
const NO_FILES: Entries = &[("none", "The command reads and writes no file of its own.")];

const LOG_VARIABLES: Entries = &[
    ("PDSFS_LOG, RUST_LOG", "The log filter, if --log is not given."),
    (
        "XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_CACHE_HOME, XDG_RUNTIME_DIR",
        "Directories; not used for root, except the last.",
    ),
];
const SERVICE_VARIABLES: Entries = &[
    ("PDSFS_LOG, RUST_LOG", "The log filter, if --log is not given."),
    ("PDSFS_TOKEN", "An access token, instead of an account."),
    ("HTTPS_PROXY, ALL_PROXY, NO_PROXY", "The proxy to the service; also in lower case."),
    ("SSL_CERT_FILE, SSL_CERT_DIR", "Root certificates instead of those of the system."),
];

const EXIT: Entries = &[("0", "Done."), ("1", "Failed; stderr says why."), ("2", "Wrong arguments.")];
const EXIT_MOUNT: Entries = &[
    ("0", "Unmounted, and everything is on the drive."),
    ("1", "Failed, or a file is not on the drive; stderr names it."),
    ("2", "Wrong arguments, no NAME, or a mount that cannot succeed until a person changes something."),
];
const EXIT_WAIT: Entries = &[
    ("0", "Everything is on the drive."),
    ("1", "Failed; stderr says why."),
    ("2", "Wrong arguments."),
    ("3", "Timed out."),
];
const EXIT_HELPER: Entries = &[("0", "Mounted."), ("1", "A wrong line."), ("32", "The mount failed.")];

/// Pages, their examples and their files.
type PageRow = (&'static [&'static str], Entries, Entries);

const PAGES: &[PageRow] = &[
    (
        &["pdsfs-mount"],
        &[
            ("Mount the default drive of an account until Ctrl-C", "pdsfs mount default ~/Drive"),
            (
                "Mount a folder of a configured drive and return",
                "pdsfs mount photos:/2024 ~/Photos --background",
            ),
            ("List the drives and accounts", "pdsfs mount"),
        ],
        MOUNT_FILES,
    ),
    (
        &["pdsfs-login"],
        &[
            (
                "Log in by a browser",
                "pdsfs login --endpoint https://bj1.api.aliyunpds.com --client-id APP_ID",
            ),
            ("Log in on a machine without a browser", "pdsfs login --paste"),
            ("Log in a second account with an access key", "pdsfs login backup --access-key KEY_ID"),
            ("Remove an account from this machine", "pdsfs login backup --forget"),
        ],
        ACCOUNT_FILES,
    ),
    (
        &["pdsfs-drives"],
        &[
            ("List the drives of an account", "pdsfs drives"),
            ("The ids alone", "pdsfs drives --json | jq -r '.[].drive_id'"),
        ],
        ACCOUNT_FILES,
    ),
    (
        &["pdsfs-umount"],
        &[
            ("Unmount by name or by directory", "pdsfs umount photos"),
            ("Wait until all programs have closed their files", "pdsfs umount ~/Drive --drain --timeout 10m"),
            ("Remove a mount whose daemon has died", "pdsfs umount --dead ~/Drive"),
        ],
        MOUNT_FILES,
    ),
    (
        &["pdsfs-doctor"],
        &[
            ("Find out why a drive does not work", "pdsfs doctor"),
            ("Write a file for a bug report", "pdsfs doctor --report report.txt"),
        ],
        MOUNT_FILES,
    ),
    (
        &["pdsfs-setup"],
        &[
            ("Answer questions", "pdsfs setup"),
            (
                "Answer everything by flags",
                "pdsfs setup --endpoint https://bj1.api.aliyunpds.com --client-id APP_ID --drive-id 1 --mountpoint ~/Drive --at-login yes",
            ),
        ],
        MOUNT_FILES,
    ),
    (
        &["pdsfs-config", "pdsfs-config-check"],
        &[("Check all files", "pdsfs config check")],
        CONFIGURATION_FILES,
    ),
    (
        &["pdsfs-config-example"],
        &[("Begin a configuration", "pdsfs config example > ~/.config/pdsfs/config.toml")],
        CONFIGURATION_FILES,
    ),
    (
        &["pdsfs-status"],
        &[
            ("See what is being uploaded, at each second", "pdsfs status --watch"),
            ("All details for a script", "pdsfs status --json"),
        ],
        SOCKET_FILES,
    ),
    (
        &["pdsfs-wait"],
        &[(
            "Wait until everything is on the drive, then delete the originals",
            "pdsfs wait ~/Drive && rm -r ~/originals",
        )],
        SOCKET_FILES,
    ),
    (&["pdsfs-log"], &[("The last events of all mounts", "pdsfs log")], SOCKET_FILES),
    (
        &["pdsfs-serve"],
        &[(
            "Serve a drive with a browser login",
            "PDSFS_TOKEN=secret pdsfs serve --data ~/drive --client-id app",
        )],
        &[("DIR of --data", "The catalog and the files of the drives.")],
    ),
    (
        &["pdsfs-demo"],
        &[
            ("Mount a drive of this machine and watch it", "pdsfs demo"),
            ("Verify everything and exit", "pdsfs demo --once"),
        ],
        &[(
            "~/.local/share/pdsfs/demo",
            "The files of the demo drive. $XDG_DATA_HOME replaces ~/.local/share.",
        )],
    ),
    (
        &["pdsfs-completions"],
        &[(
            "Complete in bash, for this user",
            "pdsfs completions bash > ~/.local/share/bash-completion/completions/pdsfs",
        )],
        NO_FILES,
    ),
    (
        &["pdsfs-man"],
        &[("Read a page without a package", "pdsfs man /tmp/man && man /tmp/man/pdsfs.1")],
        NO_FILES,
    ),
    (
        &["mount.pdsfs"],
        &[
            ("A line of /etc/fstab", "photos  /mnt/photos  fuse.pdsfs  noauto,_netdev,allow_other  0 0"),
            ("Mount it", "mount /mnt/photos"),
            ("Refuse changes from now on", "mount -o remount,ro /mnt/photos"),
        ],
        &[
            ("/etc/fstab", "The lines of mounts."),
            ("/etc/pdsfs/config.toml", "The drives; see pdsfs.toml(5)."),
        ],
    ),
];

/// The page of the program itself.
const PROGRAM: (Entries, Entries) = (
    &[
        ("Try it without an account", "pdsfs demo"),
        ("Log in and mount", "pdsfs setup"),
        ("See what is being uploaded", "pdsfs status --watch"),
    ],
    MOUNT_FILES,
);

/// The notes of a page, by its name.
pub(super) fn of(page: &str) -> Notes {
    let row = PAGES.iter().find(|(names, ..)| names.contains(&page));
    let (examples, files) = row.map_or(PROGRAM, |(_, examples, files)| (*examples, *files));
    let variables = match page {
        "pdsfs-mount" | "pdsfs-login" | "pdsfs-drives" | "pdsfs-doctor" | "pdsfs-setup" | "pdsfs" => {
            SERVICE_VARIABLES
        }
        _ => LOG_VARIABLES,
    };
    let exit = match page {
        "pdsfs-mount" | "pdsfs-demo" => EXIT_MOUNT,
        "pdsfs-wait" | "pdsfs-umount" | "pdsfs" => EXIT_WAIT,
        "mount.pdsfs" => EXIT_HELPER,
        _ => EXIT,
    };
    Notes { examples, files, variables, exit }
}
