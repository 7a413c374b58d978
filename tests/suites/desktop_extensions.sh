#!/bin/bash
# Tests the package pdsfs-desktop in real file managers on a mount, under Xvfb: the extension is loaded, the emblems of a
# saved, a failed and an open file are drawn, an emblem changes at the commit, and an entry of the context menu runs its
# command. GVfs names the mount in the sidebar by .xdg-volume-info. Prints a line per case. Exits with 0 if all cases pass.
#
#   packaging/deb-desktop && tests/suites/desktop_extensions.sh [MANAGER...]      managers: nautilus nemo caja
#
# Needs the built program (PDSFS=..., default target/release/pdsfs), and: xvfb openbox xdotool xclip imagemagick
# tesseract-ocr desktop-file-utils dbus librsvg2-common adwaita-icon-theme, and per manager nautilus python3-nautilus
# gir1.2-gtk-4.0, nemo nemo-python, caja python3-caja; for the sidebar udisks2, gvfs and libglib2.0-bin.
# SHOTS=directory keeps the screenshots. Works below a temporary directory only.
set -u
here=$(dirname "$(readlink -f "$0")")
export PDSFS=${PDSFS:-$here/../../target/release/pdsfs}
PDSFS=$(readlink -f "$PDSFS")
package=$(ls -t "$here"/../../target/debian/pdsfs-desktop_*.deb 2>/dev/null | head -1)
[ -f "$package" ] || { echo "no package; build one with packaging/deb-desktop" >&2; exit 2; }
for tool in "$PDSFS" Xvfb xvfb-run openbox xdotool xclip import convert tesseract dbus-run-session desktop-file-validate; do
    command -v "$tool" >/dev/null || { echo "$tool is missing" >&2; exit 2; }
done

if [ -z "${PDSFS_IN_XVFB:-}" ]; then
    export PDSFS_IN_XVFB=1
    exec xvfb-run -a -s '-screen 0 1280x1024x24' dbus-run-session -- "$0" "$@" 2> >(grep -v '^$\|WARNING \*\*\|dbus-daemon' >&2)
fi

managers=${*:-nautilus nemo caja}
# File managers show only mounts below the home directory.
work=$(mktemp -d) && drive=$work/home/Drive && mkdir -p "$work"/{data,run,package} "$drive" || exit 2
chmod 700 "$work/run"
shots=${SHOTS:-$work/shots}
mkdir -p "$shots"
server= mount= shown= windows= bus= udisks=
finish() {
    exec 3>&- 4>&-
    for process in $shown $windows $mount $server $udisks $bus; do kill "$process" 2>/dev/null; wait "$process" 2>/dev/null; done
    mountpoint -q "$drive" || rm -rf "$work"
}
trap finish EXIT
passed=0 failed=0
report() { # ok? CASE DETAIL
    if [ "$1" = 0 ]; then passed=$((passed + 1)); echo "PASS $2: $3"; else failed=$((failed + 1)); echo "FAIL $2: $3"; fi
}
wait_for() { # SECONDS COMMAND...: until the command succeeds
    local tries=$(($1 * 4)); shift
    while ! "$@" >/dev/null 2>&1; do tries=$((tries - 1)); [ $tries -le 0 ] && return 1; sleep .25; done
}

# The package as it is installed, in a home directory of its own.
dpkg-deb -x "$package" "$work/package" || exit 2
share=$work/package/usr/share
desktop-file-validate "$share/applications/pdsfs.desktop"
report $? package "the application entry is valid"
export HOME=$work/home XDG_RUNTIME_DIR=$work/run XDG_CURRENT_DESKTOP=X PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8
# Without the GNOME daemons, whose start may wait for each mount of the machine.
export GIO_USE_VFS=local GIO_USE_VOLUME_MONITOR=unix GSK_RENDERER=cairo GTK_A11Y=none NO_AT_BRIDGE=1
export XDG_DATA_DIRS=$share:/usr/local/share:/usr/share
# Nautilus searches XDG_DATA_DIRS, the others only the home directory and /usr/share.
for manager in nemo caja; do
    mkdir -p "$HOME/.local/share/$manager-python/extensions"
    ln -s "$share/pdsfs-desktop/$manager/pdsfs.py" "$HOME/.local/share/$manager-python/extensions/"
done

export PDSFS_TOKEN=token
"$PDSFS" serve --listen 127.0.0.1:0 --data "$work/data" >"$work/ready" 2>"$work/serve.log" &
server=$!
wait_for 20 grep -q 'http://' "$work/ready" || { cat "$work/serve.log" >&2; exit 2; }
endpoint=$(grep -om1 'http://[0-9.:]*' "$work/ready")
"$PDSFS" mount --endpoint "$endpoint" --drive-id 1 "$drive" >"$work/mount.log" 2>&1 &
mount=$!
wait_for 20 mountpoint -q "$drive" || { cat "$work/mount.log" >&2; exit 2; }

# A pdsfs whose `share` records its argument; the menu must not offer other commands than those that it has.
cat >"$work/pdsfs" <<END
#!/bin/sh
case "\$*" in
"share --help" | "versions --help") ;;
"versions -- "*) echo "two versions" ;;
"share -- "*) echo "\$3" >>"$work/shared"; echo "https://drive.test/s/1" ;;
*) exit 2 ;;
esac
END
chmod +x "$work/pdsfs"

faults() { curl -sS -H "Authorization: Bearer token" -d "{\"rules\":[$1]}" "$endpoint/_pdsfs/faults" >/dev/null; }
echo saved >"$drive/a-saved.txt"

# The name and the icon in the sidebar, by GVfs with udisks2 on a system bus of its own.
if [ -x /usr/libexec/udisks2/udisksd ] && command -v gio >/dev/null; then
    printf '[Volume Info]\nName=Team photos\nIcon=pdsfs\n' >"$drive/.xdg-volume-info"
    cat >"$work/bus.conf" <<END
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=$work/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>
END
    dbus-daemon --config-file="$work/bus.conf" --nofork 2>/dev/null &
    bus=$!
    wait_for 5 test -S "$work/bus"
    DBUS_SYSTEM_BUS_ADDRESS=unix:path=$work/bus /usr/libexec/udisks2/udisksd >/dev/null 2>&1 &
    udisks=$!
    # A session of its own, because the other one has the monitor without udisks2.
    named() {
        env -u GIO_USE_VFS -u GIO_USE_VOLUME_MONITOR DBUS_SYSTEM_BUS_ADDRESS="unix:path=$work/bus" \
            timeout 20 dbus-run-session -- gio mount -l -i 2>/dev/null >"$work/mounts"
        grep -q "^Mount(.*): Team photos -> file://$drive\$" "$work/mounts" && grep -q 'themed icons:  \[pdsfs\]' "$work/mounts"
    }
    wait_for 10 named
    report $? sidebar "the mount has the name and the icon of .xdg-volume-info"
    kill $udisks $bus; wait $udisks $bus 2>/dev/null; udisks= bus=
else
    echo "SKIP sidebar: udisks2 or gio is missing"
fi
faults '{"endpoint":"file/create","action":{"status":{"status":403,"code":"Forbidden"}}}'
# The failure is kept while the file is open.
exec 4>"$drive/b-failed.txt"
dd if=/dev/zero bs=1000 count=1 conv=fsync status=none >&4 2>/dev/null
faults ""
openbox >/dev/null 2>&1 &
windows=$!

picture() { import -silent -window root "$shots/$1.png"; }
# Whether a screenshot has at least 12 pixels of a colour.
has_colour() { # PICTURE COLOUR
    picture "$1"
    [ "$(convert "$shots/$1.png" -fill black -fuzz 1% +opaque "$2" -fill white -opaque "$2" -format '%[fx:mean*w*h]' info: |
        cut -d. -f1)" -ge 12 ]
}
lacks_colour() { ! has_colour "$@"; }
# Prints the middle of a word of the last screenshot, as "X Y".
place_of() { # PICTURE WORD
    convert "$shots/$1.png" -colorspace gray -resize 300% "$work/words.png"
    tesseract "$work/words.png" - --psm 11 tsv 2>/dev/null |
        awk -F'\t' -v word="$2" '$12 == word { print int(($7 + $9 / 2) / 3), int(($8 + $10 / 2) / 3); exit }'
}
green='#26a269' blue='#1a66cc' red='#c01c28'

for manager in $managers; do
    command -v "$manager" >/dev/null || { report 1 "$manager" "is not installed"; continue; }
    exec 3>"$drive/c-open-$manager.bin"
    head -c 100000 /dev/urandom >&3
    rm -f "$work/shared"
    case $manager in caja) options=--no-desktop ;; *) options= ;; esac
    PDSFS=$work/pdsfs "$manager" $options "$drive" >"$work/$manager.log" 2>&1 &
    shown=$!
    wait_for 20 pgrep -P $shown -f worker.py
    report $? "$manager" "the extension is loaded"
    wait_for 15 has_colour "$manager-open" $green
    report $? "$manager" "the saved file has its emblem"
    wait_for 10 has_colour "$manager-open" $red
    report $? "$manager" "the failed file has its emblem"
    wait_for 10 has_colour "$manager-open" $blue
    report $? "$manager" "the open file has its emblem"
    exec 3>&-
    wait_for 15 lacks_colour "$manager-closed" $blue
    report $? "$manager" "the emblem changes when the file is saved"

    picture "$manager-closed"
    at=$(place_of "$manager-closed" a-saved.txt)
    [ -n "$at" ] && xdotool mousemove ${at% *} ${at#* } click 1 sleep .5 click 3 sleep 1.5
    picture "$manager-menu"
    at=$(place_of "$manager-menu" Versions)
    report $([ -n "$at" ]; echo $?) "$manager" "the menu has an entry for versions"
    at=$(place_of "$manager-menu" share)
    [ -n "$at" ] && xdotool mousemove ${at% *} ${at#* } sleep .3 click 1
    wait_for 10 grep -qx "$drive/a-saved.txt" "$work/shared"
    report $? "$manager" "the entry for a link runs its command"
    wait_for 10 eval 'timeout 2 xclip -o -selection clipboard | grep -qx https://drive.test/s/1'
    report $? "$manager" "the link is in the clipboard"
    at=$(place_of "$manager-closed" a-saved.txt)
    [ -n "$at" ] && xdotool mousemove ${at% *} ${at#* } click 1 sleep .5 click 3 sleep 1.5
    picture "$manager-menu"
    at=$(place_of "$manager-menu" Versions)
    [ -n "$at" ] && xdotool mousemove ${at% *} ${at#* } sleep .3 click 1
    wait_for 10 xdotool search --name '^Versions: a-saved.txt$'
    report $? "$manager" "the versions are shown in a window"
    sleep 1; picture "$manager-versions"
    grep -A14 Traceback "$work/$manager.log"
    kill $shown; wait $shown 2>/dev/null; shown=
    wait_for 5 eval '! pgrep -f "$work/package/.*worker.py"'
    report $? "$manager" "the worker ends with the file manager"
done
echo "EXTENSIONS ok=$passed/$((passed + failed))"
[ "$failed" = 0 ]
