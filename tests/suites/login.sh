#!/bin/bash
# Logs in with a real browser: `pdsfs login` with `pdsfs serve`, and headless Chromium presses the buttons of the page.
# Allow creates a usable account, Deny gives an error. Exits with 0 if both work.
#
#   tests/suites/login.sh
#
# Needs chromium, chromedriver and python3 (Debian: chromium chromium-driver). Builds nothing: run `cargo build` first, or
# set PDSFS to a binary. All traffic stays on 127.0.0.1.
set -u
here=$(dirname "$(readlink -f "$0")")
pdsfs=${PDSFS:-$here/../../target/debug/pdsfs}
for tool in chromedriver python3 "$pdsfs"; do
    command -v "$tool" >/dev/null || { echo "$tool is missing" >&2; exit 2; }
done
work=$(mktemp -d) || exit 2
server= driver=
finish() {
    [ -n "$driver" ] && { kill "$driver"; wait "$driver" 2>/dev/null; }
    [ -n "$server" ] && { kill "$server"; wait "$server" 2>/dev/null; }
    rm -rf "$work"
}
trap finish EXIT
export STATE_DIRECTORY=$work/state
unset DBUS_SESSION_BUS_ADDRESS PDSFS_TOKEN PDSFS_ENDPOINT PDSFS_ACCOUNT

mkfifo "$work/ready"
PDSFS_TOKEN=owner "$pdsfs" serve --listen 127.0.0.1:0 --data "$work/data" --client-id app --drives 2 \
    >"$work/ready" 2>"$work/serve.log" &
server=$!
endpoint=$(timeout 20 grep -om1 'http://[0-9.:]*' "$work/ready")
[ -n "$endpoint" ] || { echo "the server does not start:" >&2; cat "$work/serve.log" >&2; exit 2; }

chromedriver --port=0 --allowed-ips=127.0.0.1 >"$work/driver.log" 2>&1 &
driver=$!
for _ in $(seq 100); do
    port=$(sed -n 's/.*started successfully on port \([0-9]*\).*/\1/p' "$work/driver.log" 2>/dev/null)
    [ -n "$port" ] && break
    sleep 0.1
done
[ -n "$port" ] || { echo "chromedriver does not start:" >&2; cat "$work/driver.log" >&2; exit 2; }

python3 "$here/login.py" "$pdsfs" "$endpoint" "http://127.0.0.1:$port" "$work"
