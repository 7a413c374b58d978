#!/bin/bash
# Keeps the secrets of an account in a real keyring: gnome-keyring on a session bus of its own. Exit 0 where the file has
# none of them, the account works, and without a keyring the file takes them.
#
#   tests/suites/keyring.sh
#
# Needs dbus-run-session and gnome-keyring-daemon (Debian: dbus gnome-keyring). Builds nothing; `cargo build` first, or
# name the binary with PDSFS.
set -eu
here=$(dirname "$(readlink -f "$0")")
pdsfs=${PDSFS:-$here/../../target/debug/pdsfs}
if [ "${1:-}" != inside ]; then
    for tool in dbus-run-session gnome-keyring-daemon "$pdsfs"; do
        command -v "$tool" >/dev/null || { echo "$tool is missing" >&2; exit 2; }
    done
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -m 700 "$work/home" "$work/run"
    HOME=$work/home XDG_RUNTIME_DIR=$work/run XDG_DATA_HOME=$work/home STATE_DIRECTORY=$work/state WORK=$work \
        PDSFS=$pdsfs dbus-run-session -- "$0" inside
    exit
fi

unset PDSFS_TOKEN PDSFS_ENDPOINT PDSFS_ACCOUNT
server=
finish() {
    [ -z "$server" ] || { kill "$server"; wait "$server" 2>/dev/null || true; }
    [ -z "${GNOME_KEYRING_PID:-}" ] || kill "$GNOME_KEYRING_PID" 2>/dev/null || true
}
trap finish EXIT
fail() { echo "failed: $*" >&2; exit 1; }
account=$STATE_DIRECTORY/accounts

mkfifo "$WORK/address"
"$pdsfs" serve --listen 127.0.0.1:0 --data "$WORK/data" --token owner-token >"$WORK/address" 2>/dev/null &
server=$!
address=$(timeout 20 grep -om1 'http://[0-9.:]*' "$WORK/address")

login() { echo owner-token | "$pdsfs" login "$@" --token --endpoint "$address"; }

# How many items the keyring has of an account.
items() {
    dbus-send --session --print-reply --dest=org.freedesktop.secrets /org/freedesktop/secrets \
        org.freedesktop.Secret.Service.SearchItems "dict:string:string:account,$1" | grep -c 'object path' || true
}

# Before there is a keyring, the bus cannot start one that is locked: name none.
login early --store file 2>&1 | grep -q 'secrets are in /' || fail "the file does not take them"
grep -q owner-token "$account/early.json" || fail "the file does not have them"

eval "$(printf 'pass\n' | gnome-keyring-daemon --unlock --components=secrets | sed 's/^/export /')"
login kept --store keyring 2>&1 | grep -q 'in the keyring' || fail "the keyring does not take them"
! grep -q owner-token "$account/kept.json" || fail "the file has a secret"
"$pdsfs" drives kept | grep -q '\*  1' || fail "the account does not work"
login early 2>&1 | grep -q 'secrets are in /' || fail "a login made again moves the secrets"
login moved --store keyring 2>&1 | grep -q 'in the keyring' || fail "the keyring does not take them"
login moved --store keyring 2>&1 | grep -q 'in the keyring' || fail "the keyring does not take them again"
[ "$(items moved)" = 1 ] || fail "the keyring has $(items moved) items of one account"
login moved --store file 2>&1 | grep -q 'secrets are in /' || fail "the file does not take them"
[ "$(items moved)" = 0 ] || fail "the keyring keeps secrets that a file has"
login chosen 2>&1 | grep -q 'in the keyring' || fail "a keyring that is there is not used"
DBUS_SESSION_BUS_ADDRESS=unix:path=/nonexistent "$pdsfs" drives kept 2>&1 | grep -q -- '--store file' ||
    fail "a keyring that is gone is not explained"
DBUS_SESSION_BUS_ADDRESS=unix:path=/nonexistent login fallen 2>&1 | grep -q 'secrets are in /' ||
    fail "without a keyring the file does not take them"
"$pdsfs" login kept --forget
! "$pdsfs" drives kept 2>/dev/null || fail "a forgotten account works"
# A keyring that is locked asks; here nobody can answer, which ends the question. Whoever would begin a unit again is told
# that it is of no use.
dbus-send --session --print-reply --dest=org.freedesktop.secrets /org/freedesktop/secrets \
    org.freedesktop.Secret.Service.Lock array:objpath:/org/freedesktop/secrets/collection/login >/dev/null
mkdir "$WORK/mnt"
code=0
"$pdsfs" mount --account chosen "$WORK/mnt" 2>"$WORK/said" || code=$?
[ "$code" = 2 ] && grep -q 'stays locked' "$WORK/said" || fail "a locked keyring: $code, $(cat "$WORK/said")"
echo "all passed"
