#!/bin/bash
# Runs pjdfstest (the Rust version, github.com/saidsay-so/pjdfstest) on a mount of the release build and compares the
# failures with pjdfstest-failures.txt. Exits with 0 if exactly those fail and 90 % of the applicable tests pass.
#
#   PJDFSTEST=/path/to/pjdfstest tests/suites/pjdfstest.sh [PATTERN...]
#
# Needs root, because the tests change users. Builds nothing: run `cargo build --release` first. With patterns, only the
# matching tests run and are compared.
set -u
here=$(dirname "$(readlink -f "$0")")
pdsfs=${PDSFS:-$here/../../target/release/pdsfs}
tests=${PJDFSTEST:?set PJDFSTEST to the pjdfstest binary}
[ "$(id -u)" = 0 ] || { echo "pjdfstest needs root" >&2; exit 2; }
work=$(mktemp -d) && chmod 755 "$work" && mkdir "$work/data" "$work/mnt" "$work/spill" || exit 2
export PDSFS_TOKEN=token
server= daemon=
finish() {
    [ -n "$daemon" ] && { "$pdsfs" umount "$work/mnt" >/dev/null 2>&1; wait "$daemon"; }
    [ -n "$server" ] && { kill "$server"; wait "$server" 2>/dev/null; }
    rm -rf "$work"
}
trap finish EXIT

mkfifo "$work/ready"
PDSFS_TOKEN=token "$pdsfs" serve --listen 127.0.0.1:0 --data "$work/data" >"$work/ready" 2>"$work/serve.log" &
server=$!
endpoint=$(timeout 20 grep -om1 'http://[0-9.:]*' "$work/ready")
[ -n "$endpoint" ] || { echo "the server does not start:" >&2; cat "$work/serve.log" >&2; exit 2; }
"$pdsfs" mount --endpoint "$endpoint" --drive-id 1 --allow-other --owners drive --special-bits on \
    --spill-dir "$work/spill" "$work/mnt" \
    >/dev/null 2>"$work/mount.log" &
daemon=$!
for _ in $(seq 100); do mountpoint -q "$work/mnt" && break; sleep 0.1; done
mountpoint -q "$work/mnt" || { cat "$work/mount.log" >&2; exit 2; }

getent passwd tests >/dev/null || useradd -M -s /usr/sbin/nologin tests
nobody_group=$(id -gn nobody)
cat >"$work/config.toml" <<EOF
[features]
posix_fallocate = {}
[settings]
naptime = 0.01
allow_remount = false
expected_failures = ["utimensat::y2038"]
[dummy_auth]
entries = [["nobody", "$nobody_group"], ["tests", "$(id -gn tests)"]]
EOF
mkdir "$work/mnt/tests"
(cd "$work" && timeout 900 "$tests" -c config.toml -p mnt/tests "$@" 2>&1) | sed 's/\x1b\[[0-9;]*m//g' >"$work/out"

# An outcome line is NAME, spaces, OUTCOME.
outcome() { sed -nE "s/^([a-z_0-9]+(::[a-z_0-9]+)+) +$1\$/\1/p" "$work/out" | sort; }
outcome FAILED >"$work/failed"
outcome ok >"$work/passed"
cat "$work/failed" "$work/passed" | sort >"$work/ran"
sed -E '/^(#|$|~)/d; s/ .*//' "$here/pjdfstest-failures.txt" | sort >"$work/listed"
sed -nE 's/^~([^ ]+).*/\1/p' "$here/pjdfstest-failures.txt" | sort >"$work/sometimes"
comm -23 "$work/failed" "$work/sometimes" >"$work/always"
comm -12 "$work/listed" "$work/ran" >"$work/expected"
not_applicable=$(wc -l <"$work/expected")
passed=$(wc -l <"$work/passed") failed=$(wc -l <"$work/failed")
applies=$((passed + failed - not_applicable))
echo "passed $passed, failed $failed (of which listed: $(comm -12 "$work/expected" "$work/failed" | wc -l)), applicable $applies"
[ "$passed" -gt 0 ] || { tail -5 "$work/out" >&2; exit 1; }
if ! diff "$work/expected" "$work/always"; then
    echo "'<': listed, but passes; '>': fails, but is not listed" >&2
    exit 1
fi
[ $((passed * 10)) -ge $((applies * 9)) ] || { echo "less than 90 % of the applicable tests pass" >&2; exit 1; }
