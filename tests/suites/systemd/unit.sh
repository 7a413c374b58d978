#!/bin/bash
# Tests of the system unit beyond those of every FUSE unit: status, watchdog, exit codes, extended stop timeout, and no
# sleep during an upload.
. /usr/local/lib/checks.sh
status_has() { prop "$1" StatusText | grep -q "$2"; }
is_restarted() { [ "$(prop cloud ActiveState)" = active ] && [ "$(prop cloud MainPID)" != "$1" ] && ls /mnt/cloud >/dev/null; }
s verify systemd-analyze verify --man=no pdsfs@cloud.service
s start start cloud
s status soon status_has cloud 'nothing to save'
s mount_is_in_host_namespace test "$(readlink "/proc/$(prop cloud MainPID)/ns/mnt")" = "$(readlink /proc/self/ns/mnt)"
s no_new_privileges grep -q '^NoNewPrivs:.*1' "/proc/$(prop cloud MainPID)/status"
p=$(prop cloud MainPID)
kill -STOP "$p"
s watchdog soon is_restarted "$p"
s watchdog_is_logged grep -q 'Watchdog timeout' <(journalctl -u pdsfs@cloud --no-pager)
p=$(prop cloud MainPID)
kill -KILL "$p"
s killed_daemon_is_restarted soon is_restarted "$p"
s one_mount test "$(grep -c ' /mnt/cloud ' /proc/mounts)" = 1
systemctl start pdsfs@none 2>/dev/null
s unknown_name_is_not_retried soon ended none failed exit-code
s unknown_name_exits_with_2 test "$(prop none ExecMainStatus) $(prop none NRestarts)" = "2 0"
s slow_start start slow
s two_mounts_at_once mounted /mnt/cloud
exec 9>/mnt/slow/f
head -c 6000000 /dev/urandom >/tmp/f && cat /tmp/f >&9
s status_shows_bytes_left soon status_has slow 'saving: 1 file, .* left'
inhibits() { systemd-inhibit --list --no-legend --no-pager | grep -q 'pdsfs.*shutdown:sleep.*left'; }
s sleep_is_inhibited soon inhibits
a=$(date +%s)
systemctl stop pdsfs@slow
s "stop_exceeds_base_timeout ($(($(date +%s) - a)) s)" test $(($(date +%s) - a)) -gt 6
s slow_stop_is_clean ended slow inactive success
s inhibitor_is_released soon not inhibits
exec 9>&-
s slow_starts_again start slow
s file_is_saved cmp /tmp/f /mnt/slow/f
exec 9>/mnt/cloud/precious
head -c 3000000 /tmp/f >&9
systemctl stop pdsfs-drive
systemctl stop pdsfs@cloud
s lost_file_is_a_failure soon ended cloud failed exit-code
s lost_file_is_named grep -q 'NOT SAVED /precious' <(journalctl -u pdsfs@cloud --no-pager)
s nothing_left_mounted bash -c '! grep -q " /mnt/cloud " /proc/mounts'
systemctl stop 'pdsfs@*'
systemd-analyze security --no-pager pdsfs@cloud.service | grep -i 'overall exposure'
finish PDSFS
