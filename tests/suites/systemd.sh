#!/bin/bash
# Boots a real systemd in a container and drives the shipped unit in it: first a suite for FUSE units in
# general (start, kill -9, restart, stop, stop while busy, SIGTERM), then what only this unit promises.
#
#   SYSTEMD_SUITE=/path/to/systemd.sh tests/suites/systemd.sh
#
# As root; needs systemd-nspawn and mmdebstrap (packages systemd-container and mmdebstrap), and the network
# the first time, for the container's root. Builds nothing; `cargo build --release` first, or PDSFS=program.
set -u
here=$(dirname "$(readlink -f "$0")")
pdsfs=$(readlink -f "${PDSFS:-$here/../../target/release/pdsfs}")
suite=${SYSTEMD_SUITE:?set SYSTEMD_SUITE to the suite for FUSE units}
[ "$(id -u)" = 0 ] || { echo "systemd-nspawn needs root" >&2; exit 2; }
[ -x "$pdsfs" ] || { echo "$pdsfs is not there: cargo build --release" >&2; exit 2; }
export SUITES_ROOT=${SUITES_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/pdsfs-suites}
export ROOTFS=${ROOTFS:-$SUITES_ROOT/run/rootfs}
mkdir -p "$SUITES_ROOT/run" "$SUITES_ROOT/log"
if [ ! -x "$ROOTFS/usr/lib/systemd/systemd" ]; then
    sources=$(ls /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1)
    mmdebstrap --variant=minbase \
        --include=systemd,systemd-sysv,dbus,fuse3,procps,python3-minimal,ca-certificates \
        bookworm "$ROOTFS" "$sources" >"$SUITES_ROOT/log/mmdebstrap.log" 2>&1 \
        || { tail -5 "$SUITES_ROOT/log/mmdebstrap.log" >&2; exit 2; }
fi
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT || exit 2

units=$ROOTFS/etc/systemd/system
install -D -m 755 "$pdsfs" "$ROOTFS/usr/bin/pdsfs"
for library in $(ldd "$pdsfs" | grep -oE '/[^ ]+'); do
    [ -e "$ROOTFS$library" ] || install -D "$library" "$ROOTFS$library"
done
mkdir -p "$ROOTFS/mnt/cloud"
rm -rf "$ROOTFS/srv/drive" "$ROOTFS/srv/slow" "$ROOTFS/var/cache/pdsfs" "$units/pdsfs@.service.d"

# Drives on the loopback of the container: an ordinary one, and one behind a slow line.
cat >"$units/pdsfs-drive.service" <<'EOF'
[Service]
Type=exec
Environment=PDSFS_TOKEN=token
ExecStart=/usr/bin/pdsfs serve --listen 127.0.0.1:9430 --data /srv/drive
EOF
cat >"$units/pdsfs-slow.service" <<'EOF'
[Service]
Type=exec
Environment=PDSFS_TOKEN=token
ExecStart=/usr/bin/pdsfs serve --listen 127.0.0.1:9431 --data /srv/slow --faults /etc/pdsfs/slow.json
EOF
mkdir -p "$ROOTFS/etc/pdsfs"
printf '{"rules": [{"endpoint": "put_part", "action": {"throttle": {"bytes_per_s": 400000}}}]}' \
    >"$ROOTFS/etc/pdsfs/slow.json"
cat >"$ROOTFS/etc/pdsfs/config.toml" <<'EOF'
[defaults]
drive_id = "1"
token_file = "/etc/pdsfs/token"
[drives.cloud]
stall_timeout = "2s"
endpoint = "http://127.0.0.1:9430"
mountpoint = "/mnt/cloud"
[drives.slow]
endpoint = "http://127.0.0.1:9431"
mountpoint = "/mnt/slow"
EOF
printf 'token' >"$ROOTFS/etc/pdsfs/token" && chmod 600 "$ROOTFS/etc/pdsfs/token"
after() { # UNIT DRIVE
    mkdir -p "$units/$1.d"
    printf '[Unit]\nWants=%s\nAfter=%s\n' "$2" "$2" >"$units/$1.d/drive.conf"
}
after cloud.service pdsfs-drive.service
after pdsfs@cloud.service pdsfs-drive.service
after pdsfs@slow.service pdsfs-slow.service

template=$here/../../systemd/pdsfs@.service
install -m 644 "$template" "$units/pdsfs@.service"
# The shipped template as the instance "cloud", under the name that the suite knows.
sed 's/%i/cloud/g' "$template" >"$work/cloud.service"
bash "$suite" "$work/cloud.service" "$pdsfs"
suite_failed=$?

# What only this unit promises. Shorter times, so that it can be waited for.
mkdir -p "$units/pdsfs@.service.d"
printf '[Service]\nWatchdogSec=3s\nTimeoutStopSec=4s\n' >"$units/pdsfs@.service.d/quick.conf"
rm -f "$units/cloud.service" "$ROOTFS/result"
cat >"$ROOTFS/usr/local/bin/sdtest" <<'EOF'
#!/bin/bash
exec >/result 2>&1
n=0 ok=0
s() { n=$((n + 1)); local what=$1; shift; if "$@"; then ok=$((ok + 1)); echo "  ok $what"; else echo "  FAIL $what"; fi; }
prop() { systemctl show -p "$2" --value "pdsfs@$1"; }
soon() { for _ in $(seq 150); do "$@" && return 0; sleep .2; done; return 1; }
says() { prop "$1" StatusText | grep -q "$2"; }
is_back() { [ "$(prop cloud ActiveState)" = active ] && [ "$(prop cloud MainPID)" != "$1" ] && ls /mnt/cloud >/dev/null; }
ended() { [ "$(prop "$1" ActiveState)" = "$2" ] && [ "$(prop "$1" Result)" = "$3" ]; }
start() { systemctl start "pdsfs@$1" && mountpoint -q "/mnt/$1"; }
cd /
s start start cloud
s status soon says cloud 'nothing to save'
s seen_outside test "$(readlink "/proc/$(prop cloud MainPID)/ns/mnt")" = "$(readlink /proc/self/ns/mnt)"
s no_new_privileges grep -q '^NoNewPrivs:.*1' "/proc/$(prop cloud MainPID)/status"
p=$(prop cloud MainPID)
kill -STOP "$p"
s watchdog soon is_back "$p"
s watchdog_said grep -q 'Watchdog timeout' <(journalctl -u pdsfs@cloud --no-pager)
systemctl start pdsfs@none 2>/dev/null
s unknown_name_is_not_retried soon ended none failed exit-code
s and_code_2 test "$(prop none ExecMainStatus) $(prop none NRestarts)" = "2 0"
s slow_start start slow
exec 9>/mnt/slow/f
head -c 6000000 /dev/urandom >/tmp/f && cat /tmp/f >&9
s says_what_is_left soon says slow 'saving: 1 upload, .* left'
inhibits() { systemd-inhibit --list --no-legend --no-pager | grep -q 'pdsfs.*shutdown:sleep.*upload'; }
s machine_stays_awake soon inhibits
a=$(date +%s)
systemctl stop pdsfs@slow
s "longer_than_its_timeout ($(($(date +%s) - a)) s)" test $(($(date +%s) - a)) -gt 6
s drained ended slow inactive success
free() { ! inhibits; }
s and_may_sleep_again soon free
exec 9>&-
s again start slow
s saved cmp /tmp/f /mnt/slow/f
exec 9>/mnt/cloud/precious
head -c 3000000 /tmp/f >&9
systemctl stop pdsfs-drive
systemctl stop pdsfs@cloud
s lost_is_failure soon ended cloud failed exit-code
s lost_is_named grep -q 'not saved: /precious' <(journalctl -u pdsfs@cloud --no-pager)
s nothing_left_mounted bash -c '! grep -q " /mnt/cloud " /proc/mounts'
echo "PDSFS ok=$ok/$n"
journalctl -u 'pdsfs@*' --no-pager | tail -60
systemctl stop 'pdsfs@*'
poweroff
EOF
mkdir -p "$ROOTFS/mnt/slow"
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout -s KILL 300 systemd-nspawn -q -D "$ROOTFS" --register=no --keep-unit \
    --bind=/dev/fuse --private-network -b >"$SUITES_ROOT/log/nspawn-pdsfs.log" 2>&1 </dev/null
grep -E '^  (ok|FAIL) |^PDSFS' "$ROOTFS/result"
grep -q '^PDSFS ok=\([0-9]*\)/\1$' "$ROOTFS/result" || { sed -n '/^PDSFS/,$p' "$ROOTFS/result" >&2; exit 1; }
exit $suite_failed
