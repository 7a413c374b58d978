#!/bin/bash
# Takes the network away from under an upload and gives it back, in a network namespace of its own: the
# only interface goes down, connections and routes die, and the kernel tells of it.
#
#   tests/suites/network.sh
#
# As root; needs unshare and ip (packages util-linux and iproute2). Builds nothing; `cargo build --release`
# first, or PDSFS=program.
set -u
here=$(dirname "$(readlink -f "$0")")
pdsfs=$(readlink -f "${PDSFS:-$here/../../target/release/pdsfs}")
[ "$(id -u)" = 0 ] || { echo "network namespaces need root" >&2; exit 2; }
[ -x "$pdsfs" ] || { echo "$pdsfs is not there: cargo build --release" >&2; exit 2; }
if [ "${1:-}" != inside ]; then
    PDSFS=$pdsfs exec unshare -n "$(readlink -f "$0")" inside
fi

work=$(mktemp -d) && mkdir "$work/data" "$work/mnt" "$work/spill" || exit 2
export PDSFS_TOKEN=token
server= daemon= failed=0
finish() {
    ip link set lo up
    [ -n "$daemon" ] && { kill "$daemon" 2>/dev/null; wait "$daemon"; }
    [ -n "$server" ] && { kill "$server"; wait "$server" 2>/dev/null; }
    rm -rf "$work"
}
trap finish EXIT
ms() { echo $(($(date +%s%N) / 1000000)); }
check() { # WHAT COMMAND...
    local what=$1
    shift
    if "$@"; then echo "ok $what"; else echo "FAIL $what"; failed=1; fi
}

ip link set lo up
mkfifo "$work/address"
"$pdsfs" serve --listen 127.0.0.1:0 --data "$work/data" --token token >"$work/address" 2>"$work/serve.log" &
server=$!
address=$(timeout 20 grep -om1 'http://[0-9.:]*' "$work/address")
[ -n "$address" ] || { cat "$work/serve.log" >&2; exit 2; }
"$pdsfs" --log warn,pdsfs=debug mount --endpoint "$address" --drive-id 1 --spill-dir "$work/spill" --part-size 1MiB \
    --parts-in-flight 4 --buffer-size 32MiB "$work/mnt" >/dev/null 2>"$work/mount.log" &
daemon=$!
for _ in $(seq 100); do mountpoint -q "$work/mnt" && break; sleep 0.1; done
mountpoint -q "$work/mnt" || { cat "$work/mount.log" >&2; exit 2; }

head -c 100000000 /dev/urandom >"$work/source"
mkdir "$work/mnt/known" && ls "$work/mnt" >/dev/null
# Half of it at first, so that the upload is surely under way when the network goes.
(
    exec 3>"$work/mnt/f"
    head -c 50000000 "$work/source" >&3
    ip link set lo down
    ms >"$work/down"
    tail -c +50000001 "$work/source" >&3
    exec 3>&- && ms >"$work/closed"
) &
writer=$!
for _ in $(seq 100); do [ -s "$work/down" ] && break; sleep 0.1; done
# The loopback keeps its address when it is down, so packets vanish, which takes the time-outs of TCP to find out.
for _ in $(seq 700); do grep -q 'cannot be reached' "$work/mount.log" && break; sleep 0.1; done
check "the outage is noticed" grep -q 'cannot be reached' "$work/mount.log"
sleep 17 # what was believed has run out, and pauses have grown
check "the upload waits" test ! -e "$work/closed"
start=$(ms)
check "names are shown" test "$(timeout 20 ls "$work/mnt" | tr '\n' ' ')" = "f known "
check "in $(($(ms) - start)) ms, within 10 s" test $(($(ms) - start)) -lt 10000
ip link set lo up
up=$(ms)
wait "$writer"
check "the upload ends" test -s "$work/closed"
took=$(($(cat "$work/closed") - up))
check "$took ms after the return, within 10 s" test "$took" -lt 10000
check "the bytes are right" cmp "$work/source" "$work/mnt/f"
check "nothing hangs" timeout 10 "$pdsfs" umount "$work/mnt"
wait "$daemon"
check "everything was saved" test $? = 0
daemon=
[ $failed = 0 ] || tail -30 "$work/mount.log" >&2
exit $failed
