#!/bin/bash
# The life of the Debian package on a machine of its own: a new root file system boots systemd in a container, apt
# installs the package there, root logs in to a drive that is served over TLS, and the drive is mounted by its unit,
# also after a boot; then an upgrade, a removal and a purge while it is mounted. Exits with 0 if every step works.
#
#   packaging/deb && tests/suites/package.sh [PACKAGE]
#
# Needs root, systemd-nspawn and mmdebstrap (packages systemd-container and mmdebstrap), openssl, dpkg-deb and
# /dev/fuse. Works below a temporary directory only.
set -u
here=$(dirname "$(readlink -f "$0")")
package=${1:-$(ls -t "$here"/../../target/debian/pdsfs_*.deb 2>/dev/null | head -1)}
[ -f "$package" ] || { echo "no package; build one with packaging/deb" >&2; exit 2; }
for tool in mmdebstrap systemd-nspawn openssl dpkg-deb; do
    command -v "$tool" >/dev/null || { echo "$tool is missing" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "systemd-nspawn needs root" >&2; exit 2; }
work=$(mktemp -d) || exit 2
root=$work/root
trap 'rm -rf --one-file-system "$work"' EXIT

# fuse3 and ca-certificates are not in this list: apt must install them with the package.
sources=$(ls /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1)
mmdebstrap --variant=minbase --include=apt,systemd,systemd-sysv,dbus,procps "${SUITE:-bookworm}" "$root" "$sources" \
    >"$work/log" 2>&1 || { tail -5 "$work/log" >&2; exit 2; }

# The package, and the same one with a later version.
cp "$package" "$root/pdsfs-1.deb"
dpkg-deb -R "$package" "$work/later" && sed -i 's/^Version: .*/&+later/' "$work/later/DEBIAN/control" &&
    dpkg-deb --root-owner-group -b "$work/later" "$root/pdsfs-2.deb" >/dev/null || exit 2
install -m 755 "$work/later/usr/bin/pdsfs" "$root/usr/local/bin/drive"
# The container has no network. apt fetches what the package depends on with the settings of this machine.
apt-config dump Acquire >"$root/etc/apt/apt.conf.d/90suite"
cp -L /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null
proxies=$(env | grep -iE '^(http|https|no)_proxy=')
apt() { chroot "$root" env -i $proxies PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive apt-get -qq -y "$@"; }
# A mirror with https has brought CA certificates into the root; the package must bring them itself.
{
    apt update && apt --download-only install /pdsfs-1.deb && apt --download-only --reinstall install ca-certificates &&
        chroot "$root" dpkg --purge ca-certificates && rm -rf "$root/etc/ssl/certs"
} >"$work/log" 2>&1 || { tail -5 "$work/log" >&2; exit 2; }

# A certification authority, and the certificate of drive.test, which is the container itself.
certificate() { # NAME OPTION...
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/$1.key" -subj "/CN=$1" -x509 -days 2 \
        -out "$work/$1.crt" "${@:2}" 2>>"$work/log" || { tail -5 "$work/log" >&2; exit 2; }
}
certificate authority -addext basicConstraints=critical,CA:TRUE
certificate drive.test -CA "$work/authority.crt" -CAkey "$work/authority.key" -addext subjectAltName=DNS:drive.test \
    -addext basicConstraints=critical,CA:FALSE
install -D -m 644 "$work/authority.crt" "$root/usr/local/share/ca-certificates/authority.crt"
install -D -m 644 "$work/drive.test.crt" "$root/etc/drive/drive.crt"
install -D -m 600 "$work/drive.test.key" "$root/etc/drive/drive.key"
echo '127.0.0.1 localhost drive.test' >"$root/etc/hosts"
units=$root/etc/systemd/system
cat >"$units/drive.service" <<'END'
[Service]
Type=exec
Environment=PDSFS_TOKEN=secret
ExecStart=/usr/local/bin/drive serve --data /srv/drive --listen 127.0.0.1:8443 --tls-cert /etc/drive/drive.crt \
    --tls-key /etc/drive/drive.key --public-url https://drive.test:8443
ExecStartPost=/bin/bash -c 'until (exec 3<>/dev/tcp/127.0.0.1/8443); do sleep .1; done'
END
mkdir -p "$units/pdsfs@.service.d" "$units/multi-user.target.wants" "$root/mnt/drive" "$root/etc/pdsfs"
printf '[Unit]\nWants=drive.service\nAfter=drive.service\n' >"$units/pdsfs@.service.d/drive.conf"
printf '[drives.drive]\naccount = "drive"\nmountpoint = "/mnt/drive"\nmetadata_ttl = "0s"\n' >"$root/etc/pdsfs/config.toml"
install -D -m 644 "$here/systemd/checks.sh" "$root/usr/local/lib/checks.sh"
cat >"$units/sdtest.service" <<'END'
[Unit]
After=basic.target
[Service]
ExecStart=/usr/local/bin/sdtest
END
ln -s ../sdtest.service "$units/multi-user.target.wants/sdtest.service"

failed=0
boot() { # SCRIPT LABEL
    rm -f "$root/result"
    install -m 755 "$here/package/$1.sh" "$root/usr/local/bin/sdtest"
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout -k 20 240 systemd-nspawn -q -D "$root" --register=no --keep-unit \
        --bind=/dev/fuse --private-network -b >"$work/nspawn.log" 2>&1 </dev/null
    grep -E "^  (ok|FAIL) |^$2" "$root/result"
    grep -q "^$2 ok=\([0-9]*\)/\1\$" "$root/result" && return
    failed=1
    grep -vE '^  ok ' "$root/result" >&2
}
boot install INSTALLED
boot upgrade UPGRADED
exit $failed
