#!/bin/bash
# Installs the Debian package into a new root file system, uses it there as a new user would, and removes it
# again: exit 0 where every step works and nothing is left.
#
#   packaging/deb && tests/suites/deb.sh [PACKAGE]
#
# As root, with mmdebstrap and /dev/fuse. Everything happens below a temporary folder.
set -u
here=$(dirname "$(readlink -f "$0")")
package=${1:-$(ls -t "$here"/../../target/debian/pdsfs_*.deb 2>/dev/null | head -1)}
[ -f "$package" ] || { echo "no package; build one with packaging/deb" >&2; exit 2; }
[ "$(id -u)" = 0 ] && command -v mmdebstrap >/dev/null || { echo "needs root and mmdebstrap" >&2; exit 2; }
suite=${SUITE:-bookworm} work=$(mktemp -d)
root=$work/root
finish() {
    umount -l "$root/mnt/drive" 2>/dev/null
    for pid in $(in_root); do kill "$pid" 2>/dev/null; done
    for dir in dev/fuse dev/null dev/urandom proc; do umount -l "$root/$dir" 2>/dev/null; done
    rm -rf --one-file-system "$work"
}
# Processes whose root is the new one.
in_root() {
    local proc
    for proc in /proc/[0-9]*; do
        [ "$(readlink "$proc/root" 2>/dev/null)" = "$root" ] && echo "${proc#/proc/}"
    done
}
trap finish EXIT

mmdebstrap --variant=minbase --include=fuse3,man-db,bash-completion,systemd,ca-certificates "$suite" "$root" \
    $(ls /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1) >"$work/log" 2>&1 ||
    { tail -5 "$work/log" >&2; exit 2; }
for dir in dev/fuse dev/null dev/urandom; do touch "$root/$dir"; mount --bind "/$dir" "$root/$dir" || exit 2; done
mount -t proc proc "$root/proc" || exit 2
cp "$package" "$root/pdsfs.deb"
run() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$@"; }

steps=0 passed=0
step() {
    local name=$1
    shift
    steps=$((steps + 1))
    if "$@" >"$work/out" 2>&1; then
        passed=$((passed + 1)) && echo "  ok   $name"
    else
        echo "  FAIL $name" && sed 's/^/       /' "$work/out" | tail -8
    fi
}
files() { (cd "$root" && find etc usr lib var -xdev ! -path 'var/lib/dpkg/*' ! -path 'var/cache/*' ! -path 'var/log/*' | sort); }

files >"$work/before"
step install run dpkg -i /pdsfs.deb
step version run pdsfs --version
step 'man pages' run bash -c 'for page in pdsfs pdsfs-mount pdsfs-umount pdsfs-config pdsfs-login pdsfs-status pdsfs.toml mount.pdsfs; do
    man -w $page >/dev/null || exit 1; done; man pdsfs-mount | grep -q -- --part-size'
step completions run bash -c '. /usr/share/bash-completion/bash_completion; . /usr/share/bash-completion/completions/pdsfs; complete -p pdsfs'
step units run systemd-analyze verify --man=no /usr/lib/systemd/system/pdsfs@.service
step 'example configuration' run bash -c 'mkdir -p /etc/pdsfs && pdsfs config example >/tmp/c.toml && pdsfs --version &&
    cmp /tmp/c.toml /usr/share/doc/pdsfs/examples/config.toml'

mkdir -p "$root/mnt/drive"
chroot "$root" env -i PATH=/usr/bin PDSFS_TOKEN=secret pdsfs serve --listen 127.0.0.1:0 --data /srv/drive >"$work/address" 2>&1 &
for _ in $(seq 100); do address=$(grep -om1 'http://[0-9.:]*' "$work/address") && break; sleep 0.1; done
(umask 077; echo secret >"$root/etc/pdsfs/token")
cat >"$root/etc/pdsfs/config.toml" <<EOF
[drives.drive]
endpoint = "${address:-}"
drive_id = 1
token_file = "/etc/pdsfs/token"
mountpoint = "/mnt/drive"
EOF
step 'config check' run pdsfs config check
step 'mount -t fuse.pdsfs' run mount -t fuse.pdsfs drive /mnt/drive -o umask=077
step 'a file' run bash -c 'head -c 20000000 /dev/urandom >/tmp/f && cp /tmp/f /mnt/drive/f && cmp /tmp/f /mnt/drive/f'
step umount run umount /mnt/drive
echo 'drive /mnt/drive fuse.pdsfs noauto,_netdev,ro 0 0' >"$root/etc/fstab"
step 'fstab' run bash -c 'mount /mnt/drive && cmp /tmp/f /mnt/drive/f && ! touch /mnt/drive/g 2>/dev/null && umount /mnt/drive'
step 'mount by name' run bash -c 'pdsfs mount --background drive && cmp /tmp/f /mnt/drive/f && pdsfs umount /mnt/drive'
rm -rf "$root/etc/pdsfs" "$root/srv/drive"
step purge run dpkg --purge pdsfs
files >"$work/after"
step 'nothing left' diff "$work/before" "$work/after"
echo "DEB ok=$passed/$steps size=$(stat -c %s "$package")"
[ "$passed" = "$steps" ]
