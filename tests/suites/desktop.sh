#!/bin/bash
# Real file managers on a mount, under Xvfb: what is dropped is on the drive, the progress bar follows the upload,
# cancelling and failing leave nothing behind, the trash is the recycle bin, and looking at a folder of
# pictures does not fetch them all. A line per case, the figures in the last line; exit 0 where all pass.
#
#   tests/suites/desktop.sh /path/to/dnd.sh [CASE...]     cases: drop line cancel fail quota pictures trash
#
# dnd.sh FILE FOLDER MANAGER paste|drag puts a file into a folder with a file manager, and prints result=OK
# mtime=kept leftovers=[] where all is well; xenv.sh beside it starts a display (xenv_stop ends it).
# Needs the release build (or PDSFS=...), and: thunar pcmanfm tumbler xvfb xdotool wmctrl imagemagick exiftool jq gio.
# SHOTS=folder keeps pictures of the dialogs; MANAGERS="thunar pcmanfm".
set -u
here=$(dirname "$(readlink -f "$0")")
pdsfs=${PDSFS:-$here/../../target/release/pdsfs}
dnd=$(readlink -f "${1:?name the script that drops files with a file manager}") && shift
cases=${*:-drop line cancel fail quota pictures trash}
managers=${MANAGERS:-thunar pcmanfm}
work=$(mktemp -d) && mkdir "$work/data" "$work/mnt" "$work/seen" "$work/spill" || exit 2
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

mkfifo "$work/address"
"$pdsfs" serve --listen 127.0.0.1:0 --data "$work/data" >"$work/address" 2>"$work/serve.log" &
server=$!
address=$(timeout 20 grep -om1 'http://[0-9.:]*' "$work/address")
[ -n "$address" ] || { echo "the server does not start:" >&2; cat "$work/serve.log" >&2; exit 2; }
mount_at() { # FOLDER ARGUMENTS...: mounts, waits, and leaves the process in $!
    "$pdsfs" mount --endpoint "$address" --drive-id 1 --spill-dir "$work/spill" "${@:2}" "$1" >/dev/null 2>>"$work/mount.log" &
    for _ in $(seq 200); do mountpoint -q "$1" && return; sleep .1; done
    echo "no mount:" >&2; cat "$work/mount.log" >&2; exit 2
}
mount_at "$work/mnt"; daemon=$!
mount_at "$work/seen" --read-only --metadata-ttl 1s; watcher=$!

owner() { curl -sS -H "Authorization: Bearer token" "$@"; }
stats() { owner "$address/_pdsfs/stats" | jq -r "$1"; }
faults() { owner -d "{\"rules\":[$1]}" "$address/_pdsfs/faults" >/dev/null; }
api() { owner -H "Content-Type: application/json" -d "$2" "$address/v2/$1"; }
bin_names() { api recyclebin/list '{"drive_id":"1","limit":100}' | jq -r '.items[].name' | sort | tr '\n' ' '; }
open_uploads() { stats '.open_uploads | length'; }
report() { # ok? CASE DETAIL
    if [ "$1" = 0 ]; then passed=$((passed + 1)); echo "PASS $2: $3"; else failed=$((failed + 1)); echo "FAIL $2: $3"; fi
}
wants() { case " $cases " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
fresh() { head -c "$1" /dev/urandom >"$work/$2"; }

# The display of a running drop: it is in the environment of what the script has started.
display_of() {
    local child
    for child in $(pgrep -P "$1"); do tr '\0' '\n' <"/proc/$child/environ" 2>/dev/null | sed -n 's/^DISPLAY=//p'; done | tail -1
}
wait_for() { # SECONDS COMMAND...: until the command succeeds
    local tries=$(($1 * 5)); shift
    while ! "$@" >/dev/null 2>&1; do tries=$((tries - 1)); [ $tries -le 0 ] && return 1; sleep .2; done
}
# Starts a drop of FILE that is to be met while it runs: sets $drop and DISPLAY.
start_drop() { # FILE MANAGER SECONDS
    # While the last parts are on their way nothing changes here, and that is not the end.
    DND_TIMEOUT=$3 QUIET_S=5 "$dnd" "$1" "$work/mnt" "$2" paste >"$work/drop.out" 2>/dev/null &
    drop=$!
    wait_for 60 began || { wait $drop; faults ""; cat "$work/drop.out"; return 1; }
    DISPLAY=$(display_of $drop); export DISPLAY
}
# Something has arrived, or the manager shows a window beside its two.
began() {
    [ -n "$(ls "$work"/mnt/to*/ 2>/dev/null)" ] || DISPLAY=$(display_of $drop) wmctrl -l | grep -qv ' from[0-9]\| to[0-9]'
}
# The folder of the drop, here and through the other mount; it has to be there.
in_folder() { ls -A "$work"/mnt/to*/ "$work"/seen/to*/ 2>&1 | grep -v '^$\|:$'; }
is_empty() { [ -d "$(echo "$work"/mnt/to*)" ] && [ -z "$(in_folder)" ]; }
has_window() { wmctrl -l | grep -q "$1"; }
picture() { import -silent -window root "$shots/$1.png"; }

if wants drop; then
    fresh 5000000 five.bin
    for manager in $managers; do for how in paste drag; do
        line=$(BACKEND=$work/seen "$dnd" "$work/five.bin" "$work/mnt" "$manager" $how 2>/dev/null | tail -1)
        case $line in *result=OK*mtime=kept*'leftovers=[]'*backend=same*) ok=0 ;; *) ok=1 ;; esac
        report $ok "$manager $how" "$line"
    done; done
fi

if wants line; then
    # 100 MiB over a line of 10 MiB/s: ten seconds. What the manager has got rid of is what its bar shows.
    for manager in $managers; do
        fresh $((100 * mib)) hundred.bin
        faults "{\"endpoint\":\"put_part\",\"action\":{\"line\":{\"bytes_per_s\":$((10 * mib))}}}"
        before=$(stats .received_bytes); completes=$(stats '.requests["file/complete"] // 0')
        start_drop "$work/hundred.bin" "$manager" 60 || { report 1 "$manager 10 MiB/s" "the drop did not begin"; continue; }
        begin=$(date +%s.%N); samples= ahead_max=0 full_at=
        while :; do
            elapsed=$(echo "$(date +%s.%N) - $begin" | bc)
            taken=$(stat -c %s "$work"/mnt/to*/hundred.bin 2>/dev/null || echo 0)
            sent=$(($(stats .received_bytes) - before))
            [ $((taken - sent)) -gt $ahead_max ] && ahead_max=$((taken - sent))
            [ -z "$full_at" ] && [ "$taken" = $((100 * mib)) ] && full_at=$elapsed
            samples="$samples $(printf %.0f "$elapsed")s:$((taken / mib))/$((sent / mib))"
            [ "$(printf %.0f "$elapsed")" = 5 ] && picture "$manager-line"
            [ "$(stats '.requests["file/complete"] // 0')" != "$completes" ] && break
            [ "$(printf %.0f "$elapsed")" -gt 40 ] && break
            sleep 1
        done
        wait $drop; faults ""
        line=$(tail -1 "$work/drop.out")
        seconds=$(printf %.1f "$elapsed")
        case $line in *result=OK*mtime=kept*'leftovers=[]'*) ok=0 ;; *) ok=1 ;; esac
        [ "$(echo "$seconds >= 9 && $seconds <= 14" | bc)" = 1 ] && [ $ahead_max -le $((40 * mib)) ] || ok=1
        report $ok "$manager 10 MiB/s" "taken/sent in MiB:$samples; on the drive after $seconds s, bar full after $(printf %.1f "${full_at:-0}") s, at most $((ahead_max / mib)) MiB ahead; $line"
        figures="$figures $manager-10MiB/s=${seconds}s ahead=$((ahead_max / mib))MiB"
    done
fi

if wants cancel; then
    for manager in $managers; do
        fresh $((100 * mib)) hundred.bin
        faults "{\"endpoint\":\"put_part\",\"action\":{\"line\":{\"bytes_per_s\":$((10 * mib))}}}"
        start_drop "$work/hundred.bin" "$manager" 40 || { report 1 "$manager cancel" "the drop did not begin"; continue; }
        sleep 3; picture "$manager-cancel"
        case $manager in
        thunar) # The square at the right of the progress window.
            window=$(xdotool search --onlyvisible --name "File Operation Progress" | head -1)
            eval "$(xdotool getwindowgeometry --shell "$window")"
            xdotool mousemove $((X + WIDTH - 30)) $((Y + 33)) click 1 ;;
        *)
            window=$(xdotool search --onlyvisible --name "Copying files" | head -1)
            eval "$(xdotool getwindowgeometry --shell "$window")"
            xdotool mousemove $((X + WIDTH - 145)) $((Y + HEIGHT - 29)) click 1 ;;
        esac
        wait_for 20 is_empty; ok=$?; sleep 1; picture "$manager-cancelled"
        left=$(in_folder)
        wait $drop; faults ""
        [ -z "$left" ] || ok=1
        report $ok "$manager cancel half-way" "left on the drive: [$left]"
    done
fi

refused_drop() { # CASE FAULT WORDS: a drop that fails with a dialog, in whose picture the words are looked for
    local manager ok left log
    for manager in $managers; do
        fresh $((40 * mib)) forty.bin
        faults "$2"
        log=$(wc -l <"$work/mount.log")
        start_drop "$work/forty.bin" "$manager" 30 || { report 1 "$manager $1" "the drop did not begin"; continue; }
        case $manager in thunar) title=Attention ;; *) title=Finished ;; esac
        wait_for 20 has_window "$title"; ok=$?
        wait_for 10 is_empty || ok=1
        sleep 1; picture "$manager-$1"
        left=$(in_folder)
        wait $drop; faults ""
        [ -z "$left" ] || ok=1
        said=$(tail -n +$((log + 1)) "$work/mount.log" | grep -m1 -o "$3")
        [ -n "$said" ] || ok=1
        report $ok "$manager $1" "a dialog \"$title\"; the mount said \"$said\"; left on the drive: [$left]"
    done
}
status() { echo "{\"endpoint\":\"$1\",\"after\":${3:-0},\"action\":{\"status\":{\"status\":403,\"code\":\"$2\"}}}"; }
wants fail && refused_drop fail "$(status put_part AccessDenied)" "403 AccessDenied"
# The folder for the drop comes first.
wants quota && refused_drop quota "$(status file/create QuotaExhausted.Drive 1)" "QuotaExhausted"

if wants pictures; then
    # As cameras make them: 2 MB with a small preview in front. Each is another file.
    convert -size 2000x1500 xc:gray +noise Random -quality 87 "$work/picture.jpg"
    convert "$work/picture.jpg" -resize 160x120 -strip "$work/preview.jpg"
    cp "$work/picture.jpg" "$work/bare.jpg"
    exiftool -q -overwrite_original "-ThumbnailImage<=$work/preview.jpg" -Make=Camera "$work/picture.jpg"
    for kind in picture bare; do
        mkdir "$work/mnt/$kind"
        for n in $(seq -w 500); do { cat "$work/$kind.jpg"; echo "$n"; } >"$work/mnt/$kind/IMG_$n.jpg"; done
        total=$((500 * $(stat -c %s "$work/$kind.jpg")))
        for manager in $managers; do
            # Another mount: nothing of what was written is known to it.
            mkdir -p "$work/look"; mount_at "$work/look" --read-only; look=$!
            before=$(stats .sent_bytes); calls=$(stats '[.requests[]] | add')
            (
                . "$(dirname "$dnd")/xenv.sh"
                case $manager in pcmanfm) new=-n ;; *) new= ;; esac
                $manager $new "$work/look/$kind" >/dev/null 2>&1 & FMPID=$!
                # Until nothing has been read for five seconds, a minute at most.
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
            # With previews, a first look costs less than a twentieth. Without, it is the manager's choice.
            [ $kind = bare ] || [ $((bytes * 20)) -lt $total ]; ok=$?
            report $ok "$manager 500 pictures ($kind)" "$((bytes / 1024)) KiB of $((total / 1024)) KiB were read, with $calls calls"
            figures="$figures $manager-$kind=$((bytes / 1024))KiB"
        done
    done
fi

if wants trash; then
    id_of() { api recyclebin/list '{"drive_id":"1","limit":100}' | jq -r ".items[] | select(.name == \"$1\") | .file_id"; }
    api recyclebin/clear '{"drive_id":"1"}' >/dev/null
    mkdir "$work/mnt/dir"; echo content >"$work/mnt/dir/file"; echo one >"$work/mnt/one.txt"
    gio trash "$work/mnt/one.txt" "$work/mnt/dir"; ok=$?
    [ -n "$(id_of dir)" ] && [ -n "$(id_of one.txt)" ] || ok=1
    [ -z "$(ls "$work/mnt/.Trash-$(id -u)/files" "$work/mnt/.Trash-$(id -u)/info" | grep -v ':$' | tr -d '\n')" ] || ok=1
    ls -A "$work/seen" | grep -q Trash && ok=1
    detail="in the recycle bin: $(bin_names)"
    for name in dir one.txt; do api recyclebin/restore "{\"drive_id\":\"1\",\"file_id\":\"$(id_of $name)\"}" >/dev/null; done
    back() { [ "$(cat "$work/mnt/dir/file" "$work/mnt/one.txt")" = "content
one" ]; }
    wait_for 40 back || ok=1
    report $ok "gio trash" "$detail; restored from it: $(ls "$work/mnt" | grep -c '^dir$\|^one.txt$') of 2"
    rm -r "$work/mnt/dir" "$work/mnt/one.txt"; api recyclebin/clear '{"drive_id":"1"}' >/dev/null
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
            # Whoever asks whether that is meant gets a yes.
            xdotool key --clearmodifiers Return; sleep 2; picture "$manager-trashed"
            xenv_stop
        ) 2>/dev/null
        in_bin() { [ -n "$(id_of "$manager.txt")" ]; }
        wait_for 10 in_bin; ok=$?
        [ -e "$work/mnt/bin-$manager/$manager.txt" ] && ok=1
        report $ok "$manager delete" "in the recycle bin: $(bin_names)"
    done
fi

[ "$(open_uploads)" = 0 ] || echo "uploads that were given up: $(open_uploads)"
kill "$daemon"; wait "$daemon"; code=$?; daemon=
report $code "unmount" "exit $code"
echo "desktop: $passed passed, $failed failed;$figures"
[ $failed = 0 ]
