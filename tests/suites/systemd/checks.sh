# Functions for the scripts of ../systemd.sh. The scripts run as services of the container, write their results to
# /result, and power the machine off.
exec >/result 2>&1
cd /
n=0 ok=0
# s NAME COMMAND...: one check.
s() { n=$((n + 1)); local what=$1; shift; if "$@"; then ok=$((ok + 1)); echo "  ok $what"; else echo "  FAIL $what"; fi; }
prop() { systemctl show -p "$2" --value "pdsfs@$1"; }
soon() { for _ in $(seq 150); do "$@" && return 0; sleep .2; done; return 1; }
not() { ! "$@"; }
ended() { [ "$(prop "$1" ActiveState)" = "$2" ] && [ "$(prop "$1" Result)" = "$3" ]; }
start() { systemctl start "pdsfs@$1" && mountpoint -q "/mnt/$1"; }
stop() { systemctl stop "pdsfs@$1" && ended "$1" inactive success && not mounted "/mnt/$1"; }
mounted() { grep -q " $1 fuse.pdsfs " /proc/mounts; }
# Writes random bytes at one path and waits until another path has them.
arrives() { # FROM TO
    head -c 3000000 /dev/urandom >/tmp/bytes && cp /tmp/bytes "$1" && soon cmp -s /tmp/bytes "$2"
}
# Prints the result and ends the script.
finish() { # LABEL
    echo "$1 ok=$ok/$n"
    journalctl --no-pager -o short-monotonic | tail -n 300
    poweroff
}
