#!/bin/bash
# Tests of the system unit beyond those of every FUSE unit: status, watchdog, exit codes, extended stop timeout, and no
# sleep during an upload.
. /usr/local/lib/checks.sh
says() { prop "$1" StatusText | grep -q "$2"; }
is_back() { [ "$(prop cloud ActiveState)" = active ] && [ "$(prop cloud MainPID)" != "$1" ] && ls /mnt/cloud >/dev/null; }
s verify systemd-analyze verify --man=no pdsfs@cloud.service
s start start cloud
s status soon says cloud 'nothing to save'
s seen_outside test "$(readlink "/proc/$(prop cloud MainPID)/ns/mnt")" = "$(readlink /proc/self/ns/mnt)"
s no_new_privileges grep -q '^NoNewPrivs:.*1' "/proc/$(prop cloud MainPID)/status"
p=$(prop cloud MainPID)
kill -STOP "$p"
s watchdog soon is_back "$p"
s watchdog_said grep -q 'Watchdog timeout' <(journalctl -u pdsfs@cloud --no-pager)
p=$(prop cloud MainPID)
kill -KILL "$p"
s killed_comes_back soon is_back "$p"
s one_mount test "$(grep -c ' /mnt/cloud ' /proc/mounts)" = 1
systemctl start pdsfs@none 2>/dev/null
s unknown_name_is_not_retried soon ended none failed exit-code
s and_code_2 test "$(prop none ExecMainStatus) $(prop none NRestarts)" = "2 0"
s slow_start start slow
s two_at_once mounted /mnt/cloud
exec 9>/mnt/slow/f
head -c 6000000 /dev/urandom >/tmp/f && cat /tmp/f >&9
s says_what_is_left soon says slow 'saving: 1 file, .* left'
inhibits() { systemd-inhibit --list --no-legend --no-pager | grep -q 'pdsfs.*shutdown:sleep.*left'; }
s machine_stays_awake soon inhibits
a=$(date +%s)
systemctl stop pdsfs@slow
s "longer_than_its_timeout ($(($(date +%s) - a)) s)" test $(($(date +%s) - a)) -gt 6
s drained ended slow inactive success
s and_may_sleep_again soon not inhibits
exec 9>&-
s again start slow
s saved cmp /tmp/f /mnt/slow/f
exec 9>/mnt/cloud/precious
head -c 3000000 /tmp/f >&9
systemctl stop pdsfs-drive
systemctl stop pdsfs@cloud
s lost_is_failure soon ended cloud failed exit-code
s lost_is_named grep -q 'not saved: /precious' <(journalctl -u pdsfs@cloud --no-pager)
s nothing_left_mounted bash -c '! grep -q " /mnt/cloud " /proc/mounts'
systemctl stop 'pdsfs@*'
systemd-analyze security --no-pager pdsfs@cloud.service | grep -i 'overall exposure'
finish PDSFS
