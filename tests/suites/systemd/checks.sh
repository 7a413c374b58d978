# What the scripts of ../systemd.sh share. They run as services of the container, say what they find to /result,
# and turn the machine off.
exec >/result 2>&1
cd /
n=0 ok=0
s() { n=$((n + 1)); local what=$1; shift; if "$@"; then ok=$((ok + 1)); echo "  ok $what"; else echo "  FAIL $what"; fi; }
prop() { systemctl show -p "$2" --value "pdsfs@$1"; }
soon() { for _ in $(seq 150); do "$@" && return 0; sleep .2; done; return 1; }
not() { ! "$@"; }
ended() { [ "$(prop "$1" ActiveState)" = "$2" ] && [ "$(prop "$1" Result)" = "$3" ]; }
start() { systemctl start "pdsfs@$1" && mountpoint -q "/mnt/$1"; }
stop() { systemctl stop "pdsfs@$1" && ended "$1" inactive success && not mounted "/mnt/$1"; }
mounted() { grep -q " $1 fuse.pdsfs " /proc/mounts; }
# A file of random bytes that was written at one place is seen at another one.
arrives() { # FROM TO
    head -c 3000000 /dev/urandom >/tmp/bytes && cp /tmp/bytes "$1" && soon cmp -s /tmp/bytes "$2"
}
# The last line of a script.
finish() { # LABEL
    echo "$1 ok=$ok/$n"
    journalctl --no-pager -o short-monotonic | tail -n 300
    poweroff
}
