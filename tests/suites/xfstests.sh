#!/bin/bash
# Runs the generic tests of xfstests on mounts of the release build, through the mount helper mount.fuse.pdsfs, and
# compares the failures with xfstests-failures.txt. Exits with 0 if exactly those fail.
#
#   XFSTESTS=/path/to/built/xfstests tests/suites/xfstests.sh [NUMBER...]
#
# Without numbers, the group "quick" runs. Needs root, the users fsgqa, fsgqa2 and 123456-fsgqa, and no other program
# under the name mount.fuse.pdsfs. Builds nothing: run `cargo build --release` first. A test that runs for longer than
# TIMEOUT (900 s) is stopped and counts as a failure.
set -u
here=$(dirname "$(readlink -f "$0")")
pdsfs=$(readlink -f "${PDSFS:-$here/../../target/release/pdsfs}")
tests=${XFSTESTS:?set XFSTESTS to the directory of a built xfstests}
list=${LIST:-$here/xfstests-failures.txt}
helper=/sbin/mount.fuse.pdsfs
[ "$(id -u)" = 0 ] || { echo "xfstests needs root" >&2; exit 2; }
[ -x "$pdsfs" ] || { echo "no build at $pdsfs: run cargo build --release" >&2; exit 2; }
[ -x "$tests/ltp/fsstress" ] || { echo "$tests is not built: run make there" >&2; exit 2; }
for user in fsgqa fsgqa2 123456-fsgqa; do
    getent passwd "$user" >/dev/null || { echo "no user $user: run useradd --badname -m $user" >&2; exit 2; }
done
[ ! -e "$helper" ] || { echo "$helper exists: it would be replaced" >&2; exit 2; }

work=$(mktemp -d) && chmod 755 "$work" && mkdir "$work/data" "$work/spill" "$work/bin" "$work/test" "$work/scratch" \
    || exit 2
server=
unmount() {
    for dir in "$work/test" "$work/scratch"; do
        while mountpoint -q "$dir" 2>/dev/null || grep -q " $dir " /proc/mounts; do
            timeout 60 umount "$dir" 2>/dev/null || umount -l "$dir" || break
        done
    done
}
# Kills the processes of a stopped test, found by a variable of their environment. Mounts are unmounted instead.
kill_leftovers() {
    local process
    for process in /proc/[0-9]*; do
        [ "${process#/proc/}" != $$ ] && [ "$(readlink "$process/exe")" != "$pdsfs" ] || continue
        { tr '\0' '\n' <"$process/environ"; } 2>/dev/null | grep -qx "PDSFS_SUITE_TEST=$1" \
            && kill -9 "${process#/proc/}" 2>/dev/null
    done
}
finish() {
    unmount
    rm -f "$helper"
    [ -n "$server" ] && { kill "$server"; wait "$server" 2>/dev/null; }
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM
ln -s "$pdsfs" "$helper"

mkfifo "$work/ready"
PDSFS_TOKEN=token "$pdsfs" serve --listen 127.0.0.1:0 --data "$work/data" --drives 2 --quota 20GiB >"$work/ready" \
    2>"$work/serve.log" &
server=$!
endpoint=$(timeout 20 grep -om1 'http://[0-9.:]*' "$work/ready")
[ -n "$endpoint" ] || { echo "the server does not start:" >&2; cat "$work/serve.log" >&2; exit 2; }
(umask 077 && echo token >"$work/token")
cat >"$work/pdsfs.toml" <<END
[defaults]
endpoint = "$endpoint"
token_file = "$work/token"
allow_other = true
owners = "drive"
special_bits = "on"
remove = "delete"
spill_dir = "$work/spill"
[drives.xtest]
drive_id = "1"
[drives.xscratch]
drive_id = "2"
END
options="-o config=$work/pdsfs.toml"
cat >"$work/local.config" <<END
export FSTYP=fuse FUSE_SUBTYP=.pdsfs
export TEST_DEV=xtest TEST_DIR=$work/test TEST_FS_MOUNT_OPTS="$options"
export SCRATCH_DEV=xscratch SCRATCH_MNT=$work/scratch MOUNT_OPTIONS="$options"
export RESULT_BASE=$work/results
END
export HOST_OPTIONS=$work/local.config
# xfstests compares the type that df prints with FSTYP.
printf '#!/bin/sh\n%s "$@" | sed "s/fuse\\.pdsfs/fuse/"\n' "$(type -P df)" >"$work/bin/df"
chmod +x "$work/bin/df"
export PATH=$work/bin:$PATH

numbers=("$@")
[ $# -gt 0 ] || mapfile -t numbers < <(awk '/(^| )quick( |$)/ { print $1 }' "$tests/tests/generic/group.list")
cd "$tests" || exit 2
: >"$work/failed" && : >"$work/passed"
for number in "${numbers[@]}"; do
    start=$SECONDS
    PDSFS_SUITE_TEST=$number timeout -k 10 "${TIMEOUT:-900}" ./check "generic/$number" >"$work/out" 2>&1 </dev/null
    code=$?
    if [ $code = 124 ] || [ $code = 137 ]; then
        outcome=TIMEOUT
        kill_leftovers "$number"
        unmount
    elif grep -q '^Not run' "$work/out"; then
        outcome="not run: $(sed -nE "s/^generic\/$number.*\[not run\] *//p" "$work/out" | head -1)"
    elif grep -q '^Passed all 1 tests' "$work/out"; then
        outcome=ok
        echo "$number" >>"$work/passed"
    else
        outcome=FAILED
    fi
    case $outcome in
        FAILED | TIMEOUT)
            echo "$number" >>"$work/failed"
            [ -z "${KEEP:-}" ] || { mkdir -p "$KEEP" && cp "$work/out" "$work"/results/generic/"$number".* "$KEEP" 2>/dev/null; }
            ;;
    esac
    echo "generic/$number $outcome ($((SECONDS - start)) s)"
done
cd "$work" || exit 2
sort -o failed failed && sort -o passed passed
cat failed passed | sort >ran
sed -E '/^(#|$|~)/d; s/ .*//' "$list" | sort >listed
sed -nE 's/^~([^ ]+).*/\1/p' "$list" | sort >sometimes
comm -12 listed ran >expected
comm -23 failed sometimes >always
echo "passed $(wc -l <passed), failed $(wc -l <failed), not run $((${#numbers[@]} - $(wc -l <ran)))"
[ -s passed ] || [ $# -gt 0 ] || { tail -5 out >&2; exit 1; }
if ! diff expected always; then
    echo "'<': listed, but passes; '>': fails, but is not listed" >&2
    exit 1
fi
