#!/bin/bash
# Boots a real systemd in a container and tests the shipped units: a general suite for FUSE units (start, kill -9,
# restart, stop, stop while busy, SIGTERM), the system unit (systemd/unit.sh), typical use (systemd/usage.sh:
# credentials, a user's unit, fstab), and a boot of the machine (systemd/boot.sh).
#
#   SYSTEMD_SUITE=/path/to/systemd.sh tests/suites/systemd.sh
#
# Needs root, systemd-nspawn and mmdebstrap (packages systemd-container and mmdebstrap) and python3. The first run
# downloads the root of the container. Builds nothing: run `cargo build --release` first, or set PDSFS to a binary.
set -u
here=$(dirname "$(readlink -f "$0")")
pdsfs=$(readlink -f "${PDSFS:-$here/../../target/release/pdsfs}")
suite=${SYSTEMD_SUITE:?set SYSTEMD_SUITE to the suite for FUSE units}
[ "$(id -u)" = 0 ] || { echo "systemd-nspawn needs root" >&2; exit 2; }
[ -x "$pdsfs" ] || { echo "no $pdsfs: run cargo build --release" >&2; exit 2; }
export SUITES_ROOT=${SUITES_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/pdsfs-suites}
export ROOTFS=${ROOTFS:-$SUITES_ROOT/run/rootfs-polkit}
mkdir -p "$SUITES_ROOT/run" "$SUITES_ROOT/log"
if [ ! -x "$ROOTFS/usr/lib/systemd/systemd" ]; then
    sources=$(ls /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1)
    packages=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,polkitd,fuse3,procps,python3-minimal
    mmdebstrap --variant=minbase --include=$packages bookworm "$ROOTFS" "$sources" \
        >"$SUITES_ROOT/log/mmdebstrap.log" 2>&1 || { tail -5 "$SUITES_ROOT/log/mmdebstrap.log" >&2; exit 2; }
fi
work=$(mktemp -d) || exit 2
server=
finish() {
    [ -n "$server" ] && { kill "$server"; wait "$server" 2>/dev/null; }
    rm -rf "$work"
}
trap finish EXIT

units=$ROOTFS/etc/systemd/system
install -D -m 755 "$pdsfs" "$ROOTFS/usr/bin/pdsfs"
ln -sf ../bin/pdsfs "$ROOTFS/usr/sbin/mount.fuse.pdsfs"
for library in $(ldd "$pdsfs" | grep -oE '/[^ ]+'); do
    [ -e "$ROOTFS$library" ] || install -D "$library" "$ROOTFS$library"
done
# Leftovers of an earlier run.
for left in mnt srv/drive srv/slow var/log/journal var/cache/pdsfs var/lib/pdsfs home/ann home/ben etc/credstore etc/credstore.encrypted \
    var/lib/systemd/linger/ann etc/systemd/system/multi-user.target.wants/pdsfs@cloud.service \
    etc/systemd/system/pdsfs@.service.d; do
    rm -rf "${ROOTFS:?}/$left"
done
for name in cloud slow token key sealed rotated spent tab auto boot; do mkdir -p "$ROOTFS/mnt/$name"; done
for name in ann:1000 ben:1001; do
    id=${name#*:} name=${name%:*}
    chroot "$ROOTFS" userdel "$name" 2>/dev/null
    chroot "$ROOTFS" useradd -m -s /bin/bash -u "$id" "$name" || exit 2
    # The mount must keep other users out, not the directory above it.
    chmod 755 "$ROOTFS/home/$name"
done

# Drives on the loopback of the container: an ordinary one, and one behind a slow line. The ordinary one also runs here
# first, for the logins.
mkfifo "$work/ready"
serve() { # ROOT
    echo serve --data "$1/srv/drive" --service-app "svc=$1/etc/pdsfs/service-app.pem" --client-id app --access-key-id AKID \
        --token-ttl 15s
}
mkdir -p "$ROOTFS/etc/pdsfs"
cp "$here/../fixtures/service-app/public.pem" "$ROOTFS/etc/pdsfs/service-app.pem"
printf '%s\n' PDSFS_TOKEN=owner-token PDSFS_SERVE_ACCESS_KEY_SECRET=access-key-secret >"$ROOTFS/etc/pdsfs/drive.env"
(set -a && . "$ROOTFS/etc/pdsfs/drive.env" && exec "$pdsfs" $(serve "$ROOTFS") --listen 127.0.0.1:0) \
    >"$work/ready" 2>"$work/serve.log" &
server=$!
endpoint=$(timeout 20 grep -om1 'http://[0-9.:]*' "$work/ready")
[ -n "$endpoint" ] || { echo "the drive does not start:" >&2; cat "$work/serve.log" >&2; exit 2; }
export STATE_DIRECTORY=$work/state
unset PDSFS_TOKEN PDSFS_ENDPOINT PDSFS_ACCOUNT
login() { # NAME OPTION...
    "$pdsfs" login "$1" --store file --endpoint "$endpoint" "${@:2}" >"$work/login.log" 2>&1 ||
        { cat "$work/login.log" >&2; exit 2; }
}
by_browser() { # NAME
    local pid
    coproc browser { exec "$pdsfs" login "$1" --store file --endpoint "$endpoint" --client-id app --paste 2>&1; }
    pid=$browser_PID
    while read -r line <&"${browser[0]}"; do
        case $line in *oauth/authorize*) python3 "$here/consent.py" "$line" >&"${browser[1]}" && break ;; esac
    done
    wait "$pid" || { echo "the login of $1 fails" >&2; exit 2; }
}
install -m 600 "$here/../fixtures/service-app/key.pem" "$work/key.pem"
PDSFS_ACCESS_KEY_SECRET=access-key-secret login key --access-key AKID --drive-id 1
login sealed --jwt-key "$work/key.pem" --client-id svc --domain-id bj1 --drive-id 1
by_browser rotated
by_browser rotated-2
kill "$server" && wait "$server" 2>/dev/null
server=

accounts=$STATE_DIRECTORY/accounts
install -d -m 700 "$ROOTFS/etc/credstore" "$ROOTFS/etc/credstore.encrypted"
printf 'owner-token\n' >"$ROOTFS/etc/credstore/pdsfs.token"
cp "$accounts/key.json" "$ROOTFS/etc/credstore/pdsfs.key"
cp "$accounts/rotated.json" "$ROOTFS/etc/credstore/pdsfs.rotated"
sed -E 's/("(access|refresh)_token": *)"[^"]*"/\1"spent"/' "$accounts/rotated.json" >"$ROOTFS/etc/credstore/pdsfs.spent"
chmod 600 "$ROOTFS/etc/credstore/"*
install -m 600 "$accounts/sealed.json" "$ROOTFS/root/sealed"
install -m 600 "$accounts/rotated-2.json" "$ROOTFS/root/rotated-2"
{
    printf '%s\n' owner-token access-key-secret
    sed -n 's/.*"\(access\|refresh\)_token": *"\([^"]*\)".*/\2/p' "$accounts/"*.json
    sed -n 3p "$work/key.pem"
} >"$ROOTFS/root/secrets"

cat >"$units/pdsfs-drive.service" <<END
[Service]
Type=exec
EnvironmentFile=/etc/pdsfs/drive.env
ExecStart=/usr/bin/pdsfs $(serve "") --listen ${endpoint#http://}
ExecStartPost=/bin/bash -c 'until (exec 3<>/dev/tcp/127.0.0.1/${endpoint##*:}); do sleep .1; done'
END
cat >"$units/pdsfs-slow.service" <<'END'
[Service]
Type=exec
Environment=PDSFS_TOKEN=token
ExecStart=/usr/bin/pdsfs serve --listen 127.0.0.1:9431 --data /srv/slow --faults /etc/pdsfs/slow.json
END
printf '{"rules": [{"endpoint": "put_part", "action": {"throttle": {"bytes_per_s": 400000}}}]}' \
    >"$ROOTFS/etc/pdsfs/slow.json"
configuration() {
    cat <<END
[defaults]
metadata_ttl = "0s"
drive_id = "1"
[drives.cloud]
stall_timeout = "2s"
endpoint = "$endpoint"
token_file = "/etc/pdsfs/token"
mountpoint = "/mnt/cloud"
[drives.slow]
endpoint = "http://127.0.0.1:9431"
token_file = "/etc/pdsfs/slow-token"
mountpoint = "/mnt/slow"
[drives.tab]
endpoint = "$endpoint"
token_file = "/etc/pdsfs/token"
[drives.token]
endpoint = "$endpoint"
mountpoint = "/mnt/token"
END
    for name in key sealed rotated spent; do printf '[drives.%s]\nmountpoint = "/mnt/%s"\n' $name $name; done
}
configuration >"$ROOTFS/etc/pdsfs/config.toml"
printf 'owner-token' >"$ROOTFS/etc/pdsfs/token" && printf 'token' >"$ROOTFS/etc/pdsfs/slow-token"
chmod 600 "$ROOTFS/etc/pdsfs/"*token
cat >"$ROOTFS/etc/fstab" <<'END'
tab   /mnt/tab   fuse.pdsfs  noauto,_netdev,allow_other,umask=022  0 0
tab   /mnt/auto  fuse.pdsfs  noauto,x-systemd.automount,_netdev    0 0
tab:/ /mnt/boot  fuse.pdsfs  _netdev,ro,x-systemd.requires=pdsfs-drive.service,x-systemd.after=pdsfs-drive.service  0 0
END
after() { # UNIT DRIVE
    mkdir -p "$units/$1.d"
    printf '[Unit]\nWants=%s\nAfter=%s\n' "$2" "$2" >"$units/$1.d/drive.conf"
}
for name in cloud pdsfs@cloud pdsfs@token mnt-tab.mount mnt-auto.mount user@1000; do
    case $name in *.mount) ;; *) name+=.service ;; esac
    after "$name" pdsfs-drive.service
done
after pdsfs@slow.service pdsfs-slow.service
# The drop-ins that the comments of the units describe.
given() { # NAME LINE
    mkdir -p "$units/pdsfs@$1.service.d"
    printf '[Service]\n%s\n' "$2" >"$units/pdsfs@$1.service.d/credential.conf"
}
for name in token key rotated spent; do given $name 'LoadCredential=pdsfs.%i:/etc/credstore/pdsfs.%i'; done
given sealed 'LoadCredentialEncrypted=pdsfs.%i:/etc/credstore.encrypted/pdsfs.%i'

# A user with her own configuration and secret.
mkdir -p "$ROOTFS/home/ann/.config/pdsfs" "$ROOTFS/home/ann/.config/systemd/user/pdsfs@home.service.d" \
    "$ROOTFS/home/ann/Drive"
printf '[drives.home]\nendpoint = "%s"\ndrive_id = "1"\nmountpoint = "~/Drive"\nmetadata_ttl = "0s"\n' "$endpoint" \
    >"$ROOTFS/home/ann/.config/pdsfs/config.toml"
(umask 077; printf 'owner-token\n' >"$ROOTFS/home/ann/.config/pdsfs/pdsfs.home")
printf '[Service]\nLoadCredential=pdsfs.%%i:%%h/.config/pdsfs/pdsfs.%%i\n' \
    >"$ROOTFS/home/ann/.config/systemd/user/pdsfs@home.service.d/override.conf"
chown -R 1000:1000 "$ROOTFS/home/ann"
install -D -m 644 "$here/../../systemd/user/pdsfs@.service" "$ROOTFS/usr/lib/systemd/user/pdsfs@.service"
install -D -m 644 "$here/systemd/checks.sh" "$ROOTFS/usr/local/lib/checks.sh"

template=$here/../../systemd/pdsfs@.service
install -m 644 "$template" "$here/../../systemd/pdsfs-broker.socket" "$here/../../systemd/pdsfs-broker@.service" "$units/"
system=$here/../../packaging/system
install -D -m 644 "$system/sysusers.conf" "$ROOTFS/usr/lib/sysusers.d/pdsfs.conf"
install -D -m 644 "$system/tmpfiles.conf" "$ROOTFS/usr/lib/tmpfiles.d/pdsfs.conf"
install -D -m 644 "$system/polkit.rules" "$ROOTFS/usr/share/polkit-1/rules.d/50-pdsfs.rules"
chroot "$ROOTFS" systemd-sysusers pdsfs.conf || exit 2
# As postinst does.
chroot "$ROOTFS" chgrp pdsfs /etc/pdsfs/token /etc/pdsfs/slow-token && chmod 640 "$ROOTFS/etc/pdsfs/"*token
# The shipped template as the instance "cloud", under the name that the general suite expects.
sed 's/%i/cloud/g' "$template" >"$work/cloud.service"
mkdir -p "$units/pdsfs-broker@.service.d"
printf '[Service]\nExecStart=\nExecStart=/usr/bin/pdsfs broker --config /etc/pdsfs/config.toml --peer-unit ""\n' \
    >"$units/pdsfs-broker@.service.d/name.conf"
failed=0
[ -n "${ONLY:-}" ] || bash "$suite" "$work/cloud.service" "$pdsfs" || failed=1
rm -rf "$units/cloud.service" "$units/pdsfs-broker@.service.d"

boot() { # SCRIPT LABEL
    [[ -z "${ONLY:-}" || " $ONLY " = *" $1 "* ]] || return
    rm -f "$ROOTFS/result"
    install -m 755 "$here/systemd/$1.sh" "$ROOTFS/usr/local/bin/sdtest"
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout -k 20 240 systemd-nspawn -q -D "$ROOTFS" --register=no --keep-unit \
        --bind=/dev/fuse $([ -e /dev/autofs ] && echo --bind=/dev/autofs) --private-network -b \
        >"$SUITES_ROOT/log/nspawn-$1.log" 2>&1 </dev/null
    cp "$ROOTFS/result" "$SUITES_ROOT/log/$1.log"
    grep -E "^  (ok|FAIL|--) |^$2|verall exposure" "$ROOTFS/result"
    grep -q "^$2 ok=\([0-9]*\)/\1\$" "$ROOTFS/result" && return
    failed=1
    sed -n "/^$2/,\$p" "$ROOTFS/result" >&2
}
if [ -n "${ONLY:-}" ]; then
    install -D -m 644 /dev/stdin "$units/sdtest.service" <<'END'
[Unit]
After=basic.target
[Service]
ExecStart=/usr/local/bin/sdtest
END
    mkdir -p "$units/multi-user.target.wants" && ln -sf ../sdtest.service "$units/multi-user.target.wants/sdtest.service"
fi
# Shorter timeouts for the tests.
mkdir -p "$units/pdsfs@.service.d"
printf '[Service]\nWatchdogSec=3s\nTimeoutStopSec=4s\n' >"$units/pdsfs@.service.d/quick.conf"
boot unit PDSFS
rm "$units/pdsfs@.service.d/quick.conf"
boot usage USAGE
boot boot BOOT
exit $failed
