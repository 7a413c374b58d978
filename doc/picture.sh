#!/bin/bash
# Makes doc/demo.png from the real program: `pdsfs demo` in one terminal, copies into its mount in another.
#
#   cargo build --release && doc/picture.sh [PICTURE]
#
# Needs Linux with /dev/fuse and the Debian packages of `packages` below. PDSFS=program takes another binary. All files are
# in one temporary directory, which is removed at the end.
set -eu
here=$(dirname "$(readlink -f "$0")")
picture=$(readlink -f "${1:-$here/demo.png}")
pdsfs=$(readlink -f "${PDSFS:-$here/../target/release/pdsfs}")
packages="fuse3 xvfb xterm x11-utils imagemagick fonts-dejavu-core"
missing=
for program in fusermount3 Xvfb xterm xwininfo import convert; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -z "$missing" ] || { echo "missing programs:$missing (apt-get install $packages)" >&2; exit 2; }
[ -x "$pdsfs" ] || { echo "$pdsfs does not exist: cargo build --release" >&2; exit 2; }

# The name is in the picture.
work=${TMPDIR:-/tmp}/picture
mkdir "$work" || { echo "remove $work first" >&2; exit 2; }
finish() {
    for pid in ${writers:-}; do kill "$pid" 2>/dev/null || true; done
    # At SIGINT the demo commits what is open, unmounts and stops its server.
    if [ -n "${demo:-}" ] && kill -INT "$demo" 2>/dev/null; then
        for _ in $(seq 300); do kill -0 "$demo" 2>/dev/null || break; sleep 0.1; done
    fi
    for pid in ${terminal:-} ${screen:-}; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT

# A display and a terminal of its own.
mkfifo "$work/display"
Xvfb -displayfd 3 -screen 0 1000x700x24 -nolisten tcp 3>"$work/display" 2>/dev/null &
screen=$!
read -r number <"$work/display"
export DISPLAY=:$number
mkdir "$work/Drive" "$work/data"
cd "$work"
# The prompt line is drawn by this script; everything below it is the output of the program.
cat >run <<END
printf '\033[32m$\033[0m pdsfs demo Drive\n'
echo \$\$ >pid
exec '$pdsfs' demo --data data Drive
END
xterm -geometry 90x15 -fa 'DejaVu Sans Mono' -fs 12 -bg '#1d1f27' -fg '#d8dbe2' -cr '#1d2028' -b 10 +sb \
    -xrm 'XTerm*color2: #7ec07e' -xrm 'XTerm*color6: #5fb3d4' -T pdsfs -e bash run &
terminal=$!
for _ in $(seq 200); do mountpoint -q Drive && break; sleep 0.1; done
mountpoint -q Drive || { echo "the demo did not mount" >&2; exit 1; }
demo=$(cat pid)
sleep 1

# NAME BYTES_PER_SECOND: writes random bytes at about this rate, in small steps.
write() {
    while :; do head -c $(($2 / 20)) /dev/urandom; sleep 0.05; done >"Drive/$1" 2>/dev/null
}
head -c 4300000 /dev/urandom >Drive/IMG_2041.jpg
head -c 3900000 /dev/urandom >Drive/IMG_2042.jpg
cp Drive/IMG_2041.jpg Drive/cover.jpg
head -c 61000000 /dev/urandom >Drive/slides.odp
writers=
for file in 'Norway-2026.mp4 21000000' 'backup.tar.zst 9000000' 'thesis-scans.pdf 3600000' 'interview.flac 5200000'; do
    # shellcheck disable=SC2086 # two arguments
    write $file & writers="$writers $!"
done
sleep 5.2
import -window "$(xwininfo -name pdsfs | sed -n 's/.*Window id: \(0x[0-9a-f]*\).*/\1/p')" raw.png
convert raw.png -strip -colors 64 -define png:compression-level=9 "$picture"
echo "$picture: $(stat -c %s "$picture") bytes"
