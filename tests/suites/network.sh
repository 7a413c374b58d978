#!/bin/bash
# Interrupts the network during an upload, restores it, and checks what programs see in between.
#
#   tests/suites/network.sh [loopback] [cable] [crawl]
#
# loopback: the only interface goes down, in a separate network namespace.
# cable: client and server in two namespaces with a cable (veth) between them. The link goes down, the route is
#   removed, the address changes, and packets are dropped silently. One mount survives all of it.
# crawl: the cable is as slow as a bad radio link, with queues that make a round trip last for seconds. This is not an
#   outage.
#
# Needs root, unshare and nsenter (package util-linux), ip and tc (iproute2), and curl. Builds nothing: run
# `cargo build --release` first, or set PDSFS to a binary.
set -u
self=$(readlink -f "$0")
pdsfs=$(readlink -f "${PDSFS:-${self%/*}/../../target/release/pdsfs}")
[ "$(id -u)" = 0 ] || { echo "network namespaces need root" >&2; exit 2; }
[ -x "$pdsfs" ] || { echo "no $pdsfs: run cargo build --release" >&2; exit 2; }
export PDSFS=$pdsfs PDSFS_TOKEN=token
if [ "${INSIDE:-}" != yes ]; then
    worst=0
    for part in ${*:-loopback cable crawl}; do
        echo "== $part"
        INSIDE=yes unshare -n "$self" "$part" || worst=$?
    done
    exit "$worst"
fi

work=$(mktemp -d) && mkdir "$work/data" "$work/mnt" "$work/spill" "$work/run" || exit 2
chmod 700 "$work/run" && export XDG_RUNTIME_DIR=$work/run
server='' daemon='' far='' mend=true failed=0
finish() {
    $mend
    [ -n "$daemon" ] && { kill "$daemon" 2>/dev/null; wait "$daemon"; }
    [ -n "$server" ] && { kill "$server"; wait "$server" 2>/dev/null; }
    [ -n "$far" ] && kill "$far"
    [ -n "${KEEP_LOG:-}" ] && cp "$work/mount.log" "$KEEP_LOG"
    rm -rf "$work"
}
trap finish EXIT
ms() { echo $(($(date +%s%N) / 1000000)); }
check() { # WHAT COMMAND...
    local what=$1
    shift
    if "$@"; then echo "ok $what"; else echo "FAIL $what"; failed=1; fi
}
within() { # MS WHAT COMMAND...
    local max=$1 what=$2 start took code
    shift 2
    start=$(ms)
    "$@"
    code=$?
    took=$(($(ms) - start))
    check "$what: $took ms, within $max" test $code = 0 -a $took -lt "$max"
}
refused() { # COMMAND...: must fail with an error of the network
    local output
    output=$(LC_ALL=C timeout 150 "$@" 2>&1) && return 1
    case $output in *'No route to host'* | *'Connection timed out'*) ;; *) echo "$output" >&2; return 1 ;; esac
}
sorted() { tr ' ' '\n' | sort | tr '\n' ' '; }
shows() { test "$(timeout 20 ls "$work/mnt/$1" | sorted)" = "$(echo "$2" | sorted)"; } # DIRECTORY NAMES
serve() { # ADDRESS COMMAND...: the command is put before that of the server
    local listen=$1
    shift
    mkfifo "$work/ready"
    PDSFS_TOKEN=token "$@" "$pdsfs" serve --listen "$listen" --data "$work/data" >"$work/ready" 2>"$work/serve.log" &
    server=$!
    endpoint=$(timeout 20 grep -om1 'http://[0-9.:]*' "$work/ready")
    [ -n "$endpoint" ] || { cat "$work/serve.log" >&2; exit 2; }
}
mount_drive() {
    "$pdsfs" --log warn,pdsfs=debug mount --endpoint "$endpoint" --drive-id 1 --spill-dir "$work/spill" \
        --part-size 1MiB --parts-in-flight 4 --buffer-size 32MiB "$work/mnt" >/dev/null 2>>"$work/mount.log" &
    daemon=$!
    for _ in $(seq 100); do mountpoint -q "$work/mnt" && return; sleep 0.1; done
    cat "$work/mount.log" >&2
    exit 2
}
unmount() {
    check "unmount does not hang" timeout 10 "$pdsfs" umount "$work/mnt"
    wait "$daemon"
    check "everything was saved" test $? = 0
    daemon=
}
upload() { # NAME: in the background; returns when half of it is written
    rm -f "$work/half" "$work/closed"
    (
        exec 3>"$work/mnt/$1"
        head -c "$half" "$work/source" >&3
        ms >"$work/half"
        tail -c +$((half + 1)) "$work/source" >&3
        exec 3>&- && ms >"$work/closed"
    ) &
    writer=$!
    for _ in $(seq 1000); do [ -s "$work/half" ] && break; sleep 0.02; done
}
ended() { # UP: checks that the upload ends soon after this time
    local took
    wait "$writer"
    check "the upload ends" test -s "$work/closed"
    took=$(($(cat "$work/closed") - $1))
    check "it ends $took ms after the return of the network, within 10000" test "$took" -lt 10000
}
goes_offline() {
    for _ in $(seq 700); do "$pdsfs" status | grep 'paused: offline' >/dev/null && return; sleep 0.1; done
    return 1
}
is_online() { ! "$pdsfs" status | grep 'paused: offline' >/dev/null; }

if [ "$1" = loopback ]; then
    half=50000000
    mend='ip link set lo up'
    $mend
    serve 127.0.0.1:0
    mount_drive
    head -c $((2 * half)) /dev/urandom >"$work/source"
    mkdir "$work/mnt/known" && ls "$work/mnt" >/dev/null
    upload f
    # The loopback keeps its address when it is down, so packets vanish.
    ip link set lo down
    within 20000 "status shows offline" goes_offline
    sleep 17 # entries are stale, and retry pauses have grown
    check "the upload waits" test ! -e "$work/closed"
    within 5000 "names are shown" shows . "f known"
    ip link set lo up
    up=$(ms)
    ended "$up"
    check "the bytes are right" cmp "$work/source" "$work/mnt/f"
    unmount
    [ $failed = 0 ] || tail -30 "$work/mount.log" >&2
    exit $failed
fi

# Both ends have loopback addresses, because plain http is allowed only for them. The kernel routes them to the cable
# with `route_localnet` and without a local route for the net.
half=40000000
unshare -n sleep infinity &
far=$!
for _ in $(seq 50); do [ "$(readlink /proc/$far/ns/net)" != "$(readlink /proc/self/ns/net)" ] && break; sleep 0.1; done
there() { nsenter -t "$far" -n "$@"; }
ip link add near type veth peer name far netns "$far" || exit 2
sysctl -qw net.ipv4.conf.all.route_localnet=1 && there sysctl -qw net.ipv4.conf.all.route_localnet=1 || exit 2
there ip addr add 127.1.0.1/24 dev far && there ip link set far up && there ip link set lo up
there ip route del local 127.0.0.0/8 dev lo table local
ip addr add 127.1.0.2/24 dev near && ip link set near up || exit 2
mac_of() { grep -o 'link/ether [^ ]*' | cut -d' ' -f2; }
mac_near=$(ip -o link show near | mac_of) mac_far=$(there ip -o link show far | mac_of)
# Slow enough that parts are in flight when the network goes down.
shape() { tc qdisc replace dev near root tbf rate 200mbit burst 64k latency 100ms; }
shape

link_down() { ip link set near down; }
link_up() { ip link set near up; }
route_away() { ip route del 127.1.0.0/24 dev near; }
route_back() { ip route add 127.1.0.0/24 dev near src 127.1.0.2; }
# The old address is removed first: for a moment there is none, as with a new lease.
other_address() { ip addr del 127.1.0.2/24 dev near && ip addr add 127.1.0.3/24 dev near; }
first_address() { ip addr del 127.1.0.3/24 dev near && ip addr add 127.1.0.2/24 dev near; }
silence() {
    # The neighbour entry is permanent, as for a router: otherwise the kernel would detect the silence itself.
    ip neigh replace 127.1.0.1 lladdr "$mac_far" dev near nud permanent
    tc qdisc replace dev near root blackhole && there tc qdisc replace dev far root blackhole
}
end_silence() {
    there tc qdisc del dev far root
    tc qdisc del dev near root
    shape
    ip neigh del 127.1.0.1 dev near
}
sent_bytes() { ip -s -o link show near | sed 's/.*TX:[^\\]*\\ *\([0-9]*\).*/\1/'; }
sends_again() { # a megabyte is more than probes and repeated packets
    local before
    before=$(sent_bytes)
    for _ in $(seq 600); do [ $(($(sent_bytes) - before)) -gt 1000000 ] && return; sleep 0.02; done
    return 1
}
api() { there curl -sS -H 'Authorization: Bearer token' -H 'Content-Type: application/json' -d "$2" "$endpoint/v2/$1"; }
sha1_there() { # NAME: the hash on the server
    api file/list '{"drive_id":"1","parent_file_id":"root","limit":100}' | grep -o '{[^{}]*}' |
        grep "\"name\":\"$1\"" | grep -o '"content_hash":"[^"]*"' | cut -d'"' -f4
}
is_right() { test "$(sha1_there "$1" | tr a-f A-F)" = "$sha1"; }
lives() { kill -0 "$daemon" && mountpoint -q "$work/mnt"; }
# Checks the answers of the mount during a detected outage.
check_offline_answers() {
    within 5000 "known names are shown" shows . "$names"
    within 5000 "a known directory is listed" shows known inside
    within 5000 "known bytes are read" cmp -n 1000 "$work/piece" "$work/mnt/piece"
    within 5000 "an unknown name" refused stat "$work/mnt/known/$1"
    within 5000 "an unknown directory" refused ls "$work/mnt/unknown"
    within 5000 "a new directory" refused mkdir "$work/mnt/known/new"
}
outage() { # NAME BREAK MEND NOTICED-MS
    echo "-- $1"
    upload "$1"
    names="$names $1"
    mend=$3
    $2
    within "$4" "status shows offline" goes_offline
    sleep 20 # entries are stale, and retry pauses have grown
    check "the upload waits" test ! -e "$work/closed"
    check_offline_answers "$1"
    $3
    up=$(ms) mend=true
    within 3000 "bytes move again" sends_again
    ended "$up"
    check "the bytes are right on the server" is_right "$1"
    check "status does not show offline" is_online
    check "it is the same daemon" lives
}

serve 127.1.0.1:0 nsenter -t "$far" -n
if [ "$1" = crawl ]; then
    half=1500000
    tc qdisc replace dev near root tbf rate 400kbit burst 5k limit 300000
    mount_drive
    head -c $((2 * half)) /dev/urandom >"$work/source"
    upload f
    sleep 20 # the queue is full, and entries are stale
    within 15000 "a name is looked up behind the upload" test ! -e "$work/mnt/other"
    within 100000 "the slow upload ends" wait "$writer"
    check "the close succeeds" test -s "$work/closed"
    check "the bytes are right" cmp "$work/source" "$work/mnt/f"
    check "the slow line is not an outage" test "$(grep -c 'cannot be reached' "$work/mount.log")" = 0
    check "nothing was sent twice" test "$(sent_bytes)" -lt $((2 * half * 12 / 10))
    unmount
    [ $failed = 0 ] || tail -30 "$work/mount.log" >&2
    exit $failed
fi
head -c $((2 * half)) /dev/urandom >"$work/source"
sha1=$(sha1sum <"$work/source" | cut -d' ' -f1 | tr a-f A-F)
head -c 20000000 "$work/source" >"$work/piece"
mount_drive
mkdir "$work/mnt/known" "$work/mnt/known/inside" "$work/mnt/unknown" && cp "$work/piece" "$work/mnt/piece"
unmount
mount_drive
names='known piece unknown'
shows . "$names" && shows known inside && cmp -n 1000 "$work/piece" "$work/mnt/piece"

outage link link_down link_up 3000
outage route route_away route_back 3000
outage silence silence end_silence 20000

echo "-- address"
upload address
other_address
up=$(ms)
within 8000 "bytes move again" sends_again
ended "$up"
check "the bytes are right on the server" is_right address
check "it is the same daemon" lives
first_address

echo "-- silence without an upload"
sleep 16 # entries are stale
mend=end_silence
silence
within 20000 "the first unknown name" refused stat "$work/mnt/known/other"
within 5000 "the next unknown name" refused stat "$work/mnt/known/another"
within 45000 "unknown bytes" refused dd if="$work/mnt/piece" of=/dev/null bs=4k skip=4000 count=1
end_silence
mend=true
within 3000 "an unknown name is looked up again" test ! -e "$work/mnt/known/other"
within 3000 "unknown bytes are read" cmp "$work/piece" "$work/mnt/piece"
unmount
[ $failed = 0 ] || tail -30 "$work/mount.log" >&2
exit $failed
