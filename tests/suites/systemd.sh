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
mkdir -p "$ROOTFS/mnt/cloud" "$units/cloud.service.d"
rm -rf "$ROOTFS/srv/drive" "$ROOTFS/var/cache/pdsfs"

# The drive, on the loopback of the container.
cat >"$units/pdsfs-drive.service" <<'EOF'
[Service]
Type=exec
Environment=PDSFS_TOKEN=token
ExecStart=/usr/bin/pdsfs serve --listen 127.0.0.1:9430 --data /srv/drive
EOF
cat >"$units/cloud.service.d/drive.conf" <<'EOF'
[Unit]
Wants=pdsfs-drive.service
After=pdsfs-drive.service
EOF
mkdir -p "$ROOTFS/etc/pdsfs"
cat >"$ROOTFS/etc/pdsfs/config.toml" <<'EOF'
[drives.cloud]
endpoint = "http://127.0.0.1:9430"
drive_id = "1"
token_file = "/etc/pdsfs/token"
mountpoint = "/mnt/cloud"
EOF
printf 'token' >"$ROOTFS/etc/pdsfs/token" && chmod 600 "$ROOTFS/etc/pdsfs/token"
# The shipped template as the instance "cloud".
sed 's/%i/cloud/g' "$here/../../systemd/pdsfs@.service" >"$work/cloud.service"

bash "$suite" "$work/cloud.service" "$pdsfs"
