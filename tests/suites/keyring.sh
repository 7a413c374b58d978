#!/bin/bash
# Stores the secrets of an account in a real keyring: gnome-keyring on a separate session bus. Exits with 0 if the account
# file has no secret, the account works, and the file gets the secrets if there is no keyring.
#
#   tests/suites/keyring.sh
#
# Needs dbus-run-session and gnome-keyring-daemon (Debian: dbus gnome-keyring). Builds nothing: run `cargo build` first, or
# set PDSFS to a binary.
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

mkfifo "$WORK/ready"
PDSFS_TOKEN=owner-token "$pdsfs" serve --listen 127.0.0.1:0 --data "$WORK/data" >"$WORK/ready" 2>/dev/null &
server=$!
endpoint=$(timeout 20 grep -om1 'http://[0-9.:]*' "$WORK/ready")

login() { echo owner-token | "$pdsfs" login "$@" --token --endpoint "$endpoint"; }

# The number of items of an account in the keyring.
items() {
    dbus-send --session --print-reply --dest=org.freedesktop.secrets /org/freedesktop/secrets \
        org.freedesktop.Secret.Service.SearchItems "dict:string:string:account,$1" | grep -c 'object path' || true
}

# Before the keyring runs, the bus could start only a locked one, so this login uses the file.
login early --store file 2>&1 | grep -q 'secrets are in /' || fail "the secrets are not stored in the file"
grep -q owner-token "$account/early.json" || fail "the file does not have the secrets"

eval "$(printf 'pass\n' | gnome-keyring-daemon --unlock --components=secrets | sed 's/^/export /')"
login kept --store keyring 2>&1 | grep -q 'in the keyring' || fail "the secrets are not stored in the keyring"
! grep -q owner-token "$account/kept.json" || fail "the file has a secret"
"$pdsfs" drives kept | grep -q '\*  1' || fail "the account does not work"
login early 2>&1 | grep -q 'secrets are in /' || fail "a second login moves the secrets"
login moved --store keyring 2>&1 | grep -q 'in the keyring' || fail "the secrets are not stored in the keyring"
login moved --store keyring 2>&1 | grep -q 'in the keyring' || fail "a second login does not store the secrets in the keyring"
[ "$(items moved)" = 1 ] || fail "the keyring has $(items moved) items of one account"
login moved --store file 2>&1 | grep -q 'secrets are in /' || fail "the secrets are not stored in the file"
[ "$(items moved)" = 0 ] || fail "the keyring keeps secrets that moved to the file"
login chosen 2>&1 | grep -q 'in the keyring' || fail "an available keyring is not used"
DBUS_SESSION_BUS_ADDRESS=unix:path=/nonexistent "$pdsfs" drives kept 2>&1 | grep -q -- '--store file' ||
    fail "the message about a missing keyring has no remedy"
DBUS_SESSION_BUS_ADDRESS=unix:path=/nonexistent login fallen 2>&1 | grep -q 'secrets are in /' ||
    fail "without a keyring the secrets are not stored in the file"
"$pdsfs" login kept --forget
! "$pdsfs" drives kept 2>/dev/null || fail "a removed account works"
# A locked keyring asks for its password; without a desktop the question fails at once. The exit code tells a service
# manager not to restart.
dbus-send --session --print-reply --dest=org.freedesktop.secrets /org/freedesktop/secrets \
    org.freedesktop.Secret.Service.Lock array:objpath:/org/freedesktop/secrets/collection/login >/dev/null
mkdir "$WORK/mnt"
code=0
"$pdsfs" mount --account chosen "$WORK/mnt" 2>"$WORK/log" || code=$?
[ "$code" = 2 ] && grep -q 'unlock prompt was dismissed' "$WORK/log" || fail "a locked keyring: $code, $(cat "$WORK/log")"
echo "all passed"
