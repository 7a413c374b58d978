#!/bin/bash
# Installs the Debian packages with apt into a new root file system, uses them there as a new user (login, mount, copy,
# manual, extensions of file managers), and removes them again. Exits with 0 if every step works and nothing remains.
#
#   packaging/deb && tests/suites/deb.sh [PACKAGE]
#
# Needs root, mmdebstrap, python3 and /dev/fuse; runs lintian if it is installed. Works below a temporary directory only.
set -u
here=$(dirname "$(readlink -f "$0")")
package=${1:-$(ls -t "$here"/../../target/debian/pdsfs_*.deb 2>/dev/null | head -1)}
[ -f "$package" ] || { echo "no package; build one with packaging/deb" >&2; exit 2; }
[ "$(id -u)" = 0 ] && command -v mmdebstrap >/dev/null || { echo "needs root and mmdebstrap" >&2; exit 2; }
suite=${SUITE:-bookworm} work=$(mktemp -d)
root=$work/root
finish() {
    umount -l "$root/mnt/drive" "$root/home/ann/Drive" 2>/dev/null
    for pid in $(in_root); do kill "$pid" 2>/dev/null; done
    for dir in dev/fuse dev/null dev/urandom proc; do umount -l "$root/$dir" 2>/dev/null; done
    rm -rf --one-file-system "$work"
}
# Processes in the new root.
in_root() {
    local proc
    for proc in /proc/[0-9]*; do
        [ "$(readlink "$proc/root" 2>/dev/null)" = "$root" ] && echo "${proc#/proc/}"
    done
}
trap finish EXIT

# fuse3 and ca-certificates are not in this list: apt must install them with the package. The completions of fish and zsh need no shell.
mmdebstrap --variant=minbase --include=apt,man-db,bash-completion,systemd,adduser "$suite" "$root" \
    $(ls /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1) >"$work/log" 2>&1 ||
    { tail -5 "$work/log" >&2; exit 2; }
for dir in dev/fuse dev/null dev/urandom; do touch "$root/$dir"; mount --bind "/$dir" "$root/$dir" || exit 2; done
mount -t proc proc "$root/proc" || exit 2
desktop=$(ls -t "$(dirname "$package")"/pdsfs-desktop_*.deb 2>/dev/null | head -1)
[ -f "$desktop" ] || { echo "no package pdsfs-desktop beside it; build one with packaging/deb-desktop" >&2; exit 2; }
cp "$desktop" "$root/desktop.deb" && cp "$package" "$root/pdsfs.deb" && cp -L /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null
# apt uses the mirror and proxy settings of this machine.
apt-config dump Acquire >"$root/etc/apt/apt.conf.d/90suite"
proxies=$(env | grep -iE '^(http|https|no)_proxy=')
run() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root "$@"; }
apt() { run $proxies DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 "$@"; }
ann() { run setpriv --reuid 1000 --regid 1000 --clear-groups env HOME=/home/ann "$@"; }

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
not() { ! "$@"; }
files() { (cd "$root" && find etc usr lib var -xdev ! -path 'var/lib/dpkg/*' ! -path 'var/lib/apt/*' ! -path 'var/cache/*' ! -path 'var/log/*' | sort); }
# The maintainer has no mail address, and the package was never uploaded.
irrelevant_tags=bogus-mail-host,bogus-mail-host-in-debian-changelog,initial-upload-closes-no-bugs
command -v lintian >/dev/null &&
    step lintian lintian --allow-root --fail-on error,warning --suppress-tags $irrelevant_tags --tag-display-limit 0 "$package" "$desktop"

run useradd -m -s /bin/bash -u 1000 ann
files >"$work/before"
step 'apt update' apt update
step 'apt install' apt install /pdsfs.deb
step 'fuse3 is installed too' run fusermount3 --version
step 'root certificates are installed too' run test -s /etc/ssl/certs/ca-certificates.crt
step version run pdsfs --version
step 'man pages' run bash -c 'for page in $(cd /usr/share/man && ls man?/*pdsfs* | sed "s,.*/,,;s,\.gz$,,"); do
    man -w "${page%.*}" >/dev/null && [ "$(man "${page%.*}" 2>/dev/null | wc -l)" -gt 10 ] || { echo "$page"; exit 1; }; done
    for page in pdsfs pdsfs-mount pdsfs-umount pdsfs-config pdsfs-login pdsfs-status pdsfs.toml mount.pdsfs; do
    man -w $page >/dev/null || exit 1; done; man pdsfs-mount | grep -q -- --part-size'
step 'no man page is malformed' run bash -c 'for page in /usr/share/man/man?/*pdsfs*; do
    warnings=$(man --warnings -l "$page" 2>&1 >/dev/null); [ -z "$warnings" ] || { echo "$page: $warnings"; exit 1; }; done'
step 'bash completions' run bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader pdsfs; complete -p pdsfs &&
    COMP_WORDS=(pdsfs mo) COMP_CWORD=1; _pdsfs pdsfs mo pdsfs; [ "${COMPREPLY[*]}" = mount ]'
step 'zsh and fish completions' run bash -c 'head -1 /usr/share/zsh/vendor-completions/_pdsfs | grep -qx "#compdef pdsfs" &&
    grep -q "complete -c pdsfs" /usr/share/fish/vendor_completions.d/pdsfs.fish'
step units run systemd-analyze verify /usr/lib/systemd/system/pdsfs@.service
step 'unit of the user' run env XDG_RUNTIME_DIR=/tmp systemd-analyze --user verify --man=no /usr/lib/systemd/user/pdsfs@.service
step 'example configuration' run bash -c 'mkdir -p /etc/pdsfs && pdsfs config example >/tmp/c.toml && pdsfs --version &&
    cmp /tmp/c.toml /usr/share/doc/pdsfs/examples/config.toml'

mkdir -p "$root/mnt/drive"
chroot "$root" env -i PATH=/usr/bin PDSFS_TOKEN=secret pdsfs serve --listen 127.0.0.1:0 --data /srv/drive --drives 2 \
    --client-id app >"$work/ready" 2>&1 &
for _ in $(seq 100); do endpoint=$(grep -om1 'http://[0-9.:]*' "$work/ready") && break; sleep 0.1; done
endpoint=${endpoint:-}

# An ordinary user logs in, lists the drives, and mounts one by its name.
paste() {
    local pid line
    coproc browser { ann pdsfs login --endpoint "$endpoint" --client-id app --paste 2>&1; }
    pid=$browser_PID
    while read -r line <&"${browser[0]}"; do
        echo "$line"
        case $line in *oauth/authorize*) python3 "$here/consent.py" "$line" >&"${browser[1]}" && break ;; esac
    done
    wait "$pid"
}
step 'a user logs in' paste
step 'the account file is private' test "$(stat -c '%a %u' "$root/home/ann/.local/state/pdsfs/accounts/default.json")" = '600 1000'
step 'drives' ann bash -c 'pdsfs drives | grep -q "^\* *1" && pdsfs drives --json | grep -q drive_id'
step 'mount of a user' ann bash -c 'mkdir ~/Drive && pdsfs mount --background default ~/Drive && echo hello >~/Drive/note'
step 'status' ann bash -c 'pdsfs status | grep -q Drive && pdsfs wait --timeout 20s'
step 'other users have no access' not run ls /home/ann/Drive
step 'umount of a user' ann bash -c 'pdsfs umount ~/Drive && [ -z "$(ls ~/Drive)" ]'

# Root, with a token.
(umask 077; echo secret >"$root/etc/pdsfs/token")
cat >"$root/etc/pdsfs/config.toml" <<END
[drives.drive]
endpoint = "$endpoint"
drive_id = 1
token_file = "/etc/pdsfs/token"
mountpoint = "/mnt/drive"
END
step 'config check' run pdsfs config check
step 'mount -t fuse.pdsfs' run mount -t fuse.pdsfs drive /mnt/drive -o umask=077
step "the user's file" run grep -qx hello /mnt/drive/note
step 'a file' run bash -c 'head -c 20000000 /dev/urandom >/tmp/f && cp /tmp/f /mnt/drive/f && cmp /tmp/f /mnt/drive/f'
step umount run umount /mnt/drive
echo 'drive /mnt/drive fuse.pdsfs noauto,_netdev,ro 0 0' >"$root/etc/fstab"
step 'fstab' run bash -c 'mount /mnt/drive && cmp /tmp/f /mnt/drive/f && ! touch /mnt/drive/g 2>/dev/null && umount /mnt/drive'
step 'mount by name' run bash -c 'pdsfs mount --background drive && cmp /tmp/f /mnt/drive/f && pdsfs umount /mnt/drive'
step 'demo without interaction' ann bash -c 'cd && pdsfs demo --once && [ ! -e pdsfs-demo ]'

step 'mount without HOME, as at boot' run env -u HOME bash -c 'mount /mnt/drive && [ -d /var/cache/pdsfs ] && umount /mnt/drive'
step 'a login of root' run bash -c "echo secret | pdsfs login system --endpoint $endpoint --token && [ -d /var/lib/pdsfs ]"

step 'apt install of the desktop package' apt --no-install-recommends install /desktop.deb
step 'the extensions have what they load' run bash -c 'for manager in nautilus nemo caja; do
    [ -s /usr/share/$manager-python/extensions/pdsfs.py ] || exit 1; done
    [ -s /usr/share/kio/servicemenus/pdsfs.desktop ] && [ -s /usr/share/icons/hicolor/scalable/apps/pdsfs.svg ]'
step 'their worker starts' ann bash -c 'python3 /usr/share/pdsfs-desktop/pdsfs_desktop/worker.py </dev/null'
step 'the application entry reports that nothing is mounted' not ann /usr/share/pdsfs-desktop/open-drive
step 'removal of the desktop package' apt --autoremove purge pdsfs-desktop
step 'no file of the desktop package remains' not run bash -c 'ls -d /usr/share/*-python /usr/share/pdsfs-desktop 2>/dev/null | grep .'

find "$root/etc/pdsfs" "$root/home/ann" -type f -exec sha256sum {} + | sort >"$work/kept"
step remove apt remove pdsfs
step 'the program is removed' not run bash -c 'command -v pdsfs || ls /usr/share/man/man?/*pdsfs* /usr/lib/systemd/*/pdsfs* /usr/sbin/mount*pdsfs'
kept() { find "$root/etc/pdsfs" "$root/home/ann" -type f -exec sha256sum {} + | sort | diff "$work/kept" -; }
step 'configurations and accounts are kept' kept
step 'install again' apt install /pdsfs.deb
step 'the login still works' ann pdsfs drives
step purge apt purge pdsfs
step 'purge keeps configurations and accounts' kept
step 'purge removes the state of root and services' not run bash -c 'ls -d /var/lib/pdsfs /var/cache/pdsfs 2>/dev/null | grep .'
rm -rf "$root/etc/pdsfs"
# apt itself recommends ca-certificates.
step autoremove apt autoremove --purge -o APT::AutoRemove::RecommendsImportant=false
files >"$work/after"
step 'no file remains' diff "$work/before" "$work/after"
echo "DEB ok=$passed/$steps size=$(stat -c %s "$package")"
[ "$passed" = "$steps" ]
