#!/bin/bash
# Tests real file managers on a mount, under Xvfb: a dropped file is on the drive, the progress bar follows the upload,
# a cancel leaves the same as in a local directory, a failure leaves nothing and shows a dialog, the trash is the recycle
# bin, and a view of a directory of pictures does not download them all. Prints a line per case and the figures in the
# last line. Exits with 0 if all cases pass.
#
#   tests/suites/desktop.sh /path/to/dnd.sh [CASE...]     cases: drop line cancel partial fail quota pictures trash
#
# dnd.sh FILE DIRECTORY MANAGER paste|drag puts a file into a directory with a file manager, and prints result=OK
# mtime=kept leftovers=[] on success; xenv.sh beside it starts a display (xenv_stop ends it).
# Needs the release build (or PDSFS=...), and: thunar pcmanfm tumbler xvfb xdotool wmctrl imagemagick exiftool tesseract
# strace xfconf-query jq gio gvfs dbus-run-session.
# SHOTS=directory keeps screenshots of the dialogs; MANAGERS="thunar pcmanfm".
set -u
here=$(dirname "$(readlink -f "$0")")
pdsfs=${PDSFS:-$here/../../target/release/pdsfs}
dnd=$(readlink -f "${1:?name the script that drops files with a file manager}") && shift
cases=${*:-drop line cancel partial fail quota pictures trash}
managers=${MANAGERS:-thunar pcmanfm}
ways="paste drag"
work=$(mktemp -d) && mkdir "$work/data" "$work/mnt" "$work/seen" "$work/spill" "$work/local" "$work/bin" || exit 2
shots=${SHOTS:-$work/shots}
mkdir -p "$shots"
mib=1048576
export PDSFS_TOKEN=token
server= daemon= watcher=
failed=0 passed=0 figures=
finish() {
    for mount in $watcher $daemon; do kill "$mount" 2>/dev/null; wait "$mount" 2>/dev/null; done
    [ -n "$server" ] && { kill "$server"; wait "$server" 2>/dev/null; }
    mountpoint -q "$work/mnt" || mountpoint -q "$work/seen" || rm -rf "$work"
}
trap finish EXIT

mkfifo "$work/ready"
"$pdsfs" serve --listen 127.0.0.1:0 --data "$work/data" >"$work/ready" 2>"$work/serve.log" &
server=$!
endpoint=$(timeout 20 grep -om1 'http://[0-9.:]*' "$work/ready")
[ -n "$endpoint" ] || { echo "the server does not start:" >&2; cat "$work/serve.log" >&2; exit 2; }
mount_at() { # DIRECTORY ARGUMENTS...: mounts, waits for the mount, and leaves the process in $!
    "$pdsfs" mount --endpoint "$endpoint" --drive-id 1 --spill-dir "$work/spill" "${@:2}" "$1" >/dev/null 2>>"$work/mount.log" &
    for _ in $(seq 200); do mountpoint -q "$1" && return; sleep .1; done
    echo "no mount:" >&2; cat "$work/mount.log" >&2; exit 2
}
mount_at "$work/mnt"; daemon=$!
mount_at "$work/seen" --read-only --metadata-ttl 1s; watcher=$!

owner() { curl -sS -H "Authorization: Bearer token" "$@"; }
stats() { owner "$endpoint/_pdsfs/stats" | jq -r "$1"; }
faults() { owner -d "{\"rules\":[$1]}" "$endpoint/_pdsfs/faults" >/dev/null; }
api() { owner -H "Content-Type: application/json" -d "$2" "$endpoint/v2/$1"; }
empty_bin() { api recyclebin/clear '{"drive_id":"1"}' >/dev/null; }
bin_names() { api recyclebin/list '{"drive_id":"1","limit":100}' | jq -r '.items[].name' | sort | tr '\n' ' '; }
open_uploads() { stats '.open_uploads | length'; }
report() { # ok? CASE DETAIL
    if [ "$1" = 0 ]; then passed=$((passed + 1)); echo "PASS $2: $3"; else failed=$((failed + 1)); echo "FAIL $2: $3"; fi
}
wants() { case " $cases " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
fresh() { head -c "$1" /dev/urandom >"$work/$2"; }
line_of() { faults "{\"endpoint\":\"put_part\",\"action\":{\"line\":{\"bytes_per_s\":$(($1 * mib))}}}"; }
completes() { stats '.requests["file/complete"] // 0'; }

# The display of a running drop, from the environment of the child processes.
display_of() {
    local child
    for child in $(pgrep -P "$1"); do { tr '\0' '\n' <"/proc/$child/environ" | sed -n 's/^DISPLAY=//p'; } 2>/dev/null; done | tail -1
}
wait_for() { # SECONDS COMMAND...: until the command succeeds
    local tries=$(($1 * 5)); shift
    while ! "$@" >/dev/null 2>&1; do tries=$((tries - 1)); [ $tries -le 0 ] && return 1; sleep .2; done
}
# Starts a drop of FILE in the background: sets $drop, $target and DISPLAY.
start_drop() { # FILE MANAGER SECONDS [paste|drag [DIRECTORY]]
    target=${5:-mnt}
    # While the last parts are sent, nothing changes in the directory; that is not the end of the drop.
    DND_TIMEOUT=$3 QUIET_S=5 "$dnd" "$1" "$work/$target" "$2" "${4:-paste}" >"$work/drop.out" 2>/dev/null &
    drop=$!
    wait_for 60 began || { wait $drop; faults ""; cat "$work/drop.out"; return 1; }
    DISPLAY=$(display_of $drop); export DISPLAY
}
# A file has arrived, or the file manager shows a third window.
began() {
    [ -n "$(ls "$work/$target"/to*/ 2>/dev/null)" ] || DISPLAY=$(display_of $drop) wmctrl -l | grep -qv ' from[0-9]\| to[0-9]'
}
# Names and sizes in the target directory, on either mount.
in_target() { stat -c '%n %s' "$work/$1"/to*/* 2>/dev/null | sed 's/.*\///'; }
is_empty() { [ -z "$(in_target mnt)$(in_target seen)" ]; }
is_copying() { has_window "File Operation Progress" || has_window "Copying files"; }
is_over() { ! is_copying && [ "$(open_uploads)" = 0 ] && [ "$(in_target mnt)" = "$(in_target seen)" ]; }
has_window() { wmctrl -l | grep -q "$1"; }
picture() { import -silent -window root "$shots/$1.png"; }
# The text of a screenshot, in one line.
words() { convert "$shots/$1.png" -colorspace gray -resize 300% "$work/words.png" && tesseract "$work/words.png" - 2>/dev/null | tr '\n' ' '; }

# Puts a wrapper of this name before the real program in the PATH; the wrapper starts the real program.
wrap() { # MANAGER LINES
    printf '#!/bin/sh\n%s %s "$@"\n' "$2" "$(command -v "$1")" >"$work/bin/$1" && chmod +x "$work/bin/$1"
}
# Presses the cancel button of the progress window.
press_cancel() { # MANAGER
    local title dx y
    case $1 in thunar) title="File Operation Progress" dx=30 ;; *) title="Copying files" dx=145 ;; esac
    local window; window=$(xdotool search --onlyvisible --name "$title" | head -1)
    [ -n "$window" ] || return 1
    eval "$(xdotool getwindowgeometry --shell "$window")"
    # Thunar: the square on the right. PCManFM: the left one of two buttons at the bottom.
    case $1 in thunar) y=$((Y + 33)) ;; *) y=$((Y + HEIGHT - 40)) ;; esac
    xdotool mousemove $((X + WIDTH - dx)) $y click 1
}
# Drops 100 MiB and cancels after a third of the writes. Sets $left (names and sizes afterwards), $pressed (bytes written
# before the cancel) and $took (seconds until the end).
cancel_half_way() { # MANAGER PICTURE WAY DIRECTORY
    left= pressed=0 took=
    fresh $((100 * mib)) hundred.bin
    start_drop "$work/hundred.bin" "$1" 25 "$3" "$4" || return 1
    third() { [ "$(stat -c %s "$work/$target"/to*/* 2>/dev/null | head -1)" -gt $((33 * mib)) ] && is_copying; }
    wait_for 20 third || { wait $drop; return 1; }
    picture "$2"
    pressed=$(in_target "$target") pressed=${pressed##* }
    local begin ok; begin=$(date +%s.%N)
    press_cancel "$1" || { wait $drop; return 1; }
    if [ "$4" = mnt ]; then wait_for 30 is_over; else wait_for 30 eval '! is_copying'; fi; ok=$?
    took=$(printf %.1f "$(echo "$(date +%s.%N) - $begin" | bc)")
    picture "$2-over"
    left=$(in_target "$target")
    return $ok
}

if wants drop; then
    fresh 5000000 five.bin
    for manager in $managers; do for how in $ways; do
        line=$(BACKEND=$work/seen "$dnd" "$work/five.bin" "$work/mnt" "$manager" $how 2>/dev/null | tail -1)
        case $line in *result=OK*mtime=kept*'leftovers=[]'*backend=same*) ok=0 ;; *) ok=1 ;; esac
        report $ok "$manager $how" "$line"
    done; done
fi

if wants line; then
    # 100 MiB over a line of 10 MiB/s take ten seconds. The progress bar shows the bytes that the file manager has written.
    for manager in $managers; do for how in $ways; do
        fresh $((100 * mib)) hundred.bin
        line_of 10
        before=$(stats .received_bytes); done_before=$(completes)
        start_drop "$work/hundred.bin" "$manager" 60 $how || { report 1 "$manager $how 10 MiB/s" "the drop did not begin"; continue; }
        begin=$(date +%s.%N); samples= ahead_max=0 full_at=
        while :; do
            elapsed=$(echo "$(date +%s.%N) - $begin" | bc)
            taken=$(stat -c %s "$work"/mnt/to*/hundred.bin 2>/dev/null || echo 0)
            sent=$(($(stats .received_bytes) - before))
            [ $((taken - sent)) -gt $ahead_max ] && ahead_max=$((taken - sent))
            [ -z "$full_at" ] && [ "$taken" = $((100 * mib)) ] && full_at=$elapsed
            samples="$samples $(printf %.0f "$elapsed")s:$((taken / mib))/$((sent / mib))"
            [ "$(printf %.0f "$elapsed")" = 5 ] && picture "$manager-$how-line"
            [ "$(completes)" != "$done_before" ] && break
            [ "$(printf %.0f "$elapsed")" -gt 40 ] && break
            sleep 1
        done
        wait $drop; faults ""
        line=$(tail -1 "$work/drop.out")
        seconds=$(printf %.1f "$elapsed")
        case $line in *result=OK*mtime=kept*'leftovers=[]'*) ok=0 ;; *) ok=1 ;; esac
        [ "$(echo "$seconds >= 9 && $seconds <= 14" | bc)" = 1 ] && [ $ahead_max -le $((40 * mib)) ] || ok=1
        report $ok "$manager $how 10 MiB/s" "written/sent in MiB:$samples; on the drive after $seconds s, bar full after $(printf %.1f "${full_at:-0}") s, at most $((ahead_max / mib)) MiB ahead; $line"
        figures="$figures $manager-$how-10MiB/s=${seconds}s ahead=$((ahead_max / mib))MiB"
    done; done
fi

if wants cancel; then
    # On cancel both managers only close the file, in every directory: that looks like a finished file.
    for manager in $managers; do
        # The local directory must be slow for this test: each copied piece waits a little.
        wrap "$manager" "exec strace -f -o /dev/null -e trace=splice,copy_file_range -e inject=splice,copy_file_range:delay_exit=40000"
        PATH=$work/bin:$PATH cancel_half_way "$manager" "$manager-cancel-local" paste local; ok=$?
        wait $drop; rm "$work/bin/$manager"
        case $left in hundred.bin\ *) locally=half ;; '') locally=nothing ;; *) locally=$left ok=1 ;; esac
        report $ok "$manager cancel in a local directory" "leaves $locally: [$left]"
        for how in $ways; do
            line_of 10
            cancel_half_way "$manager" "$manager-$how-cancel" $how mnt; ok=$?
            faults ""
            size=${left##* } here=nothing
            if [ -n "$left" ]; then
                here=half
                [ "$size" -lt $((100 * mib)) ] && cmp -n "$size" "$work/hundred.bin" "$work"/seen/to*/hundred.bin || ok=1
            fi
            [ "$here" = "$locally" ] || ok=1
            wait $drop
            report $ok "$manager $how cancel half-way" "over after $took s; open uploads: $(open_uploads); leaves $here, like a local directory: [$left], $((${pressed:-0} / mib)) MiB were written before the cancel"
        done
    done
fi

if wants partial && [[ $managers = *thunar* ]]; then
    # Thunar can copy to NAME.partial~, which it renames at the end and deletes on cancel.
    wrap thunar "xfconf-query -c thunar -p /misc-transfer-use-partial -s THUNAR_USE_PARTIAL_MODE_ALWAYS --create -t string; exec"
    for how in $ways; do
        empty_bin; line_of 10
        PATH=$work/bin:$PATH cancel_half_way thunar "thunar-$how-partial" $how mnt; ok=$?
        # Thunar closes the file before it unlinks it, so the committed file goes to the recycle bin.
        trashed=$(bin_names)
        [ -z "$left" ] && [ "$trashed" = "hundred.bin.partial~ " ] || ok=1
        wait $drop
        report $ok "thunar $how partial, cancelled" "over after $took s; open uploads: $(open_uploads); left in the directory: [$left], in the recycle bin: [$trashed]"

        # Still over the slow line: after a fast line, the mount would let the next file run ahead.
        empty_bin; fresh $((20 * mib)) twenty.bin
        before=$(stats .received_bytes) done_before=$(completes)
        line=$(PATH=$work/bin:$PATH KEEP=1 QUIET_S=5 BACKEND=$work/seen "$dnd" "$work/twenty.bin" "$work/mnt" thunar $how 2>/dev/null | tail -1)
        sent=$(($(stats .received_bytes) - before)) commits=$(($(completes) - done_before)) trashed=$(bin_names)
        rm -rf "$work"/mnt/to*; faults ""
        case $line in *result=OK*mtime=kept*'leftovers=[]'*backend=same*) ok=0 ;; *) ok=1 ;; esac
        [ $sent = $((20 * mib)) ] && [ $commits = 1 ] && [ -z "$trashed" ] || ok=1
        report $ok "thunar $how partial" "$sent bytes were sent, $commits commit; in the recycle bin: [$trashed]; $line"
    done
    rm "$work/bin/thunar"
fi

refused_drop() { # CASE FAULT CAUSE WORDS: a drop that fails; the log of the mount has the cause, the dialog has the words
    local manager ok left log title logged shown
    for manager in $managers; do
        fresh $((40 * mib)) forty.bin
        faults "$2"
        log=$(wc -l <"$work/mount.log")
        start_drop "$work/forty.bin" "$manager" 30 || { report 1 "$manager $1" "the drop did not begin"; continue; }
        case $manager in thunar) title="Attention\|Error" ;; *) title=Finished ;; esac
        wait_for 20 has_window "$title"; ok=$?
        wait_for 10 is_empty || ok=1
        sleep 1; picture "$manager-$1"; shown=$(words "$manager-$1" | grep -io -m1 "$4")
        left=$(in_target mnt; in_target seen)
        wait $drop; faults ""
        [ -z "$left" ] || ok=1
        logged=$(tail -n +$((log + 1)) "$work/mount.log" | grep -m1 -o "$3")
        [ -n "$logged" ] && [ -n "$shown" ] || ok=1
        report $ok "$manager $1" "a dialog \"$title\" with \"$shown\"; the mount logged \"$logged\"; left on the drive: [$left]"
    done
}
status() { echo "{\"endpoint\":\"$1\",\"after\":${3:-0},\"action\":{\"status\":{\"status\":403,\"code\":\"$2\"}}}"; }
wants fail && refused_drop fail "$(status put_part AccessDenied)" "the account has no permission" "Permission denied"
# The first create makes the target directory.
wants quota && refused_drop quota "$(status file/create QuotaExhausted.Drive 1)" "the drive is full" "No space left on device"

if wants pictures; then
    # Pictures as from a camera: 2 MB with a small preview at the front. Each file is different.
    convert -size 2000x1500 xc:gray +noise Random -quality 87 "$work/picture.jpg"
    convert "$work/picture.jpg" -resize 160x120 -strip "$work/preview.jpg"
    cp "$work/picture.jpg" "$work/bare.jpg"
    exiftool -q -overwrite_original "-ThumbnailImage<=$work/preview.jpg" -Make=Camera "$work/picture.jpg"
    # PCManFM draws pictures without a preview only up to 2 megapixels.
    convert -size 1600x1200 xc:gray +noise Random -quality 87 "$work/small.jpg"
    for kind in picture bare small; do
        mkdir "$work/mnt/$kind"
        for n in $(seq -w 500); do { cat "$work/$kind.jpg"; echo "$n"; } >"$work/mnt/$kind/IMG_$n.jpg"; done
        total=$((500 * $(stat -c %s "$work/$kind.jpg")))
        for manager in $managers; do
            # A new mount has no cached bytes.
            mkdir -p "$work/look"; mount_at "$work/look" --read-only; look=$!
            before=$(stats .sent_bytes); calls=$(stats '[.requests[]] | add')
            (
                . "$(dirname "$dnd")/xenv.sh"
                case $manager in pcmanfm) new=-n ;; *) new= ;; esac
                $manager $new "$work/look/$kind" >/dev/null 2>&1 & FMPID=$!
                # Waits until nothing was read for five seconds, at most one minute.
                last= quiet=0
                for _ in $(seq 60); do
                    sleep 1; now=$(stats .sent_bytes)
                    if [ "$now" = "$last" ] && [ "$now" != "$before" ]; then quiet=$((quiet + 1)); else quiet=0; fi
                    last=$now; [ $quiet -ge 5 ] && break
                done
                picture "$manager-$kind"
                xenv_stop
            ) 2>/dev/null
            bytes=$(($(stats .sent_bytes) - before)); calls=$(($(stats '[.requests[]] | add') - calls))
            kill $look; wait $look 2>/dev/null
            # The first view reads less than a twentieth, except in a file manager that reads every picture itself.
            [ "$manager $kind" = "pcmanfm small" ] || [ $((bytes * 20)) -lt $total ]; ok=$?
            report $ok "$manager 500 pictures ($kind)" "$((bytes / 1024)) KiB of $((total / 1024)) KiB were read, with $calls calls"
            figures="$figures $manager-$kind=$((bytes / 1024))KiB"
        done
    done
fi

if wants trash; then
    id_of() { api recyclebin/list '{"drive_id":"1","limit":100}' | jq -r ".items[] | select(.name == \"$1\") | .file_id"; }
    empty_bin
    mkdir "$work/mnt/dir"; echo content >"$work/mnt/dir/file"; echo one >"$work/mnt/one.txt"
    gio trash "$work/mnt/one.txt" "$work/mnt/dir"; ok=$?
    [ -n "$(id_of dir)" ] && [ -n "$(id_of one.txt)" ] || ok=1
    [ "$(ls "$work/mnt/.Trash-$(id -u)/files" | tr '\n' ' ')" = "dir one.txt " ] || ok=1
    ls -A "$work/seen" | grep -q Trash && ok=1
    detail="in the recycle bin: $(bin_names)"
    # Only the trash of this mount, not that of the user.
    dbus-run-session sh -c 'for uri in $(gio list -u trash:/// | grep "$1"); do gio trash --restore "$uri" || exit 1; done' \
        sh "$(basename "$work")" 2>/dev/null || ok=1
    back() { [ "$(cat "$work/mnt/dir/file" "$work/mnt/one.txt")" = "content
one" ]; }
    wait_for 40 back || ok=1
    report $ok "gio trash" "$detail; restored by gio: $(ls "$work/mnt" | grep -c '^dir$\|^one.txt$') of 2"
    rm -r "$work/mnt/dir" "$work/mnt/one.txt"; empty_bin
    for manager in $managers; do
        mkdir "$work/mnt/bin-$manager"; echo text >"$work/mnt/bin-$manager/$manager.txt"
        (
            . "$(dirname "$dnd")/xenv.sh"
            case $manager in pcmanfm) new=-n ;; *) new= ;; esac
            $manager $new "$work/mnt/bin-$manager" >/dev/null 2>&1 & FMPID=$!
            wait_for 30 has_window "bin-$manager"; sleep 2
            window=$(xdotool search --onlyvisible --name "bin-$manager" | head -1)
            xdotool windowactivate --sync "$window" 2>/dev/null; xdotool windowfocus "$window"; sleep .5
            eval "$(xdotool getwindowgeometry --shell "$window")"
            xdotool mousemove $((X + WIDTH - 60)) $((Y + HEIGHT - 110)) click 1; sleep .5
            xdotool key --clearmodifiers ctrl+a; sleep .5; xdotool key --clearmodifiers Delete; sleep 1.5
            picture "$manager-trash"
            # Confirms a possible dialog.
            xdotool key --clearmodifiers Return; sleep 2; picture "$manager-trashed"
            xenv_stop
        ) 2>/dev/null
        in_bin() { [ -n "$(id_of "$manager.txt")" ]; }
        wait_for 10 in_bin; ok=$?
        [ -e "$work/mnt/bin-$manager/$manager.txt" ] && ok=1
        report $ok "$manager delete" "in the recycle bin: $(bin_names)"
    done
fi

[ "$(open_uploads)" = 0 ] || echo "abandoned uploads: $(open_uploads)"
kill "$daemon"; wait "$daemon"; code=$?; daemon=
report $code "unmount" "exit $code"
echo "desktop: $passed passed, $failed failed;$figures"
[ $failed = 0 ]
